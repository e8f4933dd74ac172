"""The 1x1 convolutions of coordinate layers are matrix products, and still convolutions to whoever looks at them."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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
