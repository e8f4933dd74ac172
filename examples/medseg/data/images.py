"""Read images, masks and lists of names that may be damaged, never trusting what is in them."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medseg.data.arrays import reading, some_of
from medseg.errors import DataError


def read_image(path: Path) -> NDArray[np.uint8]:
    """An 8-bit RGB photograph ``(H, W, 3)``; grey ones are repeated over the channels."""

    def read() -> NDArray[np.uint8]:
        image = _open_image(path)
        if image.mode not in ("RGB", "L", "P"):
            raise DataError(f"{path}: colour mode {image.mode}; wanted an 8-bit RGB or grey image without alpha")
        return np.array(image.convert("RGB"))  # a copy, because torch wants to be able to write

    return reading(path, read)


def read_mask(path: Path) -> NDArray[np.uint8]:
    """A binary mask ``(H, W)`` of 0 and 1, stored as black and white or as 0 and 1."""

    def read() -> NDArray[np.uint8]:
        image = _open_image(path)
        if image.mode not in ("L", "P", "1"):
            raise DataError(f"{path}: mask has colour mode {image.mode}; wanted one channel of 0 and 255")
        return np.array(image.convert("L"))  # the grey values that a palette stands for, not the numbers in it

    mask = reading(path, read)
    values = np.unique(mask)
    if not (np.isin(values, (0, 255)).all() or np.isin(values, (0, 1)).all()):
        raise DataError(f"{path}: mask has values {some_of(values)}; wanted 0 and 255")
    return (mask > 0).astype(np.uint8)


def read_labels(path: Path) -> NDArray[np.uint8]:
    """The class of every pixel ``(H, W)``, stored as grey value or as number in a palette: 0, 1, 2, ..."""

    def read() -> NDArray[np.uint8]:
        image = _open_image(path)
        if image.mode not in ("L", "P", "1"):
            raise DataError(
                f"{path}: labels have colour mode {image.mode}; wanted one channel or a palette with the numbers of "
                "the classes: 0, 1, 2, ..."
            )
        return np.array(image).astype(np.uint8)

    return reading(path, read)


def read_list(path: Path, what: str) -> list[str]:
    """The names in a list file, one a line."""
    if not path.is_file():
        raise DataError(f"no list {path}; it names {what} a line")
    try:
        names = path.read_text(encoding="utf-8").split()
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {path}: {error}; wanted a text file that names {what} a line") from error
    if not names:
        raise DataError(f"{path} is empty; it names {what} a line")
    repeated = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()
    if repeated:
        raise DataError(f"{path} names {some_of(sorted(repeated))} more than once; remove the repetition")
    return names


def require(paths: Sequence[Path], source: Path) -> None:
    """Raise unless every path that ``source`` speaks of is a file."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(f"{len(missing)} of {len(paths)} files named in {source} are missing, first {missing[0]}")


def _open_image(path: Path) -> Image.Image:
    content = io.BytesIO(path.read_bytes())
    with Image.open(content, formats=("JPEG", "PNG")) as image:
        image.verify()  # the checksums of a PNG, at which decoding does not look
    return Image.open(content, formats=("JPEG", "PNG"))
