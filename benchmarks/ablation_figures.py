"""Figures of finished ablation runs: bars of the scores, and learning curves."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from studies import VARIANTS, Study

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from medseg.files import writing

Row = dict[str, Any]
RATES = {"iou": "mIoU %", "dice": "DSC %", "accuracy": "Acc %", "specificity": "Spe %", "sensitivity": "Sen %"}
LOSSES = {"val_loss": "validation loss: cross-entropy + Dice loss", "val_dice_loss": "its Dice loss"}
TAB20 = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]  # every second one is the first, lighter
COLOURS = dict(zip(VARIANTS, TAB20[::2] + TAB20[1::2], strict=False))


def draw_bars(found: Row, studies: Mapping[str, Study], title: str, picture: Path) -> None:
    """Bars of every variant per class, as in Figures 5 and 6, with the standard deviation and a dot for every run."""
    rgb_images = "iou" in found["runs"][0]["figures"]
    part = "figures" if rgb_images else "classes"
    names = RATES if rgb_images else {name: name for name in found["runs"][0]["classes"]}
    figure = Figure(figsize=(max(8, 1.5 * len(names)), 3.6 * len(studies)), layout="constrained")
    every = [100 * (run[part][key] or 0) for run in found["runs"] for key in names]
    bottom = max(0, 10 * ((min(every) - 5) // 10))
    for axes, study in zip(figure.subplots(len(studies), squeeze=False).flat, studies.values(), strict=True):
        rows = {name: label for name, label in study.rows.items() if name in found["variants"]}
        for place, (name, label) in enumerate(rows.items()):
            shift, width = (place - (len(rows) - 1) / 2) * 0.8 / len(rows), 0.8 / len(rows)
            spreads = [found["variants"][name][part][key] for key in names]
            x = np.arange(len(names)) + shift
            heights = [100 * (one["mean"] or 0) for one in spreads]
            stds = [100 * (one["std"] or np.nan) for one in spreads]
            axes.bar(x, heights, width, label=label, color=COLOURS[name], yerr=stds, capsize=2)
            for at, one in zip(x, spreads, strict=True):
                axes.plot([at] * one["n"], [100 * value for value in one["values"]], "k.", markersize=3)
        axes.set_xticks(range(len(names)), list(names.values()))
        cut = f"; the axis begins at {bottom:.0f}" if bottom else ""
        axes.set(ylim=(bottom, 100), title=study.title)
        axes.set_ylabel(f"{'%' if part == 'figures' else 'Dice %'}{cut}", fontsize=9)
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    figure.suptitle(f"{title}\nbars: mean and standard deviation; dots: single {found['unit']}s", fontsize=10)
    with writing(picture):
        figure.savefig(picture, dpi=110)


def draw_curves(found: Row, title: str, picture: Path) -> None:
    """Validation losses of every variant by epoch: each run, and the mean over the runs; nothing if none is noted."""
    curves = {name: [run.get("curve") for run in found["runs"] if run["variant"] == name] for name in found["variants"]}
    curves = {name: [one for one in ones if one] for name, ones in curves.items()}
    losses = {
        key: label for key, label in LOSSES.items() if any(key in one for ones in curves.values() for one in ones)
    }
    if not losses:
        return
    figure = Figure(figsize=(5 * len(losses) + 2, 4), layout="constrained")
    handles: Row = {}
    for axes, (key, label) in zip(figure.subplots(1, len(losses), squeeze=False).flat, losses.items(), strict=True):
        for name, ones in curves.items():
            runs = [by_epoch for one in ones if (by_epoch := _by_epoch(one, key))]
            for run in runs if len(runs) > 1 else ():
                axes.plot(list(run), list(run.values()), color=COLOURS[name], linewidth=0.7, alpha=0.5)
            if runs:
                shared = sorted(set.intersection(*(set(run) for run in runs)))  # early stopping ends some before others
                means = [np.mean([run[epoch] for run in runs]) for epoch in shared]
                (line,) = axes.plot(shared, means, color=COLOURS[name], linewidth=1.8, marker=".")
                handles.setdefault(f"{VARIANTS[name].label} ({len(runs)})", line)
        axes.set(xlabel="epoch", title=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.legend(
        list(handles.values()), list(handles), title=f"mean ({found['unit']}s)", fontsize=8, loc="outside right center"
    )
    figure.suptitle(title, fontsize=10)
    with writing(picture):
        figure.savefig(picture, dpi=110)


def _by_epoch(curve: Row, key: str) -> dict[int, float]:
    values = zip(curve["epoch"], curve.get(key, []), strict=False)
    return {epoch: value for epoch, value in values if value is not None}
