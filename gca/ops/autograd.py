"""Pool and gate as two differentiable functions over the kernels of an implementation.

Saved for backward are ``x``, the maxima of its rows and columns, and the two gates, nothing else of the size of ``x``.

Where one ``x`` is pooled and then gated by what was pooled, its gradient has two parts of its own size. Written one
after the other and then added they cost three writes and four more reads. Instead :func:`pool` hands ``x`` on, and the
gate, if it is given that tensor, hands its own incoming gradient back untouched, together with the gates; the pool
then writes both parts at once. Forward and backward together read six and write two tensors of the size of ``x``.
That is right only if nothing but the gate consumes the tensor handed on. The layers see to that; if it happens all
the same, the gradient that arrives is not the one that the gate sent, and backward raises.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gca.ops import plain
from gca.ops.capture import captured


def pool(x: Tensor, kind: str, kernels: ModuleType) -> tuple[Tensor, Tensor, Tensor]:
    """Descriptors of rows and columns, and ``x`` for :func:`gate`, its only consumer."""
    pooled_h, pooled_w, x = _Pool.apply(_dense(x), kind, kernels)
    return pooled_h, pooled_w, x


def gate(x: Tensor, gate_h: Tensor, gate_w: Tensor, kernels: ModuleType) -> Tensor:
    """``x`` gated along both axes."""
    pooling = x.grad_fn if getattr(x.grad_fn, "hands_on_x", False) else None
    y: Tensor = _Gate.apply(_dense(x), gate_h, gate_w, kernels, pooling)
    return y


def _dense(x: Tensor) -> Tensor:
    """Kernels see two layouts only."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()


def _as(grad: Tensor, x: Tensor) -> Tensor:
    return grad.contiguous(memory_format=torch.contiguous_format if x.is_contiguous() else torch.channels_last)


class _Pool(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: str, kernels: ModuleType) -> tuple[Tensor, Tensor, Tensor]:
        pooled_h, pooled_w, saved = kernels.pool(x, kind)  # saved: the maxima, then whatever else its backward needs
        ctx.save_for_backward(x, *saved)
        ctx.set_materialize_grads(False)
        ctx.kind, ctx.kernels = kind, kernels
        ctx.hands_on_x, ctx.sent = True, None
        return pooled_h, pooled_w, x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        grad_h, grad_w, grad_x = grads
        sent, ctx.sent = ctx.sent, None
        gates = None
        if sent is not None and grad_x is not None:
            if grad_x is not sent[0]:
                raise RuntimeError(
                    "the x that axis_pool_for_gate returns was used by something other than one axis_gate; "
                    "use axis_pool and the original x instead"
                )
            _, grad_x, *gates = sent
        if _differentiable(x, *grads):
            if grad_x is not None and gates is not None:
                grad_x = plain.axis_gate(grad_x, *gates)
            total = plain.axis_pool_gradient(x, saved[:2], (grad_h, grad_w), ctx.kind)
            return total if grad_x is None else total + grad_x, None, None
        if grad_x is not None:
            grad_x = _as(grad_x, x)
        return ctx.kernels.pool_backward(x, saved, (grad_h, grad_w), ctx.kind, grad_x, gates), None, None


class _Gate(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_h: Tensor, gate_w: Tensor, kernels: ModuleType, pooling: Any) -> Tensor:
        ctx.save_for_backward(x, gate_h, gate_w)
        ctx.kernels, ctx.pooling = kernels, pooling
        y: Tensor = kernels.gate(x, gate_h, gate_w)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gate_h, gate_w = ctx.saved_tensors
        needs_x, needs_h, needs_w = ctx.needs_input_grad[:3]
        if _differentiable(x, grad):
            if ctx.pooling is not None:
                ctx.pooling.sent = None
            return *plain.axis_gate_gradients(grad, x, gate_h, gate_w), None, None
        dense = _as(grad, x)
        grad_x = grad_h = grad_w = None
        if needs_h or needs_w:
            grad_h, grad_w = ctx.kernels.gate_backward(dense, x, gate_h, gate_w)
        if needs_x and ctx.pooling is not None:
            grad_x, ctx.pooling.sent = grad, (grad, dense, gate_h, gate_w)
        elif needs_x:
            grad_x = ctx.kernels.gate(dense, gate_h, gate_w)
        return grad_x, grad_h, grad_w, None, None


def _differentiable(*tensors: Tensor | None) -> bool:
    """Backward has to be differentiable itself, or is captured: the formula is both."""
    return torch.is_grad_enabled() or any(captured(t) for t in tensors if t is not None)
