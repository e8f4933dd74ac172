"""Write files whole or not at all: a reader, a full disk or Ctrl-C never leaves half a file under its name."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image


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
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error


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
