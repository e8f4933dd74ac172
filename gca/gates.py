"""The gates by which a layer multiplies its input."""

from typing import NamedTuple

import torch
from torch import Tensor


class AxisGates(NamedTuple):
    r"""The gates of a coordinate layer: its output is :math:`X \odot A^h \odot A^w`.

    Args:
        gate_h: :math:`A^h`, the gate of every row, ``(B, C, H)``.
        gate_w: :math:`A^w`, the gate of every column, ``(B, C, W)``.
        groups: Groups :math:`G` of :math:`C/G` neighbouring channels; 1 for ``CoordinateAttention``.
    """

    gate_h: Tensor
    gate_w: Tensor
    groups: int = 1

    def maps(self) -> Tensor:
        """The gate of every position, averaged over the channels of each group: ``(B, G, H, W)``."""
        by_group_h, by_group_w = _by_group(self.gate_h, self.groups), _by_group(self.gate_w, self.groups)
        return torch.einsum("bgch,bgcw->bghw", by_group_h, by_group_w) / by_group_h.shape[2]

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
        spatial: The gate of every position, ``(B, 1, H, W)``; ``None`` for ``SE``, which has none.
    """

    channel: Tensor
    spatial: Tensor | None = None


Gates = AxisGates | ChannelGates


def _by_group(gate: Tensor, groups: int) -> Tensor:
    b, c, length = gate.shape
    return gate.reshape(b, groups, c // groups, length)
