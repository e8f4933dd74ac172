"""Squeeze and excitation."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gca.gates import ChannelGates
from gca.layers._gated import GatedLayer, check_positive_int, reduced_channels


class SE(GatedLayer):
    r"""Gate every channel by what the whole image says of all channels.

    .. math::

        Y = X \odot \sigma(W_2\, \delta(W_1 z)), \qquad z = \mathrm{mean}_{H, W}(X),

    with :math:`W_1: C \to C/r` and :math:`W_2: C/r \to C` (1x1 convolutions with bias), :math:`\delta` = ReLU and
    :math:`\sigma` = sigmoid.

    Args:
        channels: Input channels :math:`C`.
        reduction: Reduction ratio :math:`r`; at most ``channels``. A ratio that does not divide ``channels`` is
            rounded down to whole channels.
        spatial_dims: 2 for images, 3 for volumes. In 3-D the parameters have the same names and shapes, so the
            weights of either load into the other.
        identity_init: Start as the identity, bit for bit: gates are :math:`2\sigma` and the last convolution is zero.
        device, dtype: Of the parameters.

    Shape:
        ``(B, C, H, W)`` -> ``(B, C, H, W)``, dtype and memory format kept; any ``H`` and ``W`` from 1.

    Raises:
        ValueError: If ``reduction`` exceeds ``channels`` or a size is below 1.
        TypeError: If a size is not an int.

    Reference:
        Hu, Shen and Sun, "Squeeze-and-Excitation Networks", CVPR 2018, https://arxiv.org/abs/1709.01507.
        Differs from the paper: nothing; the biases, absent from its equation, are those of the authors' models.
        timm's ``SEModule`` computes the same with the same parameter names, but rounds ``C/r`` to a multiple of 8;
        torchvision's ``SqueezeExcitation`` takes the squeezed channels themselves in place of a ratio.

    Example:
        >>> SE(256)(torch.randn(1, 256, 56, 56)).shape
        torch.Size([1, 256, 56, 56])
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        *,
        spatial_dims: int = 2,
        identity_init: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(spatial_dims, identity_init)
        check_positive_int(channels=channels, reduction=reduction)
        self.channels = channels
        self.reduction = reduction

        hidden = reduced_channels(channels, reduction)
        self.fc1 = nn.Conv2d(channels, hidden, 1, device=device, dtype=dtype)
        self.act = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(hidden, channels, 1, device=device, dtype=dtype)
        self.zero_init_last()

    def last_convs(self) -> Sequence[nn.Conv2d]:
        return (self.fc2,)

    def options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("channels", "reduction", "spatial_dims", "identity_init")}

    def gates(self, x: Tensor) -> ChannelGates:
        self._check_axes(x)
        z = x.mean(self.axes).unsqueeze(2).unsqueeze(3)  # (B, C, 1, 1)
        return ChannelGates(self.gate(self.fc2(self.act(self.fc1(z)))).to(x.dtype).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self._over_axes(self.gates(x).channel)
