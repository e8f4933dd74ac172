"""Run the examples as a user runs them, on data small enough for a test."""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
# A network and slices small enough for a test.
QUICK = ("--encoder", "tu-resnet10t", "--size", "32", "--batch-size", "8", "--epochs", "2", "--validate-every", "1")


def command(script: str, *arguments: object) -> dict[str, Any]:
    """What ``subprocess`` needs to run a script with one thread, so that sums keep their order on any machine."""
    words = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    return {"args": words, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script to its end, whatever that is."""
    return subprocess.run(**command(script, *arguments), capture_output=True, text=True)


def succeed(script: str, *arguments: object) -> str:
    """Run a script and return what it printed."""
    done = run(script, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def call(main: Callable[[Sequence[str]], None], *arguments: object) -> str:
    """Run a script's ``main`` in this process, which saves the imports, and return what it printed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            main(list(map(str, arguments)))
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    return printed.getvalue()


def results(out: Path) -> dict[str, Any]:
    """What a run noted."""
    content: dict[str, Any] = json.loads((out / "results.json").read_text())
    return content


def repeatable(out: Path) -> dict[str, Any]:
    """The results that must repeat: everything but the durations."""
    return {name: value for name, value in results(out).items() if name != "duration_seconds"}


def write_acdc(folder: Path) -> Path:
    """Five small hearts in the layout of MT-UNet: rings of a bright ventricle and grey muscle."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :36]
    lists: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for patient in range(1, 6):
        part = "train" if patient <= 3 else "valid" if patient == 4 else "test"
        (folder / part).mkdir(parents=True, exist_ok=True)
        slices = []
        for _ in range(4):
            distance = np.hypot(x - rng.integers(14, 22), y - rng.integers(14, 24))
            label = np.select([distance < 5, distance < 8, (distance < 12) & (x < 14)], [3, 2, 1], 0).astype(np.uint8)
            noise = rng.uniform(0, 0.2, label.shape)
            slices.append((np.choose(label, [0.2, 0.7, 0.4, 0.8]) + noise).astype(np.float32))
            slices.append(label)
        images, labels = np.stack(slices[::2]), np.stack(slices[1::2])
        name = f"case_{patient:03d}"
        if part == "test":
            lists[part].append(f"{name}_volume_ED.npz")
            np.savez(folder / part / lists[part][-1], img=images, label=labels, spacing=np.array([10, 1.5, 1.5]))
            continue
        for number in range(4):
            lists[part].append(f"{name}_sliceED_{number}.npz")
            np.savez(folder / part / lists[part][-1], img=images[number], label=labels[number])
    (folder / "lists_ACDC").mkdir()
    for part, names in lists.items():
        (folder / "lists_ACDC" / f"{part}.txt").write_text("\n".join(names))
    return folder


def write_isic(folder: Path) -> Path:
    """Fourteen photographs of mixed sizes with a brown spot, in ``images`` and ``masks`` without a split."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for number in range(14):
        h, w = rng.integers(40, 70, 2)
        y, x = np.mgrid[:h, :w]
        mask = np.hypot(x - rng.integers(15, w - 15), y - rng.integers(15, h - 15)) < rng.integers(8, 14)
        skin = np.where(mask[..., None], (120, 70, 40), (230, 190, 170)) + rng.integers(-20, 20, (h, w, 3))
        Image.fromarray(skin.astype(np.uint8)).save(folder / "images" / f"ISIC_{number:07d}.jpg")
        Image.fromarray(255 * mask.astype(np.uint8)).save(folder / "masks" / f"ISIC_{number:07d}_segmentation.png")
    return folder
