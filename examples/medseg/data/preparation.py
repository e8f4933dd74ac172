"""Prepare a release case by case: what is finished stays finished, and half-written files never get their names.

A folder that is prepared holds, besides the layout itself, ``cases.jsonl``, which notes every finished case in a line,
and, once all are, ``prepared.json`` with counts, spacings, sources and versions. The lists that name the cases to a
training are removed before anything changes and written last, so no training starts on half a data set.
"""

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from medseg.errors import DataError, all_of
from medseg.files import Spacing, write_json, write_text, writing

LOG, SUMMARY, SCHEMA = "cases.jsonl", "prepared.json", 1


@dataclass(frozen=True)
class Record:
    """A finished case.

    Args:
        case: Name.
        listed_in: The list that names it to the training, relative to the output folder.
        names: What the list calls it: one name, or one of every slice.
        files: All that was written, relative to the output folder.
        shape: Of the image: slices, rows, columns.
        spacing: Millimetres along z, y and x; ``None`` for RGB images.
        sources: Names and bytes of the files that it was made of.
    """

    case: str
    listed_in: str
    names: Sequence[str]
    files: Sequence[str]
    shape: Sequence[int]
    spacing: Spacing | None = None
    sources: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Job:
    """A case to prepare: in which list, from which files, and what writes it below an output folder."""

    case: str
    listed_in: str
    sources: Sequence[Path]
    write: Callable[[Path], Record]


@dataclass(frozen=True)
class Release:
    """What was found in the source folder.

    Args:
        benchmark: Its name.
        split: What a result computed on the lists should say about them.
        options: Whatever else decides the outcome.
        folders: What the layout consists of.
        lists: The lists, each of which has to name something.
        jobs: The cases.
        warnings: What the user should know.
        train: Command that trains on it, without ``--data``.
    """

    benchmark: str
    split: str
    options: Mapping[str, int]
    folders: Sequence[str]
    lists: Sequence[str]
    jobs: Sequence[Job]
    warnings: Sequence[str]
    train: str


def prepare(release: Release, out: Path, *, overwrite: bool, workers: int) -> dict[str, Any]:
    """Write every case that is not finished, then the lists.

    Returns:
        The content of ``prepared.json``.

    Raises:
        DataError: If files of the source are not what they should be, all of which are named at the end, or the output
            folder holds something else.
        OSError: If the output cannot be written. What was finished before stays, whatever is raised.
    """
    if empty := [name for name in release.lists if name not in {job.listed_in for job in release.jobs}]:
        raise DataError(f"the source has no case for {' and '.join(empty)}; put more of the release into it")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    records = {} if overwrite else _finished(release, out)
    todo = [job for job in release.jobs if job.case not in records]
    if todo:
        for name in (*release.lists, SUMMARY):
            (out / name).unlink(missing_ok=True)
    header = {"benchmark": release.benchmark, "options": dict(release.options)}
    write_text(out / LOG, "".join(map(_line, (header, *map(asdict, records.values())))))
    pool = ThreadPoolExecutor(workers)
    faults: list[str] = []
    try:
        written = pool.map(partial(_prepared, out), todo)
        for record in tqdm(written, desc="Preparing", total=len(release.jobs), initial=len(records), disable=None):
            if isinstance(record, DataError):
                faults.append(str(record))
                continue
            with writing(out / LOG), (out / LOG).open("a", encoding="utf-8") as log:
                log.write(_line(asdict(record)))
            records[record.case] = record
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C, those not begun are not begun
    if faults:
        raise all_of(faults)
    ordered = [records[job.case] for job in release.jobs]
    for listed_in in release.lists:
        names = [name for record in ordered if record.listed_in == listed_in for name in record.names]
        write_text(out / listed_in, "\n".join(names) + "\n")
    summary = {**_summary(release, ordered), "cases": [asdict(record) for record in ordered]}
    with writing(out / SUMMARY):
        write_json(out / SUMMARY, summary)
    return summary


def gathered(job: Callable[..., Job], arguments: Sequence[tuple[Any, ...]]) -> list[Job]:
    """The jobs of all arguments; what is wrong with any of their files is one error.

    Raises:
        DataError: That names the first faults and counts the others.
    """
    jobs, faults = [], []
    for these in arguments:
        try:
            jobs.append(job(*these))
        except DataError as error:
            faults.append(str(error))
    if faults:
        raise all_of(list(dict.fromkeys(faults)))
    return jobs


def _prepared(out: Path, job: Job) -> Record | DataError:
    try:
        return replace(job.write(out), sources=_sizes(job))
    except DataError as error:
        return error


def _line(content: Mapping[str, Any]) -> str:
    return json.dumps(content) + "\n"


def _sizes(job: Job) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in job.sources}


def _finished(release: Release, out: Path) -> dict[str, Record]:
    """The cases that an earlier call with the same options prepared from the same files, and that are still there."""
    remedy = "give another --out, or --overwrite to replace it"
    if not (out / LOG).is_file():
        if held := [name for name in release.folders if (out / name).exists()]:
            raise DataError(f"{out} holds {', '.join(held)}, which this command did not write; {remedy}")
        return {}
    first, *lines = (out / LOG).read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    wanted = {"benchmark": release.benchmark, "options": dict(release.options)}
    if (before := _parsed(first)) != wanted:
        raise DataError(f"{out / LOG} speaks of {before}, asked for was {wanted}; {remedy}")
    jobs = {job.case: job for job in release.jobs}
    records = {}
    for line in map(_parsed, lines):
        try:
            record = Record(**line)
        except TypeError:  # the last line of a call that was killed while it wrote it: the case is prepared again
            continue
        job = jobs.get(record.case)
        same = job is not None and (record.listed_in, record.sources) == (job.listed_in, _sizes(job))
        if same and all((out / name).is_file() for name in record.files):
            records[record.case] = record
    return records


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _summary(release: Release, records: Sequence[Record]) -> dict[str, Any]:
    spacings = np.array([record.spacing for record in records if record.spacing is not None]).reshape(-1, 3)
    return {
        "schema": SCHEMA,
        "benchmark": release.benchmark,
        "split": release.split,
        "options": dict(release.options),
        "lists": {
            name: {
                "cases": sum(record.listed_in == name for record in records),
                "slices": sum(record.shape[0] for record in records if record.listed_in == name),
            }
            for name in release.lists
        },
        "spacing_mm": {
            axis: [float(lengths.min()), float(lengths.max())]
            for axis, lengths in zip("zyx", spacings.T, strict=True)
            if len(lengths)
        },
        "warnings": list(release.warnings),
        "versions": {
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in ("numpy", "nibabel", "h5py", "pillow")},
        },
    }
