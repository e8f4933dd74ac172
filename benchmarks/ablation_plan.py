"""The runs of the ablations: folder, command, settings, state, and how long one will take."""

import argparse
import re
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from studies import DATASETS, SEEDS, STUDIES, VARIANTS, options_of, runs_of
from timing import interleave

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from medseg.command_line.options import parser
from medseg.command_line.runs import runs_from
from medseg.errors import RunError
from medseg.files import read_json
from medseg.settings import Settings
from medseg.training.losses import cross_entropy, dice_loss, dice_sums
from medseg.training.network import build_model, check_precision

DEFAULTS: dict[str, Any] = asdict(Settings())


@dataclass(frozen=True)
class Planned:
    """One run of a variant: its folder, the options of its script, and the settings that they come to."""

    dataset: str
    variant: str
    number: int  # seed or fold
    folder: Path
    options: tuple[str, ...]
    settings: Settings
    accelerator: str
    collected: Path  # results of the protocol and data set that are collected already, on this machine or another

    def __str__(self) -> str:
        return f"{self.dataset}, {VARIANTS[self.variant].label}, {DATASETS[self.dataset].unit} {self.number}"

    def command(self, data: str, *more: str) -> list[str]:
        """The command, without the interpreter."""
        script, *first = DATASETS[self.dataset].script
        return [f"examples/{script}", *first, "--data", data, *self.options, *more]

    def state(self) -> str:
        """``done``, ``resumable`` or ``to do``.

        Raises:
            RunError: If the folder, or what is collected already, holds the run with other settings.
        """
        states = []
        for row in collected_rows(self.collected):
            if (row["variant"], row["number"]) == (self.variant, self.number):
                self._check(row["settings"], self.collected, "--results")
                states.append("done")
        for name, state in (("results.json", "done"), ("settings.json", "resumable")):
            if (noted := self.folder / name).is_file():
                content = read_json(noted)
                self._check(content.get("settings", {}) if state == "done" else content, self.folder, "--out")
                states.append(state)
        return states[0] if states else "to do"

    def _check(self, before: dict[str, Any], where: Path, option: str) -> None:
        before = {**DEFAULTS, **before}  # what an older file does not have was not there to be changed
        differing = [
            f"{key} is {before[key]}, wanted {value}"
            for key, value in asdict(self.settings).items()
            if before[key] != value
        ]
        if differing:
            raise RunError(
                f"{where} holds {self} with other settings: {'; '.join(differing)}; move it away, or choose another "
                f"{option}"
            )


def planned(dataset: str, variant: str, number: int, options: argparse.Namespace) -> Planned:
    """One run under the protocol of the command line."""
    words, settings, accelerator = _parsed(dataset, variant, number, options.compact, options.extra)
    protocol = protocol_of(dataset, options)
    folder = options.out / protocol / dataset / variant / f"{DATASETS[dataset].unit}{number}"
    collected = options.results / f"ablations_{protocol}" / f"{dataset}.json"
    return Planned(dataset, variant, number, folder, words, settings, accelerator, collected)


