"""nnU-Net's trainer, whose network gets attention in every residual block."""

from collections.abc import Callable, Mapping
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

import gca


class nnUNetTrainerAttention(nnUNetTrainer):  # noqa: N801  # nnU-Net's convention: the name is its flag
    """Train the network of the plans with attention in its residual blocks, which starts as the identity.

    Everything else is nnU-Net's own: data, loss, optimizer, schedule, checkpoints, prediction. Needs plans with a
    residual encoder (``-p nnUNetResEncUNetMPlans``). Sub-classes choose by two class attributes, since nnU-Net builds
    the network from the class alone when it predicts: keep them as they were in training.

    Attributes:
        attention: The layer, by its name or as a callable, as for :func:`gca.inject`.
        attention_options: Everything else for :func:`gca.inject`: options of the layer, ``stages``, ``blocks``, ...

    Example:
        >>> class nnUNetTrainerGCA4(nnUNetTrainerGCA):
        ...     attention_options = {"groups": 4, "stages": [3, 4, 5, 6]}
    """

    attention: str | Callable[..., nn.Module] = "gca"
    attention_options: Mapping[str, Any] = {}

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        network: nn.Module = super().build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        return gca.inject(network, cls.attention, **cls.attention_options)


class nnUNetTrainerGCA(nnUNetTrainerAttention):  # noqa: N801
    """Grouped coordinate attention, with the groups and the reduction of the paper."""


class nnUNetTrainerCoordinateAttention(nnUNetTrainerAttention):  # noqa: N801
    """Coordinate attention."""

    attention = "coord"


class nnUNetTrainerCBAM(nnUNetTrainerAttention):  # noqa: N801
    """CBAM."""

    attention = "cbam"


class nnUNetTrainerSE(nnUNetTrainerAttention):  # noqa: N801
    """Squeeze and excitation over all axes; nnU-Net's own averages over the first two only, also in 3-D."""

    attention = "se"
