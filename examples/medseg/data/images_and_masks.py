"""Images and masks of one's own, in a folder, without a line of Python.

::

    DIR/images/NAME.png               2-D, RGB or grey, of any format that ``medseg/data/images.py`` reads
    DIR/masks/NAME.png                of the same size; also NAME_mask, NAME_segmentation and what else is usual
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

from medseg.data.dataset import Benchmark, Case, Labels, Split, Volume, fold_of, hold_out
from medseg.data.folders import IMAGE_SUFFIXES, listed, pairs, read_list, the_folder_below
from medseg.data.images import colours_of_labels, read_image_and_mask, read_labels, read_mask
from medseg.errors import DataError, RunError
from medseg.files import some_of
from medseg.settings import Settings

BACKGROUND = "background"
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

    def __post_init__(self) -> None:
        names = (BACKGROUND, *self.classes)
        if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise RunError(
                f"--classes names {repeated[0]} twice; the background is a class of its own, not named there"
            )

    def open(self, folder: Path, settings: Settings) -> Split:
        """The split of the lists, one fold, or patients at random."""
        if not folder.is_dir():
            raise DataError(f"no data folder {folder}; give --data a folder that holds images/ and masks/")
        folder = the_folder_below(folder, ("images",))
        found = pairs(folder / "images", folder / "masks")
        masks = [mask for _, mask in found.values()]
        looked_at = masks[:: max(1, len(masks) // LOOKED_AT)]
        for mask in looked_at:
            self.read_labels(mask, masks)
        if len(self.classes) > 1:
            _check_palettes(looked_at)
        cases = [Case(name, self._patient(name), partial(self.read, *pair, masks)) for name, pair in found.items()]
        lists = self.splits or folder / "splits"
        of = "patients" if self.patient else "images"
        if settings.fold is not None:
            rest, test = fold_of(cases, settings.fold, settings.folds, settings.split_seed)
            name = f"fold {settings.fold} of {settings.folds} over {of}, seed {settings.split_seed}"
        elif self.splits or lists.is_dir():
            by_name = {case.name: case for case in cases}
            images, parts = {name: image for name, (image, _) in found.items()}, []
            for source in (lists / f"{part}.txt" for part in ("train", "val", "test")):
                names = read_list(source, "one image of images/", IMAGE_SUFFIXES)
                parts.append([by_name[name] for name in listed(names, images, source, f"{folder / 'images'}/{{}}.*")])
            return Split(f"lists in {lists.name}/ ({'/'.join(str(len(part)) for part in parts)} images)", *parts)
        elif not self.test:
            raise RunError("--test 0 leaves nothing to test the network on; give a share above 0, lists or folds")
        else:
            rest, test = hold_out(cases, self.test, settings.split_seed)
            count = len({case.patient for case in cases})
            name = f"{100 * self.test:g} % of {count} {of} for test, seed {settings.split_seed}"
        train, validation = hold_out(rest, settings.validation, settings.split_seed)
        return Split(name, train, validation, test)

    def read(self, image: Path, mask: Path, masks: Sequence[Path]) -> Volume:
        """Read and check one image and its mask, one of ``masks``."""
        return read_image_and_mask(image, mask, lambda path: self.read_labels(path, masks), 1 + len(self.classes))

    def read_labels(self, path: Path, masks: Sequence[Path]) -> Labels:
        """The class of every pixel of a mask.

        Raises:
            DataError: If a value has no class, with the mapping that all ``masks`` ask for.
        """
        if not self.mapping and len(self.classes) == 1:
            try:
                return read_mask(path)
            except DataError as error:
                raise DataError(f"{error}{self.proposal(masks)}") from error
        stored = read_labels(path)
        table = np.full(256, len(self.classes) + 1, np.uint8)
        known = self.mapping or {value: value for value in range(len(self.classes) + 1)}
        for value, index in known.items():
            table[value] = index
        label: Labels = table[stored]
        if label.max() > len(self.classes):
            strange = some_of(np.unique(stored[label > len(self.classes)]))
            wanted = ", ".join(f"{value} ({(BACKGROUND, *self.classes)[index]})" for value, index in known.items())
            raise DataError(f"{path}: mask has values {strange}; wanted {wanted}{self.proposal(masks)}")
        return label

    def proposal(self, masks: Sequence[Path]) -> str:
        """The mapping that the values of some masks ask for, in words; nothing where one cannot be read."""
        try:
            found = sorted(set().union(*(np.unique(read_labels(mask)).tolist() for mask in masks)))
        except DataError:
            return ""
        if len(found) > FEW:
            return (
                f". The masks hold {len(found)} values, so they are no labels, or were smoothed; save them again, one "
                "value a class"
            )
        names = [BACKGROUND, *self.classes, *["?"] * len(found)]
        words = " ".join(f"{value}={name}" for value, name in zip(found, names, strict=False))
        certain = len(found) == 1 + len(self.classes)
        doubt = "" if certain else "; say which class each of them is, several may be the same"
        return f". The masks hold {', '.join(map(str, found))}: pass --mapping {words}{doubt}"

    def _patient(self, name: str) -> str:
        if self.patient is None:
            return name
        found = self.patient.search(name)
        if found is None:
            raise DataError(f"--patient {self.patient.pattern} finds nothing in {name}, the name of an image")
        return next((group for group in found.groups() if group), found[0])


def _check_palettes(masks: Sequence[Path]) -> None:
    """Refuse masks in whose palettes one number has several colours: the numbers are no classes then."""
    known: dict[int, tuple[str, Path]] = {}
    for mask in masks:
        for number, colour in colours_of_labels(mask).items():
            before, where = known.setdefault(number, (colour, mask))
            if before != colour:
                raise DataError(
                    f"number {number} is {before} in the palette of {where} and {colour} in that of {mask}, so it "
                    "stands for no class; save all masks with one palette, or as grey values 0, 1, 2, ..."
                )


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
    """The benchmark of a folder of one's own, which is not taken for one of the others."""
    name = f"{name}_folder" if name in ("synapse", "acdc", "isic2017", "isic2018") else name
    return Benchmark(
        name=name,
        title=name,
        classes=data.classes,
        open=data.open,
        settings=Settings(size=256),
        intensity="rgb",
        layout="images/ and masks/ (see medseg/data/images_and_masks.py)",
        folds=True,
    )
