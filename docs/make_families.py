"""Write docs/families.md from the tables in gca/families.py: ``python docs/make_families.py``."""

import json
from itertools import groupby
from pathlib import Path

from gca.families import FAMILIES, REFUSED

PAGE = Path(__file__).with_name("families.md")
COUNTS = PAGE.parent.parent / "benchmarks" / "results" / "families_timm" / "counts.json"
LIBRARIES = {
    "timm": "timm",
    "torchvision": "torchvision",
    "segmentation_models_pytorch": "segmentation-models-pytorch",
    "monai": "MONAI",
    "transformers": "transformers",
    "dynamic_network_architectures": "nnU-Net (dynamic-network-architectures)",
}

HEAD = """\
# Supported families

`gca.inject` recognises residual blocks by the class whose `forward` runs, wherever they sit: in a classifier, in the
encoder of a segmentation network, in the backbone of a detector. Attention goes after what the table names and before
the residual sum, into the attribute in the third column, so that its parameters are called
`<block>.<attribute>.<parameter>`. Where that attribute already holds attention, `on_existing` decides. In blocks marked
with an asterisk the class itself has no place for attention; while they are injected they are instances of a sub-class
in `gca/slots` that adds one. No parameter of the network is renamed in either case.

Inverted residuals are insertion points where they have a shortcut; those without one are passed by. The squeeze and
excitation inside them stands before their projection: it is another place, and stays as it is.

Of the {networks:,} networks of timm {timm}, {injected} are injected, {refused} are refused with a reason, and {unknown}
hold no known block. [What became of each](../benchmarks/results/families_timm/models.csv) is written by
`python benchmarks/families_walk.py`.

This page is made from the tables in `gca/families.py` by `python docs/make_families.py`.
"""

TABLE = """
## {library}

| networks | block class | attribute | attention stands after |
|---|---|---|---|
"""

DECODERS = """
Blocks marked with two asterisks are injected on request only, that is, when their part is what is passed:
`gca.inject(network.decoder, "cbam")`. `gca.inject(network)` leaves them alone; `gca.injected`, `gca.summary` and
`gca.eject` see them wherever they are. `decoder_attention_type="scse"` occupies the place.
"""

REFUSALS = """
## Refused

These look alike and are left alone: `inject` raises a `ValueError` that names the class and the reason. In networks
that mix them with blocks of the table above, such as tresnet, choose the others with `where=`.

| block class | why |
|---|---|
"""

TAIL = """
Sub-classes of a supported block that override `forward` are unknown; sub-classes that do not are supported where the
class has a place of its own, and refused where it has none. Blocks with three-dimensional convolutions are refused: the
layers are for images.

A layer that starts as the identity (`identity_init=True`) stays so through the `init_weights` of timm's resnet and
resnetv2. HRNet's draws every convolution anew; afterwards, call `zero_init_last()` on every layer of
`gca.injected(model)`.
"""


def page() -> str:
    """The whole page."""
    known = "".join(
        table(library, list(group)) for library, group in groupby(FAMILIES, lambda name: name.split(".")[0])
    )
    refused = "".join(f"| `{name}` | {reason} |\n" for name, reason in REFUSED.items())
    return HEAD.format(**json.loads(COUNTS.read_text())) + known + REFUSALS + refused + TAIL


def table(library: str, names: list[str]) -> str:
    """The families of one library."""
    rows = ""
    for name, family in ((name, FAMILIES[name]) for name in names):
        mark = r" \*\*" if family.on_request else r" \*" if family.slotted else ""
        rows += f"| {family.models} | `{name}`{mark} | `{family.slot}` | {family.position} |\n"
    notes = DECODERS if any(FAMILIES[name].on_request for name in names) else ""
    return TABLE.format(library=LIBRARIES[library]) + rows + notes


if __name__ == "__main__":
    PAGE.write_text(page())
