"""Train and evaluate GCA-ResUNet on the Synapse multi-organ set, or on synthetic phantoms of it.

Without ``--data`` a small synthetic abdomen is generated and everything runs on it in a few minutes on a CPU. With
``--data DIR`` the same runs on real data in the layout described in ``medseg/synapse.py``, with the paper's settings.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from medseg.evaluation import Case, evaluate, mean_dice, summarize
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

import gca

PHANTOM_PATIENTS = {"train": 14, "test": 4}


class RunError(ValueError):
    """What was asked does not fit the output folder or the network."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides the outcome of a run. Defaults are the paper's, section 4.3."""

    attention: str = "gca"
    groups: int | None = None  # None: the default of the layer, which for GCA is the paper's value
    reduction: int | None = None
    pool: str | None = None
    encoder: str = "tu-resnet50"
    size: int = 224
    batch_size: int = 8
    epochs: int = 200
    lr: float = 1e-4
    min_lr: float = 1e-6
    weight_decay: float = 1e-4
    seed: int = 10


PAPER = Settings()
# Small enough for two CPU cores: fewer and smaller slices, and a learning rate at which few steps suffice.
PHANTOM = replace(PAPER, size=64, batch_size=4, epochs=4, lr=1e-3, min_lr=1e-5)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = _parser().parse_args(arguments)
    preset = PHANTOM if options.data is None else PAPER
    given = {field.name: getattr(options, field.name) for field in fields(Settings)}
    settings = replace(preset, **{name: value for name, value in given.items() if value is not None})
    try:
        _prepare_out(options.out, asdict(settings), resume=options.resume, overwrite=options.overwrite)
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
    return "SYNTHETIC phantoms (nothing here is a result on real CT)" if data is None else f"data in {data}"


def _draw_case(folder: Path, volume: Volume, prediction: Labels, case: Case) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    dice = mean_dice(case)
    title = f"{volume.case}: mean Dice {dice:.3f} over its organs" if dice is not None else f"{volume.case}: no organ"
    draw_overlay(volume, prediction, ORGANS, folder / f"{volume.case}.png", title)


def _prepare_out(out: Path, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Make ``out`` ready and note the settings in it; never mix two runs or lose one silently."""
    noted = out / "settings.json"
    if resume:
        if not (out / "checkpoints" / "last.ckpt").is_file():
            raise RunError(f"nothing to resume: {out / 'checkpoints' / 'last.ckpt'} does not exist")
        before = json.loads(noted.read_text())
        changed = [
            f"{name} was {before.get(name)}, is {settings[name]}"
            for name in settings
            if before.get(name) != settings[name]
        ]
        if changed:
            raise RunError(f"cannot resume {out} with other settings: {'; '.join(changed)}")
        return
    if noted.exists():
        if not overwrite:
            raise RunError(
                f"{out} already holds a run; pass --resume to go on with it, --overwrite to replace it, or "
                "another --out"
            )
        for name in ("checkpoints", "model", "overlays", "data"):
            shutil.rmtree(out / name, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    write_json(noted, settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )

    def default(name: str) -> str:
        paper, phantom = getattr(PAPER, name), getattr(PHANTOM, name)
        return f" (default: {paper})" if paper == phantom else f" (default: {paper}; on phantoms: {phantom})"

    run = parser.add_argument_group("run")
    run.add_argument(
        "--data",
        type=Path,
        help="folder with train_npz/, test_vol_h5/, lists_Synapse/ (default: generate synthetic phantoms)",
    )
    run.add_argument(
        "--out", type=Path, default=Path("runs/synapse"), help="receives everything (default: %(default)s)"
    )
    run.add_argument("--resume", action="store_true", help="go on with an interrupted run in --out")
    run.add_argument("--overwrite", action="store_true", help="replace a run in --out")
    run.add_argument("--score-training", action="store_true", help="also score the slices it was trained on")

    network = parser.add_argument_group("network")
    network.add_argument(
        "--attention",
        choices=("gca", "coord", "cbam", "se", "none"),
        help="attention in every residual block" + default("attention"),
    )
    network.add_argument("--groups", type=int, help="channel groups of GCA (default: 2)")
    network.add_argument("--reduction", type=int, help="reduction ratio (default: of the layer; GCA: 2)")
    network.add_argument("--pool", choices=("avg", "max", "avg+max"), help="pooling of GCA (default: avg+max)")
    network.add_argument("--encoder", help="encoder of segmentation-models-pytorch" + default("encoder"))

    training = parser.add_argument_group("training")
    training.add_argument("--size", type=int, help="side of the square slices" + default("size"))
    training.add_argument("--batch-size", type=int, help="slices in a batch" + default("batch_size"))
    training.add_argument("--epochs", type=int, help="passes over the training slices" + default("epochs"))
    training.add_argument("--lr", type=float, help="first learning rate" + default("lr"))
    training.add_argument("--min-lr", type=float, help="last learning rate" + default("min_lr"))
    training.add_argument("--weight-decay", type=float, help="of AdamW" + default("weight_decay"))
    training.add_argument("--seed", type=int, help="of phantoms, weights and order of slices" + default("seed"))
    return parser


if __name__ == "__main__":
    main()
