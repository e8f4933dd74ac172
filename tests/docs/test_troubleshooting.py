"""Every message that docs/troubleshooting.md quotes is one of the code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
QUOTED = re.findall(r"^> `(.+)`$", PAGE, re.MULTILINE)


def texts(tree: ast.AST) -> Iterator[str]:
    """The strings of a file; what is filled in later stands as a gap."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


MESSAGES = [
    text
    for folder in ("gca", "examples")
    for path in (ROOT / folder).rglob("*.py")
    for text in texts(ast.parse(path.read_text()))
]


def is_said(quoted: str) -> bool:
    """Whether one message has all constant parts of a quotation, in their order and with gaps in the same places."""
    wanted = ".*".join(re.escape(part.strip()) for part in quoted.split("…"))
    return any(re.search(wanted, message) for message in MESSAGES)


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_message_is_one_of_the_code(quoted: str) -> None:
    assert len(re.sub(r"\W+", "", quoted)) >= 12
    assert is_said(quoted)


def test_others_are_not() -> None:
    assert len(QUOTED) > 25
    assert not is_said("… of … blocks already have no attention")
