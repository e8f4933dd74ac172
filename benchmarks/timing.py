"""What the benchmarks of speed share: interleaved timing, peak memory, the machine, and files of results."""

import argparse
import csv
import ctypes
import gc
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler would print a line per measurement
import torch
from torch.profiler import ProfilerActivity, profile, record_function

Row = dict[str, Any]


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def set_up(threads: int) -> None:
    """So many CPU threads, and memory that stays with the process once it is freed.

    glibc hands freed memory back to the system at times that depend on all that was allocated before. Whoever is then
    given fresh pages takes up to four times as long, and chance would decide between contenders.
    """
    torch.set_num_threads(threads)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    mallopt(_M_MMAP_THRESHOLD, 2**25)  # the most that it takes
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def synchronize(device: torch.device) -> None:
    """Wait for what a GPU still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def exact_convolutions() -> AbstractContextManager[None]:
    """Convolutions of a GPU without TF32, as exact as those of a CPU: to check outputs, not to time."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    device: torch.device,
    rounds: int,
    at_least: float = 0.01,
    *,
    graphs: bool = False,
    base: str | None = None,
) -> dict[str, Row]:
    """Time all contenders in turn, round after round, so that whatever else the machine does meets them all alike.

    Returns the median and the quartiles over rounds, in milliseconds; a contender shorter than ``at_least`` seconds
    is repeated within its round. With ``graphs`` each is replayed from a CUDA graph: what the GPU takes, without the
    time of launching from Python. With ``base`` also how much longer each takes than that contender does in the same
    round, which a machine that slows down between rounds does not change.
    """
    if graphs:
        contenders = {name: _graphed(call) for name, call in contenders.items()}
    repeats = {}
    for name, call in contenders.items():
        for _ in range(2):  # the first call may compile
            seconds = _time(call, device, 1)
        repeats[name] = max(1, math.ceil(at_least / seconds))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, call in contenders.items():
                times[name].append(1e3 * _time(call, device, repeats[name]))
    finally:
        gc.enable()
    rows: dict[str, Row] = {}
    for name, values in times.items():
        low, median, high = _quartiles(values)
        rows[name] = {"ms": median, "ms_q1": low, "ms_q3": high, "ms_min": min(values)}
        if base is not None:
            over = [100 * (time / of_base - 1) for time, of_base in zip(values, times[base], strict=True)]
            low, median, high = _quartiles(over)
            rows[name] |= {"overhead_percent": median, "overhead_q1": low, "overhead_q3": high}
    return rows


def _time(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / repeats


def _graphed(call: Callable[[], object]) -> Callable[[], object]:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # compiles, and lets libraries allocate
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def _quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4) if len(values) > 1 else values * 3


def peak_bytes(contenders: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, int]:
    """Most memory held at once by the tensors that each contender allocates."""
    if device.type == "cuda":
        return {name: _cuda_peak(call, device) for name, call in contenders.items()}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        for name, call in contenders.items():
            with record_function(f"peak of {name}"):
                call()
    events = recorded.profiler.kineto_results.events()
    spans = {event.name(): (event.start_ns(), event.end_ns()) for event in events}
    allocations = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    peaks = {}
    for name in contenders:
        start, end = spans[f"peak of {name}"]
        held = accumulate(size for time, size in allocations if start <= time <= end)
        peaks[name] = max(held, default=0)
    return peaks


def _cuda_peak(call: Callable[[], object], device: torch.device) -> int:
    call()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def geometric_mean(values: Iterable[float]) -> float:
    """The mean for ratios."""
    return math.exp(statistics.fmean(math.log(value) for value in values))


def add_options(parser: argparse.ArgumentParser, out: str) -> None:
    """Options of every benchmark of speed."""
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="images (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds over all contenders (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results") / out, help="default: %(default)s")


def machine(device: torch.device) -> Row:
    """What a number needs beside it to mean anything."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    packages: dict[str, str | None] = {}
    for package in ("torch", "timm", "numba", "triton", "segmentation-models-pytorch", "nnunetv2"):
        try:
            packages[package] = version(package)
        except ModuleNotFoundError:
            packages[package] = None
    return {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "device": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = f"{names[0]}, {len(names)} cores" if names else platform.processor()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"  # names of rented processors tell little


def _commit() -> str | None:
    """What was measured; "-dirty" if anything but results has changed since, which one run after another writes."""

    def git(*command: str) -> str:
        result = subprocess.run(["git", *command], capture_output=True, text=True, cwd=folder, check=False)
        return result.stdout.strip()

    folder = Path(__file__).parent
    commit = git("describe", "--always")
    changed = git("status", "--porcelain", "--", ":/", f":(exclude){folder / 'results'}")
    return commit + ("-dirty" if changed else "") or None


def save(folder: Path, where: Row, rows: list[Row], summary: Row) -> None:
    """``results.json`` with everything, ``table.csv`` with the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": where, "summary": summary, "rows": rows}, indent=1)
    (folder / "results.json").write_text(text + "\n")
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows({key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()} for row in rows)


def show(rows: list[Row], columns: list[str]) -> None:
    """Print a table."""
    cells = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else "" if value is None else str(value)
