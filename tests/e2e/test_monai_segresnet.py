"""The example that trains MONAI's SegResNet with attention, on volumes of noise with a bright box."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from monai.networks.nets import SegResNet

import gca
from monai_segresnet import main
from tests.e2e.commands import call


def write_volumes(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(count):
        label = np.zeros((8, 40, 48), np.float32)
        label[2:6, 10:30, 12 + number : 36] = 1
        with h5py.File(folder / f"case{number}.npy.h5", "w") as file:
            file["image"], file["label"] = label + 0.1 * rng.standard_normal(label.shape), label


@pytest.mark.filterwarnings("ignore")  # MONAI's
def test_trains_tests_and_leaves_what_can_be_loaded(tmp_path: Path) -> None:
    write_volumes(tmp_path, 3)
    printed = call(main, "--data", tmp_path, "--steps", 3, "--classes", 2, "--out", tmp_path / "run")
    assert "12 of 12" in printed
    assert "step 3 of 3: loss" in printed
    (dice,) = json.loads((tmp_path / "run" / "results.json").read_text())["dice"]
    assert 0 <= dice <= 1
    assert (tmp_path / "run" / "loss.png").stat().st_size > 5000
    network = gca.load(SegResNet(3, 8, 1, 2), tmp_path / "run" / "attention.safetensors")
    network.load_state_dict(torch.load(tmp_path / "run" / "model.pt", weights_only=True))
    assert all(layer.spatial_dims == 3 for layer in gca.injected(network).values())


def test_too_few_volumes_are_refused(tmp_path: Path) -> None:
    write_volumes(tmp_path, 1)
    with pytest.raises(SystemExit, match=r"wanted two or more \*\.npy\.h5 files in .*, the last to test on, got 1"):
        main(["--data", str(tmp_path)])
