"""The order of axes in memory."""

import torch
from torch import Tensor

from gca.ops.capture import captured


def channels_innermost(x: Tensor) -> bool:
    """Whether the channels of ``x`` are neighbours in memory, as in channels_last.

    In torch.compile they are whatever the layout of ``x``, since it lays out convolutions so. In other captures they
    are not: what is recorded there is to be plain, and may run on either layout.
    """
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return False
    elif torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        return True
    else:
        return not captured(x) and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
