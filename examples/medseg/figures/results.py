"""Training curves, bars, and what augmentation makes of the training slices, as PNG files."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from medseg.data.dataset import Benchmark
from medseg.evaluation.report import rate_names
from medseg.evaluation.scores import headline
from medseg.figures.overlays import draw_samples
from medseg.training.slices import Draw, SliceDataset


def draw_curves(metrics: Path, picture: Path, title: str) -> None:
    """Plot losses, Dice and learning rate of a ``metrics.csv`` against the epoch."""
    table = pd.read_csv(metrics)
    for part in ("", "val_"):  # the Dice of probabilities, which the loss is made of
        if f"{part}dice_loss" in table:
            table[f"{part}soft_dice"] = 1 - table[f"{part}dice_loss"]
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    losses, dice, rate = figure.subplots(1, 3, width_ratios=(4, 3, 2))
    single = _marker(table)
    for column in [name for name in ("loss", "cross_entropy", "focal_loss", "dice_loss") if name in table]:
        _curve(losses, table, column, column.replace("_", " ").replace("dice", "Dice"))
    losses.set(xlabel="epoch", ylabel="mean over the slices", ylim=(0, None), title="loss")
    if "soft_dice" in table:
        _curve(dice, table, "soft_dice", "of probabilities")
    if "val_dice" in table:
        validated = table.dropna(subset="val_dice")
        dice.plot(validated["epoch"], validated["val_dice"], ".-", color="black", label="of labels, validation")
    dice.set(xlabel="epoch", ylabel="mean over classes", ylim=(0, 1), title="Dice")
    rate.plot(table["epoch"], table["lr"], color="grey", marker=single)
    rate.set(xlabel="epoch", ylabel="at the end of the epoch", ylim=(0, None), title="learning rate")
    for axis in (losses, dice, rate):
        axis.title.set_fontsize(9)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if single:
            axis.set(xlim=(0, 2), xticks=[1])
        axis.grid(alpha=0.3)
    for axis in (axis for axis in (losses, dice) if axis.lines):
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(picture, dpi=110)


def _marker(table: pd.DataFrame) -> str | None:
    """Of points: a line through one alone is not seen."""
    return "." if len(table) == 1 else None


def _curve(axis: Axes, table: pd.DataFrame, column: str, label: str) -> None:
    (line,) = axis.plot(table["epoch"], table[column], label=f"{label}, training", marker=_marker(table))
    if f"val_{column}" in table:
        validated = table.dropna(subset=f"val_{column}")
        style: dict[str, Any] = {"marker": ".", "linestyle": "--", "color": line.get_color()}
        axis.plot(validated["epoch"], validated[f"val_{column}"], label=f"{label}, validation", **style)


def draw_bars(benchmark: Benchmark, summary: dict[str, Any], picture: Path, title: str) -> None:
    """Bars of the mean figures per class, with their standard deviation over cases, beside those of a paper."""
    paper = benchmark.paper
    printed: dict[str, float] = {}
    if benchmark.intensity == "rgb":
        names = rate_names(benchmark)
        figures = headline(benchmark, summary)
        ours: dict[str, tuple[float | None, float | None]] = {name: (figures[key], None) for key, name in names.items()}
        printed = {names[key]: mean for key, (mean, _) in paper.mean.items() if key in names} if paper else {}
        caption = "% of the pixels of all images"
    else:
        strict = {name: row["strict"]["dice"] for name, row in summary["classes"].items()}
        ours = {name: (dice["mean"], dice["std"]) for name, dice in strict.items()}
        printed = dict(paper.dice) if paper else {}
        deviates = any(std for _, std in ours.values())
        caption = "Dice %, mean and standard deviation over cases" if deviates else "Dice %, mean over cases"
    compared = [name for name in ours if name in printed]
    shift = 0.2 if compared else 0.0  # to the left of the bars of the paper
    places = np.arange(len(ours)) - shift
    figure = Figure(figsize=(max(6, 1.2 * len(ours)) + 1, 4), layout="constrained")
    axis = figure.subplots()
    heights = np.array([100 * (mean or 0) for mean, _ in ours.values()])
    axis.bar(places, heights, 0.4, label="this run")
    deviations = np.array([100 * (std or 0) for _, std in ours.values()])
    if (some := deviations > 0).any():  # no whiskers where there is no deviation
        axis.errorbar(places[some], heights[some], deviations[some], fmt="none", ecolor="black", capsize=3)
    if compared:
        where = [list(ours).index(name) + 0.2 for name in compared]
        axis.bar(where, [printed[name] for name in compared], 0.4, label="paper", color="lightgrey")
    axis.set_xticks(np.arange(len(ours)), list(ours), rotation=20)
    axis.set(ylabel=caption, ylim=(0, 105))
    axis.set_title(title, fontsize=9)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(picture, dpi=110)


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
        rows.append((dataset.names[index], [(image[channels].numpy(), label.numpy()) for image, label in drawn]))
    heads = ["as it is, fitted", *(f"augmented {k + 1}" for k in range(columns))]
    draw_samples(
        rows, heads, benchmark.classes, picture, f"{benchmark.title}: training slices as augmentation shows them"
    )
