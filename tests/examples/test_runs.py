"""What a command line asks for, and what its output folder allows: nothing here trains, and nothing loads torch."""

import argparse
import errno
import json
import os
import signal
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from medseg.command_line.experiment import main, script_options
from medseg.command_line.options import parser
from medseg.command_line.runs import (
    Request,
    Run,
    check_out,
    clear_several,
    clear_single,
    note_request,
    prepare_out,
    runs_from,
)
from medseg.data.acdc import ACDC
from medseg.data.phantom import write_phantoms
from medseg.data.synapse import SYNAPSE
from medseg.errors import RunError
from medseg.files import check_folder, remedy, write_json, write_text, writing
from medseg.settings import Settings, check_logger


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), train=3, test=2, seed=0)


def runs(out: Path, *words: object, preset: Settings = SYNAPSE.settings) -> list[Run]:
    """The runs of a command line, checked against what is in ``out``."""
    options = parser(SYNAPSE, "").parse_args(["--out", str(out), "--data", "DIR", *map(str, words)])
    found = runs_from(options, preset, SYNAPSE.name)
    check_out(found, out)
    return found


def finish(run: Run) -> None:
    """Leave in a run's folder what tells that it is finished."""
    prepare_out(run)
    write_json(run.out / "results.json", {})


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ((), (), "already holds a run; pass --resume to go on with it, --overwrite to replace it, or another"),
        ((), ("--seed", 1, 2), "holds a single run, which these runs would mix with; give another --out, --overwrite"),
        ((), ("--cross-validate",), "holds a single run"),
        (("--seed", 1, 2), (), r"holds several runs \(seed1, seed2\), which this run would mix with"),
        (("--seed", 1, 2), ("--seed", 3), r"holds several runs \(seed1, seed2\)"),
        (("--seed", 1, 2), ("--seed", 2, 3), r"holds other runs \(seed1\)"),
        (("--seed", 1, 2), ("--cross-validate", "--folds", 2), r"holds other runs \(seed1, seed2\)"),
        (("--cross-validate", "--folds", 2), ("--fold", 1), r"holds several runs \(fold1, fold2\)"),
        (("--cross-validate", "--folds", 2), ("--seed", 1, 2), r"holds other runs \(fold1, fold2\)"),
        (("--seed", 1, 2), ("--seed", 1, 2, 3), r"seed1 already holds a run"),
        (("--seed", 1, 2), ("--resume", "--seed", 2, 3), r"or with --resume the same seeds and folds"),
        ((), ("--resume", "--lr", 0.1), r"cannot resume .* with other settings: lr was 0\.0001, is 0\.1"),
        ((), ("--resume", "--seed", 11), "with other settings: seed was 10, is 11"),
        (("--seed", 1, 2), ("--resume", "--seed", 1, 2, "--lr", 0.1), r"seed1 with other settings: lr"),
    ],
)
def test_runs_that_would_be_lost_or_mixed_are_refused(
    tmp_path: Path, first: tuple[object, ...], second: tuple[object, ...], message: str
) -> None:
    for run in runs(tmp_path / "out", *first):
        finish(run)
    with pytest.raises(RunError, match=message):
        runs(tmp_path / "out", *second)
    if "--resume" not in second:
        runs(tmp_path / "out", *second, "--overwrite")


def test_more_seeds_may_be_added_to_finished_ones(tmp_path: Path) -> None:
    for run in runs(tmp_path, "--seed", 1, 2):
        finish(run)
    assert [run.finished for run in runs(tmp_path, "--resume", "--seed", 1, 2, 3)] == [True, True, False]


def test_what_is_replaced_goes_and_what_is_not_made_by_runs_stays(tmp_path: Path) -> None:
    for run in (*runs(tmp_path / "seeds", "--seed", 1, 2), *runs(tmp_path / "single")):
        finish(run)
    write_text(tmp_path / "seeds" / "seed1" / "notes.txt", "mine")
    write_text(tmp_path / "seeds" / "runs.json", "{}")
    clear_several(tmp_path / "seeds")
    assert [path.name for path in (tmp_path / "seeds").rglob("*")] == ["seed1", "notes.txt"]
    clear_single(tmp_path / "single")
    assert not list((tmp_path / "single").iterdir())


def test_resume_alone_asks_for_what_was_asked_for(tmp_path: Path) -> None:
    words = ("--seed", 3, 4, "--cross-validate", "--folds", 2, "--lr", 0.01, "--class-weights", *range(9))
    asked = runs(tmp_path, *words, "--devices", 2, "--keep-checkpoints", "--logger", "csv", "--loss", "focal")
    note_request(asked, tmp_path)
    prepare_out(asked[0])
    again = runs_from(parser(SYNAPSE, "").parse_args(["--resume", "--out", str(tmp_path)]), Settings(), "synapse")
    assert [replace(run, resume=False, data=asked[0].data) for run in again] == asked
    assert again[0].data == Path("DIR").resolve()
    with pytest.raises(RunError, match="holds a run on synapse, not on acdc; give another --out"):
        runs_from(parser(ACDC, "").parse_args(["--resume", "--out", str(tmp_path)]), Settings(), "acdc")


