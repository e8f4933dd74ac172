"""The ACDC cardiac MRI set, in the on-disk layout that MT-UNet introduced.

::

    DIR/train/case_PPP_sliceED_N.npz       img (H, W) in [0, 1], label (H, W) in 0..3; ED or ES
    DIR/valid/...                          slices of other patients
    DIR/test/case_PPP_volume_ED.npz        img (Z, H, W), label (Z, H, W)
    DIR/lists_ACDC/{train,valid,test}.txt  file names, one a line

A file may also hold ``spacing``, millimetres along z, y and x; then distances are in millimetres.

Source of the images: Bernard et al., "Deep Learning Techniques for Automatic MRI Cardiac Multi-Structures Segmentation
and Diagnosis: Is the Problem Solved?", IEEE Transactions on Medical Imaging, 2018.
"""

import re
from functools import partial
from pathlib import Path

from medseg.data.arrays import read_list, read_npz, require
from medseg.data.benchmark import Benchmark, Paper, Settings
from medseg.data.checks import check_image, check_label, check_spacing
from medseg.data.dataset import Case, Split, Volume, stack_slices
from medseg.errors import DataError

STRUCTURES = ("RV", "Myo", "LV")
CLASSES = 1 + len(STRUCTURES)
NAME = re.compile(r"case_(?P<patient>\d{3})_(?:slice(?P<phase>ED|ES)_(?P<number>\d+)|volume_(?P<volume>ED|ES))")

# The split of MT-UNet, CASCADE and most tables; other splits of the 100 patients exist and give other numbers.
VALIDATION_PATIENTS = (19, 21, 29, 33, 41, 50, 61, 71, 76, 80)
TEST_PATIENTS = (2, 3, 8, 9, 12, 14, 17, 24, 42, 48, 49, 53, 55, 64, 67, 79, 81, 88, 92, 95)


def open_acdc(folder: Path, settings: Settings) -> Split:
    """The split that the lists describe."""
    if not folder.is_dir():
        raise DataError(f"no data folder {folder}; give --data a folder that holds train/, valid/, test/, lists_ACDC/")
    train, validation, test = (_cases(folder, part) for part in ("train", "valid", "test"))
    patients = [len({case.patient for case in part}) for part in (train, validation, test)]
    return Split("lists of the folder ({}/{}/{} patients)".format(*patients), train, validation, test)


def read_acdc(path: Path) -> Volume:
    """Read and check one slice or volume."""
    arrays = read_npz(path, ("img", "label"))
    image = check_image(path, arrays["img"], 3 if "volume" in path.stem else 2)
    label = check_label(path, arrays["label"], image.shape, CLASSES)
    plane = image.shape[-2:]
    spacing = check_spacing(path, arrays.get("spacing"))
    return Volume(path.stem, image.reshape(-1, 1, *plane), label.reshape(-1, *plane), spacing)


def _cases(folder: Path, part: str) -> list[Case]:
    list_path = folder / "lists_ACDC" / f"{part}.txt"
    names = read_list(list_path, f"one file of {part}/")
    paths = [folder / part / f"{name.removesuffix('.npz')}.npz" for name in names]
    require(paths, list_path)
    members: dict[tuple[str, str], list[tuple[int, Path]]] = {}
    for path in paths:
        found = NAME.fullmatch(path.stem)
        if found is None:
            raise DataError(f"{path.name} in {list_path} is not named case_PPP_sliceED_N or case_PPP_volume_ED")
        key = (f"patient{found['patient']}", found["phase"] or found["volume"])
        members.setdefault(key, []).append((int(found["number"] or 0), path))
    cases = []
    for (patient, phase), numbered in members.items():
        name = f"{patient}_{phase}"
        cases.append(Case(name, patient, partial(stack_slices, name, [p for _, p in sorted(numbered)], read_acdc)))
    return cases


ACDC = Benchmark(
    name="acdc",
    title="ACDC",
    classes=STRUCTURES,
    open=open_acdc,
    settings=Settings(),
    intensity="min-max",
    paper=Paper(
        source="Table 2, mean and standard deviation over three seeds",
        dice=dict(zip(STRUCTURES, (92.27, 89.37, 96.30), strict=True)),
        mean={"dice": (92.64, 0.27), "hd95": (1.09, 0.13)},
    ),
    layout="train/, valid/, test/ and lists_ACDC/ (see medseg/data/acdc.py)",
)
