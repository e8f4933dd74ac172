"""The plan of the ablations, what it does with runs that are there, and the tables: on small results made here."""

import csv
import json
import shutil
import time
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

import ablation_report
import ablations
from ablation_figures import COLOURS
from ablation_plan import Planned, plan, planned
from studies import COMPACT, DATASETS, REPORTED, STUDIES, VARIANTS
from tests.e2e.commands import write_acdc

# Stands in for examples/train_acdc.py: notes how it was called, and fails or leaves what was prepared for the run.
SCRIPT = """
import pathlib, shutil, sys
root, words = pathlib.Path(__file__).parents[1], sys.argv[1:]
out = pathlib.Path(words[words.index("--out") + 1])
with (root / "calls.txt").open("a") as file:
    file.write(" ".join(words) + "\\n")
print("training", out.name)
prepared = root / "prepared" / out.parent.name / out.name / "results.json"
if not prepared.exists():
    sys.exit("out of luck")
for path in prepared.parent.iterdir():
    shutil.copy(path, out / path.name)
"""


def options(out: Path, *words: str) -> Namespace:
    return ablations.parse(
        ["--data", "acdc=DIR", "--compact", "--out", str(out), "--results", str(out / "results"), *words]
    )


def result(
    run: Planned,
    dice: float,
    hd95: float | None = 5.0,
    fingerprint: str = "f",
    step: float | None = 2.0,
    device: str = "cpu",
) -> dict[str, Any]:
    """A results.json with the keys that the tables read; classes differ by a point."""
    known = DATASETS[run.dataset].benchmark
    scores = {name: dice + 0.01 * (i - (len(known.classes) - 1) / 2) for i, name in enumerate(known.classes)}

    def strict(dice: float) -> dict[str, Any]:
        distances = {} if known.intensity == "rgb" else {"hd95": {"mean": hd95 and hd95 + 10 * dice}}
        return {"dice": {"mean": dice}, **distances}

    if known.intensity == "rgb":
        names = ("iou", "dice", "accuracy", "specificity", "sensitivity")
        headline: dict[str, Any] = {name: dice + 0.01 * i for i, name in enumerate(names)}
        mean: dict[str, Any] = {"pooled": headline}
    else:
        headline = {"dice": dice, "hd95": hd95, "hd95_strict": hd95 and hd95 + 1}
        mean = {"strict": {"dice": dice}, "transunet": {"dice": dice + 0.1}}
    return {
        "settings": asdict(run.settings),
        "data": {
            "name": known.title,
            "split": "of a test",
            "cases": {"train": 40, "test": 40},
            "slices": {"train": 240},
            "fingerprint": fingerprint,
        },
        "execution": {},
        "environment": {"device": device},
        "training": {"epochs": 12},
        "parameters": 7,
        "duration_seconds": {"training": 100.0, "total": 120.0, "step": step},
        "test": {
            "headline": headline,
            "summary": {
                "hd95_unit_strict": "voxels",
                "mean": mean,
                "classes": {n: {"missed": 1, "strict": strict(value)} for n, value in scores.items()},
            },
        },
    }


