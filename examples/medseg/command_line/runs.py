"""The runs that a command line asks for, and their output folders."""

import argparse
import shutil
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from medseg.atomic_write import write_json
from medseg.data.arrays import read_json
from medseg.errors import RunError
from medseg.settings import Execution, Settings

MADE_BY_A_RUN = (
    "checkpoints", "model", "overlays", "tensorboard",
    "results.json", "table.txt", "split.json", "metrics.csv", "curves.png", "bars.png", "augmentation.png",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One training with everything that was asked of it."""

    settings: Settings
    execution: Execution
    data: Path | None
    out: Path
    resume: bool
    overwrite: bool
    score_training: bool
    time_loader: bool

    @property
    def last_checkpoint(self) -> Path:
        """What the training goes on from."""
        return self.out / "checkpoints" / "last.ckpt"

    @property
    def finished(self) -> bool:
        """Whether it was run to the end."""
        return (self.out / "results.json").is_file()

    def overrides(self) -> list[str]:
        """Options that, after those of the command line, make it ask for this run alone."""
        words = ["--out", str(self.out), "--seed", str(self.settings.seed)]
        if self.settings.fold is not None:
            words += ["--no-cross-validate", "--fold", str(self.settings.fold)]
        begun = (self.out / "settings.json").is_file()
        return [*words, "--resume" if self.resume and begun else "--no-resume"]


def runs_from(options: argparse.Namespace, preset: Settings) -> list[Run]:
    """The runs that a command line asks for: one for every seed, and with ``--cross-validate`` one for every fold."""
    base = _from_file(options.config) if options.config else preset
    given = {field.name: getattr(options, field.name, None) for field in fields(Settings) if field.name != "seed"}
    settings = replace(base, **{name: value for name, value in given.items() if value is not None})
    if settings.arch != "gca-resunet" and options.attention is None:
        settings = replace(settings, attention="none")
    if settings.fold is not None and settings.fold > settings.folds:
        raise RunError(f"there is no fold {settings.fold} of {settings.folds}; --fold counts from 1 to --folds")
    execution = Execution(**{field.name: getattr(options, field.name) for field in fields(Execution)})
    if options.data is None and (execution.nodes > 1 or execution.devices not in ("1", "auto")):
        raise RunError("the synthetic phantoms are for one process; give --data to train on several devices")
    if options.data is None and getattr(options, "cross_validate", False):
        raise RunError("--cross-validate is for real data; give --data")
    seeds = options.seed or [settings.seed]
    folds = range(1, settings.folds + 1) if getattr(options, "cross_validate", False) else [settings.fold]
    single = len(seeds) * len(folds) == 1
    if options.resume and options.overwrite:
        raise RunError("--resume goes on with a run and --overwrite replaces it; give one of them")
    return [
        Run(
            replace(settings, seed=seed, fold=fold),
            execution,
            options.data,
            options.out if single else options.out / _name(seed if len(seeds) > 1 else None, fold),
            options.resume,
            options.overwrite,
            options.score_training,
            options.time_loader,
        )
        for seed in seeds
        for fold in folds
    ]


def prepare_out(run: Run) -> bool:
    """Make the output folder ready and note the settings in it; never mix two runs or lose one silently.

    A run that ``overwrite`` is to replace stays until ``clear_out``, when there is something to replace it.

    Returns:
        Whether there is a checkpoint to go on from.
    """
    out, settings = run.out, asdict(run.settings)
    noted = out / "settings.json"
    if run.resume:
        if not noted.is_file():
            raise RunError(f"nothing to resume: {noted} does not exist")
        before = read_json(noted)
        changed = [
            f"{name} was {before.get(name)}, is {value}"
            for name, value in settings.items()
            if before.get(name) != value
        ]
        if changed:
            raise RunError(f"cannot resume {out} with other settings: {'; '.join(changed)}")
        return run.last_checkpoint.is_file()  # it may have been stopped before its first epoch was over
    if not (run.last_checkpoint.exists() or run.finished):
        write_json(noted, settings)
    elif not run.overwrite:
        raise RunError(
            f"{out} already holds a run; pass --resume to go on with it, --overwrite to replace it, or another --out"
        )
    return False


def clear_out(run: Run) -> None:
    """Remove what an earlier run left, and note the settings of this one."""
    for name in MADE_BY_A_RUN:
        path = run.out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    write_json(run.out / "settings.json", asdict(run.settings))


def _from_file(path: Path) -> Settings:
    content = read_json(path)
    wanted = {field.name for field in fields(Settings)}
    if content.keys() != wanted:
        raise RunError(f"{path} does not hold the settings {sorted(wanted)}; give the settings.json of a run")
    return Settings(**content)


def _name(seed: int | None, fold: int | None) -> str:
    parts = ([f"seed{seed}"] if seed is not None else []) + ([f"fold{fold}"] if fold is not None else [])
    return "_".join(parts)
