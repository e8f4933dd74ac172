"""What the four layers share: checked sizes, the gate, and a start at which the gate is open."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gca.gates import Gates


def check_positive_int(**values: int) -> None:
    """Raise unless every value is a positive ``int``, naming the first that is not."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {name}={value}")


def reduced_channels(channels: int, reduction: int, minimum: int = 0) -> int:
    """Channels between the two convolutions of a layer: ``channels // reduction``, at least ``minimum``."""
    reduced = max(minimum, channels // reduction)
    if reduced < 1:
        raise ValueError(
            f"reduction must not exceed the channels it divides, got reduction={reduction} for {channels} channels; "
            f"choose reduction <= {channels}"
        )
    return reduced


class GatedLayer(nn.Module):
    r"""A layer that multiplies its input by gates computed from it.

    A gate is :math:`\sigma(z)`, and with ``identity_init`` it is :math:`2\sigma(z)` where the convolutions that give
    ``z`` start at zero, so that every gate starts at exactly 1 and the layer returns its input bit for bit until it
    is trained. Sub-classes say through :meth:`last_convs` which convolutions give ``z``, through :meth:`gates` what
    the gates of an input are, and through :meth:`options` what they were built with.
    """

    # Names among ``options()`` that change the output while no key and no shape of the ``state_dict`` tells of them.
    unseen: tuple[str, ...] = ("identity_init",)

    def __init__(self, spatial_dims: int, identity_init: bool) -> None:
        super().__init__()
        check_positive_int(spatial_dims=spatial_dims)
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 for images or 3 for volumes, got spatial_dims={spatial_dims}")
        self.spatial_dims = spatial_dims
        self.axes = list(range(2, 2 + spatial_dims))
        self.identity_init = identity_init

    def options(self) -> dict[str, Any]:
        """The arguments that build this layer again, by name, with ``channels`` first."""
        raise NotImplementedError

    def last_convs(self) -> Sequence[nn.Conv2d | nn.Conv3d]:
        """The convolutions whose outputs are the logits of the gates."""
        raise NotImplementedError

    def gates(self, x: Tensor) -> Gates:
        """The gates by which ``forward`` multiplies ``x``, in the dtype of ``x``."""
        raise NotImplementedError

    def _check_axes(self, x: Tensor) -> None:
        """Raise unless ``x`` has the spatial axes that the layer is for; of what FX traces nobody knows them."""
        known = True
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            known = not isinstance(x, torch.fx.Proxy)
        if known and x.dim() != self.spatial_dims + 2:
            raise ValueError(
                f"a layer with spatial_dims={self.spatial_dims} takes {self.spatial_dims + 2} axes, (B, C, "
                f"{'D, ' if self.spatial_dims == 3 else ''}H, W), got shape {list(x.shape)}"
            )

    def _over_axes(self, channel: Tensor) -> Tensor:
        """Gates of channels, ``(B, C)``, to be broadcast over the spatial axes."""
        channel = channel.unsqueeze(2).unsqueeze(3)
        return channel if self.spatial_dims == 2 else channel.unsqueeze(4)

    def gate(self, logits: Tensor) -> Tensor:
        """The gates of some logits."""
        gate = torch.sigmoid(logits)
        return 2 * gate if self.identity_init else gate

    def get_extra_state(self) -> Tensor:
        """The unseen options, as the bytes of a JSON object.

        A tensor, so that every format that holds a ``state_dict`` holds it; a key, so that no loader loses it; of one
        size, since smp drops tensors of another size; and of integers that do not overflow where the ``state_dict``
        of several networks are added to be averaged.
        """
        noted = json.dumps({name: self.options()[name] for name in self.unseen}).encode()
        return torch.tensor(list(noted.ljust(64)), dtype=torch.int64, device="cpu")

    def set_extra_state(self, state: Any) -> None:
        """Nothing to set: options that differ were refused by ``_load_from_state_dict``."""

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *lists)
        error_msgs = lists[-1]
        if f"{prefix}_extra_state" not in state_dict:
            return  # with strict=True a missing key, which torch reports
        name = prefix[:-1] or type(self).__name__
        try:
            noted = json.loads(bytes(state_dict[f"{prefix}_extra_state"].double().round().int().tolist()))
            found = {option: noted[option] for option in self.unseen}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            error_msgs.append(f"the options noted for {name} cannot be read ({error!r}); the checkpoint is damaged")
            return
        for option, theirs in found.items():
            ours = self.options()[option]
            if ours != theirs:
                error_msgs.append(
                    f"{name} has {option}={ours!r}, but its weights come from a layer with {option}={theirs!r}, with "
                    "which they give other outputs; build or inject it with that"
                )

    def extra_repr(self) -> str:
        channels, *others = self.options().items()
        return ", ".join([str(channels[1]), *(f"{name}={value!r}" for name, value in others)])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GatedLayer":
        """As of any module, but the weights of a 1x1 convolution may go to channels_last_3d with those around it.

        They have four axes in a network for volumes too, which ``Module.to`` would not have.
        """

        def of_any_rank(t: Tensor) -> Tensor:
            try:
                return fn(t)
            except RuntimeError as error:
                if t.ndim != 4 or "rank 5" not in str(error):
                    raise
                return fn(t.unsqueeze(4)).squeeze(4)

        return super()._apply(of_any_rank, recurse)  # type: ignore[no-any-return, no-untyped-call]

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
