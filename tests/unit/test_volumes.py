"""The layers on volumes, ``(B, C, D, H, W)``, and networks in 3-D."""

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monai.networks.nets import resnet
from torch import Tensor, nn

import gca
from gca.maps import AxisGates, ChannelGates
from gca.ops.layout import CHANNELS_LAST
from tests.conftest import LAYERS, randomize

Layer = Callable[..., nn.Module]
LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 16, 3, 5, 6)


def trained(layer: Layer, channels: int = 16, **options: object) -> nn.Module:
    return randomize(layer(channels, spatial_dims=3, **options)).eval()


def network(spatial_dims: int) -> nn.Module:
    return resnet.ResNet("basic", [1, 1, 1, 1], [8, 16, 16, 16], spatial_dims=spatial_dims, n_input_channels=1)


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 6, 9), (5, 1, 1), (3, 5, 6)])
@pytest.mark.parametrize("training", [True, False])
def test_shape_is_kept_and_identity_init_returns_the_input(
    layer: Layer, size: tuple[int, int, int], training: bool
) -> None:
    x = torch.randn(2, 16, *size)
    y = layer(16, spatial_dims=3).train(training)(x)
    assert y.shape == x.shape
    assert not torch.equal(y, x)
    assert torch.equal(layer(16, spatial_dims=3, identity_init=True).train(training)(x), x)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dtype_and_memory_format_are_kept(layer: Layer, layout: torch.memory_format, x: Tensor) -> None:
    module = trained(layer)
    y = module(x.contiguous(memory_format=layout))
    assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(y, module(x))
    low = copy.deepcopy(module).bfloat16()(x.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), y, rtol=0.05, atol=0.05)


def test_volumes_are_gated_along_three_axes(x: Tensor) -> None:
    """The formula of GCA once more, without the library's operations."""
    layer = trained(gca.GroupedCoordinateAttention)
    axes = [(3, 4), (2, 4), (2, 3)]
    f = torch.cat([x.mean(others) + x.amax(others) for others in axes], dim=2)  # (B, C, D+H+W)
    logits = layer.conv2(layer.act(layer.bn1(layer.conv1(f.view(4, 8, 14, 1)))))
    a_d, a_h, a_w = logits.sigmoid().view(2, 16, 14).split([3, 5, 6], dim=2)
    y = x * a_d[:, :, :, None, None] * a_h[:, :, None, :, None] * a_w[:, :, None, None, :]
    torch.testing.assert_close(layer(x), y)


def test_se_averages_over_all_axes(x: Tensor) -> None:
    layer = trained(LAYERS["se"])
    image = gca.SE(16, 4).eval()
    image.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), image(x.flatten(3)).view_as(x))


def test_cbam_convolves_in_three_dimensions(x: Tensor) -> None:
    layer = trained(LAYERS["cbam"])
    gates = layer.gates(x)
    gated = x * gates.channel[:, :, None, None, None]
    f = torch.stack((gated.mean(1), gated.amax(1)), dim=1)
    assert layer.conv.weight.shape == (1, 2, 7, 7, 7)
    torch.testing.assert_close(gates.spatial, layer.conv(f).sigmoid())
    torch.testing.assert_close(layer(x), gated * gates.spatial)


@pytest.mark.parametrize("name", ["gca", "gca-own", "se"])
def test_weights_of_images_load_into_layers_for_volumes(name: str) -> None:
    images, volumes = LAYERS[name](16), LAYERS[name](16, spatial_dims=3)
    volumes.load_state_dict(images.state_dict())
    images.load_state_dict(volumes.state_dict())


