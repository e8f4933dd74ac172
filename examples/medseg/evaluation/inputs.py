"""What networks are applied to: scans and RGB images in, labels and probabilities in the form of the input out.

Nothing here needs torch, so that a command finds out what is wrong with its files before it loads any network.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medseg.data import images
from medseg.data.dataset import AS_STORED, CT, Labels, View
from medseg.data.folders import (
    CONVERT_DICOM,
    IMAGE_SUFFIXES,
    RGB_IMAGES_IN_DICOM,
    beginning,
    is_nifti,
    kind_of,
    left_behind,
    names_of,
    suffix_of,
    walk,
)
from medseg.data.nifti import filled, is_oriented, one_frame, orientation_of, read_nifti, to_slices
from medseg.errors import DataError, RunError, note
from medseg.files import (
    atomic_write,
    check_folder,
    check_image,
    check_spacing,
    read_h5,
    read_json,
    read_npz,
    write_image,
    write_npz,
)

Probabilities = NDArray[np.float32]
# What each intensity is read from, and the suffixes that the labels of it may have, the usual one first.
SCANS = {".nii.gz": (".nii.gz", ".nii"), ".nii": (".nii", ".nii.gz"), ".npz": (".npz",), ".h5": (".npz",)}
PHOTOGRAPHS = dict.fromkeys(IMAGE_SUFFIXES, (".png",))
READ_IMAGES = tuple(f"a {name} image" for name in images.FORMATS)  # in the words of ``kind_of``
FORMATS: Mapping[str, Mapping[str, tuple[str, ...]]] = {"hu": SCANS, "min-max": SCANS, "rgb": PHOTOGRAPHS}


@dataclass(frozen=True)
class Use:
    """What a prediction has to know about the training of a network.

    Args:
        folder: The ``model/`` of a run.
        classes: Names, background first.
        size: Side of the square slices.
        intensity: As in ``medseg.data.dataset.Benchmark``.
    """

    folder: Path
    classes: tuple[str, ...]
    size: int
    intensity: str


@dataclass(frozen=True)
class Picture:
    """The content of one file, and how to save in its form what was made of it.

    Args:
        image: ``(Z, C, H, W)``, as in ``medseg.data.dataset.Volume``.
        save: Labels ``(Z, H, W)`` and path.
        save_probabilities: ``(Z, classes, H, W)`` and path.
        view: How it is turned for an overlay.
    """

    image: NDArray[np.generic]
    save: Callable[[Labels, Path], None]
    save_probabilities: Callable[[Probabilities, Path], None]
    view: View = AS_STORED


def read_use(folder: Path) -> Use:
    """What a run noted in ``model/``; ``folder`` is that or the run's."""
    if not folder.is_dir():
        runs = ", ".join(map(str, _runs_in(folder.parent)))
        raise DataError(f"no folder {folder}; give --checkpoint the folder of a run" + (f": {runs}" if runs else ""))
    if (folder / "model").is_dir():
        folder = folder / "model"
    for name in ("preprocessing.json", "config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise DataError(f"no {name} in {folder}; give --checkpoint the folder of a run, or model/ in it")
    path = folder / "preprocessing.json"
    use = read_json(path)
    classes, size, intensity = use.get("classes", []), use.get("size", 0), use.get("intensity")
    named = isinstance(classes, list) and len(classes) > 1 and all(isinstance(name, str) for name in classes)
    if named and isinstance(size, int) and size > 0 and isinstance(intensity, str) and intensity in FORMATS:
        return Use(folder, tuple(classes), size, intensity)
    raise DataError(
        f"{path} holds {use}; wanted classes (names, background first), size and intensity "
        f"(one of {', '.join(FORMATS)}), as the training writes them"
    )


def _runs_in(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/model") if (path / "preprocessing.json").is_file())


def read_uses(folders: Sequence[Path], *, smooth: bool) -> list[Use]:
    """The networks that are averaged: those of some runs, and of all runs (seeds, folds) in a folder of several.

    Raises:
        RunError: If they do not tell the same classes apart, on the same kind of image.
    """
    uses = []
    for folder in folders:
        inside = _runs_in(folder)
        alone = (folder / "model").is_dir() or (folder / "preprocessing.json").is_file() or not inside
        uses += [read_use(path) for path in ([folder] if alone else inside)]
    first = uses[0]
    for use in uses[1:]:
        if (use.classes, use.intensity) != (first.classes, first.intensity):
            raise RunError(
                f"{use.folder} tells {', '.join(use.classes)} ({use.intensity}) apart and {first.folder} "
                f"{', '.join(first.classes)} ({first.intensity}); networks that are averaged must agree"
            )
        if use.size != first.size and not smooth:
            raise RunError(
                f"{use.folder} takes slices of {use.size} and {first.folder} of {first.size} pixels; they are averaged "
                "at the size of the input: pass --smooth"
            )
    return uses


def form_of(path: Path, intensity: str) -> str | None:
    """Which of the supported suffixes a file has, or should have by its content; ``None``: it is no input."""
    suffix = suffix_of(path, FORMATS[intensity])
    if suffix or not path.is_file():
        return suffix
    start = beginning(path)
    if intensity == "rgb":
        return ".png" if kind_of(start) in READ_IMAGES else None
    return ".nii.gz" if is_nifti(start) else None


def check_form(path: Path, intensity: str) -> str:
    """The form of a single input.

    Raises:
        DataError: If there is no such file, or the network is for others.
    """
    if not path.is_file():
        raise DataError(f"no file {path}")
    form = form_of(path, intensity)
    if form is not None:
        return form
    trained = "RGB images" if intensity == "rgb" else "scans"
    kind = kind_of(beginning(path))
    advice = f"; {_convert_dicom(intensity)}" if kind == "a DICOM file" else ""
    raise DataError(
        f"{path}: it is {kind}, and the network is for {trained}; wanted {', '.join(FORMATS[intensity])}{advice}"
    )


def _convert_dicom(intensity: str) -> str:
    return RGB_IMAGES_IN_DICOM if intensity == "rgb" else CONVERT_DICOM


def read_picture(path: Path, use: Use, *, frame: int | None = None, fill_nan: bool = False) -> Picture:
    """Read and check one file, in the orientation and scaling of the training data.

    Args:
        path: Of the file.
        use: What the network was trained on.
        frame: Of a NIfTI series, from 1.
        fill_nan: Take voxels that are NaN or infinite as background.
    """
    form = check_form(path, use.intensity)
    if form.startswith(".nii"):
        return _read_nifti(path, use.intensity, frame, fill_nan)
    if frame is not None:
        raise DataError(f"{path} is no NIfTI, which alone has frames; leave out --frame")
    return _read_rgb_image(path, len(use.classes)) if use.intensity == "rgb" else _read_arrays(path, form, fill_nan)


def _read_nifti(path: Path, intensity: Any, frame: int | None, fill_nan: bool) -> Picture:
    image: Any = one_frame(path, read_nifti(path), frame)
    orientation = orientation_of(path, image, intensity)

    def write(voxels: NDArray[Any], target: Path) -> None:
        header = image.header.copy()  # keeps affine, codes of qform and sform, spacing and units
        header.set_data_dtype(voxels.dtype)
        header["cal_min"], header["cal_max"] = 0, 0  # the window in which a viewer would show the image
        with atomic_write(target) as part:
            nibabel.save(type(image)(voxels, image.affine, header), part)

    def save(labels: Labels, target: Path) -> None:
        write(orientation.voxels(labels), target)

    def save_probabilities(found: Probabilities, target: Path) -> None:
        write(np.stack([orientation.voxels(found[:, index]) for index in range(found.shape[1])], axis=-1), target)

    slices = to_slices(
        path, image, intensity, fill_nan=fill_nan, remedy="--fill-nan takes them as background, or fetch it again"
    )
    known = intensity == "hu" and is_oriented(image)
    return Picture(slices[:, None], save, save_probabilities, CT if known else AS_STORED)


def _read_arrays(path: Path, form: str, fill_nan: bool) -> Picture:
    read = read_npz if form == ".npz" else read_h5
    try:
        arrays = read(path, ("image",))
    except DataError as error:
        try:
            arrays = read(path, ("img",))
        except DataError:
            raise error from None
    image = arrays.get("image", arrays.get("img"))
    assert image is not None
    image = filled(path, image) if fill_nan else image
    image = check_image(path, image, 2 if image.ndim == 2 else 3)
    if image.shape[-1] <= 4 < image.shape[-2]:
        raise DataError(
            f"{path}: image has shape {image.shape}; wanted grey values (H, W) or (Z, H, W), no channels last"
        )
    spacing = check_spacing(path, arrays.get("spacing"))
    known = {} if spacing is None else {"spacing": np.array(spacing)}

    def save(labels: Labels, target: Path) -> None:
        write_npz(target, label=labels.reshape(image.shape), **known)

    def save_probabilities(found: Probabilities, target: Path) -> None:
        write_npz(target, probabilities=found if image.ndim == 3 else found[0], **known)

    return Picture(image.reshape(-1, 1, *image.shape[-2:]), save, save_probabilities)


def _read_rgb_image(path: Path, classes: int) -> Picture:
    image = images.read_image(path)

    def save(labels: Labels, target: Path) -> None:
        write_image(target, Image.fromarray(labels[0] * 255 if classes == 2 else labels[0]))

    def save_probabilities(found: Probabilities, target: Path) -> None:
        write_npz(target, probabilities=found[0])

    return Picture(image.transpose(2, 0, 1)[None], save, save_probabilities)


@dataclass(frozen=True)
class Task:
    """One file with what is to be made of it."""

    source: Path
    labels: Path
    overlay: Path | None = None
    probabilities: Path | None = None

    def targets(self) -> Iterator[Path]:
        """All that is written."""
        yield from (path for path in (self.labels, self.overlay, self.probabilities) if path is not None)


def probability_suffix(form: str) -> str:
    """The suffix of the probabilities of an input."""
    return ".nii.gz" if form.startswith(".nii") else ".npz"


def task_of_file(
    source: Path, output: Path, overlay: Path | None, probabilities: Path | None, intensity: str
) -> list[Task]:
    """The task for one file."""
    form = check_form(source, intensity)
    wanted = FORMATS[intensity][form]
    if not output.name.endswith(wanted):
        raise RunError(f"labels of a {form} file are written as {' or '.join(wanted)}; --output is {output}")
    if overlay is not None and overlay.suffix != ".png":
        raise RunError(f"an overlay is written as .png; --overlay is {overlay}")
    if probabilities is not None and not probabilities.name.endswith(suffix := probability_suffix(form)):
        raise RunError(f"probabilities of a {form} file are written as {suffix}; --probabilities is {probabilities}")
    return _checked([Task(source, output, overlay, probabilities)])


def tasks_of_folder(
    folder: Path, output: Path, overlay: Path | None, probabilities: Path | None, intensity: str
) -> list[Task]:
    """The tasks for all supported files below a folder, under the same names below the folders of the output."""
    for option, target in (("--output", output), ("--overlay", overlay), ("--probabilities", probabilities)):
        if target is not None and target.resolve().is_relative_to(folder.resolve()):
            raise RunError(f"{option} {target} lies in the folder of the input, whose files would mix; choose another")
        if target is not None and target.exists() and not target.is_dir():
            raise RunError(f"{option} {target} is a file; wanted a folder, since the input is one")
    tasks, others = [], []
    for source in walk(folder):
        form = form_of(source, intensity)
        if form is None:
            others.append(source)
            continue
        place = source.relative_to(folder).parent
        stem = source.name[: -len(form)] if source.name.lower().endswith(form) else source.stem
        stem = stem.removesuffix(".npy")
        tasks.append(
            Task(
                source,
                output / place / f"{stem}{FORMATS[intensity][form][0]}",
                None if overlay is None else overlay / place / f"{stem}.png",
                None if probabilities is None else probabilities / place / f"{stem}{probability_suffix(form)}",
            )
        )
    files = (path for path in folder.rglob("*") if path.is_file())
    left = [path for path in files if any(left_behind(Path(part)) for part in path.relative_to(folder).parts)]
    if not tasks:
        is_dicom = any(kind_of(beginning(path)) == "a DICOM file" for path in others)
        advice = f"; {_convert_dicom(intensity)}" if is_dicom else ""
        raise DataError(f"{folder} holds no file that the network takes: {', '.join(FORMATS[intensity])}{advice}")
    if others or left:
        note("%s: passed over %s", folder, names_of([*others, *sorted(left)]), each=True)
    return _checked(tasks)


def _checked(tasks: Sequence[Task]) -> list[Task]:
    """Raise where two files would be written to one place, one over its input, or one where no folder can be."""
    for task in tasks:
        targets = {"--output": task.labels, "--overlay": task.overlay, "--probabilities": task.probabilities}
        for option, target in targets.items():
            if target is not None:
                check_folder(target.parent, option)
    sources: dict[Path, Path] = {task.source.resolve(): task.source for task in tasks}
    for task in tasks:
        for target in task.targets():
            if (other := sources.get(target.resolve())) is not None:
                raise RunError(
                    f"{target} would be written for {task.source} and is that of {other}; choose other names"
                )
            sources[target.resolve()] = task.source
    return list(tasks)
