"""Train and evaluate GCA-ResUNet on ISIC 2017 or 2018, as released or in the layout of ``medseg/data/isic.py``.

The paper's experiments: ``train_isic.py --year 2018 --data DIR --seed 10 11 12``, and the same with 2017.
"""

import argparse
from collections.abc import Sequence

from medseg.command_line.experiment import main as run
from medseg.data.isic import RELEASED, isic


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--year", type=int, choices=RELEASED, default=2018)
    options, rest = parser.parse_known_args(arguments)
    description = f"{__doc__}\n--year {{2017,2018}} (default: 2018) comes with the options below."
    run(isic(options.year), description, rest, script_options=("--year", str(options.year)))


if __name__ == "__main__":
    main()
