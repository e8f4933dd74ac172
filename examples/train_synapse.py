"""Train and evaluate GCA-ResUNet on the Synapse multi-organ set, or on synthetic phantoms of it.

Without ``--data`` a small synthetic abdomen is generated and everything runs on it in a few minutes on a CPU. With
``--data DIR`` the same runs on real data in the layout described in ``medseg/data/synapse.py``, with the paper's
settings. The paper's experiment: ``train_synapse.py --data DIR --cross-validate``.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medseg.command_line.experiment import main as run
from medseg.data.phantom import write_phantoms
from medseg.data.synapse import SYNAPSE

# Small enough for two CPU cores: fewer and smaller slices, which are not augmented, in small batches, since few steps
# have to suffice.
PHANTOMS = replace(
    SYNAPSE.settings, size=64, batch_size=3, epochs=4, lr=2.5e-4, min_lr=1e-5, validate_every=1, augment=False
)


def phantoms(folder: Path, seed: int) -> Path:
    """Ten synthetic patients for training and validation, four for test."""
    return write_phantoms(folder, train=10, test=4, seed=seed)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    run(SYNAPSE, str(__doc__), arguments, synthetic=(phantoms, PHANTOMS))


if __name__ == "__main__":
    main()
