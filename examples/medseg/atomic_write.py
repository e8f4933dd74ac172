"""Write files whole or not at all: a reader, a full disk or Ctrl-C never leaves half a file under its name."""

import errno
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from medseg.errors import RunError


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
