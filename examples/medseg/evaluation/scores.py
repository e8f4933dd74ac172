"""What the scores of cases add up to: means, deviations, and the figures that stand in tables.

Nothing here needs torch, so the process that only collects finished runs does not load it.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from medseg.data.benchmark import Benchmark
from medseg.evaluation.metrics import rates

Row = dict[str, Any]  # of one case, see medseg.evaluation.evaluation.evaluate
RATES = ("iou", "dice", "accuracy", "specificity", "sensitivity")


def summarize(benchmark: Benchmark, rows: Sequence[Row]) -> dict[str, Any]:
    """Mean and standard deviation over cases per class, then means over classes, and the counts of empty masks.

    For photographs also ``pooled``: the rates of all pixels of all images together, every image weighing the same.
    """
    classes = {name: _summary_of_class([row["classes"][name] for row in rows]) for name in benchmark.classes}
    definitions = [key for key in ("strict", "transunet") if key in classes[benchmark.classes[0]]]
    mean: dict[str, Any] = {
        definition: {
            key: _mean([row[definition][key]["mean"] for row in classes.values()])
            for key in classes[benchmark.classes[0]][definition]
        }
        for definition in definitions
    }
    if benchmark.intensity == "rgb":
        keys = ("true_positive", "false_positive", "false_negative", "true_negative")
        for name, summary in classes.items():
            scores = [row["classes"][name] for row in rows]
            summary["pooled"] = rates({key: float(np.mean([row[key] for row in scores])) for key in keys})
        mean["pooled"] = {key: _mean([summary["pooled"][key] for summary in classes.values()]) for key in RATES}
    with_spacing = sum(row["spacing"] is not None for row in rows)
    unit = "mm" if with_spacing == len(rows) else "voxels" if with_spacing == 0 else "mm where known, else voxels"
    return {"cases": len(rows), "hd95_unit_strict": unit, "classes": classes, "mean": mean}


def headline(benchmark: Benchmark, summary: dict[str, Any]) -> dict[str, float | None]:
    """The figures that stand in the paper's tables.

    Of scans the ``strict`` Dice, which does not count an invented organ as perfect, and HD95 under both definitions;
    of photographs the pooled rates.
    """
    if benchmark.intensity == "rgb":
        figures: dict[str, float | None] = summary["mean"]["pooled"]
        return figures
    mean = summary["mean"]
    return {"dice": mean["strict"]["dice"], "hd95": mean["transunet"]["hd95"], "hd95_strict": mean["strict"]["hd95"]}


def mean_dice(row: Row) -> float | None:
    """Mean Dice of one case over the classes that define it."""
    return _mean([scores["strict"]["dice"] for scores in row["classes"].values()])


def telling_cases(rows: Sequence[Row]) -> dict[str, str]:
    """Best, median and worst case by mean Dice: ``{"best": name, ...}``, fewer where the same case is two of them."""
    ranked = sorted((dice, row["case"]) for row in rows if (dice := mean_dice(row)) is not None)
    if not ranked:
        return {}
    chosen: dict[str, str] = {}
    for name, position in (("best", -1), ("worst", 0), ("median", len(ranked) // 2)):
        if ranked[position][1] not in chosen.values():
            chosen[name] = ranked[position][1]
    return chosen


def _summary_of_class(scores: Sequence[dict[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "present": sum(row["truth_voxels"] > 0 for row in scores),
        "missed": sum(row["truth_voxels"] > 0 and row["predicted_voxels"] == 0 for row in scores),
        "invented": sum(row["truth_voxels"] == 0 and row["predicted_voxels"] > 0 for row in scores),
    }
    for definition in ("strict", "transunet"):
        if definition in scores[0]:
            summary[definition] = {
                key: spread_of(values)
                for key in scores[0][definition]
                for values in [[row[definition][key] for row in scores]]
            }
    return summary


def spread_of(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and sample standard deviation of the values that are defined."""
    return {"mean": _mean(values), "std": _std(values)}


def _mean(values: Iterable[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def _std(values: Iterable[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.std(defined, ddof=1)) if len(defined) > 1 else None
