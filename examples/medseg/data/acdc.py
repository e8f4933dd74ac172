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

import numpy as np

from medseg.data.dataset import Benchmark, Case, Paper, Split, Volume, stack_slices
from medseg.data.folders import by_stem, find_files, listed, read_list, stem_of, walk_folders
from medseg.data.nifti import orientation_of, read_nifti, spacing_of, to_slices, voxels_of
from medseg.data.preparation import Job, Record, Release, gathered
from medseg.errors import DataError
from medseg.files import check_image, check_label, check_spacing, read_npz, write_npz
from medseg.settings import Settings

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
    names = read_list(list_path, f"one file of {part}/", (".npz",))
    found_files = by_stem(folder / part, (".npz",))
    paths = listed(names, found_files, list_path, f"{folder / part}/{{}}.npz").values()
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
    holds_out=False,
)


RELEASE = """The ACDC release as the set of MT-UNet that ``medseg/data/acdc.py`` reads.

Wanted are the folders ``patient001`` to ``patient100`` with ``Info.cfg``, which names the frames of end diastole (ED)
and end systole (ES), ``patient001_frame01.nii.gz`` and ``patient001_frame01_gt.nii.gz``, anywhere below the source
folder. Labels stay: 0 background, 1 right ventricle, 2 myocardium, 3 left ventricle.

What MT-UNet's files show, and so what is done: slices, rows and columns follow the order of the file, nothing is
turned; grey values are clipped at the 99th percentile of the volume and scaled so that the volume, not every slice,
runs from 0 to 1. Spacing is that of the header's ``pixdim``: in the release the affine of many files says 1 mm.

Source: Bernard et al., "Deep Learning Techniques for Automatic MRI Cardiac Multi-Structures Segmentation and Diagnosis:
Is the Problem Solved?", IEEE Transactions on Medical Imaging, 2018.
"""

PATIENTS = range(1, 101)  # those with published labels; testing/ has patient101 to patient150


def find_acdc(source: Path) -> Release:
    """Both phases of every patient below a folder."""
    folders: dict[int, Path] = {}
    others = 0
    for folder in walk_folders(source):
        if not re.fullmatch(r"patient\d{3}", folder.name, re.IGNORECASE):
            continue
        number = int(folder.name[-3:])
        if number not in PATIENTS:
            others += 1
        elif number in folders:
            raise DataError(f"{folders[number]} and {folder} are the same patient; give --source the folder of one")
        else:
            folders[number] = folder
    if not folders:
        raise DataError(
            f"no patientNNN folder below {source}{', with a number up to 100' if others else ''}; give --source the "
            "extracted ACDC release, whose training/ holds patient001 to patient100"
        )
    warnings = []
    if missing := [number for number in PATIENTS if number not in folders]:
        some = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        warnings.append(f"{len(missing)} of the 100 patients are missing: {some}")
    if others:
        warnings.append(f"{others} patients from 101 on are not in the split, left out")
    return Release(
        benchmark="acdc",
        split="70/10/20 patients of MT-UNet",
        options={},
        folders=("train", "valid", "test", "lists_ACDC"),
        lists=("lists_ACDC/train.txt", "lists_ACDC/valid.txt", "lists_ACDC/test.txt"),
        jobs=gathered(_job, [(number, folder, p) for number, folder in sorted(folders.items()) for p in ("ED", "ES")]),
        warnings=warnings,
        train="train_acdc.py --seed 10 11 12",
    )


def _job(number: int, folder: Path, phase: str) -> Job:
    part = "test" if number in TEST_PATIENTS else "valid" if number in VALIDATION_PATIENTS else "train"
    frame = f"{folder.name}_frame{_frame(folder, phase):02d}"
    image, label = _stored(folder, frame), _stored(folder, f"{frame}_gt")
    write = partial(_write, number, phase, part, image, label)
    return Job(f"{folder.name}_{phase}", f"lists_ACDC/{part}.txt", (image, label), write)


def _frame(folder: Path, phase: str) -> int:
    """Number of the frame of a phase."""
    path = next((path for path in folder.iterdir() if path.name.lower() == "info.cfg"), folder / "Info.cfg")
    if not path.is_file():
        raise DataError(f"no file {path}; it names the frames of ED and ES, fetch it")
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    found = re.search(rf"^\s*{phase}\s*:\s*(\d+)\s*$", text, re.MULTILINE)
    if found is None:
        raise DataError(f"{path} has no line '{phase}: NUMBER'; the file is damaged or incomplete, fetch it again")
    return int(found[1])


def _stored(folder: Path, name: str) -> Path:
    suffixes = (".nii.gz", ".nii")
    files = [path for path in find_files(folder, suffixes, tell=False).files if stem_of(path, suffixes) == name]
    if files:
        return files[-1]  # the compressed one where there are two: it has a checksum
    raise DataError(f"no file {folder / name}.nii.gz; fetch it, or remove {folder} to leave the patient out")


def _write(number: int, phase: str, part: str, image_path: Path, label_path: Path, out: Path) -> Record:
    image, label = read_nifti(image_path), read_nifti(label_path)
    orientation = orientation_of(image_path, image, "min-max")
    slices = to_slices(image_path, image, "min-max")
    # Only shapes are compared, as the affines of the release are not to be relied on.
    classes = orientation.slices(check_label(label_path, voxels_of(label_path, label), image.shape, CLASSES))
    spacing = spacing_of(image_path, image, "min-max")
    arrays = {"spacing": np.array(spacing)}
    case = f"case_{number:03d}"
    if part == "test":
        names = [f"{case}_volume_{phase}.npz"]
        write_npz(out / part / names[0], img=slices, label=classes, **arrays)
    else:
        names = [f"{case}_slice{phase}_{z}.npz" for z in range(len(slices))]
        for z, name in enumerate(names):
            write_npz(out / part / name, img=slices[z], label=classes[z], **arrays)
    files = [f"{part}/{name}" for name in names]
    return Record(f"{image_path.parent.name}_{phase}", f"lists_ACDC/{part}.txt", names, files, slices.shape, spacing)
