"""Training on a folder of one's own by a command, testing it again, and predicting with it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import predict
from tests.e2e.commands import QUICK, call, repeatable, results
from train_folder import main

OWN = (
    "--classes",
    "circle",
    "square",
    "--mapping",
    "0=background",
    "100=circle",
    "200=square",
    "--patient",
    r"^(P\d+)_",
)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images each of eight patients, with masks of 0, 100 and 200."""
    folder, rng = tmp_path_factory.mktemp("data") / "my shapes", np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    y, x = np.mgrid[:40, :48]
    for number in range(16):
        row, column = rng.integers(10, 30, 2)
        circle, square = np.hypot(y - row, x - column) < 8, np.maximum(abs(y - row), abs(x - column)) < 7
        label = circle.astype(np.uint8) if number % 2 else 2 * square.astype(np.uint8)
        image = rng.integers(0, 90, (40, 48, 3)) + np.array([[0, 0, 0], [150, 0, 0], [0, 0, 150]])[label]
        Image.fromarray(image.astype(np.uint8)).save(folder / "images" / f"P{number // 2}_{number}.PNG")
        Image.fromarray(100 * label).save(folder / "masks" / f"P{number // 2}_{number}.png")
    return folder


@pytest.fixture(scope="module")
def finished(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run: its folder and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "shapes"
    options = ("--lr", "1e-3", "--loss", "focal+dice", "--class-weights", "1", "2", "2")
    return out, call(main, "--data", shapes, "--out", out, *OWN, *QUICK, *options)


def test_it_leaves_what_the_other_commands_leave(finished: tuple[Path, str]) -> None:
    out, printed = finished
    assert "20 % of 8 patients for test, seed 0" in printed
    assert "paper" not in printed.lower()
    found = results(out)
    assert found["benchmark"] == found["data"]["name"] == "my_shapes"
    assert found["data"]["cases"] == {"train": 10, "validation": 2, "test": 4}
    assert list(found["test"]["summary"]["classes"]) == ["circle", "square"]
    assert found["settings"]["class_weights"] == [1, 2, 2]
    assert sorted(path.name for path in out.iterdir()) == [
        "augmentation.png", "bars.png", "curves.png", "metrics.csv", "model", "overlays", "request.json",
        "results.json", "settings.json", "split.json", "table.txt", "tensorboard",
    ]  # fmt: skip


def test_one_copy_of_the_weights_is_kept(finished: tuple[Path, str]) -> None:
    out, _ = finished
    weights = 4 * results(out)["parameters"]
    held = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    assert weights < held < weights + 2**20


def test_a_finished_run_is_shown_and_tested_again(finished: tuple[Path, str]) -> None:
    out, _ = finished
    before, table = repeatable(out), (out / "table.txt").read_text()
    printed = call(main, "--resume", "--out", out)  # the classes are noted there
    assert printed == f"{out} is finished; --test-only tests it again.\n{table}"
    (out / "table.txt").unlink()
    assert table in call(main, "--test-only", "--out", out)
    again = repeatable(out)
    assert again.pop("tested_again")["torch"]
    assert again == before
    assert (out / "table.txt").read_text() == table


def test_other_data_are_not_tested_as_if_they_were_the_same(
    finished: tuple[Path, str], shapes: Path, tmp_path: Path
) -> None:
    for path in shapes.glob("*/*"):
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        (tmp_path / path.relative_to(shapes)).write_bytes(path.read_bytes())
    with Image.open(tmp_path / "images" / "P0_0.PNG") as image:
        darker = image.point(lambda value: value // 2)
    darker.save(tmp_path / "images" / "P0_0.PNG")
    with pytest.raises(SystemExit, match="was trained and tested on other data than these; give --data the same"):
        call(main, "--test-only", "--out", finished[0], "--data", tmp_path)


def test_a_run_that_began_on_other_data_is_not_resumed(finished: tuple[Path, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in ("settings.json", "request.json"):
        (out / "checkpoints").mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes((finished[0] / name).read_bytes())
    (out / "checkpoints" / "last.ckpt").write_bytes(b"")
    text = (out / "request.json").read_text()
    (out / "request.json").write_text(text.replace('"fingerprint": "', '"fingerprint": "0'))
    with pytest.raises(SystemExit, match=r"cannot resume .* on other data than it began with"):
        call(main, "--resume", "--out", out)


def test_predict_takes_the_network(finished: tuple[Path, str], shapes: Path, tmp_path: Path) -> None:
    source = shapes / "images" / "P0_0.PNG"
    call(predict.main, "--checkpoint", finished[0], "--input", source, "--output", tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as labels:
        assert labels.size == (48, 40)
        assert set(np.unique(np.array(labels))) <= {0, 1, 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: --classes"),
        (("--classes", "a"), "the following arguments are required: --data"),
        (("--classes", "a", "--mapping", "1=b"), "--mapping 1=b: wanted VALUE=CLASS"),
        (("--classes", "a", "--patient", "("), "--patient ( is no regular expression"),
        (("--classes", "a", "--test", "2"), "wanted a number from 0 to below 1, got '2'"),
    ],
)
def test_what_is_asked_for_wrongly(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(list(arguments))
    assert message in capsys.readouterr().err


def test_help_shows_all_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    for option in ("--classes", "--mapping", "--patient", "--encoder-weights", "--class-weights", "--logger"):
        assert option in printed


def test_masks_of_other_values_come_with_the_mapping(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="pass --mapping 0=background 100=circle 200=square"):
        call(main, "--data", shapes, "--out", tmp_path / "out", "--classes", "circle", "square", *QUICK)
    assert not (tmp_path / "out").exists()
