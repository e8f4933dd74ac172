"""The two things that can be wrong; the command lines print what they say, without a traceback."""

from collections.abc import Sequence


class DataError(ValueError):
    """Data is missing, damaged or not what it should be; the message names the file and the remedy."""


class RunError(ValueError):
    """What was asked does not fit the output folder, the network or the devices."""


def all_of(faults: Sequence[str]) -> DataError:
    """One error for several faults of the data: the first ten in words, the others counted."""
    others = len(faults) - 10
    lines = [*faults[:10], *([f"and {others} more"] if others > 0 else [])]
    return DataError("\n".join([*([f"{len(faults)} faults in the data:"] if len(faults) > 1 else []), *lines]))