def collected_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of runs in a JSON file of results; none if there is no such file."""
    if not path.is_file():
        return []
    found = read_json(path)
    # In files of schema 1 these are of all rows.
    made: dict[str, Any] = {key: found[key] for key in ("date", "commit") if key in found}
    return [{**made, **row} for row in found["runs"]]


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
    """``paper`` or ``compact``, and after it what extra options change of its settings: ``compact-epochs36``."""
    _, plain, _ = _parsed(dataset, "gca", 1, options.compact, ())
    _, asked, _ = _parsed(dataset, "gca", 1, options.compact, options.extra)
    before = asdict(plain)
    changed = [f"{name}{value}" for name, value in asdict(asked).items() if before[name] != value]
    return "-".join(["compact" if options.compact else "paper", *(re.sub(r"[^\w.-]", "_", one) for one in changed)])


def _parsed(
    dataset: str, variant: str, number: int, compact: bool, extra: Sequence[str]
) -> tuple[tuple[str, ...], Settings, str]:
    """Options of the script, the settings that they come to, and the accelerator."""
    known = DATASETS[dataset]
    which = ["--seed", str(number)] if known.unit == "seed" else ["--fold", str(number), "--seed", str(SEEDS[0])]
    words = [*options_of(variant, compact=compact), *extra, *which]
    parsed = parser(known.benchmark, f"options of {known.script[0]}").parse_args(["--data", "DIR", *words])
    run = runs_from(parsed, known.benchmark.settings)[0]
    return tuple(words), run.settings, run.execution.accelerator


def check_data(runs: Sequence[Planned], data: dict[str, Path]) -> None:
    """Find the files of every data set, without reading them.

    Raises:
        DataError: If a folder, a list or a file is missing.
    """
    for name, run in {run.dataset: run for run in runs}.items():
        DATASETS[name].benchmark.open(data[name], run.settings)


def print_plan(runs: Sequence[Planned], data: dict[str, Path], *, time_steps: bool) -> None:
    """Print the state and the expected time of every run, and train none.

    The time is that of finished runs of the same data set and protocol, where there are any; else, with
    ``time_steps``, that of all steps of the training, from a few that are timed here.
    """
    slices: dict[str, int] = {}
    steps: dict[tuple[str, str], float] = {}
    states = [run.state() for run in runs]
    total, unknown = 0.0, 0
    for run, state in zip(runs, states, strict=True):
        time = ""
        if state == "done":
            pass
        elif finished := _seconds_of_finished(run):
            seconds = statistics.median(finished)
            total += seconds
            time = f"{seconds / 60:.1f} min (median of finished runs: {len(finished)})"
        elif time_steps:
            if run.dataset not in slices:
                slices[run.dataset] = _training_slices(run, data[run.dataset])
            if (key := (run.dataset, run.variant)) not in steps:
                steps[key] = seconds_a_step(run)
            seconds = steps[key] * run.settings.epochs * (slices[run.dataset] // run.settings.batch_size)
            total += seconds
            time = f"{seconds / 60:.1f} min at most, without validation and test ({steps[key]:.2f} s a step, "
            time += f"timed here; {slices[run.dataset]} slices)"
        else:
            unknown += 1
        print(f"{run!s:44} {state:9} {run.settings.epochs:4} epochs  {time}".rstrip(), flush=True)
    summary = ", ".join(f"{count} {state}" for state, count in Counter(states).items())
    left = f" and {unknown} unknown; --time measures" if unknown else ""
    print(f"{len(runs)} runs: {summary}. Time: {total / 3600:.1f} h{left}")


def _seconds_of_finished(run: Planned) -> list[float]:
    """Of the same data set and protocol, here or as collected on another machine."""
    here = [read_json(path) for path in run.folder.parents[1].glob("*/*/results.json")]
    return [one["duration_seconds"]["total"] for one in here or collected_rows(run.collected)]


def _training_slices(run: Planned, data: Path) -> int:
    """How many there are. Reads them; all folds and variants have about as many."""
    split = DATASETS[run.dataset].benchmark.open(data, run.settings)
    split = split.limited(run.settings.limit) if run.settings.limit else split
    return sum(len(case.read().image) for case in split.train)


def seconds_a_step(run: Planned) -> float:
    """One training step of the run's network and batch on this machine, on random images."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_precision(run.settings.precision, device.type)
    classes, settings = 1 + len(DATASETS[run.dataset].benchmark.classes), run.settings
    reduced_precision = settings.precision != "32-true"
    layout = torch.channels_last if reduced_precision else torch.contiguous_format
    model: Any = build_model(DATASETS[run.dataset].benchmark, settings)
    model = model.to(device, memory_format=layout)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    images = torch.rand(settings.batch_size, 3, settings.size, settings.size, device=device)
    labels = torch.randint(classes, (settings.batch_size, settings.size, settings.size), device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=reduced_precision):
            logits = model(images)
        loss = cross_entropy(logits, labels) + dice_loss(dice_sums(logits, labels))
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()

    return float(interleave({"step": step}, device, rounds=3)["step"]["ms"]) / 1000
