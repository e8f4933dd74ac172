"""One training run from the data folder to tables, numbers and pictures."""

import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn
from tqdm import tqdm

import gca
from medseg.command_line.runs import Request, Run, clear_out, prepare_out, runs_in
from medseg.data.dataset import Benchmark, Case, DataFingerprint, Split, Synthetic, Volume
from medseg.errors import DataError, RunError
from medseg.evaluation.prediction import load_network, predict_volume
from medseg.evaluation.report import DEFINITIONS, SCHEMA, table
from medseg.evaluation.scores import best_median_worst, evaluate, headline, mean_dice, summarize
from medseg.figures.overlays import draw_overlay
from medseg.figures.results import draw_augmentation, draw_bars, draw_curves
from medseg.files import read_json, write_json, write_text
from medseg.settings import Settings, is_first_process
from medseg.training.network import build_model, check_precision, precision_hint, save_model
from medseg.training.slices import SliceDataset, Slices, images_per_second
from medseg.training.trainer import SegmentationTask, train
from medseg.training.transforms import Augmentation


def run_one(benchmark: Benchmark, run: Run, synthetic: Synthetic | None = None) -> None:
    """Train, evaluate, and leave tables, numbers, pictures and the network in ``run.out``."""
    try:
        _run(benchmark, run, synthetic)
    except torch.cuda.OutOfMemoryError as error:
        advice = "lower --batch-size or --size, or train on more --devices, and go on with --resume"
        raise RunError(f"{error}; {advice}") from error


def _run(benchmark: Benchmark, run: Run, synthetic: Synthetic | None) -> None:
    started = time.perf_counter()
    first = is_first_process()  # of the processes of a distributed training; the others train and leave
    if not first:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  # lives as long as the process
    settings, out = run.settings, run.out
    check_precision(settings.precision, run.execution.accelerator)
    if run.test_only:
        test_again(benchmark, run, synthetic)
        return
    has_checkpoint = prepare_out(run) if first else run.resume and run.last_checkpoint.is_file()
    print("Settings:", ", ".join(f"{name}={value}" for name, value in asdict(settings).items()))
    if hint := precision_hint(settings.precision, run.execution.accelerator):
        print(hint)
    L.seed_everything(settings.seed, workers=True, verbose=False)
    model = build_model(benchmark, settings, pretrained=not has_checkpoint)
    split, data = find_data(benchmark, run, synthetic)
    fingerprint = DataFingerprint()
    slices = read_slices(benchmark, split, run, fingerprint)
    if run.time_loader:
        print(f"Loading alone: {images_per_second(slices):.0f} images/s")
        return
    description = describe(split, data, fingerprint, slices)
    title = f"{settings.arch} on {description['name']}\n{split.name}"
    if first:
        check_fingerprint(run, description["fingerprint"], has_checkpoint)
        if not has_checkpoint:
            clear_out(run, description["fingerprint"])
        write_json(out / "split.json", {part: [case.name for case in cases] for part, cases in split.parts().items()})
        draw_augmentation(benchmark, slices.training, out / "augmentation.png")

    task = SegmentationTask(model, settings, slices.steps_per_epoch)
    training_started = time.perf_counter()
    training = train(task, slices, settings, run.execution, out=out, resume=has_checkpoint)
    training_seconds = time.perf_counter() - training_started
    if not first:
        return
    save_model(benchmark, model, settings, out / "model")
    draw_curves(out / "metrics.csv", out / "curves.png", title)
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "benchmark": benchmark.name,
        "data": description,
        "settings": asdict(settings),
        "execution": asdict(run.execution),
        "training": {name: value for name, value in asdict(training).items() if name != "seconds_per_step"},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "attention_layers": {key: f"{type(x).__name__}({x.extra_repr()})" for key, x in gca.injected(model).items()},
        "definitions": DEFINITIONS,
        **({"paper": asdict(benchmark.paper)} if benchmark.paper else {}),
        "environment": environment(task.device),
    }
    tables = test(benchmark, run, model, split, results)
    seconds = time.perf_counter() - started
    results["duration_seconds"] = {
        "training": round(training_seconds, 1),  # of this process, as all of them: less if the run was resumed
        "total": round(seconds, 1),
        "step": training.seconds_per_step,
    }
    write_json(out / "results.json", results)  # the last file: it says that the run is finished
    if not run.keep_checkpoints:
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
    print(tables)
    print(f"{seconds:.0f} s. Numbers in {out / 'results.json'}; curves.png, bars.png, overlays/ beside it.")


def test(benchmark: Benchmark, run: Run, model: nn.Module, split: Split, results: dict[str, Any]) -> str:
    """Score the test cases into ``results``, with tables, bars and overlays in the output folder; return the tables."""
    settings, out, name = run.settings, run.out, results["data"]["name"]
    tables = []
    for part, cases in {"test": split.test, **({"trained_on": split.train} if run.score_training else {})}.items():
        heading = f"{'test cases' if part == 'test' else 'the cases it was TRAINED on'}; {split.name}"
        results[part] = score(benchmark, model, cases, settings, out / "overlays" / part, part)
        tables.append(table(benchmark, results[part]["summary"], f"{name}, {heading}"))
    title = f"{settings.arch} on {name}\n{split.name}"
    draw_bars(benchmark, results["test"]["summary"], out / "bars.png", title)
    write_text(out / "table.txt", "\n".join(tables) + "\n")
    return "\n".join(tables)


