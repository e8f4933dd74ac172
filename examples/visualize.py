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
parts of the channels of layers that have a single group, which no training told apart.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as tv
from tqdm import tqdm

import gca
from gca.maps import AxisGates
from medseg.atomic_write import atomic_write, write_json, write_text
from medseg.command_line.options import int_from_0, positive_int
from medseg.data.acdc import ACDC
from medseg.data.arrays import read_json
from medseg.data.isic import RELEASED, isic
from medseg.data.synapse import SYNAPSE
from medseg.errors import DataError, RunError
from medseg.evaluation.group_similarity import Similarity, group_similarity, over_networks, untrained, verdict
from medseg.evaluation.prediction import Network, load_network, read_picture
from medseg.figures.attention import draw_layer, draw_overview
from medseg.settings import Settings
from medseg.training.transforms import as_rgb, fit_square

BENCHMARKS = {benchmark.name: benchmark for benchmark in (SYNAPSE, ACDC, *map(isic, RELEASED))}
ROWS = 4  # slices in a picture
Item = TypeVar("Item")
NUMBERS = ("groups.json", "groups.csv", "overview.png")


@dataclass(frozen=True)
class Scan:
    """One case or file: the slices as the network takes them, ``(Z, 3, S, S)``, and which of them is drawn."""

    name: str
    slices: Tensor
    shown: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = parser().parse_args(arguments)
    try:
        device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        outs = folders(options.checkpoint, options.out)
        if len(outs) > 1:
            check_free([options.out / name for name in ("summary.json", "summary.csv")], options.overwrite)
        found = {
            checkpoint: run(load_network(checkpoint, device), checkpoint, out, options, device)
            for checkpoint, out in outs.items()
        }
        if len(found) > 1:
            summarize(list(found.values()), options)
    except (DataError, RunError) as error:
        sys.exit(f"error: {error}")
    except torch.cuda.OutOfMemoryError as error:
        sys.exit(f"error: {error}; lower --batch-size from {options.batch_size}")
    except OSError as error:
        sys.exit(f"error: {error}; free the disk or choose another --out")
    except KeyboardInterrupt:
        sys.exit("interrupted; what is finished is kept")