def write(run: Planned, *figures: Any, **more: Any) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "results.json").write_text(json.dumps(result(run, *figures, **more)))
    losses = [(1 - figures[0]) * (1 + 2 / epoch) for epoch in range(1, 13)]
    lines = [f"{k},{x},{x / 2 if k % 2 == 0 else ''}" for k, x in enumerate(losses, start=1)]  # validated every second
    (run.folder / "metrics.csv").write_text("\n".join(["epoch,loss,val_loss", *lines]) + "\n")


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the stand-in for the training script."""
    (tmp_path / "root" / "examples").mkdir(parents=True)
    (tmp_path / "root" / "examples" / "train_acdc.py").write_text(SCRIPT)
    monkeypatch.setattr(ablations, "ROOT", tmp_path / "root")
    monkeypatch.setattr("medseg.training.network.slow_in_bfloat16", lambda: False)
    return tmp_path / "root"


def test_the_default_of_gca_is_one_run_of_all_studies(tmp_path: Path) -> None:
    asked = ablations.parse(["--data", "synapse=DIR", "--out", str(tmp_path)])
    runs = plan(asked)
    assert len({run.folder for run in runs}) == len(runs) == 4 * 14
    assert len({json.dumps(asdict(run.settings)) for run in runs}) == len(runs)
    assert [name for name, study in STUDIES.items() if "gca" in study.rows] == list(STUDIES)
    assert [run.number for run in runs] == sorted(run.number for run in runs)  # all of one before the next
    assert [run.number for run in runs if run.variant == "gca"] == [1, 2, 3, 4]
    assert {run.settings.seed for run in runs} == {10}
    some = plan(ablations.parse(["--data", "acdc=DIR", "--studies", "groups", "pool", "--seeds", "3"]))
    assert [run.variant for run in some] == ["gca", "gca-groups1", "gca-groups4", "gca-pool-avg", "gca-pool-max"]


def test_commands_and_settings(tmp_path: Path) -> None:
    run = planned("acdc", "original", 11, options(tmp_path))
    assert run.folder == tmp_path / "compact" / "acdc" / "original" / "seed11"
    assert " ".join(run.command("DIR")) == (
        "examples/train_acdc.py --data DIR --arch Unet --encoder resnet50 --size 128 --epochs 12 --lr 1e-3 "
        "--precision bf16-mixed --validate-every 2 --patience 20 --seed 11"
    )
    compact = {"size": 128, "epochs": 12, "lr": 1e-3, "precision": "bf16-mixed", "validate_every": 2, "patience": 20}
    paper = replace(DATASETS["acdc"].benchmark.settings, **compact)
    assert planned("acdc", "gca", 10, options(tmp_path)).settings == paper
    start = planned("acdc", "gca-identity", 10, options(tmp_path))
    assert start.settings == replace(paper, identity_init=True)
    assert start.options[:3] == ("--attention", "gca", "--identity-init")
    full = ablations.parse(["--data", "isic2018=DIR", "--out", str(tmp_path)])
    assert planned("isic2018", "gca", 10, full).command("DIR")[1:3] == ["--year", "2018"]
    assert planned("isic2018", "gca", 10, full).settings == replace(DATASETS["isic2018"].benchmark.settings, seed=10)
    assert planned("isic2018", "original", 10, full).settings.encoder == "resnet50"
    fold = planned("synapse", "gca-reduction8", 3, full)
    assert " ".join(fold.options) == "--attention gca --reduction 8 --fold 3 --seed 10"
    assert fold.folder == tmp_path / "paper" / "synapse" / "gca-reduction8" / "fold3"
    # Every variant of every study has its options, and nothing of the compact protocol is in the paper's.
    assert set(VARIANTS) == {name for study in STUDIES.values() for name in study.rows}
    assert not set(COMPACT) & set(planned("acdc", "gca", 10, full).options)


def test_options_of_the_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(options(tmp_path, "--", "--workers", "2"))[0].folder.is_relative_to(tmp_path / "compact")
    (run, *_) = plan(options(tmp_path, "--variants", "gca", "--", "--epochs", "36"))
    assert run.folder.is_relative_to(tmp_path / "compact-epochs36")
    assert run.collected == tmp_path / "results" / "ablations_compact-epochs36" / "acdc.json"
    assert run.settings.epochs == 36
    (run, *_) = plan(options(tmp_path, "--", "--no-augment", "--encoder", "mit/b0"))
    assert run.folder.is_relative_to(tmp_path / "compact-encodermit_b0-augmentFalse")
    for word in ("--seed=3", "--no-resume", "--attention", "--no-identity-init"):
        with pytest.raises(SystemExit):
            options(tmp_path, "--", word)
        assert f"{word} cannot stand after --" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        ablations.parse(["--data", "brats=DIR"])
    assert "wanted NAME=DIR" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["results.json", "settings.json"])
def test_a_run_with_other_settings_stops_everything(examples: Path, tmp_path: Path, name: str) -> None:
    run = planned("acdc", "se", 10, options(tmp_path))
    other = asdict(replace(run.settings, lr=1e-4))
    run.folder.mkdir(parents=True)
    (run.folder / name).write_text(json.dumps({"settings": other} if name == "results.json" else other))
    wanted = r"error: .*se/seed10 holds acdc, SE, seed 10 with other settings: lr is 0.0001, wanted 0.001; move it away"
    with pytest.raises(SystemExit, match=wanted):
        ablations.main(["--data", "acdc=DIR", "--compact", "--out", str(tmp_path)])
    assert not (examples / "calls.txt").exists()


def test_runs_collected_on_another_machine_are_done(
    examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their rows are all that is known of them: they are not repeated, and stay in the tables."""
    data, words = write_acdc(tmp_path / "acdc"), ["--variants", "none", "gca", "--seeds", "10"]
    first, _ = plan(options(tmp_path, "--out", str(tmp_path / "there"), *words))
    write(first, 0.7)
    collect(tmp_path, "--out", str(tmp_path / "there"))
    row = content(tmp_path)["runs"][0]
    _, second = plan(options(tmp_path, "--out", str(tmp_path / "here"), *words))
    write(replace(second, folder=examples / "prepared" / "gca" / "seed10"), 0.72)
    command = ["--data", f"acdc={data}", "--compact", "--out", str(tmp_path / "here"), *words]
    command += ["--results", str(tmp_path / "results")]
    ablations.main(command)
    printed = capsys.readouterr().out
    assert "Run 1 of 2: acdc, no attention, seed 10: is finished\nRun 2 of 2: acdc, GCA, seed 10\n" in printed
    assert not (tmp_path / "here" / "compact" / "acdc" / "none").exists()
    rows = content(tmp_path)["runs"]
    assert [(one["variant"], one["number"]) for one in rows] == [("none", 10), ("gca", 10)]
    assert rows[0] == row
    # Other data on this machine is the error that it is within one machine.
    write(second, 0.72, fingerprint="g")
    with pytest.raises(SystemExit, match="error: acdc: none 10 and gca 10 were made from different data"):
        ablations.main(command)
    assert content(tmp_path)["runs"] == rows
    # A setting that the row does not have was not there to be changed; any other must be equal.
    write(second, 0.72)
    found = content(tmp_path)
    del found["runs"][0]["settings"]["identity_init"]
    first.collected.write_text(json.dumps(found))
    assert first.state() == "done"
    found["runs"][0]["settings"]["epochs"] = 11
    first.collected.write_text(json.dumps(found))
    with pytest.raises(
        SystemExit, match=r"acdc\.json holds acdc, no attention, seed 10 with .*: epochs is 11, wanted 12"
    ):
        ablations.main(command)


