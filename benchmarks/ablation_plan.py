"""The runs of the ablations: folder, command, settings, state, and how long one will take."""

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from studies import DATASETS, SEEDS, STUDIES, VARIANTS, options_of, runs_of
from timing import interleave

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from medseg.benchmark import Settings
from medseg.errors import DataError, RunError
from medseg.files import read_json
from medseg.losses import cross_entropy, dice_loss, dice_sums
from medseg.network import build_model
from medseg.options import parser
from medseg.runs import runs_from


@dataclass(frozen=True)
class Planned:
    """One run of a variant: its folder, the options of its script, and the settings that they come to."""

    dataset: str
    variant: str
    number: int  # seed or fold
    folder: Path
    options: tuple[str, ...]
    settings: Settings

    def __str__(self) -> str:
        return f"{self.dataset}, {VARIANTS[self.variant].label}, {DATASETS[self.dataset].unit} {self.number}"

    def command(self, data: str, *more: str) -> list[str]:
        """The command, without the interpreter."""
        script, *first = DATASETS[self.dataset].script
        return [f"examples/{script}", *first, "--data", data, *self.options, *more]

    def state(self) -> str:
        """``done``, ``resumable`` or ``to do``.

        Raises:
            RunError: If the folder holds a run with other settings.
        """
        for name, state in (("results.json", "done"), ("settings.json", "resumable")):
            if not (noted := self.folder / name).is_file():
                continue
            content = read_json(noted)
            before = content.get("settings", {}) if state == "done" else content
            differing = [
                f"{key} is {before.get(key)}, wanted {value}"
                for key, value in asdict(self.settings).items()
                if key not in before or before[key] != value
            ]
            if differing:
                raise RunError(
                    f"{self.folder} holds a run with other settings: {'; '.join(differing)}; move it away, or choose "
                    "another --out"
                )
            return state
        return "to do"


def planned(dataset: str, variant: str, number: int, options: argparse.Namespace) -> Planned:
    """One run under the protocol of the command line."""
    words, settings = _settings(dataset, variant, number, options.reduced, options.extra)
    folder = options.out / protocol_of(dataset, options) / dataset / variant / f"{DATASETS[dataset].unit}{number}"
    return Planned(dataset, variant, number, folder, words, settings)


def plan(options: argparse.Namespace) -> list[Planned]:
    """Every run that is asked for, once; all variants of a seed before the next seed."""
    asked = {variant for study in options.studies for variant in STUDIES[study].rows}
    variants = [variant for variant in VARIANTS if variant in asked and variant in options.variants]
    return [
        planned(dataset, variant, number, options)
        for dataset in options.data
        for number in runs_of(dataset, tuple(options.seeds))
        for variant in variants
    ]


def protocol_of(dataset: str, options: argparse.Namespace) -> str:
    """``paper`` or ``reduced``, and ``-changed`` after it where extra options change its settings."""
    name = "reduced" if options.reduced else "paper"
    _, plain = _settings(dataset, "gca", 1, options.reduced, ())
    _, asked = _settings(dataset, "gca", 1, options.reduced, options.extra)
    return name if plain == asked else f"{name}-changed"


def _settings(
    dataset: str, variant: str, number: int, reduced: bool, extra: Sequence[str]
) -> tuple[tuple[str, ...], Settings]:
    known = DATASETS[dataset]
    which = ["--seed", str(number)] if known.unit == "seed" else ["--fold", str(number), "--seed", str(SEEDS[0])]
    words = [*options_of(dataset, variant, reduced=reduced), *extra, *which]
    parsed = parser(known.benchmark, f"options of {known.script[0]}").parse_args(["--data", "DIR", *words])
    return tuple(words), runs_from(parsed, known.benchmark.settings)[0].settings


def print_plan(runs: Sequence[Planned], data: dict[str, Path]) -> None:
    """Print the state and the expected time of every run, and train none.

    The time is that of finished runs of the same data set and protocol, where there are any; else that of all steps
    of the training, from a few that are timed here.
    """
    slices: dict[str, int | str] = {}
    steps: dict[tuple[str, str], float] = {}
    states = [run.state() for run in runs]
    total, unknown = 0.0, 0
    for run, state in zip(runs, states, strict=True):
        finished = [] if state == "done" else list(run.folder.parents[1].glob("*/*/results.json"))
        if state == "done":
            time = ""
        elif finished:
            seconds = statistics.median(read_json(path)["duration_seconds"]["total"] for path in finished)
            total += seconds
            time = f"{seconds / 60:.1f} min (median of finished runs: {len(finished)})"
        else:
            if run.dataset not in slices:
                slices[run.dataset] = _training_slices(run, data[run.dataset])
            key, count = (run.dataset, run.variant), slices[run.dataset]
            if key not in steps:
                steps[key] = seconds_a_step(run)
            time = f"{steps[key]:.2f} s a step, timed here; "
            if isinstance(count, int):
                seconds = steps[key] * run.settings.epochs * (count // run.settings.batch_size)
                total += seconds
                time = f"{seconds / 60:.1f} min at most, without validation and test ({time}{count} slices)"
            else:
                unknown += 1
                time += f"number of slices unknown: {count}"
        print(f"{run!s:44} {state:9} {run.settings.epochs:4} epochs  {time}".rstrip(), flush=True)
    summary = ", ".join(f"{count} {state}" for state, count in Counter(states).items())
    print(f"{len(runs)} runs: {summary}. Time: {total / 3600:.1f} h" + (f" and {unknown} unknown" if unknown else ""))


def _training_slices(run: Planned, data: Path) -> int | str:
    """How many there are, or why that is not known. Reads them; all folds and variants have about as many."""
    try:
        split = DATASETS[run.dataset].benchmark.open(data, run.settings)
        split = split.limited(run.settings.limit) if run.settings.limit else split
        return sum(len(case.read().image) for case in split.train)
    except DataError as error:
        return str(error)


def seconds_a_step(run: Planned) -> float:
    """One training step of the run's network and batch on this machine, on random images."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classes, settings = 1 + len(DATASETS[run.dataset].benchmark.classes), run.settings
    model = build_model(DATASETS[run.dataset].benchmark, settings).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    images = torch.rand(settings.batch_size, 3, settings.size, settings.size, device=device)
    labels = torch.randint(classes, (settings.batch_size, settings.size, settings.size), device=device)

    def step() -> None:
        logits = model(images)
        loss = cross_entropy(logits, labels) + dice_loss(dice_sums(logits, labels))
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()

    return float(interleave({"step": step}, device, rounds=3)["step"]["ms"]) / 1000
