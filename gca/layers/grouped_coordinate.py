"""Grouped coordinate attention: the layer of GCA-ResUNet."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gca.gates import AxisGates
from gca.layers._gated import GatedLayer, check_positive_int, reduced_channels
from gca.layers._pointwise import pointwise
from gca.ops import check_pool
from gca.ops.autograd import gate, pool
from gca.ops.plain import combine


class GroupedCoordinateAttention(GatedLayer):
    r"""Gate every position by its row and its column, one channel group at a time.

    The channels of :math:`X` are split into :math:`G` groups :math:`X_g` of :math:`C_g = C/G` channels. Each group
    is pooled along its width and along its height, by mean and by maximum; the two are summed and the :math:`H` row
    features and :math:`W` column features are concatenated as :math:`F`. Then, with
    :math:`\delta` = ReLU and :math:`\sigma` = sigmoid,

    .. math::

        A = \sigma(\mathrm{Conv}_{1 \times 1}(\delta(\mathrm{BN}(\mathrm{Conv}_{1 \times 1}(F))))), \qquad
        Y_g = X_g \odot A^h \odot A^w,

    where :math:`A^h` are the first :math:`H` positions of :math:`A`, :math:`A^w` the last :math:`W`, and the two
    convolutions map :math:`C_g \to C_g/r \to C_g` channels. :math:`Y` is the concatenation of the :math:`Y_g`.

    Args:
        channels: Input channels :math:`C`; divisible by ``groups``.
        groups: Channel groups :math:`G`.
        reduction: Reduction ratio :math:`r` between the two convolutions; at most :math:`C_g`. A ratio that does not
            divide :math:`C_g` is rounded down to whole channels.
        pool: Statistics that describe a row or column: ``"avg"``, ``"max"``, or ``"avg+max"`` for their sum.
        share_groups: One pair of convolutions serves every group, as in the paper; ``False`` gives each group its
            own pair. Rows and columns share theirs in both cases.
        spatial_dims: 2 for images, 3 for volumes. In 3-D the parameters have the same names and shapes, so the
            weights of either load into the other.
        identity_init: Start as the identity, bit for bit: gates are :math:`2\sigma` and the last convolution is zero.
        device, dtype: Of the parameters.

    Shape:
        ``(B, C, H, W)`` -> ``(B, C, H, W)``, dtype and memory format kept; any ``H`` and ``W`` from 1.

    Raises:
        ValueError: If ``channels`` is not divisible by ``groups``, ``reduction`` exceeds :math:`C_g`, ``pool`` is
            unknown or a size is below 1.
        TypeError: If a size is not an int.

    Reference:
        Ding and Gao, "GCA-ResUNet: Medical Image Segmentation Using Grouped Coordinate Attention", equations 2-7.
        Differs from the paper: nothing. Where the text leaves a choice, the one that reproduces its Table 4 is
        taken: mean and maximum are summed, and groups and directions share the convolutions, of which the first has
        no bias (batch norm follows) and the second has one. ``share_groups=False`` and ``identity_init=True`` are
        additions.

    Example:
        >>> layer = GroupedCoordinateAttention(256, groups=2, reduction=2)
        >>> layer(torch.randn(1, 256, 56, 56)).shape
        torch.Size([1, 256, 56, 56])
    """

    unseen = ("identity_init", "pool")

    def __init__(
        self,
        channels: int,
        groups: int = 2,
        reduction: int = 2,
        *,
        pool: str = "avg+max",
        share_groups: bool = True,
        spatial_dims: int = 2,
        identity_init: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(spatial_dims, identity_init)
        check_positive_int(channels=channels, groups=groups, reduction=reduction)
        if channels % groups:
            fitting = [f"groups={n}" for n in range(1, 9) if channels % n == 0]
            raise ValueError(
                f"channels must be divisible by groups, got channels={channels}, groups={groups}; choose "
                f"{' or '.join(fitting)}"
            )
        check_pool(pool)
        self.channels = channels
        self.groups = groups
        self.reduction = reduction
        self.pool = pool
        self.share_groups = share_groups

        width = channels // groups
        hidden = reduced_channels(width, reduction)
        conv_groups = 1
        if not share_groups:  # each group its own weights: the same two convolutions, grouped
            width, hidden, conv_groups = channels, hidden * groups, groups
        self.conv1 = nn.Conv2d(width, hidden, 1, groups=conv_groups, bias=False, device=device, dtype=dtype)
        self.bn1 = nn.BatchNorm2d(hidden, device=device, dtype=dtype)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(hidden, width, 1, groups=conv_groups, device=device, dtype=dtype)
        self.zero_init_last()

    def last_convs(self) -> Sequence[nn.Conv2d]:
        return (self.conv2,)

    def options(self) -> dict[str, Any]:
        names = ("channels", "groups", "reduction", "pool", "share_groups", "spatial_dims", "identity_init")
        return {name: getattr(self, name) for name in names}

    def forward(self, x: Tensor) -> Tensor:
        self._check_axes(x)
        means, maxima, link = pool(x, self.pool, self.spatial_dims)  # (B, C, H+W)
        return gate(x, self._gates(means, maxima), self.spatial_dims, link)

    def gates(self, x: Tensor) -> AxisGates:
        self._check_axes(x)
        means, maxima, _ = pool(x, self.pool, self.spatial_dims)
        gates = self._gates(means, maxima).to(x.dtype)
        return AxisGates.of(torch.split(gates, list(x.shape[2:]), dim=2), self.groups)

    def _gates(self, means: Tensor | None, maxima: Tensor | None) -> Tensor:
        f = combine(means, maxima)  # (B, C, H+W)
        groups = self.groups if self.share_groups else 1
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            images = f.reshape(f.shape[0] * groups, self.channels // groups, f.shape[2], 1)
            a = self.conv2(self.act(self.bn1(self.conv1(images)))).reshape(f.shape)
        else:
            a = pointwise(f, groups, self.conv1, self.bn1, self.act, self.conv2)
        return self.gate(a)  # (B, C, H+W)
