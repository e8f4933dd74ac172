"""Pooling and gating as Triton kernels, in NCHW and channels_last: the choice ``"triton"``.

Of tensors of the size of ``x``, pooling reads one, gating reads and writes one, the gates' gradients read two, and the
gradient of ``x`` reads two and writes one: six reads and two writes forward and backward. Arithmetic is in float32
(float64 for float64) whatever the dtype of ``x``.

A program takes some planes (images times channels), and rows of them in steps; neighbouring planes are neighbours in
memory in channels_last, neighbouring columns are in NCHW. All columns of a row are in one tile, so that a row is
reduced at once and the columns in registers.

Not yet run on a GPU: the tests run it in Triton's interpreter, so it is never chosen automatically.
"""

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WIDEST = 4096
LARGEST = 2**31 - 1  # elements of an image: offsets within one are 32-bit, those between images 64-bit


def refuses(x: Tensor) -> str | None:
    """Why this implementation cannot take ``x``."""
    if not (x.is_cuda or INTERPRETED):
        return f"it runs on CUDA, got {x.device}"
    if x.dtype not in DTYPES:
        return f"it takes {', '.join(map(str, DTYPES))}, got {x.dtype}"
    if x.shape[3] > WIDEST:
        return f"it takes a width up to {WIDEST}, got {x.shape[3]}"
    if x.shape[1:].numel() > LARGEST:
        return f"it takes up to {LARGEST} elements per image, got {x.shape[1:].numel()}"
    return None


def pool(x: Tensor, kind: str) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Descriptors of the rows and the columns; the maxima and how often each is attained, where ``kind`` has any."""
    b, c, h, w = x.shape
    pooled = x.new_empty(b, c, h), x.new_empty(b, c, w)
    saved: list[Tensor | None] = [None, None, None, None]
    if kind != "avg":
        counts = (x.new_empty(b, c, n, dtype=torch.int32) for n in (h, w))
        saved = [*(torch.empty_like(p) for p in pooled), *counts]
    _launch(_pool, x, (x, *pooled, *saved), MEAN=kind != "max", MAX=kind != "avg")
    return *pooled, saved


def gate(x: Tensor, gate_h: Tensor, gate_w: Tensor) -> Tensor:
    """``x`` gated along both axes."""
    y = torch.empty_like(x)
    _launch(_gate, x, (x, gate_h.contiguous(), gate_w.contiguous(), y), by_rows=True)
    return y


def gate_backward(grad: Tensor, x: Tensor, gate_h: Tensor, gate_w: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the gates."""
    gates = gate_h.contiguous(), gate_w.contiguous()
    grads = torch.empty_like(gates[0]), torch.empty_like(gates[1])
    _launch(_gate_backward, x, (grad, x, *gates, *grads))
    return grads


