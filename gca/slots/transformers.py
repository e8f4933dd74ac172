"""The ResNet blocks of Hugging Face transformers with a slot."""

from torch import Tensor
from transformers.models.resnet import modeling_resnet as resnet


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
