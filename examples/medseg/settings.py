"""What decides the outcome of a run, and what it is computed on."""

from dataclasses import dataclass


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
class Execution:
    """What a run is computed on; with the same global batch it should not decide the outcome."""

    accelerator: str = "auto"
    devices: str = "1"
    nodes: int = 1
    strategy: str = "auto"
    workers: int | None = None
    compile: bool = False
    channels_last: bool | None = None  # None: with reduced precision, where it is faster
