"""What the four layers share: checked sizes, the gate, and a start at which the gate is open."""

from collections.abc import Sequence

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
