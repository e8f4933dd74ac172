"""What holds beyond the right point in each family: shortcuts, decoders, stages, copies, foreign layers, errors."""

import contextlib
import copy
import importlib.util
import io
import pickle
from collections.abc import Callable, Iterator

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from monai.networks.blocks import squeeze_and_excitation as monai_se
from timm.layers import EcaModule, GatherExcite, GlobalContext, get_attn
from torch import nn

import gca
from gca.blocks import find_blocks
from gca.families import FAMILIES
from tests.conftest import randomize
from tests.models import NETWORKS, VOLUMES
from tests.unit.test_families import IMAGES, NNUNET, family_name, structure


def one_block_of_every_class() -> Iterator[tuple[str, nn.Module, torch.Tensor]]:
    """Class, a block of it and an input for it, of every class that needs a sub-class for its slot."""
    seen: set[str] = set()
    for build, _ in (NETWORKS | VOLUMES).values():
        with torch.device("meta"):
            meta = build()
        new = {family_name(b.module): b.name for b in find_blocks(meta) if b.family and b.family.slotted}
        if new.keys() - seen:
            network = randomize(build()).eval()
            for name in new.keys() - seen:
                block = network.get_submodule(new[name])
                conv = next(m for m in block.modules() if isinstance(m, nn.Conv2d | nn.Conv3d))
                yield name, block, torch.randn(2, conv.in_channels, *[8] * (conv.weight.ndim - 2))
        seen |= new.keys()


def unpickled(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))  # noqa: S301


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
def test_blocks_stay_blocks_when_copied_pickled_traced_and_scripted() -> None:
    """Every sub-class with a slot survives what its parent survives."""
    survived = {convert: set() for convert in (copy.deepcopy, unpickled, torch.fx.symbolic_trace, torch.jit.script)}
    for name, block, x in one_block_of_every_class():
        parent = copy.deepcopy(block)
        wanted = gca.inject(block, "se", reduction=2)(x)
        wanted.sum().backward()  # past sums in place
        assert all(p.grad is not None for layer in gca.injected(block).values() for p in layer.parameters())
        for convert, names in survived.items():
            with contextlib.redirect_stderr(io.StringIO()):  # torch.fx prints where it fails
                try:
                    convert(parent)(x)
                except Exception:
                    continue
            torch.testing.assert_close(convert(block)(x), wanted, msg=f"{name}: {convert.__name__}")
            names.add(name)
    slotted = {name for name, family in FAMILIES.items() if family.slotted} - NNUNET
    assert survived[copy.deepcopy] == survived[unpickled] == slotted
    assert len(survived[torch.jit.script]) > len(slotted) / 2  # depends on the releases of the other libraries
    untraced = slotted - survived[torch.fx.symbolic_trace]
    assert {name.split(".")[-1] for name in untraced} <= {"DlaBasic", "DlaBottleneck", "DlaBottle2neck", "MBConvBlock"}


# Network -> its insertion points among blocks of the class in the third column.
SHORTCUTS: dict[str, tuple[Callable[[], nn.Module], int, str]] = {
    "timm": (lambda: timm.create_model("mobilenetv3_small_050"), 7, "has_skip"),
    "torchvision 2": (torchvision.models.mobilenet_v2, 10, "use_res_connect"),
    "torchvision 3": (torchvision.models.mobilenet_v3_small, 6, "use_res_connect"),
    "torchvision efficientnet": (torchvision.models.efficientnet_v2_s, 35, "use_res_connect"),
    "torchvision mnasnet": (torchvision.models.mnasnet0_5, 10, "apply_residual"),
    "smp": (lambda: smp.Unet("efficientnet-b0", encoder_weights=None), 9, "_has_drop_connect"),
}


@pytest.mark.parametrize("name", SHORTCUTS)
def test_blocks_without_a_shortcut_are_passed_by(name: str) -> None:
    build, expected, flag = SHORTCUTS[name]
    with torch.device("meta"):
        model = build()
    without = {name: type(m) for name, m in model.named_modules() if getattr(m, flag, True) is False}
    assert without
    gca.inject(model, "se", reduction=1)
    slots = gca.injected(model)
    assert len(slots) == expected
    assert all(getattr(model.get_submodule(slot.rpartition(".")[0]), flag) for slot in slots)
    assert {name: type(model.get_submodule(name)) for name in without} == without


