"""Score a folder of predictions, whoever made them, against a folder of ground truth; for evaluate.py.

Both hold files of one kind: PNG and other images, NIfTI, or ``.npz`` with ``label``. A prediction has the name of its
ground truth, which may have more at its end (``ISIC_1.png`` and ``ISIC_1_segmentation.png``).
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medseg.data.arrays import Spacing, check_label, check_spacing, read_npz
from medseg.data.dataset import Benchmark, Case, Labels, Split, Volume
from medseg.data.folders import ENDINGS, IMAGE_SUFFIXES, by_stem
from medseg.data.images import read_labels, read_mask
from medseg.data.nifti import Orientation, read_nifti, spacing_of, voxels_of
from medseg.data.notes import note
from medseg.errors import DataError
from medseg.evaluation.scores import evaluate, headline, summarize
from medseg.settings import Settings

KINDS = (IMAGE_SUFFIXES, (".nii.gz", ".nii"), (".npz",))


def score_folder(predictions: Path, truth: Path, classes: Sequence[str]) -> tuple[Benchmark, dict[str, Any]]:
    """What a run notes about its test cases, of predictions that exist.

    Returns:
        The benchmark that they make up, and headline, summary and rows of all cases.

    Raises:
        DataError: If a ground truth has no prediction, or the two do not fit.
    """
    paired, is_image = _paired(predictions, truth)

    def no_split(*_: Any) -> Split:
        raise DataError("predictions that exist are not divided")

    benchmark = Benchmark(
        name="predictions",
        title=f"{predictions.resolve().name} against {truth.resolve().name}",
        classes=tuple(classes),
        open=no_split,
        settings=Settings(),
        intensity="rgb" if is_image else "min-max",
        layout="",
    )
    count = 1 + len(classes)
    cases = [Case(name, name, partial(_truth, name, path, count)) for name, (_, path) in paired.items()]

    def predicted(volume: Volume) -> Labels:
        path, truth_path = paired[volume.case]
        labels, _ = _read(path, count)
        if labels.shape != volume.label.shape:
            raise DataError(
                f"{path} has shape {labels.shape} but {truth_path} {volume.label.shape}; they must be equal"
            )
        if not is_image:
            _check_same_place(path, truth_path)
        return labels

    rows = evaluate(benchmark, cases, predicted, description="Scoring")
    summary = summarize(benchmark, rows)
    return benchmark, {"headline": headline(benchmark, summary), "summary": summary, "cases": rows}


def _paired(predictions: Path, truth: Path) -> tuple[dict[str, tuple[Path, Path]], bool]:
    """Prediction and ground truth by the name of the prediction, and whether they are images."""
    for suffixes in KINDS:
        found, wanted = by_stem(predictions, suffixes, tell=False), by_stem(truth, suffixes, tell=False)
        if not found or not wanted:
            continue
        ending = max(ENDINGS, key=lambda one: sum(stem + one in wanted for stem in found))
        names = [stem.removesuffix(ending) for stem in wanted]
        if missing := [name for name in names if name not in found]:
            raise DataError(
                f"{len(missing)} of {len(names)} files of {truth} have no prediction in {predictions}, first "
                f"{predictions / missing[0]}{suffixes[0]}"
            )
        if others := [stem for stem in found if stem not in set(names)]:
            note("%s: %s without ground truth, left out", predictions, ", ".join(others[:5]))
        return {name: (found[name], wanted[name + ending]) for name in names}, suffixes == IMAGE_SUFFIXES
    kinds = "; ".join(", ".join(suffixes) for suffixes in KINDS)
    raise DataError(f"{predictions} and {truth} hold no files of one kind; wanted one of {kinds}")


def _truth(name: str, path: Path, classes: int) -> Volume:
    label, spacing = _read(path, classes)
    return Volume(name, np.empty((len(label), 0, *label.shape[1:]), np.uint8), label, spacing)


def _read(path: Path, classes: int) -> tuple[Labels, Spacing | None]:
    """Labels ``(Z, H, W)``, and millimetres between them along z, y and x."""
    name = path.name.lower()
    if name.endswith(".npz"):
        arrays = read_npz(path, ("label",))
        label = check_label(path, arrays["label"], arrays["label"].shape, classes)
        return label.reshape(-1, *label.shape[-2:]), check_spacing(path, arrays.get("spacing"))
    if name.endswith((".nii", ".nii.gz")):
        image = read_nifti(path)
        spacing = spacing_of(path, image, "min-max")
        return Orientation().slices(check_label(path, voxels_of(path, image), image.shape, classes)), spacing
    label = read_mask(path) if classes == 2 else read_labels(path)
    return check_label(path, label, label.shape, classes)[None], None


def _check_same_place(path: Path, truth_path: Path) -> None:
    if path.name.lower().endswith(".npz"):
        return
    one, other = (np.asarray(read_nifti(each).affine) for each in (path, truth_path))
    if not np.allclose(one, other, atol=0.1):
        raise DataError(
            f"{path} lies elsewhere than {truth_path}, by their affines {one[:3].tolist()} and {other[:3].tolist()}; "
            "resample one to the other, or repair the header that is wrong"
        )
