"""``python -m gca``: what a bug report needs to say about this machine."""

import os
import platform
from importlib import metadata

import torch

import gca
from gca import ops
from gca.families import FAMILIES

PACKAGES = (
    "torch", "timm", "torchvision", "segmentation-models-pytorch", "monai", "transformers", "nnunetv2", "einops",
    "numba", "triton", "safetensors",
)  # fmt: skip


def report() -> str:
    """Versions, devices, backends and known block classes, a line each."""
    lines = [f"gca-attn {gca.__version__}, Python {platform.python_version()}, {platform.platform()}", "", "packages"]
    lines += [f"  {name:28} {_version(name)}" for name in PACKAGES]
    threads = f"{torch.get_num_threads()} threads of torch on {os.cpu_count()} cores"
    lines += ["", "devices", f"  CPU  {platform.processor() or platform.machine()}, {_vectors()}, {threads}"]
    lines += [f"  GPU  {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())]
    lines += ["", "backends of gca.ops"]
    lines += [f"  {name:10} {'available' if why is None else why}" for name, why in ops.backends().items()]
    lines += ["", "block classes that gca.inject knows"]
    lines += [f"  {name}" for name in sorted(FAMILIES)]
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _vectors() -> str:
    return f"{torch.backends.cpu.get_cpu_capability()} vectors"


if __name__ == "__main__":
    print(report())
