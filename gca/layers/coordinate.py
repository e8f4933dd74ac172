"""Coordinate attention."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gca.gates import AxisGates
from gca.layers._gated import GatedLayer, check_positive_int, reduced_channels
from gca.layers._pointwise import pointwise
from gca.ops.autograd import gate, pool
from gca.ops.plain import combine


class CoordinateAttention(GatedLayer):
    r"""Gate every position by its row and its column, all channels together.

    The mean over each row, :math:`z^h`, and over each column, :math:`z^w`, are concatenated and encoded
    together; each direction then has its own convolution:

    .. math::

        f = \delta(\mathrm{BN}(F_1([z^h, z^w]))), \qquad
        Y = X \odot \sigma(F_h(f^h)) \odot \sigma(F_w(f^w)),

    with :math:`F_1: C \to \max(8, C/r)` and :math:`F_h, F_w` back to :math:`C` channels, all 1x1 convolutions with
    bias, :math:`\delta` = hard swish and :math:`\sigma` = sigmoid.

    Args:
        channels: Input channels :math:`C`.
        reduction: Reduction ratio :math:`r`; never fewer than 8 channels are left.
        spatial_dims: 2 for images, 3 for volumes, which have a third direction with its own convolution :math:`F_d`.
        identity_init: Start as the identity, bit for bit: gates are :math:`2\sigma`, the last convolutions zero.
        device, dtype: Of the parameters.

    Shape:
        ``(B, C, H, W)`` -> ``(B, C, H, W)``, dtype and memory format kept; any ``H`` and ``W`` from 1.

    Raises:
        ValueError: If a size is below 1.
        TypeError: If a size is not an int.

    Reference:
        Hou, Zhou and Feng, "Coordinate Attention for Efficient Mobile Network Design", CVPR 2021,
        https://arxiv.org/abs/2103.02907. Differs from the paper: nothing; the floor of 8 channels, the bias and the
        hard swish are those of the authors' code, whose parameter names are kept. timm's ``CoordAttn`` differs: its
        default bottleneck has ``C/24`` channels rounded up to a multiple of 8 and its convolutions have no bias.

    Example:
        >>> CoordinateAttention(256)(torch.randn(1, 256, 56, 56)).shape
        torch.Size([1, 256, 56, 56])
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 32,
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

        hidden = reduced_channels(channels, reduction, minimum=8)
        self.conv1 = nn.Conv2d(channels, hidden, 1, device=device, dtype=dtype)
        self.bn1 = nn.BatchNorm2d(hidden, device=device, dtype=dtype)
        self.act = nn.Hardswish(inplace=True)
        self.conv_d = nn.Conv2d(hidden, channels, 1, device=device, dtype=dtype) if spatial_dims == 3 else None
        self.conv_h = nn.Conv2d(hidden, channels, 1, device=device, dtype=dtype)
        self.conv_w = nn.Conv2d(hidden, channels, 1, device=device, dtype=dtype)
        self.zero_init_last()

    def last_convs(self) -> Sequence[nn.Conv2d]:
        return tuple(conv for conv in (self.conv_d, self.conv_h, self.conv_w) if conv is not None)

    def options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("channels", "reduction", "spatial_dims", "identity_init")}

    def forward(self, x: Tensor) -> Tensor:
        self._check_axes(x)
        sizes = self._sizes(x)
        means, maxima, link = pool(x, "avg", self.spatial_dims)  # (B, C, H+W)
        return gate(x, self._gates(means, maxima, sizes), self.spatial_dims, link)

    def gates(self, x: Tensor) -> AxisGates:
        self._check_axes(x)
        means, maxima, _ = pool(x, "avg", self.spatial_dims)
        gates = self._gates(means, maxima, self._sizes(x)).to(x.dtype)
        return AxisGates.of(torch.split(gates, self._sizes(x), dim=2))

    def _sizes(self, x: Tensor) -> list[int]:
        return [x.shape[axis] for axis in self.axes]

    def _gates(self, means: Tensor | None, maxima: Tensor | None, sizes: list[int]) -> Tensor:
        f = combine(means, maxima)  # (B, C, H+W)
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            parts = torch.split(self.act(self.bn1(self.conv1(f.unsqueeze(3)))), sizes, dim=2)
            a = [self.conv_h(parts[-2]).squeeze(3), self.conv_w(parts[-1]).squeeze(3)]
            if self.conv_d is not None:
                a.insert(0, self.conv_d(parts[0]).squeeze(3))
        else:
            parts = torch.split(pointwise(f, 1, self.conv1, self.bn1, self.act), sizes, dim=2)
            a = [pointwise(parts[-2], 1, self.conv_h), pointwise(parts[-1], 1, self.conv_w)]
            if self.conv_d is not None:
                a.insert(0, pointwise(parts[0], 1, self.conv_d))
        return self.gate(torch.cat(a, dim=2))  # (B, C, H+W)
