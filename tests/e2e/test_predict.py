"""Prediction as a user runs it. The networks are not trained: where labels lie does not depend on that."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy import ndimage
from torch import nn

import predict
from medseg.data.acdc import ACDC, read_acdc
from medseg.data.dataset import Benchmark
from medseg.data.images import read_image
from medseg.data.isic import isic
from medseg.data.nifti import orientation_of, spacing_of, to_slices
from medseg.data.synapse import SYNAPSE, read_volume
from medseg.evaluation.inputs import read_use
from medseg.evaluation.prediction import load_network, predict_volume
from medseg.training.network import build_model, save_model
from medseg.training.transforms import as_rgb, fit_square, unfit_square
from tests.conftest import randomize
from tests.e2e import commands

BENCHMARKS = {"hu": SYNAPSE, "min-max": ACDC, "rgb": isic(2018)}
Array = np.ndarray[Any, Any]
Folders = dict[str, Path]


def save_network(benchmark: Benchmark, folder: Path, *, seed: int = 1, **changes: Any) -> Path:
    torch.manual_seed(seed)
    settings = replace(benchmark.settings, **{"encoder": "tu-resnet10t", "size": 32, **changes})
    model = randomize(build_model(benchmark, settings))
    (head,) = (module for module in model.segmentation_head.modules() if isinstance(module, nn.Conv2d))
    sample = smooth((3, 32, 32) if benchmark.intensity == "rgb" else (32, 32)).astype(np.float32)
    with torch.no_grad():  # no class is ahead of the others, so that several are the likeliest somewhere
        head.bias -= model.eval()(torch.from_numpy(sample).expand(1, 3, 32, 32)).mean((0, 2, 3))
    save_model(benchmark, model, settings, folder / "model")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A run's folder for every intensity."""
    return {name: save_network(b, tmp_path_factory.mktemp("run") / "run") for name, b in BENCHMARKS.items()}


def run(checkpoint: Path, source: Path, output: Path, *options: object) -> None:
    """The command, in this process."""
    arguments = ("--checkpoint", checkpoint, "--input", source, "--output", output, "--device", "cpu", *options)
    predict.main([str(argument) for argument in arguments])


def expected(checkpoint: Path, image: Array) -> Array:
    """What the evaluation predicts for slices (Z, C, H, W)."""
    use = read_use(checkpoint)
    labels = predict_volume(load_network(use, "cpu").model, image, size=use.size, batch_size=3)
    assert len(np.unique(labels)) > 1  # constant labels would look the same in any orientation
    return labels


def pixels(path: Path) -> Array:
    with Image.open(path) as image:
        return np.asarray(image)


def smooth(shape: tuple[int, ...], seed: int = 0) -> Array:
    """A picture with structure at several scales, from 0 to 1."""
    noise = np.random.default_rng(seed).normal(size=shape)
    picture = ndimage.gaussian_filter(noise, 3) * 5 + ndimage.gaussian_filter(noise, 1)
    return (picture - picture.min()) / np.ptp(picture)


