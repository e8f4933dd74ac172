"""Score a slice-wise network on whole cases, in 3-D and at native resolution."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torchvision.transforms.v2 import functional as tv
from tqdm import tqdm

from medseg.data.benchmark import Benchmark
from medseg.data.dataset import Case, Labels, Volume
from medseg.evaluation.metrics import confusion, rates, score_classes
from medseg.evaluation.scores import Row
from medseg.training.geometry import as_rgb, fit_square, unfit_square


@torch.inference_mode()
def predict_volume(model: nn.Module, image: NDArray[np.generic], *, size: int, batch_size: int) -> Labels:
    """Predict slice by slice: fit to a square, take the likeliest class, back to native size.

    Args:
        model: ``(B, 3, S, S)`` -> logits ``(B, classes, S, S)``; used in the mode it is in.
        image: ``(Z, C, H, W)``: uint8, or float32 in [0, 1]; one channel or three.
        size: Side of the square.
        batch_size: Slices at a time.

    Returns:
        Labels ``(Z, H, W)``.
    """
    device = next(model.parameters()).device
    height, width = image.shape[-2:]
    predicted = []
    for batch in torch.split(torch.from_numpy(image), batch_size):
        fitted = fit_square(tv.to_dtype(batch, torch.float32, scale=True), size)
        logits = model(as_rgb(fitted).to(device))
        predicted.append(unfit_square(logits.argmax(1).to(torch.uint8).cpu(), height, width))
    return torch.cat(predicted).numpy()


def evaluate(
    benchmark: Benchmark, cases: Iterable[Case], predict: Callable[[Volume], Labels], *, description: str
) -> list[Row]:
    """Predict and score cases.

    Returns:
        For every case its name and, for every class, the counts and scores of ``medseg.evaluation.metrics``: both definitions of
        Dice and HD95 for scans, the rates of pixels for photographs.
    """
    rows = []
    for case in tqdm(cases, desc=description, disable=None):
        volume = case.read()
        prediction = predict(volume)
        scores = score_photograph(prediction, volume, len(benchmark.classes)) if benchmark.intensity == "rgb" else None
        if scores is None:
            scores = [
                asdict(s) for s in score_classes(prediction, volume.label, len(benchmark.classes), volume.spacing)
            ]
        rows.append(
            {
                "case": case.name,
                "spacing": volume.spacing,
                "classes": dict(zip(benchmark.classes, scores, strict=True)),
            }
        )
    return rows


def score_photograph(prediction: Labels, volume: Volume, classes: int) -> list[dict[str, Any]]:
    """Shares of pixels and their rates, of every class of a photograph against all the others."""
    scores = []
    for index in range(1, classes + 1):
        truth, predicted = volume.label == index, prediction == index
        shares = confusion(predicted, truth)
        scores.append(
            {
                "truth_voxels": int(np.count_nonzero(truth)),
                "predicted_voxels": int(np.count_nonzero(predicted)),
                **shares,
                "strict": rates(shares),
            }
        )
    return scores
