"""Networks for volumes beyond what test_families.py asks of every one: graphs, heads, and U-Nets of no use."""

import contextlib
import io
import warnings
from collections.abc import Callable

import monai.networks.nets as nets
import pytest
import torch
from torch import nn

import gca
from gca.blocks import find_blocks
from tests.conftest import randomize
from tests.models import VOLUMES
from tests.unit.test_families import VIDEOS

ONE = VIDEOS[:1]
# What none of torch's tools can take without attention either, by network.
NEITHER: dict[str, set[str]] = {
    "script": {"monai SegResNetDS 3-D"},
    "symbolic_trace": {"monai SegResNetDS 3-D", "monai UNETR 3-D"},
}


def compiled(model: nn.Module, x: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    torch.compiler.reset()
    return torch.compile(model, fullgraph=True, backend="eager")


def exported(model: nn.Module, x: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return torch.export.export(model, (x,), strict=False).module()


def script(model: nn.Module, x: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return torch.jit.script(model)


def symbolic_trace(model: nn.Module, x: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return torch.fx.symbolic_trace(model)


@pytest.mark.parametrize("convert", [exported, compiled, script, symbolic_trace], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", VOLUMES)
def test_graphs(name: str, convert: Callable[..., Callable[[torch.Tensor], torch.Tensor]]) -> None:
    """A network with attention goes through what it goes through without, and fails where it fails without."""
    model = VOLUMES[name][0]().eval()
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # torch.fx prints where it fails
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", "The TorchScript type system", UserWarning)  # of annotations in MONAI
        if name in NEITHER.get(convert.__name__, ()):
            for one in (model, gca.inject(model)):
                with pytest.raises((RuntimeError, TypeError, KeyError, torch.fx.proxy.TraceError)):
                    convert(one, ONE)
            return
        graph = convert(randomize(gca.inject(model)), ONE)
    with torch.no_grad(), gca.ops.backend("plain"):
        torch.testing.assert_close(graph(ONE), model(ONE), rtol=1e-4, atol=1e-4)


def test_the_head_of_a_unet_is_no_block() -> None:
    model = VOLUMES["monai UNet 3-D"][0]()
    gca.inject(model)
    units = [name for name, module in model.named_modules() if type(module).__name__ == "ResidualUnit"]
    assert len(units) == 5
    assert units.pop() == "model.2.1"  # it gives the scores of classes
    assert {block.name for block in find_blocks(model)} == set(units)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: nets.DynUNet(3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2]),
            "DynUNet has plain convolutions, .* residual sum .*; DynUNet has residual blocks with res_block=True",
        ),
        (lambda: nets.BasicUNet(3), "BasicUNet has plain convolutions, .*; take UNet with num_res_units=2"),
        (
            lambda: nets.UNet(3, 1, 2, (8, 16), (2,)),
            "UNet has plain convolutions, .*; UNet has residual units with num_res_units=2",
        ),
    ],
)
def test_unets_of_plain_convolutions_are_refused_with_a_remedy(build: Callable[[], nn.Module], message: str) -> None:
    with torch.device("meta"):
        model = build()
    with pytest.raises(ValueError, match=message):
        gca.inject(model)


@pytest.mark.parametrize("name", ["monai SegResNet 3-D", "torchvision r2plus1d 3-D"])
def test_gradients_reach_attention_and_the_network(name: str) -> None:
    model = randomize(gca.inject(VOLUMES[name][0](), reduction=2))
    model(VIDEOS).square().mean().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    assert all(layer.conv2.weight.grad.any() for layer in gca.injected(model).values())
