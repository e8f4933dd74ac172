"""Convolutional block attention module."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gca.gates import ChannelGates
from gca.layers._gated import GatedLayer, check_positive_int, reduced_channels


class CBAM(GatedLayer):
    r"""Gate every channel by its mean and maximum over the image, then every position by those over its channels.

    .. math::

        X' &= X \odot \sigma(W_2\, \delta(W_1\, \mathrm{mean}_{H, W} X) + W_2\, \delta(W_1\, \max\nolimits_{H, W} X)) \\
        Y &= X' \odot \sigma(f^{k \times k}([\mathrm{mean}_C X'; \max\nolimits_C X']))

    with :math:`W_1: C \to C/r` and :math:`W_2: C/r \to C` shared by the two statistics, a :math:`k \times k`
    convolution :math:`f` of 2 channels to 1, all without bias, :math:`\delta` = ReLU and :math:`\sigma` = sigmoid.

    Args:
        channels: Input channels :math:`C`.
        reduction: Reduction ratio :math:`r`; at most ``channels``. A ratio that does not divide ``channels`` is
            rounded down to whole channels.
        kernel_size: Side :math:`k` of the spatial convolution; odd.
        spatial_dims: 2 for images, 3 for volumes, where the spatial convolution is :math:`k \times k \times k`.
        identity_init: Start as the identity, bit for bit: gates are :math:`2\sigma`, the last convolutions zero.
        device, dtype: Of the parameters.

    Shape:
        ``(B, C, H, W)`` -> ``(B, C, H, W)``, dtype and memory format kept; any ``H`` and ``W`` from 1.

    Raises:
        ValueError: If ``reduction`` exceeds ``channels``, ``kernel_size`` is even or a size is below 1.
        TypeError: If a size is not an int.

    Reference:
        Woo, Park, Lee and Kweon, "CBAM: Convolutional Block Attention Module", ECCV 2018,
        https://arxiv.org/abs/1807.06521. Differs from the paper: nothing. The authors' code and timm's
        ``CbamModule`` add batch norm after the spatial convolution, which the paper's equation 3 does not have; the
        authors' code also gives :math:`W_1, W_2` biases.

    Example:
        >>> CBAM(256)(torch.randn(1, 256, 56, 56)).shape
        torch.Size([1, 256, 56, 56])
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        kernel_size: int = 7,
        *,
        spatial_dims: int = 2,
        identity_init: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(spatial_dims, identity_init)
        check_positive_int(channels=channels, reduction=reduction, kernel_size=kernel_size)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, so that the map keeps its size, got kernel_size={kernel_size}")
        self.channels = channels
        self.reduction = reduction
        self.kernel_size = kernel_size

        hidden = reduced_channels(channels, reduction)
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=False, device=device, dtype=dtype)
        self.act = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=False, device=device, dtype=dtype)
        conv = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.conv = conv(2, 1, kernel_size, padding=kernel_size // 2, bias=False, device=device, dtype=dtype)
        self.zero_init_last()

    def last_convs(self) -> Sequence[nn.Conv2d | nn.Conv3d]:
        return self.fc2, self.conv

    def options(self) -> dict[str, Any]:
        names = ("channels", "reduction", "kernel_size", "spatial_dims", "identity_init")
        return {name: getattr(self, name) for name in names}

    def gates(self, x: Tensor) -> ChannelGates:
        _, channel, spatial = self._gate_twice(x)
        return ChannelGates(channel, spatial)

    def forward(self, x: Tensor) -> Tensor:
        gated, _, spatial = self._gate_twice(x)
        return gated * spatial

    def _gate_twice(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``x`` gated by channel, the gates of the channels, and those of the positions, which follow from it."""
        self._check_axes(x)
        mean = x.mean(self.axes).unsqueeze(2).unsqueeze(3)  # (B, C, 1, 1)
        maximum = x.amax(self.axes).unsqueeze(2).unsqueeze(3)
        channel = self.gate(self.fc2(self.act(self.fc1(mean))) + self.fc2(self.act(self.fc1(maximum)))).to(x.dtype)
        channel = channel.flatten(1)  # (B, C)
        x = x * self._over_axes(channel)
        f = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), dim=1)  # (B, 2, H, W)
        return x, channel, self.gate(self.conv(f)).to(x.dtype)
