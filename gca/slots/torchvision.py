"""torchvision's residual blocks with a slot; segmentation-models-pytorch's own encoders are built of them too."""

from torch import Tensor
from torchvision.models import efficientnet, mnasnet, mobilenetv2, mobilenetv3, resnet


class BasicBlock(resnet.BasicBlock):
    """torchvision's basic block with attention after ``bn2``."""

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.attention(self.bn2(self.conv2(out)))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Bottleneck(resnet.Bottleneck):
    """torchvision's bottleneck with attention after ``bn3``."""

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.attention(self.bn3(self.conv3(out)))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


# The inverted residuals below are injected only where they have a shortcut.


class MobileNetV2Residual(mobilenetv2.InvertedResidual):
    """MobileNetV2's block with attention after the norm of its projection."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(self.conv(x))


class MobileNetV3Residual(mobilenetv3.InvertedResidual):
    """MobileNetV3's block with attention after the norm of its projection."""

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self.attention(self.block(input))
        result += input
        return result


class MBConv(efficientnet.MBConv):
    """EfficientNet's block with attention after the norm of its projection."""

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self.stochastic_depth(self.attention(self.block(input)))
        result += input
        return result


class FusedMBConv(efficientnet.FusedMBConv):
    """EfficientNetV2's first blocks with attention after their last norm, or the activation that belongs to it."""

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self.stochastic_depth(self.attention(self.block(input)))
        result += input
        return result


class MNASNetResidual(mnasnet._InvertedResidual):
    """MNASNet's block with attention after the norm of its projection."""

    def forward(self, input: Tensor) -> Tensor:
        return self.attention(self.layers(input)) + input
