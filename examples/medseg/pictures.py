"""Training curves and overlays, as PNG files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from medseg.synapse import Labels, Volume

PALETTE = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "gold", "tab:pink", "tab:cyan")  # per organ


def draw_curves(metrics: Path, picture: Path, title: str) -> None:
    """Plot every column of a ``metrics.csv`` against its epoch."""
    table = pd.read_csv(metrics)
    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, rate = figure.subplots(1, 2, width_ratios=(2, 1))
    for column in ("loss", "cross_entropy", "dice_loss"):
        losses.plot(table["epoch"], table[column], marker=".", label=column.replace("_", " "))
    losses.set(xlabel="epoch", ylabel="mean over the training slices", ylim=(0, None), title=title)
    losses.legend()
    losses.grid(alpha=0.3)
    rate.plot(table["epoch"], table["lr"], marker=".", color="grey")
    rate.set(xlabel="epoch", ylabel="learning rate at its end", ylim=(0, None))
    rate.grid(alpha=0.3)
    figure.savefig(picture, dpi=110)


def draw_overlay(
    volume: Volume, prediction: Labels, organs: Sequence[str], picture: Path, title: str, columns: int = 5
) -> None:
    """Draw slices of a volume three times: plain, under the ground truth and under the prediction.

    The slices are spread evenly between the first and the last that hold an organ.
    """
    shown = np.flatnonzero(volume.label.any(axis=(1, 2)))
    if not shown.size:  # nothing labelled: show the whole extent
        shown = np.arange(len(volume.label))
    inner = np.linspace(0, len(shown) - 1, columns + 2)[1:-1]
    slices = np.unique(shown[inner.round().astype(int)])

    figure = Figure(figsize=(2.4 * len(slices), 8), layout="constrained")
    axes = figure.subplots(3, len(slices), squeeze=False)
    for column, z in zip(axes.T, slices, strict=True):
        layers = (("image", None), ("ground truth", volume.label[z]), ("prediction", prediction[z]))
        for axis, (name, label) in zip(column, layers, strict=True):
            axis.imshow(volume.image[z], cmap="gray", vmin=0, vmax=1)
            if label is not None:
                overlay = np.ma.masked_equal(label, 0)
                axis.imshow(
                    overlay, cmap=ListedColormap(PALETTE), vmin=0.5, vmax=8.5, alpha=0.65, interpolation="nearest"
                )
            axis.set(xticks=[], yticks=[])
            if z == slices[0]:
                axis.set_ylabel(name)
        column[0].set_title(f"slice {z}", fontsize=9)
    figure.suptitle(title)
    handles = [Patch(color=colour, label=organ) for colour, organ in zip(PALETTE, organs, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(picture, dpi=110)
