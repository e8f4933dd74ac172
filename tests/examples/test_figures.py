"""What is in the pictures: sides, names, whiskers and legends, looked up in the figures before they become PNG."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from medseg.data.acdc import ACDC
from medseg.data.dataset import AS_STORED, CT, Case, Volume, view_of_labels
from medseg.data.isic import isic
from medseg.data.phantom import make_phantom
from medseg.data.synapse import ORGANS
from medseg.figures.overlays import draw_overlay
from medseg.figures.results import draw_augmentation, draw_bars, draw_curves
from medseg.training.slices import SliceDataset
from medseg.training.transforms import Augmentation


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Figure]]:
    """The figures that are saved."""
    figures: list[Figure] = []
    save = Figure.savefig

    def note(self: Figure, path: Path, **options: Any) -> None:
        save(self, path, **options)
        figures.append(self)

    monkeypatch.setattr(Figure, "savefig", note)
    yield figures
    assert figures


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in axis.texts]


class TestView:
    LABEL = make_phantom(1)[1].astype(np.uint8)  # front up, the right side on the left

    @pytest.mark.parametrize("flipped", [(), (-2,), (-1,), (-2, -1)])
    def test_organs_tell_how_a_body_lies(self, flipped: tuple[int, ...]) -> None:
        stored = np.flip(self.LABEL, flipped)
        view = view_of_labels(stored, ORGANS)
        assert (view.flipped, view.marked) == (flipped, True)
        np.testing.assert_array_equal(view.turn(stored), self.LABEL)

    def test_what_does_not_tell_stays_as_it_is(self) -> None:
        assert view_of_labels(np.zeros_like(self.LABEL), ORGANS) == AS_STORED
        assert view_of_labels(self.LABEL, [f"class {k}" for k in range(8)]) == AS_STORED
        assert view_of_labels(np.where(self.LABEL == 1, 1, 0), ORGANS) == AS_STORED

    def test_of_the_layout_that_scans_are_turned_to(self) -> None:
        """Rows from back to front and columns from right to left become front up and right on the left."""
        stored = np.flip(self.LABEL, -2)
        assert view_of_labels(stored, ORGANS) == CT

    def test_on_overlays(self, tmp_path: Path, drawn: list[Figure]) -> None:
        image = np.flip(self.LABEL, (-2, -1))[:, None] / 8
        label = np.flip(self.LABEL, (-2, -1))
        draw_overlay(image, {"image": None, "truth": label}, ORGANS, tmp_path / "a.png", "title")
        assert texts(drawn[0]) == ["R", "L"] * 10
        shown = drawn[0].axes[0].images[0].get_array()
        z = int(drawn[0].axes[0].get_title().split()[1])
        np.testing.assert_allclose(shown, self.LABEL[z] / 8)
        draw_overlay(image, {"image": None, "prediction": label}, ORGANS, tmp_path / "b.png", "title", view=AS_STORED)
        assert texts(drawn[1]) == []
        np.testing.assert_allclose(drawn[1].axes[0].images[0].get_array(), image[z, 0])

    def test_every_class_has_a_colour(self, tmp_path: Path, drawn: list[Figure]) -> None:
        label = np.arange(21, dtype=np.uint8).reshape(1, 3, 7)
        names = [f"class {k}" for k in range(1, 21)]
        draw_overlay(np.zeros((1, 1, 3, 7)), {"labels": label}, names, tmp_path / "a.png", "title")
        assert len(drawn[0].axes[0].images) == 21
        assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == names


@pytest.mark.parametrize("deviation", [None, 0.0, 0.1])
def test_bars_have_whiskers_where_there_is_a_deviation(
    tmp_path: Path, drawn: list[Figure], deviation: float | None
) -> None:
    dice = {name: {"strict": {"dice": {"mean": 0.9, "std": deviation}}} for name in ACDC.classes}
    draw_bars(ACDC, {"classes": dice}, tmp_path / "bars.png", "title")
    (axis,) = drawn[0].axes
    whiskers = [one for one in axis.containers if isinstance(one, ErrorbarContainer) and one.has_yerr]
    assert bool(whiskers) == bool(deviation)
    assert axis.get_legend() is None  # it is outside
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["this run", "paper"]


def test_bars_have_the_names_of_the_table(tmp_path: Path, drawn: list[Figure]) -> None:
    rates = dict.fromkeys(("iou", "dice", "accuracy", "specificity", "sensitivity"), 0.9)
    for benchmark, iou in ((isic(2018), "mIoU"), (replace(isic(2018), paper=None), "IoU")):
        draw_bars(benchmark, {"mean": {"pooled": rates}}, tmp_path / "bars.png", "title")
        assert [label.get_text() for label in drawn[-1].axes[0].get_xticklabels()] == [iou, "DSC", "Acc", "Spe", "Sen"]


def test_curves_show_dice_and_leave_room_for_the_legend(tmp_path: Path, drawn: list[Figure]) -> None:
    table = pd.DataFrame({"epoch": [1, 2, 3], "lr": 1e-4, "loss": [1.0, 0.8, 0.6], "dice_loss": [0.5, 0.4, 0.3]})
    table["val_loss"], table["val_dice_loss"] = [None, 0.9, None], [None, 0.45, None]
    table["val_dice"] = [None, 0.7, None]
    table.to_csv(tmp_path / "metrics.csv", index=False)
    draw_curves(tmp_path / "metrics.csv", tmp_path / "curves.png", "title")
    losses, dice, _ = drawn[0].axes
    assert {line.get_label(): list(line.get_ydata()) for line in dice.lines} == {
        "of probabilities, training": pytest.approx([0.5, 0.6, 0.7]),
        "of probabilities, validation": [0.55],
        "of labels, validation": [0.7],
    }
    for axis in (losses, dice):
        legend = axis.get_legend()
        assert legend is not None
        assert legend.get_window_extent().y1 < axis.get_window_extent().y0


def test_augmentation_names_cases_and_columns(tmp_path: Path, drawn: list[Figure]) -> None:
    label = np.zeros((2, 40, 40), np.uint8)
    label[:, 10:30, 10:30] = 1
    volume = Volume("heart", np.random.default_rng(0).random((2, 1, 40, 40), np.float32), label)
    dataset = SliceDataset([Case("heart", "heart", lambda: volume)], 32, augmentation=Augmentation(32, colour=False))
    draw_augmentation(ACDC, dataset, tmp_path / "a.png", columns=3)
    rows = [drawn[0].axes[4 * k].get_ylabel() for k in range(2)]
    assert sorted(rows) == ["heart, slice 0", "heart, slice 1"]
    heads = [axis.get_title() for axis in drawn[0].axes[:4]]
    assert heads == ["as it is, fitted", "augmented 1", "augmented 2", "augmented 3"]
