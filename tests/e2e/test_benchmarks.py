"""The benchmarks of speed run, check what they time, and leave what they promise. No time is asserted."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from contenders import timm_attention

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("script", "options", "contenders", "picture"),
    [
        ("layers.py", ["--stages", "4"], {"ops naive", "ops plain", "GCA plain", "timm CBAM", "copy"}, "speed.png"),
        (
            "models.py",
            ["--size", "64", "--networks", "resnet50", "--modes", "training"],
            {"no attention", "GCA", "naive GCA", *timm_attention()},
            "overhead.png",
        ),
    ],
)
def test_benchmark(script: str, options: list[str], contenders: set[str], picture: str, tmp_path: Path) -> None:
    command = [sys.executable, f"benchmarks/{script}", "--batch", "2", "--rounds", "2", "--threads", "1"]
    done = subprocess.run(
        [*command, *options, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "results.json").read_text())
    assert contenders <= {row["contender"] for row in results["rows"]}
    assert results["machine"]["packages"]["torch"]
    with (tmp_path / "table.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(results["rows"])
    assert (tmp_path / picture).stat().st_size > 1000


def test_a_timm_without_coordinate_attention_is_said_and_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "timm.layers.coord_attn", None)
    assert list(timm_attention()) == ["timm SE", "timm CBAM"]
    message = r"timm CoordAttn is not measured: timm \S+ has none; pip install 'timm>=1.0.23'\n"
    assert re.fullmatch(message, capsys.readouterr().err)
