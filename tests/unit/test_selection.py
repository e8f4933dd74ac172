import copy
import pickle

import pytest
import timm
import torch
import torch.distributed.fsdp
import torchvision
from torch import nn

import gca
from gca.selection import _UNCHANGEABLE
from gca.summary import summary
from tests.conftest import randomize
from tests.unit.test_inject import IMAGE, assert_same, snapshot


@pytest.fixture
def model() -> nn.Module:
    """Stages of 3, 2, 1 and 1 bottlenecks."""
    net = timm.models.resnet.ResNet(timm.models.resnet.Bottleneck, [3, 2, 1, 1], channels=(8, 16, 32, 64))
    return randomize(net).eval()


@pytest.fixture
def se_resnet() -> nn.Module:
    net = timm.models.resnet.ResNet(
        timm.models.resnet.Bottleneck, [2, 1, 1, 1], channels=(8, 16, 32, 64), block_args={"attn_layer": gca.SE}
    )
    return randomize(net).eval()


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"blocks": -1}, ["layer1.2", "layer2.1", "layer3.0", "layer4.0"]),
        ({"blocks": [0, -1], "stages": [1, 2]}, ["layer1.0", "layer1.2", "layer2.0", "layer2.1"]),
        ({"blocks": 2}, ["layer1.2"]),
        ({"blocks": (1,), "stages": 2}, ["layer2.1"]),
        ({"stages": range(3, 5)}, ["layer3.0", "layer4.0"]),
        ({"stages": 1, "where": lambda name, block: block.downsample is None}, ["layer1.1", "layer1.2"]),
    ],
)
def test_selectors_agree(model: nn.Module, options: dict[str, object], names: list[str]) -> None:
    gca.inject(model, **options)
    assert list(gca.injected(model)) == [f"{name}.se" for name in names]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"blocks": 3}, ValueError, r"blocks=3 names no block for \[3\]; blocks in each stage: 1: 3, 2: 2, 3: 1, 4: 1"),
        ({"blocks": [-4, 0]}, ValueError, r"names no block for \[-4\]"),
        ({"blocks": 1, "stages": 3}, ValueError, r"names no block for \[1\]; blocks in each stage: 3: 1"),
        ({"blocks": []}, ValueError, r"blocks=\[\] names no block"),
        ({"stages": [1, 7]}, ValueError, r"names no blocks for \[7\]"),
        ({"stages": "1"}, TypeError, "stages must be an int or several, got '1'"),
        ({"stages": True}, TypeError, "stages must be an int or several, got True"),
        ({"blocks": 0.5}, TypeError, "blocks must be an int or several, got 0.5"),
        ({"where": "layer1"}, TypeError, r"where must be a callable \(name, block\) -> bool, got 'layer1'"),
    ],
)
def test_wrong_selectors(model: nn.Module, options: dict[str, object], error: type[Exception], message: str) -> None:
    before = snapshot(model)
    with pytest.raises(error, match=message):
        gca.inject(model, **options)
    assert_same(before, snapshot(model))


@pytest.mark.parametrize(
    ("name", "stage", "first"),
    [
        ("resnetv2_50", 1, "stages.0.blocks.0.attention"),
        ("cspresnet50", 4, "stages.3.blocks.0.attn3"),
        ("dla34", 2, "level2.tree1.attention"),
        ("hrnet_w18_small", 2, "stage2.0.branches.0.0.se"),
    ],
)
def test_stages_count_from_one_in_every_family(name: str, stage: int, first: str) -> None:
    with torch.device("meta"):
        net = timm.create_model(name)
    assert next(iter(gca.injected(gca.inject(net, "se", stages=stage, reduction=1)))) == first


def test_features_only_keeps_the_stages() -> None:
    net = timm.create_model("resnetv2_50", features_only=True)
    gca.inject(net, stages=[3, 4], blocks=-1)
    assert list(gca.injected(net)) == ["stages_2.blocks.5.attention", "stages_3.blocks.2.attention"]


def test_summary() -> None:
    with torch.device("meta"):
        net = gca.inject(timm.create_model("resnet50"), stages=[3, 4])
    table = gca.summary(net)
    assert [line.rstrip() for line in table.splitlines()] == [
        line.strip() for line in (summary.__doc__ or "").split("[3, 4])))\n")[1].strip().splitlines()
    ]
    added = sum(parameter.numel() for layer in gca.injected(net).values() for parameter in layer.parameters())
    assert f"{added:,}" in table.splitlines()[-1]


def test_summary_of_networks_without_attention() -> None:
    assert gca.summary(nn.Linear(2, 2)).splitlines()[-1].split() == ["total", "0", "of", "0", "0"]
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got str"):
        gca.summary("resnet50")


