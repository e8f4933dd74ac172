"""NIfTI scans as the stacks of slices that networks are trained on, and labels back in the geometry of the file.

What a file is, is told by its content, whatever its name says.

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

from medseg.data.folders import CONVERT_DICOM, beginning, is_nifti, kind_of
from medseg.errors import DataError, note
from medseg.files import DAMAGED, Spacing, check_size, check_spacing, reading

Intensity = Literal["hu", "min-max"]  # as in medseg.data.dataset.Benchmark

REFETCH = "fetch it again"
HU_WINDOW = (-125.0, 275.0)  # of the preprocessed Synapse set
CT_DIRECTIONS = (1, 1, -1)  # of slices, rows and columns along the axes of the body: to the head, front and left
NIFTI_2 = ((540).to_bytes(4, "little"), (540).to_bytes(4, "big"))  # with this size its header begins
OTHERS = {
    "a DICOM file": CONVERT_DICOM,
    "an NRRD scan": 'SimpleITK converts it: sitk.WriteImage(sitk.ReadImage("a.nrrd"), "a.nii.gz")',
    "a MetaImage scan": 'SimpleITK converts it: sitk.WriteImage(sitk.ReadImage("a.mha"), "a.nii.gz")',
    "an Analyze 7.5 scan": "it does not say how it lies, or its voxels are in an .img; convert it to .nii.gz, e.g. "
    "with `fslchfiletype NIFTI_GZ FILE`",
}


def read_nifti(path: Path) -> "nibabel.Nifti1Image":
    """A NIfTI image, read as a whole, which verifies the checksum of a compressed one.

    Axes of length 1 behind the third are left out.
    """

    def read() -> "nibabel.Nifti1Image":
        start = beginning(path)
        if not is_nifti(start):
            kind = kind_of(start)
            raise DataError(f"cannot read {path}: it is {kind}, no NIfTI; {OTHERS.get(kind, DAMAGED)}")
        with path.open("rb") as stream:
            compressed = stream.read(2) == b"\x1f\x8b"
        with gzip.open(path) if compressed else path.open("rb") as stream:
            kind_of_nifti = nibabel.Nifti2Image if start[:4] in NIFTI_2 else nibabel.Nifti1Image
            header = kind_of_nifti.header_class.from_fileobj(stream)  # type: ignore[no-untyped-call]
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
        image: nibabel.Nifti1Image = kind_of_nifti.from_bytes(content)
        while len(image.shape) > 3 and image.shape[-1] == 1:
            image = image.slicer[..., 0]
        return image

    return reading(path, read)


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
    if not is_oriented(image):
        note(
            "%s: the header does not say how the scan lies (qform_code and sform_code are 0); rows are taken to run "
            "from back to front and columns from right to left. Look whether the liver is on the right side: the "
            "sides may be swapped",
            path,
        )
    body, directions = io_orientation(affine).T  # type: ignore[no-untyped-call]  # of every axis of the file
    axes = np.argsort(body)[::-1]
    flipped = np.flatnonzero(directions[axes] != CT_DIRECTIONS)
    return Orientation(tuple(axes.tolist()), tuple(flipped.tolist()))


def is_oriented(image: "nibabel.Nifti1Image") -> bool:
    """Whether a header says how the scan lies, so that nibabel does not guess."""
    return bool(image.header["qform_code"] > 0 or image.header["sform_code"] > 0)


def one_frame(path: Path, image: "nibabel.Nifti1Image", frame: int | None) -> "nibabel.Nifti1Image":
    """Frame number ``frame``, from 1, of a series ``(X, Y, Z, T)``; a scan that is none as it is.

    Raises:
        DataError: If a frame is asked for that is not there, or none where there are several.
    """
    frames = image.shape[3] if len(image.shape) == 4 else 1
    if frame is None and frames > 1:
        raise DataError(
            f"{path}: shape {image.shape}, a series of {frames} frames; wanted one: --frame N, from 1 to {frames}"
        )
    if frame is not None and frame > frames:
        raise DataError(f"{path}: there is no frame {frame}, --frame goes to {frames}")
    if len(image.shape) != 4:
        return image
    chosen: nibabel.Nifti1Image = image.slicer[..., (frame or 1) - 1]
    return chosen


def to_slices(
    path: Path, image: "nibabel.Nifti1Image", intensity: Intensity, *, fill_nan: bool = False, remedy: str = REFETCH
) -> NDArray[np.float32]:
    """The scan as slices ``(Z, H, W)``, oriented as the training data and scaled to [0, 1] as they are.

    Args:
        path: Of the file, for messages.
        image: From ``read_nifti``.
        intensity: ``"hu"``: from -125 to 275 Hounsfield units; ``"min-max"``: from the smallest value of the volume to
            its 99th percentile, which the files of the ACDC set show to be what they were scaled by. Values beyond
            these limits are clipped.
        fill_nan, remedy: As in ``voxels_of``.

    Raises:
        DataError: If a CT is not in Hounsfield units, as far as its values show.
    """
    orientation = orientation_of(path, image, intensity)
    voxels = voxels_of(path, image, fill_nan=fill_nan, remedy=remedy)
    if intensity == "hu":
        low, high = HU_WINDOW
        check_hounsfield(path, voxels)
    else:
        low, high = float(voxels.min()), float(np.percentile(voxels, 99))
        if not high > low:
            raise DataError(f"{path}: nearly all voxels are {low:g}; wanted a scan")
    return orientation.slices(np.asarray((np.clip(voxels, low, high) - low) / (high - low), dtype=np.float32))


def check_hounsfield(path: Path, voxels: NDArray[Any]) -> None:
    """Refuse a CT whose values can't be Hounsfield units: air is -1000, and there is some in or around every body."""
    least, most = float(voxels.min()), float(voxels.max())
    ranges = f"{path}: values run from {least:g} to {most:g}; wanted Hounsfield units, in which air is -1000"
    if most - least < 50:  # scaled already; clipped again it would be grey all over
        raise DataError(f"{ranges}: they were scaled, give the original scan")
    if least >= 0 and most <= 255:
        raise DataError(f"{ranges}: they were reduced to 8 bits through some window, give the original scan")
    if least >= 0:
        raise DataError(
            f"{ranges}: nothing is below 0, so the rescale intercept is missing; convert the DICOM series again with "
            "dcm2niix, or subtract 1024 where the scan is known to be stored so"
        )
    if least > HU_WINDOW[0]:
        note(
            "%s: nothing is below -125, not even air or fat; is it a part of a body, or are these no Hounsfield units?",
            path,
        )


