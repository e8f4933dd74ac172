"""The network against the complexity that the paper prints in Table 4: 9 classes, 3x224x224."""

from typing import Any

import pytest
import thop
import torch
from torch import Tensor, nn

import gca


def count_gca(layer: nn.Module, inputs: tuple[Tensor], _: Tensor) -> None:
    """Count a GCA layer as thop does one built of ``nn.AdaptiveAvgPool2d`` and the modules it has.

    thop sees modules only, and the layer pools by functions. For an average pool it counts an addition per input and
    a division per output; for a maximum and for the gate's multiplications it counts nothing.
    """
    b, c, h, w = inputs[0].shape
    pooling = b * c * (h * (w + 1) + w * (h + 1))
    layer.total_ops += pooling + sum(child.total_ops for child in layer.children() if hasattr(child, "total_ops"))


@pytest.mark.parametrize(
    ("options", "parameters", "macs"),
    [
        ({"attention": None}, 43_933_321, "17.57"),
        ({"attention": "gca"}, 48_978_313, "17.80"),
    ],
)
def test_parameters_and_macs_to_the_printed_digit(options: dict[str, Any], parameters: int, macs: str) -> None:
    model = gca.GCAResUNet(9, **options).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    counted, _ = thop.profile(
        model,
        (torch.zeros(1, 3, 224, 224),),
        custom_ops={gca.GroupedCoordinateAttention: count_gca},
        verbose=False,
    )
    assert f"{counted / 1e9:.2f}" == macs


def test_attention_stands_in_all_sixteen_bottlenecks() -> None:
    with torch.device("meta"):
        model = gca.GCAResUNet(9)
    per_layer = [sum(p.numel() for p in layer.parameters()) for layer in gca.injected(model).values()]
    assert len(per_layer) == 16
    assert sum(per_layer) == 48_978_313 - 43_933_321
