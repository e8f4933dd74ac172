import pytest
import segmentation_models_pytorch as smp
import torch

from medseg.training.losses import IGNORE, cross_entropy, dice_loss, dice_sums

LOGITS = torch.randn(4, 5, 9, 7)
LABELS = torch.randint(0, 4, (4, 9, 7))  # class 4 is absent


def test_dice_loss_is_that_of_smp() -> None:
    theirs = smp.losses.DiceLoss("multiclass", from_logits=True)(LOGITS, LABELS)
    assert dice_loss(dice_sums(LOGITS, LABELS)) == pytest.approx(float(theirs), rel=1e-6)


def test_dice_loss_by_hand() -> None:
    # Two pixels with probabilities 0.8 and 0.3 for class 1; the first one is class 1.
    logits = torch.tensor([[0.2, 0.7], [0.8, 0.3]]).log().view(1, 2, 1, 2)
    background, lesion = 2 * 0.7 / (0.9 + 1), 2 * 0.8 / (1.1 + 1)
    loss = dice_loss(dice_sums(logits, torch.tensor([[[1, 0]]])))
    assert loss == pytest.approx(((1 - background) + (1 - lesion)) / 2)


def test_perfect_logits_cost_nothing() -> None:
    logits = 100 * torch.nn.functional.one_hot(LABELS, 5).movedim(-1, 1).float()
    assert dice_loss(dice_sums(logits, LABELS)) == pytest.approx(0, abs=1e-6)
    assert cross_entropy(logits, LABELS) == pytest.approx(0, abs=1e-6)


def test_cross_entropy_is_torchs() -> None:
    torch.testing.assert_close(cross_entropy(LOGITS, LABELS), torch.nn.functional.cross_entropy(LOGITS, LABELS))


def test_ignored_slices_count_for_nothing() -> None:
    labels = torch.cat((LABELS, torch.full_like(LABELS, IGNORE)))
    logits = torch.cat((LOGITS, torch.randn_like(LOGITS)))
    torch.testing.assert_close(dice_sums(logits, labels), dice_sums(LOGITS, LABELS))
    torch.testing.assert_close(cross_entropy(logits, labels), cross_entropy(LOGITS, LABELS))


def test_half_precision_is_summed_in_single() -> None:
    assert dice_sums(LOGITS.bfloat16(), LABELS).dtype == torch.float32
    assert cross_entropy(LOGITS.bfloat16(), LABELS).dtype == torch.float32