def test_collecting_again_keeps_what_a_row_says_of_its_commit(tmp_path: Path) -> None:
    write(planned("acdc", "gca", 10, options(tmp_path)), 0.7)
    collect(tmp_path)
    found = content(tmp_path)
    found["runs"][0]["commit"] = "another"
    (tmp_path / "results" / "ablations_compact" / "acdc.json").write_text(json.dumps(found))
    collect(tmp_path)
    assert content(tmp_path)["runs"][0]["commit"] == "another"
    write(planned("acdc", "gca", 10, options(tmp_path)), 0.71)  # trained anew
    collect(tmp_path)
    assert content(tmp_path)["runs"][0]["commit"] != "another"


def test_emulated_precision_stops_everything(examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.training.network.slow_in_bfloat16", lambda: True)
    command = ["--data", "acdc=DIR", "--compact", "--out", str(tmp_path), "--results", str(tmp_path / "results")]
    with pytest.raises(SystemExit, match="error: --precision bf16-mixed on this processor"):
        ablations.main([*command, "--", "--accelerator", "cpu"])
    assert not (examples / "calls.txt").exists()


def test_several_jobs_and_a_limit_of_time(
    examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both start at once; the one that hangs is ended, the other collected, and the third not begun."""
    words = ["--variants", "none", "se", "gca", "--seeds", "10", "--jobs", "2"]
    hangs, finishes, _ = plan(options(tmp_path / "out", *words))
    write(replace(finishes, folder=examples / "prepared" / "se" / "seed10"), 0.7)
    script = examples / "examples" / "train_acdc.py"
    wait = "import sys, time\nif 'none' in sys.argv: time.sleep(60)\nif 'gca' in sys.argv: time.sleep(60)\n"
    script.write_text(wait + SCRIPT)
    command = ["--data", f"acdc={write_acdc(tmp_path / 'acdc')}", "--compact", "--out", str(tmp_path / "out"), *words]
    started = time.monotonic()
    ablations.main([*command, "--results", str(tmp_path / "results"), "--seconds", "8"])
    assert time.monotonic() - started < 30
    printed = capsys.readouterr().out
    assert "2 runs are not finished after 8 s; the same command resumes" in printed
    assert [run["variant"] for run in content(tmp_path)["runs"]] == ["se"]
    assert hangs.state() == "to do"


def test_finished_interrupted_and_failing_runs(
    examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--variants", "none", "se", "gca", "--seeds", "10"]
    asked = options(tmp_path / "out", *words)
    done, fails, interrupted = plan(asked)
    write(done, 0.7)
    interrupted.folder.mkdir(parents=True)
    (interrupted.folder / "settings.json").write_text(json.dumps(asdict(interrupted.settings)))
    write(replace(interrupted, folder=examples / "prepared" / "gca" / "seed10"), 0.72)
    data = write_acdc(tmp_path / "acdc")
    command = ["--data", f"acdc={data}", "--compact", "--out", str(tmp_path / "out"), *words]
    command += ["--results", str(tmp_path / "results")]
    with pytest.raises(SystemExit, match=r"error: 1 runs failed\n  acdc, SE, seed 10: .*se/seed10/train.log"):
        ablations.main(command)
    printed = capsys.readouterr().out
    assert "Run 1 of 3: acdc, no attention, seed 10: is finished\nRun 2 of 3: acdc, SE, seed 10\n" in printed
    assert "Run 3 of 3: acdc, GCA, seed 10: resumes\n" in printed
    calls = (examples / "calls.txt").read_text().splitlines()
    assert calls == [
        " ".join([*fails.command(str(data))[1:], "--out", str(fails.folder)]),
        " ".join([*interrupted.command(str(data))[1:], "--out", str(interrupted.folder), "--resume"]),
    ]
    assert (fails.folder / "train.log").read_text() == "training seed10\nout of luck\n"
    found = json.loads((tmp_path / "results" / "ablations_compact" / "acdc.json").read_text())
    assert [(run["variant"], run["number"]) for run in found["runs"]] == [("none", 10), ("gca", 10)]
    assert str(tmp_path) not in json.dumps(found)  # folders of one machine do not belong into results
    # A second call trains what failed, and nothing else.
    write(replace(fails, folder=examples / "prepared" / "se" / "seed10"), 0.71)
    ablations.main(command)
    assert len((examples / "calls.txt").read_text().splitlines()) == 3


def content(tmp_path: Path, protocol: str = "compact") -> dict[str, Any]:
    return json.loads((tmp_path / "results" / f"ablations_{protocol}" / "acdc.json").read_text())


def collect(tmp_path: Path, *words: str) -> None:
    ablations.main(["--collect", "--compact", "--out", str(tmp_path), "--results", str(tmp_path / "results"), *words])


def test_paired_differences_and_spreads(tmp_path: Path) -> None:
    asked = options(tmp_path)
    dice = {
        "none": (0.70, 0.72, 0.77),
        "se": (0.71, 0.74, 0.80),
        "gca": (0.72, 0.741, 0.789),
        "coord": (0.5, None, 0.6),
    }
    for variant, values in dice.items():
        for seed, value in zip((10, 11, 12), values, strict=True):
            if value is not None:
                write(planned("acdc", variant, seed, asked), value, None if seed == 12 and variant == "se" else 4.0)
    write(planned("acdc", "cbam", 13, asked), 0.9)  # a seed that nothing else has
    collect(tmp_path)
    found = content(tmp_path)
    none = found["variants"]["none"]["figures"]["dice"]
    assert (none["n"], none["mean"]) == (3, pytest.approx(0.73))
    assert none["std"] == pytest.approx(np.std(dice["none"], ddof=1))
    assert found["variants"]["none"]["classes"]["LV"]["mean"] == pytest.approx(0.74)
    assert found["variants"]["se"]["figures"]["hd95"]["n"] == 2  # the third run found nothing
    compared = {name: parts["figures"]["dice"] for name, parts in found["differences"]["none"].items()}
    for variant in ("se", "gca"):
        values = np.subtract(dice[variant], dice["none"])
        np.testing.assert_allclose(compared[variant]["values"], values)
        assert compared[variant]["std"] == pytest.approx(np.std(values, ddof=1))
        interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        np.testing.assert_allclose(compared[variant]["interval"], interval)
    # SE gains more in the mean, by differences of 1, 2 and 3 points; only GCA's, about 2 each time, exclude 0.
    assert (compared["se"]["significant"], compared["gca"]["significant"]) == (False, True)
    np.testing.assert_allclose(compared["coord"]["values"], [-0.2, -0.17])  # seeds 10 and 12
    assert compared["cbam"]["n"] == 0
    assert found["differences"]["none"]["se"]["figures"]["hd95"]["n"] == 2
    np.testing.assert_allclose(found["differences"]["se"]["gca"]["classes"]["RV"]["values"], [0.01, 0.001, -0.011])
    np.testing.assert_allclose(found["differences"]["none"]["gca"]["classes_hd95"]["LV"]["values"], [0.2, 0.21, 0.19])
    text = (tmp_path / "results" / "ablations_compact" / "acdc.md").read_text()
    assert "# Ablations: ACDC, compact protocol (not the paper's settings: no reproduction)" in text
    assert "encoder tu-resnet50, size 128, batch_size 8, epochs 12, lr 0.001" in text
    gain = "**+2.00 (+1.75 to +2.25)**"
    assert f"| GCA minus no attention | 3 | {gain} | +0.00 (+0.00 to +0.00) | +0.00 (+0.00 to +0.00) | " in text
    assert "| +2.00, +2.10, +1.90 | significant |" in text
    assert f"| GCA minus no attention | {gain} | {gain} | {gain} | **+0.20 (+0.18 to +0.22)** |" in text
    assert "| +1.00, +0.10, -1.10 | not significant (95 % CI contains 0) |" in text
    assert "| GCA minus CBAM |" not in text  # which have no seed in common
    assert "| *+ GCA: reported, Table 2* |  | 92.64 ± 0.27 | - | - | 1.09 ± 0.13 | 92.27 | 89.37 | 96.30 |" in text
    assert "HD95 strict (voxels)" in text
    with (tmp_path / "results" / "ablations_compact" / "acdc.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found["runs"]) == 12
    assert float(rows[0]["dice"]) == 0.7


def test_one_run_has_no_spread(tmp_path: Path) -> None:
    for variant, dice in (("none", 0.7), ("gca", 0.75)):
        write(planned("acdc", variant, 10, options(tmp_path)), dice)
    collect(tmp_path)
    found = content(tmp_path)
    assert found["variants"]["gca"]["figures"]["dice"]["std"] is None
    assert found["differences"]["none"]["gca"]["figures"]["dice"]["significant"] is None
    text = (tmp_path / "results" / "ablations_compact" / "acdc.md").read_text()
    assert "| + GCA | 1 | 75.00 | 6.00 | 85.00 | 5.00 |" in text
    assert "| GCA minus no attention | 1 | +5.00 | +0.00 | +0.00 | +5.00 | one run |" in text


def test_what_attention_costs(tmp_path: Path) -> None:
    asked = options(tmp_path)
    for seed, without, with_gca in ((10, 2.0, 2.2), (11, 3.0, 3.36), (12, 2.0, None)):
        write(planned("acdc", "none", seed, asked), 0.7, step=without)
        write(planned("acdc", "gca", seed, asked), 0.7, step=with_gca)
        write(planned("acdc", "se", seed, asked), 0.7, step=1.0, device="another")
    collect(tmp_path)
    found = content(tmp_path)
    np.testing.assert_allclose(found["cost"]["gca"]["percent_over_none"]["values"], [10, 12])
    assert found["cost"]["se"]["percent_over_none"]["n"] == 0  # another device
    text = (tmp_path / "results" / "ablations_compact" / "acdc.md").read_text()
    costs = (
        text.partition("### What attention costs in time")[2] or text.partition("## What attention costs in time")[2]
    )
    assert "| no attention | 3 | 2.33 ± 0.58 | 70 | - | - |" in costs  # 240 slices in batches of 8
    assert "| GCA | 2 | 2.78 ± 0.82 | 83 | +11.00 (-1.71 to +23.71) | not significant (95 % CI contains 0) |" in costs
    assert "| SE | 3 | 1.00 ± 0.00 | 30 | - | - |" in costs


def test_learning_curves(tmp_path: Path) -> None:
    asked = options(tmp_path)
    for variant, dice in (("none", 0.8), ("gca", 0.6)):
        for seed in (10, 11):
            write(planned("acdc", variant, seed, asked), dice + 0.01 * (seed - 10))
    collect(tmp_path)
    curve = content(tmp_path)["runs"][0]["curve"]
    assert curve["epoch"] == list(range(1, 13))
    assert curve["val_loss"][:4] == [None, pytest.approx(0.2), None, pytest.approx(0.15)]
    folder = tmp_path / "results" / "ablations_compact"
    assert "![Validation losses of every variant, by epoch](acdc_curves.png)" in (folder / "acdc.md").read_text()
    pixels = np.asarray(Image.open(folder / "acdc_curves.png").convert("RGB"))
    heights = {}
    for name in ("none", "gca"):
        colour = np.round(255 * np.array(COLOURS[name])).astype(int)
        rows, columns = np.nonzero((abs(pixels - colour) <= 1).all(2))
        rows = rows[columns < pixels.shape[1] / 2]  # not of the legend
        assert len(rows) > 100
        heights[name] = rows.mean()
    assert heights["gca"] < heights["none"]  # from the top: the loss of the worse one is higher
    (tmp_path / "compact" / "acdc" / "none" / "seed10" / "metrics.csv").unlink()
    assert ablation_report.curve(tmp_path / "compact" / "acdc" / "none" / "seed10" / "metrics.csv") is None


def test_runs_from_different_data_are_not_compared(tmp_path: Path) -> None:
    write(planned("acdc", "none", 10, options(tmp_path)), 0.7)
    write(planned("acdc", "gca", 10, options(tmp_path)), 0.7, fingerprint="g")
    with pytest.raises(SystemExit, match="error: acdc: none 10 and gca 10 were made from different data"):
        collect(tmp_path)
    assert not (tmp_path / "results").exists()


def test_folds_and_photographs(tmp_path: Path) -> None:
    asked = options(tmp_path)
    for fold in (1, 2):
        for variant, dice in (("none", 0.6), ("gca", 0.7), ("gca-groups1", 0.65)):
            write(planned("synapse", variant, fold, asked), dice + 0.01 * fold, fingerprint=f"fold {fold}")
    for seed in (10, 11):
        write(planned("isic2018", "gca", seed, asked), 0.8 + 0.01 * (seed - 10))
    collect(tmp_path)
    folder = tmp_path / "results" / "ablations_compact"
    synapse, isic = ((folder / f"{name}.md").read_text() for name in ("synapse", "isic2018"))
    assert "## Channel groups of GCA (Table 5)" in synapse
    assert "| *1 group: reported, Table 5* |  | 84.26 | - | - | 20.44 |" in synapse
    assert "Reduction ratio" not in synapse  # nothing of it is finished but the default
    assert "Start of GCA" not in synapse
    assert "| GCA minus GCA, 1 group | 2 | **+5.00 (+5.00 to +5.00)** |" in synapse
    assert "| difference by class | Dice % " in synapse
    assert "|  | n | mIoU % | DSC % | Acc % | Spe % | Sen % | Dice % lesion |" in isic
    assert "| + GCA | 2 | 80.50 ± 0.71 | 81.50 ± 0.71 |" in isic
    assert "by class |" not in isic  # there is one
    for name in ("synapse", "isic2018"):
        assert np.asarray(Image.open(folder / f"{name}.png").convert("L")).std() > 10
    assert not (folder / "acdc.json").exists()


def test_reported_figures_agree_with_one_another() -> None:
    for dataset in ("acdc", "synapse"):
        for name in ("original", "gca"):
            reported = REPORTED[dataset][name]
            assert np.mean(list(reported.classes.values())) == pytest.approx(reported.mean["dice"], abs=0.011)


def test_dry_run_with_finished_runs(examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", f"acdc={write_acdc(tmp_path / 'acdc')}", "--compact", "--out", str(tmp_path / "out")]
    words += ["--results", str(tmp_path / "results"), "--variants", "none", "gca", "--seeds", "10"]
    first, second = plan(ablations.parse(words))
    write(first, 0.7)
    second.folder.mkdir(parents=True)
    (second.folder / "settings.json").write_text(json.dumps(asdict(second.settings)))
    ablations.main([*words, "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["acdc,", "no", "attention,", "seed", "10", "done", "12", "epochs"]
    assert "resumable" in lines[1]
    assert "2.0 min (median of finished runs: 1)" in lines[1]
    assert lines[2] == "2 runs: 1 done, 1 resumable. Time: 0.0 h"
    assert not (examples / "calls.txt").exists()
    # Nothing is left here of the finished run but its row, whose time still counts.
    ablations.main([*words, "--collect"])
    shutil.rmtree(first.folder)
    capsys.readouterr()
    ablations.main([*words, "--dry-run"])
    assert capsys.readouterr().out.splitlines() == lines


def test_dry_run_without_finished_runs(examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It lists at once, but for folders that cannot be trained on, and times steps if it is asked to."""
    data = write_acdc(tmp_path / "acdc")
    head = ["--compact", "--out", str(tmp_path / "out"), "--variants", "gca", "--seeds", "10", "--dry-run"]
    head += ["--results", str(tmp_path / "results")]
    tail = ["--", "--encoder", "tu-resnet10t", "--size", "32", "--batch-size", "4", "--precision", "32-true"]
    ablations.main(["--data", f"acdc={data}", *head, *tail])
    assert capsys.readouterr().out.endswith("1 runs: 1 to do. Time: 0.0 h and 1 unknown; --time measures\n")
    ablations.main(["--data", f"acdc={data}", *head, "--time", *tail])
    printed = capsys.readouterr().out
    assert "at most, without validation and test" in printed
    assert "12 slices)" in printed  # three patients with four
    with pytest.raises(SystemExit, match=r"error: no data folder .*nowhere; give --data"):
        ablations.main(["--data", f"acdc={tmp_path / 'nowhere'}", *head, *tail])
    assert not (examples / "calls.txt").exists()
    with pytest.raises(SystemExit):
        options(tmp_path, "--time")
    assert "--time is for --dry-run" in capsys.readouterr().err


def test_real_training(test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = ["--data", f"acdc={test_data / 'acdc'}", "--variants", "none", "--seeds", "10", "--out", str(tmp_path)]
    words += ["--results", str(tmp_path / "results"), "--compact", "--", "--precision", "32-true"]
    ablations.main([*words, "--encoder", "tu-resnet10t", "--limit", "2", "--size", "32", "--epochs", "2"])
    name = "compact-encodertu-resnet10t-size32-epochs2-precision32-true-limit2"
    found = content(tmp_path, name)
    run = json.loads((tmp_path / name / "acdc" / "none" / "seed10" / "results.json").read_text())
    assert found["variants"]["none"]["figures"]["dice"]["values"] == [run["test"]["headline"]["dice"]]
    assert found["runs"][0]["settings"]["limit"] == 2
    assert found["protocol"] == name
    assert found["runs"][0]["classes_hd95"].keys() == {"RV", "Myo", "LV"}
    assert found["runs"][0]["duration_seconds"]["step"] > 0
    curve = found["runs"][0]["curve"]
    assert curve["epoch"] == [1, 2]
    assert curve["val_loss"] == [None, pytest.approx(run["training"]["best_val_loss"], abs=1e-6)]
    assert ablation_report.heading(found).endswith("(not the paper's settings: no reproduction)")
