"""Put attention into the residual blocks of a network that is already built, and take it out again."""

import difflib
import json
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import nn

from gca.blocks import Block, find_blocks, keep_in_hub
from gca.families import qualified
from gca.layers import CBAM, SE, CoordinateAttention, GatedLayer, GroupedCoordinateAttention
from gca.placement import STACKED, chain, empty, like_block, placed, prepare_to_empty, put
from gca.selection import Where, check_changeable, check_model, check_untampered, select

LAYERS: dict[str, Callable[..., nn.Module]] = {
    "gca": GroupedCoordinateAttention,
    "coord": CoordinateAttention,
    "cbam": CBAM,
    "se": SE,
}
POLICIES = ("error", "replace", "skip", "stack")

# A layer that is not the library's carries this note for ``gca.save``: what built it, and its options as JSON or None.
SOURCE = "_gca_source"

Model = TypeVar("Model", bound=nn.Module)


def inject(
    model: Model,
    layer: str | Callable[..., nn.Module] = "gca",
    *,
    stages: int | Iterable[int] | None = None,
    blocks: int | Iterable[int] | None = None,
    where: Where | None = None,
    on_existing: str = "error",
    **options: Any,
) -> Model:
    """Put attention into every residual block, after its last norm and before the residual sum.

    The model is changed in place and returned. Its own parameters and buffers keep their names, values and
    ``requires_grad``; only new keys are added. New layers take the device, dtype, memory format and train/eval mode of
    their block. Everything is checked and built before anything is assigned: after an error the model is untouched.

    The library's own layers start as the identity: the network computes bit for bit what it computed before, until it
    is trained. ``identity_init=False`` gives the start of the papers, gates near one half, by which every residual
    branch of a pretrained network would be damped (to about a quarter for ``"gca"`` and ``"coord"``).

    Args:
        model: Any network that contains residual blocks of timm, torchvision, segmentation-models-pytorch, MONAI,
            transformers or nnU-Net, e.g. ``timm.create_model("resnet50")`` or a segmentation or detection model around
            one.
            ``python -m gca`` lists the block classes, and :func:`gca.register_block` adds others.
        layer: ``"gca"``, ``"coord"``, ``"cbam"`` or ``"se"``, or a callable ``(channels, **options) -> nn.Module``
            whose result keeps the shape of its input. The library's own take the dimension of the block's last
            convolution as ``spatial_dims``.
        stages: Only blocks of these stages, counted from 1 as in ``layer1`` ... ``layer4``. Default: all.
        blocks: Only blocks at these positions within each stage, as in list indexing: ``-1`` is the last block of
            each stage, ``[0, -1]`` the first and the last. Default: all.
        where: Only blocks for which ``where(name, block)`` is true.
        on_existing: What to do where the slot is occupied, as in SE-ResNets or after an earlier call: ``"error"``,
            ``"replace"`` (``eject`` brings back what was there), ``"skip"``, or ``"stack"``, which applies the new
            layer to the output of the one that is there.
        **options: Passed to ``layer``, e.g. ``groups=2, reduction=2``. For the library's own layers
            ``identity_init=True`` is one of them unless given.

    Returns:
        ``model``.

    Raises:
        TypeError: If ``model`` is no module or is wrapped, compiled, scripted or traced, a selector is of the wrong
            type, or ``layer`` does not accept the options or returns no module.
        ValueError: If no block is known, a chosen block cannot be given attention or was changed by something else
            (its forward, its class, hooks of accelerate), an entry of a selector matches nothing, ``layer`` or
            ``on_existing`` is unknown, a slot is occupied, ``layer`` refuses a block's channels or an option's value,
            or a module would be placed inside itself.

    Example:
        >>> model = gca.inject(timm.create_model("resnet50"), groups=2, reduction=2)
        >>> len(gca.injected(model))
        16
    """
    build = resolve(layer)
    if build in LAYERS.values():
        options = {"identity_init": True, **options}
    if on_existing not in POLICIES:
        raise ValueError(f"on_existing must be one of {', '.join(map(repr, POLICIES))}, got {on_existing!r}")
    check_changeable(model)
    chosen = select(model, stages, blocks, where)

    occupied = [block for block in chosen if block.occupant is not None]
    if occupied and on_existing == "error":
        or_eject = ", or call gca.eject first" if any(block.before for block in occupied) else ""
        raise ValueError(
            f"{len(occupied)} of {len(chosen)} blocks already have attention, the first is {occupied[0].layer_name}: "
            f"{type(occupied[0].occupant).__name__}; pass on_existing='replace', 'skip' or 'stack'{or_eject}"
        )
    if on_existing == "skip":
        chosen = [block for block in chosen if block.occupant is None]

    layers = [build_layer(build, block, options) for block in chosen]
    place(chosen, layers, stacking=on_existing == "stack")
    keep_in_hub()
    return model


