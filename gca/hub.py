"""Teach the hub mixin of segmentation-models-pytorch to keep injected attention.

``save_pretrained`` of smp notes the arguments of the constructor, which say nothing of attention that came later, and
``from_pretrained`` drops weights that the constructor made no place for, without a word. Importing this module, as
``gca.inject`` does where smp is in use, changes that for smp's own architectures: the file of weights gets the
description that ``gca.save`` writes, and ``from_pretrained`` injects by it before it loads. In a process that has not
imported this module loading fails, since the encoder is saved under a name that smp does not know and that says what
to do.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from segmentation_models_pytorch.base.hub_mixin import SMPHubMixin

from gca.adapters import KEY, description, load
from gca.inject import injected

MARK = " with attention, so first do 'from gca import hub'"  # after the name of the encoder


def _save_pretrained(self: Any, save_directory: Path) -> None:
    super(SMPHubMixin, self)._save_pretrained(save_directory)
    # A sub-class of one's own builds its attention from its own arguments, as GCAResUNet does.
    if not type(self).__module__.startswith("segmentation_models_pytorch.") or not injected(self):
        return
    weights = Path(save_directory) / "model.safetensors"
    with safe_open(weights, "pt") as file:
        metadata = file.metadata() or {}
    save_file(load_file(weights), weights, {**metadata, KEY: description(self)})
    config = {**self.config, "encoder_name": self.config["encoder_name"] + MARK}
    (Path(save_directory) / "config.json").write_text(json.dumps(config, sort_keys=True, indent=2))


def _from_pretrained(cls: Any, /, **options: Any) -> Any:
    if isinstance(options.get("encoder_name"), str):
        options["encoder_name"] = options["encoder_name"].removesuffix(MARK)
    return super(SMPHubMixin, cls)._from_pretrained(**options)


def _load_as_safetensor(cls: Any, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
    with safe_open(model_file, "pt") as file:
        described = KEY in (file.metadata() or {})
    if described and not injected(model):
        load(model, model_file)
    return super(SMPHubMixin, cls)._load_as_safetensor(model, model_file, map_location, strict)


SMPHubMixin._save_pretrained = _save_pretrained
SMPHubMixin._from_pretrained = classmethod(_from_pretrained)
SMPHubMixin._load_as_safetensor = classmethod(_load_as_safetensor)
