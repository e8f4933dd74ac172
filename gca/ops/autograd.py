"""Pool, gate, and the two around what lies between them, differentiable over the kernels of any backend.

Saved for backward are ``x``, its maxima and its gates, nothing else of the size of ``x``. Where one ``x`` is pooled and
then gated, its gradient has two parts of its own size. Written one after the other and then added they cost three
writes and four more reads. So the pool hands two links on to the gate. They have no values and no memory; their
gradients carry what the gate received and its gates back to the pool, which writes both parts at once. Forward and
backward together read six and write two tensors of the size of ``x``.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gca.ops import plain
from gca.ops.dispatch import select
from gca.ops.layout import dense
from gca.ops.tracing import traced
from gca.ops.volumes import gate_planes, planes, pool_planes, volume


def pool(x: Tensor, kind: str, axes: int = 2) -> tuple[Tensor | None, Tensor | None]:
    """Means and maxima along each of so many axes, ``(B, C, H + W)`` each; ``None`` for what ``kind`` has not.

    The number of axes is told, since of what FX traces nobody knows it.
    """
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return plain.pool(x, kind, axes)
    else:  # no early return: TorchScript leaves out the branch not taken, but compiles what follows a return
        backend = select(x)
        if backend.DIFFERENTIABLE:
            return backend.pool(x, kind, axes)  # type: ignore[no-any-return]
        x = dense(x)
        means, maxima, *_ = _pool(planes(x), kind, backend)
        return pool_planes(means, maxima, x)


def gate(x: Tensor, gates: Tensor, axes: int = 2) -> Tensor:
    """``x`` times the gates along its axes, ``(B, C, H + W)``, which are cast to its dtype."""
    gates = gates.to(x.dtype)
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return plain.gate(x, gates, axes)
    else:
        backend = select(x)
        if backend.DIFFERENTIABLE:
            return backend.gate(x, gates, axes)  # type: ignore[no-any-return]
        x = dense(x)
        return volume(_gate(planes(x), gate_planes(gates, x), backend, None, None), x)


def attend(x: Tensor, kind: str, gates_of: Callable[[Tensor | None, Tensor | None], Tensor], axes: int = 2) -> Tensor:
    """``x`` times the gates that ``gates_of`` computes from its means and maxima."""
    backend = select(x)
    if backend.DIFFERENTIABLE:
        gates = gates_of(*backend.pool(x, kind, axes)).to(x.dtype)
        return backend.gate(x, gates, axes)  # type: ignore[no-any-return]
    x = dense(x)
    images = planes(x)
    means, maxima, *links = _pool(images, kind, backend)
    gates = gates_of(*pool_planes(means, maxima, x)).to(x.dtype)
    return volume(_gate(images, gate_planes(gates, x), backend, *links), x)


def _pool(x: Tensor, kind: str, backend: ModuleType) -> tuple[Tensor | None, ...]:
    """Means, maxima and two links; without backward, no links."""
    if _recorded(x):
        return _Pool.apply(x, kind, backend)  # type: ignore[no-any-return]
    return *backend.pool(x, kind), None, None


def _gate(x: Tensor, gates: Tensor, backend: ModuleType, *links: Tensor | None) -> Tensor:
    y: Tensor = _Gate.apply(x, gates, backend, *links) if _recorded(x, gates) else backend.gate(x, gates)
    return y


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
