"""Pooling and gating in plain torch operators: any device, any dtype, traceable, scriptable, exportable.

A captured graph (compile, export, trace, script, FX, torch.func) always holds these, so that the compiler of the graph
can fuse them with what comes before and after.
"""

import torch
from torch import Tensor


def pool_lines(x: Tensor, pool: str = "avg+max") -> Tensor:
    """Describe every row and every column of ``x``; see :func:`gca.ops.pool_lines`."""
    if pool == "avg":
        rows, columns = x.mean(3), x.mean(2)
    elif pool == "max":
        rows, columns = x.amax(3), x.amax(2)
    else:
        rows, columns = x.mean(3) + x.amax(3), x.mean(2) + x.amax(2)
    return torch.cat((rows, columns), dim=2)


def gate_lines(x: Tensor, gates: Tensor) -> Tensor:
    """Gate every position by its row and its column; see :func:`gca.ops.gate_lines`."""
    gate_h, gate_w = torch.split(gates, [x.shape[2], x.shape[3]], dim=2)
    return x * gate_h.unsqueeze(3) * gate_w.unsqueeze(2)


def pool_lines_gradient(x: Tensor, peaks: Tensor | None, grad: Tensor, pool: str) -> Tensor:
    """Gradient of :func:`pool_lines`, itself differentiable; ``peaks`` are the maxima, or ``None`` where not kept."""
    sizes = list(x.shape[2:])
    peak_of = (None, None) if peaks is None else torch.split(peaks, sizes, dim=2)
    total = torch.zeros_like(x)
    for dim, peak, part in zip((3, 2), peak_of, torch.split(grad, sizes, dim=2), strict=True):
        part = part.unsqueeze(dim)
        if pool != "max":
            total = total + part / x.shape[dim]
        if pool != "avg":
            ties = x == (x.amax(dim) if peak is None else peak).detach().unsqueeze(dim)
            total = total + ties * part / ties.sum(dim, keepdim=True)
    return total


def gate_lines_gradients(grad: Tensor, x: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`gate_lines` with respect to ``x`` and the gates, themselves differentiable."""
    gate_h, gate_w = torch.split(gates, list(x.shape[2:]), dim=2)
    product = grad * x
    grad_h = (product * gate_w.unsqueeze(2)).sum(3)
    grad_w = (product * gate_h.unsqueeze(3)).sum(2)
    return gate_lines(grad, gates), torch.cat((grad_h, grad_w), dim=2)
