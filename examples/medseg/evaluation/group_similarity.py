"""How alike the groups of a layer's attention are, and whether less so than groups drawn at random.

A group lights up the map M_g: the gate of every position, averaged over the channels of the group. The similarity of a
layer is the Pearson correlation of M_g and M_g' over the positions of an image, averaged over pairs of groups and over
images: 1 where all groups light up the same places, 0 where they have nothing in common.

Two yardsticks say what a value means. The same number for random splits of the same channels into as many groups:
groups that mean nothing are as alike as those. And both numbers for the same architecture with random weights: each
group computes its gates from its own channels alone, and a difference that this makes by itself was not learnt.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import gca
from gca.maps import AxisGates
from medseg.errors import RunError
from medseg.evaluation.scores import spread_of


@dataclass(frozen=True)
class Similarity:
    """How alike the groups of one layer are.

    Args:
        groups, channels, height, width: Of the layer.
        images: In how many images the similarity is defined: a map that is the same everywhere correlates with none.
        contrast: Standard deviation of a map over its positions, averaged over groups and images.
        similarity: Of the layer's groups; NaN where it is defined in no image, as are those of ``random`` then.
        random: Of every random split.
    """

    groups: int
    channels: int
    height: int
    width: int
    images: int
    contrast: float
    similarity: float
    random: NDArray[np.float64]

    @property
    def gap(self) -> float:
        """By how much the groups are less alike than those of a random split on average."""
        return float(self.random.mean() - self.similarity)

    @property
    def z(self) -> float:
        """Distance from the mean of the random splits in their standard deviations; below 0: less alike."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.float64(-self.gap) / self.random.std())

    @property
    def percentile(self) -> float:
        """Percent of the random splits that are no more alike than the groups."""
        return float(100 * np.mean(self.random <= self.similarity)) if self.images else np.nan

    @property
    def differs(self) -> bool:
        """Whether the groups are less alike than 95 % of the random splits."""
        return self.percentile < 5

    def numbers(self) -> dict[str, float | None]:
        """The figures for a table; ``None`` where one is not defined."""
        low, high = np.quantile(self.random, (0.05, 0.95))
        found = {
            "contrast": self.contrast,
            "similarity": self.similarity,
            "random_mean": self.random.mean(),
            "random_5": low,
            "random_95": high,
            "gap": self.gap,
            "z": self.z,
            "percentile": self.percentile,
        }
        defined = {name: float(value) if np.isfinite(value) else None for name, value in found.items()}
        return {"images": self.images, **defined}


def group_similarity(
    model: nn.Module,
    layers: Collection[str],
    batches: Sequence[Tensor],
    *,
    splits: int = 100,
    seed: int = 0,
    parts: int = 1,
) -> dict[str, Similarity]:
    """How alike the groups of some layers are on some images.

    Args:
        model: In evaluation mode.
        layers: Their names.
        batches: Images ``(B, 3, S, S)``, all of one size.
        splits: How many random splits of the channels to compare with.
        seed: Of these splits, which are the same for all images, and for all layers with as many channels.
        parts: In how many equal parts the channels of a layer with a single group are compared, as if they were groups:
            a control. With 1 such layers are left out.

    Returns:
        Name of the layer -> similarity, in the order of the network.

    Raises:
        RunError: If ``parts`` does not divide the channels of a layer.
    """
    latest: dict[str, AxisGates] = {}
    alike: dict[str, list[Tensor]] = {}
    contrast: dict[str, list[Tensor]] = {}
    for batch in batches:
        for name, gates in gca.attention_maps(model, batch).items():
            if name in layers and isinstance(gates, AxisGates) and max(gates.groups, parts) > 1:
                channels = gates.gate_h.shape[1]
                if gates.groups == 1 and channels % parts:
                    raise RunError(f"--parts {parts} does not divide the {channels} channels of {name}")
                gates = gates._replace(groups=parts) if gates.groups == 1 else gates
                latest[name] = gates
                alike.setdefault(name, []).append(_alike_in_splits(gates, splits, seed))
                contrast.setdefault(name, []).append(gates.maps().double().flatten(2).std(2, correction=0).mean(1))
    return {name: _similarity(latest[name], torch.cat(alike[name]), torch.cat(contrast[name])) for name in latest}


def correlation_of_groups(maps: Tensor) -> Tensor:
    """Correlation of two groups over the positions, averaged over the pairs of groups: ``(B, G, H, W)`` -> ``(B,)``.

    NaN where a map is the same everywhere, but for rounding.
    """
    flattened = maps.double().flatten(2)
    level = flattened.mean(2, keepdim=True)
    deviation = flattened - level
    length = deviation.norm(dim=2, keepdim=True)
    flat = length <= 1e-6 * level.abs() * flattened.shape[2] ** 0.5
    unit = torch.where(flat, torch.nan, deviation / length)
    one, other = torch.triu_indices(maps.shape[1], maps.shape[1], offset=1)
    return (unit[:, one] * unit[:, other]).sum(2).mean(1)


