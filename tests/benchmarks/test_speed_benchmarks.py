"""The checks by which benchmarks of speed refuse to time what computes something else."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import gpu_layers
import layers
import models
import timing


def test_networks_are_compared_through_their_attention() -> None:
    class Halved(models.NaiveGCA):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x) / 2

    images = torch.randn(1, 3, 64, 64)
    ours = models.build("resnet50", "gca")
    models.check_same_outputs(ours, models.build("resnet50", models.NaiveGCA), images)
    with pytest.raises(RuntimeError, match="differs from its naive version by up to"):
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


def test_kernels_are_compared_with_the_plain_formula_above_and_below_16_mib() -> None:
    rows = []
    for shape, times in {"32x256x56x56": (1, 2), "32x512x28x28": (3, 6), "32x2048x7x7": (4, 2)}.items():
        kernels, plain = times
        both = {"both_ms": 1.0, "shape": shape, "layout": "NCHW", "dtype": "float32"}
        rows.append({"contender": "GCA triton", "forward_ms": kernels, **both})
        rows.append({"contender": "GCA plain", "forward_ms": plain, **both})
        rows += [{"contender": name, "forward_ms": 9.0, **both} for name in ("GCA compiled", "naive", "timm CBAM")]
    found = gpu_layers.kernels_or_plain("layers_eager", rows)
    forward = {row["input"]: row for row in found if row["pass"] == "forward"}
    assert forward["above 16 MiB"]["of_plain"] == pytest.approx(0.5)
    assert (forward["above 16 MiB"]["faster"], forward["above 16 MiB"]["of"]) == (2, 2)
    assert forward["up to 16 MiB"]["of_plain"] == pytest.approx(2)  # 12.25 MiB
    assert {row["contender"] for row in found} == {"GCA triton"}
    assert [row["faster"] for row in found if row["pass"] == "both"] == [0, 0]


def test_the_job_for_a_gpu_times_nothing_that_was_not_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its steps stand for commands that work, fail, hang, or find no time left."""
    works = 'import sys, pathlib; pathlib.Path(sys.argv[-1], "results.json").write_text("{\\"rows\\": []}")'
    hangs = "import time; time.sleep(60)"
    for name, code in {"works.py": works, "fails.py": "raise SystemExit(3)", "hangs.py": hangs}.items():
        (tmp_path / name).write_text(code)
    monkeypatch.setattr(gpu_layers, "FOLDER", tmp_path)

    def job(*scripts: str, seconds: float = 60) -> list[str]:
        steps = [
            gpu_layers.Step(name, 0.01, (script,)) for name, script in zip(("check", "a", "b"), scripts, strict=False)
        ]
        monkeypatch.setattr(gpu_layers, "steps", lambda device: steps)
        gpu_layers.main(["--device", "cpu", "--out", str(tmp_path / "out"), "--seconds", str(seconds)])
        return [step["ended"] for step in json.loads((tmp_path / "out" / "job.json").read_text())]

    assert job("works.py", "fails.py") == ["finished", "failed: exit status 3, see job.log"]
    assert (tmp_path / "out" / "check.json").read_text() == '{"rows": []}'
    assert job("works.py", "hangs.py", seconds=9)[1].startswith("stopped after ")
    assert job("works.py", seconds=1) == ["not begun: no time was left"]
    with pytest.raises(SystemExit, match="error: the formulas were not found equal, so nothing is timed"):
        job("fails.py", "works.py")
    monkeypatch.delenv("OUT", raising=False)
    with pytest.raises(SystemExit):
        gpu_layers.main([])
    assert "give --out, or OUT in the environment" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_steps_of_the_job_are_commands_of_the_benchmarks(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed by their scripts, which are stopped before they measure."""
    assert sum(step.share for step in gpu_layers.steps(device)) > 1  # a step that ends early leaves time to others

    class ParsedError(Exception):
        pass

    def parsed(*_: object) -> None:
        raise ParsedError

    for script in (layers, models):
        monkeypatch.setattr(script, "set_up", parsed)
    for step in gpu_layers.steps(device):
        script, *words = step.words
        monkeypatch.setattr("sys.argv", [script, *words])
        with pytest.raises(ParsedError):
            {"layers.py": layers, "models.py": models}[script].main()
