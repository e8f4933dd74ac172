"""``gca.attention_maps`` returns the gates by which the layers multiply, and leaves the model as it was."""

import copy
import threading
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

import gca
from gca.maps import AxisGates, ChannelGates
from tests.conftest import randomize

Build = Callable[..., nn.Module]


def trained(build: Build, channels: int = 12, **options: object) -> nn.Module:
    """A layer in double precision and evaluation mode whose weights and statistics matter."""
    return randomize(build(channels, dtype=torch.float64, **options)).eval()


def applied(gates: AxisGates | ChannelGates, x: Tensor) -> Tensor:
    if isinstance(gates, AxisGates):
        return x * gates.gate_h[:, :, :, None] * gates.gate_w[:, :, None, :]
    y = x * gates.channel[:, :, None, None]
    return y if gates.spatial is None else y * gates.spatial


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("identity_init", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (6, 9), (9, 6)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gates_give_the_output(
    layer: Build, layout: torch.memory_format, size: tuple[int, int], identity_init: bool, training: bool
) -> None:
    module = trained(layer, identity_init=identity_init).train(training)
    x = torch.randn(3, 12, *size, dtype=torch.float64).contiguous(memory_format=layout)
    maps = gca.attention_maps(module, x)
    assert list(maps) == [""]
    torch.testing.assert_close(applied(maps[""], x), module(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("share_groups", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_grouped_coordinate_gates_are_those_of_the_formula(groups: int, share_groups: bool) -> None:
    """Group by group, with the weights of the layer's own convolutions."""
    module = trained(gca.GroupedCoordinateAttention, groups=groups, share_groups=share_groups)
    x = torch.randn(2, 12, 5, 7, dtype=torch.float64)
    gates = gca.attention_maps(module, x)[""]
    assert isinstance(gates, AxisGates)
    assert gates.groups == groups
    assert gates.maps().shape == (2, groups, 5, 7)
    first, bn, second = module.conv1, module.bn1, module.conv2
    width, hidden = 12 // groups, len(first.weight) // (1 if share_groups else groups)
    for g in range(groups):
        channels = slice(g * width, (g + 1) * width)
        own = slice(None) if share_groups else slice(g * hidden, (g + 1) * hidden)
        out = slice(None) if share_groups else channels
        part = x[:, channels]
        pooled = torch.cat((part.mean(3) + part.amax(3), part.mean(2) + part.amax(2)), dim=2)  # (B, C_g, H+W)
        f = torch.einsum("oc,bcn->bon", first.weight[own, :, 0, 0], pooled)
        scale = bn.weight[own] / (bn.running_var[own] + bn.eps).sqrt()
        f = ((f - bn.running_mean[own, None]) * scale[:, None] + bn.bias[own, None]).relu()
        a = torch.sigmoid(torch.einsum("oc,bcn->bon", second.weight[out, :, 0, 0], f) + second.bias[out, None])
        gate_h, gate_w = a[:, :, :5], a[:, :, 5:]
        torch.testing.assert_close(gates.gate_h[:, channels], gate_h)
        torch.testing.assert_close(gates.gate_w[:, channels], gate_w)
        torch.testing.assert_close(gates.maps()[:, g], (gate_h[..., None] * gate_w[:, :, None, :]).mean(1))
        torch.testing.assert_close(gates.rows()[:, g], gate_h.mean(1))
        torch.testing.assert_close(gates.columns()[:, g], gate_w.mean(1))


def test_what_each_layer_gives() -> None:
    x = torch.randn(2, 12, 5, 7)
    coord = gca.attention_maps(gca.CoordinateAttention(12, 4), x)[""]
    assert isinstance(coord, AxisGates)
    assert (coord.groups, coord.maps().shape) == (1, (2, 1, 5, 7))
    se, cbam = (gca.attention_maps(kind(12, 4), x)[""] for kind in (gca.SE, gca.CBAM))
    assert isinstance(se, ChannelGates)
    assert isinstance(cbam, ChannelGates)
    assert (se.channel.shape, se.spatial) == ((2, 12), None)
    assert cbam.channel.shape == (2, 12)
    assert cbam.spatial is not None
    assert cbam.spatial.shape == (2, 1, 5, 7)


def test_an_identity_start_has_open_gates(layer: Build) -> None:
    gates = gca.attention_maps(layer(12, identity_init=True), torch.randn(2, 12, 5, 7))[""]
    found = (gates.gate_h, gates.gate_w) if isinstance(gates, AxisGates) else (gates.channel,)
    assert all(torch.equal(gate, torch.ones_like(gate)) for gate in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gates_have_the_dtype_by_which_the_input_is_multiplied(layer: Build, dtype: torch.dtype) -> None:
    x = torch.randn(2, 12, 5, 7, dtype=dtype)
    module = layer(12).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gates = gca.attention_maps(module, x)[""]
        expected = module(x)
    torch.testing.assert_close(applied(gates, x), expected, rtol=2e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-3)
    assert (gates.gate_h if isinstance(gates, AxisGates) else gates.channel).dtype == dtype


@pytest.mark.parametrize("name", ["gca", "coord", "cbam", "se"])
def test_a_network_in_the_order_of_its_modules(name: str) -> None:
    model = randomize(gca.inject(timm.create_model("resnet14t", num_classes=3), name)).eval()
    x = torch.randn(2, 3, 48, 64)
    inputs, outputs = {}, {}
    for key, module in gca.injected(model).items():

        def note(module: nn.Module, args: tuple[Tensor], output: Tensor, key: str = key) -> None:
            inputs[key], outputs[key] = args[0], output.clone()  # the sum with the shortcut is in place

        module.register_forward_hook(note)
    expected = model(x)
    maps = gca.attention_maps(model, x)
    assert list(maps) == list(gca.injected(model)) == [f"layer{stage}.0.se" for stage in (1, 2, 3, 4)]
    for key, gates in maps.items():
        torch.testing.assert_close(applied(gates, inputs[key]), outputs[key])
    assert torch.equal(model(x), expected)


def test_stacked_and_built_in_layers_are_found() -> None:
    options = {"block_args": {"attn_layer": gca.SE}}
    model = gca.inject(timm.create_model("resnet14t", num_classes=3, **options), stages=4, on_existing="stack").eval()
    maps = gca.attention_maps(model, torch.randn(1, 3, 64, 64))
    assert [(key, type(gates)) for key, gates in maps.items()] == [
        *((f"layer{stage}.0.se", ChannelGates) for stage in (1, 2, 3, 4)),
        ("layer4.0.se.stacked", AxisGates),
    ]


def test_nothing_of_the_model_changes() -> None:
    """In train mode, where batch norms count, dropout draws random numbers and gradients are being collected."""
    model = gca.inject(timm.create_model("resnet14t", num_classes=3, drop_rate=0.5, drop_path_rate=0.5)).train()
    model.layer1.eval()
    x = torch.randn(2, 3, 64, 64)
    model(x).sum().backward()
    state = copy.deepcopy(model.state_dict())
    identities = {name: id(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    rng = torch.get_rng_state()

    maps = gca.attention_maps(model, x)

    assert not maps["layer2.0.se"].gate_h.requires_grad
    assert torch.equal(torch.get_rng_state(), rng)
    assert identities == {name: id(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), grads, strict=True))
    assert [module.training for module in model.modules()] == modes
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks


def test_the_mode_of_the_model_decides() -> None:
    layer = trained(gca.GroupedCoordinateAttention)
    x = torch.randn(2, 12, 5, 7, dtype=torch.float64)
    calm, training = gca.attention_maps(layer.eval(), x)[""], gca.attention_maps(layer.train(), x)[""]
    assert not torch.allclose(calm.gate_h, training.gate_h)


def test_a_failing_model_is_left_as_it_was() -> None:
    model = gca.inject(timm.create_model("resnet14t", num_classes=3))
    with pytest.raises(RuntimeError, match="channels"):
        gca.attention_maps(model, torch.randn(1, 4, 64, 64))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Twice(nn.Module):
    """Runs one layer two times, and has one that it does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = gca.CBAM(8, 2), gca.SE(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(self.used(x))


def test_of_several_runs_the_last_counts_and_idle_layers_are_left_out() -> None:
    model, x = Twice(), torch.randn(2, 8, 5, 7)
    maps = gca.attention_maps(model, x)
    assert list(maps) == ["used"]
    torch.testing.assert_close(applied(maps["used"], model.used(x)), model(x))


def test_other_threads_are_not_recorded() -> None:
    """Another thread runs the model on other images, at the very moment at which the maps are made."""
    images, others = torch.randn(2, 3, 48, 48), torch.randn(5, 3, 64, 32)
    model = randomize(gca.inject(timm.create_model("resnet14t", num_classes=3))).eval()
    expected = gca.attention_maps(model, images)
    ran: list[Tensor] = []

    def interfere(module: nn.Module, inputs: object) -> None:
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=lambda: ran.append(model(others)))
            thread.start()
            thread.join()

    model.layer4.register_forward_pre_hook(interfere)
    maps = gca.attention_maps(model, images)
    assert len(ran) == 1
    for name, gates in maps.items():
        assert torch.equal(gates.gate_h, expected[name].gate_h)


def test_no_attention() -> None:
    with pytest.raises(ValueError, match=r"no attention layer of gca in this ResNet; place some with gca\.inject"):
        gca.attention_maps(timm.create_model("resnet14t"), torch.randn(1, 3, 64, 64))


def test_no_module() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got str"):
        gca.attention_maps("resnet50", torch.randn(1))


def compiled_in_place() -> nn.Module:
    layer = gca.SE(16)
    layer.compile(backend="eager")
    return layer


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: torch.compile(gca.SE(16), backend="eager"), r"the model is compiled, .*before torch\.compile"),
        (lambda: nn.Sequential(compiled_in_place()), r"its part '0' is compiled, .*copy\.deepcopy after"),
        (lambda: nn.DataParallel(gca.SE(16)), r"the model is in DataParallel, .*pass model\.module"),
    ],
)
def test_models_that_hooks_do_not_see_whole(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        gca.attention_maps(build(), torch.randn(1, 16, 4, 4))


def test_the_way_out_after_compiling_in_place() -> None:
    layer, x = compiled_in_place(), torch.randn(2, 16, 4, 4)
    torch.testing.assert_close(applied(gca.attention_maps(copy.deepcopy(layer), x)[""], x), layer(x))


def test_a_layer_that_is_called_by_keyword() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = gca.SE(16)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.attention(x=image)  # type: ignore[no-any-return]

    assert list(gca.attention_maps(Network(), torch.randn(1, 16, 4, 4))) == ["attention"]
