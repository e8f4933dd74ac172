"""Dice and HD95 against definitions written out point by point, against MONAI, and against recordings of medpy."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.evaluation.scores import Mask, confusion, rates, score, score_classes, surface_distances, surface_points

SHAPE = (6, 9, 8)
Pair = tuple[Mask, Mask]


def masks(seed: int) -> Pair:
    """Two overlapping blobs with holes and stray voxels."""
    rng = np.random.default_rng(seed)
    grid = np.indices(SHAPE).T
    pair = []
    for _ in range(2):
        centre, radius = rng.uniform(1, 5, 3), rng.uniform(1.2, 4)
        blob = (((grid - centre) ** 2).sum(-1) < radius**2).T
        pair.append(blob ^ (rng.random(SHAPE) < 0.03))
    return pair[0], pair[1]


def box(*slices: slice | int) -> Mask:
    mask = np.zeros(SHAPE, bool)
    mask[slices] = True
    return mask


EVERYTHING = np.ones(SHAPE, bool)
CHECKERBOARD = np.indices(SHAPE).sum(0) % 2 == 0
INNER = slice(2, 4), slice(3, 6), slice(2, 7)
ADVERSARIAL: dict[str, Pair] = {
    "one voxel each, the same": (box(3, 4, 5), box(3, 4, 5)),
    "one voxel each, in opposite corners": (box(0, 0, 0), box(-1, -1, -1)),
    "one voxel and everything": (box(2, 4, 4), EVERYTHING),
    "everything and everything": (EVERYTHING, EVERYTHING),
    "checkerboard and its complement": (CHECKERBOARD, ~CHECKERBOARD),
    "checkerboard and everything": (CHECKERBOARD, EVERYTHING),
    "one slice each, next to each other": (box(2), box(3)),
    "one slice and one row": (box(2), box(2, 3)),
    "touching all borders, hollow": (EVERYTHING & ~box(*INNER), EVERYTHING),
    "core and shell": (box(*INNER), EVERYTHING & ~box(*INNER)),
    "two parts of which one was found": (box(slice(2), slice(3), slice(3)), box(slice(2)) | box(slice(4, 6))),
    "a stray voxel far away": (box(0, slice(4), slice(4)) | box(-1, -1, -1), box(0, slice(4), slice(4))),
    "diagonal line and its mirror": (
        np.indices(SHAPE)[1] == np.indices(SHAPE)[2],
        np.indices(SHAPE)[1] == 7 - np.indices(SHAPE)[2],
    ),
}


def points(mask: Mask, spacing: tuple[float, ...]) -> np.ndarray:
    """Surface voxels: those with a face neighbour outside the mask."""
    padded = np.pad(mask, 1)
    found = []
    for index in zip(*np.nonzero(padded), strict=True):
        neighbours = [np.add(index, step) for axis in np.eye(3, dtype=int) for step in (axis, -axis)]
        if not all(padded[tuple(neighbour)] for neighbour in neighbours):
            found.append(np.multiply(np.subtract(index, 1), spacing))
    return np.array(found)


def check_all_pairs(prediction: Mask, truth: Mask, spacing: tuple[float, float, float]) -> None:
    a, b = points(prediction, spacing), points(truth, spacing)
    distances = np.linalg.norm(a[:, None] - b[None], axis=-1)
    there, back = distances.min(1), distances.min(0)
    expected = max(np.percentile(there, 95), np.percentile(back, 95))
    scores = score(prediction, truth, spacing)
    assert scores.strict.hd95 == pytest.approx(expected)
    if spacing == (1.0, 1.0, 1.0):
        pooled = np.percentile(np.concatenate((there, back)), 95)
        assert scores.transunet.hd95 == pytest.approx(pooled)
        assert score(prediction, truth) == scores
    else:  # transunet's is in voxels whatever the spacing
        assert scores.transunet == score(prediction, truth).transunet


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.7, 0.8)])
def test_hd95_equals_all_pairs_of_surface_points(seed: int, spacing: tuple[float, float, float]) -> None:
    check_all_pairs(*masks(seed), spacing)


@pytest.mark.parametrize("name", ADVERSARIAL)
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.7, 0.8)])
def test_hd95_of_adversarial_masks_equals_all_pairs(name: str, spacing: tuple[float, float, float]) -> None:
    check_all_pairs(*ADVERSARIAL[name], spacing)
    check_all_pairs(*ADVERSARIAL[name][::-1], spacing)


@pytest.fixture(scope="module")
def monai() -> Callable[[Mask, Mask, tuple[float, float, float]], tuple[float, float]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI warns about itself
        from monai.metrics import compute_dice, compute_hausdorff_distance

    def both(prediction: Mask, truth: Mask, spacing: tuple[float, float, float]) -> tuple[float, float]:
        tensors = [torch.from_numpy(np.ascontiguousarray(mask))[None, None].float() for mask in (prediction, truth)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            hd95 = compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=spacing)
            return float(compute_dice(*tensors)), float(hd95)

    return both


@pytest.mark.parametrize("start", range(0, 240, 20))
def test_strict_equals_monai(start: int, monai: Callable[..., tuple[float, float]]) -> None:
    for seed in range(start, start + 20):
        spacing = tuple(np.random.default_rng(seed).uniform(0.4, 5, 3).tolist()) if seed % 2 else (1.0, 1.0, 1.0)
        pair = masks(seed)
        strict = score(*pair, spacing).strict
        assert (strict.dice, strict.hd95) == pytest.approx(monai(*pair, spacing), rel=1e-5), seed


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_strict_equals_monai_on_adversarial_masks(name: str, monai: Callable[..., tuple[float, float]]) -> None:
    for spacing in ((1.0, 1.0, 1.0), (5.0, 0.7, 0.8)):
        for pair in (ADVERSARIAL[name], ADVERSARIAL[name][::-1]):
            strict = score(*pair, spacing).strict
            # MONAI measures in float32, by 1.2e-5 off with the lowest versions
            assert (strict.dice, strict.hd95) == pytest.approx(monai(*pair, spacing), rel=2e-5)


def medpy_masks(seed: int) -> Pair:
    """Blobs, noisy blobs and few voxels, in volumes of 1 to 12 voxels along every axis."""
    rng = np.random.RandomState(seed)  # its numbers are promised never to change
    shape = rng.randint(1, 13, 3)
    grid = np.indices(shape)
    pair = []
    for _ in range(2):
        centre, radius = rng.uniform(0, shape), rng.uniform(0.5, 6)
        squared = ((grid.T - centre) ** 2).sum(-1).T
        mask = squared < radius**2
        mask ^= rng.uniform(size=shape) < (0, 0.03, 0.3)[seed % 3]
        mask[tuple(rng.randint(0, shape))] = True
        pair.append(mask)
    return pair[0], pair[1]


def test_transunet_equals_medpy() -> None:
    # Recorded from medpy, which TransUNet computes with and whose licence keeps it out of the dependencies:
    #   from medpy.metric.binary import dc, hd95
    #   [[round(dc(*pair), 9), round(hd95(*pair), 9)] for pair in map(medpy_masks, range(400))]
    recorded = json.loads((Path(__file__).parent / "medpy_hd95.json").read_text())
    assert len(recorded["dice_and_hd95"]) == 400
    for seed, (dice, hd95) in enumerate(recorded["dice_and_hd95"]):
        scores = score(*medpy_masks(seed), (2.0, 3.0, 4.0)).transunet
        assert (scores.dice, scores.hd95) == pytest.approx((dice, hd95), abs=1e-8), seed


def test_dice_by_hand() -> None:
    pair = box(0, 0, slice(4)), box(0, 0, slice(2, 8))
    assert score(*pair).strict.dice == score(*pair).transunet.dice == 2 * 2 / (4 + 6)


def test_hd95_by_hand() -> None:
    # Voxels at 0 and at 0, 1, ..., 4 along the last axis: distances 0 there, and 0, 1, 2, 3, 4 back.
    pair = box(1, 1, 0), box(1, 1, slice(5))
    scores = score(*pair, (1.0, 1.0, 10.0))
    assert scores.strict.hd95 == pytest.approx(10 * 3.8)  # 95 % of the way from the first of five values to the last
    assert scores.transunet.hd95 == pytest.approx(3.75)  # of the six values 0, 0, 1, 2, 3, 4
    assert (scores.truth_voxels, scores.predicted_voxels) == (5, 1)


def test_perfect_prediction() -> None:
    _, truth = masks(0)
    scores = score(truth, truth)
    for definition in (scores.strict, scores.transunet):
        assert (definition.dice, definition.hd95) == (1.0, 0.0)


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
    scores = score(blob if predicted else empty, blob if present else empty)
    assert (scores.strict.dice, scores.strict.hd95) == strict
    assert (scores.transunet.dice, scores.transunet.hd95) == transunet
    assert (scores.predicted_voxels > 0, scores.truth_voxels > 0) == (predicted, present)


def labels(seed: int) -> np.ndarray:
    """Touching structures of classes 1 to 5, class 3 empty, and strays of class 7, which is not scored."""
    rng = np.random.default_rng(seed)
    found = rng.choice(np.array([0, 0, 1, 2, 4, 5, 7], np.uint8), (4, 5, 6))
    return found.repeat(2, 0).repeat(3, 1).repeat(2, 2)


@pytest.mark.parametrize("spacing", [None, (3.0, 0.7, 0.8)])
@pytest.mark.parametrize("seed", range(5))
def test_every_class_is_scored_as_if_alone(seed: int, spacing: tuple[float, ...] | None) -> None:
    prediction, truth = labels(seed), labels(seed + 100)
    scores = score_classes(prediction, truth, 5, spacing)
    assert scores == [score(prediction == k, truth == k, spacing) for k in range(1, 6)]
    assert scores[0].strict.hd95 is not None
    assert scores[2].strict.dice is None


def test_scores_do_not_depend_on_where_in_the_volume_the_organ_lies() -> None:
    prediction, truth = masks(2)
    moved = [np.pad(mask, ((3, 0), (0, 5), (7, 1))) for mask in (prediction, truth)]
    assert score(*moved) == score(prediction, truth)
    here, there = (score(*pair, (3.0, 0.7, 0.8)).strict for pair in ((prediction, truth), moved))
    assert (here.dice, here.hd95) == pytest.approx((there.dice, there.hd95), rel=1e-12)  # rounding of coordinates


def test_distances_are_those_between_surface_points() -> None:
    (one,), (other,) = (surface_points(mask.astype(np.uint8), 1) for mask in (box(1, 1, 1), box(4, 5, slice(1, 3))))
    assert one.tolist() == [[1, 1, 1]]
    there, back = surface_distances(one, other, (1.0, 2.0, 3.0))
    np.testing.assert_allclose(there, [np.hypot(3, 8)])
    np.testing.assert_allclose(back, [np.hypot(3, 8), np.sqrt(9 + 64 + 9)])


def test_shapes_have_to_be_equal() -> None:
    with pytest.raises(ValueError, match=r"one shape, got \(1, 9, 8\) and \(6, 9, 8\)"):
        score(EVERYTHING[:1], EVERYTHING)


class TestPhotographs:
    def test_rates_by_hand(self) -> None:
        prediction = np.array([[1, 1, 1, 0, 0, 0, 0, 0, 0, 0]], bool)
        truth = np.array([[0, 1, 1, 1, 1, 0, 0, 0, 0, 0]], bool)
        shares = confusion(prediction, truth)
        assert shares == {
            "true_positive": 0.2,
            "false_positive": 0.1,
            "false_negative": 0.2,
            "true_negative": 0.5,
        }
        assert rates(shares) == pytest.approx(
            {"iou": 2 / 5, "dice": 4 / 7, "accuracy": 7 / 10, "specificity": 5 / 6, "sensitivity": 2 / 4}
        )

    @pytest.mark.parametrize("seed", range(20))
    def test_rates_of_random_masks(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        prediction, truth = rng.random((2, 17, 23)) < rng.random((2, 1, 1))
        found = rates(confusion(prediction, truth))
        assert found["dice"] == pytest.approx(score(prediction, truth).strict.dice)
        assert found["iou"] == pytest.approx((prediction & truth).sum() / (prediction | truth).sum())
        assert found["accuracy"] == pytest.approx((prediction == truth).mean())
        assert found["sensitivity"] == pytest.approx(prediction[truth].mean())
        assert found["specificity"] == pytest.approx(1 - prediction[~truth].mean())

    def test_rates_without_a_denominator_are_none(self) -> None:
        nothing, everything = np.zeros((3, 4), bool), np.ones((3, 4), bool)
        assert rates(confusion(nothing, nothing)) == {
            "iou": None,
            "dice": None,
            "accuracy": 1,
            "specificity": 1,
            "sensitivity": None,
        }
        assert rates(confusion(nothing, everything))["specificity"] is None
        assert rates(confusion(nothing, everything))["sensitivity"] == 0
        assert rates(confusion(everything, nothing))["dice"] == 0
