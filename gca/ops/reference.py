"""The formulas, written to be read. Every other implementation is tested against these."""

from einops import rearrange, reduce
from torch import Tensor


def axis_pool(x: Tensor, pool: str = "avg+max") -> tuple[Tensor, Tensor]:
    """Describe every row and every column of ``x`` (equations 2 and 3): ``(B, C, H, W) -> (B, C, H), (B, C, W)``."""
    rows = {
        "avg": reduce(x, "b c h w -> b c h", "mean"),
        "max": reduce(x, "b c h w -> b c h", "max"),
    }
    columns = {
        "avg": reduce(x, "b c h w -> b c w", "mean"),
        "max": reduce(x, "b c h w -> b c w", "max"),
    }
    rows["avg+max"] = rows["avg"] + rows["max"]
    columns["avg+max"] = columns["avg"] + columns["max"]
    return rows[pool], columns[pool]


def axis_gate(x: Tensor, gate_h: Tensor, gate_w: Tensor) -> Tensor:
    """Gate every position by its row and its column (equation 6)."""
    return x * rearrange(gate_h, "b c h -> b c h 1") * rearrange(gate_w, "b c w -> b c 1 w")
