"""The preprocessed Synapse multi-organ set, in the on-disk layout that TransUNet introduced.

::

    DIR/train_npz/caseNNNN_sliceZZZ.npz       image (H, W) in [0, 1], label (H, W) in 0..8
    DIR/test_vol_h5/caseNNNN.npy.h5           image (Z, H, W), label (Z, H, W)
    DIR/lists_Synapse/train.txt               names of training slices, one a line
    DIR/lists_Synapse/test_vol.txt            names of test volumes, one a line

A file may also hold ``spacing``, millimetres along z, y and x; then distances are in millimetres.
"""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import nibabel
import numpy as np

from medseg.data.dataset import Benchmark, Case, Paper, Split, Volume, fold_of, hold_out, stack_slices
from medseg.data.folders import by_stem, listed, read_list, stem_of, walk
from medseg.data.nifti import orientation_of, read_nifti, spacing_of, to_slices, voxels_of
from medseg.data.preparation import Job, Record, Release
from medseg.errors import DataError, all_of
from medseg.files import check_image, check_label, check_spacing, read_h5, read_npz, write_h5, write_npz
from medseg.settings import Settings

ORGANS = ("aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach")
CLASSES = 1 + len(ORGANS)


def open_synapse(folder: Path, settings: Settings) -> Split:
    """The split that the lists describe, or one fold of a cross-validation over all listed cases."""
    if not folder.is_dir():
        raise DataError(
            f"no data folder {folder}; give --data a folder that holds train_npz/, test_vol_h5/ and lists_Synapse/, "
            "or leave --data out to train on synthetic phantoms"
        )
    train, test = _training_cases(folder, whole=settings.fold is not None), _test_cases(folder)
    if settings.fold is None:
        name = f"lists of the folder ({len(train)} cases for training, {len(test)} for test)"
    else:
        if shared := sorted({case.name for case in train} & {case.name for case in test}):
            raise DataError(f"{shared[0]} is in both lists of {folder / 'lists_Synapse'}; a case belongs to one")
        # Four-fold cross-validation needs every case once in a test fold; slices of a case make up its volume.
        train, test = fold_of([*train, *test], settings.fold, settings.folds, settings.split_seed)
        name = f"fold {settings.fold} of {settings.folds} over patients, seed {settings.split_seed}"
    train, validation = hold_out(train, settings.validation, settings.split_seed)
    return Split(name, train, validation, test)


def read_slice(path: Path) -> Volume:
    """Read and check one training slice."""
    return _read(path, path.stem, dimensions=2)


def read_volume(path: Path) -> Volume:
    """Read and check one test volume."""
    return _read(path, stem_of(path, (".npy.h5",)), dimensions=3)


def _read(path: Path, name: str, dimensions: int) -> Volume:
    arrays = (read_npz if dimensions == 2 else read_h5)(path, ("image", "label"))
    image = check_image(path, arrays["image"], dimensions)
    label = check_label(path, arrays["label"], image.shape, CLASSES)
    shape = (-1, 1, *image.shape[-2:])
    return Volume(
        name, image.reshape(shape), label.reshape(-1, *image.shape[-2:]), check_spacing(path, arrays.get("spacing"))
    )


def _training_cases(folder: Path, *, whole: bool) -> list[Case]:
    paths = _listed(folder, "train.txt", "train_npz", ".npz")
    slices: dict[str, list[Path]] = {}
    for path in paths:
        case, found, number = path.stem.rpartition("_slice")
        if not (found and number.isdigit()):
            raise DataError(f"{path.name} in {folder / 'lists_Synapse/train.txt'} is not named caseNNNN_sliceZZZ")
        slices.setdefault(case, []).append(path)
    for case, members in slices.items() if whole else ():
        if gaps := set(range(len(members))) - set(map(_slice_number, members)):
            raise DataError(
                f"{folder / 'lists_Synapse/train.txt'} names {len(members)} slices of {case} but not number "
                f"{min(gaps)}; in a cross-validation every case is tested as a volume, so name all its slices from 0"
            )
    return [
        Case(name, name, partial(stack_slices, name, sorted(members, key=_slice_number), read_slice))
        for name, members in slices.items()
    ]


