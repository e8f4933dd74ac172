"""Slices with their labels drawn over them, as PNG files."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from medseg.data.dataset import AS_STORED, Labels, View, view_of_labels

PALETTE = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "gold", "tab:pink", "tab:cyan")  # per class
NARROWEST = 6.0  # inches, of a figure with a title and a legend
Picture = NDArray[Any]


def draw_overlay(
    image: Picture,
    layers: Mapping[str, Labels | None],
    classes: Sequence[str],
    picture: Path,
    title: str,
    *,
    columns: int = 5,
    view: View | None = None,
) -> None:
    """Draw slices of an image ``(Z, C, H, W)`` under every layer of labels ``(Z, H, W)``, e.g. truth and prediction.

    The slices are spread evenly over those in which the first layer has labels; a layer ``None`` is the plain image.

    Args:
        image: Whose slices.
        layers: Labels by their names.
        classes: Names, without the background.
        picture: File to write.
        title: Above everything.
        columns: At most so many slices.
        view: How slices are turned; ``None``: as the organs in the first layer of labels tell.
    """
    extent = next(labels for labels in layers.values() if labels is not None)
    view = view or (view_of_labels(extent, classes) if image.shape[1] == 1 else AS_STORED)
    shown = np.flatnonzero(extent.any(axis=(1, 2)))
    if not shown.size:  # nothing labelled: show the whole extent
        shown = np.arange(len(extent))
    inner = np.linspace(0, len(shown) - 1, columns + 2)[1:-1]
    slices = np.unique(shown[inner.round().astype(int)])

    rows = len(layers)
    if len(image) == 1:  # an RGB image: its layers side by side
        figure = Figure(figsize=(max(NARROWEST, 3.4 * rows), 4), layout="constrained")
        axes = figure.subplots(1, rows, squeeze=False).T
    else:
        figure = Figure(figsize=(max(NARROWEST, 2.4 * len(slices)), 2.7 * rows), layout="constrained")
        axes = figure.subplots(rows, len(slices), squeeze=False)
    for column, z in zip(axes.T, slices, strict=True):
        for axis, (name, labels) in zip(column, layers.items(), strict=True):
            show(axis, image[z], None if labels is None else labels[z], len(classes), view)
            if len(image) == 1:
                axis.set_title(name, fontsize=9)
            elif z == slices[0]:
                axis.set_ylabel(name)
        if len(image) > 1:
            column[0].set_title(f"slice {z}", fontsize=9)
    figure.suptitle(fitting(title, figure))
    add_legend(figure, classes)
    figure.savefig(picture, dpi=110)


def draw_samples(
    rows: Sequence[tuple[str, Sequence[tuple[Picture, Labels]]]],
    heads: Sequence[str],
    classes: Sequence[str],
    picture: Path,
    title: str,
) -> None:
    """Draw images ``(C, H, W)`` with their labels, in named rows and columns, e.g. what augmentation makes of them."""
    figure = Figure(figsize=(2 * len(heads), 2.15 * len(rows) + 0.9), layout="constrained")
    axes = figure.subplots(len(rows), len(heads), squeeze=False)
    for line, (name, samples) in zip(axes, rows, strict=True):
        view = view_of_labels(samples[0][1][None], classes) if len(samples[0][0]) == 1 else AS_STORED
        for axis, (image, label) in zip(line, samples, strict=True):
            show(axis, image, label, len(classes), View(view.flipped))  # mirrored ones would be marked wrongly
        line[0].set_ylabel(shortened(name), fontsize=8)
    for axis, head in zip(axes[0], heads, strict=True):
        axis.set_title(head, fontsize=9)
    figure.suptitle(fitting(title, figure), fontsize=10)
    add_legend(figure, classes)
    figure.savefig(picture, dpi=110)


def show(axis: Axes, image: Picture, label: Labels | None, classes: int, view: View = AS_STORED) -> None:
    """Scans under transparent colours, RGB images within outlines, which leave their own colours visible."""
    image = view.turn(image)
    label = None if label is None else view.turn(label)
    axis.imshow(image.transpose(1, 2, 0)) if len(image) == 3 else axis.imshow(image[0], cmap="gray", vmin=0, vmax=1)
    for index, colour in enumerate(_colours(classes), start=1):
        if label is None or not (label == index).any():
            continue
        if len(image) == 3:
            # Padded, so that a region at the border is closed there.
            outline = np.pad(label == index, 1)
            places = [np.arange(-1, length + 1).clip(-0.5, length - 0.5) for length in label.shape]
            axis.contour(places[1], places[0], outline, levels=[0.5], colors=[colour], linewidths=1.5)
        else:
            inside = np.ma.masked_not_equal(label, index)
            axis.imshow(inside, cmap=ListedColormap([colour]), alpha=0.55, interpolation="nearest")
    if view.marked:
        for place, side in ((0.02, "R"), (0.98, "L")):
            axis.text(
                place,
                0.5,
                side,
                color="white",
                fontsize=8,
                ha="left" if side == "R" else "right",
                va="center",
                transform=axis.transAxes,
            )
    axis.set(xticks=[], yticks=[])


def fitting(title: str, figure: Figure) -> str:
    """A title in lines that are no longer than the figure is wide."""
    width = int(9 * figure.get_figwidth())  # characters, of 12 points
    return "\n".join(line for part in title.split("\n") for line in textwrap.wrap(part, width))


def shortened(name: str, longest: int = 26) -> str:
    """A name without its middle, where it is too long for a picture."""
    half = (longest - 3) // 2
    return name if len(name) <= longest else f"{name[:half]}...{name[-half:]}"


def add_legend(figure: Figure, classes: Sequence[str]) -> None:
    """The colours of the classes, below everything."""
    widest = 0.6 + 0.1 * max(map(len, classes))  # inches, with the colour
    handles = [Patch(color=colour, label=name) for colour, name in zip(_colours(len(classes)), classes, strict=True)]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=max(1, min(4, int(figure.get_figwidth() / widest))),
        frameon=False,
    )


def _colours(classes: int) -> list[Any]:
    if classes <= len(PALETTE):
        return list(PALETTE[:classes])
    return list(mpl.colormaps["turbo"](np.linspace(0.05, 0.95, classes)))