def test_a_block_without_a_shortcut_alone_is_no_known_block() -> None:
    block = torchvision.models.mobilenetv2.InvertedResidual(8, 16, 1, 2)
    with pytest.raises(ValueError, match="no known residual block in InvertedResidual"):
        gca.inject(block)


def test_stages_of_inverted_residuals_count_from_one() -> None:
    with torch.device("meta"):
        model = timm.create_model("mobilenetv2_100")
        flat = torchvision.models.mobilenet_v2()
    gca.inject(model, "se", stages=2)
    assert list(gca.injected(model)) == ["blocks.1.1.attention"]
    assert {block.stage for block in find_blocks(model)} == {2, 3, 4, 5, 6}  # stages 1 and 7 are blocks of one
    assert {block.stage for block in find_blocks(flat)} == {None}


def test_convolutions_of_several_sizes_side_by_side_are_refused() -> None:
    """The last convolution of a MixNet is split over kernel sizes: its channels are not those of any one weight."""
    with torch.device("meta"):
        model = timm.create_model("mixnet_s")
    with pytest.raises(ValueError, match=r"block 'blocks.1.1' ends in .*: a quantized or packed one, or several side"):
        gca.inject(model, "se")
    assert gca.injected(model) == {}


@pytest.mark.parametrize("kind", ["SEBottleneck", "SEResNetBottleneck", "SEResNeXtBottleneck"])
def test_se_blocks_of_monai(kind: str) -> None:
    block = getattr(monai_se, kind)(spatial_dims=2, inplanes=64, planes=16, groups=1, reduction=4).eval()
    se, before = block.se_layer, structure(block)
    with pytest.raises(ValueError, match="1 of 1 blocks already have attention, the first is se_layer: ChannelSELayer"):
        gca.inject(block)
    assert gca.injected(gca.inject(block, on_existing="skip")) == {}
    gca.inject(block, on_existing="stack")
    assert list(gca.injected(block)) == ["se_layer.stacked"]
    gca.inject(gca.eject(block), on_existing="replace")
    assert list(gca.injected(block)) == ["se_layer"]
    assert gca.eject(block).se_layer is se
    assert structure(block) == before


class TestDecoders:
    @pytest.fixture(params=["Unet", "UnetPlusPlus"])
    def network(self, request: pytest.FixtureRequest) -> nn.Module:
        options = {"encoder_weights": None, "encoder_depth": 3, "decoder_channels": (32, 16, 16)}
        return randomize(getattr(smp, request.param)("resnet18", **options)).eval()

    def test_are_left_alone_with_the_whole_network(self, network: nn.Module) -> None:
        gca.inject(network)
        assert len(gca.injected(network)) == 8
        assert all(name.startswith("encoder.") for name in gca.injected(network))
        assert "8 of 8" in gca.summary(network).splitlines()[-1]

    def test_are_injected_on_request_and_ejected_with_the_whole_network(self, network: nn.Module) -> None:
        before, keys = structure(network), network.state_dict().keys()
        with torch.no_grad():
            expected = network(IMAGES)
            gca.inject(network.decoder, "cbam", reduction=2, identity_init=True)
            names = gca.injected(network)
            assert len(names) == (3 if isinstance(network, smp.Unet) else 4)
            assert all(name.startswith("decoder.blocks.") and name.endswith(".attention2") for name in names)
            assert torch.equal(network(IMAGES), expected)
        assert keys < network.state_dict().keys()
        assert f"CBAM       {len(names)} of {len(names)}" in gca.summary(network)
        gca.inject(network, "se")  # the encoder still can be; the decoder is not in its way
        assert len(gca.injected(network)) == len(names) + 8
        gca.eject(network)
        assert structure(network) == before

    def test_one_block_alone(self, network: nn.Module) -> None:
        block = next(b.module for b in find_blocks(network) if b.family and b.family.on_request)
        gca.inject(block, "se", reduction=2)
        assert list(gca.injected(block)) == ["attention2"]
        assert len(gca.injected(network)) == 1

    def test_scse_counts_as_occupied(self) -> None:
        network = smp.Unet("resnet18", encoder_weights=None, decoder_attention_type="scse")
        before = structure(network)
        with pytest.raises(ValueError, match=r"5 of 5 blocks already .* blocks.0.attention2: Attention"):
            gca.inject(network.decoder)
        for policy in ("replace", "stack"):
            gca.inject(network.decoder, "se", reduction=2, on_existing=policy)
            assert len(gca.injected(network)) == 5
            gca.eject(network)
            assert structure(network) == before

    def test_around_an_unknown_encoder_the_error_tells_the_way(self) -> None:
        with torch.device("meta"):
            network = smp.Unet("vgg11", encoder_weights=None)
        message = r"no known residual block in Unet; .*; a decoder is injected only if .* of 'decoder.blocks.0'"
        with pytest.raises(ValueError, match=message):
            gca.inject(network)
        assert len(gca.injected(gca.inject(network.decoder))) == 5


