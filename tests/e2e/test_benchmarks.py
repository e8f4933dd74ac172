"""The benchmarks of speed run, check what they time, and leave what they promise. No time is asserted."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("script", "options", "contenders", "picture"),
    [
        ("layers.py", ["--stages", "4"], {"ops naive", "ops plain", "GCA plain", "timm CBAM", "copy"}, "speed.png"),
        (
            "models.py",
            ["--size", "64", "--networks", "resnet50", "--modes", "training"],
            {"no attention", "GCA", "naive GCA", "timm SE", "timm CBAM", "timm CoordAttn"},
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
