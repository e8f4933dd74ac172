"""The paper's ablations (Figures 5 and 6, Tables 5 to 7), run after run, through the commands that a user types.

    python benchmarks/ablations.py --data acdc=DIR isic2018=DIR synapse=DIR --dry-run    # what there is to do
    python benchmarks/ablations.py --data acdc=DIR --studies attention
    python benchmarks/ablations.py --data acdc=DIR --reduced -- --workers 2              # options of the training
    python benchmarks/ablations.py --collect                                             # tables of what is finished

Without --reduced every run has the settings of the paper. --reduced takes a smaller encoder, smaller slices and few
epochs (REDUCED in studies.py); it shows that everything runs, and reproduces nothing. Options after -- that change the
settings of a protocol have folders and tables of their own, named ...-changed. On Synapse the folds of the
cross-validation take the place of --seeds.

A run lies in OUT/PROTOCOL/DATA SET/VARIANT/seedN or foldN, with its train.log. A finished one is not repeated, an
interrupted one goes on, and one with other settings stops everything before the first training.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import ablation_report as report
from ablation_plan import Planned, plan, planned, print_plan, protocol_of
from studies import DATASETS, SEEDS, STUDIES, VARIANTS
from timing import machine

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from medseg.errors import DataError, RunError
from medseg.files import read_json

ROOT = Path(__file__).parents[1]
OURS = (
    "--data", "--out", "--seed", "--fold", "--cross-validate", "--year", "--resume", "--overwrite", "--config",
    "--time-loader", "--arch", "--attention", "--groups", "--reduction", "--pool", "--help", "-h",
)  # fmt: skip


def train(runs: Sequence[Planned], data: dict[str, Path]) -> list[Planned]:
    """Train what is not finished, and return the runs that failed."""
    failed = []
    for position, run in enumerate(runs, start=1):
        state = run.state()
        note = {"to do": "", "done": ": is finished", "resumable": ": goes on"}[state]
        print(f"Run {position} of {len(runs)}: {run}{note}", flush=True)
        if state == "done":
            continue
        more = ["--out", str(run.folder.resolve()), *(["--resume"] if state == "resumable" else [])]
        command = [sys.executable, *run.command(str(data[run.dataset].resolve()), *more)]
        run.folder.mkdir(parents=True, exist_ok=True)
        with (run.folder / "train.log").open("a") as log:
            status = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
        if status:
            print(f"  failed: {run.folder / 'train.log'}", flush=True)
            failed.append(run)
    return failed


def collect(options: argparse.Namespace) -> None:
    """Write the tables of everything that is finished under this protocol, whichever call trained it."""
    where = machine(torch.device("cpu"))
    protocols = {name: protocol_of(name, options) for name in options.data or DATASETS}
    for dataset, protocol in protocols.items():
        unit, rows = DATASETS[dataset].unit, []
        for variant in VARIANTS:
            paths = (options.out / protocol / dataset / variant).glob(f"{unit}*/results.json")
            for number in sorted(int(path.parent.name.removeprefix(unit)) for path in paths):
                run = planned(dataset, variant, number, options)
                run.state()  # raises if it was made with other settings
                command = shlex.join(["python", *run.command("DIR")])
                rows.append(report.row(dataset, variant, number, command, read_json(run.folder / "results.json")))
        if rows:
            words = ["python", "benchmarks/ablations.py", "--data", f"{dataset}=DIR"]  # without this machine's folders
            words += ["--reduced"] * options.reduced + (["--", *options.extra] if options.extra else [])
            made = {"command": shlex.join(words), "date": where["date"], "commit": where["commit"]}
            folder = options.results / f"ablations_{protocol}"
            report.write(folder, report.content(dataset, protocol, rows, made))
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
    parser.add_argument("--reduced", action="store_true", help="the reduced protocol in place of the paper's")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"), help="of the runs (default: %(default)s)")
    results = Path("benchmarks/results")
    parser.add_argument("--results", type=Path, default=results, help="of the tables (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print what there is to do and how long it may take")
    parser.add_argument("--collect", action="store_true", help="train nothing, write the tables of what is finished")
    options = parser.parse_args(arguments[:end])
    options.data = dict(options.data or [])
    options.extra = list(arguments[end + 1 :])
    if not (options.data or options.collect):
        parser.error("give --data NAME=DIR, or --collect")
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
        for run in runs:
            run.state()  # what stops it should do so before hours of training, not in the midst of them
        if options.dry_run:
            print_plan(runs, options.data)
            return
        failed = train(runs, options.data)
        collect(options)
    except (DataError, RunError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; finished runs are kept, and the same command goes on")
    if failed:
        sys.exit(
            "\n".join([f"error: {len(failed)} runs failed", *(f"  {x}: {x.folder / 'train.log'}" for x in failed)])
        )


if __name__ == "__main__":
    main()
