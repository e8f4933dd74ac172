"""Training on Lightning: the objective and schedule of the paper, repeatable and resumable."""

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from segmentation_models_pytorch.losses import DiceLoss
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler


class SegmentationTask(L.LightningModule):
    """Train a segmentation network on the unweighted sum of cross-entropy and Dice loss.

    AdamW with a cosine learning rate from ``lr`` to ``min_lr`` over all steps of the training.

    Args:
        model: ``(B, 3, S, S)`` -> logits ``(B, classes, S, S)``.
        lr, min_lr: First and last learning rate.
        weight_decay: Of AdamW.
    """

    def __init__(self, model: nn.Module, *, lr: float, min_lr: float, weight_decay: float) -> None:
        super().__init__()
        self.model = model
        self.lr = lr
        self.min_lr = min_lr
        self.weight_decay = weight_decay
        self.dice_loss = DiceLoss(mode="multiclass")  # mean over the classes; one absent from the batch counts 0

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, labels = batch
        logits = self(images)
        # Over flattened positions, because the two-dimensional loss has no deterministic kernel on CUDA.
        ce = F.cross_entropy(logits.movedim(1, -1).flatten(0, -2), labels.flatten())
        dice = self.dice_loss(logits, labels)
        loss: Tensor = ce + dice
        losses = {"loss": loss, "cross_entropy": ce, "dice_loss": dice}
        self.log_dict(losses, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(images))
        return loss

    def configure_optimizers(self) -> Any:
        # Fused: one kernel for all tensors; on two CPU cores the step of a ResNet-50 U-Net takes a fifth of the time.
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay, fused=True)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps, eta_min=self.min_lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class History(L.Callback):
    """Write the mean losses and the learning rate of every epoch to a CSV file.

    The rows travel in the checkpoint, so a resumed training continues the file instead of starting a new one, which
    is what Lightning's own CSV logger does.

    Args:
        path: CSV file, rewritten after every epoch.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        losses = {name: float(value) for name, value in trainer.callback_metrics.items()}
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        self.rows.append({"epoch": trainer.current_epoch + 1, "step": trainer.global_step, **losses, "lr": lr})
        pd.DataFrame(self.rows).to_csv(self.path, index=False)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]


def shuffled_batches(dataset: Dataset[Any], *, batch_size: int, seed: int) -> DataLoader[Any]:
    """Batches in an order that depends on the seed and the epoch alone, so that a resumed training sees the same.

    The last slices of an epoch that do not fill a batch are left out: a batch of one has no batch statistics.
    """
    # Lightning tells it the epoch.
    sampler: DistributedSampler[Any] = DistributedSampler(dataset, num_replicas=1, rank=0, shuffle=True, seed=seed)
    return DataLoader(dataset, batch_size=batch_size, sampler=sampler, drop_last=True)


def train(task: SegmentationTask, batches: DataLoader[Any], *, epochs: int, out: Path, resume: bool) -> None:
    """Train, deterministically, and leave ``metrics.csv`` and ``checkpoints/last.ckpt`` in ``out``.

    The checkpoint is written after every epoch; with ``resume`` training goes on from it.
    """
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # the slices are in memory already
    checkpoint = ModelCheckpoint(out / "checkpoints", save_last=True, save_top_k=0)
    trainer = L.Trainer(
        max_epochs=epochs,
        deterministic=True,
        logger=False,
        callbacks=[History(out / "metrics.csv"), checkpoint],
        default_root_dir=out,
        enable_model_summary=False,
    )
    last = out / "checkpoints" / "last.ckpt"
    trainer.fit(task, batches, ckpt_path=last if resume else None, weights_only=True)
    task.to(trainer.strategy.root_device)  # Lightning takes it back to the CPU, but it is to be evaluated now
