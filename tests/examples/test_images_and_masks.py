"""A folder of one's own images and masks: values, mappings, splits."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg.command_line.options import parser
from medseg.data.dataset import Split
from medseg.data.images_and_masks import Folder, folder_benchmark, mapping_of
from medseg.errors import DataError, RunError
from medseg.settings import Settings


def write(folder: Path, values: tuple[int, ...], count: int = 10, ending: str = "", mode: str = "RGB") -> Path:
    """Images with masks of these values, of five patients."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        mask = np.full((12, 9), values[0], np.uint8)
        mask[2:6, 3:7] = values[1 + number % (len(values) - 1)]
        image = Image.fromarray(np.full((12, 9, 3), 10 * number, np.uint8)).convert(mode)
        image.save(folder / "images" / f"P{number // 2}_{number}.png")
        Image.fromarray(mask).save(folder / "masks" / f"P{number // 2}_{number}{ending}.png")
    return folder


def labels(split: Split) -> set[int]:
    return {int(value) for cases in split.parts().values() for case in cases for value in np.unique(case.read().label)}


@pytest.mark.parametrize(
    ("values", "classes", "mapping"),
    [
        ((0, 255), ("lesion",), None),
        ((0, 1), ("lesion",), None),
        ((0, 1, 2), ("disc", "cup"), None),
        ((0, 100, 200), ("disc", "cup"), ("0=background", "100=disc", "200=cup")),
        ((0, 100, 200), ("both",), ("0=background", "100=both", "200=both")),
        ((7, 100), ("a",), ("7=background", "100=a")),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_values_become_classes(
    tmp_path: Path, values: tuple[int, ...], classes: tuple[str, ...], mapping: tuple[str, ...] | None, mode: str
) -> None:
    write(tmp_path, values, ending="_mask", mode=mode)
    split = Folder(classes, mapping_of(mapping, classes)).open(tmp_path, Settings())
    assert labels(split) == set(range(1 + len(classes)))
    volume = split.train[0].read()
    assert (volume.image.shape, volume.image.dtype, volume.label.shape) == ((1, 3, 12, 9), np.uint8, (1, 12, 9))


@pytest.mark.parametrize(
    ("values", "classes", "mapping", "message"),
    [
        ((0, 100, 200), ("disc", "cup"), None, r"pass --mapping 0=background 100=disc 200=cup$"),
        ((0, 100, 200), ("lesion",), None, r"0=background 100=lesion 200=\?; say which class each of them is"),
        (
            (0, 3),
            ("lesion",),
            None,
            r"\[0, 3\]; wanted 0 and 255.*pass --mapping 0=background 3=lesion$",
        ),
        (
            (0, 1, 2, 3),
            ("disc", "cup"),
            None,
            r"\[3\]; wanted 0 \(background\), 1 \(disc\), 2 \(cup\)\. The masks",
        ),
        ((0, 100, 200), ("a",), ("0=background", "100=a"), r"values \[200\]; wanted 0 \(background\), 100 \(a\)"),
        (tuple(range(20)), ("a", "b"), None, "The masks hold 20 values, so they are no labels"),
    ],
)
def test_values_that_do_not_fit_come_with_a_proposal(
    tmp_path: Path, values: tuple[int, ...], classes: tuple[str, ...], mapping: tuple[str, ...] | None, message: str
) -> None:
    write(tmp_path, values, count=20)
    with pytest.raises(DataError, match=message):
        Folder(classes, mapping_of(mapping, classes)).open(tmp_path, Settings())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("0=background", "100"),
            "--mapping 100: wanted VALUE=CLASS, a value up to 255 and one of background",
        ),
        (("300=disc",), "--mapping 300=disc: wanted VALUE=CLASS"),
        (("1=dsic", "2=cup"), "--mapping 1=dsic: wanted"),
        (("1=disc", "1=cup"), "--mapping gives 1 to two classes"),
        (("0=background", "1=disc"), "--mapping has no value for cup; every class of --classes needs one"),
    ],
)
def test_mappings_that_are_none(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(RunError, match=message):
        mapping_of(words, ("disc", "cup"))


@pytest.mark.parametrize("classes", [("a", "a"), ("background",)])
def test_classes_are_named_once(classes: tuple[str, ...]) -> None:
    with pytest.raises(RunError, match=r"--classes names .* twice"):
        Folder(classes)


def test_patients_are_kept_together(tmp_path: Path) -> None:
    write(tmp_path, (0, 1))
    own = Folder(("a",), patient=re.compile(r"^(P\d)_"), test=0.4)
    split = own.open(tmp_path, Settings(validation=0.2))
    assert [len(cases) for cases in split.parts().values()] == [4, 2, 4]  # Split raises if a patient is in two parts
    assert split.name == "40 % of 5 patients for test, seed 0"
    assert own.open(tmp_path, Settings(fold=2, folds=5)).name == "fold 2 of 5 over patients, seed 0"
    assert Folder(("a",), patient=re.compile(r"^P\d")).open(tmp_path, Settings()).test[0].patient.startswith("P")
    with pytest.raises(DataError, match="--patient Q finds nothing in P0_0, the name of an image"):
        Folder(("a",), patient=re.compile("Q")).open(tmp_path, Settings())


def test_lists_decide_the_split(tmp_path: Path) -> None:
    write(tmp_path / "data", (0, 1))
    lists = {"train": ["P0_0.png", "P0_1"], "val": ["P1_2"], "test": ["P2_4", "P3_6"]}
    for folder in (tmp_path / "data" / "splits", tmp_path / "other"):
        folder.mkdir()
        for part, names in lists.items():
            (folder / f"{part}.txt").write_text("\n".join(names))
    for splits, name in (
        (None, "lists in splits/ (2/1/2 images)"),
        (tmp_path / "other", "lists in other/ (2/1/2 images)"),
    ):
        split = Folder(("a",), splits=splits).open(tmp_path / "data", Settings())
        assert split.name == name
        assert [case.name for case in split.test] == ["P2_4", "P3_6"]
    (tmp_path / "other" / "val.txt").write_text("P1_9")
    with pytest.raises(DataError, match=r"1 of 1 files named in .*val\.txt are missing, first .*P1_9"):
        Folder(("a",), splits=tmp_path / "other").open(tmp_path / "data", Settings())


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give --data a folder that holds images/ and masks/"):
        Folder(("a",)).open(tmp_path / "nowhere", Settings())
    write(tmp_path, (0, 1))
    (tmp_path / "masks" / "P0_0.png").unlink()
    with pytest.raises(DataError, match=r"1 of 10 images .* have no mask .*P0_0"):
        Folder(("a",)).open(tmp_path, Settings())


def test_the_benchmark() -> None:
    benchmark = folder_benchmark("eyes", Folder(("disc", "cup")))
    assert (benchmark.classes, benchmark.intensity, benchmark.folds, benchmark.paper) == (
        ("disc", "cup"),
        "rgb",
        True,
        None,
    )


def test_palettes_that_number_their_colours_differently(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    label = np.zeros((9, 9), np.uint8)
    label[2:5], label[6:] = 1, 2
    colours = [(0, 0, 0), (200, 0, 0), (0, 0, 200)]
    for number, order in enumerate(((0, 1, 2), (0, 1, 2), (0, 2, 1))):
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "images" / f"{number}.png")
        mask = Image.fromarray(np.argsort(order)[label].astype(np.uint8))
        mask.putpalette([value for index in order for value in colours[index]])
        mask.save(tmp_path / "masks" / f"{number}.png")
    words = r"number 1 is #c80000 in the palette of .*0\.png and #0000c8 in that of .*2\.png, so it stands for no class"
    with pytest.raises(DataError, match=words):
        Folder(("a", "b")).open(tmp_path, Settings())
    (tmp_path / "masks" / "2.png").write_bytes((tmp_path / "masks" / "0.png").read_bytes())
    assert sum(len(part) for part in Folder(("a", "b")).open(tmp_path, Settings()).parts().values()) == 3


def test_no_share_for_test_is_refused(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / name / "a.png")
    with pytest.raises(RunError, match="--test 0 leaves nothing to test the network on"):
        Folder(("a",), test=0).open(tmp_path, Settings())


def test_a_folder_with_the_name_of_a_benchmark_is_not_taken_for_it() -> None:
    assert folder_benchmark("acdc", Folder(("a",))).name == "acdc_folder"
    assert "--validation" in parser(folder_benchmark("acdc", Folder(("a",))), "").format_help()
