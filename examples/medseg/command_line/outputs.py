"""The output folders of runs, where nothing is lost or mixed."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from medseg.atomic_write import check_folder, write_json
from medseg.command_line.runs import Request, Run
from medseg.data.arrays import read_json
from medseg.errors import RunError
from medseg.settings import Settings

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
    if runs[0].time_loader or runs[0].overwrite:
        return
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
    clear_several(run.out, keep=())
    write_json(run.out / "settings.json", asdict(run.settings))
    note_request([run], run.out, fingerprint)


def clear_several(out: Path, keep: Sequence[str]) -> None:
    """Remove the runs of several seeds or folds in a folder, but some, and what was collected from them."""
    for name in _runs_in(out):
        if name in keep:
            continue
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
    there = _runs_in(out)
    if len(runs) == 1:
        return f"several runs ({', '.join(there)})" if there and runs[0].out == out else ""
    if _holds_a_run(out):
        return "a single run"
    others = [name for name in there if out / name not in {run.out for run in runs}]
    return f"other runs ({', '.join(others)})" if others else ""


def _runs_in(out: Path) -> list[str]:
    if not out.is_dir():
        return []
    folders = (path for path in out.iterdir() if path.is_dir() and FOLDER_OF_A_RUN.fullmatch(path.name))
    return sorted(path.name for path in folders if _holds_a_run(path))


def _holds_a_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("results.json", "checkpoints/last.ckpt"))


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