def folders(checkpoints: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Where the pictures and numbers of each network go: several into folders named as theirs."""
    if len(checkpoints) == 1:
        return {checkpoints[0]: out}
    names = [checkpoint.resolve().name for checkpoint in checkpoints]
    if len(set(names)) < len(names):
        raise RunError(f"--checkpoint got folders of the same name: {', '.join(names)}; give runs of different names")
    return {checkpoint: out / name for checkpoint, name in zip(checkpoints, names, strict=True)}


def check_free(paths: Sequence[Path], overwrite: bool) -> None:
    """Nothing is replaced unasked."""
    if not overwrite and (present := [path for path in paths if path.exists()]):
        raise RunError(f"{present[0]} exists; pass --overwrite to replace it, or another --out")


def run(network: Network, checkpoint: Path, out: Path, options: argparse.Namespace, device: str) -> dict[str, Any]:
    """Draw the layers, compare their groups, print what came out, and return it."""
    layers = layers_of(network, options.layers)
    pictures = {name: out / f"{name or 'layer'}.png" for name in layers}
    check_free([*pictures.values(), *(out / name for name in NUMBERS)], options.overwrite)
    scans = read_cases(network, checkpoint, options) if options.data else read_files(network, options.images)
    shown = [(f"{scan.name}, slice {scan.shown}", scan.slices[scan.shown]) for scan in spread(scans, ROWS)]
    maps = gca.attention_maps(network.model, torch.stack([image for _, image in shown]).to(device))
    for name, picture in tqdm(pictures.items(), desc="Drawing", unit="layer", disable=None):
        gates = maps[name]
        assert isinstance(gates, AxisGates)
        with atomic_write(picture) as part:
            draw_layer(gates, shown, part, f"{name}: gates of {_count(gates.groups, 'group')}")

    slices = torch.cat([scan.slices for scan in scans])
    batches = [batch.to(device) for batch in torch.split(slices, options.batch_size)]
    chosen = {"splits": options.splits, "seed": options.seed, "parts": options.parts}
    trained = group_similarity(network.model, layers, batches, **chosen)
    if not trained:
        print(
            f"{len(pictures)} pictures in {out}. Every layer has a single group: there is nothing to compare; --parts "
            "compares parts of it."
        )
        return {"network": checkpoint.resolve().name, "layers": []}
    before = group_similarity(untrained(network.model, batches, options.seed), layers, batches, **chosen)
    rows = [row_of(name, trained[name], before[name]) for name in trained]
    content = {
        "network": checkpoint.resolve().name,
        "scans": {scan.name: len(scan.slices) for scan in scans},
        "random_splits": options.splits,
        "seed": options.seed,
        "parts_of_single_groups": options.parts,
        "layers": rows,
    }
    write_json(out / "groups.json", content)
    write_text(out / "groups.csv", pd.DataFrame(rows).to_csv(index=False))
    with atomic_write(out / "overview.png") as part:
        draw_overview(trained, before, part)
    print(as_table(rows))
    what = "test case" if options.data else "file"
    print(f"{_count(len(slices), 'slice')} of {_count(len(scans), what)}; {options.splits} random splits.")
    print(verdict(trained, before))
    print(f"Pictures and numbers in {out}")
    return content


def summarize(found: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
    """Write what came out over several networks, and print it."""
    rows = over_networks([one["layers"] for one in found])
    if not rows:
        return
    shared = {key: value for key, value in found[0].items() if key not in ("network", "layers")}
    networks = [one["network"] for one in found]
    write_json(options.out / "summary.json", {"networks": networks, **shared, "layers": rows})
    write_text(options.out / "summary.csv", pd.DataFrame(rows).to_csv(index=False))
    less, before = (sum(row[f"{prefix}less_alike"] for row in rows) for prefix in ("", "untrained_"))
    print(
        f"Over {len(found)} networks: in {less} of {len(rows) * len(found)} layers the groups are less alike than 95 % "
        f"of the random splits; with random weights in {before}. By layer: {options.out / 'summary.csv'}"
    )


def layers_of(network: Network, patterns: Sequence[str] | None) -> list[str]:
    """The coordinate layers of a network that match one of the patterns, in its order."""
    layers = gca.injected(network.model)
    if not layers:
        raise RunError("the network has no attention; give --checkpoint a run of --attention gca or coord")
    axis = (gca.GroupedCoordinateAttention, gca.CoordinateAttention)
    names = [name for name, layer in layers.items() if isinstance(layer, axis)]
    if not names:
        kinds = {type(layer).__name__ for layer in layers.values()}
        raise RunError(
            f"the attention of the network is {', '.join(kinds)}, which has no gates of rows and columns to draw; "
            "give --checkpoint a run of --attention gca or coord"
        )
    for pattern in patterns or ():
        if not any(fnmatch(name, pattern) for name in names):
            raise RunError(f"--layers {pattern} matches none of the layers: {', '.join(names)}")
    return [name for name in names if patterns is None or any(fnmatch(name, pattern) for pattern in patterns)]


def read_cases(network: Network, checkpoint: Path, options: argparse.Namespace) -> list[Scan]:
    """Test cases of the data set that the network was trained on, spread evenly over all of them."""
    folder = checkpoint if (checkpoint / "model").is_dir() else checkpoint.parent
    model = folder / "model" if checkpoint == folder else checkpoint
    name = read_json(model / "preprocessing.json").get("benchmark")
    if name not in BENCHMARKS:
        raise DataError(f"{model / 'preprocessing.json'} names the benchmark {name!r}; wanted {', '.join(BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    settings = benchmark.settings
    if (noted := folder / "settings.json").is_file():  # the run may have tested other cases: a fold, another seed
        try:
            settings = Settings(**read_json(noted))
        except TypeError as error:
            raise DataError(f"{noted} does not hold the settings of a run: {error}") from error
    cases = benchmark.open(options.data, settings).test
    scans = []
    for case in tqdm(spread(cases, options.cases), desc="Reading", unit="case", disable=None):
        volume = case.read()
        labelled = np.count_nonzero(volume.label, axis=(1, 2))
        scans.append(Scan(case.name, fitted(volume.image, network.size), int(labelled.argmax())))
    return scans


def read_files(network: Network, paths: Sequence[Path]) -> list[Scan]:
    """Files as ``predict.py`` takes them, each drawn at its middle slice."""
    images = [(path.name, read_picture(path, network).image) for path in paths]
    return [Scan(name, fitted(image, network.size), len(image) // 2) for name, image in images]


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most so many of some items, evenly spaced from the first to the last."""
    places = np.linspace(0, len(items) - 1, min(count, len(items)))
    return [items[place] for place in places.round().astype(int)]


def fitted(image: NDArray[np.generic], size: int) -> Tensor:
    """Slices ``(Z, C, H, W)`` as the network takes them: ``(Z, 3, S, S)``."""
    return as_rgb(fit_square(tv.to_dtype(torch.from_numpy(image), torch.float32, scale=True), size))


def row_of(name: str, trained: Similarity, before: Similarity) -> dict[str, Any]:
    """One row of the table."""
    size = {"groups": trained.groups, "channels": trained.channels, "height": trained.height, "width": trained.width}
    untrained_numbers = {f"untrained_{key}": value for key, value in before.numbers().items()}
    return {"layer": name, **size, **trained.numbers(), **untrained_numbers}


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """The main columns, to read."""
    width = max(len(row["layer"]) for row in rows)
    lines = [
        f"{'':{width}}{'':8}{'trained: correlation of':>37}{'':25}{'with random weights':>28}",
        f"{'layer':{width}}{'groups':>8}{'contrast':>10}{'groups':>9}{'random (5 to 95 %)':>25}{'%ile':>6}{'z':>8}"
        f"{'groups':>12}{'random':>9}{'%ile':>6}",
    ]
    for row in rows:
        spread = f"{_number(row['random_mean'])} ({_number(row['random_5'])} to {_number(row['random_95'])})"
        lines.append(
            f"{row['layer']:{width}}{row['groups']:>8}{_number(row['contrast']):>10}{_number(row['similarity']):>9}"
            f"{spread:>25}{_number(row['percentile'], 0):>6}{_number(row['z'], 1):>8}"
            f"{_number(row['untrained_similarity']):>12}{_number(row['untrained_random_mean']):>9}"
            f"{_number(row['untrained_percentile'], 0):>6}"
        )
    return "\n".join(lines)


def _count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


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
    parser.add_argument("--batch-size", type=positive_int, default=8, help="slices at a time (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: cuda if there is one, else cpu)")
    return parser


if __name__ == "__main__":
    main()
