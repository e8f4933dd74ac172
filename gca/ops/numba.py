"""Pooling and gating as compiled loops over planes, or over rows of channels in channels_last: the choice ``"numba"``.

One pass over ``x`` computes all four pools, one pass gates, and the backward passes read each tensor once from memory.
Compiled on first use for the processor at hand and kept on disk.

The inner loops vectorise: elementwise along columns or channels, and along rows as reductions that may be reordered.
"""

from typing import Any, Final

import numpy as np
import torch
from numba import njit
from torch import Tensor

from gca.ops import threads

_SUM = {"reassoc", "contract", "nsz"}  # sums may be reordered; NaN and inf keep their meaning
# What x / 0 is: inf or NaN, without the branch that keeps loops scalar.
NUMPY: Final = "numpy"
BLOCK = 256  # channels per task in channels_last: the accumulators of 56 columns stay in the second-level cache


def refuses(x: Tensor) -> str | None:
    """Why this implementation cannot take ``x``."""
    if x.device.type != "cpu":
        return f"it runs on CPU, got {x.device}"
    if x.dtype not in (torch.float32, torch.float64):
        return f"it takes float32 and float64, got {x.dtype}"
    return None


def pool(x: Tensor, kind: str) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Descriptors of the rows and the columns, and their maxima where ``kind`` has any."""
    h, w = x.shape[2:]
    mean_h, mean_w = _small(x, h), _small(x, w)
    use_max = kind != "avg"
    peak_h, peak_w = (_small(x, h), _small(x, w)) if use_max else (mean_h, mean_w)
    _run(_pool_planes, _pool_rows, x, [x], [mean_h, mean_w, peak_h, peak_w], use_max)
    if kind == "avg":
        return mean_h, mean_w, [None, None]
    if kind == "max":
        return peak_h.clone(), peak_w.clone(), [peak_h, peak_w]
    return mean_h.add_(peak_h), mean_w.add_(peak_w), [peak_h, peak_w]


def gate(x: Tensor, gate_h: Tensor, gate_w: Tensor) -> Tensor:
    """``x`` gated along both axes."""
    y = torch.empty_like(x)
    _run(_gate_planes, _gate_rows, x, [x, y], [gate_h, gate_w], rows_tasks=x.shape[0] * x.shape[2])
    return y


def gate_backward(grad: Tensor, x: Tensor, gate_h: Tensor, gate_w: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the gates."""
    grad_h, grad_w = _small(x, x.shape[2]), _small(x, x.shape[3])
    _run(_gate_backward_planes, _gate_backward_rows, x, [grad, x], [gate_h, gate_w, grad_h, grad_w])
    return grad_h, grad_w


