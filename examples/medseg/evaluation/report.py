"""What a run leaves behind: a table to read and ``results.json`` to compute with."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from medseg.data.dataset import Benchmark
from medseg.errors import RunError
from medseg.evaluation.scores import headline, spread_of

SCHEMA = 1  # of results.json; raised when a key changes its meaning or goes

DEFINITIONS = {
    "dice": "2|P and T| / (|P| + |T|) of one class in one case at native resolution, in [0, 1]",
    "strict": "HD95: larger of the two directed 95th percentiles of surface distances, in hd95_unit_strict. One empty "
    "mask: Dice 0, HD95 null; two: both null. Nulls are left out of means and counted as missed or invented",
    "transunet": "HD95: 95th percentile of both directed surface distances pooled, in voxels whatever the spacing. "
    "Predicted but absent: Dice 1, HD95 0; any other empty mask: Dice 0, HD95 0. Its mean over classes is no headline "
    "where a class is missed in every case that has it",
    "pooled": "rates over the pixels of all images together, every image weighing the same, as tables on ISIC compute "
    "them; strict: the mean over images of each image's rate. Of several classes, each against all the others",
    "iou": "intersection over union; what tables on ISIC call mIoU obeys Dice = 2 IoU / (1 + IoU), so it is that of "
    "the lesion and no mean over lesion and background",
    "mean": "over cases per class, then over classes",
    "std": "sample standard deviation (divided by n - 1) over cases; over runs where several are collected",
    "missed": "cases in which the class is present and nothing was predicted",
    "invented": "cases in which the class is absent and something was predicted",
}
WIDTH = 86


def table(benchmark: Benchmark, summary: dict[str, Any], heading: str) -> str:
    """Figures of one run, beside those of the paper where the benchmark has any."""
    rows = _rgb_rows(benchmark, summary) if benchmark.intensity == "rgb" else _scan_rows(benchmark, summary)
    rule = "-" * WIDTH
    source = [f"Paper: {benchmark.paper.source}."] if benchmark.paper else []
    return "\n".join([rule, heading, rule, *rows, rule, *source])


def table_of_runs(benchmark: Benchmark, collected: dict[str, Any]) -> str:
    """Mean and standard deviation over several runs, beside the paper's where the benchmark has any."""
    rule, paper = "-" * WIDTH, benchmark.paper
    lines = [rule, f"{benchmark.title}: mean and standard deviation over {len(collected['runs'])} runs", rule]
    if paper:
        lines.append(f"{'':22}{'ours':>20}{'paper':>20}")
    for name, figure in collected["classes"].items():
        printed = f"{_number(paper.dice.get(name)):>20}" if paper else ""
        lines.append(f"{'Dice % ' + name:22}{spread(figure, 100):>20}{printed}")
    for name, figure in collected["mean"].items():
        scale = 1 if name.startswith("hd95") else 100
        unit = f" ({collected['hd95_unit_strict']})" if name == "hd95_strict" else " (voxels)" if scale == 1 else " %"
        printed = ""
        if paper:
            mean, std = paper.mean.get(name, (None, None))
            printed = f"{'-' if mean is None else f'{mean:.2f} ± {std:.2f}':>20}"
        lines.append(f"{name + unit:22}{spread(figure, scale):>20}{printed}")
    notes = [f"Paper: {paper.source}."] if paper else []
    notes += ["HD95: hd95 is transunet's, hd95_strict ours."] if "hd95" in collected["mean"] else []
    return "\n".join([*lines, rule, *([" ".join(notes)] if notes else [])])


