from pathlib import Path

import h5py
import numpy as np
import pytest

from medseg.data.phantom import SHAPE, make_phantom, write_phantoms
from medseg.data.synapse import ORGANS, SYNAPSE


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), train=2, test=1, seed=3)


def test_layout_is_that_of_the_preprocessed_set(phantoms: Path) -> None:
    slices = sorted((phantoms / "train_npz").iterdir())
    assert [path.name for path in slices[:2]] == ["case0000_slice000.npz", "case0000_slice001.npz"]
    assert (phantoms / "lists_Synapse" / "train.txt").read_text().split() == [path.stem for path in slices]
    assert len(slices) == 2 * SHAPE[0]
    with np.load(slices[0], allow_pickle=False) as file:
        assert {key: (file[key].shape, str(file[key].dtype)) for key in file} == {
            "image": (SHAPE[1:], "float32"),
            "label": (SHAPE[1:], "float32"),
        }
    assert (phantoms / "lists_Synapse" / "test_vol.txt").read_text().split() == ["case0002"]
    with h5py.File(phantoms / "test_vol_h5" / "case0002.npy.h5") as file:
        assert (file["image"].shape, file["label"].shape) == (SHAPE, SHAPE)


def test_the_loader_of_the_preprocessed_set_reads_what_was_made(phantoms: Path) -> None:
    split = SYNAPSE.open(phantoms, SYNAPSE.settings)
    (case,) = split.test
    volume = case.read()
    image, label = make_phantom(30_002)
    assert volume.case == "case0002"
    np.testing.assert_array_equal(volume.image[:, 0], image)
    np.testing.assert_array_equal(volume.label, label)


@pytest.mark.parametrize("seed", range(100, 110))
def test_every_patient_has_every_organ_where_it_belongs(seed: int) -> None:
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


def test_seed_decides_everything() -> None:
    for one, same, other in zip(make_phantom(1), make_phantom(1), make_phantom(2), strict=True):
        np.testing.assert_array_equal(one, same)
        assert not np.array_equal(one, other)
