"""Medical image segmentation with GCA-ResUNet: what the scripts beside this folder share.

``data``          data sets: cases and splits, readers of files, preparation of the releases
``training``      networks, transforms, losses, the training itself
``evaluation``    metrics, scores and tables; predictions on files
``figures``       curves, bars, overlays, attention
``command_line``  options, runs and their folders, one run from the data to the table

What a script for one's own data needs is imported from here, see docs/own_data.md.
"""

from medseg.command_line.experiment import main
from medseg.data.dataset import Benchmark, Case, Split, Volume, fold_of, hold_out, stack_slices
from medseg.data.folders import IMAGE_SUFFIXES, by_stem, listed, pairs, read_list
from medseg.data.images import read_image, read_image_and_mask, read_labels, read_mask
from medseg.errors import DataError
from medseg.files import check_image, check_label, check_spacing, read_h5, read_npz
from medseg.settings import Settings

__all__ = [
    "IMAGE_SUFFIXES",
    "Benchmark",
    "Case",
    "DataError",
    "Settings",
    "Split",
    "Volume",
    "by_stem",
    "check_image",
    "check_label",
    "check_spacing",
    "fold_of",
    "hold_out",
    "listed",
    "main",
    "pairs",
    "read_h5",
    "read_image",
    "read_image_and_mask",
    "read_labels",
    "read_list",
    "read_mask",
    "read_npz",
    "stack_slices",
]
