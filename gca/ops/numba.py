"""Pooling and gating as compiled loops over planes, or over rows of channels in channels_last: the choice ``"numba"``.

One pass over ``x`` computes all four pools, one pass gates, and the backward passes read each tensor once from memory.
Compiled on first use for the processor at hand and kept on disk.

Arrays are flat. Several elements are computed at once, neighbours in memory: columns of a plane, or channels. Where
their number is no multiple of that, the last vector overlaps the one before. What is written twice is the same both
times, even by two threads; from sums of a row what was counted is left out.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Final

import numpy as np
import torch
from numba import njit
from torch import Tensor

from gca.ops import threads
from gca.ops.lanes import has_nan, larger, largest, load, spread, store, total, where_equal, without

# x / 0 is inf or NaN; the cache is next to this file, or with the user.
_compiled: Final = partial(njit, error_model="numpy", cache=True, nogil=True)
COLUMNS, CHANNELS = (8, 4, 1), (64, 8, 1)  # how many are computed at once, of those that there are


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
    _run(_gate_planes, _gate_rows, x, [x, y], [gate_h, gate_w], by_row=True)
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


_Loops = Callable[[int], Any]  # compiled for so many elements at once


def _run(
    planes: _Loops,
    rows: _Loops,
    x: Tensor,
    large: list[Tensor],
    small: list[Tensor],
    *flags: bool,
    by_row: bool = False,
) -> None:
    if x.numel() == 0:
        return
    b, c, h, w = x.shape
    size: tuple[int, ...]
    if x.is_contiguous():
        loops, tasks, size = planes(_at_once(w, COLUMNS)), b * c, (h, w)
        arrays = [t.detach().contiguous() for t in large + small]
    else:
        at_once = _at_once(c, CHANNELS)
        loops, tasks, size = rows(at_once), b * (h if by_row else -(-c // at_once)), (h, w, c)
        arrays = [t.detach().permute(0, 2, 3, 1) for t in large]
        arrays += [t.detach().transpose(1, 2).contiguous() for t in small]
    flat = [array.view(-1).numpy() for array in arrays]
    threads.share_out(lambda first, last: loops(first, last, *size, *flat, *flags), tasks, x.numel())


def _at_once(length: int, choices: tuple[int, ...]) -> int:
    return next(choice for choice in choices if choice <= length)


@cache
def _pool_planes(lanes: int) -> Any:
    @_compiled()
    def loops(
        first: int, last: int, h: int, w: int, x: Any, mean_h: Any, mean_w: Any, peak_h: Any, peak_w: Any, use_max: bool
    ) -> None:
        # What columns have so far, vector by vector. Even where these overlap, each has a place of its own: a load from
        # what two stores wrote has to wait for both. Rows go in twos, to wait half as often.
        sums, tops = np.empty(w + lanes, x.dtype), np.empty(w + lanes, x.dtype)
        zero, lowest = spread(x.dtype.type(0), lanes), spread(x.dtype.type(-np.inf), lanes)
        height, width = spread(x.dtype.type(h), lanes), x.dtype.type(w)
        for n in range(first, last):
            sums[:] = 0
            tops[:] = -np.inf
            for i in range(n * h, n * h + h, 2):  # of all rows
                two = i + 1 < n * h + h
                total_0 = total_1 = zero
                top_0 = top_1 = lowest
                for vector in range(0, w, lanes):
                    j = min(vector, w - lanes)
                    v_0 = load(x, i * w + j, lanes)
                    v_1 = load(x, (i + 1) * w + j, lanes) if two else zero
                    store(sums, vector, load(sums, vector, lanes) + (v_0 + v_1))
                    if use_max:
                        top_0 = larger(v_0, top_0)
                        top = larger(v_0, load(tops, vector, lanes))
                        if two:
                            top_1 = larger(v_1, top_1)
                            top = larger(v_1, top)
                        store(tops, vector, top)
                    if j < vector:
                        v_0, v_1 = without(v_0, vector - j), without(v_1, vector - j)
                    total_0, total_1 = total_0 + v_0, total_1 + v_1
                mean_h[i] = total(total_0) / width
                if two:
                    mean_h[i + 1] = total(total_1) / width
                if use_max:
                    peak_h[i] = largest(top_0)
                    if two:
                        peak_h[i + 1] = largest(top_1)
            nan = False
            for vector in range(0, w, lanes):
                j, column = n * w + min(vector, w - lanes), load(sums, vector, lanes)
                store(mean_w, j, column / height)
                if use_max:
                    store(peak_w, j, load(tops, vector, lanes))
                    nan |= has_nan(column)
            if nan:  # a line with a NaN has a NaN sum: only then look at it closely
                plane = x[n * h * w : (n + 1) * h * w].reshape(h, w)
                for i in range(h):
                    peak_h[n * h + i] = np.max(plane[i])
                for j in range(w):
                    peak_w[n * w + j] = np.max(plane[:, j])

    return loops


@cache
def _pool_rows(lanes: int) -> Any:
    @_compiled()
    def loops(
        first: int, last: int, h: int, w: int, c: int,
        x: Any, mean_h: Any, mean_w: Any, peak_h: Any, peak_w: Any, use_max: bool,
    ) -> None:  # fmt: skip
        sums, tops = np.empty(w * lanes, x.dtype), np.empty(w * lanes, x.dtype)  # of columns
        zero, lowest = spread(x.dtype.type(0), lanes), spread(x.dtype.type(-np.inf), lanes)
        height, width = spread(x.dtype.type(h), lanes), spread(x.dtype.type(w), lanes)
        vectors = -(-c // lanes)
        for task in range(first, last):
            n, k = task // vectors, min(task % vectors * lanes, c - lanes)
            sums[:] = 0
            tops[:] = -np.inf
            for i in range(n * h, n * h + h):
                row, top = zero, lowest
                for j in range(w):
                    v = load(x, (i * w + j) * c + k, lanes)
                    row = row + v
                    store(sums, j * lanes, load(sums, j * lanes, lanes) + v)
                    if use_max:
                        top = larger(v, top)
                        store(tops, j * lanes, larger(v, load(tops, j * lanes, lanes)))
                store(mean_h, i * c + k, row / width)
                if use_max:
                    store(peak_h, i * c + k, top)
            nan = False
            for j in range(w):
                column = load(sums, j * lanes, lanes)
                store(mean_w, (n * w + j) * c + k, column / height)
                if use_max:
                    store(peak_w, (n * w + j) * c + k, load(tops, j * lanes, lanes))
                    nan |= has_nan(column)
            if nan:
                image = x[n * h * w * c : (n + 1) * h * w * c].reshape(h, w, c)
                for channel in range(k, k + lanes):
                    for i in range(h):
                        peak_h[(n * h + i) * c + channel] = np.max(image[i, :, channel])
                    for j in range(w):
                        peak_w[(n * w + j) * c + channel] = np.max(image[:, j, channel])

    return loops


@cache
def _gate_planes(lanes: int) -> Any:
    @_compiled()
    def loops(first: int, last: int, h: int, w: int, x: Any, y: Any, gate_h: Any, gate_w: Any) -> None:
        for n in range(first, last):
            for i in range(n * h, n * h + h):
                row = spread(gate_h[i], lanes)
                for vector in range(0, w, lanes):
                    j = min(vector, w - lanes)
                    store(y, i * w + j, load(x, i * w + j, lanes) * row * load(gate_w, n * w + j, lanes))

    return loops


@cache
def _gate_rows(lanes: int) -> Any:
    @_compiled()
    def loops(first: int, last: int, h: int, w: int, c: int, x: Any, y: Any, gate_h: Any, gate_w: Any) -> None:
        for row in range(first, last):  # of all rows: whole ones, in the order of memory
            for j in range(w):
                for vector in range(0, c, lanes):
                    k = min(vector, c - lanes)
                    at = (row * w + j) * c + k
                    gates = load(gate_h, row * c + k, lanes) * load(gate_w, (row // h * w + j) * c + k, lanes)
                    store(y, at, load(x, at, lanes) * gates)

    return loops


@cache
def _gate_backward_planes(lanes: int) -> Any:
    @_compiled()
    def loops(
        first: int, last: int, h: int, w: int, grad: Any, x: Any, gate_h: Any, gate_w: Any, grad_h: Any, grad_w: Any
    ) -> None:
        sums = np.empty(w + lanes, x.dtype)
        zero = spread(x.dtype.type(0), lanes)
        for n in range(first, last):
            sums[:] = 0
            for i in range(n * h, n * h + h, 2):
                two = i + 1 < n * h + h
                row_0 = row_1 = zero
                gate_0 = spread(gate_h[i], lanes)
                gate_1 = spread(gate_h[i + 1], lanes) if two else zero
                for vector in range(0, w, lanes):
                    j = min(vector, w - lanes)
                    gate = load(gate_w, n * w + j, lanes)
                    product_0 = load(grad, i * w + j, lanes) * load(x, i * w + j, lanes)
                    product_1 = load(grad, i * w + w + j, lanes) * load(x, i * w + w + j, lanes) if two else zero
                    store(sums, vector, load(sums, vector, lanes) + (product_0 * gate_0 + product_1 * gate_1))
                    product_0, product_1 = product_0 * gate, product_1 * gate
                    if j < vector:
                        product_0, product_1 = without(product_0, vector - j), without(product_1, vector - j)
                    row_0, row_1 = row_0 + product_0, row_1 + product_1
                grad_h[i] = total(row_0)
                if two:
                    grad_h[i + 1] = total(row_1)
            for vector in range(0, w, lanes):
                store(grad_w, n * w + min(vector, w - lanes), load(sums, vector, lanes))

    return loops


@cache
def _gate_backward_rows(lanes: int) -> Any:
    @_compiled()
    def loops(
        first: int, last: int, h: int, w: int, c: int,
        grad: Any, x: Any, gate_h: Any, gate_w: Any, grad_h: Any, grad_w: Any,
    ) -> None:  # fmt: skip
        sums = np.empty(w * lanes, x.dtype)
        zero = spread(x.dtype.type(0), lanes)
        vectors = -(-c // lanes)
        for task in range(first, last):
            n, k = task // vectors, min(task % vectors * lanes, c - lanes)
            sums[:] = 0
            for i in range(n * h, n * h + h):
                gate, row = load(gate_h, i * c + k, lanes), zero
                for j in range(w):
                    at = (i * w + j) * c + k
                    product = load(grad, at, lanes) * load(x, at, lanes)
                    row = row + product * load(gate_w, (n * w + j) * c + k, lanes)
                    store(sums, j * lanes, load(sums, j * lanes, lanes) + product * gate)
                store(grad_h, i * c + k, row)
            for j in range(w):
                store(grad_w, (n * w + j) * c + k, load(sums, j * lanes, lanes))

    return loops


@cache
def _pool_backward_planes(lanes: int) -> Any:
    @_compiled()
    def loops(
        first: int, last: int, h: int, w: int, x: Any, grad: Any, result: Any, gate_h: Any, gate_w: Any,
        peak_h: Any, peak_w: Any, grad_h: Any, grad_w: Any,
        use_mean: bool, use_max: bool,
    ) -> None:  # fmt: skip
        # Of rows and of columns: what all their elements get, and how many maxima there are, then what these get.
        every_h, share_h = np.zeros(h, x.dtype), np.zeros(h, x.dtype)
        every_w, share_w = np.zeros(w + lanes, x.dtype), np.zeros(w + lanes, x.dtype)
        zero, one = spread(x.dtype.type(0), lanes), spread(x.dtype.type(1), lanes)
        nothing, height, width = x.dtype.type(0), spread(x.dtype.type(h), lanes), x.dtype.type(w)
        for n in range(first, last):
            share_w[:] = 0
            if use_max:
                for i in range(h):
                    peak, ties = spread(peak_h[n * h + i], lanes), zero
                    for vector in range(0, w, lanes):
                        j = min(vector, w - lanes)
                        v = load(x, (n * h + i) * w + j, lanes)
                        tie = where_equal(v, load(peak_w, n * w + j, lanes), one)
                        store(share_w, vector, load(share_w, vector, lanes) + tie)
                        tie = where_equal(v, peak, one)
                        ties = ties + (without(tie, vector - j) if j < vector else tie)
                    share_h[i] = total(ties)
            for i in range(h):
                every_h[i] = grad_h[n * h + i] / width if use_mean else nothing
                if use_max:  # a maximum that is NaN equals nothing: 0 / 0 makes its line NaN
                    every_h[i] += nothing / share_h[i]
                    share_h[i] = grad_h[n * h + i] / share_h[i]
            for vector in range(0, w, lanes):
                grads = load(grad_w, n * w + min(vector, w - lanes), lanes)
                every = grads / height if use_mean else zero
                if use_max:
                    ties = load(share_w, vector, lanes)
                    every = every + zero / ties
                    store(share_w, vector, grads / ties)
                store(every_w, vector, every)
            for i in range(h):
                at = n * h + i
                gate, peak = spread(gate_h[at], lanes), spread(peak_h[at], lanes)
                every, share = spread(every_h[i], lanes), spread(share_h[i], lanes)
                for vector in range(0, w, lanes):
                    j = min(vector, w - lanes)
                    above = load(grad, at * w + j, lanes) * gate * load(gate_w, n * w + j, lanes)
                    value = above + (every + load(every_w, vector, lanes))
                    if use_max:
                        v = load(x, at * w + j, lanes)
                        at_max = where_equal(v, load(peak_w, n * w + j, lanes), load(share_w, vector, lanes))
                        value = value + (where_equal(v, peak, share) + at_max)
                    store(result, at * w + j, value)

    return loops


@cache
def _pool_backward_rows(lanes: int) -> Any:
    @_compiled()
    def loops(
        first: int, last: int, h: int, w: int, c: int, x: Any, grad: Any, result: Any, gate_h: Any, gate_w: Any,
        peak_h: Any, peak_w: Any, grad_h: Any, grad_w: Any,
        use_mean: bool, use_max: bool,
    ) -> None:  # fmt: skip
        # Of rows and of columns: what all their elements get, and how many maxima there are, then what these get.
        every_h, share_h = np.empty(h * lanes, x.dtype), np.zeros(h * lanes, x.dtype)
        every_w, share_w = np.empty(w * lanes, x.dtype), np.zeros(w * lanes, x.dtype)
        gates, peaks = np.empty(w * lanes, x.dtype), np.empty(w * lanes, x.dtype)  # of columns, side by side
        zero, one = spread(x.dtype.type(0), lanes), spread(x.dtype.type(1), lanes)
        height, width = spread(x.dtype.type(h), lanes), spread(x.dtype.type(w), lanes)
        vectors = -(-c // lanes)
        for task in range(first, last):
            n, k = task // vectors, min(task % vectors * lanes, c - lanes)
            for j in range(w):
                store(gates, j * lanes, load(gate_w, (n * w + j) * c + k, lanes))
                store(peaks, j * lanes, load(peak_w, (n * w + j) * c + k, lanes))
                store(share_w, j * lanes, zero)
            if use_max:
                for i in range(h):
                    peak, ties = load(peak_h, (n * h + i) * c + k, lanes), zero
                    for j in range(w):
                        v = load(x, ((n * h + i) * w + j) * c + k, lanes)
                        ties = ties + where_equal(v, peak, one)
                        tie = where_equal(v, load(peaks, j * lanes, lanes), one)
                        store(share_w, j * lanes, load(share_w, j * lanes, lanes) + tie)
                    store(share_h, i * lanes, ties)
            for i in range(h):
                grads = load(grad_h, (n * h + i) * c + k, lanes)
                every = grads / width if use_mean else zero
                if use_max:  # a maximum that is NaN equals nothing: 0 / 0 makes its line NaN
                    ties = load(share_h, i * lanes, lanes)
                    every = every + zero / ties
                    store(share_h, i * lanes, grads / ties)
                store(every_h, i * lanes, every)
            for j in range(w):
                grads = load(grad_w, (n * w + j) * c + k, lanes)
                every = grads / height if use_mean else zero
                if use_max:
                    ties = load(share_w, j * lanes, lanes)
                    every = every + zero / ties
                    store(share_w, j * lanes, grads / ties)
                store(every_w, j * lanes, every)
            for i in range(h):
                line = (n * h + i) * c + k
                gate, peak = load(gate_h, line, lanes), load(peak_h, line, lanes)
                every, share = load(every_h, i * lanes, lanes), load(share_h, i * lanes, lanes)
                for j in range(w):
                    at = ((n * h + i) * w + j) * c + k
                    above = load(grad, at, lanes) * gate * load(gates, j * lanes, lanes)
                    value = above + (every + load(every_w, j * lanes, lanes))
                    if use_max:
                        v = load(x, at, lanes)
                        at_max = where_equal(v, load(peaks, j * lanes, lanes), load(share_w, j * lanes, lanes))
                        value = value + (where_equal(v, peak, share) + at_max)
                    store(result, at, value)

    return loops
