"""Build the network that the settings describe and save it; refuse a precision that a processor lacks."""

from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch import nn

import gca
from medseg.atomic_write import write_json
from medseg.data.dataset import Benchmark
from medseg.errors import RunError
from medseg.settings import Settings


def build_model(benchmark: Benchmark, settings: Settings) -> nn.Module:
    """The network that the settings describe, from random initialisation."""
    wanted: dict[str, Any] = {"groups": settings.groups, "reduction": settings.reduction, "pool": settings.pool}
    options = {name: value for name, value in wanted.items() if value is not None}
    if settings.identity_init:
        options["identity_init"] = True
    attention = None if settings.attention == "none" else settings.attention
    classes = 1 + len(benchmark.classes)
    model: nn.Module
    try:
        if settings.arch == "gca-resunet":
            model = gca.GCAResUNet(classes, encoder=settings.encoder, attention=attention, attention_options=options)
        elif attention is not None or options:
            raise ValueError(f"attention is for --arch gca-resunet, not {settings.arch}, which is a baseline as it is")
        else:
            model = smp.create_model(settings.arch, settings.encoder, encoder_weights=None, classes=classes)
        with torch.inference_mode():  # a size that it cannot take should not show up after reading the data
            model.eval()(torch.zeros(1, 3, settings.size, settings.size))
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise RunError(f"cannot build the network: {error}") from error
    return model.train()


def save_model(benchmark: Benchmark, model: Any, settings: Settings, folder: Path) -> None:
    """Save the network for ``from_pretrained``, and beside it what a prediction has to know."""
    model.save_pretrained(folder)
    use = {
        "benchmark": benchmark.name,
        "classes": ["background", *benchmark.classes],
        "size": settings.size,
        "intensity": benchmark.intensity,
    }
    write_json(folder / "preprocessing.json", use)


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
