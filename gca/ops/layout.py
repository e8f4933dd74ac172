"""The order of axes in memory.

Kernels take tensors as they lie: ``x`` in NCHW or channels_last, and values of its lines likewise.
"""

import torch
from torch import Tensor

from gca.ops.capture import captured


def is_channels_last(t: Tensor) -> bool:
    """Whether four axes lie in the order of channels_last, and in no other: with one channel they lie in both."""
    return t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()


def channels_innermost(x: Tensor) -> bool:
    """Whether the channels of ``x`` are neighbours in memory, as in channels_last.

    In torch.compile they are whatever the layout of ``x``, since it lays out convolutions so. In other captures they
    are not: what is recorded there is to be plain, and may run on either layout.
    """
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return False
    elif torch.compiler.is_compiling() and not torch.compiler._is_exporting_flag:
        return True  # torch 2.8's is_exporting() is true in torch.compile
    else:
        return not captured(x) and is_channels_last(x)


def new_lines(x: Tensor) -> Tensor:
    """Memory for a value of every line of ``x``, ``(B, C, H + W)``, channels innermost where they are so in ``x``."""
    b, c, h, w = x.shape
    return x.new_empty(b, c, h + w) if x.is_contiguous() else x.new_empty(b, h + w, c).transpose(1, 2)


def dense_lines(lines: Tensor, x: Tensor) -> Tensor:
    """Values of the lines of ``x``, ``(B, C, H + W)``, as kernels take them: without gaps, and ``(B, H + W, C)`` where
    channels are innermost in ``x``."""
    return lines.contiguous() if x.is_contiguous() else lines.transpose(1, 2).contiguous()
