"""What distinguishes one benchmark from another, and the settings of a run on it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medseg.data.dataset import Split

Synthetic = Callable[[Path, int], Path]  # folder, seed -> folder with data


@dataclass(frozen=True)
class Settings:
    """Everything that decides the outcome of a run. Defaults are the paper's, section 4.3, for Synapse and ACDC."""

    arch: str = "gca-resunet"
    attention: str = "gca"
    groups: int | None = None  # None: the default of the layer, which for GCA is the paper's value
    reduction: int | None = None
    pool: str | None = None
    identity_init: bool = False  # True: attention starts as the identity instead of as in the paper
    encoder: str = "tu-resnet50"
    size: int = 224
    batch_size: int = 8
    epochs: int = 200
    lr: float = 1e-4
    min_lr: float = 1e-6
    weight_decay: float = 1e-4
    augment: bool = True
    validate_every: int = 5
    patience: int = 6
    precision: str = "32-true"
    deterministic: bool = True
    seed: int = 10
    folds: int = 4
    fold: int | None = None
    validation: float = 0.1
    split_seed: int = 0
    limit: int | None = None


@dataclass(frozen=True)
class Paper:
    """What a paper prints: Dice per class in percent, and mean and standard deviation of every figure.

    Figures that it does not print are left out.
    """

    source: str
    dice: Mapping[str, float]
    mean: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Benchmark:
    """One data set with the way in which it is read, trained on and scored.

    Args:
        name: For files; ``title`` for people.
        classes: Names, without the background.
        open: Folder and settings -> split.
        settings: The paper's.
        intensity: ``"hu"``: CT, clipped to [-125, 275] Hounsfield units; ``"min-max"``: MRI, every volume clipped at
            its 99th percentile and scaled to [0, 1]; ``"rgb"``: photographs, which are also jittered in colour and
            scored as images instead of volumes.
        layout: What the data folder holds, for ``--help``.
        paper: Printed figures to stand beside those of a run; without them, nothing is said about a paper.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    open: Callable[[Path, Settings], Split]
    settings: Settings
    intensity: Literal["hu", "min-max", "rgb"]
    layout: str
    paper: Paper | None = None
