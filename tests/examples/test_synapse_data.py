import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from medseg.data.phantom import SHAPE, make_phantom, write_phantoms
from medseg.data.synapse import SYNAPSE, open_synapse, read_slice, read_volume
from medseg.errors import DataError
from medseg.training.slices import Draw, SliceDataset

SETTINGS = SYNAPSE.settings


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), train=3, test=1, seed=3)


def names(cases: object) -> list[str]:
    return [case.name for case in cases]  # type: ignore[attr-defined]


class TestSplit:
    def test_lists_of_the_folder(self, phantoms: Path) -> None:
        split = open_synapse(phantoms, SETTINGS)
        assert split.name == "lists of the folder (3 cases for training, 1 for test)"
        assert sorted(names(split.train) + names(split.validation)) == ["case0000", "case0001", "case0002"]
        assert len(split.validation) == 1  # a tenth of the cases, at least one
        assert names(split.test) == ["case0003"]

    def test_no_validation(self, phantoms: Path) -> None:
        split = open_synapse(phantoms, replace(SETTINGS, validation=0))
        assert names(split.train) == ["case0000", "case0001", "case0002"]
        assert not split.validation

    def test_folds_test_every_case_once(self, phantoms: Path) -> None:
        splits = [open_synapse(phantoms, replace(SETTINGS, folds=4, fold=fold)) for fold in (1, 2, 3, 4)]
        tested = [name for split in splits for name in names(split.test)]
        assert sorted(tested) == ["case0000", "case0001", "case0002", "case0003"]
        for split in splits:
            assert sorted(names([*split.train, *split.validation, *split.test])) == sorted(tested)
        assert splits[1].name == "fold 2 of 4 over patients, seed 0"

    def test_case_in_both_lists(self, phantoms: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(phantoms, tmp_path / "both"))
        with (folder / "lists_Synapse" / "train.txt").open("a") as file:
            file.write("case0003_slice000\n")
        np.savez(folder / "train_npz" / "case0003_slice000.npz", image=GOOD, label=LABEL)
        with pytest.raises(DataError, match="case0003 is in train and in test; a patient belongs to one"):
            open_synapse(folder, replace(SETTINGS, validation=0))
        with pytest.raises(DataError, match=r"case0003 is in both lists of .*lists_Synapse"):
            open_synapse(folder, replace(SETTINGS, fold=1))


class TestReading:
    def test_slices_of_a_case_stack_to_a_volume(self, phantoms: Path) -> None:
        case = next(case for case in open_synapse(phantoms, replace(SETTINGS, validation=0)).train if "1" in case.name)
        volume = case.read()
        image, label = make_phantom(30_001)
        assert (volume.case, volume.image.shape, volume.spacing) == ("case0001", (SHAPE[0], 1, *SHAPE[1:]), None)
        np.testing.assert_array_equal(volume.image[:, 0], image)
        np.testing.assert_array_equal(volume.label, label)
        assert (volume.image.dtype, volume.label.dtype) == (np.float32, np.uint8)

    def test_slices_are_stacked_by_number(self, tmp_path: Path) -> None:
        folder = write_phantoms(tmp_path, train=1, test=1, seed=0)
        train_list = folder / "lists_Synapse" / "train.txt"
        train_list.write_text("\n".join(reversed(train_list.read_text().split())))
        (case,) = open_synapse(folder, replace(SETTINGS, validation=0)).train
        np.testing.assert_array_equal(case.read().label, make_phantom(0)[1])

    def test_spacing(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "case0001_slice000.npz", image=GOOD, label=LABEL, spacing=(3, 0.7, 0.8))
        assert read_slice(tmp_path / "case0001_slice000.npz").spacing == (3.0, 0.7, 0.8)
        with h5py.File(tmp_path / "case0001.npy.h5", "w") as file:
            file["image"], file["label"], file["spacing"] = GOOD[None], LABEL[None], np.float64((3, 0.7, 0.8))
        assert read_volume(tmp_path / "case0001.npy.h5").spacing == (3.0, 0.7, 0.8)

    def test_real_ct(self, test_data: Path) -> None:
        split = open_synapse(test_data / "ct_mini", replace(SETTINGS, validation=0))
        assert split.name == "lists of the folder (2 cases for training, 1 for test)"
        dataset = SliceDataset(split.train, 64)
        assert len(dataset) == 41
        labels = [dataset[Draw(index, 0)][1].unique() for index in range(len(dataset))]
        assert set(torch.cat(labels).tolist()) == set(range(9))
        (case,) = split.test
        assert case.read().image.shape == (11, 1, 512, 512)

    def test_public_lists_name_the_cases_of_transunet(self, test_data: Path, tmp_path: Path) -> None:
        lists = tmp_path / "lists_Synapse"
        lists.symlink_to(next(path.parent for path in (test_data / "lists_Synapse_transunet").rglob("train.txt")))
        for folder, suffix, name in (("train_npz", ".npz", "train"), ("test_vol_h5", ".npy.h5", "test_vol")):
            (tmp_path / folder).mkdir()
            for line in (lists / f"{name}.txt").read_text().split():
                (tmp_path / folder / f"{line}{suffix}").touch()
        split = open_synapse(tmp_path, replace(SETTINGS, validation=0))
        assert (len(split.train), len(split.test)) == (18, 12)
        assert split.train[0].name == "case0031"