def _test_cases(folder: Path) -> list[Case]:
    paths = _listed(folder, "test_vol.txt", "test_vol_h5", ".npy.h5")
    names = [stem_of(path, (".npy.h5",)) for path in paths]
    return [Case(name, name, partial(read_volume, path)) for name, path in zip(names, paths, strict=True)]


def _listed(folder: Path, list_name: str, subfolder: str, suffix: str) -> Sequence[Path]:
    list_path = folder / "lists_Synapse" / list_name
    names = read_list(list_path, f"one file of {subfolder}/, without {suffix},", (suffix,))
    files = by_stem(folder / subfolder, (suffix,))
    return list(listed(names, files, list_path, f"{folder / subfolder}/{{}}{suffix}").values())


def _slice_number(path: Path) -> int:
    return int(path.stem.rpartition("_slice")[2])


SYNAPSE = Benchmark(
    name="synapse",
    title="Synapse",
    classes=ORGANS,
    open=open_synapse,
    settings=Settings(),
    intensity="hu",
    # Table 1: mean of four cross-validation folds of the real Synapse set.
    paper=Paper(
        source="Table 1, mean and standard deviation over four cross-validation folds",
        dice=dict(zip(ORGANS, (89.95, 74.71, 93.38, 91.60, 95.54, 68.95, 92.60, 82.15), strict=True)),
        mean={"dice": (86.11, 0.49), "hd95": (18.96, 1.07)},
    ),
    layout="train_npz/, test_vol_h5/ and lists_Synapse/ (see medseg/data/synapse.py)",
    folds=True,
)


RELEASE = """The BTCV abdominal CT release (Synapse, syn3193805) as the Synapse multi-organ set.

Wanted are ``img0001.nii.gz`` and ``label0001.nii.gz`` and so on for 30 patients, in ``img/`` and ``label/`` or in one
folder, anywhere below the source folder. Of the 13 organs of the release 8 are kept. Grey values are clipped to
[-125, 275] Hounsfield units and scaled to [0, 1] by that window; slices run from foot to head and lie as
``medseg/data/nifti.py`` says, whatever the orientation of the file. ``case0001`` is ``img0001``; the 18 cases for
training and the 12 for test are those of TransUNet.

Source: Landman et al., "MICCAI Multi-Atlas Labeling Beyond the Cranial Vault - Workshop and Challenge", 2015.
"""

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
    if not cases:
        raise DataError(
            f"no imgNNNN.nii.gz of the split below {source}; give --source the extracted BTCV release, whose "
            "RawData/Training holds img/ and label/"
        )
    if faults := [
        f"no {kind}{number:04d}.nii.gz below {source}; fetch it, or remove its counterpart"
        for number in cases
        for kind, found in (("img", images), ("label", labels))
        if number not in found
    ]:
        raise all_of(faults)
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
    for path in walk(source):
        name = re.fullmatch(rf"{kind}(\d{{4}})\.nii(\.gz)?", path.name, re.IGNORECASE)
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
        raise DataError(f"{image_path} has nothing below -125, not even air; wanted Hounsfield units of a whole scan")
    orientation = orientation_of(image_path, image, "hu")
    released = check_label(label_path, voxels_of(label_path, label), image.shape, len(CLASS_OF))
    if released.max() <= len(ORGANS) and len(np.unique(released)) > 6:
        raise DataError(
            f"{label_path} has labels up to {released.max()} and none of the veins, pancreas and adrenal glands of the "
            "release, 9 to 13: they seem to be those of TransUNet already, which would be taken for other organs; give "
            "the labels of the release"
        )
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
