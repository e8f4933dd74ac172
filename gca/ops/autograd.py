"""Pool and gate, differentiable over the kernels of any backend.

Saved for backward are ``x``, its maxima and its gates, nothing else of the size of ``x``. Where one ``x`` is pooled and
then gated, its gradient has two parts of its own size. Written one after the other and then added they cost three
writes and four more reads. So the pool hands two links on to the gate. They have no values and no memory; their
gradients carry what the gate received and its gates back to the pool, which writes both parts at once. Forward and
backward together read six and write two tensors of the size of ``x``.
"""

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from gca.ops import plain
from gca.ops.dispatch import select
from gca.ops.layout import dense
from gca.ops.tracing import traced
from gca.ops.volumes import gate_planes, planes, pool_planes, volume


class Link(NamedTuple):
    """What the pool of an ``x`` hands on to its gate."""

    backend: ModuleType
    x: Tensor  # dense, where the backend takes no other
    grad: Tensor | None = None  # these two have neither values nor memory, only gradients
    gates: Tensor | None = None


def pool(x: Tensor, kind: str, axes: int = 2) -> tuple[Tensor | None, Tensor | None, Any]:
    """Means and maxima along each of so many axes, ``(B, C, H + W)``, or ``None`` for what ``kind`` has not; a link.

    The number of axes is told, since of what FX traces nobody knows it, and the link is of any type, since TorchScript
    does not know its own.
    """
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        means, maxima = plain.pool(x, kind, axes)
        return means, maxima, None
    else:  # no early return: TorchScript leaves out the branch not taken, but compiles what follows a return
        backend = select(x)
        if backend.DIFFERENTIABLE:
            return *backend.pool(x, kind, axes), Link(backend, x)
        x = dense(x)
        images = planes(x)
        recorded = _recorded(images)
        means, maxima, *links = _Pool.apply(images, kind, backend) if recorded else backend.pool(images, kind)
        return *pool_planes(means, maxima, x), Link(backend, x, *links)


def gate(x: Tensor, gates: Tensor, axes: int = 2, link: Any = None) -> Tensor:
    """``x`` times the gates along its axes, ``(B, C, H + W)``, which are cast to its dtype; with its link if pooled."""
    gates = gates.to(x.dtype)
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return plain.gate(x, gates, axes)
    else:
        backend, x, *links = Link(select(x), x) if link is None else link
        if backend.DIFFERENTIABLE:
            return backend.gate(x, gates, axes)  # type: ignore[no-any-return]
        x = dense(x)
        images, gates = planes(x), gate_planes(gates, x)
        recorded = _recorded(images, gates)
        y = _Gate.apply(images, gates, backend, *links) if recorded else backend.gate(images, gates)
        return volume(y, x)


def _recorded(*tensors: Tensor) -> bool:
    """Whether backward may come. Where not, a Function takes as long as a kernel on one small image, some 0.1 ms."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


class _Pool(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: str, backend: ModuleType) -> tuple[Tensor | None, ...]:
        means, maxima = backend.pool(x, kind)
        ctx.save_for_backward(x, maxima)
        ctx.set_materialize_grads(False)
        ctx.backend = backend
        b, c, h, w = x.shape
        return means, maxima, x.new_empty(()).expand(x.shape), x.new_empty(()).expand(b, c, h + w)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, maxima = ctx.saved_tensors
        grad_means, grad_maxima, grad, gates = grads
        if _differentiable(x, *grads):
            total = plain.pool_backward(x, maxima, grad_means, grad_maxima)
            return total if grad is None or gates is None else total + plain.gate(grad, gates), None, None
        if grad_means is None and grad_maxima is None:  # the features were not used
            return None if grad is None else ctx.backend.gate(grad, gates), None, None
        return ctx.backend.pool_backward(x, maxima, grad_means, grad_maxima, grad, gates), None, None


class _Gate(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gates: Tensor, backend: ModuleType, *links: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, gates)
        ctx.backend = backend
        return backend.gate(x, gates)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gates = ctx.saved_tensors
        needs_x, needs_gates, _, linked, _ = ctx.needs_input_grad
        if _differentiable(x, grad):
            return *plain.gate_backward(grad, x, gates), None, None, None
        grad = dense(grad, like=x)
        grad_gates = ctx.backend.gate_backward(grad, x, gates) if needs_gates else None
        if linked:
            return None, grad_gates, None, grad, gates
        return ctx.backend.gate(grad, gates) if needs_x else None, grad_gates, None, None, None


def _differentiable(*tensors: Tensor | None) -> bool:
    """Backward has to be differentiable itself, or is traced: the formula is both."""
    return torch.is_grad_enabled() or any(traced(t) for t in tensors if t is not None)
