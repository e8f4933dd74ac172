"""The Triton kernels in Triton's interpreter, which has to be chosen before they are imported."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs triton")
def test_triton_in_its_interpreter() -> None:
    # The interpreter is slow. Other layouts reach the kernels as one of the two that are left.
    which = "triton and not strided and not transposed and not nan1 and not (nan_and_inf and size1)"
    command = [sys.executable, "-m", "pytest", "-q", "-k", which, str(Path(__file__).with_name("test_ops.py"))]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_refuses_images_beyond_its_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = pytest.importorskip("gca.ops.triton")
    monkeypatch.setattr(kernels, "INTERPRETED", True)
    one = torch.zeros(1)
    assert kernels.refuses(one.expand(64, 2**15, 2**8, 2**8 - 1)) is None
    assert "2147483648" in kernels.refuses(one.expand(1, 2**15, 2**8, 2**8))
