"""The kernels of Triton and numba run as Python, which has to be chosen before they are imported.

That is the only way to run Triton's without a GPU, and the one in which lines of code can be counted as tested.
Compiled they can be without one.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import coverage
import pytest
import torch

TRITON = {"TRITON_INTERPRET": "1"}
NUMBA = {"NUMBA_DISABLE_JIT": "1"}


def run_tests(environment: dict[str, str], which: str, *files: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", which]
    if coverage.Coverage.current():  # counted into the same result
        command[2:3] = ["coverage", "run", "--parallel-mode", "-m", "pytest"]
    command += ["-W", "ignore::RuntimeWarning:gca.ops.numba.kernels"]  # numpy warns of the x / 0 that the loops mean
    command += ["-W", "ignore::RuntimeWarning:triton.runtime.interpreter"]  # likewise
    command += ["-W", "ignore:Conversion of an array with ndim > 0:DeprecationWarning"]  # interpreter of triton 3.4
    command += [str(Path(__file__).with_name(file)) for file in files]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=os.environ | environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs triton")
@pytest.mark.parametrize(
    "which",
    [
        "triton and not strided and not transposed and (size0 and float64 or ties or asked_for or alone)",
        # The interpreter is slow. Other layouts reach the kernels as one of the two that are left.
        pytest.param(
            "triton and not strided and not transposed and not nan1 and not (nan_and_inf and size1)",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["some", "all"],
)
def test_triton(which: str) -> None:
    run_tests(TRITON, which, "test_ops.py")


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs triton")
def test_triton_on_volumes() -> None:
    which = "triton and (size0 and avg+max or ties) and (contiguous or channels_last_3d)"
    run_tests(TRITON, which, "test_volumes.py")


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs triton")
@pytest.mark.parametrize(("capability", "dtype"), [("80", "bfloat16"), ("90", "float32")])
def test_triton_compiles_for_gpus_that_are_not_here(capability: str, dtype: str, tmp_path: Path) -> None:
    """What the interpreter takes, the compiler may refuse."""
    script = str(Path(__file__).with_name("compile_triton.py"))
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, script, capability, dtype]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    sizes = [int(line.split()[1]) for line in done.stdout.splitlines()]
    assert len(sizes) == 8  # four kernels in two layouts
    assert min(sizes) > 1000


@pytest.mark.skipif(not importlib.util.find_spec("numba"), reason="needs numba")
def test_numba() -> None:
    which = "element or numba and not strided and not transposed and (size0 or ties or asked_for)"
    run_tests(NUMBA, which, "test_simd.py", "test_ops.py")


def test_triton_refuses_images_beyond_its_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = pytest.importorskip("gca.ops.triton")
    monkeypatch.setattr(kernels, "INTERPRETED", True)
    kind = torch.device("cpu"), torch.float32
    assert kernels.unsupported(*kind, torch.Size((64, 2**15, 2**8, 2**8 - 1))) is None
    assert "2147483648" in kernels.unsupported(*kind, torch.Size((1, 2**15, 2**8, 2**8)))


def test_triton_says_why_it_cannot_run_a_kernel() -> None:
    kernels = pytest.importorskip("gca.ops.triton")
    assert str(kernels._tried(torch.device("cpu"))).startswith("a first kernel failed on cpu with ")
