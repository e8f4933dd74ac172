"""What augmentation makes of the training slices, as a PNG file."""

from pathlib import Path

import torch

from medseg.data.dataset import Benchmark
from medseg.figures.overlays import draw_samples
from medseg.training.slices import Draw, SliceDataset


def draw_augmentation(benchmark: Benchmark, dataset: SliceDataset, picture: Path, columns: int = 7) -> None:
    """Draw four slices fitted to the square, and what augmentation makes of each in several epochs."""
    if dataset.augmentation is None:
        return
    plain = SliceDataset([], dataset.size)
    plain.slices = dataset.slices
    areas = torch.tensor([float((label > 0).float().mean()) for _, label in dataset.slices])
    labelled = areas.argsort(descending=True)[: max(4, len(dataset) // 4)]  # slices in which there is much to see
    rows = []
    for index in labelled[torch.linspace(0, len(labelled) - 1, min(4, len(labelled))).long()].tolist():
        drawn = [plain[Draw(index, 0)], *(dataset[Draw(index, columns * index + k)] for k in range(columns))]
        channels = slice(None) if benchmark.intensity == "rgb" else slice(1)
        rows.append((dataset.names[index], [(image[channels].numpy(), label.numpy()) for image, label in drawn]))
    heads = ["as it is, fitted", *(f"augmented {k + 1}" for k in range(columns))]
    draw_samples(
        rows, heads, benchmark.classes, picture, f"{benchmark.title}: training slices as augmentation shows them"
    )