def place(blocks: list[Block], layers: list[nn.Module], *, stacking: bool) -> None:
    """Put a layer into each block, after the checks that concern all of them."""
    stacked_on: set[int] = set()
    for block, layer in zip(blocks, layers, strict=True):
        occupants = chain(block.occupant) if stacking and block.occupant is not None else []
        if {id(part) for part in layer.modules()} & {id(part) for part in (block.module, *occupants)}:
            raise ValueError(
                f"layer returned a module for block {block.name!r} that is already there or holds that block; it has "
                "to build a new one at every call"
            )
        if occupants and id(occupants[0]) in stacked_on:
            raise ValueError(
                f"block {block.name!r} shares its attention with another block, so nothing can be stacked on it for "
                "one of them; pass on_existing='replace'"
            )
        if occupants and hasattr(occupants[-1], STACKED):
            raise ValueError(
                f"the attention of block {block.name!r}, a {type(occupants[-1]).__name__}, has an attribute "
                f"{STACKED!r} of its own, where a layer on top of it would go; pass on_existing='replace'"
            )
        stacked_on |= {id(part) for part in occupants}
    for block, layer in zip(blocks, layers, strict=True):
        put(block, layer, stacking=stacking)


def injected(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that ``inject`` placed: qualified name -> layer, in the order of ``named_modules``."""
    check_model(model)
    return {name: layer for block in find_blocks(model) if block.family for name, layer in placed(block)}


def eject(model: Model) -> Model:
    """Take out every layer that ``inject`` placed, in place, and put back what the slots held before.

    Returns:
        ``model``, with the classes, keys and outputs it had before.

    Raises:
        TypeError: If ``model`` is no module or is wrapped, compiled, scripted or traced.
        ValueError: If ``inject`` placed nothing in it, or something else changed a block since.
    """
    check_changeable(model)
    filled = [block for block in find_blocks(model) if block.family and (block.before or any(placed(block)))]
    if not filled:
        raise ValueError(f"nothing to eject: gca.inject has placed no attention in this {type(model).__name__}")
    check_untampered(filled)
    with torch.inference_mode(False):
        for block in filled:
            prepare_to_empty(block)
        for block in filled:
            empty(block)
    return model


def resolve(layer: str | Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """The callable that builds a layer, by its name or itself."""
    if callable(layer):
        return layer
    if not isinstance(layer, str):
        raise TypeError(f"layer must be a name or a callable (channels, **options) -> nn.Module, got {layer!r}")
    if layer not in LAYERS:
        near = difflib.get_close_matches(layer.lower(), LAYERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"layer must be a callable or one of {', '.join(map(repr, LAYERS))}, got {layer!r}{hint}")
    return LAYERS[layer]


def build_layer(build: Callable[..., nn.Module], block: Block, options: dict[str, Any]) -> nn.Module:
    """A layer for a block, like it in device, dtype, memory format and mode, and with a note of how it was built."""
    channels, spatial_dims = block.channels, block.spatial_dims
    if build in LAYERS.values():
        options = {"spatial_dims": spatial_dims, **options}
    # Whatever the caller is in the midst of, parameters have to be ordinary ones, and where the block has memory so
    # has its attention.
    device = torch.device("meta" if block.is_meta else "cpu")
    with torch.inference_mode(False):
        try:
            with device:
                layer = build(channels, **options)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"cannot build attention for block {block.name!r} ({channels} channels): {error}") from error
        if not isinstance(layer, nn.Module):
            raise TypeError(f"layer must return a torch.nn.Module, got {type(layer).__name__} for block {block.name!r}")
        if isinstance(layer, GatedLayer) and layer.spatial_dims != spatial_dims:
            raise ValueError(
                f"block {block.name!r} has convolutions in {spatial_dims}-D, and its attention was built with "
                f"spatial_dims={layer.spatial_dims}; pass spatial_dims={spatial_dims}"
            )
        block.slotted_class()  # imported now, so that nothing can fail once the first slot is filled
        if type(layer) not in LAYERS.values():
            setattr(layer, SOURCE, (qualified(build), _as_json(options)))
        return like_block(layer, block)


def _as_json(options: dict[str, Any]) -> str | None:
    try:
        return json.dumps(options)
    except TypeError:
        return None
