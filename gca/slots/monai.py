"""MONAI's residual blocks with a slot, for images and for volumes."""

from monai.networks.blocks import convolutions, dynunet_block, segresnet_block
from monai.networks.nets import resnet, segresnet_ds
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


class ResBlock(segresnet_block.ResBlock):
    """SegResNet's pre-activation block with attention after its last convolution, which no norm follows."""

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        x = self.conv1(self.act(self.norm1(x)))
        x = self.attention(self.conv2(self.act(self.norm2(x))))
        x += identity
        return x


class SegResBlock(segresnet_ds.SegResBlock):
    """SegResNetDS's pre-activation block with attention after its last convolution, which no norm follows."""

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        x = self.conv2(self.act2(self.norm2(self.conv1(self.act1(self.norm1(x))))))
        x = self.attention(x)
        x += identity
        return x


class UnetResBlock(dynunet_block.UnetResBlock):
    """The block of DynUNet, UNETR and SwinUNETR with attention after ``norm2``."""

    def forward(self, inp: Tensor) -> Tensor:
        residual = inp
        out: Tensor = self.lrelu(self.norm1(self.conv1(inp)))
        out = self.attention(self.norm2(self.conv2(out)))
        if hasattr(self, "conv3"):
            residual = self.conv3(residual)
        if hasattr(self, "norm3"):
            residual = self.norm3(residual)
        out += residual
        return self.lrelu(out)


class ResidualUnit(convolutions.ResidualUnit):
    """UNet's unit with attention after the activation of its last convolution; its head has none, and no attention."""

    def forward(self, x: Tensor) -> Tensor:
        res: Tensor = self.residual(x)
        return self.attention(self.conv(x)) + res
