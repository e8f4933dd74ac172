"""What is told about data and requests: errors, which end a command without a traceback, and notes, which do not.

Readers note with ``note("%s: 16-bit grey, scaled to 8 bits", path)`` what was done to a file that is not quite as
wanted. In a command, ``told_once`` prints the first note of each kind as it comes, and at the end of how many files it
was true.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


class DataError(ValueError):
    """Data is missing, damaged or not what it should be; the message names the file and the remedy."""


class RunError(ValueError):
    """What was asked does not fit the output folder, the network or the devices."""


def all_of(faults: Sequence[str]) -> DataError:
    """One error for several faults of the data: the first ten in words, the others counted."""
    others = len(faults) - 10
    lines = [*faults[:10], *([f"and {others} more"] if others > 0 else [])]
    return DataError("\n".join([*([f"{len(faults)} faults in the data:"] if len(faults) > 1 else []), *lines]))


LOGGER = logging.getLogger("medseg")


def note(message: str, *values: Any, each: bool = False) -> None:
    """Say something about a file, the first of the values; ``each``: of every one, as there are not many of them."""
    LOGGER.warning(message, *values, extra={"kind": message % values if each else message})


@contextmanager
def told_once() -> Iterator[None]:
    """Print the first note of every kind, and count the others."""
    handler = _Once()
    LOGGER.addHandler(handler)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        handler.count_others()


@contextmanager
def untold() -> Iterator[None]:
    """Say nothing: what is noted here will be noted once more."""
    handler = logging.NullHandler()
    LOGGER.addHandler(handler)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)


class _Once(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.kinds: dict[str, set[str]] = {}  # of which files each was said: some are read several times

    def emit(self, record: logging.LogRecord) -> None:
        kind = getattr(record, "kind", record.msg)
        if kind not in self.kinds:
            tqdm.write(f"Note: {record.getMessage()}", file=sys.stderr)  # does not tear a bar apart
        of = record.args[0] if isinstance(record.args, tuple) and record.args else ""
        self.kinds.setdefault(kind, set()).add(str(of))

    def count_others(self) -> None:
        for message, files in self.kinds.items():
            if len(files) > 1:
                what = message.removeprefix("%s: ").replace("%s", "...")
                print(f"Note: so it is of {len(files)} files: {what}", file=sys.stderr)
