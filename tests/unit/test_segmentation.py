import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gca
from tests.conftest import randomize

SMALL = {"encoder": "tu-resnet10t"}  # BasicBlocks, for speed


@pytest.mark.parametrize(
    ("attention", "layer", "blocks"),
    [
        ("gca", gca.GroupedCoordinateAttention, 4),
        ("coord", gca.CoordinateAttention, 4),
        ("cbam", gca.CBAM, 4),
        ("se", gca.SE, 4),
        (None, None, 0),
    ],
)
def test_attention_by_name(attention: str | None, layer: type | None, blocks: int) -> None:
    model = gca.GCAResUNet(3, attention=attention, **SMALL)
    assert [type(placed) for placed in gca.injected(model).values()] == [layer] * blocks
    assert model(torch.randn(2, 3, 32, 64)).shape == (2, 3, 32, 64)


def test_is_the_decoder_of_the_paper() -> None:
    with torch.device("meta"):
        model = gca.GCAResUNet(9)
    convs = [module for module in model.decoder.modules() if isinstance(module, torch.nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [512, 512, 256, 256, 128, 128, 64, 64, 64, 64]
    assert {conv.kernel_size for conv in convs} == {(3, 3)}
    assert not [module for module in model.decoder.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {block.interpolation_mode for block in model.decoder.blocks} == {"bilinear"}
    head = [module for module in model.segmentation_head if isinstance(module, torch.nn.Conv2d)]
    assert [(conv.kernel_size, conv.out_channels) for conv in head] == [((1, 1), 9)]
    assert len(gca.injected(model)) == 16


@pytest.mark.parametrize("attention", ["gca", "coord", "cbam", "se", None])
def test_round_trip_is_bit_for_bit(tmp_path: Path, attention: str | None) -> None:
    options = {"gca": {"groups": 4, "pool": "max"}, "se": {"reduction": 8}}.get(attention or "")
    model = gca.GCAResUNet(
        3,
        1,
        attention=attention,
        attention_options=options,
        decoder_channels=(64, 32, 16, 8, 8),
        activation="softmax2d",
        **SMALL,
    )
    randomize(model).eval().save_pretrained(tmp_path)
    loaded = gca.GCAResUNet.from_pretrained(tmp_path).eval()
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in model.state_dict().items())
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(loaded(x), model(x))
    assert repr(loaded) == repr(model)
    assert (tmp_path / "model.safetensors").is_file()
    assert "gca.GCAResUNet.from_pretrained" in (tmp_path / "README.md").read_text()


def test_loading_downloads_no_encoder_weights(tmp_path: Path) -> None:
    gca.GCAResUNet(3, **SMALL).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["encoder_weights"] = "no-such-weights"  # asking for them would fail
    (tmp_path / "config.json").write_text(json.dumps(config))
    gca.GCAResUNet.from_pretrained(tmp_path)


def test_a_checkpoint_without_attention_is_not_loaded_silently(tmp_path: Path) -> None:
    gca.eject(gca.GCAResUNet(3, **SMALL)).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"Missing key.*\.se\.conv1\.weight"):
        gca.GCAResUNet.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"attention": "gcaa"}, ValueError, "did you mean 'gca'?"),
        ({"attention_options": {"group": 2}}, TypeError, "unexpected keyword argument 'group'"),
        ({"attention": None, "attention_options": {"groups": 2}}, ValueError, "attention_options need an attention"),
        ({"encoder": "vgg11"}, ValueError, "no known residual block in VGGEncoder"),
        ({"encoder": "tu-regnetx_002"}, ValueError, r"regnet\.Bottleneck: its own SE comes before conv3"),
    ],
)
def test_bad_arguments(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gca.GCAResUNet(3, **{**SMALL, **options})


@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18", "tu-dla34", "tu-resnetv2_18"])
def test_encoders_of_other_families(encoder: str, tmp_path: Path) -> None:
    model = gca.GCAResUNet(3, **{**SMALL, "encoder": encoder}).eval()
    assert len(gca.injected(model)) == (12 if encoder == "tu-dla34" else 8)
    model.save_pretrained(tmp_path)
    loaded = gca.GCAResUNet.from_pretrained(tmp_path).eval()
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded(x), model(x))


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_import_loads_neither_timm_nor_smp() -> None:
    heavy = ("timm", "torchvision", "segmentation_models_pytorch")
    assert run_python(f"import sys, gca; print([name for name in {heavy} if name in sys.modules])") == "[]"


def test_without_smp_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['segmentation_models_pytorch'] = None; import gca\n"
        "try: gca.GCAResUNet\nexcept ImportError as error: print(error)"
    )
    assert run_python(code) == 'gca.GCAResUNet needs segmentation-models-pytorch: pip install "gca-attn[seg]"'


def test_public_names() -> None:
    assert all(hasattr(gca, name) for name in gca.__all__)
    assert set(gca.__all__) <= set(dir(gca))
    with pytest.raises(AttributeError, match="module 'gca' has no attribute 'nothing'"):
        gca.nothing  # noqa: B018
