"""What computed the numbers of a run."""

import platform
from importlib import metadata

import torch

import gca

PACKAGES = ("timm", "segmentation-models-pytorch", "lightning", "torchvision", "numpy", "scipy")


def environment(device: torch.device) -> dict[str, str | int]:
    """Versions, processor and threads, device."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "gca-attn": gca.__version__,  # of what was imported, installed or not
        **{package: metadata.version(package) for package in PACKAGES},
    }
