"""Every family of residual blocks: the right point, the same bits, the same keys, and back again."""

import contextlib
import copy
import io
import warnings
from collections.abc import Callable

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn

import gca
from gca.blocks import find_blocks, requested
from gca.families import FAMILIES, REFUSED, qualified
from tests.conftest import randomize
from tests.models import NETWORKS, VOLUMES

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
VIDEOS = torch.randn(2, 3, 16, 16, 16, generator=torch.Generator().manual_seed(0))
EVERY = NETWORKS | VOLUMES

# Which module's output must reach the slot: written down once more, apart from the table under test.
LAST = {
    "timm.models.resnet.Bottleneck": "bn3",
    "timm.models.resnet.BasicBlock": "bn2",
    "timm_3d.models.resnet.Bottleneck": "bn3",
    "timm_3d.models.resnet.BasicBlock": "bn2",
    "timm.models.res2net.Bottle2neck": "bn3",
    "timm.models.sknet.SelectiveKernelBottleneck": "conv3.bn",
    "timm.models.sknet.SelectiveKernelBasic": "conv2.bn",
    "timm.models.resnest.ResNestBottleneck": "bn3",
    "timm.models.resnetv2.PreActBottleneck": "conv3",
    "timm.models.resnetv2.PreActBasic": "conv2",
    "timm.models.resnetv2.Bottleneck": "norm3",
    "timm.models.senet.Bottleneck": "bn3",
    "timm.models.senet.SEResNetBlock": "relu",
    "timm.models.byobnet.BottleneckBlock": "conv3_1x1.bn",
    "timm.models.byobnet.BasicBlock": "conv2_kxk.bn",
    "timm.models.byobnet.DarkBlock": "conv2_kxk.bn",
    "timm.models.byobnet.EdgeBlock": "conv2_1x1.bn",
    "timm.models.byobnet.SelfAttnBlock": "conv3_1x1.bn",
    "timm.models.cspnet.BottleneckBlock": "conv3.bn",
    "timm.models.tresnet.BasicBlock": "conv2.bn",
    "timm.models.dla.DlaBasic": "bn2",
    "timm.models.dla.DlaBottleneck": "bn3",
    "timm.models.dla.DlaBottle2neck": "bn3",
    "timm.models._efficientnet_blocks.InvertedResidual": "bn3",
    "timm.models._efficientnet_blocks.DepthwiseSeparableConv": "bn2",
    "timm.models._efficientnet_blocks.EdgeResidual": "bn2",
    "timm.models._efficientnet_blocks.UniversalInvertedResidual": "dw_end",
    "timm.models._efficientnet_blocks.ConvBnAct": "bn1",
    "torchvision.models.resnet.Bottleneck": "bn3",
    "torchvision.models.resnet.BasicBlock": "bn2",
    "torchvision.models.mobilenetv2.InvertedResidual": "conv",
    "torchvision.models.mobilenetv3.InvertedResidual": "block",
    "torchvision.models.efficientnet.MBConv": "block",
    "torchvision.models.efficientnet.FusedMBConv": "block",
    "torchvision.models.mnasnet._InvertedResidual": "layers.7",
    "segmentation_models_pytorch.encoders._senet.Bottleneck": "bn3",
    "segmentation_models_pytorch.encoders._efficientnet.MBConvBlock": "_bn2",
    "segmentation_models_pytorch.decoders.unet.decoder.UnetDecoderBlock": "conv2",
    "segmentation_models_pytorch.decoders.unetplusplus.decoder.DecoderBlock": "conv2",
    "monai.networks.nets.resnet.ResNetBottleneck": "bn3",
    "monai.networks.nets.resnet.ResNetBlock": "bn2",
    "monai.networks.blocks.squeeze_and_excitation.SEBlock": "conv3.adn.N",
    "monai.networks.blocks.segresnet_block.ResBlock": "conv2",
    "monai.networks.nets.segresnet_ds.SegResBlock": "conv2",
    "monai.networks.blocks.dynunet_block.UnetResBlock": "norm2",
    "monai.networks.blocks.convolutions.ResidualUnit": "conv",
    "torchvision.models.video.resnet.BasicBlock": "conv2",
    "torchvision.models.video.resnet.Bottleneck": "conv3",
    "transformers.models.rt_detr.modeling_rt_detr_resnet.RTDetrResNetBottleNeckLayer": "layer.2.normalization",
    "transformers.models.rt_detr.modeling_rt_detr_resnet.RTDetrResNetBasicLayer": "layer.1.normalization",
    "transformers.models.bit.modeling_bit.BitPreActivationBottleneckLayer": "conv3",
    "transformers.models.bit.modeling_bit.BitBottleneckLayer": "norm3",
    "transformers.models.resnet.modeling_resnet.ResNetBottleNeckLayer": "layer.2.normalization",
    "transformers.models.resnet.modeling_resnet.ResNetBasicLayer": "layer.1.normalization",
}

