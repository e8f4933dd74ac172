"""Training curves, bars, overlays and augmented samples, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from medseg.data.dataset import Benchmark, Labels
from medseg.evaluation.scores import headline
from medseg.training.slices import Draw, SliceDataset

PALETTE = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "gold", "tab:pink", "tab:cyan")  # per class
Picture = NDArray[Any]


def draw_curves(metrics: Path, picture: Path, title: str) -> None:
    """Plot the losses and the learning rate of a ``metrics.csv`` against the epoch."""
    table = pd.read_csv(metrics)
    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, rate = figure.subplots(1, 2, width_ratios=(2, 1))
    for column in [name for name in ("loss", "cross_entropy", "focal_loss", "dice_loss") if name in table]:
        (line,) = losses.plot(table["epoch"], table[column], label=column.replace("_", " "))
        if f"val_{column}" in table:
            validated = table.dropna(subset=f"val_{column}")
            style = {"marker": ".", "linestyle": "--", "color": line.get_color()}
            losses.plot(
                validated["epoch"], validated[f"val_{column}"], label=f"{line.get_label()}, validation", **style
            )
    losses.set(xlabel="epoch", ylabel="mean over the slices", ylim=(0, None))
    figure.suptitle(title, fontsize=10)
    losses.legend(fontsize=8)
    losses.grid(alpha=0.3)
    rate.plot(table["epoch"], table["lr"], color="grey")
    rate.set(xlabel="epoch", ylabel="learning rate at its end", ylim=(0, None))
    rate.grid(alpha=0.3)
    figure.savefig(picture, dpi=110)


def draw_bars(benchmark: Benchmark, summary: dict[str, Any], picture: Path, title: str) -> None:
    """Bars of the mean figures per class, with their standard deviation over cases, beside those of a paper."""
    paper = benchmark.paper
    if benchmark.intensity == "rgb":
        ours = {name: (value, None) for name, value in headline(benchmark, summary).items()}
        printed = {name: mean for name, (mean, _) in paper.mean.items()} if paper else {}
        caption = "% of the pixels of all images"
    else:
        strict = {name: row["strict"]["dice"] for name, row in summary["classes"].items()}
        ours = {name: (dice["mean"], dice["std"]) for name, dice in strict.items()}
        printed = dict(paper.dice) if paper else {}
        caption = "Dice %, mean and standard deviation over cases"
    compared = [name for name in ours if name in printed]
    shift = 0.2 if compared else 0.0  # to the left of the bars of the paper
    places = np.arange(len(ours))
    figure = Figure(figsize=(max(6, 1.2 * len(ours)), 4), layout="constrained")
    axis = figure.subplots()
    heights = [100 * (mean or 0) for mean, _ in ours.values()]
    axis.bar(
        places - shift, heights, 0.4, label="this run", yerr=[100 * (std or 0) for _, std in ours.values()], capsize=3
    )
    if compared:
        where = [list(ours).index(name) + 0.2 for name in compared]
        axis.bar(where, [printed[name] for name in compared], 0.4, label="paper", color="lightgrey")
    axis.set_xticks(places, list(ours), rotation=20)
    axis.set(ylabel=caption, ylim=(0, 105))
    axis.set_title(title, fontsize=9)
    axis.legend(loc="lower right")
    axis.grid(axis="y", alpha=0.3)
    figure.savefig(picture, dpi=110)


def draw_overlay(
    image: Picture,
    layers: Mapping[str, Labels | None],
    classes: Sequence[str],
    picture: Path,
    title: str,
    columns: int = 5,
) -> None:
    """Draw slices of an image ``(Z, C, H, W)`` under every layer of labels ``(Z, H, W)``, e.g. truth and prediction.

    The slices are spread evenly over those in which the first layer has labels; a layer ``None`` is the plain image.
    """
    extent = next(labels for labels in layers.values() if labels is not None)
    shown = np.flatnonzero(extent.any(axis=(1, 2)))
    if not shown.size:  # nothing labelled: show the whole extent
        shown = np.arange(len(extent))
    inner = np.linspace(0, len(shown) - 1, columns + 2)[1:-1]
    slices = np.unique(shown[inner.round().astype(int)])

    rows = len(layers)
    if len(image) == 1:  # a photograph: its layers side by side
        figure = Figure(figsize=(3.4 * rows, 4), layout="constrained")
        axes = figure.subplots(1, rows, squeeze=False).T
    else:
        figure = Figure(figsize=(2.4 * len(slices), 2.7 * rows), layout="constrained")
        axes = figure.subplots(rows, len(slices), squeeze=False)
    for column, z in zip(axes.T, slices, strict=True):
        for axis, (name, labels) in zip(column, layers.items(), strict=True):
            _show(axis, image[z], None if labels is None else labels[z], len(classes))
            if len(image) == 1:
                axis.set_title(name, fontsize=9)
            elif z == slices[0]:
                axis.set_ylabel(name)
        if len(image) > 1:
            column[0].set_title(f"slice {z}", fontsize=9)
    figure.suptitle(title)
    _legend(figure, classes)
    figure.savefig(picture, dpi=110)


def draw_samples(
    rows: Sequence[tuple[str, Sequence[tuple[Picture, Labels]]]], classes: Sequence[str], picture: Path
) -> None:
    """Draw images ``(C, H, W)`` with their labels, in named rows, e.g. what augmentation makes of them."""
    longest = max(len(samples) for _, samples in rows)
    figure = Figure(figsize=(2 * longest, 2.15 * len(rows) + 0.5), layout="constrained")
    axes = figure.subplots(len(rows), longest, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for line, (name, samples) in zip(axes, rows, strict=True):
        for axis, (image, label) in zip(line, samples, strict=False):
            axis.set_axis_on()
            _show(axis, image, label, len(classes))
        line[0].set_ylabel(name, fontsize=8)
    _legend(figure, classes)
    figure.savefig(picture, dpi=110)


def _show(axis: Axes, image: Picture, label: Labels | None, classes: int) -> None:
    """Scans under transparent colours, photographs within outlines, which leave their own colours visible."""
    axis.imshow(image.transpose(1, 2, 0)) if len(image) == 3 else axis.imshow(image[0], cmap="gray", vmin=0, vmax=1)
    for index, colour in enumerate(PALETTE[:classes], start=1):
        if label is None or not (label == index).any():
            continue
        if len(image) == 3:
            axis.contour(label == index, levels=[0.5], colors=[colour], linewidths=1.5)
        else:
            inside = np.ma.masked_not_equal(label, index)
            axis.imshow(inside, cmap=ListedColormap([colour]), alpha=0.55, interpolation="nearest")
    axis.set(xticks=[], yticks=[])


def _legend(figure: Figure, classes: Sequence[str]) -> None:
    handles = [Patch(color=colour, label=name) for colour, name in zip(PALETTE, classes, strict=False)]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)


def draw_augmentation(benchmark: Benchmark, dataset: SliceDataset, picture: Path, columns: int = 7) -> None:
    """Draw four slices fitted to the square, and what augmentation makes of each in several epochs."""
    if dataset.augmentation is None:
        return
    plain = SliceDataset([], dataset.size)
    plain.slices = dataset.slices
    areas = torch.tensor([float((label > 0).float().mean()) for _, label in dataset.slices])
    labelled = areas.argsort(descending=True)[: max(4, len(dataset) // 4)]  # slices in which there is much to see
    rows = []
    for index in labelled[torch.linspace(0, len(labelled) - 1, min(4, len(labelled))).long()].tolist():
        drawn = [plain[Draw(index, 0)], *(dataset[Draw(index, columns * index + k)] for k in range(columns))]
        channels = slice(None) if benchmark.intensity == "rgb" else slice(1)
        rows.append((f"slice {index}", [(image[channels].numpy(), label.numpy()) for image, label in drawn]))
    draw_samples(rows, benchmark.classes, picture)
