"""Figures, tables and paired differences of finished ablation runs, beside what the paper reports."""

import csv
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields
from itertools import combinations
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from ablation_figures import RATES, draw_bars, draw_curves
from studies import DATASETS, REPORTED, STUDIES, VARIANTS, Study

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from medseg.errors import DataError
from medseg.evaluation.report import spread
from medseg.evaluation.scores import spread_of
from medseg.files import write_json, write_text, writing
from medseg.settings import Settings

Row = dict[str, Any]
PARTS = ("figures", "classes", "classes_hd95")
RULE = (
    "± is the sample standard deviation over the n runs. Differences are paired by {unit}, with 95 % t-intervals: mean "
    "± t · standard deviation / √n. **Bold**: significant, the interval does not contain 0; all others are not "
    "significant (95 % CI contains 0). Intervals are not corrected for the number of comparisons."
)
SCANS = (
    "Dice is the strict one, in which a false positive structure scores 0. HD95 strict leaves out cases in which one "
    "mask is empty; HD95 transunet scores them 0 and is in voxels whatever the spacing. The paper reports HD95 in mm "
    "and does not define it; it stands under transunet's."
)
RGB = "Rates are over the pixels of all test images; Dice per class is the mean over images."
COST = (
    "Training time per step, loading included and validation not: the median over the epochs of a run, then the mean "
    "over runs. Compared are runs with the same {unit}, device, versions and options of execution."
)
PROTOCOLS = {"paper": "the paper's protocol", "reduced": "an earlier, reduced protocol"}


def row(variant: str, number: int, command: str, results: Row, metrics: Path, made: Row) -> Row:
    """What of a run's ``results.json`` and ``metrics.csv`` stands in the tables, and what it was made with."""
    summary = results["test"]["summary"]
    figures, classes = dict(results["test"]["headline"]), summary["classes"]
    if "transunet" in summary["mean"]:
        figures["dice_transunet"] = summary["mean"]["transunet"]["dice"]
    strict = {name: found["strict"] for name, found in classes.items()}
    return {
        "variant": variant,
        "number": number,
        "figures": figures,
        "classes": {name: found["dice"]["mean"] for name, found in strict.items()},
        "classes_hd95": {name: found["hd95"]["mean"] for name, found in strict.items() if "hd95" in found},
        "missed": sum(found["missed"] for found in classes.values()),
        "hd95_unit_strict": summary["hd95_unit_strict"],
        "command": command,
        **made,
        "curve": curve(metrics),
        **{key: results[key] for key in ("settings", "data", "training", "parameters", "duration_seconds")},
        **{key: results[key] for key in ("execution", "environment")},
    }


def curve(metrics: Path) -> Row | None:
    """The losses of every epoch; ``None`` where it was not validated."""
    if not metrics.is_file():
        return None
    with metrics.open(newline="") as file:
        epochs = list(csv.DictReader(file))
    names = [name for name in ("loss", "val_loss", "val_dice_loss") if name in epochs[0]]
    losses = {name: [round(float(one[name]), 6) if one[name] else None for one in epochs] for name in names}
    return {"epoch": [int(one["epoch"]) for one in epochs], **losses}


def merged(before: Sequence[Row], now: Sequence[Row]) -> list[Row]:
    """Rows collected earlier and rows of runs that lie here, which replace them unless they are the same."""
    rows = {(one["variant"], one["number"]): one for one in before}
    for one in now:
        known = rows.get(key := (one["variant"], one["number"]))
        same = known and all(known[name] == one[name] for name in ("figures", "classes", "data", "duration_seconds"))
        if not same:  # or it would seem to be of the commit at which it is collected again
            rows[key] = one
    return sorted(rows.values(), key=lambda one: (list(VARIANTS).index(one["variant"]), one["number"]))


