"""The residual blocks of nnU-Net's networks: the right point, the same bits, the same keys, and back again."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import gca
from gca.blocks import find_blocks
from gca.families import FAMILIES
from tests.conftest import randomize

WHY = 'needs nnU-Net: pip install "gca-attn[nnunet]", in an environment of its own'
unet = pytest.importorskip("dynamic_network_architectures.architectures.unet", reason=WHY)
encoders = pytest.importorskip("dynamic_network_architectures.building_blocks.residual_encoders", reason=WHY)

JIT = pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
TRACE = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of instance norm
OPERATORS = {2: (nn.Conv2d, nn.InstanceNorm2d), 3: (nn.Conv3d, nn.InstanceNorm3d)}
SIZES = {2: (2, 1, 32, 24), 3: (2, 1, 16, 12, 8)}
LAST = {"BasicBlockD": "conv2", "BottleneckD": "conv3"}  # a convolution and its norm
SHAPE = {"n_stages": 3, "features_per_stage": [8, 16, 24], "kernel_sizes": 3, "strides": [1, 2, 2]}


def arguments(dims: int) -> dict[str, object]:
    conv, norm = OPERATORS[dims]
    options = {"conv_op": conv, "norm_op": norm, "norm_op_kwargs": {"affine": True}, "conv_bias": True}
    return {**SHAPE, **options, "input_channels": 1, "nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}}


def build(network: str, block: str, dims: int, **options: object) -> nn.Module:
    options = {"n_blocks_per_stage": [1, 2, 1], "block": getattr(encoders, block), **arguments(dims), **options}
    if block == "BottleneckD":
        options["bottleneck_channels"] = [4, 8, 8]
    if network == "ResidualEncoder":
        return encoders.ResidualEncoder(**options)
    return getattr(unet, network)(num_classes=2, n_conv_per_stage_decoder=1, **options)


# name -> how to build it, residual blocks in it
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    f"{network} {block} {dims}-D": (lambda n=network, b=block, d=dims, o=options: build(n, b, d, **o), blocks, dims)
    for dims in OPERATORS
    for block in LAST
    for network, blocks, options in (
        ("ResidualEncoderUNet", 4, {}),
        ("ResidualUNet", 6, {}),
        ("ResidualEncoder", 4, {"stochastic_depth_p": 0.5}),
    )
}


@pytest.fixture(params=NETWORKS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def images(name: str) -> torch.Tensor:
    return torch.randn(SIZES[NETWORKS[name][2]])


@pytest.fixture
def network(name: str) -> nn.Module:
    return randomize(NETWORKS[name][0]()).eval()


def output(model: nn.Module, images: torch.Tensor, training: bool = False) -> torch.Tensor:
    """With the same random numbers every time, which drop paths."""
    torch.manual_seed(1)
    with torch.no_grad():
        return model.train(training)(images)


def structure(model: nn.Module) -> list[object]:
    return [(name, type(module), sorted(vars(module)), list(module._modules)) for name, module in model.named_modules()]


def test_the_table_of_families_is_tested_here() -> None:
    ours = {name.rpartition(".")[2] for name in FAMILIES if name.startswith("dynamic_network_architectures.")}
    assert ours == LAST.keys()


def test_every_network_starts_bit_for_bit_and_comes_back(name: str, network: nn.Module, images: torch.Tensor) -> None:
    before, keys = structure(network), list(network.state_dict())
    expected = {training: output(network, images, training) for training in (False, True)}
    for layer in ("gca", "coord", "cbam", "se"):
        gca.inject(network, layer, reduction=2)
        assert len(gca.injected(network)) == NETWORKS[name][1]
        assert not any(slot.startswith("decoder.encoder.") for slot in gca.injected(network))
        assert set(keys) < network.state_dict().keys()
        for training, wanted in expected.items():
            assert torch.equal(output(network, images, training), wanted)
        gca.eject(network.eval())
        assert structure(network) == before
        assert list(network.state_dict()) == keys
        assert torch.equal(output(network, images), expected[False])


class Zeros(nn.Module):
    """Keeps its input and returns zeros."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.input = x.clone()
        return torch.zeros_like(x)


def test_attention_stands_after_the_last_norm_and_before_drop_path(network: nn.Module, images: torch.Tensor) -> None:
    silenced, given = copy.deepcopy(network), {}
    for model, hook in ((silenced, lambda _, __, out: torch.zeros_like(out)), (network, None)):
        for block in find_blocks(model):
            last = block.module.get_submodule(LAST[type(block.module).__name__])
            name = block.layer_name
            last.register_forward_hook(hook or (lambda _, __, out, name=name: given.__setitem__(name, out.clone())))
    gca.inject(network, Zeros)
    assert torch.equal(output(network, images, True), output(silenced, images, True))
    for name, layer in gca.injected(network).items():
        assert torch.equal(layer.input, given[name]), name
        assert layer.channels == layer.input.shape[1]


@pytest.mark.parametrize("dims", OPERATORS)
def test_stages_are_those_of_the_encoder(dims: int) -> None:
    network = build("ResidualUNet", "BasicBlockD", dims)
    gca.inject(network, "se", reduction=2, stages=[1, 2], blocks=0)
    names = ["encoder.stages.0.blocks.0.squeeze_excitation", "encoder.stages.1.blocks.0.squeeze_excitation"]
    assert list(gca.injected(network)) == names
    rows = [row.split() for row in gca.summary(network).splitlines()]
    assert [row[0] for row in rows] == ["stage", "1", "2", "3", "-", "total"]
    assert rows[-2][2:5] == ["0", "of", "2"]
    gca.inject(network, "se", reduction=2, where=lambda name, block: name.startswith("decoder."))
    assert list(gca.injected(network))[2:] == [f"decoder.stages.{i}.blocks.0.squeeze_excitation" for i in (0, 1)]


