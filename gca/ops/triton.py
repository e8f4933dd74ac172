"""The backend ``"triton"``: kernels for NVIDIA GPUs, in NCHW and channels_last.

Of tensors of the size of ``x``, pooling reads one, gating reads and writes one, the gates' gradients read two, and the
gradient of ``x`` reads two and writes one: six reads and two writes forward and backward, and a second look at ``x``
for ties, which comes from the cache as far as a program's planes fit. Arithmetic is in float32 (float64 for float64)
whatever the dtype of ``x``.

A program takes some planes and goes over their rows tile by tile. Neighbouring planes are neighbours in memory in
channels_last, neighbouring columns are in NCHW, and pooled features and gates likewise. All columns of a row are in its
tile, so that a row is reduced at once; columns are reduced after the last tile.
"""

import math
import os
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gca.ops.layout import dense_features, new_features

DIFFERENTIABLE = False
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WIDEST = 4096
LARGEST = 2**31 - 1  # elements of an image: offsets within one are 32-bit, those between images 64-bit


def unsupported(device: torch.device, dtype: torch.dtype, shape: torch.Size) -> str | None:
    """Why this backend cannot take an ``x`` of this kind."""
    if not (device.type == "cuda" or INTERPRETED):
        return f"it runs on CUDA, got {device}"
    if dtype not in DTYPES:
        return f"it takes {', '.join(map(str, DTYPES))}, got {dtype}"
    _, c, h, w = shape
    if 0 in (h, w):
        return "it takes images with a row and a column at least"
    if w > WIDEST:
        return f"it takes a width up to {WIDEST}, got {w}"
    if (elements := c * max(h * w, h + w)) > LARGEST:  # of x or of its features
        return f"it takes up to {LARGEST} elements per image, got {elements}"
    return None if INTERPRETED else _tried(device)


@cache
def _tried(device: torch.device) -> str | None:
    """Why no kernel runs on a device: Triton needs a GPU that it knows, a C compiler and Python's header files."""
    one = torch.ones(1, 1, 1, 1, device=device)
    try:
        gate(one, torch.ones(1, 1, 2, device=device))
    except Exception as error:  # the driver, the compiler and subprocesses each have their own
        return f"a first kernel failed on {device} with {type(error).__name__}: {error}"
    return None


def pool(x: Tensor, kind: str) -> tuple[Tensor | None, Tensor | None]:
    """Means and maxima of every row and column; ``None`` for what ``kind`` has not."""
    means = None if kind == "max" else new_features(x)
    maxima = None if kind == "avg" else new_features(x)
    _launch(_pool, x, means, maxima)
    return means, maxima


def gate(x: Tensor, gates: Tensor) -> Tensor:
    """``x`` gated along both axes."""
    y = torch.empty_like(x)
    _launch(_gate, x, dense_features(gates, x), y)
    return y


def gate_backward(grad: Tensor, x: Tensor, gates: Tensor) -> Tensor:
    """Gradient of the gates."""
    grad_gates = new_features(x)
    _launch(_gate_backward, x, grad, dense_features(gates, x), grad_gates)
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
    small = (None if t is None else dense_features(t, x) for t in (gates, maxima, grad_means, grad_maxima))
    _launch(_pool_backward, x, grad, *small, result)
    return result


