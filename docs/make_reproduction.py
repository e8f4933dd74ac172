"""Write docs/reproduction.md from the results under benchmarks/results: ``python docs/make_reproduction.py``."""

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from ablation_plan import collected_rows
from ablation_report import content, markdown, protocol_in_words, scale, table
from medseg.evaluation.report import spread
from studies import DATASETS, REPORTED, STUDIES, runs_of
from table4 import TABLE_4

PAGE = Path(__file__).with_name("reproduction.md")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
Row = dict[str, Any]

HEAD = """\
# What of the paper is reproduced

"""
NOTES = """\
Dice and rates in %. HD95: the paper's in mm, by a definition that it does not give; ours by transunet's rule, in
voxels. *open*: nothing has been run yet. All numbers of ours are read from the JSON files under `benchmarks/results`.

## Why rows are open

- Tables 1, 5, 6, 7 and Figure 5 need the Synapse set, which is handed out on registration, and 200 epochs for each of
  four folds of every variant; Table 3, 2017 needs that year's set.
- The paper's settings are 200 epochs at 224x224 (ISIC: 256x256) for every seed, which takes a GPU. On CPUs the compact
  protocol compares the variants instead: the paper's data, network, augmentation and batch, 128x128, 12 epochs in
  bfloat16; on a processor without native bfloat16, 96x96, 6 epochs in float32.
- Figures 3, 4 and 7 are overlays chosen by eye, beside other methods. Every run draws its own best, median and worst
  test case.

## What the words mean

- **Tables 1 to 3 and 5 to 7** are judged on runs with the paper's settings, as many as the paper has (three seeds, or
  four folds). A reported mean is *reproduced* where ours rounds to the same digits, *reproduced within ±* where the two
  differ by no more than the sum of both standard deviations (0 where none is reported), and *not reproduced* otherwise.
  A row has the worst status of its figures, HD95 included. Dice is compared with ours by the strict rule, HD95 with
  ours by transunet's rule in voxels; the paper reports mm and no definition.
- **Figures 5 and 6** have no numbers. What is read from them is an order of mean Dice: Res50 U-Net < no attention < SE
  and CBAM < GCA. It is *reproduced* where that order holds and GCA minus no attention, paired by seed or fold, is
  significant (its 95 % t-interval excludes 0), *order reproduced, not significant* where the interval contains 0, and
  *not reproduced* otherwise.
- **Table 4** counts as reproduced if every count, taken from whichever counter comes closest, rounds to the reported
  digits. Latency belongs to a device and is not judged.
- **Other protocols** never count as a reproduction. Where the numbers are of an earlier one, the command is that of the
  paper's.

## Commands

"""
STATUS = ("reproduced", "reproduced within ±", "not reproduced")
ORDER_STATUS = ("reproduced", "order reproduced, not significant", "not reproduced")
OPEN = "open"
PICTURES = (("Figures 3, 4", "overlays of test cases"), ("Figure 7", "overlays of failures"))
ORDER = (("original", "none"), ("none", "se"), ("none", "cbam"), ("se", "gca"), ("cbam", "gca"))  # by mean Dice
REPORTED_ORDER = "Res50 U-Net < none < SE, CBAM < GCA"
SHORT = {"dice": "Dice", "hd95": "HD95", "iou": "mIoU"}
OF_A_TABLE = {"groups": "1, 2, 4 groups", "reduction": "reduction 1, 2, 4, 8", "pool": "avg, max, avg+max"}


class Line(NamedTuple):
    """One row of the table of what is reproduced, and the command that makes it."""

    paper: str
    reported: str
    ours: str
    protocol: str
    status: str
    command: str = ""


def load(results: Path) -> dict[str, Row]:
    """Contents of the JSON files by ``folder/name``; those of ablations are computed from their runs again."""
    patterns = ("ablations_*/*.json", "complexity_*/results.json", "attention_*/summary.json")
    paths = [path for pattern in patterns for path in sorted(results.glob(pattern))]
    found = {f"{path.parent.name}/{path.stem}": (path, json.loads(path.read_text(encoding="utf-8"))) for path in paths}
    return {
        name: content(one["dataset"], one["protocol"], collected_rows(path), one["command"])
        if name.startswith("ablations_")
        else one
        for name, (path, one) in found.items()
    }


