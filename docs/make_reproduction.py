"""Write docs/reproduction.md from the results under benchmarks/results: ``python docs/make_reproduction.py``."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from ablation_report import markdown, scale, table
from medseg.report import spread
from studies import DATASETS, PRINTED, STUDIES, runs_of
from table4 import TABLE_4

PAGE = Path(__file__).with_name("reproduction.md")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
Row = dict[str, Any]

HEAD = """\
# What of the paper is reproduced

This page is made by `python docs/make_reproduction.py` from the JSON files under `benchmarks/results`; no number of
ours and no verdict is typed by hand.

How a verdict comes about:

- **Tables 1 to 3 and 5 to 7.** Judged are runs with the paper's settings, and as many as the paper has (three seeds, or
  four folds). A printed mean is *reproduced* where ours rounds to the same digits, *reproduced within spread* where the
  two differ by no more than the sum of both standard deviations (0 where none is printed), and *not reproduced*
  otherwise. A row has the worst verdict of its figures. Dice is compared with ours by the strict rule, HD95 with ours
  by transunet's rule in voxels; the paper prints mm and no definition.
- **Figures 5 and 6** have no numbers. What is read from them is an order of mean Dice: Res50 U-Net < no attention < SE
  and CBAM < GCA. It is *reproduced* where that order holds and GCA minus no attention, paired by seed or fold, is
  beyond the spread (its 95 % t-interval excludes 0), *reproduced within spread* where the order holds but the
  interval includes 0, and *not reproduced* otherwise.
- **Table 4.** A printed count is reproduced where ours, by the counter named, rounds to the same digits; of several
  counters the nearest is named. The row is *reproduced* where all counts are. Latency belongs to a device and is not
  judged.
- **Reduced protocol.** A smaller encoder, smaller slices and a few epochs show that the comparison runs. Such runs are
  listed, say "reduced protocol only", and never count as a reproduction.

## Ledger

"""
HEADS = ("paper", "printed", "ours", "command", "data and split", "verdict")
VERDICTS = ("reproduced", "reproduced within spread", "not reproduced")
MISSING = "not attempted: no results under benchmarks/results"
NEEDS = {
    "synapse": "the Synapse set, which is handed out on registration, and 200 epochs for each of four folds",
    "acdc": "200 epochs at 224x224 for every seed",
    "isic2017": "the ISIC 2017 set, and 200 epochs at 256x256 for every seed",
    "isic2018": "200 epochs at 256x256 for every seed",
}
PICTURES = (
    (
        "Figures 3 and 4",
        "overlays on test cases",
        "no pictures of other methods; every run draws its own best, median and worst test case",
    ),
    ("Figure 7", "overlays of failures", "chosen by eye in the paper; every run draws its worst test case"),
)
ORDER = (("original", "none"), ("none", "se"), ("none", "cbam"), ("se", "gca"), ("cbam", "gca"))  # by mean Dice
PRINTED_ORDER = "Res50 U-Net < no attention < SE and CBAM < GCA"
SHORT = {"dice": "Dice", "hd95": "HD95", "iou": "mIoU", "accuracy": "Acc", "specificity": "Spe", "sensitivity": "Sen"}


def load(results: Path) -> dict[str, Row]:
    """Contents of the JSON files by ``folder/name``."""
    patterns = ("ablations_*/*.json", "complexity_*/results.json", "attention_*/groups.json")
    paths = [path for pattern in patterns for path in sorted(results.glob(pattern))]
    return {f"{path.parent.name}/{path.stem}": json.loads(path.read_text(encoding="utf-8")) for path in paths}


def chosen(dataset: str, variants: Sequence[str], results: dict[str, Row]) -> Row | None:
    """Runs of the paper's protocol that hold any of the variants, else of the reduced one."""
    candidates = [results.get(f"ablations_{protocol}/{dataset}") for protocol in ("paper", "reduced")]
    return next((found for found in candidates if found and found["variants"].keys() & set(variants)), None)


def verdict(found: Row | None, dataset: str, variants: Sequence[str], judge: Callable[[Row], int]) -> str:
    """The place in ``VERDICTS`` that ``judge`` gives, if there is what it may judge."""
    if found is None:
        return f"{MISSING}; needs {NEEDS[dataset]}"
    counts = [len(found["variants"][name]["numbers"]) if name in found["variants"] else 0 for name in variants]
    wanted, each = len(runs_of(dataset)), f"{found['unit']}s a variant"
    if found["protocol"] != "paper":
        between = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        return f"reduced protocol only: {between} {each}, not counted"
    return (
        VERDICTS[judge(found)] if min(counts) >= wanted else f"not attempted in full: {min(counts)} of {wanted} {each}"
    )


