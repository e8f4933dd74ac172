"""Injected networks compile, export, trace, script, save and distribute like any other."""

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from timm.models import resnet
from torch import nn
from torch.func import functional_call, grad, vmap

import gca
from tests.conftest import randomize

JIT = pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
LAYERS = ("gca", "coord", "cbam", "se")
IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
OTHERS = torch.randn(3, 3, 96, 64, generator=torch.Generator().manual_seed(1))
DYNAMIC = ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)


def _resnet50(layer: str) -> nn.Module:
    return gca.inject(timm.create_model("resnet50", num_classes=10), layer)


def _gca_resunet(layer: str) -> nn.Module:
    return gca.GCAResUNet(classes=3, attention=layer)


def _small_resunet(layer: str) -> nn.Module:
    narrow = (32, 16, 16, 8, 8)
    return gca.GCAResUNet(classes=3, encoder="tu-resnet14t", attention=layer, decoder_channels=narrow)


def _without_slot(layer: str) -> nn.Module:
    """Blocks whose slot is their sub-class's, in gca.slots."""
    blocks = torchvision.models.resnet.BasicBlock
    return gca.inject(torchvision.models.ResNet(blocks, [1, 1, 1, 1], num_classes=10), layer)


def _stacked(layer: str) -> nn.Module:
    network = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=10, block_args={"attn_layer": "se"})
    return gca.inject(network, layer, on_existing="stack")


LARGE = {"resnet50": _resnet50, "GCAResUNet": _gca_resunet}
NETWORKS: dict[str, tuple[Callable[[str], nn.Module], str]] = {
    **{f"{name} {layer}": (build, layer) for name, build in LARGE.items() for layer in LAYERS},
    "small GCAResUNet gca": (_small_resunet, "gca"),
    **{f"torchvision {layer}": (_without_slot, layer) for layer in LAYERS},
    "stacked gca": (_stacked, "gca"),
}


# A graph of many blocks takes minutes and holds the same nodes as one of few.
@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.slow if name.split()[0] in LARGE else ()) for name in NETWORKS]
)
def network(request: pytest.FixtureRequest) -> nn.Module:
    build, layer = NETWORKS[request.param]
    return randomize(build(layer)).eval()


def small(layer: str = "gca") -> nn.Module:
    net = resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], channels=(8, 16, 24, 32), num_classes=4)
    return randomize(gca.inject(net, layer, reduction=2))


@torch.no_grad()
def assert_agree(network: nn.Module, other: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for images in (IMAGES, OTHERS):
        torch.testing.assert_close(other(images), network(images), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_compile_without_a_graph_break(network: nn.Module) -> None:
    torch.compiler.reset()
    assert_agree(network, torch.compile(network, fullgraph=True, dynamic=True, backend="aot_eager"))


@pytest.mark.parametrize(
    "layer", ["gca", *(pytest.param(name, marks=pytest.mark.slow) for name in LAYERS if name != "gca")]
)
def test_compile_with_inductor_forward_and_backward(layer: str) -> None:
    torch.compiler.reset()
    block = randomize(gca.inject(resnet.Bottleneck(32, 8), layer, reduction=2)).eval()
    x = torch.randn(2, 32, 9, 12)
    compiled = torch.compile(copy.deepcopy(block), fullgraph=True)
    torch.testing.assert_close(compiled(x), block(x))
    block(x).square().sum().backward()
    compiled(x).square().sum().backward()
    for name, parameter in compiled._orig_mod.named_parameters():
        torch.testing.assert_close(parameter.grad, block.get_parameter(name).grad, rtol=1e-3, atol=1e-3)


def test_export_with_dynamic_batch_height_and_width(network: nn.Module) -> None:
    program = torch.export.export(network, (IMAGES,), dynamic_shapes=DYNAMIC)
    assert_agree(network, program.module())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_at_two_sizes(network: nn.Module, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "network.onnx"
    torch.onnx.export(network, (IMAGES,), path, dynamo=True, dynamic_shapes=DYNAMIC, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    assert_agree(network, lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0]))


def test_fx(network: nn.Module) -> None:
    assert_agree(network, torch.fx.symbolic_trace(network))


@JIT
def test_torchscript(network: nn.Module) -> None:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(network), buffer)
    buffer.seek(0)
    assert_agree(network, torch.jit.load(buffer))


@pytest.mark.parametrize("layer", LAYERS)
def test_feature_extraction(layer: str) -> None:
    listed = randomize(gca.inject(timm.create_model("resnet50", features_only=True), layer)).eval()
    assert len(gca.injected(listed)) == 16
    assert [f.shape[1] for f in listed(IMAGES)] == [64, 256, 512, 1024, 2048]

    network = randomize(gca.inject(torchvision.models.resnet50(), layer)).eval()
    extractor = torchvision.models.feature_extraction.create_feature_extractor(network, ["layer2", "layer4"])
    features = extractor(IMAGES)
    stem = network.maxpool(network.relu(network.bn1(network.conv1(IMAGES))))
    with gca.ops.backend("plain"):  # what a traced network holds; the kernels sum in another order
        assert torch.equal(features["layer2"], network.layer2(network.layer1(stem)))


@pytest.mark.parametrize("cls", [gca.GroupedCoordinateAttention, gca.CoordinateAttention, gca.CBAM, gca.SE])
def test_features_only_by_fx(cls: type[nn.Module]) -> None:
    """timm traces the network as it builds it, so attention has to be there from the start."""
    options = {"block_args": {"attn_layer": cls}}
    features = timm.create_model("resnet50", features_only=True, feature_cls="fx", **options).eval()
    whole = timm.create_model("resnet50", **options).eval()
    weights = {name.removeprefix("graph_module."): value for name, value in features.state_dict().items()}
    missing = whole.load_state_dict(weights, strict=False).missing_keys
    # A traced network holds operators, and no layers that could note their options.
    assert [name for name in missing if not name.endswith("_extra_state")] == ["fc.weight", "fc.bias"]
    with torch.no_grad():
        assert torch.equal(features(IMAGES)[-1], whole.forward_features(IMAGES))


def test_pickle_deepcopy_state_dict_and_safetensors(network: nn.Module, tmp_path: Path) -> None:
    assert_agree(network, pickle.loads(pickle.dumps(network)))  # noqa: S301
    twin = copy.deepcopy(network)
    assert_agree(network, twin)
    state = copy.deepcopy(network.state_dict())
    for parameter in twin.parameters():
        nn.init.zeros_(parameter)
    twin.load_state_dict(state)
    assert_agree(network, twin)
    save_file(state, tmp_path / "weights.safetensors")
    for parameter in twin.parameters():
        nn.init.zeros_(parameter)
    twin.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert_agree(network, twin)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(network: nn.Module, dtype: torch.dtype) -> None:
    network.train()
    with torch.autocast("cpu", dtype):
        output = network(IMAGES)
    output.float().square().mean().backward()
    assert output.isfinite().all()
    for layer in gca.injected(network).values():
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())
        assert all(p.grad.isfinite().all() for p in layer.parameters())
    network.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype):
        low = network(IMAGES).float()
    with torch.no_grad():
        high = network(IMAGES)
    assert (low - high).norm() <= 0.1 * high.norm()


