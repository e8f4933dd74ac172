"""The two operations every coordinate layer is made of: pool along both axes, gate along both axes.

``reference`` states each operation as a formula and defines what is correct. ``plain`` is the same formula in torch
operators alone, for captured graphs. ``eager``, ``numba`` and ``triton`` hold kernels, ``autograd`` makes them
differentiable, and ``choice`` decides.
"""

import torch
from torch import Tensor

from gca.ops import autograd, choice, plain, reference
from gca.ops.choice import ImplementationError, chosen, unavailable, use

__all__ = [
    "POOLS",
    "ImplementationError",
    "axis_gate",
    "axis_pool",
    "axis_pool_for_gate",
    "chosen",
    "unavailable",
    "use",
]

POOLS = ("avg", "max", "avg+max")


def axis_pool(x: Tensor, pool: str = "avg+max") -> tuple[Tensor, Tensor]:
    """Describe every row and every column of ``x``.

    ``pooled_h[b, c, i]`` is the mean, the maximum, or the sum of both, over row ``i`` of ``x[b, c]``;
    ``pooled_w[b, c, j]`` is the same over column ``j``. Where a maximum is attained more than once, its gradient
    is shared equally among the positions that attain it, by every implementation.

    Args:
        x: ``(B, C, H, W)``, floating point.
        pool: One of ``POOLS``.

    Returns:
        ``pooled_h`` of shape ``(B, C, H)`` and ``pooled_w`` of shape ``(B, C, W)``, in the dtype of ``x``.

    Raises:
        ImplementationError: If :func:`use` asks for an implementation that cannot take ``x``.
    """
    return axis_pool_for_gate(x, pool)[:2]


def axis_pool_for_gate(x: Tensor, pool: str = "avg+max") -> tuple[Tensor, Tensor, Tensor]:
    """:func:`axis_pool`, and ``x`` once more: for one :func:`axis_gate` and for nothing else.

    Gating that tensor instead of ``x`` gives the same values and the same gradients, with two thirds of the memory
    traffic of the backward pass. If anything else consumes it, backward raises a ``RuntimeError``.
    """
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        pooled_h, pooled_w = plain.axis_pool(x, pool)
        return pooled_h, pooled_w, x
    else:  # no early return: TorchScript leaves out the branch not taken, but compiles what follows a return
        name = choice.chosen(x)
        if name in ("reference", "plain"):
            return *(reference if name == "reference" else plain).axis_pool(x, pool), x
        return autograd.pool(x, pool, choice.kernels(name))


def axis_gate(x: Tensor, gate_h: Tensor, gate_w: Tensor) -> Tensor:
    """Multiply every position of ``x`` by the gate of its row and the gate of its column.

    Args:
        x: ``(B, C, H, W)``.
        gate_h: ``(B, C, H)``; cast to the dtype of ``x``, since under autocast the gates may be narrower.
        gate_w: ``(B, C, W)``; likewise.

    Returns:
        ``(B, C, H, W)`` in the dtype and memory format of ``x``.

    Raises:
        ImplementationError: If :func:`use` asks for an implementation that cannot take ``x``.
    """
    gate_h, gate_w = gate_h.to(x.dtype), gate_w.to(x.dtype)
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return plain.axis_gate(x, gate_h, gate_w)
    else:
        name = choice.chosen(x)
        if name in ("reference", "plain"):
            y: Tensor = (reference if name == "reference" else plain).axis_gate(x, gate_h, gate_w)
            return y
        return autograd.gate(x, gate_h, gate_w, choice.kernels(name))
