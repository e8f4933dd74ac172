"""torchvision's ResNet blocks with a slot; segmentation-models-pytorch's own encoders are built of them too."""

from torch import Tensor
from torchvision.models import resnet


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
