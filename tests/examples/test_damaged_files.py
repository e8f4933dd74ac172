"""Hundreds of damaged files of every format: each is refused by name, or read as if nothing were wrong with it.

Where a format has no checksum, other values are all that damage to the values can give; the tests say where.
"""

import gzip
import io
import subprocess
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
from PIL import Image

from medseg.data.acdc import read_acdc
from medseg.data.dataset import Volume
from medseg.data.images import read_image, read_image_and_mask, read_labels, read_mask
from medseg.data.nifti import read_nifti
from medseg.data.synapse import read_slice, read_volume
from medseg.errors import DataError
from medseg.files import LARGEST, write_json

RNG = np.random.default_rng(0)
IMAGE = RNG.random((3, 12, 10)).astype(np.float32)
LABEL = RNG.integers(0, 4, IMAGE.shape).astype(np.uint8)
ROWS, COLUMNS = np.mgrid[:40, :50]
PHOTOGRAPH = np.stack((ROWS * 4, COLUMNS * 5, ROWS + COLUMNS), -1).astype(np.uint8)
MASK = ((ROWS - 20) ** 2 + (COLUMNS - 25) ** 2 < 150).astype(np.uint8) * 255
HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"


def npz(compressed: bool = False, **arrays: Any) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)
    return stream.getvalue()


def h5(libver: str = "earliest", arrays: dict[str, Any] | None = None, **storage: Any) -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w", libver=libver) as file:
        for name, array in (arrays or {"image": IMAGE, "label": LABEL}).items():
            file.create_dataset(name, data=array, **storage)
    return stream.getvalue()


def nifti(voxels: np.ndarray = LABEL) -> bytes:
    content: bytes = nibabel.Nifti1Image(voxels, np.diag((1.5, 1.5, 8, 1))).to_bytes()
    return content


def picture(pixels: np.ndarray, format: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format, quality=90)
    return stream.getvalue()


