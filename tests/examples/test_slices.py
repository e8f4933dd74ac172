from functools import partial
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from medseg.data.dataset import Case, Volume
from medseg.training.slices import IGNORE, Draw, EpochSampler, SliceDataset, Slices
from medseg.training.transforms import IMAGE_PADDING, Augmentation


def read(name: str, kind: str, shape: tuple[int, int], slices: int = 3) -> Volume:
    rng = np.random.default_rng(len(name))
    label = rng.integers(0, 4, (slices, *shape), dtype=np.uint8)
    if kind == "photograph":
        image = rng.integers(0, 256, (slices, *shape, 3), dtype=np.uint8).transpose(0, 3, 1, 2)
        return Volume(name, image, label)
    return Volume(name, rng.random((slices, 1, *shape), dtype=np.float32), label)


def dataset(
    kind: str = "scan", shape: tuple[int, int] = (40, 52), size: int = 32, augment: bool = False, cases: int = 4
) -> SliceDataset:
    augmentation = Augmentation(size, colour=kind == "photograph") if augment else None
    names = ["a" * (n + 1) for n in range(cases)]
    return SliceDataset([Case(x, x, partial(read, x, kind, shape)) for x in names], size, augmentation=augmentation)


class TestDataset:
    @pytest.mark.parametrize("kind", ["scan", "photograph"])
    @pytest.mark.parametrize("augment", [False, True])
    def test_items(self, kind: str, augment: bool) -> None:
        found = dataset(kind, augment=augment)
        assert len(found) == 4 * 3
        image, label = found[Draw(5, 7)]
        assert (image.shape, image.dtype) == ((3, 32, 32), torch.float32)
        assert (label.shape, label.dtype) == ((32, 32), torch.int64)
        assert 0 <= image.min() <= image.max() <= 1
        assert label.max() <= 3
        assert torch.equal(image[0], image[2]) == (kind == "scan")

    def test_values_are_divided_by_255_and_kept_exactly(self) -> None:
        found = dataset("photograph", shape=(32, 32))
        image, label = found[Draw(1, 0)]
        volume = read("a", "photograph", (32, 32))
        torch.testing.assert_close(image, torch.from_numpy(volume.image[1].astype(np.float32) / 255), atol=1e-7, rtol=0)
        assert torch.equal(label, torch.from_numpy(volume.label[1]).long())
        assert torch.equal(found.slices[1][0], torch.from_numpy(volume.image[1]))

    def test_slices_are_in_the_order_of_the_cases(self) -> None:
        seen: list[str] = []
        cases = [Case(x, x, partial(read, x, "scan", (16, 16))) for x in ("b", "aa", "ccc")]
        found = SliceDataset(cases, 16, look=lambda volume: seen.append(volume.case))
        assert seen == ["b", "aa", "ccc"]
        for index, (name, z) in enumerate((case.name, z) for case in cases for z in range(3)):
            np.testing.assert_array_equal(found[Draw(index, 0)][1], read(name, "scan", (16, 16)).label[z])

    @pytest.mark.parametrize("kind", ["scan", "photograph"])
    def test_large_slices_are_kept_smaller(self, kind: str) -> None:
        found = dataset(kind, shape=(900, 600), cases=1)
        assert [image.shape[-2:] for image, _ in found.slices] == [(512, 341)] * 3
        image, label = found[Draw(0, 0)]
        assert image.shape[-2:] == label.shape == (32, 32)
        assert torch.equal(image[:, :, 0], torch.full((3, 32), IMAGE_PADDING))

    def test_filling_counts_for_nothing(self) -> None:
        image, label = dataset(augment=True)[Draw(None, 0)]
        assert (image.shape, label.shape) == ((3, 32, 32), (32, 32))
        assert (label == IGNORE).all()
        loss = torch.nn.functional.cross_entropy(torch.randn(1, 4, 32, 32), label[None], reduction="sum")
        assert loss == 0

    def test_seed_of_the_draw_decides_the_augmentation(self) -> None:
        found = dataset("photograph", augment=True)
        one, same, other = (found[Draw(3, seed)][0] for seed in (1, 1, 2))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)

    def test_augmentation_leaves_random_numbers_of_others_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def seeded(_: int) -> None:
            raise AssertionError("the generators of GPUs are not restored afterwards")

        monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded)
        before = torch.get_rng_state()
        dataset(augment=True)[Draw(0, 5)]
        assert torch.equal(torch.get_rng_state(), before)

    def test_an_epoch_does_not_change_what_is_kept(self) -> None:
        found = dataset("photograph", augment=True)
        kept = [(image.clone(), label.clone()) for image, label in found.slices]
        for draw in EpochSampler(len(found), len(found), rank=0, world=1, seed=0):
            found[draw]
        assert all(torch.equal(x, y) for x, y in zip(chain(*kept), chain(*found.slices), strict=True))