def test_again(benchmark: Benchmark, run: Run, synthetic: Synthetic | None) -> None:
    """Score the network of a finished run once more, on the data that it was trained for."""
    results = read_json(run.out / "results.json")
    on_gpu = run.execution.accelerator != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    model = load_network(run.out, device.type).model
    split, _ = find_data(benchmark, run, synthetic)
    fingerprint = DataFingerprint()
    for part, cases in split.parts().items():
        for case in tqdm(cases, desc=f"Checking {part} cases", disable=None):
            fingerprint.add(part, case.read())
    if fingerprint.digest() != results["data"]["fingerprint"]:
        raise RunError(
            f"{run.out} was trained and tested on other data than these; give --data the same, or take predict.py"
        )
    results["tested_again"] = environment(device)
    tables = test(benchmark, run, model, split, results)
    write_json(run.out / "results.json", results)
    print(f"{tables}\nTested again. Numbers in {run.out / 'results.json'}; bars.png, overlays/ beside it.")


def find_data(benchmark: Benchmark, run: Run, synthetic: Synthetic | None) -> tuple[Split, dict[str, str]]:
    """The split of the cases, with a name for people and the name of the folder."""
    name, data = benchmark.title, run.data
    if data is None:
        assert synthetic is not None  # the command line demands --data otherwise
        name = "SYNTHETIC phantoms (nothing here is a result on real scans)"
        print("No --data: generating SYNTHETIC phantoms, with a small preset instead of the paper's settings.")
        data = synthetic(run.out / "data", run.settings.seed)
    split = benchmark.open(data, run.settings)
    split = split.limited(run.settings.limit) if run.settings.limit else split
    return split, {"name": name, "folder": data.resolve().name}


def describe(split: Split, data: dict[str, str], fingerprint: DataFingerprint, slices: Slices) -> dict[str, Any]:
    """A description of the data for the results, printed as well.

    The test cases are read for it, though not kept: damage should stop a run before its training, not after.
    """
    if is_first_process():
        for case in tqdm(split.test, desc="Checking test cases", disable=None):
            fingerprint.add("test", case.read())
    description: dict[str, Any] = {
        **data,
        "split": split.name,
        "cases": {part: len(cases) for part, cases in split.parts().items()},
        "slices": {"train": len(slices.training), "validation": len(slices.validation)},
        "fingerprint": fingerprint.digest(),
        "duplicates_across_parts": fingerprint.duplicates(),
    }
    for pair in description["duplicates_across_parts"]:
        print("Warning: the same image is in two parts:", ", ".join(f"{case} ({part})" for part, case in pair.items()))
    print(f"Data: {data['name']}; {split.name}; cases {description['cases']}, slices {description['slices']}")
    return description


def check_fingerprint(run: Run, fingerprint: str, has_checkpoint: bool) -> None:
    """Refuse to go on with a training, or with several seeds of one, on other data than they began with."""
    noted = Request.noted(run.out) if has_checkpoint else None
    begun = [noted.fingerprint] if noted else []
    together = run.out.parent
    if (together / "request.json").is_file():  # of several
        for name in runs_in(together):
            path = together / name / "results.json"
            results = read_json(path) if path.is_file() else None
            if results and name != run.out.name and results["settings"]["fold"] == run.settings.fold:
                begun.append(results["data"]["fingerprint"])
    if any(one not in (None, fingerprint) for one in begun):
        where = run.out if noted else together
        raise RunError(
            f"cannot resume {where} on other data than it began with; give --data the same, or another --out"
        )


def read_slices(benchmark: Benchmark, split: Split, run: Run, fingerprint: DataFingerprint) -> Slices:
    """The slices for training and validation, in memory."""
    settings = run.settings
    augmentation = Augmentation(settings.size, colour=benchmark.intensity == "rgb") if settings.augment else None
    read = {
        part: SliceDataset(
            cases,
            settings.size,
            augmentation=augmentation if part == "train" else None,
            description=f"Reading {part} cases",
            look=partial(fingerprint.add, part),
        )
        for part, cases in (("train", split.train), ("validation", split.validation))
    }
    if len(read["train"]) < settings.batch_size:
        raise DataError(
            f"{len(read['train'])} training slices do not fill one batch of {settings.batch_size}; lower it"
        )
    return Slices(
        read["train"],
        read["validation"],
        batch_size=settings.batch_size,
        seed=settings.seed,
        workers=run.execution.workers,
    )


def score(
    benchmark: Benchmark, model: nn.Module, cases: Sequence[Case], settings: Settings, overlays: Path, part: str
) -> dict[str, Any]:
    """Summary and rows of some cases, and overlays of the best, the median and the worst of them."""
    model.eval()

    def predict(volume: Volume) -> Any:
        return predict_volume(model, volume.image, size=settings.size, batch_size=settings.batch_size)

    rows = evaluate(benchmark, cases, predict, description=f"Scoring {part} cases")
    summary = summarize(benchmark, rows)
    overlays.mkdir(parents=True, exist_ok=True)
    dice = {row["case"]: mean_dice(row) for row in rows}
    for name, chosen in best_median_worst(rows).items():
        volume = next(case for case in cases if case.name == chosen).read()
        title = f"{name} of {len(rows)} cases: {chosen}, mean Dice {dice[chosen]:.3f}"
        layers = {"image": None, "ground truth": volume.label, "prediction": predict(volume)}
        draw_overlay(volume.image, layers, benchmark.classes, overlays / f"{name}.png", title)
    return {"headline": headline(benchmark, summary), "summary": summary, "cases": rows}


PACKAGES = ("timm", "segmentation-models-pytorch", "lightning", "torchvision", "numpy", "scipy")


def environment(device: torch.device) -> dict[str, str | int]:
    """Versions, processor and threads, device."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "gca-attn": gca.__version__,  # of what was imported, installed or not
        **{package: metadata.version(package) for package in PACKAGES},
    }
