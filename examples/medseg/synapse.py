"""The preprocessed Synapse multi-organ set, in the on-disk layout that TransUNet introduced.

::

    DIR/train_npz/caseNNNN_sliceZZZ.npz       image (H, W) in [0, 1], label (H, W) in 0..8
    DIR/test_vol_h5/caseNNNN.npy.h5           image (Z, H, W), label (Z, H, W)
    DIR/lists_Synapse/train.txt               names of training slices, one a line
    DIR/lists_Synapse/test_vol.txt            names of test volumes, one a line
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from medseg.geometry import as_rgb, fit_square

ORGANS = ("aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach")
CLASSES = 1 + len(ORGANS)

Array = NDArray[np.float32]
Labels = NDArray[np.uint8]


class DataError(ValueError):
    """Training data is missing or damaged; the message names the file and the remedy."""


@dataclass(frozen=True)
class Volume:
    """One case: ``image`` (Z, H, W) in [0, 1] and ``label`` (Z, H, W) in 0..8."""

    case: str
    image: Array
    label: Labels


@dataclass(frozen=True)
class SynapseFolder:
    """A folder in the layout above whose lists were read and whose files all exist."""

    slices: Sequence[Path]
    volumes: Sequence[Path]

    @classmethod
    def open(cls, folder: Path) -> "SynapseFolder":
        """Read the lists and look for every file they name, without reading the files."""
        if not folder.is_dir():
            raise DataError(
                f"no data folder {folder}; give --data a folder that holds train_npz/, test_vol_h5/ "
                "and lists_Synapse/, or leave --data out to train on synthetic phantoms"
            )
        return cls(
            slices=_listed(folder, "train.txt", "train_npz", ".npz"),
            volumes=_listed(folder, "test_vol.txt", "test_vol_h5", ".npy.h5"),
        )


class SliceDataset(Dataset[tuple[Tensor, Tensor]]):
    """Training slices, read, checked and fitted to a square once, then kept in memory.

    Reading everything at the start finds a damaged file before the first step instead of hours later. Memory: one
    float32 image and one uint8 label per slice, 0.25 MB at 224x224.

    Args:
        paths: ``.npz`` files with ``image`` and ``label``.
        size: Side of the square.

    Items: image ``(3, S, S)`` float32 and label ``(S, S)`` int64.
    """

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.images, self.labels = [], []
        for path in tqdm(paths, desc="Reading training slices"):
            image, label = read_slice(path)
            self.images.append(fit_square(torch.from_numpy(image)[None], size)[0])
            self.labels.append(fit_square(torch.from_numpy(label)[None], size)[0])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return as_rgb(self.images[index]), self.labels[index].long()


def read_slice(path: Path) -> tuple[Array, Labels]:
    """Read and check one training slice: image (H, W) and label (H, W)."""

    def read() -> tuple[Array, Array]:
        # Never a pickle: an object array is refused. Opened here, because np.load leaks the file of a broken archive.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return _get(file, "image", path), _get(file, "label", path)

    return _checked(path, *_reading(path, read), dimensions=2)


def read_volume(path: Path) -> Volume:
    """Read and check one test volume."""

    def read() -> tuple[Array, Array]:
        with h5py.File(path, "r") as file:
            return _get(file, "image", path), _get(file, "label", path)

    return Volume(path.name.removesuffix(".npy.h5"), *_checked(path, *_reading(path, read), dimensions=3))


def slices_as_volumes(paths: Sequence[Path]) -> list[Volume]:
    """The listed slices of each case stacked into one volume, to score a network on what it was trained on."""
    cases: dict[str, list[Path]] = {}
    for path in paths:
        cases.setdefault(path.stem.rpartition("_slice")[0], []).append(path)
    volumes = []
    for case, members in cases.items():
        slices = [read_slice(path) for path in sorted(members)]
        shapes = {image.shape for image, _ in slices}
        if len(shapes) > 1:
            raise DataError(f"slices of {case} differ in shape ({sorted(shapes)}), so they cannot be one volume")
        images, labels = zip(*slices, strict=True)
        volumes.append(Volume(case, np.stack(images), np.stack(labels)))
    return volumes


def _listed(folder: Path, list_name: str, subfolder: str, suffix: str) -> list[Path]:
    list_path = folder / "lists_Synapse" / list_name
    if not list_path.is_file():
        raise DataError(f"no list {list_path}; it names one file of {subfolder}/ a line, without {suffix}")
    names = list_path.read_text().split()
    if not names:
        raise DataError(f"{list_path} is empty; it names one file of {subfolder}/ a line, without {suffix}")
    paths = [folder / subfolder / f"{name}{suffix}" for name in names]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(f"{len(missing)} of {len(paths)} files named in {list_path} are missing, first {missing[0]}")
    return paths


def _reading(path: Path, read: Callable[[], tuple[Array, Array]]) -> tuple[Array, Array]:
    try:
        return read()
    except DataError:
        raise
    except Exception as error:  # numpy, zipfile, zlib and h5py raise a dozen types over a damaged file
        raise DataError(f"cannot read {path}: {error}; the file is damaged or incomplete, fetch it again") from error


def _get(file: "np.lib.npyio.NpzFile | h5py.File", key: str, path: Path) -> Array:
    if key not in file:
        raise DataError(f"{path} has no array {key!r}, only {sorted(file)}; wanted 'image' and 'label'")
    array = np.asarray(file[key])
    if array.dtype.kind not in "fiub":
        raise DataError(f"{path}: {key} has dtype {array.dtype}; wanted numbers")
    return array.astype(np.float32)


def _checked(path: Path, image: Array, label: Array, dimensions: int) -> tuple[Array, Labels]:
    if image.ndim != dimensions or image.size == 0:
        raise DataError(f"{path}: image has shape {image.shape}; wanted {dimensions} dimensions, none of them empty")
    if image.shape != label.shape:
        raise DataError(f"{path}: image has shape {image.shape} but label {label.shape}; they must be equal")
    if not np.isfinite(image).all():
        raise DataError(f"{path}: image has {np.count_nonzero(~np.isfinite(image))} NaN or infinite values")
    if image.min() < 0 or image.max() > 1:
        raise DataError(
            f"{path}: image values run from {image.min():g} to {image.max():g}; wanted [0, 1] "
            "(Hounsfield units clipped to [-125, 275] and scaled)"
        )
    classes = np.unique(label)
    if not np.isin(classes, np.arange(CLASSES)).all():
        raise DataError(f"{path}: label has values {classes.tolist()}; wanted whole numbers from 0 to {CLASSES - 1}")
    return image, label.astype(np.uint8)
