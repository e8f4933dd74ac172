"""Compile Triton's kernels for a GPU of some compute capability, which need not be here: compile_triton.py 90 float32.

In a process of its own, since Triton is told that this GPU is the active one. Launching is replaced by compiling, so
that the kernels are compiled with the arguments of real calls.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from gca.ops import triton as kernels


class Absent:
    """What Triton asks of a driver before it launches."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", int(sys.argv[1]), 32)


def compiling(kernel: Any, grid: tuple[int, ...]) -> Callable[..., None]:
    """What ``kernel[grid]`` gives: here a function that compiles the kernel and says how large it is."""

    def compile_for(*arguments: Any, **constants: Any) -> None:
        compiled = kernel.warmup(*arguments, grid=grid, **constants)
        print(kernel.__name__, len(compiled.asm["cubin"]))

    return compile_for


if __name__ == "__main__":
    triton.runtime.driver.set_active(Absent())
    triton.runtime.JITFunction.__getitem__ = compiling
    dtype = getattr(torch, sys.argv[2])
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.ones(2, 64, 28, 28, dtype=dtype).to(memory_format=memory_format)
        features = torch.ones(2, 64, 56, dtype=dtype)
        kernels.pool(x, "avg+max")
        kernels.gate(x, features)
        kernels.gate_backward(x, x, features)
        kernels.pool_backward(x, features, features, features, x, features)