def ct(codes: str = "LAS", shape: tuple[int, int, int] = (40, 30, 4)) -> nibabel.Nifti1Image:
    """The same scan in files whose axes run in other directions; ``codes`` LAS is the order of the Synapse set."""
    voxels = (smooth(shape) * 1400 - 1000).astype(np.int16)
    affine = np.array([[-0.8, 0, 0, 12], [0, 0.9, 0.1, -7], [0, -0.1, 3, 100], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(affine, 1)
    image.set_sform(affine, 2)
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(codes))
    turned = image.as_reoriented(turn)
    turned.set_qform(turned.affine, 1)
    turned.set_sform(turned.affine, 2)
    return turned


def save_ct(path: Path, codes: str = "LAS") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(ct(codes), path)
    return path


def save_photograph(path: Path, height: int = 48, width: int = 70, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = (smooth((height, width, 3)) * 255).astype(np.uint8)
    Image.fromarray(values).convert(mode).save(path)
    return path


class TestScans:
    @pytest.mark.parametrize("codes", ["LAS", "RAS", "LPS", "PIR", "SLA"])
    def test_labels_lie_where_the_anatomy_does(self, runs: Folders, tmp_path: Path, codes: str) -> None:
        source, output = save_ct(tmp_path / "scan.nii.gz", codes), tmp_path / "labels.nii.gz"
        run(runs["hu"], source, output)
        image, labels = nibabel.load(source), nibabel.load(output)
        assert labels.shape == image.shape
        assert labels.get_data_dtype() == np.uint8
        turn = ornt_transform(axcodes2ornt(codes), axcodes2ornt("LAS"))
        found = np.asarray(labels.as_reoriented(turn).dataobj).transpose(2, 1, 0)
        slices = (np.clip(ct().get_fdata().transpose(2, 1, 0), -125, 275) + 125) / 400
        np.testing.assert_array_equal(found, expected(runs["hu"], slices[:, None].astype(np.float32)))

    @pytest.mark.parametrize("codes", [(1, 1), (1, 0), (0, 2), (0, 0)])
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    def test_geometry_of_the_file_is_kept(
        self, runs: Folders, tmp_path: Path, codes: tuple[int, int], suffix: str
    ) -> None:
        image = ct("RAS")
        image.set_qform(image.affine, codes[0])
        image.set_sform(image.affine, codes[1])
        image.header["cal_max"], image.header["descrip"] = 300, b"scanner 7"
        image.header.set_slope_inter(2, -10)
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"kept"))
        source, output = tmp_path / f"scan{suffix}", tmp_path / "new" / f"labels{suffix}"
        nibabel.save(image, source)
        run(runs["hu"], source, output)
        before, after = nibabel.load(source).header, nibabel.load(output).header
        changed = {
            key
            for key in before
            if not np.array_equal(before[key], after[key], equal_nan=before[key].dtype.kind == "f")
        }
        assert changed == {"datatype", "bitpix", "cal_max"}
        np.testing.assert_array_equal(nibabel.load(source).affine, nibabel.load(output).affine)
        assert (int(after["qform_code"]), int(after["sform_code"])) == codes
        labels = np.asarray(nibabel.load(output).dataobj)
        assert labels.dtype == np.uint8
        assert labels.max() <= 8
        assert len(np.unique(labels)) > 1

    def test_arrays_give_what_the_evaluation_gives(self, runs: Folders, tmp_path: Path) -> None:
        image, label = smooth((5, 33, 50)).astype(np.float32), np.zeros((5, 33, 50), np.uint8)
        volume = tmp_path / "case0001.npy.h5"
        with h5py.File(volume, "w") as file:
            file["image"], file["label"], file["spacing"] = image, label, [3.0, 0.8, 0.7]
        run(runs["hu"], volume, tmp_path / "volume.npz")
        labels = expected(runs["hu"], read_volume(volume).image)
        with np.load(tmp_path / "volume.npz") as found:
            np.testing.assert_array_equal(found["label"], labels)
            assert found["label"].dtype == np.uint8
            np.testing.assert_array_equal(found["spacing"], [3.0, 0.8, 0.7])
        np.savez(tmp_path / "slice.npz", image=image[2])
        run(runs["hu"], tmp_path / "slice.npz", tmp_path / "labels.npz")
        with np.load(tmp_path / "labels.npz") as found:
            assert list(found) == ["label"]
            np.testing.assert_array_equal(found["label"], labels[2])

    def test_mri_is_read_as_the_acdc_set_was_made(self, runs: Folders, tmp_path: Path) -> None:
        # oblique, as a short axis is: the nearest axes of the body would cut other slices
        affine = np.array([[0.9, 0, 6, 0], [0.9, 0, -6, 0], [0, 1.4, 0, 0], [0, 0, 0, 1]])
        voxels = (smooth((30, 44, 3)) * 900).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "frame.nii.gz")
        run(runs["min-max"], tmp_path / "frame.nii.gz", tmp_path / "labels.nii.gz")
        top = np.percentile(voxels, 99)
        slices = (np.clip(voxels, None, top) - voxels.min()) / (top - voxels.min())
        np.savez(tmp_path / "case_002_volume_ED.npz", img=slices.transpose(2, 1, 0), label=np.zeros((3, 44, 30)))
        labels = expected(runs["min-max"], read_acdc(tmp_path / "case_002_volume_ED.npz").image)
        found = np.asarray(nibabel.load(tmp_path / "labels.nii.gz").dataobj)
        np.testing.assert_array_equal(found.transpose(2, 1, 0), labels)
        run(runs["min-max"], tmp_path / "case_002_volume_ED.npz", tmp_path / "labels.npz")
        with np.load(tmp_path / "labels.npz") as arrays:
            np.testing.assert_array_equal(arrays["label"], labels)

    @pytest.mark.parametrize("codes", ["LAS", "PIR", "SLA", "ASR", "RPI"])
    def test_spacing_follows_the_slices(self, codes: str) -> None:
        image = ct(codes)
        assert spacing_of(Path("scan"), image, "hu") == pytest.approx((3.0, 0.9, 0.8), rel=0.01)
        orientation = orientation_of(Path("scan"), image, "hu")
        voxels = np.asarray(image.dataobj)
        np.testing.assert_array_equal(orientation.voxels(orientation.slices(voxels)), voxels)
        np.testing.assert_array_equal(to_slices(Path("scan"), image, "hu"), to_slices(Path("scan"), ct(), "hu"))


