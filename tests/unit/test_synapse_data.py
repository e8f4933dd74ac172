from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from medseg.geometry import IMAGE_PADDING, fit_square, unfit_square
from medseg.phantom import SHAPE, make_phantom, write_phantoms
from medseg.synapse import (
    ORGANS,
    DataError,
    SliceDataset,
    SynapseFolder,
    read_slice,
    read_volume,
    slices_as_volumes,
)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), train=2, test=1, seed=3)


class TestPhantom:
    def test_layout_is_that_of_the_preprocessed_set(self, phantoms: Path) -> None:
        folder = SynapseFolder.open(phantoms)
        assert len(folder.slices) == 2 * SHAPE[0]
        assert [path.name for path in folder.volumes] == ["case0002.npy.h5"]
        assert folder.slices[0] == phantoms / "train_npz" / "case0000_slice000.npz"
        with np.load(folder.slices[0], allow_pickle=False) as file:
            assert {key: (file[key].shape, str(file[key].dtype)) for key in file} == {
                "image": (SHAPE[1:], "float32"),
                "label": (SHAPE[1:], "float32"),
            }
        volume = read_volume(folder.volumes[0])
        assert (volume.case, volume.image.shape, volume.label.shape) == ("case0002", SHAPE, SHAPE)

    @pytest.mark.parametrize("seed", range(100, 110))
    def test_every_patient_has_every_organ_where_it_belongs(self, seed: int) -> None:
        image, label = make_phantom(seed)
        assert image.min() >= 0
        assert image.max() <= 1
        centre = {organ: np.argwhere(label == k).mean(0) for k, organ in enumerate(ORGANS, start=1)}
        assert all((label == k).sum() > 50 for k in range(1, 9))
        middle = SHAPE[2] / 2
        assert centre["liver"][2] < middle < centre["spleen"][2]  # patient's right is on the left of the image
        assert centre["right kidney"][2] < middle < centre["left kidney"][2]
        assert centre["stomach"][1] < centre["aorta"][1]  # the front is up
        assert centre["left kidney"][0] < centre["spleen"][0]  # slices run to the head

    def test_seed_decides_everything(self) -> None:
        for one, same, other in zip(make_phantom(1), make_phantom(1), make_phantom(2), strict=True):
            np.testing.assert_array_equal(one, same)
            assert not np.array_equal(one, other)

    def test_no_patient_is_both_trained_and_tested_on(self, phantoms: Path) -> None:
        folder = SynapseFolder.open(phantoms)
        trained = {path.name.split("_")[0] for path in folder.slices}
        assert trained.isdisjoint(path.name.split(".")[0] for path in folder.volumes)


class TestGeometry:
    @pytest.mark.parametrize("shape", [(512, 512), (101, 122), (122, 101), (40, 200), (1, 9)])
    def test_label_comes_back_from_its_square(self, shape: tuple[int, int]) -> None:
        label = torch.zeros(shape, dtype=torch.uint8)
        label[shape[0] // 4 : shape[0] // 2 + 1, shape[1] // 3 : shape[1] // 2 + 1] = 5
        square = fit_square(label[None], 256)
        assert square.shape == (1, 256, 256)
        back = unfit_square(square, *shape)[0]
        assert back.shape == shape
        if max(shape) <= 256:  # enlarging loses nothing
            assert torch.equal(back, label)
        else:
            assert (back != label).float().mean() < 0.01

    def test_aspect_is_kept_and_padding_is_the_papers(self) -> None:
        square = fit_square(torch.ones(1, 50, 100), 64)[0]
        assert torch.allclose(square[16:48], torch.ones(32, 64))
        for border in (square[:16], square[48:]):
            assert torch.allclose(border, torch.full((16, 64), IMAGE_PADDING))
        assert not fit_square(torch.ones(1, 50, 100, dtype=torch.uint8), 64)[0, :16].any()

    def test_image_and_label_stay_aligned(self) -> None:
        label = torch.zeros(1, 90, 120, dtype=torch.uint8)
        label[:, 30:60, 45:75] = 1
        image, label = fit_square(label.float(), 64), fit_square(label, 64)
        assert torch.equal(image[label == 1].round(), torch.ones(int(label.sum())))


class TestDataset:
    def test_items(self, phantoms: Path) -> None:
        dataset = SliceDataset(SynapseFolder.open(phantoms).slices, 64)
        image, label = dataset[10]
        assert (image.shape, image.dtype) == ((3, 64, 64), torch.float32)
        assert (label.shape, label.dtype) == ((64, 64), torch.int64)
        assert torch.equal(image[0], image[2])
        assert label.max() <= 8

    def test_slices_of_a_case_stack_to_a_volume(self, phantoms: Path) -> None:
        volumes = slices_as_volumes(SynapseFolder.open(phantoms).slices)
        assert [(volume.case, volume.image.shape) for volume in volumes] == [("case0000", SHAPE), ("case0001", SHAPE)]
        np.testing.assert_array_equal(volumes[1].label, make_phantom(30_001)[1])

    def test_real_ct(self, test_data: Path) -> None:
        folder = SynapseFolder.open(test_data / "ct_mini")
        assert (len(folder.slices), len(folder.volumes)) == (41, 1)
        dataset = SliceDataset(folder.slices, 64)
        assert set(torch.cat([label.unique() for _, label in dataset]).tolist()) == set(range(9))
        volume = read_volume(folder.volumes[0])
        assert volume.image.shape == (11, 512, 512)


def save(path: Path, **arrays: object) -> None:
    np.savez(path, **arrays)


GOOD = np.full((8, 8), 0.5, np.float32)
LABEL = np.zeros((8, 8), np.float32)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": GOOD}, "has no array 'label', only .*'image'"),
        ({"label": LABEL}, "has no array 'image'"),
        ({"image": GOOD, "label": LABEL + 9}, r"label has values \[9.0\]; wanted whole numbers from 0 to 8"),
        ({"image": GOOD, "label": LABEL - 1}, r"label has values \[-1.0\]"),
        ({"image": GOOD, "label": LABEL + 0.5}, r"label has values \[0.5\]"),
        ({"image": GOOD, "label": LABEL * np.nan}, r"label has values \[nan\]"),
        ({"image": GOOD * np.nan, "label": LABEL}, "image has 64 NaN or infinite values"),
        ({"image": GOOD * np.inf, "label": LABEL}, "image has 64 NaN or infinite values"),
        ({"image": GOOD * 500, "label": LABEL}, r"image values run from 250 to 250; wanted \[0, 1\]"),
        ({"image": GOOD, "label": LABEL[:4]}, r"image has shape \(8, 8\) but label \(4, 8\)"),
        ({"image": GOOD[None], "label": LABEL[None]}, r"image has shape \(1, 8, 8\); wanted 2 dimensions"),
        ({"image": GOOD[:0], "label": LABEL[:0]}, r"image has shape \(0, 8\)"),
        ({"image": GOOD.astype(str), "label": LABEL}, "image has dtype <U32; wanted numbers"),
        ({"image": GOOD.astype(object), "label": LABEL}, "cannot read .*Object arrays cannot be loaded"),
    ],
)
def test_bad_slices_are_refused_by_name(tmp_path: Path, arrays: dict[str, object], message: str) -> None:
    path = tmp_path / "case0001_slice000.npz"
    save(path, **arrays)
    with pytest.raises(DataError, match=message) as caught:
        read_slice(path)
    assert str(path) in str(caught.value)


