"""The backend ``"numba"``: loops over SIMD vectors, compiled on first use for the processor at hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gca.ops.layout import dense_features, new_features
from gca.ops.numba import kernels
from gca.ops.numba.threads import run

DIFFERENTIABLE = False
VECTORS_OF_COLUMNS, VECTORS_OF_CHANNELS = (8, 4, 1), (32, 8, 1)  # elements of a vector: the most that there are


def unsupported(device: torch.device, dtype: torch.dtype, shape: torch.Size) -> str | None:
    """Why this backend cannot take an ``x`` of this kind."""
    if device.type != "cpu":
        return f"it runs on CPU, got {device}"
    if dtype not in (torch.float32, torch.float64):
        return f"it takes float32 and float64, got {dtype}"
    return "it takes images with a row and a column at least" if 0 in shape[2:] else None


def pool(x: Tensor, kind: str) -> tuple[Tensor | None, Tensor | None]:
    """Means and maxima of every row and column; ``None`` for what ``kind`` has not."""
    means = None if kind == "max" else new_features(x)
    maxima = None if kind == "avg" else new_features(x)
    _run(kernels.pool, x, [x], [means, maxima], means is not None, maxima is not None)
    return means, maxima


def gate(x: Tensor, gates: Tensor) -> Tensor:
    """``x`` gated along both axes."""
    y = torch.empty_like(x)
    _run(kernels.gate, x, [x, y], [gates])
    return y


def gate_backward(grad: Tensor, x: Tensor, gates: Tensor) -> Tensor:
    """Gradient of the gates."""
    grad_gates = new_features(x)
    _run(kernels.gate_backward, x, [grad, x], [gates, grad_gates])
    return grad_gates


def pool_backward(
    x: Tensor,
    maxima: Tensor | None,
    grad_means: Tensor | None,
    grad_maxima: Tensor | None,
    grad: Tensor | None,
    gates: Tensor | None,
) -> Tensor:
    """Gradient of the means and maxima that have one, plus ``grad``, gated first where ``gates`` are given."""
    result = torch.empty_like(x)
    grad = torch.zeros_like(x) if grad is None else grad
    gates = x.new_ones(*x.shape[:2], x.shape[2] + x.shape[3]) if gates is None else gates
    small = [gates, maxima, grad_means, grad_maxima]
    has_means, has_maxima = grad_means is not None, grad_maxima is not None
    _run(kernels.pool_backward, x, [x, grad, result], small, has_means, has_maxima)
    return result


_Kernel = Callable[[int, Any, bool], Any]  # for vectors of this size and dtype, in channels_last or not


def _run(kernel: _Kernel, x: Tensor, large: list[Tensor], small: list[Tensor | None], *flags: bool) -> None:
    if x.numel() == 0:
        return
    b, c, h, w = x.shape
    channels_last = not x.is_contiguous()
    inner, sizes = (c, VECTORS_OF_CHANNELS) if channels_last else (w, VECTORS_OF_COLUMNS)
    vector = next(size for size in sizes if size <= inner)
    # Whole images are read in the order of memory, up to twice as fast as part of their channels.
    parts = min(-(-torch.get_num_threads() // b), -(-c // vector)) if channels_last else 1
    count, outer = (b * parts, w) if channels_last else (b * c, 1)
    loops = kernel(vector, np.float32 if x.dtype == torch.float32 else np.float64, channels_last)
    arrays = [t.permute(0, 2, 3, 1) if channels_last else t for t in large]
    dense = [None if t is None else dense_features(t, x) for t in small]
    absent = next(t for t in dense if t is not None)  # has an address, and is not looked at
    arrays += [absent if t is None else t for t in dense]
    run(loops, count, x.numel(), [h, outer, inner, parts, *flags], arrays)