def _launch(kernel: Any, x: Tensor, *others: Tensor | None) -> None:
    if x.numel() == 0:
        return
    b, c, h, w = x.shape
    channels_last = not x.is_contiguous()
    if not channels_last:
        b, c = 1, b * c  # planes follow each other over the images
    planes, rows, columns, warps, stages = _blocks(kernel, c, h, w, x.element_size(), channels_last)
    step = math.gcd(w, 16)  # a kernel sees the width as a multiple of it, and so which addresses are aligned
    with torch.cuda.device_of(x):
        kernel[(b * -(-c // planes),)](
            x, *others, c, h, w // step,
            STEP=step, CHANNELS_LAST=channels_last,
            WIDE=tl.float64 if x.dtype == torch.float64 else tl.float32,
            PLANES=planes, ROWS=rows, COLUMNS=columns, STAGES=stages, num_warps=warps,
            enable_fp_fusion=True,  # the default is about to change
        )  # fmt: skip


@cache
def _blocks(kernel: Any, c: int, h: int, w: int, itemsize: int, channels_last: bool) -> tuple[int, int, int, int, int]:
    """Planes, rows and columns of a tile, warps that work on it, and tiles that are loaded ahead.

    The best, or nearly, of some 60 for each kernel, layout and dtype on an H200, for the stages of a ResNet-50 at batch
    32. Programs of one warp need no barriers; in channels_last there are too few programs for that.
    """
    columns = triton.next_power_of_2(w)
    wide = columns >= 32
    if channels_last and kernel is _gate:
        rows, elements = 2, 128 * columns
    elif channels_last and wide:
        rows, elements = 2, (32 if kernel is _pool else 16 * min(itemsize, 4)) * columns
    elif channels_last:
        rows, elements = 4, 64 * columns
    elif kernel is _gate:
        rows, elements = 16, 1024
    else:
        rows, elements = 8 if wide else 4, 256
    rows = max(1, min(rows, triton.next_power_of_2(h), 1024 // columns))
    planes = max(1, min(elements, 8192) // (rows * columns))
    if channels_last:
        planes = min(planes, triton.next_power_of_2(c))
    elements = planes * rows * columns
    warps = max(1, min(8, elements // 1024))
    ahead = channels_last and wide and kernel is not _gate and elements * itemsize <= 2**14  # shared memory is small
    stages = 3 if ahead else 1
    return planes, rows, columns, warps, stages


@triton.jit
def _greater(a, b):
    """As in torch, NaN is greater than any number."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _tile(c, h, w, CHANNELS_LAST: tl.constexpr, PLANES: tl.constexpr, COLUMNS: tl.constexpr):
    """Where the first plane of this program begins in ``x``; where its planes begin among the features; its columns;
    which of either there are; where both are in ``x`` from that beginning on; and how far rows are apart."""
    tiles = tl.cdiv(c, PLANES)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    first = (tl.program_id(0) % tiles) * PLANES
    n = tl.arange(0, PLANES)
    j = tl.arange(0, COLUMNS)
    if CHANNELS_LAST:
        stride_c = 1
        stride_w = c
        features = image * c * (h + w) + first + n
    else:
        stride_c = h * w
        stride_w = 1
        features = (image * c + first + n) * (h + w)
    begin = image * c * h * w + first.to(tl.int64) * stride_c
    at = (n * stride_c)[:, None, None] + (j * stride_w)[None, None, :]
    return begin, features, j, first + n < c, j < w, at, w * stride_w


@triton.jit
def _rows(start, h, n_in, j_in, stride_h, ROWS: tl.constexpr):
    """The rows of the tile that begins at one; which of them, and which elements of the tile, there are; how far down
    they are."""
    i = start + tl.arange(0, ROWS)
    rows_in = n_in[:, None] & (i < h)[None, :]
    return i, rows_in, rows_in[:, :, None] & j_in[None, None, :], (i * stride_h)[None, :, None]


@triton.jit
def _at_features(base, k, c, CHANNELS_LAST: tl.constexpr):
    """Where features ``k`` of the planes are, of which those of the rows are first."""
    if CHANNELS_LAST:
        k = k * c
    return base[:, None] + k[None, :]


@triton.jit
def _features(tensor, base, k, inside, c, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr):
    """What is there for them."""
    return tl.load(tensor + _at_features(base, k, c, CHANNELS_LAST), mask=inside, other=0).to(WIDE)


@triton.jit
def _pool(
    x, means, maxima, c, h, w,
    STEP: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
    PLANES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    w = w * STEP
    begin, base, j, n_in, j_in, at_columns, stride_h = _tile(c, h, w, CHANNELS_LAST, PLANES, COLUMNS)
    x += begin
    total = tl.zeros([PLANES, ROWS, COLUMNS], WIDE)
    top = tl.full([PLANES, ROWS, COLUMNS], float("-inf"), WIDE)
    for start in tl.range(0, h, ROWS, num_stages=STAGES):
        i, rows_in, inside, down = _rows(start, h, n_in, j_in, stride_h, ROWS)
        v = tl.load(x + at_columns + down, mask=inside, other=0).to(WIDE)
        at = _at_features(base, i, c, CHANNELS_LAST)
        if means is not None:
            tl.store(means + at, tl.sum(v, 2) / w, mask=rows_in)
            total += v
        if maxima is not None:
            v = tl.where(inside, v, float("-inf"))
            tl.store(maxima + at, tl.reduce(v, 2, _greater), mask=rows_in)
            top = _greater(top, v)
    at = _at_features(base, h + j, c, CHANNELS_LAST)
    columns_in = n_in[:, None] & j_in[None, :]
    if means is not None:
        tl.store(means + at, tl.sum(total, 1) / h, mask=columns_in)
    if maxima is not None:
        tl.store(maxima + at, tl.reduce(top, 1, _greater), mask=columns_in)


@triton.jit
def _gate(
    x, gates, y, c, h, w,
    STEP: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
    PLANES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    w = w * STEP
    begin, base, j, n_in, j_in, at_columns, stride_h = _tile(c, h, w, CHANNELS_LAST, PLANES, COLUMNS)
    x += begin
    y += begin
    columns_in = n_in[:, None] & j_in[None, :]
    column = _features(gates, base, h + j, columns_in, c, CHANNELS_LAST, WIDE)
    for start in tl.range(0, h, ROWS, num_stages=STAGES):
        i, rows_in, inside, down = _rows(start, h, n_in, j_in, stride_h, ROWS)
        at = at_columns + down
        row = _features(gates, base, i, rows_in, c, CHANNELS_LAST, WIDE)
        v = tl.load(x + at, mask=inside, other=0).to(WIDE)
        tl.store(y + at, v * row[:, :, None] * column[:, None, :], mask=inside)


@triton.jit
def _gate_backward(
    x, grad, gates, grad_gates, c, h, w,
    STEP: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
    PLANES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    w = w * STEP
    begin, base, j, n_in, j_in, at_columns, stride_h = _tile(c, h, w, CHANNELS_LAST, PLANES, COLUMNS)
    x += begin
    grad += begin
    columns_in = n_in[:, None] & j_in[None, :]
    column = _features(gates, base, h + j, columns_in, c, CHANNELS_LAST, WIDE)
    total = tl.zeros([PLANES, ROWS, COLUMNS], WIDE)
    for start in tl.range(0, h, ROWS, num_stages=STAGES):
        i, rows_in, inside, down = _rows(start, h, n_in, j_in, stride_h, ROWS)
        at = at_columns + down
        product = tl.load(x + at, mask=inside, other=0).to(WIDE) * tl.load(grad + at, mask=inside, other=0).to(WIDE)
        row = _features(gates, base, i, rows_in, c, CHANNELS_LAST, WIDE)
        in_rows = tl.sum(product * column[:, None, :], 2)
        tl.store(grad_gates + _at_features(base, i, c, CHANNELS_LAST), in_rows, mask=rows_in)
        total += product * row[:, :, None]
    tl.store(grad_gates + _at_features(base, h + j, c, CHANNELS_LAST), tl.sum(total, 1), mask=columns_in)


@triton.jit
def _shares(means, maxima, base, k, inside, ties, length, c, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr):
    """What every element of a row or column gets, and what each of its maxima gets besides.

    A maximum that is NaN, the only one that nothing equals, makes its whole row or column NaN: 0 / 0. (A comparison
    with 0 would give booleans, which Triton 3.6 may lay out wrongly among threads:
    https://github.com/triton-lang/triton/pull/9680.)
    """
    every = tl.zeros_like(ties)
    share = tl.zeros_like(ties)
    if means is not None:
        every += _features(means, base, k, inside, c, CHANNELS_LAST, WIDE) / length
    if maxima is not None:
        every += 0 / ties
        share = _features(maxima, base, k, inside, c, CHANNELS_LAST, WIDE) / ties
    return every, share


@triton.jit
def _pool_backward(
    x, grad, gates, maxima, grad_means, grad_maxima, result, c, h, w,
    STEP: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
    PLANES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    w = w * STEP
    begin, base, j, n_in, j_in, at_columns, stride_h = _tile(c, h, w, CHANNELS_LAST, PLANES, COLUMNS)
    x += begin
    result += begin
    if grad is not None:
        grad += begin
    columns_in = n_in[:, None] & j_in[None, :]
    ties_w = tl.full([PLANES, COLUMNS], 1, WIDE)
    if grad_maxima is not None:
        top_w = _features(maxima, base, h + j, columns_in, c, CHANNELS_LAST, WIDE)
        ties = tl.zeros([PLANES, ROWS, COLUMNS], tl.int32)
        for start in tl.range(0, h, ROWS, num_stages=STAGES):
            _, _, inside, down = _rows(start, h, n_in, j_in, stride_h, ROWS)
            v = tl.load(x + at_columns + down, mask=inside, other=0).to(WIDE)
            ties += (inside & (v == top_w[:, None, :])).to(tl.int32)
        ties_w = tl.sum(ties, 1).to(WIDE)
    every_w, share_w = _shares(grad_means, grad_maxima, base, h + j, columns_in, ties_w, h, c, CHANNELS_LAST, WIDE)
    if gates is not None:
        column = _features(gates, base, h + j, columns_in, c, CHANNELS_LAST, WIDE)
    for start in tl.range(0, h, ROWS, num_stages=STAGES):
        i, rows_in, inside, down = _rows(start, h, n_in, j_in, stride_h, ROWS)
        at = at_columns + down
        ties_h = tl.full([PLANES, ROWS], 1, WIDE)
        if grad_maxima is not None:
            v = tl.load(x + at, mask=inside, other=0).to(WIDE)
            in_row = v == _features(maxima, base, i, rows_in, c, CHANNELS_LAST, WIDE)[:, :, None]
            ties_h = tl.sum((inside & in_row).to(tl.int32), 2).to(WIDE)
        every_h, share_h = _shares(grad_means, grad_maxima, base, i, rows_in, ties_h, w, c, CHANNELS_LAST, WIDE)
        total = every_h[:, :, None] + every_w[:, None, :]
        if grad_maxima is not None:
            total += tl.where(in_row, share_h[:, :, None], 0.0)
            total += tl.where(v == top_w[:, None, :], share_w[:, None, :], 0.0)
        if grad is not None:
            incoming = tl.load(grad + at, mask=inside, other=0).to(WIDE)
            if gates is not None:
                row = _features(gates, base, i, rows_in, c, CHANNELS_LAST, WIDE)
                incoming = incoming * row[:, :, None] * column[:, None, :]
            total += incoming
        tl.store(result + at, total, mask=inside)