class TestPhotographs:
    @pytest.mark.parametrize(
        ("name", "height", "width", "mode"),
        [("a.jpg", 48, 70, "RGB"), ("a.png", 91, 33, "RGB"), ("a.PNG", 32, 32, "L"), ("a.jpeg", 20, 300, "L")],
    )
    def test_masks_have_the_size_of_the_photograph(
        self, runs: Folders, tmp_path: Path, name: str, height: int, width: int, mode: str
    ) -> None:
        source, output = save_photograph(tmp_path / name, height, width, mode), tmp_path / "mask.png"
        run(runs["rgb"], source, output)
        mask = pixels(output)
        labels = expected(runs["rgb"], read_image(source).transpose(2, 0, 1)[None])[0]
        np.testing.assert_array_equal(mask, labels * 255)
        assert mask.shape == (height, width)

    def test_more_classes_are_numbered(self, tmp_path: Path) -> None:
        lesions = replace(BENCHMARKS["rgb"], classes=("lesion", "hair", "ruler"))
        folder, source = save_network(lesions, tmp_path / "run"), save_photograph(tmp_path / "a.png")
        run(folder, source, tmp_path / "mask.png")
        labels = expected(folder, read_image(source).transpose(2, 0, 1)[None])[0]
        np.testing.assert_array_equal(pixels(tmp_path / "mask.png"), labels)
        assert labels.max() > 1


class TestOverlay:
    def test_labels_are_drawn_over_the_image(self, runs: Folders, tmp_path: Path) -> None:
        source = save_ct(tmp_path / "scan.nii.gz")
        run(runs["hu"], source, tmp_path / "labels.nii.gz", "--overlay", tmp_path / "drawn.png")
        drawn = pixels(tmp_path / "drawn.png")[..., :3].astype(int)
        coloured = np.ptp(drawn, axis=2) > 30  # the scan itself is grey
        upper, lower = np.array_split(coloured[: int(0.85 * len(coloured))], 2)
        assert not upper.any()
        assert lower.mean() > 0.05

    def test_photograph(self, runs: Folders, tmp_path: Path) -> None:
        source = save_photograph(tmp_path / "a.jpg")
        run(runs["rgb"], source, tmp_path / "mask.png", "--overlay", tmp_path / "drawn.png")
        assert pixels(tmp_path / "drawn.png").shape[1] > 600


class TestCheckpoint:
    def test_the_model_folder_serves_as_well_as_the_run(self, runs: Folders, tmp_path: Path) -> None:
        source = save_photograph(tmp_path / "a.png")
        run(runs["rgb"], source, tmp_path / "run.png")
        run(runs["rgb"] / "model", source, tmp_path / "model.png", "--batch-size", 1)
        assert (tmp_path / "run.png").read_bytes() == (tmp_path / "model.png").read_bytes()

    @pytest.mark.parametrize("architecture", ["Unet", "Segformer"])
    def test_baselines_load_without_a_download(self, tmp_path: Path, architecture: str) -> None:
        folder = save_network(BENCHMARKS["rgb"], tmp_path / "run", arch=architecture, attention="none")
        config = json.loads((folder / "model" / "config.json").read_text())
        (folder / "model" / "config.json").write_text(json.dumps({**config, "encoder_weights": "imagenet"}))
        assert type(load_network(folder, "cpu").model).__name__ == architecture
        run(folder, save_photograph(tmp_path / "a.png"), tmp_path / "mask.png")
        assert pixels(tmp_path / "mask.png").shape == (48, 70)

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda model: shutil.rmtree(model), "no preprocessing.json in .*give --checkpoint the folder of a run"),
            (lambda model: (model / "preprocessing.json").unlink(), "no preprocessing.json in"),
            (lambda model: (model / "preprocessing.json").write_text("{"), "cannot read .*preprocessing.json"),
            (lambda model: (model / "preprocessing.json").write_text("[]"), "preprocessing.json holds a list"),
            (lambda model: change(model / "preprocessing.json", classes=["background"]), "holds .*wanted classes"),
            (lambda model: change(model / "preprocessing.json", classes=3), "holds .*wanted classes"),
            (lambda model: change(model / "preprocessing.json", size="32"), "holds .*wanted classes"),
            (lambda model: change(model / "preprocessing.json", intensity="pet"), "one of hu, min-max, rgb"),
            (lambda model: change(model / "preprocessing.json", classes=list("abc")), "has 2 classes, .*json 3"),
            (lambda model: change(model / "config.json", _model_class="create_model"), "names 'create_model'; wanted"),
            (lambda model: change(model / "config.json", _model_class=None), "names None; wanted GCAResUNet"),
            (lambda model: change(model / "config.json", attention="se"), "cannot load the network in .*Missing key"),
            (lambda model: change(model / "config.json", encoder="tu-nonsense"), "cannot load the network in"),
            (lambda model: (model / "model.safetensors").write_bytes(b"pickled"), "cannot load the network in"),
            (lambda model: (model / "model.safetensors").unlink(), "no model.safetensors in"),
        ],
    )
    def test_damage_is_reported(
        self, runs: Folders, tmp_path: Path, damage: Callable[[Path], None], message: str
    ) -> None:
        shutil.copytree(runs["rgb"], tmp_path / "run")
        damage(tmp_path / "run" / "model")
        with pytest.raises(SystemExit, match=f"^error: .*{message}"):
            run(tmp_path / "run", save_photograph(tmp_path / "a.png"), tmp_path / "mask.png")
        assert not (tmp_path / "mask.png").exists()

    def test_a_folder_that_is_not_there_names_the_runs_beside_it(self, runs: Folders, tmp_path: Path) -> None:
        shutil.copytree(runs["rgb"], tmp_path / "lesions")
        message = "^error: no folder .*lesion; give --checkpoint the folder of a run: .*lesions$"
        with pytest.raises(SystemExit, match=message):
            run(tmp_path / "lesion", save_photograph(tmp_path / "a.png"), tmp_path / "mask.png")


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


