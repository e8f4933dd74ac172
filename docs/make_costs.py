"""Write the tables of costs in docs/costs/: ``python docs/make_costs.py``.

Parameters and multiply-accumulates are counted on the layers of ``gca``, times and memory are those that
``benchmarks/layers.py`` left in ``benchmarks/results/layers_cpu``.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import gca

COSTS = Path(__file__).with_name("costs")
MEASURED = Path(__file__).parents[1] / "benchmarks" / "results" / "layers_cpu" / "results.json"

STAGES = ((256, 56), (512, 28), (1024, 14), (2048, 7))  # channels and side of the four stages of a ResNet-50 at 224
BATCH = 8
# file -> layer, and its name in the measurements
LAYERS = {
    "gca.md": (gca.GroupedCoordinateAttention, "GCA numba"),
    "coordinate.md": (gca.CoordinateAttention, "coord"),
    "cbam.md": (gca.CBAM, "CBAM"),
    "se.md": (gca.SE, "SE"),
}

HEAD = """\
| input | parameters | MACs an image | forward | forward + backward | peak memory, x input size |
|---|--:|--:|--:|--:|--:|
"""


def count(build: Any, channels: int, side: int) -> tuple[int, int]:
    """Parameters, and multiply-accumulates of the convolutions for one image, both on the meta device."""
    layer = build(channels, device="meta").eval()
    with FlopCounterMode(display=False) as counter:
        layer(torch.empty(1, channels, side, side, device="meta"))
    return sum(parameter.numel() for parameter in layer.parameters()), counter.get_total_flops() // 2


def table(build: Any, contender: str) -> str:
    """One row for each stage."""
    measured = json.loads(MEASURED.read_text())
    rows = {row["shape"]: row for row in measured["rows"] if row["contender"] == contender and row["layout"] == "NCHW"}
    lines = []
    for channels, side in STAGES:
        parameters, macs = count(build, channels, side)
        row = rows[f"{BATCH}x{channels}x{side}x{side}"]
        lines.append(
            f"| {channels}x{side}x{side} | {parameters:,} | {macs / 1e6:.2f} M | {row['forward_ms']:.1f} ms "
            f"| {row['both_ms']:.1f} ms | {row['both_peak_of_x']:.1f}x |\n"
        )
    return HEAD + "".join(lines)


def measured_on() -> str:
    """What the numbers of all tables mean."""
    machine = json.loads(MEASURED.read_text())["machine"]
    return (
        "MACs are those of the convolutions, counted by torch's `FlopCounterMode`; pooling and gating move memory and "
        f"are not among them. Times and memory: batch {BATCH}, float32, NCHW, {machine['threads']} threads of an "
        f"{machine['device']}, torch {machine['packages']['torch']}, numba "
        f"{machine['packages']['numba']}, `{machine['command']}`.\n"
    )


def tables() -> dict[str, str]:
    """Every file with its content."""
    return {**{name: table(*layer) for name, layer in LAYERS.items()}, "measured_on.md": measured_on()}


if __name__ == "__main__":
    for name, content in tables().items():
        (COSTS / name).write_text(content)
