"""The preprocessed Synapse multi-organ set, in the on-disk layout that TransUNet introduced.

::

    DIR/train_npz/caseNNNN_sliceZZZ.npz       image (H, W) in [0, 1], label (H, W) in 0..8
    DIR/test_vol_h5/caseNNNN.npy.h5           image (Z, H, W), label (Z, H, W)
    DIR/lists_Synapse/train.txt               names of training slices, one a line
    DIR/lists_Synapse/test_vol.txt            names of test volumes, one a line

A file may also hold ``spacing``, millimetres along z, y and x; then distances are in millimetres.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from medseg.data.arrays import read_h5, read_list, read_npz, require
from medseg.data.benchmark import Benchmark, Paper, Settings
from medseg.data.checks import check_image, check_label, check_spacing
from medseg.data.dataset import Case, Split, Volume, fold_of, hold_out, stack_slices
from medseg.errors import DataError

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
    return _read(path, path.name.removesuffix(".npy.h5"), dimensions=3)


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
    names = [path.name.removesuffix(".npy.h5") for path in paths]
    return [Case(name, name, partial(read_volume, path)) for name, path in zip(names, paths, strict=True)]


def _listed(folder: Path, list_name: str, subfolder: str, suffix: str) -> Sequence[Path]:
    list_path = folder / "lists_Synapse" / list_name
    names = read_list(list_path, f"one file of {subfolder}/, without {suffix},")
    paths = [folder / subfolder / f"{name}{suffix}" for name in names]
    require(paths, list_path)
    return paths


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
)
