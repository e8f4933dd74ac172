"""Score a folder of predictions against ground truth, as a training scores its test cases.

    evaluate.py --predictions masks/ --truth data/isic2018/masks --classes lesion --out scores/
    evaluate.py --predictions labels/ --truth labelsTs/ --classes RV Myo LV --out scores/

The files are PNG (black and white for one class, else class numbers), NIfTI, or .npz with ``label``; a prediction has
the name of its ground truth, which may have more at its end (ISIC_1.png and ISIC_1_segmentation.png). OUT receives
table.txt and results.json.
"""

import argparse
import sys
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medseg.data.dataset import Benchmark, Case, Labels, Split, Volume
from medseg.data.folders import ENDINGS, IMAGE_SUFFIXES, by_stem
from medseg.data.images import read_labels, read_mask
from medseg.data.nifti import Orientation, read_nifti, spacing_of, voxels_of
from medseg.errors import DataError, RunError, note, told_once
from medseg.evaluation.report import DEFINITIONS, SCHEMA, table
from medseg.evaluation.scores import evaluate, headline, summarize
from medseg.files import Spacing, check_folder, check_label, check_spacing, read_npz, write_json, write_text
from medseg.settings import Settings

KINDS = (IMAGE_SUFFIXES, (".nii.gz", ".nii"), (".npz",))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = parser().parse_args(arguments)
    try:
        with told_once():
            run(options)
    except (DataError, RunError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error}; choose another --out")


def run(options: argparse.Namespace) -> None:
    """Score, write and print."""
    if repeated := [name for name in options.classes if options.classes.count(name) > 1]:
        raise RunError(f"--classes names {repeated[0]} twice; every class has a name of its own")
    check_folder(options.out, "--out")
    present = [path for path in (options.out / name for name in ("results.json", "table.txt")) if path.exists()]
    if present and not options.overwrite:
        raise RunError(f"{present[0]} exists; pass --overwrite to replace it, or another --out")
    benchmark, scored = score_folder(options.predictions, options.truth, options.classes)
    results = {
        "schema": SCHEMA,
        "benchmark": benchmark.name,
        "predictions": str(options.predictions),
        "truth": str(options.truth),
        "definitions": DEFINITIONS,
        "test": scored,
    }
    text = table(benchmark, scored["summary"], benchmark.title)
    write_text(options.out / "table.txt", text + "\n")
    write_json(options.out / "results.json", results)
    print(text)
    print(f"Scores of every case in {options.out / 'results.json'}")


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
        names = {stem: _prediction_of(stem, found, ending) for stem in wanted}
        of = {name: stem for stem, name in names.items()}
        if double := [(stem, of[name]) for stem, name in names.items() if of[name] != stem]:
            raise DataError(f"{truth} holds {' and '.join(sorted(double[0]))}, both the truth of one prediction")
        if missing := [name for name in names.values() if name not in found]:
            raise DataError(
                f"{len(missing)} of {len(names)} files of {truth} have no prediction in {predictions}, first "
                f"{predictions / missing[0]}{suffixes[0]}"
            )
        if others := [stem for stem in found if stem not in set(names.values())]:
            note("%s: %s without ground truth, left out", predictions, ", ".join(others[:5]))
        return {name: (found[name], wanted[stem]) for stem, name in names.items()}, suffixes == IMAGE_SUFFIXES
    kinds = "; ".join(", ".join(suffixes) for suffixes in KINDS)
    raise DataError(f"{predictions} and {truth} hold no files of one kind; wanted one of {kinds}")


def _prediction_of(stem: str, found: Collection[str], ending: str) -> str:
    """The name of the prediction for a ground truth: without the ending that most have, or another where it has one."""
    fitting = [stem.removesuffix(one) for one in (ending, *ENDINGS) if stem.endswith(one)]
    return next((name for name in fitting if name in found), stem.removesuffix(ending))


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


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--predictions", type=Path, required=True, help="folder of predicted labels")
    parser.add_argument("--truth", type=Path, required=True, help="folder of ground truth")
    parser.add_argument(
        "--classes", nargs="+", required=True, metavar="NAME", help="names of labels 1, 2, ..., without the background"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for table.txt and results.json")
    parser.add_argument("--overwrite", action="store_true", help="replace them where they exist")
    return parser


if __name__ == "__main__":
    main()
