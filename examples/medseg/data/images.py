"""Read RGB images, masks and class numbers of 2-D images as any viewer shows them.

PNG, JPEG, TIFF, BMP and GIF are told by their content. An EXIF orientation is applied, to masks as to images, so that
predictions and overlays lie as the image is seen. What has no single meaning is refused in words: transparency, colours
in a mask, several pages. What has one is read, and noted where it is unusual (``medseg.errors``).
"""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from medseg.data.dataset import Volume
from medseg.data.folders import IMAGE_SUFFIXES, beginning, kind_of, stem_of
from medseg.errors import DataError, note
from medseg.files import check_label, reading, some_of

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # of what is large, but not refused
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF")
ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
SHALLOW = {"L;2": 3, "L;4": 15, "L;2I": 3, "L;4I": 15}  # largest number at these depths, which Pillow makes 255


@dataclass(frozen=True)
class Opened:
    """An upright image as Pillow decodes it, with what is lost on the way: its format, and its largest grey value."""

    image: Image.Image
    format: str
    top: int


def read_image(path: Path) -> NDArray[np.uint8]:
    """An 8-bit RGB image ``(H, W, 3)``, upright; grey is repeated over the channels, 16 bits are scaled to 8."""

    def read() -> NDArray[np.uint8]:
        image = _opaque(path, _open(path).image)
        if image.mode.startswith("I"):
            return _from_16_bits(path, np.array(image))
        if image.mode in ("CMYK", "YCbCr"):
            note("%s: colours are %s, converted to RGB", path, image.mode)
        elif image.mode not in ("RGB", "L", "P", "1"):
            raise DataError(f"{path}: colour mode {image.mode}; wanted 8-bit RGB or grey, convert it to PNG")
        return np.array(image.convert("RGB"))  # a copy, because torch wants to be able to write

    return reading(path, read)


def read_mask(path: Path) -> NDArray[np.uint8]:
    """A binary mask ``(H, W)`` of 0 and 1, stored as black and white or as 0 and 1, at any depth or in a palette."""

    def read() -> NDArray[np.uint8]:
        opened = _open(path)
        numbers = _numbers(path, opened, "0 and 255")
        values = np.unique(numbers)
        if opened.image.mode == "P":
            greys = _greys(opened.image, values)
            if greys is not None and np.isin(greys, (0, 255)).all():  # black and white, whatever their numbers are
                return (np.array(opened.image.convert("L")) > 0).astype(np.uint8)
            if not np.isin(values, (0, 1)).all() and not np.isin(values, (0, 255)).all():
                raise DataError(
                    f"{path}: mask has the numbers {some_of(values)} of a palette ({_colours(opened.image, values)}); "
                    "wanted two of them, 0 and 1, or black and white"
                )
            note("%s: mask in palette colours; number 0 is taken as background, the other as foreground", path)
        elif not any(np.isin(values, (0, top)).all() for top in {1, 255, opened.top}):
            because = ": JPEG blurs masks, save them as PNG" if opened.format == "JPEG" else ""
            raise DataError(f"{path}: mask has values {some_of(values)}; wanted 0 and 255, or 0 and 1{because}")
        return (numbers > 0).astype(np.uint8)

    return reading(path, read)


def read_labels(path: Path) -> NDArray[np.uint8]:
    """The class of every pixel ``(H, W)``, stored as grey value or as number in a palette: 0, 1, 2, ..."""

    def read() -> NDArray[np.uint8]:
        opened = _open(path)
        if opened.format in ("JPEG", "GIF"):
            why = "blurs them" if opened.format == "JPEG" else "has numbered its colours anew"
            raise DataError(f"{path}: labels in a {opened.format}, which {why}; save them as PNG")
        numbers = _numbers(path, opened, "0, 1, 2, ...")
        if opened.image.mode == "P":
            if _greys(opened.image, np.unique(numbers)) is not None:  # some programs number greys anew
                greys: NDArray[np.uint8] = _palette(opened.image)[numbers, 0].astype(np.uint8)
                return greys
            note("%s: labels in palette colours, read as the numbers of the palette", path)
        if numbers.max() > 255:
            raise DataError(f"{path}: labels run to {numbers.max()}; wanted class numbers from 0 to 255")
        return numbers.astype(np.uint8)

    return reading(path, read)


def colours_of_labels(path: Path) -> dict[int, str]:
    """The colour of every number in a mask with a palette of colours; empty for one without."""

    def read() -> dict[int, str]:
        image = _open(path).image
        values = np.unique(np.array(image)) if image.mode == "P" else np.empty(0, int)
        if not len(values) or _greys(image, values) is not None:
            return {}
        return dict(zip(values.tolist(), _colours(image, values, len(values)).split(", "), strict=True))

    return reading(path, read)


def read_image_and_mask(
    image_path: Path, mask_path: Path, read: Callable[[Path], NDArray[np.uint8]] = read_mask, classes: int = 2
) -> Volume:
    """Read and check an image and its mask.

    Args:
        image_path, mask_path: Of the files; the name of the image is that of the case.
        read: ``read_mask``, or ``read_labels`` for several classes.
        classes: How many, with the background.
    """
    image, label = read_image(image_path), read(mask_path)
    if image.shape[:2] != label.shape:
        why = ""
        if label.shape == image.shape[1::-1] and _orientation(image_path) > 4:
            why = (
                "; the image is turned by its EXIF orientation and the mask is not: it fits the image as stored. "
                "Take the orientation out of the image: `exiftool -Orientation= FILE`"
            )
        raise DataError(f"{image_path} is {image.shape[:2]} but {mask_path} is {label.shape}; they must be equal{why}")
    checked = check_label(mask_path, label, label.shape, classes)
    return Volume(stem_of(image_path, IMAGE_SUFFIXES), image.transpose(2, 0, 1)[None], checked[None])


