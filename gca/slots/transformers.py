"""The residual blocks of Hugging Face transformers with a slot."""

from torch import Tensor
from transformers.models.bit import modeling_bit as bit
from transformers.models.resnet import modeling_resnet as resnet
from transformers.models.rt_detr import modeling_rt_detr_resnet as rt_detr


class ResNetBasicLayer(resnet.ResNetBasicLayer):
    """The basic block of transformers with attention after its last norm."""

    def forward(self, hidden_state: Tensor) -> Tensor:
        residual = hidden_state
        hidden_state = self.attention(self.layer(hidden_state))
        hidden_state += self.shortcut(residual)
        return self.activation(hidden_state)


class ResNetBottleNeckLayer(resnet.ResNetBottleNeckLayer):
    """The bottleneck of transformers with attention after its last norm."""

    forward = ResNetBasicLayer.forward  # as in their parents, which differ only in what self.layer holds


class RTDetrResNetBasicLayer(rt_detr.RTDetrResNetBasicLayer):
    """The basic block of RT-DETR's backbone with attention after its last norm."""

    forward = ResNetBasicLayer.forward


class RTDetrResNetBottleNeckLayer(rt_detr.RTDetrResNetBottleNeckLayer):
    """The bottleneck of RT-DETR's backbone with attention after its last norm."""

    forward = ResNetBasicLayer.forward


class BitPreActivationBottleneckLayer(bit.BitPreActivationBottleneckLayer):
    """BiT's pre-activation bottleneck with attention after its last convolution, which no norm follows."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        preact = self.norm1(hidden_states)
        shortcut = hidden_states if self.downsample is None else self.downsample(preact)
        hidden_states = self.conv2(self.norm2(self.conv1(preact)))
        hidden_states = self.attention(self.conv3(self.norm3(hidden_states)))
        return self.drop_path(hidden_states) + shortcut


class BitBottleneckLayer(bit.BitBottleneckLayer):
    """The bottleneck of BiT in hybrid vision transformers with attention after its last norm."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        shortcut = hidden_states if self.downsample is None else self.downsample(hidden_states)
        hidden_states = self.norm1(self.conv1(hidden_states))
        hidden_states = self.norm2(self.conv2(hidden_states))
        hidden_states = self.attention(self.norm3(self.conv3(hidden_states)))
        return self.activation(self.drop_path(hidden_states) + shortcut)
