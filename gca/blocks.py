"""Find the residual blocks of a network.

Blocks are recognised by the qualified name of the class whose ``forward`` runs, so that a sub-class that overrides
``forward`` is not mistaken for its parent. Blocks that hold injected attention are recognised by the note that
``inject`` leaves in them, whatever becomes of their class.
"""

import importlib
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter

from gca.families import FAMILIES, REFUSED, BlockFamily, qualified
from gca.ops.layout import is_channels_last

_WRAPPER = "segmentation_models_pytorch.base.modules.Attention"  # of a decoder block: holds its attention, or Identity


class State(NamedTuple):
    """Of a block: what its attention has to have as well."""

    device: torch.device
    dtype: torch.dtype
    training: bool
    channels_last: bool


@dataclass(frozen=True)
class Before:
    """What a block was before ``inject`` filled its slot. The block carries this note until ``eject``.

    What the slot held lies inside the note, where it is no sub-module and adds no key to the ``state_dict``.
    """

    family: BlockFamily
    cls: type[nn.Module]
    occupant: nn.Module | None
    state: State

    def __setstate__(self, state: dict[str, Any]) -> None:
        """For a network that is unpickled whole."""
        vars(self).update(state)
        keep_in_hub()


def keep_in_hub() -> None:
    """Have smp's ``save_pretrained`` and ``from_pretrained`` keep injected attention, where smp is in use."""
    if "segmentation_models_pytorch" in sys.modules:
        importlib.import_module("gca.hub")


NOTE = "_gca_before"  # the attribute of a block that holds it


@dataclass(frozen=True)
class Block:
    """A residual block inside a model: known, and then it has a family, or refused, and then it has a reason."""

    name: str
    module: nn.Module
    family: BlockFamily | None
    refusal: str = ""

    @property
    def slot(self) -> str:
        """Name of the attribute that holds attention."""
        assert self.family is not None
        return self.family.slot

    @property
    def layer_name(self) -> str:
        """Qualified name of the slot."""
        return f"{self.name}.{self.slot}" if self.name else self.slot

    @property
    def before(self) -> Before | None:
        """The note of ``inject``, where it filled the slot."""
        return vars(self.module).get(NOTE)

    @property
    def occupant(self) -> nn.Module | None:
        """What the slot holds; ``None`` where it is empty, as which the block's own ``nn.Identity`` counts."""
        occupant: nn.Module | None = getattr(self.module, self.slot, None)
        return occupant if self.before is not None else unless_empty(occupant)

    @property
    def tampering(self) -> str:
        """What was done to the block behind ``inject``'s back that would make a change to it go wrong, or nothing."""
        if "forward" in vars(self.module):
            return (
                "its forward was replaced on the instance, as hook libraries such as accelerate do, and may never "
                "reach attention; inject or eject first, or remove those hooks"
            )
        if any(hasattr(part, "_hf_hook") for part in self.module.modules()):
            return "accelerate moves its weights between devices by hooks; inject or eject first, or remove them"
        if self.family is None or self.family.slotted is None:
            return ""
        cls = type(self.module)
        if self.before is not None:
            changed = cls is not self.slotted_class()
            return f"its class became {qualified(cls)} after attention was injected; undo that first" if changed else ""
        if isinstance(self.family.slotted, str) and cls.forward.__qualname__ != f"{_owner(cls).__qualname__}.forward":
            return f"the forward of its class was replaced by {cls.forward!r}, which gca.slots does not know of"
        return ""

    def slotted_class(self) -> type[nn.Module]:
        """The class whose ``forward`` calls the slot: the block's own, or its sub-class in ``gca.slots``.

        That is imported on demand; the library of its parent is there, since the block is.
        """
        assert self.family is not None
        if self.family.slotted is None:
            return type(self.module)
        if isinstance(self.family.slotted, type):
            return self.family.slotted
        module, _, name = self.family.slotted.rpartition(".")
        cls: type[nn.Module] = getattr(importlib.import_module(module), name)
        return cls

    @property
    def _last(self) -> tuple[nn.Module, Tensor]:
        """The last convolution and its weight: attention takes its output channels, dimension, device and dtype."""
        assert self.family is not None
        try:
            last = self.module.get_submodule(self.family.last_conv)
        except AttributeError as error:
            kind, parts = qualified(type(self.module)), ", ".join(name for name, _ in self.module.named_children())
            raise ValueError(
                f"block {self.name!r}, a {kind}, has no {self.family.last_conv!r}, which was named as its last "
                f"convolution; its parts are {parts}"
            ) from error
        if isinstance(last, nn.Sequential):
            last = [last, *(child for child in last.modules() if isinstance(child, _ConvNd))][-1]
        modes = {part: part.training for part in last.modules()}
        last.eval()  # a parametrization such as spectral_norm changes its buffers whenever it is asked in train mode
        try:
            weight = getattr(last, "weight", None)
        finally:
            for part, training in modes.items():
                part.training = training
        if isinstance(weight, UninitializedParameter):
            raise ValueError(f"block {self.name!r} ends in a lazy convolution; run the network once, then inject")
        if not isinstance(weight, Tensor) or weight.ndim not in (4, 5):
            of_shape = f"one of shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else ""
            got = of_shape or "a quantized or packed one, or several side by side"
            raise ValueError(
                f"attention is for images and volumes, but block {self.name!r} ends in a convolution whose weight "
                f"is neither (C_out, C_in, kH, kW) nor (C_out, C_in, kD, kH, kW): {got}"
            )
        return last, weight

    @property
    def channels(self) -> int:
        """Output channels of the last convolution."""
        last, weight = self._last
        return int(last.out_channels) if getattr(last, "transposed", False) else weight.shape[0]  # type: ignore[arg-type]

    @property
    def is_meta(self) -> bool:
        """Whether it has no memory."""
        return self._last[1].is_meta

    @property
    def spatial_dims(self) -> int:
        """2 for images, 3 for volumes, as the last convolution has it."""
        return self._last[1].ndim - 2

    @property
    def state(self) -> State:
        """Device and dtype of the last convolution, mode and memory format of the block."""
        _, weight = self._last
        format_kept = any(is_channels_last(parameter) for parameter in self.module.parameters())
        return State(weight.device, weight.dtype, self.module.training, format_kept)

    @property
    def stage(self) -> int | None:
        """Stage, counted from 1, as the name of the block gives it; ``None`` outside a stage.

        ``layer1``, ``stage1`` and ``level1`` carry it; in ``stages.0``, and in the ``blocks.0.0`` of timm's inverted
        residuals, the count starts from 0. ``features_only`` models have an underscore in place of the dot. Stages are
        those of an encoder: the blocks of a decoder are in none.
        """
        if [part for part in self.name.split(".") if part in ("encoder", "decoder")][-1:] == ["decoder"]:
            return None
        pattern = r"(?:^|[._])(layer|stage|level|stages[._]|blocks\.(?=\d+\.\d+$))(\d+)(?=\.|$)"
        found = re.findall(pattern, self.name)
        if not found:
            return None
        word, number = found[-1]
        return int(number) + 1 if word.startswith(("stages", "blocks")) else int(number)


