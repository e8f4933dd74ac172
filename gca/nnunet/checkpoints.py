"""Attention for a network of nnU-Net that was trained without."""

import copy
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

import gca
from gca.nnunet import trainers
from gca.nnunet.trainers import nnUNetTrainerAttention

# What nnU-Net writes beside tensors and plain Python: NumPy's scalars among the logged values. The module of their
# function was renamed in NumPy 2.
_SCALAR: Any = np.float32(0).__reduce__()[0]
_DTYPES = {type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int32, np.int64, np.bool_)}
SAFE: list[Any] = [*((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")), np.dtype, *_DTYPES]
NETWORKS = "dynamic_network_architectures.architectures."
PARTS = ("torch.nn.", "dynamic_network_architectures.building_blocks.")


def graft(
    checkpoint: str | Path, out: str | Path, trainer: str | type[nnUNetTrainerAttention] = "nnUNetTrainerGCA"
) -> str:
    """Put attention, which starts as the identity, into the network of one of nnU-Net's checkpoints.

    The new file is for ``nnUNetv2_train ... -tr TRAINER -pretrained_weights OUT``: the training starts from the network
    as it was, but for its segmentation layers, which nnU-Net draws anew with any pretrained weights. The file is read
    with ``weights_only=True``, everything is checked before anything is written, and the new file appears when it is
    complete.

    Args:
        checkpoint: ``checkpoint_final.pth``, or another, of a training without attention on residual encoder plans.
        out: The new file.
        trainer: The trainer that goes on, by its name, as nnU-Net finds it, or itself.

    Returns:
        What was done, in a line.

    Raises:
        TypeError: If ``trainer`` is none with attention.
        ValueError: If the file is no checkpoint of nnU-Net or holds anything but data, or its network is not the one
            of its plans, has attention already, or has no residual blocks.
    """
    cls = _trainer(trainer)
    source, target = Path(checkpoint), Path(out)
    if target.exists() and target.samefile(source):
        raise ValueError(f"{target} is the checkpoint itself; name another file for the new one")
    content = _read(source)
    network = _network(cls, content["init_args"], source)
    state = network.state_dict()
    plain = gca.eject(copy.deepcopy(network)).state_dict()
    _check_same(plain, content["network_weights"], content["trainer_name"], source)
    grafted = {
        "network_weights": {**state, **{key: content["network_weights"][key] for key in state.keys() & plain.keys()}},
        "init_args": content["init_args"],
        "trainer_name": cls.__name__,
        "inference_allowed_mirroring_axes": content.get("inference_allowed_mirroring_axes"),
    }
    part = Path(f"{target}.part")
    try:
        torch.save(grafted, part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return f"{target}: {len(gca.injected(network))} blocks with attention, for -tr {cls.__name__} -pretrained_weights"


def _trainer(trainer: str | type) -> type[nnUNetTrainerAttention]:
    cls: Any = trainer
    if isinstance(trainer, str):
        cls = getattr(trainers, trainer, None) or recursive_find_trainer_class_by_name(trainer)
    if not (isinstance(cls, type) and issubclass(cls, nnUNetTrainerAttention)):
        raise TypeError(f"trainer must be a sub-class of gca.nnunet.nnUNetTrainerAttention, got {trainer!r}")
    return cls


def _read(path: Path) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals(SAFE):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as a checkpoint that holds data alone: {error}") from error
    wanted = {"network_weights": Mapping, "init_args": Mapping, "trainer_name": str}
    if not isinstance(content, dict) or not all(isinstance(content.get(key), cls) for key, cls in wanted.items()):
        raise ValueError(
            f"{path} is no checkpoint of nnU-Net, which holds {', '.join(wanted)}; name a checkpoint_final.pth"
        )
    return content


def _network(cls: type[nnUNetTrainerAttention], init_args: Mapping[str, Any], path: Path) -> nn.Module:
    """The network of the plans in a checkpoint, with attention."""
    try:
        plans, dataset = PlansManager(dict(init_args["plans"])), init_args["dataset_json"]
        configuration = plans.get_configuration(init_args["configuration"])
        named, arguments = configuration.network_arch_class_name, configuration.network_arch_init_kwargs
        imported = [arguments[key] for key in configuration.network_arch_init_kwargs_req_import]
        channels = determine_num_input_channels(plans, configuration, dataset)
        heads = plans.get_label_manager(dataset).num_segmentation_heads
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"the plans in {path} cannot be read ({error!r}); wanted those of nnU-Net 2.8") from error
    # nnU-Net imports and calls whatever these name.
    wanted: list[tuple[Any, Any]] = [(named, NETWORKS), *((name, PARTS) for name in imported if name is not None)]
    strange = [name for name, start in wanted if not str(name).startswith(start)]
    if strange:
        raise ValueError(
            f"the plans in {path} name {strange[0]!r}; wanted a network of {NETWORKS[:-1]}, and parts of torch.nn"
        )
    return cls.build_network_architecture(plans, configuration, channels, heads)


def _check_same(ours: Mapping[str, Any], theirs: Mapping[str, Any], trainer: str, path: Path) -> None:
    differing = [
        f"{key} ({'missing' if key not in theirs else 'unexpected' if key not in ours else 'another shape'})"
        for key in sorted(ours.keys() | theirs.keys())
        if not (key in ours and isinstance(theirs.get(key), Tensor) and ours[key].shape == theirs[key].shape)
    ]
    if differing:
        raise ValueError(
            f"the network in {path}, which {trainer} trained, is not that of its plans without attention: "
            f"{len(differing)} tensors differ, {', '.join(differing[:3])}; name a checkpoint of a trainer that keeps "
            "the network of the plans, as nnUNetTrainer does"
        )