def damage(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "text": lambda data: b"<html>404</html>",
}


@pytest.mark.parametrize("change", CHANGES)
def test_damaged_slice(tmp_path: Path, change: str) -> None:
    path = tmp_path / "case0001_slice000.npz"
    save(path, image=GOOD, label=LABEL)
    damage(path, CHANGES[change])
    with pytest.raises(DataError, match=r"cannot read .*case0001_slice000.npz.*damaged or incomplete"):
        read_slice(path)


def test_every_truncation_and_flipped_byte_is_refused_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "case0001_slice000.npz"
    save(path, image=GOOD, label=LABEL)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        at = int(rng.integers(len(whole)))
        flipped = bytes([whole[at] ^ int(rng.integers(1, 256))])
        path.write_bytes(whole[:at] if rng.random() < 0.5 else whole[:at] + flipped + whole[at + 1 :])
        try:
            image, label = read_slice(path)
        except DataError:
            refused += 1
        else:  # the byte was one that nothing depends on, e.g. a time stamp in the archive
            np.testing.assert_array_equal(image, GOOD)
            np.testing.assert_array_equal(label, LABEL)
    assert refused > 150


@pytest.mark.parametrize("change", CHANGES)
def test_damaged_volume(tmp_path: Path, change: str) -> None:
    path = tmp_path / "case0001.npy.h5"
    with h5py.File(path, "w") as file:
        file["image"], file["label"] = GOOD[None], LABEL[None]
    assert read_volume(path).case == "case0001"
    damage(path, CHANGES[change])
    with pytest.raises(DataError, match=r"cannot read .*case0001.npy.h5.*damaged or incomplete"):
        read_volume(path)


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
            SynapseFolder.open(tmp_path / "nowhere")

    def test_no_list(self, folder: Path) -> None:
        (folder / "lists_Synapse" / "test_vol.txt").unlink()
        with pytest.raises(DataError, match=r"no list .*test_vol.txt; it names one file of test_vol_h5/ a line"):
            SynapseFolder.open(folder)

    def test_empty_list(self, folder: Path) -> None:
        (folder / "lists_Synapse" / "train.txt").write_text("\n")
        with pytest.raises(DataError, match=r"train.txt is empty"):
            SynapseFolder.open(folder)

    def test_missing_file(self, folder: Path) -> None:
        (folder / "train_npz" / "case0000_slice003.npz").unlink()
        with pytest.raises(DataError, match=r"1 of 20 files named in .*train.txt are missing, first .*slice003.npz"):
            SynapseFolder.open(folder)

    def test_slices_of_one_case_that_differ_in_shape(self, folder: Path) -> None:
        save(folder / "train_npz" / "case0000_slice003.npz", image=GOOD, label=LABEL)
        with pytest.raises(DataError, match=r"slices of case0000 differ in shape"):
            slices_as_volumes(SynapseFolder.open(folder).slices)
