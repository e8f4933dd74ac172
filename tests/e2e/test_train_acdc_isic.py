"""ACDC and ISIC as a user trains on them: several seeds, baselines, damaged files, and a few real cases."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd
import pytest
import segmentation_models_pytorch as smp
import torch

import gca
import train_acdc
import train_isic
from medseg.evaluation.prediction import load_network
from tests.e2e.commands import EXAMPLES, QUICK, call, repeatable, results, succeed, write_acdc, write_isic


@pytest.fixture(scope="module")
def acdc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_acdc(tmp_path_factory.mktemp("acdc"))


@pytest.fixture(scope="module")
def isic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_isic(tmp_path_factory.mktemp("isic"))


@pytest.fixture(scope="module")
def seeds(acdc: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Two runs with different seeds: their folder and what they printed."""
    out = tmp_path_factory.mktemp("runs")
    return out, succeed("train_acdc.py", "--data", acdc, "--out", out, *QUICK, "--lr", "1e-3", "--seed", "10", "11")


def test_several_seeds_are_collected(seeds: tuple[Path, str]) -> None:
    out, printed = seeds
    collected = json.loads((out / "runs.json").read_text())
    assert [row["seed"] for row in collected["runs"]] == [10, 11]
    for name in ("dice", "hd95"):
        values = [results(out / f"seed{seed}")["test"]["headline"][name] for seed in (10, 11)]
        assert collected["mean"][name]["values"] == values
        defined = [value for value in values if value is not None]  # no HD95 where a class is never found
        std = np.std(defined, ddof=1) if len(defined) > 1 else None
        assert collected["mean"][name]["std"] == (None if std is None else pytest.approx(std))
    losses = [results(out / f"seed{seed}")["training"]["best_val_loss"] for seed in (10, 11)]
    assert losses[0] != losses[1]
    assert (out / "table.txt").read_text() in printed
    assert "92.64 ± 0.27" in printed


def test_distances_are_in_millimetres_where_the_spacing_is_known(seeds: tuple[Path, str]) -> None:
    summary = results(seeds[0] / "seed10")["test"]["summary"]
    assert summary["hd95_unit_strict"] == "mm"
    assert "HD95 strict in mm" in (seeds[0] / "seed10" / "table.txt").read_text()


def test_a_noted_configuration_gives_the_same_numbers(seeds: tuple[Path, str], acdc: Path, tmp_path: Path) -> None:
    config = seeds[0] / "seed11" / "settings.json"
    call(train_acdc.main, "--data", acdc, "--out", tmp_path / "again", "--config", config)
    assert repeatable(tmp_path / "again") == repeatable(seeds[0] / "seed11")


def test_a_baseline_on_photographs(isic: Path, tmp_path: Path) -> None:
    options = ("--arch", "UnetPlusPlus", "--encoder", "resnet18")
    printed = call(train_isic.main, "--year", "2017", "--data", isic, "--out", tmp_path, *QUICK, *options)
    found = results(tmp_path)
    assert found["benchmark"] == "isic2017"
    assert found["data"]["split"].startswith("7:3 of the training images, seed 0 (not the official split")
    assert found["data"]["cases"] == {"train": 9, "validation": 1, "test": 4}
    assert found["settings"]["attention"] == "none"
    assert found["attention_layers"] == {}
    pooled = found["test"]["summary"]["mean"]["pooled"]
    assert pooled["dice"] == pytest.approx(2 * pooled["iou"] / (1 + pooled["iou"]))
    assert found["test"]["headline"] == pooled
    assert "paper" in printed
    assert "79.91" in printed
    model = smp.from_pretrained(tmp_path / "model").eval()
    assert type(model).__name__ == "UnetPlusPlus"
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 2, 32, 32)


