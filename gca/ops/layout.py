"""The order of axes in memory: NCHW or channels_last, and for pooled features and gates likewise.

The features of all rows and columns of an ``x`` of shape ``(B, C, H, W)`` are ``(B, C, H + W)``, the rows first. In
memory they are ``(B, H + W, C)`` where ``x`` is in channels_last.
"""

import torch
from torch import Tensor

from gca.ops.tracing import compiling, traced

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the number of axes


def is_channels_last(t: Tensor) -> bool:
    """Whether the axes of an image or volume lie in the order of channels_last, or of channels_last_3d, and in no
    other: with one channel they lie in both."""
    return t.ndim in CHANNELS_LAST and t.is_contiguous(memory_format=CHANNELS_LAST[t.ndim]) and not t.is_contiguous()


def dense(x: Tensor, like: Tensor | None = None) -> Tensor:
    """``x`` in one of the two layouts that kernels take, that of ``like`` if given, copied where it is in neither."""
    if like is not None:
        return x.contiguous(memory_format=torch.contiguous_format if like.is_contiguous() else torch.channels_last)
    return x if x.is_contiguous(memory_format=CHANNELS_LAST[x.ndim]) else x.contiguous()


def new_features(x: Tensor) -> Tensor:
    """Memory for the features of ``x``, in its order."""
    b, c, h, w = x.shape
    return x.new_empty(b, c, h + w) if x.is_contiguous() else x.new_empty(b, h + w, c).transpose(1, 2)


def dense_features(features: Tensor, x: Tensor) -> Tensor:
    """The features of ``x`` as they lie in memory, in its order and without gaps."""
    return features.contiguous() if x.is_contiguous() else features.transpose(1, 2).contiguous()


def split_groups(features: Tensor, groups: int) -> Tensor:
    """``(B, C, L)`` as images of ``C / groups`` channels, ``(B * groups, C / groups, L, 1)``, for convolutions.

    Where channels are neighbours in memory that would need a copy. Then all groups are columns of one image, in which
    every pooled feature of every group is a position: a view in channels_last.
    """
    b, c, length = features.shape
    if _channels_innermost(features):
        return features.transpose(1, 2).reshape(1, b * length, groups, c // groups).permute(0, 3, 1, 2)
    return features.reshape(b * groups, c // groups, length, 1)


def merge_groups(images: Tensor, features: Tensor) -> Tensor:
    """What convolutions give for :func:`split_groups` of ``features``, in the shape of these."""
    b, c, length = features.shape
    if _channels_innermost(features):
        return images.permute(0, 2, 3, 1).reshape(b, length, c).transpose(1, 2)
    return images.reshape(b, c, length)


def _channels_innermost(features: Tensor) -> bool:
    """Asked of tensors that have memory; a traced graph is to be plain. A batch without images is no image."""
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return False
    else:
        plain = traced(features) and not compiling()
        return not plain and features.stride(2) != 1 and features.shape[0] > 0
