"""The command line of the training examples: one training run, or several of them, collected."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from medseg.atomic_write import write_json, write_text
from medseg.command_line.options import parser
from medseg.command_line.runs import Run, prepare_out, runs_from
from medseg.data.arrays import read_json
from medseg.data.dataset import Benchmark, Synthetic
from medseg.errors import DataError, RunError
from medseg.evaluation.report import collect, table_of_runs
from medseg.settings import Settings

# The pipeline is imported where it is needed: with torch and Lightning it takes seconds, which --help, a mistake on the
# command line and the process that only starts several runs should not wait for.


def main(
    benchmark: Benchmark,
    description: str,
    arguments: Sequence[str] | None = None,
    *,
    synthetic: tuple[Synthetic, Settings] | None = None,
    script_options: Sequence[str] = (),
) -> None:
    """Run the command line of a benchmark.

    Args:
        benchmark: What to train on.
        description: For ``--help``.
        arguments: The command line; ``None`` takes that of the process.
        synthetic: What makes data where ``--data`` is left out, and the settings for it.
        script_options: What the script itself took from the command line, for the runs that it starts.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser(benchmark, description, synthetic[1] if synthetic else None).parse_args(arguments)
    preset = synthetic[1] if synthetic and options.data is None else benchmark.settings
    try:
        runs = runs_from(options, preset)
        if len(runs) == 1:
            from medseg.command_line.pipeline import run_one

            run_one(benchmark, runs[0], synthetic[0] if synthetic else None)
        else:
            run_all(benchmark, runs, options.out, [*script_options, *arguments])
    except (DataError, RunError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error}; free the disk or choose another --out, and go on with --resume")


def run_all(benchmark: Benchmark, runs: Sequence[Run], out: Path, arguments: Sequence[str]) -> None:
    """Run one after another, each in a process of its own; finished ones are not repeated with ``--resume``."""
    for number, run in enumerate(runs, start=1):
        finished = run.resume and run.finished
        print(f"Run {number} of {len(runs)}: {run.out}" + (" is finished" if finished else ""), flush=True)
        if finished:
            prepare_out(run)  # raises if it was made with other settings
            continue
        status = subprocess.run([sys.executable, sys.argv[0], *arguments, *run.overrides()]).returncode
        if status:
            raise RunError(f"the run in {run.out} failed; the finished ones are kept, go on with --resume")
    collected = collect(benchmark, [read_json(run.out / "results.json") for run in runs])
    write_json(out / "runs.json", collected)
    text = table_of_runs(benchmark, collected)
    write_text(out / "table.txt", text + "\n")
    print(text)
