import math

import pytest
import segmentation_models_pytorch as smp
import torch

from medseg.settings import LOSSES
from medseg.training.losses import IGNORE, Objective, cross_entropy, dice_loss, dice_sums, label_sums, mean_dice

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


WEIGHTS = torch.tensor([0.5, 1, 2, 3, 4])


def test_weighted_cross_entropy_is_torchs() -> None:
    theirs = torch.nn.functional.cross_entropy(LOGITS, LABELS, WEIGHTS)
    torch.testing.assert_close(cross_entropy(LOGITS, LABELS, weights=WEIGHTS), theirs)


def test_focal_loss_by_hand() -> None:
    # One pixel of class 1 with probability 0.8, one of class 0 with 0.7: (1 - p)^2 * -log p.
    logits = torch.tensor([[0.2, 0.7], [0.8, 0.3]]).log().view(1, 2, 1, 2)
    costs = torch.tensor([0.2**2 * -math.log(0.8), 0.3**2 * -math.log(0.7)])
    labels = torch.tensor([[[1, 0]]])
    assert Objective("focal")(logits, labels)["focal_loss"] == pytest.approx(float(costs.mean()))
    weighted = Objective("focal", (1, 3))(logits, labels)["focal_loss"]
    assert weighted == pytest.approx(float((3 * costs[0] + costs[1]) / 4))


def test_the_papers_loss_is_the_default() -> None:
    terms = Objective()(LOGITS, LABELS)
    assert list(terms) == ["cross_entropy", "dice_loss"]
    assert torch.equal(terms["cross_entropy"], cross_entropy(LOGITS, LABELS))
    assert torch.equal(terms["dice_loss"], dice_loss(dice_sums(LOGITS, LABELS)))
    assert not Objective().state_dict()  # so that checkpoints have the keys of the network alone


def test_weighted_dice_loss() -> None:
    sums = torch.stack([dice_sums(LOGITS, LABELS)[:, [k]] for k in range(5)])
    each = torch.stack([dice_loss(one) for one in sums])
    assert dice_loss(dice_sums(LOGITS, LABELS), WEIGHTS) == pytest.approx(float((WEIGHTS * each).sum() / 10.5))


@pytest.mark.parametrize("weights", [None, WEIGHTS.tolist()])
@pytest.mark.parametrize("loss", LOSSES)
def test_totals_of_batches_give_the_loss_of_all_slices(loss: str, weights: list[float] | None) -> None:
    labels = LABELS.clone()
    labels[3, 4] = IGNORE
    objective = Objective(loss, weights)
    expected = objective(LOGITS, labels)
    totals = sum(objective.totals(LOGITS[part], labels[part]) for part in (slice(1), slice(1, 4)))
    terms, dice = objective.terms_of(torch.as_tensor(totals))
    torch.testing.assert_close(terms, expected)
    assert dice == pytest.approx(float(mean_dice(label_sums(LOGITS, labels))))


def test_mean_dice_of_predicted_labels() -> None:
    logits = torch.nn.functional.one_hot(LABELS, 5).movedim(-1, 1).float()
    assert mean_dice(label_sums(logits, LABELS)) == 1  # class 4 is in neither and does not count
    logits[:, :, :, 0] = torch.nn.functional.one_hot(torch.tensor(4), 5).view(1, 5, 1).float()
    truth = [int((k == LABELS).sum()) for k in (1, 2, 3)]
    left = [int((LABELS[:, :, 1:] == k).sum()) for k in (1, 2, 3)]
    dice = [2 * found / (found + there) for found, there in zip(left, truth, strict=True)]
    assert mean_dice(label_sums(logits, LABELS)) == pytest.approx(sum(dice) / 4)  # 4 is predicted, and never right
