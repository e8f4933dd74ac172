"""Pooling and gating with the torch kernels that are fastest for the layout of ``x``: the choice ``"torch"``.

``x`` is computed with in the order in which it lies in memory, ``(B, C, H, W)`` or ``(B, H, W, C)``, since reductions
are many times slower over a view whose innermost axis is not last. Narrow planes are turned around first: torch's loops
over their rows are too short to be vectorised. Every pass works on one piece at a time, small enough to stay in cache,
and in memory that is there already, while several operators go over it. Backward is in float32 where ``x`` is narrower.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Elements of a piece: backward has some temporaries of that size, which fit into a shared cache of some MB together.
PIECE_FORWARD, PIECE_BACKWARD = 1 << 20, 1 << 19
TOGETHER = (64, 32, 16)  # planes that are turned around with one another: of more, elements collide in cache
# Bytes of a row below which planes are turned around, and below which rows are filled with what they are compared to.
NARROW_FORWARD, NARROW_BACKWARD, SHORT = 128, 64, 128


class _Order(NamedTuple):
    """The order of axes that a piece is computed in: where height is, along which lines are listed, and width."""

    h: int
    w: int
    turned: bool = False  # x lies in the other order

    def see(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` in this order: a view, or a copy if turned."""
        if self.turned:
            b, c, h, w = x.shape
            return _transposed(x.view(b, c, h * w)).view(b, h, w, c)
        return x if self is NCHW else x.permute(0, 2, 3, 1)

    def unsee(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` from this order, likewise."""
        if self.turned:
            b, h, w, c = x.shape
            return _transposed(x.view(b, h * w, c)).view(b, c, h, w)
        return x if self is NCHW else x.permute(0, 3, 1, 2)

    def lines(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Memory for one value for every line of ``x``."""
        b, c, h, w = x.shape
        return torch.empty((b, c, h + w) if self is NCHW else (b, h + w, c), dtype=dtype, device=x.device)

    def split(self, x: Tensor, lines: Tensor) -> tuple[Tensor, Tensor]:
        """Those of rows and those of columns, to be broadcast along them."""
        rows, columns = torch.split(lines, list(x.shape[2:]), dim=self.h)
        return rows.unsqueeze(self.w), columns.unsqueeze(self.h)

    def factors(self, x: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, C, H + W)`` likewise, each on its own in memory."""
        values = values.reshape(*x.shape[:2], x.shape[2] + x.shape[3])
        rows, columns = self.split(x, values if self is NCHW else _transposed(values))
        return rows.contiguous(), columns.contiguous()

    def values(self, lines: Tensor, x: Tensor) -> Tensor:
        """``(B, C, H + W)`` of an ``x`` with these lines."""
        if self is not NCHW:
            lines = _transposed(lines) if self.turned else lines.transpose(1, 2)
        return lines.reshape(*x.shape[:2], x.shape[2] + x.shape[3])


NCHW, NHWC, TURNED = _Order(2, 3), _Order(1, 2), _Order(1, 2, turned=True)


def refuses(x: Tensor) -> str | None:
    """Why this implementation cannot take ``x``."""
    return None if x.dtype.is_floating_point else f"it needs floating point, got {x.dtype}"


def pool(x: Tensor, kind: str, keep_peaks: bool) -> tuple[Tensor, Tensor | None]:
    """Descriptors of all lines, and their maxima where these are kept and ``kind`` has any."""
    order, planes = _arranged(x, x.dtype, NARROW_FORWARD)
    found = [order.lines(planes, x.dtype) for _ in _REDUCTIONS[kind]]
    into = [part for lines in found for part in order.split(planes, lines)]
    for x_, *into_ in _pieces(PIECE_FORWARD, planes, *into):
        x_ = order.see(x_)
        for reduce, rows, columns in zip(_REDUCTIONS[kind], into_[::2], into_[1::2], strict=True):
            reduce(x_, order.w, order, rows)
            reduce(x_, order.h, order, columns)
    peaks = order.values(found[-1], x) if kind != "avg" and keep_peaks else None
    if kind == "avg+max":
        found[0] += found[1]
    return order.values(found[0], x), peaks


def gate(x: Tensor, gates: Tensor) -> Tensor:
    """``x`` gated along both axes."""
    y = torch.empty_like(x)
    order = NCHW if x.is_contiguous() else NHWC
    for x_, y_, rows, columns in _pieces(PIECE_FORWARD, x, y, *order.factors(x, gates)):
        torch.mul(order.see(x_), rows, out=order.see(y_)).mul_(columns)
    return y


def gate_backward(grad: Tensor, x: Tensor, gates: Tensor) -> Tensor:
    """Gradient of the gates."""
    order, planes = _arranged(x, _wide_type(x), NARROW_BACKWARD)
    grads = grad.view(planes.shape)
    found = order.lines(planes, _wide_type(x))
    memory = _memory(planes), _memory(planes)
    for x_, grad_, rows, columns, into_rows, into_columns in _pieces(
        PIECE_BACKWARD, planes, grads, *order.factors(planes, _wide(gates)), *order.split(planes, found)
    ):
        product = order.see(torch.mul(_wide(grad_), _wide(x_), out=_shaped(memory[0], x_)))
        if order is NCHW:  # each plane is a matrix, and its products with vectors are faster
            with torch.autocast(x.device.type, enabled=False):  # it may be on in backward, and would narrow them
                into_rows.copy_((columns @ product.mT).mT)
                into_columns.copy_(rows.mT @ product)
        else:
            weighted = torch.mul(product, columns, out=_shaped(memory[1], product))
            torch.sum(weighted, order.w, keepdim=True, out=into_rows)
            torch.mul(product, rows, out=weighted)
            torch.sum(weighted, order.h, keepdim=True, out=into_columns)
    return order.values(found, x).to(x.dtype)


def pool_backward(
    x: Tensor, peaks: Tensor | None, grad_pooled: Tensor, kind: str, grad: Tensor | None, gates: Tensor | None
) -> Tensor:
    """Gradient of the pools, plus ``grad``, which is gated first where ``gates`` are given."""
    result = torch.empty_like(x)
    order, planes = _arranged(x, _wide_type(x), NARROW_BACKWARD)
    large = [result.view(planes.shape), None if grad is None else grad.view(planes.shape)]
    share_h, share_w = order.factors(planes, _wide(grad_pooled))  # what the maxima of a row or column share
    mean_h, mean_w = share_h / x.shape[3], share_w / x.shape[2]  # what each of its elements gets
    if kind == "max":
        mean_h, mean_w = torch.zeros_like(share_h), torch.zeros_like(share_w)
    top_h, top_w = (None, None) if peaks is None else order.factors(planes, _wide(peaks))
    gate_h, gate_w = (None, None) if gates is None else order.factors(planes, _wide(gates))
    small = [share_h, share_w, mean_h, mean_w, top_h, top_w, gate_h, gate_w]
    no_nan = peaks is not None and not peaks.sum().isnan()
    at_once = not order.turned and x.dtype == _wide_type(x)  # the last operator can write the result
    memory = _memory(planes), _memory(planes)
    for x_, into, grad_, share_h, share_w, mean_h, mean_w, top_h, top_w, gate_h, gate_w in _pieces(
        PIECE_BACKWARD, planes, *large, *small
    ):
        x_ = order.see(_wide(x_))
        total, other = _shaped(memory[0], x_), _shaped(memory[1], x_)
        if top_h is None:
            torch.add(mean_h, mean_w, out=total)
        else:  # shares of rows with means of columns: two factors that are constant along a row are not vectorised
            _share(x_, top_h, share_h, mean_w, order.w, no_nan, total)
            _share(x_, top_w, share_w, mean_h, order.h, no_nan, other)
            total.add_(other)
        if grad_ is not None:
            grad_, out = order.see(_wide(grad_)), order.see(into) if at_once else total
            if gate_h is None:
                torch.add(total, grad_, out=out)
            else:
                torch.addcmul(total, grad_, torch.mul(gate_h, gate_w, out=other), out=out)
        if grad_ is None or not at_once:
            into.copy_(order.unsee(total))
    return result


def _share(x: Tensor, top: Tensor, share: Tensor, mean: Tensor, axis: int, no_nan: bool, into: Tensor) -> None:
    """``mean``, and to where lines along ``axis`` equal their ``top`` an equal part of their ``share``."""
    if top.shape[3] == 1 and x.shape[3] * x.itemsize < SHORT:
        top = into.copy_(top)  # without vectors torch compares with branches, which are often mispredicted
    torch.eq(x, top, out=into)  # into floats: a boolean mask is not vectorised
    # Ties are rare, and faster to rule out for all lines together. Where a top is NaN, no element equals it.
    if not no_nan or into.sum().item() != share.numel():
        share = share / into.sum(axis, keepdim=True)
    torch.addcmul(mean, into, share, out=into)


def _arranged(x: Tensor, dtype: torch.dtype, narrow: int) -> tuple[_Order, Tensor]:
    """The order to compute in; and ``x``, in NCHW as if each plane were an image, or as planes to be turned together,
    which they are where a row has fewer than ``narrow`` bytes in the ``dtype`` of the computation."""
    if not x.is_contiguous():
        return NHWC, x
    b, c, h, w = x.shape
    if w * dtype.itemsize >= narrow:
        return NCHW, x.view(b * c, 1, h, w)
    together = next(n for n in (*TOGETHER, c) if b * c % n == 0)
    return TURNED, x.view(b * c // together, together, h, w)


def _transposed(x: Tensor) -> Tensor:
    """``(B, M, N)`` to ``(B, N, M)``, contiguous.

    Shuffling ``M`` groups of ``N`` channels that are innermost does that, and is the one operator of torch that moves
    whole vectors then: up to 20 times as fast as a copy.
    """
    turned = x.transpose(1, 2)
    if turned.is_contiguous():
        return turned
    b, m, n = x.shape
    return F.channel_shuffle(x.reshape(b, 1, 1, m * n).permute(0, 3, 1, 2), m).permute(0, 2, 3, 1).reshape(b, n, m)


def _pieces(size: int, x: Tensor, *others: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """All of these, so many images at a time that ``x`` has about ``size`` elements."""
    images = max(1, x.shape[0])
    step = -(-images // max(1, round(x.numel() / size)))  # all about as large: a small rest would cost as many calls
    for start in range(0, images, step):
        yield tuple(t if t is None else t[start : start + step] for t in (x, *others))


def _memory(x: Tensor) -> Tensor:
    """Memory for a piece in backward: to have it once is faster than to have it anew for every piece."""
    (piece,) = next(_pieces(PIECE_BACKWARD, x))
    return torch.empty(piece.numel(), dtype=_wide_type(x), device=x.device)


def _shaped(memory: Tensor, like: Tensor) -> Tensor:
    return memory.as_strided(like.shape, like.stride())


def _wide_type(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype.itemsize < 4 else x.dtype


def _wide(x: Tensor) -> Tensor:
    return x.to(_wide_type(x))


def _mean(x: Tensor, axis: int, _: _Order, into: Tensor) -> None:
    torch.mean(x, axis, keepdim=True, out=into)


def _max(x: Tensor, axis: int, order: _Order, into: Tensor) -> None:
    if order is not NCHW:
        torch.amax(x, axis, keepdim=True, out=into)
        return
    b, c, h, w = x.shape
    planes = x.view(b, c, h * w)  # pooled up to seven times as fast as by amax
    best = F.max_pool1d(planes, w) if axis == order.w else F.max_pool1d(planes, h, stride=1, dilation=w)
    into.copy_(best.view(into.shape))


_Reduce = Callable[[Tensor, int, _Order, Tensor], None]
_REDUCTIONS: dict[str, tuple[_Reduce, ...]] = {"avg": (_mean,), "max": (_max,), "avg+max": (_mean, _max)}
