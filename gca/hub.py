"""Teach the hub mixin of segmentation-models-pytorch to keep injected attention.

``save_pretrained`` of smp notes the arguments of the constructor, which say nothing of attention that came later, and
``from_pretrained`` drops weights that the constructor made no place for, without a word. Importing this module, as
``gca.inject`` does where smp is in use, changes that for smp's own architectures: the file of weights gets the
description that ``gca.save`` writes, and ``from_pretrained`` injects by it before it loads. In a process that has not
imported this module loading fails, since the encoder is saved under a name that smp does not know and that says what
to do.
"""

import json
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from segmentation_models_pytorch.base.hub_mixin import SMPHubMixin

from gca.adapters import KEY, description, load
from gca.inject import injected

MARK = " with attention, so first do 'from gca import hub'"  # after the name of the encoder
_builders: ContextVar[Any] = ContextVar("gca.hub.layer", default=None)  # layer= of from_pretrained, as of gca.load


def _save_pretrained(self: Any, save_directory: Path) -> None:
    # A constructor of one's own may build the attention from its own arguments, as that of GCAResUNet does: then its
    # encoder keeps its name, and what cannot be described is left to it.
    own = not type(self).__init__.__module__.startswith("segmentation_models_pytorch.")
    text = None
    if injected(self):
        try:
            text = description(self)  # first, so that nothing is written if it fails
        except TypeError:
            if not own:
                raise
    super(SMPHubMixin, self)._save_pretrained(save_directory)
    if text is None:
        return
    weights = Path(save_directory) / "model.safetensors"
    with safe_open(weights, "pt") as file:
        metadata = file.metadata() or {}
    save_file(load_file(weights), weights, {**metadata, KEY: text})
    if not own:
        config = {**self.config, "encoder_name": self.config["encoder_name"] + MARK}
        (Path(save_directory) / "config.json").write_text(json.dumps(config, sort_keys=True, indent=2))


def _from_pretrained(cls: Any, /, layer: Any = None, **options: Any) -> Any:
    if isinstance(options.get("encoder_name"), str):
        options["encoder_name"] = options["encoder_name"].removesuffix(MARK)
    before = _builders.set(layer)
    try:
        return super(SMPHubMixin, cls)._from_pretrained(**options)
    finally:
        _builders.reset(before)


def _load_as_safetensor(cls: Any, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
    with safe_open(model_file, "pt") as file:
        described = KEY in (file.metadata() or {})
    if described and not injected(model):
        load(model, model_file, _builders.get())
    return super(SMPHubMixin, cls)._load_as_safetensor(model, model_file, map_location, strict)


SMPHubMixin._save_pretrained = _save_pretrained
SMPHubMixin._from_pretrained = classmethod(_from_pretrained)
SMPHubMixin._load_as_safetensor = classmethod(_load_as_safetensor)
