"""The BTCV abdominal CT release (Synapse, syn3193805) as the Synapse multi-organ set of ``medseg/data/synapse.py``.

Wanted are ``img0001.nii.gz`` and ``label0001.nii.gz`` and so on for 30 patients, in ``img/`` and ``label/`` or in one
folder, anywhere below the source folder. Of the 13 organs of the release 8 are kept. Grey values are clipped to
[-125, 275] Hounsfield units and scaled to [0, 1] by that window; slices run from foot to head and lie as
``medseg/data/nifti.py`` says, whatever the orientation of the file. ``case0001`` is ``img0001``; the 18 cases for training
and the 12 for test are those of TransUNet.

Source: Landman et al., "MICCAI Multi-Atlas Labeling Beyond the Cranial Vault - Workshop and Challenge", 2015.
"""

import re
from functools import partial
from pathlib import Path

import nibabel
import numpy as np

from medseg.atomic_write import write_h5, write_npz
from medseg.data.arrays import read_nifti
from medseg.data.checks import check_label
from medseg.data.nifti import orientation_of, spacing_of, to_slices, voxels_of
from medseg.data.preparation import Job, Record, Release
from medseg.data.synapse import ORGANS
from medseg.errors import DataError

# lists_Synapse/{train,test_vol}.txt of https://github.com/Beckschen/TransUNet
TRAINING_CASES = (5, 6, 7, 9, 10, 21, 23, 24, 26, 27, 28, 30, 31, 33, 34, 37, 39, 40)
TEST_CASES = (1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38)
RELEASED_ORGANS = (
    "spleen", "right kidney", "left kidney", "gallbladder", "oesophagus", "liver", "stomach", "aorta",
    "inferior vena cava", "portal and splenic vein", "pancreas", "right adrenal gland", "left adrenal gland",
)  # fmt: skip
# Class of every label of the release, in which the background comes first.
CLASS_OF = np.array([0, *(1 + ORGANS.index(organ) if organ in ORGANS else 0 for organ in RELEASED_ORGANS)], np.uint8)
TRAIN_LIST, TEST_LIST = "lists_Synapse/train.txt", "lists_Synapse/test_vol.txt"


def find_synapse(source: Path) -> Release:
    """The cases of the split that are below a folder."""
    images, labels = _numbered(source, "img"), _numbered(source, "label")
    cases = sorted(number for number in (*TRAINING_CASES, *TEST_CASES) if number in images or number in labels)
    for number in cases:
        for kind, found in (("img", images), ("label", labels)):
            if number not in found:
                raise DataError(f"no {kind}{number:04d}.nii.gz below {source}; fetch it, or remove its counterpart")
    warnings = []
    if missing := sorted({*TRAINING_CASES, *TEST_CASES} - set(cases)):
        warnings.append(f"{len(missing)} of the 30 cases are missing: {', '.join(map(str, missing))}")
    if others := sorted(set(images) & set(labels) - set(cases)):
        warnings.append(f"not in the split, left out: {', '.join(f'img{number:04d}' for number in others)}")
    return Release(
        benchmark="synapse",
        split="18/12 cases of TransUNet",
        options={},
        folders=("train_npz", "test_vol_h5", "lists_Synapse"),
        lists=(TRAIN_LIST, TEST_LIST),
        jobs=[_job(number, images[number], labels[number]) for number in cases],
        warnings=warnings,
        train="train_synapse.py --cross-validate",
    )


def _numbered(source: Path, kind: str) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for path in sorted(source.rglob(f"{kind}*.nii*")):
        name = re.fullmatch(rf"{kind}(\d{{4}})\.nii(\.gz)?", path.name)
        if name is None:
            continue
        number = int(name[1])
        if number in found:
            raise DataError(f"{found[number]} and {path} are the same case; give --source the folder of one of them")
        found[number] = path
    return found


def _job(number: int, image: Path, label: Path) -> Job:
    case, testing = f"case{number:04d}", number in TEST_CASES
    listed_in = TEST_LIST if testing else TRAIN_LIST
    return Job(case, listed_in, (image, label), partial(_write, case, listed_in, image, label))


def _write(case: str, listed_in: str, image_path: Path, label_path: Path, out: Path) -> Record:
    image, label = read_nifti(image_path), read_nifti(label_path)
    slices = to_slices(image_path, image, "hu")
    _check_same_place(image_path, image, label_path, label)
    if slices.min() > 0:
        raise DataError(
            f"{image_path} has nothing below -125, not even air; wanted Hounsfield units (is the intercept missing?)"
        )
    orientation = orientation_of(image_path, image, "hu")
    released = check_label(label_path, voxels_of(label_path, label), image.shape, len(CLASS_OF))
    classes = CLASS_OF[orientation.slices(released)]
    spacing = spacing_of(image_path, image, "hu")
    arrays = {"spacing": np.array(spacing)}
    if listed_in == TEST_LIST:
        names, files = [case], [f"test_vol_h5/{case}.npy.h5"]
        write_h5(out / files[0], image=slices, label=classes, **arrays)
    else:
        names = [f"{case}_slice{z:03d}" for z in range(len(slices))]
        files = [f"train_npz/{name}.npz" for name in names]
        for z, file in enumerate(files):
            write_npz(out / file, image=slices[z], label=classes[z], **arrays)
    return Record(case, listed_in, names, files, slices.shape, spacing)


def _check_same_place(
    image_path: Path, image: "nibabel.Nifti1Image", label_path: Path, label: "nibabel.Nifti1Image"
) -> None:
    if image.shape != label.shape:
        raise DataError(f"{image_path} has shape {image.shape} but {label_path} {label.shape}; they must be equal")
    corners = np.array([(0, 0, 0, 1), *((*corner, 1) for corner in np.diag(image.shape)), (*image.shape, 1)])
    apart = np.linalg.norm(corners @ (image.affine - label.affine).T, axis=1).max()
    if not apart < min(spacing_of(image_path, image, "hu")) / 2:
        raise DataError(
            f"{label_path} lies up to {apart:.1f} mm away from {image_path}, by their affines; "
            "fetch both again, they must be of one scan"
        )
