"""What a run leaves behind: a table to read and ``results.json`` to compute with."""

import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import torch

from medseg.benchmark import Benchmark
from medseg.evaluation import headline, spread_of

SCHEMA = 1  # of results.json; raised when a key changes its meaning or goes

DEFINITIONS = {
    "dice": "2|P and T| / (|P| + |T|) of one class in one case at native resolution, in [0, 1]",
    "strict": "HD95: larger of the two directed 95th percentiles of surface distances, in hd95_unit_strict. One empty "
    "mask: Dice 0, HD95 null; two: both null. Nulls are left out of means and counted as missed or invented",
    "transunet": "HD95: 95th percentile of both directed surface distances pooled, in voxels whatever the spacing. "
    "Predicted but absent: Dice 1, HD95 0; any other empty mask: Dice 0, HD95 0",
    "pooled": "rates over the pixels of all images together, every image weighing the same, as tables on ISIC compute "
    "them; strict: the mean over images of each image's rate",
    "iou": "intersection over union of the lesion; what tables on ISIC call mIoU obeys Dice = 2 IoU / (1 + IoU), so "
    "it is this figure and no mean over lesion and background",
    "mean": "over cases per class, then over classes",
    "std": "sample standard deviation (divided by n - 1) over cases; over runs where several are collected",
    "missed": "cases in which the class is present and nothing was predicted",
    "invented": "cases in which the class is absent and something was predicted",
}
PACKAGES = ("gca-attn", "timm", "segmentation-models-pytorch", "lightning", "torchvision", "numpy", "scipy")
WIDTH = 86


def table(benchmark: Benchmark, summary: dict[str, Any], heading: str) -> str:
    """Figures of one run beside those of the paper."""
    rows = _photograph_rows(benchmark, summary) if benchmark.intensity == "rgb" else _scan_rows(benchmark, summary)
    rule = "-" * WIDTH
    return "\n".join([rule, heading, rule, *rows, rule, f"Paper: {benchmark.paper.source}."])


def table_of_runs(benchmark: Benchmark, collected: dict[str, Any]) -> str:
    """Mean and standard deviation over several runs beside the paper's."""
    rule = "-" * WIDTH
    lines = [rule, f"{benchmark.title}: mean and standard deviation over {len(collected['runs'])} runs", rule]
    lines.append(f"{'':22}{'ours':>20}{'paper':>20}")
    for name, figure in collected["classes"].items():
        printed = benchmark.paper.dice.get(name)
        lines.append(f"{'Dice % ' + name:22}{spread(figure, 100):>20}{_number(printed):>20}")
    for name, figure in collected["mean"].items():
        scale = 1 if name.startswith("hd95") else 100
        unit = f" ({collected['hd95_unit_strict']})" if name == "hd95_strict" else " (voxels)" if scale == 1 else " %"
        printed_mean = benchmark.paper.mean.get(name)
        printed_text = "-" if printed_mean is None else f"{printed_mean[0]:.2f} ± {printed_mean[1]:.2f}"
        lines.append(f"{name + unit:22}{spread(figure, scale):>20}{printed_text:>20}")
    return "\n".join([*lines, rule, f"Paper: {benchmark.paper.source}. HD95: hd95 is transunet's, hd95_strict ours."])


def collect(benchmark: Benchmark, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over the results of several runs, with the value of every run."""
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
        "paper": {"source": benchmark.paper.source, "dice": benchmark.paper.dice, "mean": benchmark.paper.mean},
    }


def environment(device: torch.device) -> dict[str, str | int]:
    """What computed the numbers: versions, processor and threads, device."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        **{package: metadata.version(package) for package in PACKAGES},
    }


def _scan_rows(benchmark: Benchmark, summary: dict[str, Any]) -> list[str]:
    unit = summary["hd95_unit_strict"]
    lines = [
        f"{'':14}{'Dice %':>16}{'HD95':>10}{'HD95':>11}{'missed':>9}{'cases':>7}{'paper Dice %':>16}",
        f"{'':14}{'strict':>16}{'strict':>10}{'transunet':>11}",
    ]
    for name, row in summary["classes"].items():
        strict = row["strict"]
        lines.append(
            f"{name:14}{spread(strict['dice'], 100):>16}{_number(strict['hd95']['mean']):>10}"
            f"{_number(row['transunet']['hd95']['mean']):>11}{row['missed']:>9}{row['present']:>7}"
            f"{_number(benchmark.paper.dice.get(name)):>16}"
        )
    mean, printed = summary["mean"], benchmark.paper.mean
    lines.append(
        f"{'mean':14}{_number(mean['strict']['dice'], 100):>16}{_number(mean['strict']['hd95']):>10}"
        f"{_number(mean['transunet']['hd95']):>11}{'':16}{printed['dice'][0]:>16.2f}"
    )
    lines.append(f"HD95 strict in {unit}, transunet in voxels; the paper's mean HD95 is {printed['hd95'][0]}.")
    return lines


def _photograph_rows(benchmark: Benchmark, summary: dict[str, Any]) -> list[str]:
    order = ("iou", "dice", "accuracy", "specificity", "sensitivity")
    mean, printed = summary["mean"], benchmark.paper.mean
    lines = [f"{'%':22}" + "".join(f"{name:>12}" for name in ("mIoU", "DSC", "Acc", "Spe", "Sen"))]
    for title, figures in (("pooled over pixels", mean["pooled"]), ("mean over images", mean["strict"])):
        lines.append(f"{title:22}" + "".join(f"{_number(figures[key], 100):>12}" for key in order))
    lines.append(f"{'paper':22}" + "".join(f"{printed[key][0]:>12.2f}" for key in order))
    (lesion,) = summary["classes"].values()
    lines.append(f"{summary['cases']} images, {lesion['missed']} lesions missed altogether.")
    return lines


def _over_runs(values: Sequence[float | None]) -> dict[str, Any]:
    return {**spread_of(values), "values": list(values)}


def spread(figure: dict[str, Any], scale: float) -> str:
    """Mean and standard deviation, as far as they are defined."""
    mean, std = _number(figure["mean"], scale), figure["std"]
    return mean if std is None else f"{mean} ± {scale * std:.2f}"


def _number(value: float | None, scale: float = 1) -> str:
    return "-" if value is None else f"{scale * value:.2f}"
