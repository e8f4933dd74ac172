"""What a data set is: cases, their split into parts, the benchmark made of them, and how they lie in pictures."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.files import Spacing
from medseg.settings import Settings

Labels = NDArray[np.uint8]
Synthetic = Callable[[Path, int], Path]  # folder, seed -> folder with data


@dataclass(frozen=True)
class Volume:
    """The content of one case: a scan as a stack of slices, or an RGB image as a stack of one.

    Args:
        case: Name.
        image: ``(Z, C, H, W)``, float32 in [0, 1] with one channel or uint8 with three.
        label: ``(Z, H, W)``, class of every pixel.
        spacing: Millimetres between voxels along z, y and x, where the data says it.
    """

    case: str
    image: NDArray[np.generic]
    label: Labels
    spacing: Spacing | None = None


@dataclass(frozen=True)
class Case:
    """One case on disk: its name, whose it is, and how to read it."""

    name: str
    patient: str
    read: Callable[[], Volume]


@dataclass(frozen=True)
class Split:
    """Cases for training, validation and test, none of whose patients is in two of them.

    Args:
        name: What a result computed on it should say about it.
        train, validation, test: The parts; validation may be empty.
    """

    name: str
    train: Sequence[Case]
    validation: Sequence[Case]
    test: Sequence[Case]

    def __post_init__(self) -> None:
        patients = {part: {case.patient for case in cases} for part, cases in self.parts().items()}
        for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
            if both := sorted(patients[one] & patients[other]):
                raise DataError(f"{', '.join(both[:5])} is in {one} and in {other}; a patient belongs to one")
        if not any(patients.values()):
            raise DataError("found no case; the data folder holds no file in the layout that is read")
        for part in ("train", "test"):
            if not patients[part]:
                raise DataError(f"no case left for {part}; the data is too small for this split")

    def parts(self) -> dict[str, Sequence[Case]]:
        """The three parts by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def limited(self, cases: int) -> "Split":
        """The first cases of every part."""
        name = f"{self.name}, LIMITED to {cases} cases a part"
        return Split(name, self.train[:cases], self.validation[:cases], self.test[:cases])


def hold_out(cases: Sequence[Case], fraction: float, seed: int) -> tuple[list[Case], list[Case]]:
    """Keep a share of the patients back, at least one of them unless the fraction is 0.

    Returns:
        The cases that stay and those held out, both in the order given.
    """
    patients = sorted({case.patient for case in cases})
    if fraction == 0 or len(patients) < 2:
        return list(cases), []
    count = min(max(1, round(fraction * len(patients))), len(patients) - 1)
    held = {patients[i] for i in np.random.default_rng(seed).permutation(len(patients))[:count]}
    return [case for case in cases if case.patient not in held], [case for case in cases if case.patient in held]


def fold_of(cases: Sequence[Case], fold: int, folds: int, seed: int) -> tuple[list[Case], list[Case]]:
    """Cases of the other folds, and of fold number ``fold`` (from 1) of a k-fold cross-validation over patients."""
    patients = sorted({case.patient for case in cases})
    if not 1 <= fold <= folds:
        raise DataError(f"no fold {fold} of {folds}; they are numbered from 1")
    if folds > len(patients):
        raise DataError(f"{len(patients)} patients cannot be divided into {folds} folds; ask for fewer")
    shuffled = [patients[i] for i in np.random.default_rng(seed).permutation(len(patients))]
    tested = set(shuffled[fold - 1 :: folds])
    return [case for case in cases if case.patient not in tested], [case for case in cases if case.patient in tested]


class DataFingerprint:
    """Remember what every part held, to find images that occur in two parts and to fingerprint the data."""

    def __init__(self) -> None:
        self.contents: list[tuple[str, str, str, str]] = []  # part, case, digest of image and label, spacing
        self.images: dict[str, dict[str, set[str]]] = {}  # digest of a slice -> part -> cases

    def add(self, part: str, volume: Volume) -> None:
        """Note one case."""
        spacing = "" if volume.spacing is None else " ".join(f"{length:.4f}" for length in volume.spacing)
        self.contents.append((part, volume.case, _digest(volume.image, volume.label), spacing))
        for image in volume.image:
            if image.min() == image.max():  # nothing but air, which is nobody's
                continue
            self.images.setdefault(_digest(image), {}).setdefault(part, set()).add(volume.case)

    def duplicates(self) -> list[dict[str, str]]:
        """Pairs of cases in different parts that share an image."""
        pairs = set()
        for parts in self.images.values():
            places = [(part, case) for part, cases in parts.items() for case in cases]
            pairs |= {tuple(sorted((a, b))) for a in places for b in places if a[0] < b[0]}
        return [dict(pair) for pair in sorted(pairs)]

    def digest(self) -> str:
        """SHA-256 over parts, case names, images, labels and spacing, however the files store them."""
        lines = "\n".join(" ".join(content) for content in sorted(self.contents))
        return hashlib.sha256(lines.encode()).hexdigest()


