"""The two operations every coordinate layer is made of: pool along both axes, gate along both axes.

``reference`` states each operation as a formula and defines what is correct. ``plain`` is the same formula in torch
operators alone, for captured graphs. ``eager``, ``numba`` and ``triton`` hold kernels (numba's are made of vectors,
``lanes``, and run on ``threads``), ``autograd`` makes them differentiable, and ``choice`` decides.
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
    "chosen",
    "gate_lines",
    "pool_lines",
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
    pooled_h, pooled_w = torch.split(pool_lines(x, pool)[0], [x.shape[2], x.shape[3]], dim=2)
    return pooled_h, pooled_w


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
    return gate_lines(x, torch.cat((gate_h, gate_w), dim=2))


def pool_lines(x: Tensor, pool: str = "avg+max") -> tuple[Tensor, Tensor]:
    """:func:`axis_pool` with rows and columns side by side, and ``x`` once more: for one :func:`gate_lines` alone.

    Gating that tensor instead of ``x`` gives the same values and the same gradients, with two thirds of the memory
    traffic of the backward pass. If anything else consumes it, backward raises a ``RuntimeError``.

    Args:
        x: ``(B, C, H, W)``, floating point.
        pool: One of ``POOLS``.

    Returns:
        The descriptors, ``(B, C, H + W)``, those of the rows first; and ``x``.

    Raises:
        ImplementationError: If :func:`use` asks for an implementation that cannot take ``x``.
    """
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return plain.pool_lines(x, pool), x
    else:  # no early return: TorchScript leaves out the branch not taken, but compiles what follows a return
        name = choice.chosen(x)
        if name == "reference":
            return torch.cat(reference.axis_pool(x, pool), dim=2), x
        if name == "plain":
            return plain.pool_lines(x, pool), x
        return autograd.pool(x, pool, choice.kernels(name))


def gate_lines(x: Tensor, gates: Tensor) -> Tensor:
    """:func:`axis_gate` with the gates of rows and columns side by side.

    Args:
        x: ``(B, C, H, W)``, best the tensor that :func:`pool_lines` returned.
        gates: ``(B, C, H + W)``, those of the rows first; cast to the dtype of ``x``.

    Returns:
        ``(B, C, H, W)`` in the dtype and memory format of ``x``.

    Raises:
        ImplementationError: If :func:`use` asks for an implementation that cannot take ``x``.
    """
    gates = gates.to(x.dtype)
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return plain.gate_lines(x, gates)
    else:
        name = choice.chosen(x)
        if name == "reference":
            return reference.axis_gate(x, *torch.split(gates, [x.shape[2], x.shape[3]], dim=2))
        if name == "plain":
            return plain.gate_lines(x, gates)
        return autograd.gate(x, gates, choice.kernels(name))
