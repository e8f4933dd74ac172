"""The attention modules of timm that the benchmarks measure beside GCA."""

import sys

import timm
from timm.layers.cbam import CbamModule
from timm.layers.squeeze_excite import SEModule
from torch import nn


def timm_attention() -> dict[str, type[nn.Module]]:
    """Name -> class; older releases of timm lack coordinate attention, which is said and left out."""
    found: dict[str, type[nn.Module]] = {"timm SE": SEModule, "timm CBAM": CbamModule}
    try:
        from timm.layers.coord_attn import CoordAttn
    except ImportError:
        print(
            f"timm CoordAttn is not measured: timm {timm.__version__} has none; pip install 'timm>=1.0.23'",
            file=sys.stderr,
        )
    else:
        found["timm CoordAttn"] = CoordAttn
    return found
