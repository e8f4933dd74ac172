"""Put attention into the residual blocks of a network that is already built, and take it out again."""

import difflib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from torch import nn

from gca.blocks import Block, find_blocks, lookalikes
from gca.layers import CBAM, SE, CoordinateAttention, GroupedCoordinateAttention

LAYERS: dict[str, Callable[..., nn.Module]] = {
    "gca": GroupedCoordinateAttention,
    "coord": CoordinateAttention,
    "cbam": CBAM,
    "se": SE,
}
POLICIES = ("error", "replace", "skip")

# A block carries this attribute exactly while its slot holds an injected layer. It is a tuple of one: what the slot
# held before. Inside a tuple a replaced module is no sub-module, so it adds no key to the state_dict.
_BEFORE = "_gca_slot_before"

Model = TypeVar("Model", bound=nn.Module)


def inject(
    model: Model,
    layer: str | Callable[..., nn.Module] = "gca",
    *,
    stages: int | Iterable[int] | None = None,
    where: Callable[[str, nn.Module], bool] | None = None,
    on_existing: str = "error",
    **options: Any,
) -> Model:
    """Put attention into every residual block, after its last norm and before the residual sum.

    The model is changed in place and returned. Its own parameters and buffers keep their names, values and
    ``requires_grad``; only new keys are added. New layers take the device, dtype and train/eval mode of their block.
    Everything is checked and built before anything is assigned: after an error the model is untouched.

    Args:
        model: Any network that contains timm ResNet-style blocks, e.g. a ``timm.create_model("resnet50")`` or a
            segmentation model around one.
        layer: ``"gca"``, ``"coord"``, ``"cbam"`` or ``"se"``, or a callable ``(channels, **options) -> nn.Module``
            whose result keeps the shape of its input.
        stages: Only blocks of these stages: numbers as in ``layer1`` ... ``layer4``. Default: all.
        where: Only blocks for which ``where(name, block)`` is true.
        on_existing: What to do where the slot is occupied, as in SE-ResNets or after an earlier call: ``"error"``,
            ``"replace"`` (``eject`` brings back what a network was built with) or ``"skip"``.
        **options: Passed to ``layer``, e.g. ``groups=2, reduction=2``.

    Returns:
        ``model``.

    Raises:
        TypeError: If ``model`` is no module, or ``layer`` does not accept the options or returns no module.
        ValueError: If no block is known, a selector matches nothing, ``layer`` or ``on_existing`` is unknown, a slot
            is occupied, or ``layer`` refuses a block's channels or an option's value.

    Example:
        >>> model = gca.inject(timm.create_model("resnet50"), groups=2, reduction=2)
        >>> len(gca.injected(model))
        16
    """
    build = _resolve(layer)
    if on_existing not in POLICIES:
        raise ValueError(f"on_existing must be one of {', '.join(map(repr, POLICIES))}, got {on_existing!r}")
    blocks = _select(_known_blocks(model), stages, where)

    occupied = [block for block in blocks if block.occupant is not None]
    if occupied and on_existing == "error":
        raise ValueError(
            f"{len(occupied)} of {len(blocks)} blocks already have attention, the first is {occupied[0].layer_name}: "
            f"{type(occupied[0].occupant).__name__}; pass on_existing='replace' or 'skip', or call gca.eject first"
        )
    if on_existing == "skip":
        blocks = [block for block in blocks if block.occupant is None]

    layers = [_build(build, block, options) for block in blocks]
    for block, new in zip(blocks, layers, strict=True):
        if not hasattr(block.module, _BEFORE):  # a second injection must not hide what the network was built with
            setattr(block.module, _BEFORE, (block.occupant,))
        setattr(block.module, block.family.slot, new)
    return model


def injected(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that ``inject`` placed: qualified name -> layer, in the order of ``named_modules``."""
    return {
        block.layer_name: block.occupant
        for block in find_blocks(_check_module(model))
        if hasattr(block.module, _BEFORE) and block.occupant is not None
    }


def eject(model: Model) -> Model:
    """Take out every layer that ``inject`` placed, in place, and put back what the slots held before.

    Returns:
        ``model``, with the keys and the outputs it had before.

    Raises:
        TypeError: If ``model`` is no module.
        ValueError: If ``inject`` placed nothing in it.
    """
    blocks = [block for block in find_blocks(_check_module(model)) if hasattr(block.module, _BEFORE)]
    if not blocks:
        raise ValueError(f"nothing to eject: gca.inject has placed no attention in this {type(model).__name__}")
    for block in blocks:
        (before,) = getattr(block.module, _BEFORE)
        if before is None:
            delattr(block.module, block.family.slot)  # the slot was a plain None, not a registered sub-module
        else:  # it did not follow the model while it was out of it
            before.to(device=block.weight.device, dtype=block.weight.dtype).train(block.module.training)
        setattr(block.module, block.family.slot, before)
        delattr(block.module, _BEFORE)
    return model


def _resolve(layer: str | Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    if callable(layer):
        return layer
    if not isinstance(layer, str):
        raise TypeError(f"layer must be a name or a callable (channels, **options) -> nn.Module, got {layer!r}")
    if layer not in LAYERS:
        near = difflib.get_close_matches(layer.lower(), LAYERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"layer must be a callable or one of {', '.join(map(repr, LAYERS))}, got {layer!r}{hint}")
    return LAYERS[layer]


def _check_module(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    return model


def _known_blocks(model: nn.Module) -> list[Block]:
    blocks = list(find_blocks(_check_module(model)))
    if not blocks:
        seen = lookalikes(model)
        raise ValueError(
            f"no known residual block in {type(model).__name__}; "
            + (f"it has blocks of unknown classes: {', '.join(seen)}; " if seen else "")
            + "blocks of timm's resnet, res2net and sknet families are known "
            '(in segmentation-models-pytorch: encoders named "tu-resnet50" and the like)'
        )
    return blocks


def _select(
    blocks: list[Block], stages: int | Iterable[int] | None, where: Callable[[str, nn.Module], bool] | None
) -> list[Block]:
    if stages is not None:
        wanted = {stages} if isinstance(stages, int) else set(stages)
        present = sorted({block.stage for block in blocks if block.stage is not None})
        missing = sorted(wanted - set(present))
        if missing or not wanted:
            raise ValueError(f"stages={stages!r} names no blocks for {missing}; this model has stages {present}")
        blocks = [block for block in blocks if block.stage in wanted]
    if where is not None:
        chosen = [block for block in blocks if where(block.name, block.module)]
        if not chosen:
            raise ValueError(
                f"where matched none of {len(blocks)} blocks; their names run from {blocks[0].name!r} "
                f"to {blocks[-1].name!r}"
            )
        blocks = chosen
    return blocks


def _build(build: Callable[..., nn.Module], block: Block, options: dict[str, Any]) -> nn.Module:
    weight = block.weight
    channels = weight.shape[0]
    try:
        layer = build(channels, **options)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"cannot build attention for block {block.name!r} ({channels} channels): {error}") from error
    if not isinstance(layer, nn.Module):
        raise TypeError(f"layer must return a torch.nn.Module, got {type(layer).__name__} for block {block.name!r}")
    return layer.to(device=weight.device, dtype=weight.dtype).train(block.module.training)
