"""Build the network that the settings describe and save it; refuse a precision that a processor lacks."""

import copy
import difflib
import re
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn

import gca
from medseg.data.dataset import Benchmark
from medseg.errors import RunError
from medseg.files import write_json
from medseg.settings import Settings


def build_model(benchmark: Benchmark, settings: Settings, *, pretrained: bool = True) -> nn.Module:
    """The network that the settings describe, checked to take images of their size.

    Args:
        benchmark: For the number of classes.
        settings: With ``encoder_weights``, these are downloaded; all else starts at random.
        pretrained: False leaves them out, where all weights come from a checkpoint.

    Raises:
        RunError: In words of the command line, if there is no such network or the options do not fit it.
    """
    weights: Any = settings.encoder_weights if pretrained else None
    if weights and settings.encoder.startswith("tu-"):
        if weights != "imagenet":
            raise RunError(
                f"--encoder-weights {weights}: weights of timm are named in the encoder, as --encoder "
                f"{settings.encoder.partition('.')[0]}.TAG; give --encoder-weights imagenet with it"
            )
        weights = True
    try:
        model = _network(1 + len(benchmark.classes), settings, weights)
    except Exception as error:  # of smp, timm, gca and, for weights, of what downloads them
        raise _explained(error, settings, weights) from error
    try:
        with torch.inference_mode():  # a size that it cannot take should not show up after reading the data
            model.eval()(torch.zeros(1, 3, settings.size, settings.size))
        if settings.batch_size == 1:  # of which batch norm may have no statistics
            copy.deepcopy(model).train()(torch.zeros(1, 3, settings.size, settings.size))
    except (TypeError, ValueError, RuntimeError) as error:
        raise RunError(
            f"cannot train --arch {settings.arch} with --encoder {settings.encoder} --size {settings.size} "
            f"--batch-size {settings.batch_size}: {error}"
        ) from error
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


def _network(classes: int, settings: Settings, weights: Any) -> nn.Module:
    model: nn.Module
    if settings.arch != "gca-resunet":
        model = smp.create_model(settings.arch, settings.encoder, encoder_weights=weights, classes=classes)
        return model
    wanted: dict[str, Any] = {"groups": settings.groups, "reduction": settings.reduction, "pool": settings.pool}
    options = {name: value for name, value in wanted.items() if value is not None}
    if settings.identity_init:
        options["identity_init"] = True
    return gca.GCAResUNet(
        classes,
        encoder=settings.encoder,
        encoder_weights=weights,
        attention=None if settings.attention == "none" else settings.attention,
        attention_options=options,
    )


def _explained(error: Exception, settings: Settings, weights: Any) -> RunError:
    """What to do about a network that cannot be built, for someone who sees the command line alone."""
    reason, encoder = " ".join(str(error.args[0] if error.args else error).split()), settings.encoder
    if reason.startswith("Wrong architecture"):
        near = reason.partition("options are: ")[2].strip("[]").replace("'", "")
        return RunError(f"there is no --arch {settings.arch}; choose gca-resunet or one of {near}")
    if reason.startswith(("Wrong encoder name", "Unknown model")):
        known = [*smp.encoders.get_encoder_names(), *(f"tu-{name}" for name in timm.list_models())]
        near = ", ".join(difflib.get_close_matches(encoder, known)) or "tu-resnet50"
        return RunError(
            f"there is no --encoder {encoder}; encoders are those of segmentation-models-pytorch and, as tu-NAME, of "
            f"timm: {near}, ..."
        )
    if weights is not None and (isinstance(error, OSError) or "pretrained weights" in reason.lower()):
        return RunError(
            f"cannot get --encoder-weights {settings.encoder_weights} of {encoder}: {reason[:300]}; leave the option "
            "out, choose another --encoder, or give the command where there is internet access"
        )
    if "cannot build attention" in reason:  # its options do not fit the channels of a block
        words = re.sub(r"\b(groups|reduction|pool)( ?[=<])", r"--\1\2", reason.partition(": ")[2])
        return RunError(f"--attention {settings.attention} does not fit --encoder {encoder}: {words}")
    if settings.arch == "gca-resunet" and settings.attention != "none" and isinstance(error, TypeError | ValueError):
        said = re.split("; pass on_existing|; known are|; register", reason)[0]  # advice for those who write Python
        return RunError(
            f"--attention {settings.attention} cannot be put into --encoder {encoder}: {said}; choose another "
            "--encoder, e.g. tu-resnet50, or --attention none for this one as it is"
        )
    return RunError(f"cannot build --arch {settings.arch} with --encoder {encoder}: {reason[:300]}")


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


def precision_hint(precision: str, accelerator: str) -> str | None:
    """What a GPU with bfloat16 would gain by it, where the training does without."""
    if precision != "32-true" or accelerator == "cpu" or not torch.cuda.is_available():
        return None
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        return None
    return "Hint: this GPU computes in bfloat16, too; --precision bf16-mixed is faster and takes less memory."
