"""nnU-Net's trainers with attention in every residual block, by one flag and without a fork.

``export nnUNet_extTrainer=$(python -m gca.nnunet)`` lets nnU-Net find them, ``nnUNetv2_train ... -tr nnUNetTrainerGCA``
trains. :func:`graft` puts attention into a network that was trained without. Needs nnunetv2 from 2.8 on:
``pip install "gca-attn[nnunet]"``.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gca.nnunet.checkpoints import graft
    from gca.nnunet.trainers import (
        nnUNetTrainerAttention,
        nnUNetTrainerCBAM,
        nnUNetTrainerCoordinateAttention,
        nnUNetTrainerGCA,
        nnUNetTrainerSE,
    )

__all__ = [
    "graft",
    "nnUNetTrainerAttention",
    "nnUNetTrainerCBAM",
    "nnUNetTrainerCoordinateAttention",
    "nnUNetTrainerGCA",
    "nnUNetTrainerSE",
]


def __getattr__(name: str) -> Any:
    # nnU-Net takes seconds to import and is optional: load it on first use.
    if name not in __all__:
        raise AttributeError(f"module 'gca.nnunet' has no attribute {name!r}")
    require_nnunet()
    return getattr(importlib.import_module(f"gca.nnunet.{'checkpoints' if name == 'graft' else 'trainers'}"), name)


def require_nnunet() -> None:
    """Raise unless nnU-Net is installed."""
    if importlib.util.find_spec("nnunetv2") is None:
        raise ImportError('gca.nnunet needs nnU-Net: pip install "gca-attn[nnunet]"')
