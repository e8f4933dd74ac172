"""The paper's ablations (Figures 5 and 6, Tables 5 to 7), run after run, through the commands that a user types.

    python benchmarks/ablations.py --data acdc=DIR isic2018=DIR synapse=DIR --dry-run    # what there is to do
    python benchmarks/ablations.py --data acdc=DIR --studies attention
    python benchmarks/ablations.py --data acdc=DIR --compact -- --workers 2              # options of the training
    python benchmarks/ablations.py --data acdc=DIR --compact --variants none gca -- --epochs 36
    python benchmarks/ablations.py --collect                                             # tables of what is finished

Without --compact every run has the settings of the paper. --compact keeps its data, network, augmentation and batch,
and takes smaller slices and a short schedule (COMPACT in studies.py); it compares variants, and reproduces no figure.
Options after -- that change the settings of a protocol have folders and tables of their own, named after what they
change: compact-epochs36. On Synapse the folds of the cross-validation take the place of --seeds.

A run lies in OUT/PROTOCOL/DATA SET/VARIANT/seedN or foldN, with its train.log, and its row, as soon as it is finished,
in RESULTS/ablations_PROTOCOL/DATA SET.json. A run that is finished here, or whose row is there from another machine, is
not repeated, an interrupted one resumes, and one with other settings stops everything before the first training.
"""

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import ablation_report as report
from ablation_plan import Planned, check_data, collected_rows, plan, planned, print_plan, protocol_of
from studies import DATASETS, SEEDS, STUDIES, VARIANTS
from timing import machine

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from medseg.command_line.options import positive_int
from medseg.errors import DataError, RunError
from medseg.files import read_json
from medseg.training.network import check_precision

ROOT = Path(__file__).parents[1]
OURS = (
    "--data", "--out", "--seed", "--fold", "--cross-validate", "--year", "--resume", "--overwrite", "--config",
    "--time-loader", "--test-only", "--arch", "--attention", "--groups", "--reduction", "--pool", "--identity-init",
    "--help", "-h",
)  # fmt: skip
PATIENCE = 20  # seconds that trainings have to end when they are asked to


def train(runs: Sequence[Planned], options: argparse.Namespace) -> list[Planned]:
    """Train what is not finished, ``--jobs`` at a time, collect each as it ends, and return the runs that failed.

    What is not finished after ``--seconds`` is stopped; the same call resumes it.
    """
    deadline = time.monotonic() + (options.seconds or float("inf"))
    waiting, failed = list(enumerate(runs, start=1)), []
    training: dict[Planned, subprocess.Popen[bytes]] = {}
    try:
        while (waiting or training) and time.monotonic() < deadline:
            while waiting and len(training) < options.jobs:
                position, run = waiting.pop(0)
                state = run.state()
                note = {"to do": "", "done": ": is finished", "resumable": ": resumes"}[state]
                print(f"Run {position} of {len(runs)}: {run}{note}", flush=True)
                if state != "done":
                    training[run] = start(run, options.data[run.dataset], resume=state == "resumable")
            for run, process in list(training.items()):
                if process.poll() is None:
                    continue
                del training[run]
                if process.returncode:
                    print(f"  failed: {run.folder / 'train.log'}", flush=True)
                    failed.append(run)
                else:
                    collect(options, [run.dataset])
            time.sleep(0.2 if training else 0)
    finally:
        for process in training.values():
            process.terminate()
        last = time.monotonic() + PATIENCE
        for process in training.values():
            try:
                process.wait(max(0, last - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
    if left := len(training) + len(waiting):
        print(f"{left} runs are not finished after {options.seconds} s; the same command resumes", flush=True)
    return failed


def start(run: Planned, data: Path, *, resume: bool) -> "subprocess.Popen[bytes]":
    """Begin or resume the training of a run."""
    more = ["--out", str(run.folder.resolve()), *(["--resume"] if resume else [])]
    command = [sys.executable, *run.command(str(data.resolve()), *more)]
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / "train.log").open("a") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)


