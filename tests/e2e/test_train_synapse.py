"""The main job as a user runs it, on a network and a number of steps small enough for a test."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import gca
from medseg.data.phantom import write_phantoms
from medseg.data.synapse import ORGANS
from tests.e2e.commands import QUICK, call, command, repeatable, results, succeed
from train_synapse import main

SCRIPT = "train_synapse.py"


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), train=3, test=2, seed=0)


@pytest.fixture(scope="module")
def finished(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run: its folder and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "first"
    return out, call(main, "--data", phantoms, "--out", out, *QUICK, "--score-training")


def test_results_are_complete(finished: tuple[Path, str], phantoms: Path) -> None:
    found = results(finished[0])
    assert found["schema"] == 1
    assert found["benchmark"] == "synapse"
    assert found["settings"]["lr"] == 1e-4  # the paper's, since --data was given
    assert found["settings"]["seed"] == 10
    assert found["data"]["cases"] == {"train": 2, "validation": 1, "test": 2}
    assert found["data"]["slices"] == {"train": 40, "validation": 20}
    assert len(found["data"]["fingerprint"]) == 64
    assert found["data"]["duplicates_across_parts"] == []
    assert found["data"]["folder"] == phantoms.name
    assert found["training"]["epochs"] == 2
    assert found["environment"]["torch"] == torch.__version__
    assert found["duration_seconds"]["total"] > found["duration_seconds"]["training"] > 0
    assert {"dice", "strict", "transunet", "missed", "std"} <= found["definitions"].keys()
    assert found["paper"]["mean"]["dice"] == [86.11, 0.49]
    assert found["test"]["summary"]["hd95_unit_strict"] == "voxels"
    split = json.loads((finished[0] / "split.json").read_text())
    assert split["test"] == ["case0003", "case0004"]
    assert sorted(split["train"] + split["validation"]) == ["case0000", "case0001", "case0002"]
    for part, names in (("test", split["test"]), ("trained_on", split["train"])):
        cases, summary = found[part]["cases"], found[part]["summary"]
        assert [case["case"] for case in cases] == names
        for organ in ORGANS:
            rows = [case["classes"][organ] for case in cases]
            assert all(row["truth_voxels"] > 0 for row in rows)
            dice = [row["strict"]["dice"] for row in rows]
            assert summary["classes"][organ]["strict"]["dice"]["mean"] == pytest.approx(np.mean(dice))
            assert summary["classes"][organ]["strict"]["dice"]["std"] == pytest.approx(np.std(dice, ddof=1))
        by_organ = [row["strict"]["dice"]["mean"] for row in summary["classes"].values()]
        assert summary["mean"]["strict"]["dice"] == pytest.approx(np.mean(by_organ))
        assert found[part]["headline"]["dice"] == summary["mean"]["strict"]["dice"]


def test_table_stands_beside_the_paper(finished: tuple[Path, str]) -> None:
    out, printed = finished
    mean = results(out)["test"]["headline"]["dice"]
    assert "the cases it was TRAINED on" in printed
    assert (out / "table.txt").read_text() in printed
    lines = printed.splitlines()
    assert any(line.startswith("gallbladder") and line.endswith("74.71") for line in lines)
    assert any(line.startswith("mean") and f"{100 * mean:.2f}" in line and line.endswith("86.11") for line in lines)


def test_phantoms_are_not_compared_with_the_paper(tmp_path: Path) -> None:
    printed = call(main, "--out", tmp_path / "out", *QUICK)
    found = results(tmp_path / "out")
    assert found["data"]["name"].startswith("SYNTHETIC")
    assert "paper" not in found
    assert "paper" not in printed.split("SYNTHETIC phantoms", 2)[2].lower()


def test_pictures_and_metrics(finished: tuple[Path, str]) -> None:
    out, _ = finished
    pictures = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
    assert pictures == [
        "augmentation.png",
        "bars.png",
        "curves.png",
        *(f"overlays/{part}/{which}.png" for part in ("test", "trained_on") for which in ("best", "worst")),
    ]
    metrics = pd.read_csv(out / "metrics.csv")
    assert list(metrics["epoch"]) == [1, 2]
    assert metrics["loss"].iloc[1] < metrics["loss"].iloc[0]
    for prefix in ("", "val_"):
        total = metrics[f"{prefix}cross_entropy"] + metrics[f"{prefix}dice_loss"]
        np.testing.assert_allclose(metrics[f"{prefix}loss"], total, rtol=1e-5)
    assert metrics["lr"].iloc[-1] == pytest.approx(1e-6)
    assert list((out / "tensorboard").glob("events*"))


def test_the_saved_network_loads(finished: tuple[Path, str]) -> None:
    model = gca.GCAResUNet.from_pretrained(finished[0] / "model").eval()
    assert len(gca.injected(model)) == 4
    assert not (finished[0] / "checkpoints").exists()  # these are the weights, once
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 9, 32, 32)


def test_a_run_is_not_lost_by_accident(finished: tuple[Path, str], phantoms: Path) -> None:
    out, _ = finished
    before = repeatable(out)
    with pytest.raises(SystemExit, match=r"error: .* already holds a run; pass --resume"):
        call(main, "--data", phantoms, "--out", out, *QUICK)
    with pytest.raises(SystemExit, match=r"with other settings: lr was 0\.0001, is 0\.1"):
        call(main, "--data", phantoms, "--out", out, *QUICK, "--lr", "0.1", "--resume")
    with pytest.raises(SystemExit, match="holds a single run, which these runs would mix with"):
        call(main, "--data", phantoms, "--out", out, *QUICK, "--seed", "1", "2")
    assert f"{out} is finished" in call(main, "--resume", "--out", out)
    assert repeatable(out) == before


def test_a_run_stays_until_there_is_something_to_replace_it(
    finished: tuple[Path, str], phantoms: Path, tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    with pytest.raises(SystemExit, match="no data folder"):
        call(main, "--data", tmp_path / "nowhere", "--out", out, *QUICK, "--overwrite")
    assert repeatable(out) == repeatable(finished[0])
    printed = call(
        main, "--data", phantoms, "--out", out, *QUICK, "--overwrite", "--attention", "none", "--keep-checkpoints"
    )
    assert results(out)["attention_layers"] == {}
    assert [line.split(":")[0] for line in printed.splitlines() if line.startswith("Epoch")] == [
        "Epoch 1/2",
        "Epoch 2/2",
    ]
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert not (out / "overlays" / "trained_on").exists()  # of the run that was replaced


@pytest.mark.slow
def test_same_seed_same_numbers_also_when_killed_again_and_again(
    finished: tuple[Path, str], phantoms: Path, tmp_path: Path
) -> None:
    out = tmp_path / "again"
    arguments = ("--data", phantoms, "--out", out, "--config", finished[0] / "settings.json", "--score-training")
    # Before the first step, after the first epoch, in the last validation, and while the pictures are drawn.
    for number, sign in enumerate(("settings.json", "checkpoints/last.ckpt", "metrics.csv", "curves.png")):
        seen = (out / sign).stat().st_mtime_ns if (out / sign).exists() else 0
        process = subprocess.Popen(
            **command(SCRIPT, *arguments, *(["--resume"] if number else [])),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and not ((out / sign).exists() and (out / sign).stat().st_mtime_ns > seen):
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert not (out / "results.json").exists()  # it was killed before its end
    succeed(SCRIPT, *arguments, "--resume")
    assert repeatable(out) == repeatable(finished[0])
    assert (out / "metrics.csv").read_text() == (finished[0] / "metrics.csv").read_text()


@pytest.mark.slow
def test_two_processes_train_like_one(phantoms: Path, tmp_path: Path) -> None:
    # Without batch norm, whose statistics are those of a process where there is no GPU.
    options = ("--data", phantoms, *QUICK, "--encoder", "tu-convnext_atto", "--attention", "none", "--lr", "1e-3")
    succeed(SCRIPT, *options, "--out", tmp_path / "one")
    printed = succeed(SCRIPT, *options, "--out", tmp_path / "two", "--devices", "2", "--strategy", "ddp")
    one, two = (pd.read_csv(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    np.testing.assert_allclose(one, two, rtol=1e-4)
    # Every case is scored once, by the one process that reports.
    assert [case["case"] for case in results(tmp_path / "two")["test"]["cases"]] == ["case0003", "case0004"]
    assert printed.count("Paper: Table 1") == 1


@pytest.mark.slow
def test_cross_validation_tests_every_case_once(phantoms: Path, tmp_path: Path) -> None:
    options = ("--data", phantoms, "--out", tmp_path, *QUICK, "--epochs", "1")
    printed = succeed(SCRIPT, *options, "--cross-validate", "--folds", "2")
    splits = [json.loads((tmp_path / f"fold{fold}" / "split.json").read_text()) for fold in (1, 2)]
    assert sorted(splits[0]["test"] + splits[1]["test"]) == [f"case000{number}" for number in range(5)]
    collected = json.loads((tmp_path / "runs.json").read_text())
    assert [row["fold"] for row in collected["runs"]] == [1, 2]
    dice = [results(tmp_path / f"fold{fold}")["test"]["headline"]["dice"] for fold in (1, 2)]
    assert collected["mean"]["dice"]["values"] == dice
    assert collected["mean"]["dice"]["mean"] == pytest.approx(np.mean(dice))
    assert "mean and standard deviation over 2 runs" in printed
    # Finished runs are not repeated, only collected again.
    again = succeed(SCRIPT, *options, "--cross-validate", "--folds", "2", "--resume")
    assert again.count("is finished") == 2
    assert json.loads((tmp_path / "runs.json").read_text()) == collected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "nowhere"), "error: no data folder nowhere"),
        (("--resume", "--overwrite"), "give one of them"),
        (("--resume", "--encoder", "vgg11"), "error: --attention gca cannot be put into --encoder vgg11"),
        (("--attention", "se", "--groups", "4"), "error: --groups is for --attention gca, not for se"),
        (("--arch", "Unet", "--attention", "gca"), "attention is for --arch gca-resunet, not Unet"),
        (("--arch", "Ynet"), "error: there is no --arch Ynet"),
        (("--batch-size", "41"), "error: 40 training slices do not fill one batch of 41"),
        (("--fold", "5"), "error: there is no fold 5 of 4"),
        (("--cross-validate", "--folds", "6"), "error: 5 patients cannot be divided into 6 folds"),
        (("--config", "nowhere.json"), "error: no file nowhere.json"),
    ],
)
def test_errors_are_one_line(phantoms: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(["--data", str(phantoms), "--out", str(tmp_path / "out"), *arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--devices", "2"), "the synthetic phantoms are for one process"),
        (("--cross-validate",), "--cross-validate is for real data"),
    ],
)
def test_phantoms_are_for_a_quick_look(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(["--out", str(tmp_path / "out"), *arguments])


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("--epochs", "0", "a whole number from 1, got '0'"),
        ("--batch-size", "2.5", "a whole number from 1, got '2.5'"),
        ("--lr", "nan", "a number above 0, got 'nan'"),
        ("--size", "16", "a whole number from 32, got '16'"),
        ("--weight-decay", "-1", "a number from 0, got '-1'"),
        ("--validation", "1", "a number from 0 to below 1, got '1'"),
        ("--attention", "gcaa", "invalid choice: 'gcaa'"),
        ("--precision", "8", "invalid choice: '8'"),
    ],
)
def test_bad_options(option: str, value: str, wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([option, value])
    assert wanted in capsys.readouterr().err


def test_a_damaged_test_volume_stops_the_run_before_training(tmp_path: Path) -> None:
    data = write_phantoms(tmp_path / "data", train=2, test=1, seed=0)
    volume = data / "test_vol_h5" / "case0002.npy.h5"
    volume.write_bytes(volume.read_bytes()[:1000])
    with pytest.raises(SystemExit, match=f"error: cannot read {volume}"):
        call(main, "--data", data, "--out", tmp_path / "out", *QUICK)
    assert not (tmp_path / "out" / "metrics.csv").exists()


def test_real_ct_from_end_to_end(test_data: Path, tmp_path: Path) -> None:
    call(main, "--data", test_data / "ct_mini", "--out", tmp_path / "out", *QUICK)
    (case,) = results(tmp_path / "out")["test"]["cases"]
    assert case["case"] == "case9002"
    assert [row["truth_voxels"] for row in case["classes"].values()] == [
        3326, 5889, 29080, 23376, 49035, 6390, 5487, 16034,
    ]  # fmt: skip


def test_quickstart() -> None:
    assert "25,557,032 -> 30,602,024 parameters" in succeed("quickstart.py")
