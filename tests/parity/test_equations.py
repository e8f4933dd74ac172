"""The layers against their equations, written as loops over scalars in float64."""

from collections.abc import Callable
from itertools import product
from math import exp

import pytest
import torch
from timm.layers import SEModule
from torch import Tensor, nn

import gca
from gca.ops import POOLS, axis_gate, axis_pool, backend
from tests.conftest import randomize

Vector = list[float]


def sigmoid(z: float) -> float:
    return 1 / (1 + exp(-z))


def relu(z: float) -> float:
    return max(0.0, z)


def hardswish(z: float) -> float:
    return z * min(max(z + 3, 0.0), 6.0) / 6


def affine(conv: nn.Conv2d, f: Vector) -> Vector:
    """A 1x1 convolution at one position."""
    weight = conv.weight[:, :, 0, 0].tolist()
    bias = conv.bias.tolist() if conv.bias is not None else [0.0] * len(weight)
    return [sum(w * v for w, v in zip(row, f, strict=True)) + b for row, b in zip(weight, bias, strict=True)]


def norm(bn: nn.BatchNorm2d, f: Vector) -> Vector:
    """Batch norm at one position, with running statistics."""
    parameters = zip(f, *(t.tolist() for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias)), strict=True)
    return [(v - mean) / (var + bn.eps) ** 0.5 * weight + bias for v, mean, var, weight, bias in parameters]


def pooled(values: Vector, pool: str) -> float:
    avg, top = sum(values) / len(values), max(values)
    return {"avg": avg, "max": top, "avg+max": avg + top}[pool]


