"""Training on Lightning: the objective and schedule of the paper, repeatable, resumable, on one device or many.

Beside the steps, callbacks write the history, report progress, take the time and stop early.
"""

import logging
import math
import statistics
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import loggers
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar
from torch import Tensor, nn

from medseg.errors import RunError
from medseg.settings import Execution, Settings, check_logger, is_first_process
from medseg.training.losses import Objective, distributed
from medseg.training.slices import Slices

MIN_DELTA = 1e-4


class SegmentationTask(L.LightningModule):
    """Train a segmentation network on one of ``medseg.training.losses.Objective``.

    AdamW with a cosine learning rate from ``lr`` to ``min_lr`` over all steps of the training. The validation loss is
    that of all validation slices as one batch, so it does not depend on batches or processes.

    Args:
        model: ``(B, 3, S, S)`` -> logits ``(B, classes, S, S)``.
        settings: Loss, learning rates, weight decay, epochs and seed are used.
        steps_per_epoch: For the learning rate. Lightning could tell, but it would have loaders draw from the first
            epoch to find out, even where training is resumed in a later one.
    """

    def __init__(self, model: nn.Module, settings: Settings, steps_per_epoch: int) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self.objective = Objective(settings.loss, settings.class_weights)
        self.steps = settings.epochs * steps_per_epoch
        self.totals: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits

    def on_train_start(self) -> None:
        # A checkpoint may come from a training in another memory format, and the fused optimizer goes through weights
        # and moments in the order of memory, whatever their strides.
        optimizer: Any = self.optimizers()
        for parameter, state in optimizer.state.items():
            for name, value in state.items():
                if value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

    def on_train_batch_start(self, *_: Any) -> None:
        # For networks with dropout: a resumed training draws what an uninterrupted one would have drawn.
        entropy = (self.settings.seed, self.global_step, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, labels = batch
        terms = self.objective(self(images), labels)
        loss = torch.stack(list(terms.values())).sum()
        shared: Any = {"on_step": False, "on_epoch": True, "batch_size": len(images), "sync_dist": True}
        self.log("loss", loss, prog_bar=True, **shared)
        self.log_dict(terms, **shared)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        images, labels = batch
        self.totals.append(self.objective.totals(self(images), labels))

    def on_validation_epoch_end(self) -> None:
        totals = torch.stack(self.totals).sum(0)
        self.totals.clear()
        if distributed():
            dist.all_reduce(totals)
        terms, dice = self.objective.terms_of(totals)
        self.log("val_loss", torch.stack(list(terms.values())).sum(), prog_bar=True)
        self.log_dict({f"val_{name}": value for name, value in {**terms, "dice": dice}.items()})

    def configure_optimizers(self) -> Any:
        lr, decay = self.settings.lr, self.settings.weight_decay
        # Fused: one kernel for all tensors; on two CPU cores the step of a ResNet-50 U-Net takes a fifth of the time.
        optimizer = torch.optim.AdamW(self.parameters(), lr=lr, weight_decay=decay, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps, eta_min=self.settings.min_lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass(frozen=True)
class Training:
    """How a training ended."""

    epochs: int
    best_epoch: int | None
    best_val_loss: float | None
    stopped_early: bool
    seconds_per_step: float | None = field(default=None, compare=False)  # of the epochs trained in this process


def train(
    task: SegmentationTask,
    slices: Slices,
    settings: Settings,
    execution: Execution,
    *,
    out: Path,
    resume: bool,
) -> Training:
    """Train, and leave the network in ``task`` at the best validation loss, or as it ended without validation.

    ``out`` receives ``metrics.csv``, what the logger writes, and ``checkpoints/{last,best}.ckpt``. The last one is
    written after every epoch; with ``resume`` training goes on from it. Where there are fewer epochs than from one
    validation to the next, the last epoch is validated.
    """
    folder = out / "checkpoints"
    validate_every = min(settings.validate_every, settings.epochs)
    history = History(out / "metrics.csv", validate_every)
    best = ModelCheckpoint(
        folder,
        "best",
        monitor="val_loss",
        save_weights_only=True,  # a run goes on from the last
        save_on_train_epoch_end=False,
        enable_version_counter=False,
    )
    patience = Patience("val_loss", min_delta=MIN_DELTA, patience=settings.patience, check_on_train_epoch_end=False)
    # Every epoch, and after validation and early stopping had their say, whose states it holds. Not ``save_last``,
    # which some releases of Lightning heed only when another checkpoint is due.
    last = ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    time = StepTime()
    validation: list[L.Callback] = [best, patience] if len(slices.validation) else []
    report = EpochReport(history, patience if validation else None)
    callbacks = [*([ProgressBar()] if on_terminal() else []), time, history, *validation, report, last]
    trainer = make_trainer(settings, execution, callbacks, out, validate_every if validation else None)
    if settings.batch_size % trainer.world_size:
        raise RunError(f"a batch of {settings.batch_size} cannot be divided among {trainer.world_size} processes")
    # Results differ in rounding only, but for dropout, which draws in the order of memory. Reduced precision gains
    # 10 to 15 % by it; what float32 gains depends on the processor, so there it is an option.
    reduced_precision = settings.precision != "32-true"
    if reduced_precision if execution.channels_last is None else execution.channels_last:
        task.model.to(memory_format=torch.channels_last)
    if execution.compile:
        task.model.compile()
    checkpoint = folder / "last.ckpt" if resume else None
    try:
        trainer.fit(task, datamodule=slices, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as error:  # as Lightning ends after Ctrl-C and SIGTERM, of the latter as if all were well
        raise KeyboardInterrupt from error
    if best.best_model_path and is_first_process():
        content = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
        task.load_state_dict(content["state_dict"])
    task.to(trainer.strategy.root_device)  # Lightning takes it back to the CPU, but it is to be evaluated now
    task.model.to(memory_format=torch.contiguous_format)  # safetensors saves no other
    best_row = min((row for row in history.rows if "val_loss" in row), key=lambda row: row["val_loss"], default=None)
    return Training(
        epochs=len(history.rows),
        best_epoch=int(best_row["epoch"]) if best_row else None,
        best_val_loss=best_row["val_loss"] if best_row else None,
        stopped_early=patience.stopped_epoch > 0,
        seconds_per_step=time.seconds,
    )


def make_trainer(
    settings: Settings, execution: Execution, callbacks: list[L.Callback], out: Path, validate_every: int | None
) -> L.Trainer:
    """Lightning's trainer, which keeps what it has to say to itself; ``validate_every``: epochs, ``None`` for never."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # advertisements, and devices that are not used
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # decoded slices are in memory already
    warnings.filterwarnings("ignore", ".*number of training batches.*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")  # of the run resumed
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")  # between releases of Lightning and torch
    try:
        return L.Trainer(
            max_epochs=settings.epochs,
            accelerator=execution.accelerator,
            devices=int(execution.devices) if execution.devices.lstrip("-").isdigit() else execution.devices,
            num_nodes=execution.nodes,
            strategy=execution.strategy,
            precision=settings.precision,  # type: ignore[arg-type]  # checked by the command line
            deterministic=settings.deterministic,
            sync_batchnorm=torch.cuda.is_available(),
            use_distributed_sampler=False,
            check_val_every_n_epoch=validate_every or 1,
            limit_val_batches=1.0 if validate_every else 0,
            num_sanity_val_steps=0,
            logger=make_logger(execution.logger, out),
            callbacks=callbacks,
            enable_progress_bar=on_terminal(),
            default_root_dir=out,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        asked = f"--accelerator {execution.accelerator} --devices {execution.devices} --strategy {execution.strategy}"
        raise RunError(f"Lightning cannot train with {asked}: {error}") from error


def make_logger(name: str, out: Path) -> Any:
    """One of ``medseg.settings.LOGGERS`` for a run in ``out``; ``False`` for none, as Lightning has it."""
    check_logger(name)
    if name == "none":
        return False
    if name == "tensorboard":
        return loggers.TensorBoardLogger(out, name=None, version="tensorboard")
    if name == "csv":
        return loggers.CSVLogger(out, name=None, version="csv")
    project, run = out.parent.name or "medseg", out.name
    if name == "wandb":
        return loggers.WandbLogger(name=run, project=project, save_dir=out)
    return loggers.MLFlowLogger(experiment_name=project, run_name=run, save_dir=str(out / "mlruns"))


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
        if strange := [name for name, value in losses.items() if not math.isfinite(value)]:
            raise RunError(
                f"{strange[0]} is {losses[strange[0]]} after epoch {trainer.current_epoch + 1}, so nothing can be "
                "learnt any more; lower --lr, or change --loss, --class-weights or --precision, and give --overwrite"
            )
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
