"""What ``inject`` placed, as a table to read."""

from torch import nn

from gca.blocks import Block, find_blocks, requested
from gca.placement import placed
from gca.selection import check_model

_COLUMNS = ("stage", "attention", "blocks", "channels", "added parameters")


def summary(model: nn.Module) -> str:
    """Per stage: the attention that ``inject`` placed, in how many of the blocks, and what it adds.

    Args:
        model: Any network; without attention the table says so.

    Returns:
        A text table. Stages count from 1; blocks outside a stage are in the row ``-``.

    Raises:
        TypeError: If ``model`` is no module.

    Example:
        >>> print(gca.summary(gca.inject(timm.create_model("resnet50"), stages=[3, 4])))
        stage  attention                   blocks   channels  added parameters
        1      -                           0 of 3   256                      0
        2      -                           0 of 4   512                      0
        3      GroupedCoordinateAttention  6 of 6   1024             1,579,008
        4      GroupedCoordinateAttention  3 of 3   2048             3,151,872
        total                              9 of 16                   4,730,880
    """
    check_model(model)
    stages: dict[int | None, list[Block]] = {}
    for block in find_blocks(model):
        if block.family and (requested(model, block) or any(placed(block))):
            stages.setdefault(block.stage, []).append(block)
    every = [block for blocks in stages.values() for block in blocks]
    rows = [_COLUMNS, *(_row("-" if stage is None else str(stage), stages[stage]) for stage in stages)]
    _, _, filled, _, added = _row("total", every)
    rows.append(("total", "", filled, "", added))

    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return "\n".join("  ".join([*map(str.ljust, row[:-1], widths), row[-1].rjust(widths[-1])]) for row in rows)


def _channels(block: Block) -> list[int]:
    try:
        return [block.channels]
    except ValueError:  # of one dimension, or lazy: ``inject`` says so
        return []


def _row(stage: str, blocks: list[Block]) -> tuple[str, str, str, str, str]:
    layers = [layer for block in blocks for _, layer in placed(block)]
    kinds = list(dict.fromkeys(type(layer).__name__ for layer in layers))
    channels = sorted({count for block in blocks for count in _channels(block)})
    filled = sum(any(placed(block)) for block in blocks)
    # A layer stacked on another is its child, so count every parameter once.
    added = {id(parameter): parameter.numel() for layer in layers for parameter in layer.parameters()}
    return (
        stage,
        ", ".join(kinds) or "-",
        f"{filled} of {len(blocks)}",
        ", ".join(map(str, channels)),
        f"{sum(added.values()):,}",
    )
