"""Figures, tables and a picture of finished ablation runs, beside what the paper prints."""

import csv
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import t as student

from studies import DATASETS, PRINTED, STUDIES, VARIANTS, Study

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from medseg.errors import DataError
from medseg.report import spread
from medseg.summary import spread_of
from medseg.whole import write_json, write_text, writing

Row = dict[str, Any]
RULE = (
    "± is the sample standard deviation over the n runs. Differences are paired: a run minus the run of the reference "
    "with the same seed or fold. One is *beyond the spread* where the 95 % t-interval of the paired differences, mean "
    "± t · standard deviation / √n, excludes 0; intervals are not corrected for the number of comparisons."
)
SCANS = (
    "Dice is the strict one, in which an invented structure scores 0. HD95 strict leaves out cases in which one mask "
    "is empty; HD95 transunet scores them 0 and is in voxels whatever the spacing. The paper prints HD95 in mm and "
    "does not define it; it stands under transunet's."
)
PHOTOGRAPHS = "Rates are over the pixels of all test images; Dice per class is the mean over images."
RATES = {"iou": "mIoU %", "dice": "DSC %", "accuracy": "Acc %", "specificity": "Spe %", "sensitivity": "Sen %"}


def row(dataset: str, variant: str, number: int, command: str, results: Row) -> Row:
    """What of a run's ``results.json`` stands in the tables, and what it was made with."""
    summary = results["test"]["summary"]
    figures, classes = dict(results["test"]["headline"]), summary["classes"]
    if "transunet" in summary["mean"]:
        figures["dice_transunet"] = summary["mean"]["transunet"]["dice"]
    return {
        "variant": variant,
        "number": number,
        "figures": figures,
        "classes": {name: found["strict"]["dice"]["mean"] for name, found in classes.items()},
        "missed": sum(found["missed"] for found in classes.values()),
        "hd95_unit_strict": summary["hd95_unit_strict"],
        "command": command,
        **{key: results[key] for key in ("settings", "data", "training", "parameters", "duration_seconds")},
        **{key: results[key] for key in ("execution", "environment")},
    }


def content(dataset: str, protocol: str, rows: Sequence[Row], made: Row) -> Row:
    """Everything that is known of a data set: every run, every variant over its runs, and paired differences.

    Raises:
        DataError: If runs that are compared were made from different data.
    """
    first: dict[int | None, Row] = {}  # by fold: folds have different data
    for run in rows:
        before = first.setdefault(run["settings"]["fold"], run)
        if before["data"]["fingerprint"] != run["data"]["fingerprint"]:
            names = " and ".join(f"{one['variant']} {one['number']}" for one in (before, run))
            raise DataError(f"{dataset}: {names} were made from different data; train them again from the same")
    runs = {name: {run["number"]: run for run in rows if run["variant"] == name} for name in VARIANTS}
    runs = {name: found for name, found in runs.items() if found}
    differences: Row = {}
    for reference in (name for name in ("none", "gca") if name in runs):
        theirs = runs[reference]
        differences[reference] = {
            name: {
                key: difference((found[k]["figures"][key], theirs[k]["figures"][key]) for k in found if k in theirs)
                for key in rows[0]["figures"]
            }
            for name, found in runs.items()
            if name != reference
        }
    return {
        "schema": 1,
        "dataset": dataset,
        "title": DATASETS[dataset].benchmark.title,
        "protocol": protocol,
        "unit": DATASETS[dataset].unit,
        **made,
        "rule": RULE,
        "variants": {
            name: {
                "numbers": list(found),
                **{
                    part: {key: over_runs(run[part][key] for run in found.values()) for key in rows[0][part]}
                    for part in ("figures", "classes")
                },
            }
            for name, found in runs.items()
        },
        "differences": differences,
        "runs": list(rows),
    }


def over_runs(values: Iterable[float | None]) -> Row:
    """Mean and sample standard deviation of the values that are defined."""
    defined = [value for value in values if value is not None]
    return {"n": len(defined), **spread_of(defined), "values": defined}


