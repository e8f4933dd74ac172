"""The ISIC 2017 and 2018 releases at the size of the paper, in the layout ``images/ masks/ splits/`` of
``medseg/data/isic.py``.

Wanted are the folders of the extracted archives as released, which that module lists. Images are resized to a square,
as is usual on these sets, so their aspect ratio is not kept; masks are resized without interpolation. Where the three
parts are there, the split is the official one, otherwise 7:3 of the training images.
"""

from functools import partial
from pathlib import Path

from PIL import Image

from medseg.atomic_write import write_image
from medseg.data.benchmark import Settings
from medseg.data.dataset import Case
from medseg.data.isic import open_isic
from medseg.data.preparation import Job, Record, Release

LISTS = {"train": "splits/train.txt", "validation": "splits/val.txt", "test": "splits/test.txt"}


def find_isic(source: Path, year: int, size: int, seed: int) -> Release:
    """The images of one year below a folder, divided as ``medseg.data.isic.open_isic`` does."""
    split = open_isic(source, Settings(size=size, split_seed=seed), year)
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
