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
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Score:
    """Dice in [0, 1] and HD95; ``None`` where the definition gives no value."""

    dice: float | None
    hd95: float | None


def dice(prediction: Mask, truth: Mask) -> float:
    r"""Dice similarity coefficient :math:`2|P \cap T| / (|P| + |T|)` of two masks that are not both empty."""
    total = np.count_nonzero(prediction) + np.count_nonzero(truth)
    return float(2 * np.count_nonzero(prediction & truth) / total)


def score_transunet(prediction: Mask, truth: Mask) -> Score:
    """Dice and HD95 under the definition ``transunet``."""
    if prediction.any() and truth.any():
        there, back = surface_distances(prediction, truth)
        return Score(dice(prediction, truth), float(np.percentile(np.concatenate((there, back)), 95)))
    return Score(1.0, 0.0) if prediction.any() else Score(0.0, 0.0)


def score_strict(prediction: Mask, truth: Mask, spacing: tuple[float, ...] | None = None) -> Score:
    """Dice and HD95 under the definition ``strict``.

    Args:
        prediction, truth: Masks of one shape.
        spacing: Millimetres between voxels along each axis; ``None`` measures in voxels.
    """
    if prediction.any() and truth.any():
        there, back = surface_distances(prediction, truth, spacing)
        return Score(dice(prediction, truth), float(max(np.percentile(there, 95), np.percentile(back, 95))))
    return Score(0.0, None) if prediction.any() or truth.any() else Score(None, None)


def surface_distances(
    prediction: Mask, truth: Mask, spacing: tuple[float, ...] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distance from every surface voxel of each mask to the nearest surface voxel of the other.

    A surface voxel is one with a face neighbour outside the mask; the outside of the volume counts as outside.

    Args:
        prediction, truth: Masks of one shape, neither empty.
        spacing: Distance between voxels along each axis; ``None`` is 1 along all.

    Returns:
        From prediction to truth and from truth to prediction.
    """
    box = _bounding_box(prediction | truth)  # nothing outside it matters, and the transforms are not cheap
    surfaces = [mask[box] & ~ndimage.binary_erosion(mask[box]) for mask in (prediction, truth)]
    to_prediction, to_truth = (ndimage.distance_transform_edt(~surface, sampling=spacing) for surface in surfaces)
    return to_truth[surfaces[0]], to_prediction[surfaces[1]]


def _bounding_box(mask: Mask) -> tuple[slice, ...]:
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    return tuple(box)
