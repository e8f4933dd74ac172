from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medseg.data.acdc import ACDC, TEST_PATIENTS, VALIDATION_PATIENTS, open_acdc, read_acdc
from medseg.data.dataset import DataFingerprint
from medseg.errors import DataError

SETTINGS = ACDC.settings
SHAPE = (4, 20, 24)
ZEROS = np.zeros((4, 4))


def stack(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random(SHAPE, dtype=np.float32), rng.integers(0, 4, SHAPE, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Patients 1 and 2 for training, 3 for validation, 4 for test, ED and ES of each."""
    names: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for part in (*names, "lists_ACDC"):
        (tmp_path / part).mkdir()
    for part, patient in (("train", 1), ("train", 2), ("valid", 3), ("test", 4)):
        for offset, phase in enumerate(("ED", "ES")):
            image, label = stack(10 * patient + offset)
            if part == "test":
                names[part].append(f"case_{patient:03}_volume_{phase}.npz")
                np.savez(tmp_path / part / names[part][-1], img=image, label=label)
                continue
            for z in range(SHAPE[0]):
                names[part].append(f"case_{patient:03}_slice{phase}_{z}.npz")
                np.savez(tmp_path / part / names[part][-1], img=image[z], label=label[z])
    for part, listed in names.items():
        (tmp_path / "lists_ACDC" / f"{part}.txt").write_text("\n".join(reversed(listed)) + "\n")
    return tmp_path


def test_split(folder: Path) -> None:
    split = open_acdc(folder, SETTINGS)
    assert split.name == "lists of the folder (2/1/1 patients)"
    names = {part: sorted(case.name for case in cases) for part, cases in split.parts().items()}
    assert names == {
        "train": ["patient001_ED", "patient001_ES", "patient002_ED", "patient002_ES"],
        "validation": ["patient003_ED", "patient003_ES"],
        "test": ["patient004_ED", "patient004_ES"],
    }
    assert {case.patient for case in split.train} == {"patient001", "patient002"}


def test_slices_and_volumes_read_alike(folder: Path) -> None:
    split = open_acdc(folder, SETTINGS)
    for cases, seeds in ((split.train, (10, 11, 20, 21)), (split.test, (40, 41))):
        for case, seed in zip(sorted(cases, key=lambda case: case.name), seeds, strict=True):
            volume = case.read()
            image, label = stack(seed)
            np.testing.assert_array_equal(volume.image[:, 0], image)  # by number, whatever the order of the list
            np.testing.assert_array_equal(volume.label, label)
            assert (volume.case, volume.spacing) == (case.name, None)


def test_more_than_ten_slices_are_in_the_order_of_their_numbers(folder: Path) -> None:
    names = [f"case_009_sliceED_{z}.npz" for z in range(12)]
    for z, name in enumerate(names):
        np.savez(folder / "train" / name, img=np.full((5, 5), z / 20), label=np.zeros((5, 5)), spacing=(8, 1.5, 1.5))
    (folder / "lists_ACDC" / "train.txt").write_text("\n".join(sorted(names)))
    (case,) = open_acdc(folder, SETTINGS).train
    volume = case.read()
    np.testing.assert_allclose(volume.image[:, 0, 0, 0], np.arange(12) / 20)
    assert volume.spacing == (8.0, 1.5, 1.5)


def test_lists_may_leave_the_suffix_out(folder: Path) -> None:
    path = folder / "lists_ACDC" / "test.txt"
    path.write_text(path.read_text().replace(".npz", ""))
    assert len(open_acdc(folder, SETTINGS).test) == 2


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data folder .*nowhere; give --data a folder that holds train/, valid/"):
        open_acdc(tmp_path / "nowhere", SETTINGS)


def test_no_list(folder: Path) -> None:
    (folder / "lists_ACDC" / "valid.txt").unlink()
    with pytest.raises(DataError, match=r"no list .*valid.txt; it names one file of valid/ a line"):
        open_acdc(folder, SETTINGS)


def test_missing_file(folder: Path) -> None:
    (folder / "test" / "case_004_volume_ES.npz").unlink()
    with pytest.raises(DataError, match=r"1 of 2 files named in .*test.txt are missing, first .*volume_ES.npz"):
        open_acdc(folder, SETTINGS)


def test_patient_in_two_parts(folder: Path) -> None:
    (folder / "valid" / "case_001_sliceED_0.npz").write_bytes(
        (folder / "train" / "case_001_sliceED_0.npz").read_bytes()
    )
    (folder / "lists_ACDC" / "valid.txt").write_text("case_001_sliceED_0.npz\n")
    with pytest.raises(DataError, match="patient001 is in train and in validation"):
        open_acdc(folder, SETTINGS)


@pytest.mark.parametrize("name", ["case_1_sliceED_0", "case_001_sliceEX_0", "case_001_slice_0", "patient001_frame01"])
def test_odd_name(folder: Path, name: str) -> None:
    (folder / "train" / f"{name}.npz").touch()
    (folder / "lists_ACDC" / "train.txt").write_text(f"{name}\n")
    with pytest.raises(DataError, match=rf"{name}.npz in .*train.txt is not named case_PPP_sliceED_N"):
        open_acdc(folder, SETTINGS)


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("case_001_sliceED_0", {"image": ZEROS, "label": ZEROS}, "has no array 'img', only"),
        ("case_001_sliceED_0", {"img": ZEROS, "label": ZEROS + 4}, r"label has values \[4.0\]; .* 0 to 3"),
        ("case_001_sliceED_0", {"img": ZEROS[None], "label": ZEROS[None]}, "wanted 2 dimensions"),
        ("case_001_volume_ED", {"img": ZEROS, "label": ZEROS}, "wanted 3 dimensions"),
        ("case_001_volume_ED", {"img": ZEROS[None] + 9, "label": ZEROS[None]}, "image values run from 9 to 9"),
    ],
)
def test_bad_content(tmp_path: Path, name: str, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / f"{name}.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_acdc(tmp_path / f"{name}.npz")


class TestRealData:
    def test_split_is_the_published_one(self, test_data: Path) -> None:
        split = open_acdc(test_data / "acdc", SETTINGS)
        assert split.name == "lists of the folder (70/10/20 patients)"
        numbers = {part: {int(case.patient[-3:]) for case in cases} for part, cases in split.parts().items()}
        assert numbers["validation"] == set(VALIDATION_PATIENTS)
        assert numbers["test"] == set(TEST_PATIENTS)
        assert numbers["train"] == set(range(1, 101)) - numbers["validation"] - numbers["test"]

    def test_counts_and_the_patient_that_is_there_twice(self, test_data: Path) -> None:
        fingerprint, slices = DataFingerprint(), dict.fromkeys(("train", "validation", "test"), 0)
        for part, cases in open_acdc(test_data / "acdc", SETTINGS).parts().items():
            for case in cases:
                volume = case.read()
                fingerprint.add(part, volume)
                slices[part] += len(volume.label)
                assert volume.image.shape == (len(volume.label), 1, *volume.label.shape[1:])
                assert part != "test" or set(np.unique(volume.label)) == {0, 1, 2, 3}
        assert {part: slices[part] for part in ("train", "validation")} == {"train": 1304, "validation": 182}
        assert sum(part == "test" for part, *_ in fingerprint.contents) == 40
        assert fingerprint.duplicates() == [
            {"train": f"patient074_{phase}", "validation": f"patient076_{phase}"} for phase in ("ED", "ES")
        ]


def test_settings_do_not_change_the_split(folder: Path) -> None:
    split = open_acdc(folder, SETTINGS)
    other = open_acdc(folder, replace(SETTINGS, split_seed=9, validation=0.5))
    assert [case.name for case in split.train] == [case.name for case in other.train]
