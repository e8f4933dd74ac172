"""What the scores of cases add up to: means, deviations, and the figures that stand in tables.

Nothing here needs torch, so the process that only collects finished runs does not load it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from tqdm import tqdm

from medseg.data.dataset import Benchmark, Case, Labels, Volume
from medseg.errors import DataError, all_of
from medseg.evaluation.metrics import confusion, rates, score_classes

Row = dict[str, Any]  # of one case, see medseg.evaluation.scores.evaluate
RATES = ("iou", "dice", "accuracy", "specificity", "sensitivity")


def summarize(benchmark: Benchmark, rows: Sequence[Row]) -> dict[str, Any]:
    """Mean and standard deviation over cases per class, then means over classes, and the counts of empty masks.

    For RGB images also ``pooled``: the rates of all pixels of all images together, every image weighing the same.
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

    Of scans the ``strict`` Dice, which does not count an invented organ as perfect, and HD95 under both definitions, of
    which transunet's has no value where a class is missed in every case that has it; of RGB images the pooled rates.
    """
    if benchmark.intensity == "rgb":
        figures: dict[str, float | None] = summary["mean"]["pooled"]
        return figures
    mean = summary["mean"]
    # By transunet's rule a missed organ is at distance 0, so a network that finds nothing would be perfect.
    never_found = any(0 < row["present"] == row["missed"] for row in summary["classes"].values())
    hd95 = None if never_found else mean["transunet"]["hd95"]
    return {"dice": mean["strict"]["dice"], "hd95": hd95, "hd95_strict": mean["strict"]["hd95"]}


def mean_dice(row: Row) -> float | None:
    """Mean Dice of one case over the classes that define it."""
    return _mean([scores["strict"]["dice"] for scores in row["classes"].values()])


def best_median_worst(rows: Sequence[Row]) -> dict[str, str]:
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


def evaluate(
    benchmark: Benchmark, cases: Iterable[Case], predict: Callable[[Volume], Labels], *, description: str
) -> list[Row]:
    """Predict and score cases.

    Returns:
        For every case its name and, for every class, the counts and scores of ``medseg.evaluation.metrics``: both
        definitions of Dice and HD95 for scans, the rates of pixels for RGB images.

    Raises:
        DataError: That names the first files with faults and counts the others.
    """
    rows, faults = [], []
    for case in tqdm(cases, desc=description, disable=None):
        try:
            volume = case.read()
            prediction = predict(volume)
        except DataError as error:
            faults.append(str(error))
            continue
        scores = score_rgb_image(prediction, volume, len(benchmark.classes)) if benchmark.intensity == "rgb" else None
        if scores is None:
            scores = [
                asdict(s) for s in score_classes(prediction, volume.label, len(benchmark.classes), volume.spacing)
            ]
        rows.append(
            {
                "case": case.name,
                "spacing": volume.spacing,
                "classes": dict(zip(benchmark.classes, scores, strict=True)),
            }
        )
    if faults:
        raise all_of(faults)
    return rows


def score_rgb_image(prediction: Labels, volume: Volume, classes: int) -> list[dict[str, Any]]:
    """Shares of pixels and their rates, of every class of an RGB image against all the others."""
    scores = []
    for index in range(1, classes + 1):
        truth, predicted = volume.label == index, prediction == index
        shares = confusion(predicted, truth)
        scores.append(
            {
                "truth_voxels": int(np.count_nonzero(truth)),
                "predicted_voxels": int(np.count_nonzero(predicted)),
                **shares,
                "strict": rates(shares),
            }
        )
    return scores
