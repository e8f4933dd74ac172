"""What attention in every residual block adds to an epoch of nnU-Net.

    python benchmarks/nnunet_epoch.py --rounds 31            # CPU: six small volumes, plans of nnUNetPlannerResEncM
    python benchmarks/nnunet_epoch.py --size 64 96 96 --trainers nnUNetTrainer nnUNetTrainerGCA nnUNetTrainerNaiveGCA
    python benchmarks/nnunet_epoch.py --device cuda --size 128 --rounds 30

nnU-Net plans for made volumes; its own trainer and ours then run interleaved on the same batches: a training step with
optimizer, and a step of validation, both with deep supervision and loss. An epoch is 250 and 50 of them; fetching
batches, which nnU-Net does beside them, is not counted. Needs nnU-Net: pip install "gca-attn[nnunet]".
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gca
from gca import ops
from plots import plot_models
from timing import Row, add_options, machine, save, set_up, show, synchronize

TRAINERS = {
    "nnUNetTrainer": "no attention",
    "nnUNetTrainerGCA": "GCA",
    "nnUNetTrainerNaiveGCA": "naive GCA",
    "nnUNetTrainerSE": "SE",
    "nnUNetTrainerCBAM": "CBAM",
    "nnUNetTrainerCoordinateAttention": "coordinate attention",
}
NAIVE = Path(__file__).parent / "nnunet_naive"
DATASET, PLANS = "Dataset900_Made", "nnUNetResEncUNetMPlans"
COLUMNS = ["trainer", "train_step_s", "validation_step_s", "epoch_s", "overhead_percent", "overhead_q1", "overhead_q3"]


def write(raw: Path, size: Sequence[int]) -> None:
    """Six volumes with a ball, as nnU-Net's raw data."""
    import nibabel

    rng = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (raw / name).mkdir(parents=True)
    for case in range(6):
        axes = np.meshgrid(*map(np.arange, size), indexing="ij")
        distance: Any = sum((axis - rng.integers(n // 3, 2 * n // 3)) ** 2 for axis, n in zip(axes, size, strict=True))
        label = (distance < (min(size) // 4) ** 2).astype(np.int16)
        image = (100 * label + rng.integers(0, 60, label.shape)).astype(np.int16)
        for folder, end, values in (("imagesTr", "_0000", image), ("labelsTr", "", label)):
            path = raw / folder / f"case_{case}{end}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)  # type: ignore[no-untyped-call]
    described = {"channel_names": {"0": "image"}, "labels": {"background": 0, "ball": 1}, "numTraining": 6}
    (raw / "dataset.json").write_text(json.dumps({**described, "file_ending": ".nii.gz"}))


def plan(folder: Path, batch: int) -> Row:
    """Plan and preprocess; the part of the plans that counts here."""
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    api.extract_fingerprints([900], num_processes=1)
    identifier = api.plan_experiments([900], "nnUNetPlannerResEncM")
    api.preprocess([900], identifier, configurations=("3d_fullres",), num_processes=(1,))
    path = folder / DATASET / f"{PLANS}.json"
    plans = json.loads(path.read_text())
    chosen = plans["configurations"]["3d_fullres"]
    chosen["batch_size"] = batch  # for volumes this small the planner would choose more
    path.write_text(json.dumps(plans))
    return {key: chosen[key] for key in ("patch_size", "batch_size")} | {
        key: chosen["architecture"]["arch_kwargs"][key] for key in ("features_per_stage", "n_blocks_per_stage")
    }


def prepared(name: str, device: torch.device) -> Any:
    """A trainer that could begin its first epoch."""
    from nnunetv2.run.run_training import get_trainer_from_args

    torch.manual_seed(0)
    trainer = get_trainer_from_args(DATASET, "3d_fullres", 0, name, PLANS, device=device)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


def seconds(trainer: Any, batch: Row, training: bool) -> float:
    """One step."""
    trainer.network.train(training)
    with torch.set_grad_enabled(training):
        synchronize(trainer.device)
        start = time.perf_counter()
        (trainer.train_step if training else trainer.validation_step)(dict(batch))
        synchronize(trainer.device)
        return time.perf_counter() - start


def measure(names: Sequence[str], device: torch.device, rounds: int) -> list[Row]:
    """A row for each trainer; the first is what the others are compared with."""
    trainers = {name: prepared(name, device) for name in names}
    first = trainers[names[0]]
    steps: dict[tuple[str, bool], list[float]] = {(name, training): [] for name in names for training in (True, False)}
    for number in range(rounds + 1):
        batches = {True: next(first.dataloader_train), False: next(first.dataloader_val)}
        for (name, training), taken in steps.items():
            taken_now = seconds(trainers[name], batches[training], training)
            if number:  # the first round compiles and allocates
                taken.append(taken_now)
    epochs = {
        name: [250 * train + 50 * val for train, val in zip(steps[name, True], steps[name, False], strict=True)]
        for name in names
    }
    rows = []
    for name in names:
        over = [100 * (with_ / without - 1) for with_, without in zip(epochs[name], epochs[names[0]], strict=True)]
        q1, q2, q3 = statistics.quantiles(over, n=4)
        row = {"train_step_s": statistics.median(steps[name, True])}
        row |= {"validation_step_s": statistics.median(steps[name, False]), "epoch_s": statistics.median(epochs[name])}
        added = sum(p.numel() for layer in gca.injected(trainers[name].network).values() for p in layer.parameters())
        compared = {} if name == names[0] else {"overhead_percent": q2, "overhead_q1": q1, "overhead_q3": q3}
        rows.append({"trainer": name, **row, **compared, "added_parameters": added})
    return rows


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "nnunet_cpu")
    parser.set_defaults(batch=2)
    parser.add_argument(
        "--size", type=int, nargs="+", default=[32], help="of the volumes: one side or three (default: 32)"
    )
    both = ["nnUNetTrainer", "nnUNetTrainerGCA"]
    parser.add_argument("--trainers", nargs="+", default=both, choices=TRAINERS, help=f"default: {' '.join(both)}")
    options = parser.parse_args()
    if len(options.size) not in (1, 3):
        parser.error(f"--size: wanted one side or three, got {len(options.size)}")
    size = options.size if len(options.size) == 3 else options.size * 3
    device = torch.device(options.device)
    from gca.nnunet.__main__ import PLUGIN

    with tempfile.TemporaryDirectory() as root:
        folders = {name: Path(root) / name for name in ("raw", "preprocessed", "results")}
        environment = {f"nnUNet_{name}": str(folder) for name, folder in folders.items()}
        # No compilation: the first steps would be all of a short run.
        fixed = {
            "nnUNet_extTrainer": os.pathsep.join(map(str, (PLUGIN, NAIVE))),
            "nnUNet_n_proc_DA": "1",
            "nnUNet_def_n_proc": "1",
            "nnUNet_compile": "f",
        }
        os.environ.update(environment | fixed)
        write(folders["raw"] / DATASET, size)
        planned = plan(folders["preprocessed"], options.batch)
        set_up(options.threads)
        os.environ.update(nnUNet_n_proc_DA="0")  # which the planner would divide by
        rows = measure(options.trainers, device, options.rounds)
    where = {
        **machine(device),
        **planned,
        "backend": ops.selected(torch.empty(options.batch, 32, *size, device=device)),
    }
    show(rows, COLUMNS)
    save(options.out, where, rows, {"complete": True, "rounds": options.rounds})
    networks = {"network": "residual encoder U-Net (M)", "mode": "epoch", "run": "eager"}
    plotted = [{**networks, "contender": TRAINERS[row["trainer"]], **row} for row in rows[1:]]
    title = f"nnU-Net, patch {'x'.join(map(str, planned['patch_size']))}, batch {planned['batch_size']}"
    plot_models(plotted, where, options.out / "overhead.png", title)


if __name__ == "__main__":
    main()
