"""The backend ``"plain"``, torch operators alone: any device, any dtype, traceable, scriptable, exportable.

A traced or compiled graph always holds these, so that its compiler can fuse them with what comes before and after.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gca.ops.tracing import compiling, transformed

DIFFERENTIABLE = True


def pool(x: Tensor, kind: str, axes: int = 2) -> tuple[Tensor | None, Tensor | None]:
    """Means and maxima along each of so many axes, ``(B, C, H + W)``; ``None`` for what ``kind`` has not."""
    along = 2
    # torch.compile lays convolutions out in channels_last, whatever the layout of x. Reduced in that order, it need not
    # stride from channel to channel. An exported graph may run on either layout.
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        pass
    elif compiling():
        x, along = x.movedim(1, -1), 1
    means: list[Tensor] = []
    maxima: list[Tensor] = []
    for others in _others(axes, along):
        if kind != "max":
            means.append(x.mean(others))
        if kind != "avg":
            maxima.append(_maxima(x, others))
    return _side_by_side(means, along), _side_by_side(maxima, along)


def _maxima(x: Tensor, others: list[int]) -> Tensor:
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return x.amax(others)
    else:
        # The gradient of amax counts ties in int64, which Inductor does not vectorise: on two CPU cores, a compiled
        # layer trains up to 1.6 times as fast with this one. torch.func knows no such Function without more ado.
        return _Maxima.apply(x, others) if compiling() and not transformed() else x.amax(others)


class _Maxima(Function):
    """``x.amax(others)``, whose gradient counts ties in floating point."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, others: list[int]) -> Tensor:
        maxima = x.amax(others, keepdim=True)
        ctx.save_for_backward(x, maxima)
        ctx.others = others
        return maxima.squeeze(others)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, maxima = ctx.saved_tensors
        return _shared(grad.view_as(maxima), x, maxima, ctx.others), None


def _shared(grad: Tensor, x: Tensor, maxima: Tensor, others: list[int]) -> Tensor:
    """The gradient of maxima over some axes, which are kept: equal shares for the positions that attain them."""
    ties = (x == maxima).to(torch.promote_types(x.dtype, torch.float32))
    return (ties * (grad / ties.sum(others, keepdim=True))).to(x.dtype)


def _others(axes: int, first: int) -> list[list[int]]:
    """For each of so many axes, the others."""
    result: list[list[int]] = []
    for axis in range(first, first + axes):
        others: list[int] = []
        for other in range(first, first + axes):
            if other != axis:
                others.append(other)  # TorchScript knows no comprehension with a condition
        result.append(others)
    return result


def _side_by_side(features: list[Tensor], along: int) -> Tensor | None:
    if len(features) == 0:
        return None
    joined = torch.cat(features, dim=along)
    return joined if along == 2 else joined.transpose(1, 2)


def combine(means: Tensor | None, maxima: Tensor | None) -> Tensor:
    """The pooled features: means, maxima, or the sum of both, in float32 where these are float16, which may overflow.

    (In bfloat16 the sum is computed in float32 anyway. Nobody knows the dtype of what FX traces: it stays as it is.)
    """
    if means is not None and maxima is not None:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            pass
        elif not isinstance(means, torch.fx.Proxy) and means.dtype == torch.float16:
            return means.float() + maxima.float()
        return means + maxima
    if means is not None:
        return means
    if maxima is not None:
        return maxima
    raise ValueError("nothing to combine: there are neither means nor maxima")


def gate(x: Tensor, gates: Tensor, axes: int = 2) -> Tensor:
    """Gate every position by its place along each of so many axes; ``gates`` are ``(B, C, H + W)``."""
    sizes: list[int] = []
    for axis in range(2, 2 + axes):
        sizes.append(x.shape[axis])  # FX takes a list of numbers that it does not know
    parts = torch.split(gates, sizes, dim=2)
    for i, others in enumerate(_others(axes, 2)):
        part = parts[i]
        for other in others:
            part = part.unsqueeze(other)
        x = x * part
    return x


def pool_backward(x: Tensor, maxima: Tensor | None, grad_means: Tensor | None, grad_maxima: Tensor | None) -> Tensor:
    """Gradient of :func:`pool`, itself differentiable; ``maxima`` are needed where they have a gradient."""
    sizes = list(x.shape[2:])
    total = torch.zeros_like(x)
    if grad_means is not None:
        grad_h, grad_w = torch.split(grad_means, sizes, dim=2)
        total = total + (grad_h / x.shape[3]).unsqueeze(3) + (grad_w / x.shape[2]).unsqueeze(2)
    if grad_maxima is not None and maxima is not None:
        parts = torch.split(maxima.detach(), sizes, dim=2), torch.split(grad_maxima, sizes, dim=2)
        for dim, top, grad in zip((3, 2), *parts, strict=True):
            total = total + _shared(grad.unsqueeze(dim), x, top.unsqueeze(dim), [dim])
    return total


def gate_backward(grad: Tensor, x: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`gate` with respect to ``x`` and the gates, themselves differentiable."""
    gate_h, gate_w = torch.split(gates, list(x.shape[2:]), dim=2)
    product = grad * x
    grad_h = (product * gate_w.unsqueeze(2)).sum(3)
    grad_w = (product * gate_h.unsqueeze(3)).sum(2)
    return gate(grad, gates), torch.cat((grad_h, grad_w), dim=2)
