"""Train and evaluate GCA-ResUNet on the Synapse multi-organ set, or on synthetic phantoms of it.

Without ``--data`` a small synthetic abdomen is generated and everything runs on it in a few minutes on a CPU. With
``--data DIR`` the same runs on real data in the layout described in ``medseg/synapse.py``, with the paper's settings.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import lightning as L

import gca
from medseg.evaluation import Case, evaluate, mean_dice, summarize
from medseg.options import RunError, Settings, parser, prepare_out, settings_from
from medseg.phantom import write_phantoms
from medseg.pictures import draw_curves, draw_overlay
from medseg.report import DEFINITIONS, environment, table, write_json
from medseg.synapse import (
    CLASSES,
    ORGANS,
    DataError,
    Labels,
    SliceDataset,
    SynapseFolder,
    Volume,
    read_volume,
    slices_as_volumes,
)
from medseg.training import SegmentationTask, shuffled_batches, train

PHANTOM_PATIENTS = {"train": 14, "test": 4}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = parser(str(__doc__)).parse_args(arguments)
    settings = settings_from(options)
    try:
        prepare_out(options.out, asdict(settings), resume=options.resume, overwrite=options.overwrite)
        run(settings, options.data, options.out, resume=options.resume, score_training=options.score_training)
    except (DataError, RunError) as error:
        sys.exit(f"error: {error}")


def run(settings: Settings, data: Path | None, out: Path, *, resume: bool, score_training: bool) -> None:
    """Train, evaluate, and leave tables, numbers, pictures and the network in ``out``."""
    started = time.perf_counter()
    L.seed_everything(settings.seed, workers=True, verbose=False)
    print("Settings:", ", ".join(f"{name}={value}" for name, value in asdict(settings).items()))
    if data is None:
        print("No --data: generating SYNTHETIC phantoms, with a small preset instead of the paper's settings.")
        folder = SynapseFolder.open(write_phantoms(out / "data", **PHANTOM_PATIENTS, seed=settings.seed))
    else:
        folder = SynapseFolder.open(data)
        for path in folder.volumes:  # a damaged test volume should stop the run before training, not after
            read_volume(path)

    dataset = SliceDataset(folder.slices, settings.size)
    if len(dataset) < settings.batch_size:
        raise DataError(f"{len(dataset)} training slices do not fill one batch of {settings.batch_size}; lower it")
    model = build_model(settings)
    task = SegmentationTask(model, lr=settings.lr, min_lr=settings.min_lr, weight_decay=settings.weight_decay)
    batches = shuffled_batches(dataset, batch_size=settings.batch_size, seed=settings.seed)
    training_started = time.perf_counter()
    train(task, batches, epochs=settings.epochs, out=out, resume=resume)
    training_seconds = time.perf_counter() - training_started

    model.save_pretrained(out / "model")
    draw_curves(out / "metrics.csv", out / "curves.png", f"GCA-ResUNet on {_data_name(data)}")
    score = partial(evaluate, model, size=settings.size, batch_size=settings.batch_size)
    test_cases = score(
        map(read_volume, folder.volumes),
        description="Testing volumes",
        look=partial(_draw_case, out / "overlays" / "test"),
    )
    results = {
        "data": _data_name(data),
        "settings": asdict(settings),
        "test": {"summary": summarize(test_cases), "cases": test_cases},
        "definitions": DEFINITIONS,
        "attention_layers": _attention_layers(model),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_slices": len(dataset),
        "environment": environment(),
    }
    print(table(results["test"]["summary"], f"{_data_name(data)}: test volumes"))
    if score_training:
        training_cases = score(
            slices_as_volumes(folder.slices),
            description="Scoring training slices",
            look=partial(_draw_case, out / "overlays" / "training"),
        )
        results["training"] = {"summary": summarize(training_cases), "cases": training_cases}
        print(table(results["training"]["summary"], f"{_data_name(data)}: the slices it was TRAINED on"))
    seconds = time.perf_counter() - started
    results["duration_seconds"] = {"training": round(training_seconds, 1), "total": round(seconds, 1)}
    write_json(out / "results.json", results)
    print(
        f"{seconds:.0f} s. Numbers in {out / 'results.json'}, pictures in {out / 'overlays'} and {out / 'curves.png'}."
    )


def build_model(settings: Settings) -> "gca.GCAResUNet":
    """The network that the settings describe, from random initialisation."""
    wanted = {"groups": settings.groups, "reduction": settings.reduction, "pool": settings.pool}
    options = {name: value for name, value in wanted.items() if value is not None}
    attention = None if settings.attention == "none" else settings.attention
    try:
        return gca.GCAResUNet(CLASSES, encoder=settings.encoder, attention=attention, attention_options=options)
    except (TypeError, ValueError, KeyError) as error:
        raise RunError(f"cannot build the network: {error}") from error


def _attention_layers(model: "gca.GCAResUNet") -> dict[str, str]:
    return {name: f"{type(layer).__name__}({layer.extra_repr()})" for name, layer in gca.injected(model).items()}


def _data_name(data: Path | None) -> str:
    if data is None:
        return "SYNTHETIC phantoms (nothing here is a result on real CT)"
    return f"folder {data.resolve().name}"


def _draw_case(folder: Path, volume: Volume, prediction: Labels, case: Case) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    dice = mean_dice(case)
    title = f"{volume.case}: mean Dice {dice:.3f} over its organs" if dice is not None else f"{volume.case}: no organ"
    draw_overlay(volume, prediction, ORGANS, folder / f"{volume.case}.png", title)


if __name__ == "__main__":
    main()