def chosen(dataset: str, variants: Sequence[str], results: dict[str, Row]) -> Row | None:
    """Runs of the paper's protocol that hold any of the variants, else of the compact one, as it is or with other
    settings, else of an earlier one."""
    changed = (name.partition("/")[0] for name in results if re.fullmatch(rf"ablations_compact-.*/{dataset}", name))
    folders = ("ablations_paper", "ablations_compact", *sorted(changed), "ablations_reduced")
    candidates = (results.get(f"{folder}/{dataset}") for folder in folders)
    return next((found for found in candidates if found and found["variants"].keys() & set(variants)), None)


def counted(found: Row, variants: Sequence[str]) -> str:
    """How many runs there are of each variant, in words."""
    names: dict[int, list[str]] = {}
    for name in variants:
        names.setdefault(len(found["variants"][name]["numbers"]) if name in found["variants"] else 0, []).append(name)
    words = {n: f"{n or 'no'} {found['unit']}{'s' * (n != 1)}" for n in sorted(names, reverse=True)}
    if len(words) == 1:
        return next(iter(words.values()))
    return "; ".join(f"{told} of {', '.join(names[n])}" for n, told in words.items())


def judged(
    found: Row | None, dataset: str, variants: Sequence[str], judge: Callable[[Row], int], words: Sequence[str]
) -> tuple[str, str]:
    """Protocol and status."""
    if found is None:
        return "-", OPEN
    wanted, unit = len(runs_of(dataset)), f"{found['unit']}s"
    protocol = f"{protocol_in_words(found['protocol'])}, {counted(found, variants)}"
    if found["protocol"] != "paper":
        return protocol, "not the paper's settings"
    fewest = min(len(found["variants"][name]["numbers"]) if name in found["variants"] else 0 for name in variants)
    return protocol, words[judge(found)] if fewest >= wanted else f"{OPEN}: {fewest} of {wanted} {unit}"


def command_of(dataset: str, words: str, found: Row | None) -> str:
    """What trains the runs of a row."""
    more = ""
    if found and found["protocol"].startswith("compact"):
        more = " --compact" + "".join(found["command"].partition(" -- ")[1:])  # the settings that were changed
    return f"`python benchmarks/ablations.py --data {dataset}=DIR {words}{more}`"


def measured(paper: str, dataset: str, study: str, variants: Sequence[str], results: dict[str, Row]) -> Line:
    """The row of a table of means: of one variant its main figures, of several their Dice."""
    reported, found = {name: REPORTED[dataset][name] for name in variants}, chosen(dataset, variants, results)
    single = len(variants) == 1
    keys = [key for key in SHORT if all(key in row.mean for row in reported.values())][: None if single else 1]

    def figures(value: Callable[[str, str], str | None]) -> str:
        values = {key: [value(name, key) or "-" for name in variants] for key in keys}
        return ", ".join(f"{SHORT[key]} {' / '.join(of)}" for key, of in values.items())

    def theirs(name: str, key: str) -> str:
        row = reported[name]
        return spread({"mean": row.mean[key], "std": row.std.get(key) if single else None}, 1)

    def ours(name: str, key: str) -> str | None:
        of = found["variants"].get(name) if found else None
        if not of:
            return None
        figure = of["figures"][key]
        return spread(figure if single else {**figure, "std": None}, scale(key))

    def judge(full: Row) -> int:
        worst = 0
        for name, row in reported.items():
            for key, mean in row.mean.items():
                figure, factor = full["variants"][name]["figures"][key], scale(key)
                if figure["mean"] is None:
                    return 2
                value, allowed = factor * figure["mean"], factor * (figure["std"] or 0) + row.std.get(key, 0)
                worst = max(worst, 0 if f"{value:.2f}" == f"{mean:.2f}" else 1 if abs(value - mean) <= allowed else 2)
        return worst

    title = paper if single else f"{paper}: {OF_A_TABLE[study]}"
    words = f"--studies {study}" + (f" --variants {variants[0]}" if single else "")
    return Line(
        title,
        figures(theirs),
        figures(ours) if found else "-",
        *judged(found, dataset, variants, judge, STATUS),
        command_of(dataset, words, found),
    )


