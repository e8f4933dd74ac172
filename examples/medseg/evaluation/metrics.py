"""Dice and 95th-percentile Hausdorff distance (HD95) of volumes, with their definitions spelled out.

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
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Labels = NDArray[np.uint8]
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
