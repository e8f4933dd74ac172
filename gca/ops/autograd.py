"""Pool and gate as two differentiable functions over the kernels of an implementation.

Saved for backward are ``x``, the maxima of its lines, and the gates, nothing else of the size of ``x``.

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


def pool(x: Tensor, kind: str, kernels: ModuleType) -> tuple[Tensor, Tensor]:
    """Descriptors of all lines, and ``x`` for :func:`gate`, its only consumer."""
    x = _dense(x)
    if _recorded(x):
        pooled, x = _Pool.apply(x, kind, kernels)
    else:
        pooled, _ = kernels.pool(x, kind, False)
    return pooled, x


def gate(x: Tensor, gates: Tensor, kernels: ModuleType) -> Tensor:
    """``x`` gated along both axes."""
    x = _dense(x)
    if _recorded(x, gates):
        pooling = x.grad_fn if getattr(x.grad_fn, "hands_on_x", False) else None
        y: Tensor = _Gate.apply(x, gates, kernels, pooling)
    else:
        y = kernels.gate(x, gates)
    return y


def _recorded(*tensors: Tensor) -> bool:
    """Whether backward may come. Where it cannot, a function of autograd takes its time for nothing: some 0.1 ms in a
    network, as long as a kernel on one small image."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _dense(x: Tensor) -> Tensor:
    """Kernels see two layouts only."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()


def _as(grad: Tensor, x: Tensor) -> Tensor:
    return grad.contiguous(memory_format=torch.contiguous_format if x.is_contiguous() else torch.channels_last)


class _Pool(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: str, kernels: ModuleType) -> tuple[Tensor, Tensor]:
        pooled, peaks = kernels.pool(x, kind, True)
        ctx.save_for_backward(x, peaks)
        ctx.set_materialize_grads(False)
        ctx.kind, ctx.kernels = kind, kernels
        ctx.hands_on_x, ctx.sent = True, None
        return pooled, x

    @staticmethod
    def backward(ctx: Any, grad_pooled: Tensor | None, grad_x: Tensor | None) -> tuple[Tensor | None, ...]:
        x, peaks = ctx.saved_tensors
        sent, ctx.sent = ctx.sent, None
        gates = None
        if sent is not None and grad_x is not None:
            if grad_x is not sent[0]:
                raise RuntimeError(
                    "the x that pool_lines returns was used by something other than one gate_lines; "
                    "use axis_pool and the original x instead"
                )
            _, grad_x, gates = sent
        as_formula = _differentiable(x, grad_pooled, grad_x)
        if grad_x is not None and gates is not None and (as_formula or grad_pooled is None):
            grad_x = plain.gate_lines(grad_x, gates) if as_formula else ctx.kernels.gate(grad_x, gates)
        if grad_pooled is None:  # the descriptors were not used
            return grad_x, None, None
        if as_formula:
            total = plain.pool_lines_gradient(x, peaks, grad_pooled, ctx.kind)
            return total if grad_x is None else total + grad_x, None, None
        if grad_x is not None:
            grad_x = _as(grad_x, x)
        return ctx.kernels.pool_backward(x, peaks, grad_pooled, ctx.kind, grad_x, gates), None, None


class _Gate(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gates: Tensor, kernels: ModuleType, pooling: Any) -> Tensor:
        ctx.save_for_backward(x, gates)
        ctx.kernels, ctx.pooling = kernels, pooling
        y: Tensor = kernels.gate(x, gates)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gates = ctx.saved_tensors
        needs_x, needs_gates = ctx.needs_input_grad[:2]
        if _differentiable(x, grad):
            if ctx.pooling is not None:
                ctx.pooling.sent = None
            return *plain.gate_lines_gradients(grad, x, gates), None, None
        dense = _as(grad, x)
        grad_x = grad_gates = None
        if needs_gates:
            grad_gates = ctx.kernels.gate_backward(dense, x, gates)
        if needs_x and ctx.pooling is not None:
            grad_x, ctx.pooling.sent = grad, (grad, dense, gates)
        elif needs_x:
            grad_x = ctx.kernels.gate(dense, gates)
        return grad_x, grad_gates, None, None


def _differentiable(*tensors: Tensor | None) -> bool:
    """Backward has to be differentiable itself, or is captured: the formula is both."""
    return torch.is_grad_enabled() or any(captured(t) for t in tensors if t is not None)
