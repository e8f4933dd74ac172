"""The residual blocks of nnU-Net's networks (dynamic-network-architectures), in 2-D and 3-D, with a slot.

The slot has the name of their own squeeze and excitation, which most networks are built without. That one stands after
drop path; attention that ``inject`` puts in, also in its place, stands before it, so that it never sees a branch that
was dropped.
"""

from dynamic_network_architectures.building_blocks import residual
from torch import Tensor


class BasicBlockD(residual.BasicBlockD):
    """nnU-Net's basic block with attention after the norm of ``conv2`` and before drop path."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.skip(x)
        out = self.squeeze_excitation(self.conv2(self.conv1(x)))
        if self.apply_stochastic_depth:
            out = self.drop_path(out)
        out += shortcut
        return self.nonlin2(out)


class BottleneckD(residual.BottleneckD):
    """nnU-Net's bottleneck with attention after the norm of ``conv3`` and before drop path."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.skip(x)
        out = self.squeeze_excitation(self.conv3(self.conv2(self.conv1(x))))
        if self.apply_stochastic_depth:
            out = self.drop_path(out)
        out += shortcut
        return self.nonlin3(out)
