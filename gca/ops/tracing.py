"""Whether a call is recorded into a graph or transformed, rather than run."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiling() -> bool:
    """Under torch.compile, and not under export, which traces in the same way."""
    # The flag, since is_exporting() of torch 2.8 is true in torch.compile as well.
    return torch.compiler.is_compiling() and not torch.compiler._is_exporting_flag


def constant(function: _Function) -> _Function:
    """Of what a function returns, a compiled graph holds the value that it had when it was compiled.

    As torch.compiler.assume_constant_result has it, which imports the whole compiler for it.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def transformed() -> bool:
    """Under torch.func or forward-mode differentiation, for which torch has no public question."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def traced(x: Tensor) -> bool:
    """Under torch.compile, export, jit.trace, FX, torch.func, forward-mode differentiation or a dispatch mode.

    Kernels read and write memory behind torch's back, so that none of these would see them. torch answers publicly for
    the first three; FX and tensor sub-classes show in the type. It has no public question for the last four, each of
    which a test asks.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or type(x) not in (Tensor, torch.nn.Parameter)
        or transformed()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.is_legacy_batchedtensor(x)  # autograd.grad(is_grads_batched=True)
    )
