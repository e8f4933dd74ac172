"""Write docs/families.md from the tables in gca/blocks.py: ``python docs/make_families.py``."""

from pathlib import Path

from gca.blocks import FAMILIES, REFUSED

PAGE = Path(__file__).with_name("families.md")

HEAD = """\
# Supported families

`gca.inject` recognises residual blocks by the class whose `forward` runs, wherever they sit: in a classifier, in the
encoder of a segmentation network, in the backbone of a detector. Attention goes after what the table names and before
the residual sum, into the attribute in the third column, so that its parameters are called
`<block>.<attribute>.<parameter>`. Where that attribute already holds attention, `on_existing` decides. In blocks marked
with an asterisk the class itself has no place for attention; while they are injected they are instances of a sub-class
in `gca/slots` that adds one. No parameter of the network is renamed in either case.

This page is made from the tables in `gca/blocks.py` by `python docs/make_families.py`.

| networks | block class | attribute | attention stands after |
|---|---|---|---|
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
        f"| {family.models} | `{name}`{' *' if family.slotted else ''} | `{family.slot}` | {family.position} |\n"
        for name, family in FAMILIES.items()
    )
    refused = "".join(f"| `{name}` | {reason} |\n" for name, reason in REFUSED.items())
    return HEAD + known + REFUSALS + refused + TAIL


if __name__ == "__main__":
    PAGE.write_text(page())
