"""Choose among the residual blocks of a network."""

from collections.abc import Callable, Iterable

from torch import nn

from gca.blocks import Block, composites, find_blocks, requested
from gca.families import PLAIN, qualified
from gca.placement import placed

Where = Callable[[str, nn.Module], bool]

# torch's wrappers in which a block can no longer be changed, or not without harm: class name -> what to do instead.
_UNCHANGEABLE = {
    "DistributedDataParallel": "inject first, then wrap (or pass model.module)",
    "DataParallel": "inject first, then wrap (or pass model.module)",
    "FullyShardedDataParallel": "inject first, then shard",
    "FSDPModule": "inject first, then shard",
    "OptimizedModule": "inject first, then compile",
    "ScriptModule": "inject first, then script or trace",
    "GraphModule": "inject first, then trace, export or extract features",
}


def check_model(model: nn.Module) -> None:
    """Raise unless ``model`` is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def check_changeable(model: nn.Module) -> None:
    """Raise if a model, or a part of it other than its attention, is wrapped, compiled, scripted or traced."""
    check_model(model)
    layers = [layer for block in find_blocks(model) if block.family for _, layer in placed(block)]
    attention = {part for layer in layers for part in layer.modules()}
    for name, module in model.named_modules():
        if module in attention:
            continue
        for cls in type(module).__mro__:
            remedy = _UNCHANGEABLE.get(cls.__name__)
            if remedy and cls.__module__.startswith("torch."):
                where = f"its part {name!r}" if name else "the model"
                raise TypeError(f"the blocks of a {cls.__name__} cannot be changed, and {where} is one; {remedy}")
        if module._compiled_call_impl is not None:
            raise TypeError(
                f"{f'the part {name!r} of the model' if name else 'the model'} was compiled in place, and compiled "
                "code holds the blocks as they were; inject first, then compile"
            )


def check_untampered(blocks: list[Block]) -> None:
    """Raise if something other than ``inject`` changed blocks in a way that makes changing them go wrong."""
    reasons = {block.name: block.tampering for block in blocks if block.tampering}
    if reasons:
        first, reason = next(iter(reasons.items()))
        raise ValueError(f"{len(reasons)} of {len(blocks)} blocks cannot be changed, the first is {first!r}: {reason}")


def select(
    model: nn.Module, stages: int | Iterable[int] | None, blocks: int | Iterable[int] | None, where: Where | None
) -> list[Block]:
    """The blocks that all selectors agree on; an error where that is none, or one that cannot be injected."""
    every = list(find_blocks(model))
    found = [block for block in every if requested(model, block)]
    if not any(block.family for block in found):
        raise ValueError(_nothing_known(model, every))
    if stages is not None:
        found = _in_stages(found, stages)
    if blocks is not None:
        found = _at_positions(found, blocks)
    if where is not None:
        if not callable(where):
            raise TypeError(f"where must be a callable (name, block) -> bool, got {where!r}")
        chosen = [block for block in found if where(block.name, block.module)]
        if not chosen:
            raise ValueError(
                f"where matched none of {len(found)} blocks; their names run from {found[0].name!r} "
                f"to {found[-1].name!r}"
            )
        found = chosen
    refused = [block for block in found if not block.family]
    if refused:
        raise ValueError(
            f"{len(refused)} of {len(found)} blocks cannot be given attention, {_reasons(refused)}; "
            f"choose the others with where=, the first of these is {refused[0].name!r}"
        )
    check_untampered(found)
    return found


def _in_stages(found: list[Block], stages: int | Iterable[int]) -> list[Block]:
    wanted = _integers("stages", stages)
    present = {block.stage for block in found if block.stage is not None}
    missing = sorted(wanted - present)
    if missing or not wanted:
        raise ValueError(f"stages={stages!r} names no blocks for {missing}; this model has stages {sorted(present)}")
    return [block for block in found if block.stage in wanted]


def _at_positions(found: list[Block], positions: int | Iterable[int]) -> list[Block]:
    wanted = _integers("blocks", positions)
    stages: dict[int | None, list[Block]] = {}
    for block in found:
        stages.setdefault(block.stage, []).append(block)
    matches = {
        position: [stage[position] for stage in stages.values() if -len(stage) <= position < len(stage)]
        for position in wanted
    }
    missing = sorted(position for position, hits in matches.items() if not hits)
    if missing or not wanted:
        sizes = ", ".join(f"{stage}: {len(members)}" for stage, members in stages.items())
        raise ValueError(f"blocks={positions!r} names no block for {missing}; blocks in each stage: {sizes}")
    names = {block.name for hits in matches.values() for block in hits}
    return [block for block in found if block.name in names]


def _integers(name: str, value: int | Iterable[int]) -> set[int]:
    values = [value] if isinstance(value, int) or not isinstance(value, Iterable) else list(value)
    for item in values:
        if isinstance(item, bool) or not isinstance(item, int):
            raise TypeError(f"{name} must be an int or several, got {value!r}")
    return set(values)


def _reasons(refused: list[Block]) -> str:
    return "; ".join(sorted({f"{qualified(type(block.module))}: {block.refusal}" for block in refused}))


def _nothing_known(model: nn.Module, found: list[Block]) -> str:
    kind = type(model).__name__
    on_request = [block.name for block in found if block.family]
    hint = f"; a decoder is injected only if it is passed itself, the one of {on_request[0]!r}" if on_request else ""
    refused = [block for block in found if not block.family]
    if refused:
        return f"no residual block in {kind} can be given attention: {_reasons(refused)}{hint}"
    plain = [PLAIN[name] for name in map(qualified, map(type, model.modules())) if name in PLAIN]
    if plain:
        return f"{kind} has plain convolutions, and no residual sum that attention could stand before; {plain[0]}"
    parts = composites(model)
    return (
        f"no known residual block in {kind}; "
        + (f"its most frequent parts are {', '.join(parts)}; " if parts else "")
        + "known are blocks with a shortcut of timm, torchvision, segmentation-models-pytorch, MONAI, transformers and "
        f"nnU-Net; python -m gca lists them, and gca.register_block adds others{hint}"
    )
