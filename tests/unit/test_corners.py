"""Blocks that something else changed, before or after, and layers that are placed in odd ways."""

import contextlib
import functools
import threading
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import gca
from gca.blocks import find_blocks

IMAGES = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
NETWORKS = {
    "with a slot": lambda: timm.create_model("resnet10t", num_classes=3).eval(),
    "without": lambda: torchvision.models.resnet18(num_classes=3).eval(),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    model: nn.Module = NETWORKS[request.param]()
    return model


def first(model: nn.Module) -> nn.Module:
    block: nn.Module = model.layer1[0]
    return block


def replace_forward(block: nn.Module) -> None:
    block.forward = functools.partial(type(block).forward, block)  # as hook libraries do


def hook_a_part(block: nn.Module) -> None:
    block.conv1._hf_hook = object()  # as accelerate does to move weights


class Double(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def parametrize_block(block: nn.Module) -> None:
    block.scale = nn.Parameter(torch.ones(1))
    parametrize.register_parametrization(block, "scale", Double())  # changes the class of the block


def names_and_classes(model: nn.Module) -> list[object]:
    return [(name, type(module), list(module._modules)) for name, module in model.named_modules()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace_forward, "1 of .* blocks cannot be changed, the first is 'layer1.0': its forward was replaced on the"),
        (hook_a_part, "the first is 'layer1.0': accelerate moves its weights between devices by hooks"),
    ],
)
def test_a_changed_block_is_refused_by_name(
    network: nn.Module, change: Callable[[nn.Module], None], message: str
) -> None:
    change(first(network))
    before = names_and_classes(network)
    with pytest.raises(ValueError, match=message):
        gca.inject(network)
    assert names_and_classes(network) == before
    assert len(gca.injected(gca.inject(network, where=lambda name, _: name != "layer1.0"))) > 2


@pytest.mark.parametrize("change", [replace_forward, hook_a_part])
def test_a_block_changed_after_injection_is_still_known_and_ejected_only_when_that_is_undone(
    network: nn.Module, change: Callable[[nn.Module], None]
) -> None:
    keys = list(network.state_dict())
    count = len(gca.injected(gca.inject(network)))
    change(first(network))
    assert len(gca.injected(network)) == count
    network(IMAGES)
    before = names_and_classes(network)
    with pytest.raises(ValueError, match=r"the first is 'layer1\.0'"):
        gca.eject(network)
    assert names_and_classes(network) == before
    vars(first(network)).pop("forward", None)
    vars(first(network).conv1).pop("_hf_hook", None)
    assert list(gca.eject(network).state_dict()) == keys


def test_a_parametrized_block_of_a_class_with_a_slot() -> None:
    network = NETWORKS["with a slot"]()
    parametrize_block(first(network))
    before = names_and_classes(network)
    gca.inject(network)
    assert "layer1.0.se" in gca.injected(network)
    assert names_and_classes(gca.eject(network)) == before


def test_a_parametrized_block_of_a_class_without_is_refused() -> None:
    network = NETWORKS["without"]()
    parametrize_block(first(network))
    with pytest.raises(ValueError, match=r"ParametrizedBasicBlock: it inherits its forward .* slotted="):
        gca.inject(network)


def test_a_block_parametrized_after_injection() -> None:
    network = gca.inject(NETWORKS["without"]())
    parametrize_block(first(network))
    assert "layer1.0.attention" in gca.injected(network)
    with pytest.raises(ValueError, match=r"'layer1.0': its class became \S*ParametrizedBasicBlock after attention"):
        gca.eject(network)
    parametrize.remove_parametrizations(first(network), "scale")
    assert gca.injected(gca.eject(network)) == {}


def test_parametrized_and_pruned_convolutions_are_no_obstacle(network: nn.Module) -> None:
    parametrizations.spectral_norm(first(network).conv1)
    parametrizations.weight_norm(first(network).conv2)
    prune.l1_unstructured(network.layer2[0].conv2, "weight", 0.5)
    expected = network(IMAGES)
    keys = list(network.state_dict())
    assert torch.equal(gca.inject(network)(IMAGES), expected)
    assert list(gca.eject(network).state_dict()) == keys
    assert torch.equal(network(IMAGES), expected)


