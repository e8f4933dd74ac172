"""The small convolutions of a coordinate layer, in float32 where float16 could not hold what they sum."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gca.ops.tracing import constant


def without_overflow(f: Tensor, *modules: nn.Module) -> Tensor:
    """``modules`` one after the other; in float32, and so is the result, where they would compute in float16.

    Float16 ends at 65,504, which the sum of a mean and a maximum may exceed, and all the more a sum over channels. Of
    what FX traces nobody knows the dtype, and there it stays as it is.
    """
    if isinstance(f, torch.fx.Proxy) or not _in_float16(f, modules[0]):
        for module in modules:
            f = module(f)
        return f
    f = f.float()
    if not _has_autocast(f.device.type):
        return _each(f, *modules)
    with torch.autocast(f.device.type, enabled=False):
        return _each(f, *modules)


@constant  # torch 2.8 cannot compile the question
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


def _in_float16(f: Tensor, conv: nn.Module) -> bool:
    device = f.device.type
    autocast = _has_autocast(device) and torch.is_autocast_enabled(device)
    return torch.float16 in ((torch.get_autocast_dtype(device),) if autocast else (f.dtype, conv.weight.dtype))


def _each(f: Tensor, *modules: Any) -> Tensor:
    for module in modules:
        if getattr(module, "weight", f).dtype == f.dtype:
            f = module(f)
        elif isinstance(module, nn.Conv2d):
            bias = None if module.bias is None else module.bias.float()
            f = F.conv2d(f, module.weight.float(), bias, groups=module.groups)
        else:
            f = _batch_norm(f, module)
    return f


def _batch_norm(f: Tensor, bn: Any) -> Tensor:
    mean, var = bn.running_mean.float(), bn.running_var.float()
    f = F.batch_norm(f, mean, var, bn.weight.float(), bn.bias.float(), bn.training, bn.momentum or 0.1, bn.eps)
    if bn.training:
        bn.num_batches_tracked.add_(1)
        bn.running_mean.copy_(mean)
        bn.running_var.copy_(var)
    return f
