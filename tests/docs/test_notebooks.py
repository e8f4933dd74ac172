"""The notebooks run, and print what is stored in them, decimal numbers apart."""

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))


def printed(cell: dict[str, Any]) -> str:
    return "".join("".join(output["text"]) for output in cell["outputs"] if output.get("name") == "stdout")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_prints_what_it_holds(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a change: python docs/make_notebooks.py. Training on another machine ends in other decimals."""
    plt = pytest.importorskip("matplotlib.pyplot", reason='needs pip install "gca-attn[examples]"')
    monkeypatch.setattr(plt, "show", lambda: plt.savefig(tmp_path / "figure.png"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with torch.random.fork_rng():
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] != "code":
                continue
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile("".join(cell["source"]), path.name, "exec"), names)
            assert re.sub(r"\d\.\d+", "#", output.getvalue()) == re.sub(r"\d\.\d+", "#", printed(cell))
    plt.close("all")
    drawn = "plt.show()" in path.read_text()
    assert (tmp_path / "figure.png").is_file() == drawn


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) == 2
