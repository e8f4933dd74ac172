"""The residual blocks of torchvision's networks for video with a slot."""

from torch import Tensor
from torchvision.models.video import resnet


class BasicBlock(resnet.BasicBlock):
    """The basic block of r3d, mc3 and r2plus1d with attention after the norm of ``conv2``."""

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        out = self.attention(self.conv2(self.conv1(x)))
        if self.downsample is not None:
            residual = self.downsample(x)
        out += residual
        return self.relu(out)


class Bottleneck(resnet.Bottleneck):
    """The bottleneck for video with attention after the norm of ``conv3``."""

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        out = self.attention(self.conv3(self.conv2(self.conv1(x))))
        if self.downsample is not None:
            residual = self.downsample(x)
        out += residual
        return self.relu(out)