NNUNET = {name for name in FAMILIES if name.startswith("dynamic_network_architectures.")}  # see test_nnunet_blocks.py


def family_name(block: nn.Module) -> str:
    return next(qualified(cls) for cls in type(block).__mro__ if qualified(cls) in FAMILIES)


@pytest.fixture(params=EVERY)
def network(request: pytest.FixtureRequest) -> nn.Module:
    return randomize(EVERY[request.param][0]()).eval()


def what_it_takes(model: nn.Module) -> torch.Tensor:
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Conv3d))
    return VIDEOS if isinstance(first, nn.Conv3d) else IMAGES


def structure(model: nn.Module) -> list[object]:
    """Everything about modules that can be seen: classes, attributes, children, modes, and what is trainable."""
    return [
        (name, type(module), sorted(vars(module)), list(module._modules.items()), module.training)
        for name, module in model.named_modules()
    ] + [(name, parameter.requires_grad) for name, parameter in model.named_parameters()]


def run(model: nn.Module, state: dict[str, torch.Tensor], training: bool) -> list[torch.Tensor]:
    """Output and buffers after one forward pass from a given state, with the same random numbers every time."""
    model.load_state_dict(state, strict=False)
    model.train(training)
    torch.manual_seed(1)
    with torch.no_grad():
        output = model(what_it_takes(model))
    return [output, *(value for name, value in model.named_buffers() if name in state)]


def test_every_network_starts_bit_for_bit_and_comes_back(network: nn.Module) -> None:
    state = copy.deepcopy(network.state_dict())
    before = structure(network)
    expected = {training: copy.deepcopy(run(network, state, training)) for training in (False, True)}
    network.eval()

    for layer in ("gca", "coord", "cbam", "se"):
        # Stacking leaves in place what SE-ResNets have, so nothing may change for them either.
        gca.inject(network, layer, reduction=2, identity_init=True, on_existing="stack")
        placed = gca.injected(network)
        names = [n for n, m in network.named_modules(remove_duplicate=False) if m in placed.values()]  # DynUNet has two
        new = {f"{name}.{key}" for name in names for key in network.get_submodule(name).state_dict()}
        assert placed.keys() <= set(names)
        assert network.state_dict().keys() == state.keys() | new
        assert not new & state.keys()
        for training in (False, True):
            for actual, wanted in zip(run(network, state, training), expected[training], strict=True):
                assert torch.equal(actual, wanted)
        gca.eject(network)
        network.eval()
        network.load_state_dict(state)
        assert structure(network) == before
        assert torch.equal(run(network, state, False)[0], expected[False][0])


def test_every_block_is_found() -> None:
    seen = set()
    for name, (build, blocks) in EVERY.items():
        with torch.device("meta"):
            model = build()
        gca.inject(model, "se", reduction=2, on_existing="replace")
        assert len(gca.injected(model)) == blocks, name
        seen |= {family_name(block.module) for block in find_blocks(model)}
    assert seen | {"timm.models.tresnet.BasicBlock"} == FAMILIES.keys() - NNUNET  # tresnet has a test of its own


