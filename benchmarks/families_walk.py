"""Try ``gca.inject`` on every network of timm, without weights, and write what became of each.

``python benchmarks/families_walk.py --out benchmarks/results/families_timm`` writes ``models.csv``, one network a row,
and ``counts.json``. Networks are built on the meta device, so nothing is computed. Takes about a quarter of an hour.
"""

import argparse
import csv
import json
import warnings
from collections import Counter
from pathlib import Path

import timm
import torch
from torch import nn

import gca
from gca.blocks import find_blocks
from gca.families import FAMILIES, qualified
from gca.placement import placed


def build(name: str) -> nn.Module:
    """A network without values; with them where its construction reads some."""
    try:
        with torch.device("meta"):
            return timm.create_model(name)
    except (NotImplementedError, RuntimeError):
        return timm.create_model(name)


def fate(model: nn.Module) -> tuple[str, int, str]:
    """What becomes of a network: injected, refused or unknown; how many blocks; their classes, or the reason."""
    try:
        gca.inject(model, "se", reduction=2, on_existing="replace")
    except ValueError as error:
        reason, _, _ = str(error).partition("; known are ")
        return "unknown" if "no known residual block" in reason else "refused", 0, reason
    filled = [block for block in find_blocks(model) if block.family and any(placed(block))]
    classes = {qualified(cls) for block in filled for cls in type(block.module).__mro__} & FAMILIES.keys()
    return "injected", len(filled), " ".join(sorted(classes))


def main() -> None:
    """Walk, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for models.csv and counts.json")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    rows = [(name, *fate(build(name))) for name in timm.list_models()]
    with (out / "models.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("model", "result", "blocks", "classes or reason"), *rows])
    counts = Counter(result for _, result, _, _ in rows)
    versions = {"gca": gca.__version__, "timm": timm.__version__, "torch": torch.__version__}
    (out / "counts.json").write_text(json.dumps({**counts, "networks": len(rows), **versions}, indent=2) + "\n")


if __name__ == "__main__":
    main()
