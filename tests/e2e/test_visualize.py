"""The pictures and the numbers of attention, on hearts small enough for a test."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import gca
import visualize
from gca.maps import AxisGates
from medseg.data.acdc import ACDC
from medseg.data.dataset import Benchmark
from medseg.data.isic import isic
from medseg.evaluation.group_similarity import correlation_of_groups, group_similarity, untrained, verdict
from medseg.evaluation.prediction import load_network
from medseg.figures.attention import fitted
from medseg.files import write_json
from medseg.training.network import build_model, save_model
from tests.conftest import randomize
from tests.e2e import commands

LAYERS = [f"encoder.model.layer{stage}.0.se" for stage in (1, 2, 3, 4)]
NUMBERS = ["groups.csv", "groups.json", "overview.png"]


def save_network(folder: Path, benchmark: Benchmark = ACDC, start: int = 1, **changes: Any) -> Path:
    torch.manual_seed(start)
    settings = replace(benchmark.settings, **{"encoder": "tu-resnet10t", "size": 64, **changes})
    save_model(benchmark, randomize(build_model(benchmark, settings)), settings, folder / "model")
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def hearts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return commands.write_acdc(tmp_path_factory.mktemp("data"))


def visualized(checkpoint: Path, out: Path, *options: object) -> str:
    others = [option for option in options if isinstance(option, Path) and (option / "model").is_dir()]
    options = tuple(option for option in options if option not in others)
    return commands.call(
        visualize.main, "--checkpoint", checkpoint, *others, "--out", out, "--device", "cpu", "--splits", 19, *options
    )


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


class TestCommand:
    def test_data(self, network: Path, hearts: Path, tmp_path: Path) -> None:
        printed = visualized(network, tmp_path, "--data", hearts)
        assert files_of(tmp_path) == sorted([*NUMBERS, *(f"{name}.png" for name in LAYERS)])
        for name in files_of(tmp_path):
            if name.endswith(".png"):
                with Image.open(tmp_path / name) as picture:
                    assert np.asarray(picture).std() > 10
        content = json.loads((tmp_path / "groups.json").read_text())
        assert content["scans"] == {"patient005_ED": 4}
        assert [row["layer"] for row in content["layers"]] == LAYERS
        assert [row["channels"] for row in content["layers"]] == [64, 128, 256, 512]
        assert [row["height"] for row in content["layers"]] == [16, 8, 4, 2]
        table = pd.read_csv(tmp_path / "groups.csv")
        assert table["similarity"].tolist() == pytest.approx([row["similarity"] for row in content["layers"]])
        for name, row in zip(LAYERS, content["layers"], strict=True):
            assert row["groups"] == 2
            assert -1 <= row["random_5"] <= row["random_mean"] <= row["random_95"] <= 1
            assert row["gap"] == pytest.approx(row["random_mean"] - row["similarity"])
            assert f"{name}{row['groups']:>8}" in printed
            assert f"{row['similarity']:.3f}" in printed
        assert "4 slices of 1 test case; 19 random splits" in printed
        assert "of 4 layers the groups are less alike than 95 % of the random splits" in printed

    def test_the_numbers_are_those_of_the_slices(self, network: Path, hearts: Path, tmp_path: Path) -> None:
        """Against the sum over channels written out, for slices prepared as for a prediction."""
        visualized(network, tmp_path, "--data", hearts, "--layers", "*layer2*", "--batch-size", 3)
        (row,) = json.loads((tmp_path / "groups.json").read_text())["layers"]
        with np.load(hearts / "test" / "case_005_volume_ED.npz") as arrays:
            slices = fitted(arrays["img"][:, None], 64)
        model = load_network(network, "cpu").model
        gates = gca.attention_maps(model, slices)[LAYERS[1]]
        assert isinstance(gates, AxisGates)
        h, w = gates.gate_h.double().numpy(), gates.gate_w.double().numpy()
        maps = [sum(h[:, c, :, None] * w[:, c, None, :] for c in half) for half in (range(64), range(64, 128))]
        expected = [np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in zip(*maps, strict=True)]
        assert row["similarity"] == pytest.approx(np.mean(expected), abs=1e-5)
        assert row["images"] == 4

    def test_again_gives_the_same(self, network: Path, hearts: Path, tmp_path: Path) -> None:
        for name in ("a", "b"):
            visualized(network, tmp_path / name, "--data", hearts, "--layers", LAYERS[3])
        assert (tmp_path / "a" / "groups.json").read_text() == (tmp_path / "b" / "groups.json").read_text()

    def test_files_and_chosen_layers(self, network: Path, hearts: Path, tmp_path: Path) -> None:
        images = [hearts / "test" / "case_005_volume_ED.npz", hearts / "valid" / "case_004_sliceED_0.npz"]
        visualized(network / "model", tmp_path, "--images", *images, "--layers", "*layer[34]*", LAYERS[0])
        assert files_of(tmp_path) == sorted([*NUMBERS, *(f"{LAYERS[i]}.png" for i in (0, 2, 3))])
        scans = json.loads((tmp_path / "groups.json").read_text())["scans"]
        assert scans == {"case_005_volume_ED.npz": 4, "case_004_sliceED_0.npz": 1}

    def test_one_frame_of_a_series(self, network: Path, tmp_path: Path) -> None:
        series = np.random.default_rng(0).random((30, 40, 2, 3)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(series, np.eye(4)), tmp_path / "cine.nii.gz")
        options = ("--images", tmp_path / "cine.nii.gz", "--layers", LAYERS[3])
        with pytest.raises(SystemExit, match=r"a series of 3 frames; wanted one: --frame N, from 1 to 3"):
            visualized(network, tmp_path / "out", *options)
        visualized(network, tmp_path / "out", *options, "--frame", 2)
        assert json.loads((tmp_path / "out" / "groups.json").read_text())["scans"] == {"cine.nii.gz": 2}

    def test_one_slice_and_four_groups(self, hearts: Path, tmp_path: Path) -> None:
        network = save_network(tmp_path / "run", groups=4)
        visualized(network, tmp_path / "out", "--images", hearts / "valid" / "case_004_sliceED_0.npz")
        rows = json.loads((tmp_path / "out" / "groups.json").read_text())["layers"]
        assert [row["groups"] for row in rows] == [4] * 4

    def test_coordinate_attention_has_nothing_to_compare(self, hearts: Path, tmp_path: Path) -> None:
        network = save_network(tmp_path / "run", attention="coord")
        printed = visualized(network, tmp_path / "out", "--data", hearts)
        assert files_of(tmp_path / "out") == [f"{name}.png" for name in LAYERS]
        assert "single group: there is nothing to compare" in printed

    def test_several_networks(self, network: Path, hearts: Path, tmp_path: Path) -> None:
        """Each as alone in a folder of its own, and a summary over both."""
        other = save_network(tmp_path / "another", start=2)
        out = tmp_path / "out"
        options = ("--data", hearts, "--layers", *LAYERS[2:])
        printed = visualized(network, out, other, *options)
        assert files_of(out) == ["another", network.name, "summary.csv", "summary.json"]
        alone = tmp_path / "alone"
        visualized(network, alone, *options)
        assert (out / network.name / "groups.json").read_text() == (alone / "groups.json").read_text()
        rows = [json.loads((out / name / "groups.json").read_text())["layers"] for name in (network.name, "another")]
        assert rows[0][0]["similarity"] != rows[1][0]["similarity"]
        summary = json.loads((out / "summary.json").read_text())
        assert summary["networks"] == [network.name, "another"]
        assert [row["layer"] for row in summary["layers"]] == LAYERS[2:]
        for row, *layers in zip(summary["layers"], *rows, strict=True):
            values = [layer["gap"] for layer in layers]
            assert row["gap_mean"] == pytest.approx(np.mean(values))
            assert row["gap_std"] == pytest.approx(np.std(values, ddof=1))
            assert row["less_alike"] == sum(layer["percentile"] < 5 for layer in layers)
        assert "Over 2 networks: in " in printed
        with pytest.raises(SystemExit, match=r"^error: .*summary\.json exists; pass --overwrite"):
            visualized(network, out, other, *options)

    def test_parts_of_a_single_group_as_the_control(self, hearts: Path, tmp_path: Path) -> None:
        """Halves of the channels are compared as the two groups of a network with the same gates would be."""
        network = save_network(tmp_path / "run", groups=1)
        visualized(network, tmp_path / "out", "--data", hearts, "--layers", LAYERS[1], "--parts", 2)
        (row,) = json.loads((tmp_path / "out" / "groups.json").read_text())["layers"]
        assert (row["groups"], row["channels"]) == (2, 128)
        model = load_network(network, "cpu").model
        with np.load(hearts / "test" / "case_005_volume_ED.npz") as arrays:
            slices = fitted(arrays["img"][:, None], 64)
        gates = gca.attention_maps(model, slices)[LAYERS[1]]
        assert isinstance(gates, AxisGates)
        assert gates.groups == 1
        halves = correlation_of_groups(gates._replace(groups=2).maps())
        assert row["similarity"] == pytest.approx(float(halves.mean()), abs=1e-5)
        with pytest.raises(SystemExit, match=r"^error: --parts 3 does not divide the 64 channels of encoder"):
            visualized(network, tmp_path / "thirds", "--data", hearts, "--parts", 3)

    def test_test_cases_are_those_of_the_run(self, tmp_path: Path) -> None:
        """Where the data names no split, the seed in the settings of the run decides what was held out."""
        photographs, run = commands.write_isic(tmp_path / "data"), tmp_path / "run"
        save_network(run, isic(2018))
        for seed in (0, 3):
            settings = replace(isic(2018).settings, split_seed=seed)
            write_json(run / "settings.json", asdict(settings))
            out = tmp_path / f"out{seed}"
            visualized(run, out, "--data", photographs, "--layers", LAYERS[3])
            scans = json.loads((out / "groups.json").read_text())["scans"]
            assert list(scans) == [case.name for case in isic(2018).open(photographs, settings).test]
        assert list(scans) != list(json.loads((tmp_path / "out0" / "groups.json").read_text())["scans"])

    def test_damaged_settings(self, network: Path, hearts: Path, tmp_path: Path) -> None:
        shutil.copytree(network, tmp_path / "run")
        write_json(tmp_path / "run" / "settings.json", {"folds_": 1})
        with pytest.raises(SystemExit, match=r"settings\.json does not hold .*missing: .*; unknown: folds_"):
            visualized(tmp_path / "run", tmp_path / "out", "--data", hearts)

    def test_real_slices(self, network: Path, test_data: Path, tmp_path: Path) -> None:
        out = visualized(network, tmp_path, "--data", test_data / "acdc", "--cases", 2, "--layers", LAYERS[2])
        assert "slices of 2 test cases" in out
        scans = json.loads((tmp_path / "groups.json").read_text())["scans"]
        assert list(scans) == ["patient002_ED", "patient095_ES"]  # the first and the last of the 40


class TestErrors:
    def test_networks_that_have_no_summary(self, network: Path, hearts: Path, tmp_path: Path) -> None:
        same = save_network(tmp_path / "more" / network.name)
        with pytest.raises(
            SystemExit, match=r"^error: --checkpoint got folders of the same name: .*; give runs of diff"
        ):
            visualized(network, tmp_path / "out", same, "--data", hearts)
        bottlenecks = save_network(tmp_path / "run", encoder="tu-resnet14t")
        with pytest.raises(
            SystemExit, match=r"^error: the networks do not have the same layers; give runs of one arch"
        ):
            visualized(network, tmp_path / "out", bottlenecks, "--data", hearts, "--layers", "*layer4*")

    @pytest.mark.parametrize(
        ("attention", "message"),
        [
            ("none", "the network has no attention; give --checkpoint a run of --attention gca or coord"),
            ("se", "the attention of the network is SE, which has no gates of rows and columns"),
        ],
    )
    def test_networks_without_rows_and_columns(
        self, hearts: Path, tmp_path: Path, attention: str, message: str
    ) -> None:
        network = save_network(tmp_path / "run", attention=attention)
        with pytest.raises(SystemExit, match=f"^error: {message}"):
            visualized(network, tmp_path / "out", "--data", hearts)

    def test_unknown_layer(self, network: Path, hearts: Path, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match=rf"^error: --layers \*layer5\* matches none of the layers: {LAYERS[0]}, "):
            visualized(network, tmp_path, "--data", hearts, "--layers", LAYERS[0], "*layer5*")

    def test_nothing_is_replaced_by_accident(self, network: Path, hearts: Path, tmp_path: Path) -> None:
        (tmp_path / "groups.csv").write_bytes(b"mine")
        options = ("--data", hearts, "--layers", LAYERS[3])
        with pytest.raises(SystemExit, match=r"^error: .*groups\.csv exists; pass --overwrite"):
            visualized(network, tmp_path, *options)
        assert files_of(tmp_path) == ["groups.csv"]
        visualized(network, tmp_path, *options, "--overwrite")
        assert (tmp_path / "groups.csv").read_bytes() != b"mine"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--data", "nowhere"), "no data folder nowhere; give --data the folder"),
            (("--images", "nowhere.npz"), r"no file nowhere\.npz"),
        ],
    )
    def test_missing_data(self, network: Path, tmp_path: Path, options: tuple[str, str], message: str) -> None:
        with pytest.raises(SystemExit, match=f"^error: {message}"):
            visualized(network, tmp_path, *options)

    def test_unknown_benchmark(self, network: Path, hearts: Path, tmp_path: Path) -> None:
        shutil.copytree(network, tmp_path / "run")
        use = tmp_path / "run" / "model" / "preprocessing.json"
        use.write_text(use.read_text().replace('"acdc"', '"brats"'))
        with pytest.raises(
            SystemExit,
            match="names the benchmark 'brats', and --data is for synapse, acdc, isic2017, isic2018; give --images",
        ):
            visualized(tmp_path / "run", tmp_path / "out", "--data", hearts)

    def test_unwritable_output(self, network: Path, hearts: Path, tmp_path: Path) -> None:
        (tmp_path / "out").write_bytes(b"")
        with pytest.raises(
            SystemExit, match=r"^error: --out .* cannot be a folder, since .* is a file; choose another"
        ):
            visualized(network, tmp_path / "out", "--data", hearts)


class TestSimilarity:
    def test_of_known_maps(self) -> None:
        x = torch.rand(3, 1, 5, 7)
        other = torch.rand(3, 1, 5, 7)
        centred = x - x.mean((2, 3), keepdim=True)
        other = other - other.mean((2, 3), keepdim=True)
        other = other - centred * (centred * other).sum((2, 3), keepdim=True) / centred.square().sum((2, 3), True)
        for second, expected in ((2 * x + 3, 1), (1 - x, -1), (other, 0)):
            found = correlation_of_groups(torch.cat((x, second), dim=1))
            torch.testing.assert_close(found, torch.full((3,), float(expected), dtype=torch.float64), atol=1e-5, rtol=0)
        three = correlation_of_groups(torch.cat((x, x, 1 - x), dim=1))  # pairs: 1, -1, -1
        torch.testing.assert_close(three, torch.full((3,), -1 / 3, dtype=torch.float64), atol=1e-5, rtol=0)

    def test_a_map_that_is_the_same_everywhere_has_none(self) -> None:
        flat = torch.cat((torch.rand(2, 1, 5, 7), torch.full((2, 1, 5, 7), 0.3)), dim=1)
        assert correlation_of_groups(flat).isnan().all()

    def test_groups_that_light_up_other_places_are_told_from_random_splits(self) -> None:
        """The first half of the channels looks at the upper rows, the second at the lower ones; then they are mixed."""
        gate_h = torch.rand(6, 16, 8) * 0.2
        gate_h[:, :8, :4] += 0.7
        gate_h[:, 8:, 4:] += 0.7
        gate_w = torch.rand(6, 16, 8) * 0.2 + 0.7
        gate_w[:, :, :4] -= 0.6  # all look at the columns on the right
        layer = Fixed(gate_h, gate_w)
        x = torch.zeros(6, 16, 8, 8)
        apart = group_similarity(layer, [""], [x])[""]
        assert apart.similarity < 0
        assert (apart.percentile, apart.differs) == (0, True)
        assert apart.z < 0
        assert apart.gap > 0.3
        layer.order = torch.arange(16).reshape(2, 8).T.flatten()  # every second channel: both halves in both groups
        mixed = group_similarity(layer, [""], [x])[""]
        assert mixed.similarity > 0.9
        assert not mixed.differs
        assert verdict({"": apart}, {"": mixed}).splitlines()[1:] == [
            "In 1 of 1 layers the groups are less alike than 95 % of the random splits; with random weights in 0.",
            "The gap between the groups and the random splits is wider than with random weights in 1 of 1 layers.",
        ]

    def test_gates_that_never_vary(self) -> None:
        layer = gca.GroupedCoordinateAttention(16, identity_init=True).eval()
        found = group_similarity(layer, [""], [torch.randn(2, 16, 8, 8)])[""]
        assert found.images == 0
        assert found.numbers()["similarity"] is None
        assert not found.differs
        assert verdict({"": found}, {"": found}).startswith("The maps are the same everywhere")

    def test_untrained_is_the_same_architecture_with_other_weights(self, network: Path) -> None:
        model = load_network(network, "cpu").model
        x = torch.rand(3, 3, 64, 64)
        before = torch.get_rng_state()
        twin, again = untrained(model, [x]), untrained(model, [x])
        assert torch.equal(torch.get_rng_state(), before)
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        assert {name: tensor.shape for name, tensor in twin.state_dict().items()} == shapes
        name = f"{LAYERS[0]}.conv1.weight"
        assert not torch.equal(twin.state_dict()[name], model.state_dict()[name])
        assert torch.equal(twin.state_dict()[name], again.state_dict()[name])
        assert not any(module.training for module in twin.modules())
        gates = gca.attention_maps(twin, x)[LAYERS[0]]
        assert isinstance(gates, AxisGates)
        assert gates.maps().flatten(2).std(2).min() > 0  # attention has something to look at


class Fixed(gca.GroupedCoordinateAttention):
    """A layer with these gates, in some order of its channels, whatever comes in."""

    def __init__(self, gate_h: Tensor, gate_w: Tensor) -> None:
        super().__init__(gate_h.shape[1])
        self.logits, self.order = torch.cat((gate_h, gate_w), dim=2).logit(), torch.arange(gate_h.shape[1])
        self.conv2 = Answer(self)  # type: ignore[assignment]
        self.eval()


class Answer(nn.Module):
    def __init__(self, layer: Fixed) -> None:
        super().__init__()
        self.logits: Callable[[], Tensor] = lambda: layer.logits[:, layer.order]

    def forward(self, f: Tensor) -> Tensor:
        return self.logits().reshape(f.shape[0], -1, f.shape[2], 1)
