"""``python -m gca``: what a bug report needs."""

import subprocess
import sys

import pytest
import torch

import gca
from gca import __main__ as command
from gca import ops
from gca.families import FAMILIES


def test_it_names_versions_devices_backends_and_families() -> None:
    text = command.report()
    lines = [line.split() for line in text.splitlines()]
    assert text.startswith(f"gca-attn {gca.__version__}, Python {sys.version.split()[0]}")
    assert ["torch", torch.__version__.partition("+")[0]] in lines
    assert [name for name in ops.backends() if [name] in [line[:1] for line in lines]] == list(ops.backends())
    assert all([name] in lines for name in FAMILIES)
    assert f"{torch.get_num_threads()} threads of torch" in text


def test_it_says_why_a_backend_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "backends", lambda: {"plain": None, "numba": "No module named 'numba'; pip install"})
    assert "numba      No module named 'numba'; pip install" in command.report()


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "PACKAGES", ("no-such-package",))
    assert "no-such-package              not installed" in command.report()


def test_it_runs_as_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "gca"], capture_output=True, text=True, check=True)
    assert "block classes that gca.inject knows" in done.stdout
