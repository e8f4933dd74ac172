"""Pooling and gating in plain torch operators: any device, any dtype, traceable, scriptable, exportable.

A captured graph (compile, export, trace, script, FX, torch.func) always holds these, so that the compiler of the graph
can fuse them with what comes before and after.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def axis_pool(x: Tensor, pool: str = "avg+max") -> tuple[Tensor, Tensor]:
    """Describe every row and every column of ``x``; see :func:`gca.ops.axis_pool`."""
    if pool == "avg":
        return x.mean(3), x.mean(2)
    if pool == "max":
        return x.amax(3), x.amax(2)
    return x.mean(3) + x.amax(3), x.mean(2) + x.amax(2)


def axis_gate(x: Tensor, gate_h: Tensor, gate_w: Tensor) -> Tensor:
    """Gate every position by its row and its column; see :func:`gca.ops.axis_gate`."""
    return x * gate_h.unsqueeze(3) * gate_w.unsqueeze(2)


def axis_pool_gradient(
    x: Tensor, peaks: Sequence[Tensor | None], grads: tuple[Tensor | None, Tensor | None], pool: str
) -> Tensor:
    """Gradient of :func:`axis_pool`, itself differentiable; ``peaks`` are the maxima of the rows and the columns, or
    ``None`` where they were not kept."""
    total = torch.zeros_like(x)
    for dim, peak, grad in zip((3, 2), peaks, grads, strict=True):
        if grad is None:
            continue
        grad = grad.unsqueeze(dim)
        if pool != "max":
            total = total + grad / x.shape[dim]
        if pool != "avg":
            ties = x == (x.amax(dim) if peak is None else peak).detach().unsqueeze(dim)
            total = total + ties * grad / ties.sum(dim, keepdim=True)
    return total


def axis_gate_gradients(grad: Tensor, x: Tensor, gate_h: Tensor, gate_w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`axis_gate` with respect to ``x`` and both gates, themselves differentiable."""
    product = grad * x
    grad_h = (product * gate_w.unsqueeze(2)).sum(3)
    grad_w = (product * gate_h.unsqueeze(3)).sum(2)
    return axis_gate(grad, gate_h, gate_w), grad_h, grad_w
