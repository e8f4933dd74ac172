"""Fill the slot of one block, and empty it again."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gca.blocks import SLOTS, Block
from gca.ops.layout import is_channels_last

# A block carries this attribute exactly while its slot holds an injected layer. It is a tuple of one: what the slot
# held before. Inside a tuple a replaced module is no sub-module, so it adds no key to the state_dict.
_BEFORE = "_gca_slot_before"

# A layer stacked on another is its child of this name, applied to its output by a hook: a container around the two
# would rename the parameters of the first.
_STACKED = "stacked"


def like_block(layer: nn.Module, block: Block) -> nn.Module:
    """Give a layer the device, dtype, memory format and train/eval mode of a block."""
    layer.to(device=block.weight.device, dtype=block.weight.dtype).train(block.module.training)
    if any(is_channels_last(parameter) for parameter in block.module.parameters()):
        layer.to(memory_format=torch.channels_last)
    return layer


def fill(block: Block, layer: nn.Module) -> None:
    """Put a layer into the slot, in place of whatever it holds."""
    module = block.module
    if not hasattr(module, _BEFORE):  # a second injection must not hide what the network was built with
        setattr(module, _BEFORE, (getattr(module, block.slot, None),))
        module.__class__ = block.slotted_class()
    setattr(module, block.slot, layer)


def stack(occupant: nn.Module, layer: nn.Module) -> None:
    """Apply a layer to the output of what the slot holds, after anything stacked there before."""
    while _is_stacked(occupant):
        occupant = occupant.get_submodule(_STACKED)
    occupant.add_module(_STACKED, layer)
    occupant.register_forward_hook(_apply_stacked)


def placed(block: Block) -> Iterator[tuple[str, nn.Module]]:
    """Qualified name and layer of everything that was put into a block, in the order in which it runs."""
    occupant = block.occupant
    if occupant is None:
        return
    name = block.layer_name
    if hasattr(block.module, _BEFORE):
        yield name, occupant
    while _is_stacked(occupant):
        name, occupant = f"{name}.{_STACKED}", occupant.get_submodule(_STACKED)
        yield name, occupant


def empty(block: Block) -> None:
    """Take everything out again that was put into a block."""
    module = block.module
    if hasattr(module, _BEFORE):
        (before,) = getattr(module, _BEFORE)
        delattr(module, _BEFORE)
        if before is None:
            delattr(module, block.slot)  # the slot was a plain None, not a registered sub-module, or not there at all
        if type(module).__module__.startswith(SLOTS):
            (module.__class__,) = type(module).__bases__
        else:
            setattr(module, block.slot, before if before is None else like_block(before, block))
    if block.occupant is not None and _is_stacked(block.occupant):
        hooks = block.occupant._forward_hooks
        for key in [key for key, hook in hooks.items() if hook is _apply_stacked]:
            del hooks[key]
        delattr(block.occupant, _STACKED)


def _is_stacked(layer: nn.Module) -> bool:
    return any(hook is _apply_stacked for hook in layer._forward_hooks.values())


def _apply_stacked(layer: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:  # typed as TorchScript wants it
    result: Tensor = layer.stacked(output)
    return result
