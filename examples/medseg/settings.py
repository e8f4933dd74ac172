"""What decides the outcome of a run, and what it is computed on."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from typing import Any, get_args

from medseg.errors import RunError

# Which options each attention has, and which losses there are. Here, since a mistake is said without loading torch.
ATTENTIONS = {
    "gca": ("groups", "reduction", "pool"),
    "coord": ("reduction",),
    "cbam": ("reduction",),
    "se": ("reduction",),
    "none": (),
}
POOLS = ("avg", "max", "avg+max")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
LOSSES = ("ce+dice", "ce", "dice", "focal", "focal+dice")
LOGGERS = {"tensorboard": "tensorboard", "csv": "lightning", "wandb": "wandb", "mlflow": "mlflow", "none": "lightning"}


CHOICES: dict[str, Iterable[str]] = {"attention": ATTENTIONS, "pool": POOLS, "loss": LOSSES, "precision": PRECISIONS}
LEAST = {
    "groups": 1, "reduction": 1, "size": 32, "batch_size": 1, "epochs": 1, "validate_every": 1, "patience": 1,
    "seed": 0, "folds": 2, "fold": 1, "split_seed": 0, "limit": 1, "lr": 0, "min_lr": 0, "weight_decay": 0,
    "validation": 0,
}  # fmt: skip


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
    encoder_weights: str | None = None  # None: random
    size: int = 224
    batch_size: int = 8
    epochs: int = 200
    lr: float = 1e-4
    min_lr: float = 1e-6
    weight_decay: float = 1e-4
    loss: str = "ce+dice"
    class_weights: tuple[float, ...] | None = None  # background first
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

    @classmethod
    def from_json(cls, content: Mapping[str, Any], source: object) -> "Settings":
        """Settings that a run noted in ``source``; what runs before these options did is their default.

        Raises:
            RunError: If these are not the settings of a run.
        """
        wanted, held = {field.name for field in fields(cls)}, {*content, "encoder_weights", "loss", "class_weights"}
        if held != wanted:
            faults = {"missing": sorted(wanted - held), "unknown": sorted(held - wanted)}
            words = "; ".join(f"{what}: {', '.join(names)}" for what, names in faults.items() if names)
            raise RunError(f"{source} does not hold the settings of a run ({words}); give the settings.json of a run")
        weights = content.get("class_weights")
        found = {**content, "class_weights": tuple(weights) if isinstance(weights, list) else weights}
        for field in fields(cls):
            if wrong := _wrong(field.name, found.get(field.name, field.default), field.type):
                raise RunError(f"{source} has {field.name} {content[field.name]!r}; wanted {wrong}")
        return cls(**found)

    def changes(self, other: "Settings") -> list[str]:
        """In words, what is not as in ``other``."""
        before = asdict(other)
        return [
            f"{name} was {before[name]}, is {value}" for name, value in asdict(self).items() if before[name] != value
        ]


def _wrong(name: str, value: Any, kind: Any) -> str:
    """What is wanted in place of a value that is no such setting; nothing if it is one."""
    kinds = get_args(kind) or (kind,)
    if value is None and type(None) in kinds:
        return ""
    if name == "class_weights":
        numbers = isinstance(value, tuple) and all(type(one) in (int, float) and one >= 0 for one in value)
        return "" if numbers and value else "a list of numbers from 0, or null"
    if not (type(value) in kinds or (float in kinds and type(value) is int)):
        return " or ".join("null" if one is type(None) else one.__name__ for one in kinds)
    if name in CHOICES and value not in CHOICES[name]:
        return f"one of {', '.join(CHOICES[name])}"
    return f"{LEAST[name]} at least" if name in LEAST and not value >= LEAST[name] else ""


@dataclass(frozen=True)
class Execution:
    """What a run is computed on and who is told; with the same global batch it should not decide the outcome."""

    accelerator: str = "auto"
    devices: str = "1"
    nodes: int = 1
    strategy: str = "auto"
    workers: int | None = None
    compile: bool = False
    channels_last: bool | None = None  # None: with reduced precision, where it is faster
    logger: str = "tensorboard"


def is_first_process() -> bool:
    """Whether this is the process that writes and reports; the only one unless several devices train together."""
    ranks = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # as Lightning has them, and their order
    return next((int(os.environ[name]) for name in ranks if name in os.environ), 0) == 0


def check_logger(name: str) -> None:
    """Refuse a logger whose package is missing, without importing anything.

    Raises:
        RunError: With the line that installs it.
    """
    package = LOGGERS[name]
    if find_spec(package) is None:
        raise RunError(f"--logger {name} needs a package that is not installed: pip install {package}")