def test_resume_before_anything_was_written_begins(tmp_path: Path) -> None:
    assert runs(tmp_path / "out", "--resume", "--lr", 0.1)[0].settings.lr == 0.1
    # Stopped before the first epoch was over: there is nothing to lose, so nothing is refused.
    prepare_out(runs(tmp_path / "out", "--lr", 0.1)[0])
    runs(tmp_path / "out", "--lr", 0.2)


def test_a_damaged_note_of_what_was_asked_for(tmp_path: Path) -> None:
    write_json(tmp_path / "request.json", {"what": 1})
    with pytest.raises(RunError, match=r"request\.json is not what a run notes there"):
        Request.noted(tmp_path)


@pytest.mark.parametrize("words", [(), ("--fold", 2, "--compile", "--workers", 3), ("--no-augment", "--limit", 2)])
def test_the_command_of_a_run_asks_for_it(tmp_path: Path, words: tuple[object, ...]) -> None:
    run = runs(tmp_path / "out", "--seed", 7, "--score-training", *words)[0]
    note_request([run], tmp_path)
    command = run.command(tmp_path / "request.json")
    assert runs_from(parser(SYNAPSE, "").parse_args(command), Settings(), "synapse") == [run]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seed", 1, 2, 1), "--seed names 1 more than once"),
        (("--cross-validate", "--fold", 1), "--fold trains one fold and --cross-validate all of them"),
        (("--fold", 5), "there is no fold 5 of 4; --fold counts from 1 to --folds"),
        (("--resume", "--overwrite"), "--resume goes on with a run and --overwrite replaces it; give one of them"),
        (("--test-only", "--resume"), "give neither --resume nor --overwrite"),
        (("--test-only",), "there is no finished run in .* to test again"),
        (("--lr", 1e-7), "--min-lr 1e-06, the last learning rate, is above --lr 1e-07, the first"),
        (("--devices", 3), "--batch-size 8 cannot be divided among 3 processes"),
        (("--attention", "se", "--pool", "max"), "--pool is for --attention gca, not for se; leave it out"),
        (("--attention", "coord", "--groups", 4), "--groups is for --attention gca, not for coord"),
        (("--attention", "none", "--reduction", 4), "--reduction is for --attention gca and coord and cbam and se"),
        (("--attention", "none", "--identity-init"), "--identity-init says how attention starts, and there is none"),
        (("--arch", "Unet", "--groups", 2), "--groups is for --attention gca, not for none"),
        (("--arch", "Unet", "--attention", "gca"), "attention is for --arch gca-resunet, not Unet"),
    ],
)
def test_what_cannot_end_well_is_refused(tmp_path: Path, words: tuple[object, ...], message: str) -> None:
    with pytest.raises(RunError, match=message):
        runs(tmp_path, *words)


def test_pretrained_encoders_start_behind_an_identity(tmp_path: Path) -> None:
    weights = ("--encoder-weights", "imagenet")
    assert runs(tmp_path, *weights)[0].settings.identity_init
    assert not runs(tmp_path, *weights, "--no-identity-init")[0].settings.identity_init
    assert not runs(tmp_path, *weights, "--attention", "none")[0].settings.identity_init
    assert runs(tmp_path)[0].settings.encoder_weights is None


def test_settings_of_a_run_before_an_option_was_added(tmp_path: Path) -> None:
    content = json.loads(json.dumps(vars(Settings())))
    for name in ("loss", "class_weights", "encoder_weights"):
        del content[name]
    assert Settings.from_json(content, "settings.json") == Settings()
    with pytest.raises(RunError, match=r"does not hold the settings .*; give the settings\.json of a run"):
        Settings.from_json({"lr": 1.0}, tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--class-weights", 1, 2), "--class-weights got 2, wanted 9: background, aorta, gallbladder"),
        (("--cross-validate", "--folds", 6), "5 patients cannot be divided into 6 folds"),
        (("--logger", "mlflow"), "--logger mlflow needs a package that is not installed: pip install mlflow"),
        (("--data", "nowhere"), "no data folder nowhere"),
    ],
)
def test_refused_before_the_first_training(
    phantoms: Path, tmp_path: Path, words: tuple[object, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medseg.settings.find_spec", lambda name: None if name == "mlflow" else object())
    monkeypatch.setattr("subprocess.run", None)
    with pytest.raises(SystemExit, match=message):
        main(SYNAPSE, "", ["--out", str(tmp_path / "out"), "--data", str(phantoms), *map(str, words)])
    assert not (tmp_path / "out").exists()


def test_loggers_that_are_there() -> None:
    for name in ("tensorboard", "csv", "none"):
        check_logger(name)


def test_script_options_are_noted_and_given_back(tmp_path: Path) -> None:
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--year", type=int, default=2018)
    own.add_argument("--classes", nargs="+")
    options = script_options(own, ["--year", "2017", "--lr", "1", "--classes", "a", "b"])
    assert options.words == ["--year=2017", "--classes", "a", "b"]
    run = replace(runs(tmp_path)[0], script_options=tuple(options.words))
    note_request([run], tmp_path)
    assert script_options(own, ["--resume", "--out", str(tmp_path)]).year == 2017
    assert script_options(own, ["--resume", "--out", str(tmp_path), "--year", "2016"]).year == 2016
    assert script_options(own, ["--out", str(tmp_path)]).year == 2018


def test_an_output_folder_that_cannot_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(RunError, match=r"--out .* cannot be a folder, since .*file is a file; choose"):
            check_folder(out, "--out")
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(RunError, match=r"you may not write in .*; choose another --out"):
        check_folder(tmp_path / "out", "--out")


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free the disk or choose another --out"),
        (errno.EROFS, "choose another --out, where you may write"),
        (errno.EIO, "choose another --out"),
    ],
)
def test_the_remedy_fits_the_error(number: int, advice: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"^cannot write {tmp_path}") as raised, writing(tmp_path):
        raise OSError(number, "no")
    assert remedy(raised.value, "--out") == advice