def test_the_encoder_that_the_decoder_holds_too_is_injected_once(tmp_path: Path) -> None:
    network = randomize(gca.inject(build("ResidualEncoderUNet", "BasicBlockD", 2), reduction=2)).eval()
    state = network.state_dict()
    new = [f"{name}.{key}" for name, layer in gca.injected(network).items() for key in layer.state_dict()]
    for key in new:
        assert torch.equal(state[f"decoder.{key}"], state[key])
    parameters = dict(network.named_parameters(remove_duplicate=False))
    assert all(parameters[key] is parameters[f"decoder.{key}"] for key in new if key in parameters)
    assert gca.injected(network.decoder).keys() == gca.injected(network).keys()

    gca.save(network, tmp_path / "attention.safetensors", also=["encoder", "decoder"])
    other = gca.load(build("ResidualEncoderUNet", "BasicBlockD", 2).eval(), tmp_path / "attention.safetensors")
    images = torch.randn(SIZES[2])
    assert torch.equal(output(other, images), output(network, images))


def test_their_own_squeeze_and_excitation_occupies_the_place() -> None:
    network = build("ResidualEncoder", "BasicBlockD", 2, squeeze_excitation=True, stochastic_depth_p=0.5).eval()
    images, before = torch.randn(SIZES[2]), structure(network)
    expected = output(network, images)
    message = r"4 of 4 blocks already have attention, .* stages.0.blocks.0.squeeze_excitation: SqueezeExcite; pass"
    with pytest.raises(ValueError, match=message):
        gca.inject(network)
    assert gca.injected(gca.inject(network, on_existing="skip")) == {}
    gca.inject(network, reduction=2, on_existing="stack")
    assert torch.equal(output(network, images), expected)
    assert set(gca.injected(network)) == {
        f"{block.layer_name}.stacked" for block in find_blocks(network)
    }  # applied to its output
    gca.inject(gca.eject(network), reduction=2, on_existing="replace")
    assert not torch.equal(output(network, images), expected)
    assert {type(layer) for layer in gca.injected(network).values()} == {gca.GroupedCoordinateAttention}
    gca.eject(network)
    assert structure(network) == before
    assert torch.equal(output(network, images), expected)


@pytest.mark.parametrize("dims", OPERATORS)
def test_plain_convolutions_are_refused_with_the_plans_to_use_instead(dims: int) -> None:
    network = unet.PlainConvUNet(num_classes=2, n_conv_per_stage=1, n_conv_per_stage_decoder=1, **arguments(dims))
    before = structure(network)
    message = (
        r"PlainConvUNet has plain convolutions, and no residual sum .*; nnU-Net's residual encoder plans have one: "
        r".* -pl nnUNetPlannerResEncM, then -p nnUNetResEncUNetMPlans"
    )
    with pytest.raises(ValueError, match=message):
        gca.inject(network)
    assert structure(network) == before


@JIT
@TRACE
@pytest.mark.parametrize("name", [name for name in NETWORKS if "EncoderUNet" in name], indirect=True)
@torch.no_grad()
def test_copied_traced_exported_and_compiled(network: nn.Module, images: torch.Tensor) -> None:
    torch.compiler.reset()
    network = randomize(gca.inject(network, reduction=2)).eval()
    ways = {
        "deepcopy": copy.deepcopy(network),
        "trace": torch.jit.trace(network, images),
        "export": torch.export.export(network, (images,)).module(),
        "compile": torch.compile(network, fullgraph=True, backend="aot_eager"),
    }
    others = torch.randn_like(images)
    for way, converted in ways.items():
        torch.testing.assert_close(converted(others), network(others), rtol=1e-4, atol=1e-4, msg=lambda m, w=way: w + m)


def failure(convert: Callable[[nn.Module], object], network: nn.Module) -> str:
    with pytest.raises(Exception, match=r"lambda|skip|redefine") as error:
        convert(network)
    return error.typename


@JIT
@pytest.mark.parametrize("convert", [pickle.dumps, torch.jit.script])
def test_pickling_and_scripting_fail_as_without_attention(
    convert: Callable[[nn.Module], object], network: nn.Module
) -> None:
    """A block without a projection holds a lambda for its shortcut."""
    before = failure(convert, network)
    assert failure(convert, gca.inject(network, reduction=2)) == before


@pytest.mark.parametrize("block", LAST)
@pytest.mark.parametrize("dims", OPERATORS)
def test_attention_learns_from_the_second_step_on(dims: int, block: str) -> None:
    """nnU-Net starts the last norm of a block at zero: attention sees zeros, and gets gradients of exactly zero."""
    network = build("ResidualEncoderUNet", block, dims)
    network.apply(network.initialize)
    images = torch.randn(SIZES[dims])
    gca.inject(network, reduction=2)
    optimizer = torch.optim.SGD(network.parameters(), 1e-2, momentum=0.99, nesterov=True)
    moved = []
    for _ in range(3):
        optimizer.zero_grad()
        network(images).square().mean().backward()
        optimizer.step()
        moved.append(
            [p.grad.any().item() for m in gca.injected(network).values() for p in m.last_convs()[0].parameters()]
        )
    assert not any(moved[0])
    assert all(moved[2])
