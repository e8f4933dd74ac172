"""Tell by the first bytes what a file is, whatever its name says."""

import gzip
import re
import zlib
from pathlib import Path

HEADERS = ((348).to_bytes(4, "little"), (348).to_bytes(4, "big"), (540).to_bytes(4, "little"), (540).to_bytes(4, "big"))
ENOUGH = 600  # bytes: more than the header of a NIfTI-2
SIGNATURES = (
    (rb"\x89PNG\r\n\x1a\n", "a PNG image"),
    (rb"\xff\xd8\xff", "a JPEG image"),
    (rb"II\*\0|MM\0\*|II\+\0|MM\0\+", "a TIFF image"),
    (rb"GIF8", "a GIF image"),
    (rb"BM", "a BMP image"),
    (rb"RIFF....WEBP", "a WebP image"),
    (rb"....ftyp(heic|heix|mif1|hevc)", "an HEIC image"),
    (rb"....ftypavif", "an AVIF image"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (rb".{128}DICM|[\x02\x08]\0[\0-\x12]\0(UL|\x04\0\0\0|CS|UI)", "a DICOM file"),
    (rb"NRRD", "an NRRD scan"),
    (rb"(ObjectType|NDims) *=", "a MetaImage scan"),
    (rb"\x89HDF\r\n", "an HDF5 file"),
    (rb"PK\x03\x04", "a zip archive"),
    (rb"\x93NUMPY", "a .npy array"),
    (rb"BZh", "compressed by bzip2"),
    (rb"\xfd7zXZ", "compressed by xz"),
    (rb"\x28\xb5\x2f\xfd", "compressed by Zstandard"),
    (rb"%PDF", "a PDF"),
    (rb"version https://git-lfs", "a pointer of Git LFS, without the content"),
    (rb"\s*<(!DOCTYPE|html|\?xml)", "a web page, as servers send instead of a file"),
)
CONVERT_DICOM = "DICOM series become NIfTI with dcm2niix: `dcm2niix -z y -o OUT FOLDER`"


def beginning(path: Path, count: int = ENOUGH) -> bytes:
    """The first bytes of a file, decompressed where they are compressed by gzip."""
    with path.open("rb") as stream:
        start = stream.read(count)
        if not start.startswith(b"\x1f\x8b"):
            return start
        stream.seek(0)
        try:
            with gzip.GzipFile(fileobj=stream) as unpacked:
                return unpacked.read(count)
        except (OSError, EOFError, zlib.error):
            return start


def kind_of(start: bytes) -> str:
    """What the first bytes of a file are those of, in words."""
    if not start:
        return "empty"
    if start[:4] in HEADERS and len(start) >= 348:
        return "a NIfTI scan" if is_nifti(start) else "an Analyze 7.5 scan"
    for pattern, kind in SIGNATURES:
        if re.match(pattern, start, re.DOTALL | re.IGNORECASE):
            return kind
    return "of no kind that is known here"


def is_nifti(start: bytes) -> bool:
    """Whether a file begins as NIfTI-1 or NIfTI-2 in one file."""
    return start[:4] in HEADERS and (start[344:347] == b"n+1" or start[4:7] == b"n+2")