def test_other_options_of_the_script_are_not_resumed(tmp_path: Path) -> None:
    """They decide the data set, e.g. its classes, and are no settings."""
    (run,) = runs(tmp_path)
    finish(replace(run, script_options=("--classes", "lesion")))
    with pytest.raises(RunError, match=r"by other options: they were --classes lesion, are --classes nevus; give"):
        check_out([replace(run, script_options=("--classes", "nevus"), resume=True)], tmp_path)
    check_out([replace(run, script_options=("--classes", "lesion"), resume=True)], tmp_path)


def test_folders_and_values_that_begin_with_a_dash_are_noted_as_they_can_be_read(tmp_path: Path) -> None:
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--splits", type=Path)
    own.add_argument("--patient")
    words = script_options(own, ["--splits", "lists", "--patient=-(P[0-9]+)-"]).words
    assert words == [f"--splits={Path('lists').resolve()}", "--patient=-(P[0-9]+)-"]
    assert own.parse_args(words).patient == "-(P[0-9]+)-"


def test_the_loader_is_timed_for_one_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--time-loader measures the loading of one run; give one --seed"):
        runs(tmp_path, "--seed", 1, 2, "--time-loader")


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("attention", "eca", "one of gca, coord, cbam, se, none"), ("loss", "bce", "one of ce"),
        ("epochs", "5", "int"), ("epochs", 0, "1 at least"), ("epochs", True, "int"), ("size", 16, "32 at least"),
        ("lr", None, "float"), ("lr", -1, "0 at least"), ("groups", 1.5, "int or null"), ("fold", 0, "1 at least"),
        ("class_weights", 5, "a list of numbers from 0"), ("class_weights", [1, "2"], "a list of numbers from 0"),
        ("augment", 1, "bool"), ("encoder", None, "str"), ("pool", "mean", "one of avg, max"),
    ],
)  # fmt: skip
def test_settings_that_were_edited_are_checked(name: str, value: object, wanted: str) -> None:
    content = {**asdict(Settings()), name: value}
    with pytest.raises(RunError, match=rf"settings\.json has {name} .*; wanted {wanted}"):
        Settings.from_json(content, "settings.json")


def test_settings_are_read_as_they_were_written() -> None:
    for settings in (Settings(), Settings(groups=4, class_weights=(1, 0.5), lr=1, fold=2, pool="max", augment=False)):
        assert Settings.from_json(json.loads(json.dumps(asdict(settings))), "settings.json") == settings


@pytest.mark.parametrize("status", [0, 1])
def test_a_run_without_results_has_failed_whatever_its_status(
    tmp_path: Path, phantoms: Path, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was ended by a signal may have."""
    calls: list[list[str]] = []

    def run(command: list[str]) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr("medseg.command_line.experiment.subprocess.run", run)
    with pytest.raises(SystemExit, match=r"seed1 failed; the finished ones are kept, go on with --resume"):
        main(SYNAPSE, "", ["--data", str(phantoms), "--out", str(tmp_path / "out"), "--seed", "1", "2"])
    assert len(calls) == 1


def test_what_interrupts_an_overwrite_leaves_nothing_that_could_be_taken_for_its_result(
    tmp_path: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--data", str(phantoms), "--out", str(tmp_path), "--seed", "1", "2"]
    for run in runs(tmp_path, "--seed", 1, 2):
        finish(run)

    def interrupt(command: list[str]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)  # as a cluster ends a job

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("medseg.command_line.experiment.subprocess.run", interrupt)
    with pytest.raises(SystemExit, match="interrupted; go on with --resume"):
        main(SYNAPSE, "", [*words, "--overwrite"])
    assert not any(run.finished for run in runs(tmp_path, "--resume", "--seed", 1, 2))
    assert signal.getsignal(signal.SIGTERM) == before


def test_weights_of_nothing_are_refused(tmp_path: Path, phantoms: Path) -> None:
    with pytest.raises(SystemExit, match="--class-weights are all 0, so there would be no loss"):
        main(SYNAPSE, "", ["--data", str(phantoms), "--out", str(tmp_path), "--class-weights", *["0"] * 9])
