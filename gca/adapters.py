"""Save what was injected into a network to one file, and put it into another network from there."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gca.blocks import Block, find_blocks, keep_in_hub, unless_empty
from gca.inject import LAYERS, SOURCE, Model, build_layer
from gca.layers import GatedLayer
from gca.placement import STACKED, placed, put
from gca.selection import check_changeable, check_model, check_untampered

KEY, VERSION = "gca", 1  # the key in a file's metadata whose value is the JSON object {"version", "layers", "also"}

Build = Callable[..., nn.Module]
Entry = dict[str, Any]  # one injected layer
FIELDS: dict[str, type | tuple[type, ...]] = {
    "block": str,
    "name": str,
    "stacked": bool,
    "replaces": (str, type(None)),
    "channels": int,
    "layer": str,
    "options": dict,
}


def save(model: nn.Module, path: str | Path, *, also: Iterable[str] = ()) -> None:
    """Save the injected layers of a network: their weights, where each sits, and how it was built.

    One safetensors file, which holds tensors and text and nothing that could run. It is written beside ``path`` and
    moved there when it is complete.

    Args:
        model: A network into which :func:`gca.inject` placed attention.
        path: The file, e.g. ``"attention.safetensors"``.
        also: Qualified names of other modules to save whole, e.g. ``["fc"]`` for a classifier that was trained too.

    Raises:
        TypeError: If ``model`` is no module, or the options or the state of a layer of one's own can't be written.
        ValueError: If nothing was injected, a name in ``also`` is no module of the model, one layer serves several
            blocks, which a file of tensors does not tell, or a layer was changed since, by pruning for example.
        OSError: If the file cannot be written.

    Example:
        >>> gca.save(model, "attention.safetensors", also=["fc"])
        >>> gca.load(timm.create_model("resnet50", pretrained=True), "attention.safetensors")
    """
    from safetensors.torch import save_file

    names = [also] if isinstance(also, str) else list(also)
    text = description(model, names)
    state = model.state_dict()
    tensors: dict[str, Tensor] = {}
    for name in [*names, *(entry["name"] for entry in json.loads(text)["layers"])]:
        _module(model, name)
        for key, value in _below(state, name).items():
            if not isinstance(value, Tensor):
                raise TypeError(f"only tensors can be saved, but {name}.{key} is a {type(value).__name__}")
            tensors[f"{name}.{key}"] = value.detach().clone(memory_format=torch.contiguous_format)
    part = Path(f"{path}.part")
    if not part.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {part.parent}")
    try:
        save_file(tensors, part, {"format": "pt", KEY: text})
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load(model: Model, path: str | Path, layer: Build | Mapping[str, Build] | None = None) -> Model:
    """Inject into a network what :func:`save` wrote, with its weights.

    The network is checked first, and everything is built and loaded before anything is assigned: after an error it is
    untouched. Weights are loaded strictly. Layers take the device, dtype and mode of their block, as in ``inject``.

    Args:
        model: A network with the same blocks as the one that was saved, and no injected attention yet.
        path: The file.
        layer: What builds those layers that are not the library's own: the callable that ``inject`` was given, or
            callables by the names that the file has for them, e.g. ``{"__main__.Scale": Scale}``.

    Returns:
        ``model``.

    Raises:
        TypeError: If ``model`` is no module, or is wrapped, compiled, scripted or traced.
        ValueError: If the file was not written by :func:`save` or does not fit: the network lacks a block, has
            attention there already or other channels, or is on the meta device, a tensor is missing, unexpected or of
            another shape, or ``layer`` does not say what builds a layer of one's own.

    Example:
        >>> model = timm.create_model("resnet50", pretrained=True)
        >>> gca.load(model, "attention.safetensors")
    """
    check_changeable(model)
    content, tensors = read(path)
    known = {block.name: block for block in find_blocks(model) if block.family}
    blocks: list[Block] = []
    layers: list[nn.Module] = []
    for entry in content["layers"]:
        block = _block_for(entry, known, model)
        if entry["stacked"] and block.occupant is None and block not in blocks:
            raise ValueError(
                f"the file stacks {entry['name']} on the attention that its network had, and block {block.name!r} has "
                "none; load into the network that the file was made from"
            )
        if block.is_meta:
            raise ValueError(
                f"block {block.name!r} is on the meta device, where weights have no values; give the network memory "
                "first, by to_empty(device=...) and its own weights"
            )
        build, options = _builder(entry, layer)
        new = build_layer(build, block, options)
        if any(new is other for other in layers):
            raise ValueError(f"layer returned the same module for two blocks, the second is {block.name!r}")
        try:
            new.load_state_dict(_of_layer(tensors, entry["name"]))
        except RuntimeError as error:
            raise ValueError(f"the weights of {entry['name']} do not fit: {error}") from error
        blocks.append(block)
        layers.append(new)
    check_untampered(blocks)
    coming = _coming(model, blocks, content["layers"])
    for name in content["also"]:
        _check_fits(model, name, tensors, coming)
    with torch.inference_mode(False):
        for entry, block, new in zip(content["layers"], blocks, layers, strict=True):
            put(block, new, stacking=entry["stacked"])
        for name in content["also"]:
            _module(model, name).load_state_dict(_below(tensors, name))
    keep_in_hub()
    return model


def description(model: nn.Module, also: Iterable[str] = ()) -> str:
    """Where each injected layer sits and how it was built, as it stands in a file's metadata."""
    check_model(model)
    entries: list[Entry] = []
    owners: dict[int, str] = {}
    for block in find_blocks(model):
        for name, layer in placed(block) if block.family else ():
            if id(layer) in owners:
                raise ValueError(f"{name} is the same module as {owners[id(layer)]}, which a file does not tell")
            owners[id(layer)] = name
            kind, options = _how_built(name, layer)
            before = unless_empty(block.before.occupant) if block.before else None
            entries.append(
                {
                    "block": block.name,
                    "name": name,
                    "stacked": name != block.layer_name,
                    "replaces": None if before is None else type(before).__name__,
                    "channels": block.channels,
                    "layer": kind,
                    "options": options,
                }
            )
    if not entries:
        raise ValueError(f"nothing to save: gca.inject has placed no attention in this {type(model).__name__}")
    return json.dumps({"version": VERSION, "layers": entries, "also": list(also)})


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description in a file and its tensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(KEY)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # it is no dict
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error
    if text is None:
        raise ValueError(f"{path} describes no attention; wanted a file that gca.save wrote")
    try:
        content = json.loads(text)
        layers, also, version = content["layers"], content["also"], content["version"]
        complete = isinstance(also, list) and all(isinstance(name, str) for name in also)
        complete &= bool(layers) and len({entry["name"] for entry in layers}) == len(layers)
        complete &= all(isinstance(entry[field], kind) for entry in layers for field, kind in FIELDS.items())
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        complete, version = False, VERSION
    if version != VERSION:
        raise ValueError(f"{path} has version {version!r} of the format, wanted {VERSION}; update gca-attn")
    if not complete:
        raise ValueError(f"the description in {path} is damaged; save it again with gca.save")
    return content, tensors


