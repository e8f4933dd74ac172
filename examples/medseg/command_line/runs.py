"""The runs that a command line asks for, and their output folders, where nothing is lost or mixed.

Nothing here needs torch: what cannot end well is refused before the first training, and at once.
"""

import argparse
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from medseg.errors import RunError
from medseg.files import check_folder, read_json, write_json
from medseg.settings import ATTENTIONS, Execution, Settings


@dataclass(frozen=True)
class Run:
    """One training with everything that was asked of it.

    Args:
        settings, execution: What decides its outcome, and what it is computed on.
        data: Folder; ``None`` for synthetic data.
        out: Folder that receives everything.
        resume, overwrite: Whether it goes on with what is in ``out``, or replaces it.
        score_training: Also score the cases it was trained on.
        time_loader: Measure the loading of slices, and train nothing.
        keep_checkpoints: Keep them when it is finished.
        test_only: Test what is trained already.
        benchmark: Name of the data set.
        script_options: What the script itself took from the command line.
    """

    settings: Settings
    execution: Execution
    data: Path | None
    out: Path
    resume: bool = False
    overwrite: bool = False
    score_training: bool = False
    time_loader: bool = False
    keep_checkpoints: bool = False
    test_only: bool = False
    benchmark: str = ""
    script_options: tuple[str, ...] = ()

    @property
    def last_checkpoint(self) -> Path:
        """What the training goes on from."""
        return self.out / "checkpoints" / "last.ckpt"

    @property
    def finished(self) -> bool:
        """Whether it was run to the end."""
        return (self.out / "results.json").is_file()

    def command(self, config: Path) -> list[str]:
        """Options that ask for this run alone, with the settings in ``config``."""
        words = [
            *self.script_options,
            "--out",
            str(self.out),
            "--config",
            str(config),
            "--seed",
            str(self.settings.seed),
        ]
        words += [] if self.data is None else ["--data", str(self.data)]
        words += [] if self.settings.fold is None else ["--fold", str(self.settings.fold)]
        for name, value in asdict(self.execution).items():
            option = name.replace("_", "-")
            if value is not None:
                words += (
                    [f"--{'' if value else 'no-'}{option}"] if isinstance(value, bool) else [f"--{option}", str(value)]
                )
        begun = (self.out / "settings.json").is_file()
        flags = ("overwrite", "score_training", "time_loader", "keep_checkpoints", "test_only")
        words += [f"--{name.replace('_', '-')}" for name in flags if getattr(self, name)]
        return [*words, *(["--resume"] if self.resume and begun else [])]


@dataclass(frozen=True)
class Request:
    """What was asked for in an output folder, noted there so that ``--resume --out DIR`` can go on with it."""

    benchmark: str
    data: str | None
    settings: dict[str, Any]
    execution: dict[str, Any]
    seeds: Sequence[int]
    cross_validate: bool = False
    script_options: Sequence[str] = ()
    score_training: bool = False
    keep_checkpoints: bool = False
    fingerprint: str | None = field(default=None)  # of the data, once they are read

    @classmethod
    def noted(cls, out: Path) -> "Request | None":
        """What was noted in a folder, if anything was."""
        path = out / "request.json"
        if not path.is_file():
            return None
        try:
            return cls(**read_json(path))
        except TypeError as error:
            raise RunError(f"{path} is not what a run notes there: {error}; remove it, and give all options") from error


def runs_from(options: argparse.Namespace, preset: Settings, benchmark: str = "") -> list[Run]:
    """The runs that a command line asks for: one for every seed, and with ``--cross-validate`` one for every fold.

    With ``--resume`` or ``--test-only`` what the command line leaves open is as the folder in ``--out`` has it noted.

    Raises:
        RunError: If something that was asked for cannot be done, or not together.
    """
    if options.resume and options.overwrite:
        raise RunError("--resume goes on with a run and --overwrite replaces it; give one of them")
    if options.test_only and (options.resume or options.overwrite):
        raise RunError("--test-only tests a finished run again; give neither --resume nor --overwrite")
    goes_on = options.resume or options.test_only
    noted = Request.noted(options.out) if goes_on else None
    if noted and benchmark and noted.benchmark != benchmark:
        raise RunError(f"{options.out} holds a run on {noted.benchmark}, not on {benchmark}; give another --out")
    settings = _settings(options, preset, noted)
    given = {one.name: getattr(options, one.name, None) for one in fields(Execution)}
    execution = replace(
        Execution(**noted.execution) if noted else Execution(),
        **{name: value for name, value in given.items() if value is not None},
    )
    data = options.data or (Path(noted.data) if noted and noted.data else None)
    seeds = options.seed or (noted.seeds if noted else None) or [settings.seed]
    cross_validate = getattr(options, "cross_validate", None)
    if cross_validate and options.fold is not None:
        raise RunError("--fold trains one fold and --cross-validate all of them; give one of them")
    if cross_validate is None:
        cross_validate = noted is not None and noted.cross_validate and getattr(options, "fold", None) is None
    _check(settings, execution, seeds, synthetic=data is None, cross_validate=cross_validate)
    folds = range(1, settings.folds + 1) if cross_validate else [settings.fold]
    single = len(seeds) * len(folds) == 1
    return [
        Run(
            replace(settings, seed=seed, fold=fold),
            execution,
            data,
            options.out if single else options.out / _name(seed if len(seeds) > 1 else None, fold),
            options.resume,
            options.overwrite,
            options.score_training or bool(noted and noted.score_training),
            options.time_loader,
            options.keep_checkpoints or bool(noted and noted.keep_checkpoints),
            options.test_only,
            benchmark,
            tuple(getattr(options, "script_options", ())),
        )
        for seed in seeds
        for fold in folds
    ]


