"""Score a slice-wise network on whole volumes, in 3-D and at native resolution."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from medseg.geometry import as_rgb, fit_square, unfit_square
from medseg.metrics import Score, score_strict, score_transunet
from medseg.synapse import ORGANS, Array, Labels, Volume

Case = dict[str, Any]


@torch.inference_mode()
def predict_volume(model: nn.Module, image: Array, *, size: int, batch_size: int) -> Labels:
    """Predict a volume slice by slice: fit to a square, take the likeliest class, back to native size.

    Args:
        model: ``(B, 3, S, S)`` -> logits ``(B, classes, S, S)``; used in the mode it is in.
        image: ``(Z, H, W)`` in [0, 1].
        size: Side of the square.
        batch_size: Slices at a time.

    Returns:
        Labels ``(Z, H, W)``.
    """
    device = next(model.parameters()).device
    height, width = image.shape[1:]
    predicted = []
    for batch in torch.split(torch.from_numpy(image), batch_size):
        logits = model(as_rgb(fit_square(batch, size)).to(device))
        predicted.append(unfit_square(logits.argmax(1).to(torch.uint8).cpu(), height, width))
    return torch.cat(predicted).numpy()


def evaluate(
    model: nn.Module,
    volumes: Iterable[Volume],
    *,
    size: int,
    batch_size: int,
    description: str,
    look: Callable[[Volume, Labels, Case], None] | None = None,
) -> list[Case]:
    """Predict and score volumes, and hand each prediction to ``look``, e.g. to draw it.

    Returns:
        For every case, its name and for every organ the voxels of both masks and Dice and HD95 under both
        definitions of ``medseg.metrics``.
    """
    model.eval()
    cases = []
    for volume in tqdm(volumes, desc=description):
        prediction = predict_volume(model, volume.image, size=size, batch_size=batch_size)
        organs = {}
        for index, organ in enumerate(ORGANS, start=1):
            predicted, truth = prediction == index, volume.label == index
            organs[organ] = {
                "truth_voxels": int(truth.sum()),
                "predicted_voxels": int(predicted.sum()),
                "strict": _as_dict(score_strict(predicted, truth)),
                "transunet": _as_dict(score_transunet(predicted, truth)),
            }
        cases.append({"case": volume.case, "organs": organs})
        if look is not None:
            look(volume, prediction, cases[-1])
    return cases


def summarize(cases: list[Case]) -> dict[str, Any]:
    """Mean over cases per organ, then mean over organs, with the counts of empty masks beside them."""
    organs: dict[str, Any] = {}
    for organ in ORGANS:
        rows = [case["organs"][organ] for case in cases]
        organs[organ] = {
            "cases": sum(row["truth_voxels"] > 0 for row in rows),
            "missed": sum(row["truth_voxels"] > 0 and row["predicted_voxels"] == 0 for row in rows),
            "invented": sum(row["truth_voxels"] == 0 and row["predicted_voxels"] > 0 for row in rows),
            **{
                definition: {key: _mean(row[definition][key] for row in rows) for key in ("dice", "hd95")}
                for definition in ("strict", "transunet")
            },
        }
    mean = {
        definition: {key: _mean(organs[organ][definition][key] for organ in ORGANS) for key in ("dice", "hd95")}
        for definition in ("strict", "transunet")
    }
    return {"organs": organs, "mean": mean}


def mean_dice(case: Case) -> float | None:
    """Mean strict Dice of one case over the organs that define it."""
    return _mean(row["strict"]["dice"] for row in case["organs"].values())


def _as_dict(score: Score) -> dict[str, float | None]:
    return {"dice": score.dice, "hd95": score.hd95}


def _mean(values: Iterable[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None
