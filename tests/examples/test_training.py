"""Schedule, validation, early stopping and resuming, on a network of one convolution."""

import math
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from medseg.data.dataset import Case, Volume
from medseg.errors import RunError
from medseg.settings import Execution, Settings
from medseg.training.losses import cross_entropy, dice_loss, dice_sums
from medseg.training.network import check_precision, precision_hint
from medseg.training.slices import Draw, SliceDataset, Slices
from medseg.training.trainer import EpochReport, SegmentationTask, Training, duration, make_logger, train
from medseg.training.transforms import Augmentation

SETTINGS = Settings(size=32, batch_size=4, epochs=6, lr=1e-2, min_lr=1e-4, validate_every=2, deterministic=False)
CPU = Execution(accelerator="cpu")


def dataset(cases: int, seed: int, augmentation: Augmentation | None = None) -> SliceDataset:
    """Squares on noise, brighter than it; three slices a case."""

    def read(number: int) -> Volume:
        rng = np.random.default_rng((seed, number))
        label = np.zeros((3, 32, 32), np.uint8)
        top, left = rng.integers(2, 20, 2)
        label[:, top : top + 10, left : left + 10] = 1
        image = (0.3 * label + rng.uniform(0, 0.6, label.shape)).astype(np.float32)
        return Volume(f"case{number}", image[:, None], label)

    listed = [Case(f"case{n}", f"case{n}", partial(read, n)) for n in range(cases)]
    return SliceDataset(listed, 32, augmentation=augmentation)


class Network(nn.Sequential):
    """With dropout, whose random numbers a resumed training has to repeat."""

    def __init__(self, dropout: float) -> None:
        torch.manual_seed(1)
        super().__init__(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(8, 2, 1))


Train = Callable[..., tuple[SegmentationTask, Training]]


@pytest.fixture
def run(tmp_path: Path) -> Train:
    def run(
        settings: Settings = SETTINGS,
        *,
        out: str = "out",
        resume: bool = False,
        validation: int = 2,
        workers: int = 0,
        execution: Execution = CPU,
        dropout: float = 0.3,
    ) -> tuple[SegmentationTask, Training]:
        training = dataset(5, 0, Augmentation(32, colour=False))
        slices = Slices(training, dataset(validation, 1), batch_size=settings.batch_size, seed=3, workers=workers)
        task = SegmentationTask(Network(dropout), settings, slices.steps_per_epoch)
        (tmp_path / out).mkdir(exist_ok=True)
        return task, train(task, slices, settings, execution, out=tmp_path / out, resume=resume)

    return run


class PowerCutError(RuntimeError):
    pass


def stop_after(epochs: int, patch: pytest.MonkeyPatch) -> None:
    """End training in the first step after that many epochs."""
    step = SegmentationTask.training_step

    def training_step(task: SegmentationTask, *batch: object) -> torch.Tensor:
        if task.current_epoch == epochs:
            raise PowerCutError
        return step(task, *batch)  # type: ignore[arg-type]

    patch.setattr(SegmentationTask, "training_step", training_step)


def test_cosine_learning_rate_validation_and_best_checkpoint(run: Train, tmp_path: Path) -> None:
    task, training = run()
    metrics = pd.read_csv(tmp_path / "out" / "metrics.csv")
    steps = 15 // 4  # the last three slices of an epoch do not fill a batch
    assert list(metrics["step"]) == [steps * epoch for epoch in range(1, 7)]
    cosine = [1e-4 + (1e-2 - 1e-4) * (1 + math.cos(math.pi * epoch / 6)) / 2 for epoch in range(1, 7)]
    np.testing.assert_allclose(metrics["lr"], cosine, rtol=1e-6)
    assert list(metrics["val_loss"].notna()) == [False, True] * 3
    assert (training.epochs, training.stopped_early) == (6, False)
    best = metrics.loc[metrics["val_loss"].idxmin()]
    # pandas before 3 reads numbers to within the last digit
    assert (training.best_epoch, training.best_val_loss) == (best["epoch"], pytest.approx(best["val_loss"], rel=1e-12))
    # The network that is left has that loss over all validation slices as one batch.
    slices = dataset(2, 1)
    images, labels = (torch.stack(tensors) for tensors in zip(*(slices[Draw(i, 0)] for i in range(6)), strict=True))
    task.eval()
    with torch.inference_mode():
        logits = task(images)
        loss = cross_entropy(logits, labels) + dice_loss(dice_sums(logits, labels))
    assert float(loss) == pytest.approx(training.best_val_loss, rel=1e-5)


