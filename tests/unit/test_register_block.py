"""``gca.register_block``: anyone's blocks, checked at once."""

import copy
import pickle
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
import torchvision
from torch import nn

import gca
from gca import families
from tests.conftest import randomize

IMAGES = torch.randn(2, 8, 6, 9, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """A residual block with a slot."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()
        self.attention = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x))
        if self.attention is not None:
            y = self.attention(y)
        return self.act(x + y)


class Dilated(torchvision.models.resnet.BasicBlock):
    """A sub-class of a slotless block that keeps its forward."""

    def __init__(self) -> None:
        super().__init__(8, 8)


class DilatedWithSlot(Dilated):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.attention(self.bn2(self.conv2(y)))
        return self.relu(y + x)


class Scaled(torchvision.models.resnet.BasicBlock):
    """A sub-class of a slotless block with a forward of its own."""

    def __init__(self) -> None:
        super().__init__(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(x + 0.5 * self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))


class ScaledWithSlot(Scaled):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(x + 0.5 * self.attention(y))


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    with mock.patch.dict(families.FAMILIES):
        yield
    families._registered.clear()


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (Block, {"last_conv": "conv"}),
        (Dilated, {"last_conv": "conv2", "slotted": DilatedWithSlot}),
        (Scaled, {"last_conv": "conv2", "slotted": ScaledWithSlot}),
    ],
)
def test_a_registered_block_is_like_any_other(cls: type[nn.Module], options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"no known residual block|can be given attention"):
        gca.inject(nn.Sequential(cls()))
    gca.register_block(cls, **options)
    network = randomize(nn.Sequential(cls(), cls())).eval()
    before, structure = network(IMAGES), [(type(m), sorted(vars(m)), list(m._modules)) for m in network.modules()]
    gca.inject(network)
    assert list(gca.injected(network)) == ["0.attention", "1.attention"]
    assert torch.equal(network(IMAGES), before)
    assert not torch.equal(randomize(network)(IMAGES), before)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):  # noqa: S301
        assert torch.equal(twin(IMAGES), network(IMAGES))
        assert len(gca.injected(twin)) == 2
    assert "2 of 2" in gca.summary(network)
    gca.eject(network)
    assert [(type(m), sorted(vars(m)), list(m._modules)) for m in network.modules()] == structure


def test_the_attention_of_a_block_with_a_slot_comes_after_its_norm() -> None:
    gca.register_block(Block, last_conv="conv")
    assert [name for name, _ in gca.inject(Block()).named_children()] == ["conv", "norm", "attention", "act"]


def test_registering_again_replaces() -> None:
    gca.register_block(Block, last_conv="norm")
    gca.register_block(Block, last_conv="conv")
    assert len(gca.injected(gca.inject(Block()))) == 1


def test_blocks_that_hold_attention_are_known_without_being_registered() -> None:
    """As in a process that loads a pickled network."""
    gca.register_block(Block, last_conv="conv")
    network = gca.inject(Block())
    del families.FAMILIES[f"{__name__}.Block"]
    assert list(gca.injected(network)) == ["attention"]
    assert gca.injected(gca.eject(network)) == {}


def test_a_last_convolution_that_is_not_there_is_named() -> None:
    gca.register_block(Block, last_conv="conv9")
    with pytest.raises(ValueError, match=r"block '', a \S*Block, has no 'conv9', .*; its parts are conv, norm, act"):
        gca.inject(Block())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"block": Block()}, TypeError, r"block must be a class of torch\.nn\.Module, got Block\("),
        ({"block": int}, TypeError, r"block must be a class of torch\.nn\.Module, got <class 'int'>"),
        ({"block": torchvision.models.resnet.BasicBlock}, ValueError, "BasicBlock is known to gca already"),
        ({"slot": 3}, TypeError, "slot must be a str, got 3"),
        ({"slot": "a.b"}, ValueError, "slot must be the name of an attribute, got 'a.b'"),
        ({"last_conv": ""}, ValueError, "last_conv must be the name of an attribute, got ''"),
        ({"slot": "se"}, ValueError, r"no method of \S*Block mentions self\.se, so attention there would never run"),
        ({"block": Scaled}, ValueError, r"no method of \S*Scaled mentions self\.attention, .*slotted=, a sub-class"),
        ({"slotted": Scaled}, TypeError, r"slotted must be a sub-class of \S*Block with a forward of its own, got"),
        ({"slotted": Block}, TypeError, "slotted must be a sub-class"),
    ],
)
def test_bad_registrations(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    known = dict(families.FAMILIES)
    with pytest.raises(error, match=message):
        gca.register_block(**{"block": Block, "last_conv": "conv", **arguments})
    assert known == families.FAMILIES


class Inner(Block):
    """Attention in a function that forward defines, as where blocks are checkpointed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def inner(x: torch.Tensor) -> torch.Tensor:
            y = self.norm(self.conv(x))
            return x + (y if self.attention is None else self.attention(y))

        return torch.utils.checkpoint.checkpoint(inner, x, use_reentrant=False)  # type: ignore[no-any-return]


class Decorated(Block):
    @torch.autocast("cpu", enabled=False)
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x))
        return x + (y if self.attention is None else self.attention(y))


class Listed(Block):
    """The last convolution has no attribute of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([self.conv])
        del self.conv

    @property
    def conv(self) -> nn.Module:
        return self.convs[0]

    @conv.deleter
    def conv(self) -> None:
        del self._modules["conv"]


class Transposed(Block):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(8, 8, 1, groups=2)  # its weight is (C_in, C_out / groups, 1, 1)


@pytest.mark.parametrize("block", [Inner, Decorated, Listed, Transposed])
def test_blocks_may_be_written_in_other_ways(block: type[nn.Module]) -> None:
    gca.register_block(block, last_conv="conv")
    model = randomize(gca.inject(nn.Sequential(block(), block()), "se", reduction=2, identity_init=False)).eval()
    assert [layer.channels for layer in gca.injected(model).values()] == [8, 8]
    with_attention = model(IMAGES)
    gca.eject(model)
    assert not torch.allclose(model(IMAGES), with_attention)


def test_a_lazy_convolution_is_named() -> None:
    class Lazy(Block):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.LazyConv2d(8, 3, padding=1)

    gca.register_block(Lazy, last_conv="conv")
    model = nn.Sequential(Lazy())
    with pytest.raises(ValueError, match="block '0' ends in a lazy convolution; run the network once, then inject"):
        gca.inject(model)
    assert "0 of 1" in gca.summary(model)  # of as many channels as nobody knows
    model(IMAGES)
    assert len(gca.injected(gca.inject(model))) == 1


def test_a_class_that_a_block_cannot_become_is_refused() -> None:
    class Slots(Dilated):
        __slots__ = ("extra",)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attention(super().forward(x))  # type: ignore[no-any-return]

    with pytest.raises(TypeError, match=r"cannot become a .*Slots: .* layout differs.*; give it no __slots__"):
        gca.register_block(Dilated, last_conv="conv2", slotted=Slots)