def test_mixed_precision(acdc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.training.network.slow_in_bfloat16", lambda: False)  # on a network as small as this one
    call(train_acdc.main, "--data", acdc, "--out", tmp_path, *QUICK, "--epochs", "1", "--precision", "bf16-mixed")
    found = results(tmp_path)
    assert found["settings"]["precision"] == "bf16-mixed"
    assert np.isfinite(found["training"]["best_val_loss"])


def test_emulated_precision_is_refused_before_anything_is_decoded(
    acdc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: object, **__: object) -> None:
        raise AssertionError("slices were read")

    monkeypatch.setattr("medseg.command_line.pipeline.SliceDataset", decode)
    monkeypatch.setattr("medseg.training.network.slow_in_bfloat16", lambda: True)
    options = ("--precision", "bf16-mixed", "--accelerator", "cpu")
    with pytest.raises(SystemExit, match=r"error: --precision bf16-mixed on this processor .* in float32; train with"):
        call(train_acdc.main, "--data", acdc, "--out", tmp_path / "out", *QUICK, *options)
    assert not (tmp_path / "out").exists()


def test_identity_start_and_channels_last(acdc: Path, tmp_path: Path) -> None:
    """Both train and leave a network that loads; the memory format changes the losses by rounding alone."""
    options = ("--data", acdc, *QUICK, "--identity-init")
    call(train_acdc.main, *options, "--out", tmp_path / "NCHW")
    call(train_acdc.main, *options, "--out", tmp_path / "NHWC", "--channels-last")
    losses = [pd.read_csv(tmp_path / name / "metrics.csv")[["loss", "val_loss"]] for name in ("NCHW", "NHWC")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
    found = results(tmp_path / "NHWC")
    assert found["execution"]["channels_last"]
    assert found["settings"]["identity_init"]
    assert found["duration_seconds"]["step"] > 0
    assert len(found["attention_layers"]) == 4
    model = load_network(tmp_path / "NHWC", "cpu").model
    assert all("identity_init=True" in str(layer) for layer in gca.injected(model).values())


def test_the_speed_of_loading_alone(isic: Path, tmp_path: Path) -> None:
    printed = call(train_isic.main, "--data", isic, "--out", tmp_path, *QUICK, "--time-loader")
    assert "images/s" in printed
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("main", [train_acdc.main, train_isic.main])
def test_data_is_demanded(main: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])  # type: ignore[operator]
    assert "the following arguments are required: --data" in capsys.readouterr().err


def test_an_unknown_year(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train_isic.main(["--year", "2019", "--data", "nowhere"])
    assert "invalid choice: 2019" in capsys.readouterr().err


def test_the_command_line_waits_for_no_framework() -> None:
    """With torch and Lightning, --help, complaints and collecting finished runs would take ten seconds."""
    code = "import sys, train_acdc, train_isic, train_synapse; print({'torch', 'lightning'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=EXAMPLES, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_out_of_memory(acdc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*args: object, **kwargs: object) -> NoReturn:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("medseg.command_line.pipeline.train", train)
    with pytest.raises(SystemExit, match=r"error: CUDA out of memory; lower --batch-size or --size, .*--resume"):
        call(train_acdc.main, "--data", acdc, "--out", tmp_path, *QUICK)


def test_damaged_photograph(tmp_path: Path) -> None:
    data = write_isic(tmp_path / "data")
    photograph = data / "images" / "ISIC_0000003.jpg"
    photograph.write_bytes(photograph.read_bytes()[:500])
    with pytest.raises(SystemExit, match=f"error: cannot read {photograph}"):
        call(train_isic.main, "--data", data, "--out", tmp_path / "out", *QUICK)
    assert not (tmp_path / "out" / "metrics.csv").exists()


def test_unwritable_output(acdc: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SystemExit, match=r"error: .*choose another --out"):
        call(train_acdc.main, "--data", acdc, "--out", tmp_path / "file" / "out", *QUICK)


def test_real_acdc(test_data: Path, tmp_path: Path) -> None:
    call(train_acdc.main, "--data", test_data / "acdc", "--out", tmp_path, *QUICK, "--epochs", "1", "--limit", "2")
    found = results(tmp_path)
    assert found["data"]["split"] == "lists of the folder (70/10/20 patients), LIMITED to 2 cases a part"
    assert [case["case"] for case in found["test"]["cases"]] == ["patient002_ED", "patient002_ES"]


def test_real_isic(test_data: Path, tmp_path: Path) -> None:
    data = test_data / "isic2018"
    call(train_isic.main, "--data", data, "--out", tmp_path, *QUICK, "--epochs", "1", "--limit", "8")
    found = results(tmp_path)
    assert found["data"]["split"] == "splits/*.txt of the folder (1600/400/594), LIMITED to 8 cases a part"
    assert len(found["test"]["cases"]) == 8
