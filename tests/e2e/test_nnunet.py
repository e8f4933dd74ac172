"""nnU-Net's own commands with our trainers, on two tiny sets: plan, train, resume, predict, fine-tune."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gca.nnunet.__main__ import main as nnunet_command

pytest.importorskip("nnunetv2", reason='needs nnU-Net: pip install "gca-attn[nnunet]", in an environment of its own')
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("_environment")]  # nnU-Net warns at will
os.environ.update(nnUNet_def_n_proc="1")  # read as nnU-Net is imported

PLANS = "nnUNetResEncUNetMPlans"
SIZES = {"2d": (32, 32), "3d_fullres": (16, 16, 16)}
DATASETS = {"2d": "Dataset902_Images", "3d_fullres": "Dataset901_Volumes"}
# Trainers of a user's own: short, on one thread, with the random numbers of an epoch fixed by its number.
TRAINERS = """
import random, shutil
from pathlib import Path
import numpy, torch
from gca.nnunet import nnUNetTrainerGCA, nnUNetTrainerSE
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

torch.set_num_threads(1)

class Short(nnUNetTrainer):
    def initialize(self):
        self.num_epochs, self.save_every = 2, 1
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 2, 1
        super().initialize()

    def on_train_start(self):
        super().on_train_start()
        torch.save(self.network.state_dict(), Path(self.output_folder, "initial.pth"))

    def on_train_epoch_start(self):
        for seed in (random.seed, numpy.random.seed, torch.manual_seed):
            seed(self.current_epoch)
        super().on_train_epoch_start()

    def on_epoch_end(self):
        super().on_epoch_end()
        if self.current_epoch == 1:
            shutil.copy(Path(self.output_folder, "checkpoint_latest.pth"), Path(self.output_folder, "interrupted.pth"))

class nnUNetTrainerPlainShort(Short):
    pass

class nnUNetTrainerGCAShort(nnUNetTrainerGCA, Short):
    attention_options = {"groups": 4}

class nnUNetTrainerSEShort(nnUNetTrainerSE, Short):
    attention_options = {"stages": [2, 3], "reduction": 4}
"""


def write_case(folder: Path, name: str, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    """A ball in noise, and its label."""
    grid = np.meshgrid(*map(np.arange, shape), indexing="ij")
    distances = sum((axis - rng.integers(n // 3, 2 * n // 3)) ** 2 for axis, n in zip(grid, shape, strict=True))
    label = (distances < (min(shape) // 4) ** 2).astype(np.uint8)
    image = 100 * label + rng.integers(0, 60, shape)
    for part, suffix, values in (("imagesTr", "_0000", image), ("labelsTr", "", label)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        if len(shape) == 2:
            Image.fromarray(values.astype(np.uint8)).save(folder / part / f"{name}{suffix}.png")
        else:
            import nibabel

            volume = nibabel.Nifti1Image(values.astype(np.int16), np.eye(4))
            nibabel.save(volume, folder / part / f"{name}{suffix}.nii.gz")


def read_labels(path: Path) -> np.ndarray:
    if path.suffix == ".png":
        return np.asarray(Image.open(path))
    import nibabel

    return np.asarray(nibabel.load(path).dataobj)


@pytest.fixture(scope="module")
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """nnU-Net's folders and both sets of trainers; its workers come from a server that imports nnU-Net once."""
    root = tmp_path_factory.mktemp("nnunet")
    (root / "trainers").mkdir()
    (root / "trainers" / "short.py").write_text(TRAINERS)
    found = subprocess.run([sys.executable, "-m", "gca.nnunet"], capture_output=True, text=True, check=True)
    folders = {f"nnUNet_{name}": str(root / name) for name in ("raw", "preprocessed", "results")}
    trainers = os.pathsep.join([found.stdout.strip(), str(root / "trainers")])
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["nnunetv2.inference.predict_from_raw_data"])
    environment = {**folders, "nnUNet_extTrainer": trainers, "nnUNet_n_proc_DA": "0", "OMP_NUM_THREADS": "1"}
    with (
        mock.patch.dict(os.environ, environment),
        mock.patch.object(multiprocessing, "get_context", return_value=server),
    ):
        yield


