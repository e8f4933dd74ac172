"""The blocks of timm's EfficientNets and MobileNets with a slot.

They are injected only where they have a shortcut, and with a shortcut none of them turns space into depth: both
branches of their parents' ``forward`` are decided.
"""

from timm.models import _efficientnet_blocks as blocks
from torch import Tensor


class ConvBnAct(blocks.ConvBnAct):
    """EfficientNetV2's plain convolution with attention after ``bn1`` and its activation."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.attention(self.aa(self.bn1(self.conv(x))))
        return self.drop_path(x) + shortcut


class DepthwiseSeparableConv(blocks.DepthwiseSeparableConv):
    """The block without expansion, with attention after ``bn2``."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.se(self.aa(self.bn1(self.conv_dw(x))))
        x = self.attention(self.bn2(self.conv_pw(x)))
        return self.drop_path(x) + shortcut


class InvertedResidual(blocks.InvertedResidual):
    """The inverted residual with attention after ``bn3``."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.bn1(self.conv_pw(x))
        x = self.se(self.aa(self.bn2(self.conv_dw(x))))
        x = self.attention(self.bn3(self.conv_pwl(x)))
        return self.drop_path(x) + shortcut


class EdgeResidual(blocks.EdgeResidual):
    """The fused inverted residual with attention after ``bn2``."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.se(self.aa(self.bn1(self.conv_exp(x))))
        x = self.attention(self.bn2(self.conv_pwl(x)))
        return self.drop_path(x) + shortcut


class UniversalInvertedResidual(blocks.UniversalInvertedResidual):
    """MobileNetV4's block with attention after its last norm, before the layer scale."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.dw_mid(self.pw_exp(self.dw_start(x)))
        x = self.attention(self.dw_end(self.pw_proj(self.se(x))))
        return self.drop_path(self.layer_scale(x)) + shortcut
