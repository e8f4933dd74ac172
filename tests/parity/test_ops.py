"""Every backend of the two operations against the formulas, in float64."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import gca
from gca import ops
from gca.ops import POOLS, autograd
from gca.ops.plain import combine

SIZES = [(6, 9), (1, 5), (4, 1), (1, 1), (2, 2), (17, 33)]
LAYOUTS = ("contiguous", "channels_last", "transposed", "strided")


def lay_out(x: Tensor, layout: str) -> Tensor:
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "strided":
        return x.repeat_interleave(2, dim=3)[..., ::2]
    return x


def leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def example(size: tuple[int, int] = (6, 9), batch: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """x, both gates, and what arrives at the three outputs in backward."""
    shape = (batch, 8, *size)
    x = torch.randn(shape)
    gates = torch.rand(shape[:3]), torch.rand(batch, 8, size[1])
    grads = torch.randn(shape[:3]), torch.randn(batch, 8, size[1]), torch.randn(shape)
    return tuple(t.to(dtype) for t in (x, *gates, *grads))


def link(x: Tensor, gate_h: Tensor, gate_w: Tensor, pool: str = "avg+max") -> tuple[Tensor, ...]:
    """Pooled rows, pooled columns and gated x, as the layers compute them."""
    pooled = []

    def gates_of(means: Tensor | None, maxima: Tensor | None) -> Tensor:
        pooled.append(combine(means, maxima).to(x.dtype))
        return torch.cat((gate_h, gate_w), dim=2)

    y = autograd.attend(x, pool, gates_of)
    return *pooled[0].split([x.shape[2], x.shape[3]], dim=2), y


def run(x: Tensor, gate_h: Tensor, gate_w: Tensor, grads: tuple[Tensor, ...], pool: str) -> list[Tensor]:
    """Outputs and gradients of both operations, of each alone and of the two linked as in the layers."""
    x, gate_h, gate_w = leaf(x), leaf(gate_h), leaf(gate_w)
    outputs = [*ops.axis_pool(x, pool), ops.axis_gate(x, gate_h, gate_w)]
    alone = torch.autograd.grad(outputs, (x, gate_h, gate_w), grads)
    linked_outputs = link(x, gate_h, gate_w, pool)
    linked = torch.autograd.grad(linked_outputs, (x, gate_h, gate_w), grads)
    for ours, theirs in zip(linked_outputs, outputs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    return [*outputs, *alone, *linked]


def expect(x: Tensor, gate_h: Tensor, gate_w: Tensor, grads: tuple[Tensor, ...], pool: str) -> list[Tensor]:
    with ops.backend("reference"):
        doubles = [t.double() for t in (x, gate_h, gate_w)]
        return run(*doubles, tuple(t.double() for t in grads), pool)


def assert_equal_but_for_roundings(x: Tensor, gates: tuple[Tensor, ...], grads: tuple[Tensor, ...]) -> None:
    """A few roundings of the largest term; the gates' gradients are sums of up to a line of products of size one."""
    h, w = x.shape[2:]
    actual, formulas = (function(x, *gates, grads, "avg+max") for function in (run, expect))
    names = ("pooled_h", "pooled_w", "y", *2 * ("grad_x", "grad_gate_h", "grad_gate_w"))
    tolerance = 4 * torch.finfo(x.dtype).eps
    for name, ours, formula in zip(names, actual, formulas, strict=True):
        assert ours.dtype == x.dtype
        terms = {"grad_gate_h": w**0.5, "grad_gate_w": h**0.5}.get(name, 1)
        torch.testing.assert_close(
            ours.double(), formula, rtol=tolerance, atol=4 * tolerance * terms, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pool", POOLS)
def test_values_and_gradients_in_float64(backend: str, pool: str, size: tuple[int, int], layout: str) -> None:
    x, gate_h, gate_w, *grads = example(size)
    actual = run(lay_out(x, layout), gate_h, gate_w, (*grads[:2], lay_out(grads[2], layout)), pool)
    for ours, formula in zip(actual, expect(x, gate_h, gate_w, tuple(grads), pool), strict=True):
        torch.testing.assert_close(ours, formula, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_reduced_precision_accumulates_in_float32(backend: str, dtype: torch.dtype, layout: str) -> None:
    """Rows of 999: accumulated in bfloat16, whose sums of ones stop at 256, nothing would be left of the result."""
    if backend == "numba" and dtype != torch.float32:
        pytest.skip("numba has no floats in reduced precision")
    x, gate_h, gate_w, *grads = example((5, 999), dtype=dtype)
    x = lay_out(x + 1, layout)
    assert_equal_but_for_roundings(x, (gate_h, gate_w), tuple(grads))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(64, 56, 56), (64, 28, 28), (64, 14, 14), (72, 7, 7), (24, 48, 80)])