def content(dataset: str, protocol: str, rows: Sequence[Row], command: str) -> Row:
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
    keys = {part: list(dict.fromkeys(key for run in rows for key in run.get(part, {}))) for part in PARTS}
    differences: Row = {}
    for reference, name in (pair for study in STUDIES.values() for pair in pairs(study)):
        if reference in runs and name in runs:
            both = [(run, runs[reference][k]) for k, run in runs[name].items() if k in runs[reference]]
            differences.setdefault(reference, {})[name] = {
                part: {
                    key: difference((a.get(part, {}).get(key), b.get(part, {}).get(key)) for a, b in both) for key in of
                }
                for part, of in keys.items()
            }
    return {
        "schema": 2,
        "dataset": dataset,
        "title": DATASETS[dataset].benchmark.title,
        "protocol": protocol,
        "unit": DATASETS[dataset].unit,
        "command": command,
        "rule": RULE.format(unit=DATASETS[dataset].unit),
        "variants": {
            name: {
                "numbers": list(found),
                **{
                    part: {key: over_runs(run.get(part, {}).get(key) for run in found.values()) for key in of}
                    for part, of in keys.items()
                },
            }
            for name, found in runs.items()
        },
        "differences": differences,
        "cost": {name: cost(found, runs.get("none", {})) for name, found in runs.items()},
        "runs": list(rows),
    }


def pairs(study: Study) -> list[tuple[str, str]]:
    """Reference and variant of every comparison, the later row minus the earlier; with no attention first."""
    names = study.rows if "none" in study.rows else ("none", *study.rows)
    return sorted(combinations(names, 2), key=lambda pair: pair[0] != "none")


def cost(runs: dict[int, Row], without: dict[int, Row]) -> Row:
    """Seconds per training step, and percent over no attention where both were computed alike."""
    seconds = {number: run["duration_seconds"].get("step") for number, run in runs.items()}
    alike = {
        number: without[number]["duration_seconds"].get("step")
        for number, run in runs.items()
        if number in without and all(run[key] == without[number][key] for key in ("environment", "execution"))
    }
    over = [100 * (seconds[k] / base - 1) for k, base in alike.items() if seconds[k] and base]
    return {"seconds_per_step": over_runs(seconds.values()), "percent_over_none": with_interval(over)}


def over_runs(values: Iterable[float | None]) -> Row:
    """Mean and sample standard deviation of the values that are defined."""
    defined = [value for value in values if value is not None]
    return {"n": len(defined), **spread_of(defined), "values": defined}


def difference(pairs: Iterable[tuple[float | None, float | None]]) -> Row:
    """Paired differences where both are defined."""
    return with_interval([a - b for a, b in pairs if a is not None and b is not None])


def with_interval(values: Sequence[float]) -> Row:
    """``interval``: 95 % t-interval of the mean; ``significant``: whether it excludes 0. ``None`` for one value."""
    found = over_runs(values)
    if found["std"] is None:
        return {**found, "interval": None, "significant": None}
    half = float(student.ppf(0.975, found["n"] - 1)) * found["std"] / found["n"] ** 0.5
    low, high = found["mean"] - half, found["mean"] + half
    return {**found, "interval": [low, high], "significant": low > 0 or high < 0}


def told(found: Row) -> str:
    """The result of a comparison in the field's words."""
    words = {None: "one run", True: "significant", False: "not significant (95 % CI contains 0)"}
    return words[found["significant"]] if found["n"] else "-"


def columns(found: Row) -> dict[str, str]:
    """Keys and headings of the figures of a data set."""
    if "iou" in found["runs"][0]["figures"]:
        return RATES
    unit = "/".join(sorted({run["hd95_unit_strict"] for run in found["runs"]}))
    strict = {"dice": "Dice %", "hd95_strict": f"HD95 strict ({unit})"}
    return {**strict, "dice_transunet": "Dice % transunet", "hd95": "HD95 transunet (voxels)"}


def shown_studies(found: Row) -> dict[str, Study]:
    """Studies of which more than what all share is finished."""
    done = found["variants"].keys() - {"none", "gca"}
    return {name: study for name, study in STUDIES.items() if done & study.rows.keys() or name == "attention"}


