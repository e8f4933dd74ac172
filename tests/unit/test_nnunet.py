"""The trainers for nnU-Net without a training, and the faults of checkpoints that graft finds."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import gca
from gca import nnunet
from gca.nnunet.__main__ import PLUGIN, main

INSTALLED = importlib.util.find_spec("nnunetv2") is not None
needs_nnunet = pytest.mark.skipif(
    not INSTALLED, reason='needs nnU-Net: pip install "gca-attn[nnunet]", in an environment of its own'
)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # as nnU-Net is imported

ARCHITECTURE = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
    "arch_kwargs": {
        "n_stages": 2,
        "features_per_stage": [8, 16],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [2, 2, 2]],
        "n_blocks_per_stage": [1, 2],
        "n_conv_per_stage_decoder": [1],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}
PLAIN = {key: value for key, value in ARCHITECTURE["arch_kwargs"].items() if key != "n_blocks_per_stage"}
VOLUMES = torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))


def build(trainer: Any, architecture: dict[str, Any] = ARCHITECTURE) -> nn.Module:
    """As nnU-Net does it in training (of an instance) and in prediction (of the class)."""
    configuration = SimpleNamespace(
        network_arch_class_name=architecture["network_class_name"],
        network_arch_init_kwargs=architecture["arch_kwargs"],
        network_arch_init_kwargs_req_import=architecture["_kw_requires_import"],
    )
    return trainer.build_network_architecture(None, configuration, 1, 2, enable_deep_supervision=False).eval()


@needs_nnunet
class TestTrainers:
    @pytest.mark.parametrize(
        ("name", "layer"),
        [
            ("nnUNetTrainerGCA", gca.GroupedCoordinateAttention),
            ("nnUNetTrainerCoordinateAttention", gca.CoordinateAttention),
            ("nnUNetTrainerCBAM", gca.CBAM),
            ("nnUNetTrainerSE", gca.SE),
        ],
    )
    def test_nnunet_finds_them_and_their_networks_start_as_the_plain_one(
        self, name: str, layer: type[nn.Module], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        monkeypatch.setenv("nnUNet_extTrainer", str(PLUGIN))
        trainer = recursive_find_trainer_class_by_name(name)
        assert trainer is getattr(nnunet, name)
        architecture = {**ARCHITECTURE, "arch_kwargs": {**ARCHITECTURE["arch_kwargs"], "features_per_stage": [32, 64]}}
        torch.manual_seed(0)
        plain = build(nnUNetTrainer, architecture)
        torch.manual_seed(0)
        network = build(trainer, architecture)
        assert [type(placed) for placed in gca.injected(network).values()] == [layer] * 3
        with torch.no_grad():
            assert torch.equal(network(VOLUMES), plain(VOLUMES))

    def test_options_and_layers_of_ones_own(self) -> None:
        class Mine(nnunet.nnUNetTrainerAttention):
            attention = nn.BatchNorm3d  # whatever takes the channels
            attention_options: ClassVar = {"blocks": -1, "momentum": 0.2}

        class Four(nnunet.nnUNetTrainerGCA):
            attention_options: ClassVar = {"groups": 4, "stages": 2}

        assert list(gca.injected(build(Mine))) == [
            "encoder.stages.0.blocks.0.squeeze_excitation",
            "encoder.stages.1.blocks.1.squeeze_excitation",
        ]
        assert {layer.groups for layer in gca.injected(build(Four)).values()} == {4}
        assert len(gca.injected(build(Four))) == 2

    def test_they_combine_with_nnunets_own_variants(self) -> None:
        from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN

        class Both(nnunet.nnUNetTrainerGCA, nnUNetTrainerBN):
            attention_options: ClassVar = {"groups": 4}

        network = build(Both, {**ARCHITECTURE, "arch_kwargs": dict(ARCHITECTURE["arch_kwargs"])})
        assert len(gca.injected(network)) == 3
        assert isinstance(network.encoder.stages[0].blocks[0].conv2.norm, nn.BatchNorm3d)

    def test_plans_without_residual_blocks_are_refused_with_the_plans_to_use(self) -> None:
        plain = {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {**PLAIN, "n_conv_per_stage": [1, 1]},
        }
        with pytest.raises(ValueError, match=r"PlainConvUNet .* -pl nnUNetPlannerResEncM, then -p nnUNetResEncUNetMPl"):
            build(nnunet.nnUNetTrainerGCA, {**ARCHITECTURE, **plain})


DATASET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "ball": 1}, "file_ending": ".nii.gz"}


def checkpoint(**changes: Any) -> dict[str, Any]:
    """What nnU-Net saves, with logged values of NumPy."""
    import numpy as np
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    plans = {
        "dataset_name": "Dataset901_Volumes",
        "plans_name": "nnUNetResEncUNetMPlans",
        "label_manager": "LabelManager",
        "configurations": {"3d_fullres": {"architecture": ARCHITECTURE, "patch_size": [8, 8, 8]}},
    }
    init = {"plans": plans, "configuration": "3d_fullres", "fold": 0, "dataset_json": DATASET}
    logged = {"train_losses": [np.float32(0.5)], "mean_fg_dice": [np.float64(0.25)], "lrs": [0.01]}
    content = {
        "network_weights": build(nnUNetTrainer).state_dict(),
        "optimizer_state": {},
        "logging": logged,
        "_best_ema": np.float64(0.25),
        "init_args": {**init, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    return {**content, **changes}


def with_network(name: str, part: str = "torch.nn.LeakyReLU") -> dict[str, Any]:
    content = checkpoint()
    options = {**ARCHITECTURE["arch_kwargs"], "nonlin": part}
    architecture = {**ARCHITECTURE, "network_class_name": name, "arch_kwargs": options}
    content["init_args"]["plans"]["configurations"]["3d_fullres"]["architecture"] = architecture
    return content


def without(key: str) -> dict[str, Any]:
    content = checkpoint()
    del content["network_weights"][key]
    return content


class Code:
    """Does not come back from a file that holds data alone."""


HEAD = "decoder.seg_layers.0.weight"
FAULTS: dict[str, tuple[Callable[[], Any], str]] = {
    "a state_dict alone": (lambda: checkpoint()["network_weights"], "no checkpoint of nnU-Net, which holds network_w"),
    "no dictionary": (lambda: [1, 2], "no checkpoint of nnU-Net"),
    "code": (lambda: checkpoint(logging=Code()), r"holds data alone: (.|\n)*test_nnunet\.Code"),
    "no plans": (lambda: checkpoint(init_args={"configuration": "2d"}), r"plans in .* cannot be read \(KeyError"),
    "another network": (lambda: with_network("os.path.join"), r"name 'os.path.join'; wanted a network of dynamic_netw"),
    "another part": (lambda: with_network(ARCHITECTURE["network_class_name"], "os.system"), "name 'os.system'; wanted"),
    "a tensor is missing": (lambda: without(HEAD), rf"1 tensors differ, {HEAD} \(missing\); name a checkpoint of a tr"),
    "another shape": (
        lambda: checkpoint(network_weights={**checkpoint()["network_weights"], HEAD: torch.zeros(3)}),
        rf"which nnUNetTrainer trained, is not that of its plans .*{HEAD} \(another shape\)",
    ),
    "attention": (
        lambda: checkpoint(network_weights=build(nnunet.nnUNetTrainerGCA).state_dict()),
        r"is not that of its plans without attention: \d+ tensors differ, .*squeeze_excitation.* \(unexpected\)",
    ),
}


@needs_nnunet
class TestGraft:
    def test_the_network_stays_what_it_was_and_only_data_is_read(self, tmp_path: Path) -> None:
        content = checkpoint()
        torch.save(content, tmp_path / "in.pth")
        said = nnunet.graft(tmp_path / "in.pth", tmp_path / "out.pth")
        assert said.endswith("out.pth: 3 blocks with attention, for -tr nnUNetTrainerGCA -pretrained_weights")
        grafted = torch.load(tmp_path / "out.pth", weights_only=True)
        assert grafted["trainer_name"] == "nnUNetTrainerGCA"
        assert grafted["inference_allowed_mirroring_axes"] == (0, 1, 2)
        network, before = build(nnunet.nnUNetTrainerGCA), build(nnunet.nnUNetTrainerAttention.__base__)
        network.load_state_dict(grafted["network_weights"])
        before.load_state_dict(content["network_weights"])
        with torch.no_grad():
            assert torch.equal(network(VOLUMES), before(VOLUMES))

    @pytest.mark.parametrize("fault", FAULTS)
    def test_a_fault_is_named_and_nothing_written(self, fault: str, tmp_path: Path) -> None:
        content, message = FAULTS[fault]
        torch.save(content(), tmp_path / "in.pth")
        with pytest.raises(ValueError, match=message):
            nnunet.graft(tmp_path / "in.pth", tmp_path / "out.pth")
        assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]

    def test_a_damaged_file(self, tmp_path: Path) -> None:
        torch.save(checkpoint(), tmp_path / "in.pth")
        whole = (tmp_path / "in.pth").read_bytes()
        for length in (0, 10, len(whole) // 2):
            (tmp_path / "in.pth").write_bytes(whole[:length])
            with pytest.raises(ValueError, match=r"in.pth cannot be read as a checkpoint that holds data alone"):
                nnunet.graft(tmp_path / "in.pth", tmp_path / "out.pth")

    def test_the_checkpoint_itself_is_not_overwritten(self, tmp_path: Path) -> None:
        torch.save(checkpoint(), tmp_path / "in.pth")
        with pytest.raises(ValueError, match=r"in.pth is the checkpoint itself; name another file"):
            nnunet.graft(tmp_path / "in.pth", tmp_path / "in.pth")

    def test_a_trainer_without_attention(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match=r"a sub-class of gca.nnunet.nnUNetTrainerAttention, got 'nnUNetTrainer'"):
            nnunet.graft(tmp_path / "in.pth", tmp_path / "out.pth", "nnUNetTrainer")

    def test_the_command_says_what_is_wrong_in_one_line(self, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match=r"python -m gca.nnunet: .*No such file .*in.pth"):
            main(["graft", str(tmp_path / "in.pth"), str(tmp_path / "out.pth")])


@needs_nnunet
def test_the_command_prints_the_folder_of_one_module(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    folder = Path(capsys.readouterr().out.strip())
    assert [path.name for path in folder.iterdir() if path.name != "__pycache__"] == ["gca_trainers.py"]


def test_without_nnunet_the_command_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r'gca.nnunet needs nnU-Net: pip install "gca-attn\[nnunet\]"'):
        main([])
    with pytest.raises(ImportError, match=r'pip install "gca-attn\[nnunet\]"'):
        nnunet.graft  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'Trainer'"):
        nnunet.Trainer  # noqa: B018


def test_importing_the_package_loads_nothing_of_nnunet() -> None:
    code = "import sys, gca, gca.nnunet.__main__; sys.exit('nnunetv2' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
