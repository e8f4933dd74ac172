"""Train MONAI's SegResNet with grouped coordinate attention on volumes: MONAI's own transforms, loss and inference.

    python examples/monai_segresnet.py --data DIR [--steps 200] [--out runs/monai]

``DIR`` holds ``*.npy.h5`` files with ``image`` and ``label``, (D, H, W), as Synapse is stored for this project; the
last one is held out. Copy it and change ``volumes``: all else is MONAI, and one line puts attention into every block.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import matplotlib.pyplot as plt
import numpy as np
import torch
from monai.data import CacheDataset, DataLoader
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.nets import SegResNet
from monai.networks.utils import one_hot
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    RandFlipd,
    RandShiftIntensityd,
    RandSpatialCropSamplesd,
    Resized,
)
from monai.utils import set_determinism

import gca

BOTH = ("image", "label")
PATCH = (16, 64, 64)


def volumes(folder: Path) -> list[dict[str, np.ndarray]]:
    """Image and label of every file, in the order of their names."""
    files = sorted(folder.glob("*.npy.h5"))
    if len(files) < 2:
        raise SystemExit(f"wanted two or more *.npy.h5 files in {folder}, the last to test on, got {len(files)}")
    found = []
    for file in files:
        with h5py.File(file) as stored:
            found.append({key: np.asarray(stored[key], np.float32) for key in BOTH})
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, test on the volume that was held out, and write scores, weights and the curve of the loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of *.npy.h5 files")
    parser.add_argument("--steps", type=int, default=200, help="of training (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=9, help="with the background (default: %(default)s)")
    parser.add_argument("--filters", type=int, default=8, help="of the first stage (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/monai"), help="default: %(default)s")
    options = parser.parse_args(arguments)
    set_determinism(0)
    *train, test = volumes(options.data)

    same_size = [
        EnsureChannelFirstd(BOTH, channel_dim="no_channel"),
        Resized(BOTH, (16, 96, 96), mode=("trilinear", "nearest")),
    ]
    augment = [
        RandSpatialCropSamplesd(BOTH, PATCH, 2, random_size=False),
        RandFlipd(BOTH, prob=0.5, spatial_axis=2),
        RandShiftIntensityd("image", offsets=0.1, prob=0.5),
    ]
    data = CacheDataset(train, Compose([*same_size, *augment]), progress=False)  # resized once, augmented anew
    loader = DataLoader(data, shuffle=True)

    model = SegResNet(spatial_dims=3, init_filters=options.filters, in_channels=1, out_channels=options.classes)
    gca.inject(model)  # all blocks, in 3-D, starting as the identity: load pretrained weights before this line
    print(gca.summary(model))

    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses: list[float] = []
    while len(losses) < options.steps:
        for batch in loader:
            loss = loss_of(model(batch["image"]), batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if len(losses) % 10 == 0 or len(losses) == options.steps:
                print(f"step {len(losses)} of {options.steps}: loss {np.mean(losses[-10:]):.3f}", flush=True)
            if len(losses) == options.steps:
                break

    held_out = Compose(same_size)(test)
    with torch.no_grad():
        scores: Any = sliding_window_inference(held_out["image"][None], PATCH, 2, model.eval(), overlap=0.5)
    predicted, truth = (one_hot(t, options.classes) for t in (scores.argmax(1, keepdim=True), held_out["label"][None]))
    dice: Any = DiceMetric(include_background=False)(predicted, truth)[0]  # NaN where the volume has no such organ

    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps({"dice": [None if d.isnan() else d.item() for d in dice]}))
    gca.save(model, options.out / "attention.safetensors")
    torch.save(model.state_dict(), options.out / "model.pt")
    plt.plot(losses)
    plt.xlabel("step")
    plt.ylabel("cross-entropy + Dice loss")
    plt.savefig(options.out / "loss.png")
    print(f"mean Dice of the volume held out: {dice.nanmean():.3f}; written to {options.out}")


if __name__ == "__main__":
    main()
