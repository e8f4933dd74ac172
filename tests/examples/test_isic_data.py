from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg.data.images import read_image_and_mask
from medseg.data.isic import RELEASED, isic, open_isic
from medseg.errors import DataError
from medseg.training.slices import Draw, SliceDataset

SETTINGS = isic(2018).settings


def write_pair(images: Path, masks: Path, number: int, shape: tuple[int, int]) -> str:
    name = f"ISIC_{number:07}"
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(images / f"{name}.jpg")
    mask = np.zeros(shape, np.uint8)
    mask[: shape[0] // 2] = 255
    Image.fromarray(mask).save(masks / f"{name}_segmentation.png")
    return name


SHAPES = [(30, 40), (40, 30), (33, 33), (20, 60)]


def release(folder: Path, year: int, parts: Sequence[str] = ("train", "validation", "test"), count: int = 10) -> Path:
    for offset, part in enumerate(parts):
        images, masks = RELEASED[year][part]
        for number in range(count):
            write_pair(folder / images, folder / masks, 100 * offset + number, SHAPES[number % 4])
        (folder / images / "ATTRIBUTION.txt").write_text("CC0")
        (folder / images / "ISIC_0000000_superpixels.png").touch()  # beside the images of 2017
    return folder


class TestSplit:
    @pytest.mark.parametrize("year", [2017, 2018])
    def test_official_where_all_parts_are_there(self, tmp_path: Path, year: int) -> None:
        split = open_isic(release(tmp_path, year), SETTINGS, year)
        assert split.name == f"official split of ISIC {year}"
        first = {part: (len(cases), cases[0].name) for part, cases in split.parts().items()}
        assert first == {
            "train": (10, "ISIC_0000000"),
            "validation": (10, "ISIC_0000100"),
            "test": (10, "ISIC_0000200"),
        }

    @pytest.mark.parametrize("parts", [("train",), ("train", "validation")])
    def test_7_to_3_where_the_test_part_is_missing(self, tmp_path: Path, parts: tuple[str, ...]) -> None:
        folder = release(tmp_path, 2018, parts, count=20)
        split = open_isic(folder, SETTINGS, 2018)
        assert split.name.startswith("7:3 of the training images, seed 0 (not the official split")
        assert len(split.train) + len(split.validation) == 14
        assert (len(split.validation), len(split.test)) == (1, 6)
        everything = sorted(case.name for cases in split.parts().values() for case in cases)
        assert everything == [f"ISIC_{number:07}" for number in range(20)]
        other = open_isic(folder, replace(SETTINGS, split_seed=1), 2018)
        assert [case.name for case in other.test] != [case.name for case in split.test]

    def test_the_parts_of_another_year_are_not_taken(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="holds neither ISIC2018_Task1-2_Training_Input/ nor images/"):
            open_isic(release(tmp_path, 2017), SETTINGS, 2018)

    def test_one_folder_with_lists(self, tmp_path: Path) -> None:
        names = [write_pair(tmp_path / "images", tmp_path / "masks", number, (20, 30)) for number in range(9)]
        (tmp_path / "splits").mkdir()
        for part, listed in (("train", names[:5]), ("val", names[5:7]), ("test", names[7:])):
            (tmp_path / "splits" / f"{part}.txt").write_text("\n".join(listed))
        split = open_isic(tmp_path, SETTINGS, 2018)
        assert split.name == "splits/*.txt of the folder (5/2/2)"
        assert [[case.name for case in cases] for cases in split.parts().values()] == [names[:5], names[5:7], names[7:]]
        (tmp_path / "splits" / "val.txt").write_text("\n".join(names[4:7]))
        with pytest.raises(DataError, match=f"{names[4]} is in train and in validation"):
            open_isic(tmp_path, SETTINGS, 2018)
        (tmp_path / "splits" / "val.txt").write_text("ISIC_9999999\n")
        with pytest.raises(DataError, match=r"1 of 1 files named in .*val.txt are missing, first .*ISIC_9999999.jpg"):
            open_isic(tmp_path, SETTINGS, 2018)
        (tmp_path / "splits" / "val.txt").unlink()
        with pytest.raises(DataError, match=r"no list .*val.txt; it names one image of images/"):
            open_isic(tmp_path, SETTINGS, 2018)

    def test_one_folder_without_lists(self, tmp_path: Path) -> None:
        for number in range(10):
            write_pair(tmp_path / "images", tmp_path / "masks", number, (20, 30))
        split = open_isic(tmp_path, SETTINGS, 2017)
        assert [len(cases) for cases in split.parts().values()] == [6, 1, 3]
        assert split.name.startswith("7:3")

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"no data folder .*nowhere; give --data the folder"):
            open_isic(tmp_path / "nowhere", SETTINGS, 2018)

    def test_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="holds neither"):
            open_isic(tmp_path, SETTINGS, 2018)
        (tmp_path / "images").mkdir()
        with pytest.raises(DataError, match=r"images holds no image: \.png, \.jpg"):
            open_isic(tmp_path, SETTINGS, 2018)

    def test_missing_masks(self, tmp_path: Path) -> None:
        folder = release(tmp_path, 2018)
        masks = folder / RELEASED[2018]["validation"][1]
        (masks / "ISIC_0000103_segmentation.png").unlink()
        with pytest.raises(
            DataError, match=r"1 of 10 images named in .*Validation_Input have no mask in .*, first .*0000103_seg"
        ):
            open_isic(folder, SETTINGS, 2018)