def damaged(whole: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Truncations, changed bytes, zeroed blocks, blocks lost and repeated, and what servers send instead of a file."""
    yield from (b"", HTML, whole[:1], whole[:-1], bytes(len(whole)), whole + whole, whole + b"\0")
    rng = np.random.default_rng(seed)
    for kind in range(count):
        at, length = int(rng.integers(len(whole))), int(rng.integers(1, 80))
        start, end = whole[:at], whole[at:]
        if kind % 5 == 0:
            yield start
        elif kind % 5 in (1, 2):
            yield start + bytes([end[0] ^ int(rng.integers(1, 256))]) + end[1:]
        elif kind % 5 == 3:
            yield start + bytes(len(end[:length])) + end[length:]
        else:
            yield start + (end[length:] if rng.random() < 0.5 else end[:length] + end)


def outcome(path: Path, content: bytes, read: Callable[[Path], Any]) -> Any:
    """What was read, or ``None`` where the file was refused by name."""
    path.write_bytes(content)
    try:
        return read(path)
    except DataError as error:
        message = str(error)
    assert str(path) in message
    return None


def array_outcomes(path: Path, read: Callable[[Path], Volume], files: Iterator[bytes], whole: bytes) -> Counter[str]:
    """Counts of refused files, of files read as the whole one, and of others, which obey the rules for values."""
    right, counts = outcome(path, whole, read), Counter[str]()
    for content in files:
        volume = outcome(path, content, read)
        if volume is None:
            counts["refused"] += 1
            continue
        assert volume.image.dtype == np.float32
        assert volume.label.dtype == np.uint8
        assert 0 <= volume.image.min() <= volume.image.max() <= 1  # so there are no NaN either
        assert volume.label.max() <= 8
        assert volume.image.shape[2:] == volume.label.shape[1:]
        same = np.array_equal(volume.image, right.image) and np.array_equal(volume.label, right.label)
        counts["same" if same else "other"] += 1
    return counts


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("layout", ["synapse", "acdc slice", "acdc volume"])
def test_npz(tmp_path: Path, layout: str, compressed: bool) -> None:
    name, read, arrays = {
        "synapse": ("case0001_slice000.npz", read_slice, {"image": IMAGE[0], "label": LABEL[0].astype(np.float32)}),
        "acdc slice": ("case_001_sliceED_0.npz", read_acdc, {"img": IMAGE[0], "label": LABEL[0]}),
        "acdc volume": ("case_001_volume_ED.npz", read_acdc, {"img": IMAGE, "label": LABEL}),
    }[layout]
    whole = npz(compressed, **arrays)
    counts = array_outcomes(tmp_path / name, read, damaged(whole, 300), whole)
    assert counts["other"] == 0  # every byte of an array is under a checksum
    assert counts["refused"] > 150


@pytest.mark.parametrize("storage", ["contiguous", "gzip", "fletcher32"])
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_h5(tmp_path: Path, storage: str, libver: str) -> None:
    options: dict[str, dict[str, Any]] = {
        "contiguous": {},
        "gzip": {"chunks": (1, 12, 10), "compression": "gzip"},
        "fletcher32": {"chunks": (1, 12, 10), "fletcher32": True},
    }
    whole = h5(libver, **options[storage])
    counts = array_outcomes(tmp_path / "case0001.npy.h5", read_volume, damaged(whole, 300), whole)
    assert counts["refused"] > 150
    # HDF5 has no checksum over contiguous values, nor, in its old format, over the description of an array. A byte
    # changed there may still describe some array, whose values then obey the rules.
    if storage != "contiguous":
        assert counts["other"] <= (20 if libver == "earliest" else 0)


@pytest.mark.parametrize("size", [0, 3])
def test_h5_chunk_too_short_for_its_checksum(tmp_path: Path, size: int) -> None:
    whole, path = h5(chunks=(1, 12, 10), fletcher32=True), tmp_path / "case0001.npy.h5"
    stored = LABEL[0].nbytes + 4
    entry, bad = (n.to_bytes(4, "little") + bytes(4) for n in (stored, size))  # size and filter mask, in the index
    assert whole.count(entry) >= len(LABEL)
    path.write_bytes(whole.replace(entry, bad))  # crashes HDF5 2.0, which takes the 4 from the size without looking
    with pytest.raises(DataError, match=r"cannot read .*case0001.npy.h5: part of a chunk of label"):
        read_volume(path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti(tmp_path: Path, suffix: str) -> None:
    path, content = tmp_path / f"image{suffix}", nifti()
    whole = content if suffix == ".nii" else gzip.compress(content, mtime=0)

    def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
        image = read_nifti(path)
        return np.asanyarray(image.dataobj), np.asarray(image.affine)

    right = outcome(path, whole, read)
    counts: Counter[str] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of nibabel, on odd headers
        for damage in damaged(whole, 300):
            found = outcome(path, damage, read)
            if found is None:
                counts["refused"] += 1
            elif np.array_equal(found[0], right[0]) and np.array_equal(found[1], right[1]):
                counts["same"] += 1
            else:  # .nii has no checksum; what is read has as many voxels as the file
                assert suffix == ".nii"
                assert found[0].size * found[0].dtype.itemsize <= 8 * LABEL.size
                counts["other"] += 1
    assert counts["refused"] > 120


def test_png(tmp_path: Path) -> None:
    for pixels, read in ((PHOTOGRAPH, read_image), (MASK, read_mask), (MASK // 255, read_labels)):
        whole, path = picture(pixels, "PNG"), tmp_path / "image.png"
        right = outcome(path, whole, read)
        found = [outcome(path, content, read) for content in damaged(whole, 300)]
        assert sum(image is None for image in found) > 150
        assert all(image is None or np.array_equal(image, right) for image in found)  # every byte is under a checksum


def test_jpeg(tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(picture(MASK, "PNG"))
    whole, path = picture(PHOTOGRAPH, "JPEG"), tmp_path / "image.jpg"

    def read(path: Path) -> Volume:
        return read_image_and_mask(path, tmp_path / "mask.png")

    right, refused = outcome(path, whole, read), 0
    for content in damaged(whole, 300):
        volume = outcome(path, content, read)
        if volume is None:
            refused += 1
            continue
        # JPEG has no checksum and is made to be decoded whatever happened to it: other colours are possible.
        assert (volume.image.shape, volume.image.dtype) == (right.image.shape, np.uint8)
    assert refused > 100


def test_every_truncated_jpeg_is_refused(tmp_path: Path) -> None:
    whole = picture(PHOTOGRAPH, "JPEG")
    for length in range(len(whole)):
        assert outcome(tmp_path / "image.jpg", whole[:length], read_image) is None


class Trap:
    """Its pickle would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    trap, path = np.array([Trap(tmp_path / "sprung")], object), tmp_path / "case0001_slice000.npz"
    for content in (npz(image=trap, label=LABEL[0]), npz(image=IMAGE[0], label=LABEL[0], spacing=trap)):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"cannot read .*Object arrays cannot be loaded"):
            read_slice(path)
    path.write_bytes(trap.dumps())
    with pytest.raises(DataError, match=r"cannot read .*case0001_slice000.npz"):
        read_slice(path)
    assert not (tmp_path / "sprung").exists()


def npy_header(shape: str, dtype: str = "<f4") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n"