def protocol_in_words(protocol: str) -> str:
    """A name for people, e.g. of ``compact-size96-epochs6``: compact protocol with size 96, epochs 6."""
    names = "|".join(sorted((one.name for one in fields(Settings)), key=len, reverse=True))
    kind, *changes = re.split(rf"-(?={names})", protocol)  # a value may hold a hyphen: precision32-true
    words = ", ".join(re.sub(rf"^({names})", lambda found: f"{found[0].replace('_', ' ')} ", one) for one in changes)
    return PROTOCOLS.get(kind, f"{kind} protocol") + (f" with {words}" if words else "")


def heading(found: Row) -> str:
    """Data set and protocol; no other run passes for the paper's."""
    warning = "" if found["protocol"] == "paper" else " (not the paper's settings: no reproduction)"
    return f"{found['title']}, {protocol_in_words(found['protocol'])}{warning}"


def markdown(found: Row, level: int = 1, folder: str = "") -> str:
    """All tables of a data set, under headings from ``level``; ``folder`` is where its figures lie."""
    runs, data = found["runs"], found["runs"][0]["data"]
    same = ("encoder", "size", "batch_size", "epochs", "lr", "validate_every", "patience", "precision", "limit")
    settings = {key: list(dict.fromkeys(str(run["settings"][key]) for run in runs)) for key in same}
    stated = ", ".join(f"{key} {' or '.join(values)}" for key, values in settings.items())
    device, commit = (
        " and ".join(sorted({str(one) for one in ones}))
        for ones in ((run["environment"]["device"] for run in runs), (run["commit"] for run in runs))
    )
    dates = sorted({run["date"][:10] for run in runs})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    sizes = ", ".join(f"{count} {part}" for part, count in data["cases"].items())
    parts = [
        f"{'#' * level} Ablations: {heading(found)}",
        f"`{found['command']}`, {when}, commit {commit}, device: {device}."
        + (" (Only there: `--reduced` has since given way to `--compact`.)" if found["protocol"] == "reduced" else ""),
        f"Settings: {stated}. Data: {data['name']}, {data['split']}; cases: {sizes}.",
        f"{RGB if columns(found) is RATES else SCANS} {found['rule']}",
    ]
    for study in shown_studies(found).values():
        source = study.source.get(found["dataset"], "not in the paper for this data set")
        parts.append(f"{'#' * (level + 1)} {study.title} ({source})")
        parts += [table for table in (_means(found, study), _compared(found, study), _by_class(found, study)) if table]
    if any(run["duration_seconds"].get("step") for run in runs):
        parts += [f"{'#' * (level + 1)} What attention costs in time", COST.format(unit=found["unit"]), _costs(found)]
    parts.append(f"![Bars of every variant, by class]({folder}{found['dataset']}.png)")
    if any(run.get("curve") for run in runs):
        parts.append(f"![Validation losses of every variant, by epoch]({folder}{found['dataset']}_curves.png)")
    return "\n\n".join(parts) + "\n"


def _means(found: Row, study: Study) -> str:
    heads, reported = columns(found), REPORTED[found["dataset"]]
    classes = list(found["runs"][0]["classes"])
    lines = [["", "n", *heads.values(), *(f"Dice % {name}" for name in classes)]]
    for name, label in study.rows.items():
        if name in found["variants"]:
            variant = found["variants"][name]
            cells = [spread(variant["figures"][key], scale(key)) for key in heads]
            cells += [spread(variant["classes"][key], 100) for key in classes]
            lines.append([label, str(len(variant["numbers"])), *cells])
        if name in reported:
            paper = reported[name]
            cells = [spread({"mean": paper.mean.get(key), "std": paper.std.get(key)}, 1) for key in heads]
            cells += [spread({"mean": paper.classes.get(key), "std": None}, 1) for key in classes]
            lines.append([f"*{label}: reported, {paper.source.partition(',')[0]}*", "", *cells])
    return table(lines)


