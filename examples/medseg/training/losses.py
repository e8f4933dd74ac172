"""The training objective of the paper: cross-entropy plus Dice loss, unweighted."""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100  # label that no loss counts, as in torch


def cross_entropy(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of logits ``(B, K, H, W)`` and labels ``(B, H, W)``."""
    # Over flattened positions, because the two-dimensional loss has no deterministic kernel on CUDA.
    flat = logits.float().movedim(1, -1).flatten(0, -2)
    return F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORE, reduction=reduction)


def dice_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Per class: sum of probability on true pixels, sum of probability, true pixels. ``(3, K)``."""
    counted = (labels != IGNORE).unsqueeze(1)
    probability = logits.float().softmax(1) * counted
    true = labels.unsqueeze(1) == torch.arange(logits.shape[1], device=labels.device).view(1, -1, 1, 1)
    axes = (0, 2, 3)
    return torch.stack(((probability * true).sum(axes), probability.sum(axes), true.sum(axes).float()))


def dice_loss(sums: Tensor) -> Tensor:
    r"""Mean over the classes of :math:`1 - 2 I / (P + T)`; a class without true pixels counts 0, as in smp's loss."""
    shared, probability, true = sums
    loss: Tensor = ((1 - 2 * shared / (probability + true).clamp_min(1e-7)) * (true > 0)).mean()
    return loss
