"""Check what was read from a file."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError

Array = NDArray[Any]
Spacing = tuple[float, float, float]


def check_image(path: Path, image: Array, dimensions: int) -> NDArray[np.float32]:
    """An image of grey values in [0, 1] with that many dimensions, as float32."""
    if image.ndim != dimensions or image.size == 0:
        raise DataError(f"{path}: image has shape {image.shape}; wanted {dimensions} dimensions, none of them empty")
    if not np.isfinite(image).all():
        raise DataError(f"{path}: image has {np.count_nonzero(~np.isfinite(image))} NaN or infinite values")
    if image.min() < 0 or image.max() > 1:
        raise DataError(
            f"{path}: image values run from {image.min():g} to {image.max():g}; wanted [0, 1] "
            "(examples/prepare.py scales the original releases)"
        )
    return image.astype(np.float32)


def check_label(path: Path, label: Array, shape: tuple[int, ...], classes: int) -> NDArray[np.uint8]:
    """A label of whole numbers below ``classes`` and of the shape of its image, as uint8."""
    if label.shape != shape:
        raise DataError(f"{path}: image has shape {shape} but label {label.shape}; they must be equal")
    with np.errstate(invalid="ignore"):  # NaN becomes some number, which it does not equal
        whole: NDArray[np.uint8] = label.astype(np.uint8)
    if (whole != label).any() or whole.max() >= classes:
        values = some_of(np.unique(label))
        raise DataError(f"{path}: label has values {values}; wanted whole numbers from 0 to {classes - 1}")
    return whole


def check_spacing(path: Path, spacing: Array | None) -> Spacing | None:
    """Millimetres between voxels along z, y and x, where a file holds them."""
    if spacing is None:
        return None
    if spacing.shape != (3,) or not np.isfinite(spacing).all() or (spacing <= 0).any():
        raise DataError(f"{path}: spacing is {spacing.tolist()}; wanted three lengths above 0 in millimetres: z, y, x")
    z, y, x = (float(value) for value in spacing)
    return z, y, x


def some_of(values: Any) -> str:
    """The first of some values, for a message."""
    listed = [value.item() if isinstance(value, np.generic) else value for value in values]
    return str(listed) if len(listed) <= 8 else f"{listed[:8]} and {len(listed) - 8} more"
