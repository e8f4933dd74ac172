"""The backend ``"torch"``: torch's own kernels, in fewer passes than autograd takes over the plain formula.

It computes in the order in which ``x`` lies in memory, since reductions are many times slower over a view whose
innermost axis is not last, and in backward one image after the other, which stays in cache while several operators go
over it. Backward is in float32 where ``x`` is in reduced precision.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from gca.ops.layout import dense_features

DIFFERENTIABLE = False


def unsupported(device: torch.device, dtype: torch.dtype, shape: torch.Size) -> str | None:
    """Why this backend cannot take an ``x`` of this kind."""
    return None if dtype.is_floating_point else f"it needs floating point, got {dtype}"


def pool(x: Tensor, kind: str) -> tuple[Tensor | None, Tensor | None]:
    """Means and maxima of every row and column; ``None`` for what ``kind`` has not."""
    if not x.is_contiguous():
        x = _in_order(x)  # (B, H, W, C)
        means = None if kind == "max" else torch.cat((x.mean(2), x.mean(1)), dim=1).transpose(1, 2)
        maxima = None if kind == "avg" else torch.cat((x.amax(2), x.amax(1)), dim=1).transpose(1, 2)
        return means, maxima
    b, c, h, w = x.shape
    means = None if kind == "max" else torch.cat((x.mean(3), x.mean(2)), dim=2)
    if kind == "avg":
        return means, None
    planes = x.view(b, c, h * w)  # pooled up to seven times as fast as by amax
    return means, torch.cat((F.max_pool1d(planes, w), F.max_pool1d(planes, h, stride=1, dilation=w)), dim=2)


def gate(x: Tensor, gates: Tensor) -> Tensor:
    """``x`` gated along both axes."""
    gate_h, gate_w = _rows_and_columns(gates, x, x.dtype)
    y = torch.empty_like(x)
    torch.mul(_in_order(x), gate_h, out=_in_order(y)).mul_(gate_w)
    return y


def gate_backward(grad: Tensor, x: Tensor, gates: Tensor) -> Tensor:
    """Gradient of the gates."""
    wide = _wide(x.dtype)
    gate_h, gate_w = _rows_and_columns(gates, x, wide)
    product = _in_order(x).to(wide) * _in_order(grad)
    if x.is_contiguous():  # each plane is a matrix, and its products with vectors are faster
        with torch.autocast(x.device.type, enabled=False):  # it may be on in backward, and would round them
            grads = torch.cat((product @ gate_w.mT, (gate_h.mT @ product).mT), dim=2)
        return grads.squeeze(3).to(x.dtype)
    grads = torch.cat(((product * gate_w).sum(2), (product * gate_h).sum(1)), dim=1)
    return grads.transpose(1, 2).to(x.dtype)


def pool_backward(
    x: Tensor,
    maxima: Tensor | None,
    grad_means: Tensor | None,
    grad_maxima: Tensor | None,
    grad: Tensor | None,
    gates: Tensor | None,
) -> Tensor:
    """Gradient of the means and maxima that have one, plus ``grad``, gated first where ``gates`` are given."""
    wide, axis_h = _wide(x.dtype), 1 if x.is_contiguous() else 0  # of one image, in order
    result = torch.empty_like(x)
    small = [None if t is None else _rows_and_columns(t, x, wide) for t in (grad_means, grad_maxima, maxima, gates)]
    for n, (image, into) in enumerate(zip(_in_order(x), _in_order(result), strict=True)):
        means_, shares, tops, gates_ = (None if t is None else (t[0][n], t[1][n]) for t in small)
        total = torch.zeros_like(image, dtype=wide)
        if means_ is not None:
            torch.add(means_[0] / x.shape[3], means_[1] / x.shape[2], out=total)
        if shares is not None:
            assert tops is not None  # maxima were saved where they have a gradient
            for axis, share, top in zip((axis_h + 1, axis_h), shares, tops, strict=True):
                ties = torch.eq(image, top, out=torch.empty_like(total))  # into floats: a mask is not vectorised
                total.addcmul_(ties, share / ties.sum(axis, keepdim=True))
        if grad is not None:
            received = _in_order(grad)[n].to(wide)
            total.add_(received) if gates_ is None else total.addcmul_(received, gates_[0] * gates_[1])
        into.copy_(total)
    return result


def _in_order(x: Tensor) -> Tensor:
    """``(B, C, H, W)``, or ``(B, H, W, C)`` of an ``x`` in channels_last."""
    return x if x.is_contiguous() else x.permute(0, 2, 3, 1)


def _rows_and_columns(features: Tensor, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Features of rows and of columns, each to be broadcast over ``x`` in order."""
    along = 2 if x.is_contiguous() else 1
    rows, columns = torch.split(dense_features(features.to(dtype), x), list(x.shape[2:]), dim=along)
    return rows.unsqueeze(along + 1), columns.unsqueeze(along)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.itemsize < 4 else dtype