def voxels_of(
    path: Path, image: "nibabel.Nifti1Image", *, fill_nan: bool = False, remedy: str = REFETCH
) -> NDArray[Any]:
    """The voxels of a scan or of its label, which have to be finite numbers.

    Args:
        path: Of the file, for messages.
        image: From ``read_nifti``.
        fill_nan: Take voxels that are not as the least of the others instead of refusing them.
        remedy: What the message advises.
    """
    voxels = np.asanyarray(image.dataobj)
    if voxels.dtype.kind not in "iuf":
        raise DataError(f"{path}: voxels are {voxels.dtype}; wanted one number each")
    if fill_nan:
        voxels = filled(path, voxels)
    if count := np.count_nonzero(~np.isfinite(voxels)):
        raise DataError(f"{path}: {count} voxels are NaN or infinite; {remedy}")
    return voxels


def filled(path: Path, voxels: NDArray[Any]) -> NDArray[Any]:
    """Voxels with the least of the finite ones in place of the others; as they are where none is finite."""
    finite = np.isfinite(voxels)
    if finite.all() or not finite.any():
        return voxels
    note("%s: %s voxels that are NaN or infinite are taken as background", path, np.count_nonzero(~finite))
    return np.where(finite, voxels, voxels[finite].min())


def spacing_of(path: Path, image: "nibabel.Nifti1Image", intensity: Intensity) -> Spacing:
    """Millimetres between the voxels of the slices along z, y and x."""
    axes = orientation_of(path, image, intensity).axes
    spacing = check_spacing(path, np.asarray(image.header["pixdim"])[1:4][list(axes)])
    assert spacing is not None
    return spacing