class Spy(nn.Module):
    """Keeps its input and returns zeros."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.input = x.clone()
        return torch.zeros_like(x)


def check_position(model: nn.Module, where: Callable[[str, nn.Module], bool] | None = None) -> None:
    """A layer that returns zeros must do what zeros from the last norm do, and see what that norm gave."""
    silenced = copy.deepcopy(model)
    chosen = [
        b
        for b in find_blocks(silenced)
        if b.family and requested(silenced, b) and (where is None or where(b.name, b.module))
    ]
    for block in chosen:
        last = block.module.get_submodule(LAST[family_name(block.module)])
        last.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    given: dict[str, torch.Tensor] = {}
    for block in find_blocks(model):
        if block.family:
            last = block.module.get_submodule(LAST[family_name(block.module)])
            last.register_forward_hook(lambda _, __, out, name=block.layer_name: given.__setitem__(name, out.clone()))
    gca.inject(model, Spy, where=where, on_existing="replace")
    with torch.no_grad():
        assert torch.equal(model(what_it_takes(model)), silenced(what_it_takes(model)))
    for name, spy in gca.injected(model).items():
        assert torch.equal(spy.input, given[name]), name
        assert spy.channels == spy.input.shape[1]


# A block of legacy_seresnet18 calls its only ReLU three times: a hook could not tell the second call from the others.
@pytest.mark.parametrize("network", [name for name in EVERY if name != "legacy_seresnet18"], indirect=True)
def test_attention_stands_after_the_last_norm_and_before_the_sum(network: nn.Module) -> None:
    check_position(network)


def test_position_in_legacy_se_basic_blocks() -> None:
    """The slot follows the ReLU after bn2 there: timm keeps that order for the sake of its weights."""
    block = randomize(timm.models.senet.SEResNetBlock(8, 8, groups=1, reduction=2)).eval()
    gca.inject(block, Spy, on_existing="replace")
    x = torch.randn(1, 8, 5, 5)
    assert torch.equal(block(x), x.relu())
    normed = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x)))))
    torch.testing.assert_close(gca.injected(block)["se_module"].input, normed.relu())


def test_position_in_tresnet() -> None:
    model = randomize(timm.create_model("tresnet_m", num_classes=10)).eval()
    check_position(model, where=lambda name, block: type(block).__name__ == "BasicBlock")
    assert len(gca.injected(model)) == 7


def test_the_test_knows_every_family() -> None:
    assert LAST.keys() == FAMILIES.keys() - NNUNET


# The whole of timm: module -> (model, blocks) for each of its families with residual blocks that can be injected.
TIMM = {
    "byoanet": ("botnet26t_256", 8),
    "byobnet": ("resnet33ts", 10),
    "cspnet": ("cspresnext50", 13),
    "dla": ("dla60", 16),
    "efficientnet": ("efficientnet_b0", 9),
    "hardcorenas": ("hardcorenas_a", 5),
    "hrnet": ("hrnet_w18", 112),
    "mobilevit": ("mobilevit_xxs", 7),
    "mobilenetv3": ("mobilenetv3_large_100", 10),
    "mobilenetv5": ("mobilenetv5_300m", 47),
    "res2net": ("res2next50", 16),
    "resnest": ("resnest50d", 16),
    "resnet": ("resnet50", 16),
    "resnetv2": ("resnetv2_50x1_bit", 16),
    "senet": ("legacy_senet154", 50),
    "sknet": ("skresnext50_32x4d", 16),
    "vision_transformer_hybrid": ("vit_small_r26_s32_224", 8),
}
VARIANTS = {
    "resnet34": 16,
    "resnet50d": 16,
    "wide_resnet50_2": 16,
    "resnetrs50": 16,
    "resnetaa50": 16,
    "seresnet50": 16,
    "ecaresnet50t": 16,
    "resnet51q": 16,
    "resnet50_clip": 16,
    "gernet_m": 14,
    "regnetz_b16": 22,
    "halonet26t": 8,
    "dla102x": 28,
    "resnest50d_4s2x40d": 16,
    "resnetv2_50d_gn": 16,
    "vit_base_resnet50d_224": 16,
    "cs3sedarknet_xdw": 25,
    "mobilenetv2_100": 10,
    "mobilenetv4_conv_small": 10,
    "mnasnet_100": 10,
    "efficientnetv2_rw_t": 34,
}
NEAR = {
    "regnetx_002": r"timm.models.regnet.Bottleneck: its own SE comes before conv3",
    "regnetv_040": r"timm.models.regnet.PreBottleneck: its own SE comes before conv3",
    "tresnet_m": r"14 of 21 blocks .*timm.models.tresnet.Bottleneck: its own SE .*with where=.*'body.layer3.0'",
    "nfnet_f0": r"timm.models.nfnet.NormFreeBlock: it has no norm",
    "cs3darknet_m": r"timm.models.cspnet.DarkBlock: an activation stands between its last norm and the residual sum",
    "cs3edgenet_x": r"timm.models.cspnet.EdgeBlock: an activation",
    "hgnetv2_b0": r"timm.models.hgnet.HighPerfGpuBlock: an activation",
    "eca_vovnet39b": r"timm.models.vovnet.OsaBlock: an activation",
    "repvgg_a0": r"timm.models.byobnet.RepVggBlock: its parallel branches .* fuse",
    "mobileone_s0": r"timm.models.byobnet.MobileOneBlock: its parallel branches .* fuse",
    "dpn68": r"timm.models.dpn.DualPathBlock: only a part of its output is added",
}


# segmentation-models-pytorch takes timm's networks with features_only, which renames and regroups their modules.
TU_ENCODERS = {
    "resnet33ts": 10,
    "cspresnext50": 13,
    "dla34": 12,
    "hrnet_w18_small": 23,
    "res2next50": 16,
    "resnest50d": 16,
    "seresnet18": 8,
    "resnetv2_50x1_bit": 16,
    "legacy_seresnet18": 8,
    "skresnext50_32x4d": 16,
    "gernet_m": 14,
    "botnet26t_256": 8,
    "efficientnet_b0": 9,
    "mobilenetv3_large_100": 10,
}


def on_meta(name: str) -> nn.Module:
    device = "cpu" if name.startswith(("regnetv", "regnetx", "csatv2")) else "meta"  # timm 1.0.23 needs values
    with torch.device(device), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return timm.create_model(name)


@pytest.mark.parametrize(("name", "blocks"), [*TIMM.values(), *VARIANTS.items()])
def test_timm_models_are_injected(name: str, blocks: int) -> None:
    model = on_meta(name)
    keys = model.state_dict().keys()
    gca.inject(model, "se", reduction=1, on_existing="stack")
    assert len(gca.injected(model)) == blocks
    assert keys <= model.state_dict().keys()
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize(("name", "message"), NEAR.items())
def test_blocks_with_no_right_point_are_refused_by_name(name: str, message: str) -> None:
    model = on_meta(name)
    before = structure(model)
    with pytest.raises(ValueError, match=message):
        gca.inject(model, "se")
    assert structure(model) == before
    assert {type(b.module).__module__ for b in find_blocks(model) if b.refusal} <= {
        key.rpartition(".")[0] for key in REFUSED
    }


def test_one_model_of_every_other_timm_family_is_refused() -> None:
    first = {timm.model_entrypoint(name).__module__.rpartition(".")[2]: name for name in reversed(timm.list_models())}
    assert first.keys() >= TIMM.keys()
    for family in first.keys() - TIMM.keys():
        with pytest.raises(
            ValueError, match=r"no known residual block in \w+; |cannot be given|can be given attention: "
        ):
            gca.inject(on_meta(first[family]), "se", reduction=1)


@pytest.mark.parametrize(("name", "blocks"), TU_ENCODERS.items())
def test_encoders_of_segmentation_models_pytorch_that_come_from_timm(name: str, blocks: int) -> None:
    with torch.device("meta"):
        model = smp.Unet(f"tu-{name}", encoder_weights=None)
    keys = model.state_dict().keys()
    gca.inject(model, "se", reduction=1, on_existing="stack")
    assert len(gca.injected(model)) == blocks
    assert all(layer.startswith("encoder.model.") for layer in gca.injected(model))
    assert keys <= model.state_dict().keys()
    assert {block.stage for block in find_blocks(model)} - {None} <= set(range(1, 8))


def assert_identity(model: nn.Module) -> None:
    for layer in gca.injected(model).values():
        x = torch.randn(1, layer.channels, 4, 4)
        assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize("layer", ["gca", "coord", "cbam", "se"])
@pytest.mark.parametrize("name", ["resnet14t", "resnetv2_18"])
def test_identity_survives_init_weights(name: str, layer: str) -> None:
    model = gca.inject(NETWORKS[name][0](), layer, identity_init=True)
    model.init_weights()
    assert_identity(model)


def test_identity_survives_init_weights_of_the_blocks_of_byobnet() -> None:
    model = gca.inject(NETWORKS["seresnext26ts"][0](), identity_init=True)
    for layer in gca.injected(model).values():
        nn.init.ones_(layer.conv2.weight)
    for block in find_blocks(model):
        block.module.init_weights()
    assert_identity(model)


def test_identity_can_be_restored_where_init_weights_knows_nothing_of_it() -> None:
    model = gca.inject(NETWORKS["hrnet_w18_small"][0](), identity_init=True)
    model.init_weights()
    for layer in gca.injected(model).values():
        layer.zero_init_last()
    assert_identity(model)


def test_sub_classes_of_blocks_without_a_slot_are_refused() -> None:
    import torchvision

    class Mine(torchvision.models.resnet.BasicBlock):
        pass

    message = r"Mine: it inherits its forward from torchvision.models.resnet.BasicBlock, which has no slot"
    with pytest.raises(ValueError, match=message):
        gca.inject(Mine(8, 8))


def test_one_dimensional_and_quantized_blocks_are_refused() -> None:
    from monai.networks.nets import resnet
    from torchvision.models.quantization import resnet18

    model = resnet.ResNet("basic", [1, 1, 1, 1], [4, 8, 8, 8], spatial_dims=1)
    with pytest.raises(ValueError, match=r"images and volumes, but block 'layer1.0' .* shape \(4, 4, 3\)"):
        gca.inject(model)
    with pytest.raises(ValueError, match="QuantizableBasicBlock: it is built for quantization"):
        gca.inject(resnet18(quantize=False))
    assert gca.injected(model) == {}


@pytest.mark.parametrize("name", ["deeplabv3_resnet50", "fcn_resnet50", "maskrcnn_resnet50_fpn"])
def test_inside_torchvision_segmentation_and_detection(name: str) -> None:
    """Mask R-CNN freezes its batch norms into FrozenBatchNorm2d."""
    import torchvision

    model = torchvision.models.get_model(name, weights=None, weights_backbone=None).eval()
    keys = model.state_dict().keys()
    images = [torch.rand(3, 64, 64)] if "rcnn" in name else torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = model(images)
        gca.inject(model, identity_init=True)
        assert len(gca.injected(model)) == 16
        assert keys <= model.state_dict().keys()
        after = model(images)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
