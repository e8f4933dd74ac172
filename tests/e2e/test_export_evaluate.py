"""A network to ONNX, and scores of predictions that exist, as a user does both."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import evaluate
import export
from medseg.evaluation.prediction import load_network
from medseg.evaluation.scores import score_classes
from tests.e2e import commands
from tests.e2e.test_predict import BENCHMARKS, save_network


class TestExport:
    def test_onnxruntime_computes_the_same(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run = save_network(BENCHMARKS["min-max"], tmp_path / "run")
        export.main(["--checkpoint", str(run), "--out", str(tmp_path / "heart.onnx")])
        assert "differ by at most" in capsys.readouterr().out
        assert [path.name for path in tmp_path.iterdir() if "onnx" in path.name] == ["heart.onnx"]  # weights included
        metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "heart.onnx").metadata_props}
        assert json.loads(metadata["classes"]) == ["background", "RV", "Myo", "LV"]
        assert (metadata["size"], metadata["intensity"]) == ("32", "min-max")
        images = torch.rand(5, 3, 32, 32)
        session = onnxruntime.InferenceSession(tmp_path / "heart.onnx")
        (logits,) = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            wanted = load_network(run, "cpu").model(images)
        torch.testing.assert_close(torch.from_numpy(logits), wanted, rtol=1e-3, atol=1e-3)

    def test_a_network_that_computes_something_else_is_not_left(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = save_network(BENCHMARKS["min-max"], tmp_path / "run")
        monkeypatch.setattr(export, "TOLERANCE", 0)
        with pytest.raises(SystemExit, match="error: onnxruntime computes other logits, by up to"):
            export.main(["--checkpoint", str(run), "--out", str(tmp_path / "heart.onnx")])
        assert not [path for path in tmp_path.iterdir() if "onnx" in path.name]

    def test_refusals_do_not_wait_for_torch(self, tmp_path: Path) -> None:
        (tmp_path / "old.onnx").touch()
        script = (
            "import sys, export\n"
            "for out in ('old.onnx', 'a.pt', 'new.onnx'):\n"
            "    try:\n        export.main(['--checkpoint', '.', '--out', sys.argv[1] + '/' + out])\n"
            "    except SystemExit as error:\n        print(error)\n"
            "assert 'torch' not in sys.modules"
        )
        command = [sys.executable, "-c", script, str(tmp_path)]
        done = subprocess.run(command, cwd=commands.EXAMPLES, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        words = ("exists; pass --overwrite", "ONNX files end in .onnx", "no preprocessing.json")
        assert all(word in line for word, line in zip(words, done.stdout.splitlines(), strict=True))


RNG = np.random.default_rng(0)


def score(tmp_path: Path, *classes: str) -> dict[str, Any]:
    arguments = ["--predictions", str(tmp_path / "found"), "--truth", str(tmp_path / "truth"), "--out"]
    evaluate.main([*arguments, str(tmp_path / "out"), "--classes", *classes])
    content: dict[str, Any] = json.loads((tmp_path / "out" / "results.json").read_text())
    return content


def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("found", "truth"):
        (tmp_path / name).mkdir(exist_ok=True)
    return tmp_path / "found", tmp_path / "truth"


class TestEvaluate:
    def test_masks(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        found, truth = folders(tmp_path)
        masks = RNG.random((2, 3, 20, 30)) > 0.5
        for k in range(3):
            Image.fromarray(255 * masks[0, k].astype(np.uint8)).save(found / f"a{k}.PNG", "PNG")
            Image.fromarray(masks[1, k]).save(truth / f"a{k}_segmentation.png")
        Image.fromarray(masks[0, 0]).save(found / "extra.png")
        summary = score(tmp_path, "lesion")["test"]["summary"]
        shared, sizes = (masks[0] & masks[1]).sum(), masks.sum()
        assert summary["mean"]["pooled"]["dice"] == pytest.approx(2 * shared / sizes)
        printed = capsys.readouterr()
        assert f"{200 * shared / sizes:.2f}" in printed.out
        assert "extra without ground truth, left out" in printed.err
        with pytest.raises(SystemExit, match=r"table.txt exists; pass --overwrite|results.json exists"):
            score(tmp_path, "lesion")

    @pytest.mark.parametrize("kind", ["nii.gz", "npz"])
    def test_volumes(self, tmp_path: Path, kind: str) -> None:
        found, truth = folders(tmp_path)
        labels = RNG.integers(0, 3, (2, 9, 8, 5)).astype(np.uint8)  # X, Y, Z
        slices = labels.transpose(0, 3, 2, 1)
        for folder, label, rows in zip((found, truth), labels, slices, strict=True):
            if kind == "npz":
                np.savez(folder / "a.npz", label=rows, spacing=np.array([3.0, 0.9, 0.8]))
            else:
                nibabel.save(nibabel.Nifti1Image(label, np.diag([0.8, 0.9, 3, 1])), folder / "a.nii.gz")
        (case,) = score(tmp_path, "one", "two")["test"]["cases"]
        wanted = score_classes(*slices, 2, (3.0, 0.9, 0.8))
        for name, expected in zip(("one", "two"), wanted, strict=True):
            assert case["classes"][name]["strict"]["dice"] == pytest.approx(expected.strict.dice)
            assert case["classes"][name]["strict"]["hd95"] == pytest.approx(expected.strict.hd95, rel=1e-5)

    def test_all_that_does_not_fit_is_named_at_once(self, tmp_path: Path) -> None:
        found, truth = folders(tmp_path)
        for name in "abc":
            Image.fromarray(np.zeros((4, 4), bool)).save(truth / f"{name}.png")
        Image.fromarray(np.zeros((4, 5), bool)).save(found / "a.png")
        Image.fromarray(np.zeros((4, 4), bool)).save(found / "b.png")
        (found / "c.png").write_bytes(b"no image")
        with pytest.raises(SystemExit, match=r"2 faults in the data:\n.*a.png has shape \(1, 4, 5\)[^\n]*\n.*c.png"):
            score(tmp_path, "lesion")
        assert not (tmp_path / "out" / "results.json").exists()

    def test_what_does_not_fit(self, tmp_path: Path) -> None:
        found, truth = folders(tmp_path)
        with pytest.raises(SystemExit, match=r"hold no files of one kind; wanted one of \.png, \.jpg"):
            score(tmp_path, "one")
        label = np.ones((4, 4, 3), np.uint8)
        nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), truth / "a.nii")
        nibabel.save(nibabel.Nifti1Image(label, np.diag([-1, 1, 1, 1])), found / "a.nii")
        with pytest.raises(SystemExit, match=r"a.nii lies elsewhere than .*a.nii, by their affines"):
            score(tmp_path, "one")
        nibabel.save(nibabel.Nifti1Image(label[1:], np.eye(4)), found / "a.nii")
        with pytest.raises(SystemExit, match=r"a.nii has shape \(3, 4, 3\) but .* \(3, 4, 4\); they must be equal"):
            score(tmp_path, "one")
        nibabel.save(nibabel.Nifti1Image(2 * label, np.eye(4)), found / "a.nii")
        with pytest.raises(SystemExit, match=r"a.nii: label has values \[2\]; wanted whole numbers from 0 to 1"):
            score(tmp_path, "one")
        nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), truth / "b.nii")
        with pytest.raises(SystemExit, match=r"1 of 2 files of .*truth have no prediction in .*found, first .*b.nii"):
            score(tmp_path, "one")

    def test_endings_may_differ_from_file_to_file(self, tmp_path: Path) -> None:
        found, truth = folders(tmp_path)
        mask = Image.fromarray(RNG.random((4, 4)) > 0.5)
        for name, of_truth in (("a", "a_mask"), ("b", "b_mask"), ("c", "c")):
            mask.save(found / f"{name}.png")
            mask.save(truth / f"{of_truth}.png")
        assert score(tmp_path, "one")["test"]["headline"]["dice"] == 1
        mask.save(truth / "a.png")
        for path in (tmp_path / "out").iterdir():
            path.unlink()
        with pytest.raises(SystemExit, match=r"holds a and a_mask, both the truth of one prediction"):
            score(tmp_path, "one")

    def test_what_is_refused_before_anything_is_read(self, tmp_path: Path) -> None:
        folders(tmp_path)
        with pytest.raises(SystemExit, match="--classes names one twice; every class has a name of its own"):
            score(tmp_path, "one", "one")
        (tmp_path / "out").write_text("")
        with pytest.raises(SystemExit, match=r"--out .*out cannot be a folder, since .*out is a file"):
            score(tmp_path, "one")

    def test_where_nothing_is_nothing_is_at_distance_0(self, tmp_path: Path) -> None:
        for folder in folders(tmp_path):
            np.savez(folder / "a.npz", label=np.zeros((2, 5, 5), np.uint8))
        assert score(tmp_path, "one", "two")["test"]["headline"] == {"dice": None, "hd95": None, "hd95_strict": None}

    def test_labels_of_nothing(self, tmp_path: Path) -> None:
        for folder in folders(tmp_path):
            np.savez(folder / "a.npz", label=np.zeros((0, 5, 5), np.uint8))
        with pytest.raises(SystemExit, match=r"label has shape \(0, 5, 5\), with nothing in it"):
            score(tmp_path, "one")
