"""Pooling and gating in plain torch operators: any device, any dtype, traceable, scriptable, exportable."""

from torch import Tensor

POOLS = ("avg", "max", "avg+max")


def axis_pool(x: Tensor, pool: str = "avg+max") -> tuple[Tensor, Tensor]:
    """Describe every row and every column of ``x``.

    ``pooled_h[b, c, i]`` is the mean, the maximum, or the sum of both, over row ``i`` of ``x[b, c]``;
    ``pooled_w[b, c, j]`` is the same over column ``j``. Where a maximum is attained more than once, its gradient
    is shared equally among the positions that attain it.

    Args:
        x: ``(B, C, H, W)``, floating point.
        pool: One of ``POOLS``.

    Returns:
        ``pooled_h`` of shape ``(B, C, H)`` and ``pooled_w`` of shape ``(B, C, W)``, in the dtype of ``x``.
    """
    if pool == "avg":
        return x.mean(3), x.mean(2)
    if pool == "max":
        return x.amax(3), x.amax(2)
    return x.mean(3) + x.amax(3), x.mean(2) + x.amax(2)


def axis_gate(x: Tensor, gate_h: Tensor, gate_w: Tensor) -> Tensor:
    """Multiply every position of ``x`` by the gate of its row and the gate of its column.

    Args:
        x: ``(B, C, H, W)``.
        gate_h: ``(B, C, H)``; cast to the dtype of ``x``, since under autocast the gates may be narrower.
        gate_w: ``(B, C, W)``; likewise.

    Returns:
        ``(B, C, H, W)`` in the dtype and memory format of ``x``.
    """
    return x * gate_h.to(x.dtype).unsqueeze(3) * gate_w.to(x.dtype).unsqueeze(2)
