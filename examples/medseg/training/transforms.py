"""Slices as networks take them: resized onto a padded square and back, and the paper's augmentation, section 4.3."""

from dataclasses import dataclass

import torch
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


SCALE = (0.8, 1.2)
ASPECT_JITTER = 0.3
FLIP = 0.5
HUE, SATURATION, VALUE = 0.1, 0.7, 0.3


@dataclass(frozen=True)
class Augmentation:
    """Scale, stretch, flip and shift a slice onto a padded square, and jitter the colours of an RGB image.

    The longer side becomes ``scale * size`` with scale in [0.8, 1.2]; the aspect is multiplied by the ratio of two
    numbers in [0.7, 1.3]; half of the slices are mirrored left to right; the result lies anywhere in the square, cut
    where it is larger and padded (image 128/255, label 0) where it is smaller. Image and label move together.

    Random numbers come from torch's global generator.

    Args:
        size: Side of the square.
        colour: Also jitter in HSV space: the hue is shifted by up to 0.1 of the circle either way, saturation and value
            are multiplied by numbers in 1 +- 0.7 and 1 +- 0.3. The paper says "hue/saturation/value jittering (hue 0.1,
            saturation 0.7, value 0.3)" and no more, which allows a shift, as torchvision's ColorJitter has it. The
            training code from whose settings those of the paper seem to be multiplies the hue: reds lie at both ends of
            its scale, so of a dark red lesion some pixels hardly change and their neighbours turn by up to 36 degrees,
            into patches with hard edges.
    """

    size: int
    colour: bool

    def __call__(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Image ``(C, H, W)`` in [0, 1] and label ``(H, W)`` -> ``(C, size, size)`` and ``(size, size)``."""
        h, w = self._size_of_content(*label.shape)
        image, label = resize(image, h, w), resize(label[None], h, w)[0]
        if torch.rand(()) < FLIP:
            image, label = image.flip(-1), label.flip(-1)
        if self.colour:
            hue, saturation, value = ((2 * torch.rand(3) - 1) * torch.tensor([HUE, SATURATION, VALUE])).tolist()
            image = jitter_hsv(image, hue, 1 + saturation, 1 + value)
        top, left = (_between(min(0, self.size - n), max(0, self.size - n)) for n in (h, w))
        return self._paste(image, top, left, IMAGE_PADDING), self._paste(label, top, left, LABEL_PADDING)

    def _size_of_content(self, height: int, width: int) -> tuple[int, int]:
        low, high = 1 - ASPECT_JITTER, 1 + ASPECT_JITTER
        aspect = width / height * _uniform(low, high) / _uniform(low, high)
        side = self.size * _uniform(*SCALE)
        h, w = (side, side * aspect) if aspect < 1 else (side / aspect, side)
        return max(1, round(h)), max(1, round(w))

    def _paste(self, x: Tensor, top: int, left: int, fill: float) -> Tensor:
        canvas = x.new_full((*x.shape[:-2], self.size, self.size), fill)
        h, w = x.shape[-2:]
        y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + h, self.size), min(left + w, self.size)
        canvas[..., y0:y1, x0:x1] = x[..., y0 - top : y1 - top, x0 - left : x1 - left]
        return canvas


def jitter_hsv(image: Tensor, hue: float, saturation: float, value: float) -> Tensor:
    """Shift the hue of every pixel around the circle, and multiply saturation and value, which end at 1.

    Args:
        image: ``(3, H, W)`` in [0, 1].
        hue: Shift, in turns of the circle; 0 changes nothing.
        saturation, value: Factors; 1 changes nothing.
    """
    red, green, blue = image
    v, which = image.max(0)
    chroma = (v - image.amin(0)).clamp_min(1e-6)  # of grey, whose hue does not matter, something above 0
    sector = torch.stack(((green - blue) % (6 * chroma), blue - red + 2 * chroma, red - green + 4 * chroma))
    h = sector.gather(0, which[None])[0] / chroma  # in sixths of the circle, red is 0
    s = chroma / v.clamp_min(1e-6)
    h, s, v = h + 6 * hue, (s * saturation).clamp_max(1), (v * value).clamp_max(1)
    # Of each channel: 1 where the hue is that of the other side of the circle, 0 in the third around its own.
    k = (h + torch.tensor([5, 3, 1]).view(3, 1, 1)) % 6
    return v - v * s * torch.minimum(k, 4 - k).clamp(0, 1)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _between(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))
