"""The checks by which benchmarks of speed refuse to time what computes something else."""

from typing import Any

import pytest
import torch
from torch import Tensor

import models
import timing


def test_networks_are_compared_through_their_attention() -> None:
    class Halved(models.LiteralGCA):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x) / 2

    images = torch.randn(1, 3, 64, 64)
    ours = models.build("resnet50", "gca")
    models.check_same_outputs(ours, models.build("resnet50", models.LiteralGCA), images)
    with pytest.raises(RuntimeError, match="differs from its literal version by up to"):
        models.check_same_outputs(ours, models.build("resnet50", Halved), images)


def test_overhead_is_that_within_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten percent in every round, on a machine that becomes slower and slower."""
    seconds = {"base": iter([9, 9, 1, 2, 4, 8, 16]), "ours": iter([9, 9, 1.1, 2.2, 4.4, 8.8, 17.6])}
    monkeypatch.setattr(timing, "_time", lambda call, device, repeats: next(seconds[call()]))
    contenders = {"ours": lambda: "ours", "base": lambda: "base"}
    rows = timing.interleave(contenders, torch.device("cpu"), rounds=5, base="base")
    assert rows["ours"]["ms"] == pytest.approx(4400)
    assert [rows["ours"][f"overhead_{q}"] for q in ("q1", "percent", "q3")] == pytest.approx([10, 10, 10])
    assert [rows["base"][f"overhead_{q}"] for q in ("q1", "percent", "q3")] == [0, 0, 0]
