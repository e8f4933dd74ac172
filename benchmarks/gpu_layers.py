"""One job of ten minutes on a GPU: what layers and networks cost with today's kernels.

    python benchmarks/gpu_layers.py --out DIR                     # OUT of the environment, if --out is not given
    python benchmarks/gpu_layers.py --device cpu --out DIR        # the same steps, small enough to try them on a CPU

First the formulas are compared; if that fails, nothing is timed. Then layers and networks run eager, in CUDA graphs
and compiled, in float32 and bfloat16, each step for its share of --seconds at most. Every step leaves STEP.json in DIR,
with the rows that it had measured when it was stopped, and job.json says how each ended. kernels_or_plain.json compares
kernels with the plain formula, for inputs above and below 16 MiB: which should be the default of eager calls?
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from timing import Row, geometric_mean, show

FOLDER = Path(__file__).parent
LIMIT = 2**24  # bytes of an input, above which Triton is the default today
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Step(NamedTuple):
    """One command: its name, share of the time, script and options."""

    name: str
    share: float
    words: tuple[str, ...]


def steps(device: str) -> list[Step]:
    """The commands, in the order of what is to be known first."""
    gpu = device == "cuda"
    dtypes = ("--dtypes", "float32", "bfloat16") if gpu else ("--dtypes", "float32")
    small = () if gpu else ("--threads", "1")
    layers = ("layers.py", "--device", device, *small)
    models = ("models.py", "--device", device, *small, *(() if gpu else ("--size", "64")))
    large, rounds = ("32", "15") if gpu else ("2", "2")
    some = () if gpu else ("--stages", "4", "--layouts", "NCHW")
    networks = () if gpu else ("--networks", "resnet50", "--modes", "inference")
    graph = ("--runs", "eager", "graph") if gpu else ("--runs", "eager")
    eager = (*layers, *dtypes, "--rounds", rounds, *some)
    each = (*models, "--batch", large, "--rounds", "9" if gpu else "2", *networks)
    return [
        Step("check", 0.12, (*layers, *dtypes, "--rounds", "1", "--batch", "2", *some)),
        Step("layers_eager", 0.14, (*eager, "--batch", large)),
        Step("layers_eager_small", 0.1, (*eager, "--batch", "8" if gpu else "1")),
        Step("layers_graphs", 0.14, (*eager, "--batch", large, *(("--graphs",) if gpu else ()))),
        Step("models_float32", 0.14, (*each, *graph)),
        Step("models_bfloat16", 0.14, (*each, *graph, "--layout", "channels_last", *(("--autocast",) if gpu else ()))),
        Step("layers_compiled", 0.14, (*eager, "--what", "modules", "--compiled", "--batch", large)),
        Step("models_compiled", 0.2, (*each, "--networks", "resnet50", "--runs", "eager", "compiled")),
    ]


def run(step: Step, seconds: float, out: Path) -> Row:
    """Run a step for so long at most, keep its rows, and say how it ended."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, (out / "job.log").open("a") as log:
        script, *words = step.words
        command = [sys.executable, str(FOLDER / script), *words, "--out", folder]
        try:
            done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=seconds, check=False)
            ended = "finished" if done.returncode == 0 else f"failed: exit status {done.returncode}, see job.log"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {seconds:.0f} s"
        results = Path(folder) / "results.json"
        if results.is_file():
            (out / f"{step.name}.json").write_bytes(results.read_bytes())
    return {"step": step.name, "command": " ".join(("python", *step.words)), "ended": ended,
            "seconds": round(time.monotonic() - started, 1)}  # fmt: skip


def kernels_or_plain(name: str, rows: Sequence[Row]) -> list[Row]:
    """Time of kernels over that of the plain formula, for inputs above and below the limit."""
    cases: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        cases.setdefault((row["shape"], row["layout"], row["dtype"]), {})[row["contender"]] = row
    ratios: dict[tuple[str, str, str, str], list[float]] = {}
    for (shape, _, dtype), contenders in cases.items():
        size = BYTES[dtype] * math.prod(map(int, shape.split("x")))
        for contender, row in contenders.items():
            what, _, kernels = contender.partition(" ")
            plain = contenders.get(f"{what} plain")
            if plain is None or what not in ("ops", "GCA") or kernels in ("plain", "naive", "compiled"):
                continue
            for part in ("forward", "both"):
                key = (contender, dtype, part, "above" if size > LIMIT else "up to")
                ratios.setdefault(key, []).append(row[f"{part}_ms"] / plain[f"{part}_ms"])
    return [
        {
            "step": name, "contender": contender, "dtype": dtype, "pass": part, "input": f"{where} 16 MiB",
            "of_plain": geometric_mean(found), "faster": sum(ratio < 1 for ratio in found), "of": len(found),
        }
        for (contender, dtype, part, where), found in ratios.items()
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the steps, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=560, help="of the whole job (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT"), help="folder (default: OUT)")
    options = parser.parse_args(arguments)
    if options.out is None:
        parser.error("give --out, or OUT in the environment")
    options.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + options.seconds
    job: list[Row] = []
    for step in steps(options.device):
        left = deadline - time.monotonic()
        if left < 5:
            job.append({"step": step.name, "ended": "not begun: no time was left"})
            continue
        # A step that ends early leaves its time to the last ones.
        job.append(run(step, min(left, max(step.share * options.seconds, left / 2)), options.out))
        print(f"{step.name}: {job[-1]['ended']}, {job[-1]['seconds']} s", flush=True)
        (options.out / "job.json").write_text(json.dumps(job, indent=1) + "\n")
        if step.name == "check" and job[-1]["ended"] != "finished":
            sys.exit("error: the formulas were not found equal, so nothing is timed; see job.log")
    compared: list[Row] = []
    for name in (one["step"] for one in job if one["step"].startswith("layers_") and one["step"] != "layers_compiled"):
        if (path := options.out / f"{name}.json").is_file():
            compared += kernels_or_plain(name, json.loads(path.read_text())["rows"])
    (options.out / "job.json").write_text(json.dumps(job, indent=1) + "\n")
    (options.out / "kernels_or_plain.json").write_text(json.dumps(compared, indent=1) + "\n")
    show(compared, ["step", "contender", "dtype", "pass", "input", "of_plain", "faster", "of"])


if __name__ == "__main__":
    main()
