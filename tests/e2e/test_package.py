"""What is published: the source distribution, the wheel built from it, and that the wheel works by itself."""

import email
import email.message
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import gca

ROOT = Path(__file__).parents[2]
DISTRIBUTION = f"gca_attn-{gca.__version__}"

# What `pip install gca-attn` does not bring, and timm, which it does bring but `gca` does not import.
ABSENT = (
    "PIL",
    "h5py",
    "huggingface_hub",
    "lightning",
    "matplotlib",
    "nibabel",
    "numba",
    "pandas",
    "safetensors",
    "scipy",
    "segmentation_models_pytorch",
    "tensorboard",
    "timm",
    "torchvision",
    "tqdm",
)

# To `import` and to `importlib.util.find_spec` alike, the packages look as if they were not installed.
HIDE = f"""
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {ABSENT} else super().find_spec(name, path, target)

sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""

USE = """
import importlib.util
import torch
from torch import nn
import gca

assert importlib.util.find_spec("timm") is None
x = torch.randn(2, 32, 5, 7)
for layer in (gca.GroupedCoordinateAttention, gca.CoordinateAttention, gca.SE, gca.CBAM):
    y = layer(32)(x)
    y.sum().backward()
    assert y.shape == x.shape and not torch.equal(y, x), layer
try:
    gca.inject(nn.Conv2d(3, 3, 1))
except ValueError as error:
    print(error)
try:
    gca.GCAResUNet
except ImportError as error:
    print(error)
print(gca.ops.selected(x))
print(gca.__file__)
"""


def build(target: str, source: Path, out: Path) -> None:
    # The hook that `pip` and `python -m build` call, without an environment of its own: nothing is fetched.
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    pytest.importorskip("hatchling", reason="needs hatchling, which builds the package")
    out = tmp_path_factory.mktemp("sdist")
    build("sdist", ROOT, out)
    with tarfile.open(out / f"{DISTRIBUTION}.tar.gz") as archive:
        for member in archive:  # an archive of our own, but a name that leaves the folder would be a fault as well
            assert member.name.startswith(f"{DISTRIBUTION}/"), member.name
            assert ".." not in Path(member.name).parts, member.name
        archive.extractall(out, filter="data")
    return out / DISTRIBUTION


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked. It is built from the source distribution, as installers do."""
    out = tmp_path_factory.mktemp("wheel")
    build("wheel", sdist, out)
    unpacked = out / "unpacked"
    with zipfile.ZipFile(out / f"{DISTRIBUTION}-py3-none-any.whl") as archive:
        archive.extractall(unpacked)
    return unpacked


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> email.message.Message:
    return email.message_from_string((wheel / f"{DISTRIBUTION}.dist-info" / "METADATA").read_text(encoding="utf-8"))


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def source_files(*patterns: str) -> set[str]:
    """Files of the working tree without what Python leaves behind."""
    found = (path for pattern in patterns for path in ROOT.glob(pattern))
    return {path.relative_to(ROOT).as_posix() for path in found if path.is_file() and "__pycache__" not in path.parts}


def test_the_wheel_holds_the_library_and_nothing_else(wheel: Path) -> None:
    info = f"{DISTRIBUTION}.dist-info"
    library = source_files("gca/**/*.py", "gca/py.typed")
    assert {"gca/__init__.py", "gca/py.typed", "gca/slots/timm.py"} <= library
    assert files(wheel) == library | {
        f"{info}/METADATA",
        f"{info}/RECORD",
        f"{info}/WHEEL",
        f"{info}/licenses/LICENSE",
    }
    assert (wheel / info / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_source_distribution_holds_what_tests_and_examples_need(sdist: Path) -> None:
    held = files(sdist)
    wanted = source_files("gca/**/*.py", "examples/**/*.py", "tests/**/*.py", "benchmarks/*.py", "docs/*.md")
    wanted |= source_files("tests/**/*.json", "tests/**/*.txt", "docs/static/*")
    assert wanted <= held, sorted(wanted - held)
    at_root = {"LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "pyproject.toml"}
    assert at_root <= held
    folders = {name.partition("/")[0] for name in held if "/" in name}  # whatever else lies in the clone
    assert folders == {"gca", "examples", "tests", "benchmarks", "docs"}
    data = re.compile(r"\.(npz|npy|h5|nii|gz|ckpt|pt|pth|pt2|safetensors|onnx|pkl|pyc|so)$|(^|/)(runs|\.venv[^/]*)/")
    assert [name for name in held if data.search(name)] == []


def test_the_metadata_says_what_the_package_is(metadata: email.message.Message) -> None:
    assert metadata["Name"] == "gca-attn"
    assert metadata["Version"] == gca.__version__
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert set(metadata.get_all("Provides-Extra", [])) == {"cpu", "seg", "nnunet", "examples", "docs", "dev"}
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert sorted(re.split(r"[<>=!~;\s]", line)[0] for line in needed) == ["einops", "safetensors", "timm", "torch"]


def test_the_page_of_the_package_is_the_readme(metadata: email.message.Message) -> None:
    assert metadata["Description-Content-Type"] == "text/markdown"
    readme = (ROOT / "README.md").read_text(encoding="utf-8").strip()
    assert str(metadata.get_payload()).strip() == readme
    assert "\n" not in metadata["Summary"]
    assert len(metadata["Summary"]) <= 512  # the limit of the package index


def test_the_wheel_works_with_its_imports_alone(wheel: Path, tmp_path: Path) -> None:
    # -S leaves out the folder of installed packages with its .pth files, of which one may lead to a working tree.
    installed = [entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
    code = f"import sys; sys.path[:0] = {[str(wheel), *installed]}\n{HIDE}{USE}"
    command = [sys.executable, "-S", "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    nothing_known, needs_extra, implementation, place = done.stdout.splitlines()
    assert "no known residual block in Conv2d" in nothing_known
    assert needs_extra == 'gca.GCAResUNet needs segmentation-models-pytorch: pip install "gca-attn[seg]"'
    assert implementation == "torch"  # numba is not there
    assert Path(place) == wheel / "gca" / "__init__.py"
