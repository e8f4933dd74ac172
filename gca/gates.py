"""The gates by which a layer multiplies its input."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class AxisGates(NamedTuple):
    r"""The gates of a coordinate layer: its output is :math:`X \odot A^h \odot A^w`, for volumes times :math:`A^d`.

    Args:
        gate_h: :math:`A^h`, the gate of every row, ``(B, C, H)``.
        gate_w: :math:`A^w`, the gate of every column, ``(B, C, W)``.
        groups: Groups :math:`G` of :math:`C/G` neighbouring channels; 1 for ``CoordinateAttention``.
        gate_d: :math:`A^d`, the gate of every slice of a volume, ``(B, C, D)``; ``None`` for images.
    """

    gate_h: Tensor
    gate_w: Tensor
    groups: int = 1
    gate_d: Tensor | None = None

    @classmethod
    def of(cls, gates: Sequence[Tensor], groups: int = 1) -> "AxisGates":
        """From those of rows and columns, and before them of slices if there are any."""
        *gate_d, gate_h, gate_w = gates
        return cls(gate_h, gate_w, groups, *gate_d)

    def maps(self) -> Tensor:
        """The gate of every position, averaged over the channels of each group: ``(B, G, H, W)``, or with ``D``."""
        by_group_h, by_group_w = _by_group(self.gate_h, self.groups), _by_group(self.gate_w, self.groups)
        if self.gate_d is None:
            return torch.einsum("bgch,bgcw->bghw", by_group_h, by_group_w) / by_group_h.shape[2]
        by_group_d = _by_group(self.gate_d, self.groups)
        return torch.einsum("bgcd,bgch,bgcw->bgdhw", by_group_d, by_group_h, by_group_w) / by_group_h.shape[2]

    def slices(self) -> Tensor:
        """The gate of every slice of a volume, averaged over the channels of each group: ``(B, G, D)``."""
        if self.gate_d is None:
            raise ValueError("these are the gates of images, which have rows and columns, and no slices")
        return _by_group(self.gate_d, self.groups).mean(2)

    def rows(self) -> Tensor:
        """The gate of every row, averaged over the channels of each group: ``(B, G, H)``."""
        return _by_group(self.gate_h, self.groups).mean(2)

    def columns(self) -> Tensor:
        """The gate of every column, averaged over the channels of each group: ``(B, G, W)``."""
        return _by_group(self.gate_w, self.groups).mean(2)


class ChannelGates(NamedTuple):
    """The gates of ``SE`` and ``CBAM``: the output is the input times all of them.

    Args:
        channel: The gate of every channel, ``(B, C)``.
        spatial: The gate of every position, ``(B, 1, H, W)``, or with ``D``; ``None`` for ``SE``, which has none.
    """

    channel: Tensor
    spatial: Tensor | None = None


Gates = AxisGates | ChannelGates


def _by_group(gate: Tensor, groups: int) -> Tensor:
    b, c, length = gate.shape
    return gate.reshape(b, groups, c // groups, length)