def difference(pairs: Iterable[tuple[float | None, float | None]]) -> Row:
    """Paired differences where both are defined; ``beyond``: whether their 95 % t-interval excludes 0."""
    found = over_runs(None if a is None or b is None else a - b for a, b in pairs)
    if found["std"] is None:
        return {**found, "interval": None, "beyond": None}
    half = float(student.ppf(0.975, found["n"] - 1)) * found["std"] / found["n"] ** 0.5
    low, high = found["mean"] - half, found["mean"] + half
    return {**found, "interval": [low, high], "beyond": low > 0 or high < 0}


def columns(found: Row) -> dict[str, str]:
    """Keys and headings of the figures of a data set."""
    if "iou" in found["runs"][0]["figures"]:
        return RATES
    unit = "/".join(sorted({run["hd95_unit_strict"] for run in found["runs"]}))
    strict = {"dice": "Dice %", "hd95_strict": f"HD95 strict ({unit})"}
    return {**strict, "dice_transunet": "Dice % transunet", "hd95": "HD95 transunet (voxels)"}


def shown_studies(found: Row) -> dict[str, Study]:
    """Studies of which more than what all share is finished."""
    done = found["variants"].keys() - {"gca"}
    return {name: study for name, study in STUDIES.items() if done & study.rows.keys() or name == "attention"}


def heading(found: Row) -> str:
    """Data set and protocol; a reduced run never passes for the paper's."""
    warning = "" if found["protocol"] == "paper" else " (not the paper's settings: no reproduction)"
    return f"{found['title']}, {found['protocol']} protocol{warning}"


def markdown(found: Row, level: int = 1) -> str:
    """All tables of a data set, under headings from ``level``."""
    runs, data = found["runs"], found["runs"][0]["data"]
    same = ("encoder", "size", "batch_size", "epochs", "lr", "validate_every", "patience", "precision", "limit")
    settings = {key: list(dict.fromkeys(str(run["settings"][key]) for run in runs)) for key in same}
    stated = ", ".join(f"{key} {' or '.join(values)}" for key, values in settings.items())
    device = " and ".join(sorted({run["environment"]["device"] for run in runs}))
    sizes = ", ".join(f"{count} {part}" for part, count in data["cases"].items())
    parts = [
        f"{'#' * level} Ablations: {heading(found)}",
        f"`{found['command']}`, {found['date'][:10]}, commit {found['commit']}, device: {device}.",
        f"Settings: {stated}. Data: {data['name']}, {data['split']}; cases: {sizes}.",
        f"{PHOTOGRAPHS if columns(found) is RATES else SCANS} {RULE}",
    ]
    for study in shown_studies(found).values():
        source = study.source.get(found["dataset"], "not in the paper for this data set")
        parts.append(f"{'#' * (level + 1)} {study.title} ({source})")
        parts += [table for table in (_means(found, study), *_compared(found, study)) if table]
    return "\n\n".join(parts) + "\n"


def _means(found: Row, study: Study) -> str:
    heads, printed = columns(found), PRINTED[found["dataset"]]
    classes = list(found["runs"][0]["classes"])
    lines = [["", "n", *heads.values(), *(f"Dice % {name}" for name in classes)]]
    for name, label in study.rows.items():
        if name in found["variants"]:
            variant = found["variants"][name]
            cells = [spread(variant["figures"][key], scale(key)) for key in heads]
            cells += [spread(variant["classes"][key], 100) for key in classes]
            lines.append([label, str(len(variant["numbers"])), *cells])
        if name in printed:
            paper = printed[name]
            cells = [spread({"mean": paper.mean.get(key), "std": paper.std.get(key)}, 1) for key in heads]
            cells += [spread({"mean": paper.classes.get(key), "std": None}, 1) for key in classes]
            lines.append([f"*{label}: printed, {paper.source.partition(',')[0]}*", "", *cells])
    return table(lines)


