import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import gca
from gca.layers import GatedLayer

LAYERS: dict[str, Callable[..., nn.Module]] = {
    "gca": gca.GroupedCoordinateAttention,
    "gca-own": lambda channels, **options: gca.GroupedCoordinateAttention(channels, share_groups=False, **options),
    "coord": lambda channels, **options: gca.CoordinateAttention(channels, 4, **options),
    "cbam": lambda channels, **options: gca.CBAM(channels, 4, **options),
    "se": lambda channels, **options: gca.SE(channels, 4, **options),
}


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> Callable[..., nn.Module]:
    """Each layer in turn, as a callable (channels, **options)."""
    return LAYERS[request.param]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def test_data() -> Path:
    """Folder of real data sets."""
    folder = os.environ.get("GCA_TEST_DATA")
    if not folder:
        pytest.skip("needs real data: set GCA_TEST_DATA to its folder")
    return Path(folder)


def randomize(module: nn.Module) -> nn.Module:
    """Give batch norms statistics and affine weights that matter, and attention gates that do, as after training."""
    for child in module.modules():
        if isinstance(child, GatedLayer) and child.identity_init:
            for conv in child.last_convs():
                nn.init.normal_(conv.weight)
        if isinstance(child, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.normal_(child.weight, 1, 0.2)
            nn.init.normal_(child.bias, 0, 0.2)
            nn.init.normal_(child.running_mean, 0, 0.2)
            nn.init.uniform_(child.running_var, 0.5, 2)
    return module
