"""Whether a processor can train in reduced precision."""

from typing import Any

import torch

from medseg.errors import RunError


def slow_in_bfloat16() -> bool:
    """Whether oneDNN, which computes torch's convolutions on CPU, has no bfloat16 on this processor."""
    mkldnn: Any = torch.backends.mkldnn  # untyped
    return bool(mkldnn.is_available()) and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def check_precision(precision: str, accelerator: str) -> None:
    """Refuse to train on a CPU in a precision that it emulates.

    Args:
        precision: As in ``Settings``; on CPU Lightning trains in bfloat16 for ``16-mixed`` too.
        accelerator: As in ``Execution``.

    Raises:
        RunError: If the training would run on a CPU without bfloat16.
    """
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
    if precision != "32-true" and on_cpu and slow_in_bfloat16():
        raise RunError(
            f"--precision {precision} on this processor ({torch.backends.cpu.get_cpu_capability()}), which computes "
            "bfloat16 without AVX-512: a step of GCA-ResUNet took more than 15 times as long as in float32; train "
            "with --precision 32-true, or on another machine"
        )
