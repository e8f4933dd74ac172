"""The main job as a user runs it, on a network and a number of steps small enough for a test."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import gca
from medseg.phantom import write_phantoms
from medseg.synapse import ORGANS
from train_synapse import main

ROOT = Path(__file__).parents[2]
QUICK = ("--encoder", "tu-resnet10t", "--size", "32", "--batch-size", "8", "--epochs", "2")


def train_synapse(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / "train_synapse.py"), *map(str, arguments)]
    # One thread: the tiny network gains nothing from more, and its sums keep their order on any machine.
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), train=2, test=2, seed=0)


@pytest.fixture(scope="module")
def run(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run: its folder and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "first"
    done = train_synapse("--data", phantoms, "--out", out, *QUICK, "--score-training")
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def numbers(out: Path) -> dict[str, object]:
    """What must repeat: everything but the durations."""
    results = json.loads((out / "results.json").read_text())
    results.pop("duration_seconds")
    return results


def test_results_are_complete(run: tuple[Path, str]) -> None:
    out, _ = run
    results = json.loads((out / "results.json").read_text())
    assert results["settings"]["lr"] == 1e-4  # the paper's, since --data was given
    assert results["settings"]["seed"] == 10
    assert results["environment"]["torch"] == torch.__version__
    assert results["duration_seconds"]["total"] > results["duration_seconds"]["training"] > 0
    assert {"dice", "strict", "transunet", "hd95_unit"} <= results["definitions"].keys()
    for part, names in (("test", ["case0002", "case0003"]), ("training", ["case0000", "case0001"])):
        cases = results[part]["cases"]
        assert [case["case"] for case in cases] == names
        for organ in ORGANS:
            rows = [case["organs"][organ] for case in cases]
            assert all(row["truth_voxels"] > 0 for row in rows)
            mean = np.mean([row["strict"]["dice"] for row in rows])
            assert results[part]["summary"]["organs"][organ]["strict"]["dice"] == pytest.approx(mean)
        by_organ = [row["strict"]["dice"] for row in results[part]["summary"]["organs"].values()]
        assert results[part]["summary"]["mean"]["strict"]["dice"] == pytest.approx(np.mean(by_organ))


def test_table_stands_beside_the_paper(run: tuple[Path, str]) -> None:
    out, printed = run
    mean = json.loads((out / "results.json").read_text())["test"]["summary"]["mean"]["strict"]["dice"]
    assert "the slices it was TRAINED on" in printed
    lines = printed.splitlines()
    assert any(line.startswith("gallbladder") and line.endswith("74.71") for line in lines)
    assert any(line.startswith("mean") and f"{100 * mean:.2f}" in line and line.endswith("86.11") for line in lines)


def test_pictures_and_metrics(run: tuple[Path, str]) -> None:
    out, _ = run
    pictures = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
    assert pictures == [
        "curves.png",
        *(f"overlays/test/case{number:04d}.png" for number in (2, 3)),
        *(f"overlays/training/case{number:04d}.png" for number in (0, 1)),
    ]
    metrics = pd.read_csv(out / "metrics.csv")
    assert list(metrics["epoch"]) == [1, 2]
    assert metrics["loss"].iloc[1] < metrics["loss"].iloc[0]
    np.testing.assert_allclose(metrics["loss"], metrics["cross_entropy"] + metrics["dice_loss"], rtol=1e-5)
    assert metrics["lr"].iloc[-1] == pytest.approx(1e-6)


def test_the_saved_network_loads(run: tuple[Path, str]) -> None:
    model = gca.GCAResUNet.from_pretrained(run[0] / "model").eval()
    assert len(gca.injected(model)) == 4
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 9, 32, 32)


def test_a_run_is_not_lost_by_accident(run: tuple[Path, str], phantoms: Path) -> None:
    before = numbers(run[0])
    done = train_synapse("--data", phantoms, "--out", run[0], *QUICK)
    assert done.returncode == 1
    assert "already holds a run; pass --resume" in done.stderr
    assert "Traceback" not in done.stderr
    done = train_synapse("--data", phantoms, "--out", run[0], *QUICK, "--lr", "0.1", "--resume")
    assert done.returncode == 1
    assert "with other settings: lr was 0.0001, is 0.1" in done.stderr
    assert numbers(run[0]) == before


def test_same_seed_same_numbers_also_after_an_interruption(
    run: tuple[Path, str], phantoms: Path, tmp_path: Path
) -> None:
    out = tmp_path / "again"
    arguments = ("--data", phantoms, "--out", out, *QUICK, "--score-training")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "train_synapse.py"), *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while process.poll() is None and not (out / "checkpoints" / "last.ckpt").exists():
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = train_synapse(*arguments, "--resume")
    assert done.returncode == 0, done.stderr
    assert numbers(out) == numbers(run[0])
    assert (out / "metrics.csv").read_text() == (run[0] / "metrics.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "nowhere"), "error: no data folder nowhere"),
        (("--resume",), "error: nothing to resume"),
        (("--encoder", "mobilenet_v2"), "error: cannot build the network: no known residual block"),
        (("--attention", "se", "--groups", "4"), "unexpected keyword argument 'groups'"),
        (("--batch-size", "41"), "error: 40 training slices do not fill one batch of 41"),
    ],
)
def test_errors_are_one_line(phantoms: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(["--data", str(phantoms), "--out", str(tmp_path / "out"), *arguments])


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("--epochs", "0", "a whole number from 1, got '0'"),
        ("--batch-size", "2.5", "a whole number from 1, got '2.5'"),
        ("--lr", "nan", "a number above 0, got 'nan'"),
        ("--size", "16", "a whole number from 32, got '16'"),
        ("--weight-decay", "-1", "a number from 0, got '-1'"),
        ("--attention", "gcaa", "invalid choice: 'gcaa'"),
    ],
)
def test_bad_options(option: str, value: str, wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([option, value])
    assert wanted in capsys.readouterr().err


def test_a_damaged_test_volume_stops_the_run_before_training(tmp_path: Path) -> None:
    data = write_phantoms(tmp_path / "data", train=1, test=1, seed=0)
    volume = data / "test_vol_h5" / "case0001.npy.h5"
    volume.write_bytes(volume.read_bytes()[:1000])
    done = train_synapse("--data", data, "--out", tmp_path / "out", *QUICK)
    assert done.returncode == 1
    assert f"error: cannot read {volume}" in done.stderr
    assert not (tmp_path / "out" / "metrics.csv").exists()


def test_real_ct_from_end_to_end(test_data: Path, tmp_path: Path) -> None:
    done = train_synapse("--data", test_data / "ct_mini", "--out", tmp_path / "out", *QUICK)
    assert done.returncode == 0, done.stderr
    (case,) = json.loads((tmp_path / "out" / "results.json").read_text())["test"]["cases"]
    assert case["case"] == "case9002"
    assert [row["truth_voxels"] for row in case["organs"].values()] == [
        3326, 5889, 29080, 23376, 49035, 6390, 5487, 16034,
    ]  # fmt: skip


def test_quickstart() -> None:
    command = [sys.executable, str(ROOT / "examples" / "quickstart.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "25,557,032 -> 30,602,024 parameters" in done.stdout
