"""Attention layers for convolutional networks, and the injector that puts them into residual blocks.

``gca.inject(model, groups=2, reduction=2)`` puts grouped coordinate attention into every residual block of a network
that is already built. Importing ``gca`` loads neither timm nor segmentation-models-pytorch.
"""

from typing import TYPE_CHECKING, Any

from gca.adapters import load, save
from gca.families import register_block
from gca.inject import eject, inject, injected
from gca.layers import CBAM, SE, CoordinateAttention, GroupedCoordinateAttention
from gca.maps import attention_maps
from gca.summary import summary

if TYPE_CHECKING:
    from gca.segmentation import GCAResUNet

__version__ = "0.1.0.dev0"

__all__ = [
    "CBAM",
    "SE",
    "CoordinateAttention",
    "GCAResUNet",
    "GroupedCoordinateAttention",
    "attention_maps",
    "eject",
    "inject",
    "injected",
    "load",
    "register_block",
    "save",
    "summary",
]


def __getattr__(name: str) -> Any:
    # segmentation-models-pytorch takes seconds to import and is optional: load it on first use.
    if name == "GCAResUNet":
        from gca.segmentation import GCAResUNet

        return GCAResUNet
    raise AttributeError(f"module 'gca' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