def pool_backward(
    x: Tensor,
    peaks: list[Tensor | None],
    grads: tuple[Tensor | None, Tensor | None],
    kind: str,
    grad: Tensor | None,
    gates: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Gradient of the pools, plus ``grad``, which is gated first where ``gates`` are given."""
    b, c, h, w = x.shape
    result = torch.empty_like(x)
    grad_h, grad_w = (x.new_zeros(b, c, n) if g is None else g for g, n in zip(grads, (h, w), strict=True))
    peak_h, peak_w = (grad_h if peaks[0] is None else peaks[0], grad_w if peaks[1] is None else peaks[1])
    if grad is None:
        grad = torch.zeros_like(x)
    gate_h, gate_w = (x.new_ones(b, c, h), x.new_ones(b, c, w)) if gates is None else gates
    small = [gate_h, gate_w, peak_h, peak_w, grad_h, grad_w]
    _run(_pool_backward_planes, _pool_backward_rows, x, [x, grad, result], small, kind != "max", kind != "avg")
    return result


def _small(x: Tensor, length: int) -> Tensor:
    """``(B, C, length)``, channels innermost where they are so in ``x``."""
    if x.is_contiguous():
        return x.new_empty(x.shape[0], x.shape[1], length)
    return x.new_empty(x.shape[0], length, x.shape[1]).transpose(1, 2)


def _run(
    planes: Any, rows: Any, x: Tensor, large: list[Tensor], small: list[Tensor], *flags: bool, rows_tasks: int = 0
) -> None:
    if x.numel() == 0:
        return
    b, c, h, w = x.shape
    if x.is_contiguous():
        kernel, tasks = planes, b * c
        arrays = [t.detach().reshape(b * c, h, w).numpy() for t in large]
        arrays += [t.detach().reshape(b * c, -1).contiguous().numpy() for t in small]
    else:
        kernel = rows
        arrays = [t.detach().permute(0, 2, 3, 1).numpy() for t in large]
        arrays += [t.detach().transpose(1, 2).contiguous().numpy() for t in small]
        tasks = rows_tasks or b * -(-c // BLOCK)
    threads.share_out(lambda first, last: kernel(first, last, *arrays, *flags), tasks, x.numel())


@njit(error_model=NUMPY)
def _shares(ties: Any, grad: Any, every: Any) -> None:
    """Turn counts of ties into gradient per tie; a maximum that is NaN equals nothing and makes its line NaN."""
    zero = np.zeros(1, ties.dtype)[0]
    for j in range(ties.shape[0]):
        every[j] += zero / ties[j]
        ties[j] = grad[j] / ties[j]


@njit(error_model=NUMPY, fastmath=_SUM | {"nnan"})
def _max_without_nan(a: Any, b: Any) -> Any:
    return a if a > b else b


@njit(error_model=NUMPY, cache=True, nogil=True, fastmath=_SUM)
def _pool_planes(
    first: int, last: int, x: Any, mean_h: Any, mean_w: Any, peak_h: Any, peak_w: Any, use_max: bool
) -> None:
    _, h, w = x.shape
    sums, tops = np.empty(w, x.dtype), np.empty(w, x.dtype)
    zero = np.zeros(1, x.dtype)[0]
    for n in range(first, last):
        sums[:] = 0
        tops[:] = -np.inf
        for i in range(h):
            total, peak = zero, x[n, i, 0]
            if use_max:
                for j in range(w):
                    v = x[n, i, j]
                    total += v
                    sums[j] += v
                    peak = _max_without_nan(peak, v)
                    tops[j] = _max_without_nan(tops[j], v)
                peak_h[n, i] = peak
            else:
                for j in range(w):
                    total += x[n, i, j]
                    sums[j] += x[n, i, j]
            mean_h[n, i] = total / w
        for j in range(w):
            mean_w[n, j] = sums[j] / h
        if use_max:
            peak_w[n, :] = tops
            for i in range(h):  # a line with a NaN has a NaN sum: only then look at it closely
                if mean_h[n, i] != mean_h[n, i]:
                    peak_h[n, i] = np.max(x[n, i])
            for j in range(w):
                if sums[j] != sums[j]:
                    peak_w[n, j] = np.max(x[n, :, j])


@njit(error_model=NUMPY, cache=True, nogil=True)
def _pool_rows(
    first: int, last: int, x: Any, mean_h: Any, mean_w: Any, peak_h: Any, peak_w: Any, use_max: bool
) -> None:
    _, h, w, c = x.shape
    blocks = (c + BLOCK - 1) // BLOCK
    for task in range(first, last):
        n, start = task // blocks, task % blocks * BLOCK
        block = slice(start, min(start + BLOCK, c))
        size = min(BLOCK, c - start)
        mean_w[n, :, block] = x[n, 0, :, block]
        if use_max:
            peak_w[n, :, block] = x[n, 0, :, block]
        for i in range(h):
            mean, peak = mean_h[n, i, block], peak_h[n, i, block]
            mean[:] = x[n, i, 0, block]
            if use_max:
                peak[:] = x[n, i, 0, block]
            for j in range(w):
                values = x[n, i, j, block]
                if j > 0:
                    for k in range(size):
                        mean[k] += values[k]
                    if use_max:
                        for k in range(size):
                            peak[k] = np.maximum(peak[k], values[k])
                if i > 0:
                    column, top = mean_w[n, j, block], peak_w[n, j, block]
                    for k in range(size):
                        column[k] += values[k]
                    if use_max:
                        for k in range(size):
                            top[k] = np.maximum(top[k], values[k])
            for k in range(size):
                mean[k] /= w
        for j in range(w):
            column = mean_w[n, j, block]
            for k in range(size):
                column[k] /= h


@njit(error_model=NUMPY, cache=True, nogil=True)
def _gate_planes(first: int, last: int, x: Any, y: Any, gate_h: Any, gate_w: Any) -> None:
    _, h, w = x.shape
    for n in range(first, last):
        for i in range(h):
            row = gate_h[n, i]
            for j in range(w):
                y[n, i, j] = x[n, i, j] * row * gate_w[n, j]


@njit(error_model=NUMPY, cache=True, nogil=True)
def _gate_rows(first: int, last: int, x: Any, y: Any, gate_h: Any, gate_w: Any) -> None:
    _, h, w, c = x.shape
    for task in range(first, last):
        n, i = task // h, task % h
        row = gate_h[n, i]
        for j in range(w):
            source, target, column = x[n, i, j], y[n, i, j], gate_w[n, j]
            for k in range(c):
                target[k] = source[k] * row[k] * column[k]


@njit(error_model=NUMPY, cache=True, nogil=True, fastmath=_SUM)
def _gate_backward_planes(
    first: int, last: int, grad: Any, x: Any, gate_h: Any, gate_w: Any, grad_h: Any, grad_w: Any
) -> None:
    _, h, w = x.shape
    below = np.empty(w, x.dtype)
    zero = np.zeros(1, x.dtype)[0]
    for n in range(first, last):
        below[:] = 0
        for i in range(h):
            row, total = gate_h[n, i], zero
            for j in range(w):
                product = grad[n, i, j] * x[n, i, j]
                total += product * gate_w[n, j]
                below[j] += product * row
            grad_h[n, i] = total
        grad_w[n, :] = below


@njit(error_model=NUMPY, cache=True, nogil=True)
def _gate_backward_rows(
    first: int, last: int, grad: Any, x: Any, gate_h: Any, gate_w: Any, grad_h: Any, grad_w: Any
) -> None:
    _, h, w, c = x.shape
    blocks = (c + BLOCK - 1) // BLOCK
    for task in range(first, last):
        n, start = task // blocks, task % blocks * BLOCK
        block = slice(start, min(start + BLOCK, c))
        size = min(BLOCK, c - start)
        grad_h[n, :, block] = 0
        grad_w[n, :, block] = 0
        for i in range(h):
            row, total = gate_h[n, i, block], grad_h[n, i, block]
            for j in range(w):
                grads, values = grad[n, i, j, block], x[n, i, j, block]
                column, below = gate_w[n, j, block], grad_w[n, j, block]
                for k in range(size):
                    product = grads[k] * values[k]
                    total[k] += product * column[k]
                    below[k] += product * row[k]


@njit(error_model=NUMPY, cache=True, nogil=True, fastmath=_SUM)
def _pool_backward_planes(
    first: int, last: int, x: Any, grad: Any, result: Any, gate_h: Any, gate_w: Any,
    peak_h: Any, peak_w: Any, grad_h: Any, grad_w: Any,
    use_mean: bool, use_max: bool,
) -> None:  # fmt: skip
    _, h, w = x.shape
    # Along the rows and along the columns: what every element gets, and what every maximum gets.
    every_h, every_w = np.zeros(h, x.dtype), np.zeros(w, x.dtype)
    share_h, share_w = np.zeros(h, x.dtype), np.zeros(w, x.dtype)
    zero, one = np.zeros(1, x.dtype)[0], np.ones(1, x.dtype)[0]
    for n in range(first, last):
        if use_mean:
            every_h[:] = grad_h[n] / w
            every_w[:] = grad_w[n] / h
        else:
            every_h[:] = 0
            every_w[:] = 0
        if use_max:
            share_w[:] = 0
            for i in range(h):
                peak, ties = peak_h[n, i], zero
                for j in range(w):
                    v = x[n, i, j]
                    ties += one if v == peak else zero
                    share_w[j] += one if v == peak_w[n, j] else zero
                share_h[i] = ties
            _shares(share_h, grad_h[n], every_h)
            _shares(share_w, grad_w[n], every_w)
        for i in range(h):
            gate, every, share, peak = gate_h[n, i], every_h[i], share_h[i], peak_h[n, i]
            if use_max:
                for j in range(w):
                    v = x[n, i, j]
                    at_max = (share if v == peak else zero) + (share_w[j] if v == peak_w[n, j] else zero)
                    result[n, i, j] = grad[n, i, j] * gate * gate_w[n, j] + (every + every_w[j] + at_max)
            else:
                for j in range(w):
                    result[n, i, j] = grad[n, i, j] * gate * gate_w[n, j] + (every + every_w[j])


@njit(error_model=NUMPY, cache=True, nogil=True, fastmath=_SUM)
def _pool_backward_rows(
    first: int, last: int, x: Any, grad: Any, result: Any, gate_h: Any, gate_w: Any,
    peak_h: Any, peak_w: Any, grad_h: Any, grad_w: Any,
    use_mean: bool, use_max: bool,
) -> None:  # fmt: skip
    _, h, w, c = x.shape
    blocks = (c + BLOCK - 1) // BLOCK
    for task in range(first, last):
        n, start = task // blocks, task % blocks * BLOCK
        block = slice(start, min(start + BLOCK, c))
        size = min(BLOCK, c - start)
        every_h, every_w = np.zeros((h, size), x.dtype), np.zeros((w, size), x.dtype)
        share_h, share_w = np.zeros((h, size), x.dtype), np.zeros((w, size), x.dtype)
        zero, one = np.zeros(1, x.dtype)[0], np.ones(1, x.dtype)[0]
        if use_mean:
            every_h[:] = grad_h[n, :, block] / w
            every_w[:] = grad_w[n, :, block] / h
        if use_max:
            for i in range(h):
                peak, ties = peak_h[n, i, block], share_h[i]
                for j in range(w):
                    values, top, ties_below = x[n, i, j, block], peak_w[n, j, block], share_w[j]
                    for k in range(size):
                        ties[k] += one if values[k] == peak[k] else zero
                    for k in range(size):
                        ties_below[k] += one if values[k] == top[k] else zero
            for i in range(h):
                _shares(share_h[i], grad_h[n, i, block], every_h[i])
            for j in range(w):
                _shares(share_w[j], grad_w[n, j, block], every_w[j])
        for i in range(h):
            gate, peak, every, share = gate_h[n, i, block], peak_h[n, i, block], every_h[i], share_h[i]
            for j in range(w):
                values, grads, target = x[n, i, j, block], grad[n, i, j, block], result[n, i, j, block]
                gates, top, below, share_below = gate_w[n, j, block], peak_w[n, j, block], every_w[j], share_w[j]
                for k in range(size):
                    target[k] = grads[k] * gate[k] * gates[k] + (every[k] + below[k])
                if use_max:  # a loop of its own: LLVM does not vectorise one over more than some eight arrays
                    for k in range(size):
                        v = values[k]
                        target[k] += (share[k] if v == peak[k] else zero) + (share_below[k] if v == top[k] else zero)
