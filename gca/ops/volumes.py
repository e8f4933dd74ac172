"""Volumes as planes, by which kernels for images serve ``(B, C, D, H, W)`` as well.

A volume in NCDHW is ``B`` images of ``C * D`` channels, one in channels_last_3d ``B * D`` images in channels_last, and
neither needs a copy. A kernel pools the rows and the columns of those planes; what is left, to pool their features over
``D``, ``H`` or ``D`` again and to multiply gates, is small, and is left to torch and its autograd. Every function here
returns what it is given where ``x`` is an image.

Pooled in two steps, a maximum that is attained more than once shares its gradient first among the rows (or columns)
that attain it, and then in each of them; by the formula, all positions have equal shares.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gca.ops.layout import is_channels_last


def plane_shape(x: Tensor) -> torch.Size:
    """The shape of :func:`planes`, for a volume in any layout."""
    if x.ndim != 5:
        return x.shape
    b, c, d, h, w = x.shape
    return torch.Size((b * d, c, h, w) if is_channels_last(x) else (b, c * d, h, w))


def planes(x: Tensor) -> Tensor:
    """A dense volume as a batch of images, a view."""
    if x.ndim != 5:
        return x
    return (x.transpose(1, 2) if is_channels_last(x) else x).view(plane_shape(x))


def volume(y: Tensor, x: Tensor) -> Tensor:
    """What kernels give for the planes of ``x``, in its shape: a view."""
    if x.ndim != 5:
        return y
    b, c, d, h, w = x.shape
    return y.view(b, d, c, h, w).transpose(1, 2) if is_channels_last(x) else y.view(x.shape)


def pool_planes(means: Tensor | None, maxima: Tensor | None, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The features of ``x``, ``(B, C, D + H + W)``, from those of the rows and columns of its planes."""
    if x.ndim != 5:
        return means, maxima
    return _again(means, x, torch.mean), _again(maxima, x, torch.amax)


def _again(features: Tensor | None, x: Tensor, statistic: Callable[[Tensor, int], Tensor]) -> Tensor | None:
    """One statistic of the rows over ``H``, of the rows over ``D`` and of the columns over ``D``."""
    if features is None:
        return None
    b, c, d, h, w = x.shape
    if last := is_channels_last(x):  # then so are its features
        features, along = features.transpose(1, 2).reshape(b, d, h + w, c), 1
    else:
        features, along = features.reshape(b, c, d, h + w), 2
    rows, columns = torch.split(features, [h, w], dim=along + 1)
    pooled = (statistic(rows, along + 1), statistic(rows, along), statistic(columns, along))
    return torch.cat(pooled, dim=along).transpose(1, 2) if last else torch.cat(pooled, dim=along)


def gate_planes(gates: Tensor, x: Tensor) -> Tensor:
    """The gates of the rows and columns of the planes of ``x`` from its own, ``(B, C, D + H + W)``."""
    if x.ndim != 5:
        return gates
    b, c, d, h, w = x.shape
    along = 1 if is_channels_last(x) else 2
    gate_d, gate_h, gate_w = torch.split(gates.transpose(1, 2) if along == 1 else gates, [d, h, w], dim=along)
    rows = gate_d.unsqueeze(along + 1) * gate_h.unsqueeze(along)
    columns = gate_w.unsqueeze(along)
    if along == 1:
        return torch.cat((rows, columns.expand(b, d, w, c)), dim=2).view(b * d, h + w, c).transpose(1, 2)
    return torch.cat((rows, columns.expand(b, c, d, w)), dim=3).view(b, c * d, h + w)
