"""The public names, their signatures and the keys of ``state_dict`` are those of ``public_api.txt``.

``python tests/unit/test_public_api.py`` writes that file anew. What it promises is said in docs/stability.md.
"""

import difflib
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gca
import gca.maps
import gca.ops
from gca.inject import LAYERS, POLICIES

SNAPSHOT = Path(__file__).with_name("public_api.txt")
REMEDY = """
If this is meant:
1. python tests/unit/test_public_api.py     (writes tests/unit/public_api.txt anew; commit it)
2. Say it in CHANGELOG.md, under Added, Changed, Deprecated or Removed.
3. A name, argument or key that was ever released keeps working, with a FutureWarning that names its successor, for at
   least one minor version before it goes: docs/stability.md.
"""

# Each layer at fixed arguments, for its keys.
EXAMPLES: dict[str, Callable[[], nn.Module]] = {
    "gca.GroupedCoordinateAttention(32)": lambda: gca.GroupedCoordinateAttention(32),
    "gca.GroupedCoordinateAttention(32, share_groups=False)": lambda: gca.GroupedCoordinateAttention(
        32, share_groups=False
    ),
    "gca.GroupedCoordinateAttention(32, groups=4, reduction=4, pool='max', identity_init=True)": lambda: (
        gca.GroupedCoordinateAttention(32, groups=4, reduction=4, pool="max", identity_init=True)
    ),
    "gca.CoordinateAttention(32)": lambda: gca.CoordinateAttention(32),
    "gca.CoordinateAttention(32, reduction=2)": lambda: gca.CoordinateAttention(32, reduction=2),
    "gca.SE(32)": lambda: gca.SE(32),
    "gca.CBAM(32)": lambda: gca.CBAM(32),
    "gca.CBAM(32, reduction=4, kernel_size=3)": lambda: gca.CBAM(32, reduction=4, kernel_size=3),
}


def signature(function: Callable[..., Any]) -> str:
    """Names, kinds and defaults, which print alike in every Python; annotations do not, and mypy looks after them."""
    found = inspect.signature(function)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in found.parameters.values()]
    return str(found.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def own(cls: type) -> Iterator[type]:
    """The class and those of its parents that are ours."""
    return (parent for parent in cls.__mro__ if parent.__module__.partition(".")[0] == "gca")


def members(cls: type) -> dict[str, Any]:
    """The public methods and properties that are ours, by name, and ``__init__``."""
    found: dict[str, Any] = {}
    for parent in own(cls):
        for name, member in vars(parent).items():
            if name == "__init__" or not name.startswith("_"):
                found.setdefault(name, member)
    return {name: found[name] for name in sorted(found)}


def describe_class(name: str, cls: type) -> list[str]:
    # What `except` and `isinstance` of users may rely on: the nearest parent that is not ours.
    parent = next(c for c in cls.__mro__ if c not in own(cls))
    lines = [f"class {name}({parent.__name__})"]
    for key, member in members(cls).items():
        if isinstance(member, property):
            lines.append(f"    {key}: property")
        elif callable(member) or isinstance(member, classmethod | staticmethod):
            lines.append(f"    {key}{signature(getattr(cls, key))}")
    return lines


def describe_name(name: str, value: object) -> list[str]:
    if isinstance(value, type):
        return describe_class(name, value)
    if callable(value):
        return [f"def {name}{signature(value)}"]
    return [f"{name} = {value!r}"]


def keys(state: Mapping[str, torch.Tensor]) -> list[str]:
    return [f"    {key} {tuple(value.shape)}" for key, value in state.items()]


def describe_network() -> list[str]:
    """The keys of GCA-ResUNet are too many to list: a hash of all, and where its attention stands."""
    with torch.device("meta"):
        model = gca.GCAResUNet(9)
    lines = keys(model.state_dict())
    digest = hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]
    places = gca.injected(model)
    relative = {tuple(layer.state_dict()) for layer in places.values()}
    return [
        f"state_dict of gca.GCAResUNet(9): {len(lines)} keys, sha256 of keys and shapes {digest}",
        *(f"    {name}.*" for name in places),
        *(f"    *.{key}" for group in sorted(relative) for key in group),
    ]


def describe() -> str:
    """The whole snapshot."""
    parts = [["# Written by: python tests/unit/test_public_api.py"]]
    for module, names in ((gca, gca.__all__), (gca.ops, gca.ops.__all__), (gca.maps, gca.maps.__all__)):
        parts += [describe_name(f"{module.__name__}.{name}", getattr(module, name)) for name in sorted(names)]
    parts.append([f"layer of gca.inject: {', '.join(LAYERS)}", f"on_existing of gca.inject: {', '.join(POLICIES)}"])
    parts += [[f"state_dict of {call}", *keys(build().state_dict())] for call, build in EXAMPLES.items()]
    parts.append(describe_network())
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def difference(committed: str, found: str) -> str:
    """Empty where nothing changed; else what changed and how to declare it."""
    if committed == found:
        return ""
    lines = difflib.unified_diff(committed.splitlines(), found.splitlines(), "committed", "now", n=2, lineterm="")
    return "\n".join(["The public interface changed.", *lines, REMEDY])


def test_the_interface_is_the_one_that_was_committed() -> None:
    pytest.importorskip("segmentation_models_pytorch", reason='needs pip install "gca-attn[seg]"')
    if message := difference(SNAPSHOT.read_text(encoding="utf-8"), describe()):
        pytest.fail(message, pytrace=False)


def test_a_change_is_shown_with_the_way_to_declare_it() -> None:
    committed = SNAPSHOT.read_text(encoding="utf-8")
    message = difference(committed, committed.replace("groups=2, reduction=2", "groups=4, reduction=2"))
    assert "-    __init__(self, channels, groups=2, reduction=2" in message
    assert "+    __init__(self, channels, groups=4, reduction=2" in message
    for remedy in ("python tests/unit/test_public_api.py", "CHANGELOG.md", "docs/stability.md"):
        assert remedy in message


def test_names_kinds_and_defaults_count_and_annotations_do_not() -> None:
    def before(channels: int, *, pool: str = "avg") -> None: ...
    def annotated(channels: "float", *, pool: object = "avg") -> int: ...
    def positional(channels: int, pool: str = "avg") -> None: ...
    def renamed(width: int, *, pool: str = "avg") -> None: ...
    def other_default(channels: int, *, pool: str = "max") -> None: ...

    assert signature(before) == signature(annotated) == "(channels, *, pool='avg')"
    assert len({signature(f) for f in (before, positional, renamed, other_default)}) == 4


def test_every_key_of_a_layer_is_in_the_snapshot() -> None:
    """Keys that a layer has and shapes that it takes: a renamed submodule changes the description."""
    layer = gca.SE(32)
    assert "\n".join(keys(layer.state_dict())) in SNAPSHOT.read_text(encoding="utf-8")
    layer.add_module("renamed", nn.Linear(2, 3))
    assert "    renamed.weight (3, 2)" in keys(layer.state_dict())


if __name__ == "__main__":
    SNAPSHOT.write_text(describe(), encoding="utf-8")
    sys.stdout.write(f"wrote {SNAPSHOT}\n")
