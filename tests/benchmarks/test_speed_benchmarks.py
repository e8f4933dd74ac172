"""The checks by which benchmarks of speed refuse to time what computes something else."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("models")


def test_networks_are_compared_through_their_attention(models: ModuleType) -> None:
    class Halved(models.LiteralGCA):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x) / 2

    images = torch.randn(1, 3, 64, 64)
    ours = models.build("resnet50", "gca")
    models.check_same_outputs(ours, models.build("resnet50", models.LiteralGCA), images)
    with pytest.raises(RuntimeError, match="differs from its literal version by up to"):
        models.check_same_outputs(ours, models.build("resnet50", Halved), images)