class TestReading:
    def test_pair(self, tmp_path: Path) -> None:
        name = write_pair(tmp_path, tmp_path, 3, (30, 40))
        volume = read_image_and_mask(tmp_path / f"{name}.jpg", tmp_path / f"{name}_segmentation.png")
        assert (volume.case, volume.spacing) == (name, None)
        assert (volume.image.shape, volume.image.dtype) == ((1, 3, 30, 40), np.uint8)
        np.testing.assert_array_equal(volume.image[0].transpose(1, 2, 0), Image.open(tmp_path / f"{name}.jpg"))
        assert volume.label.shape == (1, 30, 40)
        assert volume.label[0, :15].all()
        assert not volume.label[0, 15:].any()

    def test_sizes_that_differ_are_refused(self, tmp_path: Path) -> None:
        one, other = (write_pair(tmp_path, tmp_path, n, shape) for n, shape in ((1, (30, 40)), (2, (40, 30))))
        with pytest.raises(DataError, match=r"0001.jpg is \(30, 40\) but .*0002_segmentation.png is \(40, 30\)"):
            read_image_and_mask(tmp_path / f"{one}.jpg", tmp_path / f"{other}_segmentation.png")

    def test_mixed_sizes_make_batches(self, tmp_path: Path) -> None:
        split = open_isic(release(tmp_path, 2018, count=8), SETTINGS, 2018)
        dataset = SliceDataset(split.train, 32)
        assert {dataset[Draw(n, 0)][0].shape for n in range(8)} == {(3, 32, 32)}
        assert {image.shape[-2:] for image, _ in dataset.slices} == set(SHAPES)

    def test_real_data(self, test_data: Path) -> None:
        split = open_isic(test_data / "isic2018", SETTINGS, 2018)
        assert split.name == "splits/*.txt of the folder (1600/400/594)"
        assert [len(cases) for cases in split.parts().values()] == [1600, 400, 594]
        for cases in split.parts().values():
            dataset = SliceDataset(cases[:20], 64)
            assert len(dataset) == 20
            assert all(image.dtype.is_floating_point is False for image, _ in dataset.slices)
            assert {int(value) for _, label in dataset.slices for value in label.unique()} <= {0, 1}
            assert np.mean([label.float().mean() for _, label in dataset.slices]) > 0.01