def collect(options: argparse.Namespace, datasets: Sequence[str]) -> None:
    """Write the tables of all that is finished under this protocol, here or, by the rows that are there, elsewhere."""
    where = machine(torch.device("cpu"))
    made = {"date": where["date"], "commit": where["commit"]}
    for dataset in datasets:
        protocol, unit, rows = protocol_of(dataset, options), DATASETS[dataset].unit, []
        for variant in VARIANTS:
            paths = (options.out / protocol / dataset / variant).glob(f"{unit}*/results.json")
            for number in sorted(int(path.parent.name.removeprefix(unit)) for path in paths):
                run = planned(dataset, variant, number, options)
                run.state()  # raises if it was made with other settings
                command = shlex.join(["python", *run.command("DIR")])
                results, metrics = read_json(run.folder / "results.json"), run.folder / "metrics.csv"
                rows.append(report.row(variant, number, command, results, metrics, made))
        folder = options.results / f"ablations_{protocol}"
        rows = report.merged(collected_rows(folder / f"{dataset}.json"), rows)
        if rows:
            words = ["python", "benchmarks/ablations.py", "--data", f"{dataset}=DIR"]  # without this machine's folders
            words += ["--compact"] * options.compact + (["--", *options.extra] if options.extra else [])
            report.write(folder, report.content(dataset, protocol, rows, shlex.join(words)))
            print(f"{dataset}: tables of {len(rows)} finished runs in {folder / dataset}.json, .csv, .md and .png")
        elif options.data:
            print(f"{dataset}: no run is finished in {options.out / protocol / dataset}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; what stands after ``--`` is for the training scripts."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", nargs="+", type=_folder, metavar="NAME=DIR", help=f"of {', '.join(DATASETS)}")
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES), help="(default: all)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="(default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="(default: 10 11 12, the paper's)")
    parser.add_argument("--compact", action="store_true", help="the compact protocol in place of the paper's")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"), help="of the runs (default: %(default)s)")
    results = Path("benchmarks/results")
    parser.add_argument("--results", type=Path, default=results, help="of the tables (default: %(default)s)")
    parser.add_argument("--jobs", type=positive_int, default=1, help="trainings side by side (default: %(default)s)")
    parser.add_argument("--seconds", type=positive_int, help="stop after so many; the same command resumes")
    parser.add_argument("--dry-run", action="store_true", help="print what there is to do, and train nothing")
    parser.add_argument(
        "--time", action="store_true", help="with --dry-run: time steps here to say how long it may take"
    )
    parser.add_argument("--collect", action="store_true", help="train nothing, write the tables of what is finished")
    options = parser.parse_args(arguments[:end])
    options.data = dict(options.data or [])
    options.extra = list(arguments[end + 1 :])
    if not (options.data or options.collect):
        parser.error("give --data NAME=DIR, or --collect")
    if options.time and not options.dry_run:
        parser.error("--time is for --dry-run")
    taken = [word for word in options.extra if word.partition("=")[0].replace("--no-", "--", 1) in OURS]
    if taken:
        parser.error(f"{' '.join(taken)} cannot stand after --: the ablations decide that themselves")
    return options


def _folder(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if name not in DATASETS or not folder:
        raise argparse.ArgumentTypeError(f"wanted NAME=DIR, where NAME is {' or '.join(DATASETS)}; got {text!r}")
    return name, Path(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Plan; or train and collect; or collect alone."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    failed: list[Planned] = []
    try:
        runs = [] if options.collect else plan(options)
        for run in runs:  # what stops it should do so before hours of training, not in the midst of them
            if run.state() != "done" and not options.dry_run:
                check_precision(run.settings.precision, run.accelerator)
        check_data(runs, options.data)
        if options.dry_run:
            print_plan(runs, options.data, time_steps=options.time)
            return
        failed = train(runs, options)
        collect(options, list(options.data or DATASETS))
    except (DataError, RunError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; finished runs are kept, and the same command resumes")
    if failed:
        sys.exit(
            "\n".join([f"error: {len(failed)} runs failed", *(f"  {x}: {x.folder / 'train.log'}" for x in failed)])
        )


if __name__ == "__main__":
    main()
