"""What the training tells Lightning to do beside the steps."""

import statistics
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


class Patience(EarlyStopping):
    """Early stopping that also holds when a training is resumed that had stopped already."""

    def on_train_start(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        trainer.should_stop = self.wait_count >= self.patience
