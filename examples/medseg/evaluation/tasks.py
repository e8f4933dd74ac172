"""What a prediction is to read and to write: checked before any network is loaded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.data.contents import CONVERT_DICOM, beginning, kind_of
from medseg.data.folders import left_behind, names_of, walk
from medseg.data.notes import note
from medseg.errors import DataError, RunError
from medseg.evaluation.inputs import FORMATS, check_form, form_of


@dataclass(frozen=True)
class Task:
    """One file with what is to be made of it."""

    source: Path
    labels: Path
    overlay: Path | None = None
    probabilities: Path | None = None

    def targets(self) -> Iterator[Path]:
        """All that is written."""
        yield from (path for path in (self.labels, self.overlay, self.probabilities) if path is not None)


def probability_suffix(form: str) -> str:
    """The suffix of the probabilities of an input."""
    return ".nii.gz" if form.startswith(".nii") else ".npz"


def task_of_file(
    source: Path, output: Path, overlay: Path | None, probabilities: Path | None, intensity: str
) -> list[Task]:
    """The task for one file."""
    form = check_form(source, intensity)
    wanted = FORMATS[intensity][form]
    if not output.name.endswith(wanted):
        raise RunError(f"labels of a {form} file are written as {' or '.join(wanted)}; --output is {output}")
    if overlay is not None and overlay.suffix != ".png":
        raise RunError(f"an overlay is written as .png; --overlay is {overlay}")
    if probabilities is not None and not probabilities.name.endswith(suffix := probability_suffix(form)):
        raise RunError(f"probabilities of a {form} file are written as {suffix}; --probabilities is {probabilities}")
    return _checked([Task(source, output, overlay, probabilities)])


def tasks_of_folder(
    folder: Path, output: Path, overlay: Path | None, probabilities: Path | None, intensity: str
) -> list[Task]:
    """The tasks for all supported files below a folder, under the same names below the folders of the output."""
    for option, target in (("--output", output), ("--overlay", overlay), ("--probabilities", probabilities)):
        if target is not None and target.resolve().is_relative_to(folder.resolve()):
            raise RunError(f"{option} {target} lies in the folder of the input, whose files would mix; choose another")
        if target is not None and target.exists() and not target.is_dir():
            raise RunError(f"{option} {target} is a file; wanted a folder, since the input is one")
    tasks, others = [], []
    for source in walk(folder):
        form = form_of(source, intensity)
        if form is None:
            others.append(source)
            continue
        place = source.relative_to(folder).parent
        stem = source.name[: -len(form)] if source.name.lower().endswith(form) else source.stem
        stem = stem.removesuffix(".npy")
        tasks.append(
            Task(
                source,
                output / place / f"{stem}{FORMATS[intensity][form][0]}",
                None if overlay is None else overlay / place / f"{stem}.png",
                None if probabilities is None else probabilities / place / f"{stem}{probability_suffix(form)}",
            )
        )
    left = [path for path in folder.rglob("*") if left_behind(path) and path.is_file()]
    if not tasks:
        advice = "; " + CONVERT_DICOM if any(kind_of(beginning(path)) == "a DICOM file" for path in others) else ""
        raise DataError(f"{folder} holds no file that the network takes: {', '.join(FORMATS[intensity])}{advice}")
    if others or left:
        note("%s: passed over %s", folder, names_of([*others, *sorted(left)]), each=True)
    return _checked(tasks)


def _checked(tasks: Sequence[Task]) -> list[Task]:
    """Raise where two files would be written to one place, or one over its input."""
    sources: dict[Path, Path] = {task.source.resolve(): task.source for task in tasks}
    for task in tasks:
        for target in task.targets():
            if (other := sources.get(target.resolve())) is not None:
                raise RunError(
                    f"{target} would be written for {task.source} and is that of {other}; choose other names"
                )
            sources[target.resolve()] = task.source
    return list(tasks)
