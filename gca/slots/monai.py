"""MONAI's two-dimensional ResNet blocks with a slot."""

from monai.networks.nets import resnet
from torch import Tensor


class ResNetBlock(resnet.ResNetBlock):
    """MONAI's basic block with attention after ``bn2``."""

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        out: Tensor = self.act(self.bn1(self.conv1(x)))
        out = self.attention(self.bn2(self.conv2(out)))
        if self.downsample is not None:
            residual = self.downsample(x)
        out += residual
        return self.act(out)


class ResNetBottleneck(resnet.ResNetBottleneck):
    """MONAI's bottleneck with attention after ``bn3``."""

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        out: Tensor = self.act(self.bn1(self.conv1(x)))
        out = self.act(self.bn2(self.conv2(out)))
        out = self.attention(self.bn3(self.conv3(out)))
        if self.downsample is not None:
            residual = self.downsample(x)
        out += residual
        return self.act(out)