def untrained(model: Any, batches: Sequence[Tensor], seed: int = 0) -> nn.Module:
    """A network like ``model`` before training, whose batch norms have the statistics of these images.

    Its batch norms start at scale 1: timm starts the last one of a block at 0, which would give attention nothing to
    look at.

    Args:
        model: Of segmentation-models-pytorch, or ``gca.GCAResUNet``.
        batches: Images ``(B, 3, S, S)``.
        seed: Of the weights.
    """
    options = {name: value for name, value in model.config.items() if not name.startswith("_")}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the networks are built on the CPU
        twin: nn.Module = type(model)(**{**options, "encoder_weights": None})
    twin.to(batches[0].device).eval()
    for module in twin.modules():
        if isinstance(module, _BatchNorm):
            module.reset_parameters()
            module.momentum = None  # average over all batches
            module.train()
    with torch.no_grad():
        for batch in batches:
            twin(batch if len(batch) > 1 else batch.repeat(2, 1, 1, 1))  # a single value has no variance
    return twin.eval()


def over_networks(found: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Rows of several networks -> by layer mean and standard deviation over them, and in how many the groups differ.

    Raises:
        RunError: If the networks do not have the same layers.
    """
    same = ("layer", "groups", "channels", "height", "width")
    layers_of = [[{key: row[key] for key in same} for row in rows] for rows in found]
    if any(other != layers_of[0] for other in layers_of):
        raise RunError("the networks do not have the same layers; give runs of one architecture")
    summary = []
    for layers in zip(*found, strict=True):
        row: dict[str, Any] = {key: layers[0][key] for key in same}
        for key in ("similarity", "random_mean", "gap", "untrained_similarity", "untrained_gap"):
            row |= {f"{key}_{name}": value for name, value in spread_of([layer[key] for layer in layers]).items()}
        for prefix in ("", "untrained_"):
            percentiles = [layer[f"{prefix}percentile"] for layer in layers]
            row[f"{prefix}less_alike"] = sum(value is not None and value < 5 for value in percentiles)
        summary.append(row)
    return summary


def verdict(trained: Mapping[str, Similarity], before: Mapping[str, Similarity]) -> str:
    """What the numbers say, in words."""
    layers = [name for name in trained if trained[name].images]
    if not layers:
        return "The maps are the same everywhere, so there is nothing to compare between the groups."
    differing = sum(trained[name].differs for name in layers)
    differing_before = sum(before[name].differs for name in layers)
    wider = sum(trained[name].gap > before[name].gap for name in layers)
    similarity = np.mean([trained[name].similarity for name in layers])
    random = np.mean([trained[name].random.mean() for name in layers])
    return (
        f"Maps of two groups correlate with {similarity:.3f} on average over layers, those of random splits of the "
        f"same channels with {random:.3f}.\n"
        f"In {differing} of {len(layers)} layers the groups are less alike than 95 % of the random splits; with random "
        f"weights in {differing_before}.\n"
        f"The gap between the groups and the random splits is wider than with random weights in {wider} of "
        f"{len(layers)} layers."
    )


def _alike_in_splits(gates: AxisGates, splits: int, seed: int) -> Tensor:
    """``(B, 1 + splits)``: of the groups as they are, then of the random splits."""
    channels = gates.gate_h.shape[1]
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.arange(channels), *(torch.randperm(channels, generator=generator) for _ in range(splits))]
    members = torch.stack(orders).reshape(1 + splits, gates.groups, -1)
    share = torch.zeros(1 + splits, gates.groups, channels).scatter_(2, members, gates.groups / channels)
    share = share.to(gates.gate_h)
    of_channels = (h[:, :, None] * w[:, None, :] for h, w in zip(gates.gate_h, gates.gate_w, strict=True))
    return torch.stack([correlation_of_groups(torch.einsum("sgc,chw->sghw", share, x)) for x in of_channels]).cpu()


def _similarity(gates: AxisGates, alike: Tensor, contrast: Tensor) -> Similarity:
    defined = alike[alike.isfinite().all(1)]
    mean = defined.mean(0).numpy()  # over no image: NaN
    return Similarity(
        groups=gates.groups,
        channels=gates.gate_h.shape[1],
        height=gates.gate_h.shape[2],
        width=gates.gate_w.shape[2],
        images=len(defined),
        contrast=float(contrast.mean()),
        similarity=float(mean[0]),
        random=mean[1:],
    )
