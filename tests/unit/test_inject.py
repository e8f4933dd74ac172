import copy
import pickle
from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

import gca
from tests.conftest import randomize


def resnet(name: str = "resnet26", **options: object) -> nn.Module:
    return timm.create_model(name, **options).eval()


@pytest.fixture
def small() -> nn.Module:
    """A real timm ResNet with bottlenecks, small enough to run often: 2 stages x 2 blocks."""
    model = timm.models.resnet.ResNet(timm.models.resnet.Bottleneck, [2, 2, 1, 1], channels=(8, 16, 32, 64))
    return randomize(model).eval()


IMAGE = torch.randn(2, 3, 32, 32)


def snapshot(model: nn.Module) -> tuple[object, ...]:
    """Everything that inject must not touch on failure and eject must restore."""
    return (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        [(name, type(module), sorted(vars(module)), list(module._modules)) for name, module in model.named_modules()],
        [(name, parameter.requires_grad) for name, parameter in model.named_parameters()],
        model(IMAGE),
    )


def assert_same(before: tuple[object, ...], after: tuple[object, ...]) -> None:
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert after[1:3] == before[1:3]
    torch.testing.assert_close(after[3], before[3], rtol=0, atol=0)


def test_returns_the_model_and_passes_options(small: nn.Module) -> None:
    assert gca.inject(small, groups=4, reduction=8, pool="max") is small
    for layer in gca.injected(small).values():
        assert isinstance(layer, gca.GroupedCoordinateAttention)
        assert (layer.groups, layer.reduction, layer.pool) == (4, 8, "max")


@pytest.mark.parametrize(
    ("name", "cls"),
    [("gca", gca.GroupedCoordinateAttention), ("coord", gca.CoordinateAttention), ("cbam", gca.CBAM), ("se", gca.SE)],
)
def test_layers_by_name(small: nn.Module, name: str, cls: type[nn.Module]) -> None:
    assert {type(layer) for layer in gca.injected(gca.inject(small, name)).values()} == {cls}


@pytest.mark.parametrize("name", ["gca", "coord", "cbam", "se"])
@pytest.mark.parametrize("training", [True, False])
def test_the_start_keeps_every_output_bit_for_bit(small: nn.Module, name: str, training: bool) -> None:
    small.train(training)
    twin = copy.deepcopy(small)
    gca.inject(small, name)
    assert torch.equal(small(IMAGE), twin(IMAGE))
    assert torch.equal(gca.eject(small)(IMAGE), twin(IMAGE))


def test_the_start_of_the_papers_is_there_on_request(small: nn.Module) -> None:
    """A class given as such is the library's own too; a callable around it decides for itself."""
    before = small(IMAGE)
    for layer, options in (
        ("gca", {"identity_init": False}),
        (gca.SE, {"identity_init": False}),
        (lambda channels: gca.SE(channels), {}),
    ):
        gca.inject(small, layer, on_existing="replace", **options)
        assert not any(module.identity_init for module in gca.injected(small).values())
        assert not torch.equal(small(IMAGE), before)
    gca.inject(small, gca.SE, on_existing="replace")
    assert torch.equal(small(IMAGE), before)


def test_eject_restores_everything(small: nn.Module) -> None:
    before = snapshot(small)
    gca.eject(gca.inject(small))
    assert_same(before, snapshot(small))
    assert gca.injected(small) == {}
    gca.inject(small, "se")
    assert len(gca.injected(small)) == 6


def test_new_layers_follow_their_block(small: nn.Module) -> None:
    small.double()
    small.layer1.train()
    for parameter in small.parameters():
        parameter.requires_grad_(False)
    gca.inject(small)
    for name, layer in gca.injected(small).items():
        assert all(p.dtype == torch.float64 and p.requires_grad for p in layer.parameters())
        assert layer.training == layer.bn1.training == name.startswith("layer1")
    trainable = {name for name, parameter in small.named_parameters() if parameter.requires_grad}
    assert all(".se." in name for name in trainable)


def test_pretrained_weights_load_before_and_after(small: nn.Module) -> None:
    checkpoint = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    result = gca.inject(small).load_state_dict(checkpoint, strict=False)
    assert not result.unexpected_keys
    assert all(".se." in key for key in result.missing_keys)


def test_same_keys_as_timm_builds_itself(small: nn.Module) -> None:
    built = timm.create_model("resnet26", block_args={"attn_layer": gca.GroupedCoordinateAttention})
    assert gca.inject(resnet()).state_dict().keys() == built.state_dict().keys()
    assert gca.injected(built) == {}  # not ours to eject


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("resnet26d", {}),
        ("resnetblur18", {}),
        ("res2net50_14w_8s", {"scale": 8}),
        ("skresnet18", {}),
        ("skresnet50", {}),
        ("seresnet18", {}),
    ],
)
def test_parameters_are_in_the_order_in_which_timm_builds_them(name: str, options: dict[str, object]) -> None:
    """The state of an optimizer is positional: it would land on other parameters without an error."""
    with torch.device("meta"):
        built = timm.create_model(name, block_args={"attn_layer": gca.CoordinateAttention, **options})
        model = gca.inject(timm.create_model(name), "coord", on_existing="replace")
    assert [key for key, _ in model.named_parameters()] == [key for key, _ in built.named_parameters()]
    assert list(model.state_dict()) == list(built.state_dict())


def test_pickle_and_deepcopy_stay_ejectable(small: nn.Module) -> None:
    plain = small(IMAGE)
    gca.inject(small)
    for twin in (pickle.loads(pickle.dumps(small)), copy.deepcopy(small)):  # noqa: S301
        assert torch.equal(twin(IMAGE), small(IMAGE))
        assert torch.equal(gca.eject(twin)(IMAGE), plain)


