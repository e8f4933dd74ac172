import copy
import pickle
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import gca
from tests.conftest import randomize

Layer = Callable[..., nn.Module]
SIZES = [(1, 1), (1, 7), (5, 1), (6, 9), (8, 8)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("training", [True, False])
def test_shape_is_kept_at_any_height_and_width(layer: Layer, size: tuple[int, int], training: bool) -> None:
    x = torch.randn(2, 16, *size)
    assert layer(16).train(training)(x).shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtype_is_kept_and_low_precision_is_close(layer: Layer, dtype: torch.dtype) -> None:
    reference = randomize(layer(16, dtype=torch.float64)).eval()
    low = copy.deepcopy(reference).to(dtype)
    x = torch.randn(2, 16, 6, 9, dtype=torch.float64)
    y = low(x.to(dtype))
    assert y.dtype == dtype
    tolerance = 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), reference(x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_dtype_of_the_input(layer: Layer, dtype: torch.dtype) -> None:
    module = layer(16).eval()
    with torch.autocast("cpu", dtype=dtype):
        assert module(torch.randn(2, 16, 6, 9)).dtype == torch.float32
        assert module(torch.randn(2, 16, 6, 9, dtype=dtype)).dtype == dtype


def test_memory_format_is_kept(layer: Layer) -> None:
    module = randomize(layer(16)).eval()
    x = torch.randn(2, 16, 6, 9)
    assert module(x).is_contiguous()
    last = module(x.contiguous(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, module(x))


def test_input_is_not_changed(layer: Layer) -> None:
    x = torch.randn(2, 16, 6, 9)
    before = x.clone()
    layer(16)(x)
    assert torch.equal(x, before)


def test_empty_batch_in_eval(layer: Layer) -> None:
    assert layer(16).eval()(torch.empty(0, 16, 6, 9)).shape == (0, 16, 6, 9)


def test_meta_device(layer: Layer) -> None:
    module = layer(16, device="meta")
    assert all(parameter.is_meta for parameter in module.parameters())
    assert module(torch.empty(2, 16, 6, 9, device="meta")).shape == (2, 16, 6, 9)


@pytest.mark.parametrize("identity_init", [True, False])
def test_meta_then_reset_parameters_gives_a_working_layer(layer: Layer, identity_init: bool) -> None:
    module = layer(16, device="meta", identity_init=identity_init).to_empty(device="cpu")
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data.fill_(77)  # what to_empty leaves is arbitrary
    module.reset_parameters()
    x = torch.randn(2, 16, 6, 9)
    y = module.eval()(x)
    assert torch.equal(y, x) == identity_init
    assert (y.abs() <= x.abs()).all()


@pytest.mark.parametrize("training", [True, False])
def test_identity_init_returns_the_input_bit_for_bit(layer: Layer, training: bool) -> None:
    x = torch.randn(2, 16, 6, 9)
    assert torch.equal(layer(16, identity_init=True).train(training)(x), x)
    assert not torch.equal(layer(16).train(training)(x), x)


def test_training_leaves_the_identity(layer: Layer) -> None:
    module = layer(16, identity_init=True)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    moved = dict.fromkeys(dict(module.named_parameters()), False)
    for _ in range(3):
        x = torch.randn(4, 16, 6, 9)
        optimizer.zero_grad()
        (module(x) - x.relu()).square().mean().backward()
        for name, parameter in module.named_parameters():
            moved[name] |= bool(parameter.grad is not None and parameter.grad.any())
        optimizer.step()
    if isinstance(module, gca.CoordinateAttention):
        moved.pop("conv1.bias")  # batch norm takes it out again: its gradient is rounding
    assert all(moved.values()), moved


def test_zero_init_last_restores_the_identity_only_where_there_is_one(layer: Layer) -> None:
    x = torch.randn(2, 16, 6, 9)
    for identity_init in (True, False):
        module = layer(16, identity_init=identity_init).eval()
        for parameter in module.parameters():
            nn.init.normal_(parameter)
        before = module(x)
        module.zero_init_last()
        assert torch.equal(module(x), x if identity_init else before)


def test_survives_the_in_place_residual_of_a_block(layer: Layer) -> None:
    x = torch.randn(2, 16, 6, 9, requires_grad=True)
    y = layer(16)(x)
    y += x
    nn.functional.relu(y, inplace=True).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("strict", [True, False])
def test_weights_of_other_options_that_no_shape_tells_are_refused(layer: Layer, strict: bool, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Identity(), layer(16, identity_init=True))
    save_file(network.state_dict(), tmp_path / "weights.safetensors")  # keeps tensors, and nothing else of the dict
    weights = load_file(tmp_path / "weights.safetensors")
    other = nn.Sequential(nn.Identity(), layer(16))
    message = r"1 has identity_init=False, but its weights .* identity_init=True"
    for lossy in (weights, {key: x.half() for key, x in weights.items()}):
        with pytest.raises(RuntimeError, match=message):
            other.load_state_dict(lossy, strict=strict)
        nn.Sequential(nn.Identity(), layer(16, identity_init=True)).load_state_dict(lossy, strict=strict)


def test_the_note_of_options_has_one_size(layer: Layer) -> None:
    """smp drops tensors of another size with strict=False, and the check with them."""
    sizes = {layer(16, identity_init=start).state_dict()["_extra_state"].shape for start in (True, False)}
    assert sizes == {(64,)}


def test_weights_without_a_note_of_their_options_are_refused_unless_told_otherwise(layer: Layer) -> None:
    weights = {name: x for name, x in layer(16).state_dict().items() if not name.endswith("_extra_state")}
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "_extra_state"'):
        layer(16).load_state_dict(weights)
    layer(16).load_state_dict(weights, strict=False)


@pytest.mark.parametrize("note", [torch.zeros(3), torch.tensor([300.0]), None, torch.tensor(list(b"{}"))])
def test_a_damaged_note_of_options_is_named(note: object) -> None:
    weights = {**gca.SE(16).state_dict(), "_extra_state": note}
    with pytest.raises(RuntimeError, match=r"the options noted for SE cannot be read .*; the checkpoint is damaged"):
        gca.SE(16).load_state_dict(weights)


def test_weights_of_another_pool_are_refused() -> None:
    weights = gca.GroupedCoordinateAttention(16, pool="max").state_dict()
    with pytest.raises(RuntimeError, match=r"GroupedCoordinateAttention has pool='avg\+max', but .* pool='max'"):
        gca.GroupedCoordinateAttention(16).load_state_dict(weights)


def test_pickle_deepcopy_and_state_dict(layer: Layer) -> None:
    module = randomize(layer(16)).eval()
    x = torch.randn(2, 16, 6, 9)
    fresh = layer(16).eval()
    fresh.load_state_dict(module.state_dict(), strict=True)
    for twin in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module), fresh):  # noqa: S301
        assert torch.equal(twin(x), module(x))