def _compared(found: Row, study: Study) -> list[str]:
    tables = []
    for reference in study.references:
        lines = [[f"minus {VARIANTS[reference].label}", "figure", "each run", "mean ± std", "95 % interval", "verdict"]]
        for name, label in study.rows.items():
            for key, head in columns(found).items():
                compared = found["differences"].get(reference, {}).get(name, {}).get(key)
                if compared and compared["n"]:
                    factor, interval = scale(key), compared["interval"]
                    each = ", ".join(f"{factor * value:+.2f}" for value in compared["values"])
                    between = "-" if interval is None else " to ".join(f"{factor * end:+.2f}" for end in interval)
                    verdict = {None: "one run", True: "beyond the spread", False: "within the spread"}
                    cells = [each, spread(compared, factor), between, verdict[compared["beyond"]]]
                    lines.append([label, head, *cells])
        tables.append(table(lines) if len(lines) > 1 else "")
    return tables


def scale(key: str) -> int:
    """Distances as they are, all else in percent."""
    return 1 if key.startswith("hd95") else 100


def table(lines: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; the first line is its head."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], ["---"] * len(lines[0]), *lines[1:]))


def write(folder: Path, found: Row) -> None:
    """``<data set>.json`` with everything, ``.csv`` with a row a run, ``.md`` with the tables, ``.png``."""
    path = folder / found["dataset"]
    write_json(path.with_suffix(".json"), found)
    write_text(path.with_suffix(".md"), markdown(found))
    rows = [
        {"variant": run["variant"], found["unit"]: run["number"], **run["figures"]}
        | {f"dice {name}": value for name, value in run["classes"].items()}
        | {"missed": run["missed"], "epochs": run["training"]["epochs"], "seconds": run["duration_seconds"]["total"]}
        for run in found["runs"]
    ]
    with writing(path.with_suffix(".csv")), path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw(found, path.with_suffix(".png"))


def draw(found: Row, picture: Path) -> None:
    """Bars of every variant per class, as in Figures 5 and 6, with the standard deviation and a dot for every run."""
    studies = shown_studies(found)
    part, names = ("figures", RATES) if columns(found) is RATES else ("classes", None)
    names = names or {name: name for name in found["runs"][0]["classes"]}
    figure = Figure(figsize=(max(8, 1.5 * len(names)), 3.6 * len(studies)), layout="constrained")
    every = [100 * (run[part][key] or 0) for run in found["runs"] for key in names]
    bottom = max(0, 10 * ((min(every) - 5) // 10))
    for axes, study in zip(figure.subplots(len(studies), squeeze=False).flat, studies.values(), strict=True):
        rows = {name: label for name, label in study.rows.items() if name in found["variants"]}
        for place, (name, label) in enumerate(rows.items()):
            shift, width = (place - (len(rows) - 1) / 2) * 0.8 / len(rows), 0.8 / len(rows)
            spreads = [found["variants"][name][part][key] for key in names]
            x = np.arange(len(names)) + shift
            heights = [100 * (one["mean"] or 0) for one in spreads]
            axes.bar(x, heights, width, label=label, yerr=[100 * (s["std"] or np.nan) for s in spreads], capsize=2)
            for at, one in zip(x, spreads, strict=True):
                axes.plot([at] * one["n"], [100 * value for value in one["values"]], "k.", markersize=3)
        axes.set_xticks(range(len(names)), list(names.values()))
        cut = f"; the axis begins at {bottom:.0f}" if bottom else ""
        axes.set(ylim=(bottom, 100), title=study.title)
        axes.set_ylabel(f"{'%' if part == 'figures' else 'Dice %'}{cut}", fontsize=9)
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    figure.suptitle(f"{heading(found)}\nbars: mean and standard deviation; dots: single {found['unit']}s", fontsize=10)
    with writing(picture):
        figure.savefig(picture, dpi=110)
