"""One word for one thing: the glossary of CONTRIBUTING.md, held in docs, docstrings, comments and messages."""

import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
SOURCES = [path for folder in ("gca", "benchmarks", "docs", "examples") for path in (ROOT / folder).rglob("*.py")]
TABLE = re.compile(r"^\| say \| not \|\n\|---\|---\|\n((?:\|.*\n)+)", re.MULTILINE)


def rules() -> dict[str, str]:
    """Each phrase that is not used -> what is said in its place."""
    rows = TABLE.search((ROOT / "CONTRIBUTING.md").read_text())
    assert rows
    table = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1].splitlines()]
    return {phrase.strip(): say for say, phrases in table for phrase in phrases.split(",")}


def words_of(path: Path) -> Iterator[tuple[int, str]]:
    """What a reader reads, with its line: prose of a page or notebook, strings and comments of a source file."""
    if path.suffix == ".md":
        yield 1, TABLE.sub(lambda found: "\n" * found[0].count("\n"), path.read_text())
    elif path.suffix == ".ipynb":
        for cell in json.loads(path.read_text())["cells"]:
            yield 1, "".join(cell["source"])
    else:
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            if token.type == tokenize.COMMENT or tokenize.tok_name[token.type] in ("STRING", "FSTRING_MIDDLE"):
                yield token.start[0], token.string


def faults(path: Path, text: str, first: int = 1) -> Iterator[str]:
    for phrase, say in rules().items():
        pattern = r"\b" + r"[\s#]+".join(map(re.escape, phrase.split())) + r"\b"
        for found in re.finditer(pattern, text, re.IGNORECASE):
            line = first + text.count("\n", 0, found.start())
            yield f"{path.relative_to(ROOT)}:{line}: {found[0]!r}; say: {say}"


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS, *SOURCES], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_words_are_those_of_the_glossary(path: Path) -> None:
    assert not [fault for first, text in words_of(path) for fault in faults(path, text, first)]


def test_a_word_that_is_not_used_is_found() -> None:
    assert list(faults(ROOT / "a.md", "two\nDescriptors, turned\n  around")) == [
        "a.md:2: 'turned\\n  around'; say: transposed",
        "a.md:2: 'Descriptors'; say: pooled features, rows and columns",
    ]
