"""Figures of the benchmarks of speed."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from timing import Row

COLOURS = {"gca-attn": "C0", "naive PyTorch": "C7", "timm": "C1"}


def source(name: str) -> str:
    """Whose code a contender is, for its colour and the legend."""
    return "naive PyTorch" if "naive" in name else "timm" if "timm" in name else "gca-attn"


def add_legend(figure: Figure, names: list[str]) -> None:
    """A legend of the colours that occur."""
    found = [label for label in COLOURS if label in map(source, names)]
    handles = [Patch(color=COLOURS[label], label=label) for label in found]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(found), fontsize=8, frameon=False)


def plot_layers(means: list[Row], where: Row, path: Path) -> None:
    """Geometric means of time: the two operations, and whole layers."""
    dtype = means[0]["dtype"]
    copy = next(row["forward_ms"] for row in means if row["contender"] == "copy")
    figure = Figure(figsize=(10, 0.32 * len(means) + 1.6), layout="constrained")
    for axes, key, title in zip(
        figure.subplots(1, 2, sharey=True), ("forward", "both"), ("forward", "forward + backward"), strict=True
    ):
        timed = [row for row in means if f"{key}_ms" in row and row["contender"] != "copy"]
        names = [row["contender"] for row in timed]
        values = [row[f"{key}_ms"] for row in timed]
        bars = axes.barh(names, values, color=[COLOURS[source(name)] for name in names])
        axes.bar_label(bars, fmt="%.3g", padding=2, fontsize=8)
        axes.axvline(copy, color="k", linewidth=0.8, linestyle=":")
        axes.set(title=title, xlabel="ms", xscale="log")
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.15)
    axes.invert_yaxis()
    add_legend(figure, names)
    figure.suptitle(
        f"Geometric mean over shapes and memory formats, {dtype}; dotted: one copy of x\n{where['device']}", fontsize=9
    )
    figure.savefig(path, dpi=130)


def plot_models(rows: list[Row], where: Row, path: Path, title: str = "Attention in all 16 bottlenecks") -> None:
    """Time of whole networks over that without attention: medians, and quartiles where they were recorded."""
    figure = Figure(figsize=(8, 0.45 * len(rows) + 1.4), layout="constrained")
    axes = figure.subplots()
    timed = [row for row in rows if row["contender"] != "no attention"]
    names = [f"{row['network']}, {row['mode']}, {row['run']}: {row['contender']}" for row in timed]
    colours = [COLOURS[source(name)] for name in names]
    overheads = [row["overhead_percent"] for row in timed]
    quartiles = all("overhead_q1" in row for row in timed)
    spread = None
    if quartiles:
        spread = [[abs(row[f"overhead_{q}"] - row["overhead_percent"]) for row in timed] for q in ("q1", "q3")]
    bars = axes.barh(names, overheads, xerr=spread, color=colours, error_kw={"linewidth": 0.8})
    axes.bar_label(bars, fmt="%.1f %%", padding=2, fontsize=8)
    axes.axvline(0, color="k", linewidth=0.8)
    axes.set(xlabel=f"time added to the network without attention, %\nmedian{' and quartiles' * quartiles} over rounds")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    add_legend(figure, names)
    figure.suptitle(f"{title}\n{where['device']}", fontsize=9)
    figure.savefig(path, dpi=130)


def plot_complexity(rows: list[Row], reported: dict[str, float], where: Row, path: Path) -> None:
    """Parameters, MACs and latency over those without attention, and the overheads of GCA that the paper reports."""
    base, *attended = rows
    names = [row["contender"] for row in attended]
    figure = Figure(figsize=(10, 0.45 * len(names) + 1.5), layout="constrained")
    panels = (
        ("parameters", "parameters_m", "parameters"),
        ("macs_thop", "macs_g", "MACs (thop, with average pooling)"),
        ("latency_ms", "latency_ms", "latency (whiskers: quartiles)"),
    )
    for axes, (key, reported_key, title) in zip(figure.subplots(1, 3, sharey=True), panels, strict=True):
        spread = None
        if key == "latency_ms":
            low = [row["latency_ms"] - row["latency_ms_q1"] for row in attended]
            high = [row["latency_ms_q3"] - row["latency_ms"] for row in attended]
            spread = [[100 * side / base["latency_ms"] for side in sides] for sides in (low, high)]
        values = [row[f"{key}_overhead_percent"] for row in attended]
        bars = axes.barh(names, values, color="C0", xerr=spread, error_kw={"elinewidth": 0.8, "capsize": 3})
        axes.bar_label(bars, fmt="%.2f %%", padding=6, fontsize=8)
        if reported:
            axes.plot(
                reported[reported_key], "GCA", "D", color="C1", markersize=5, label="GCA, as reported in the paper"
            )
        axes.axvline(0, color="k", linewidth=0.8)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("over no attention, %")
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.4)
    axes.invert_yaxis()
    if reported:
        figure.legend(*axes.get_legend_handles_labels(), fontsize=8, loc="outside lower right")
    figure.suptitle(f"GCA-ResUNet with each attention in the same places\n{where['device']}", fontsize=9)
    figure.savefig(path, dpi=130)
