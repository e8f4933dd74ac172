"""What the training does beside the steps: write the history, report progress, take the time, stop early."""

import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import EarlyStopping, TQDMProgressBar


class History(L.Callback):
    """Write the losses and the learning rate of every epoch to a CSV file.

    The rows travel in the checkpoint, so a resumed training continues the file instead of starting a new one, which
    is what Lightning's own CSV logger does.

    Args:
        path: CSV file, rewritten after every epoch.
        validate_every: Epochs between validations.
    """

    def __init__(self, path: Path, validate_every: int) -> None:
        self.path = path
        self.validate_every = validate_every
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        # Lightning keeps the validation losses of earlier epochs.
        validated = (trainer.current_epoch + 1) % self.validate_every == 0
        losses = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if validated or not name.startswith("val_")
        }
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        self.rows.append({"epoch": trainer.current_epoch + 1, "step": trainer.global_step, **losses, "lr": lr})
        if trainer.is_global_zero:
            pd.DataFrame(self.rows).to_csv(self.path, index=False)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]


class StepTime(L.Callback):
    """Seconds per training step: the median over the epochs of this process, loading included, validation not."""

    def __init__(self) -> None:
        self.started = 0.0
        self.epochs: list[float] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch:  # validation follows before the epoch ends
            if module.device.type == "cuda":
                torch.cuda.synchronize(module.device)
            self.epochs.append((time.perf_counter() - self.started) / (batch_idx + 1))

    @property
    def seconds(self) -> float | None:
        """``None`` where no epoch was trained."""
        return statistics.median(self.epochs) if self.epochs else None


class ProgressBar(TQDMProgressBar):
    """The bar without the number of the logger's version."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


def on_terminal() -> bool:
    """Whether a person looks on, where a bar may move; else, in a file, every epoch is a line."""
    return sys.stderr.isatty()


class EpochReport(L.Callback):
    """Print a line for every epoch; on a terminal, where there is a bar, for those whose network is kept as the best.

    Args:
        history: Where the losses are.
        patience: Knows whether the training stopped early; ``None`` without validation.
    """

    def __init__(self, history: History, patience: EarlyStopping | None) -> None:
        self.history, self.patience = history, patience
        self.started = self.first = 0.0
        self.done = 0  # epochs in this process

    def on_train_epoch_start(self, *_: Any) -> None:
        self.started = time.perf_counter()
        self.first = self.first or self.started

    def on_train_epoch_end(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        self.done += 1
        *earlier, row = self.history.rows
        best = row.get("val_loss", math.inf) < min(
            (r["val_loss"] for r in earlier if "val_loss" in r), default=math.inf
        )
        now, epochs = time.perf_counter(), trainer.max_epochs or 0
        seconds = now - self.started
        left = (now - self.first) / self.done * (epochs - trainer.current_epoch - 1)
        if not trainer.is_global_zero or (on_terminal() and not best):
            return
        losses = [f"{name} {row[name]:.4f}" for name in ("loss", "val_loss", "val_dice") if name in row]
        note = " (best so far, kept)" if best else " (not better)" if "val_loss" in row else ""
        line = (
            f"Epoch {trainer.current_epoch + 1}/{epochs}: {', '.join(losses)}{note}, lr {row['lr']:.2g}, "
            f"{seconds:.1f} s, {duration(left)} left"
        )
        bar = trainer.progress_bar_callback
        bar.print(line) if bar is not None else print(line, flush=True)

    def on_train_end(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        if self.patience is None or not self.patience.stopped_epoch or not trainer.is_global_zero:
            return
        row = min((row for row in self.history.rows if "val_loss" in row), key=lambda row: row["val_loss"])
        print(
            f"Stopped early after epoch {len(self.history.rows)} of {trainer.max_epochs}: {self.patience.patience} "
            f"validations without improvement (--patience); the best was epoch {row['epoch']:.0f}, "
            f"val_loss {row['val_loss']:.4f}",
            flush=True,
        )


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


class Patience(EarlyStopping):
    """Early stopping that also holds when a training is resumed that had stopped already."""

    def on_train_start(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        trainer.should_stop = self.wait_count >= self.patience
