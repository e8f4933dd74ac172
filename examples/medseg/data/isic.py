"""The ISIC 2017 and 2018 skin lesion sets: dermoscopic RGB images and a binary mask for each.

As released, with images of mixed sizes; where the training part alone is there, it is divided 7:3::

    DIR/ISIC2018_Task1-2_Training_Input/ISIC_*.jpg
    DIR/ISIC2018_Task1_Training_GroundTruth/ISIC_*_segmentation.png
    DIR/ISIC2018_Task1-2_Validation_Input/... and so on; the folders of both years stand in ``RELEASED``

or in one folder, with or without lists of names::

    DIR/images/ISIC_*.jpg
    DIR/masks/ISIC_*_segmentation.png
    DIR/splits/{train,val,test}.txt

Suffixes count in any case, and images may be of any format that ``medseg/data/images.py`` reads.

Sources: Codella et al., "Skin Lesion Analysis Toward Melanoma Detection 2018", arXiv:1902.03368, and, for 2017,
arXiv:1710.05006; Tschandl et al., "The HAM10000 dataset", Scientific Data, 2018.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from PIL import Image

from medseg.data.dataset import Benchmark, Case, Paper, Split, hold_out
from medseg.data.folders import IMAGE_SUFFIXES, by_stem, listed, match, read_list, the_folder_below, unnested
from medseg.data.images import read_image_and_mask
from medseg.data.preparation import Job, Record, Release
from medseg.errors import DataError
from medseg.files import read_json, write_image
from medseg.settings import Settings

# year -> part -> folders of the images and of the masks
RELEASED = {
    2017: {
        "train": ("ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth"),
        "validation": ("ISIC-2017_Validation_Data", "ISIC-2017_Validation_Part1_GroundTruth"),
        "test": ("ISIC-2017_Test_v2_Data", "ISIC-2017_Test_v2_Part1_GroundTruth"),
    },
    2018: {
        "train": ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"),
        "validation": ("ISIC2018_Task1-2_Validation_Input", "ISIC2018_Task1_Validation_GroundTruth"),
        "test": ("ISIC2018_Task1-2_Test_Input", "ISIC2018_Task1_Test_GroundTruth"),
    },
}


def open_isic(folder: Path, settings: Settings, year: int, *, option: str = "--data") -> Split:
    """The official split, the one of the folder's lists, or 7:3 where neither is there.

    Args:
        folder: Of the set, or one that holds it alone.
        settings: Of the run.
        year: Of the set.
        option: The one that named the folder, for messages.
    """
    if not folder.is_dir():
        raise DataError(f"no data folder {folder}; give {option} the folder that holds the parts of ISIC {year}")
    folder = the_folder_below(folder, (*(images for images, _ in RELEASED[year].values()), "images"))
    released = {
        part: (unnested(folder / images), unnested(folder / masks))
        for part, (images, masks) in RELEASED[year].items()
        if (folder / images).is_dir()
    }
    if len(released) == 3:
        parts = {part: _paired(*folders) for part, folders in released.items()}
        return Split(f"official split of ISIC {year}", parts["train"], parts["validation"], parts["test"])
    if (folder / "splits").is_dir():
        by_part = {part: _listed(folder, part) for part in ("train", "val", "test")}
        counts = "/".join(str(len(cases)) for cases in by_part.values())
        name = f"splits/*.txt of the folder ({counts})"
        if (folder / "prepared.json").is_file():
            name += f", made by examples/prepare.py: {read_json(folder / 'prepared.json').get('split')}"
        return Split(name, by_part["train"], by_part["val"], by_part["test"])
    if "train" in released:
        cases = _paired(*released["train"])
    elif (folder / "images").is_dir():
        cases = _paired(folder / "images", folder / "masks")
    else:
        raise DataError(
            f"{folder} holds neither {RELEASED[year]['train'][0]}/ nor images/; give {option} the folder that "
            f"holds the parts of ISIC {year} as released, or images/ and masks/"
        )
    rest, test = hold_out(cases, 0.3, settings.split_seed)
    train, validation = hold_out(rest, settings.validation, settings.split_seed)
    name = f"7:3 of the training images, seed {settings.split_seed} (not the official split: its parts are not there)"
    return Split(name, train, validation, test)


def _paired(images: Path, masks: Path) -> list[Case]:
    found = _images(images)
    if not found:
        raise DataError(f"{images} holds no image: {', '.join(IMAGE_SUFFIXES)}")
    return _cases(found, masks, images)


def _listed(folder: Path, part: str) -> list[Case]:
    list_path = folder / "splits" / f"{part}.txt"
    names = read_list(list_path, "one image of images/", IMAGE_SUFFIXES)
    found = listed(names, _images(folder / "images", tell=part == "train"), list_path, f"{folder / 'images'}/{{}}.jpg")
    return _cases(found, folder / "masks", list_path)


def _images(folder: Path, *, tell: bool = True) -> dict[str, Path]:
    """The RGB images of a folder by name; 2017 has superpixels beside them."""
    found = by_stem(folder, IMAGE_SUFFIXES, tell=tell)
    return {stem: path for stem, path in found.items() if not stem.endswith("_superpixels")}


def _cases(images: Mapping[str, Path], masks: Path, source: Path) -> list[Case]:
    pairs = match(images, by_stem(masks, IMAGE_SUFFIXES, tell=False), masks, "_segmentation", source=source)
    return [Case(name, name, partial(read_image_and_mask, *pair)) for name, pair in pairs.items()]


def isic(year: int) -> Benchmark:
    """The benchmark of one year."""
    mean = {
        2017: {"iou": (79.91, 0.34), "dice": (88.93, 0.28), "accuracy": (96.81, 0.21), "specificity": (98.58, 0.41),
               "sensitivity": (89.90, 0.32)},
        2018: {"iou": (81.05, 0.29), "dice": (89.41, 0.21), "accuracy": (94.67, 0.25), "specificity": (96.75, 0.38),
               "sensitivity": (91.39, 0.29)},
    }[year]  # fmt: skip
    return Benchmark(
        name=f"isic{year}",
        title=f"ISIC {year}",
        classes=("lesion",),
        open=partial(open_isic, year=year),
        settings=Settings(size=256),
        intensity="rgb",
        paper=Paper(source="Table 3, mean and standard deviation over three seeds", dice={}, mean=mean),
        layout="the parts as released, or images/, masks/ and splits/ (see medseg/data/isic.py)",
    )


RELEASE = """The ISIC 2017 and 2018 releases at the size of the paper, in the layout ``images/ masks/ splits/`` of
``medseg/data/isic.py``.