def _settings(options: argparse.Namespace, preset: Settings, noted: Request | None) -> Settings:
    base = preset
    if noted:
        base = Settings.from_json(noted.settings, options.out / "request.json")
    elif (options.resume or options.test_only) and (before := options.out / "settings.json").is_file():
        base = Settings.from_json(read_json(before), before)
    if options.config:
        content = read_json(options.config)
        base = Settings.from_json(content.get("settings", content), options.config)
    given: dict[str, Any] = {
        one.name: getattr(options, one.name, None) for one in fields(Settings) if one.name != "seed"
    }
    if given["class_weights"] is not None:
        given["class_weights"] = tuple(given["class_weights"])
    given = {name: value for name, value in given.items() if value is not None}
    baseline = given.get("arch", base.arch) != "gca-resunet"
    if baseline:
        given.setdefault("attention", "none")
    elif given.get("encoder_weights") and given.get("attention", base.attention) != "none":
        given.setdefault("identity_init", True)  # so that the encoder computes what its weights were trained to
    settings = replace(base, **given)
    if baseline and settings.attention != "none":
        raise RunError(
            f"attention is for --arch gca-resunet, not {settings.arch}, which is a baseline as it is; leave out "
            "--attention or --arch"
        )
    fitting = ATTENTIONS[settings.attention]
    for name in ("groups", "reduction", "pool"):
        if getattr(settings, name) is not None and name not in fitting:
            having = " and ".join(attention for attention, names in ATTENTIONS.items() if name in names)
            if name not in given:  # of the settings that were changed to another attention
                without: dict[str, Any] = {name: None}
                settings = replace(settings, **without)
                continue
            raise RunError(f"--{name} is for --attention {having}, not for {settings.attention}; leave it out")
    if settings.identity_init and settings.attention == "none":
        if given.get("identity_init"):
            raise RunError("--identity-init says how attention starts, and there is none; leave it out")
        settings = replace(settings, identity_init=False)
    return settings


def _check(
    settings: Settings, execution: Execution, seeds: Sequence[int], *, synthetic: bool, cross_validate: bool
) -> None:
    """What can be refused by looking at the options alone."""
    if repeated := [seed for seed in dict.fromkeys(seeds) if list(seeds).count(seed) > 1]:
        raise RunError(f"--seed names {', '.join(map(str, repeated))} more than once, which would train the same again")
    if settings.fold is not None and settings.fold > settings.folds:
        raise RunError(f"there is no fold {settings.fold} of {settings.folds}; --fold counts from 1 to --folds")
    if settings.min_lr > settings.lr:
        raise RunError(
            f"--min-lr {settings.min_lr:g}, the last learning rate, is above --lr {settings.lr:g}, the first"
        )
    if synthetic and (execution.nodes > 1 or execution.devices not in ("1", "auto")):
        raise RunError("the synthetic phantoms are for one process; give --data to train on several devices")
    processes = execution.nodes * (int(execution.devices) if execution.devices.isdigit() else 1)
    if processes > 1 and settings.batch_size % processes:
        raise RunError(f"--batch-size {settings.batch_size} cannot be divided among {processes} processes")
    if synthetic and cross_validate:
        raise RunError("--cross-validate is for real data; give --data")


def _name(seed: int | None, fold: int | None) -> str:
    parts = ([f"seed{seed}"] if seed is not None else []) + ([f"fold{fold}"] if fold is not None else [])
    return "_".join(parts)


MADE_BY_A_RUN = (
    "checkpoints", "model", "overlays", "tensorboard", "csv", "wandb", "mlruns",
    "results.json", "table.txt", "split.json", "metrics.csv", "curves.png", "bars.png", "augmentation.png",
)  # fmt: skip
MADE_BY_SEVERAL = ("runs.json", "table.txt")
NOTES = ("settings.json", "request.json")
FOLDER_OF_A_RUN = re.compile(r"seed\d+|fold\d+|seed\d+_fold\d+")


