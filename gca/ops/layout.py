"""The order of axes in memory: NCHW or channels_last, and for pooled features and gates likewise.

The features of all rows and columns of an ``x`` of shape ``(B, C, H, W)`` are ``(B, C, H + W)``, the rows first. In
memory they are ``(B, H + W, C)`` where ``x`` is in channels_last.
"""

import torch
from torch import Tensor

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
