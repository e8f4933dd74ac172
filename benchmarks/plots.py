"""Pictures of the benchmarks of speed."""

from pathlib import Path

from matplotlib.figure import Figure

from timing import Row


def plot_layers(means: list[Row], where: Row, path: Path) -> None:
    """Geometric means of time: the two operations, and whole layers."""
    dtype = means[0]["dtype"]
    rows = [row for row in means if row["dtype"] == dtype]
    copy = next(row["forward_ms"] for row in rows if row["contender"] == "copy")
    figure = Figure(figsize=(10, 0.32 * len(rows) + 1.6), layout="constrained")
    for axes, key, title in zip(
        figure.subplots(1, 2, sharey=True), ("forward", "both"), ("forward", "forward + backward"), strict=True
    ):
        timed = [row for row in rows if f"{key}_ms" in row]
        names = [row["contender"] for row in timed]
        values = [row[f"{key}_ms"] for row in timed]
        colours = ["C7" if "literal" in n else "C1" if n.startswith(("timm", "copy")) else "C0" for n in names]
        bars = axes.barh(names, values, color=colours)
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
        axes.axvline(copy, color="k", linewidth=0.8, linestyle=":")
        axes.set(title=title, xlabel="ms", xscale="log")
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.15)
    axes.invert_yaxis()
    figure.suptitle(
        f"Geometric mean over the stages of a ResNet-50, {dtype}; dotted: one copy of x\n{where['device']}", fontsize=9
    )
    figure.savefig(path, dpi=130)


def plot_models(rows: list[Row], where: Row, path: Path) -> None:
    """Time of whole networks over that without attention."""
    figure = Figure(figsize=(8, 0.45 * len(rows) + 1.4), layout="constrained")
    axes = figure.subplots()
    timed = [row for row in rows if row["contender"] != "no attention"]
    names = [f"{row['network']}, {row['mode']}, {row['run']}: {row['contender']}" for row in timed]
    colours = ["C7" if "literal" in name else "C0" for name in names]
    bars = axes.barh(names, [row["overhead_percent"] for row in timed], color=colours)
    axes.bar_label(bars, fmt="%.1f %%", padding=2, fontsize=8)
    axes.axvline(0, color="k", linewidth=0.8)
    axes.set(xlabel="time over the network without attention, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    figure.suptitle(f"GCA in all 16 bottlenecks\n{where['device']}", fontsize=9)
    figure.savefig(path, dpi=130)
