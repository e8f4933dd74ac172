"""Images and masks of one's own, in a folder, without a line of Python.

::

    DIR/images/NAME.png               2-D, RGB or grey; also .jpg and .jpeg
    DIR/masks/NAME.png                of the same size; also NAME_mask, NAME_segmentation, NAME_label, NAME_seg, NAME_gt
    DIR/splits/{train,val,test}.txt   names of images, one a line; without them patients are divided at random

A mask holds the numbers of the classes, 0 for the background, or 0 and 255 where there is one class; a mapping says
what other values stand for.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from medseg.data.arrays import some_of
from medseg.data.dataset import Benchmark, Case, Labels, Split, Volume, fold_of, hold_out
from medseg.data.images import read_image, read_labels, read_list
from medseg.errors import DataError, RunError
from medseg.settings import Settings

BACKGROUND = "background"
SUFFIXES = (".png", ".jpg", ".jpeg")
OF_MASKS = ("", "_mask", "_segmentation", "_label", "_labels", "_seg", "_gt")  # what a mask's name has more
LOOKED_AT = 20  # masks whose values are looked at before anything is loaded for the training
FEW = 16  # values; masks with more of them are no labels


@dataclass(frozen=True)
class Folder:
    """How a folder of images and masks is to be read and divided.

    Args:
        classes: Names, without the background.
        mapping: Value in the masks -> class, 0 for the background; ``None``: values are the numbers of the classes.
        patient: Which part of an image's name tells whose it is; ``None``: every image is a patient of its own.
        test: Share of the patients that is held out for test, where there are neither lists nor folds.
        splits: Folder of the lists; ``None``: ``splits/``, if it is there.
    """

    classes: tuple[str, ...]
    mapping: Mapping[int, int] | None = None
    patient: re.Pattern[str] | None = None
    test: float = 0.2
    splits: Path | None = None

    def open(self, folder: Path, settings: Settings) -> Split:
        """The split of the lists, one fold, or patients at random."""
        masks = pairs(folder)
        images = list(masks)
        for image in images[:: max(1, len(images) // LOOKED_AT)]:
            self.read_labels(masks[image], folder)
        cases = [
            Case(image.stem, self._patient(image), partial(self.read, image, mask, folder))
            for image, mask in masks.items()
        ]
        lists = self.splits or folder / "splits"
        of = "patients" if self.patient else "images"
        if settings.fold is not None:
            rest, test = fold_of(cases, settings.fold, settings.folds, settings.split_seed)
            name = f"fold {settings.fold} of {settings.folds} over {of}, seed {settings.split_seed}"
        elif self.splits or lists.is_dir():
            parts = [_listed(lists / f"{part}.txt", cases) for part in ("train", "val", "test")]
            return Split(f"lists in {lists.name}/ ({'/'.join(str(len(part)) for part in parts)} images)", *parts)
        else:
            rest, test = hold_out(cases, self.test, settings.split_seed)
            count = len({case.patient for case in cases})
            name = f"{100 * self.test:g} % of {count} {of} for test, seed {settings.split_seed}"
        train, validation = hold_out(rest, settings.validation, settings.split_seed)
        return Split(name, train, validation, test)

    def read(self, image_path: Path, mask_path: Path, folder: Path) -> Volume:
        """Read and check one image and its mask."""
        image, label = read_image(image_path), self.read_labels(mask_path, folder)
        if image.shape[:2] != label.shape:
            raise DataError(f"{image_path} is {image.shape[:2]} but {mask_path} is {label.shape}; they must be equal")
        return Volume(image_path.stem, image.transpose(2, 0, 1)[None], label[None])

    def read_labels(self, path: Path, folder: Path) -> Labels:
        """The class of every pixel of a mask.

        Raises:
            DataError: If a value has no class, with the mapping that all masks of the folder ask for.
        """
        stored = read_labels(path)
        table = np.full(256, len(self.classes) + 1, np.uint8)
        known = self.mapping or {value: value for value in range(len(self.classes) + 1)}
        if not self.mapping and len(self.classes) == 1:
            known = {**known, 255: 1}
        for value, index in known.items():
            table[value] = index
        label: Labels = table[stored]
        if label.max() > len(self.classes):
            strange = some_of(np.unique(stored[label > len(self.classes)]))
            wanted = ", ".join(f"{value} ({(BACKGROUND, *self.classes)[index]})" for value, index in known.items())
            raise DataError(f"{path}: mask has values {strange}; wanted {wanted}. {self.proposal(folder)}")
        return label

    def proposal(self, folder: Path) -> str:
        """The mapping that the values of all masks ask for, in words."""
        found = sorted(set().union(*(np.unique(read_labels(mask)).tolist() for mask in pairs(folder).values())))
        if len(found) > FEW:
            return (
                f"The masks hold {len(found)} values, so they are no labels, or were smoothed or stored as JPEG; save "
                "them again as PNG, one value a class"
            )
        names = [BACKGROUND, *self.classes, *["?"] * len(found)]
        words = " ".join(f"{value}={name}" for value, name in zip(found, names, strict=False))
        doubt = (
            "; say which class each of them is, several may be the same" if len(found) != 1 + len(self.classes) else ""
        )
        return f"The masks hold {', '.join(map(str, found))}: pass --mapping {words}{doubt}"

    def _patient(self, image: Path) -> str:
        if self.patient is None:
            return image.stem
        found = self.patient.search(image.stem)
        if found is None:
            raise DataError(f"--patient {self.patient.pattern} finds nothing in the name {image.stem} of {image}")
        return next((group for group in found.groups() if group), found[0])


def pairs(folder: Path) -> dict[Path, Path]:
    """The images of a folder, each with its mask."""
    if not folder.is_dir():
        raise DataError(f"no data folder {folder}; give --data a folder that holds images/ and masks/")
    images, masks = (_found(folder / name) for name in ("images", "masks"))
    paired = {
        path: next((masks[stem + more] for more in OF_MASKS if stem + more in masks), None)
        for stem, path in images.items()
    }
    if alone := [path.name for path, mask in paired.items() if mask is None]:
        raise DataError(
            f"{len(alone)} of {len(images)} images in {folder / 'images'} have no mask in masks/, first {alone[0]}; "
            f"wanted a mask of the same name, or with {', '.join(OF_MASKS[1:])} after it"
        )
    return {path: mask for path, mask in paired.items() if mask is not None}


def mapping_of(words: Sequence[str] | None, classes: Sequence[str]) -> dict[int, int] | None:
    """``["0=background", "100=lesion"]`` as value -> number of the class.

    Raises:
        RunError: If a word is not VALUE=CLASS, or a class is named that is not among ``classes`` or has no value.
    """
    if words is None:
        return None
    names = (BACKGROUND, *classes)
    mapping: dict[int, int] = {}
    for word in words:
        value, _, name = word.partition("=")
        if not value.isdigit() or int(value) > 255 or name not in names:
            raise RunError(f"--mapping {word}: wanted VALUE=CLASS, a value up to 255 and one of {', '.join(names)}")
        if mapping.setdefault(int(value), names.index(name)) != names.index(name):
            raise RunError(f"--mapping gives {value} to two classes; a value stands for one")
    if missing := [name for index, name in enumerate(names) if index and index not in mapping.values()]:
        raise RunError(f"--mapping has no value for {', '.join(missing)}; every class of --classes needs one")
    return mapping


def folder_benchmark(name: str, data: Folder) -> Benchmark:
    """The benchmark of a folder of one's own."""
    return Benchmark(
        name=name,
        title=name,
        classes=data.classes,
        open=data.open,
        settings=Settings(size=256),
        intensity="rgb",
        layout="images/ and masks/ (see medseg/data/folder.py)",
        folds=True,
    )


def _found(folder: Path) -> dict[str, Path]:
    """Stem -> image, of a folder."""
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; give --data a folder that holds images/ and masks/")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in SUFFIXES:
            continue
        if path.stem in found:
            raise DataError(f"{found[path.stem]} and {path} have one name; remove or rename one of them")
        found[path.stem] = path
    if not found:
        raise DataError(f"{folder} holds no {', '.join(SUFFIXES)}")
    return found


def _listed(path: Path, cases: Sequence[Case]) -> list[Case]:
    names = [
        Path(name).stem if name.lower().endswith(SUFFIXES) else name for name in read_list(path, "one image of images/")
    ]
    by_name = {case.name: case for case in cases}
    if missing := [name for name in names if name not in by_name]:
        raise DataError(f"{len(missing)} of {len(names)} names in {path} are no images, first {missing[0]}")
    return [by_name[name] for name in names]
