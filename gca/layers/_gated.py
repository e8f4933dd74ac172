"""What the four layers share: checked sizes, the gate, and a start at which the gate is open."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def check_positive_int(**values: int) -> None:
    """Raise unless every value is a positive ``int``, naming the first that is not."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {name}={value}")


def reduced_channels(channels: int, reduction: int, minimum: int = 1) -> int:
    """Channels between the two convolutions of a layer: ``channels // reduction``, at least ``minimum``."""
    if reduction > channels:
        raise ValueError(
            f"reduction must not exceed the channels it divides, got reduction={reduction} for {channels} channels; "
            f"choose reduction <= {channels}"
        )
    return max(minimum, channels // reduction)


class GatedLayer(nn.Module):
    r"""A layer that multiplies its input by gates computed from it.

    A gate is :math:`\sigma(z)`, and with ``identity_init`` it is :math:`2\sigma(z)` where the convolutions that give
    ``z`` start at zero, so that every gate starts at exactly 1 and the layer returns its input bit for bit until it
    is trained. Sub-classes say through :meth:`last_convs` which convolutions give ``z``.
    """

    def __init__(self, identity_init: bool) -> None:
        super().__init__()
        self.identity_init = identity_init

    def _unseen_options(self) -> dict[str, Any]:
        """Options that change the output and that neither keys nor shapes of the ``state_dict`` tell."""
        return {"identity_init": self.identity_init}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):  # where torch keeps the versions of modules; it is no key
            destination._metadata.setdefault(prefix[:-1], {})["options"] = self._unseen_options()

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)
        error_msgs = lists[-1]
        noted = local_metadata.get("options", {})  # nothing in a dict that was made key by key, or a safetensors file
        for name, ours in self._unseen_options().items():
            if name in noted and noted[name] != ours:
                error_msgs.append(
                    f"{prefix[:-1] or type(self).__name__} has {name}={ours!r}, but its weights come from a layer with "
                    f"{name}={noted[name]!r}, with which they give other outputs; build or inject it with that"
                )

    def last_convs(self) -> Sequence[nn.Conv2d]:
        """The convolutions whose outputs are the logits of the gates."""
        raise NotImplementedError

    def gate(self, logits: Tensor) -> Tensor:
        gate = torch.sigmoid(logits)
        return 2 * gate if self.identity_init else gate

    def reset_parameters(self) -> None:
        """Draw all parameters anew, e.g. after ``to_empty()`` on a model built on the meta device."""
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if module is not self and callable(reset):
                reset()
        self.zero_init_last()

    def zero_init_last(self) -> None:
        """Restore the identity start; without ``identity_init`` there is none and nothing happens.

        timm's ``init_weights`` re-initialises every convolution of a network, then calls this on every module
        that has it.
        """
        if not self.identity_init:
            return
        for conv in self.last_convs():
            nn.init.zeros_(conv.weight)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