def test_channels_last(network: nn.Module) -> None:
    twin = copy.deepcopy(network).to(memory_format=torch.channels_last)
    assert_agree(network, lambda images: twin(images.to(memory_format=torch.channels_last)))
    formats = []
    for layer in gca.injected(twin).values():
        layer.register_forward_hook(
            lambda _, __, out: formats.append(out.is_contiguous(memory_format=torch.channels_last))
        )
    with torch.no_grad():
        twin(IMAGES.to(memory_format=torch.channels_last))
    assert len(formats) == len(gca.injected(twin))
    assert all(formats)


@pytest.mark.parametrize("layer", LAYERS)
def test_activation_checkpointing(layer: str) -> None:
    network = small(layer).eval()
    twin = copy.deepcopy(network)
    twin.set_grad_checkpointing(True)
    twin.train()
    network.train()
    for each in (network, twin):
        each(IMAGES).square().sum().backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(twin.get_parameter(name).grad, parameter.grad, msg=name)


@pytest.mark.parametrize("layer", LAYERS)
def test_convert_sync_batchnorm(layer: str) -> None:
    network = small(layer).eval()
    twin = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(network))
    assert gca.injected(twin).keys() == gca.injected(network).keys()
    assert not any(type(module) is nn.BatchNorm2d for module in twin.modules())
    assert_agree(network, twin)


@pytest.mark.parametrize("layer", LAYERS)
def test_per_sample_gradients(layer: str) -> None:
    network = small(layer).eval()
    state = (dict(network.named_parameters()), dict(network.named_buffers()))

    def loss(parameters: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        return functional_call(network, (parameters, state[1]), (image[None],)).square().sum()

    each = vmap(grad(loss), in_dims=(None, 0))(state[0], IMAGES)
    network(IMAGES).square().sum().backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(each[name].sum(0), parameter.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("encoder", ["resnet50", "tu-resnet50"])
def test_dilated_encoders(encoder: str, stride: int, layer: str) -> None:
    network = smp.DeepLabV3Plus(encoder, encoder_weights=None, encoder_output_stride=stride, classes=2).eval()
    with torch.no_grad():
        before = network(IMAGES)
        gca.inject(network, layer, identity_init=True)
        assert len(gca.injected(network)) == 16
        assert torch.equal(network(IMAGES), before)
    assert network.encoder(IMAGES)[-1].shape[-1] == IMAGES.shape[-1] // stride


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("build", [torchvision.models.resnet18, lambda **kw: timm.create_model("seresnet18", **kw)])
def test_training_leaves_the_identity_and_reaches_every_parameter(build: Callable[..., nn.Module], layer: str) -> None:
    network = gca.inject(randomize(build(num_classes=4)), layer, identity_init=True, on_existing="stack").train()
    start = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(3):  # the first step moves the zeros of the last convolution, the next ones what feeds them
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(IMAGES), torch.tensor([0, 1])).backward()
        optimizer.step()
    for name, layer_ in gca.injected(network).items():
        for key, parameter in layer_.named_parameters():
            assert parameter.grad.any(), (name, key)
            assert not torch.equal(parameter, start[f"{name}.{key}"]), (name, key)
