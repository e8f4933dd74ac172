"""Pooling and gating with the torch kernels that are fastest for the layout of ``x``: the choice ``"torch"``.

``mean`` and ``amax`` are slow on CPU where the reduced axis is not the innermost, and twenty times slower still in
channels_last, where the pooling kernels are not. Every pass works on one piece of the batch at a time, small enough to
stay in cache, and in memory that is there already, while several operators go over it. Backward is in float32 where
``x`` is narrower.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Elements of a piece: backward has some temporaries of that size, which fit into a shared cache of some MB together.
PIECE_FORWARD, PIECE_BACKWARD = 1 << 21, 1 << 19
NARROW = 32  # columns below which loops over a row are too short to vectorise, and x is turned to channels_last first


def refuses(x: Tensor) -> str | None:
    """Why this implementation cannot take ``x``."""
    return None if x.dtype.is_floating_point else f"it needs floating point, got {x.dtype}"


def pool(x: Tensor, kind: str) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Descriptors of the rows and the columns, and their maxima where ``kind`` has any."""
    by_piece = [_statistics(x[piece], kind) for piece in _pieces(x, PIECE_FORWARD)]
    found = [torch.cat(values) if len(values) > 1 else values[0] for values in zip(*by_piece, strict=True)]
    if kind == "avg":
        return found[0], found[1], [None, None]
    peaks = found[-2:]
    pooled_h, pooled_w = (
        peak.clone() if kind == "max" else peak + mean for peak, mean in zip(peaks, found[:2], strict=True)
    )
    return pooled_h, pooled_w, [*peaks]


def _statistics(x: Tensor, kind: str) -> list[Tensor]:
    """Means of rows and columns where ``kind`` has any, then their maxima."""
    if x.shape[3] < NARROW:
        x = x.contiguous(memory_format=torch.channels_last)
    reductions = {"avg": [_mean], "max": [_max], "avg+max": [_mean, _max]}[kind]
    return [reduce(x, dim).squeeze(dim) for reduce in reductions for dim in (3, 2)]


def gate(x: Tensor, gate_h: Tensor, gate_w: Tensor) -> Tensor:
    """``x`` gated along both axes."""
    y = torch.empty_like(x)
    rows, columns = _like(x, gate_h, 3), _like(x, gate_w, 2)
    for piece in _pieces(x, PIECE_FORWARD):
        torch.mul(x[piece], rows[piece], out=y[piece]).mul_(columns[piece])
    return y


def gate_backward(grad: Tensor, x: Tensor, gate_h: Tensor, gate_w: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the gates."""
    grad_h, grad_w = torch.empty_like(gate_h), torch.empty_like(gate_w)
    for piece in _pieces(x, PIECE_BACKWARD):
        x_, grad_ = _wide(x[piece]), _wide(grad[piece])
        product = grad_ * x_
        buffer = product * _like(x_, gate_w[piece], 2)
        grad_h[piece] = _sum(buffer, 3).squeeze(3)
        torch.mul(product, _like(x_, gate_h[piece], 3), out=buffer)
        grad_w[piece] = _sum(buffer, 2).squeeze(2)
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
    result = torch.empty_like(x)
    for piece in _pieces(x, PIECE_BACKWARD):
        x_ = _wide(x[piece])
        if grad is None:
            total = torch.zeros_like(x_)
        elif gates is None:
            total = _wide(grad[piece]).clone(memory_format=torch.preserve_format)
        else:
            total = gate(_wide(grad[piece]), gates[0][piece], gates[1][piece])
        for dim, peak, grad_pooled in zip((3, 2), peaks, grads, strict=True):
            if grad_pooled is None:
                continue
            share = _like(x_, grad_pooled[piece], dim)
            if kind != "max":
                total.add_(share, alpha=1 / x.shape[dim])
            if peak is not None:
                # Comparing into a float tensor is what vectorises; a boolean mask would be five times slower.
                ties = torch.eq(x_, _like(x_, peak[piece], dim), out=torch.empty_like(x_))
                total.addcmul_(ties, share / _sum(ties, dim))
        result[piece] = total
    return result


def _pieces(x: Tensor, size: int) -> list[slice]:
    step = max(1, size // max(1, x[:1].numel()))
    return [slice(start, start + step) for start in range(0, max(1, x.shape[0]), step)]


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize < 4 else x


def _like(x: Tensor, values: Tensor, dim: int) -> Tensor:
    """Unsqueeze ``values`` and give them the dtype and layout of ``x``: mixed layouts cost four times as much."""
    values = values.unsqueeze(dim).to(x.dtype)
    return values.contiguous() if x.is_contiguous() else values.contiguous(memory_format=torch.channels_last)


def _window(x: Tensor, dim: int) -> tuple[int, int]:
    return (x.shape[2], 1) if dim == 2 else (1, x.shape[3])


def _mean(x: Tensor, dim: int) -> Tensor:
    return x.mean(dim, keepdim=True) if x.is_contiguous() else F.avg_pool2d(x, _window(x, dim))


def _sum(x: Tensor, dim: int) -> Tensor:
    if x.is_contiguous():
        return x.sum(dim, keepdim=True)
    return F.avg_pool2d(x, _window(x, dim), divisor_override=1)


def _max(x: Tensor, dim: int) -> Tensor:
    if not x.is_contiguous():
        return F.max_pool2d(x, _window(x, dim))
    if dim == 3:
        return x.amax(3, keepdim=True)
    while x.shape[2] > 1:  # halve the rows until one is left: each step is a vectorised elementwise maximum
        half = x.shape[2] // 2
        upper = torch.maximum(x[:, :, :half], x[:, :, half : 2 * half])
        if x.shape[2] % 2:
            upper[:, :, :1] = torch.maximum(upper[:, :, :1], x[:, :, -1:])
        x = upper
    return x.clone() if x._base is not None else x
