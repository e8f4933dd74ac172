"""How CT lies in pictures: front up, the patient's right side on the left, as radiologists look at it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Organs that tell how a body lies, whatever the order of its voxels.
RIGHT, LEFT = ("liver", "right kidney", "gallbladder"), ("spleen", "left kidney", "stomach")
FRONT, BACK = ("liver", "stomach", "pancreas"), ("left kidney", "right kidney", "aorta")


@dataclass(frozen=True)
class View:
    """How slices are turned for a picture.

    Args:
        flipped: Axes of ``(..., H, W)`` that are reversed: -2 rows, -1 columns.
        marked: Whether the sides are known, so that R and L are written at them.
    """

    flipped: tuple[int, ...] = ()
    marked: bool = False

    def turn(self, slices: NDArray[Any]) -> NDArray[Any]:
        """Slices ``(..., H, W)`` as they are shown."""
        return np.flip(slices, self.flipped)


AS_STORED = View()
CT = View((-2,), marked=True)  # rows run from back to front and columns from right to left, see medseg/data/nifti.py


def view_of_labels(labels: NDArray[Any], classes: Sequence[str]) -> View:
    """How to turn labels ``(Z, H, W)`` of abdominal organs, by where these lie; as stored where they don't tell.

    Files of arrays say nothing of how a patient lies in them, and sets made by others lie in several ways.
    """
    places = {name: np.argwhere(labels == index).mean(0) for index, name in enumerate(classes, 1) if index in labels}
    right, left, front, back = (_mean(places, names) for names in (RIGHT, LEFT, FRONT, BACK))
    if right is None or left is None or front is None or back is None:
        return AS_STORED
    return View((*((-2,) if back[1] < front[1] else ()), *((-1,) if left[2] < right[2] else ())), marked=True)


def _mean(places: dict[str, NDArray[Any]], names: Sequence[str]) -> NDArray[Any] | None:
    found = [places[name] for name in names if name in places]
    return np.mean(found, axis=0) if found else None
