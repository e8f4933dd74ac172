"""What the paper's ablations compare, what it reports about them, and which command trains each variant.

Figures 5 and 6 are bar charts without numbers; what is known of their bars stands in Tables 1 and 2.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))  # where medseg is
from medseg.data.acdc import ACDC
from medseg.data.dataset import Benchmark
from medseg.data.isic import isic
from medseg.data.synapse import ORGANS, SYNAPSE

Options = Mapping[str, str]


@dataclass(frozen=True)
class Variant:
    """One network of the ablations, and the options of ``examples/train_*.py`` that ask for it."""

    label: str
    options: Options  # a flag has the value ""


@dataclass(frozen=True)
class Study:
    """Variants that are compared with one another, and with no attention.

    Args:
        title: Heading of its tables.
        source: Where the paper has it, by data set.
        rows: Variant -> its name in the tables; of two, the later minus the earlier is their difference. The default of
            GCA is one variant, ``gca``, in every study.
    """

    title: str
    source: Mapping[str, str]
    rows: Mapping[str, str]


@dataclass(frozen=True)
class Dataset:
    """A benchmark, its script, and what tells its runs apart."""

    benchmark: Benchmark
    script: tuple[str, ...]
    unit: str  # "seed", or "fold" of the cross-validation


@dataclass(frozen=True)
class Reported:
    """Figures of the paper: mean and, where given, standard deviation; Dice and rates in %, HD95 in its mm."""

    source: str
    mean: Mapping[str, float]
    std: Mapping[str, float] = field(default_factory=dict)
    classes: Mapping[str, float] = field(default_factory=dict)  # Dice %


VARIANTS = {
    "original": Variant("Res50 U-Net", {"--arch": "Unet", "--encoder": "resnet50"}),
    "none": Variant("no attention", {"--attention": "none"}),
    "se": Variant("SE", {"--attention": "se"}),
    "cbam": Variant("CBAM", {"--attention": "cbam"}),
    "coord": Variant("coordinate attention", {"--attention": "coord"}),
    "gca": Variant("GCA", {"--attention": "gca"}),
    "gca-identity": Variant("GCA, identity start", {"--attention": "gca", "--identity-init": ""}),
    "gca-groups1": Variant("GCA, 1 group", {"--attention": "gca", "--groups": "1"}),
    "gca-groups4": Variant("GCA, 4 groups", {"--attention": "gca", "--groups": "4"}),
    "gca-reduction1": Variant("GCA, reduction 1", {"--attention": "gca", "--reduction": "1"}),
    "gca-reduction4": Variant("GCA, reduction 4", {"--attention": "gca", "--reduction": "4"}),
    "gca-reduction8": Variant("GCA, reduction 8", {"--attention": "gca", "--reduction": "8"}),
    "gca-pool-avg": Variant("GCA, average pooling", {"--attention": "gca", "--pool": "avg"}),
    "gca-pool-max": Variant("GCA, max pooling", {"--attention": "gca", "--pool": "max"}),
}

STUDIES = {
    "attention": Study(
        "Attention in the residual blocks",
        {"synapse": "Figure 5", "acdc": "Figure 6"},
        {
            "original": "original Res50 U-Net",
            "none": "modified backbone, no attention",
            "se": "+ SE",
            "cbam": "+ CBAM",
            "coord": "+ coordinate attention (not in the paper)",
            "gca": "+ GCA",
        },
    ),
    "start": Study(
        "Start of GCA: gates of 1/2, as in the paper, or the identity",
        {},
        {"none": "no attention", "gca": "GCA (default)", "gca-identity": "GCA, identity start"},
    ),
    "groups": Study(
        "Channel groups of GCA",
        {"synapse": "Table 5"},
        {"gca-groups1": "1 group", "gca": "2 groups (default)", "gca-groups4": "4 groups"},
    ),
    "reduction": Study(
        "Reduction ratio of GCA",
        {"synapse": "Table 6"},
        {
            "gca-reduction1": "reduction 1",
            "gca": "reduction 2 (default)",
            "gca-reduction4": "reduction 4",
            "gca-reduction8": "reduction 8",
        },
    ),
    "pool": Study(
        "Pooling of GCA",
        {"synapse": "Table 7"},
        {"gca-pool-avg": "average", "gca-pool-max": "max", "gca": "average + max (default)"},
    ),
}

DATASETS = {
    "acdc": Dataset(ACDC, ("train_acdc.py",), "seed"),
    "isic2017": Dataset(isic(2017), ("train_isic.py", "--year", "2017"), "seed"),
    "isic2018": Dataset(isic(2018), ("train_isic.py", "--year", "2018"), "seed"),
    "synapse": Dataset(SYNAPSE, ("train_synapse.py",), "fold"),
}
SEEDS = (10, 11, 12)  # of the paper; a cross-validation has folds instead, all with the first seed

# The paper's data, network, augmentation and batch; smaller slices and a schedule short enough for a CPU.
COMPACT = {
    "--size": "128",
    "--epochs": "12",
    "--lr": "1e-3",
    "--precision": "bf16-mixed",
    "--validate-every": "2",
    "--patience": "20",
}


def options_of(variant: str, *, compact: bool) -> list[str]:
    """Options of the script for a variant under a protocol; the paper's protocol is what the script does by itself."""
    options = {**VARIANTS[variant].options, **(COMPACT if compact else {})}
    return [word for pair in options.items() for word in pair if word]


def runs_of(dataset: str, seeds: tuple[int, ...] = SEEDS) -> tuple[int, ...]:
    """The seeds, or the folds, that a variant is trained with."""
    known = DATASETS[dataset]
    return tuple(range(1, known.benchmark.settings.folds + 1)) if known.unit == "fold" else seeds


def _of_the_paper(benchmark: Benchmark) -> Reported:
    paper = benchmark.paper
    assert paper is not None  # these data sets are the paper's
    means = {name: mean for name, (mean, _) in paper.mean.items()}
    return Reported(paper.source, means, {name: std for name, (_, std) in paper.mean.items()}, paper.dice)


def _on_synapse(table: int, dice: float, hd95: float) -> Reported:
    return Reported(f"Table {table}", {"dice": dice, "hd95": hd95})


# Data set -> variant -> what the paper reports. "Res50 UNet" is the row of that name, which the paper quotes.
REPORTED: dict[str, dict[str, Reported]] = {
    name: {"gca": _of_the_paper(dataset.benchmark)} for name, dataset in DATASETS.items()
}
REPORTED["acdc"]["original"] = Reported(
    "Table 2, Res50 UNet", {"dice": 87.55, "hd95": 2.44}, classes={"RV": 87.10, "Myo": 80.63, "LV": 94.92}
)
REPORTED["synapse"] |= {
    "original": Reported(
        "Table 1, Res50 UNet",
        {"dice": 77.61, "hd95": 37.68},
        classes=dict(zip(ORGANS, (87.74, 63.66, 80.60, 78.19, 93.74, 56.90, 85.87, 74.16), strict=True)),
    ),
    "gca-groups1": _on_synapse(5, 84.26, 20.44),
    "gca-groups4": _on_synapse(5, 85.81, 21.07),
    "gca-reduction1": _on_synapse(6, 83.12, 24.85),
    "gca-reduction4": _on_synapse(6, 86.05, 20.44),
    "gca-reduction8": _on_synapse(6, 82.10, 26.17),
    "gca-pool-avg": _on_synapse(7, 82.04, 22.34),
    "gca-pool-max": _on_synapse(7, 79.27, 25.96),
}