def check_out(runs: Sequence[Run], out: Path) -> None:
    """Refuse to lose or to mix what is in the output folder.

    Raises:
        RunError: If a single run, several seeds and folds would come to lie in one folder, if a run is there that is
            neither resumed nor overwritten, or one with other settings is to be resumed.
    """
    check_folder(out, "--out")
    if runs[0].time_loader and len(runs) > 1:
        raise RunError("--time-loader measures the loading of one run; give one --seed, and no --cross-validate")
    if runs[0].time_loader or runs[0].overwrite:
        return
    _check_request(runs[0], out)
    if mixed := _in_the_way(runs, out):
        raise RunError(
            f"{out} holds {mixed}, which {'these runs' if len(runs) > 1 else 'this run'} would mix with; give another "
            "--out, --overwrite to replace all that is there, or with --resume the same seeds and folds"
        )
    for run in runs:
        if run.test_only:
            if not run.finished:
                raise RunError(f"there is no finished run in {run.out} to test again; train it, or go on with --resume")
        elif run.resume:
            if (noted := run.out / "settings.json").is_file():
                if changes := run.settings.changes(Settings.from_json(read_json(noted), noted)):
                    raise RunError(f"cannot resume {run.out} with other settings: {'; '.join(changes)}")
            elif _holds_a_run(run.out):
                raise RunError(f"cannot resume {run.out}: it holds a run without settings.json; give another --out")
        elif _holds_a_run(run.out):
            raise RunError(
                f"{run.out} already holds a run; pass --resume to go on with it, --overwrite to replace it, or another "
                "--out"
            )


def _check_request(run: Run, out: Path) -> None:
    """Refuse to go on by other options of the script, which decide the data set, than were noted in the folder."""
    noted = Request.noted(out) if run.resume or run.test_only else None
    if noted and tuple(noted.script_options) != run.script_options:
        before, now = (" ".join(words) or "none" for words in (noted.script_options, run.script_options))
        raise RunError(f"cannot go on with {out} by other options: they were {before}, are {now}; give another --out")


def note_request(runs: Sequence[Run], out: Path, fingerprint: str | None = None) -> None:
    """Note what was asked for, in the folder of a single run or of several."""
    run, seeds = runs[0], list(dict.fromkeys(run.settings.seed for run in runs))
    folds = {run.settings.fold for run in runs}
    settings = replace(run.settings, fold=None) if len(folds) > 1 else run.settings
    request = Request(
        run.benchmark,
        None if run.data is None else str(run.data.resolve()),
        asdict(settings),
        asdict(run.execution),
        seeds,
        len(folds) > 1,
        run.script_options,
        run.score_training,
        run.keep_checkpoints,
        fingerprint,
    )
    write_json(out / "request.json", asdict(request))


def prepare_out(run: Run) -> bool:
    """Note the settings in the output folder, which ``check_out`` found to be free or resumable.

    A run that ``overwrite`` is to replace stays until ``clear_out``, when there is something to replace it.

    Returns:
        Whether there is a checkpoint to go on from.
    """
    noted = run.out / "settings.json"
    if run.resume and noted.is_file():
        return run.last_checkpoint.is_file()  # it may have been stopped before its first epoch was over
    if not _holds_a_run(run.out):
        write_json(noted, asdict(run.settings))
        note_request([run], run.out)
    return False


def clear_out(run: Run, fingerprint: str) -> None:
    """Remove what an earlier run left, and note the settings and the data of this one."""
    for name in MADE_BY_A_RUN:
        _remove(run.out / name)
    clear_several(run.out)
    write_json(run.out / "settings.json", asdict(run.settings))
    note_request([run], run.out, fingerprint)


def clear_several(out: Path) -> None:
    """Remove the runs of several seeds or folds in a folder, and what was collected from them."""
    for name in runs_in(out):
        for made in (*MADE_BY_A_RUN, *NOTES):
            _remove(out / name / made)
        if not any((out / name).iterdir()):
            (out / name).rmdir()
    for name in MADE_BY_SEVERAL:
        _remove(out / name)


def clear_single(out: Path) -> None:
    """Remove a single run from a folder that is to receive several."""
    for name in (*MADE_BY_A_RUN, *NOTES):
        _remove(out / name)


def _in_the_way(runs: Sequence[Run], out: Path) -> str:
    """What is in an output folder and would mix with some runs, in words."""
    there = runs_in(out)
    if len(runs) == 1:
        return f"several runs ({', '.join(there)})" if there and runs[0].out == out else ""
    if _holds_a_run(out):
        return "a single run"
    others = [name for name in there if out / name not in {run.out for run in runs}]
    return f"other runs ({', '.join(others)})" if others else ""


def runs_in(out: Path) -> list[str]:
    """Names of the runs of several seeds or folds in a folder."""
    if not out.is_dir():
        return []
    folders = (path for path in out.iterdir() if path.is_dir() and FOLDER_OF_A_RUN.fullmatch(path.name))
    return sorted(path.name for path in folders if _holds_a_run(path))


def _holds_a_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("results.json", "checkpoints/last.ckpt"))


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
