"""Apply a trained network to files: scans and photographs in, labels and overlays in the form of the input out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import segmentation_models_pytorch as smp
import torch
from numpy.typing import NDArray
from PIL import Image
from segmentation_models_pytorch.base import SegmentationModel
from torch import nn
from torchvision.transforms.v2 import functional as tv

import gca
from medseg.atomic_write import atomic_write, write_image, write_npz
from medseg.data.arrays import check_image, check_spacing, read_h5, read_json, read_npz
from medseg.data.dataset import Labels
from medseg.data.images import read_image
from medseg.data.nifti import orientation_of, to_slices
from medseg.data.scans import read_nifti
from medseg.errors import DataError, RunError
from medseg.training.transforms import as_rgb, fit_square, unfit_square

# What each intensity is read from, and the suffixes that the labels of it may have, the usual one first.
SCANS = {".nii.gz": (".nii.gz", ".nii"), ".nii": (".nii", ".nii.gz"), ".npz": (".npz",), ".h5": (".npz",)}
PHOTOGRAPHS = {".png": (".png",), ".jpg": (".png",), ".jpeg": (".png",)}
FORMATS: Mapping[str, Mapping[str, tuple[str, ...]]] = {"hu": SCANS, "min-max": SCANS, "rgb": PHOTOGRAPHS}


@dataclass(frozen=True)
class Network:
    """A trained network, and what a prediction has to know about its training.

    Args:
        model: In evaluation mode.
        classes: Names, background first.
        size: Side of the square slices.
        intensity: As in ``medseg.data.dataset.Benchmark``.
    """

    model: nn.Module
    classes: tuple[str, ...]
    size: int
    intensity: str


@dataclass(frozen=True)
class Picture:
    """The content of one file, and how to save labels in its form.

    Args:
        image: ``(Z, C, H, W)``, as in ``medseg.data.dataset.Volume``.
        save: Labels ``(Z, H, W)`` and path.
    """

    image: NDArray[np.generic]
    save: Callable[[Labels, Path], None]


def load_network(folder: Path, device: str) -> Network:
    """Load what a run left in ``model/``; ``folder`` is that or the run's."""
    if (folder / "model").is_dir():
        folder = folder / "model"
    for name in ("preprocessing.json", "config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise DataError(f"no {name} in {folder}; give --checkpoint the folder of a run, or model/ in it")
    classes, size, intensity = _read_use(folder / "preprocessing.json")
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
        return Network(model.to(device), classes, size, intensity)
    except (RuntimeError, AssertionError) as error:
        raise RunError(f"cannot use --device {device}: {_line(error)}") from error


def suffix_of(path: Path, network: Network) -> str | None:
    """Which of the supported suffixes a file has."""
    return next((suffix for suffix in FORMATS[network.intensity] if path.name.lower().endswith(suffix)), None)


def read_picture(path: Path, network: Network) -> Picture:
    """Read and check one file, in the orientation and scaling of the training data."""
    if not path.is_file():
        raise DataError(f"no file {path}")
    suffix = suffix_of(path, network)
    if suffix is None:
        trained = "photographs" if network.intensity == "rgb" else "scans"
        raise DataError(f"{path}: the network is for {trained}; wanted {', '.join(FORMATS[network.intensity])}")
    if network.intensity == "rgb":
        return _read_photograph(path, len(network.classes))
    return _read_nifti(path, network.intensity) if suffix.startswith(".nii") else _read_arrays(path, suffix)


def predict(network: Network, picture: Picture, batch_size: int) -> Labels:
    """Labels ``(Z, H, W)``."""
    try:
        return predict_volume(network.model, picture.image, size=network.size, batch_size=batch_size)
    except torch.cuda.OutOfMemoryError as error:
        raise RunError(f"the device has too little memory; lower --batch-size from {batch_size}") from error


def _read_nifti(path: Path, intensity: Any) -> Picture:
    image: Any = read_nifti(path)
    orientation = orientation_of(path, image, intensity)

    def save(labels: Labels, target: Path) -> None:
        header = image.header.copy()  # keeps affine, codes of qform and sform, spacing and units
        header.set_data_dtype(np.uint8)
        header["cal_min"], header["cal_max"] = 0, 0  # the window in which a viewer would show the image
        with atomic_write(target) as part:
            nibabel.save(type(image)(orientation.voxels(labels), image.affine, header), part)

    return Picture(to_slices(path, image, intensity)[:, None], save)


def _read_arrays(path: Path, suffix: str) -> Picture:
    read = read_npz if suffix == ".npz" else read_h5
    try:
        arrays = read(path, ("image",))
    except DataError as error:
        try:
            arrays = read(path, ("img",))
        except DataError:
            raise error from None
    image = arrays.get("image", arrays.get("img"))
    assert image is not None
    image = check_image(path, image, 2 if image.ndim == 2 else 3)
    if image.shape[-1] <= 4 < image.shape[-2]:
        raise DataError(
            f"{path}: image has shape {image.shape}; wanted grey values (H, W) or (Z, H, W), no channels last"
        )
    spacing = check_spacing(path, arrays.get("spacing"))

    def save(labels: Labels, target: Path) -> None:
        known = {} if spacing is None else {"spacing": np.array(spacing)}
        write_npz(target, label=labels.reshape(image.shape), **known)

    return Picture(image.reshape(-1, 1, *image.shape[-2:]), save)


def _read_photograph(path: Path, classes: int) -> Picture:
    image = read_image(path)

    def save(labels: Labels, target: Path) -> None:
        write_image(target, Image.fromarray(labels[0] * 255 if classes == 2 else labels[0]))

    return Picture(image.transpose(2, 0, 1)[None], save)


def _read_use(path: Path) -> tuple[tuple[str, ...], int, str]:
    """Classes, size and intensity that a network was trained with."""
    use = read_json(path)
    classes, size, intensity = use.get("classes", []), use.get("size", 0), use.get("intensity")
    named = isinstance(classes, list) and len(classes) > 1 and all(isinstance(name, str) for name in classes)
    if named and isinstance(size, int) and size > 0 and isinstance(intensity, str) and intensity in FORMATS:
        return tuple(classes), size, intensity
    raise DataError(
        f"{path} holds {use}; wanted classes (names, background first), size and intensity "
        f"(one of {', '.join(FORMATS)}), as the training writes them"
    )


def _line(error: Exception) -> str:
    text = " ".join((str(error) or type(error).__name__).split())
    return text if len(text) < 300 else f"{text[:300]} ..."


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
    device = next(model.parameters()).device
    height, width = image.shape[-2:]
    predicted = []
    for batch in torch.split(torch.from_numpy(image), batch_size):
        fitted = fit_square(tv.to_dtype(batch, torch.float32, scale=True), size)
        logits = model(as_rgb(fitted).to(device))
        predicted.append(unfit_square(logits.argmax(1).to(torch.uint8).cpu(), height, width))
    return torch.cat(predicted).numpy()