def bars(paper: str, dataset: str, results: dict[str, Row]) -> Line:
    """The row of Figure 5 or 6, whose order is what can be read from it."""
    variants = [name for name in STUDIES["attention"].rows if name != "coord"]
    found, ours = chosen(dataset, variants, results), "-"
    if found:
        gain = found["differences"].get("none", {}).get("gca", {}).get("figures", {}).get("dice")
        if gain and gain["n"]:
            ours = f"GCA minus none: Dice {'+' if gain['mean'] > 0 else ''}{spread(gain, 100)}"
            if gain["significant"] is not None:
                ours += ", significant" if gain["significant"] else ", not significant"

    def judge(full: Row) -> int:
        mean = {name: full["variants"][name]["figures"]["dice"]["mean"] or 0 for name in variants}
        if not all(mean[low] < mean[high] for low, high in ORDER):
            return 2
        return 0 if full["differences"]["none"]["gca"]["figures"]["dice"]["significant"] else 1

    told = judged(found, dataset, variants, judge, ORDER_STATUS)
    return Line(paper, REPORTED_ORDER, ours, *told, command_of(dataset, "--studies attention", found))


def complexity(results: dict[str, Row]) -> Line:
    """The row of Table 4."""
    units = {"parameters": "M", "macs": "G", "flops": "G"}
    theirs = {
        name: {key: TABLE_4[name][f"{key}_{unit.lower()}"] for key, unit in units.items()}
        for name in ("no attention", "GCA")
    }

    def words(figures: dict[str, float]) -> str:
        return f"{figures['parameters']:.2f} M, {figures['macs']:.2f} G MACs"

    command = "`python benchmarks/complexity.py`"
    found = next((one for one in results.values() if one.get("summary", {}).get("comparison")), None)
    if found is None:
        return Line("Table 4", words(theirs["GCA"]), "-", "-", OPEN, command)
    agree, total, compared, ours = 0, 0, found["summary"]["comparison"], {}
    for name, row in theirs.items():
        for key in units:
            near = [c for c in compared if c["contender"] == name and c["count"].startswith(key)]
            # Counters differ in what is an operation: the reported figure is met if one of them gives it.
            best = min(near, key=lambda count: abs(count["ours"] - row[key]))
            total, agree = total + 1, agree + (f"{best['ours']:.2f}" == f"{row[key]:.2f}")
            if name == "GCA":
                ours[key] = best["ours"]
    told = STATUS[0] if agree == total else f"{STATUS[2]}: {agree} of {total} counts agree"
    return Line("Table 4", words(theirs["GCA"]), words(ours), "9 classes, 3x224x224", told, command)


def page(results_folder: Path = RESULTS) -> str:
    """The whole page."""
    results = load(results_folder)
    lines = [
        measured("Table 1 (Synapse)", "synapse", "attention", ["gca"], results),
        measured("Table 2 (ACDC)", "acdc", "attention", ["gca"], results),
        measured("Table 3 (ISIC 2017)", "isic2017", "attention", ["gca"], results),
        measured("Table 3 (ISIC 2018)", "isic2018", "attention", ["gca"], results),
        complexity(results),
        *(
            measured(STUDIES[study].source["synapse"], "synapse", study, list(STUDIES[study].rows), results)
            for study in OF_A_TABLE
        ),
        *(
            bars(f"{source} ({DATASETS[dataset].benchmark.title})", dataset, results)
            for dataset, source in STUDIES["attention"].source.items()
        ),
        *(Line(paper, reported, "-", "-", "not attempted") for paper, reported in PICTURES),
    ]
    rows = [("paper", "reported", "ours", "protocol", "status"), *(line[:5] for line in lines)]
    commands = [("", "command"), *((line.paper.partition(":")[0], line.command) for line in lines if line.command)]
    parts = [HEAD + table(rows), NOTES + table(commands)]
    for name, found in results.items():
        if name.startswith("ablations_"):
            folder = name.partition("/")[0]
            parts.append(markdown(found, level=2, folder=f"../benchmarks/results/{folder}/").strip())
        elif name.startswith("attention_"):
            parts.append(groups(name, results, results_folder))
        elif found.get("summary", {}).get("comparison"):
            parts.append(counts(name, found))
    return "\n\n".join(parts) + "\n"