def folder(name: str) -> str:
    """One of nnU-Net's three."""
    return os.environ[f"nnUNet_{name}"]


def call(command: str, *arguments: object) -> None:
    """Run one of nnU-Net's commands in this process, which saves its imports."""
    (entry,) = metadata.entry_points(group="console_scripts", name=command)
    with mock.patch.object(sys, "argv", [command, *map(str, arguments)]):
        entry.load()()


class Study:
    """A set of one kind, planned and preprocessed, with a network of a few features."""

    def __init__(self, configuration: str) -> None:
        self.configuration, self.dataset = configuration, DATASETS[configuration]
        raw, rng = Path(folder("raw"), self.dataset), np.random.default_rng(0)
        self.suffix = ".png" if configuration == "2d" else ".nii.gz"
        for number in range(5):
            write_case(raw, f"case_{number}", SIZES[configuration], rng)
        described = {"channel_names": {"0": "image"}, "labels": {"background": 0, "ball": 1}, "numTraining": 5}
        (raw / "dataset.json").write_text(json.dumps({**described, "file_ending": self.suffix}))
        with mock.patch.dict(os.environ, {"nnUNet_n_proc_DA": "1"}):  # 0 makes the planner divide by it
            number = self.dataset[7:10]
            planner = ("-pl", "nnUNetPlannerResEncM")
            call("nnUNetv2_plan_and_preprocess", "-d", number, *planner, "-c", configuration, "-npfp", 1, "-np", 1)
        path = Path(folder("preprocessed"), self.dataset, f"{PLANS}.json")
        plans = json.loads(path.read_text())
        chosen = plans["configurations"][configuration]
        chosen.update(patch_size=SIZES[configuration], batch_size=2)
        network = chosen["architecture"]["arch_kwargs"]
        network.update({key: network[key][:3] for key in ("kernel_sizes", "strides")}, n_stages=3)
        network.update(features_per_stage=[8, 16, 24], n_blocks_per_stage=[1, 2, 1], n_conv_per_stage_decoder=[1, 1])
        path.write_text(json.dumps(plans))

    def train(self, trainer: str, *options: object) -> Path:
        """The folder of the fold that was trained."""
        call(
            "nnUNetv2_train",
            self.dataset,
            self.configuration,
            0,
            "-tr",
            trainer,
            "-p",
            PLANS,
            "-device",
            "cpu",
            *options,
        )
        return self.fold(trainer)

    def fold(self, trainer: str) -> Path:
        return Path(folder("results"), self.dataset, f"{trainer}__{PLANS}__{self.configuration}", "fold_0")


@pytest.fixture(scope="module", params=SIZES)
def study(request: pytest.FixtureRequest, _environment: None) -> Study:
    return Study(request.param)


@pytest.fixture(scope="module")
def trained(study: Study) -> Path:
    return study.train("nnUNetTrainerGCAShort")


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=False)  # written by this test
    return content


def dice(fold: Path) -> float:
    return float(json.loads((fold / "validation" / "summary.json").read_text())["foreground_mean"]["Dice"])


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert list(ours) == list(theirs)
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def test_training_has_attention_in_every_block_of_the_encoder(trained: Path) -> None:
    weights = load(trained / "checkpoint_final.pth")["network_weights"]
    slots = {key.rpartition(".conv1.")[0] for key in weights if ".squeeze_excitation.conv1." in key}
    assert {slot for slot in slots if slot.startswith("encoder.")} == {
        f"encoder.stages.{stage}.blocks.{block}.squeeze_excitation" for stage, block in ((0, 0), (1, 0), (1, 1), (2, 0))
    }
    initial = load(trained / "initial.pth")
    last = [key for key in weights if ".squeeze_excitation.conv2." in key]
    assert not any(initial[key].any() for key in last)
    assert all(weights[key].any() for key in last if key.endswith("weight"))
    assert weights["encoder.stages.2.blocks.0.squeeze_excitation.conv2.weight"].shape[:2] == (6, 3)  # 24 in four groups


