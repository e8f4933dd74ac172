import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medseg.training.transforms import IMAGE_PADDING, as_rgb, fit_square, resize, shrink, unfit_square


@pytest.mark.parametrize("shape", [(512, 512), (101, 122), (122, 101), (40, 200), (1, 9), (9, 1), (1, 1)])
def test_label_comes_back_from_its_square(shape: tuple[int, int]) -> None:
    label = torch.zeros(shape, dtype=torch.uint8)
    label[shape[0] // 4 : shape[0] // 2 + 1, shape[1] // 3 : shape[1] // 2 + 1] = 5
    square = fit_square(label[None], 256)
    assert square.shape == (1, 256, 256)
    back = unfit_square(square, *shape)[0]
    assert back.shape == shape
    if max(shape) <= 256:  # enlarging loses nothing
        assert torch.equal(back, label)
    else:
        assert (back != label).float().mean() < 0.01


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 100))
def test_any_size_fits_any_square_and_comes_back(height: int, width: int, size: int) -> None:
    label = torch.randint(0, 4, (1, height, width), dtype=torch.uint8)
    square = fit_square(label, size)
    assert square.shape == (1, size, size)
    back = unfit_square(square, height, width)
    assert back.shape == label.shape
    if max(height, width) <= size:
        assert torch.equal(back, label)


def test_aspect_is_kept_and_padding_is_the_papers() -> None:
    square = fit_square(torch.ones(1, 50, 100), 64)[0]
    assert torch.allclose(square[16:48], torch.ones(32, 64))
    for border in (square[:16], square[48:]):
        assert torch.allclose(border, torch.full((16, 64), IMAGE_PADDING))
    assert not fit_square(torch.ones(1, 50, 100, dtype=torch.uint8), 64)[0, :16].any()


def test_image_and_label_stay_aligned() -> None:
    label = torch.zeros(1, 90, 120, dtype=torch.uint8)
    label[:, 30:60, 45:75] = 1
    image, label = fit_square(label.float(), 64), fit_square(label, 64)
    assert torch.equal(image[label == 1].round(), torch.ones(int(label.sum())))


def test_a_square_of_its_own_size_changes_nothing() -> None:
    image = torch.rand(3, 48, 48)
    assert torch.equal(fit_square(image, 48), image)


def test_a_fine_pattern_does_not_alias() -> None:
    stripes = torch.arange(128).remainder(2).float().expand(1, 128, 128)
    assert torch.allclose(resize(stripes, 32, 32), torch.tensor(0.5), atol=0.05)


@pytest.mark.parametrize(
    ("shape", "shrunk"), [((40, 60), (40, 60)), ((64, 64), (64, 64)), ((128, 96), (64, 48)), ((1, 600), (1, 64))]
)
def test_shrink(shape: tuple[int, int], shrunk: tuple[int, int]) -> None:
    x = torch.rand(1, *shape)
    assert shrink(x, 64).shape == (1, *shrunk)
    assert shrunk != shape or torch.equal(shrink(x, 64), x)


def test_as_rgb() -> None:
    grey, colour = torch.rand(2, 1, 4, 5), torch.rand(2, 3, 4, 5)
    assert torch.equal(as_rgb(grey), torch.cat((grey, grey, grey), 1))
    assert torch.equal(as_rgb(colour), colour)
