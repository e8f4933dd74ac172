"""Files as they are in the world: what phones, scanners, editors and other systems make of images, masks and lists."""

import io
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from medseg.data.folders import (
    IMAGE_SUFFIXES,
    beginning,
    by_stem,
    find_files,
    kind_of,
    left_behind,
    pairs,
    read_list,
    stem_of,
    the_folder_below,
    walk,
)
from medseg.data.images import read_image, read_image_and_mask, read_labels, read_mask
from medseg.data.nifti import check_hounsfield, one_frame, orientation_of, read_nifti, to_slices, voxels_of
from medseg.errors import DataError, RunError, note, told_once
from medseg.evaluation.inputs import Use, check_form, read_picture, task_of_file, tasks_of_folder

ROWS, COLUMNS = np.mgrid[:20, :30]
COLOURS = np.stack((ROWS * 12, COLUMNS * 8, 255 - ROWS * 12), -1).astype(np.uint8)
GREY = (ROWS * 8 + COLUMNS * 3).astype(np.uint8)
BINARY = ((ROWS > 5) & (COLUMNS > 12)).astype(np.uint8)
CLASSES = (BINARY + (ROWS > 11)).astype(np.uint8)  # 0, 1, 2
# What a viewer does for each EXIF orientation, as in the standard.
UPRIGHT: dict[int, Callable[[Any], Any]] = {
    1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud,
    5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x.swapaxes(0, 1), 2),
    8: np.rot90,
}  # fmt: skip


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def palette(numbers: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(numbers.astype(np.uint8))
    image.putpalette([value for colour in colours for value in colour])
    return image


def low_depth(numbers: np.ndarray, bits: int) -> bytes:
    """A grey PNG of 1, 2 or 4 bits, which Pillow does not write."""
    height, width = numbers.shape
    per_byte = 8 // bits
    padded = np.zeros((height, -(-width // per_byte) * per_byte), np.uint8)
    padded[:, :width] = numbers
    packed = sum(padded[:, k::per_byte].astype(int) << (8 - bits * (k + 1)) for k in range(per_byte))
    return png(width, height, bits, 0, [row.astype(np.uint8).tobytes() for row in np.asarray(packed)])


def png(width: int, height: int, bits: int, colours: int, rows: list[bytes]) -> bytes:
    """A PNG of these rows, by the number that the format has for its colours."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header, lines = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0), b"\0" + b"\0".join(rows)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


class TestExif:
    @pytest.mark.parametrize("orientation", UPRIGHT)
    @pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
    def test_images_are_upright(self, tmp_path: Path, orientation: int, suffix: str) -> None:
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(COLOURS).save(path, exif=exif(orientation), **({"quality": 100} if suffix == "jpg" else {}))
        wanted = UPRIGHT[orientation](COLOURS)
        found = read_image(path)
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found.astype(int), wanted, atol=12)  # of JPEG

    @pytest.mark.parametrize("orientation", UPRIGHT)
    @pytest.mark.parametrize("stored", ["L", "P", "1", "I;16"])
    def test_masks_are_upright(self, tmp_path: Path, orientation: int, stored: str) -> None:
        image = {
            "L": Image.fromarray(255 * BINARY),
            "P": palette(BINARY, (0, 0, 0), (200, 0, 0)),
            "1": Image.fromarray(BINARY > 0),
            "I;16": Image.fromarray(BINARY.astype(np.uint16) * 65535),
        }[stored]
        image.save(tmp_path / "m.png", exif=exif(orientation))
        np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), UPRIGHT[orientation](BINARY))

    def test_pair_in_the_raster_of_the_viewer(self, tmp_path: Path) -> None:
        Image.fromarray(COLOURS).save(tmp_path / "a.jpg", exif=exif(6))
        Image.fromarray(255 * UPRIGHT[6](BINARY)).save(tmp_path / "m.png")
        volume = read_image_and_mask(tmp_path / "a.jpg", tmp_path / "m.png")
        assert volume.image.shape == (1, 3, 30, 20)
        np.testing.assert_array_equal(volume.label[0], UPRIGHT[6](BINARY))

    def test_mask_drawn_on_the_image_as_stored(self, tmp_path: Path) -> None:
        Image.fromarray(COLOURS).save(tmp_path / "a.jpg", exif=exif(8))
        Image.fromarray(255 * BINARY).save(tmp_path / "m.png")
        with pytest.raises(DataError, match=r"a.jpg is \(30, 20\) but .*m.png is \(20, 30\).*EXIF.*exiftool"):
            read_image_and_mask(tmp_path / "a.jpg", tmp_path / "m.png")

    def test_other_sizes_are_not_blamed_on_exif(self, tmp_path: Path) -> None:
        Image.fromarray(COLOURS).save(tmp_path / "a.png")
        Image.fromarray(255 * BINARY.T).save(tmp_path / "m.png")
        with pytest.raises(DataError, match=r"they must be equal$"):
            read_image_and_mask(tmp_path / "a.png", tmp_path / "m.png")

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
    def test_damaged_exif_is_upright(self, tmp_path: Path) -> None:
        Image.fromarray(GREY).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12", quality=100)
        assert read_image(tmp_path / "a.jpg").shape == (20, 30, 3)


class TestImages:
    @pytest.mark.parametrize("name", ["a.JPG", "a.jpeg", "a.PNG", "a.tiff", "a.bmp", "a.gif", "a.dat"])
    def test_the_content_decides(self, tmp_path: Path, name: str) -> None:
        formats = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "tiff": "TIFF", "bmp": "BMP", "gif": "GIF"}
        form = formats.get(name.split(".")[1].lower(), "PNG")
        Image.fromarray(GREY).save(tmp_path / name, form)
        found = read_image(tmp_path / name)
        assert found.shape == (20, 30, 3)
        np.testing.assert_allclose(found[..., 1].astype(int), GREY, atol=8)

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "1", "I;16", "I"])
    def test_modes_that_have_one_meaning(self, tmp_path: Path, mode: str, caplog: pytest.LogCaptureFixture) -> None:
        path, wanted = tmp_path / "a.tif", np.repeat(GREY[..., None], 3, -1)
        if mode.startswith("I"):
            image = Image.fromarray((GREY.astype(np.uint16) * 257).astype(np.int32 if mode == "I" else np.uint16))
        else:
            image = Image.fromarray(GREY).convert(mode)
            wanted = np.array(image.convert("RGB"))
        image.save(path)
        np.testing.assert_array_equal(read_image(path), wanted)
        words = {"RGBA": "hides nothing", "LA": "hides nothing", "CMYK": "colours are CMYK"}
        words |= dict.fromkeys(["I;16", "I"], "divided by 257")
        assert words.get(mode, "") in caplog.text
        assert bool(caplog.text) == (mode in words)

    def test_palette_with_an_opaque_transparency_table(self, tmp_path: Path) -> None:
        image = palette(CLASSES, (0, 0, 0), (200, 0, 0), (0, 0, 200))
        image.save(tmp_path / "a.png", transparency=bytes([255, 255, 255]))
        assert read_image(tmp_path / "a.png")[-1, -1].tolist() == [0, 0, 200]
        np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), CLASSES)

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
    def test_transparency_is_refused(self, tmp_path: Path, mode: str) -> None:
        path = tmp_path / "a.png"
        if mode in ("P", "L"):
            (palette(CLASSES, (0, 0, 0), (9, 9, 9), (99, 0, 0)) if mode == "P" else Image.fromarray(CLASSES)).save(
                path, transparency=0
            )
        else:
            image = Image.fromarray(GREY).convert(mode)
            image.putalpha(Image.fromarray(BINARY * 255))
            image.save(path)
        for read in (read_image, read_mask, read_labels):
            with pytest.raises(DataError, match=r"a.png: transparent in places .*flatten it.*magick a.png"):
                read(path)

    @pytest.mark.parametrize(
        ("values", "ends"), [(GREY.astype(np.uint16) * 10, "0 to 2390"), (np.full((4, 4), -5, np.int32), "-5 to -5")]
    )
    def test_16_bits_that_would_be_black(self, tmp_path: Path, values: np.ndarray, ends: str) -> None:
        Image.fromarray(values).save(tmp_path / "a.tif")
        with pytest.raises(DataError, match=f"16-bit grey values run from {ends}, of 65535; scale the images"):
            read_image(tmp_path / "a.tif")

    def test_floats_are_refused(self, tmp_path: Path) -> None:
        Image.fromarray(GREY / np.float32(255)).save(tmp_path / "a.tif")
        with pytest.raises(DataError, match="colour mode F; wanted 8-bit RGB or grey"):
            read_image(tmp_path / "a.tif")

    @pytest.mark.parametrize("form", ["GIF", "TIFF", "PNG"])
    def test_several_pages(self, tmp_path: Path, form: str) -> None:
        path, frames = tmp_path / "a.png", [Image.fromarray(GREY + k) for k in (0, 9)]
        frames[0].save(path, form, save_all=True, append_images=frames[1:])
        with pytest.raises(DataError, match=r"a.png holds 2 images; wanted one a file, e.g. `magick a.png page"):
            read_image(path)

    def test_phones_store_two_pictures_in_a_jpeg(self, tmp_path: Path) -> None:
        frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (200, 20)]
        frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
        assert read_image(tmp_path / "a.jpg").min() > 190

    @pytest.mark.parametrize(
        ("content", "kind"),
        [
            (b"<!DOCTYPE html><html>404", "a web page"),
            (b"\n <html>", "a web page"),
            (b"", "empty"),
            (b"RIFF\0\0\0\0WEBPVP8 ", "a WebP image"),
            (b"\0\0\0\x18ftypheic", "an HEIC image"),
            (bytes(128) + b"DICM", "a DICOM file"),
            (b"PK\x03\x04", "a zip archive"),
            (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
            (b"GIF87a", "a GIF image, damaged, or stored in a way"),
        ],
    )
    def test_what_is_no_image_is_named(self, tmp_path: Path, content: bytes, kind: str) -> None:
        (tmp_path / "a.jpg").write_bytes(content)
        with pytest.raises(DataError, match=f"cannot read .*a.jpg: it is {kind}") as error:
            read_image(tmp_path / "a.jpg")
        assert "0x" not in str(error.value)


class TestMasks:
    @pytest.mark.parametrize(
        "stored",
        [
            Image.fromarray(BINARY), Image.fromarray(255 * BINARY), Image.fromarray(BINARY > 0),
            Image.fromarray(BINARY.astype(np.uint16)), Image.fromarray(BINARY.astype(np.uint16) * 255),
            Image.fromarray(BINARY.astype(np.uint16) * 65535), Image.fromarray(BINARY.astype(np.int32)),
            Image.fromarray(BINARY.astype(np.float32)), Image.fromarray(BINARY * 255).convert("RGB"),
            Image.fromarray(BINARY * 255).convert("RGBA"), Image.fromarray(BINARY * 255).convert("LA"),
            palette(BINARY, (0, 0, 0), (128, 0, 0)), palette(BINARY, (0, 0, 0), (255, 255, 255)),
            palette(1 - BINARY, (255, 255, 255), (0, 0, 0)), palette(BINARY, (0, 0, 0), (1, 1, 1)),
            palette(BINARY, (0, 128, 0), (128, 0, 0)),
        ],
    )  # fmt: skip
    def test_any_way_to_store_two_values(self, tmp_path: Path, stored: Image.Image) -> None:
        stored.save(tmp_path / "m.tif" if stored.mode in ("F", "I") else tmp_path / "m.png")
        (path,) = tmp_path.iterdir()
        found = read_mask(path)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, BINARY)

    @pytest.mark.parametrize("bits", [1, 2, 4])
    def test_low_depths(self, tmp_path: Path, bits: int) -> None:
        top = 2**bits - 1
        for factor in {1, top}:
            (tmp_path / "m.png").write_bytes(low_depth(BINARY * factor, bits))
            np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), BINARY)
            np.testing.assert_array_equal(read_labels(tmp_path / "m.png"), BINARY * factor)
        (tmp_path / "m.png").write_bytes(low_depth(np.minimum(CLASSES, top), bits))
        np.testing.assert_array_equal(read_labels(tmp_path / "m.png"), np.minimum(CLASSES, top))

    @pytest.mark.parametrize(
        ("stored", "message"),
        [
            (palette(CLASSES, (0, 0, 0), (128, 0, 0), (0, 0, 128)), r"numbers \[0, 1, 2\] of a palette \(#000000, #8"),
            (Image.fromarray(CLASSES * 100), r"values \[0, 100, 200\]; wanted 0 and 255, or 0 and 1$"),
            (Image.fromarray(BINARY * 128), r"values \[0, 128\]; wanted 0 and 255"),
            (Image.fromarray(COLOURS), r"colour mode RGB, the colours .*wanted one number a pixel: 0 and 255"),
            (Image.fromarray(BINARY / np.float32(2)), r"values \[0.0, 0.5\]; wanted whole numbers: 0 and 255"),
            (Image.fromarray(BINARY * 255).convert("CMYK"), "colour mode CMYK; wanted one channel: 0 and 255"),
        ],
    )
    def test_what_is_no_mask(self, tmp_path: Path, stored: Image.Image, message: str) -> None:
        stored.save(tmp_path / "m.png" if stored.mode not in ("F", "CMYK") else tmp_path / "m.tif")
        (path,) = tmp_path.iterdir()
        with pytest.raises(DataError, match=message):
            read_mask(path)

    def test_jpeg_blurs(self, tmp_path: Path) -> None:
        Image.fromarray(BINARY * 255).save(tmp_path / "m.jpg", quality=60)
        with pytest.raises(DataError, match=r"mask has values .*JPEG blurs masks, save them as PNG"):
            read_mask(tmp_path / "m.jpg")
        with pytest.raises(DataError, match="labels in a JPEG, which blurs them; save them as PNG"):
            read_labels(tmp_path / "m.jpg")

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
    def test_class_numbers_of_any_type(self, tmp_path: Path, dtype: type) -> None:
        Image.fromarray(CLASSES.astype(dtype)).save(tmp_path / "m.tif")
        found = read_labels(tmp_path / "m.tif")
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, CLASSES)

    def test_instances_are_no_classes(self, tmp_path: Path) -> None:
        Image.fromarray(np.full((4, 4), 300, np.uint16)).save(tmp_path / "m.png")
        with pytest.raises(DataError, match="labels run to 300; wanted class numbers from 0 to 255"):
            read_labels(tmp_path / "m.png")


class TestLists:
    @pytest.mark.parametrize(
        "content",
        [
            b"a 1\nb\n", b"\xef\xbb\xbfa 1\nb", b"a 1\r\nb\r\n", b"a 1\rb\r", b"  a 1  \n\n\nb\t\n",
            b'"a 1"\n\'b\'\n',
            "a 1\nb\n".encode("utf-16"), "\ufeffa 1\r\nb".encode("utf-16-be"), "\xa0a 1\u200b\nb".encode(),
            b"a 1.jpg\nb.JPG\n", b"images/a 1.jpg\nimages\\b.jpg\n",
        ],
    )  # fmt: skip
    def test_names(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "l.txt").write_bytes(content)
        assert read_list(tmp_path / "l.txt", "one image", (".jpg",)) == ["a 1", "b"]

    def test_accents_compare_however_they_are_composed(self, tmp_path: Path) -> None:
        (tmp_path / "l.txt").write_text("Mu\u0308ller\n", encoding="utf-8")
        assert read_list(tmp_path / "l.txt", "one image") == ["M\xfcller"]
        assert stem_of(Path("Mu\u0308ller.PNG"), (".png",)) == "M\xfcller"

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"a\nb\na\n", r"names \['a'\] more than once; remove the repetition"),
            (b"a.jpg\na\n", r"names \['a'\] more than once"),
            (b"a\tm\n", r"line 1 of .* has several columns: 'a\\tm'; it names one image a line"),
            (b" \n\r\n", "is empty; it names one image a line"),
            (b"M\xfcller\n", r"cannot read .*l.txt: 'utf-8' codec .*wanted a text file in UTF-8"),
            ("a\nb".encode("utf-16-le"), "has zero bytes; wanted a text file in UTF-8"),
        ],
    )
    def test_what_is_no_list(self, tmp_path: Path, content: bytes, message: str) -> None:
        (tmp_path / "l.txt").write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_list(tmp_path / "l.txt", "one image", (".jpg",))


class TestFolders:
    LEFT = ("._a.jpg", ".DS_Store", "Thumbs.db", "THUMBS.DB", "desktop.ini", "Desktop.ini", "ehthumbs.db", ".nfs01")

    def test_what_systems_leave_is_passed_over(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        for name in ("b.jpg", "a.JPG", "c.Png", "notes.txt", *self.LEFT):
            (tmp_path / name).touch()
        for folder in ("__MACOSX", ".git", "deep", "@eaDir", "$RECYCLE.BIN"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "d.jpg").touch()
        found = find_files(tmp_path, IMAGE_SUFFIXES)
        assert [path.name for path in found.files] == ["a.JPG", "b.jpg", "c.Png"]
        assert {path.name for path in found.others} == {"notes.txt", *self.LEFT}
        assert "passed over 9 files: .DS_Store, ._a.jpg, " in caplog.text
        assert {path.name for path in walk(tmp_path)} == {"a.JPG", "b.jpg", "c.Png", "notes.txt", "d.jpg"}
        assert all(left_behind(Path(name)) for name in self.LEFT)

    def test_two_files_of_one_name(self, tmp_path: Path) -> None:
        for name in ("a.jpg", "a.JPG"):
            (tmp_path / name).touch()
        with pytest.raises(DataError, match=r"a.JPG and .*a.jpg are both a; remove or rename one of them"):
            by_stem(tmp_path, IMAGE_SUFFIXES)

    @pytest.mark.parametrize("ending", ["", "_mask", "_segmentation", "_gt"])
    def test_pairs(self, tmp_path: Path, ending: str) -> None:
        for number, suffix in enumerate((".jpg", ".JPEG", ".png", ".tif")):
            for folder, name in (("images", f"x {number}{suffix}"), ("masks", f"x {number}{ending}.PNG")):
                (tmp_path / folder).mkdir(exist_ok=True)
                (tmp_path / folder / name).touch()
        found = pairs(tmp_path / "images", tmp_path / "masks")
        assert [(stem, image.suffix, mask.name) for stem, (image, mask) in found.items()] == [
            (f"x {n}", suffix, f"x {n}{ending}.PNG") for n, suffix in enumerate((".jpg", ".JPEG", ".png", ".tif"))
        ]
        (tmp_path / "masks" / f"x 2{ending}.PNG").unlink()
        with pytest.raises(DataError, match=rf"1 of 4 images .* have no mask in .*, first .*x 2{ending}\.\*"):
            pairs(tmp_path / "images", tmp_path / "masks")

    def test_no_folder_and_no_image(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"no folder .*nowhere"):
            by_stem(tmp_path / "nowhere", IMAGE_SUFFIXES)
        with pytest.raises(DataError, match=r"holds no image: .png, .jpg"):
            pairs(tmp_path, tmp_path)

    def test_one_folder_deeper(self, tmp_path: Path) -> None:
        (tmp_path / "release" / "images").mkdir(parents=True)
        (tmp_path / "__MACOSX" / "images").mkdir(parents=True)
        assert the_folder_below(tmp_path, ("images",)) == tmp_path / "release"
        assert the_folder_below(tmp_path / "release", ("images",)) == tmp_path / "release"
        assert the_folder_below(tmp_path, ("masks",)) == tmp_path


def nifti(voxels: np.ndarray, kind: Any = nibabel.Nifti1Image, **header: Any) -> bytes:
    image = kind(voxels, np.diag([-1, 1, 2, 1]))
    for name, value in header.items():
        image.header[name] = value
    content: bytes = image.to_bytes()
    return content


HU = (np.linspace(-1000, 400, 4 * 5 * 3).reshape(4, 5, 3)).astype(np.int16)


class TestNifti:
    @pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.NII.GZ", "a.img", "a", "a.gz", "a.nii (1)"])
    @pytest.mark.parametrize("compressed", [False, True])
    @pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
    def test_the_content_decides(self, tmp_path: Path, name: str, compressed: bool, kind: Any) -> None:
        import gzip

        content = nifti(HU, kind)
        (tmp_path / name).write_bytes(gzip.compress(content) if compressed else content)
        np.testing.assert_array_equal(np.asanyarray(read_nifti(tmp_path / name).dataobj), HU)

    @pytest.mark.parametrize("dtype", [">i2", ">f4", "<f8", "<i4", "<u2"])
    def test_numbers_of_any_type(self, tmp_path: Path, dtype: str) -> None:
        voxels = HU.astype(dtype) if "u" not in dtype else (HU + 1024).astype(dtype)
        header = nibabel.Nifti1Header(endianness=dtype[0])
        image = nibabel.Nifti1Image(voxels, np.diag([-1, 1, 2, 1]), header)
        (tmp_path / "a.nii").write_bytes(image.to_bytes())
        slices = to_slices(tmp_path / "a.nii", read_nifti(tmp_path / "a.nii"), "min-max")
        assert slices.dtype == np.dtype("=f4")
        assert (slices.min(), slices.max()) == (0, 1)

    @pytest.mark.parametrize("extra", [1, 2])
    def test_trailing_axes_of_1(self, tmp_path: Path, extra: int) -> None:
        (tmp_path / "a.nii").write_bytes(nifti(HU.reshape(*HU.shape, *[1] * extra)))
        image = read_nifti(tmp_path / "a.nii")
        assert image.shape == HU.shape
        np.testing.assert_array_equal(image.affine, np.diag([-1, 1, 2, 1]))

    def test_frames(self, tmp_path: Path) -> None:
        path = tmp_path / "cine.nii"
        path.write_bytes(nifti(np.stack([HU, HU + 1, HU + 2], -1)))
        image = read_nifti(path)
        for frame in (1, 3):
            np.testing.assert_array_equal(np.asanyarray(one_frame(path, image, frame).dataobj), HU + frame - 1)
        with pytest.raises(DataError, match=r"shape \(4, 5, 3, 3\), a series of 3 frames; wanted one: --frame N"):
            one_frame(path, image, None)
        with pytest.raises(DataError, match="there is no frame 4, --frame goes to 3"):
            one_frame(path, image, 4)
        path.write_bytes(nifti(HU))
        assert one_frame(path, read_nifti(path), None).shape == HU.shape
        with pytest.raises(DataError, match="there is no frame 2, --frame goes to 1"):
            one_frame(path, read_nifti(path), 2)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (bytes(128) + b"DICM" + bytes(300), "it is a DICOM file, no NIfTI; .*dcm2niix -z y -o OUT FOLDER"),
            (b"\x08\0\x05\0CS\n\0ISO_IR 100" + bytes(300), "it is a DICOM file"),
            (b"NRRD0004\n", "an NRRD scan, no NIfTI; SimpleITK converts it"),
            (b"ObjectType = Image\nNDims = 3", "a MetaImage scan"),
            (nifti(HU)[:344] + b"ni1\0" + nifti(HU)[348:], "an Analyze 7.5 scan.*fslchfiletype"),
            (nifti(HU)[:344] + bytes(4) + nifti(HU)[348:], "an Analyze 7.5 scan"),
            (b"<html>", "a web page"),
            (b"", "it is empty, no NIfTI"),
        ],
    )
    def test_what_is_no_nifti_is_named(self, tmp_path: Path, content: bytes, message: str) -> None:
        (tmp_path / "a.nii.gz").write_bytes(content)
        with pytest.raises(DataError, match=f"cannot read .*a.nii.gz: .*{message}"):
            read_nifti(tmp_path / "a.nii.gz")
        assert kind_of(beginning(tmp_path / "a.nii.gz")) != "a NIfTI scan"

    def test_nan(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        voxels = HU.astype(np.float32)
        voxels[0, 0, :2] = np.nan, np.inf
        path = tmp_path / "a.nii"
        path.write_bytes(nifti(voxels))
        with pytest.raises(DataError, match="2 voxels are NaN or infinite; pass --x"):
            voxels_of(path, read_nifti(path), remedy="pass --x")
        filled = voxels_of(path, read_nifti(path), fill_nan=True)
        assert np.isfinite(filled).all()
        assert (filled[0, 0, :2] == np.nanmin(voxels)).all()
        assert "2 voxels that are NaN or infinite are taken as background" in caplog.text
        path.write_bytes(nifti(np.full((2, 2, 2), np.nan, np.float32)))
        with pytest.raises(DataError, match="8 voxels are NaN or infinite; fetch it again"):
            voxels_of(path, read_nifti(path), fill_nan=True)

    @pytest.mark.parametrize(
        ("voxels", "message"),
        [
            (HU + 1024, "run from 24 to 1424; .*the rescale intercept is missing"),
            (np.clip(HU + 1024, 100, None), "run from 100 to 1424; .*the rescale intercept is missing"),
            ((HU + 1000) * (255 / 1400), "run from 0 to 255; .*reduced to 8 bits through some window"),
            ((HU + 1000) / 1400, "run from 0 to 1; .*they were scaled"),
            (HU / 500, "run from -2 to 0.8; .*they were scaled"),
        ],
    )
    def test_what_can_t_be_hounsfield_units(self, voxels: np.ndarray, message: str) -> None:
        with pytest.raises(DataError, match=f"a.nii: values {message}"):
            check_hounsfield(Path("a.nii"), voxels)

    def test_a_crop_of_a_body_is_noted(self, caplog: pytest.LogCaptureFixture) -> None:
        check_hounsfield(Path("a.nii"), np.array([-90.0, 200.0]))
        assert "a.nii: nothing is below -125, not even air or fat" in caplog.text
        caplog.clear()
        check_hounsfield(Path("a.nii"), HU)
        assert not caplog.text

    def test_a_header_without_orientation_is_noted(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = tmp_path / "a.nii"
        content = bytearray(nifti(HU))
        content[252:256] = bytes(4)  # both codes; nibabel writes none that are 0
        path.write_bytes(content)
        orientation_of(path, read_nifti(path), "min-max")  # MRI is read in the order of the file
        assert not caplog.text
        orientation_of(path, read_nifti(path), "hu")
        assert "does not say how the scan lies (qform_code and sform_code are 0)" in caplog.text
        caplog.clear()
        path.write_bytes(nifti(HU))
        orientation_of(path, read_nifti(path), "hu")
        assert not caplog.text


def test_notes_are_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    with told_once():
        for name in ("a", "b", "c", "c"):  # one is read twice
            note("%s: %s voxels are odd", name, 3)
        note("%s: passed over %s", "d", "x", each=True)
        note("%s: passed over %s", "e", "y", each=True)
    assert capsys.readouterr().err.splitlines() == [
        "Note: a: 3 voxels are odd", "Note: d: passed over x", "Note: e: passed over y",
        "Note: so it is of 3 files: ... voxels are odd",
    ]  # fmt: skip
    assert not any(type(handler).__name__ == "_Once" for handler in logging.getLogger("medseg").handlers)


def test_streams_are_closed(tmp_path: Path) -> None:
    """Warnings are errors here: a file left open would be one."""
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    for _ in range(3):
        read_image(tmp_path / "a.png")


def png_of_16_bits(channels: np.ndarray) -> bytes:
    """A PNG of several channels of 16 bits, which Pillow does not write."""
    height, width, count = channels.shape
    return png(width, height, 16, {2: 4, 3: 2, 4: 6}[count], [row.astype(">u2").tobytes() for row in channels])


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("read", [read_image, read_mask, read_labels])
def test_channels_of_16_bits_are_refused(tmp_path: Path, read: Callable[[Path], object], channels: int) -> None:
    """Pillow reads their upper 8 bits, so labels would be all background, and images of 12 bits nearly black."""
    stored = np.repeat(CLASSES[..., None], channels, -1)
    if channels != 3:
        stored[..., -1] = 255
        stored = stored.astype(np.uint16)
        stored[..., -1] = 65535
    (tmp_path / "a.png").write_bytes(png_of_16_bits(stored))
    with pytest.raises(DataError, match=r"a\.png: 16 bits for each of several channels, of which only the upper 8"):
        read(tmp_path / "a.png")


def test_greys_in_a_palette_are_what_is_seen(tmp_path: Path) -> None:
    """Programs that make files smaller number the colours of a palette anew."""
    for name, order in {"a.png": (0, 1, 2), "b.png": (2, 0, 1)}.items():
        numbers = np.argsort(order)[CLASSES]
        palette(numbers, *((grey,) * 3 for grey in order)).save(tmp_path / name)
        assert np.array_equal(read_labels(tmp_path / name), CLASSES)


def test_labels_in_a_gif_are_refused(tmp_path: Path) -> None:
    Image.fromarray(2 * BINARY).save(tmp_path / "a.gif")
    with pytest.raises(DataError, match="labels in a GIF, which has numbered its colours anew; save them as PNG"):
        read_labels(tmp_path / "a.gif")


def test_very_large_images_are_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"a\.png: 600 pixels, more than are read of one image; scale it down or cut"):
        read_image(tmp_path / "a.png")


def test_photographs_in_dicom_are_answered_with_a_converter(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    (tmp_path / "images" / "a.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 60)
    with pytest.raises(DataError, match=r"holds no image: .*; RGB images in DICOM become PNG with DCMTK: `dcm2img"):
        pairs(tmp_path / "images", tmp_path / "masks")


def use(intensity: str) -> Use:
    return Use(Path(), ("background", "lesion"), 32, intensity)


def test_images_are_told_by_their_content_too(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "photo", "PNG")
    Image.fromarray(COLOURS).save(tmp_path / "b.jfif", "JPEG")
    (tmp_path / "notes").write_text("no image")
    (tmp_path / "c.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 60)
    for name in ("photo", "b.jfif"):
        assert read_picture(tmp_path / name, use("rgb")).image.shape == (1, 3, 20, 30)
    tasks = tasks_of_folder(tmp_path, tmp_path.parent / "labels", None, None, "rgb")
    assert [task.labels.name for task in tasks] == ["b.png", "photo.png"]
    with pytest.raises(DataError, match="of no kind that is known here, and the network is for RGB images"):
        check_form(tmp_path / "notes", "rgb")
    with pytest.raises(DataError, match=r"a DICOM file, and the network is for RGB images; .*`dcm2img IN OUT\.png`"):
        check_form(tmp_path / "c.dcm", "rgb")


def test_voxels_that_are_no_numbers_in_arrays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = np.linspace(0.2, 1, 24, dtype=np.float32).reshape(2, 3, 4)
    image[0, 1, 2], image[1, 0, 0] = np.nan, np.inf
    np.savez(tmp_path / "a.npz", image=image)
    with pytest.raises(DataError, match="image has 2 NaN or infinite values"):
        read_picture(tmp_path / "a.npz", use("min-max"))
    filled = read_picture(tmp_path / "a.npz", use("min-max"), fill_nan=True).image[:, 0]
    assert np.allclose(filled, np.where(np.isfinite(image), image, 0.2))
    assert "2 voxels that are NaN or infinite are taken as background" in caplog.text
    with pytest.raises(DataError, match=r"a\.npz is no NIfTI, which alone has frames; leave out --frame"):
        read_picture(tmp_path / "a.npz", use("min-max"), frame=1)


def test_what_lies_in_folders_that_systems_leave_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for place in ("a.png", "__MACOSX/b.png", ".thumbs/c.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.fromarray(COLOURS).save(tmp_path / place)
    assert len(tasks_of_folder(tmp_path, tmp_path.parent / "labels", None, None, "rgb")) == 1
    assert re.search(r"passed over 2 files: (c\.png, b\.png|b\.png, c\.png)", caplog.text)


def test_an_output_below_a_file_is_refused_at_once(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    with pytest.raises(
        RunError, match=r"--output .*a\.png cannot be a folder, since .*a\.png is a file; choose another --output"
    ):
        task_of_file(tmp_path / "a.png", tmp_path / "a.png" / "labels.png", None, None, "rgb")
