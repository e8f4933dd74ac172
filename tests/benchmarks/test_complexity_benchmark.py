"""benchmarks/complexity.py: its counts against sums by hand, and what it says about the reported table."""

import csv
import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import complexity
import gca

STAGES = ((256, 16), (512, 8), (1024, 4), (2048, 2))  # channels and side in the four bottlenecks of resnet14t at 64x64
PLACES = [f"encoder.model.layer{stage}.0.se" for stage in (1, 2, 3, 4)]
NAMES = {"no attention": None, "SE": "se", "CBAM": "cbam", "CoordinateAttention": "coord", "GCA": "gca"}
# Convolutions in the attention of one bottleneck with C channels and side s, multiplication by multiplication.
CONVOLUTIONS = {
    "no attention": lambda c, s: 0,
    "SE": lambda c, s: 2 * c * c // 16,
    "CBAM": lambda c, s: 2 * (2 * c * c // 16) + s * s * 7 * 7 * 2,
    "CoordinateAttention": lambda c, s: 2 * s * c * max(8, c // 32) + 2 * (s * max(8, c // 32) * c),
    "GCA": lambda c, s: 2 * (2 * s) * 2 * (c // 2) * (c // 4),
}
# Average pools: what they read, and what they give.
AVERAGES = {
    "no attention": lambda c, s: (0, 0),
    "SE": lambda c, s: (c * s * s, c),
    "CBAM": lambda c, s: (c * s * s, c),
    "CoordinateAttention": lambda c, s: (2 * c * s * s, 2 * c * s),
    "GCA": lambda c, s: (2 * c * s * s, 2 * c * s),
}


def run(monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["complexity.py", "--threads", "1", *options])
    threads = torch.get_num_threads()
    try:
        complexity.main()
    finally:
        torch.set_num_threads(threads)


def by_hooks(model: nn.Module) -> tuple[int, int, int]:
    """At 64x64: MACs of every convolution outside attention, elements of every batch norm, outputs of average pools."""
    inside = {module for layer in gca.injected(model).values() for module in layer.modules()}
    macs = normed = pooled = 0

    def add(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        nonlocal macs, normed, pooled
        if isinstance(module, nn.BatchNorm2d):
            normed += output.numel()
        elif isinstance(module, nn.AvgPool2d):
            pooled += output.numel()
        elif isinstance(module, nn.Conv2d) and module not in inside:
            macs += output.numel() * module.in_channels // module.groups * math.prod(module.kernel_size)

    for module in model.modules():
        module.register_forward_hook(add)
    with torch.no_grad():
        model(torch.empty(1, 3, 64, 64, device="meta"))
    return macs, normed, pooled


def test_small_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--size", "64", "--encoder", "tu-resnet14t", "--rounds", "2", "--out", str(tmp_path))
    run(monkeypatch, *small)
    results = json.loads((tmp_path / "results.json").read_text())
    rows = {row["contender"]: row for row in results["rows"]}
    assert list(rows) == list(NAMES)
    base = rows["no attention"]
    for name, attention in NAMES.items():
        row = rows[name]
        with torch.device("meta"):
            model = gca.GCAResUNet(9, encoder="tu-resnet14t", attention=attention).eval()
        inside = [sum(p.numel() for p in layer.parameters()) for layer in gca.injected(model).values()]
        assert row["parameters"] == sum(p.numel() for p in model.parameters()) == base["parameters"] + sum(inside)
        assert row["attention_parameters"] == sum(inside)
        assert list(results["summary"]["attention_layers"][name]) == (PLACES if attention else [])

        macs, normed, pooled = by_hooks(model)  # the encoder's shortcuts have average pools
        macs += sum(CONVOLUTIONS[name](c, s) for c, s in STAGES)
        read, given = (sum(each) for each in zip(*(AVERAGES[name](c, s) for c, s in STAGES), strict=True))
        upsampled = sum(c * side * side for c, side in ((2048, 4), (512, 8), (256, 16), (128, 32), (64, 64)))
        assert row["macs_torch"] == macs
        assert row["macs_thop_modules"] == macs + 4 * normed + pooled
        assert row["macs_thop"] == macs + 4 * normed + pooled + read + given
        assert row["macs_fvcore"] == macs + 2 * normed + 4 * upsampled + read
        assert row["flops_thop"] == 2 * row["macs_thop"]
        assert row["flops_fvcore"] == 2 * row["macs_fvcore"]

        assert row["macs_thop_overhead"] == row["macs_thop"] - base["macs_thop"]
        percent = 100 * (row["latency_ms"] - base["latency_ms"]) / base["latency_ms"]
        assert math.isclose(row["latency_ms_overhead_percent"], percent, abs_tol=1e-9)
        assert 0 < row["latency_ms_min"] <= row["latency_ms"]
    assert rows["GCA"]["macs_fvcore"] == 1_252_839_424  # fvcore 0.1.5 itself, on the equations with adaptive pools
    assert base["macs_fvcore"] == 1_236_832_256

    printed = capsys.readouterr().out
    assert "reported" not in printed  # the paper's table is of another network
    assert results["summary"]["comparison"] == results["summary"]["explanation"] == []
    assert results["machine"]["threads"] == 1
    with (tmp_path / "table.csv").open() as file:
        assert [row["contender"] for row in csv.DictReader(file)] == list(NAMES)
    assert (tmp_path / "complexity.png").stat().st_size > 1000


def test_the_reported_table() -> None:
    """Counted without computing: on the meta device."""
    rows, layers = [], {}
    for name in ("no attention", "GCA"):
        with torch.device("meta"):
            model = gca.GCAResUNet(9, attention=NAMES[name]).eval()
        keys = set(model.state_dict())
        counts, layers = complexity.count(model, torch.empty(1, 3, 224, 224, device="meta"))
        assert set(model.state_dict()) == keys  # the counters leave nothing behind
        rows.append({"contender": name, **counts, "latency_ms": 1.0 + len(rows)})
    assert [row["macs_fvcore"] for row in rows] == [17_574_194_176, 17_802_222_592]  # fvcore 0.1.5 itself
    assert [row["macs_thop_modules"] for row in rows] == [17_570_732_032, 17_788_180_480]
    assert layers["encoder.model.layer4.2.se"] == {"parameters": 1_050_624, "macs_torch": 2 * 14 * 2 * 1024 * 512}

    compared = complexity.compare(rows)
    assert len(compared) == 10
    differ = [(row["count"], row["contender"], row["ours"]) for row in compared if row["agrees"] == "no"]
    assert differ == [("parameters", "GCA", 48.98), ("flops_thop", "no attention", 35.14)]
    told = " ".join(complexity.explain(rows, compared, layers))
    for fact in (
        "35.14 G, reported 35.15 G",
        "4.00 M apart",
        "44,983,945",
        "0.03 G MACs of the 0.23 G",
        "all 16 layers",
    ):
        assert fact in told

    complexity.add_overheads(rows)
    lines = complexity.table(rows, complexity.PAPER["rows"])
    assert [line[""] for line in lines[:4]] == ["no attention", "  reported", "GCA", "  reported"]
    assert [line["parameters (M)"] for line in lines[2:6]] == [
        48.978313,
        44.98,
        5.044992,
        pytest.approx(11.483, abs=1e-3),
    ]
    assert lines[-2]["FLOPs, fvcore (G)"] == 0.45
    assert lines[-1]["parameters (M)"] == pytest.approx(2.39, abs=0.01)


def test_nothing_is_explained_that_the_numbers_do_not_say() -> None:
    units = {"parameters": ("parameters_m", 1e6)}
    units |= {f"macs_{counter}": ("macs_g", 1e9) for counter in ("thop", "fvcore")}
    units |= {f"flops_{counter}": ("flops_g", 1e9) for counter in ("thop", "fvcore")}
    reported = complexity.PAPER["rows"]

    def rows(**changed: float) -> list[dict[str, Any]]:
        both: list[dict[str, Any]] = [
            {"contender": name, **{key: reported[name][figure] * unit for key, (figure, unit) in units.items()}}
            for name in ("no attention", "GCA")
        ]
        both[1] |= changed
        return both

    def explained(**changed: float) -> list[str]:
        ours = rows(**changed)
        told: list[str] = complexity.explain(ours, complexity.compare(ours), {"a": {"parameters": 1, "macs_torch": 1}})
        return told

    assert explained() == ["All reported MACs and FLOPs are met to the last digit when counted by fvcore's rules."]
    off = explained(parameters=46.5e6, macs_fvcore=18e9)
    assert off == ["Parameters of GCA: 46.50 M, reported 44.98 M."]
    assert "2.00 M apart" in explained(parameters=46.98e6)[2]


def test_reported_overheads_follow_from_the_reported_figures() -> None:
    base, ours, overhead = complexity.PAPER["rows"].values()
    assert overhead == {key: round(ours[key] - base[key], 2) for key in base}


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (torch.zeros(1, 9, 8, 4), r"GCA gives an output of shape \(1, 9, 8, 4\), wanted \(1, 9, 8, 8\): not timed"),
        (torch.full((1, 9, 8, 8), torch.nan), "GCA gives outputs that are not finite: not timed"),
    ],
)
def test_wrong_outputs_are_not_timed(output: torch.Tensor, words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        complexity.check("GCA", output, (1, 9, 8, 8))


def test_without_thop_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "complexity", raising=False)
    monkeypatch.setitem(sys.modules, "thop", None)
    with pytest.raises(ImportError, match=r'counts with thop: pip install "gca-attn\[dev\]"'):
        importlib.import_module("complexity")