def grouped_coordinate(layer: gca.GroupedCoordinateAttention, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    width = c // layer.groups
    y = torch.empty_like(x)
    for n, g in product(range(b), range(layer.groups)):
        group = x[n, g * width : (g + 1) * width].tolist()
        rows = [[pooled(channel[i], layer.pool) for channel in group] for i in range(h)]  # equation 2
        columns = [[pooled([row[j] for row in channel], layer.pool) for channel in group] for j in range(w)]  # 3
        gates = []
        for f in rows + columns:  # equation 4, position by position
            hidden = [relu(v) for v in norm(layer.bn1, affine(layer.conv1, f))]
            gates.append([sigmoid(z) for z in affine(layer.conv2, hidden)])
        gate_h, gate_w = gates[:h], gates[h:]  # equation 5
        for k, i, j in product(range(width), range(h), range(w)):  # equations 6 and 7
            y[n, g * width + k, i, j] = group[k][i][j] * gate_h[i][k] * gate_w[j][k]
    return y


def coordinate(layer: gca.CoordinateAttention, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    y = torch.empty_like(x)
    for n in range(b):
        image = x[n].tolist()

        def encode(f: Vector) -> Vector:
            return [hardswish(v) for v in norm(layer.bn1, affine(layer.conv1, f))]

        gate_h = [affine(layer.conv_h, encode([pooled(channel[i], "avg") for channel in image])) for i in range(h)]
        gate_w = [
            affine(layer.conv_w, encode([pooled([row[j] for row in channel], "avg") for channel in image]))
            for j in range(w)
        ]
        for k, i, j in product(range(c), range(h), range(w)):
            y[n, k, i, j] = image[k][i][j] * sigmoid(gate_h[i][k]) * sigmoid(gate_w[j][k])
    return y


def squeeze_excitation(layer: gca.SE, x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    for n, image in enumerate(x):
        z = [sum(channel.flatten().tolist()) / channel.numel() for channel in image]
        gates = affine(layer.fc2, [relu(v) for v in affine(layer.fc1, z)])
        for k, gate in enumerate(gates):
            y[n, k] = image[k] * sigmoid(gate)
    return y


def cbam(layer: gca.CBAM, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    y = torch.empty_like(x)
    side = layer.kernel_size // 2
    kernel = layer.conv.weight[0].tolist()
    for n in range(b):
        flat = [channel.flatten().tolist() for channel in x[n]]
        by_avg = affine(layer.fc2, [relu(v) for v in affine(layer.fc1, [pooled(v, "avg") for v in flat])])
        by_max = affine(layer.fc2, [relu(v) for v in affine(layer.fc1, [pooled(v, "max") for v in flat])])
        gated = [(x[n, k] * sigmoid(by_avg[k] + by_max[k])).tolist() for k in range(c)]
        maps = [
            [[pooled([channel[i][j] for channel in gated], pool) for j in range(w)] for i in range(h)]
            for pool in ("avg", "max")
        ]
        for i, j in product(range(h), range(w)):
            z = 0.0
            for m, p, q in product(range(2), range(layer.kernel_size), range(layer.kernel_size)):
                u, v = i + p - side, j + q - side
                if 0 <= u < h and 0 <= v < w:
                    z += kernel[m][p][q] * maps[m][u][v]
            for k in range(c):
                y[n, k, i, j] = gated[k][i][j] * sigmoid(z)
    return y


DOUBLE = {"dtype": torch.float64}
LAYOUTS = (torch.contiguous_format, torch.channels_last)
CASES: list[tuple[nn.Module, Callable[..., Tensor]]] = [
    *((gca.GroupedCoordinateAttention(12, groups, 2, **DOUBLE), grouped_coordinate) for groups in (1, 2, 3)),
    *((gca.GroupedCoordinateAttention(12, pool=pool, **DOUBLE), grouped_coordinate) for pool in POOLS),
    (gca.CoordinateAttention(16, 2, **DOUBLE), coordinate),
    (gca.SE(12, 3, **DOUBLE), squeeze_excitation),
    (gca.CBAM(12, 3, **DOUBLE), cbam),
    (gca.CBAM(12, 3, kernel_size=3, **DOUBLE), cbam),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(5, 4), (1, 6), (3, 1), (1, 1)])
@pytest.mark.parametrize(("layer", "loops"), CASES, ids=lambda value: getattr(value, "__name__", type(value).__name__))
def test_layer_computes_its_equation(
    layer: nn.Module, loops: Callable[..., Tensor], size: tuple[int, int], layout: torch.memory_format
) -> None:
    randomize(layer).eval()
    channels = layer.channels
    assert isinstance(channels, int)
    x = torch.randn(2, channels, *size, dtype=torch.float64).contiguous(memory_format=layout)
    torch.testing.assert_close(layer(x), loops(layer, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batch_norm_of_gca_sees_every_group_row_and_column(layout: torch.memory_format) -> None:
    layer = gca.GroupedCoordinateAttention(8, dtype=torch.float64)
    x = torch.randn(3, 8, 4, 5, dtype=torch.float64).contiguous(memory_format=layout)
    layer(x)
    features = torch.cat((x.mean(3) + x.amax(3), x.mean(2) + x.amax(2)), dim=2)  # (3, 8, 9)
    positions = (
        torch.cat((features[:, :4], features[:, 4:])).movedim(1, -1).reshape(-1, 4)
    )  # every group of every image
    hidden = positions @ layer.conv1.weight[:, :, 0, 0].T
    torch.testing.assert_close(layer.bn1.running_mean, 0.1 * hidden.mean(0))
    torch.testing.assert_close(layer.bn1.running_var, 0.9 + 0.1 * hidden.var(0))


@pytest.mark.parametrize("channels", [128, 256, 384])
def test_se_equals_timm_with_copied_weights(channels: int) -> None:
    theirs = SEModule(channels).eval()
    ours = gca.SE(channels).eval()
    result = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert result == (["_extra_state"], [])  # the note of options, which timm has not
    x = torch.randn(2, channels, 7, 5)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("training", [True, False])
def test_gradients_are_those_of_finite_differences(
    layer: Callable[..., nn.Module], training: bool, layout: torch.memory_format
) -> None:
    module = randomize(layer(8, **DOUBLE)).train(training)
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    names, parameters = zip(*module.named_parameters(), strict=True)
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}

    def call(x: Tensor, *values: Tensor) -> Tensor:
        state = dict(zip(names, values, strict=True)) | {name: buffer.clone() for name, buffer in buffers.items()}
        return torch.func.functional_call(module, state, (x,))

    assert torch.autograd.gradcheck(call, (x, *parameters))


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(6, 9), (1, 5), (4, 1)])
def test_ops_equal_their_formulas(pool: str, layout: torch.memory_format, size: tuple[int, int]) -> None:
    x = torch.randn(2, 8, *size).contiguous(memory_format=layout)
    gates = torch.rand(2, 8, size[0]), torch.rand(2, 8, size[1])
    ours = (*axis_pool(x, pool), axis_gate(x, *gates))
    with backend("reference"):
        formulas = (*axis_pool(x.double(), pool), axis_gate(x.double(), *(gate.double() for gate in gates)))
    for actual, formula in zip(ours, formulas, strict=True):
        torch.testing.assert_close(actual.double(), formula, rtol=1e-6, atol=1e-6)


def test_gradient_of_the_maximum_is_shared_among_ties() -> None:
    x = torch.zeros(1, 1, 2, 4, requires_grad=True)
    axis_pool(x, "max")[0].sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.full((1, 1, 2, 4), 0.25))