@pytest.mark.parametrize(("name", "message"), [("coord", "Missing key.*conv_d"), ("cbam", "size mismatch for conv")])
def test_weights_that_have_another_shape_in_three_dimensions_are_refused(name: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        LAYERS[name](16, spatial_dims=3).load_state_dict(LAYERS[name](16).state_dict())


def test_options_pickle_and_deepcopy(layer: Layer, x: Tensor) -> None:
    module = trained(layer, identity_init=True)
    assert module.options()["spatial_dims"] == 3
    rebuilt = type(module)(**module.options()).eval()
    rebuilt.load_state_dict(module.state_dict())
    for twin in (rebuilt, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):  # noqa: S301
        assert torch.equal(twin(x), module(x))


def test_graphs_hold_the_formula(layer: Layer, x: Tensor) -> None:
    module = trained(layer)
    with gca.ops.backend("plain"):
        expected = module(x)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.*")  # deprecated, but still in use
        graphs = [torch.jit.script(module), torch.jit.trace(module, x)]
    graphs += [torch.export.export(module, (x,)).module(), torch.fx.symbolic_trace(module)]
    for graph in graphs:
        assert torch.equal(graph(x), expected)
    torch.testing.assert_close(torch.func.vmap(module)(x[:, None])[:, 0], expected)
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), expected)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_another_number_of_axes_is_refused(layer: Layer, spatial_dims: int) -> None:
    module = layer(16, spatial_dims=spatial_dims).eval()
    images, volumes = torch.randn(2, 16, 5, 6), torch.randn(2, 16, 3, 5, 6)
    wrong, wanted = (volumes, "H, W") if spatial_dims == 2 else (images, "D, H, W")
    message = rf"spatial_dims={spatial_dims} takes {spatial_dims + 2} axes, \(B, C, {wanted}\), got shape \[2, 16, "
    with pytest.raises(ValueError, match=message):
        module(wrong)
    with pytest.raises(ValueError, match=message):
        module.gates(wrong)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.*")
        scripted = torch.jit.script(module)
    with pytest.raises(torch.jit.Error, match=message):
        scripted(wrong)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (1, ValueError, "spatial_dims must be 2 for images or 3 for volumes, got spatial_dims=1"),
        (0, ValueError, "spatial_dims must be at least 1, got spatial_dims=0"),
        (3.0, TypeError, "spatial_dims must be an int, got 3.0 of type float"),
    ],
)
def test_other_dimensions_are_refused(layer: Layer, value: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        layer(16, spatial_dims=value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gates_give_the_output(layer: Layer, layout: torch.memory_format, x: Tensor) -> None:
    module, x = trained(layer), x.contiguous(memory_format=layout)
    gates = gca.attention_maps(module, x)[""]
    if isinstance(gates, AxisGates):
        assert gates.gate_d is not None
        assert torch.equal(gca.ops.axis_gate(x, gates.gate_d, gates.gate_h, gates.gate_w), module(x))
        by_group = gates.gate_d.reshape(2, gates.groups, -1, 3)
        torch.testing.assert_close(gates.slices(), by_group.mean(2))
        whole = gates._replace(groups=16).maps()  # one channel a group: the gates of positions themselves
        torch.testing.assert_close(x * whole, module(x))
        assert gates.maps().shape == (2, gates.groups, 3, 5, 6)
    else:
        assert isinstance(gates, ChannelGates)
        y = x * gates.channel[:, :, None, None, None]
        torch.testing.assert_close(y if gates.spatial is None else y * gates.spatial, module(x))


def test_images_have_no_slices() -> None:
    with pytest.raises(ValueError, match="gates of images, which have rows and columns, and no slices"):
        gca.GroupedCoordinateAttention(8).gates(torch.randn(1, 8, 4, 4)).slices()


def test_axes_of_the_operations(x: Tensor) -> None:
    pooled = gca.ops.axis_pool(x, "avg")
    assert [p.shape[2] for p in pooled] == [3, 5, 6]
    torch.testing.assert_close(pooled[1], x.mean((2, 4)))
    with pytest.raises(ValueError, match=r"\(B, C, H, W\) or \(B, C, D, H, W\), got shape \(16, 3, 5\)"):
        gca.ops.axis_pool(x[0, ..., 0])
    with pytest.raises(ValueError, match="wanted one gate for each of 3 axes of x, got 2"):
        gca.ops.axis_gate(x, *pooled[:2])


@pytest.mark.parametrize("name", ["gca", "coord", "cbam", "se"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_inject_takes_the_dimension_of_the_block(name: str, spatial_dims: int) -> None:
    model = gca.inject(network(spatial_dims), name, reduction=4)
    assert {layer.spatial_dims for layer in gca.injected(model).values()} == {spatial_dims}
    assert model(torch.randn(2, 1, *[32] * spatial_dims)).isfinite().all()


def test_layers_of_another_dimension_are_refused() -> None:
    model = network(3)
    keys = model.state_dict().keys()
    message = r"block 'layer1.0' has convolutions in 3-D, .* spatial_dims=2; pass spatial_dims=3"
    with pytest.raises(ValueError, match=message):
        gca.inject(model, "se", reduction=4, spatial_dims=2)
    with pytest.raises(ValueError, match=message):
        gca.inject(model, lambda channels, **options: gca.SE(channels, 4, **options))
    assert model.state_dict().keys() == keys
    gca.inject(model, lambda channels, **options: gca.SE(channels, 4, **options), spatial_dims=3)
    assert len(gca.injected(model)) == 4


@pytest.mark.parametrize("name", ["gca", "coord", "cbam", "se"])
def test_injected_layers_are_like_their_block_in_memory(name: str) -> None:
    model = network(3).double().to(memory_format=torch.channels_last_3d)
    gca.inject(model, name, reduction=4)
    for layer in gca.injected(model).values():
        for p in layer.parameters():
            assert p.dtype == torch.float64
            assert p.ndim == 1 or p.is_contiguous(memory_format=CHANNELS_LAST[p.ndim])


def test_a_network_with_attention_goes_to_channels_last_3d(layer: Layer, x: Tensor) -> None:
    """torch moves all weights of four and five axes to that one format, which those of four refuse."""
    module = nn.Sequential(nn.Conv3d(16, 16, 1), trained(layer))
    expected = module(x)
    with pytest.raises(RuntimeError, match="rank 5"):
        nn.Conv2d(2, 2, 1).to(memory_format=torch.channels_last_3d)
    assert module.to(memory_format=torch.channels_last_3d)[1] is module[1]
    torch.testing.assert_close(module(x), expected)
    last = module[1].last_convs()[0].weight
    assert last.is_contiguous(memory_format=torch.channels_last if last.ndim == 4 else torch.channels_last_3d)


@pytest.mark.parametrize("name", ["gca", "coord", "cbam", "se"])
def test_save_and_load(name: str, tmp_path: Path) -> None:
    plain = network(3)
    model = randomize(gca.inject(copy.deepcopy(plain), name, reduction=4)).eval()
    gca.save(model, tmp_path / "attention.safetensors")
    twin = gca.load(plain, tmp_path / "attention.safetensors").eval()
    twin.load_state_dict(model.state_dict())  # statistics of batch norm, which randomize changed
    x = torch.randn(1, 1, 32, 32, 32)
    assert torch.equal(twin(x), model(x))
    for key, value in gca.injected(model)["layer1.0.attention"].state_dict().items():
        assert torch.equal(gca.injected(twin)["layer1.0.attention"].state_dict()[key], value)


@pytest.mark.parametrize(("name", "fits"), [("gca", True), ("se", True), ("coord", False), ("cbam", False)])
def test_attention_of_images_loads_into_a_network_for_volumes(name: str, fits: bool, tmp_path: Path) -> None:
    images = randomize(gca.inject(network(2), name, reduction=4))
    gca.save(images, tmp_path / "attention.safetensors")
    volumes = network(3)
    if not fits:
        with pytest.raises(ValueError, match=r"the weights of layer1.0.attention do not fit"):
            gca.load(volumes, tmp_path / "attention.safetensors")
        return
    gca.load(volumes, tmp_path / "attention.safetensors")
    ours, theirs = (gca.injected(model)["layer3.0.attention"] for model in (volumes, images))
    assert ours.spatial_dims == 3
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value)
