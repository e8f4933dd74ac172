"""The inverted residual of segmentation-models-pytorch's own EfficientNet with a slot."""

import torch
from segmentation_models_pytorch.encoders import _efficientnet as efficientnet
from torch import Tensor
from torch.nn import functional as F


class MBConvBlock(efficientnet.MBConvBlock):
    """The block of EfficientNet with attention after ``_bn2``; it has a shortcut, or it would not be injected."""

    def forward(self, inputs: Tensor, drop_connect_rate: float | None = None) -> Tensor:
        x = inputs
        if self._has_expansion:
            x = self._swish(self._bn0(self._expand_conv(inputs)))
        x = self._swish(self._bn1(self._depthwise_conv(x)))
        if self._has_se:
            squeezed = self._se_reduce(F.adaptive_avg_pool2d(x, 1))
            squeezed = self._se_expand(self._swish(squeezed))
            x = torch.sigmoid(squeezed) * x
        x = self.attention(self._bn2(self._project_conv(x)))
        if drop_connect_rate is not None and drop_connect_rate > 0:
            x = efficientnet.drop_connect(x, p=drop_connect_rate, training=self.training)
        return x + inputs
