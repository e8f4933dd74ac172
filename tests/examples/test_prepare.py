import gzip
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from PIL import Image

import prepare
from medseg.data.acdc import TEST_PATIENTS, VALIDATION_PATIENTS, open_acdc, read_acdc
from medseg.data.dataset import Split, Volume
from medseg.data.isic import RELEASED, open_isic
from medseg.data.synapse import ORGANS, TEST_CASES, TRAINING_CASES, open_synapse
from medseg.settings import Settings

SETTINGS = Settings(validation=0)
SPACING = (0.8, 0.9, 3.0)  # x, y, z
Array = np.ndarray[Any, Any]


def contents(split: Split) -> dict[str, Volume]:
    return {case.name: case.read() for cases in split.parts().values() for case in cases}


def files_of(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def run(dataset: str, source: Path, out: Path, *options: str) -> None:
    prepare.main([dataset, "--source", str(source), "--out", str(out), *options])


# ---------------------------------------------------------------------------------------------------- Synapse


def abdomen(seed: int) -> tuple[Array, Array]:
    """Hounsfield units and the 13 organs; axes run to the patient's right-to-left, back-to-front, foot-to-head."""
    rng = np.random.default_rng(seed)
    hu, label = rng.integers(-1000, 400, (7, 6, 4)), rng.integers(0, 14, (7, 6, 4))
    label[0] = np.arange(14).repeat(2)[:24].reshape(6, 4)  # every organ is there
    return hu.astype(np.int16), label.astype(np.uint8)


def turned(voxels: Array, codes: str) -> nibabel.Nifti1Image:
    """The same anatomy in a file whose axes run in other directions."""
    affine = np.diag([-SPACING[0], *SPACING[1:], 1.0])  # to the left, to the front, to the head
    affine[:3, 3] = 12.0, -7.0, 100.0
    image = nibabel.Nifti1Image(voxels, affine)
    return image.as_reoriented(ornt_transform(io_orientation(affine), axcodes2ornt(codes)))


def write_btcv(folder: Path, cases: tuple[int, ...] = (5, 1), codes: str = "LAS") -> Path:
    for name in ("img", "label"):
        (folder / "RawData/Training" / name).mkdir(parents=True)
    for case in cases:
        hu, label = abdomen(case)
        nibabel.save(turned(hu, codes), folder / f"RawData/Training/img/img{case:04d}.nii.gz")
        nibabel.save(turned(label, codes), folder / f"RawData/Training/label/label{case:04d}.nii.gz")
    return folder


class TestSynapse:
    @pytest.mark.parametrize("codes", ["LAS", "RAS", "LPS", "PIR", "SLA"])
    def test_round_trip_from_any_orientation(self, tmp_path: Path, codes: str) -> None:
        run("synapse", write_btcv(tmp_path / "btcv", codes=codes), tmp_path / "out")
        split = open_synapse(tmp_path / "out", SETTINGS)
        assert [[case.name for case in cases] for cases in split.parts().values()] == [["case0005"], [], ["case0001"]]
        for name, volume in contents(split).items():
            hu, label = (array.transpose(2, 1, 0) for array in abdomen(int(name[4:])))
            np.testing.assert_allclose(volume.image[:, 0], (np.clip(hu, -125, 275) + 125) / 400, atol=1e-6)
            classes = np.zeros_like(label)
            for released, ours in {8: 1, 4: 2, 3: 3, 2: 4, 6: 5, 11: 6, 1: 7, 7: 8}.items():
                classes[label == released] = ours
            np.testing.assert_array_equal(volume.label, classes)
            assert set(np.unique(volume.label)) == set(range(9))
            assert volume.spacing == pytest.approx((3.0, 0.9, 0.8))

    def test_side_of_the_patient(self, tmp_path: Path) -> None:
        """A liver on the patient's right, by the world coordinates of the file, is on the left of the image."""
        folder = write_btcv(tmp_path / "btcv", codes="RAS")
        path = folder / "RawData/Training/label/label0001.nii.gz"
        template = nibabel.load(path)
        right = np.indices(template.shape)[0] * template.affine[0, 0] + template.affine[0, 3]  # x of RAS+, in mm
        liver = np.where(right > np.median(right), 6, 0).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(liver, template.affine), path)
        run("synapse", folder, tmp_path / "out")
        label = contents(open_synapse(tmp_path / "out", SETTINGS))["case0001"].label
        columns = np.flatnonzero((label == 1 + ORGANS.index("liver")).all(axis=(0, 1)))
        assert columns.tolist() == [0, 1, 2]

    def test_one_folder_scaled_floats_and_uncompressed(self, tmp_path: Path) -> None:
        (tmp_path / "btcv").mkdir()
        for case in (5, 1):
            hu, label = abdomen(case)
            image = turned(((hu + 1024) / 0.5).astype(np.int16), "LAS")
            image.header.set_slope_inter(0.5, -1024)
            nibabel.save(image, tmp_path / f"btcv/img{case:04d}.nii")
            nibabel.save(turned(label.astype(np.float64), "LAS"), tmp_path / f"btcv/label{case:04d}.nii")
            write_slope(tmp_path / f"btcv/img{case:04d}.nii", 0.5, -1024)
        run("synapse", tmp_path / "btcv", tmp_path / "out")
        hu = abdomen(1)[0].transpose(2, 1, 0)
        volume = contents(open_synapse(tmp_path / "out", SETTINGS))["case0001"]
        np.testing.assert_allclose(volume.image[:, 0], (np.clip(hu, -125, 275) + 125) / 400, atol=1e-6)

    def test_split_is_that_of_the_public_lists(self, test_data: Path) -> None:
        lists = test_data / "lists_Synapse_transunet"
        train = {int(name[4:8]) for name in (lists / "train.txt").read_text().split()}
        assert train == set(TRAINING_CASES)
        assert {int(name[4:8]) for name in (lists / "test_vol.txt").read_text().split()} == set(TEST_CASES)

    def test_what_it_says(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = write_btcv(tmp_path / "btcv", cases=(5, 1, 61))
        run("synapse", folder, tmp_path / "out")
        output = capsys.readouterr()
        assert "28 of the 30 cases are missing: 2, 3, 4, 6" in output.err
        assert "left out: img0061" in output.err
        assert "lists_Synapse/train.txt        1 cases      4 slices" in output.out
        assert "z 3 to 3, y 0.9 to 0.9, x 0.8 to 0.8" in output.out
        assert f"train_synapse.py --cross-validate --data {tmp_path / 'out'}" in output.out
        summary = json.loads((tmp_path / "out/prepared.json").read_text())
        assert summary["lists"]["lists_Synapse/test_vol.txt"] == {"cases": 1, "slices": 4}
        assert set(summary["cases"][0]["sources"]) == {"img0001.nii.gz", "label0001.nii.gz"}


def write_slope(path: Path, slope: float, intercept: float) -> None:
    """nibabel drops slope and intercept of what it writes, so they are set in the bytes."""
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([slope, intercept], "<f4").tobytes()
    path.write_bytes(content)


def replace_voxels(path: Path, change: Callable[[Array], Array]) -> None:
    image = nibabel.load(path)
    voxels = change(np.asanyarray(image.dataobj).copy())
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine), path)


