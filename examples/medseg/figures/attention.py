"""Draw the attention of a trained network, and tell how different the groups of its layers are, for visualize.py."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as tv
from tqdm import tqdm

import gca
from gca.maps import AxisGates
from medseg.data.acdc import ACDC
from medseg.data.dataset import AS_STORED, View, view_of_labels
from medseg.data.isic import RELEASED, isic
from medseg.data.synapse import SYNAPSE
from medseg.errors import DataError, RunError
from medseg.evaluation.group_similarity import Similarity, group_similarity, over_networks, untrained, verdict
from medseg.evaluation.inputs import Picture, Use
from medseg.evaluation.prediction import Network
from medseg.figures.overlays import shortened
from medseg.files import atomic_write, read_json, write_json, write_text
from medseg.settings import Settings
from medseg.training.transforms import as_rgb, fit_square

BENCHMARKS = {benchmark.name: benchmark for benchmark in (SYNAPSE, ACDC, *map(isic, RELEASED))}
ROWS = 4  # slices in a picture
NUMBERS = ("groups.json", "groups.csv", "overview.png")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Scan:
    """One case or file: the slices as the network takes them, ``(Z, 3, S, S)``, which of them is drawn, and how."""

    name: str
    slices: Tensor
    shown: int
    view: View = AS_STORED


def check_free(paths: Sequence[Path], overwrite: bool) -> None:
    """Nothing is replaced unasked."""
    if not overwrite and (present := [path for path in paths if path.exists()]):
        raise RunError(f"{present[0]} exists; pass --overwrite to replace it, or another --out")


def visualize(
    network: Network,
    checkpoint: Path,
    out: Path,
    options: argparse.Namespace,
    device: str,
    pictures: Sequence[tuple[str, Picture]],
) -> dict[str, Any]:
    """Draw the layers, compare their groups, print what came out, and return it."""
    layers = layers_of(network, options.layers)
    drawings = {name: out / f"{name or 'layer'}.png" for name in layers}
    check_free([*drawings.values(), *(out / name for name in NUMBERS)], options.overwrite)
    use = network.use
    scans = read_cases(use, options) if options.data else fitted_files(use, pictures)
    shown = [
        Shown(
            f"{scan.name}, slice {scan.shown}" if len(scan.slices) > 1 else scan.name,
            scan.slices[scan.shown],
            scan.view,
        )
        for scan in spread(scans, ROWS)
    ]
    maps = gca.attention_maps(network.model, torch.stack([one.image for one in shown]).to(device))
    for name, drawing in tqdm(drawings.items(), desc="Drawing", unit="layer", disable=None):
        gates = maps[name]
        assert isinstance(gates, AxisGates)
        with atomic_write(drawing) as part:
            draw_layer(gates, shown, part, f"{name}: gates of {_count(gates.groups, 'group')}")

    slices = torch.cat([scan.slices for scan in scans])
    batches = [batch.to(device) for batch in torch.split(slices, options.batch_size)]
    chosen = {"splits": options.splits, "seed": options.seed, "parts": options.parts}
    trained = group_similarity(network.model, layers, batches, **chosen)
    if not trained:
        print(
            f"{len(drawings)} pictures in {out}. Every layer has a single group: there is nothing to compare; --parts "
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


def read_cases(use: Use, options: argparse.Namespace) -> list[Scan]:
    """Test cases of the data set that the network was trained on, spread evenly over all of them."""
    noted_use = use.folder / "preprocessing.json"
    name = read_json(noted_use).get("benchmark")
    if name not in BENCHMARKS:
        raise DataError(
            f"{noted_use} names the benchmark {name!r}, and --data is for {', '.join(BENCHMARKS)}; give --images, the "
            "files to look at"
        )
    benchmark = BENCHMARKS[name]
    settings = benchmark.settings
    if (noted := use.folder.parent / "settings.json").is_file():  # it may have tested other cases: a fold, another seed
        settings = Settings.from_json(read_json(noted), noted)
    cases = benchmark.open(options.data, settings).test
    scans = []
    for case in tqdm(spread(cases, options.cases), desc="Reading", unit="case", disable=None):
        volume = case.read()
        labelled = np.count_nonzero(volume.label, axis=(1, 2))
        view = view_of_labels(volume.label, benchmark.classes) if benchmark.intensity == "hu" else AS_STORED
        scans.append(Scan(case.name, fitted(volume.image, use.size), int(labelled.argmax()), view))
    return scans


def fitted_files(use: Use, pictures: Sequence[tuple[str, Picture]]) -> list[Scan]:
    """Files as ``predict.py`` takes them, by their names, each drawn at its middle slice."""
    return [Scan(name, fitted(one.image, use.size), len(one.image) // 2, one.view) for name, one in pictures]


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


CAPTION = (
    "The gate of a position is that of its row (curve on the right) x that of its column (curve above), averaged over\n"
    "the channels of the group. Colours and curves have one scale in all panels."
)


@dataclass(frozen=True)
class Shown:
    """A slice that is drawn: its name, the image ``(3, S, S)`` that the network saw, and how it is turned."""

    name: str
    image: Tensor
    view: View = AS_STORED


def draw_layer(gates: AxisGates, shown: Sequence[Shown], picture: Path, title: str) -> None:
    """Draw slices, and beside each the map of every group over it with its rows and columns at the margins.

    Args:
        gates: Of the layer on these slices.
        shown: The slices.
        picture: File to write.
        title: Above everything.
    """
    maps, rows, columns = (x.float().cpu().numpy() for x in (gates.maps(), gates.rows(), gates.columns()))
    low, high = _limits(maps)  # one scale for all groups and slices, so that they compare
    edges = _limits(rows, columns)
    figure = Figure(figsize=(2.3 + 2.8 * gates.groups, 2.5 * len(shown) + 1), layout="constrained")
    axes = figure.subplots(len(shown), 1 + gates.groups, squeeze=False)
    for line, one, of_groups, of_rows, of_columns in zip(axes, shown, maps, rows, columns, strict=True):
        pixels = one.view.turn(one.image.clamp(0, 1).numpy()).transpose(1, 2, 0)
        _draw_slice(line[0], one, pixels)
        for g, axis in enumerate(line[1:]):
            axis.imshow(pixels)
            side = len(pixels)
            extent = (-0.5, side - 0.5, side - 0.5, -0.5)
            style: dict[str, Any] = {"cmap": "inferno", "vmin": low, "vmax": high, "alpha": 0.6}
            drawn = axis.imshow(one.view.turn(of_groups[g]), extent=extent, interpolation="bilinear", **style)
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(f"group {g + 1}", fontsize=8)
            rows_shown = of_rows[g][::-1] if -2 in one.view.flipped else of_rows[g]
            columns_shown = of_columns[g][::-1] if -1 in one.view.flipped else of_columns[g]
            _draw_margins(axis, rows_shown, columns_shown, side, edges)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8, aspect=30)
    bar.set_label("gate, mean over the channels of the group", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=10)
    figure.supxlabel(CAPTION, fontsize=7)
    figure.savefig(picture, dpi=110)


def _draw_slice(axis: Axes, shown: Shown, pixels: NDArray[Any]) -> None:
    axis.imshow(pixels)
    axis.set_title(shortened(shown.name), fontsize=7)
    axis.set(xticks=[], yticks=[])
    for place, side in ((0.02, "R"), (0.93, "L")) if shown.view.marked else ():
        axis.text(place, 0.5, side, color="white", fontsize=8, va="center", transform=axis.transAxes)


def _draw_margins(axis: Axes, rows: NDArray[Any], columns: NDArray[Any], side: int, edges: tuple[float, float]) -> None:
    """Curves of the gates of the columns above a picture, and of the rows to its right, each at its place."""
    top = axis.inset_axes((0, 1.03, 1, 0.2))
    right = axis.inset_axes((1.03, 0, 0.2, 1))
    room = 0.05 * (edges[1] - edges[0])
    limits = (edges[0] - room, edges[1] + room)
    top.step(*_steps(columns, side), where="post", linewidth=1)
    top.set(xlim=(-0.5, side - 0.5), ylim=limits, xticks=[])
    places, values = _steps(rows, side)
    right.plot(np.repeat(values, 2)[:-1], np.repeat(places, 2)[1:], linewidth=1)
    right.set(ylim=(side - 0.5, -0.5), xlim=limits, yticks=[])
    for margin, scale in ((top, top.yaxis), (right, right.xaxis)):
        scale.set_major_locator(MaxNLocator(2))
        scale.set_major_formatter(ScalarFormatter(useOffset=False))
        margin.tick_params(labelsize=5, length=2, pad=1)
    right.tick_params(axis="x", labelrotation=90)


def _limits(*values: NDArray[Any]) -> tuple[float, float]:
    """The range of some values, or one around them where they are all the same but for rounding."""
    low, high = min(float(x.min()) for x in values), max(float(x.max()) for x in values)
    return (low, high) if high - low > 1e-4 else (low - 0.05, high + 0.05)


def _steps(gate: NDArray[Any], side: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Where each row or column begins in the picture, and its gate, the last one twice to reach the end."""
    return np.linspace(-0.5, side - 0.5, len(gate) + 1), np.append(gate, gate[-1])


def draw_overview(trained: dict[str, Similarity], before: dict[str, Similarity], picture: Path) -> None:
    """Draw how alike the groups are against depth, over the band of the random splits; once without training."""
    figure = Figure(figsize=(max(8, 1.0 * len(trained)), 5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    depth = np.arange(len(trained))
    for axis, found, title in ((axes[0], trained, "trained"), (axes[1], before, "random weights")):
        low, high = np.transpose([np.quantile(layer.random, (0.05, 0.95)) for layer in found.values()])
        means = [layer.random.mean() for layer in found.values()]
        axis.fill_between(depth, low, high, color="lightgrey", label="random splits, 5 to 95 %")
        axis.plot(depth, means, color="grey", linewidth=1, marker="_", label="random splits, mean")
        axis.plot(depth, [layer.similarity for layer in found.values()], "o-", color="tab:blue", label="groups")
        axis.set_xticks(depth, list(found), rotation=90, fontsize=6)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("correlation between the maps of two groups")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(picture, dpi=110)
