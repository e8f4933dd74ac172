"""The backend ``"reference"``, formulas written to be read: what every other backend is tested against."""

import torch
from einops import rearrange, reduce
from torch import Tensor

DIFFERENTIABLE = True


def axis_pool(x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """One statistic, ``"mean"`` or ``"max"``, of every row and every column (equations 2 and 3)."""
    return reduce(x, "b c h w -> b c h", kind), reduce(x, "b c h w -> b c w", kind)


def axis_gate(x: Tensor, gate_h: Tensor, gate_w: Tensor) -> Tensor:
    """Gate every position by its row and its column (equation 6)."""
    return x * rearrange(gate_h, "b c h -> b c h 1") * rearrange(gate_w, "b c w -> b c 1 w")


def pool(x: Tensor, kind: str) -> tuple[Tensor | None, Tensor | None]:
    """Means and maxima, as every backend returns them: rows and columns side by side, ``(B, C, H + W)``."""
    means = None if kind == "max" else torch.cat(axis_pool(x, "mean"), dim=2)
    return means, None if kind == "avg" else torch.cat(axis_pool(x, "max"), dim=2)


def gate(x: Tensor, gates: Tensor) -> Tensor:
    """:func:`axis_gate` with the gates side by side."""
    return axis_gate(x, *torch.split(gates, list(x.shape[2:]), dim=2))
