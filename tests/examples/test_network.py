"""Networks from the command line's options: what cannot be built is said in its words."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import gca
from medseg.data.isic import isic
from medseg.errors import RunError
from medseg.settings import Settings
from medseg.training.network import build_model

SETTINGS = Settings(encoder="tu-resnet10t", size=32, batch_size=2)
PYTHON = ("gca.", "on_existing", "__init__", "keyword", "classes=", "python -m")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"encoder": "se_resnet50"},
            "gca cannot be put into --encoder se_resnet50: 16 of 16 blocks already have attention",
        ),
        ({"encoder": "tu-seresnet18"}, r"already have attention.*choose another --encoder, .*, or --attention none"),
        (
            {"encoder": "vgg11"},
            "cannot be put into --encoder vgg11: no known residual block in VGGEncoder; choose another",
        ),
        ({"encoder": "tu-regnety_002"}, "no residual block in TimmUniversalEncoder can be given attention"),
        (
            {"encoder": "resnet5"},
            r"no --encoder resnet5; encoders are those of segmentation-models-pytorch and.* resnet50",
        ),
        ({"encoder": "tu-resnet17"}, r"there is no --encoder tu-resnet17; .* tu-resnet1"),
        ({"groups": 3}, r"channels must be divisible by groups, got channels=64, --groups=3; choose --groups=1 or"),
        ({"reduction": 1000}, r"got --reduction=1000 for 32 channels; choose --reduction <= 32"),
        ({"arch": "Ynet", "attention": "none"}, "there is no --arch Ynet; choose gca-resunet or one of unet, "),
        (
            {"arch": "Segformer", "attention": "none", "encoder": "resnet18", "size": 33},
            r"cannot train --arch Segformer with --encoder resnet18 --size 33 --batch-size 2: .* divisible by 32",
        ),
        ({"batch_size": 1}, "--size 32 --batch-size 1: Expected more than 1 value per channel"),
        (
            {"arch": "DPT", "attention": "none", "encoder": "resnet18"},
            "cannot build --arch DPT with --encoder resnet18",
        ),
        (
            {"arch": "Unet", "attention": "none", "encoder": "resnet18", "encoder_weights": "imagnet"},
            r"cannot get --encoder-weights imagnet of resnet18: .*'imagenet'.*; leave the option out",
        ),
    ],
)
def test_networks_that_cannot_be_built(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message) as raised:
        build_model(isic(2018), replace(SETTINGS, **options))
    assert not any(word in str(raised.value) for word in PYTHON)
    assert len(str(raised.value)) < 500


def test_weights_are_downloaded_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda model, **_: loaded.append(model))
    build_model(isic(2018), SETTINGS)
    assert not loaded
    asked = replace(SETTINGS, encoder_weights="imagenet", identity_init=True)
    build_model(isic(2018), asked, pretrained=False)  # as a run that is resumed
    assert not loaded
    model = build_model(isic(2018), asked).eval()
    assert len(loaded) == 1
    images = torch.rand(1, 3, 32, 32)
    expected = model(images)
    assert torch.equal(gca.eject(model.encoder) and model(images), expected)  # type: ignore[operator, arg-type]


def test_without_internet_access(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("timm.models._builder.load_pretrained", fail)
    with pytest.raises(
        RunError, match=r"cannot get --encoder-weights imagenet of tu-resnet10t: Name .*internet access"
    ):
        build_model(isic(2018), replace(SETTINGS, encoder_weights="imagenet"))
