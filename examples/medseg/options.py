"""The settings of a run, its command line and its output folder."""

import argparse
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from medseg.report import write_json


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


def settings_from(options: argparse.Namespace) -> Settings:
    """The settings that a command line asks for, on top of the preset for its data."""
    preset = PHANTOM if options.data is None else PAPER
    given = {field.name: getattr(options, field.name) for field in fields(Settings)}
    return replace(preset, **{name: value for name, value in given.items() if value is not None})


def prepare_out(out: Path, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Make ``out`` ready and note the settings in it; never mix two runs or lose one silently."""
    noted, checkpoint = out / "settings.json", out / "checkpoints" / "last.ckpt"
    if resume:
        if not checkpoint.is_file():
            raise RunError(f"nothing to resume: {checkpoint} does not exist")
        before = json.loads(noted.read_text())
        changed = [
            f"{name} was {before[name]}, is {value}" for name, value in settings.items() if before[name] != value
        ]
        if changed:
            raise RunError(f"cannot resume {out} with other settings: {'; '.join(changed)}")
        return
    if checkpoint.exists() or (out / "results.json").exists():
        if not overwrite:
            raise RunError(
                f"{out} already holds a run; pass --resume to go on with it, --overwrite to replace it, "
                "or another --out"
            )
        for name in ("checkpoints", "model", "overlays", "data"):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in ("results.json", "metrics.csv", "curves.png"):
            (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    write_json(noted, settings)


def parser(description: str) -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
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
    network.add_argument("--groups", type=_positive_int, help="channel groups of GCA (default: 2)")
    network.add_argument("--reduction", type=_positive_int, help="reduction ratio (default: of the layer; GCA: 2)")
    network.add_argument("--pool", choices=("avg", "max", "avg+max"), help="pooling of GCA (default: avg+max)")
    network.add_argument("--encoder", help="encoder of segmentation-models-pytorch" + default("encoder"))

    training = parser.add_argument_group("training")
    training.add_argument("--size", type=_size, help="side of the square slices" + default("size"))
    training.add_argument("--batch-size", type=_positive_int, help="slices in a batch" + default("batch_size"))
    training.add_argument("--epochs", type=_positive_int, help="passes over the training slices" + default("epochs"))
    training.add_argument("--lr", type=_positive_float, help="first learning rate" + default("lr"))
    training.add_argument("--min-lr", type=_positive_float, help="last learning rate" + default("min_lr"))
    training.add_argument("--weight-decay", type=_float_from_0, help="of AdamW" + default("weight_decay"))
    training.add_argument("--seed", type=_int_from_0, help="of phantoms, weights and order of slices" + default("seed"))
    return parser


def _number(kind: type[int] | type[float], wanted: str, accept: Callable[[float], bool]) -> Callable[[str], float]:
    """An argparse type that says what it wanted."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and accept(value)):
            raise argparse.ArgumentTypeError(f"wanted {wanted}, got {text!r}")
        return value

    return parse


_positive_int = _number(int, "a whole number from 1", lambda value: value >= 1)
_int_from_0 = _number(int, "a whole number from 0", lambda value: value >= 0)
_positive_float = _number(float, "a number above 0", lambda value: value > 0)
_float_from_0 = _number(float, "a number from 0", lambda value: value >= 0)
_size = _number(int, "a whole number from 32", lambda value: value >= 32)
