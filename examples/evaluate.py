"""Score a folder of predictions against ground truth, as a training scores its test cases.

    evaluate.py --predictions masks/ --truth data/isic2018/masks --classes lesion --out scores/
    evaluate.py --predictions labels/ --truth labelsTs/ --classes RV Myo LV --out scores/

The files are PNG (black and white for one class, else class numbers), NIfTI, or .npz with ``label``; a prediction has
the name of its ground truth. OUT receives table.txt and results.json.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from medseg.atomic_write import write_json, write_text
from medseg.data.notes import told_once
from medseg.errors import DataError, RunError
from medseg.evaluation.existing import score_folder
from medseg.evaluation.report import DEFINITIONS, SCHEMA, table


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = parser().parse_args(arguments)
    try:
        with told_once():
            run(options)
    except (DataError, RunError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error}; choose another --out")


def run(options: argparse.Namespace) -> None:
    """Score, write and print."""
    present = [path for path in (options.out / name for name in ("results.json", "table.txt")) if path.exists()]
    if present and not options.overwrite:
        raise RunError(f"{present[0]} exists; pass --overwrite to replace it, or another --out")
    benchmark, scored = score_folder(options.predictions, options.truth, options.classes)
    results = {
        "schema": SCHEMA,
        "benchmark": benchmark.name,
        "predictions": str(options.predictions),
        "truth": str(options.truth),
        "definitions": DEFINITIONS,
        "test": scored,
    }
    text = table(benchmark, scored["summary"], benchmark.title)
    write_text(options.out / "table.txt", text + "\n")
    write_json(options.out / "results.json", results)
    print(text)
    print(f"Scores of every case in {options.out / 'results.json'}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--predictions", type=Path, required=True, help="folder of predicted labels")
    parser.add_argument("--truth", type=Path, required=True, help="folder of ground truth")
    parser.add_argument(
        "--classes", nargs="+", required=True, metavar="NAME", help="names of labels 1, 2, ..., without the background"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for table.txt and results.json")
    parser.add_argument("--overwrite", action="store_true", help="replace them where they exist")
    return parser


if __name__ == "__main__":
    main()