Wanted are the folders of the extracted archives as released, which that module lists. Images are resized to a square,
as is usual on these sets, so their aspect ratio is not kept; masks are resized without interpolation. Where the three
parts are there, the split is the official one, otherwise 7:3 of the training images.
"""

LISTS = {"train": "splits/train.txt", "validation": "splits/val.txt", "test": "splits/test.txt"}


def find_isic(source: Path, year: int, size: int, seed: int) -> Release:
    """The images of one year below a folder, divided as ``medseg.data.isic.open_isic`` does."""
    split = open_isic(source, Settings(size=size, split_seed=seed), year, option="--source")
    return Release(
        benchmark=f"isic{year}",
        split=split.name,
        options={"size": size, "split_seed": seed},
        folders=("images", "masks", "splits"),
        lists=tuple(LISTS.values()),
        jobs=[
            Job(case.name, LISTS[part], (), partial(_write, case, LISTS[part], size))
            for part, cases in split.parts().items()
            for case in cases
        ],
        warnings=() if split.name.startswith("official") else (f"the split is {split.name}",),
        train=f"train_isic.py --year {year} --seed 10 11 12",
    )


def _write(case: Case, listed_in: str, size: int, out: Path) -> Record:
    volume = case.read()
    files = [f"images/{case.name}.jpg", f"masks/{case.name}_segmentation.png"]
    image = Image.fromarray(volume.image[0].transpose(1, 2, 0))
    mask = Image.fromarray(volume.label[0] * 255)
    write_image(out / files[1], mask.resize((size, size), Image.Resampling.NEAREST))
    write_image(out / files[0], image.resize((size, size), Image.Resampling.BILINEAR), quality=95, subsampling=0)
    return Record(case.name, listed_in, [case.name], files, [1, size, size])