def _how_built(name: str, layer: nn.Module) -> tuple[str, dict[str, Any]]:
    for kind, cls in LAYERS.items():
        if type(layer) is cls:
            assert isinstance(layer, GatedLayer)
            with torch.device("meta"):
                built = cls(**layer.options()).state_dict().keys()
            if changed := sorted(built ^ _of_layer(layer.state_dict(), name="").keys()):
                raise ValueError(
                    f"{name} is no {cls.__name__} as it was built, it differs in {', '.join(changed[:4])}, so it could "
                    "not be loaded again; first undo what changed it, e.g. prune.remove, "
                    "parametrize.remove_parametrizations, or merging adapters"
                )
            own = {key: value for key, value in layer.options().items() if key not in ("channels", "spatial_dims")}
            return kind, own  # those two are the block's, so that GCA and SE load into a network of the other dimension
    source, options = getattr(layer, SOURCE, (None, None))
    if source is None or options is None:
        wanted = "gca.inject did not build it" if source is None else "its options are no JSON"
        raise TypeError(f"cannot say how {name}, a {type(layer).__name__}, is built again: {wanted}; use state_dict()")
    return source, json.loads(options)


def _block_for(entry: Entry, known: dict[str, Block], model: nn.Module) -> Block:
    block = known.get(entry["block"])
    if block is None or not entry["name"].startswith(block.layer_name):
        raise ValueError(
            f"the file has attention at {entry['name']!r}, and this {type(model).__name__} no block for it; blocks "
            f"with a place for attention: {', '.join(list(known)[:4]) or 'none'}{', ...' if len(known) > 4 else ''}"
        )
    channels, occupant = block.channels, block.occupant
    if channels != entry["channels"]:
        raise ValueError(f"block {block.name!r} has {channels} channels, the file's has {entry['channels']}")
    if any(placed(block)):
        raise ValueError(f"block {block.name!r} already has attention of gca.inject; call gca.eject first")
    found = None if occupant is None else type(occupant).__name__
    if not entry["stacked"] and found != entry["replaces"]:
        raise ValueError(
            f"where the file's network had {entry['replaces'] or 'no attention'} before, block {block.name!r} has "
            f"{found or 'none'}; load into the network that the file was made from"
        )
    return block


