"""No file is read as a pickle that could run code: the claims of docs/stability.md, checked on the source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("gca", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# Function -> the argument that makes it safe.
SAFE = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False), "numpy.load": ("allow_pickle", False)}
UNSAFE_CALLS = {"torch.hub.load", "pd.read_pickle", "pandas.read_pickle", "eval", "exec", "torch.jit.load"}


def faults(source: str) -> Iterator[str]:
    """What could run code from a file, as ``line: what``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            if ast.unparse(node) == "from pickle import UnpicklingError":  # what torch.load raises
                continue
            yield from (f"{node.lineno}: import {name}" for name in names if name.partition(".")[0] in UNSAFE_MODULES)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in UNSAFE_CALLS:
            yield f"{node.lineno}: {called}"
        if called in SAFE:
            argument, wanted = SAFE[called]
            given = {word.arg: word.value for word in node.keywords}
            value = given.get(argument)
            if not (isinstance(value, ast.Constant) and value.value is wanted):
                yield f"{node.lineno}: {called} without {argument}={wanted}"


def test_no_source_loads_what_could_run_code() -> None:
    assert len(SOURCES) > 50
    found = {str(path.relative_to(ROOT)): list(faults(path.read_text(encoding="utf-8"))) for path in SOURCES}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import pickle", "1: import pickle"),
        ("from joblib import load", "1: import joblib"),
        ("torch.load(path)", "1: torch.load without weights_only=True"),
        ("torch.load(path, weights_only=False)", "1: torch.load without weights_only=True"),
        ("np.load(path, allow_pickle=flag)", "1: np.load without allow_pickle=False"),
        ("eval(text)", "1: eval"),
    ],
)
def test_what_could_run_code_is_found(source: str, fault: str) -> None:
    assert list(faults(source)) == [fault]


@pytest.mark.parametrize(
    "source", ["torch.load(path, weights_only=True)", "np.load(path, allow_pickle=False)", "model.eval()"]
)
def test_what_is_safe_is_not(source: str) -> None:
    assert list(faults(source)) == []
