"""Write docs/families.md from the tables in gca/families.py: ``python docs/make_families.py``."""

import json
from os.path import commonpath
from pathlib import Path

from gca.families import FAMILIES, PLAIN, REFUSED

PAGE = Path(__file__).with_name("families.md")
COUNTS = PAGE.parent.parent / "benchmarks" / "results" / "families_timm" / "counts.json"
LIBRARIES = {
    "timm": "timm",
    "torchvision": "torchvision",
    "segmentation_models_pytorch": "segmentation-models-pytorch",
    "monai": "MONAI",
    "transformers": "transformers",
    "dynamic_network_architectures": "nnU-Net (dynamic-network-architectures)",
    "timm_3d": "timm_3d",
}
USUAL = "the last norm"

HEAD = """\
# Supported families

`gca.inject` recognises residual blocks by the class whose `forward` runs, wherever they sit: in a classifier, in the
encoder of a segmentation network, in the backbone of a detector. The tables below, one for each library, name these
classes. Attention goes after the last norm and before the residual sum, or where an exception below a table says; its
parameters are called `<block>.<attribute>.<parameter>`. Where that attribute already holds attention, `on_existing`
decides. A class with an asterisk has no such attribute itself; while its blocks are injected they are instances of a
sub-class in `gca/slots` that adds one. No parameter of the network is renamed in either case.

Inverted residuals are insertion points where they have a shortcut; those without one are passed by. The squeeze and
excitation inside them comes before their projection: it is another insertion point, and stays as it is.

Of the {networks:,} networks of timm {timm}, {injected} are injected, {refused} are refused with a reason, and {unknown}
hold no known block. [What became of each](../benchmarks/results/families_timm/models.csv) is written by
`python benchmarks/families_walk.py`.

This page is made from the tables in `gca/families.py` by `python docs/make_families.py`.
"""

TABLE = """
## {library}

| networks | block class | in `{prefix}` | attribute |
|---|---|---|---|
"""

DECODERS = """
Blocks marked with two asterisks are injected on request only, that is, when their part is what is passed:
`gca.inject(network.decoder, "cbam")`. `gca.inject(network)` leaves them alone; `gca.injected`, `gca.summary` and
`gca.eject` see them wherever they are. With `decoder_attention_type="scse"` they already have an attention module.
"""

REFUSALS = """
## Refused

These look alike and are left alone: `inject` raises a `ValueError` that names the class and the reason. In networks
that mix them with blocks of the table above, such as tresnet, choose the others with `where=`.

| block class | in | why |
|---|---|---|
"""

PLAIN_NETWORKS = """
Networks of plain convolutions have no residual sum for attention to stand before. They are refused as well, with the
network to take instead:

| built of | in | instead |
|---|---|---|
"""

TAIL = """
Sub-classes of a supported block that override `forward` are unknown; sub-classes that do not are supported where the
class has its own slot, and refused where it has none. Layers are for images or volumes as the last convolution of
their block is.

A layer that starts as the identity (`identity_init=True`) stays so through the `init_weights` of timm's resnet and
resnetv2. HRNet's draws every convolution anew; afterwards, call `zero_init_last()` on every layer of
`gca.injected(model)`.
"""


def page() -> str:
    """The whole page."""
    of: dict[str, list[str]] = {library: [] for library in LIBRARIES}
    for name in FAMILIES:
        of[name.split(".")[0]].append(name)
    known = "".join(table(library, names) for library, names in of.items() if names)
    refused = REFUSALS + _rows(REFUSED) + PLAIN_NETWORKS + _rows(PLAIN)
    return HEAD.format(**json.loads(COUNTS.read_text())) + known + refused + TAIL


def _rows(reasons: dict[str, str]) -> str:
    """A line of a table for each class."""
    parts = ((*name.rpartition(".")[::2], reason) for name, reason in reasons.items())
    return "".join(f"| `{cls}` | `{module}` | {reason} |\n" for module, cls, reason in parts)


def table(library: str, names: list[str]) -> str:
    """The families of one library, and what its blocks have before attention where that is not the last norm."""
    prefix = commonpath([name.rpartition(".")[0].replace(".", "/") for name in names]).replace("/", ".")
    rows, others = "", dict[str, list[str]]()
    for name, family in ((name, FAMILIES[name]) for name in names):
        module, _, cls = name.rpartition(".")
        mark = r" \*\*" if family.on_request else r" \*" if family.slotted else ""
        below = module.removeprefix(prefix).removeprefix(".")
        rows += f"| {family.models} | `{cls}`{mark} | {f'`{below}`' if below else ''} | `{family.slot}` |\n"
        if family.position != USUAL:
            others.setdefault(family.position, []).append(f"`{cls}`")
    if others:
        rows += "\nExceptions:\n\n"
        rows += "".join(f"- {', '.join(dict.fromkeys(of))}: after {position}\n" for position, of in others.items())
    notes = DECODERS if any(FAMILIES[name].on_request for name in names) else ""
    return TABLE.format(library=LIBRARIES[library], prefix=prefix) + rows + notes


if __name__ == "__main__":
    PAGE.write_text(page())
