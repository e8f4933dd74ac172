"""Pooling and gating as compiled loops over planes, or over rows of channels in channels_last: the choice ``"numba"``.

One pass over ``x`` computes all four pools, one pass gates, and the backward passes read each tensor once from memory.
Compiled on first use for the processor at hand and kept on disk.

The inner loops vectorise: elementwise along columns or channels, and along rows as reductions that may be reordered. So
they run over slices (``start + k`` could be negative, for all that numba knows, and count from the end), and lines are
prepared without temporary arrays, which would be allocated for every plane.
"""

from typing import Any, Final

import numpy as np
import torch
from numba import njit
from numba.extending import intrinsic, overload
from torch import Tensor

from gca.ops import threads

_SUM = {"reassoc", "contract", "nsz"}  # sums may be reordered; NaN and inf keep their meaning
# What x / 0 is: inf or NaN, without the branch that keeps loops scalar.
NUMPY: Final = "numpy"
# Channels per task in channels_last: what is kept of 56 rows and columns stays in the first- or second-level cache.
BLOCK, POOL_BLOCK = 256, 128
LANES = 8  # elements that are computed at once, if any are


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
    _run(_pool_planes, _pool_rows, x, [x], [mean_h, mean_w, peak_h, peak_w], use_max, rows_tasks=_blocks(x, POOL_BLOCK))
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
    small = [gate_h, gate_w, grad_h, grad_w]
    _run(_gate_backward_planes, _gate_backward_rows, x, [grad, x], small, rows_tasks=_blocks(x, BLOCK))
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
    flags, rows_tasks = (kind != "max", kind != "avg"), _blocks(x, POOL_BLOCK)
    _run(_pool_backward_planes, _pool_backward_rows, x, [x, grad, result], small, *flags, rows_tasks=rows_tasks)
    return result


def _small(x: Tensor, length: int) -> Tensor:
    """``(B, C, length)``, channels innermost where they are so in ``x``."""
    if x.is_contiguous():
        return x.new_empty(x.shape[0], x.shape[1], length)
    return x.new_empty(x.shape[0], length, x.shape[1]).transpose(1, 2)


