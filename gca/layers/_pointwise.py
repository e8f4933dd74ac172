"""The 1x1 convolutions of a coordinate layer, on its pooled features."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gca.ops.tracing import compiling, constant, traced


def pointwise(f: Tensor, groups: int, *modules: nn.Module) -> Tensor:
    """1x1 convolutions, and what stands between them, on every group of channels of ``f``, ``(B, C, L)``.

    In float32, and so is the result, where they would compute in float16. That ends at 65,504, which the sum of a mean
    and a maximum may exceed, and all the more a sum over channels. Of what FX traces nobody knows the dtype, and there
    it stays as it is.
    """
    if isinstance(f, torch.fx.Proxy) or not _in_float16(f, modules[0]):
        return _pointwise(f, groups, modules)
    f = f.float()
    if not _has_autocast(f.device.type):
        return _pointwise(f, groups, modules, widened=True)
    with torch.autocast(f.device.type, enabled=False):
        return _pointwise(f, groups, modules, widened=True)


@constant  # torch 2.8 cannot compile the question
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


def _in_float16(f: Tensor, conv: nn.Module) -> bool:
    device = f.device.type
    autocast = _has_autocast(device) and torch.is_autocast_enabled(device)
    return torch.float16 in ((torch.get_autocast_dtype(device),) if autocast else (f.dtype, conv.weight.dtype))


def _pointwise(f: Tensor, groups: int, modules: tuple[Any, ...], widened: bool = False) -> Tensor:
    b, c, length = f.shape
    channels_innermost = compiling() or (not traced(f) and f.stride(2) != 1)  # a compiler lays them out so for nothing
    if not channels_innermost:
        image = f.reshape(b * groups, c // groups, length, 1)
        for module in modules:
            image = _call(module, image, widened)
        return image.reshape(b, image.shape[1] * groups, length)
    # Every position of every group is the row of a matrix, and a 1x1 convolution is a matrix product, for which torch
    # takes down to half the time (two CPU cores, with AVX2).
    rows = f.transpose(1, 2).reshape(b, length * groups, c // groups)
    for module in modules:
        if _is_plain(module):
            weight, bias = _parameters(module, widened)
            rows = F.linear(rows, weight.flatten(1), bias)
        else:
            rows = _call(module, rows.transpose(1, 2).unsqueeze(3), widened).squeeze(3).transpose(1, 2)
    return rows.reshape(b, length, rows.shape[2] * groups).transpose(1, 2)


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is a convolution that nobody waits to see called."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return type(module) is nn.Conv2d and module.groups == 1 and not any(hooks) and "forward" not in module.__dict__


def _call(module: Any, image: Tensor, widened: bool) -> Tensor:
    """``module(image)``, with parameters in float32 where ``image`` was widened to it."""
    if not widened or getattr(module, "weight", image).dtype == image.dtype:
        return module(image)  # type: ignore[no-any-return]
    if isinstance(module, nn.Conv2d):
        return F.conv2d(image, *_parameters(module, widened), groups=module.groups)
    mean, var = module.running_mean.float(), module.running_var.float()
    weight, bias = _parameters(module, widened)
    image = F.batch_norm(image, mean, var, weight, bias, module.training, module.momentum or 0.1, module.eps)
    if module.training:
        module.num_batches_tracked.add_(1)
        module.running_mean.copy_(mean)
        module.running_var.copy_(var)
    return image


def _parameters(module: Any, widened: bool) -> tuple[Tensor, Tensor | None]:
    if not widened:
        return module.weight, module.bias
    return module.weight.float(), None if module.bias is None else module.bias.float()