def _open(path: Path) -> Opened:
    content = io.BytesIO(path.read_bytes())
    try:
        with Image.open(content, formats=FORMATS) as image:
            kind, pages = str(image.format), getattr(image, "n_frames", 1)
            image.verify()  # the checksums of a PNG, at which decoding does not look
        image = Image.open(content, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path}: {str(error).partition('(')[2].partition(' ')[0]} pixels, more than are read of one image; scale "
            "it down or cut it into tiles, or fetch it again if it has fewer"
        ) from error
    except UnidentifiedImageError as error:  # whose text is the address of an object
        found = kind_of(beginning(path))
        why = "damaged, or stored in a way that Pillow can't read" if found.endswith("image") else "no image"
        raise DataError(
            f"cannot read {path}: it is {found}, {why}; wanted 8-bit PNG or JPEG, fetch it again or convert it"
        ) from error
    if pages > 1 and kind in ("TIFF", "GIF", "PNG"):
        raise DataError(f"{path} holds {pages} images; wanted one a file, e.g. `magick {path.name} page%d.png`")
    tile: Any = image.tile[0][3] if image.tile else ""
    raw = tile if isinstance(tile, str) else tile[0] if tile else ""
    if ";16" in str(raw) and not image.mode.startswith("I"):
        raise DataError(
            f"{path}: 16 bits for each of several channels, of which only the upper 8 would be read; save labels as "
            "one channel, and scale images to 8 bits by one factor for the whole set"
        )
    turned = _orientation_of(image)
    if turned != 1:
        note("%s: turned upright by its EXIF orientation", path)
        image = ImageOps.exif_transpose(image)
    top = 65535 if image.mode.startswith("I") else SHALLOW.get(raw, 255)
    return Opened(image, "JPEG" if kind == "MPO" else kind, top)


def _orientation(path: Path) -> int:
    with Image.open(path) as image:
        return _orientation_of(image)


def _orientation_of(image: Image.Image) -> int:
    turned = image.getexif().get(ORIENTATION, 1)
    return turned if turned in range(1, 9) else 1  # Pillow warns of damaged EXIF, which says nothing


def _opaque(path: Path, image: Image.Image) -> Image.Image:
    """The image without an alpha channel, which must not hide anything."""
    if not image.has_transparency_data or image.mode.startswith("I"):
        return image
    whole = image.convert("RGBA")
    if np.array(whole.getchannel("A")).min() < 255:
        raise DataError(
            f"{path}: transparent in places (colour mode {image.mode}), where colours mean nothing; flatten it, "
            f"e.g. `magick {path.name} -background black -alpha remove -alpha off OUT.png`"
        )
    note("%s: alpha channel dropped, it hides nothing", path)
    if image.mode == "P":
        image.info.pop("transparency")
        return image
    return whole.convert("L" if image.mode in ("LA", "L", "1") else "RGB")


def _from_16_bits(path: Path, values: NDArray[Any]) -> NDArray[np.uint8]:
    if values.min() < 0 or not 4096 <= values.max() <= 65535:
        raise DataError(
            f"{path}: 16-bit grey values run from {values.min()} to {values.max()}, of 65535; scale the images of the "
            "set to 8 bits by one factor, or they would be nearly black"
        )
    note("%s: 16-bit grey, divided by 257 to 8 bits", path)
    grey = np.rint(values / 257).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def _numbers(path: Path, opened: Opened, wanted: str) -> NDArray[Any]:
    """The number of every pixel as the file stores it."""
    image = _opaque(path, opened.image)
    if image.mode == "RGB":
        red, green, blue = (np.array(channel) for channel in image.split())
        if not (np.array_equal(red, green) and np.array_equal(red, blue)):
            colours = np.unique(np.array(image).reshape(-1, 3), axis=0)
            raise DataError(
                f"{path}: colour mode RGB, the colours {some_of([tuple(c.tolist()) for c in colours])}; wanted one "
                f"number a pixel: {wanted}"
            )
        note("%s: grey stored as RGB, read as one channel", path)
        return red
    if image.mode == "F":
        values = np.array(image)
        if not np.isfinite(values).all() or (values != np.rint(values)).any():
            raise DataError(f"{path}: values {some_of(np.unique(values))}; wanted whole numbers: {wanted}")
        return values.astype(np.int64)
    if image.mode not in ("L", "P", "1") and not image.mode.startswith("I"):
        raise DataError(f"{path}: colour mode {image.mode}; wanted one channel: {wanted}")
    numbers = np.array(image)
    if image.mode.startswith("I"):
        note("%s: numbers of 16 or 32 bits, read as they are", path)
    return numbers.astype(np.uint8) // (255 // opened.top) if opened.top < 255 else numbers.astype(np.int64)


def _greys(image: Image.Image, values: NDArray[Any]) -> NDArray[Any] | None:
    """The greys that numbers of a palette stand for; ``None`` if one of them is a colour."""
    colours = _palette(image)[values]
    return colours[:, 0] if (colours == colours[:, :1]).all() else None


def _palette(image: Image.Image) -> NDArray[Any]:
    stored = np.array(image.getpalette("RGB") or []).reshape(-1, 3)
    colours = np.zeros((256, 3), int)
    colours[: len(stored)] = stored
    return colours


def _colours(image: Image.Image, values: NDArray[Any], most: int = 8) -> str:
    return ", ".join("#{:02x}{:02x}{:02x}".format(*colour) for colour in _palette(image)[values][:most])
