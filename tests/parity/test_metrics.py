"""Dice and HD95 against definitions written out point by point, and against MONAI."""

import warnings

import numpy as np
import pytest
import torch

from medseg.metrics import Mask, dice, score_strict, score_transunet, surface_distances

SHAPE = (6, 9, 8)


def masks(seed: int) -> tuple[Mask, Mask]:
    """Two overlapping blobs with holes and stray voxels."""
    rng = np.random.default_rng(seed)
    grid = np.indices(SHAPE).T
    pair = []
    for _ in range(2):
        centre, radius = rng.uniform(1, 5, 3), rng.uniform(1.2, 4)
        blob = (((grid - centre) ** 2).sum(-1) < radius**2).T
        pair.append(blob ^ (rng.random(SHAPE) < 0.03))
    return pair[0], pair[1]


def points(mask: Mask, spacing: tuple[float, ...]) -> np.ndarray:
    """Surface voxels: those with a face neighbour outside the mask."""
    padded = np.pad(mask, 1)
    found = []
    for index in zip(*np.nonzero(padded), strict=True):
        neighbours = [np.add(index, step) for axis in np.eye(3, dtype=int) for step in (axis, -axis)]
        if not all(padded[tuple(neighbour)] for neighbour in neighbours):
            found.append(np.multiply(np.subtract(index, 1), spacing))
    return np.array(found)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.7, 0.8)])
def test_hd95_equals_all_pairs_of_surface_points(seed: int, spacing: tuple[float, float, float]) -> None:
    prediction, truth = masks(seed)
    a, b = points(prediction, spacing), points(truth, spacing)
    distances = np.linalg.norm(a[:, None] - b[None], axis=-1)
    there, back = distances.min(1), distances.min(0)
    expected = max(np.percentile(there, 95), np.percentile(back, 95))
    assert score_strict(prediction, truth, spacing).hd95 == pytest.approx(expected)
    if spacing == (1.0, 1.0, 1.0):
        pooled = np.percentile(np.concatenate((there, back)), 95)
        assert score_transunet(prediction, truth).hd95 == pytest.approx(pooled)
        assert score_strict(prediction, truth) == score_strict(prediction, truth, spacing)


@pytest.mark.parametrize("seed", range(20))
def test_strict_equals_monai(seed: int) -> None:
    prediction, truth = masks(seed)
    tensors = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, truth)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI warns about itself
        from monai.metrics import compute_dice, compute_hausdorff_distance

        hd95 = compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=(2.0, 1.0, 0.5))
    score = score_strict(prediction, truth, (2.0, 1.0, 0.5))
    assert score.hd95 == pytest.approx(float(hd95), rel=1e-5)
    assert score.dice == pytest.approx(float(compute_dice(*tensors)), rel=1e-6)


def test_dice_by_hand() -> None:
    a, b = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    a[0, 0, :4] = True
    b[0, 0, 2:8] = True
    assert dice(a, b) == 2 * 2 / (4 + 6)


def test_perfect_prediction() -> None:
    _, truth = masks(0)
    for score in (score_strict(truth, truth), score_transunet(truth, truth)):
        assert (score.dice, score.hd95) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("predicted", "present", "strict", "transunet"),
    [
        (False, True, (0.0, None), (0.0, 0.0)),  # missed
        (True, False, (0.0, None), (1.0, 0.0)),  # invented
        (False, False, (None, None), (0.0, 0.0)),
    ],
)
def test_rules_for_empty_masks(
    predicted: bool,
    present: bool,
    strict: tuple[float | None, float | None],
    transunet: tuple[float, float],
) -> None:
    blob, empty = masks(1)[0], np.zeros(SHAPE, bool)
    pair = (blob if predicted else empty, blob if present else empty)
    assert (score_strict(*pair).dice, score_strict(*pair).hd95) == strict
    assert (score_transunet(*pair).dice, score_transunet(*pair).hd95) == transunet


def test_distances_do_not_depend_on_where_in_the_volume_the_organ_lies() -> None:
    prediction, truth = masks(2)
    moved = [np.pad(mask, ((3, 0), (0, 5), (7, 1))) for mask in (prediction, truth)]
    for near, far in zip(surface_distances(prediction, truth), surface_distances(*moved), strict=True):
        np.testing.assert_array_equal(near, far)
