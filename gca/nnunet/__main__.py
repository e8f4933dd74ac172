"""``python -m gca.nnunet``: where nnU-Net finds the trainers, and attention for checkpoints that have none.

export nnUNet_extTrainer=$(python -m gca.nnunet)
python -m gca.nnunet graft checkpoint_final.pth grafted.pth --trainer nnUNetTrainerGCA
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gca import nnunet

PLUGIN = Path(__file__).with_name("plugin")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the folder for ``nnUNet_extTrainer``, or graft."""
    parser = argparse.ArgumentParser("python -m gca.nnunet", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command")
    command = commands.add_parser("graft", help="put attention, as the identity, into a trained checkpoint")
    command.add_argument("checkpoint", type=Path, help="of a training without attention, on residual encoder plans")
    command.add_argument("out", type=Path, help="the new checkpoint")
    command.add_argument("--trainer", default="nnUNetTrainerGCA", help="that goes on with it (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        nnunet.require_nnunet()
        if options.command is None:
            print(PLUGIN)
        else:
            print(nnunet.graft(options.checkpoint, options.out, options.trainer))
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