def steps(length: int, batch: int, world: int, epoch: int, seed: int | None = 7) -> list[list[Draw]]:
    """What all processes together draw in every step."""
    count = length // batch * batch
    together: list[list[Draw]] = [[] for _ in range(count // batch)]
    for rank in range(world):
        sampler = EpochSampler(length, count, rank=rank, world=world, seed=seed)
        sampler.set_epoch(epoch)
        draws = list(sampler)
        assert len(draws) == len(sampler) == count // world
        own = batch // world
        for step, drawn in enumerate(together):
            drawn += draws[own * step : own * (step + 1)]
    return [sorted(drawn) for drawn in together]


class TestSampler:
    @pytest.mark.parametrize("world", [2, 3, 6])
    @pytest.mark.parametrize("epoch", [0, 4])
    def test_processes_together_draw_what_one_does(self, world: int, epoch: int) -> None:
        assert steps(41, 12, world, epoch) == steps(41, 12, 1, epoch)

    def test_every_slice_once_an_epoch(self) -> None:
        draws = [draw for step in steps(36, 12, 1, 0) for draw in step]
        assert sorted(position for position, _ in draws) == list(range(36))
        assert len({seed for _, seed in draws}) == 36

    def test_epochs_and_seeds_differ_and_repeat(self) -> None:
        epochs = [steps(24, 4, 1, epoch) for epoch in range(4)]
        assert all(one != other for one in epochs for other in epochs if one is not other)
        assert steps(24, 4, 1, 2) == epochs[2]  # what a training resumed there draws
        assert steps(24, 4, 1, 2, seed=8) != epochs[2]
        augmentations = [dict(draw for step in epoch for draw in step) for epoch in epochs]
        assert all(augmentations[0][n] != augmentations[1][n] for n in range(24))

    def test_all_that_do_not_fill_a_batch_are_left_out_in_turn(self) -> None:
        drawn = [{draw.position for step in steps(10, 4, 1, epoch) for draw in step} for epoch in range(30)]
        assert all(len(positions) == 8 for positions in drawn)
        assert set.union(*drawn) == set(range(10))  # not always the same ones

    @pytest.mark.parametrize("world", [1, 2, 3, 4])
    def test_without_a_seed_in_order_and_filled_up(self, world: int) -> None:
        ranks = [list(EpochSampler(10, 10, rank=rank, world=world, seed=None)) for rank in range(world)]
        assert {len(draws) for draws in ranks} == {-(-10 // world)}
        in_turn = [draw.position for together in zip(*ranks, strict=True) for draw in together]
        assert in_turn == [*range(10), *[None] * (-10 % world)]


def epoch(slices: Slices, number: int, part: str = "train") -> list[tuple[Tensor, Tensor]]:
    loader = getattr(slices, f"{part}_dataloader")()
    loader.sampler.set_epoch(number)
    return list(loader)


def together(batches: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


class TestSlices:
    def test_workers_change_nothing(self) -> None:
        training, validation = dataset("photograph", augment=True), dataset("photograph", cases=1)
        found = []
        for workers in (0, 2):
            torch.manual_seed(3)
            slices = Slices(training, validation, batch_size=4, seed=5, workers=workers)
            found.append((together(epoch(slices, 1)), together(epoch(slices, 0, "val")), torch.rand(3)))
        (trained, validated, after), (trained_2, validated_2, after_2) = found
        assert all(map(torch.equal, trained, trained_2))
        assert all(map(torch.equal, validated, validated_2))
        assert torch.equal(after, after_2)

    def test_batches(self) -> None:
        slices = Slices(dataset(cases=5), dataset(cases=2), batch_size=4, seed=5, workers=0)
        assert [len(image) for image, _ in epoch(slices, 0)] == [4, 4, 4]  # of 15; 3 are left out
        assert [len(image) for image, _ in epoch(slices, 0, "val")] == [4, 2]
        assert not any(map(torch.equal, together(epoch(slices, 0)), together(epoch(slices, 1))))
        assert all(map(torch.equal, together(epoch(slices, 1)), together(epoch(slices, 1))))

    def test_processes_share_a_batch(self) -> None:
        one = Slices(dataset(), dataset(), batch_size=6, seed=5, workers=0)
        alone = epoch(one, 0)
        parts = []
        for rank in range(3):
            progress = SimpleNamespace(current=SimpleNamespace(processed=0))
            one.trainer = SimpleNamespace(  # type: ignore[assignment]
                global_rank=rank, world_size=3, fit_loop=SimpleNamespace(epoch_progress=progress)
            )
            parts.append(epoch(one, 0))
        for whole, *shares in zip(alone, *parts, strict=True):
            images = torch.cat([image for image, _ in shares])
            assert len(images) == 6
            assert all(any(torch.equal(image, other) for other in whole[0]) for image in images)

    def test_no_validation(self) -> None:
        assert list(Slices(dataset(), dataset(cases=0), batch_size=4, seed=0, workers=0).val_dataloader()) == []