def set_at_origin(value: float) -> Callable[[Array], Array]:
    def change(voxels: Array) -> Array:
        voxels = voxels.astype(np.float32)
        voxels[0, 0, 0] = value
        return voxels

    return change


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def shorten(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-20]))


def move_away(path: Path) -> None:
    image = nibabel.load(path)
    affine = image.affine.copy()
    affine[0, 3] += 5
    nibabel.save(nibabel.Nifti1Image(np.asanyarray(image.dataobj), affine), path)


def copy_elsewhere(path: Path) -> None:
    (path.parent / "copy").mkdir()
    (path.parent / "copy" / path.name).write_bytes(path.read_bytes())


SYNAPSE_FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "truncated": ("img", truncate, r"cannot read .*img0001.nii.gz: .*fetch it again"),
    "short": ("img", shorten, r"cannot read .*img0001.nii.gz: .*fetch it again"),
    "no NIfTI": ("img", lambda p: p.write_bytes(gzip.compress(b"no scan" * 99)), r"cannot read .*img0001.nii.gz"),
    "empty": ("label", lambda p: p.write_bytes(b""), r"cannot read .*label0001.nii.gz"),
    "no label": ("label", Path.unlink, r"no label0001.nii.gz below .*; fetch it, or remove its counterpart"),
    "no image": ("img", Path.unlink, r"no img0001.nii.gz below "),
    "twice": ("img", copy_elsewhere, r"img0001.nii.gz and .* are the same case"),
    "NaN": ("img", lambda p: replace_voxels(p, set_at_origin(np.nan)), r"img0001.nii.gz: 1 voxels are NaN"),
    "NaN label": ("label", lambda p: replace_voxels(p, set_at_origin(np.nan)), r"label0001.nii.gz: 1 voxels are NaN"),
    "organ 14": ("label", lambda p: replace_voxels(p, set_at_origin(14)), r"label0001.nii.gz: label has values .* 13"),
    "half": ("label", lambda p: replace_voxels(p, set_at_origin(0.5)), r"label0001.nii.gz: .*wanted whole numbers"),
    "4-D": (
        "img",
        lambda p: replace_voxels(p, lambda v: np.stack([v, v], -1)),
        r"img0001.nii.gz: shape \(7, 6, 4, 2",
    ),
    "RGB": (
        "img",
        lambda p: replace_voxels(p, lambda v: np.zeros(v.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])),
        r"img0001.nii.gz: voxels are .*; wanted one number each",
    ),
    "shape": ("label", lambda p: replace_voxels(p, lambda v: v[1:]), r"shape \(7, 6, 4\) but .*label0001.nii.gz \(6"),
    "place": ("label", move_away, r"label0001.nii.gz lies up to 5.0 mm away from .*img0001.nii.gz"),
    "unit range": (
        "img",
        lambda p: replace_voxels(p, lambda v: (v > 0).astype(np.float32)),
        r"wanted Hounsfield units",
    ),
    "no intercept": (
        "img",
        lambda p: replace_voxels(p, lambda v: v + 1024),
        r"nothing is below 0, so the rescale intercept is missing",
    ),
}


