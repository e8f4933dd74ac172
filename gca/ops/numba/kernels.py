"""The loops: one pass over ``x`` pools, one gates, and the passes of backward read each tensor once from memory.

Both layouts share them. ``x`` is seen as ``(tasks, h, outer, inner)``, and vectors run along ``inner``: in NCHW a task
is a plane, ``outer`` is 1 and ``inner`` the width; in channels_last a task is an image, ``outer`` the width and
``inner`` the channels. What belongs to a column is a vector in both. What belongs to a row is a number in NCHW, to
which a whole row is reduced, and a vector in channels_last: that is where the two differ.

Arrays are flat. Where ``inner`` is no multiple of a vector the last vector overlaps the one before: what is written
twice is the same both times, even by two threads, and from what rows sum the overlap is masked out. Each vector has a
slot of its own in temporary memory, overlapping or not, since a load from what two stores wrote waits for both. Rows go
in twos, to wait half as often.
"""

from functools import cache
from typing import Any

import numpy as np

from gca.ops.numba.simd import (
    broadcast,
    has_nan,
    horizontal_maxima,
    horizontal_sums,
    load,
    mask_first,
    maximum,
    store,
    where_equal,
)
from gca.ops.numba.threads import array, called, compiled, size, tasks


@called
def _place(job: Any, task: int, vector: int, channels_last: bool) -> tuple[int, int, int, int, int]:
    """Where a task's ``x`` begins, where its rows and its columns do among the features, and its vectors."""
    h, outer, inner, parts = size(job, 0), size(job, 1), size(job, 2), size(job, 3)
    vectors = -(-inner // vector)
    if not channels_last:
        return task * h * inner, task * (h + inner), task * (h + inner) + h, 0, vectors
    image, part = task // parts, task % parts
    rows, columns = image * (h + outer) * inner, (image * (h + outer) + h) * inner
    return image * h * outer * inner, rows, columns, vectors * part // parts, vectors * (part + 1) // parts


@called
def _extent(job: Any, vector: int) -> int:
    """Elements of temporary memory for the vectors of one task along ``inner``."""
    vectors, parts = -(-size(job, 2) // vector), size(job, 3)
    extent: int = -(-vectors // parts) * vector
    return extent


@cache
def pool(vector: int, dtype: Any, channels_last: bool) -> Any:
    """Means and maxima of every row and column."""

    @compiled
    def loops(job: Any) -> None:
        h, inner, use_mean, use_max = size(job, 0), size(job, 2), size(job, 4), size(job, 5)
        outer = size(job, 1) if channels_last else 1  # known to the compiler, which drops the loop
        x, means, maxima = array(job, 0, dtype), array(job, 1, dtype), array(job, 2, dtype)
        extent, width = _extent(job, vector), outer if channels_last else inner
        rows_at_once = 2 * extent if channels_last else (h + vector) * vector
        sums_h, tops_h = np.zeros(rows_at_once, dtype), np.zeros(rows_at_once, dtype)
        sums_w, tops_w = np.empty(outer * extent, dtype), np.empty(outer * extent, dtype)
        zero, lowest = broadcast(dtype(0), vector), broadcast(dtype(-np.inf), vector)
        of_h, of_w = broadcast(dtype(h), vector), broadcast(dtype(width), vector)
        for task in tasks(job):
            begin, rows, columns, first, end = _place(job, task, vector, channels_last)
            sums_w[:] = 0
            tops_w[:] = -np.inf
            for i in range(0, h, 2):
                two = i + 1 < h
                sum_0 = sum_1 = zero
                top_0 = top_1 = lowest
                for j in range(outer):
                    for n in range(first, end):
                        k, slot = min(n * vector, inner - vector), (n - first) * vector
                        at, column = begin + (i * outer + j) * inner + k, j * extent + slot
                        v_0 = load(x, at, vector)
                        v_1 = load(x, at + outer * inner, vector) if two else zero
                        if channels_last and j:
                            sum_0, sum_1 = load(sums_h, slot, vector), load(sums_h, extent + slot, vector)
                        elif channels_last:
                            sum_0 = sum_1 = zero
                        if use_max:
                            if channels_last and j:
                                top_0, top_1 = load(tops_h, slot, vector), load(tops_h, extent + slot, vector)
                            elif channels_last:
                                top_0 = top_1 = lowest
                            top_0, top = maximum(v_0, top_0), maximum(v_0, load(tops_w, column, vector))
                            if two:
                                top_1, top = maximum(v_1, top_1), maximum(v_1, top)
                        store(sums_w, column, load(sums_w, column, vector) + (v_0 + v_1))
                        if not channels_last and k < n * vector:
                            v_0, v_1 = mask_first(v_0, n * vector - k), mask_first(v_1, n * vector - k)
                        sum_0, sum_1 = sum_0 + v_0, sum_1 + v_1
                        if channels_last:
                            store(sums_h, slot, sum_0)
                            store(sums_h, extent + slot, sum_1)
                        # Not before the sums: what is stored right after it was loaded and compared with is only
                        # stored where it changes, which takes AMD's processors ten times as long.
                        if use_max:
                            store(tops_w, column, top)
                            if channels_last:
                                store(tops_h, slot, top_0)
                                store(tops_h, extent + slot, top_1)
                if channels_last:
                    for row in range(i, min(i + 2, h)):
                        for n in range(first, end):
                            slot = (row - i) * extent + (n - first) * vector
                            at = rows + row * inner + min(n * vector, inner - vector)
                            if use_mean:
                                store(means, at, load(sums_h, slot, vector) / of_w)
                            if use_max:
                                store(maxima, at, load(tops_h, slot, vector))
                else:
                    store(sums_h, i * vector, sum_0)
                    store(sums_h, (i + 1) * vector, sum_1)
                    store(tops_h, i * vector, top_0)
                    store(tops_h, (i + 1) * vector, top_1)
            if not channels_last:
                for i in range(0, h, vector):  # the last vector reaches into the columns, which are written next
                    if use_mean:
                        store(means, rows + i, horizontal_sums(sums_h, i * vector, vector) / of_w)
                    if use_max:
                        store(maxima, rows + i, horizontal_maxima(tops_h, i * vector, vector))
            nan = False
            for j in range(outer):
                for n in range(first, end):
                    k, column = min(n * vector, inner - vector), j * extent + (n - first) * vector
                    sums = load(sums_w, column, vector)
                    if use_mean:
                        store(means, columns + j * inner + k, sums / of_h)
                    if use_max:
                        store(maxima, columns + j * inner + k, load(tops_w, column, vector))
                        nan |= has_nan(sums)
            if nan:  # a row or column with a NaN has a NaN sum: only then look at it closely
                unit = inner if channels_last else 1
                image = x[begin : begin + h * outer * inner].reshape(h, width, unit)
                low, high = (min(first * vector, inner - vector), min(end * vector, inner)) if channels_last else (0, 1)
                for k in range(low, high):
                    for i in range(h):
                        maxima[rows + i * unit + k] = np.max(image[i, :, k])
                    for j in range(width):
                        maxima[columns + j * unit + k] = np.max(image[:, j, k])

    return loops


@cache
def gate(vector: int, dtype: Any, channels_last: bool) -> Any:
    """Every position times the gates of its row and column."""

    @compiled
    def loops(job: Any) -> None:
        h, inner = size(job, 0), size(job, 2)
        outer = size(job, 1) if channels_last else 1
        x, y, gates = array(job, 0, dtype), array(job, 1, dtype), array(job, 2, dtype)
        for task in tasks(job):
            begin, rows, columns, first, end = _place(job, task, vector, channels_last)
            for i in range(h):
                row = broadcast(gates[rows + i], vector)
                for j in range(outer):
                    for n in range(first, end):
                        k = min(n * vector, inner - vector)
                        at = begin + (i * outer + j) * inner + k
                        if channels_last:
                            row = load(gates, rows + i * inner + k, vector)
                        store(y, at, load(x, at, vector) * (row * load(gates, columns + j * inner + k, vector)))

    return loops


@cache
def gate_backward(vector: int, dtype: Any, channels_last: bool) -> Any:
    """Gradient of the gates."""

    @compiled
    def loops(job: Any) -> None:
        h, inner = size(job, 0), size(job, 2)
        outer = size(job, 1) if channels_last else 1
        grad, x = array(job, 0, dtype), array(job, 1, dtype)
        gates, grad_gates = array(job, 2, dtype), array(job, 3, dtype)
        extent = _extent(job, vector)
        sums_h = np.zeros(2 * extent if channels_last else (h + vector) * vector, dtype)
        sums_w = np.empty(outer * extent, dtype)
        zero = broadcast(dtype(0), vector)
        for task in tasks(job):
            begin, rows, columns, first, end = _place(job, task, vector, channels_last)
            sums_w[:] = 0
            for i in range(0, h, 2):
                two = i + 1 < h
                sum_0 = sum_1 = zero
                gate_0 = broadcast(gates[rows + i], vector)
                gate_1 = broadcast(gates[rows + i + 1], vector) if two else zero
                for j in range(outer):
                    for n in range(first, end):
                        k, slot = min(n * vector, inner - vector), (n - first) * vector
                        at, column = begin + (i * outer + j) * inner + k, j * extent + slot
                        gate = load(gates, columns + j * inner + k, vector)
                        if channels_last:
                            gate_0 = load(gates, rows + i * inner + k, vector)
                            gate_1 = load(gates, rows + (i + 1) * inner + k, vector) if two else zero
                            sum_0, sum_1 = load(sums_h, slot, vector), load(sums_h, extent + slot, vector)
                            if j == 0:
                                sum_0 = sum_1 = zero
                        product_0 = load(grad, at, vector) * load(x, at, vector)
                        at += outer * inner
                        product_1 = load(grad, at, vector) * load(x, at, vector) if two else zero
                        summed = load(sums_w, column, vector)
                        store(sums_w, column, summed + (product_0 * gate_0 + product_1 * gate_1))
                        product_0, product_1 = product_0 * gate, product_1 * gate
                        if not channels_last and k < n * vector:
                            product_0 = mask_first(product_0, n * vector - k)
                            product_1 = mask_first(product_1, n * vector - k)
                        sum_0, sum_1 = sum_0 + product_0, sum_1 + product_1
                        if channels_last:
                            store(sums_h, slot, sum_0)
                            store(sums_h, extent + slot, sum_1)
                if channels_last:
                    for row in range(i, min(i + 2, h)):
                        for n in range(first, end):
                            slot, k = (row - i) * extent + (n - first) * vector, min(n * vector, inner - vector)
                            store(grad_gates, rows + row * inner + k, load(sums_h, slot, vector))
                else:
                    store(sums_h, i * vector, sum_0)
                    store(sums_h, (i + 1) * vector, sum_1)
            if not channels_last:
                for i in range(0, h, vector):  # the last vector reaches into the columns, which are written next
                    store(grad_gates, rows + i, horizontal_sums(sums_h, i * vector, vector))
            for j in range(outer):
                for n in range(first, end):
                    k, column = min(n * vector, inner - vector), j * extent + (n - first) * vector
                    store(grad_gates, columns + j * inner + k, load(sums_w, column, vector))

    return loops


@cache
def pool_backward(vector: int, dtype: Any, channels_last: bool) -> Any:
    """Gradient of means and maxima, and of what was gated."""

    @compiled
    def loops(job: Any) -> None:
        h, inner, use_mean, use_max = size(job, 0), size(job, 2), size(job, 4), size(job, 5)
        outer = size(job, 1) if channels_last else 1  # known to the compiler, which drops the loop
        x, grad, result = array(job, 0, dtype), array(job, 1, dtype), array(job, 2, dtype)
        gates, maxima = array(job, 3, dtype), array(job, 4, dtype)
        grad_means, grad_maxima = array(job, 5, dtype), array(job, 6, dtype)
        extent, width = _extent(job, vector), outer if channels_last else inner
        # Of rows and of columns: what every element gets; and how many maxima there are, then what each of them gets.
        numbers_h, row_slots = (h * extent, extent) if channels_last else (h + vector, 1)
        every_h, share_h = np.zeros(numbers_h, dtype), np.zeros(numbers_h, dtype)
        every_w, share_w = np.zeros(outer * extent, dtype), np.zeros(outer * extent, dtype)
        ties_h = np.ones(1 if channels_last else (h + vector) * vector, dtype)  # of rows, vector by vector
        zero, one = broadcast(dtype(0), vector), broadcast(dtype(1), vector)
        of_h, of_w = broadcast(dtype(h), vector), broadcast(dtype(width), vector)
        for task in tasks(job):
            begin, rows, columns, first, end = _place(job, task, vector, channels_last)
            if use_max:
                share_h[:] = 0
                share_w[:] = 0
                for i in range(h):
                    top, ties = broadcast(maxima[rows + i], vector), zero
                    for j in range(outer):
                        for n in range(first, end):
                            k, slot = min(n * vector, inner - vector), (n - first) * vector
                            column = j * extent + slot
                            v = load(x, begin + (i * outer + j) * inner + k, vector)
                            tie = where_equal(v, load(maxima, columns + j * inner + k, vector), one)
                            store(share_w, column, load(share_w, column, vector) + tie)
                            if channels_last:
                                tie = where_equal(v, load(maxima, rows + i * inner + k, vector), one)
                                store(share_h, i * extent + slot, load(share_h, i * extent + slot, vector) + tie)
                            else:
                                tie = where_equal(v, top, one)
                                ties = ties + (mask_first(tie, n * vector - k) if k < n * vector else tie)
                    if not channels_last:
                        store(ties_h, i * vector, ties)
            # A maximum that is NaN equals nothing: 0 / 0 makes its row or column NaN.
            for i in range(0, h, 1 if channels_last else vector):
                for n in range(first, end if channels_last else first + 1):
                    slot = i * row_slots + (n - first) * vector
                    at = rows + (i * inner + min(n * vector, inner - vector) if channels_last else i)
                    every = load(grad_means, at, vector) / of_w if use_mean else zero
                    if use_max:
                        ties = load(share_h, slot, vector)
                        if not channels_last:
                            ties = horizontal_sums(ties_h, i * vector, vector)
                        every = every + zero / ties
                        store(share_h, slot, load(grad_maxima, at, vector) / ties)
                    store(every_h, slot, every)
            for j in range(outer):
                for n in range(first, end):
                    column = j * extent + (n - first) * vector
                    at = columns + j * inner + min(n * vector, inner - vector)
                    every = load(grad_means, at, vector) / of_h if use_mean else zero
                    if use_max:
                        ties = load(share_w, column, vector)
                        every = every + zero / ties
                        store(share_w, column, load(grad_maxima, at, vector) / ties)
                    store(every_w, column, every)
            for i in range(h):
                gate, top = broadcast(gates[rows + i], vector), broadcast(maxima[rows + i], vector)
                every, share = broadcast(every_h[i * row_slots], vector), broadcast(share_h[i * row_slots], vector)
                for j in range(outer):
                    for n in range(first, end):
                        k, slot = min(n * vector, inner - vector), (n - first) * vector
                        at, column = begin + (i * outer + j) * inner + k, j * extent + slot
                        of_column = columns + j * inner + k
                        if channels_last:
                            gate = load(gates, rows + i * inner + k, vector)
                            every = load(every_h, i * extent + slot, vector)
                        value = load(grad, at, vector) * (gate * load(gates, of_column, vector))
                        value = value + (every + load(every_w, column, vector))
                        if use_max:
                            if channels_last:
                                top = load(maxima, rows + i * inner + k, vector)
                                share = load(share_h, i * extent + slot, vector)
                            v = load(x, at, vector)
                            at_max = where_equal(v, load(maxima, of_column, vector), load(share_w, column, vector))
                            value = value + (where_equal(v, top, share) + at_max)
                        store(result, at, value)

    return loops
