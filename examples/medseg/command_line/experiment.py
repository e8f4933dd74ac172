"""The command line of the training examples: one training run, or several of them, collected."""

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medseg.command_line.options import parser
from medseg.command_line.runs import Request, Run, check_out, clear_several, clear_single, note_request, runs_from
from medseg.data.dataset import Benchmark, Synthetic
from medseg.errors import DataError, RunError, told_once, untold
from medseg.evaluation.report import collect, table_of_runs
from medseg.files import read_json, remedy, write_json, write_text
from medseg.settings import Settings, check_logger, is_first_process

# The pipeline is imported where it is needed: with torch and Lightning it takes seconds, which --help, a mistake on the
# command line and the process that only starts several runs should not wait for.


def main(
    benchmark: Benchmark,
    description: str,
    arguments: Sequence[str] | None = None,
    *,
    synthetic: tuple[Synthetic, Settings] | None = None,
    script: tuple[argparse.ArgumentParser, Sequence[str]] | None = None,
) -> None:
    """Run the command line of a benchmark.

    Args:
        benchmark: What to train on.
        description: For ``--help``.
        arguments: The command line; ``None`` takes that of the process.
        synthetic: What makes data where ``--data`` is left out, and the settings for it.
        script: Options of the script itself, from ``script_options``, which decided the benchmark.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    own, words = script or (None, ())
    command = parser(benchmark, description, synthetic[1] if synthetic else None, parents=[own] if own else [])
    options = command.parse_args(arguments)
    options.script_options = words
    preset = synthetic[1] if synthetic and options.data is None else benchmark.settings
    try:
        runs = runs_from(options, preset, benchmark.name)
        if runs[0].data is None and not synthetic:
            command.error("the following arguments are required: --data")
        if runs[0].data is None:
            benchmark = replace(benchmark, paper=None)  # which did not measure phantoms
        if is_first_process():  # of a distributed training; the others find what this one has made ready
            _refuse(benchmark, runs, options.out)
        if len(runs) > 1:
            run_all(benchmark, runs, options.out)
        elif runs[0].resume and runs[0].finished:
            print(f"{runs[0].out} is finished; --test-only tests it again.\n{_table(runs[0].out)}")
        else:
            from medseg.command_line.pipeline import run_one

            with told_once():
                run_one(benchmark, runs[0], synthetic[0] if synthetic else None)
    except (DataError, RunError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error}; {remedy(error, '--out')}, and go on with --resume")
    except KeyboardInterrupt:
        if len(runs) == 1 and runs[0].overwrite and runs[0].finished:
            sys.exit(f"interrupted; {runs[0].out} was not replaced yet, give the same command again")
        sys.exit("interrupted; go on with --resume")


def script_options(own: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options of a script itself, which decide the benchmark: as given, or as noted in the run to go on with.

    Of what is returned, ``words`` are all of them as a command line, for ``main``; ``data`` and ``help`` are those of
    the command line.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    which = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    which.add_argument("--out", type=Path)
    which.add_argument("--data", type=Path)
    which.add_argument("-h", "--help", action="store_true")
    which.add_argument("--resume", action="store_true")
    which.add_argument("--test-only", action="store_true")
    known, _ = which.parse_known_args(arguments)
    noted: Request | None = None
    if known.out and (known.resume or known.test_only):
        try:
            noted = Request.noted(known.out)
        except (DataError, RunError) as error:
            sys.exit(f"error: {error}")
    options, _ = own.parse_known_args([*(noted.script_options if noted else ()), *arguments])
    words: list[str] = []
    for action in own._actions:
        value = getattr(options, action.dest)
        if value is not None and value != action.default:
            value = value.resolve() if isinstance(value, Path) else value  # the same, wherever it is resumed
            option = action.option_strings[0]
            words += [option, *map(str, value)] if isinstance(value, list) else [f"{option}={value}"]
    options.words, options.data, options.help = words, known.data, known.help
    return options


def _refuse(benchmark: Benchmark, runs: Sequence[Run], out: Path) -> None:
    """Raise over whatever can be seen before torch is loaded, of all runs."""
    check_out(runs, out)
    check_logger(runs[0].execution.logger)
    weights, classes = runs[0].settings.class_weights, ("background", *benchmark.classes)
    if weights is not None and not any(weights):
        raise RunError("--class-weights are all 0, so there would be no loss; give one above 0 at least")
    if weights is not None and len(weights) != len(classes):
        raise RunError(f"--class-weights got {len(weights)}, wanted {len(classes)}: {', '.join(classes)}")
    with untold():
        for run in runs:
            if run.data is not None and not (run.resume and run.finished):
                benchmark.open(run.data, run.settings)
    if runs[0].resume and not any((run.out / "settings.json").is_file() for run in runs):
        print(f"Nothing to resume in {out} yet; starting afresh.", flush=True)


def run_all(benchmark: Benchmark, runs: Sequence[Run], out: Path) -> None:
    """Run one after another, each in a process of its own; finished ones are not repeated with ``--resume``."""
    if not runs[0].test_only:
        if runs[0].overwrite:  # all at once: what is resumed after an interruption must not be of the runs before
            clear_single(out)
            clear_several(out)
        note_request(runs, out)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        _run_each(runs, out)
    finally:
        signal.signal(signal.SIGTERM, before)
    collected = collect(benchmark, [read_json(run.out / "results.json") for run in runs])
    write_json(out / "runs.json", collected)
    text = table_of_runs(benchmark, collected)
    write_text(out / "table.txt", text + "\n")
    print(text)


def _run_each(runs: Sequence[Run], out: Path) -> None:
    for number, run in enumerate(runs, start=1):
        finished = run.resume and run.finished
        print(f"Run {number} of {len(runs)}: {run.out}" + (" is finished" if finished else ""), flush=True)
        if finished:
            continue
        # Whatever interrupts this process, subprocess.run ends the other before it lets go.
        status = subprocess.run([sys.executable, sys.argv[0], *run.command(out / "request.json")]).returncode
        if status or not run.finished:
            raise RunError(f"the run in {run.out} failed; the finished ones are kept, go on with --resume")


def _interrupt(*_: object) -> None:
    """Of SIGTERM, by which clusters end jobs: the same as of Ctrl-C."""
    raise KeyboardInterrupt


def _table(out: Path) -> str:
    path = out / "table.txt"
    return path.read_text(encoding="utf-8").rstrip() if path.is_file() else ""