class TestStacking:
    def test_applies_to_the_output_of_what_is_there(self, se_resnet: nn.Module) -> None:
        se = se_resnet.layer1[0].se
        x = torch.randn(2, 32, 6, 6)
        squeezed = se(x)
        gca.inject(se_resnet, on_existing="stack")
        layers = gca.injected(se_resnet)
        assert list(layers)[:2] == ["layer1.0.se.stacked", "layer1.1.se.stacked"]
        assert se_resnet.layer1[0].se is se
        assert torch.equal(se(x), layers["layer1.0.se.stacked"](squeezed))

    def test_adds_keys_and_renames_none(self, se_resnet: nn.Module) -> None:
        keys = se_resnet.state_dict().keys()
        gca.inject(se_resnet, on_existing="stack")
        added = se_resnet.state_dict().keys() - keys
        assert keys <= se_resnet.state_dict().keys()
        assert all(".se.stacked." in key for key in added)

    def test_stacks_again_and_comes_off_whole(self, se_resnet: nn.Module) -> None:
        before = snapshot(se_resnet)
        for layer in ("cbam", "coord"):
            gca.inject(se_resnet, layer, on_existing="stack", reduction=2)
        names = [name for name in gca.injected(se_resnet) if name.startswith("layer2")]
        assert names == ["layer2.0.se.stacked", "layer2.0.se.stacked.stacked"]
        gca.eject(se_resnet)
        assert_same(before, snapshot(se_resnet))

    def test_on_an_injected_layer(self, model: nn.Module) -> None:
        before = snapshot(model)
        gca.inject(model, "se", stages=1)
        gca.inject(model, on_existing="stack")
        assert list(gca.injected(model))[:2] == ["layer1.0.se", "layer1.0.se.stacked"]
        assert "SE, GroupedCoordinateAttention  3 of 3" in gca.summary(model)
        gca.eject(model)
        assert_same(before, snapshot(model))

    def test_replaced_with_what_it_stands_on(self, se_resnet: nn.Module) -> None:
        before = snapshot(se_resnet)
        gca.inject(se_resnet, on_existing="stack")
        gca.inject(se_resnet, "cbam", on_existing="replace", reduction=2)
        assert {type(layer) for layer in gca.injected(se_resnet).values()} == {gca.CBAM}
        gca.eject(se_resnet)
        assert_same(before, snapshot(se_resnet))

    def test_pickle_and_deepcopy(self, se_resnet: nn.Module) -> None:
        plain = se_resnet(IMAGE)
        gca.inject(se_resnet, on_existing="stack")
        for twin in (pickle.loads(pickle.dumps(se_resnet)), copy.deepcopy(se_resnet)):  # noqa: S301
            assert torch.equal(twin(IMAGE), se_resnet(IMAGE))
            assert torch.equal(gca.eject(twin)(IMAGE), plain)


def test_new_layers_follow_the_memory_format(model: nn.Module) -> None:
    gca.inject(model.to(memory_format=torch.channels_last), "cbam", reduction=2)
    for layer in gca.injected(model).values():
        assert layer.conv.weight.is_contiguous(memory_format=torch.channels_last)
        assert not layer.conv.weight.is_contiguous()


class TestModelsThatCannotBeChanged:
    def check(self, model: nn.Module, message: str) -> None:
        for call in (gca.inject, gca.eject):
            with pytest.raises(TypeError, match=message):
                call(model)

    def test_compiled(self, model: nn.Module) -> None:
        self.check(torch.compile(model), "a OptimizedModule cannot .*the model is one; inject first, then compile")

    def test_compiled_inside(self, model: nn.Module) -> None:
        self.check(nn.ModuleDict({"net": torch.compile(model)}), "its part 'net' is one; inject first, then compile")

    @pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
    def test_scripted_and_traced(self, model: nn.Module) -> None:
        # Not the network: torch.jit.script can take a list of a convolution for an operator that was freed before.
        self.check(torch.jit.script(nn.ReLU()), "ScriptModule cannot .*; inject first, then script")
        self.check(torch.fx.symbolic_trace(model), "a GraphModule cannot be changed, .*; inject first, then trace")

    def test_data_parallel(self, model: nn.Module) -> None:
        self.check(nn.DataParallel(model), r"a DataParallel cannot be changed, .* \(or pass model.module\)")

    def test_without_the_class_that_has_the_slot(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As with a release of torchvision in which the block has another name."""
        net = torchvision.models.resnet18().eval()
        before = snapshot(net)
        monkeypatch.delattr("gca.slots.torchvision.BasicBlock")
        with pytest.raises(AttributeError, match="BasicBlock"):
            gca.inject(net)
        assert_same(before, snapshot(net))

    def test_nothing_to_undo(self) -> None:
        net = torchvision.models.resnet18()
        with pytest.raises(ValueError, match="nothing to eject"):
            gca.eject(net)


def test_the_wrappers_are_still_called_so() -> None:
    wrappers = {
        nn.parallel.DistributedDataParallel,
        nn.DataParallel,
        torch.distributed.fsdp.FullyShardedDataParallel,
        torch.distributed.fsdp.FSDPModule,
        torch._dynamo.OptimizedModule,
        torch.jit.ScriptModule,
        torch.fx.GraphModule,
    }
    assert {wrapper.__name__ for wrapper in wrappers} == _UNCHANGEABLE.keys()
    assert all(wrapper.__module__.startswith("torch.") for wrapper in wrappers)
