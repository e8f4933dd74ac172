"""Which residual blocks are known, and where attention goes in each.

Blocks are recognised by the qualified name of the class whose ``forward`` runs, so nothing needs importing to look
for them, and a sub-class that overrides ``forward`` is not mistaken for its parent. To add a family, add a row.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class BlockFamily:
    """Where attention goes in one class of residual block.

    Attributes:
        slot: Attribute that the block calls, unless it is ``None``, after its last norm and before the residual sum.
        last_conv: Dotted name of the convolution whose output, normalised, reaches the slot.
    """

    slot: str
    last_conv: str


FAMILIES: dict[str, BlockFamily] = {
    # resnet, resnext, wide_resnet, resnet-d, resnet-rs, ecaresnet, seresnet, ...
    "timm.models.resnet.Bottleneck": BlockFamily(slot="se", last_conv="conv3"),
    "timm.models.resnet.BasicBlock": BlockFamily(slot="se", last_conv="conv2"),
    "timm.models.res2net.Bottle2neck": BlockFamily(slot="se", last_conv="conv3"),
    "timm.models.sknet.SelectiveKernelBottleneck": BlockFamily(slot="se", last_conv="conv3.conv"),
    "timm.models.sknet.SelectiveKernelBasic": BlockFamily(slot="se", last_conv="conv2.conv"),
}


@dataclass(frozen=True)
class Block:
    """A known residual block inside a model."""

    name: str
    module: nn.Module
    family: BlockFamily

    @property
    def layer_name(self) -> str:
        """Qualified name of the slot."""
        return f"{self.name}.{self.family.slot}" if self.name else self.family.slot

    @property
    def occupant(self) -> nn.Module | None:
        """What the slot holds."""
        occupant: nn.Module | None = getattr(self.module, self.family.slot)
        return occupant

    @property
    def weight(self) -> torch.Tensor:
        """Weight of the last convolution: attention takes its output channels, its device and its dtype."""
        weight = self.module.get_submodule(self.family.last_conv).weight
        assert isinstance(weight, torch.Tensor)
        return weight

    @property
    def stage(self) -> int | None:
        """Number in ``layer1`` ... ``layer4``, or ``None`` outside a stage."""
        found = re.findall(r"(?:^|\.)layer(\d+)(?=\.|$)", self.name)
        return int(found[-1]) if found else None


def family_of(module: nn.Module) -> BlockFamily | None:
    """The family of a block, or ``None`` where its class is not known."""
    owner = next(cls for cls in type(module).__mro__ if "forward" in vars(cls))
    return FAMILIES.get(f"{owner.__module__}.{owner.__qualname__}")


def find_blocks(model: nn.Module) -> Iterator[Block]:
    """Every known block of a model, in the order of ``named_modules``."""
    for name, module in model.named_modules():
        family = family_of(module)
        if family is not None:
            yield Block(name, module, family)


def lookalikes(model: nn.Module) -> list[str]:
    """Qualified names of unknown classes that call themselves a block or bottleneck, for error messages."""
    names = {
        f"{type(module).__module__}.{type(module).__qualname__}"
        for module in model.modules()
        if re.search(r"block|bottle\w*neck", type(module).__qualname__, re.IGNORECASE) and family_of(module) is None
    }
    return sorted(names)