def test_scripts(layer: Layer) -> None:
    module = randomize(layer(16)).eval()
    x = torch.randn(2, 16, 6, 9)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.script.*")  # deprecated, but still in use
        scripted = torch.jit.script(module)
    with gca.ops.backend("plain"):  # what scripted modules hold
        assert torch.equal(scripted(x), module(x))


@pytest.mark.parametrize(
    ("module", "keys"),
    [
        (
            gca.GroupedCoordinateAttention(16),
            ["conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "conv2.bias"],
        ),
        (
            gca.CoordinateAttention(16, 2),
            ["conv1.weight", "conv1.bias", "bn1.weight", "bn1.bias"]
            + [f"conv_{axis}.{name}" for axis, name in product("hw", ("weight", "bias"))],
        ),
        (gca.SE(16, 4), ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]),
        (gca.CBAM(16, 4), ["fc1.weight", "fc2.weight", "conv.weight"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_parameter_names_are_a_promise(module: nn.Module, keys: list[str]) -> None:
    assert [name for name, _ in module.named_parameters()] == keys


@pytest.mark.parametrize(
    ("module", "start"),
    [
        (
            gca.GroupedCoordinateAttention(16, 4, pool="max"),
            "(\n  16, groups=4, reduction=2, pool='max', share_groups=True, spatial_dims=2, identity_init=False\n",
        ),
        (gca.CoordinateAttention(16, 4), "(\n  16, reduction=4, spatial_dims=2, identity_init=False\n"),
        (gca.SE(16, 4, identity_init=True), "(\n  16, reduction=4, spatial_dims=2, identity_init=True\n"),
        (gca.CBAM(16, 4, 3), "(\n  16, reduction=4, kernel_size=3, spatial_dims=2, identity_init=False\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_repr_shows_the_options(module: nn.Module, start: str) -> None:
    assert repr(module).startswith(type(module).__name__ + start)


def test_coordinate_attention_keeps_eight_channels_however_narrow_its_input() -> None:
    assert gca.CoordinateAttention(4).conv1.out_channels == gca.CoordinateAttention(300).conv1.out_channels - 1 == 8


def test_options_build_the_layer_again(layer: Layer) -> None:
    module = randomize(layer(16, identity_init=True)).eval()
    twin = type(module)(**module.options()).eval()
    twin.load_state_dict(module.state_dict())
    x = torch.randn(2, 16, 6, 9)
    assert torch.equal(twin(x), module(x))


def test_share_groups_decides_who_owns_the_convolutions() -> None:
    def count(**options: object) -> int:
        return sum(p.numel() for p in gca.GroupedCoordinateAttention(64, groups=4, **options).parameters())

    assert count(share_groups=False) == 4 * count(share_groups=True)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: gca.GroupedCoordinateAttention(65),
            ValueError,
            "channels must be divisible by groups, got channels=65, groups=2; choose groups=1 or groups=5",
        ),
        (
            lambda: gca.GroupedCoordinateAttention(16, pool="min"),
            ValueError,
            r"pool must be one of 'avg', 'max', 'avg\+max', got 'min'",
        ),
        (
            lambda: gca.GroupedCoordinateAttention(16, 4, 8),
            ValueError,
            "reduction must not exceed the channels it divides, got reduction=8 for 4 channels; choose reduction <= 4",
        ),
        (lambda: gca.SE(8), ValueError, "got reduction=16 for 8 channels"),
        (lambda: gca.CBAM(8), ValueError, "got reduction=16 for 8 channels"),
        (lambda: gca.CBAM(16, kernel_size=4), ValueError, "kernel_size must be odd.* got kernel_size=4"),
        (lambda: gca.SE(0), ValueError, "channels must be at least 1, got channels=0"),
        (lambda: gca.SE(16, -1), ValueError, "reduction must be at least 1, got reduction=-1"),
        (lambda: gca.GroupedCoordinateAttention(16, groups=0), ValueError, "groups must be at least 1"),
        (lambda: gca.SE(16.0), TypeError, "channels must be an int, got 16.0 of type float"),
        (lambda: gca.SE(16, True), TypeError, "reduction must be an int, got True of type bool"),
    ],
)
def test_bad_sizes_are_refused(build: Callable[[], nn.Module], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


def test_averages_of_weights_load(layer: Layer) -> None:
    """As averages over steps or over several networks are written by hand, over all entries of a state_dict."""
    weights = layer(16).state_dict()
    for decay in (0.9, 0.9999):
        average = {key: x.clone() for key, x in weights.items()}
        for _ in range(5):
            average = {key: decay * average[key] + (1 - decay) * x for key, x in weights.items()}
        layer(16).load_state_dict(average)
    layer(16).load_state_dict({key: sum(one[key] for one in [weights] * 7) / 7 for key in weights})
    layer(16).load_state_dict({key: sum(one[key] / 7 for one in [weights] * 7) for key in weights})