def ledger_row(paper: str, printed: str, ours: str, dataset: str, words: str, found: Row | None) -> list[str]:
    """All but the verdict."""
    data = f"{DATASETS[dataset].benchmark.title}; {DATASETS[dataset].unit}s {', '.join(map(str, runs_of(dataset)))}"
    reduced = ""
    if found:
        data = f"{found['runs'][0]['data']['name']}; {found['runs'][0]['data']['split']}"
        reduced = " --reduced" if found["protocol"] == "reduced" else ""
    return [
        paper,
        printed,
        ours or "-",
        f"`python benchmarks/ablations.py --data {dataset}=DIR {words}{reduced}`",
        data,
    ]


def measured(paper: str, dataset: str, study: str, variants: Sequence[str], results: dict[str, Row]) -> list[str]:
    """The row of a table of means: Tables 1, 2, 3, 5, 6 and 7."""
    printed, found = {name: PRINTED[dataset][name] for name in variants}, chosen(dataset, variants, results)
    theirs, ours = [], []
    for name, paper_row in printed.items():
        label = f"{STUDIES[study].rows[name]}: " if len(variants) > 1 else ""
        means = {key: {"mean": mean, "std": paper_row.std.get(key)} for key, mean in paper_row.mean.items()}
        theirs.append(label + ", ".join(f"{SHORT[key]} {spread(figure, 1)}" for key, figure in means.items()))
        if found and name in found["variants"]:
            figures = found["variants"][name]["figures"]
            ours.append(label + ", ".join(f"{SHORT[key]} {spread(figures[key], scale(key))}" for key in means))

    def judge(full: Row) -> int:
        worst = 0
        for name, row in printed.items():
            for key, mean in row.mean.items():
                figure, factor = full["variants"][name]["figures"][key], scale(key)
                if figure["mean"] is None:
                    return 2
                value, allowed = factor * figure["mean"], factor * (figure["std"] or 0) + row.std.get(key, 0)
                worst = max(worst, 0 if f"{value:.2f}" == f"{mean:.2f}" else 1 if abs(value - mean) <= allowed else 2)
        return worst

    words = f"--studies {study}" + (f" --variants {variants[0]}" if len(variants) == 1 else "")
    row = ledger_row(paper, "; ".join(theirs), "; ".join(ours), dataset, words, found)
    return [*row, verdict(found, dataset, variants, judge)]


def bars(paper: str, dataset: str, results: dict[str, Row]) -> list[str]:
    """The row of Figure 5 or 6, whose order is what can be read from it."""
    variants = [name for name in STUDIES["attention"].rows if name != "coord"]
    found, ours = chosen(dataset, variants, results), []
    if found:
        dice = {name: found["variants"][name]["figures"]["dice"] for name in variants if name in found["variants"]}
        ours = [f"{STUDIES['attention'].rows[name]}: Dice {spread(figure, 100)}" for name, figure in dice.items()]
        gain = found["differences"].get("none", {}).get("gca", {}).get("dice")
        if gain and gain["beyond"] is not None:
            ours.append(
                f"GCA minus no attention {spread(gain, 100)}, {'beyond' if gain['beyond'] else 'within'} the spread"
            )

    def judge(full: Row) -> int:
        mean = {name: full["variants"][name]["figures"]["dice"]["mean"] or 0 for name in variants}
        if not all(mean[low] < mean[high] for low, high in ORDER):
            return 2
        return 0 if full["differences"]["none"]["gca"]["dice"]["beyond"] else 1

    row = ledger_row(
        paper, f"bars in the order {PRINTED_ORDER}", "; ".join(ours), dataset, "--studies attention", found
    )
    return [*row, verdict(found, dataset, variants, judge)]