def archive(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return stream.getvalue()


LABEL_NPY = npy_header("(12, 10)", "|u1") + LABEL[0].tobytes()


@pytest.mark.parametrize(
    "header",
    [
        npy_header("(1000000, 1000000)"),
        npy_header("(4294967296, 4294967296)"),  # its size overflows to 0
        npy_header("(-12, -10)"),
        npy_header("(12, -1)"),
        npy_header("(12.5, 10)"),
        npy_header("(12, 10)", "|O"),
        npy_header("(12, 10)", "|V4"),
        npy_header("(12, 10)", "<c8"),
        npy_header("(12, 10)", "<M8[s]"),
        npy_header("(12, 10)", "<U1"),
        npy_header("()"),
        npy_header("(0, 0)"),
        npy_header("(12, 10)" + " " * 20_000),
    ],
)
def test_npz_with_lying_headers(tmp_path: Path, header: bytes) -> None:
    content = archive(image=header + IMAGE[0].tobytes(), label=LABEL_NPY)
    assert outcome(tmp_path / "case0001_slice000.npz", content, read_slice) is None


def test_npz_that_would_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "case0001_slice000.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("image.npy", npy_header("(12, 10)"))
        file.writestr("label.npy", LABEL_NPY)
        file.infolist()[0].file_size = LARGEST + 1  # goes into the directory at the end of the archive
    with pytest.raises(DataError, match=r"case0001_slice000.npz: image would take 4.0 GiB in memory"):
        read_slice(path)


def test_h5_that_would_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "case0001.npy.h5"
    with h5py.File(path, "w") as file:  # a few kilobytes, of which HDF5 makes 400 GB of zeros
        file.create_dataset("image", (1000, 10_000, 10_000), "f4", chunks=(1, 100, 100), compression="gzip")
        file["label"] = LABEL
    with pytest.raises(DataError, match=r"case0001.npy.h5: image would take 372.5 GiB in memory"):
        read_volume(path)


def test_h5_without_the_values(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "case0001.npy.h5", tmp_path / "elsewhere.h5"
    elsewhere.write_bytes(h5())
    layout = h5py.VirtualLayout(IMAGE.shape, "f4")
    layout[:] = h5py.VirtualSource(elsewhere, "image", IMAGE.shape)
    record = np.zeros(3, [("a", "<f4")])
    creations: list[tuple[str, str, dict[str, Any]]] = [
        ("cannot read .*: values of image", "dataset", {"shape": IMAGE.shape, "dtype": "f4"}),
        ("cannot read .*: chunks of image", "dataset", {"shape": IMAGE.shape, "dtype": "f4", "chunks": True}),
        ("in other files, of image", "virtual_dataset", {"layout": layout}),
        ("in other files, of image", "dataset", {"shape": (3,), "dtype": "f4", "external": [("elsewhere.h5", 0, 12)]}),
        ("image is a group", "group", {}),
        ("image has dtype object; wanted numbers", "dataset", {"data": ["a", "b"]}),
        (r"image has dtype \[\('a', '<f4'\)\]; wanted numbers", "dataset", {"data": record}),
        ("cannot read", "dataset", {"data": h5py.Empty("f4")}),
        (r"image has shape \(\)", "dataset", {"data": np.float32(0.5)}),
    ]
    for message, kind, options in creations:
        with h5py.File(path, "w") as file:
            getattr(file, f"create_{kind}")("image", **options)
            file["label"] = LABEL
        with pytest.raises(DataError, match=message) as caught:
            read_volume(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("dtype", [">f4", ">f8", "<f8", "<f2"])
def test_foreign_number_formats_are_read_as_what_they_mean(tmp_path: Path, dtype: str) -> None:
    image, label = IMAGE.astype(dtype), LABEL.astype(">i8")
    (tmp_path / "case0001.npy.h5").write_bytes(h5(arrays={"image": image, "label": label}))
    (tmp_path / "case_001_volume_ED.npz").write_bytes(npz(img=np.asfortranarray(image), label=label))
    for volume in (read_volume(tmp_path / "case0001.npy.h5"), read_acdc(tmp_path / "case_001_volume_ED.npz")):
        np.testing.assert_array_equal(volume.image[:, 0], image.astype(np.float32))
        np.testing.assert_array_equal(volume.label, LABEL)
        assert volume.image.dtype == np.dtype("=f4")


@pytest.mark.parametrize(
    "change",
    [
        {"dim": [3, -10, -12, 3, 1, 1, 1, 1]},
        {"dim": [3, 30_000, 30_000, 30_000, 1, 1, 1, 1]},
        {"dim": [3, 10, 12, 0, 1, 1, 1, 1]},
        {"dim": [0, 0, 0, 0, 0, 0, 0, 0]},
        {"dim": [2, 10, 12, 1, 1, 1, 1, 1]},
        {"datatype": 16, "bitpix": 32},
        {"datatype": 99},
        {"vox_offset": 0},
        {"vox_offset": np.nan},
        {"vox_offset": 1e30},
    ],
)
def test_nifti_with_lying_headers(tmp_path: Path, change: dict[str, Any]) -> None:
    content = nifti()
    header = np.frombuffer(content[:348], nibabel.nifti1.header_dtype.newbyteorder("<")).copy()
    for field, value in change.items():
        header[field] = value
    for name, pack in (("image.nii", bytes), ("image.nii.gz", gzip.compress)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert outcome(tmp_path / name, pack(header.tobytes() + content[348:]), read_nifti) is None


def test_picture_that_would_fill_the_memory(tmp_path: Path) -> None:
    whole = picture(MASK, "PNG")
    header = (50).to_bytes(4, "big") + (40).to_bytes(4, "big")
    at = whole.index(header)
    huge = whole[at - 4 : at] + (60_000).to_bytes(4, "big") * 2 + whole[at + 8 : at + 13]
    content = whole[: at - 4] + huge + zipfile.crc32(huge).to_bytes(4, "big") + whole[at + 17 :]
    path = tmp_path / "mask.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"mask.png: 3600000000 pixels, .* or fetch it again if it has fewer"):
        read_mask(path)


class TestPictures:
    def test_palettes_are_read_as_the_colours_they_stand_for(self, tmp_path: Path) -> None:
        image = Image.fromarray(1 - MASK // 255).convert("P")
        image.putpalette([255, 255, 255, 0, 0, 0])  # 0 is white, 1 black
        image.save(tmp_path / "mask.png")
        np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), MASK // 255)

    @pytest.mark.parametrize(
        "stored", [Image.fromarray(MASK), Image.fromarray(MASK).convert("1"), Image.fromarray(MASK // 255)]
    )
    def test_masks(self, tmp_path: Path, stored: Image.Image) -> None:
        stored.save(tmp_path / "mask.png")
        mask = read_mask(tmp_path / "mask.png")
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, MASK // 255)

    @pytest.mark.parametrize("mode", ["L", "P"])
    def test_labels_are_the_numbers_in_the_file(self, tmp_path: Path, mode: str) -> None:
        classes = (MASK // 255 + (PHOTOGRAPH[..., 0] > 80)).astype(np.uint8)
        image = Image.fromarray(classes)
        if mode == "P":
            image.putpalette([0, 0, 0, 200, 0, 0, 0, 0, 200])
        image.save(tmp_path / "labels.png")
        labels = read_labels(tmp_path / "labels.png")
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, classes)

    def test_grey_photograph(self, tmp_path: Path) -> None:
        Image.fromarray(MASK).save(tmp_path / "image.png")
        np.testing.assert_array_equal(read_image(tmp_path / "image.png"), np.dstack((MASK, MASK, MASK)))

    def test_other_formats_are_refused_whatever_their_name(self, tmp_path: Path) -> None:
        for format in ("PPM", "WEBP", "ICO", "JPEG2000"):
            assert outcome(tmp_path / "image.png", picture(MASK, format), read_image) is None


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, on damaged tags
@pytest.mark.parametrize("format", ["TIFF", "BMP", "GIF"])
def test_formats_without_checksums(tmp_path: Path, format: str) -> None:
    """Damage to values shows nowhere; what is read is an image."""
    whole, path, refused = picture(PHOTOGRAPH, format), tmp_path / "image.png", 0
    for content in damaged(whole, 300):
        found = outcome(path, content, read_image)
        refused += found is None
        assert found is None or (found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3)
    assert refused > 50


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for read in (read_slice, read_acdc, read_volume, read_nifti, read_image, read_mask, read_labels):
        for path in (tmp_path / "nothing", tmp_path):
            with pytest.raises(DataError, match=f"no file {path}"):
                read(path)


class TestWriting:
    def test_full_disk_keeps_what_was_there(self, tmp_path: Path) -> None:
        path = tmp_path / "results.json"
        write_json(path, {"epochs": 1})
        limited = (
            "import resource, signal, sys; from pathlib import Path; from medseg.files import write_json\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
            "try:\n    write_json(Path(sys.argv[1]), list(range(10_000)))\nexcept OSError as error:\n    print(error)"
        )
        examples = Path(__file__).parents[2] / "examples"
        done = subprocess.run([sys.executable, "-c", limited, path], cwd=examples, capture_output=True, text=True)
        assert (done.stdout, done.returncode) == (f"cannot write {path}: File too large\n", 0)
        assert path.read_text() == '{\n  "epochs": 1\n}\n'
        assert list(tmp_path.iterdir()) == [path]

    def test_unwritable_folder(self, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("a file")
        with pytest.raises(OSError, match=r"cannot write .*results.json"):
            write_json(tmp_path / "out" / "results.json", {})

    def test_nan_is_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "results.json", {"loss": float("nan")})
        assert list(tmp_path.iterdir()) == []
