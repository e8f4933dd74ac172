"""Pooling and gating with the torch kernels that are fastest for the layout of ``x``: the choice ``"torch"``.

Every tensor is seen in the order in which it lies in memory, ``(B, C, H, W)`` or ``(B, H, W, C)``, since reductions are
many times slower over a view whose innermost axis is not last. Every pass works on one piece of the batch at a time,
small enough to stay in cache, and in memory that is there already, while several operators go over it. Backward is in
float32 where ``x`` is narrower.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Elements of a piece: backward has some temporaries of that size, which fit into a shared cache of some MB together.
PIECE_FORWARD, PIECE_BACKWARD = 1 << 21, 1 << 18
NARROW = 12  # columns below which loops over a row are too short to vectorise, and x is turned around first


class _Order(NamedTuple):
    """An order of axes in memory: where height and width are."""

    h: int
    w: int

    def see(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` in this order; a copy only where it lies in the other."""
        return x.contiguous() if self is NCHW else x.permute(0, 2, 3, 1).contiguous()

    def rows_and_columns(self, x: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Of ``(B, C, H + W)``, one value for every line, those of the rows and of the columns, in this order and to be
        broadcast along the lines."""
        rows, columns = torch.split(values, list(x.shape[2:]), dim=2)
        if self is NHWC:
            rows, columns = rows.transpose(1, 2), columns.transpose(1, 2)
        return rows.contiguous().unsqueeze(self.w), columns.contiguous().unsqueeze(self.h)

    def values(self, lines: Tensor, axis: int) -> Tensor:
        """``(B, C, n)`` from one value for every line along ``axis``."""
        lines = lines.squeeze(axis)
        return lines if self is NCHW else lines.transpose(1, 2)


NCHW, NHWC = _Order(2, 3), _Order(1, 2)


def refuses(x: Tensor) -> str | None:
    """Why this implementation cannot take ``x``."""
    return None if x.dtype.is_floating_point else f"it needs floating point, got {x.dtype}"


def pool(x: Tensor, kind: str, keep_peaks: bool) -> tuple[Tensor, Tensor | None]:
    """Descriptors of all lines, and their maxima where these are kept and ``kind`` has any."""
    order = _order_to_reduce(x)
    reductions = [(reduce, axis) for reduce in _REDUCTIONS[kind] for axis in (order.w, order.h)]
    by_piece = []
    for piece in _pieces(x, PIECE_FORWARD):
        x_ = order.see(x[piece])
        by_piece.append([reduce(x_, axis, order) for reduce, axis in reductions])
    found = [
        order.values(torch.cat(lines) if len(lines) > 1 else lines[0], axis)
        for lines, (_, axis) in zip(zip(*by_piece, strict=True), reductions, strict=True)
    ]
    peaks = torch.cat(found[-2:], dim=2) if kind != "avg" and keep_peaks else None
    if kind == "avg+max":
        found = [mean.add_(peak) for mean, peak in zip(found[:2], found[2:], strict=True)]
    return torch.cat(found, dim=2), peaks


def gate(x: Tensor, gates: Tensor) -> Tensor:
    """``x`` gated along both axes."""
    y = torch.empty_like(x)
    order = _order(x)
    rows, columns = order.rows_and_columns(x, gates)
    for piece in _pieces(x, PIECE_FORWARD):
        torch.mul(order.see(x[piece]), rows[piece], out=order.see(y[piece])).mul_(columns[piece])
    return y


def gate_backward(grad: Tensor, x: Tensor, gates: Tensor) -> Tensor:
    """Gradient of the gates."""
    grad_gates = torch.empty_like(gates)
    grad_h, grad_w = torch.split(grad_gates, list(x.shape[2:]), dim=2)
    order, turned = _order(x), _order_to_reduce(x)
    rows, columns = turned.rows_and_columns(x, _wide(gates))
    memory = _memory(x), _memory(x)
    for piece in _pieces(x, PIECE_BACKWARD):
        x_, grad_ = _wide(order.see(x[piece])), _wide(order.see(grad[piece]))
        product = torch.mul(grad_, x_, out=_shaped(memory[0], x_))
        if turned is not order:
            product = turned.see(product)
        weighted = torch.mul(product, columns[piece], out=_shaped(memory[1], product))
        grad_h[piece] = turned.values(weighted.sum(turned.w, keepdim=True), turned.w)
        torch.mul(product, rows[piece], out=weighted)
        grad_w[piece] = turned.values(weighted.sum(turned.h, keepdim=True), turned.h)
    return grad_gates


def pool_backward(
    x: Tensor, peaks: Tensor | None, grad_pooled: Tensor, kind: str, grad: Tensor | None, gates: Tensor | None
) -> Tensor:
    """Gradient of the pools, plus ``grad``, which is gated first where ``gates`` are given."""
    result = torch.empty_like(x)
    order, turned = _order(x), _order_to_reduce(x)
    # Of rows, then of columns: what their maxima share, what all their elements get, their maxima.
    axes, lengths = (turned.w, turned.h), (x.shape[3], x.shape[2])
    shares = turned.rows_and_columns(x, _wide(grad_pooled))
    means = [torch.zeros_like(s) if kind == "max" else s / n for s, n in zip(shares, lengths, strict=True)]
    tops = None if peaks is None else turned.rows_and_columns(x, _wide(peaks))
    if gates is not None:
        rows, columns = order.rows_and_columns(x, _wide(gates))
    memory = _memory(x), _memory(x)
    for piece in _pieces(x, PIECE_BACKWARD):
        x_ = _wide(turned.see(x[piece]))
        total, other = _shaped(memory[0], x_), _shaped(memory[1], x_)
        if tops is None:
            torch.add(means[0][piece], means[1][piece], out=total)
        else:
            # The share of rows goes with the mean of columns, and the other way round: an operator with two factors
            # that are constant along a row is not vectorised. Nor is a boolean mask: so ties are compared into floats.
            for axis, share, mean, top, part in zip(axes, shares, reversed(means), tops, (total, other), strict=True):
                torch.eq(x_, top[piece], out=part)
                torch.addcmul(mean[piece], part, share[piece] / part.sum(axis, keepdim=True), out=part)
            total.add_(other)
        into = order.see(result[piece])
        if turned is not order:  # adding what lies in another order would cost more than this copy
            total, other = _shaped(memory[1], into).copy_(total.permute(0, 3, 1, 2)), _shaped(memory[0], into)
        if grad is None:
            into.copy_(total)
            continue
        grad_ = _wide(order.see(grad[piece]))
        out = into if into.dtype == total.dtype else total
        if gates is None:
            torch.add(total, grad_, out=out)
        else:
            torch.addcmul(total, grad_, torch.mul(rows[piece], columns[piece], out=other), out=out)
        if out is not into:
            into.copy_(out)
    return result


def _pieces(x: Tensor, size: int) -> list[slice]:
    step = max(1, size // max(1, x[:1].numel()))
    return [slice(start, start + step) for start in range(0, max(1, x.shape[0]), step)]


def _memory(x: Tensor) -> Tensor:
    """Memory for a piece in backward: to have it once is faster than to have it anew for every piece."""
    return torch.empty(x[_pieces(x, PIECE_BACKWARD)[0]].numel(), dtype=_wide(x[:0]).dtype, device=x.device)


def _shaped(memory: Tensor, like: Tensor) -> Tensor:
    return memory[: like.numel()].view(like.shape)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize < 4 else x


def _order(x: Tensor) -> _Order:
    return NCHW if x.is_contiguous() else NHWC


def _order_to_reduce(x: Tensor) -> _Order:
    return NCHW if x.is_contiguous() and x.shape[3] >= NARROW else NHWC


def _mean(x: Tensor, axis: int, _: _Order) -> Tensor:
    return x.mean(axis, keepdim=True)


def _max(x: Tensor, axis: int, order: _Order) -> Tensor:
    if order is NHWC:
        return x.amax(axis, keepdim=True)
    b, c, h, w = x.shape
    if axis == order.w:
        return F.max_pool1d(x.view(b, c, h * w), w).unsqueeze(3)  # up to seven times as fast as amax
    best = x
    while h > 1:  # halve the rows until one is left: each step is a vectorised elementwise maximum
        half, odd = divmod(h, 2)
        upper = best[:, :, :half] if best is not x else x.new_empty(b, c, half, w)
        torch.maximum(best[:, :, :half], best[:, :, half : 2 * half], out=upper)
        if odd:
            torch.maximum(upper[:, :, :1], best[:, :, -1:], out=upper[:, :, :1])
        best, h = upper, half
    return best.clone()


_Reduce = Callable[[Tensor, int, _Order], Tensor]
_REDUCTIONS: dict[str, tuple[_Reduce, ...]] = {"avg": (_mean,), "max": (_max,), "avg+max": (_mean, _max)}