def complexity(results: dict[str, Row]) -> list[str]:
    """The row of Table 4."""
    units = {"parameters": "M", "macs": "G", "flops": "G"}
    theirs = {
        name: {key: TABLE_4[name][f"{key}_{unit.lower()}"] for key, unit in units.items()}
        for name in ("no attention", "GCA")
    }
    printed = "; ".join(
        f"{name}: " + ", ".join(f"{key} {row[key]:.2f} {unit}" for key, unit in units.items())
        for name, row in theirs.items()
    )
    command, data = "`python benchmarks/complexity.py`", "9 classes, 3x224x224, batch 1"
    found = next((one for one in results.values() if one.get("summary", {}).get("comparison")), None)
    if found is None:
        return ["Table 4", printed, "-", command, data, MISSING]
    ours, agree, total, compared = [], 0, 0, found["summary"]["comparison"]
    for name, row in theirs.items():
        for key, unit in units.items():
            near = [c for c in compared if c["contender"] == name and c["count"].startswith(key)]
            # Counters differ in what is an operation: the printed figure is met if one of them gives it.
            best = min(near, key=lambda count: abs(count["ours"] - row[key]))
            total, agree = total + 1, agree + (f"{best['ours']:.2f}" == f"{row[key]:.2f}")
            ours.append(f"{name}: {best['count'].replace('_', ' by ')} {best['ours']:.2f} {unit}")
    told = VERDICTS[0] if agree == total else f"{VERDICTS[2]}: {agree} of {total} counts have the printed digits"
    return ["Table 4", printed, "; ".join(ours), command, data, told]


def page(results_folder: Path = RESULTS) -> str:
    """The whole page."""
    results = load(results_folder)
    rows = [
        measured("Table 1", "synapse", "attention", ["gca"], results),
        measured("Table 2", "acdc", "attention", ["gca"], results),
        measured("Table 3, 2017", "isic2017", "attention", ["gca"], results),
        measured("Table 3, 2018", "isic2018", "attention", ["gca"], results),
        complexity(results),
        *(
            measured(STUDIES[study].source["synapse"], "synapse", study, list(STUDIES[study].rows), results)
            for study in ("groups", "reduction", "pool")
        ),
        *(bars(source, dataset, results) for dataset, source in STUDIES["attention"].source.items()),
        *([paper, printed, "-", "-", "-", f"not attempted: {why}"] for paper, printed, why in PICTURES),
    ]
    parts = [HEAD + table([HEADS, *rows])]
    for name, found in results.items():
        if name.startswith("ablations_"):
            parts.append(markdown(found, level=2).strip())
        elif name.startswith("attention_"):
            parts.append(groups(name, found))
        elif found.get("summary", {}).get("comparison"):
            parts.append(counts(name, found))
    return "\n\n".join(parts) + "\n"


def counts(name: str, found: Row) -> str:
    """Every printed count of Table 4 beside ours."""
    machine, keys = found["machine"], ("contender", "count", "ours", "paper", "agrees")
    rows = [[str(count[key]).replace("_", " by ") for key in keys] for count in found["summary"]["comparison"]]
    latency = [[row["contender"], f"{row['latency_ms']:.2f}"] for row in found["rows"]]
    return "\n\n".join(
        [
            f"## Complexity: {name.partition('/')[0]}",
            f"`{machine['command']}`, {machine['date'][:10]}, commit {machine['commit']}. Parameters in millions, "
            "multiply-accumulates (MACs) and FLOPs in billions.",
            table([["network", "count by counter", "ours", "printed", "agrees"], *rows]),
            f"Latency on {machine['device']}, {machine['threads']} threads; the paper's is of another device:",
            table([["network", "ms"], *latency]),
        ]
    )


def groups(name: str, found: Row) -> str:
    """Whether the groups of a trained network attend to different places, as the paper says they do."""

    def line(row: Row, prefix: str) -> list[str]:
        numbers = (
            row[f"{prefix}{key}"] for key in ("similarity", "random_mean", "random_5", "random_95", "percentile")
        )
        similarity, mean, low, high, percentile = (f"{number:.2f}" for number in numbers)
        return [similarity, f"{mean} ({low} to {high})", f"{float(percentile):.0f}"]

    rows = [
        [row["layer"], f"{row['height']}x{row['width']}", *line(row, ""), *line(row, "untrained_")]
        for row in found["layers"]
    ]
    split = "random splits (5 to 95 %)"
    heads = ["layer", "gates", "groups", split, "percentile", "untrained: groups", split, "percentile"]
    folder = name.partition("/")[0]
    return "\n\n".join(
        [
            f"## Do the groups specialise? {folder.removeprefix('attention_').replace('_', ', ')} protocol",
            f"Correlation between the maps of two groups on {sum(found['scans'].values())} slices, beside that of "
            f"{found['random_splits']} random splits of the same channels: groups that specialise lie below the "
            "splits, at a percentile under 5. `untrained` is the same network with random weights. The command stands "
            f"beside [all numbers](../benchmarks/results/{folder}/groups.csv).",
            table([heads, *rows]),
            f"![Correlation by layer](../benchmarks/results/{folder}/overview.png)",
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
