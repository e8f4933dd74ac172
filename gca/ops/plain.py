"""Pooling and gating in plain torch operators: any device, any dtype, traceable, scriptable, exportable.

A captured graph (compile, export, trace, script, FX, torch.func) always holds these, so that the compiler of the graph
can fuse them with what comes before and after.
"""

import torch
from torch import Tensor

from gca.ops.layout import channels_innermost


def pool_lines(x: Tensor, pool: str = "avg+max") -> Tensor:
    """Describe every row and every column of ``x``; see :func:`gca.ops.pool_lines`."""
    if channels_innermost(x):  # reduced in that order, so that a compiler need not stride from channel to channel
        x = x.permute(0, 2, 3, 1)
        return torch.cat((_describe(x, 2, pool), _describe(x, 1, pool)), dim=1).transpose(1, 2)
    return torch.cat((_describe(x, 3, pool), _describe(x, 2, pool)), dim=2)


def _describe(x: Tensor, along: int, pool: str) -> Tensor:
    if pool == "avg":
        return x.mean(along)
    if pool == "max":
        return x.amax(along)
    return x.mean(along) + x.amax(along)


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