GOOD = np.full((8, 8), 0.5, np.float32)
LABEL = np.zeros((8, 8), np.float32)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": GOOD}, "has no array 'label', only .*'image'"),
        ({"label": LABEL}, "has no array 'image'"),
        ({"image": GOOD, "label": LABEL + 9}, r"label has values \[9.0\]; wanted whole numbers from 0 to 8"),
        ({"image": GOOD, "label": LABEL - 1}, r"label has values \[-1.0\]"),
        ({"image": GOOD, "label": LABEL + 256}, r"label has values \[256.0\]"),
        ({"image": GOOD, "label": LABEL + 0.5}, r"label has values \[0.5\]"),
        ({"image": GOOD, "label": LABEL * np.nan}, r"label has values \[nan\]"),
        ({"image": GOOD, "label": LABEL + np.inf}, r"label has values \[inf\]"),
        ({"image": GOOD * np.nan, "label": LABEL}, "image has 64 NaN or infinite values"),
        ({"image": GOOD * np.inf, "label": LABEL}, "image has 64 NaN or infinite values"),
        ({"image": GOOD * 500, "label": LABEL}, r"image values run from 250 to 250; wanted \[0, 1\]"),
        ({"image": GOOD - 1, "label": LABEL}, r"image values run from -0.5 to -0.5"),
        ({"image": GOOD, "label": LABEL[:4]}, r"image has shape \(8, 8\) but label \(4, 8\)"),
        ({"image": GOOD[None], "label": LABEL[None]}, r"image has shape \(1, 8, 8\); wanted 2 dimensions"),
        ({"image": GOOD[:0], "label": LABEL[:0]}, r"image has shape \(0, 8\)"),
        ({"image": GOOD.astype(str), "label": LABEL}, "image has dtype <U32; wanted numbers"),
        ({"image": GOOD.astype(object), "label": LABEL}, "cannot read .*Object arrays cannot be loaded"),
        ({"image": GOOD, "label": LABEL, "spacing": [1, 1]}, r"spacing is \[1, 1\]; wanted three lengths above 0"),
        (
            {"image": GOOD, "label": LABEL, "spacing": [1, 0, 1]},
            r"spacing is \[1, 0, 1\]; wanted three lengths above 0",
        ),
        ({"image": GOOD, "label": LABEL, "spacing": [1, np.nan, 1]}, r"spacing is \[1.0, nan, 1.0\]"),
    ],
)
def test_bad_slices_are_refused_by_name(tmp_path: Path, arrays: dict[str, object], message: str) -> None:
    path = tmp_path / "case0001_slice000.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message) as caught:
        read_slice(path)
    assert str(path) in str(caught.value)


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "text": lambda data: b"<html>404</html>",
}


