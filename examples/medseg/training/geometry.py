"""Aspect-preserving resize onto a padded square, and back."""

from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

IMAGE_PADDING = 128 / 255  # the paper pads 8-bit images with 128
LABEL_PADDING = 0


def fit_square(x: Tensor, size: int) -> Tensor:
    """Resize the longer side to ``size``, keeping the aspect, and pad the shorter side equally on both ends.

    Args:
        x: ``(..., H, W)``: a float image in [0, 1], resized bilinearly with antialiasing and padded with 128/255,
            or an integer label, resized to the nearest neighbour and padded with 0.
        size: Side of the square.

    Returns:
        ``(..., size, size)``.
    """
    h, w = _inner_size(x.shape[-2], x.shape[-1], size)
    top, left = (size - h) // 2, (size - w) // 2
    padding = [left, top, size - w - left, size - h - top]
    padded: Tensor = tv.pad(resize(x, h, w), padding, fill=IMAGE_PADDING if x.is_floating_point() else LABEL_PADDING)
    return padded


def unfit_square(label: Tensor, height: int, width: int) -> Tensor:
    """Undo ``fit_square`` for a label: cut the padding off and resize to the nearest neighbour.

    Args:
        label: ``(..., S, S)``, integer.
        height, width: Of the slice that was fitted.

    Returns:
        ``(..., height, width)``.
    """
    size = label.shape[-1]
    h, w = _inner_size(height, width, size)
    top, left = (size - h) // 2, (size - w) // 2
    inner = label[..., top : top + h, left : left + w]
    return resize(inner, height, width)


def resize(x: Tensor, height: int, width: int) -> Tensor:
    """Resize a float image bilinearly with antialiasing, an integer label to the nearest neighbour."""
    is_image = x.is_floating_point()
    mode = InterpolationMode.BILINEAR if is_image else InterpolationMode.NEAREST_EXACT
    resized: Tensor = tv.resize(x, [height, width], interpolation=mode, antialias=is_image)
    return resized


def shrink(x: Tensor, longest: int) -> Tensor:
    """Resize ``(..., H, W)`` so that no side is longer than that, keeping the aspect; smaller ones stay as they are."""
    height, width = x.shape[-2:]
    return x if max(height, width) <= longest else resize(x, *_inner_size(height, width, longest))


def as_rgb(image: Tensor) -> Tensor:
    """Repeat a grey image ``(..., 1, H, W)`` over three channels; one with three stays as it is."""
    return image.expand(*image.shape[:-3], 3, *image.shape[-2:])


def _inner_size(height: int, width: int, size: int) -> tuple[int, int]:
    scale = size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))