class TestFolder:
    def test_names_are_kept_and_what_is_done_is_not_done_again(
        self, runs: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source, output, overlay = tmp_path / "in", tmp_path / "out", tmp_path / "drawn"
        save_ct(source / "scan.nii.gz")
        save_ct(source / "b" / "scan.nii")
        np.savez(source / "b" / "slice.npz", img=smooth((30, 40)))
        with h5py.File(source / "case0001.npy.h5", "w") as file:
            file["image"] = smooth((2, 30, 40))
        (source / "notes.txt").write_text("not a scan")
        (source / "._scan.nii.gz").write_bytes(b"what macOS leaves in archives")
        run(runs["hu"], source, output, "--overlay", overlay)
        labels = ["b/scan.nii", "b/slice.npz", "case0001.npz", "scan.nii.gz"]
        drawn = ["b/scan.png", "b/slice.png", "case0001.png", "scan.png"]
        assert files_of(output) == labels
        assert files_of(overlay) == drawn

        (output / "scan.nii.gz").write_bytes(b"mine")
        (output / "case0001.npz").unlink()
        capsys.readouterr()
        run(runs["hu"], source, output)
        assert "3 of 4 files have labels already, and are left out with their overlays" in capsys.readouterr().out
        assert files_of(output) == labels
        assert (output / "scan.nii.gz").read_bytes() == b"mine"
        run(runs["hu"], source, output, "--overwrite")
        assert nibabel.load(output / "scan.nii.gz").shape == (40, 30, 4)

    def test_a_damaged_file_does_not_keep_the_others(self, runs: Folders, tmp_path: Path) -> None:
        source, output = tmp_path / "in", tmp_path / "out"
        content = save_photograph(source / "a.jpg").read_bytes()
        (source / "b.jpg").write_bytes(content[: len(content) // 2])
        save_photograph(source / "c.png")
        Image.new("RGBA", (8, 8)).save(source / "d.png")
        options = ("--checkpoint", runs["rgb"], "--input", source, "--output", output, "--device", "cpu")
        done = commands.run("predict.py", *options)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert [line.split(": ")[1].split(" (")[0] for line in lines] == [
            f"cannot read {source / 'b.jpg'}", str(source / "d.png"),
            "2 of 4 files could not be predicted, the others were",
        ]  # fmt: skip
        assert files_of(output) == ["a.png", "c.png"]

    def test_files_that_would_mix_are_refused(self, runs: Folders, tmp_path: Path) -> None:
        source = tmp_path / "in"
        save_photograph(source / "a.png")
        for option in (("--output", source), ("--output", source / "masks"), ("--overlay", source)):
            arguments = {"--output": tmp_path / "out", **dict([option])}
            with pytest.raises(SystemExit, match=f"{option[0]} .* lies in the folder of the input"):
                run(runs["rgb"], source, arguments.pop("--output"), *(x for pair in arguments.items() for x in pair))
        with pytest.raises(SystemExit, match=r"out/a\.png would be written for .*a\.png and is that of .*a\.png"):
            run(runs["rgb"], source, tmp_path / "out", "--overlay", tmp_path / "out")
        save_photograph(source / "a.jpg")
        with pytest.raises(SystemExit, match=r"would be written for .*a\.png and is that of .*a\.jpg; choose other"):
            run(runs["rgb"], source, tmp_path / "out")
        (tmp_path / "file").touch()
        with pytest.raises(SystemExit, match=r"--output .* is a file; wanted a folder"):
            run(runs["rgb"], source, tmp_path / "file")
        assert files_of(source) == ["a.jpg", "a.png"]
        assert not (tmp_path / "out").exists()

    def test_nothing_to_predict(self, runs: Folders, tmp_path: Path) -> None:
        save_ct(tmp_path / "in" / "scan.nii.gz")
        with pytest.raises(SystemExit, match=r"holds no file that the network takes: \.png, \.jpg, \.jpeg"):
            run(runs["rgb"], tmp_path / "in", tmp_path / "out")


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


class TestReport:
    def test_what_was_written_and_where_nothing_was_found(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run_folder, source = save_network(BENCHMARKS["rgb"], tmp_path / "run"), tmp_path / "in"
        for name in ("a.JPG", "b.tif"):
            save_photograph(source / name)
        for name in ("Thumbs.db", "notes.txt", "._a.JPG"):
            (source / name).write_bytes(b"left behind")
        weights = load_file(run_folder / "model" / "model.safetensors")
        weights["segmentation_head.0.bias"][:] = torch.tensor([100.0, 0])
        save_file(weights, run_folder / "model" / "model.safetensors")
        run(run_folder, source, tmp_path / "out", "--overlay", tmp_path / "drawn")
        printed = capsys.readouterr()
        assert f"2 files predicted: labels in {tmp_path / 'out'}, overlays in {tmp_path / 'drawn'}" in printed.out
        assert "Nothing was found in 2 of 2, whose labels are all background: a.JPG, b.tif" in printed.out
        assert f"Note: {source}: passed over 3 files: notes.txt, ._a.JPG, Thumbs.db" in printed.err
        assert files_of(tmp_path / "out") == ["a.png", "b.png"]

    def test_photographs_are_predicted_as_they_are_seen(self, runs: Folders, tmp_path: Path) -> None:
        """The labels of a photograph with an EXIF orientation are those of the one that was turned upright before."""
        upright = save_photograph(tmp_path / "a.png", 40, 60)
        tags = Image.Exif()
        tags[0x0112] = 6
        Image.fromarray(np.rot90(pixels(upright))).save(tmp_path / "turned.png", exif=tags)
        for name in ("a", "turned"):
            run(runs["rgb"], tmp_path / f"{name}.png", tmp_path / f"{name}_mask.png")
        np.testing.assert_array_equal(pixels(tmp_path / "a_mask.png"), pixels(tmp_path / "turned_mask.png"))


class TestAveraging:
    def test_several_networks_flips_and_probabilities(
        self, runs: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Against the mean of the softmax written out."""
        other = save_network(BENCHMARKS["hu"], tmp_path / "runs" / "seed2", seed=2)
        shutil.copytree(runs["hu"], tmp_path / "runs" / "seed1")
        source = save_ct(tmp_path / "scan.nii.gz")
        output, found = tmp_path / "labels.nii.gz", tmp_path / "p.nii.gz"
        run(tmp_path / "runs", source, output, "--flips", "horizontal", "--probabilities", found)
        assert "2 networks are averaged: " in capsys.readouterr().out
        slices = (np.clip(ct().get_fdata().transpose(2, 1, 0), -125, 275) + 125) / 400
        image = torch.from_numpy(slices[:, None].astype(np.float32))
        total = 0
        for folder in (tmp_path / "runs" / "seed1", other):
            model = load_network(folder, "cpu").model
            for mirror in (lambda x: x, lambda x: x.flip(-1)):
                with torch.no_grad():
                    logits = mirror(model(mirror(as_rgb(fit_square(image, 32)))))
                    total = total + unfit_square(logits, *slices.shape[1:]).softmax(1)
        wanted = (total / 4).permute(3, 2, 0, 1).numpy()  # X, Y, Z, classes
        written = nibabel.load(found)
        assert written.get_data_dtype() == np.float32
        np.testing.assert_allclose(np.asarray(written.dataobj), wanted, atol=1e-5)
        np.testing.assert_array_equal(written.affine, nibabel.load(source).affine)
        np.testing.assert_array_equal(np.asarray(nibabel.load(output).dataobj), wanted.argmax(-1))

    def test_smooth_borders_have_no_stairs(self, runs: Folders, tmp_path: Path) -> None:
        """Enlarged eight times, labels change at every eighth pixel only; enlarged logits change anywhere."""
        source = save_photograph(tmp_path / "a.png", 256, 256)
        for name, options in (("blocks", ()), ("smooth", ("--smooth",))):
            run(runs["rgb"], source, tmp_path / f"{name}.png", *options)
        for name, only_eighths in (("blocks", True), ("smooth", False)):
            mask = pixels(tmp_path / f"{name}.png").astype(int)
            rows = np.flatnonzero(np.diff(mask, axis=0).any(axis=1)) + 1
            assert (rows % 8 == 0).all() == only_eighths
        both = [pixels(tmp_path / f"{name}.png") for name in ("blocks", "smooth")]
        assert (both[0] == both[1]).mean() > 0.9

    def test_arrays_and_photographs_have_probabilities(self, runs: Folders, tmp_path: Path) -> None:
        source = save_photograph(tmp_path / "a.jpg")
        run(runs["rgb"], source, tmp_path / "m.png", "--probabilities", tmp_path / "p.npz")
        np.savez(tmp_path / "slice.npz", image=smooth((30, 40)))
        run(runs["min-max"], tmp_path / "slice.npz", tmp_path / "l.npz", "--probabilities", tmp_path / "q.npz")
        for name, shape in (("p", (2, 48, 70)), ("q", (4, 30, 40))):
            with np.load(tmp_path / f"{name}.npz") as arrays:
                assert arrays["probabilities"].shape == shape
                np.testing.assert_allclose(arrays["probabilities"].sum(0), 1, atol=1e-5)

    def test_networks_that_do_not_go_together(self, runs: Folders, tmp_path: Path) -> None:
        source, output = save_photograph(tmp_path / "a.png"), tmp_path / "m.png"
        with pytest.raises(SystemExit, match=r"tells background, RV, .* that are averaged must agree"):
            run(runs["rgb"], source, output, "--checkpoint", runs["rgb"], runs["min-max"])
        larger = save_network(BENCHMARKS["rgb"], tmp_path / "larger", size=64)
        with pytest.raises(SystemExit, match=r"takes slices of 64 and .* of 32 pixels; .*pass --smooth"):
            run(runs["rgb"], source, output, "--checkpoint", runs["rgb"], larger)
        run(runs["rgb"], source, output, "--smooth", "--checkpoint", runs["rgb"], larger)
        assert pixels(output).shape == (48, 70)


class TestSeries:
    def test_one_frame(self, runs: Folders, tmp_path: Path) -> None:
        source = tmp_path / "cine.nii.gz"
        frames = [(smooth((30, 44, 3), seed) * 900).astype(np.int16) for seed in range(3)]
        nifti(source, np.stack(frames, -1), np.diag([1.5, 1.25, 8, 1]))
        nifti(tmp_path / "second.nii.gz", frames[1], np.diag([1.5, 1.25, 8, 1]))
        run(runs["min-max"], source, tmp_path / "a.nii.gz", "--frame", 2)
        run(runs["min-max"], tmp_path / "second.nii.gz", tmp_path / "b.nii.gz")
        one, other = (nibabel.load(tmp_path / f"{name}.nii.gz") for name in "ab")
        np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(other.dataobj))
        np.testing.assert_array_equal(one.affine, other.affine)
        assert one.header.get_zooms() == other.header.get_zooms()

    def test_nan_as_background(self, runs: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        voxels = ct().get_fdata()
        voxels[0] = np.nan
        nifti(tmp_path / "scan.nii", voxels, ct().affine)
        run(runs["hu"], tmp_path / "scan.nii", tmp_path / "labels.nii", "--fill-nan")
        assert "120 voxels that are NaN or infinite are taken as background" in capsys.readouterr().err
        assert nibabel.load(tmp_path / "labels.nii").shape == (40, 30, 4)

    def test_nifti_without_suffix(self, runs: Folders, tmp_path: Path) -> None:
        save_ct(tmp_path / "in" / "a.nii.gz").rename(tmp_path / "in" / "scan")
        save_ct(tmp_path / "in" / "b.nii").rename(tmp_path / "in" / "b.img")
        run(runs["hu"], tmp_path / "in", tmp_path / "out")
        assert files_of(tmp_path / "out") == ["b.nii.gz", "scan.nii.gz"]


def test_mistakes_do_not_wait_for_torch(runs: Folders, tmp_path: Path) -> None:
    """Collisions, missing runs, wrong suffixes and DICOM are found before anything is loaded."""
    source = save_photograph(tmp_path / "in" / "a.png").parent
    save_photograph(source / "a.jpg")
    (tmp_path / "slice").write_bytes(bytes(128) + b"DICM" + bytes(400))
    cases = [
        (runs["rgb"], source, tmp_path / "out", "would be written for"),
        (tmp_path, source, tmp_path / "out", "no preprocessing.json"),
        (runs["rgb"], source / "a.png", tmp_path / "out.nii", "are written as .png"),
        (runs["hu"], tmp_path / "slice", tmp_path / "out.nii", "dcm2niix -z y -o OUT FOLDER"),
    ]
    script = (
        "import sys, predict\n"
        "for arguments in {!r}:\n"
        "    try:\n        predict.main(arguments)\n    except SystemExit as error:\n        print(error)\n"
        "assert 'torch' not in sys.modules, 'torch'"
    )
    arguments = [
        ["--checkpoint", str(checkpoint), "--input", str(entry), "--output", str(output)]
        for checkpoint, entry, output, _ in cases
    ]
    command = [sys.executable, "-c", script.format(arguments)]
    done = subprocess.run(command, cwd=commands.EXAMPLES, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line, case in zip(done.stdout.splitlines(), cases, strict=True):
        assert line.startswith("error: ")
        assert case[-1] in line


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "write", "message"),
        [
            ("gone.nii.gz", lambda path: None, "no file .*gone.nii.gz"),
            ("a.dcm", lambda path: path.touch(), r"the network is for scans; wanted \.nii\.gz, \.nii, \.npz, \.h5"),
            ("a.png", save_photograph, "the network is for scans; wanted"),
            ("a.nii.gz", lambda path: path.write_bytes(b"\x1f\x8b junk"), "cannot read .*a.nii.gz: .*fetch it again"),
            (
                "a.nii.gz",
                lambda path: nifti(path, np.zeros((4, 4, 2, 3))),
                r"\(4, 4, 2, 3\), a series of 3 frames",
            ),
            ("a.nii.gz", lambda path: nifti(path, np.zeros((4, 4))), r"\(4, 4\); wanted a scan of 3 dimensions"),
            (
                "a.nii.gz",
                lambda path: nifti(path, np.full((4, 4, 2), np.nan)),
                "32 voxels are NaN or infinite; --fill",
            ),
            ("a.nii.gz", lambda path: nifti(path, np.zeros((4, 4, 2), np.complex64)), "voxels are complex64; wanted"),
            ("a.nii.gz", lambda path: nifti(path, smooth((4, 4, 2))), "from 0 to 1; wanted Hounsfield units"),
            ("a.nii", lambda path: nifti(path, ct().get_fdata() + 1024), "the rescale intercept is missing"),
            ("a.nii", lambda path: nifti(path, smooth((9, 9, 3)) * 255), "reduced to 8 bits through some window"),
            ("a.nii", lambda path: flat(save_ct(path)), "the affine .* does not say how the scan lies; repair its"),
            ("a.npz", lambda path: np.savez(path, image=np.full((8, 8), 1.5)), r"from 1\.5 to 1\.5; wanted \[0, 1\]"),
            ("a.npz", lambda path: np.savez(path, image=np.zeros((8, 8, 3))), "no channels last"),
            ("a.npz", lambda path: np.savez(path, image=np.zeros(8)), "wanted 3 dimensions"),
            ("a.npz", lambda path: np.savez(path, image=np.zeros((8, 8)), spacing=np.zeros(3)), "three lengths above"),
            ("a.npz", lambda path: np.savez(path, picture=np.zeros((8, 8))), r"no array 'image', only \['picture'\]"),
            ("a.npz", lambda path: np.savez(path, image=np.array([{}])), "Object arrays cannot be loaded"),
            ("a.npy.h5", lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"), "cannot read .*a.npy.h5"),
        ],
    )
    def test_scans(
        self, runs: Folders, tmp_path: Path, name: str, write: Callable[[Path], object], message: str
    ) -> None:
        write(tmp_path / name)
        output = tmp_path / ("labels.npz" if name.endswith(("npz", "h5")) else "labels.nii.gz")
        with pytest.raises(SystemExit, match=f"^error: .*{message}"):
            run(runs["hu"], tmp_path / name, output)
        assert files_of(tmp_path) in ([name], [])

    @pytest.mark.parametrize("write", [save_ct, lambda path: np.savez(path, image=np.zeros((8, 8)))])
    def test_scans_are_not_for_photographs(
        self, runs: Folders, tmp_path: Path, write: Callable[[Path], object]
    ) -> None:
        path = tmp_path / ("a.nii.gz" if write is save_ct else "a.npz")
        write(path)
        with pytest.raises(SystemExit, match=r"the network is for RGB images; wanted \.png, \.jpg, \.jpeg"):
            run(runs["rgb"], path, tmp_path / "mask.png")

    @pytest.mark.parametrize(
        ("mode", "message"), [("RGBA", "transparent in places"), ("I;16", "16-bit grey values run")]
    )
    def test_photographs_have_one_or_three_channels(
        self, runs: Folders, tmp_path: Path, mode: str, message: str
    ) -> None:
        Image.new(mode, (8, 8)).save(tmp_path / "a.png")
        with pytest.raises(SystemExit, match=message):
            run(runs["rgb"], tmp_path / "a.png", tmp_path / "mask.png")

    @pytest.mark.parametrize("output", ["labels.png", "labels.npz", "labels", "labels.NII.GZ"])
    def test_labels_have_the_form_of_the_input(self, runs: Folders, tmp_path: Path, output: str) -> None:
        source = save_ct(tmp_path / "scan.nii.gz")
        with pytest.raises(SystemExit, match=rf"a \.nii\.gz file are written as \.nii\.gz or \.nii; .*{output}"):
            run(runs["hu"], source, tmp_path / output)
        with pytest.raises(SystemExit, match=r"an overlay is written as \.png; --overlay is .*drawn\.jpg"):
            run(runs["hu"], source, tmp_path / "labels.nii", "--overlay", tmp_path / "drawn.jpg")

    def test_nothing_is_replaced_by_accident(self, runs: Folders, tmp_path: Path) -> None:
        source, output, overlay = save_photograph(tmp_path / "a.png"), tmp_path / "mask.png", tmp_path / "drawn.png"
        overlay.write_bytes(b"mine")
        with pytest.raises(SystemExit, match=r"drawn\.png exists; pass --overwrite"):
            run(runs["rgb"], source, output, "--overlay", overlay)
        run(runs["rgb"], source, output)
        before = output.read_bytes()
        with pytest.raises(SystemExit, match=r"mask\.png exists; pass --overwrite"):
            run(runs["rgb"], source, output)
        with pytest.raises(SystemExit, match=r"a\.png would be written for .*a\.png and is that of .*a\.png"):
            run(runs["rgb"], source, source, "--overwrite")
        output.write_bytes(b"mine")
        run(runs["rgb"], source, output, "--overlay", overlay, "--overwrite")
        assert output.read_bytes() == before
        assert overlay.read_bytes() != b"mine"

    def test_unwritable_output(self, runs: Folders, tmp_path: Path) -> None:
        source = save_photograph(tmp_path / "a.png")
        with pytest.raises(SystemExit, match=r"^error: --output .*a\.png cannot be a folder, since .* is a file"):
            run(runs["rgb"], source, source / "mask.png")

    def test_a_full_disk_leaves_no_half_file(
        self, runs: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source, output = save_ct(tmp_path / "scan.nii.gz"), tmp_path / "labels.nii.gz"
        output.write_bytes(b"of an earlier run")

        def save(image: nibabel.Nifti1Image, path: Path) -> None:
            path.write_bytes(image.to_bytes()[:100])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(nibabel, "save", save)
        with pytest.raises(SystemExit, match=r"cannot write .*labels\.nii\.gz: No space left on device; free the disk"):
            run(runs["hu"], source, output, "--overwrite")
        assert files_of(tmp_path) == ["labels.nii.gz", "scan.nii.gz"]
        assert output.read_bytes() == b"of an earlier run"

    @pytest.mark.parametrize("device", ["abacus", "cuda:99"])
    def test_devices_that_are_not_there(self, runs: Folders, tmp_path: Path, device: str) -> None:
        with pytest.raises(SystemExit, match=f"^error: cannot use --device {device}"):
            run(runs["rgb"], save_photograph(tmp_path / "a.png"), tmp_path / "mask.png", "--device", device)

    def test_too_large_a_batch(self, runs: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object, **__: object) -> None:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr("medseg.evaluation.prediction.predict_volume", full)
        with pytest.raises(SystemExit, match="too little memory; lower --batch-size from 8"):
            run(runs["rgb"], save_photograph(tmp_path / "a.png"), tmp_path / "mask.png")


def flat(path: Path) -> None:
    """Let the slices of a scan lie upon one another."""
    content = bytearray(path.read_bytes())
    for row in (280, 296, 312):  # srow_x, srow_y and srow_z of the header
        content[row + 8 : row + 12] = bytes(4)
    path.write_bytes(content)


def nifti(path: Path, voxels: Array, affine: Array | None = None) -> None:
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)


class TestRealData:
    def test_mri(self, runs: Folders, test_data: Path, tmp_path: Path) -> None:
        source = test_data / "acdc" / "test" / "case_002_volume_ED.npz"
        run(runs["min-max"], source, tmp_path / "labels.npz", "--overlay", tmp_path / "drawn.png")
        with np.load(tmp_path / "labels.npz") as arrays:
            np.testing.assert_array_equal(arrays["label"], expected(runs["min-max"], read_acdc(source).image))

    def test_ct_as_nifti_gives_what_the_prepared_volume_gives(
        self, runs: Folders, test_data: Path, tmp_path: Path
    ) -> None:
        volume = read_volume(test_data / "ct_mini" / "test_vol_h5" / "case9002.npy.h5")
        voxels = (volume.image[:, 0] * 400 - 125).transpose(2, 1, 0)
        nifti(tmp_path / "scan.nii.gz", voxels, np.diag([-0.7, 0.7, 5, 1]))
        run(runs["hu"], tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz", "--overlay", tmp_path / "drawn.png")
        labels = np.asarray(nibabel.load(tmp_path / "labels.nii.gz").dataobj).transpose(2, 1, 0)
        assert (labels == expected(runs["hu"], volume.image)).mean() > 0.9999  # the scaling there and back rounds

    def test_photographs(self, runs: Folders, test_data: Path, tmp_path: Path) -> None:
        source = test_data / "isic2018" / "images" / "ISIC_0000001.jpg"
        run(runs["rgb"], source, tmp_path / "mask.png", "--overlay", tmp_path / "drawn.png")
        assert set(np.unique(pixels(tmp_path / "mask.png"))) <= {0, 255}
