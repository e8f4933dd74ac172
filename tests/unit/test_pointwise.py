"""The 1x1 convolutions of coordinate layers are matrix products, and still convolutions to whoever looks at them."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import prune

import gca
from tests.conftest import randomize

Seen = list[tuple[int, ...]]


def with_a_hook(conv: nn.Conv2d, seen: Seen) -> None:
    conv.register_forward_hook(lambda module, args, out: seen.append(tuple(args[0].shape)))


def with_a_hook_before(conv: nn.Conv2d, seen: Seen) -> None:
    conv.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))


def with_another_forward(conv: nn.Conv2d, seen: Seen) -> None:
    original = conv.forward

    def forward(image: Tensor) -> Tensor:
        seen.append(tuple(image.shape))
        return original(image)

    conv.forward = forward  # type: ignore[method-assign]


def of_another_class(conv: nn.Conv2d, seen: Seen) -> None:
    class Watched(nn.Conv2d):
        def forward(self, image: Tensor) -> Tensor:
            seen.append(tuple(image.shape))
            return super().forward(image)

    conv.__class__ = Watched


@pytest.mark.parametrize("layer", [gca.GroupedCoordinateAttention(16, groups=4), gca.CoordinateAttention(16)])
@pytest.mark.parametrize("watched", [with_a_hook, with_a_hook_before, with_another_forward, of_another_class])
def test_a_convolution_that_somebody_watches_is_called(
    layer: nn.Module, watched: Callable[[nn.Conv2d, Seen], None]
) -> None:
    layer, x = randomize(copy.deepcopy(layer)).eval(), torch.randn(2, 16, 5, 3)
    x = x.to(memory_format=torch.channels_last)
    expected = layer(x)
    seen: Seen = []
    convs = [module for module in layer.modules() if isinstance(module, nn.Conv2d)]
    for conv in convs:
        watched(conv, seen)
    torch.testing.assert_close(layer(x), expected)
    assert len(seen) == len(convs)
    assert all(shape[0] == 2 and shape[3] == 1 for shape in seen)  # images of one column
    assert {conv.in_channels for conv in convs} == {shape[1] for shape in seen}


@pytest.mark.parametrize("share_groups", [True, False])
def test_exported_graphs_hold_convolutions_and_compiled_ones_products(share_groups: bool) -> None:
    layer, x = gca.GroupedCoordinateAttention(8, share_groups=share_groups).eval(), torch.randn(2, 8, 5, 3)
    exported = [node.target for node in torch.export.export(layer, (x,)).graph.nodes]
    assert exported.count(torch.ops.aten.conv2d.default) == 2
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.*")  # deprecated, but still in use
        kinds = [node.kind() for node in torch.jit.trace(layer, x).inlined_graph.nodes()]
    assert kinds.count("aten::_convolution") == 2
    assert [type(node) for node in torch.fx.symbolic_trace(layer).modules()].count(nn.Conv2d) == 2

    called: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        called.extend(node.target for node in graph.graph.nodes)
        return graph

    torch.compiler.reset()
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    assert called.count(nn.functional.linear) == (2 if share_groups else 0)
    assert called.count(torch.conv2d) == (0 if share_groups else 2)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("share_groups", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_float16_does_not_overflow(share_groups: bool, training: bool, layout: torch.memory_format) -> None:
    layer = randomize(gca.GroupedCoordinateAttention(16, share_groups=share_groups, dtype=torch.float64))
    x = 5e4 * torch.rand(2, 16, 5, 3, dtype=torch.float64)  # the sum of a mean and a maximum exceeds 65,504
    x = x.to(memory_format=layout)
    y = copy.deepcopy(layer).half().train(training)(x.half())
    assert y.isfinite().all()
    torch.testing.assert_close(y.double(), layer.train(training)(x), rtol=5e-2, atol=50)


@pytest.mark.parametrize("layer", [gca.GroupedCoordinateAttention(16, groups=4), gca.CoordinateAttention(16)])
def test_layouts_agree(layer: nn.Module) -> None:
    layer, x = randomize(copy.deepcopy(layer)).double(), torch.randn(2, 16, 5, 3, dtype=torch.float64)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        image = x.to(memory_format=layout, copy=True).requires_grad_()
        layer.zero_grad()
        y = layer(image)
        y.square().sum().backward()
        results.append([y, image.grad, *(p.grad for p in layer.parameters())])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("watched", [with_a_hook, with_a_hook_before, with_another_forward, of_another_class])
def test_so_it_is_in_float16(watched: Callable[[nn.Conv2d, Seen], None]) -> None:
    layer, x = gca.GroupedCoordinateAttention(16).half().eval(), torch.randn(2, 16, 5, 3).half()
    expected = layer(x)
    seen: Seen = []
    watched(layer.conv1, seen)
    watched(layer.conv2, seen)
    torch.testing.assert_close(layer(x), expected, rtol=1e-2, atol=1e-2)
    assert len(seen) == 2


class Wrapped(nn.Module):
    """An adapter around a convolution, which has no weight itself."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.base(image)
        return out