@pytest.mark.parametrize("fault", SYNAPSE_FAULTS)
def test_fault_in_btcv_is_named_and_leaves_no_lists(tmp_path: Path, fault: str) -> None:
    kind, damage, message = SYNAPSE_FAULTS[fault]
    folder = write_btcv(tmp_path / "btcv")
    damage(folder / f"RawData/Training/{kind}/{kind}0001.nii.gz")
    with pytest.raises(SystemExit, match=message) as error:
        run("synapse", folder, tmp_path / "out")
    assert "\n" not in str(error.value)
    left = files_of(tmp_path / "out") if (tmp_path / "out").exists() else {}
    assert not [name for name in left if "lists" in name or "case0001" in name or ".part" in name]


# ------------------------------------------------------------------------------------------------------- ACDC


def heart(patient: int, phase: str) -> tuple[Array, Array]:
    rng = np.random.default_rng((patient, phase == "ES"))
    return rng.integers(0, 900, (8, 9, 3)).astype(np.int16), rng.integers(0, 4, (8, 9, 3)).astype(np.uint8)


Phase = tuple[Array, Array]


def write_acdc(
    folder: Path, patients: tuple[int, ...] = (1, 19, 2), content: Callable[[int, str], Phase] = heart
) -> Path:
    """Files of the release, whose images have an sform that says 1 mm, as many of the release do."""
    for patient in patients:
        name = f"patient{patient:03d}"
        (folder / "training" / name).mkdir(parents=True)
        (folder / "training" / name / "Info.cfg").write_text("ED: 1\nES: 12\nGroup: DCM\nHeight: 184.0\n")
        for phase, frame in (("ED", 1), ("ES", 12)):
            for voxels, suffix in zip(content(patient, phase), ("", "_gt"), strict=True):
                image = nibabel.Nifti1Image(voxels, None)
                image.header.set_zooms((1.5625, 1.25, 10.0))
                image.set_sform(np.diag([-1.0, -1.0, 1.0, 1.0]), code=1, update_affine=False)
                nibabel.save(image, folder / "training" / name / f"{name}_frame{frame:02d}{suffix}.nii.gz")
    return folder


