"""The two operations every coordinate layer is made of: pool along both axes, gate along both axes.

``reference`` states each as a formula and defines what is correct. ``plain`` is the same in torch operators alone, for
traced and compiled graphs. ``eager``, ``numba`` and ``triton`` hold kernels, ``autograd`` makes them differentiable,
and ``dispatch`` decides which backend runs.
"""

import torch
from torch import Tensor

from gca.ops import autograd, plain
from gca.ops.dispatch import BackendError, backend, backends, selected

__all__ = ["POOLS", "BackendError", "axis_gate", "axis_pool", "backend", "backends", "selected"]

POOLS = ("avg", "max", "avg+max")


def axis_pool(x: Tensor, pool: str = "avg+max") -> tuple[Tensor, Tensor]:
    """Pool every row and every column of ``x``.

    ``pooled_h[b, c, i]`` is the mean, the maximum, or the sum of both, over row ``i`` of ``x[b, c]``;
    ``pooled_w[b, c, j]`` is the same over column ``j``. Where a maximum is attained more than once, its gradient
    is shared equally among the positions that attain it, by every backend.

    Args:
        x: ``(B, C, H, W)``, floating point.
        pool: One of ``POOLS``.

    Returns:
        ``pooled_h`` of shape ``(B, C, H)`` and ``pooled_w`` of shape ``(B, C, W)``, in the dtype of ``x``. In float16
        the sum of mean and maximum may overflow; the layers, which add them in float32, do not.

    Raises:
        BackendError: If :class:`backend` asks for one that cannot take ``x``.
    """
    means, maxima = autograd.pool(x, pool)
    pooled_h, pooled_w = torch.split(plain.combine(means, maxima).to(x.dtype), [x.shape[2], x.shape[3]], dim=2)
    return pooled_h, pooled_w


def axis_gate(x: Tensor, gate_h: Tensor, gate_w: Tensor) -> Tensor:
    """Multiply every position of ``x`` by the gate of its row and the gate of its column.

    Args:
        x: ``(B, C, H, W)``.
        gate_h: ``(B, C, H)``; cast to the dtype of ``x``, since under autocast the gates may be narrower.
        gate_w: ``(B, C, W)``; likewise.

    Returns:
        ``(B, C, H, W)`` in the dtype and memory format of ``x``.

    Raises:
        BackendError: If :class:`backend` asks for one that cannot take ``x``.
    """
    return autograd.gate(x, torch.cat((gate_h, gate_w), dim=2))
