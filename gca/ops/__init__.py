"""The two operations every coordinate layer is made of: pool along each axis, gate along each axis.

``reference`` states each as a formula and defines what is correct. ``plain`` is the same in torch operators alone, for
traced and compiled graphs. ``eager``, ``numba`` and ``triton`` hold kernels for images, ``volumes`` lets them serve
volumes, ``autograd`` makes them differentiable, and ``dispatch`` decides which backend runs.
"""

import torch
from torch import Tensor

from gca.ops import autograd, plain
from gca.ops.dispatch import BackendError, backend, backends, selected

__all__ = ["POOLS", "BackendError", "axis_gate", "axis_pool", "backend", "backends", "selected"]

POOLS = ("avg", "max", "avg+max")


def axis_pool(x: Tensor, pool: str = "avg+max") -> tuple[Tensor, ...]:
    """Pool along each spatial axis of ``x``, over all the others: every row and every column of an image.

    ``pooled_h[b, c, i]`` is the mean, the maximum, or the sum of both, over row ``i`` of ``x[b, c]``;
    ``pooled_w[b, c, j]`` is the same over column ``j``. Of a volume these are planes, and ``pooled_d`` is the first.
    Where a maximum is attained more than once, its gradient is shared equally among the positions that attain it, by
    every backend; in volumes, by those with kernels, first among the rows or columns that attain it and then
    within each.

    Args:
        x: ``(B, C, H, W)`` or ``(B, C, D, H, W)``, floating point.
        pool: One of ``POOLS``.

    Returns:
        ``pooled_h`` of shape ``(B, C, H)`` and ``pooled_w`` of shape ``(B, C, W)``, in the dtype of ``x``; before them
        ``pooled_d`` of shape ``(B, C, D)`` for a volume. In float16 the sum of mean and maximum may overflow; the
        layers, which add them in float32, do not.

    Raises:
        ValueError: If ``x`` is neither a batch of images nor one of volumes, or there is no such ``pool``.
        BackendError: If :class:`backend` asks for one that cannot take ``x``.
    """
    _check_axes(x)
    check_pool(pool)
    means, maxima, _ = autograd.pool(x, pool, x.ndim - 2)
    return torch.split(plain.combine(means, maxima).to(x.dtype), list(x.shape[2:]), dim=2)


def axis_gate(x: Tensor, *gates: Tensor) -> Tensor:
    """Multiply every position of ``x`` by its gate along each spatial axis: that of its row and that of its column.

    Args:
        x: ``(B, C, H, W)`` or ``(B, C, D, H, W)``.
        *gates: ``(B, C, H)`` and ``(B, C, W)``, for a volume ``(B, C, D)`` before them; cast to the dtype of ``x``,
            since under autocast the gates may be in reduced precision.

    Returns:
        A tensor of the shape, the dtype and the memory format of ``x``.

    Raises:
        ValueError: If ``x`` is neither a batch of images nor one of volumes, or there is not one gate for each axis.
        BackendError: If :class:`backend` asks for one that cannot take ``x``.
    """
    _check_axes(x)
    if len(gates) != x.ndim - 2:
        raise ValueError(f"wanted one gate for each of {x.ndim - 2} axes of x, got {len(gates)}")
    return autograd.gate(x, torch.cat(gates, dim=2), x.ndim - 2)


def check_pool(pool: str) -> None:
    """Raise unless there are such statistics."""
    if pool not in POOLS:
        raise ValueError(f"pool must be one of {', '.join(map(repr, POOLS))}, got {pool!r}")


def _check_axes(x: Tensor) -> None:
    if x.ndim not in (4, 5):
        raise ValueError(f"x must be (B, C, H, W) or (B, C, D, H, W), got shape {tuple(x.shape)}")