def collect(benchmark: Benchmark, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over the results of several runs, with the value of every run."""
    by_fold: dict[int | None, str] = {}  # folds have different data, seeds the same
    for result in results:
        data = result["data"]["fingerprint"]
        if by_fold.setdefault(result["settings"]["fold"], data) != data:
            raise RunError("the runs were trained and tested on different data, so they have no mean; train them again")
    summaries = [result["test"]["summary"] for result in results]
    figures = [headline(benchmark, summary) for summary in summaries]
    return {
        "schema": SCHEMA,
        "benchmark": benchmark.name,
        "runs": [
            {"seed": result["settings"]["seed"], "fold": result["settings"]["fold"], **figure}
            for result, figure in zip(results, figures, strict=True)
        ],
        "hd95_unit_strict": summaries[0]["hd95_unit_strict"],
        "classes": {
            name: _over_runs([summary["classes"][name]["strict"]["dice"]["mean"] for summary in summaries])
            for name in benchmark.classes
        },
        "mean": {name: _over_runs([figure[name] for figure in figures]) for name in figures[0]},
        "definitions": DEFINITIONS,
        **({"paper": asdict(benchmark.paper)} if benchmark.paper else {}),
    }


def _scan_rows(benchmark: Benchmark, summary: dict[str, Any]) -> list[str]:
    unit, paper = summary["hd95_unit_strict"], benchmark.paper

    def printed(figure: float | None) -> str:
        return f"{_number(figure):>16}" if paper else ""

    lines = [
        f"{'':14}{'Dice %':>16}{'HD95':>10}{'HD95':>11}{'missed':>9}{'cases':>7}"
        + (f"{'paper Dice %':>16}" if paper else ""),
        f"{'':14}{'strict':>16}{'strict':>10}{'transunet':>11}",
    ]
    for name, row in summary["classes"].items():
        strict = row["strict"]
        lines.append(
            f"{name:14}{spread(strict['dice'], 100):>16}{_number(strict['hd95']['mean']):>10}"
            f"{_number(row['transunet']['hd95']['mean']):>11}{row['missed']:>9}{row['present']:>7}"
            f"{printed(paper.dice.get(name) if paper else None)}"
        )
    mean, means = summary["mean"], paper.mean if paper else {}
    transunet = headline(benchmark, summary)["hd95"]
    lines.append(
        f"{'mean':14}{_number(mean['strict']['dice'], 100):>16}{_number(mean['strict']['hd95']):>10}"
        f"{_number(transunet):>11}{'':16}{printed(means['dice'][0] if 'dice' in means else None)}"
    )
    theirs = f"; the paper's mean HD95 is {means['hd95'][0]}" if "hd95" in means else ""
    lines.append(f"HD95 strict in {unit}, transunet in voxels{theirs}.")
    return [line.rstrip() for line in lines]


def rate_names(benchmark: Benchmark) -> dict[str, str]:
    """What tables and bars call the rates of pixels, in their order."""
    iou = "mIoU" if benchmark.paper else "IoU"  # tables on ISIC call it so, see DEFINITIONS
    return {"iou": iou, "dice": "DSC", "accuracy": "Acc", "specificity": "Spe", "sensitivity": "Sen"}


def _rgb_rows(benchmark: Benchmark, summary: dict[str, Any]) -> list[str]:
    order = rate_names(benchmark)
    classes, mean, paper = summary["classes"], summary["mean"], benchmark.paper
    lines = [f"{'%':22}" + "".join(f"{name:>12}" for name in order.values())]
    rows = [("pooled over pixels", mean["pooled"]), ("mean over images", mean["strict"])]
    if len(classes) > 1:
        rows = [*((f"{name}, pooled", row["pooled"]) for name, row in classes.items()), *rows]
    for title, figures in rows:
        lines.append(f"{title:22}" + "".join(f"{_number(figures[key], 100):>12}" for key in order))
    if paper:
        printed = {key: mean for key, (mean, _) in paper.mean.items()}
        lines.append(f"{'paper':22}" + "".join(f"{_number(printed.get(key)):>12}" for key in order))
    missed = ", ".join(f"{name} in {row['missed']} of {row['present']}" for name, row in classes.items())
    lines.append(f"{summary['cases']} images. Missed altogether: {missed}.")
    return lines


def _over_runs(values: Sequence[float | None]) -> dict[str, Any]:
    return {**spread_of(values), "values": list(values)}


def spread(figure: dict[str, Any], scale: float) -> str:
    """Mean and standard deviation, as far as they are defined."""
    mean, std = _number(figure["mean"], scale), figure["std"]
    return mean if std is None else f"{mean} ± {scale * std:.2f}"


def _number(value: float | None, scale: float = 1) -> str:
    return "-" if value is None else f"{scale * value:.2f}"
