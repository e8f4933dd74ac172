"""The paper's online augmentation: its ranges, its padding, and image and label that move together."""

import colorsys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medseg.training.transforms import IMAGE_PADDING, Augmentation, jitter_hsv


def augment(augmentation: Augmentation, image: Tensor, label: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return augmentation(image, label)


def extents(height: int, width: int, size: int, count: int) -> Iterator[tuple[int, int, int, int]]:
    """Top, left, height and width of the content of many augmented slices; only those that were not cut."""
    grey = Augmentation(size, colour=False)
    for seed in range(count):
        _, label = augment(grey, torch.ones(1, height, width), torch.ones(height, width, dtype=torch.uint8), seed)
        rows, columns = label.any(1).nonzero().flatten(), label.any(0).nonzero().flatten()
        top, left, h, w = int(rows[0]), int(columns[0]), len(rows), len(columns)
        assert label[top : top + h, left : left + w].all()  # a rectangle
        assert not (label.sum() - h * w)
        yield top, left, h, w


class TestGeometry:
    def test_scale_is_drawn_evenly_from_its_range(self) -> None:
        # Content of a large slice never fills the square here, so its longer side shows the scale. It is cut at the
        # square where the scale is over 1, so half of the draws are at the limit.
        longest = torch.tensor([max(h, w) for _, _, h, w in extents(50, 50, 100, 600)], dtype=torch.float)
        assert longest.min() >= 80
        assert (longest == 100).float().mean() == pytest.approx(0.5, abs=0.07)
        below = longest[longest < 100]
        assert below.min() < 82
        assert below.mean() == pytest.approx(90, abs=1)

    def test_sizes_before_cutting(self) -> None:
        torch.manual_seed(0)
        augmentation = Augmentation(1000, colour=False)
        sizes = torch.tensor([augmentation._size_of_content(300, 400) for _ in range(4000)]).float()
        longest, aspect = sizes.amax(1), sizes[:, 1] / sizes[:, 0] / (400 / 300)
        assert (longest.min() >= 800, longest.max() <= 1200) == (True, True)
        assert longest.mean() == pytest.approx(1000, abs=8)
        assert (longest.min(), longest.max()) == (pytest.approx(800, abs=3), pytest.approx(1200, abs=3))
        assert 0.7 / 1.3 - 0.005 <= aspect.min() < 0.57
        assert 1.75 < aspect.max() <= 1.3 / 0.7 + 0.005
        assert aspect.median() == pytest.approx(1, abs=0.02)  # as often wider as narrower

    def test_half_of_the_slices_are_mirrored(self) -> None:
        image = torch.linspace(0, 0.4, 60).expand(1, 60, 60)  # brighter to the right; darker than the padding
        mirrored = []
        for seed in range(400):
            content = augment(Augmentation(64, colour=False), image, torch.ones(60, 60, dtype=torch.uint8), seed)
            columns = content[1].any(0).nonzero().flatten()
            row = content[0][0, content[1].any(1).nonzero()[0, 0]]
            mirrored.append(bool(row[columns[0]] > row[columns[-1]]))
        assert sum(mirrored) / 400 == pytest.approx(0.5, abs=0.08)

    def test_up_and_down_are_never_exchanged(self) -> None:
        image = torch.linspace(0, 0.4, 60)[:, None].expand(1, 60, 60)
        for seed in range(50):
            image_, label = augment(Augmentation(64, colour=False), image, torch.ones(60, 60, dtype=torch.uint8), seed)
            rows = label.any(1).nonzero().flatten()
            column = image_[0, :, label.any(0).nonzero()[0, 0]]
            assert column[rows[0]] < column[rows[-1]]

    def test_position_is_drawn_evenly_from_all_that_fit(self) -> None:
        found = [(top, left, 100 - h, 100 - w) for top, left, h, w in extents(50, 100, 100, 800)]
        share = torch.tensor([top / free for top, _, free, _ in found if free > 10])
        assert len(share) > 500
        assert (share.min(), share.max()) == (0, 1)
        assert share.mean() == pytest.approx(0.5, abs=0.04)
        assert share.std() == pytest.approx(12**-0.5, abs=0.03)  # of a uniform distribution
        assert all(0 <= left <= free for _, left, _, free in found)

    def test_content_that_is_larger_is_cut_anywhere(self) -> None:
        ramp = torch.linspace(0, 1, 300).expand(1, 300, 300)
        firsts = [
            float(
                augment(Augmentation(100, colour=False), ramp, torch.zeros(300, 300, dtype=torch.uint8), seed)[0].min()
            )
            for seed in range(100)
        ]  # of the darkest column that was kept
        assert min(firsts) < 0.01
        assert max(firsts) > 0.05

    def test_padding(self) -> None:
        label = torch.full((40, 100), 3, dtype=torch.uint8)
        for colour in (False, True):
            for seed in range(30):
                image = torch.zeros(3 if colour else 1, 40, 100)
                padded, kept = augment(Augmentation(64, colour=colour), image, label, seed)
                assert set(kept.unique().tolist()) == {0, 3}
                outside = padded[:, kept == 0]
                assert torch.equal(outside, torch.full_like(outside, IMAGE_PADDING))  # 128 / 255, not jittered
                assert not padded[:, kept == 3].any()

    @pytest.mark.parametrize("shape", [(120, 150), (400, 300), (64, 64)])
    def test_image_and_label_move_together(self, shape: tuple[int, int]) -> None:
        y, x = torch.meshgrid(torch.linspace(-1, 1, shape[0]), torch.linspace(-1, 1, shape[1]), indexing="ij")
        inside = ((x - 0.3) / 0.4) ** 2 + ((y + 0.2) / 0.6) ** 2 < 1
        label = torch.where(inside, 2, 1).to(torch.uint8)  # 0 is what lies beside the slice afterwards
        for seed in range(40):
            image, moved = augment(Augmentation(96, colour=False), inside[None].float(), label, seed)
            bright, labelled = (image[0] > 0.5) & (moved > 0), moved == 2
            assert (bright & labelled).sum() / (bright | labelled).sum() > 0.96, seed

    def test_labels_are_never_mixed(self) -> None:
        label = torch.tensor([[1, 5], [8, 2]], dtype=torch.uint8).repeat_interleave(37, 0).repeat_interleave(41, 1)
        for seed in range(20):
            image, moved = augment(Augmentation(64, colour=False), torch.rand(1, *label.shape), label, seed)
            assert set(moved.unique().tolist()) <= {0, 1, 2, 5, 8}
            assert (moved.dtype, image.dtype) == (torch.uint8, torch.float32)

    @settings(max_examples=60)
    @given(st.integers(1, 600), st.integers(1, 600), st.integers(1, 80), st.booleans(), st.integers(0, 2**31))
    def test_any_size(self, height: int, width: int, size: int, colour: bool, seed: int) -> None:
        self.check(height, width, size, colour, seed)

    @pytest.mark.parametrize("shape", [(1, 1), (40, 600), (600, 40), (1, 600), (600, 1)])
    def test_extreme_sizes(self, shape: tuple[int, int]) -> None:
        for seed in range(10):
            self.check(*shape, 32, True, seed)

    def check(self, height: int, width: int, size: int, colour: bool, seed: int) -> None:
        image = torch.rand(3 if colour else 1, height, width)
        before = image.clone()
        label = torch.randint(0, 9, (height, width), dtype=torch.uint8)
        augmented, moved = augment(Augmentation(size, colour=colour), image, label, seed)
        assert augmented.shape == (len(image), size, size)
        assert moved.shape == (size, size)
        assert 0 <= augmented.min() <= augmented.max() <= 1
        assert torch.equal(image, before)  # the data set keeps it


class TestRandomness:
    def test_seed_decides_everything(self) -> None:
        image, label = torch.rand(3, 50, 60), torch.randint(0, 2, (50, 60), dtype=torch.uint8)
        one, same, other = (augment(Augmentation(64, colour=True), image, label, seed) for seed in (1, 1, 2))
        assert torch.equal(one[0], same[0])
        assert torch.equal(one[1], same[1])
        assert not torch.equal(one[0], other[0])


def hsv_by_hand(rgb: list[float], hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    h, s, v = colorsys.rgb_to_hsv(*rgb)
    return colorsys.hsv_to_rgb((h + hue) % 1, min(1, s * saturation), min(1, v * value))


EDGES = [
    (0.0, 0.0, 0.0),
    (1.0, 1.0, 1.0),
    (0.5, 0.5, 0.5),
    (1.0, 0.0, 0.0),
    (0.0, 1.0, 0.0),
    (0.0, 0.0, 1.0),
    (1.0, 1.0, 0.0),
    (0.0, 1.0, 1.0),
    (1.0, 0.0, 1.0),
    (1 / 255, 0.0, 0.0),
    (0.5, 0.5, 0.5 + 1 / 255),
    (0.9, 0.9, 0.1),
]
FACTORS = [
    (0.0, 1.0, 1.0),
    (-0.1, 1.0, 1.0),
    (0.1, 1.0, 1.0),
    (0.0, 0.3, 1.0),
    (0.0, 1.7, 1.0),
    (0.0, 1.0, 0.7),
    (0.0, 1.0, 1.3),
    (0.1, 1.7, 1.3),
    (-0.07, 0.4, 1.2),
]


class TestColour:
    @pytest.mark.parametrize("factors", FACTORS)
    def test_jitter_is_that_of_hsv_space(self, factors: tuple[float, float, float]) -> None:
        generator = torch.Generator().manual_seed(0)
        photographic = torch.randint(0, 256, (400, 3), generator=generator) / 255
        pixels = torch.cat((torch.tensor(EDGES), photographic, torch.rand(400, 3, generator=generator)))
        jittered = jitter_hsv(pixels.T[:, None], *factors)[:, 0].T
        expected = torch.tensor([hsv_by_hand(rgb, *factors) for rgb in pixels.tolist()])
        torch.testing.assert_close(jittered, expected, atol=2e-5, rtol=0)

    def test_factors_come_from_their_ranges(self, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn = []

        def note(image: Tensor, *factors: float) -> Tensor:
            drawn.append(factors)
            return image

        monkeypatch.setattr("medseg.training.transforms.jitter_hsv", note)
        for seed in range(1000):
            augment(Augmentation(4, colour=True), torch.rand(3, 4, 4), torch.zeros(4, 4, dtype=torch.uint8), seed)
        factors = torch.tensor(drawn)
        for column, middle, reach in zip(factors.T, (0, 1, 1), (0.1, 0.7, 0.3), strict=True):
            assert (column.min(), column.max()) == (
                pytest.approx(middle - reach, abs=0.02 * reach),
                pytest.approx(middle + reach, abs=0.02 * reach),
            )
            assert column.mean() == pytest.approx(middle, abs=0.06 * reach)
        assert torch.corrcoef(factors.T).triu(1).abs().max() < 0.12  # drawn independently

    def test_neighbours_in_a_dark_red_lesion_stay_alike(self) -> None:
        """Their hues lie on either side of red, where a scale from 0 to 1 begins and ends."""
        reds = torch.tensor([[0.35, 0.10, 0.11], [0.35, 0.11, 0.10]]).T[:, None]
        for hue in (-0.1, -0.05, 0.05, 0.1):
            one, other = jitter_hsv(reds, hue, 1, 1).unbind(-1)
            assert (one - other).abs().max() < 0.03

    def test_scans_keep_their_grey_values(self) -> None:
        image = torch.full((1, 64, 64), 0.37)
        for seed in range(20):
            augmented, _ = augment(Augmentation(64, colour=False), image, torch.zeros(64, 64, dtype=torch.uint8), seed)
            content = augmented[augmented != IMAGE_PADDING]
            torch.testing.assert_close(content, torch.full_like(content, 0.37))
