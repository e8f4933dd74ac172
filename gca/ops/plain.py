"""The backend ``"plain"``, torch operators alone: any device, any dtype, traceable, scriptable, exportable.

A traced or compiled graph always holds these, so that its compiler can fuse them with what comes before and after.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gca.ops.tracing import compiling, transformed

DIFFERENTIABLE = True


def pool(x: Tensor, kind: str, axes: int = 2) -> tuple[Tensor | None, Tensor | None]:
    """Means and maxima along each of so many axes, ``(B, C, H + W)``; ``None`` for what ``kind`` has not."""
    # With all axes kept, Inductor reduces an x in channels_last in the order of memory, mean and maximum in one loop.
    means: list[Tensor] = []
    maxima: list[Tensor] = []
    for axis, others in enumerate(_others(axes)):
        if kind != "max":
            means.append(x.mean(others, keepdim=True).transpose(2, 2 + axis))
        if kind != "avg":
            maxima.append(_maxima(x, others).transpose(2, 2 + axis))
    return _side_by_side(means), _side_by_side(maxima)


def _maxima(x: Tensor, others: list[int]) -> Tensor:
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return x.amax(others, keepdim=True)
    else:
        return _Maxima.apply(x, others) if _for_inductor() else x.amax(others, keepdim=True)


def _for_inductor() -> bool:
    """Whether gradients are best told to the compiler; torch.func and forward mode know no such Functions."""
    return compiling() and not transformed()


class _Maxima(Function):
    """``x.amax(others)``, whose gradient counts ties in floating point. That of torch counts them in int64, which
    Inductor does not vectorise: on two CPU cores, a compiled layer trains up to 1.6 times as fast with this one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, others: list[int]) -> Tensor:
        maxima = x.amax(others, keepdim=True)
        ctx.save_for_backward(x, maxima)
        ctx.others = others
        return maxima

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, maxima = ctx.saved_tensors
        return _shared(grad, x, maxima, ctx.others), None


def _shared(grad: Tensor, x: Tensor, maxima: Tensor, others: list[int]) -> Tensor:
    """The gradient of maxima over some axes, which are kept: equal shares for the positions that attain them."""
    ties = (x == maxima).to(torch.promote_types(x.dtype, torch.float32))
    return (ties * (grad / ties.sum(others, keepdim=True))).to(x.dtype)


def _others(axes: int) -> list[list[int]]:
    """For each of so many spatial axes, the others."""
    result: list[list[int]] = []
    for axis in range(2, 2 + axes):
        others: list[int] = []
        for other in range(2, 2 + axes):
            if other != axis:
                others.append(other)  # TorchScript knows no comprehension with a condition
        result.append(others)
    return result


def _side_by_side(features: list[Tensor]) -> Tensor | None:
    return torch.cat(features, dim=2).flatten(2) if len(features) > 0 else None


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
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return _gate(x, gates, axes)
    else:
        return _Gate.apply(x, gates, axes) if _for_inductor() else _gate(x, gates, axes)


def _gate(x: Tensor, gates: Tensor, axes: int) -> Tensor:
    for part in _by_axis(gates, x, axes):
        x = x * part
    return x


def _by_axis(features: Tensor, x: Tensor, axes: int) -> list[Tensor]:
    """The features of each axis, to be broadcast over ``x``."""
    sizes: list[int] = []
    for axis in range(2, 2 + axes):
        sizes.append(x.shape[axis])  # FX takes a list of numbers that it does not know
    parts = torch.split(features, sizes, dim=2)
    result: list[Tensor] = []
    for i, others in enumerate(_others(axes)):
        part = parts[i]
        for other in others:
            part = part.unsqueeze(other)
        result.append(part)
    return result


class _Gate(Function):
    """``_gate``, for whose gradient no product of ``x`` with some of the gates is saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gates: Tensor, axes: int) -> Tensor:
        ctx.save_for_backward(x, gates)
        return _gate(x, gates, axes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return *gate_backward(grad, *ctx.saved_tensors), None


def pool_backward(x: Tensor, maxima: Tensor | None, grad_means: Tensor | None, grad_maxima: Tensor | None) -> Tensor:
    """Gradient of :func:`pool`, itself differentiable; ``maxima`` are needed where they have a gradient."""
    axes = x.ndim - 2
    total = torch.zeros_like(x)
    if grad_means is not None:
        for grad, others in zip(_by_axis(grad_means, x, axes), _others(axes), strict=True):
            total = total + grad / math.prod([x.shape[other] for other in others])
    if grad_maxima is not None and maxima is not None:
        tops, grads = _by_axis(maxima.detach(), x, axes), _by_axis(grad_maxima, x, axes)
        for top, grad, others in zip(tops, grads, _others(axes), strict=True):
            total = total + _shared(grad, x, top, others)
    return total


def gate_backward(grad: Tensor, x: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`gate` with respect to ``x`` and the gates, themselves differentiable."""
    axes = x.ndim - 2
    product, parts = grad * x, _by_axis(gates, x, axes)
    grads = []
    for axis, others in enumerate(_others(axes)):
        terms = product
        for other in others:
            terms = terms * parts[other - 2]
        grads.append(terms.sum(others, keepdim=True).transpose(2, 2 + axis))
    return _gate(grad, gates, axes), torch.cat(grads, dim=2).reshape(gates.shape)
