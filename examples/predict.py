"""Apply trained networks to one file, or to all files of a folder.

Networks for CT and MRI take scans: NIfTI as they come from the archive, or slices and volumes in the layouts of
training (.npz, .npy.h5). Networks for RGB images take PNG, JPEG, TIFF and BMP. Labels come out in the form of the
input: NIfTI in its own geometry, .npz for arrays, PNG for RGB images (0 and 255 where there is one class). DICOM has
to be converted before, e.g. with dcm2niix.

    predict.py --checkpoint runs/acdc --input scan.nii.gz --output labels.nii.gz --overlay labels.png
    predict.py --checkpoint runs/isic2018 --input images/ --output masks/ --overlay overlays/
    predict.py --checkpoint runs/acdc/seed10 runs/acdc/seed11 --flips horizontal --smooth --input in/ --output out/

Several networks, or a folder of several runs (seeds, folds), are averaged. Without --flips, --smooth and other networks
labels are computed as for the scores of the run.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from medseg.command_line.options import positive_int
from medseg.errors import DataError, RunError, told_once
from medseg.evaluation.inputs import Task, read_picture, read_uses, task_of_file, tasks_of_folder
from medseg.files import atomic_write

# medseg.evaluation.prediction and the figures are imported where they are needed: torch takes seconds, for which --help
# and a mistake on the command line should not wait.


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = parser().parse_args(arguments)
    is_folder = options.input.is_dir()
    try:
        with told_once():
            tasks = _tasks(options)
            todo = [task for task in tasks if options.overwrite or not task.labels.exists()]
            if len(todo) < len(tasks):
                print(
                    f"{len(tasks) - len(todo)} of {len(tasks)} files have labels already, and are left out with their "
                    "overlays and probabilities; --overwrite replaces them"
                )
            failures, empty = run(options, todo) if todo else ({}, [])
    except (DataError, RunError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error}; free the disk or choose another place, what is finished is kept")
    except KeyboardInterrupt:
        sys.exit("interrupted; what is finished is kept")
    _report(options, [task for task in todo if task not in failures], empty)
    if failures:
        summary = f"{len(failures)} of {len(todo)} files could not be predicted, the others were"
        sys.exit("\n".join(f"error: {line}" for line in (*failures.values(), *([summary] if is_folder else []))))


def _tasks(options: argparse.Namespace) -> list[Task]:
    """What is to be read and written; everything that can be refused without a network is."""
    uses = read_uses(options.checkpoint, smooth=options.smooth or options.probabilities is not None)
    paths = (options.input, options.output, options.overlay, options.probabilities)
    if options.input.is_dir():
        return tasks_of_folder(*paths, uses[0].intensity)
    tasks = task_of_file(*paths, uses[0].intensity)
    present = [path for task in tasks for path in task.targets() if path.exists()]
    if present and not options.overwrite:
        raise RunError(f"{present[0]} exists; pass --overwrite to replace it")
    return tasks


def run(options: argparse.Namespace, tasks: Sequence[Task]) -> tuple[dict[Task, str], list[Task]]:
    """Predict one file after another; a file that cannot be read does not keep the others from it.

    Returns:
        What was wrong with those files, and the tasks in which nothing was found.
    """
    import torch

    from medseg.evaluation.prediction import load_network, predict
    from medseg.figures.overlays import draw_overlay

    smooth = options.smooth or options.probabilities is not None
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    uses = read_uses(options.checkpoint, smooth=smooth)
    networks = [load_network(use, device) for use in uses]
    if len(networks) > 1:
        print(f"{len(networks)} networks are averaged: {', '.join(str(use.folder.parent) for use in uses)}")
    failures: dict[Task, str] = {}
    empty: list[Task] = []
    for task in tqdm(tasks, desc="Predicting", unit="file", disable=None):
        try:
            picture = read_picture(task.source, uses[0], frame=options.frame, fill_nan=options.fill_nan)
        except DataError as error:
            failures[task] = str(error)
            continue
        chosen: dict[str, Any] = {"flips": options.flips, "smooth": smooth, "keep": task.probabilities is not None}
        labels, probabilities = predict(networks, picture.image, batch_size=options.batch_size, **chosen)
        if not labels.any():
            empty.append(task)
        # before the labels: where these are, a file counts as finished
        if task.overlay is not None:
            with atomic_write(task.overlay) as part:
                layers = {"image": None, "prediction": labels}
                draw_overlay(picture.image, layers, uses[0].classes[1:], part, task.source.name, view=picture.view)
        if task.probabilities is not None and probabilities is not None:
            picture.save_probabilities(probabilities, task.probabilities)
        picture.save(labels, task.labels)
    return failures, empty


def _report(options: argparse.Namespace, done: Sequence[Task], empty: Sequence[Task]) -> None:
    """Say what was written and where, and where nothing was found."""
    if not done:
        return
    written = [
        f"{what} in {place}"
        for what, place in (
            ("labels", options.output),
            ("overlays" if len(done) > 1 else "overlay", options.overlay),
            ("probabilities", options.probabilities),
        )
        if place is not None
    ]
    print(f"{len(done)} file{'s' * (len(done) > 1)} predicted: {', '.join(written)}")
    if empty:
        names = ", ".join(task.source.name for task in empty[:5]) + (", ..." if len(empty) > 5 else "")
        print(f"Nothing was found in {len(empty)} of {len(done)}, whose labels are all background: {names}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        nargs="+",
        required=True,
        metavar="RUN",
        help="folders of runs of train_*.py, of several runs, or model/ in one; several are averaged",
    )
    parser.add_argument("--input", type=Path, required=True, help="a file, or a folder with files of any depth")
    parser.add_argument("--output", type=Path, required=True, help="file for the labels; a folder if --input is one")
    parser.add_argument(
        "--overlay", type=Path, help="PNG of the input with the labels drawn over it; a folder if --input is one"
    )
    parser.add_argument(
        "--probabilities",
        type=Path,
        help="file for the probabilities of all classes, background first: 4-D .nii.gz for NIfTI, else .npz; a folder "
        "if --input is one; implies --smooth",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what exists")
    parser.add_argument(
        "--flips",
        choices=("none", "horizontal", "vertical", "both"),
        default="none",
        help="average with predictions of mirror images; in training half of the slices are mirrored left to right "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--smooth",
        action="store_true",
        help="enlarge logits instead of labels to the size of the input: borders without stairs",
    )
    parser.add_argument("--frame", type=positive_int, help="frame of 4-D NIfTI, from 1")
    parser.add_argument("--fill-nan", action="store_true", help="take voxels that are NaN or infinite as background")
    parser.add_argument(
        "--batch-size", type=positive_int, default=8, help="slices predicted at a time (default: %(default)s)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: cuda if there is one, else cpu)")
    return parser


if __name__ == "__main__":
    main()
