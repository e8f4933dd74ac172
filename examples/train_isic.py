"""Train and evaluate GCA-ResUNet on ISIC 2017 or 2018, as released or in the layout of ``medseg/data/isic.py``.

The paper's experiments: ``train_isic.py --year 2018 --data DIR --seed 10 11 12``, and the same with 2017.
"""

import argparse
from collections.abc import Sequence

from medseg.command_line.experiment import main as run
from medseg.command_line.experiment import script_options
from medseg.data.isic import RELEASED, isic


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--year", type=int, choices=RELEASED, default=2018, help="of the challenge (default: 2018)")
    options = script_options(own, arguments)
    run(isic(options.year), str(__doc__), arguments, script=(own, options.words))


if __name__ == "__main__":
    main()
