"""What a run leaves behind: a table to read and ``results.json`` to compute with."""

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from medseg.synapse import ORGANS

# GCA-ResUNet on Synapse, Table 1 of the paper: Dice per organ in percent, their mean, and the mean HD95.
PAPER_DICE = dict(zip(ORGANS, (89.95, 74.71, 93.38, 91.60, 95.54, 68.95, 92.60, 82.15), strict=True))
PAPER_MEAN_DICE = 86.11
PAPER_MEAN_HD95 = 18.96

DEFINITIONS = {
    "dice": "2|P and T| / (|P| + |T|) of one organ in one volume at native resolution, in [0, 1]",
    "strict": "HD95: larger of the two directed 95th percentiles of surface distances. One empty mask: Dice 0, "
    "HD95 null; two: both null. Nulls are left out of means and counted as missed or invented",
    "transunet": "HD95: 95th percentile of both directed surface distances pooled. Predicted but absent: Dice 1, "
    "HD95 0; any other empty mask: Dice 0, HD95 0",
    "hd95_unit": "voxels; this layout stores no spacing",
    "mean": "over cases per organ, then over organs",
    "missed": "cases in which the organ is present and nothing was predicted",
    "invented": "cases in which the organ is absent and something was predicted",
    "paper": "GCA-ResUNet, Table 1: Dice in percent, mean of four cross-validation folds of the real Synapse set",
}
PACKAGES = ("gca-attn", "timm", "segmentation-models-pytorch", "lightning", "numpy", "scipy")


def table(summary: dict[str, Any], heading: str) -> str:
    """The per-organ table, beside the paper's numbers."""
    rule = "-" * 78
    lines = [
        rule,
        heading,
        rule,
        f"{'':14}{'Dice %':>9}{'HD95':>9}{'HD95':>12}{'missed':>9}{'cases':>7}{'paper Dice %':>16}",
        f"{'':14}{'':9}{'strict':>9}{'transunet':>12}",
    ]
    for organ, row in summary["organs"].items():
        lines.append(
            f"{organ:14}{_number(row['strict']['dice'], 100):>9}{_number(row['strict']['hd95']):>9}"
            f"{_number(row['transunet']['hd95']):>12}{row['missed']:>9}{row['cases']:>7}{PAPER_DICE[organ]:>16.2f}"
        )
    mean = summary["mean"]
    lines += [
        f"{'mean':14}{_number(mean['strict']['dice'], 100):>9}{_number(mean['strict']['hd95']):>9}"
        f"{_number(mean['transunet']['hd95']):>12}{'':16}{PAPER_MEAN_DICE:>16.2f}",
        rule,
        f"HD95 in voxels (the paper's mean on Synapse is {PAPER_MEAN_HD95}). Both definitions of HD95 stand in "
        "results.json.",
    ]
    return "\n".join(lines)


def environment() -> dict[str, str | int]:
    """What computed the numbers: versions, processor and threads, device."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        **{package: metadata.version(package) for package in PACKAGES},
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a result that a person and a program can read; NaN has no place in it."""
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def _number(value: float | None, scale: float = 1) -> str:
    return "-" if value is None else f"{scale * value:.2f}"
