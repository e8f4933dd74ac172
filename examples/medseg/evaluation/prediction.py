"""Apply trained networks to slices: one as it is scored, or several, flipped and enlarged, averaged."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
from numpy.typing import NDArray
from segmentation_models_pytorch.base import SegmentationModel
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

import gca
from medseg.data.dataset import Labels
from medseg.errors import DataError, RunError
from medseg.evaluation.inputs import Probabilities, Use, read_use
from medseg.files import read_json
from medseg.training.transforms import as_rgb, fit_square, unfit_square

# What is predicted and averaged: the slice as it is, and its mirror images.
FLIPS: dict[str, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "horizontal": ((), (-1,)),
    "vertical": ((), (-2,)),
    "both": ((), (-1,), (-2,), (-2, -1)),
}


@dataclass(frozen=True)
class Network:
    """A trained network in evaluation mode, on its device, and what it was trained on."""

    model: nn.Module
    use: Use


def load_network(run: Path | Use, device: str) -> Network:
    """Load the network of a run, given by its folder or by what ``read_use`` found there."""
    use = run if isinstance(run, Use) else read_use(run)
    folder, classes, size = use.folder, use.classes, use.size
    architecture = read_json(folder / "config.json").get("_model_class")
    kind = gca.GCAResUNet if architecture == "GCAResUNet" else getattr(smp, str(architecture), None)
    if not (isinstance(kind, type) and issubclass(kind, SegmentationModel)):
        raise DataError(f"{folder / 'config.json'} names {architecture!r}; wanted GCAResUNet or one of {smp.__name__}")
    network: Any = kind
    try:
        # Nothing is downloaded for the encoder, and no pickle is read: the weights are all in model.safetensors.
        model = network.from_pretrained(folder, encoder_weights=None, strict=True).eval()
        with torch.inference_mode():
            channels = model(torch.zeros(1, 3, size, size)).shape[1]
    except Exception as error:  # safetensors, torch and the constructors of the networks have each their own
        raise DataError(f"cannot load the network in {folder}: {_line(error)}") from error
    if channels != len(classes):
        raise DataError(f"the network in {folder} has {channels} classes, its preprocessing.json {len(classes)}")
    try:
        return Network(model.to(device), use)
    except (RuntimeError, AssertionError) as error:
        raise RunError(f"cannot use --device {device}: {_line(error)}") from error


def predict(
    networks: Sequence[Network],
    image: NDArray[np.generic],
    *,
    batch_size: int,
    flips: str = "none",
    smooth: bool = False,
    keep: bool = False,
) -> tuple[Labels, Probabilities | None]:
    """Labels ``(Z, H, W)``, and probabilities ``(Z, classes, H, W)`` if they are kept.

    Args:
        networks: Whose probabilities are averaged; all for the same classes.
        image: ``(Z, C, H, W)``: uint8, or float32 in [0, 1]; one channel or three.
        batch_size: Slices at a time.
        flips: One of ``FLIPS``: mirror images that are predicted as well.
        smooth: Enlarge the logits to the size of the input, bilinearly, instead of the labels, whose borders are then
            stairs. Networks of several sizes are averaged so, and probabilities kept.
        keep: Return the probabilities too.

    Raises:
        RunError: If the device has too little memory.
    """
    try:
        if len(networks) == 1 and flips == "none" and not smooth and not keep:  # as the scores of a run are computed
            (network,) = networks
            return predict_volume(network.model, image, size=network.use.size, batch_size=batch_size), None
        return _averaged(networks, image, batch_size, FLIPS[flips], smooth or keep, keep)
    except torch.cuda.OutOfMemoryError as error:
        raise RunError(f"the device has too little memory; lower --batch-size from {batch_size}") from error


@torch.inference_mode()
def predict_volume(model: nn.Module, image: NDArray[np.generic], *, size: int, batch_size: int) -> Labels:
    """Predict slice by slice: fit to a square, take the likeliest class, back to native size.

    Args:
        model: ``(B, 3, S, S)`` -> logits ``(B, classes, S, S)``; used in the mode it is in.
        image: ``(Z, C, H, W)``: uint8, or float32 in [0, 1]; one channel or three.
        size: Side of the square.
        batch_size: Slices at a time.

    Returns:
        Labels ``(Z, H, W)``.
    """
    height, width = image.shape[-2:]
    predicted = []
    for batch in torch.split(torch.from_numpy(image), batch_size):
        logits = model(_squares(batch, size).to(next(model.parameters()).device))
        predicted.append(unfit_square(logits.argmax(1).to(torch.uint8).cpu(), height, width))
    return torch.cat(predicted).numpy()


@torch.inference_mode()
def _averaged(
    networks: Sequence[Network],
    image: NDArray[np.generic],
    batch_size: int,
    flips: Sequence[tuple[int, ...]],
    smooth: bool,
    keep: bool,
) -> tuple[Labels, Probabilities | None]:
    height, width = image.shape[-2:]
    labels, kept = [], []
    for batch in torch.split(torch.from_numpy(image), batch_size):
        found: Any = 0
        for network in networks:
            squares = _squares(batch, network.use.size).to(next(network.model.parameters()).device)
            for axes in flips:
                logits = network.model(squares.flip(axes)).float().flip(axes)
                found = found + (unfit_square(logits, height, width) if smooth else logits).softmax(1).cpu()
        likeliest = found.argmax(1).to(torch.uint8)
        labels.append(likeliest if smooth else unfit_square(likeliest, height, width))
        if keep:
            kept.append(found / (len(networks) * len(flips)))
    return torch.cat(labels).numpy(), torch.cat(kept).numpy() if keep else None


def _squares(batch: Tensor, size: int) -> Tensor:
    return as_rgb(fit_square(tv.to_dtype(batch, torch.float32, scale=True), size))


def _line(error: Exception) -> str:
    text = " ".join((str(error) or type(error).__name__).split())
    return text if len(text) < 300 else f"{text[:300]} ..."
