"""Pictures of attention: the gates of groups over slices, and how alike the groups are from layer to layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from gca.maps import AxisGates
from medseg.evaluation.group_similarity import Similarity
from medseg.figures.view import AS_STORED, View

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
    axis.set_title(shown.name, fontsize=7)
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