def test_resumed_with_the_numbers_of_a_training_that_was_not_interrupted(study: Study, trained: Path) -> None:
    whole = trained.with_name("whole")
    shutil.copytree(trained, whole)
    for name in ("final", "best"):
        (trained / f"checkpoint_{name}.pth").unlink()
    (trained / "interrupted.pth").rename(trained / "checkpoint_latest.pth")
    shutil.rmtree(trained / "validation")
    study.train("nnUNetTrainerGCAShort", "--c")
    ours, theirs = load(trained / "checkpoint_final.pth"), load(whole / "checkpoint_final.pth")
    assert_same(ours["network_weights"], theirs["network_weights"])
    for name in ("train_losses", "val_losses", "mean_fg_dice", "lrs"):
        assert ours["logging"][name] == theirs["logging"][name], name
        assert len(ours["logging"][name]) == 2
    assert dice(trained) == dice(whole)


def test_the_predictor_agrees_with_the_trainer(study: Study, trained: Path, tmp_path: Path) -> None:
    """Of images in a process of its own, as a user runs it."""
    (validated,) = (trained / "validation").glob(f"case_*{study.suffix}")
    case = validated.name.removesuffix(study.suffix)
    (tmp_path / "in").mkdir()
    image = Path(folder("raw"), study.dataset, "imagesTr", f"{case}_0000{study.suffix}")
    shutil.copy(image, tmp_path / "in")
    options = ["-i", tmp_path / "in", "-o", tmp_path / "out", "-d", study.dataset, "-c", study.configuration, "-f", 0]
    options += ["-tr", "nnUNetTrainerGCAShort", "-p", PLANS, "-device", "cpu", "-npp", 0, "-nps", 0]
    if study.configuration == "2d":
        command = Path(sys.executable).with_name("nnUNetv2_predict")
        done = subprocess.run([command, *map(str, options)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    else:
        call("nnUNetv2_predict", *options)
    predicted = read_labels(tmp_path / "out" / validated.name)
    assert predicted.shape == SIZES[study.configuration]
    assert predicted.any()
    assert np.array_equal(predicted, read_labels(validated))


def test_fine_tuning_starts_from_the_network_as_it_was(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = study.train("nnUNetTrainerPlainShort") / "checkpoint_final.pth"
    capsys.readouterr()
    nnunet_command(["graft", str(plain), str(tmp_path / "grafted.pth"), "--trainer", "nnUNetTrainerSEShort"])
    assert "grafted.pth: 3 blocks with attention, for -tr nnUNetTrainerSEShort -pretrained_w" in capsys.readouterr().out
    fold = study.train("nnUNetTrainerSEShort", "-pretrained_weights", tmp_path / "grafted.pth")

    before, after, initial = network(plain), network(tmp_path / "grafted.pth"), load(fold / "initial.pth")
    heads = {key for key in initial if ".seg_layers." in key}  # nnU-Net draws them anew
    new = initial.keys() - load(plain)["network_weights"].keys()
    assert new == {key for key in initial if ".squeeze_excitation." in key}
    for key in initial.keys() - heads:
        assert torch.equal(initial[key], after.state_dict()[key]), key
    images = torch.randn(2, 1, *SIZES[study.configuration])
    with torch.no_grad():
        assert torch.equal(after(images), before(images))
    trained = load(fold / "checkpoint_final.pth")["network_weights"]
    assert any(not torch.equal(trained[key], initial[key]) for key in new)


def network(checkpoint: Path) -> nn.Module:
    """The network as nnU-Net's predictor builds it."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    content = load(checkpoint)
    plans = PlansManager(content["init_args"]["plans"])
    configuration = plans.get_configuration(content["init_args"]["configuration"])
    trainer = recursive_find_trainer_class_by_name(content["trainer_name"])
    built: nn.Module = trainer.build_network_architecture(plans, configuration, 1, 2, enable_deep_supervision=False)
    built.load_state_dict(content["network_weights"])
    return built.eval()
