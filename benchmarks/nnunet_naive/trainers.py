"""A trainer for nnunet_epoch.py to compare with: nnU-Net imports whatever lies in this folder."""

from gca.nnunet import nnUNetTrainerGCA
from naive import NaiveGCA


class nnUNetTrainerNaiveGCA(nnUNetTrainerGCA):  # noqa: N801  # nnU-Net's convention
    """GCA in naive PyTorch."""

    attention = NaiveGCA
    attention_options = {"spatial_dims": 3}  # noqa: RUF012