def test_stages_and_where(small: nn.Module) -> None:
    assert list(gca.injected(gca.inject(copy.deepcopy(small), stages=2))) == ["layer2.0.se", "layer2.1.se"]
    assert list(gca.injected(gca.inject(copy.deepcopy(small), stages=[3, 4]))) == ["layer3.0.se", "layer4.0.se"]
    last = gca.inject(small, stages=[1, 2], where=lambda name, block: name.endswith(".1"))
    assert list(gca.injected(last)) == ["layer1.1.se", "layer2.1.se"]


def test_inside_a_segmentation_model() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = smp.Unet("tu-resnet50", encoder_weights=None, classes=2)
    gca.inject(model)
    assert next(iter(gca.injected(model))) == "encoder.model.layer1.0.se"
    assert len(gca.injected(model)) == 16
    model = gca.inject(gca.eject(model), stages=4)
    assert len(gca.injected(model)) == 3


class TestOccupiedSlots:
    @pytest.fixture
    def se_resnet(self) -> nn.Module:
        return randomize(resnet("seresnet50", block_args={"attn_layer": gca.SE})).eval()

    def test_error_by_default(self, se_resnet: nn.Module) -> None:
        with pytest.raises(ValueError, match=r"16 of 16 blocks already have attention, the first is layer1.0.se: SE"):
            gca.inject(se_resnet)

    def test_second_injection_is_an_error(self, small: nn.Module) -> None:
        gca.inject(small, stages=1)
        before = snapshot(small)
        with pytest.raises(
            ValueError, match=r"2 of 6 blocks .*on_existing='replace', 'skip' or 'stack', or call gca.eject"
        ):
            gca.inject(small)
        assert_same(before, snapshot(small))

    def test_skip(self, small: nn.Module) -> None:
        gca.inject(small, "se", stages=1)
        gca.inject(small, on_existing="skip")
        kinds = [type(layer).__name__ for layer in gca.injected(small).values()]
        assert kinds == ["SE"] * 2 + ["GroupedCoordinateAttention"] * 4

    def test_replace_and_eject_bring_back_what_was_built_in(self, se_resnet: nn.Module) -> None:
        before = snapshot(se_resnet)
        gca.inject(se_resnet, on_existing="replace")
        assert not any("fc1" in key for key in se_resnet.state_dict() if ".se." in key)
        gca.inject(se_resnet, "cbam", on_existing="replace")
        assert {type(layer) for layer in gca.injected(se_resnet).values()} == {gca.CBAM}
        se_resnet.double().train()
        gca.eject(se_resnet)
        assert se_resnet.layer1[0].se.training
        assert_same(before, snapshot(se_resnet.float().eval()))


class NotAModule:
    pass


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layer": "gac"}, ValueError, "one of 'gca', 'coord', 'cbam', 'se', got 'gac'; did you mean 'gca'?"),
        ({"layer": "GCA"}, ValueError, "did you mean 'gca'"),
        ({"layer": 3}, TypeError, r"layer must be a name or a callable .*, got 3"),
        ({"group": 2}, TypeError, "cannot build attention for block 'layer1.0' .*unexpected keyword argument 'group'"),
        ({"groups": 3}, ValueError, r"block 'layer1.0' \(32 channels\): channels must be divisible by groups"),
        ({"groups": 64}, ValueError, "channels must be divisible by groups, got channels=32, groups=64"),
        ({"layer": lambda channels: NotAModule()}, TypeError, "layer must return a torch.nn.Module, got NotAModule"),
        ({"stages": 5}, ValueError, r"stages=5 names no blocks for \[5\]; this model has stages \[1, 2, 3, 4\]"),
        ({"stages": []}, ValueError, r"stages=\[\] names no blocks"),
        ({"where": lambda name, block: False}, ValueError, "where matched none of 6 blocks; .* from 'layer1.0' to"),
        (
            {"on_existing": "ignore"},
            ValueError,
            "on_existing must be one of 'error', 'replace', 'skip', 'stack', got 'ignore'",
        ),
    ],
)
def test_bad_calls_leave_the_model_untouched(
    small: nn.Module, options: dict[str, object], error: type[Exception], message: str
) -> None:
    before = snapshot(small)
    with pytest.raises(error, match=message):
        gca.inject(small, **options)
    assert_same(before, snapshot(small))


def test_failure_in_a_late_block_leaves_the_model_untouched(small: nn.Module) -> None:
    def build(channels: int) -> nn.Module:
        if channels == 256:  # only stage 4
            raise ValueError("too wide")
        return nn.Identity()

    before = snapshot(small)
    with pytest.raises(ValueError, match=r"block 'layer4.0' \(256 channels\): too wide"):
        gca.inject(small, build)
    assert_same(before, snapshot(small))


@pytest.mark.parametrize("call", [gca.inject, gca.eject, gca.injected])
def test_not_a_module(call: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got str"):
        call("resnet50")


def test_models_without_known_blocks() -> None:
    with pytest.raises(
        ValueError, match="no known residual block in Linear; known are blocks with a shortcut of timm, torchvision"
    ):
        gca.inject(nn.Linear(2, 2))


def test_a_sub_class_with_its_own_forward_is_not_mistaken_for_its_parent(small: nn.Module) -> None:
    class Plain(timm.models.resnet.Bottleneck):
        pass

    class Other(timm.models.resnet.Bottleneck):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    assert len(gca.injected(gca.inject(Plain(32, 8)))) == 1
    with pytest.raises(ValueError, match=r"Other: it has another forward than its parent timm\S+Bottleneck; register"):
        gca.inject(Other(32, 8))


def test_nothing_to_eject(small: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"nothing to eject: gca.inject has placed no attention in this ResNet"):
        gca.eject(small)
