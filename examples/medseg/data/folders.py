"""Find files as they lie in folders, read lists of their names, and tell by its first bytes what a file is.

Suffixes count in any case. What other systems leave behind (``._x.jpg``, ``__MACOSX``, ``Thumbs.db``) is passed over,
and so is what is no file of the wanted kind; what is passed over is counted and named.
"""

import gzip
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import DataError, note
from medseg.files import some_of

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".tif", ".tiff", ".bmp", ".gif")
LEFT_BEHIND = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "icon\r")


@dataclass(frozen=True)
class Found:
    """The files of the wanted kind in a folder, and the others."""

    files: Sequence[Path]
    others: Sequence[Path]


def left_behind(path: Path) -> bool:
    """Whether a name is one that no person gave: hidden, or made by macOS, Windows or a file server."""
    return path.name.startswith(".") or path.name.lower() in LEFT_BEHIND


def walk(folder: Path) -> Iterator[Path]:
    """All files below a folder in the order of their names, without what systems leave behind."""
    for path in sorted(folder.iterdir()):
        if left_behind(path):
            continue
        if path.is_dir():
            yield from walk(path)
        else:
            yield path


def walk_folders(folder: Path) -> Iterator[Path]:
    """All folders below a folder in the order of their names, without what systems leave behind."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not left_behind(path):
            yield path
            yield from walk_folders(path)


def find_files(folder: Path, suffixes: Iterable[str], *, tell: bool = True) -> Found:
    """The files of a folder that have one of the suffixes, and the others.

    Args:
        folder: Not those below it.
        suffixes: In lower case, e.g. ``.nii.gz``.
        tell: Whether to note the others.
    """
    suffixes = tuple(suffixes)
    inside = [path for path in sorted(folder.iterdir()) if not path.is_dir()]
    files = [path for path in inside if not left_behind(path) and suffix_of(path, suffixes)]
    others = [path for path in inside if path not in set(files)]
    if tell and others:
        note("%s: passed over %s", folder, names_of(others), each=True)
    return Found(files, others)


def suffix_of(path: Path, suffixes: Iterable[str]) -> str | None:
    """The longest of the suffixes that a name has, in any case."""
    name = path.name.lower()
    return max((suffix for suffix in suffixes if name.endswith(suffix)), key=len, default=None)


def stem_of(path: Path, suffixes: Iterable[str]) -> str:
    """A name without its suffix, composed as Unicode's NFC: macOS stores accents apart from their letters."""
    suffix = suffix_of(path, suffixes) or ""
    return unicodedata.normalize("NFC", path.name[: len(path.name) - len(suffix)])


def by_stem(folder: Path, suffixes: Iterable[str], *, tell: bool = True) -> dict[str, Path]:
    """The files of a folder by their names without suffix.

    Raises:
        DataError: If there is no such folder or no such file in it, or two of one name, e.g. a.jpg and a.JPG.
    """
    suffixes = tuple(suffixes)
    if not folder.is_dir():
        raise DataError(f"no folder {folder}")
    found: dict[str, Path] = {}
    for path in find_files(folder, suffixes, tell=tell).files:
        stem = stem_of(path, suffixes)
        if stem in found:
            raise DataError(f"{found[stem]} and {path} are both {stem}; remove or rename one of them")
        found[stem] = path
    return found


def pairs(images: Path, masks: Path, ending: str | None = None) -> dict[str, tuple[Path, Path]]:
    """Every image of a folder with its mask, by the name of the image.

    Args:
        images, masks: Folders.
        ending: What names of masks have more than those of images; ``None``: nothing, ``_mask``, ``_segmentation`` or
            what else is usual, whichever the folder shows.

    Raises:
        DataError: If there is no image, or one has no mask.
    """
    found = by_stem(images, IMAGE_SUFFIXES)
    if not found:
        kinds = {kind_of(beginning(path)) for path in walk(images)}
        advice = f"; {RGB_IMAGES_IN_DICOM}" if "a DICOM file" in kinds else ""
        raise DataError(f"{images} holds no image: {', '.join(IMAGE_SUFFIXES)}{advice}")
    return match(found, by_stem(masks, IMAGE_SUFFIXES), masks, ending, source=images)


