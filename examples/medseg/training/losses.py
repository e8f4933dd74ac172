"""The training objective: cross-entropy plus Dice loss, unweighted, as in the paper; others on request.

All are computed from sums over pixels, so that the loss of a whole validation set, or of a batch that several
processes share, is that of all its slices at once.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100  # label that no loss counts, as in torch
FOCUS = 2  # gamma of the focal loss, the value of Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017


def cross_entropy(
    logits: Tensor, labels: Tensor, reduction: str = "mean", weights: Tensor | None = None, focus: float = 0
) -> Tensor:
    r"""Cross-entropy of pixels, or their focal loss :math:`(1 - p)^\gamma \cdot -\log p`.

    Args:
        logits, labels: ``(B, K, H, W)`` and ``(B, H, W)``; pixels with the label ``IGNORE`` do not count.
        reduction: ``"mean"`` or ``"sum"``; with weights the mean is weighted by them, as in torch.
        weights: Of the classes, ``(K,)``.
        focus: :math:`\gamma`; 0 is cross-entropy.
    """
    # Over flattened positions, because the two-dimensional loss has no deterministic kernel on CUDA.
    flat, true = logits.float().movedim(1, -1).flatten(0, -2), labels.flatten()
    if not focus:
        return F.cross_entropy(flat, true, weights, ignore_index=IGNORE, reduction=reduction)
    plain = F.cross_entropy(flat, true, ignore_index=IGNORE, reduction="none")
    weight = pixel_weights(labels, weights).flatten()
    total = (weight * (1 - (-plain).exp()) ** focus * plain).sum()
    return total if reduction == "sum" else total / weight.sum()


def pixel_weights(labels: Tensor, weights: Tensor | None) -> Tensor:
    """The weight of every pixel's class, 0 where the label is ``IGNORE``."""
    counted = (labels != IGNORE).float()
    return counted if weights is None else counted * weights[labels.clamp_min(0)]


def dice_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Per class: sum of probability on true pixels, sum of probability, true pixels. ``(3, K)``."""
    return _sums(logits.float().softmax(1), labels)


def label_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """The same of predicted labels: shared pixels, predicted pixels, true pixels. ``(3, K)``."""
    classes = torch.arange(logits.shape[1], device=logits.device).view(1, -1, 1, 1)
    return _sums((logits.argmax(1, keepdim=True) == classes).float(), labels)


def dice_loss(sums: Tensor, weights: Tensor | None = None) -> Tensor:
    r"""Mean over the classes of :math:`1 - 2 I / (P + T)`; a class without true pixels counts 0, as in smp's loss."""
    shared, probability, true = sums
    losses = (1 - 2 * shared / (probability + true).clamp_min(1e-7)) * (true > 0)
    loss: Tensor = losses.mean() if weights is None else (weights * losses).sum() / weights.sum()
    return loss


def mean_dice(sums: Tensor) -> Tensor:
    """Mean Dice of ``label_sums`` over the classes but the background that are there in truth or prediction."""
    shared, predicted, true = sums[:, 1:]
    present = (predicted + true) > 0
    dice = 2 * shared / (predicted + true).clamp_min(1)
    mean: Tensor = dice.sum() / present.sum().clamp_min(1)
    return mean


class Objective(torch.nn.Module):
    """One of ``medseg.settings.LOSSES``, with weights of the classes or without.

    ``forward`` gives the loss of a batch by terms. For a validation set, ``totals`` of its batches are added up, and
    ``terms_of`` them is the loss of all slices as one batch.

    Args:
        loss: Terms, joined by ``+``: ``ce``, ``focal``, ``dice``.
        class_weights: Background first. The pixels of a class weigh so much in ``ce`` and ``focal``, its Dice in
            ``dice``.
    """

    weights: Tensor | None

    def __init__(self, loss: str = "ce+dice", class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        terms = loss.split("+")
        self.by_pixel = "cross_entropy" if "ce" in terms else "focal_loss" if "focal" in terms else None
        self.focus = FOCUS if "focal" in terms else 0
        self.with_dice = "dice" in terms
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The terms; their sum is the loss."""
        # Processes hold equally many pixels, so DDP's mean of their gradients is right for the cross-entropy. The Dice
        # loss is no mean over slices: its sums are added up over the processes first.
        terms = {}
        if self.by_pixel:
            terms[self.by_pixel] = cross_entropy(logits, labels, "mean", self.weights, self.focus)
        if self.with_dice:
            terms["dice_loss"] = dice_loss(_sum_over_processes(dice_sums(logits, labels)), self.weights)
        return terms

    def totals(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What adds up over batches."""
        by_pixel = cross_entropy(logits, labels, "sum", self.weights, self.focus)
        weight = pixel_weights(labels, self.weights).double().sum()
        sums = (dice_sums(logits, labels), label_sums(logits, labels))
        return torch.cat((torch.stack((by_pixel.double(), weight)), *(x.flatten().double() for x in sums)))

    def terms_of(self, totals: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The terms of added ``totals``, and the mean Dice of the predicted labels."""
        sums, labels = totals[2:].view(2, 3, -1)
        terms = {self.by_pixel: (totals[0] / totals[1]).float()} if self.by_pixel else {}
        if self.with_dice:
            terms["dice_loss"] = dice_loss(sums, self.weights).float()
        return terms, mean_dice(labels).float()


def distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _sum_over_processes(sums: Tensor) -> Tensor:
    if not distributed():
        return sums
    total = sums.detach().clone()
    dist.all_reduce(total)
    # The value of the total, with the gradient that makes DDP's mean over the processes their sum.
    return total + dist.get_world_size() * (sums - sums.detach())


def _sums(probability: Tensor, labels: Tensor) -> Tensor:
    probability = probability * (labels != IGNORE).unsqueeze(1)
    true = labels.unsqueeze(1) == torch.arange(probability.shape[1], device=labels.device).view(1, -1, 1, 1)
    axes = (0, 2, 3)
    return torch.stack(((probability * true).sum(axes), probability.sum(axes), true.sum(axes).float()))
