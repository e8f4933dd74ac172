"""What the attention of a network says about its input: the gates of every layer."""

import threading
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gca.gates import AxisGates, ChannelGates, Gates
from gca.layers import GatedLayer
from gca.selection import check_model

__all__ = ["AxisGates", "ChannelGates", "attention_maps"]

_ONE_AT_A_TIME = threading.Lock()  # the buffers of a model can be lent to one call only


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
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, GatedLayer)}
    if not layers:
        raise ValueError(
            f"no attention layer of gca in this {type(model).__name__}; place some with gca.inject(model). A scripted, "
            "traced or exported network holds none any more: pass the one it was made from"
        )
    found: dict[nn.Module, Gates] = {}
    caller = threading.get_ident()

    def note(layer: GatedLayer, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        if threading.get_ident() == caller:  # other threads may be running the model too
            found[layer] = layer.gates(inputs[0] if inputs else named["x"])

    # The model works on copies of its buffers, which is what keeps the statistics of batch norm as they are.
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    with _ONE_AT_A_TIME, ExitStack() as hooks, torch.no_grad(), torch.random.fork_rng(devices):
        for layer in set(layers.values()):
            hooks.enter_context(layer.register_forward_pre_hook(note, with_kwargs=True))
        functional_call(model, {name: buffer.clone() for name, buffer in model.named_buffers()}, (x,))
    return {name: found[layer] for name, layer in layers.items() if layer in found}


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
