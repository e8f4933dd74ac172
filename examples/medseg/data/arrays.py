"""Read arrays and images that may be damaged, never trusting what is in them."""

import gzip
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import h5py
import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medseg.data.checks import Array, some_of
from medseg.data.hdf5 import missing_from
from medseg.errors import DataError

T = TypeVar("T")

DAMAGED = "the file is damaged or incomplete, fetch it again"
NIFTI_2 = ((540).to_bytes(4, "little"), (540).to_bytes(4, "big"))  # with this size its header begins
LARGEST = 4 * 2**30  # bytes of one array: 512x512x2000 in double precision; a larger claim is damage or a trap


def read_npz(path: Path, keys: Sequence[str]) -> dict[str, Array]:
    """The arrays ``keys`` of an ``.npz`` file, and ``spacing`` if it is there. Never a pickle."""

    def read() -> dict[str, Array]:
        # Opened here, because np.load leaks the file of a broken archive.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            sizes = {member.filename.removesuffix(".npy"): member.file_size for member in file.zip.infolist()}

            def load(key: str) -> Array:
                _check_size(path, key, sizes[key])  # of what is compressed in it, before it is decompressed
                return np.asarray(file[key])

            return _arrays(path, keys, list(file), load)

    return _reading(path, read)


def read_h5(path: Path, keys: Sequence[str]) -> dict[str, Array]:
    """The arrays ``keys`` of an HDF5 file, and ``spacing`` if it is there."""

    def read() -> dict[str, Array]:
        with h5py.File(path, "r") as file:

            def load(key: str) -> Array:
                if not isinstance(dataset := file[key], h5py.Dataset):
                    raise DataError(f"{path}: {key} is a group; wanted an array")
                if dataset.dtype.kind in "fiub":  # the rest is refused below, unread
                    _check_size(path, key, dataset.nbytes)
                    if missing := missing_from(dataset):
                        raise DataError(f"cannot read {path}: {missing} of {key}; {DAMAGED}")
                    return np.asarray(dataset)
                return np.empty(0, dataset.dtype)

            return _arrays(path, keys, list(file), load)

    return _reading(path, read)


def read_nifti(path: Path) -> "nibabel.Nifti1Image":
    """A NIfTI image, read as a whole, which verifies the checksum of a compressed one."""

    def read() -> "nibabel.Nifti1Image":
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            version = stream.read(4)
            stream.seek(0)
            kind = nibabel.Nifti2Image if version in NIFTI_2 else nibabel.Nifti1Image
            header = kind.header_class.from_fileobj(stream)  # type: ignore[no-untyped-call]
            shape = header.get_data_shape()
            if not shape or min(shape) < 1:
                raise DataError(f"cannot read {path}: its shape is {shape}; {DAMAGED}")
            size = math.prod(map(int, shape)) * header.get_data_dtype().itemsize
            _check_size(path, "the image", size)
            expected = int(header["vox_offset"]) + size
            stream.seek(0)
            content = stream.read(expected + 1)  # a byte too many, so that gzip comes to the checksum at the end
        if len(content) != expected:  # the voxels would be read without a word, shifted or short of something
            held = "less" if len(content) < expected else "more"
            raise DataError(f"cannot read {path}: it holds {held} than the {expected} bytes of its header; {DAMAGED}")
        image: nibabel.Nifti1Image = kind.from_bytes(content)
        return image

    return _reading(path, read)


def read_image(path: Path) -> NDArray[np.uint8]:
    """An 8-bit RGB photograph ``(H, W, 3)``; grey ones are repeated over the channels."""

    def read() -> NDArray[np.uint8]:
        image = _open_image(path)
        if image.mode not in ("RGB", "L", "P"):
            raise DataError(f"{path}: colour mode {image.mode}; wanted an 8-bit RGB or grey image without alpha")
        return np.array(image.convert("RGB"))  # a copy, because torch wants to be able to write

    return _reading(path, read)


def read_mask(path: Path) -> NDArray[np.uint8]:
    """A binary mask ``(H, W)`` of 0 and 1, stored as black and white or as 0 and 1."""

    def read() -> NDArray[np.uint8]:
        image = _open_image(path)
        if image.mode not in ("L", "P", "1"):
            raise DataError(f"{path}: mask has colour mode {image.mode}; wanted one channel of 0 and 255")
        return np.array(image.convert("L"))  # the grey values that a palette stands for, not the numbers in it

    mask = _reading(path, read)
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

    return _reading(path, read)


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


def read_json(path: Path) -> dict[str, Any]:
    """Names and values that were noted as JSON."""

    def read() -> Any:
        return json.loads(path.read_text(encoding="utf-8"))

    content = _reading(path, read)
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}; wanted names and values")
    return content


def _reading(path: Path, read: Callable[[], T]) -> T:
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


def _check_size(path: Path, what: str, size: int) -> None:
    if size > LARGEST:
        raise DataError(f"{path}: {what} would take {size / 2**30:.1f} GiB in memory; {DAMAGED}")


def _open_image(path: Path) -> Image.Image:
    content = io.BytesIO(path.read_bytes())
    with Image.open(content, formats=("JPEG", "PNG")) as image:
        image.verify()  # the checksums of a PNG, at which decoding does not look
    return Image.open(content, formats=("JPEG", "PNG"))
