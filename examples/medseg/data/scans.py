"""Read NIfTI files by their content, whatever their name says, and name what is none."""

import gzip
import math
from pathlib import Path

import nibabel

from medseg.data.arrays import DAMAGED, check_size, reading
from medseg.data.contents import CONVERT_DICOM, beginning, is_nifti, kind_of
from medseg.errors import DataError

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
