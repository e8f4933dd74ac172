"""Which implementation runs."""

import importlib
from contextlib import AbstractContextManager
from functools import cache
from types import ModuleType

from torch import Tensor

from gca.ops.capture import captured

# name -> module with the kernels; None for the two that are plain functions of tensors
IMPLEMENTATIONS = {
    "reference": None,
    "plain": None,
    "torch": "gca.ops.eager",
    "numba": "gca.ops.numba",
    "triton": "gca.ops.triton",
}
AUTOMATIC = {"cpu": ("numba", "torch"), "cuda": ("triton",)}  # device -> tried in turn; "plain" where none can
# Bytes of x up to which plain operators are used on a GPU: launching Triton's kernels took 0.1 ms longer per layer, 0.3
# with backward, and they save 6 passes over x, 17 with backward, which a GPU with 1 TB/s does in that time.
LAUNCH_BOUND = 2**24
REMEDIES = {"numba": 'pip install "gca-attn[cpu]"', "triton": "pip install triton"}

_forced: str | None = None


class ImplementationError(RuntimeError):
    """The implementation that was asked for cannot do this."""


class _Restore(AbstractContextManager[None]):
    def __init__(self, before: str | None) -> None:
        self.before = before

    def __exit__(self, *_: object) -> None:
        global _forced
        _forced = self.before


def use(name: str | None) -> AbstractContextManager[None]:
    """Run one implementation of the ops, and no other, in this process.

    Takes effect at once; as a context manager, until the end of the ``with`` block. Never falls back: a tensor that
    the implementation cannot take raises :class:`ImplementationError`. Scripted modules are not affected, they hold
    the plain formula.

    Args:
        name: ``"reference"`` (the definition, on einops), ``"plain"`` (torch operators, what compiled graphs hold),
            ``"torch"`` (torch kernels chosen by layout), ``"numba"`` (compiled loops, CPU), ``"triton"`` (CUDA), or
            ``None`` for the automatic choice, which :func:`chosen` tells.

    Raises:
        ValueError: If there is no such implementation.
        ImplementationError: If the package that it needs cannot be imported.

    Example:
        >>> with gca.ops.use("plain"):
        ...     y = layer(x)
    """
    global _forced
    if name is not None and name not in IMPLEMENTATIONS:
        raise ValueError(f"no implementation is called {name!r}; choose one of {', '.join(IMPLEMENTATIONS)} or None")
    if name is not None and (reason := unavailable()[name]) is not None:
        raise ImplementationError(f"the implementation {name!r} is not available: {reason}")
    restore = _Restore(_forced)
    _forced = name
    return restore


def unavailable() -> dict[str, str | None]:
    """Why an implementation cannot be used here, by name; ``None`` where it can."""
    return {name: None if path is None else _load(path)[1] for name, path in IMPLEMENTATIONS.items()}


def chosen(x: Tensor) -> str:
    """Name of the implementation that pools and gates ``x`` here and now.

    Unless :func:`use` says otherwise: on CPU, ``"numba"`` for float32 and float64 if it is installed, else
    ``"torch"``; on CUDA, ``"triton"`` above 16 MiB if its kernels run (below, launching them takes longer than they
    save); ``"plain"`` for all else and wherever a graph is captured (compile, export, trace, FX, torch.func).

    Raises:
        ImplementationError: If :func:`use` asks for an implementation that cannot take ``x``.
    """
    name = _forced
    if name is None:
        if captured(x) or not x.dtype.is_floating_point or (x.is_cuda and x.nbytes <= LAUNCH_BOUND):
            return "plain"
        for name in AUTOMATIC.get(x.device.type, ()):
            module, _ = _load(IMPLEMENTATIONS[name] or "")
            if module is not None and module.refuses(x) is None:
                return name
        return "plain"
    if name in ("reference", "plain"):
        return name
    if captured(x):
        raise ImplementationError(
            f"the implementation {name!r} cannot be captured (compile, export, trace, FX, torch.func), and "
            f'use({name!r}) forbids another; capture under use(None) or use("plain")'
        )
    reason: str | None = kernels(name).refuses(x)
    if reason is not None:
        raise ImplementationError(
            f"the implementation {name!r} cannot take x: {reason}; use(None) chooses one that can"
        )
    return name


def kernels(name: str) -> ModuleType:
    """The module of an implementation that has kernels."""
    module, reason = _load(IMPLEMENTATIONS[name] or "")
    if module is None:
        raise ImplementationError(f"the implementation {name!r} is not available: {reason}")
    return module


@cache
def _load(path: str) -> tuple[ModuleType | None, str | None]:
    try:
        return importlib.import_module(path), None
    except ImportError as error:
        package = path.rpartition(".")[2]
        return None, f"{error}; {REMEDIES.get(package, 'reinstall gca-attn')}"
