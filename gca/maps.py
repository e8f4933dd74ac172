"""What the attention of a network says about its input: the gates of every layer."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gca.layers import CBAM, SE, CoordinateAttention, GroupedCoordinateAttention
from gca.selection import check_model

Layer = GroupedCoordinateAttention | CoordinateAttention | CBAM | SE


@dataclass(frozen=True, eq=False)
class AxisGates:
    r"""The gates of a coordinate layer: its output is :math:`X \odot A^h \odot A^w`.

    Args:
        gate_h: :math:`A^h`, the gate of every row, ``(B, C, H)``.
        gate_w: :math:`A^w`, the gate of every column, ``(B, C, W)``.
        groups: Groups :math:`G` of :math:`C/G` neighbouring channels; 1 for ``CoordinateAttention``.
    """

    gate_h: Tensor
    gate_w: Tensor
    groups: int

    def maps(self) -> Tensor:
        """The gate of every position, averaged over the channels of each group: ``(B, G, H, W)``."""
        by_group_h, by_group_w = self._by_group(self.gate_h), self._by_group(self.gate_w)
        return torch.einsum("bgch,bgcw->bghw", by_group_h, by_group_w) / by_group_h.shape[2]

    def rows(self) -> Tensor:
        """The gate of every row, averaged over the channels of each group: ``(B, G, H)``."""
        return self._by_group(self.gate_h).mean(2)

    def columns(self) -> Tensor:
        """The gate of every column, averaged over the channels of each group: ``(B, G, W)``."""
        return self._by_group(self.gate_w).mean(2)

    def _by_group(self, gate: Tensor) -> Tensor:
        b, c, length = gate.shape
        return gate.reshape(b, self.groups, c // self.groups, length)


@dataclass(frozen=True, eq=False)
class ChannelGates:
    """The gates of ``SE`` and ``CBAM``: the output is the input times all of them.

    Args:
        channel: The gate of every channel, ``(B, C)``.
        spatial: The gate of every position, ``(B, 1, H, W)``; ``None`` for ``SE``, which has none.
    """

    channel: Tensor
    spatial: Tensor | None = None


Gates = AxisGates | ChannelGates


def attention_maps(model: nn.Module, x: Any) -> dict[str, Gates]:
    """Run ``model`` once on ``x``, and return the gates by which its attention layers multiplied their input.

    The model runs in the mode it is in, so call ``model.eval()`` first to see what a trained network does. Nothing of
    it changes: no gradient is recorded, batch norms in train mode count nothing, hooks are taken off again, and the
    random numbers that follow are those that would have followed.

    Args:
        model: Any network with layers of this library, placed by :func:`gca.inject` or built in, or a layer alone.
        x: What the model takes.

    Returns:
        Qualified name of the layer -> its gates, in the order of ``named_modules`` and in the dtype of the layer's
        input: :class:`~gca.maps.AxisGates` for ``GroupedCoordinateAttention`` and ``CoordinateAttention``,
        :class:`~gca.maps.ChannelGates` for ``SE`` and ``CBAM``. The name of a layer alone is ``""``. Of a layer that
        runs several times, the gates of the last time; one that does not run is left out.

    Raises:
        TypeError: If ``model`` is no module, or one that hooks do not see whole: compiled, or in ``DataParallel``.
        ValueError: If ``model`` has no attention layer of this library.

    Example:
        >>> model = gca.inject(timm.create_model("resnet50"), groups=2, reduction=2).eval()
        >>> gca.attention_maps(model, torch.randn(1, 3, 224, 224))["layer1.0.se"].maps().shape
        torch.Size([1, 2, 56, 56])
    """
    _check_observable(model)
    recorders = {name: _Recorder(layer) for name, layer in model.named_modules() if isinstance(layer, Layer)}
    if not recorders:
        raise ValueError(
            f"no attention layer of gca in this {type(model).__name__}; place some with gca.inject(model). A scripted, "
            "traced or exported network holds none any more: pass the one it was made from"
        )
    # The model works on copies of its buffers, which is what keeps the statistics of batch norm as they are.
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    try:
        for recorder in recorders.values():
            recorder.attach()
        with torch.no_grad(), torch.random.fork_rng(devices):
            functional_call(model, buffers, (x,))
    finally:
        for recorder in recorders.values():
            recorder.detach()
    return {name: recorder.gates() for name, recorder in recorders.items() if recorder.logits}


def _check_observable(model: nn.Module) -> None:
    check_model(model)
    for name, module in model.named_modules():
        where = f"its part {name!r}" if name else "the model"
        if isinstance(module, nn.DataParallel):
            raise TypeError(f"{where} is in DataParallel, whose copies each see a part of x; pass model.module")
        # Compiled code holds the hooks that were there when it was compiled, and only those.
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise TypeError(
                f"{where} is compiled, and compiled code does not run hooks that come later; pass the network as it "
                "was before torch.compile, or a copy.deepcopy after model.compile()"
            )


class _Recorder:
    """Keeps the logits that a layer's last convolutions give, from which its gates follow."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.logits: list[Tensor] = []
        self.handles: list[Any] = []

    def attach(self) -> None:
        self.handles.append(self.layer.register_forward_pre_hook(self._begin))
        for conv in self.layer.last_convs():
            self.handles.append(conv.register_forward_hook(self._note))

    def detach(self) -> None:
        for handle in self.handles:
            handle.remove()

    def _begin(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.dtype, self.shape = inputs[0].dtype, inputs[0].shape
        self.logits.clear()  # of an earlier run

    def _note(self, conv: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        self.logits.append(logits)

    def gates(self) -> Gates:
        def gate(logits: Tensor) -> Tensor:  # as the layer does before it multiplies
            return self.layer.gate(logits).to(self.dtype)

        if isinstance(self.layer, GroupedCoordinateAttention):
            (logits,), (b, c, h, w) = self.logits, self.shape
            # One image is all of them, or the only one, whose gates are the same either way.
            a = gate(logits)
            in_one_image = len(logits) == 1
            gates = a.permute(0, 2, 3, 1).reshape(b, h + w, c).transpose(1, 2) if in_one_image else a.reshape(b, c, h + w)
            gate_h, gate_w = torch.split(gates, [h, w], dim=2)
            return AxisGates(gate_h, gate_w, self.layer.groups)
        if isinstance(self.layer, CoordinateAttention):
            logits_h, logits_w = self.logits
            return AxisGates(gate(logits_h).squeeze(3), gate(logits_w).squeeze(3), groups=1)
        if isinstance(self.layer, CBAM):
            of_mean, of_peak, spatial = self.logits
            return ChannelGates(gate(of_mean + of_peak).flatten(1), gate(spatial))
        (logits,) = self.logits
        return ChannelGates(gate(logits).flatten(1))