def replace_norm(layer: Any) -> None:
    layer.bn1 = nn.GroupNorm(2, layer.bn1.num_features)


def freeze_norm(layer: Any) -> None:
    layer.bn1 = torchvision.ops.FrozenBatchNorm2d(layer.bn1.num_features)


def norm_without_statistics(layer: Any) -> None:
    layer.bn1 = nn.BatchNorm2d(layer.bn1.num_features, track_running_stats=False)


def norm_without_weights(layer: Any) -> None:
    layer.bn1 = nn.BatchNorm2d(layer.bn1.num_features, affine=False)


def adapt(layer: Any) -> None:
    layer.conv1 = Wrapped(layer.conv1)


def fuse(layer: Any) -> None:
    torch.ao.quantization.fuse_modules(layer, ["conv1", "bn1", "act"], inplace=True)


def prune_weight(layer: Any) -> None:
    prune.l1_unstructured(layer.conv1, "weight", 0.5)


def wider_kernel(layer: Any) -> None:
    conv = layer.conv1
    layer.conv1 = nn.Conv2d(conv.in_channels, conv.out_channels, (3, 1), padding=(1, 0))


@pytest.mark.parametrize(
    "change",
    [replace_norm, freeze_norm, norm_without_statistics, norm_without_weights, adapt, fuse, prune_weight, wider_kernel],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated")
def test_parts_may_be_replaced(change: Callable[[Any], None], layout: torch.memory_format) -> None:
    layer = gca.GroupedCoordinateAttention(16).eval()
    change(layer)
    x = torch.randn(2, 16, 5, 3).to(memory_format=layout)
    expected = layer(x).detach()
    torch.testing.assert_close(layer.double()(x.double()), expected.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.half()(x.half()), expected.half(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("momentum", [0.0, 0.3, None])
def test_statistics_in_float16_move_as_in_float32(momentum: float | None) -> None:
    wide = gca.GroupedCoordinateAttention(16)
    wide.bn1.momentum = momentum
    narrow = copy.deepcopy(wide).half()
    for x in torch.randn(3, 2, 16, 6, 5):
        wide(x)
        narrow(x.half())
    assert narrow.bn1.num_batches_tracked == 3
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(narrow.bn1, name).float(), getattr(wide.bn1, name), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_under_autocast_to_float16_do_not_overflow(layout: torch.memory_format) -> None:
    """A compiler traces backward under the autocast of forward, in which matrix products are in float16."""
    torch.manual_seed(0)
    layer = gca.GroupedCoordinateAttention(16)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = (5e4 * torch.rand(2, 16, 6, 5)).to(memory_format=layout)
    grads = []
    torch.compiler.reset()
    for forward in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        layer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            y = forward(x)
            (y.mean() * 1e-3).backward()
        assert layer.conv1.weight.grad is not None
        grads.append(layer.conv1.weight.grad)
    assert grads[0].isfinite().all()
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4 * float(grads[0].abs().max()))


def test_autocast_leaves_float64_alone() -> None:
    layer, x = gca.GroupedCoordinateAttention(16).double().eval(), torch.randn(2, 16, 6, 5, dtype=torch.float64)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.float16):
        torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_hooks_on_all_modules_see_the_convolutions(layout: torch.memory_format) -> None:
    seen: list[type[nn.Module]] = []
    with nn.modules.module.register_module_forward_hook(lambda module, args, out: seen.append(type(module))):
        gca.GroupedCoordinateAttention(16).eval()(torch.randn(2, 16, 6, 5).to(memory_format=layout))
    assert seen.count(nn.Conv2d) == 2