def pool_backward(
    x: Tensor,
    saved: list[Tensor | None],
    grads: tuple[Tensor | None, Tensor | None],
    kind: str,
    grad: Tensor | None,
    gates: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Gradient of the pools, plus ``grad``, which is gated first where ``gates`` are given."""
    b, c, h, w = x.shape
    result = torch.empty_like(x)
    small = [x.new_zeros(b, c, n) if g is None else g.contiguous() for g, n in zip(grads, (h, w), strict=True)]
    gate_h, gate_w = (None, None) if gates is None else (gate.contiguous() for gate in gates)
    flags = {"MEAN": kind != "max", "MAX": kind != "avg", "GRAD": grad is not None, "GATES": gates is not None}
    _launch(_pool_backward, x, (x, grad, gate_h, gate_w, *small, *saved, result), by_rows=True, **flags)
    return result


def _launch(
    kernel: Any, x: Tensor, tensors: tuple[Tensor | None, ...], *, by_rows: bool = False, **flags: bool
) -> None:
    b, c, h, w = x.shape
    if x.numel() == 0:
        return
    columns = triton.next_power_of_2(w)
    if x.is_contiguous():
        strides = (c * h * w, h * w, w, 1)
        rows = min(triton.next_power_of_2(h), max(1, 1024 // columns))
        planes = max(1, 2048 // (columns * rows))
    else:
        strides = (c * h * w, 1, w * c, c)
        planes = min(64, triton.next_power_of_2(c))
        rows = min(triton.next_power_of_2(h), max(1, 4096 // (planes * columns)))
    grid = (triton.cdiv(b * c, planes), triton.cdiv(h, rows) if by_rows else 1)
    blocks = {"PLANES": planes, "ROWS": rows, "COLUMNS": columns}
    wide = tl.float64 if x.dtype == torch.float64 else tl.float32
    with torch.cuda.device_of(x):
        kernel[grid](*tensors, b * c, c, h, w, *strides, WIDE=wide, **flags, **blocks)


@triton.jit
def _max(v, axis: tl.constexpr):
    """``tl.max`` ignores NaN; here a NaN wins, as in torch."""
    has_nan = tl.max((v != v).to(tl.int32), axis) > 0
    return tl.where(has_nan, float("nan"), tl.max(v, axis))


@triton.jit
def _offsets(n, i, j, c, stride_b, stride_c, stride_h, stride_w):
    plane = (n // c).to(tl.int64) * stride_b + (n % c) * stride_c
    return plane[:, None, None] + (i * stride_h)[None, :, None] + (j * stride_w)[None, None, :]


@triton.jit
def _lines(n, k, planes, length):
    """Where the values of rows or columns ``k`` of planes ``n`` lie in a ``(B, C, length)`` tensor, and which do."""
    return n.to(tl.int64)[:, None] * length + k[None, :], (n < planes)[:, None] & (k < length)[None, :]


@triton.jit
def _pool(
    x, pooled_h, pooled_w, peak_h, peak_w, ties_h, ties_w,
    planes, c, h, w, stride_b, stride_c, stride_h, stride_w,
    WIDE: tl.constexpr, MEAN: tl.constexpr, MAX: tl.constexpr,
    PLANES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * PLANES + tl.arange(0, PLANES)
    j = tl.arange(0, COLUMNS)
    columns, columns_in = _lines(n, j, planes, w)
    total = tl.zeros([PLANES, COLUMNS], WIDE)
    peak = tl.full([PLANES, COLUMNS], float("-inf"), WIDE)
    ties = tl.zeros([PLANES, COLUMNS], tl.int32)
    for start in range(0, h, ROWS):
        i = start + tl.arange(0, ROWS)
        rows, rows_in = _lines(n, i, planes, h)
        inside = rows_in[:, :, None] & columns_in[:, None, :]
        v = tl.load(x + _offsets(n, i, j, c, stride_b, stride_c, stride_h, stride_w), mask=inside, other=0).to(WIDE)
        described = tl.zeros([PLANES, ROWS], WIDE)
        if MEAN:
            described += tl.sum(v, 2) / w
            total += tl.sum(v, 1)
        if MAX:
            v = tl.where(inside, v, float("-inf"))
            top = _max(v, 2)
            described += top
            tl.store(peak_h + rows, top, mask=rows_in)
            tl.store(ties_h + rows, tl.sum((inside & (v == top[:, :, None])).to(tl.int32), 2), mask=rows_in)
            top = _max(v, 1)
            again = tl.sum((inside & (v == top[:, None, :])).to(tl.int32), 1)
            higher = tl.maximum(peak, top, propagate_nan=tl.PropagateNan.ALL)
            ties = tl.where(peak == higher, ties, 0) + tl.where(top == higher, again, 0)
            peak = higher
        tl.store(pooled_h + rows, described, mask=rows_in)
    described = tl.zeros([PLANES, COLUMNS], WIDE)
    if MEAN:
        described += total / h
    if MAX:
        described += peak
        tl.store(peak_w + columns, peak, mask=columns_in)
        tl.store(ties_w + columns, ties, mask=columns_in)
    tl.store(pooled_w + columns, described, mask=columns_in)


@triton.jit
def _gate(
    x, gate_h, gate_w, y,
    planes, c, h, w, stride_b, stride_c, stride_h, stride_w,
    WIDE: tl.constexpr, PLANES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * PLANES + tl.arange(0, PLANES)
    i = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    j = tl.arange(0, COLUMNS)
    rows, rows_in = _lines(n, i, planes, h)
    columns, columns_in = _lines(n, j, planes, w)
    inside = rows_in[:, :, None] & columns_in[:, None, :]
    at = _offsets(n, i, j, c, stride_b, stride_c, stride_h, stride_w)
    v = tl.load(x + at, mask=inside).to(WIDE)
    row = tl.load(gate_h + rows, mask=rows_in).to(WIDE)
    column = tl.load(gate_w + columns, mask=columns_in).to(WIDE)
    tl.store(y + at, v * row[:, :, None] * column[:, None, :], mask=inside)


@triton.jit
def _gate_backward(
    grad, x, gate_h, gate_w, grad_h, grad_w,
    planes, c, h, w, stride_b, stride_c, stride_h, stride_w,
    WIDE: tl.constexpr, PLANES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * PLANES + tl.arange(0, PLANES)
    j = tl.arange(0, COLUMNS)
    columns, columns_in = _lines(n, j, planes, w)
    column = tl.load(gate_w + columns, mask=columns_in, other=0).to(WIDE)
    total = tl.zeros([PLANES, COLUMNS], WIDE)
    for start in range(0, h, ROWS):
        i = start + tl.arange(0, ROWS)
        rows, rows_in = _lines(n, i, planes, h)
        inside = rows_in[:, :, None] & columns_in[:, None, :]
        at = _offsets(n, i, j, c, stride_b, stride_c, stride_h, stride_w)
        product = tl.load(x + at, mask=inside, other=0).to(WIDE) * tl.load(grad + at, mask=inside, other=0).to(WIDE)
        row = tl.load(gate_h + rows, mask=rows_in, other=0).to(WIDE)
        tl.store(grad_h + rows, tl.sum(product * column[:, None, :], 2), mask=rows_in)
        total += tl.sum(product * row[:, :, None], 1)
    tl.store(grad_w + columns, total, mask=columns_in)


@triton.jit
def _shares(grads, ties, at, inside, length, WIDE: tl.constexpr, MEAN: tl.constexpr, MAX: tl.constexpr):
    """What every element of a line gets, and what every maximum; a maximum that is NaN makes all its line NaN."""
    grad = tl.load(grads + at, mask=inside, other=0).to(WIDE)
    every = tl.zeros_like(grad)
    share = tl.zeros_like(grad)
    if MEAN:
        every += grad / length
    if MAX:
        count = tl.load(ties + at, mask=inside, other=1)
        every = tl.where(count == 0, float("nan"), every)
        share = grad / tl.maximum(count, 1).to(WIDE)
    return every, share


@triton.jit
def _pool_backward(
    x, grad, gate_h, gate_w, grad_h, grad_w, peak_h, peak_w, ties_h, ties_w, result,
    planes, c, h, w, stride_b, stride_c, stride_h, stride_w,
    WIDE: tl.constexpr, MEAN: tl.constexpr, MAX: tl.constexpr, GRAD: tl.constexpr, GATES: tl.constexpr,
    PLANES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * PLANES + tl.arange(0, PLANES)
    i = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    j = tl.arange(0, COLUMNS)
    rows, rows_in = _lines(n, i, planes, h)
    columns, columns_in = _lines(n, j, planes, w)
    inside = rows_in[:, :, None] & columns_in[:, None, :]
    at = _offsets(n, i, j, c, stride_b, stride_c, stride_h, stride_w)
    every_h, share_h = _shares(grad_h, ties_h, rows, rows_in, w, WIDE, MEAN, MAX)
    every_w, share_w = _shares(grad_w, ties_w, columns, columns_in, h, WIDE, MEAN, MAX)
    total = every_h[:, :, None] + every_w[:, None, :]
    if MAX:
        v = tl.load(x + at, mask=inside, other=0)
        top_h = tl.load(peak_h + rows, mask=rows_in, other=0)
        top_w = tl.load(peak_w + columns, mask=columns_in, other=0)
        total += tl.where(v == top_h[:, :, None], share_h[:, :, None], 0.0)
        total += tl.where(v == top_w[:, None, :], share_w[:, None, :], 0.0)
    if GRAD:
        incoming = tl.load(grad + at, mask=inside, other=0).to(WIDE)
        if GATES:
            row = tl.load(gate_h + rows, mask=rows_in, other=0).to(WIDE)
            column = tl.load(gate_w + columns, mask=columns_in, other=0).to(WIDE)
            incoming = incoming * row[:, :, None] * column[:, None, :]
        total += incoming
    tl.store(result + at, total, mask=inside)
