"""The 1x1 convolutions of a coordinate layer, on its pooled features."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from gca.ops.tracing import compiling, constant, traced


def pointwise(f: Tensor, groups: int, *modules: nn.Module) -> Tensor:
    """1x1 convolutions, and what stands between them, on every group of channels of ``f``, ``(B, C, L)``.

    In float32, and so is the result, where they would compute in float16. That ends at 65,504, which the sum of a mean
    and a maximum may exceed, and all the more a sum over channels. Of what FX traces nobody knows the dtype, and there
    it stays as it is.
    """
    if isinstance(f, torch.fx.Proxy):
        return _pointwise(f, groups, modules)
    device = f.device.type
    autocast = _has_autocast(device) and torch.is_autocast_enabled(device)
    if not _in_float16(f, modules[0], autocast):
        return _pointwise(f, groups, modules)
    f = f.float()
    if not autocast:
        return _pointwise(f, groups, modules, widened=True)
    with torch.autocast(device, enabled=False):
        # No products: a compiler has their gradients computed under autocast again, those of convolutions not.
        return _pointwise(f, groups, modules, widened=True, products=False)


@constant  # torch 2.8 cannot compile the question
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


def _in_float16(f: Tensor, conv: nn.Module, autocast: bool) -> bool:
    if f.dtype == torch.float64:  # which autocast leaves alone
        return False
    dtypes = (torch.get_autocast_dtype(f.device.type),) if autocast else (f.dtype, _dtype_of(conv, f))
    return torch.float16 in dtypes


def _dtype_of(module: nn.Module, x: Tensor) -> torch.dtype:
    """That of its parameters or buffers, whatever they are called; that of ``x`` where it has none."""
    for tensors in (module.parameters(), module.buffers()):
        for t in tensors:
            if t.is_floating_point():
                return t.dtype
    return x.dtype


def _pointwise(
    f: Tensor, groups: int, modules: tuple[Any, ...], widened: bool = False, products: bool = True
) -> Tensor:
    b, c, length = f.shape
    channels_innermost = compiling() or (not traced(f) and f.stride(2) != 1)  # a compiler lays them out so for nothing
    if not (channels_innermost and products):
        image = f.reshape(b * groups, c // groups, length, 1)
        for module in modules:
            image = _call(module, image, widened)
        return image.reshape(b, image.shape[1] * groups, length)
    # Every position of every group is the row of a matrix, and a 1x1 convolution is a matrix product, for which torch
    # takes down to half the time (two CPU cores, with AVX2).
    rows = f.transpose(1, 2).reshape(b, length * groups, c // groups)
    for module in modules:
        if _is_product(module):
            weight, bias = _parameters(module, widened)
            rows = F.linear(rows, weight.flatten(1), bias)
        else:
            rows = _call(module, rows.transpose(1, 2).unsqueeze(3), widened).squeeze(3).transpose(1, 2)
    return rows.reshape(b, length, rows.shape[2] * groups).transpose(1, 2)


def _unwatched(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is of this class, as torch has it, and nobody waits to see it called."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    replaced = "forward" in module.__dict__ or "_conv_forward" in module.__dict__
    everywhere = torch_module._has_any_global_hook()  # type: ignore[no-untyped-call]
    return type(module) is kind and not any(hooks) and not replaced and not everywhere


def _is_product(module: Any) -> bool:
    """Whether a module may be computed as a matrix product."""
    if not _unwatched(module, nn.Conv2d) or module.groups != 1:
        return False
    return bool(module.kernel_size == module.stride == (1, 1) and module.padding == (0, 0))


def _call(module: Any, image: Tensor, widened: bool) -> Tensor:
    """``module(image)``; where ``image`` was widened to float32, with parameters in float32 as far as that can be."""
    if not widened:
        return module(image)  # type: ignore[no-any-return]
    dtype = _dtype_of(module, image)
    if dtype == image.dtype:
        return module(image)  # type: ignore[no-any-return]
    if _unwatched(module, nn.Conv2d):
        return module._conv_forward(image, *_parameters(module, widened))  # type: ignore[no-any-return]
    if _unwatched(module, nn.BatchNorm2d) and module.affine and module.track_running_stats:
        return _batch_norm(module, image)
    return module(image.to(dtype)).float()  # type: ignore[no-any-return]


def _batch_norm(module: Any, image: Tensor) -> Tensor:
    mean, var, factor = module.running_mean.float(), module.running_var.float(), 0.0
    if module.training:
        module.num_batches_tracked.add_(1)
        factor = 1 / float(module.num_batches_tracked) if module.momentum is None else module.momentum
    image = F.batch_norm(image, mean, var, *_parameters(module, True), module.training, factor, module.eps)
    if module.training:
        module.running_mean.copy_(mean)
        module.running_var.copy_(var)
    return image


def _parameters(module: Any, widened: bool) -> tuple[Tensor, Tensor | None]:
    if not widened:
        return module.weight, module.bias
    return module.weight.float(), None if module.bias is None else module.bias.float()
