"""Volumes by every backend against the formula along three axes, in float64."""

import pytest
import torch
from torch import Tensor

import gca
from gca import ops
from gca.ops import POOLS, autograd
from gca.ops.layout import is_channels_last
from gca.ops.plain import combine
from gca.ops.volumes import planes
from tests.conftest import randomize

SIZES = [(3, 4, 9), (1, 5, 7), (4, 1, 1), (1, 1, 1), (5, 17, 33)]
LAYOUTS = ("contiguous", "channels_last_3d", "transposed", "strided")
Tensors = tuple[Tensor, ...]


def lay_out(x: Tensor, layout: str) -> Tensor:
    if layout == "channels_last_3d":
        return x.contiguous(memory_format=torch.channels_last_3d)
    if layout == "transposed":
        return x.transpose(2, 4).contiguous().transpose(2, 4)
    if layout == "strided":
        return x.repeat_interleave(2, dim=3)[..., ::2, :]
    return x


def leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def example(size: tuple[int, int, int] = SIZES[0], batch: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x, its three gates, and what arrives at the four outputs in backward."""
    shapes = [(batch, 6, *size), *((batch, 6, n) for n in size)]
    gates = [torch.rand(shape) for shape in shapes[1:]]
    grads = [torch.randn(shape) for shape in (*shapes[1:], shapes[0])]
    return [t.to(dtype) for t in (torch.randn(shapes[0]), *gates, *grads)]


def link(x: Tensor, *gates: Tensor, pool: str = "avg+max") -> Tensors:
    """Pooled features and gated x, as the layers compute them."""
    pooled = []

    def gates_of(means: Tensor | None, maxima: Tensor | None) -> Tensor:
        pooled.append(combine(means, maxima).to(x.dtype))
        return torch.cat(gates, dim=2)

    y = autograd.attend(x, pool, gates_of, 3)
    return *pooled[0].split(list(x.shape[2:]), dim=2), y


def run(x: Tensor, gates: Tensors, grads: Tensors, pool: str = "avg+max") -> list[Tensor]:
    """Outputs and gradients of both operations, of each alone and of the two linked as in the layers."""
    x, *gates = leaf(x), *map(leaf, gates)
    outputs = [*ops.axis_pool(x, pool), ops.axis_gate(x, *gates)]
    alone = torch.autograd.grad(outputs, (x, *gates), grads)
    linked_outputs = link(x, *gates, pool=pool)
    linked = torch.autograd.grad(linked_outputs, (x, *gates), grads)
    for ours, theirs in zip(linked_outputs, outputs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    return [*outputs, *alone, *linked]


def check(x: Tensor, others: list[Tensor], layout: str, pool: str = "avg+max") -> None:
    for ours, formula in compare(x, others, layout, pool):
        torch.testing.assert_close(ours, formula, rtol=1e-12, atol=1e-12)


def compare(x: Tensor, others: list[Tensor], layout: str, pool: str = "avg+max") -> list[tuple[Tensor, Tensor]]:
    """What a backend gives, and what the formula gives in float64."""
    gates, grads = others[:3], others[3:]
    actual = run(lay_out(x, layout), gates, (*grads[:3], lay_out(grads[3], layout)), pool)
    with ops.backend("reference"):
        doubles = [t.double() for t in others]
        expected = run(x.double(), doubles[:3], doubles[3:], pool)
    return list(zip(actual, expected, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pool", POOLS)
def test_values_and_gradients_in_float64(backend: str, pool: str, size: tuple[int, int, int], layout: str) -> None:
    x, *others = example(size)
    check(x, others, layout, pool)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy in Triton's interpreter
@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_propagate(backend: str, value: float, layout: str) -> None:
    x, *others = example()
    x[0, 0, 0, 0, 0] = x[0, 1, -1, -1, -1] = x[1, 2, 1, 2, 1] = value
    x[1, 3, 1, 1, 1], x[1, 3, 1, 2, 1] = float("inf"), -float("inf")  # their mean is NaN, their maximum is not
    for i, (ours, formula) in enumerate(compare(x, others, layout)):
        if i in (4, 8):  # the gradients of x
            # A slice whose maximum is NaN has NaN for a gradient. Two steps give it to the whole row of the NaN, and of
            # the other rows perhaps to their maxima only; never to what the formula leaves finite.
            assert not (ours.isnan() & ~formula.isnan()).any()
            assert ours[x.isnan().any(4)].isnan().all()
            ours = torch.where(formula.isnan(), formula, ours)
        torch.testing.assert_close(ours, formula, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reduced_precision_is_close(backend: str, dtype: torch.dtype, layout: str) -> None:
    """A mean of means is rounded twice, and a product of three gates once more."""
    if backend == "numba" and dtype != torch.float32:
        pytest.skip("numba has no floats in reduced precision")
    x, *others = example((3, 4, 40), dtype=dtype)
    tolerance = 16 * torch.finfo(dtype).eps
    for ours, formula in compare(x, others, layout):
        assert ours.dtype == dtype
        largest = float(formula.detach().abs().max())
        torch.testing.assert_close(ours.double(), formula, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_ties_share_the_gradient_in_two_steps(backend: str, layout: str) -> None:
    """The formula gives three maxima of a slice a third each; kernels divide among its rows first."""
    x = torch.zeros(2, 2, 1, 2, 3, dtype=torch.float64)
    x[:, :, 0, 0, :2] = x[:, :, 0, 1, 2] = 1
    x = leaf(lay_out(x, layout))
    ops.axis_pool(x, "max")[0].sum().backward()
    shares = torch.tensor([[1 / 4, 1 / 4, 0], [0, 0, 1 / 2]], dtype=torch.float64)
    if backend == "plain":
        shares = torch.tensor([[1 / 3, 1 / 3, 0], [0, 0, 1 / 3]], dtype=torch.float64)
    torch.testing.assert_close(x.grad, shares.expand_as(x))


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_empty_batch(backend: str, layout: str) -> None:
    x, *others = example(batch=0)
    check(x, others, layout)


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_layout_is_kept_and_nothing_is_copied_for_it(backend: str, layout: str) -> None:
    x, *others = example()
    x = lay_out(x, layout)
    assert planes(x).untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert is_channels_last(planes(x)) == (layout == "channels_last_3d")
    *_, y, _, _, _, _, linked_x, _, _, _ = run(x, others[:3], others[3:])
    assert is_channels_last(y) == (layout == "channels_last_3d")
    if backend != "plain":  # torch lays the formula's gradient out as it likes
        assert is_channels_last(linked_x) == (layout == "channels_last_3d")


@pytest.mark.parametrize("pool", POOLS)
def test_first_and_second_derivatives_are_those_of_finite_differences(backend: str, pool: str) -> None:
    x, *gates = (leaf(t[:1, :2]) for t in example((2, 2, 3))[:4])

    def linked(x: Tensor, *gates: Tensor) -> Tensors:
        pooled = []

        def gates_of(means: Tensor | None, maxima: Tensor | None) -> Tensor:
            pooled.append(combine(means, maxima))
            return torch.cat(gates, dim=2) * pooled[0]

        y = autograd.attend(x, pool, gates_of, 3)
        return pooled[0].sin(), y

    assert torch.autograd.gradcheck(linked, (x, *gates))
    assert torch.autograd.gradgradcheck(linked, (x, *gates))


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("layer", [gca.GroupedCoordinateAttention, gca.CoordinateAttention])
def test_layers_alone_and_in_training(backend: str, layer: type[torch.nn.Module], layout: str) -> None:
    module = randomize(layer(8, 4, spatial_dims=3, dtype=torch.float64)).train()
    x = torch.randn(2, 8, 3, 4, 5, dtype=torch.float64)
    results = []
    for name, one in (("reference", x), (backend, lay_out(x, layout))):
        with ops.backend(name):
            module.zero_grad()
            one = leaf(one)
            y = module(one)
            y.square().sum().backward()
            results.append([y, one.grad, *(p.grad.clone() for p in module.parameters())])
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_memory_saved_for_backward_is_x_and_small_tensors(backend: str, layout: str) -> None:
    if backend == "plain":
        pytest.skip("the formula saves more")
    layer = gca.GroupedCoordinateAttention(8, spatial_dims=3)
    x = leaf(lay_out(torch.randn(1, 8, 32, 32, 32), layout))
    saved: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x)
    assert x.untyped_storage().data_ptr() in saved
    assert sum(saved.values()) <= 1.2 * x.nbytes
