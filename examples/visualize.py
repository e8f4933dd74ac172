"""Draw the attention of a trained network on real slices, and tell how different the groups of its layers are.

    visualize.py --checkpoint runs/acdc --data DIR --out attention/
    visualize.py --checkpoint runs/acdc --images scan.nii.gz --layers '*layer4*' --out attention/
    visualize.py --checkpoint runs/acdc/seed10 runs/acdc/seed11 runs/acdc/seed12 --data DIR --out attention/
    visualize.py --checkpoint runs/acdc-1group --data DIR --parts 2 --out control/

One picture per layer shows which rows and columns each group lights up: the gate of every position, averaged over the
channels of the group, over the slice as the network saw it, with the gates of the rows and columns at its margins.
groups.json, groups.csv and overview.png compare the groups with one another, with random splits of the same channels,
and with a network that was not trained; medseg/evaluation/group_similarity.py says how. Several networks have folders
of their own in OUT, and a summary over all of them, summary.json and summary.csv. --parts is the control: it compares
parts of the channels of layers that have a single group, whose training never distinguished them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from medseg.command_line.options import int_from_0, positive_int
from medseg.errors import DataError, RunError, told_once
from medseg.evaluation.inputs import read_picture, read_use
from medseg.files import check_folder

# medseg.figures.attention is imported where it is needed: torch takes seconds, for which --help and a mistake on
# the command line should not wait.


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = parser().parse_args(arguments)
    try:
        with told_once():
            run(options)
    except (DataError, RunError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error}; free the disk or choose another --out")
    except KeyboardInterrupt:
        sys.exit("interrupted; what is finished is kept")


def run(options: argparse.Namespace) -> None:
    """Draw and compare the layers of every network, and sum up over several."""
    check_folder(options.out, "--out")
    outs = folders(options.checkpoint, options.out)
    uses = {checkpoint: read_use(checkpoint) for checkpoint in outs}
    more = {"frame": options.frame, "fill_nan": options.fill_nan}
    pictures = {  # read now, since what is wrong with them should not wait for torch
        intensity: [(path.name, read_picture(path, use, **more)) for path in options.images or ()]
        for intensity, use in {use.intensity: use for use in uses.values()}.items()
    }
    if options.data and not options.data.is_dir():
        raise DataError(f"no data folder {options.data}; give --data the folder that the network was trained on")

    import torch

    from medseg.evaluation.prediction import load_network
    from medseg.figures.attention import check_free, summarize, visualize

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if len(outs) > 1:
            check_free([options.out / name for name in ("summary.json", "summary.csv")], options.overwrite)
        found = [
            visualize(load_network(use, device), checkpoint, outs[checkpoint], options, device, pictures[use.intensity])
            for checkpoint, use in uses.items()
        ]
        if len(found) > 1:
            summarize(found, options)
    except torch.cuda.OutOfMemoryError as error:
        raise RunError(f"{error}; lower --batch-size from {options.batch_size}") from error


def folders(checkpoints: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Where the pictures and numbers of each network go: several into folders named as theirs."""
    if len(checkpoints) == 1:
        return {checkpoints[0]: out}
    names = [checkpoint.resolve().name for checkpoint in checkpoints]
    if len(set(names)) < len(names):
        raise RunError(f"--checkpoint got folders of the same name: {', '.join(names)}; give runs of different names")
    return {checkpoint: out / name for checkpoint, name in zip(checkpoints, names, strict=True)}


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
        help="folders of runs of train_*.py, or model/ in them",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="folder of the data the network was trained on: its test cases")
    source.add_argument("--images", type=Path, nargs="+", help="files as predict.py takes them")
    parser.add_argument(
        "--cases", type=positive_int, default=8, help="test cases of --data, all slices of each (default: %(default)s)"
    )
    parser.add_argument(
        "--layers", nargs="+", metavar="NAME", help="only these; * and ? stand for any characters (default: all)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for pictures and numbers")
    parser.add_argument("--overwrite", action="store_true", help="replace pictures and numbers that exist")
    parser.add_argument(
        "--splits", type=positive_int, default=100, help="random splits to compare with (default: %(default)s)"
    )
    parser.add_argument(
        "--parts",
        type=positive_int,
        default=1,
        help="compare so many equal parts of layers that have a single group (default: leave them out)",
    )
    parser.add_argument(
        "--seed", type=int_from_0, default=0, help="of splits and untrained weights (default: %(default)s)"
    )
    parser.add_argument("--frame", type=positive_int, help="frame of 4-D NIfTI among --images, from 1")
    parser.add_argument("--fill-nan", action="store_true", help="take voxels that are NaN or infinite as background")
    parser.add_argument("--batch-size", type=positive_int, default=8, help="slices at a time (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: cuda if there is one, else cpu)")
    return parser


if __name__ == "__main__":
    main()
