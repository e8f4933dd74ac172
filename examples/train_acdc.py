"""Train and evaluate GCA-ResUNet on ACDC, in the layout described in ``medseg/data/acdc.py``.

The paper's experiment: ``train_acdc.py --data DIR --seed 10 11 12``.
"""

from collections.abc import Sequence

from medseg.command_line.experiment import main as run
from medseg.data.acdc import ACDC


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    run(ACDC, str(__doc__), arguments)


if __name__ == "__main__":
    main()
