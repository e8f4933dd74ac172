"""Scores of predictions, and what they add up to: Dice and 95th-percentile Hausdorff distance (HD95), spelled out.

Two definitions are computed side by side, because published numbers follow the first and it hides missed organs:

``transunet``
    What TransUNet's evaluation code computes, and with it most tables on Synapse. HD95: both sets of directed surface
    distances pooled, then their 95th percentile; in voxels, whatever the spacing. Empty masks: an organ predicted
    but absent scores Dice 1 and HD95 0; any other empty mask scores Dice 0 and HD95 0, so a missed organ gets a
    perfect distance, and an organ rightly left out a Dice of 0.
``strict``
    HD95: the larger of the two directed 95th percentiles, in millimetres where the spacing is known, else in voxels.
    Empty masks: Dice 0 and no HD95 if one mask is empty, neither if both are. Means are over defined values; missed
    and invented organs are counted beside them.

RGB images are scored by their pixels: Dice, intersection over union (IoU), accuracy, specificity and sensitivity.

Nothing here needs torch, so the process that only collects finished runs does not load it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from medseg.data.dataset import Benchmark, Case, Labels, Volume
from medseg.errors import DataError, all_of

Mask = NDArray[np.bool_]
Points = NDArray[np.int64]
Distances = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """Dice 2|P and T| / (|P| + |T|), in [0, 1], and HD95; ``None`` where the definition gives no value."""

    dice: float | None
    hd95: float | None


@dataclass(frozen=True)
class Structure:
    """How one class of one volume was predicted.

    Args:
        truth_voxels, predicted_voxels: Sizes of the masks.
        strict, transunet: Scores under the two definitions.
    """

    truth_voxels: int
    predicted_voxels: int
    strict: Score
    transunet: Score


def score_classes(
    prediction: Labels, truth: Labels, classes: int, spacing: tuple[float, ...] | None = None
) -> list[Structure]:
    """Score labels 1 to ``classes`` of a volume, under both definitions.

    Args:
        prediction, truth: Labels of one shape.
        classes: Number of classes, without the background.
        spacing: Millimetres between voxels along each axis; ``None`` measures ``strict`` in voxels too.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction and truth must have one shape, got {prediction.shape} and {truth.shape}")
    foreground = truth > 0  # most of a volume is background, so it is left out early
    predicted, present, shared = (
        np.bincount(labels, minlength=classes + 1)
        for labels in (prediction[prediction > 0], truth[foreground], truth[foreground & (prediction == truth)])
    )
    surfaces = [surface_points(x, classes) for x in (prediction, truth)]
    return [
        _score(int(present[k]), int(predicted[k]), int(shared[k]), surfaces[0][k - 1], surfaces[1][k - 1], spacing)
        for k in range(1, classes + 1)
    ]


def score(prediction: Mask, truth: Mask, spacing: tuple[float, ...] | None = None) -> Structure:
    """Score one mask, under both definitions."""
    return score_classes(prediction.astype(np.uint8), truth.astype(np.uint8), 1, spacing)[0]


def surface_points(labels: Labels, classes: int) -> list[Points]:
    """Indices ``(N, D)`` of the surface voxels of labels 1 to ``classes``.

    A surface voxel is one with a face neighbour of another class; the outside of the volume counts as another class.
    """
    surface = np.zeros(labels.shape, bool)
    for axis in range(labels.ndim):
        values, found = np.moveaxis(labels, axis, 0), np.moveaxis(surface, axis, 0)  # views
        differs = values[1:] != values[:-1]
        found[1:] |= differs
        found[:-1] |= differs
        found[[0, -1]] = True
    surface &= labels > 0
    points, of = np.argwhere(surface), labels[surface]
    return [points[of == label] for label in range(1, classes + 1)]


def surface_distances(
    prediction: Points, truth: Points, spacing: tuple[float, ...] | None = None
) -> tuple[Distances, Distances]:
    """Distance from every surface voxel of each of two structures to the nearest surface voxel of the other.

    Args:
        prediction, truth: From ``surface_points``, neither empty.
        spacing: Distance between voxels along each axis; ``None`` is 1 along all.

    Returns:
        From prediction to truth and from truth to prediction.
    """
    from scipy.spatial import KDTree  # a second that the command line need not wait for

    # Search trees instead of distance transforms: what they cost depends on the surfaces, not on the volume around.
    points = [indices * np.asarray(spacing or 1.0) for indices in (prediction, truth)]
    to_prediction, to_truth = (KDTree(p, balanced_tree=False) for p in points)
    return to_truth.query(points[0])[0], to_prediction.query(points[1])[0]


def _score(
    present: int, predicted: int, shared: int, prediction: Points, truth: Points, spacing: tuple[float, ...] | None
) -> Structure:
    if not (predicted or present):
        return Structure(0, 0, Score(None, None), Score(0.0, 0.0))
    if not (predicted and present):
        return Structure(present, predicted, Score(0.0, None), Score(1.0 if predicted else 0.0, 0.0))
    dice = 2 * shared / (predicted + present)
    there, back = surface_distances(prediction, truth)
    transunet = Score(dice, float(np.percentile(np.concatenate((there, back)), 95)))
    if spacing is not None:
        there, back = surface_distances(prediction, truth, spacing)
    strict = Score(dice, float(max(np.percentile(there, 95), np.percentile(back, 95))))
    return Structure(present, predicted, strict, transunet)


def confusion(prediction: Mask, truth: Mask) -> dict[str, float]:
    """Shares of an image's pixels that are true and false positives and negatives."""
    return {
        "true_positive": float(np.mean(prediction & truth)),
        "false_positive": float(np.mean(prediction & ~truth)),
        "false_negative": float(np.mean(~prediction & truth)),
        "true_negative": float(np.mean(~prediction & ~truth)),
    }


def rates(shares: dict[str, float]) -> dict[str, float | None]:
    """IoU, Dice, accuracy, specificity and sensitivity of shares; ``None`` where the denominator is 0."""
    tp, fp = shares["true_positive"], shares["false_positive"]
    fn, tn = shares["false_negative"], shares["true_negative"]
    fractions = {
        "iou": (tp, tp + fp + fn),
        "dice": (2 * tp, 2 * tp + fp + fn),
        "accuracy": (tp + tn, tp + fp + fn + tn),
        "specificity": (tn, tn + fp),
        "sensitivity": (tp, tp + fn),
    }
    return {name: part / whole if whole else None for name, (part, whole) in fractions.items()}


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
    # By transunet's rule a missed organ is at distance 0, so a network that finds nothing would be perfect; and so
    # would one that was shown nothing.
    rows = summary["classes"].values()
    never_found = any(0 < row["present"] == row["missed"] for row in rows) or not any(row["present"] for row in rows)
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
        For every case its name and, for every class, the counts and scores of ``medseg.evaluation.scores``: both
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