def test_shapes_of_networks(backend: str, shape: tuple[int, int, int], dtype: torch.dtype, layout: str) -> None:
    """Those that blocks of kernels are chosen for, with gates that are parts of a longer tensor as in the layers."""
    if backend == "numba" and dtype != torch.float32:
        pytest.skip("numba has no floats in reduced precision")
    c, h, w = shape
    x, grad = (lay_out(torch.randn(1, c, h, w).to(dtype), layout) for _ in range(2))
    gates, grads = (torch.rand(1, c, h + w).to(dtype).split([h, w], dim=2) for _ in range(2))
    assert_equal_but_for_roundings(x, gates, (*grads, grad))


@pytest.mark.parametrize("pool", ["max", "avg+max"])
@pytest.mark.parametrize("size", [(6, 9), (17, 40)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_ties_share_the_gradient_of_the_maximum(backend: str, layout: str, size: tuple[int, int], pool: str) -> None:
    x, gate_h, gate_w, *grads = example(size)
    x = x.relu().round()  # most rows have several maxima, some are zero throughout
    assert ((x == x.amax(3, keepdim=True)).sum(3) > 1).double().mean() > 0.3
    actual = run(lay_out(x, layout), gate_h, gate_w, tuple(grads), pool)
    for ours, formula in zip(actual, expect(x, gate_h, gate_w, tuple(grads), pool), strict=True):
        torch.testing.assert_close(ours, formula, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy in Triton's interpreter
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("size", [(6, 9), (17, 40)])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_propagate(backend: str, value: float, layout: str, size: tuple[int, int], pool: str) -> None:
    x, gate_h, gate_w, *grads = example(size)
    for b in range(3):  # first, last and inner positions
        x[b, 0, 0, 0] = x[b, 1, -1, -1] = x[b, 2, 1, 2] = value
    x[0, 3, 1, 1], x[0, 3, 1, 4] = float("inf"), -float("inf")  # their mean is NaN, their maximum is not
    actual = run(lay_out(x, layout), gate_h, gate_w, tuple(grads), pool)
    for ours, formula in zip(actual, expect(x, gate_h, gate_w, tuple(grads), pool), strict=True):
        torch.testing.assert_close(ours, formula, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("size", [(6, 9), (17, 40)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tie_beside_a_nan(backend: str, layout: str, size: tuple[int, int]) -> None:
    """In all there are as many maxima as lines: the line with the NaN has none, and another has two."""
    x, gate_h, gate_w, *grads = example(size)
    x[0, 0, 0, 0] = float("nan")
    x[1, 2, 3, 4] = x[1, 2, 3, 5] = x[2, 3, 2, 1] = x[2, 3, 4, 1] = 10  # a row and a column with two maxima
    actual = run(lay_out(x, layout), gate_h, gate_w, tuple(grads), "avg+max")
    for ours, formula in zip(actual, expect(x, gate_h, gate_w, tuple(grads), "avg+max"), strict=True):
        torch.testing.assert_close(ours, formula, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_empty_batch(backend: str, layout: str) -> None:
    x, gate_h, gate_w, *grads = example(batch=0)
    shapes = [t.shape for t in run(lay_out(x, layout), gate_h, gate_w, tuple(grads), "avg+max")]
    assert shapes == [t.shape for t in expect(x, gate_h, gate_w, tuple(grads), "avg+max")]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_layout_is_kept(backend: str, layout: str) -> None:
    x, gate_h, gate_w, *grads = example(dtype=torch.float32)
    *_, y, grad_x, _, _, linked_x, _, _ = run(lay_out(x, layout), gate_h, gate_w, tuple(grads), "avg+max")
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert y.is_contiguous(memory_format=memory_format)
    if backend != "plain":  # torch lays the formula's gradient out as it likes
        assert linked_x.is_contiguous(memory_format=memory_format)
        assert grad_x.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("pool", POOLS)
def test_first_and_second_derivatives_are_those_of_finite_differences(backend: str, pool: str) -> None:
    x, gate_h, gate_w, *_ = (leaf(t[:2, :2]) for t in example((3, 4)))

    def linked(x: Tensor, gate_h: Tensor, gate_w: Tensor) -> tuple[Tensor, ...]:
        pooled = []

        def gates_of(means: Tensor | None, maxima: Tensor | None) -> Tensor:
            pooled.append(combine(means, maxima))
            return torch.cat((gate_h, gate_w), dim=2) * pooled[0]

        y = autograd.attend(x, pool, gates_of)
        return pooled[0].sin(), y

    assert torch.autograd.gradcheck(linked, (x, gate_h, gate_w))
    assert torch.autograd.gradgradcheck(linked, (x, gate_h, gate_w))


@pytest.mark.parametrize("frozen", [(), (0,), (1, 2), (0, 1), (2,)])
def test_only_what_is_asked_for_gets_a_gradient(backend: str, frozen: tuple[int, ...]) -> None:
    *inputs, grad_h, grad_w, grad = example()
    inputs = [t.requires_grad_(i not in frozen) for i, t in enumerate(inputs)]
    outputs = [(t, g) for t, g in zip(link(*inputs), (grad_h, grad_w, grad), strict=True) if t.requires_grad]
    torch.autograd.backward(*zip(*outputs, strict=True))
    formulas = expect(*(t.detach() for t in inputs), (grad_h, grad_w, grad), "avg+max")[-3:]
    for i, (tensor, formula) in enumerate(zip(inputs, formulas, strict=True)):
        if i in frozen:
            assert tensor.grad is None
        else:
            torch.testing.assert_close(tensor.grad, formula)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pool", POOLS)
def test_without_backward_the_same_is_computed_without_autograd(
    backend: str, pool: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, gate_h, gate_w, *_ = example()
    inputs = lay_out(x, layout), gate_h, gate_w
    recorded = link(*(leaf(t) for t in inputs), pool)
    monkeypatch.setattr(autograd, "_Pool", None)
    monkeypatch.setattr(autograd, "_Gate", None)
    frozen = link(*inputs, pool)
    with torch.no_grad():
        unrecorded = link(*(leaf(t) for t in inputs), pool)
    for theirs, *ours in zip(recorded, frozen, unrecorded, strict=True):
        for t in ours:
            assert not t.requires_grad
            torch.testing.assert_close(t, theirs.detach(), rtol=0, atol=0)
            assert t.stride() == theirs.stride()


def test_each_output_alone_and_backward_twice(backend: str) -> None:
    x, gate_h, gate_w, *grads = example()
    formulas = []
    for name in ("reference", backend):
        with ops.backend(name):
            x_ = leaf(x)
            pooled_h, pooled_w, y = link(x_, gate_h, gate_w)
            results = [
                torch.autograd.grad(t, x_, g, retain_graph=True) for t, g in zip((pooled_h, y), grads[::2], strict=True)
            ]
            for _ in range(2):
                results.append(torch.autograd.grad([pooled_h, pooled_w, y], x_, grads, retain_graph=True))
            formulas.append(results)
    for formula, ours in zip(*formulas, strict=True):
        torch.testing.assert_close(ours, formula)


@pytest.mark.parametrize("layer", [gca.GroupedCoordinateAttention, gca.CoordinateAttention])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_second_backward_without_create_graph(backend: str, layout: str, layer: type[torch.nn.Module]) -> None:
    """As a gradient penalty does: both passes go through the layer, one of them differentiable and the other not."""
    module = layer(8, 4, dtype=torch.float64)
    x = lay_out(torch.randn(2, 8, 5, 6, dtype=torch.float64), layout)
    results = []
    for name in ("reference", backend):
        with ops.backend(name):
            module.zero_grad()
            x_ = leaf(x)
            y = module(x_)
            (grad,) = torch.autograd.grad(y.square().sum(), x_, create_graph=True)
            (grad.square().sum() + y.sum()).backward()
            results.append([x_.grad, *(p.grad.clone() for p in module.parameters())])
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)


def test_a_backward_that_does_not_reach_x_leaves_nothing_behind(backend: str) -> None:
    """What the gate sends to the pool goes with the gradients of one pass; the next pass has its own."""
    x, gate_h, gate_w, grad_h, grad_w, grad = example()
    x, gate_h, gate_w = leaf(x), leaf(gate_h), leaf(gate_w)
    pooled_h, pooled_w, y = link(x, gate_h, gate_w)
    torch.autograd.grad(y, (gate_h, gate_w), grad, retain_graph=True)
    (alone,) = torch.autograd.grad((pooled_h, pooled_w), x, (grad_h, grad_w), retain_graph=True)
    (formula,) = torch.autograd.grad(ops.axis_pool(x), x, (grad_h, grad_w))
    torch.testing.assert_close(alone, formula)


@pytest.mark.parametrize("reentrant", [True, False])
def test_layer_under_hooks_checkpoint_and_a_second_use_of_its_input(backend: str, reentrant: bool) -> None:
    layer = gca.GroupedCoordinateAttention(8, dtype=torch.float64)
    x = torch.randn(2, 8, 5, 6, dtype=torch.float64)
    results = []
    for name, wrap in (("reference", False), (backend, False), (backend, True)):
        with ops.backend(name):
            layer.zero_grad()
            x_ = leaf(x)
            seen: list[Tensor] = []
            x_.register_hook(seen.append)
            trunk = x_ * 2
            y = checkpoint(layer, trunk, use_reentrant=reentrant) if wrap else layer(trunk)
            (y + trunk.square()).square().sum().backward()
            results.append([x_.grad, *seen, *(p.grad.clone() for p in layer.parameters())])
    for others in results[1:]:
        torch.testing.assert_close(others, results[0])


def test_memory_saved_for_backward_is_x_and_small_tensors(backend: str) -> None:
    if backend == "plain":
        pytest.skip("the formula saves more")
    layer = gca.GroupedCoordinateAttention(16)
    x = torch.randn(2, 16, 32, 32, requires_grad=True)
    saved: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x)
    whole = [size for size in saved.values() if size >= x.nbytes]
    assert whole == [x.nbytes]
    assert x.untyped_storage().data_ptr() in saved


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("side", [7, 28])
def test_autocast_rounds_no_gradient(backend: str, side: int, layout: str) -> None:
    """Of what is float32: backward may run inside of autocast too."""
    x, grad = (lay_out(torch.randn(1, 64, side, side), layout) for _ in range(2))
    gates, grads = (torch.rand(1, 64, 2 * side).split(side, dim=2) for _ in range(2))
    with torch.autocast(x.device.type, torch.bfloat16):
        assert_equal_but_for_roundings(x, gates, (*grads, grad))


def test_autocast_keeps_the_dtype_of_x(backend: str) -> None:
    x = torch.randn(2, 8, 5, 6)
    gates = torch.rand(2, 8, 5), torch.rand(2, 8, 6)
    with torch.autocast(x.device.type, torch.bfloat16):
        assert {t.dtype for t in ops.axis_pool(x)} == {torch.float32}
        y = ops.axis_gate(x, *(g.bfloat16() for g in gates))
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, x * gates[0].bfloat16().float()[..., None] * gates[1].bfloat16().float()[:, :, None])


@pytest.mark.parametrize("layer", [gca.GroupedCoordinateAttention, gca.CoordinateAttention])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_trainings_in_threads_are_exact(backend: str, layout: str, layer: type[torch.nn.Module]) -> None:
    """Several forwards and backwards at once, of one layer and each of its own, also by way of one graph."""
    if backend == "triton":
        pytest.skip("its interpreter is not made for threads")
    module = layer(8, 4).eval()
    images = [lay_out(torch.randn(2, 8, 13, 17), layout) for _ in range(16)]

    def step(x: Tensor) -> list[Tensor]:
        x = leaf(x)
        with ops.backend(backend):
            y = module(x)
        gradients = torch.autograd.grad(y.square().sum(), (x, *module.parameters()), retain_graph=True)
        return [y.detach(), *gradients, *torch.autograd.grad(y.sum(), x)]

    expected = [step(image) for image in images]
    with ThreadPoolExecutor(4) as callers:
        for ours, theirs in zip(callers.map(step, images), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
