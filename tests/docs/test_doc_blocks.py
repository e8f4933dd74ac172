"""Every code block of README, CONTRIBUTING and docs: Python is run, command lines are parsed by their script."""

import argparse
import contextlib
import io
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from unittest import mock

import pytest
import torch

import gca.families

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = ("sh", "bash", "console")
SILENT = ("text", "bibtex", "{toctree}", "{include}", "{eval-rst}")  # what a block before it prints; for Sphinx
FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    language: str
    line: int
    code: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [Block(m[1], text.count("\n", 0, m.start()) + 2, m[2]) for m in FENCE.finditer(text)]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def scripts(page: Path) -> list[list[str]]:
    """The words from the script on, of every command of a page that runs a Python script."""
    found = []
    for block in blocks(page):
        if block.language not in SHELL:
            continue
        for line in block.code.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            for word in words:
                if word.endswith(".py"):
                    rest = words[words.index(word) :]
                    ends = [position for position, other in enumerate(rest) if other in ("&&", "|", ";")]
                    found.append(rest[: min(ends, default=len(rest))])
    return found


WITH_PYTHON = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]
COMMANDS = sorted({tuple(words) for page in PAGES for words in scripts(page)})


@pytest.fixture
def _undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave no file, no module-wide setting and no row of a table behind, and download nothing."""
    monkeypatch.chdir(tmp_path)
    # README shows pretrained=True: the network is the same, only its weights would have to be fetched.
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *args, **kwargs: None)
    with mock.patch.dict(gca.families.FAMILIES):
        yield
    torch.use_deterministic_algorithms(False)
    torch.compiler.reset()


@pytest.mark.usefixtures("_undone")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch's own exporters
@pytest.mark.parametrize("page", WITH_PYTHON, ids=name)
def test_python_runs_and_prints_what_the_page_says(page: Path) -> None:
    """The blocks of a page share their names; a text block says what the Python block before it prints."""
    names: dict[str, Any] = {"__name__": f"blocks of {name(page)}"}
    printed = ""
    for block in blocks(page):
        where = f"{name(page)}:{block.line}"
        if block.language == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), names)
            printed = output.getvalue()
        elif block.language == "text":
            assert printed == block.code, where


def test_every_block_says_what_it_is() -> None:
    for page in PAGES:
        for block in blocks(page):
            assert block.language in ("python", *SHELL, *SILENT), f"{name(page)}:{block.line}"


class Parsed(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_command_lines_are_understood(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the script up to where it has parsed the command line, or refused it."""
    script = ROOT / words[0]
    assert script.is_file()
    if "ArgumentParser" not in script.read_text() and "medseg" not in script.read_text():
        assert len(words) == 1, f"{words[0]} takes no arguments"
        return
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(*args: Any, **kwargs: Any) -> NoReturn:
        raise Parsed(parse(*args, **kwargs))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", list(words))
    monkeypatch.syspath_prepend(str(script.parent))
    complaint = io.StringIO()
    with contextlib.redirect_stderr(complaint):
        try:
            runpy.run_path(str(script), run_name="__main__")
        except Parsed:
            return
        except SystemExit:
            pass
    pytest.fail(complaint.getvalue())
