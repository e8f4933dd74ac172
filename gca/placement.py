"""Fill the slot of one block, and empty it again."""

import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from gca.blocks import NOTE, Before, Block, State
from gca.ops.layout import CHANNELS_LAST

# A layer stacked on another is its child of this name, applied to its output by a hook: a container around the two
# would rename the parameters of the first.
STACKED = "stacked"


def like_block(layer: nn.Module, block: Block, since: State | None = None) -> nn.Module:
    """Give a layer the device, dtype, memory format and mode of a block, or what of them changed ``since``."""
    now = block.state
    if since is None or now.device != since.device:
        if since is not None and since.device.type == "meta":
            layer.to_empty(device=now.device)  # as the block was, whose values are yet to come
        layer.to(device=now.device)
    if since is None or now.dtype != since.dtype:
        layer.to(dtype=now.dtype)
    if since is None or now.training != since.training:
        layer.train(now.training)
    if now.channels_last and not (since and since.channels_last):
        for parameter in layer.parameters():  # of images and of volumes: to() takes one format for all
            if parameter.ndim in CHANNELS_LAST:
                parameter.data = parameter.data.contiguous(memory_format=CHANNELS_LAST[parameter.ndim])
    return layer


def put(block: Block, layer: nn.Module, *, stacking: bool) -> None:
    """Put a layer into the slot, or on top of what it holds."""
    if stacking and block.occupant is not None:
        stack(block.occupant, layer)
    else:
        fill(block, layer)


def fill(block: Block, layer: nn.Module) -> None:
    """Put a layer into the slot, in place of whatever it holds."""
    module = block.module
    if block.before is None:  # a second injection must not hide what the network was built with
        assert block.family is not None
        note = Before(block.family, type(module), getattr(module, block.slot, None), block.state)
        module.__class__ = block.slotted_class()
        setattr(module, NOTE, note)
    new = block.slot not in module._modules
    setattr(module, block.slot, layer)
    if new:
        _order_children(block)


def _order_children(block: Block) -> None:
    """Move the slot to where a block that is built with attention has it: after the last convolution and its norm.

    The order of parameters follows, by which an optimizer's state finds them.
    """
    assert block.family is not None
    children = dict(block.module._modules)
    slot = children.pop(block.slot)
    names = list(children)
    last = block.family.last_conv.partition(".")[0]
    place = names.index(last) + 1 if last in names else len(names)  # it may be a property that names another child
    if place < len(names) and re.match("bn|norm", names[place]):
        place += 1
    block.module._modules.clear()  # torch has no way to insert a child
    for name in (*names[:place], block.slot, *names[place:]):
        block.module._modules[name] = slot if name == block.slot else children[name]


def stack(occupant: nn.Module, layer: nn.Module) -> None:
    """Apply a layer to the output of what the slot holds, after anything stacked there before."""
    last = chain(occupant)[-1]
    last.add_module(STACKED, layer)
    last.register_forward_hook(_apply_stacked)


def chain(occupant: nn.Module) -> list[nn.Module]:
    """What a slot holds, and after it what is stacked on that, in the order in which they run."""
    found = [occupant]
    while _is_stacked(found[-1]):
        found.append(found[-1].get_submodule(STACKED))
    return found


def placed(block: Block) -> Iterator[tuple[str, nn.Module]]:
    """Qualified name and layer of everything that was put into a block, in the order in which it runs."""
    occupant = block.occupant
    if occupant is None:
        return
    for depth, layer in enumerate(chain(occupant)):
        if depth or block.before is not None:
            yield ".".join([block.layer_name, *[STACKED] * depth]), layer


def prepare_to_empty(block: Block) -> None:
    """Have what the slot held before follow the block to where it is now; it is not part of the network yet."""
    if block.before is not None and block.before.occupant is not None:
        like_block(block.before.occupant, block, since=block.before.state)


def empty(block: Block) -> None:
    """Take everything out again that was put into a block, after :func:`prepare_to_empty`."""
    module, before = block.module, block.before
    if before is not None:
        delattr(module, NOTE)
        occupant = before.occupant
        if occupant is None:
            delattr(module, block.slot)  # the slot was a plain None, not a registered sub-module, or not there at all
        if before.family.slotted is not None:
            module.__class__ = before.cls
        if occupant is not None or before.family.slotted is None:
            setattr(module, block.slot, occupant)
    occupant = block.occupant
    if occupant is not None and _is_stacked(occupant):
        hooks = occupant._forward_hooks
        for key in [key for key, hook in hooks.items() if hook is _apply_stacked]:
            del hooks[key]
        delattr(occupant, STACKED)


def _is_stacked(layer: nn.Module) -> bool:
    return any(hook is _apply_stacked for hook in layer._forward_hooks.values())


def _apply_stacked(layer: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:  # typed as TorchScript wants it
    result: Tensor = layer.stacked(output)
    return result