def unless_empty(occupant: nn.Module | None) -> nn.Module | None:
    """What a slot holds, or ``None`` for a ``nn.Identity``, also in smp's wrapper."""
    inside = occupant.attention if occupant is not None and qualified(type(occupant)) == _WRAPPER else occupant
    return None if isinstance(inside, nn.Identity) else occupant


def _owner(cls: type) -> type:
    """The class whose ``forward`` runs."""
    return next(parent for parent in cls.__mro__ if "forward" in vars(parent))


def _identify(name: str, module: nn.Module) -> Block | None:
    note = vars(module).get(NOTE)
    if note is not None:
        return Block(name, module, note.family)
    exact, known = qualified(type(module)), qualified(_owner(type(module)))
    if known in REFUSED:
        return Block(name, module, None, REFUSED[known])
    family = FAMILIES.get(exact) or FAMILIES.get(known)
    if family is None:
        parent = next((name for name in map(qualified, type(module).__mro__) if name in FAMILIES), None)
        reason = f"it has another forward than its parent {parent}; register it with gca.register_block"
        return Block(name, module, None, reason) if parent else None
    required = family.requires
    if required is not None and not (required(module) if callable(required) else getattr(module, required)):
        return None
    if exact not in FAMILIES and family.slotted:
        reason = (
            f"it inherits its forward from {known}, which has no slot; register it with a sub-class that has one: "
            "gca.register_block(..., slotted=...)"
        )
        return Block(name, module, None, reason)
    return Block(name, module, family)


def find_blocks(model: nn.Module) -> Iterator[Block]:
    """Every known and every refused block of a model, in the order of ``named_modules``."""
    for name, module in model.named_modules():
        block = _identify(name, module)
        if block is not None:
            yield block


def requested(model: nn.Module, block: Block) -> bool:
    """Whether injecting a model means this block too: one on request only if the model is its part, or the block."""
    family = block.family
    if family is None or family.on_request is None:
        return True
    return block.module is model or family.on_request in map(qualified, type(model).__mro__)


def composites(model: nn.Module) -> list[str]:
    """The three most frequent classes of modules that hold others, with how many there are, for error messages."""
    counts = Counter(
        qualified(type(module)) for module in model.modules() if module is not model and _composite(module)
    )
    return [f"{name} ({count})" for name, count in counts.most_common(3)]


def _composite(module: nn.Module) -> bool:
    # Not torch's own containers, nor its layers with parts added, such as timm's norm with its activation.
    layers = [cls for cls in type(module).__mro__ if cls.__module__.startswith("torch.nn.modules.")]
    torch_only = layers[0] is type(module) or {cls.__module__.rpartition(".")[2] for cls in layers} - {
        "module",
        "container",
    }
    return any(module.children()) and not torch_only
