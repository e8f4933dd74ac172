"""Coordinate attention."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gca.gates import AxisGates
from gca.layers._gated import GatedLayer, check_positive_int, reduced_channels
from gca.layers._precision import without_overflow
from gca.ops.autograd import attend, gate, pool
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
        identity_init: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(identity_init)
        check_positive_int(channels=channels, reduction=reduction)
        self.channels = channels
        self.reduction = reduction

        hidden = reduced_channels(channels, reduction, minimum=8)
        self.conv1 = nn.Conv2d(channels, hidden, 1, device=device, dtype=dtype)
        self.bn1 = nn.BatchNorm2d(hidden, device=device, dtype=dtype)
        self.act = nn.Hardswish(inplace=True)
        self.conv_h = nn.Conv2d(hidden, channels, 1, device=device, dtype=dtype)
        self.conv_w = nn.Conv2d(hidden, channels, 1, device=device, dtype=dtype)
        self.zero_init_last()

    def last_convs(self) -> Sequence[nn.Conv2d]:
        return self.conv_h, self.conv_w

    def options(self) -> dict[str, Any]:
        return {"channels": self.channels, "reduction": self.reduction, "identity_init": self.identity_init}

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        # TorchScript hands no functions on, and takes a comment on types only at the end of a line.
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return gate(x, self._gates(*pool(x, "avg"), h, w))
        else:
            return attend(x, "avg", partial(self._gates, h=h, w=w))

    def gates(self, x: Tensor) -> AxisGates:
        h, w = x.shape[2:]
        gates = self._gates(*pool(x, "avg"), h, w).to(x.dtype)
        gate_h, gate_w = torch.split(gates, [h, w], dim=2)
        return AxisGates(gate_h, gate_w)

    def _gates(self, means: Tensor | None, maxima: Tensor | None, h: int, w: int) -> Tensor:
        f = combine(means, maxima).unsqueeze(3)  # (B, C, H+W, 1)
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            f_h, f_w = torch.split(self.act(self.bn1(self.conv1(f))), [h, w], dim=2)
            a_h, a_w = self.conv_h(f_h), self.conv_w(f_w)
        else:
            f_h, f_w = torch.split(without_overflow(f, self.conv1, self.bn1, self.act), [h, w], dim=2)
            a_h, a_w = without_overflow(f_h, self.conv_h), without_overflow(f_w, self.conv_w)
        return self.gate(torch.cat((a_h, a_w), dim=2)).squeeze(3)  # (B, C, H+W)
