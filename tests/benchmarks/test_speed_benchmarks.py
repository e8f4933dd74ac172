"""The checks by which benchmarks of speed refuse to time what computes something else."""

from typing import Any

import pytest
import torch
from torch import Tensor

import models


def test_networks_are_compared_through_their_attention() -> None:
    class Halved(models.LiteralGCA):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x) / 2

    images = torch.randn(1, 3, 64, 64)
    ours = models.build("resnet50", "gca")
    models.check_same_outputs(ours, models.build("resnet50", models.LiteralGCA), images)
    with pytest.raises(RuntimeError, match="differs from its literal version by up to"):
        models.check_same_outputs(ours, models.build("resnet50", Halved), images)