class TestAcdc:
    def test_round_trip(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run("acdc", write_acdc(tmp_path / "acdc"), tmp_path / "out")
        split = open_acdc(tmp_path / "out", SETTINGS)
        assert {part: {case.patient for case in cases} for part, cases in split.parts().items()} == {
            "train": {"patient001"}, "validation": {"patient019"}, "test": {"patient002"},
        }  # fmt: skip
        volumes = contents(split)
        assert len(volumes) == 6
        for name, volume in volumes.items():
            image, label = (array.transpose(2, 1, 0) for array in heart(int(name[7:10]), name[-2:]))
            low, high = image.min(), np.percentile(image, 99)
            np.testing.assert_allclose(volume.image[:, 0], (image.clip(low, high) - low) / (high - low), atol=1e-6)
            np.testing.assert_array_equal(volume.label, label)
            assert volume.spacing == (10.0, 1.25, 1.5625)
        output = capsys.readouterr()
        assert "97 of the 100 patients are missing: 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, ..." in output.err
        assert "lists_ACDC/valid.txt           2 cases      6 slices" in output.out
        assert "train_acdc.py --seed 10 11 12 --data" in output.out

    def test_real_set_comes_out_as_it_is(self, test_data: Path, tmp_path: Path) -> None:
        """A release made of MT-UNet's files gives these files again: names, order of axes, range of grey values."""
        original = test_data / "acdc"

        def stored(patient: int, phase: str) -> Phase:
            files = [*original.glob(f"test/case_{patient:03d}_volume_{phase}.npz")]
            files += sorted(
                original.glob(f"*/case_{patient:03d}_slice{phase}_*.npz"),
                key=lambda path: int(path.stem.rpartition("_")[2]),
            )
            volumes = [read_acdc(path) for path in files]
            image = np.concatenate([volume.image[:, 0] for volume in volumes])
            label = np.concatenate([volume.label for volume in volumes])
            return (image * 700).transpose(2, 1, 0), label.transpose(2, 1, 0)

        folder = write_acdc(tmp_path / "acdc", (1, 10, 19, 2, 17, 95), stored)
        run("acdc", folder, tmp_path / "out")
        prepared = list((tmp_path / "out").rglob("case_*.npz"))
        assert len(prepared) == 68
        for path in prepared:
            with np.load(path) as ours, np.load(original / path.parent.name / path.name) as theirs:
                np.testing.assert_array_equal(ours["label"], theirs["label"])
                # Where their upper bound lies between two grey values, the percentile finds the lower one.
                np.testing.assert_allclose(ours["img"], theirs["img"], atol=0.004)
                assert {key: ours[key].dtype for key in theirs} == {key: theirs[key].dtype for key in theirs}
        for part in ("train", "valid", "test"):
            ours_listed, theirs_listed = (
                (place / f"lists_ACDC/{part}.txt").read_text().split() for place in (tmp_path / "out", original)
            )
            present = {path.name for path in prepared}
            assert sorted(ours_listed) == sorted(name for name in theirs_listed if name in present)

    def test_split_is_that_of_the_public_lists(self, test_data: Path) -> None:
        for part, patients in (("valid", VALIDATION_PATIENTS), ("test", TEST_PATIENTS)):
            names = (test_data / f"acdc/lists_ACDC/{part}.txt").read_text().split()
            assert {int(name[5:8]) for name in names} == set(patients)

    def test_patients_without_published_labels_are_left_out(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "acdc/testing/patient101").mkdir(parents=True)
        run("acdc", write_acdc(tmp_path / "acdc"), tmp_path / "out")
        assert "1 patients from 101 on are not in the split" in capsys.readouterr().err


ACDC_FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no Info.cfg": ("Info.cfg", Path.unlink, r"no file .*patient002/Info.cfg; it names the frames of ED and ES"),
    "no ES": ("Info.cfg", lambda p: p.write_text("ED: 1\n"), r"Info.cfg has no line 'ES: NUMBER'"),
    "other frame": ("Info.cfg", lambda p: p.write_text("ED: 1\nES: 13\n"), r"no file .*patient002_frame13.nii.gz"),
    "no label": ("patient002_frame12_gt.nii.gz", Path.unlink, r"no file .*frame12_gt.nii.gz; fetch it, or remove"),
    "truncated": ("patient002_frame12.nii.gz", truncate, r"cannot read .*patient002_frame12.nii.gz"),
    "class 4": (
        "patient002_frame12_gt.nii.gz",
        lambda p: replace_voxels(p, set_at_origin(4)),
        r"frame12_gt.nii.gz: label has values \[0.0, 1.0, 2.0, 3.0, 4.0\]; wanted whole numbers from 0 to 3",
    ),
    "NaN": (
        "patient002_frame12.nii.gz",
        lambda p: replace_voxels(p, set_at_origin(np.inf)),
        r"frame12.nii.gz: 1 voxels are NaN or infinite",
    ),
    "series": (
        "patient002_frame12.nii.gz",
        lambda p: replace_voxels(p, lambda v: np.stack([v, v], -1)),
        r"frame12.nii.gz: shape \(8, 9, 3, 2\)",
    ),
    "constant": ("patient002_frame12.nii.gz", lambda p: replace_voxels(p, np.zeros_like), r"nearly all voxels are 0"),
    "shape": (
        "patient002_frame12_gt.nii.gz",
        lambda p: replace_voxels(p, lambda v: v[1:]),
        r"frame12_gt.nii.gz: image has shape \(8, 9, 3\) but label \(7, 9, 3\)",
    ),
}


@pytest.mark.parametrize("fault", ACDC_FAULTS)
def test_fault_in_acdc_is_named_and_leaves_no_lists(tmp_path: Path, fault: str) -> None:
    name, damage, message = ACDC_FAULTS[fault]
    folder = write_acdc(tmp_path / "acdc")
    damage(folder / "training/patient002" / name)
    with pytest.raises(SystemExit, match=message) as error:
        run("acdc", folder, tmp_path / "out")
    assert "\n" not in str(error.value)
    left = files_of(tmp_path / "out") if (tmp_path / "out").exists() else {}
    assert not [file for file in left if "lists" in file or "case_002_volume_ES" in file or ".part" in file]