ENDINGS = (
    "",
    "_segmentation",
    "_mask",
    "_label",
    "_labels",
    "_gt",
    "_seg",
    "_manual",
    "-mask",
    "_annotation",
    "_lesion",
)


def match(
    images: Mapping[str, Path], masks: Mapping[str, Path], folder: Path, ending: str | None, *, source: Path
) -> dict[str, tuple[Path, Path]]:
    """Every image with its mask in ``folder``; ``source`` is what names the images."""
    if ending is None:
        ending = max(ENDINGS, key=lambda one: sum(stem + one in masks for stem in images))
    if missing := [stem for stem in images if stem + ending not in masks]:
        raise DataError(
            f"{len(missing)} of {len(images)} images named in {source} have no mask in {folder}, first "
            f"{folder / (missing[0] + ending)}.*"
        )
    return {stem: (path, masks[stem + ending]) for stem, path in images.items()}


def listed(names: Sequence[str], files: Mapping[str, Path], source: Path, missing_at: str) -> dict[str, Path]:
    """The files that a list names, in its order.

    Args:
        names: From ``read_list``.
        files: From ``by_stem``.
        source: The list.
        missing_at: How the path of a missing one would be written, with ``{}`` for its name.
    """
    if missing := [name for name in names if name not in files]:
        raise DataError(
            f"{len(missing)} of {len(names)} files named in {source} are missing, first {missing_at.format(missing[0])}"
        )
    return {name: files[name] for name in names}


def read_list(path: Path, what: str, suffixes: Iterable[str] = ()) -> list[str]:
    """The names in a text file, one a line.

    Byte order marks, UTF-16, blank lines, blanks around a name and quotes around all of it are no part of a name;
    blanks inside are.

    Args:
        path: Of the file.
        what: A line names, for messages.
        suffixes: Taken off the names.
    """
    if not path.is_file():
        raise DataError(f"no list {path}; it names {what} a line")
    names = []
    for number, line in enumerate(_text(path, what).splitlines(), start=1):
        name = line.strip().strip("\ufeff\u200b").strip()
        if "\t" in name:
            raise DataError(f"line {number} of {path} has several columns: {name!r}; it names {what} a line")
        if len(name) > 1 and name[0] == name[-1] and name[0] in "\"'":
            name = name[1:-1].strip()
        if name:  # "images\\a.jpg" is a.jpg, as "images/a.jpg" is
            names.append(stem_of(Path(name.replace("\\", "/")), suffixes))
    if not names:
        raise DataError(f"{path} is empty; it names {what} a line")
    if repeated := sorted(name for name in set(names) if names.count(name) > 1):
        raise DataError(f"{path} names {some_of(repeated)} more than once; remove the repetition")
    return names


def _text(path: Path, what: str) -> str:
    content = path.read_bytes()
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {path}: {error}; wanted a text file in UTF-8 that names {what} a line") from error
    if "\0" in text:
        raise DataError(f"cannot read {path}: it has zero bytes; wanted a text file in UTF-8 that names {what} a line")
    return text


def names_of(paths: Sequence[Path]) -> str:
    """How many files, and the first of their names."""
    names = ", ".join(path.name for path in paths[:5])
    return f"{len(paths)} file{'s' * (len(paths) > 1)}: {names}" + (", ..." if len(paths) > 5 else "")


def unnested(folder: Path) -> Path:
    """A folder, or the one of its own name in it, as some programs unpack archives."""
    inner = folder / folder.name
    return inner if inner.is_dir() else folder


def the_folder_below(folder: Path, wanted: Iterable[str]) -> Path:
    """The folder that holds one of the wanted names: this one, or the only one directly in it that does."""
    wanted = set(wanted)
    if any((folder / name).exists() for name in wanted):
        return folder
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and not left_behind(path)]
    deeper = [path for path in inside if any((path / name).exists() for name in wanted)]
    return deeper[0] if len(deeper) == 1 else folder


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
RGB_IMAGES_IN_DICOM = "RGB images in DICOM become PNG with DCMTK: `dcm2img IN OUT.png`"
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
