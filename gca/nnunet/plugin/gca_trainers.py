"""What ``nnUNet_extTrainer`` leads to: nnU-Net takes the classes from here by their names.

It imports every module of this folder, and forgets them: the classes live elsewhere, and nothing else lies here.
"""

from gca.nnunet.trainers import (
    nnUNetTrainerAttention,
    nnUNetTrainerCBAM,
    nnUNetTrainerCoordinateAttention,
    nnUNetTrainerGCA,
    nnUNetTrainerSE,
)

__all__ = [
    "nnUNetTrainerAttention",
    "nnUNetTrainerCBAM",
    "nnUNetTrainerCoordinateAttention",
    "nnUNetTrainerGCA",
    "nnUNetTrainerSE",
]
