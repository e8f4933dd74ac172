"""Train and evaluate GCA-ResUNet on images and masks of one's own: ``images/`` and ``masks/`` in a folder.

    train_folder.py --data DIR --classes lesion
    train_folder.py --data DIR --classes disc cup --mapping 0=background 100=disc 200=cup --patient '^(P[0-9]+)_'

Images are 2-D, RGB or grey; ``medseg/data/images_and_masks.py`` describes the layout. Scores, tables, figures and the
network are those of the other training scripts, and predict.py takes the network that is left.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from medseg.command_line.experiment import main as run
from medseg.command_line.experiment import script_options
from medseg.command_line.options import fraction
from medseg.data.images_and_masks import Folder, folder_benchmark, mapping_of
from medseg.errors import RunError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    own = _parser()
    options = script_options(own, arguments)
    if options.classes is None and not options.help:
        own.error("the following arguments are required: --classes")
    classes = tuple(options.classes or ("lesion",))
    try:
        data = Folder(
            classes, mapping_of(options.mapping, classes), _pattern(options.patient), options.test, options.splits
        )
    except RunError as error:
        own.error(str(error))
    name = options.name or re.sub(r"[^\w.-]", "_", options.data.resolve().name if options.data else "folder")
    words = options.words if options.name else [*options.words, f"--name={name}"]
    run(folder_benchmark(name, data), str(__doc__), arguments, script=(own, words))


def _parser() -> argparse.ArgumentParser:
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    data = own.add_argument_group("data")
    data.add_argument("--classes", nargs="+", metavar="NAME", help="names of the classes, without the background")
    data.add_argument(
        "--mapping",
        nargs="+",
        metavar="VALUE=CLASS",
        help="what the values in the masks stand for (default: the numbers of the classes, 0 for the background, or 0 "
        "and 255 for one class); several values may be one class",
    )
    data.add_argument(
        "--patient",
        metavar="PATTERN",
        help="regular expression: whose an image is by its name, in the first group or as a whole; a patient is in one "
        "part of the split only (default: every image is of another)",
    )
    data.add_argument("--test", type=fraction, default=0.2, help="share of the patients for test (default: 0.2)")
    data.add_argument(
        "--splits",
        type=Path,
        metavar="DIR",
        help="folder with train.txt, val.txt, test.txt (default: splits/ in --data)",
    )
    data.add_argument("--name", help="of the data set, in tables and folders (default: the name of --data)")
    return own


def _pattern(text: str | None) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise RunError(f"--patient {text} is no regular expression: {error}") from error


if __name__ == "__main__":
    main()
