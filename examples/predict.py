"""Apply a trained network to one file, or to all files of a folder.

Networks for CT and MRI take scans: NIfTI (.nii, .nii.gz) as they come from the archive, or slices and volumes in the
layouts of training (.npz, .npy.h5). Networks for photographs take .png and .jpg. Labels come out in the form of the
input: NIfTI in its own geometry, .npz for arrays, PNG for photographs (0 and 255 where there is one class).

    predict.py --checkpoint runs/acdc --input scan.nii.gz --output labels.nii.gz --overlay labels.png
    predict.py --checkpoint runs/isic2018 --input photographs/ --output masks/ --overlay overlays/
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from medseg.atomic_write import atomic_write
from medseg.command_line.options import positive_int
from medseg.errors import DataError, RunError
from medseg.evaluation.prediction import FORMATS, Network, load_network, predict, read_picture, suffix_of
from medseg.figures.results import draw_overlay


class Task(NamedTuple):
    """One file with what is to be made of it."""

    source: Path
    labels: Path
    overlay: Path | None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = parser().parse_args(arguments)
    try:
        device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        network = load_network(options.checkpoint, device)
        is_folder = options.input.is_dir()
        tasks = (tasks_of_folder if is_folder else task_of_file)(
            network, options.input, options.output, options.overlay
        )
        present = [path for task in tasks for path in (task.labels, task.overlay) if path is not None and path.exists()]
        if present and not is_folder and not options.overwrite:
            raise RunError(f"{present[0]} exists; pass --overwrite to replace it")
        todo = [task for task in tasks if options.overwrite or not task.labels.exists()]
        if len(todo) < len(tasks):
            print(f"{len(tasks) - len(todo)} of {len(tasks)} files have labels already; --overwrite replaces them")
        failures = run(network, todo, options.batch_size)
    except (DataError, RunError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error}; free the disk or choose another place, what is finished is kept")
    except KeyboardInterrupt:
        sys.exit("interrupted; what is finished is kept")
    if failures:
        summary = f"{len(failures)} of {len(todo)} files could not be predicted, the others were"
        sys.exit("\n".join(f"error: {line}" for line in (*failures, *([summary] if is_folder else []))))


def run(network: Network, tasks: Sequence[Task], batch_size: int) -> list[str]:
    """Predict one file after another; a file that cannot be read does not keep the others from it.

    Returns:
        What was wrong with those files.
    """
    failures = []
    for task in tqdm(tasks, desc="Predicting", unit="file", disable=None):
        try:
            picture = read_picture(task.source, network)
        except DataError as error:
            failures.append(str(error))
            continue
        labels = predict(network, picture, batch_size)
        if task.overlay is not None:  # before the labels: where these are, a file counts as finished
            with atomic_write(task.overlay) as part:
                layers = {"image": None, "prediction": labels}
                draw_overlay(picture.image, layers, network.classes[1:], part, task.source.name)
        picture.save(labels, task.labels)
    return failures


def task_of_file(network: Network, source: Path, output: Path, overlay: Path | None) -> list[Task]:
    """The task for one file."""
    suffix = suffix_of(source, network)
    wanted = FORMATS[network.intensity][suffix] if suffix else ()  # without one, reading explains what is wrong
    if suffix and not output.name.endswith(wanted):
        raise RunError(f"labels of a {suffix} file are written as {' or '.join(wanted)}; --output is {output}")
    if overlay is not None and overlay.suffix != ".png":
        raise RunError(f"an overlay is written as .png; --overlay is {overlay}")
    return _checked([Task(source, output, overlay)])


def tasks_of_folder(network: Network, folder: Path, output: Path, overlay: Path | None) -> list[Task]:
    """The tasks for all supported files below a folder, under the same names below the folders of the output."""
    for option, target in (("--output", output), ("--overlay", overlay)):
        if target is not None and target.resolve().is_relative_to(folder.resolve()):
            raise RunError(f"{option} {target} lies in the folder of the input, whose files would mix; choose another")
        if target is not None and target.exists() and not target.is_dir():
            raise RunError(f"{option} {target} is a file; wanted a folder, since the input is one")
    tasks = []
    for source in sorted(folder.rglob("*")):
        suffix = suffix_of(source, network)
        if suffix is None or not source.is_file() or source.name.startswith("."):
            continue
        place = source.relative_to(folder).parent
        stem = source.name[: -len(suffix)].removesuffix(".npy")
        labels = output / place / f"{stem}{FORMATS[network.intensity][suffix][0]}"
        tasks.append(Task(source, labels, overlay / place / f"{stem}.png" if overlay is not None else None))
    if not tasks:
        raise DataError(f"{folder} holds no file that the network takes: {', '.join(FORMATS[network.intensity])}")
    return _checked(tasks)


def _checked(tasks: list[Task]) -> list[Task]:
    """Raise where two files would be written to one place, or one over its input."""
    sources: dict[Path, Path] = {task.source.resolve(): task.source for task in tasks}
    for task in tasks:
        for target in (task.labels, task.overlay):
            if target is None:
                continue
            if (other := sources.get(target.resolve())) is not None:
                raise RunError(
                    f"{target} would be written for {task.source} and is that of {other}; choose other names"
                )
            sources[target.resolve()] = task.source
    return tasks


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of a run of train_*.py, or model/ in it")
    parser.add_argument("--input", type=Path, required=True, help="a file, or a folder with files of any depth")
    parser.add_argument("--output", type=Path, required=True, help="file for the labels; a folder if --input is one")
    parser.add_argument(
        "--overlay", type=Path, help="PNG of the input with the labels drawn over it; a folder if --input is one"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace labels and overlays that exist")
    parser.add_argument(
        "--batch-size", type=positive_int, default=8, help="slices predicted at a time (default: %(default)s)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: cuda if there is one, else cpu)")
    return parser


if __name__ == "__main__":
    main()
