"""Read files without trusting what is in them, and write them whole or not at all.

A reader, a full disk or Ctrl-C never leaves half a file under its name. Arrays that are read may be damaged, and are
never unpickled.
"""

import errno
import io
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medseg.errors import DataError, RunError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; it takes its place when everything is written, and goes if that fails."""
    part = path.with_name(f".part.{path.name}")  # keeps the suffix, from which writers know the format
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file in an error that comes up while it is written."""
    try:
        yield
    except OSError as error:
        named = OSError(f"cannot write {path}: {error.strerror or error}")
        named.errno = error.errno  # set afterwards, or it would stand in the message
        raise named from error


def remedy(error: OSError, option: str) -> str:
    """What to do about an error of writing, for someone who gave the folder as ``option``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"free the disk or choose another {option}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"choose another {option}, where you may write"
    return f"choose another {option}"


def check_folder(folder: Path, option: str) -> None:
    """Refuse an output folder that cannot be one, before anything is computed for it.

    Raises:
        RunError: If it, or what is there of the folders above it, is a file or may not be written to.
    """
    there = next((place for place in (folder, *folder.parents) if place.exists()), Path())
    if not there.is_dir():
        raise RunError(f"{option} {folder} cannot be a folder, since {there} is a file; choose another {option}")
    if not os.access(there, os.W_OK):
        raise RunError(f"{option} {folder}: you may not write in {there}; choose another {option}")


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that was made in memory."""
    with atomic_write(path) as part:
        part.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    """Write a result that a person and a program can read; NaN has no place in it."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_image(path: Path, image: Image.Image, **options: Any) -> None:
    """Write a picture in the format that the suffix says."""
    content = io.BytesIO()  # in memory first: where the disk is full, Pillow drops the end of a file without a word
    image.save(content, Image.registered_extensions()[path.suffix.lower()], **options)
    write_bytes(path, content.getvalue())


def write_npz(path: Path, **arrays: Any) -> None:
    """Write arrays to an ``.npz`` file."""
    content = io.BytesIO()  # in memory first: where the disk is full, zipfile complains when it is collected
    np.savez(content, **arrays)
    write_bytes(path, content.getvalue())


def write_h5(path: Path, **arrays: Any) -> None:
    """Write arrays to an HDF5 file."""
    content = io.BytesIO()  # in memory first: where the disk is full, HDF5 itself crashes the process
    with h5py.File(content, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    write_bytes(path, content.getvalue())


T = TypeVar("T")
Array = NDArray[Any]
Spacing = tuple[float, float, float]

DAMAGED = "the file is damaged or incomplete, fetch it again"
LARGEST = 4 * 2**30  # bytes of one array: 512x512x2000 in double precision; a larger claim is damage or a trap


def read_npz(path: Path, keys: Sequence[str]) -> dict[str, Array]:
    """The arrays ``keys`` of an ``.npz`` file, and ``spacing`` if it is there. Never a pickle."""

    def read() -> dict[str, Array]:
        # Opened here, because np.load leaks the file of a broken archive.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            sizes = {member.filename.removesuffix(".npy"): member.file_size for member in file.zip.infolist()}

            def load(key: str) -> Array:
                check_size(path, key, sizes[key])  # of what is compressed in it, before it is decompressed
                return np.asarray(file[key])

            return _arrays(path, keys, list(file), load)

    return reading(path, read)


def read_h5(path: Path, keys: Sequence[str]) -> dict[str, Array]:
    """The arrays ``keys`` of an HDF5 file, and ``spacing`` if it is there."""

    def read() -> dict[str, Array]:
        with h5py.File(path, "r") as file:

            def load(key: str) -> Array:
                if not isinstance(dataset := file[key], h5py.Dataset):
                    raise DataError(f"{path}: {key} is a group; wanted an array")
                if dataset.dtype.kind in "fiub":  # the rest is refused below, unread
                    check_size(path, key, dataset.nbytes)
                    if missing := missing_from(dataset):
                        raise DataError(f"cannot read {path}: {missing} of {key}; {DAMAGED}")
                    return np.asarray(dataset)
                return np.empty(0, dataset.dtype)

            return _arrays(path, keys, list(file), load)

    return reading(path, read)


def read_json(path: Path) -> dict[str, Any]:
    """Names and values that were noted as JSON."""

    def read() -> Any:
        return json.loads(path.read_text(encoding="utf-8"))

    content = reading(path, read)
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}; wanted names and values")
    return content


def reading(path: Path, read: Callable[[], T]) -> T:
    """What ``read`` makes of a file; whatever goes wrong is an error that names the file."""
    if not path.is_file():
        raise DataError(f"no file {path}")
    try:
        return read()
    except DataError:
        raise
    except Exception as error:  # numpy, zipfile, zlib, h5py, nibabel and Pillow raise a dozen types over a damaged file
        reason = str(error) or type(error).__name__
        raise DataError(f"cannot read {path}: {reason}; {DAMAGED}") from error


def _arrays(path: Path, keys: Sequence[str], held: Sequence[str], load: Callable[[str], Array]) -> dict[str, Array]:
    if missing := [key for key in keys if key not in held]:
        raise DataError(
            f"{path} has no array {missing[0]!r}, only {sorted(held)}; wanted {' and '.join(map(repr, keys))}"
        )
    found = {}
    for key in (*keys, *({"spacing"} & set(held))):
        found[key] = array = load(key)
        if array.dtype.kind not in "fiub":
            raise DataError(f"{path}: {key} has dtype {array.dtype}; wanted numbers")
    return found


def check_size(path: Path, what: str, size: int) -> None:
    """Refuse an array of so many bytes before it is read."""
    if size > LARGEST:
        raise DataError(f"{path}: {what} would take {size / 2**30:.1f} GiB in memory; {DAMAGED}")


ROUNDING = 1e-3
CHECKSUM = 4  # bytes that the fletcher32 filter appends to a chunk


def missing_from(dataset: h5py.Dataset) -> str:
    """What the file lacks of the values of an array, in words; empty if it holds all of them."""
    if dataset.is_virtual or dataset.external:
        return "the values, which are in other files,"
    if dataset.chunks is None:
        return "" if dataset.id.get_storage_size() == dataset.nbytes else "values"
    chunks: list[h5py.h5d.StoreInfo] = []
    dataset.id.chunk_iter(chunks.append)
    starts = itertools.product(*(range(0, n, step) for n, step in zip(dataset.shape, dataset.chunks, strict=True)))
    if sorted(chunk.chunk_offset for chunk in chunks) != list(starts):
        return "chunks"
    size = math.prod(dataset.chunks) * dataset.dtype.itemsize
    every_filter = (1 << dataset.id.get_create_plist().get_nfilters()) - 1
    for chunk in chunks:
        unfiltered = chunk.filter_mask & every_filter == every_filter
        if chunk.size != size if unfiltered else chunk.size <= CHECKSUM:
            return "part of a chunk"
    return ""


def check_image(path: Path, image: Array, dimensions: int) -> NDArray[np.float32]:
    """An image of grey values in [0, 1] with that many dimensions, as float32; more axes behind may be of length 1."""
    image = _squeezed(image, dimensions)
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
    """A label of whole numbers below ``classes`` and of the shape of its image, as uint8.

    Floats may be off by what scaling and rounding leave, and more axes behind be of length 1.
    """
    label = _squeezed(label, len(shape))
    if label.size == 0:
        raise DataError(f"{path}: label has shape {label.shape}, with nothing in it")
    if label.shape != shape:
        raise DataError(f"{path}: image has shape {shape} but label {label.shape}; they must be equal")
    with np.errstate(invalid="ignore"):  # NaN becomes some number, from which it is not near
        whole: NDArray[np.uint8] = np.rint(label).astype(np.uint8)
        is_whole = np.abs(np.subtract(label, whole, dtype=np.float64)) < ROUNDING
    if not is_whole.all() or whole.max() >= classes:
        values = some_of(np.unique(label))
        raise DataError(f"{path}: label has values {values}; wanted whole numbers from 0 to {classes - 1}")
    return whole


def _squeezed(array: Array, dimensions: int) -> Array:
    while array.ndim > dimensions and array.shape[-1] == 1:
        array = array[..., 0]
    return array


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
