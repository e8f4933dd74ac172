"""Whatever inject is called with, a network is either injected or exactly as it was."""

import copy
from typing import Any

import timm
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import gca
from tests.conftest import randomize

IMAGE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
JUNK = st.one_of(st.none(), st.booleans(), st.integers(-3, 9), st.floats(), st.text(max_size=4), st.just(object()))
COUNTS = st.one_of(st.integers(-2, 70), JUNK)
SELECTORS = st.one_of(st.none(), st.integers(-3, 6), st.lists(st.integers(-2, 5), max_size=3), JUNK)
LAYERS = st.one_of(
    st.sampled_from(["gca", "coord", "cbam", "se", "GCA", "gcaa", nn.Identity, nn.Conv2d, int, len]), JUNK
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "groups": COUNTS,
        "reduction": COUNTS,
        "pool": st.one_of(st.sampled_from(["avg", "max", "mean"]), JUNK),
        "kernel_size": COUNTS,
        "share_groups": st.booleans(),
        "group": COUNTS,
        "on_existing": st.one_of(st.sampled_from(["error", "replace", "skip", "stack", "ignore"]), JUNK),
        "where": st.one_of(st.sampled_from([lambda name, block: "2" in name, lambda name, block: False]), JUNK),
        "stages": SELECTORS,
        "blocks": SELECTORS,
    },
)


def _networks() -> list[nn.Module]:
    bottleneck = timm.models.resnet.Bottleneck
    small: dict[str, Any] = {"layers": [2, 1, 1, 1], "channels": (8, 16, 24, 32), "num_classes": 4}
    plain = timm.models.resnet.ResNet(bottleneck, **small)
    with_se = timm.models.resnet.ResNet(bottleneck, **small, block_args={"attn_layer": "se"})
    slotless = nn.Sequential(torchvision.models.resnet.BasicBlock(3, 3), torchvision.models.resnet.BasicBlock(3, 3))
    return [randomize(network).eval() for network in (plain, with_se, slotless)]


NETWORKS = _networks()
BEFORE = [(copy.deepcopy(network.state_dict()), network(IMAGE)) for network in NETWORKS]


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(index=st.integers(0, len(NETWORKS) - 1), layer=LAYERS, options=OPTIONS)
def test_all_or_nothing(index: int, layer: Any, options: dict[str, Any]) -> None:
    network, (state, output) = NETWORKS[index], BEFORE[index]
    try:
        gca.inject(network, layer, **options)
    except (TypeError, ValueError):  # any other exception fails the test
        assert gca.injected(network) == {}
    else:
        if gca.injected(network):  # with on_existing="skip" there may be nothing to do
            gca.eject(network)
    assert list(network.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert torch.equal(network(IMAGE), output)