def test_hooks_of_a_block_still_run(network: nn.Module) -> None:
    seen: list[int] = []
    first(network).register_forward_hook(lambda *_: seen.append(1))
    gca.inject(network)(IMAGES)
    gca.eject(network)(IMAGES)
    assert seen == [1, 1]


def test_a_forward_replaced_in_the_class_is_not_undone_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.models.resnet.BasicBlock, "forward", lambda self, x: x)
    with pytest.raises(ValueError, match=r"the forward of its class was replaced by .*lambda"):
        gca.inject(NETWORKS["without"]())


def test_a_network_compiled_in_place_is_refused(network: nn.Module) -> None:
    first(network).compile(backend="eager")
    with pytest.raises(TypeError, match=r"the part 'layer1\.0' of the model was compiled in place, .* then compile"):
        gca.inject(network)


def test_a_block_whose_class_was_changed_is_never_left_out_in_silence(network: nn.Module) -> None:
    block = first(network)
    block.__class__ = type("Patched", (type(block),), {"forward": lambda self, x: x})
    with pytest.raises(
        ValueError, match=r"1 of \d+ blocks cannot be given attention, .*Patched: it has another forward"
    ):
        gca.inject(network)
    assert gca.injected(network) == {}


class Stateless(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 0.5


@pytest.mark.parametrize("layer", [lambda channels: nn.Identity(), lambda channels: nn.ReLU(), Stateless])
@pytest.mark.parametrize("policy", ["replace", "stack"])
def test_layers_without_state_are_listed_and_ejected(
    network: nn.Module, layer: Callable[[int], nn.Module], policy: str
) -> None:
    before = names_and_classes(network)
    gca.inject(network, layer)
    count = len([block for block in find_blocks(network) if block.family])
    assert len(gca.injected(network)) == count
    with pytest.raises(ValueError, match="already have attention"):
        gca.inject(network)
    gca.inject(network, "se", on_existing=policy)
    assert len(gca.injected(network)) == (count if policy == "replace" else 2 * count)
    assert names_and_classes(gca.eject(network)) == before


def test_a_slot_emptied_by_hand_is_still_ejected(network: nn.Module) -> None:
    before = names_and_classes(network)
    gca.inject(network, stages=1)
    for block in find_blocks(network):
        if block.before:
            setattr(block.module, block.slot, None)
    assert gca.injected(network) == {}
    assert names_and_classes(gca.eject(network)) == before


def test_one_instance_in_several_places_but_never_on_itself(network: nn.Module) -> None:
    shared = gca.SE(64)
    blocks = {name for name, _ in network.named_modules() if name.startswith("layer1.") and name.count(".") == 1}
    gca.inject(network, lambda channels: shared, stages=1)
    assert {name.rpartition(".")[0] for name in gca.injected(network)} == blocks
    with pytest.raises(ValueError, match=r"a module for block 'layer1\.0' that is already there .* build a new one"):
        gca.inject(network, lambda channels: shared, stages=1, on_existing="stack")
    if len(blocks) > 1:
        with pytest.raises(ValueError, match=r"block 'layer1\.1' shares its attention with another block"):
            gca.inject(network, "se", stages=1, on_existing="stack")
    network(IMAGES)


def test_a_layer_cannot_hold_the_block_that_it_goes_into(network: nn.Module) -> None:
    with pytest.raises(ValueError, match="already there or holds that block"):
        gca.inject(network, lambda channels: network, stages=1)


def test_injecting_in_inference_mode_gives_parameters_that_train(network: nn.Module) -> None:
    before = names_and_classes(network)
    with torch.inference_mode():
        gca.inject(network, "se")
    network.train()(IMAGES).sum().backward()
    assert all(p.grad is not None for layer in gca.injected(network).values() for p in layer.parameters())
    with torch.inference_mode():
        gca.eject(network)
    assert names_and_classes(network) == before


def test_the_default_device_does_not_decide(network: nn.Module) -> None:
    with torch.device("meta"):
        gca.inject(network, "se")
    assert not any(p.is_meta for p in network.parameters())
    network(IMAGES)


def test_a_network_used_by_threads_while_it_is_inspected(network: nn.Module) -> None:
    gca.inject(network, "se", identity_init=False)
    expected = network(IMAGES)
    failures: list[bool] = []

    def run() -> None:
        with torch.no_grad():
            failures.extend(not torch.allclose(network(IMAGES), expected) for _ in range(5))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    maps = [gca.attention_maps(network, IMAGES) for _ in range(5)]
    for thread in threads:
        thread.join()
    assert len(failures) == 10
    assert not any(failures)
    assert all(torch.equal(found[name].channel, maps[0][name].channel) for found in maps for name in found)


def test_what_was_replaced_comes_back_as_it_was(network: nn.Module) -> None:
    network = timm.create_model("seresnet18", num_classes=3).half().train()
    for block in find_blocks(network):
        block.module.se.float().eval()
    before = [(name, x.dtype) for name, x in network.state_dict().items()]
    modes = [module.training for module in network.modules()]
    gca.eject(gca.inject(network, on_existing="replace"))
    assert [(name, x.dtype) for name, x in network.state_dict().items()] == before
    assert [module.training for module in network.modules()] == modes

    gca.inject(network, on_existing="replace")
    gca.eject(network.double().eval())  # what changed meanwhile, changes for what was replaced as well
    assert {x.dtype for x in network.parameters()} == {torch.float64}
    assert not any(module.training for module in network.modules())


def test_what_was_replaced_leaves_the_meta_device_with_the_network() -> None:
    with torch.device("meta"):
        network = timm.create_model("seresnet18", num_classes=3)
    gca.inject(network, on_existing="replace")
    gca.eject(network.to_empty(device="cpu"))
    assert gca.injected(network) == {}
    assert not any(x.is_meta for x in network.state_dict().values())
    network.load_state_dict(timm.create_model("seresnet18", num_classes=3).state_dict())


@pytest.mark.parametrize("call", [gca.inject, gca.summary, lambda model: gca.inject(model, groups=7)])
def test_looking_at_a_network_changes_no_buffer(call: Callable[[nn.Module], object]) -> None:
    network = NETWORKS["with a slot"]().train()
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d):
            parametrizations.spectral_norm(module)  # counts on whenever it is asked for its weight in train mode
    before = {name: x.clone() for name, x in network.state_dict().items()}
    with contextlib.suppress(ValueError):
        call(network)
    after = network.state_dict()
    assert [name for name, x in before.items() if not torch.equal(x, after[name])] == []
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize("pack", [torch.jit.script, torch.compile, torch.fx.symbolic_trace])
@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_layers_that_are_scripted_compiled_or_traced_come_out_again(
    network: nn.Module, pack: Callable[[nn.Module], nn.Module]
) -> None:
    keys = list(network.state_dict())
    gca.inject(network, lambda channels: pack(gca.SE(channels)))
    assert len(gca.injected(network)) in (4, 8)
    assert list(gca.eject(network).state_dict()) == keys


def test_a_layer_with_an_attribute_of_the_name_is_not_stacked_on() -> None:
    network = NETWORKS["with a slot"]()
    network.layer2[0].se = nn.Sequential()
    network.layer2[0].se.add_module("stacked", nn.Identity())
    keys = list(network.state_dict())
    with pytest.raises(ValueError, match=r"'layer2\.0', a Sequential, has an attribute 'stacked' of its own, where"):
        gca.inject(network, on_existing="stack")
    assert (gca.injected(network), list(network.state_dict())) == ({}, keys)


def test_a_network_with_attention_of_its_own_is_not_told_to_eject() -> None:
    network = timm.create_model("seresnet18", num_classes=3)
    with pytest.raises(ValueError, match=r"pass on_existing='replace', 'skip' or 'stack'$"):
        gca.inject(network)
    with pytest.raises(ValueError, match=r"or call gca\.eject first$"):
        gca.inject(gca.inject(network, on_existing="replace"))
