"""Slices for training: decoded once, kept in memory, drawn in an order that a seed decides."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms.v2 import functional as tv
from tqdm import tqdm

from medseg.data.dataset import Case, Volume
from medseg.training.losses import IGNORE
from medseg.training.transforms import Augmentation, as_rgb, fit_square, shrink


class Draw(NamedTuple):
    """One item of an epoch: position of the slice (``None``: filling that counts for nothing), and its random seed."""

    position: int | None
    seed: int


Batch = tuple[Tensor, Tensor]
Loader = DataLoader[Batch]


class SliceDataset(Dataset[Batch]):
    """All slices of some cases, read, checked and decoded once, then kept in memory.

    Reading everything at the start finds a damaged file before the first step instead of hours later. A slice is kept
    as it is stored (uint8 RGB images, float32 scans), reduced to a longer side of ``max(512, 2 * size)`` if it is
    larger: 1 MB for a scan of 512x512.

    Args:
        cases: Whose slices.
        size: Side of the square.
        augmentation: Applied to every slice; ``None`` fits the slice to the square.
        description: Of the progress bar.
        look: Sees every volume that was read.

    Items: image ``(3, S, S)`` float32 in [0, 1] and label ``(S, S)`` int64.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        size: int,
        *,
        augmentation: Augmentation | None = None,
        description: str = "Reading",
        look: Callable[[Volume], None] | None = None,
    ) -> None:
        self.size = size
        self.augmentation = augmentation
        self.slices: list[Batch] = []
        self.names: list[str] = []
        longest = max(512, 2 * size)
        for case in tqdm(cases, desc=description, disable=None):
            volume = case.read()
            if look is not None:
                look(volume)
            count = len(volume.image)
            self.names += [f"{case.name}, slice {z}" for z in range(count)] if count > 1 else [case.name]
            for image, label in zip(torch.from_numpy(volume.image), torch.from_numpy(volume.label), strict=True):
                kept = tv.to_dtype(shrink(tv.to_dtype(image, torch.float32, scale=True), longest), image.dtype, True)
                self.slices.append((kept, shrink(label[None], longest)[0]))

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, draw: Draw) -> Batch:
        if draw.position is None:
            return torch.zeros(3, self.size, self.size), torch.full((self.size, self.size), IGNORE)
        image, label = self.slices[draw.position]
        image = tv.to_dtype(image, torch.float32, scale=True)
        if self.augmentation is None:
            image, label = fit_square(image, self.size), fit_square(label[None], self.size)[0]
        else:
            with torch.random.fork_rng(devices=[]):
                # Of this slice in this epoch, whichever process or worker draws it. The CPU's generator alone, which is
                # the one that is restored: torch.manual_seed would seed that of a GPU as well.
                torch.default_generator.manual_seed(draw.seed)
                image, label = self.augmentation(image, label)
        return as_rgb(image), label.long()


class EpochSampler(Sampler[Draw]):
    """What one of several processes draws in an epoch, depending on seed and epoch alone.

    Together the processes draw in every step what a single one would draw, so their number changes nothing; and a
    training that is resumed at some epoch goes on as if it had not stopped.

    Args:
        length: Slices in the data set.
        count: How many of them to draw; the rest of an epoch is left out.
        rank, world: Number of this process, and how many there are. Where ``count`` is no multiple of it, filling is
            drawn that counts for nothing.
        seed: Of order and augmentation; ``None`` keeps the order of the data set.
    """

    def __init__(self, length: int, count: int, *, rank: int, world: int, seed: int | None) -> None:
        self.length, self.count, self.rank, self.world, self.seed = length, count, rank, world, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning says which epoch begins."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.count // self.world)

    def __iter__(self) -> Iterator[Draw]:
        if self.seed is None:
            order = np.arange(self.length)
        else:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        for position in range(self.rank, len(self) * self.world, self.world):
            if position >= self.count:
                yield Draw(None, 0)
                continue
            index = int(order[position])
            seed = np.random.SeedSequence((self.seed or 0, self.epoch, index)).generate_state(1)
            yield Draw(index, int(seed[0]))


class Slices(L.LightningDataModule):
    """Batches for training and validation, for as many processes as Lightning runs.

    In training the last slices of an epoch that do not fill a batch are left out: a batch of one has no batch
    statistics.

    Args:
        training, validation: Where the slices come from; validation may be empty.
        batch_size: Of all processes together.
        seed: Of order and augmentation.
        workers: Processes that prepare slices; ``None``: four for a GPU, none on a CPU, where training needs the cores.
    """

    def __init__(
        self, training: SliceDataset, validation: SliceDataset, *, batch_size: int, seed: int, workers: int | None
    ) -> None:
        super().__init__()
        self.training, self.validation = training, validation
        self.batch_size, self.seed, self.workers = batch_size, seed, workers

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return len(self.training) // self.batch_size

    def train_dataloader(self) -> Loader:
        return self._loader(self.training, self.steps_per_epoch * self.batch_size, self.seed)

    def val_dataloader(self) -> Loader:
        return self._loader(self.validation, len(self.validation), None)

    def _loader(self, dataset: SliceDataset, count: int, seed: int | None) -> Loader:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = EpochSampler(len(dataset), count, rank=rank, world=world, seed=seed)
        if self.trainer:  # workers start to draw before Lightning says which epoch a resumed training is in
            progress: Any = self.trainer.fit_loop.epoch_progress.current
            sampler.set_epoch(progress.processed)
        on_gpu = torch.cuda.is_available()
        workers = self.workers if self.workers is not None else 4 if on_gpu else 0
        return DataLoader(
            dataset,
            batch_size=self.batch_size // world,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=on_gpu,
        )


def images_per_second(slices: Slices, seconds: float = 10) -> float:
    """How many images the training loader gives in a second, without any training."""
    images, loader = 0, slices.train_dataloader()
    next(iter(loader))  # workers are up
    started = time.perf_counter()
    while True:
        for batch, _ in loader:
            images += len(batch)
            if (passed := time.perf_counter() - started) > seconds:
                return images / passed