def counts(name: str, found: Row) -> str:
    """Every reported count of Table 4 beside ours."""
    machine, keys = found["machine"], ("contender", "count", "ours", "paper", "agrees")
    rows = [[str(count[key]).replace("_", " by ") for key in keys] for count in found["summary"]["comparison"]]
    latency = [
        [row["contender"], f"{row['latency_ms']:.0f} ({row['latency_ms_q1']:.0f} to {row['latency_ms_q3']:.0f})"]
        for row in found["rows"]
    ]
    return "\n\n".join(
        [
            f"## Complexity: {name.partition('/')[0]}",
            f"`{machine['command']}`, {machine['date'][:10]}, commit {machine['commit']}. Parameters in millions, "
            "multiply-accumulates (MACs) and FLOPs in billions.",
            table([["network", "count by counter", "ours", "reported", "agrees"], *rows]),
            f"Latency on {machine['device']}, {machine['threads']} threads; the paper's is of another device:",
            table([["network", "ms, median (quartiles)"], *latency]),
        ]
    )


SPECIALISE = (
    "Correlation between the maps of two groups on {slices} slices, beside that of {splits} random splits of the same "
    "channels, over {networks} networks: groups that specialise lie below the splits, at a percentile under 5. "
    "`untrained` is the same network with random weights.\n\n"
    "The groups are less alike than 95 % of the random splits in {less} of {layers} layers, with random weights in "
    "{before}.{control} The commands stand beside [all numbers](../benchmarks/results/{folder}/{file}.csv)."
)
NO_CONTROL = (
    " Whether the division into groups causes this is open: the control, parts of a network with a single group, has "
    "not been run."
)


def groups(name: str, results: dict[str, Row], results_folder: Path) -> str:
    """Whether the groups of trained networks attend to different places, as the paper says they do."""
    folder, _, file = name.partition("/")
    _, dataset, protocol = folder.split("_", 2)
    found = results[name]
    n, rows = len(found["networks"]), found["layers"]
    controlled = any(one.get("parts_of_single_groups", 1) > 1 for one in results.values())
    what = SPECIALISE.format(
        slices=sum(found["scans"].values()),
        splits=found["random_splits"],
        networks=n,
        less=sum(row["less_alike"] for row in rows),
        layers=n * len(rows),
        before=sum(row["untrained_less_alike"] for row in rows),
        control="" if controlled else NO_CONTROL,
        folder=folder,
        file=file,
    )

    def cell(row: Row, key: str) -> str:
        return spread({name: row[f"{key}_{name}"] for name in ("mean", "std")}, 1)

    heads = ["layer", "gates", "groups", "random splits", "gap", f"percentile under 5, of {n}"]
    heads += ["untrained: gap", "percentile under 5"]
    lines = [
        [row["layer"], f"{row['height']}x{row['width']}"]
        + [cell(row, key) for key in ("similarity", "random_mean", "gap")]
        + [str(row["less_alike"]), cell(row, "untrained_gap"), str(row["untrained_less_alike"])]
        for row in rows
    ]
    figures = [
        f"![Correlation by layer, {path.parent.name}](../benchmarks/results/{folder}/{path.parent.name}/{path.name})"
        for path in sorted((results_folder / folder).glob("*/overview.png"))
    ]
    heading = f"## Do the groups specialise? {DATASETS[dataset].benchmark.title}, {protocol_in_words(protocol)}"
    return "\n\n".join([heading, what, table([heads, *lines]), *figures])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
