"""The backend ``"reference"``, formulas written to be read: what every other backend is tested against."""

import torch
from einops import rearrange, reduce
from torch import Tensor

DIFFERENTIABLE = True


def axis_pool(x: Tensor, kind: str) -> tuple[Tensor, ...]:
    """One statistic, ``"mean"`` or ``"max"``, along each axis, over all the others (equations 2 and 3)."""
    axes = _axes(x)
    return tuple(reduce(x, f"b c {' '.join(axes)} -> b c {axis}", kind) for axis in axes)


def axis_gate(x: Tensor, *gates: Tensor) -> Tensor:
    """Gate every position by its place along each axis (equation 6)."""
    axes = _axes(x)
    for axis, gate in zip(axes, gates, strict=True):
        x = x * rearrange(gate, f"b c {axis} -> b c {' '.join(axis if axis == other else '1' for other in axes)}")
    return x


def pool(x: Tensor, kind: str, axes: int = 2) -> tuple[Tensor | None, Tensor | None]:
    """Means and maxima, as every backend returns them: all axes side by side, ``(B, C, H + W)``."""
    means = None if kind == "max" else torch.cat(axis_pool(x, "mean"), dim=2)
    return means, None if kind == "avg" else torch.cat(axis_pool(x, "max"), dim=2)


def gate(x: Tensor, gates: Tensor, axes: int = 2) -> Tensor:
    """:func:`axis_gate` with the gates side by side."""
    return axis_gate(x, *torch.split(gates, list(x.shape[2:]), dim=2))


def _axes(x: Tensor) -> list[str]:
    return [f"s{i}" for i in range(1, x.ndim - 1)]