@pytest.mark.parametrize("change", CHANGES)
def test_damaged_files(tmp_path: Path, change: str) -> None:
    slice_path, volume_path = tmp_path / "case0001_slice000.npz", tmp_path / "case0001.npy.h5"
    np.savez(slice_path, image=GOOD, label=LABEL)
    with h5py.File(volume_path, "w") as file:
        file["image"], file["label"] = GOOD[None], LABEL[None]
    assert read_volume(volume_path).case == "case0001"
    for path, read in ((slice_path, read_slice), (volume_path, read_volume)):
        path.write_bytes(CHANGES[change](path.read_bytes()))
        with pytest.raises(DataError, match=rf"cannot read .*{path.name}.*damaged or incomplete"):
            read(path)


def test_volume_without_labels(tmp_path: Path) -> None:
    path = tmp_path / "case0001.npy.h5"
    with h5py.File(path, "w") as file:
        file["image"] = GOOD[None]
    with pytest.raises(DataError, match=r"has no array 'label', only \['image'\]"):
        read_volume(path)


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return write_phantoms(tmp_path, train=1, test=1, seed=0)

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"no data folder .*nowhere; give --data a folder"):
            open_synapse(tmp_path / "nowhere", SETTINGS)

    def test_no_list(self, folder: Path) -> None:
        (folder / "lists_Synapse" / "test_vol.txt").unlink()
        with pytest.raises(DataError, match=r"no list .*test_vol.txt; it names one file of test_vol_h5/"):
            open_synapse(folder, SETTINGS)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"\n", "train.txt is empty"),
            (
                b"\xff\xfe\x00case",
                "cannot read .*train.txt: .*wanted a text file in UTF-8 that names one file of train_npz/",
            ),
            (
                b"case0000_slice000\ncase0000_slice001\ncase0000_slice000\n",
                r"names \['case0000_slice000'\] more than once",
            ),
            (b"case0000\n", "1 of 1 files named in .*train.txt are missing"),
        ],
    )
    def test_bad_list(self, folder: Path, content: bytes, message: str) -> None:
        (folder / "lists_Synapse" / "train.txt").write_bytes(content)
        with pytest.raises(DataError, match=message):
            open_synapse(folder, SETTINGS)

    def test_missing_file(self, folder: Path) -> None:
        (folder / "train_npz" / "case0000_slice003.npz").unlink()
        with pytest.raises(DataError, match=r"1 of 20 files named in .*train.txt are missing, first .*slice003.npz"):
            open_synapse(folder, SETTINGS)

    @pytest.mark.parametrize("name", ["case0000", "case0000_slice", "case0000_slice1b"])
    def test_odd_name(self, folder: Path, name: str) -> None:
        np.savez(folder / "train_npz" / f"{name}.npz", image=GOOD, label=LABEL)
        (folder / "lists_Synapse" / "train.txt").write_text(f"{name}\n")
        with pytest.raises(DataError, match=rf"{name}.npz in .*train.txt is not named caseNNNN_sliceZZZ"):
            open_synapse(folder, SETTINGS)

    def test_slices_of_one_case_that_differ_in_spacing(self, folder: Path) -> None:
        image, label = np.full(SHAPE[1:], 0.5, np.float32), np.zeros(SHAPE[1:], np.uint8)
        np.savez(folder / "train_npz" / "case0000_slice003.npz", image=image, label=label, spacing=np.array([3, 1, 1]))
        (case,) = open_synapse(folder, SETTINGS).train
        with pytest.raises(DataError, match=r"slices of case0000 differ in spacing"):
            case.read()

    def test_a_missing_slice_matters_where_the_case_is_tested(self, folder: Path) -> None:
        listed = folder / "lists_Synapse" / "train.txt"
        listed.write_text(listed.read_text().replace("case0000_slice003\n", ""))
        assert len(open_synapse(folder, SETTINGS).train) == 1
        with pytest.raises(DataError, match=r"names 19 slices of case0000 but not number 3; in a cross-validation"):
            open_synapse(folder, replace(SETTINGS, fold=1, folds=2))

    def test_slices_of_one_case_that_differ_in_shape(self, folder: Path) -> None:
        np.savez(folder / "train_npz" / "case0000_slice003.npz", image=GOOD, label=LABEL)
        (case,) = open_synapse(folder, SETTINGS).train
        with pytest.raises(DataError, match=r"slices of case0000 differ in shape"):
            case.read()