def test_no_case_for_a_part(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no case for lists_ACDC/valid.txt and lists_ACDC/test.txt"):
        run("acdc", write_acdc(tmp_path / "acdc", (1,)), tmp_path / "out")
    with pytest.raises(SystemExit, match=r"no case for lists_Synapse/test_vol.txt"):
        run("synapse", write_btcv(tmp_path / "btcv", (5,)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------- ISIC


def write_isic(folder: Path, year: int, parts: dict[str, int]) -> Path:
    number = 0
    for part, count in parts.items():
        images, masks = (folder / name for name in RELEASED[year][part])
        images.mkdir(parents=True)
        masks.mkdir()
        for _ in range(count):
            height, width = (300, 400) if number % 2 else (260, 200)
            x = np.linspace(0, 255, width)
            image = np.broadcast_to(np.stack([x, x[::-1], np.full(width, 40)], -1), (height, width, 3))
            mask = np.zeros((height, width), np.uint8)
            mask[height // 4 : height // 2, : width // 4] = 255
            Image.fromarray(image.astype(np.uint8)).save(images / f"ISIC_{number:07d}.jpg", quality=95)
            Image.fromarray(mask).save(masks / f"ISIC_{number:07d}_segmentation.png")
            number += 1
    return folder


class TestIsic:
    @pytest.mark.parametrize("year", RELEASED)
    def test_official_parts(self, tmp_path: Path, year: int) -> None:
        source = write_isic(tmp_path / "isic", year, {"train": 3, "validation": 1, "test": 2})
        run("isic", source, tmp_path / "out", "--year", str(year), "--size", "64")
        theirs, ours = open_isic(source, SETTINGS, year), open_isic(tmp_path / "out", SETTINGS, year)
        names = [[[case.name for case in cases] for cases in split.parts().values()] for split in (theirs, ours)]
        assert names[0] == names[1]
        for volume in contents(ours).values():
            assert (volume.image.shape, volume.label.shape) == ((1, 3, 64, 64), (1, 64, 64))
            mask = np.zeros((64, 64), np.uint8)
            mask[16:32, :16] = 1
            np.testing.assert_array_equal(volume.label[0], mask)
            x = (np.arange(64) + 0.5) / 64 * 255
            np.testing.assert_allclose(volume.image[0, 0].mean(0), x, atol=4)
            np.testing.assert_allclose(volume.image[0, 1].mean(0), x[::-1], atol=4)

    def test_training_part_alone_is_divided_as_the_training_would(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source = write_isic(tmp_path / "isic", 2018, {"train": 10})
        run("isic", source, tmp_path / "out", "--size", "32", "--split-seed", "3")
        assert "7:3 of the training images, seed 3 (not the official split" in capsys.readouterr().err
        splits = open_isic(source, Settings(split_seed=3), 2018), open_isic(tmp_path / "out", SETTINGS, 2018)
        names = [[[case.name for case in cases] for cases in split.parts().values()] for split in splits]
        assert names[0] == names[1]
        assert [len(part) for part in names[0]] == [6, 1, 3]

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (
                lambda s: next(s.glob("*GroundTruth/*")).unlink(),
                r"1 of 6 images named in .* have no mask in .*, first .*_segmentation",
            ),
            (lambda s: truncate(next(s.glob("*Input/*"))), r"cannot read .*\.jpg"),
            (
                lambda s: Image.fromarray(np.zeros((9, 9), np.uint8)).save(next(s.glob("*GroundTruth/*"))),
                r"\.png is \(9, 9\); they must be equal",
            ),
            (
                lambda s: Image.fromarray(np.full((260, 200), 7, np.uint8)).save(next(s.glob("*GroundTruth/*"))),
                r"mask has values \[7\]",
            ),
        ],
    )
    def test_faults(self, tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
        source = write_isic(tmp_path / "isic", 2018, {"train": 6})
        damage(source)
        with pytest.raises(SystemExit, match=message):
            run("isic", source, tmp_path / "out", "--size", "32")
        assert not (tmp_path / "out/splits").exists()

    def test_a_part_that_comes_later_changes_the_split_and_nothing_is_mixed(self, tmp_path: Path) -> None:
        source = write_isic(tmp_path / "isic", 2018, {"train": 10})
        run("isic", source, tmp_path / "out", "--size", "32")
        more = write_isic(tmp_path / "more", 2018, {"train": 10, "validation": 2, "test": 2})
        run("isic", more, tmp_path / "out", "--size", "32")
        assert [len(cases) for cases in open_isic(tmp_path / "out", SETTINGS, 2018).parts().values()] == [10, 2, 2]


# -------------------------------------------------------------------------------------------- going on, refusing


class TestRuns:
    def test_finished_cases_are_kept_and_overwritten_on_demand(self, tmp_path: Path) -> None:
        source, out = write_btcv(tmp_path / "btcv", (5, 1, 2)), tmp_path / "out"
        damaged = source / "RawData/Training/img/img0005.nii.gz"
        whole = damaged.read_bytes()
        truncate(damaged)
        with pytest.raises(SystemExit, match="img0005"):
            run("synapse", source, out, "--workers", "1")
        first = files_of(out)
        assert {"test_vol_h5/case0001.npy.h5", "test_vol_h5/case0002.npy.h5", "cases.jsonl"} == set(first)
        damaged.write_bytes(whole)
        run("synapse", source, out)
        second = files_of(out)
        assert all(second[name] == first[name] for name in first if "case0" in name)
        assert len(open_synapse(out, SETTINGS).test) == 2
        run("synapse", source, out)
        assert all(files_of(out)[name] == second[name] for name in second if "case0" in name)
        run("synapse", source, out, "--overwrite")
        assert not any(files_of(out)[name] == second[name] for name in second)

    @pytest.mark.parametrize("loss", ["file", "log line", "source"])
    def test_what_is_not_whole_is_prepared_again(self, tmp_path: Path, loss: str) -> None:
        source, out = write_btcv(tmp_path / "btcv"), tmp_path / "out"
        run("synapse", source, out)
        before = files_of(out)
        if loss == "file":
            (out / "train_npz/case0005_slice002.npz").unlink()
        elif loss == "log line":  # as a kill leaves it
            log = out / "cases.jsonl"
            log.write_bytes(log.read_bytes()[:-9])
        else:
            path = source / "RawData/Training/label/label0005.nii.gz"
            replace_voxels(path, np.zeros_like)
        run("synapse", source, out)
        after = files_of(out)
        assert after.keys() == before.keys()
        assert after["train_npz/case0005_slice000.npz"] > before["train_npz/case0005_slice000.npz"]
        assert after["test_vol_h5/case0001.npy.h5"] == before["test_vol_h5/case0001.npy.h5"]
        assert contents(open_synapse(out, SETTINGS))["case0005"].label.any() == (loss != "source")

    def test_lists_are_gone_while_something_changes(self, tmp_path: Path) -> None:
        source, out = write_acdc(tmp_path / "acdc"), tmp_path / "out"
        run("acdc", source, out)
        truncate(source / "training/patient002/patient002_frame12.nii.gz")
        with pytest.raises(SystemExit, match="patient002_frame12"):
            run("acdc", source, out)
        assert not [name for name in files_of(out) if name.startswith("lists_ACDC") or name == "prepared.json"]

    def test_interrupted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("medseg.data.synapse.write_npz", interrupt)
        source, out = write_btcv(tmp_path / "btcv"), tmp_path / "out"
        with pytest.raises(SystemExit, match="interrupted; give the command again"):
            run("synapse", source, out)
        assert set(files_of(out)) == {"cases.jsonl", "test_vol_h5/case0001.npy.h5"}
        monkeypatch.undo()
        run("synapse", source, out)
        assert len(contents(open_synapse(out, SETTINGS))) == 2

    def test_other_options_or_another_set_are_not_mixed_in(self, tmp_path: Path) -> None:
        source, out = write_isic(tmp_path / "isic", 2018, {"train": 6}), tmp_path / "out"
        run("isic", source, out, "--size", "32")
        before = files_of(out)
        with pytest.raises(SystemExit, match=r"cases.jsonl speaks of .*'size': 32.* asked for was .*'size': 64"):
            run("isic", source, out, "--size", "64")
        with pytest.raises(SystemExit, match=r"speaks of .*isic2018.*; give another --out, or --overwrite"):
            run("synapse", write_btcv(tmp_path / "btcv"), out)
        assert files_of(out) == before
        run("isic", source, out, "--size", "64", "--overwrite")
        assert contents(open_isic(out, SETTINGS, 2018))["ISIC_0000000"].label.shape == (1, 64, 64)

    def test_somebody_elses_folder_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "out/lists_Synapse").mkdir(parents=True)
        (tmp_path / "out/lists_Synapse/train.txt").write_text("case0005_slice000\n")
        before = files_of(tmp_path / "out")
        with pytest.raises(SystemExit, match="holds lists_Synapse, which this command did not write"):
            run("synapse", write_btcv(tmp_path / "btcv"), tmp_path / "out")
        assert files_of(tmp_path / "out") == before

    def test_folders(self, tmp_path: Path) -> None:
        source = write_btcv(tmp_path / "btcv")
        with pytest.raises(SystemExit, match=r"no folder .*nowhere; give --source"):
            run("synapse", tmp_path / "nowhere", tmp_path / "out")
        with pytest.raises(SystemExit, match="--out is --source"):
            run("synapse", source, source)
        (tmp_path / "file").touch()
        with pytest.raises(SystemExit, match=r"error: cannot write .*file: File exists; free the disk or choose"):
            run("synapse", source, tmp_path / "file")
        (tmp_path / "empty").mkdir()
        with pytest.raises(
            SystemExit, match=r"no imgNNNN.nii.gz of the split below .*empty; give --source the extracted"
        ):
            run("synapse", tmp_path / "empty", tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestReleasesAsTheyAre:
    """What other systems, other copies and other hands make of a release."""

    def test_all_faults_are_named_at_once(self, tmp_path: Path) -> None:
        patients = (1, 2, 3, 4, 5, 6, 7, 19)
        source = write_acdc(tmp_path / "acdc", patients)
        for patient in patients:
            for frame in ("01", "12"):
                truncate(source / f"training/patient{patient:03d}/patient{patient:03d}_frame{frame}.nii.gz")
        with pytest.raises(SystemExit) as error:
            run("acdc", source, tmp_path / "out", "--workers", "2")
        first, *lines, last = str(error.value).splitlines()
        assert first == "error: 16 faults in the data:"
        assert len(lines) == 10
        assert all("cannot read" in line for line in lines)
        assert len({line.split(":")[0] for line in lines}) == 10
        assert last == "and 6 more"

    def test_all_missing_files_are_named_at_once(self, tmp_path: Path) -> None:
        source = write_acdc(tmp_path / "acdc")
        for name in ("patient001/patient001_frame01.nii.gz", "patient019/Info.cfg"):
            (source / "training" / name).unlink()
        with pytest.raises(SystemExit, match=r"(?s)2 faults.*no file .*patient001_frame01.*no file .*patient019/Info"):
            run("acdc", source, tmp_path / "out")
        source = write_btcv(tmp_path / "btcv", (1, 5, 6))
        for name in ("img/img0005", "label/label0006"):
            (source / f"RawData/Training/{name}.nii.gz").unlink()
        with pytest.raises(SystemExit, match=r"(?s)2 faults in the data:.*no img0005.nii.gz.*no label0006.nii.gz"):
            run("synapse", source, tmp_path / "out")

    def test_left_behind_and_in_capitals(self, tmp_path: Path) -> None:
        source = write_acdc(tmp_path / "acdc")
        (source / "__MACOSX/training/patient001").mkdir(parents=True)
        (source / "training/patient001/._patient001_frame01.nii.gz").write_bytes(b"\0\5\x16\7")
        for name in ("patient001_frame01.nii.gz", "Info.cfg"):
            path = source / "training/patient001" / name
            path.rename(path.with_name(name.replace(".nii.gz", ".NII.GZ").replace("Info", "INFO")))
        info = source / "training/patient002/Info.cfg"
        info.write_bytes(b"\xef\xbb\xbf" + info.read_bytes().replace(b"\n", b"\r\n"))
        run("acdc", source, tmp_path / "out")
        assert len(contents(open_acdc(tmp_path / "out", SETTINGS))) == 6

        source = write_btcv(tmp_path / "btcv")
        (source / "__MACOSX").mkdir()
        (source / "__MACOSX/img0001.nii.gz").write_bytes(b"x")
        image = source / "RawData/Training/img/img0001.nii.gz"
        image.rename(image.with_name("IMG0001.NII.GZ"))
        run("synapse", source, tmp_path / "abdomen")
        assert len(contents(open_synapse(tmp_path / "abdomen", SETTINGS))) == 2

    @pytest.mark.parametrize("nested", ["release", ""])
    def test_images_one_folder_deeper(self, tmp_path: Path, nested: str, capsys: pytest.CaptureFixture[str]) -> None:
        source = write_isic(tmp_path / "isic" / nested, 2018, {"train": 6})
        images = source / RELEASED[2018]["train"][0]
        if not nested:  # unpacked into a folder of its own name
            (source / "inner").mkdir()
            images.rename(source / "inner" / images.name)
            (source / "inner").rename(images)
            images = images / images.name
        first, second, *_ = sorted(images.iterdir())
        first.rename(first.with_suffix(".JPG"))
        second.rename(second.with_suffix(".jpeg"))
        (images / ".DS_Store").touch()
        (images / "._ISIC_0000003.jpg").write_bytes(b"\0\5\x16\7")
        run("isic", tmp_path / "isic", tmp_path / "out", "--size", "32")
        assert len(contents(open_isic(tmp_path / "out", SETTINGS, 2018))) == 6
        assert "passed over 2 files: .DS_Store, ._ISIC_0000003.jpg" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("dataset", "message"),
        [
            ("acdc", r"no patientNNN folder below .*; give --source the extracted ACDC release"),
            ("synapse", r"no imgNNNN.nii.gz of the split below .*; give --source the extracted BTCV release"),
            ("isic", r"holds neither ISIC2018_Task1-2_Training_Input/ nor images/; give --source the folder"),
        ],
    )
    def test_the_wrong_release(self, tmp_path: Path, dataset: str, message: str) -> None:
        (tmp_path / "other").mkdir()
        (tmp_path / "other/readme.txt").write_text("something else")
        with pytest.raises(SystemExit, match=message) as error:
            run(dataset, tmp_path / "other", tmp_path / "out")
        assert "--data" not in str(error.value)

    def test_patients_without_labels_alone(self, tmp_path: Path) -> None:
        (tmp_path / "testing/patient101").mkdir(parents=True)
        with pytest.raises(SystemExit, match=r"no patientNNN folder below .*, with a number up to 100; give"):
            run("acdc", tmp_path, tmp_path / "out")

    def test_web_pages_in_place_of_images(self, tmp_path: Path) -> None:
        source = write_isic(tmp_path / "isic", 2018, {"train": 6})
        for path in sorted((source / RELEASED[2018]["train"][0]).iterdir())[:2]:
            path.write_bytes(b"<!DOCTYPE html><html>404")
        with pytest.raises(SystemExit, match=r"(?s)2 faults.*_0000000.jpg: it is a web page.*_0000001.jpg") as error:
            run("isic", source, tmp_path / "out", "--size", "32")
        assert "object at" not in str(error.value)
        assert "0x" not in str(error.value)

    def test_labels_that_were_remapped_already(self, tmp_path: Path) -> None:
        source = write_btcv(tmp_path / "btcv")
        path = source / "RawData/Training/label/label0005.nii.gz"
        replace_voxels(path, lambda v: np.clip(v, 0, 8))
        with pytest.raises(SystemExit, match=r"label0005.nii.gz has labels up to 8 and none of .* 9 to 13: they seem"):
            run("synapse", source, tmp_path / "out")

    def test_a_header_that_does_not_say_how_a_scan_lies(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source = write_btcv(tmp_path / "btcv")
        path = source / "RawData/Training/img/img0005.nii.gz"
        content = bytearray(gzip.decompress(path.read_bytes()))
        content[252:256] = bytes(4)
        path.write_bytes(gzip.compress(bytes(content)))
        label = source / "RawData/Training/label/label0005.nii.gz"
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.asanyarray(nibabel.load(label).dataobj), image.affine), label)
        run("synapse", source, tmp_path / "out")
        assert "img0005.nii.gz: the header does not say how the scan lies" in capsys.readouterr().err


@pytest.mark.parametrize("dataset", ["synapse", "acdc", "isic"])
def test_full_disk(tmp_path: Path, dataset: str) -> None:
    """Files cannot grow beyond 1 kB: one line, exit code 1, nothing under a finished name; then it goes on."""
    make: dict[str, Callable[[Path], Path]] = {
        "synapse": write_btcv,
        "acdc": write_acdc,
        "isic": lambda folder: write_isic(folder, 2018, {"train": 6}),
    }
    source, out = make[dataset](tmp_path / "source"), tmp_path / "out"
    command = [sys.executable, prepare.__file__, dataset, "--source", str(source), "--out", str(out)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: cannot write ")
    assert "give the command again to go on" in done.stderr.splitlines()[-1]
    assert not [name for name in files_of(out) if ".part" in name or "list" in name or "splits" in name]
    subprocess.run(command, check=True, capture_output=True)
    opened: dict[str, Callable[[], Split]] = {
        "synapse": lambda: open_synapse(out, SETTINGS),
        "acdc": lambda: open_acdc(out, SETTINGS),
        "isic": lambda: open_isic(out, SETTINGS, 2018),
    }
    assert len(contents(opened[dataset]())) == {"synapse": 2, "acdc": 6, "isic": 6}[dataset]