def _builder(entry: Entry, layer: Build | Mapping[str, Build] | None) -> tuple[Build, dict[str, Any]]:
    kind = entry["layer"]
    if kind in LAYERS:
        return LAYERS[kind], entry["options"]
    found = layer.get(kind) if isinstance(layer, Mapping) else layer
    if found is None:
        raise ValueError(
            f"{entry['name']} was built by {kind}, which is no layer of this library; pass what builds it: layer=..."
        )
    return found, entry["options"]


def _coming(model: nn.Module, blocks: list[Block], entries: list[Entry]) -> tuple[str, ...]:
    """What the keys of the layers to come begin with, by every name of their block: a decoder may hold the encoder."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return tuple(
        f"{name}{entry['name'].removeprefix(block.name)}.".lstrip(".")
        for block, entry in zip(blocks, entries, strict=True)
        for name in names[block.module]
    )


def _check_fits(model: nn.Module, name: str, tensors: dict[str, Tensor], coming: tuple[str, ...]) -> None:
    """Raise unless a file has a module of a network whole, apart from the attention that is still to come."""
    theirs = {key: x for key, x in _below(tensors, name).items() if not f"{name}.{key}".startswith(coming)}
    ours = _module(model, name).state_dict()
    differing = sorted(theirs.keys() ^ ours.keys())
    for key in theirs.keys() & ours.keys():
        if theirs[key].shape != ours[key].shape or (key.endswith("_extra_state") and (theirs[key] != ours[key]).any()):
            differing.append(f"{key} ({tuple(theirs[key].shape)} in the file, here {tuple(ours[key].shape)})")
    if differing:
        raise ValueError(f"the file's {name!r} is not that of this network; they differ in {', '.join(differing[:4])}")


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        if name:
            return model.get_submodule(name)
    except AttributeError:
        pass
    parts = ", ".join(key for key, _ in model.named_children())
    raise ValueError(f"this {type(model).__name__} has no module {name!r}; its parts are {parts}")


def _below(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    if not name:
        return dict(state)
    return {key[len(name) + 1 :]: value for key, value in state.items() if key.startswith(f"{name}.")}


def _of_layer(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Those of a layer alone, without those of what is stacked on it."""
    return {key: x for key, x in _below(tensors, name).items() if not key.startswith(f"{STACKED}.")}
