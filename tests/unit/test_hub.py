"""smp's ``save_pretrained`` and ``from_pretrained`` keep injected attention, or fail and say why."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

import gca
from tests.conftest import randomize

IMAGES = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def unet(encoder: str) -> nn.Module:
    return smp.Unet(encoder, encoder_weights=None, decoder_channels=(32, 16, 16, 8, 8)).eval()


@pytest.fixture(params=["resnet18", "tu-resnet10t"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> nn.Module:
    model = unet(request.param)
    gca.inject(model.encoder, "se", stages=[3, 4], identity_init=False)
    gca.inject(model.decoder, "cbam", reduction=2)
    randomize(model).save_pretrained(tmp_path)
    return model


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("load", [smp.Unet.from_pretrained, smp.from_pretrained])
def test_round_trip(saved: nn.Module, tmp_path: Path, load: object, strict: bool) -> None:
    again = load(tmp_path, strict=strict).eval()
    assert [str(x) for x in gca.injected(again).values()] == [str(x) for x in gca.injected(saved).values()]
    assert torch.equal(again(IMAGES), saved(IMAGES))
    assert again.config["encoder_name"] == saved.config["encoder_name"]  # the mark is in the file alone


def test_attention_alone_can_be_taken_from_the_file(saved: nn.Module, tmp_path: Path) -> None:
    other = gca.load(unet(saved.config["encoder_name"]), tmp_path / "model.safetensors")
    assert len(gca.injected(other)) == len(gca.injected(saved))


def load_elsewhere(folder: Path, first: str = "") -> subprocess.CompletedProcess[str]:
    code = f"{first}import segmentation_models_pytorch as smp; smp.Unet.from_pretrained({str(folder)!r})"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.usefixtures("saved")
def test_a_process_that_knows_nothing_of_attention_fails_and_says_what_to_do(tmp_path: Path) -> None:
    lost = load_elsewhere(tmp_path)
    assert lost.returncode == 1
    assert "with attention, so first do 'from gca import hub'" in lost.stderr


@pytest.mark.parametrize("saved", ["resnet18"], indirect=True)
@pytest.mark.usefixtures("saved")
def test_a_process_that_does_what_it_says_loads(tmp_path: Path) -> None:
    assert load_elsewhere(tmp_path, "from gca import hub; ").returncode == 0


def test_networks_without_attention_are_saved_as_ever(tmp_path: Path) -> None:
    model = unet("resnet18")
    gca.eject(gca.inject(model)).save_pretrained(tmp_path)
    assert "import hub" not in (tmp_path / "config.json").read_text()
    assert torch.equal(smp.Unet.from_pretrained(tmp_path).eval()(IMAGES), model(IMAGES))


class Mine(smp.Unet):  # type: ignore[misc]
    """Builds its attention from its own arguments."""

    def __init__(self, encoder_name: str = "resnet18", groups: int = 4) -> None:
        super().__init__(encoder_name, encoder_weights=None, decoder_channels=(32, 16, 16, 8, 8))
        gca.inject(self.encoder, groups=groups)


def test_a_sub_class_with_arguments_of_its_own(tmp_path: Path) -> None:
    model = randomize(Mine(groups=8)).eval()
    model.save_pretrained(tmp_path)
    again = Mine.from_pretrained(tmp_path, strict=True).eval()
    assert torch.equal(again(IMAGES), model(IMAGES))


def test_transformers_reports_what_it_does_not_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says so itself, so the documented way is enough: ``gca.save`` beside it, and ``gca.load`` after."""
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 8, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 2, 1, 1], "layer_type": "basic"}
    model = ResNetForImageClassification(ResNetConfig(**sizes)).eval()
    randomize(gca.inject(model, "se", reduction=4))
    model.save_pretrained(tmp_path)
    gca.save(model, tmp_path / "attention.safetensors")
    again = ResNetForImageClassification.from_pretrained(tmp_path).eval()
    assert gca.injected(again) == {}
    gca.load(again, tmp_path / "attention.safetensors")
    assert torch.equal(again(IMAGES).logits, model(IMAGES).logits)


class Plain(smp.Unet):  # type: ignore[misc]
    """Only a name of its own."""


class Passing(smp.Unet):  # type: ignore[misc]
    """A constructor of its own, which knows nothing of attention."""

    def __init__(self, encoder_name: str = "resnet34", encoder_weights: str | None = "imagenet") -> None:
        super().__init__(encoder_name, encoder_weights=encoder_weights)


@pytest.mark.parametrize("cls", [Plain, Passing])
def test_a_sub_class_keeps_what_was_injected(cls: type[nn.Module], tmp_path: Path) -> None:
    model = randomize(gca.inject(cls("resnet18", encoder_weights=None), "se", identity_init=False)).eval()
    model.save_pretrained(tmp_path)
    again = cls.from_pretrained(tmp_path, strict=True).eval()
    assert torch.equal(again(IMAGES), model(IMAGES))


class Scale(nn.Module):
    def __init__(self, channels: int, start: object = 2.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels, 1, 1), float(str(start))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


class NoJson(str):
    __slots__ = ()


@pytest.mark.parametrize("load", [smp.Unet.from_pretrained, smp.from_pretrained])
def test_layers_of_ones_own_are_built_by_what_is_given(load: Callable[..., nn.Module], tmp_path: Path) -> None:
    model = gca.inject(unet("resnet18"), Scale)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"pass what builds it: layer="):
        load(tmp_path)
    assert torch.equal(load(tmp_path, layer=Scale).eval()(IMAGES), model(IMAGES))


def test_nothing_is_written_of_what_cannot_be_described(tmp_path: Path) -> None:
    model = gca.inject(unet("resnet18"), lambda channels, start: Scale(channels), start=object())
    with pytest.raises(TypeError, match="its options are no JSON"):
        model.save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    "way",
    ["gca.load(smp.Unet('resnet18', encoder_weights=None), {file!r})", "torch.load({whole!r}, weights_only=False)"],
)
def test_attention_that_came_from_a_file_is_kept(way: str, tmp_path: Path) -> None:
    model = randomize(gca.inject(smp.Unet("resnet18", encoder_weights=None), "se", identity_init=False)).eval()
    gca.save(model, tmp_path / "attention.safetensors")
    torch.save(model, tmp_path / "whole.pt")
    loaded = way.format(file=str(tmp_path / "attention.safetensors"), whole=str(tmp_path / "whole.pt"))
    code = (
        f"import gca, torch, segmentation_models_pytorch as smp; {loaded}.save_pretrained({str(tmp_path / 'unet')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert len(gca.injected(smp.Unet.from_pretrained(tmp_path / "unet"))) == 8
