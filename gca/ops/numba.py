"""Pooling and gating as compiled loops over planes, or over images in channels_last: the choice ``"numba"``.

One pass over ``x`` computes all four pools, one pass gates, and the backward passes read each tensor once from memory,
``x`` twice where the cache does not hold an image in channels_last.
Compiled on first use for the processor at hand and kept on disk.

Arrays are flat. Several elements are computed at once, neighbours in memory: columns of a plane, or channels. Where
their number is no multiple of that, the last vector overlaps the one before. What is written twice is the same both
times, even by two threads; from sums of a row what was counted is left out.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gca.ops.lanes import has_nan, larger, load, maxima, spread, store, totals, where_equal, without
from gca.ops.layout import dense_lines, new_lines
from gca.ops.threads import array, called, compiled, run, size, tasks

COLUMNS, CHANNELS = (8, 4, 1), (32, 8, 1)  # how many are computed at once, of those that there are


def refuses(x: Tensor) -> str | None:
    """Why this implementation cannot take ``x``."""
    if x.device.type != "cpu":
        return f"it runs on CPU, got {x.device}"
    if x.dtype not in (torch.float32, torch.float64):
        return f"it takes float32 and float64, got {x.dtype}"
    return None


def pool(x: Tensor, kind: str, keep_peaks: bool) -> tuple[Tensor, Tensor | None]:
    """Descriptors of all lines, and their maxima where these are kept and ``kind`` has any."""
    use_mean, use_max = kind != "max", kind != "avg"
    keep_peaks &= use_max
    pooled = new_lines(x)
    peaks = new_lines(x) if keep_peaks and use_mean else pooled  # without a mean the maxima are the descriptors
    _run(_pool_planes, _pool_images, x, [x], [pooled, peaks], use_mean, use_max, keep_peaks or not use_mean)
    return pooled, peaks if keep_peaks else None


def gate(x: Tensor, gates: Tensor) -> Tensor:
    """``x`` gated along both axes."""
    y = torch.empty_like(x)
    _run(_gate_planes, _gate_images, x, [x, y], [gates])
    return y


def gate_backward(grad: Tensor, x: Tensor, gates: Tensor) -> Tensor:
    """Gradient of the gates."""
    grad_gates = new_lines(x)
    _run(_gate_backward_planes, _gate_backward_images, x, [grad, x], [gates, grad_gates])
    return grad_gates


def pool_backward(
    x: Tensor, peaks: Tensor | None, grad_pooled: Tensor, kind: str, grad: Tensor | None, gates: Tensor | None
) -> Tensor:
    """Gradient of the pools, plus ``grad``, which is gated first where ``gates`` are given."""
    b, c, h, w = x.shape
    result = torch.empty_like(x)
    if grad is None:
        grad = torch.zeros_like(x)
    if gates is None:
        gates = x.new_ones(b, c, h + w)
    small = [gates, grad_pooled if peaks is None else peaks, grad_pooled]
    _run(_pool_backward_planes, _pool_backward_images, x, [x, grad, result], small, kind != "max", kind != "avg")
    return result


_Loops = Callable[[int, Any], Any]  # for so many elements at once, of a dtype


def _run(planes: _Loops, images: _Loops, x: Tensor, large: list[Tensor], small: list[Tensor], *flags: bool) -> None:
    if x.numel() == 0:
        return
    b, c, h, w = x.shape
    dtype = np.float32 if x.dtype == torch.float32 else np.float64
    if x.is_contiguous():
        loops, count, sizes = planes(_at_once(w, COLUMNS), dtype), b * c, [h, w]
    else:
        at_once = _at_once(c, CHANNELS)
        # Whole images are read in the order of memory, up to twice as fast as part of their channels.
        parts = min(-(-torch.get_num_threads() // b), -(-c // at_once))
        loops, count, sizes = images(at_once, dtype), b * parts, [h, w, c, parts]
        large = [t.permute(0, 2, 3, 1) for t in large]
    arrays = [*large, *(dense_lines(t, x) for t in small)]
    run(loops, count, x.numel(), [*sizes, *flags], arrays)


def _at_once(length: int, choices: tuple[int, ...]) -> int:
    return next(choice for choice in choices if choice <= length)


@called
def _part(task: int, parts: int, vectors: int) -> tuple[int, int, int]:
    """The image of a task; and the vectors of channels that are its part of it, the first one and the end."""
    image, part = task // parts, task % parts
    return image, vectors * part // parts, vectors * (part + 1) // parts


@cache
def _pool_planes(lanes: int, dtype: Any) -> Any:
    @compiled
    def loops(job: Any) -> None:
        h, w = size(job, 0), size(job, 1)
        use_mean, use_max, keep_peaks = size(job, 2) == 1, size(job, 3) == 1, size(job, 4) == 1
        x, pooled, peaks = array(job, 0, dtype), array(job, 1, dtype), array(job, 2, dtype)
        # What rows have, and columns so far, vector by vector. Even where these overlap, each has a place of its own: a
        # load from what two stores wrote has to wait for both. Rows go in twos, to wait half as often.
        sums_h, tops_h = np.zeros((h + lanes) * lanes, dtype), np.zeros((h + lanes) * lanes, dtype)
        sums_w, tops_w = np.empty(w + lanes, dtype), np.empty(w + lanes, dtype)
        zero, lowest = spread(dtype(0), lanes), spread(dtype(-np.inf), lanes)
        height, width = spread(dtype(h), lanes), spread(dtype(w), lanes)
        for n in tasks(job):
            plane, line = n * h * w, n * (h + w)
            for vector in range(0, w, lanes):
                store(sums_w, vector, zero)
                store(tops_w, vector, lowest)
            for i in range(0, h, 2):
                two = i + 1 < h
                sum_0 = sum_1 = zero
                top_0 = top_1 = lowest
                for vector in range(0, w, lanes):
                    j = min(vector, w - lanes)
                    v_0 = load(x, plane + i * w + j, lanes)
                    v_1 = load(x, plane + (i + 1) * w + j, lanes) if two else zero
                    store(sums_w, vector, load(sums_w, vector, lanes) + (v_0 + v_1))
                    if use_max:
                        top_0 = larger(v_0, top_0)
                        top = larger(v_0, load(tops_w, vector, lanes))
                        if two:
                            top_1 = larger(v_1, top_1)
                            top = larger(v_1, top)
                        store(tops_w, vector, top)
                    if j < vector:
                        v_0, v_1 = without(v_0, vector - j), without(v_1, vector - j)
                    sum_0, sum_1 = sum_0 + v_0, sum_1 + v_1
                store(sums_h, i * lanes, sum_0)
                store(sums_h, (i + 1) * lanes, sum_1)
                if use_max:
                    store(tops_h, i * lanes, top_0)
                    store(tops_h, (i + 1) * lanes, top_1)
            for i in range(0, h, lanes):  # the last vector reaches into the columns, which are written next
                top = maxima(tops_h, i * lanes, lanes)
                if use_mean:
                    mean = totals(sums_h, i * lanes, lanes) / width
                    store(pooled, line + i, mean + top if use_max else mean)
                if keep_peaks:
                    store(peaks, line + i, top)
            nan = False
            for vector in range(0, w, lanes):
                at = line + h + min(vector, w - lanes)
                column, top = load(sums_w, vector, lanes), load(tops_w, vector, lanes)
                if use_mean:
                    store(pooled, at, column / height + top if use_max else column / height)
                if keep_peaks:
                    store(peaks, at, top)
                    nan |= has_nan(column)
            if nan:  # a line with a NaN has a NaN sum: only then look at it closely
                image = x[plane : plane + h * w].reshape(h, w)
                for i in range(h):
                    peaks[line + i] = np.max(image[i])
                for j in range(w):
                    peaks[line + h + j] = np.max(image[:, j])

    return loops


@cache
def _pool_images(lanes: int, dtype: Any) -> Any:
    @compiled
    def loops(job: Any) -> None:
        h, w, c, parts = size(job, 0), size(job, 1), size(job, 2), size(job, 3)
        use_mean, use_max, keep_peaks = size(job, 4) == 1, size(job, 5) == 1, size(job, 6) == 1
        x, pooled, peaks = array(job, 0, dtype), array(job, 1, dtype), array(job, 2, dtype)
        vectors = -(-c // lanes)
        extent = -(-vectors // parts) * lanes  # of a part, in memory of its own
        sums, tops = np.empty((h + w) * extent, dtype), np.empty((h + w) * extent, dtype)
        height, width = spread(dtype(h), lanes), spread(dtype(w), lanes)
        for task in tasks(job):
            n, first, end = _part(task, parts, vectors)
            sums[:] = 0
            tops[:] = -np.inf
            for i in range(h):
                for j in range(w):
                    for vector in range(first, end):
                        k, slot = min(vector * lanes, c - lanes), (vector - first) * lanes
                        row, column = i * extent + slot, (h + j) * extent + slot
                        v = load(x, ((n * h + i) * w + j) * c + k, lanes)
                        if use_max:
                            top_of_row = larger(v, load(tops, row, lanes))
                            top_of_column = larger(v, load(tops, column, lanes))
                        store(sums, row, load(sums, row, lanes) + v)
                        store(sums, column, load(sums, column, lanes) + v)
                        # Not before the sums: what is stored right after it was loaded and compared with is only
                        # stored where it changes, which takes AMD's processors ten times as long.
                        if use_max:
                            store(tops, row, top_of_row)
                            store(tops, column, top_of_column)
            nan = False
            for line in range(h + w):
                for vector in range(first, end):
                    k, slot = min(vector * lanes, c - lanes), line * extent + (vector - first) * lanes
                    at = (n * (h + w) + line) * c + k
                    summed, top = load(sums, slot, lanes), load(tops, slot, lanes)
                    if use_mean:
                        mean = summed / (width if line < h else height)
                        store(pooled, at, mean + top if use_max else mean)
                    if keep_peaks:
                        store(peaks, at, top)
                        nan |= has_nan(summed)
            if nan:  # a line with a NaN has a NaN sum: only then look at it closely
                image = x[n * h * w * c : (n + 1) * h * w * c].reshape(h, w, c)
                for channel in range(min(first * lanes, c - lanes), min(end * lanes, c)):
                    for i in range(h):
                        peaks[(n * (h + w) + i) * c + channel] = np.max(image[i, :, channel])
                    for j in range(w):
                        peaks[(n * (h + w) + h + j) * c + channel] = np.max(image[:, j, channel])

    return loops


@cache
def _gate_planes(lanes: int, dtype: Any) -> Any:
    @compiled
    def loops(job: Any) -> None:
        h, w = size(job, 0), size(job, 1)
        x, y, gates = array(job, 0, dtype), array(job, 1, dtype), array(job, 2, dtype)
        for n in tasks(job):
            line = n * (h + w)
            for i in range(h):
                row, start = spread(gates[line + i], lanes), (n * h + i) * w
                for vector in range(0, w, lanes):
                    j = min(vector, w - lanes)
                    store(y, start + j, load(x, start + j, lanes) * row * load(gates, line + h + j, lanes))

    return loops


@cache
def _gate_images(lanes: int, dtype: Any) -> Any:
    @compiled
    def loops(job: Any) -> None:
        h, w, c, parts = size(job, 0), size(job, 1), size(job, 2), size(job, 3)
        x, y, gates = array(job, 0, dtype), array(job, 1, dtype), array(job, 2, dtype)
        vectors = -(-c // lanes)
        for task in tasks(job):
            n, first, end = _part(task, parts, vectors)
            line = n * (h + w)
            for i in range(h):
                for j in range(w):
                    for vector in range(first, end):
                        k = min(vector * lanes, c - lanes)
                        at = ((n * h + i) * w + j) * c + k
                        both = load(gates, (line + i) * c + k, lanes) * load(gates, (line + h + j) * c + k, lanes)
                        store(y, at, load(x, at, lanes) * both)

    return loops


@cache
def _gate_backward_planes(lanes: int, dtype: Any) -> Any:
    @compiled
    def loops(job: Any) -> None:
        h, w = size(job, 0), size(job, 1)
        grad, x = array(job, 0, dtype), array(job, 1, dtype)
        gates, grad_gates = array(job, 2, dtype), array(job, 3, dtype)
        sums_h, sums_w = np.zeros((h + lanes) * lanes, dtype), np.empty(w + lanes, dtype)
        zero = spread(dtype(0), lanes)
        for n in tasks(job):
            line = n * (h + w)
            for vector in range(0, w, lanes):
                store(sums_w, vector, zero)
            for i in range(0, h, 2):
                two, start = i + 1 < h, (n * h + i) * w
                row_0 = row_1 = zero
                gate_0 = spread(gates[line + i], lanes)
                gate_1 = spread(gates[line + i + 1], lanes) if two else zero
                for vector in range(0, w, lanes):
                    j = min(vector, w - lanes)
                    gate = load(gates, line + h + j, lanes)
                    product_0 = load(grad, start + j, lanes) * load(x, start + j, lanes)
                    product_1 = load(grad, start + w + j, lanes) * load(x, start + w + j, lanes) if two else zero
                    store(sums_w, vector, load(sums_w, vector, lanes) + (product_0 * gate_0 + product_1 * gate_1))
                    product_0, product_1 = product_0 * gate, product_1 * gate
                    if j < vector:
                        product_0, product_1 = without(product_0, vector - j), without(product_1, vector - j)
                    row_0, row_1 = row_0 + product_0, row_1 + product_1
                store(sums_h, i * lanes, row_0)
                store(sums_h, (i + 1) * lanes, row_1)
            for i in range(0, h, lanes):  # the last vector reaches into the columns, which are written next
                store(grad_gates, line + i, totals(sums_h, i * lanes, lanes))
            for vector in range(0, w, lanes):
                store(grad_gates, line + h + min(vector, w - lanes), load(sums_w, vector, lanes))

    return loops


@cache
def _gate_backward_images(lanes: int, dtype: Any) -> Any:
    @compiled
    def loops(job: Any) -> None:
        h, w, c, parts = size(job, 0), size(job, 1), size(job, 2), size(job, 3)
        grad, x = array(job, 0, dtype), array(job, 1, dtype)
        gates, grad_gates = array(job, 2, dtype), array(job, 3, dtype)
        vectors = -(-c // lanes)
        extent = -(-vectors // parts) * lanes  # of a part, in memory of its own
        of_row, of_columns = np.empty(extent, dtype), np.empty(w * extent, dtype)
        for task in tasks(job):
            n, first, end = _part(task, parts, vectors)
            line = n * (h + w)
            of_columns[:] = 0
            for i in range(h):
                of_row[:] = 0
                for j in range(w):
                    for vector in range(first, end):
                        k, slot = min(vector * lanes, c - lanes), (vector - first) * lanes
                        at = ((n * h + i) * w + j) * c + k
                        product = load(grad, at, lanes) * load(x, at, lanes)
                        weighted = product * load(gates, (line + h + j) * c + k, lanes)
                        store(of_row, slot, load(of_row, slot, lanes) + weighted)
                        column = j * extent + slot
                        weighted = product * load(gates, (line + i) * c + k, lanes)
                        store(of_columns, column, load(of_columns, column, lanes) + weighted)
                for vector in range(first, end):
                    k, slot = min(vector * lanes, c - lanes), (vector - first) * lanes
                    store(grad_gates, (line + i) * c + k, load(of_row, slot, lanes))
            for j in range(w):
                for vector in range(first, end):
                    k, column = min(vector * lanes, c - lanes), j * extent + (vector - first) * lanes
                    store(grad_gates, (line + h + j) * c + k, load(of_columns, column, lanes))

    return loops


@cache
def _pool_backward_planes(lanes: int, dtype: Any) -> Any:
    @compiled
    def loops(job: Any) -> None:
        h, w = size(job, 0), size(job, 1)
        use_mean, use_max = size(job, 2) == 1, size(job, 3) == 1
        x, grad, result = array(job, 0, dtype), array(job, 1, dtype), array(job, 2, dtype)
        gates, peaks, grad_pooled = array(job, 3, dtype), array(job, 4, dtype), array(job, 5, dtype)
        # Of rows and of columns: what all their elements get, and how many maxima there are, then what these get.
        every_h, share_h = np.zeros(h + lanes, dtype), np.zeros(h + lanes, dtype)
        every_w, share_w = np.zeros(w + lanes, dtype), np.zeros(w + lanes, dtype)
        ties_h = np.ones((h + lanes) * lanes, dtype)  # of rows, vector by vector
        zero, one = spread(dtype(0), lanes), spread(dtype(1), lanes)
        height, width = spread(dtype(h), lanes), spread(dtype(w), lanes)
        for n in tasks(job):
            plane, line = n * h * w, n * (h + w)
            if use_max:
                for vector in range(0, w, lanes):
                    store(share_w, vector, zero)
                for i in range(h):
                    peak, ties = spread(peaks[line + i], lanes), zero
                    for vector in range(0, w, lanes):
                        j = min(vector, w - lanes)
                        v = load(x, plane + i * w + j, lanes)
                        tie = where_equal(v, load(peaks, line + h + j, lanes), one)
                        store(share_w, vector, load(share_w, vector, lanes) + tie)
                        tie = where_equal(v, peak, one)
                        ties = ties + (without(tie, vector - j) if j < vector else tie)
                    store(ties_h, i * lanes, ties)
            for i in range(0, h, lanes):
                grads = load(grad_pooled, line + i, lanes)
                every = grads / width if use_mean else zero
                if use_max:  # a maximum that is NaN equals nothing: 0 / 0 makes its line NaN
                    ties = totals(ties_h, i * lanes, lanes)
                    every = every + zero / ties
                    store(share_h, i, grads / ties)
                store(every_h, i, every)
            for vector in range(0, w, lanes):
                grads = load(grad_pooled, line + h + min(vector, w - lanes), lanes)
                every = grads / height if use_mean else zero
                if use_max:
                    ties = load(share_w, vector, lanes)
                    every = every + zero / ties
                    store(share_w, vector, grads / ties)
                store(every_w, vector, every)
            for i in range(h):
                gate, peak = spread(gates[line + i], lanes), spread(peaks[line + i], lanes)
                every, share = spread(every_h[i], lanes), spread(share_h[i], lanes)
                for vector in range(0, w, lanes):
                    j = min(vector, w - lanes)
                    at = plane + i * w + j
                    above = load(grad, at, lanes) * gate * load(gates, line + h + j, lanes)
                    value = above + (every + load(every_w, vector, lanes))
                    if use_max:
                        v = load(x, at, lanes)
                        at_max = where_equal(v, load(peaks, line + h + j, lanes), load(share_w, vector, lanes))
                        value = value + (where_equal(v, peak, share) + at_max)
                    store(result, at, value)

    return loops


@cache
def _pool_backward_images(lanes: int, dtype: Any) -> Any:
    @compiled
    def loops(job: Any) -> None:
        h, w, c, parts = size(job, 0), size(job, 1), size(job, 2), size(job, 3)
        use_mean, use_max = size(job, 4) == 1, size(job, 5) == 1
        x, grad, result = array(job, 0, dtype), array(job, 1, dtype), array(job, 2, dtype)
        gates, peaks, grad_pooled = array(job, 3, dtype), array(job, 4, dtype), array(job, 5, dtype)
        vectors = -(-c // lanes)
        extent = -(-vectors // parts) * lanes  # of a part, in memory of its own
        # Of rows, then of columns: what all elements get, and how many maxima there are, then what these get.
        every, share = np.empty((h + w) * extent, dtype), np.empty((h + w) * extent, dtype)
        zero, one = spread(dtype(0), lanes), spread(dtype(1), lanes)
        height, width = spread(dtype(h), lanes), spread(dtype(w), lanes)
        for task in tasks(job):
            n, first, end = _part(task, parts, vectors)
            line = n * (h + w)
            if use_max:
                share[:] = 0
                for i in range(h):
                    for j in range(w):
                        for vector in range(first, end):
                            k, slot = min(vector * lanes, c - lanes), (vector - first) * lanes
                            row, column = i * extent + slot, (h + j) * extent + slot
                            v = load(x, ((n * h + i) * w + j) * c + k, lanes)
                            tie = where_equal(v, load(peaks, (line + i) * c + k, lanes), one)
                            store(share, row, load(share, row, lanes) + tie)
                            tie = where_equal(v, load(peaks, (line + h + j) * c + k, lanes), one)
                            store(share, column, load(share, column, lanes) + tie)
            for of_line in range(h + w):
                for vector in range(first, end):
                    k, slot = min(vector * lanes, c - lanes), of_line * extent + (vector - first) * lanes
                    grads = load(grad_pooled, (line + of_line) * c + k, lanes)
                    for_all = grads / (width if of_line < h else height) if use_mean else zero
                    if use_max:  # a maximum that is NaN equals nothing: 0 / 0 makes its line NaN
                        ties = load(share, slot, lanes)
                        for_all = for_all + zero / ties
                        store(share, slot, grads / ties)
                    store(every, slot, for_all)
            for i in range(h):
                for j in range(w):
                    for vector in range(first, end):
                        k, slot = min(vector * lanes, c - lanes), (vector - first) * lanes
                        row, column = i * extent + slot, (h + j) * extent + slot
                        of_row, of_column = (line + i) * c + k, (line + h + j) * c + k
                        at = ((n * h + i) * w + j) * c + k
                        above = load(grad, at, lanes) * load(gates, of_row, lanes) * load(gates, of_column, lanes)
                        value = above + (load(every, row, lanes) + load(every, column, lanes))
                        if use_max:
                            v = load(x, at, lanes)
                            at_max = where_equal(v, load(peaks, of_column, lanes), load(share, column, lanes))
                            at_max = where_equal(v, load(peaks, of_row, lanes), load(share, row, lanes)) + at_max
                            value = value + at_max
                        store(result, at, value)

    return loops