COORD = ["coord"] if importlib.util.find_spec("timm.layers.coord_attn") else []  # since timm 1.0.23


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        (EcaModule, {}),
        (GlobalContext, {"fuse_add": True}),
        (GatherExcite, {"use_mlp": False}),
        *((get_attn(name), {}) for name in ("cbam", "lcbam", *COORD, "ceca", "se", "ese")),
    ],
)
def test_attention_modules_of_timm(layer: type[nn.Module], options: dict[str, bool]) -> None:
    model = NETWORKS["resnet14t"][0]()
    before = structure(model)
    gca.inject(model, layer, **options)
    assert [type(placed) for placed in gca.injected(model).values()] == [layer] * 4
    model(IMAGES).sum().backward()
    assert all(p.grad is not None for placed in gca.injected(model).values() for p in placed.parameters())
    assert structure(gca.eject(model)) == before


class Mixer(nn.Sequential):
    """A composite module that does not call itself a block."""


class Whole(nn.Sequential):
    """A composite module that holds others."""


def test_an_unknown_network_is_described_by_its_most_frequent_parts() -> None:
    mixers = [Whole(*[Mixer(nn.Linear(2, 2)) for _ in range(3)]) for _ in range(2)]
    parts = r"its most frequent parts are \S+\.Mixer \(6\), \S+\.Whole \(2\); known are blocks with a shortcut of timm"
    with pytest.raises(ValueError, match=parts):
        gca.inject(nn.Sequential(*mixers, nn.Sequential(nn.ReLU())))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "convnext_atto",
            r"timm.models.convnext.ConvNeXtBlock \(12\), timm.layers.mlp.Mlp \(12\), \S+Stage \(4\); known",
        ),
        ("lcnet_050", r"_efficientnet_blocks.DepthwiseSeparableConv \(13\), .*; known are blocks with a shortcut"),
    ],
)
def test_networks_of_timm_without_known_blocks(name: str, parts: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(ValueError, match=parts):
        gca.inject(model)


REFUSED_ELSEWHERE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "smp dpn": (lambda: smp.Unet("dpn68", encoder_weights=None), r"_dpn.DualPathBlock: only a part"),
    "smp mobileone": (lambda: smp.Unet("mobileone_s0", encoder_weights=None), r"MobileOneBlock: its parallel branches"),
    "smp xception": (lambda: smp.Unet("xception", encoder_weights=None), r"_xception.Block: where it strides"),
    "timm xception": (lambda: timm.create_model("legacy_xception"), r"xception.Block: where it strides"),
    "timm condconv": (lambda: timm.create_model("tf_efficientnet_cc_b0_4e"), r"8 of 12 .*CondConvResidual: each image"),
    "shufflenet": (torchvision.models.shufflenet_v2_x0_5, r"shufflenetv2.InvertedResidual: its branches are concat"),
    "quantizable": (
        lambda: torchvision.models.quantization.mobilenet_v2(quantize=False),
        r"QuantizableInvertedResidual: it is built for quantization",
    ),
    "quantizable 3": (
        lambda: torchvision.models.quantization.mobilenet_v3_large(quantize=False),
        r"mobilenetv3.QuantizableInvertedResidual: it is built for quantization",
    ),
    "transformers regnet y": (lambda: _regnet("y"), r"RegNetYLayer: attention stands before its last convolution"),
    "transformers regnet x": (lambda: _regnet("x"), r"RegNetXLayer: attention stands before its last convolution"),
}


def _regnet(kind: str) -> nn.Module:
    import transformers

    config = transformers.RegNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], groups_width=4, layer_type=kind
    )
    return transformers.RegNetModel(config)


@pytest.mark.parametrize("name", REFUSED_ELSEWHERE)
def test_lookalikes_of_other_libraries_are_refused_by_name(name: str) -> None:
    build, message = REFUSED_ELSEWHERE[name]
    with torch.device("meta"):
        model = build()
    with pytest.raises(ValueError, match=message):
        gca.inject(model, "se")
    assert gca.injected(model) == {}
