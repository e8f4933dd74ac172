from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medseg.data.acdc import ACDC
from medseg.data.dataset import Benchmark, Case, Labels, Volume
from medseg.data.isic import isic
from medseg.evaluation.prediction import predict_volume
from medseg.evaluation.report import table
from medseg.evaluation.scores import best_median_worst, evaluate, headline, mean_dice, summarize

TWO = replace(ACDC, classes=("cube", "bar"))
LESIONS = isic(2018)


class Threshold(nn.Module):
    """Class 1 where the middle channel is above 0.6, class 2 where it is above 0.9; counts the slices it is given."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(()))
        self.classes = classes
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        assert not torch.is_grad_enabled()
        logits = torch.stack((torch.full_like(x[:, 1], 0.6), x[:, 1], 3 * x[:, 1] - 1.8), 1)
        return logits[:, : self.classes]


class TestPrediction:
    @pytest.mark.parametrize("shape", [(40, 64), (64, 40), (64, 64), (1, 30)])
    @pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
    def test_labels_come_back_at_native_size(self, shape: tuple[int, int], batch_size: int) -> None:
        label = np.random.default_rng(0).integers(0, 3, (5, *(max(1, n // 8) for n in shape)), dtype=np.uint8)
        label = np.repeat(np.repeat(label, 8, 1)[:, : shape[0]], 8, 2)[:, :, : shape[1]]
        assert label.shape[1] == shape[0]
        image = np.array([0, 0.8, 1], np.float32)[label][:, None]
        model = Threshold()
        predicted = predict_volume(model, image, size=64, batch_size=batch_size)
        assert (predicted.shape, predicted.dtype) == (image.shape[:1] + image.shape[2:], np.uint8)
        assert model.batches == [min(batch_size, 5 - n) for n in range(0, 5, batch_size)]
        if max(shape) == 64:  # nothing was resized
            np.testing.assert_array_equal(predicted, label)

    def test_photographs_are_divided_by_255(self) -> None:
        image = np.full((1, 3, 32, 32), 152, np.uint8)  # 0.596
        image[0, 1, :16] = 154  # 0.604, in the channel that counts
        predicted = predict_volume(Threshold(classes=2), image, size=32, batch_size=4)
        assert predicted[0, :16].all()
        assert not predicted[0, 16:].any()


def scan(name: str, label: Labels, spacing: tuple[float, float, float] | None) -> Case:
    volume = Volume(name, np.zeros((len(label), 1, *label.shape[1:]), np.float32), label, spacing)
    return Case(name, name, lambda: volume)


def box(value: int, *slices: slice) -> Labels:
    label = np.zeros((4, 6, 8), np.uint8)
    label[slices] = value
    return label


CUBE = box(1, slice(1, 3), slice(1, 3), slice(1, 3))  # 8 voxels
BAR = box(2, slice(3, 4), slice(5, 6), slice(0, 8))  # 8 voxels
HALF = box(1, slice(1, 3), slice(1, 3), slice(2, 4))  # the cube, one voxel further
NOTHING = np.zeros_like(CUBE)


def rows_of(*pairs: tuple[Labels, Labels], spacing: tuple[float, float, float] | None = (5.0, 1.0, 2.0)) -> list[Any]:
    """Rows of cases given as truth and prediction."""
    cases = [scan(f"case{n}", truth, spacing) for n, (truth, _) in enumerate(pairs)]
    predictions = {f"case{n}": prediction for n, (_, prediction) in enumerate(pairs)}
    return evaluate(TWO, cases, lambda volume: predictions[volume.case], description="Scoring")


class TestScans:
    def test_rows(self) -> None:
        (row,) = rows_of((CUBE + BAR, HALF + BAR))
        assert (row["case"], row["spacing"]) == ("case0", (5.0, 1.0, 2.0))
        assert row["classes"] == {
            "cube": {
                "truth_voxels": 8,
                "predicted_voxels": 8,
                "strict": {"dice": 0.5, "hd95": 2.0},  # one voxel of 2 mm along x
                "transunet": {"dice": 0.5, "hd95": 1.0},
            },
            "bar": {
                "truth_voxels": 8,
                "predicted_voxels": 8,
                "strict": {"dice": 1.0, "hd95": 0.0},
                "transunet": {"dice": 1.0, "hd95": 0.0},
            },
        }
        assert mean_dice(row) == 0.75

    def test_summary_by_hand(self) -> None:
        rows = rows_of(
            (CUBE + BAR, CUBE + BAR),  # perfect
            (CUBE + BAR, HALF + BAR),
            (CUBE + BAR, CUBE),  # the bar missed
            (CUBE, CUBE + BAR),  # a bar invented
            (CUBE, CUBE),  # rightly without a bar
        )
        summary = summarize(TWO, rows)
        assert (summary["cases"], summary["hd95_unit_strict"]) == (5, "mm")
        cube, bar = summary["classes"]["cube"], summary["classes"]["bar"]
        assert {key: cube[key] for key in ("present", "missed", "invented")} == {
            "present": 5,
            "missed": 0,
            "invented": 0,
        }
        assert {key: bar[key] for key in ("present", "missed", "invented")} == {
            "present": 3,
            "missed": 1,
            "invented": 1,
        }
        assert cube["strict"] == {
            "dice": {"mean": pytest.approx(0.9), "std": pytest.approx(0.05**0.5)},  # of 1, 0.5, 1, 1, 1
            "hd95": {"mean": pytest.approx(0.4), "std": pytest.approx(0.8**0.5)},  # of 0, 2, 0, 0, 0
        }
        assert bar["strict"] == {
            "dice": {"mean": pytest.approx(0.5), "std": pytest.approx((1 / 3) ** 0.5)},  # of 1, 1, 0, 0
            "hd95": {"mean": 0.0, "std": 0.0},  # of two
        }
        assert bar["transunet"]["dice"]["mean"] == pytest.approx(0.6)  # of 1, 1, 0, 1 and 0
        assert summary["mean"] == {
            "strict": {"dice": pytest.approx(0.7), "hd95": pytest.approx(0.2)},
            "transunet": {"dice": pytest.approx(0.75), "hd95": pytest.approx(0.1)},
        }
        assert headline(TWO, summary) == {
            "dice": pytest.approx(0.7),
            "hd95": pytest.approx(0.1),
            "hd95_strict": pytest.approx(0.2),
        }

    def test_finding_nothing_is_no_distance_of_0(self) -> None:
        nothing = np.zeros_like(CUBE)
        summary = summarize(TWO, rows_of((CUBE + BAR, nothing), (CUBE, nothing)))
        assert summary["mean"]["transunet"]["hd95"] == 0  # by its rule
        assert headline(TWO, summary) == {"dice": 0, "hd95": None, "hd95_strict": None}
        (row,) = [line for line in table(TWO, summary, "").splitlines() if line.startswith("mean")]
        assert row.split() == ["mean", "0.00", "-", "-", "92.64"]
        partly = summarize(TWO, rows_of((CUBE + BAR, CUBE), (CUBE + BAR, CUBE)))  # never the bar
        assert headline(TWO, partly)["hd95"] is None
        once = summarize(TWO, rows_of((CUBE + BAR, CUBE + BAR), (CUBE + BAR, CUBE)))
        assert headline(TWO, once)["hd95"] == 0

    def test_class_that_is_nowhere(self) -> None:
        summary = summarize(TWO, rows_of((CUBE, CUBE)))
        assert summary["classes"]["bar"]["strict"] == {
            "dice": {"mean": None, "std": None},
            "hd95": {"mean": None, "std": None},
        }
        assert summary["classes"]["cube"]["strict"]["dice"] == {"mean": 1.0, "std": None}  # one case has no deviation
        assert summary["mean"]["strict"] == {"dice": 1.0, "hd95": 0.0}  # of the classes that have one

    def test_nothing_anywhere(self) -> None:
        rows = rows_of((NOTHING, NOTHING))
        assert summarize(TWO, rows)["mean"]["strict"] == {"dice": None, "hd95": None}
        assert mean_dice(rows[0]) is None
        assert best_median_worst(rows) == {}

    def test_unit_of_distances(self) -> None:
        with_spacing, without = rows_of((CUBE, HALF)), rows_of((CUBE, HALF), spacing=None)
        units = [summarize(TWO, rows)["hd95_unit_strict"] for rows in (with_spacing, without, with_spacing + without)]
        assert units == ["mm", "voxels", "mm where known, else voxels"]
        assert [rows[0]["classes"]["cube"]["strict"]["hd95"] for rows in (with_spacing, without)] == [2.0, 1.0]


@pytest.mark.parametrize(
    ("dice", "telling"),
    [
        ([0.5, 0.9, 0.1, 0.7, 0.3], {"best": "case1", "worst": "case2", "median": "case0"}),
        ([0.5, 0.9, 0.1], {"best": "case1", "worst": "case2", "median": "case0"}),
        ([0.9, 0.1], {"best": "case0", "worst": "case1"}),
        ([0.5], {"best": "case0"}),
        ([None, 0.5, None], {"best": "case1"}),
        ([None], {}),
    ],
)
def test_best_median_worst(dice: list[float | None], telling: dict[str, str]) -> None:
    rows = [{"case": f"case{n}", "classes": {"one": {"strict": {"dice": value}}}} for n, value in enumerate(dice)]
    assert best_median_worst(rows) == telling


class TestPhotographs:
    def rows(self, *pairs: tuple[np.ndarray, np.ndarray]) -> tuple[Benchmark, list[Any]]:
        volumes = [Volume(f"{n}", np.zeros((1, 3, *t.shape), np.uint8), t[None]) for n, (t, _) in enumerate(pairs)]
        cases = [Case(volume.case, volume.case, lambda volume=volume: volume) for volume in volumes]  # type: ignore[misc]
        return LESIONS, evaluate(LESIONS, cases, lambda volume: pairs[int(volume.case)][1][None], description="Scoring")

    def test_every_image_weighs_the_same_whatever_its_size(self) -> None:
        small_truth, small = np.array([[1, 1, 0, 0]], np.uint8), np.array([[1, 0, 0, 0]], np.uint8)
        large_truth, large = (np.repeat(mask, 50, 0) for mask in (small_truth, np.array([[1, 1, 1, 0]], np.uint8)))
        benchmark, rows = self.rows((small_truth, small), (large_truth, large))
        shares = ("true_positive", "false_positive", "false_negative", "true_negative")
        assert [rows[0]["classes"]["lesion"][key] for key in shares] == [0.25, 0, 0.25, 0.5]
        assert [rows[1]["classes"]["lesion"][key] for key in shares] == [0.5, 0.25, 0, 0.25]
        assert rows[1]["classes"]["lesion"]["truth_voxels"] == 100
        summary = summarize(benchmark, rows)
        pooled = {"iou": 3 / 5, "dice": 3 / 4, "accuracy": 3 / 4, "specificity": 3 / 4, "sensitivity": 3 / 4}
        assert headline(benchmark, summary) == summary["mean"]["pooled"] == pytest.approx(pooled)
        mean = {
            "iou": (1 / 2 + 2 / 3) / 2,
            "dice": (2 / 3 + 4 / 5) / 2,
            "accuracy": 3 / 4,
            "specificity": (1 + 1 / 2) / 2,
            "sensitivity": (1 / 2 + 1) / 2,
        }
        assert summary["mean"]["strict"] == pytest.approx(mean)
        assert "transunet" not in summary["mean"]
        iou, dice = summary["mean"]["pooled"]["iou"], summary["mean"]["pooled"]["dice"]
        assert dice == pytest.approx(2 * iou / (1 + iou))

    def test_several_classes_each_against_all_the_others(self) -> None:
        benchmark = replace(LESIONS, classes=("circle", "square"))
        truth, prediction = np.array([[[1, 1, 2, 0]]], np.uint8), np.array([[[1, 2, 2, 0]]], np.uint8)
        volume = Volume("one", np.zeros((1, 3, 1, 4), np.uint8), truth)
        rows = evaluate(benchmark, [Case("one", "one", lambda: volume)], lambda _: prediction, description="Scoring")
        summary = summarize(benchmark, rows)
        counts = [(row["truth_voxels"], row["predicted_voxels"]) for row in rows[0]["classes"].values()]
        assert counts == [(2, 1), (1, 2)]
        circle, square = (summary["classes"][name]["pooled"] for name in benchmark.classes)
        assert (circle["iou"], circle["sensitivity"], circle["specificity"]) == (1 / 2, 1 / 2, 1)
        assert (square["iou"], square["sensitivity"], square["specificity"]) == (1 / 2, 1, pytest.approx(2 / 3))
        assert headline(benchmark, summary) == {key: pytest.approx((circle[key] + square[key]) / 2) for key in circle}

    def test_missed_lesion_and_image_that_is_all_lesion(self) -> None:
        lesion, nothing = np.ones((3, 4), np.uint8), np.zeros((3, 4), np.uint8)
        benchmark, rows = self.rows((lesion, nothing), (lesion, lesion))
        summary = summarize(benchmark, rows)
        row = summary["classes"]["lesion"]
        assert (row["present"], row["missed"], row["invented"]) == (2, 1, 0)
        assert row["strict"]["specificity"] == {"mean": None, "std": None}  # there is no healthy skin
        assert summary["mean"]["pooled"]["specificity"] is None
        assert summary["mean"]["pooled"]["sensitivity"] == 0.5
        assert best_median_worst(rows) == {"best": "1", "worst": "0"}
