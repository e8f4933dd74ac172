"""NIfTI scans as the stacks of slices that networks are trained on, and labels back in the geometry of the file.

CT is turned to the orientation of the preprocessed Synapse set, whatever that of the file: slices from foot to head,
rows from back to front, columns from right to left. So the BTCV release stores its scans; in pictures the liver is on
the left and the spine on top.

MRI keeps the order of the file, since that is how the ACDC set came to its slices: the short axis of a heart is
oblique to the body, so the nearest axes of the body differ from patient to patient. A scan from elsewhere has to be
stored as those of ACDC are.
"""

import gzip
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from medseg.data.arrays import DAMAGED, Spacing, check_size, check_spacing, reading
from medseg.errors import DataError

NIFTI_2 = ((540).to_bytes(4, "little"), (540).to_bytes(4, "big"))  # with this size its header begins

Intensity = Literal["hu", "min-max"]  # as in medseg.data.dataset.Benchmark

HU_WINDOW = (-125.0, 275.0)  # of the preprocessed Synapse set
CT_DIRECTIONS = (1, 1, -1)  # of slices, rows and columns along the axes of the body: to the head, front and left


@dataclass(frozen=True)
class Orientation:
    """How the voxels of a file become slices, and slices voxels of that file again.

    Args:
        axes: Axes of the file that slices, rows and columns run along.
        flipped: Which of slices (0), rows (1) and columns (2) run against the order of the file.
    """

    axes: tuple[int, ...] = (2, 1, 0)
    flipped: tuple[int, ...] = ()

    def slices(self, voxels: NDArray[Any]) -> NDArray[Any]:
        """Voxels of the file, ``(X, Y, Z)``, as slices ``(Z, H, W)``."""
        return np.ascontiguousarray(np.flip(voxels.transpose(self.axes), self.flipped))

    def voxels(self, slices: NDArray[Any]) -> NDArray[Any]:
        """Slices ``(Z, H, W)`` as voxels of the file, ``(X, Y, Z)``."""
        return np.ascontiguousarray(np.flip(slices, self.flipped).transpose(np.argsort(self.axes)))


def orientation_of(path: Path, image: "nibabel.Nifti1Image", intensity: Intensity) -> Orientation:
    """The way from the file to slices in the orientation of the training data.

    Raises:
        DataError: If the image is not three-dimensional, or its header does not say how a CT lies.
    """
    if len(image.shape) != 3 or 0 in image.shape:
        raise DataError(f"{path}: shape {image.shape}; wanted a scan of 3 dimensions, e.g. one frame of a series")
    if intensity != "hu":
        return Orientation()
    affine = np.asarray(image.affine)
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise DataError(f"{path}: the affine {affine[:3].tolist()} does not say how the scan lies; repair its header")
    body, directions = io_orientation(affine).T  # type: ignore[no-untyped-call]  # of every axis of the file
    axes = np.argsort(body)[::-1]
    flipped = np.flatnonzero(directions[axes] != CT_DIRECTIONS)
    return Orientation(tuple(axes.tolist()), tuple(flipped.tolist()))


def to_slices(path: Path, image: "nibabel.Nifti1Image", intensity: Intensity) -> NDArray[np.float32]:
    """The scan as slices ``(Z, H, W)``, oriented as the training data and scaled to [0, 1] as they are.

    Args:
        path: Of the file, for messages.
        image: From ``medseg.data.nifti.read_nifti``.
        intensity: ``"hu"``: from -125 to 275 Hounsfield units; ``"min-max"``: from the smallest value of the volume to
            its 99th percentile, which the files of the ACDC set show to be what they were scaled by. Values beyond
            these limits are clipped.
    """
    orientation = orientation_of(path, image, intensity)
    voxels = voxels_of(path, image)
    least, most = float(voxels.min()), float(voxels.max())
    if intensity == "hu":
        low, high = HU_WINDOW
        if least >= 0 and most <= 1:  # scaled already; clipped again it would be grey all over
            raise DataError(f"{path}: values run from {least:g} to {most:g}; wanted Hounsfield units")
    else:
        low, high = least, float(np.percentile(voxels, 99))
        if not high > low:
            raise DataError(f"{path}: nearly all voxels are {low:g}; wanted a scan")
    return orientation.slices(np.asarray((np.clip(voxels, low, high) - low) / (high - low), dtype=np.float32))


def voxels_of(path: Path, image: "nibabel.Nifti1Image") -> NDArray[Any]:
    """The voxels of a scan or of its label, which have to be finite numbers."""
    voxels = np.asanyarray(image.dataobj)
    if voxels.dtype.kind not in "iuf":
        raise DataError(f"{path}: voxels are {voxels.dtype}; wanted one number each")
    if not np.isfinite(voxels).all():
        raise DataError(f"{path}: {np.count_nonzero(~np.isfinite(voxels))} voxels are NaN or infinite; fetch it again")
    return voxels


def spacing_of(path: Path, image: "nibabel.Nifti1Image", intensity: Intensity) -> Spacing:
    """Millimetres between the voxels of the slices along z, y and x."""
    axes = orientation_of(path, image, intensity).axes
    spacing = check_spacing(path, np.asarray(image.header["pixdim"])[1:4][list(axes)])
    assert spacing is not None
    return spacing


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
            check_size(path, "the image", size)
            expected = int(header["vox_offset"]) + size
            stream.seek(0)
            content = stream.read(expected + 1)  # a byte too many, so that gzip comes to the checksum at the end
        if len(content) != expected:  # the voxels would be read without a word, shifted or short of something
            held = "less" if len(content) < expected else "more"
            raise DataError(f"cannot read {path}: it holds {held} than the {expected} bytes of its header; {DAMAGED}")
        image: nibabel.Nifti1Image = kind.from_bytes(content)
        return image

    return reading(path, read)