def stack_slices(name: str, paths: Iterable[Path], read: Callable[[Path], Volume]) -> Volume:
    """The slices of one case as one volume."""
    slices = [read(path) for path in paths]
    shapes = {piece.image.shape[-2:] for piece in slices}
    if len(shapes) > 1:
        raise DataError(f"slices of {name} differ in shape ({sorted(shapes)}), so they cannot be one volume")
    if len({piece.spacing for piece in slices}) > 1:
        raise DataError(f"slices of {name} differ in spacing, so they cannot be one volume")
    return Volume(
        name,
        np.concatenate([piece.image for piece in slices]),
        np.concatenate([piece.label for piece in slices]),
        slices[0].spacing,
    )


def _digest(*arrays: NDArray[Any]) -> str:
    state = hashlib.blake2b(digest_size=16)
    for array in arrays:
        state.update(repr((array.shape, array.dtype.str)).encode())
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


@dataclass(frozen=True)
class Paper:
    """What a paper prints: Dice per class in percent, and mean and standard deviation of every figure.

    Figures that it does not print are left out.
    """

    source: str
    dice: Mapping[str, float]
    mean: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Benchmark:
    """One data set with the way in which it is read, trained on and scored.

    Args:
        name: For files; ``title`` for people.
        classes: Names, without the background.
        open: Folder and settings -> split.
        settings: The paper's.
        intensity: ``"hu"``: CT, clipped to [-125, 275] Hounsfield units; ``"min-max"``: MRI, every volume clipped at
            its 99th percentile and scaled to [0, 1]; ``"rgb"``: RGB images, which are also jittered in colour and
            scored as images instead of volumes.
        layout: What the data folder holds, for ``--help``.
        folds: Whether ``open`` divides the patients into folds where the settings ask for one.
        holds_out: Whether it holds out patients for validation where the data names none.
        paper: Printed figures to stand beside those of a run; without them, nothing is said about a paper.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    open: Callable[[Path, Settings], Split]
    settings: Settings
    intensity: Literal["hu", "min-max", "rgb"]
    layout: str
    paper: Paper | None = None
    folds: bool = False
    holds_out: bool = True


# Organs that tell how a body lies, whatever the order of its voxels.
RIGHT, LEFT = ("liver", "right kidney", "gallbladder"), ("spleen", "left kidney", "stomach")
FRONT, BACK = ("liver", "stomach", "pancreas"), ("left kidney", "right kidney", "aorta")


@dataclass(frozen=True)
class View:
    """How slices are turned for a picture.

    Args:
        flipped: Axes of ``(..., H, W)`` that are reversed: -2 rows, -1 columns.
        marked: Whether the sides are known, so that R and L are written at them.
    """

    flipped: tuple[int, ...] = ()
    marked: bool = False

    def turn(self, slices: NDArray[Any]) -> NDArray[Any]:
        """Slices ``(..., H, W)`` as they are shown."""
        return np.flip(slices, self.flipped)


AS_STORED = View()
CT = View((-2,), marked=True)  # rows run from back to front and columns from right to left, see medseg/data/nifti.py


def view_of_labels(labels: NDArray[Any], classes: Sequence[str]) -> View:
    """How to turn labels ``(Z, H, W)`` of abdominal organs, by where these lie; as stored where they don't tell.

    Files of arrays say nothing of how a patient lies in them, and sets made by others lie in several ways.
    """
    places = {name: np.argwhere(labels == index).mean(0) for index, name in enumerate(classes, 1) if index in labels}
    right, left, front, back = (_mean(places, names) for names in (RIGHT, LEFT, FRONT, BACK))
    if right is None or left is None or front is None or back is None:
        return AS_STORED
    return View((*((-2,) if back[1] < front[1] else ()), *((-1,) if left[2] < right[2] else ())), marked=True)


def _mean(places: dict[str, NDArray[Any]], names: Sequence[str]) -> NDArray[Any] | None:
    found = [places[name] for name in names if name in places]
    return np.mean(found, axis=0) if found else None