def test_too_few_epochs_for_a_validation_validate_the_last(run: Train, tmp_path: Path) -> None:
    _, training = run(replace(SETTINGS, epochs=3, validate_every=5))
    assert training.best_epoch == 3
    metrics = pd.read_csv(tmp_path / "out" / "metrics.csv")
    assert list(metrics["val_loss"].notna()) == [False, False, True]
    assert metrics["val_dice"].between(0, 1).iloc[-1]


def test_without_a_terminal_every_epoch_is_a_line(run: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run(replace(SETTINGS, epochs=4))
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert "\r" not in output.out + output.err
    assert [line.split(":")[0] for line in lines] == [f"Epoch {epoch}/4" for epoch in (1, 2, 3, 4)]
    number = r"\d+\.\d{4}"
    assert re.fullmatch(rf"Epoch 1/4: loss {number}, lr 0\.0086, \d+\.\d s, 0:00:\d\d left", lines[0])
    assert re.fullmatch(
        rf"Epoch 2/4: loss {number}, val_loss {number}, val_dice {number} \(best so far, kept\), .*", lines[1]
    )
    assert lines[3].endswith("0:00:00 left")


def test_on_a_terminal_there_is_a_bar_and_a_line_when_the_network_is_kept(
    run: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medseg.training.trainer.on_terminal", lambda: True)
    monkeypatch.setattr("medseg.training.trainer.on_terminal", lambda: True)
    run(replace(SETTINGS, epochs=2))
    output = capsys.readouterr()
    both = output.out + output.err
    assert "Epoch 1:" in both  # of the bar, whose epochs begin at 0
    assert "val_loss" in both
    assert "Epoch 1/2" not in both
    assert both.count("(best so far, kept)") == 1


def test_early_stopping_is_told(run: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run(replace(SETTINGS, lr=1e-9, min_lr=1e-10, validate_every=1, patience=2, epochs=50))
    lines = capsys.readouterr().out.splitlines()
    assert "(not better)" in lines[2] or "kept" in lines[2]
    assert re.fullmatch(
        r"Stopped early after epoch 3 of 50: 2 validations without improvement \(--patience\); the best was epoch "
        r"\d, val_loss \d\.\d{4}",
        lines[3],
    )


def test_the_time_that_is_left() -> None:
    assert [duration(seconds) for seconds in (0.4, 61, 3 * 3600 + 62)] == ["0:00:00", "0:01:01", "3:01:02"]


@pytest.mark.parametrize(("logger", "left"), [("csv", "csv/metrics.csv"), ("none", None)])
def test_loggers(run: Train, tmp_path: Path, logger: str, left: str | None) -> None:
    run(replace(SETTINGS, epochs=1), execution=replace(CPU, logger=logger))
    assert not (tmp_path / "out" / "tensorboard").exists()
    if left:
        assert "val_loss" in (tmp_path / "out" / left).read_text()


@pytest.mark.parametrize(("logger", "kind"), [("wandb", "WandbLogger"), ("mlflow", "MLFlowLogger")])
def test_loggers_of_other_packages(tmp_path: Path, logger: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr("medseg.settings.find_spec", lambda name: object())
    monkeypatch.setattr(f"lightning.pytorch.loggers.{kind}", lambda **options: given.update(options) or "logger")
    assert make_logger(logger, tmp_path / "acdc" / "seed1") == "logger"
    assert str(given["save_dir"]).startswith(str(tmp_path / "acdc" / "seed1"))
    assert "seed1" in given.values()
    assert "acdc" in given.values()


@pytest.mark.parametrize("loss", ["focal+dice", "dice"])
def test_other_losses_train_and_resume(run: Train, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SETTINGS, loss=loss, class_weights=(1, 5), epochs=3)
    whole, _ = run(settings, out="whole")
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(PowerCutError):
            run(settings, out="parts")
    parts, _ = run(settings, out="parts", resume=True)
    assert torch.equal(whole.model[0].weight, parts.model[0].weight)  # type: ignore[index, union-attr]


def test_early_stopping_holds_when_resumed(run: Train) -> None:
    # Steps so small that no validation is better than the first by the 1e-4 that count.
    settings = replace(SETTINGS, lr=1e-9, min_lr=1e-10, validate_every=1, patience=2, epochs=50)
    task, training = run(settings)
    assert (training.epochs, training.stopped_early) == (3, True)
    resumed_task, resumed = run(settings, resume=True)
    assert (resumed.epochs, resumed.stopped_early, resumed.best_epoch) == (3, True, training.best_epoch)
    for one, other in zip(task.parameters(), resumed_task.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_patience_of_a_resumed_training_goes_on_counting(run: Train, tmp_path: Path) -> None:
    settings = replace(SETTINGS, lr=1e-9, min_lr=1e-10, validate_every=1, patience=4, epochs=50)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(PowerCutError):
            run(settings)
    _, resumed = run(settings, resume=True)
    assert (resumed.epochs, resumed.stopped_early) == (5, True)
    assert list(pd.read_csv(tmp_path / "out" / "metrics.csv")["epoch"]) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("epochs", "workers"), [(1, 0), (2, 0), (5, 0), (3, 2)])
def test_resuming_gives_the_weights_of_an_uninterrupted_training(
    run: Train, tmp_path: Path, epochs: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, training = run(out="whole")
    with monkeypatch.context() as patch:
        stop_after(epochs, patch)
        with pytest.raises(PowerCutError):
            run(out="parts")
    parts, resumed = run(out="parts", resume=True, workers=workers)
    for (name, one), other in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert resumed == training
    files = [(tmp_path / out / "metrics.csv").read_text() for out in ("whole", "parts")]
    assert files[0] == files[1]


@pytest.mark.parametrize("resumed", [False, True])
def test_channels_last_changes_nothing_but_rounding(
    run: Train, tmp_path: Path, resumed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one go, and where a training goes on in the other memory format, whose order the checkpoint does not have."""
    expected, _ = run(out="NCHW", dropout=0)  # which draws in the order of memory
    if resumed:
        with monkeypatch.context() as patch:
            stop_after(3, patch)
            with pytest.raises(PowerCutError):
                run(out="NHWC", dropout=0)
    seen = []
    step = SegmentationTask.training_step

    def training_step(task: SegmentationTask, *batch: object) -> torch.Tensor:
        seen.append(task.model[0].weight.is_contiguous(memory_format=torch.channels_last))  # type: ignore[index, union-attr]
        return step(task, *batch)  # type: ignore[arg-type]

    monkeypatch.setattr(SegmentationTask, "training_step", training_step)
    task, _ = run(out="NHWC", resume=resumed, dropout=0, execution=replace(CPU, channels_last=True))
    assert all(seen)
    losses = [pd.read_csv(tmp_path / out / "metrics.csv")["loss"] for out in ("NCHW", "NHWC")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    for one, other in zip(expected.parameters(), task.parameters(), strict=True):
        assert other.is_contiguous()
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_seconds_per_step(run: Train) -> None:
    _, training = run()
    assert training.seconds_per_step is not None
    assert 0 < training.seconds_per_step < 60
    _, again = run(resume=True)  # nothing is left to train
    assert again.seconds_per_step is None


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_precision_that_a_processor_emulates_is_refused(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.training.network.slow_in_bfloat16", lambda: True)
    with pytest.raises(
        RunError, match=rf"--precision {precision} on this processor .*; train with --precision 32-true"
    ):
        check_precision(precision, "cpu")
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    with pytest.raises(RunError, match="bfloat16 without AVX-512"):
        check_precision(precision, "auto")
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    check_precision(precision, "auto")
    check_precision(precision, "gpu")
    check_precision("32-true", "cpu")
    monkeypatch.setattr("medseg.training.network.slow_in_bfloat16", lambda: False)
    check_precision(precision, "cpu")


def test_a_gpu_with_bfloat16_is_hinted_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: not including_emulation)
    assert "--precision bf16-mixed is faster" in str(precision_hint("32-true", "auto"))
    assert precision_hint("bf16-mixed", "auto") is None
    assert precision_hint("32-true", "cpu") is None
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: False)
    assert precision_hint("32-true", "gpu") is None


def test_another_seed_gives_other_weights(run: Train) -> None:
    one, _ = run(out="one")
    other, _ = run(replace(SETTINGS, seed=SETTINGS.seed + 1), out="other")  # of dropout; the slices keep theirs
    assert not torch.equal(one.model[0].weight, other.model[0].weight)  # type: ignore[index, union-attr]


def test_without_validation_the_last_network_is_kept(run: Train, tmp_path: Path) -> None:
    task, training = run(validation=0)
    assert (training.epochs, training.best_epoch, training.best_val_loss) == (6, None, None)
    assert not (tmp_path / "out" / "checkpoints" / "best.ckpt").exists()
    last = torch.load(tmp_path / "out" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, value in task.state_dict().items():
        assert torch.equal(value, last[name])


def test_checkpoints_hold_nothing_that_is_pickled(run: Train, tmp_path: Path) -> None:
    run(replace(SETTINGS, epochs=2))
    for name in ("last.ckpt", "best.ckpt"):
        torch.load(tmp_path / "out" / "checkpoints" / name, weights_only=True)


@pytest.mark.parametrize(
    ("execution", "message"),
    [
        (Execution(accelerator="cpu", devices="some"), "--devices some"),
        (Execution(accelerator="cpu", devices="0"), "--devices 0"),
        (Execution(accelerator="cpu", strategy="dpp"), "--strategy dpp.*invalid strategy name"),
    ],
)
def test_impossible_executions_are_refused(tmp_path: Path, execution: Execution, message: str) -> None:
    slices = Slices(dataset(2, 0), dataset(1, 1), batch_size=4, seed=3, workers=0)
    task = SegmentationTask(Network(0.3), SETTINGS, slices.steps_per_epoch)
    with pytest.raises(RunError, match=rf"Lightning cannot train with .*{message}"):
        train(task, slices, SETTINGS, execution, out=tmp_path, resume=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_no_gpu(tmp_path: Path) -> None:
    slices = Slices(dataset(2, 0), dataset(1, 1), batch_size=4, seed=3, workers=0)
    task = SegmentationTask(Network(0.3), SETTINGS, slices.steps_per_epoch)
    with pytest.raises(RunError, match="No supported gpu backend found"):
        train(task, slices, SETTINGS, Execution(accelerator="gpu"), out=tmp_path, resume=False)


def test_a_loss_that_is_no_number_ends_the_training(run: Train, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"loss is nan after epoch \d, so nothing can be learnt any more; lower --lr"):
        run(replace(SETTINGS, lr=1e30, epochs=4))
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_what_ends_a_training_from_outside_is_an_interruption(
    run: Train, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals
) -> None:
    """Lightning ends the process itself then, after SIGTERM with the status of success."""
    monkeypatch.setattr(EpochReport, "on_train_epoch_end", lambda *_: os.kill(os.getpid(), sent))
    before = signal.getsignal(sent)
    if sent == signal.SIGINT:
        signal.signal(sent, signal.default_int_handler)  # what runs in the background of a shell ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            run()
    finally:
        signal.signal(sent, before)