def _blocks(x: Tensor, size: int) -> int:
    """How many blocks of so many channels there are in all images."""
    return x.shape[0] * -(-x.shape[1] // size)


def _run(
    planes: Any, rows: Any, x: Tensor, large: list[Tensor], small: list[Tensor], *flags: bool, rows_tasks: int
) -> None:
    if x.numel() == 0:
        return
    b, c, h, w = x.shape
    if x.is_contiguous():
        kernel, tasks = planes, b * c
        arrays = [t.detach().reshape(b * c, h, w).numpy() for t in large]
        arrays += [t.detach().reshape(b * c, -1).contiguous().numpy() for t in small]
    else:
        kernel, tasks = rows, rows_tasks
        arrays = [t.detach().permute(0, 2, 3, 1).numpy() for t in large]
        arrays += [t.detach().transpose(1, 2).contiguous().numpy() for t in small]
    threads.share_out(lambda first, last: kernel(first, last, *arrays, *flags), tasks, x.numel())


def _max_without_nan(a: Any, b: Any) -> Any:
    """The larger of two numbers."""
    return a if a > b else b


@intrinsic
def _select_max(_: Any, a: Any, b: Any) -> Any:
    """The same as a select that is said to see no NaN: LLVM vectorises no other maximum of a row.

    numba's ``fastmath`` says it of the comparison alone.
    """

    def generate(_: Any, builder: Any, __: Any, values: Any) -> Any:
        flags = ("nnan", "nsz")
        return builder.select(builder.fcmp_ordered(">", *values, flags=flags), *values, flags=flags)

    return a(a, a), generate


@overload(_max_without_nan)
def _compiled_max(a: Any, b: Any) -> Any:
    def compiled(a: Any, b: Any) -> Any:
        return _select_max(a, b)  # type: ignore[call-arg]  # numba passes the first

    return compiled


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
    blocks = (c + POOL_BLOCK - 1) // POOL_BLOCK
    # Of rows, then of columns.
    sums, tops = np.empty((h + w, POOL_BLOCK), x.dtype), np.empty((h + w, POOL_BLOCK), x.dtype)
    for task in range(first, last):
        n, start = task // blocks, task % blocks * POOL_BLOCK
        size = min(POOL_BLOCK, c - start)
        block = slice(start, start + size)
        sums[:] = 0
        tops[:] = -np.inf
        if use_max:  # asked here, not within: the loops would be half as fast
            for i in range(h):
                for j in range(w):
                    values = x[n, i, j, block]
                    for k in range(size):
                        sums[i, k] += values[k]
                        sums[h + j, k] += values[k]
                        tops[i, k] = np.maximum(tops[i, k], values[k])
                        tops[h + j, k] = np.maximum(tops[h + j, k], values[k])
        else:
            for i in range(h):
                for j in range(w):
                    values = x[n, i, j, block]
                    for k in range(size):
                        sums[i, k] += values[k]
                        sums[h + j, k] += values[k]
        mean_h[n, :, block] = sums[:h, :size] / w
        mean_w[n, :, block] = sums[h:, :size] / h
        if use_max:
            peak_h[n, :, block] = tops[:h, :size]
            peak_w[n, :, block] = tops[h:, :size]


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
        size = min(BLOCK, c - start)
        block = slice(start, start + size)
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
    # Short rows do not vectorise. So every row goes on into those below it, up to whole vectors: what is written there
    # is overwritten in its turn, and only the end of the span is kept to.
    whole, end = -(-w // LANES) * LANES, last * h * w
    xs, grads, results = x.reshape(-1), grad.reshape(-1), result.reshape(-1)
    zero, one = np.zeros(1, x.dtype)[0], np.ones(1, x.dtype)[0]
    height, width = x.dtype.type(h), x.dtype.type(w)  # dividing by an int would go on in float64
    gates, peaks = np.zeros(whole, x.dtype), np.zeros(whole, x.dtype)
    # Of rows and of columns: what all their elements get, and how many maxima there are, then what these get.
    every_h, every_w = np.zeros(h, x.dtype), np.zeros(whole, x.dtype)
    share_h, share_w = np.zeros(h, x.dtype), np.zeros(whole, x.dtype)
    for n in range(first, last):
        for j in range(w):
            gates[j] = gate_w[n, j]
        if use_mean:
            for i in range(h):
                every_h[i] = grad_h[n, i] / width
            for j in range(w):
                every_w[j] = grad_w[n, j] / height
        else:
            every_h[:] = 0
            every_w[:] = 0
        if use_max:
            for j in range(w):
                peaks[j] = peak_w[n, j]
            for j in range(whole):
                share_w[j] = zero
            for i in range(h):
                start = (n * h + i) * w
                count = min(whole, end - start)
                values = xs[start : start + count]
                peak, ties = peak_h[n, i], zero
                for j in range(count):
                    v = values[j]
                    ties += (one if j < w else zero) if v == peak else zero
                    share_w[j] += one if v == peaks[j] else zero
                share_h[i] = ties
            for i in range(h):  # a maximum that is NaN equals nothing: 0 / 0 makes its line NaN
                every_h[i] += zero / share_h[i]
                share_h[i] = grad_h[n, i] / share_h[i]
            for j in range(w):
                every_w[j] += zero / share_w[j]
                share_w[j] = grad_w[n, j] / share_w[j]
        for i in range(h):
            start = (n * h + i) * w
            count = min(whole, end - start)
            stop = start + count
            values, above, target = xs[start:stop], grads[start:stop], results[start:stop]
            gate, every, share, peak = gate_h[n, i], every_h[i], share_h[i], peak_h[n, i]
            if use_max:
                for j in range(count):
                    v = values[j]
                    at_max = (share if v == peak else zero) + (share_w[j] if v == peaks[j] else zero)
                    target[j] = above[j] * gate * gates[j] + (every + every_w[j] + at_max)
            else:
                for j in range(count):
                    target[j] = above[j] * gate * gates[j] + (every + every_w[j])


@njit(error_model=NUMPY, cache=True, nogil=True, fastmath=_SUM)
def _pool_backward_rows(
    first: int, last: int, x: Any, grad: Any, result: Any, gate_h: Any, gate_w: Any,
    peak_h: Any, peak_w: Any, grad_h: Any, grad_w: Any,
    use_mean: bool, use_max: bool,
) -> None:  # fmt: skip
    _, h, w, c = x.shape
    blocks = (c + POOL_BLOCK - 1) // POOL_BLOCK
    # Of rows, then of columns: gates and maxima; what every element gets, and what every maximum gets.
    gates, peaks = np.empty((h + w, POOL_BLOCK), x.dtype), np.empty((h + w, POOL_BLOCK), x.dtype)
    every, share = np.zeros((h + w, POOL_BLOCK), x.dtype), np.empty((h + w, POOL_BLOCK), x.dtype)
    zero, one = np.zeros(1, x.dtype)[0], np.ones(1, x.dtype)[0]
    height, width = x.dtype.type(h), x.dtype.type(w)
    for task in range(first, last):
        n, start = task // blocks, task % blocks * POOL_BLOCK
        size = min(POOL_BLOCK, c - start)
        block = slice(start, start + size)
        for line in range(h + w):
            if line < h:
                gate, peak = gate_h[n, line, block], peak_h[n, line, block]
                grads, length = grad_h[n, line, block], width
            else:
                gate, peak = gate_w[n, line - h, block], peak_w[n, line - h, block]
                grads, length = grad_w[n, line - h, block], height
            for k in range(size):
                gates[line, k] = gate[k]
                peaks[line, k] = peak[k]
            for k in range(size):
                every[line, k] = grads[k] / length if use_mean else zero
                share[line, k] = zero
        if use_max:
            for i in range(h):
                for j in range(w):
                    values = x[n, i, j, block]
                    for k in range(size):
                        share[i, k] += one if values[k] == peaks[i, k] else zero
                        share[h + j, k] += one if values[k] == peaks[h + j, k] else zero
            for line in range(h + w):  # a maximum that is NaN equals nothing: 0 / 0 makes its line NaN
                grads = (grad_h[n, line] if line < h else grad_w[n, line - h])[block]
                for k in range(size):
                    every[line, k] += zero / share[line, k]
                    share[line, k] = grads[k] / share[line, k]
        for i in range(h):
            for j in range(w):
                values, grads = x[n, i, j, block], grad[n, i, j, block]
                target = result[n, i, j, block]
                for k in range(size):
                    target[k] = grads[k] * gates[i, k] * gates[h + j, k] + (every[i, k] + every[h + j, k])
                if use_max:  # a loop of its own: LLVM does not vectorise one over more than some eight arrays
                    for k in range(size):
                        v = values[k]
                        at_max = share[i, k] if v == peaks[i, k] else zero
                        target[k] += at_max + (share[h + j, k] if v == peaks[h + j, k] else zero)