def _compared(found: Row, study: Study) -> str:
    """Paired differences of the mean figures."""
    heads = {key: head for key, head in columns(found).items() if key != "dice_transunet"}
    main = next(iter(heads))
    lines = [["difference", "n", *heads.values(), f"each {found['unit']}: {heads[main]}", f"{heads[main]} is"]]
    for label, compared in _pairs_of(found, study):
        figures = compared["figures"]
        each = ", ".join(f"{scale(main) * value:+.2f}" for value in figures[main]["values"])
        cells = [_between(figures[key], scale(key)) for key in heads]
        lines.append([label, str(figures[main]["n"]), *cells, each, told(figures[main])])
    return table(lines) if len(lines) > 1 else ""


def _by_class(found: Row, study: Study) -> str:
    """Paired differences of every class, where there are several."""
    classes = list(found["runs"][0]["classes"])
    distances = [name for name in classes if any(name in run.get("classes_hd95", {}) for run in found["runs"])]
    heads = [*(f"Dice % {name}" for name in classes), *(f"HD95 strict {name}" for name in distances)]
    lines = [["difference by class", *heads]]
    for label, compared in _pairs_of(found, study):
        cells = [_between(compared["classes"][name], 100) for name in classes]
        lines.append([label, *cells, *(_between(compared["classes_hd95"][name], 1) for name in distances)])
    return table(lines) if len(lines) > 1 and len(classes) > 1 else ""


def _pairs_of(found: Row, study: Study) -> list[tuple[str, Row]]:
    listed = []
    for reference, name in pairs(study):
        compared = found["differences"].get(reference, {}).get(name)
        if compared and any(figure["n"] for figure in compared["figures"].values()):
            listed.append((f"{VARIANTS[name].label} minus {VARIANTS[reference].label}", compared))
    return listed


def _costs(found: Row) -> str:
    lines = [["", "n", "s per step", "s per epoch", "% over no attention", "that is"]]
    for name, costs in found["cost"].items():
        step, over = costs["seconds_per_step"], costs["percent_over_none"]
        if step["n"]:
            run = next(run for run in found["runs"] if run["variant"] == name)
            steps = run["data"]["slices"]["train"] // run["settings"]["batch_size"]
            extra = ["-", "-"] if name == "none" else [_between(over, 1), told(over)]
            lines.append([VARIANTS[name].label, str(step["n"]), spread(step, 1), f"{steps * step['mean']:.0f}", *extra])
    return table(lines)


def _between(found: Row, factor: float) -> str:
    """A difference with its interval, bold if it is significant."""
    if not found["n"]:
        return "-"
    text = f"{factor * found['mean']:+.2f}"
    if found["interval"] is not None:
        text += " ({:+.2f} to {:+.2f})".format(*(factor * end for end in found["interval"]))
    return f"**{text}**" if found["significant"] else text


def scale(key: str) -> int:
    """Distances as they are, all else in percent."""
    return 1 if key.startswith("hd95") else 100


def table(lines: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; the first line is its head."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], ["---"] * len(lines[0]), *lines[1:]))


def write(folder: Path, found: Row) -> None:
    """``<data set>.json`` with everything, ``.csv`` with a row a run, ``.md`` with the tables, and the figures."""
    path = folder / found["dataset"]
    write_json(path.with_suffix(".json"), found)
    write_text(path.with_suffix(".md"), markdown(found))
    rows = [
        {"variant": run["variant"], found["unit"]: run["number"], **run["figures"]}
        | {f"dice {name}": value for name, value in run["classes"].items()}
        | {f"hd95_strict {name}": value for name, value in run.get("classes_hd95", {}).items()}
        | {"missed": run["missed"], "epochs": run["training"]["epochs"], "seconds": run["duration_seconds"]["total"]}
        | {"seconds_per_step": run["duration_seconds"].get("step")}
        for run in found["runs"]
    ]
    with writing(path.with_suffix(".csv")), path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for one in rows for key in one)))
        writer.writeheader()
        writer.writerows(rows)
    draw_bars(found, shown_studies(found), heading(found), path.with_suffix(".png"))
    draw_curves(found, heading(found), path.with_name(f"{found['dataset']}_curves.png"))
