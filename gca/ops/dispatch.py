"""Which backend runs."""

import importlib
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import cache
from types import ModuleType

from torch import Tensor

from gca.ops import plain
from gca.ops.tracing import constant, traced
from gca.ops.volumes import plane_shape

BACKENDS = {
    "reference": "gca.ops.reference",
    "plain": "gca.ops.plain",
    "torch": "gca.ops.eager",
    "numba": "gca.ops.numba",
    "triton": "gca.ops.triton",
}
AUTOMATIC = {"cpu": ("numba", "torch"), "cuda": ("triton",)}  # device -> tried in turn; "plain" where none can
# Bytes of x up to which plain operators are used on a GPU: launching Triton's kernels took 0.1 ms longer per layer, 0.3
# with backward, and they save 6 passes over x, 17 with backward, which a GPU with 1 TB/s does in that time.
LAUNCH_BOUND = 2**24
REMEDIES = {"numba": 'pip install "gca-attn[cpu]"', "triton": "pip install triton"}


class BackendError(RuntimeError):
    """The backend that was asked for cannot do this."""


class backend(AbstractContextManager[None]):  # noqa: N801  # called as a function
    """Run pooling and gating with one backend, and no other, in this thread or task.

    Takes effect at once, and ends with the ``with`` block, if it is used as one. Other threads and tasks are not
    affected; a task of asyncio inherits what held where it was made. Never falls back: an ``x`` that the backend cannot
    take raises :class:`BackendError`. A compiled graph keeps what held when it was compiled; scripted modules hold the
    plain formula.

    Args:
        name: ``"reference"`` (the definition, on einops), ``"plain"`` (torch operators, what traced and compiled graphs
            hold), ``"torch"`` (the same with gradients in fewer passes), ``"numba"`` (compiled loops, CPU),
            ``"triton"`` (CUDA), or ``None`` for the automatic choice, which :func:`selected` tells.

    Raises:
        ValueError: If there is no such backend.
        BackendError: If the package that it needs cannot be imported.

    Example:
        >>> with gca.ops.backend("plain"):
        ...     y = layer(x)
    """

    def __init__(self, name: str | None) -> None:
        if name is not None and name not in BACKENDS:
            raise ValueError(f"no backend is called {name!r}; choose one of {', '.join(BACKENDS)} or None")
        self.name = name
        if name is not None:
            _requested[name] = _module(name)
        _asked_for.set((*_asked_for.get(), self))

    def __enter__(self) -> None:
        if self not in _asked_for.get():  # it was used before, and ended
            _asked_for.set((*_asked_for.get(), self))

    def __exit__(self, *_: object) -> None:
        _asked_for.set(tuple(one for one in _asked_for.get() if one is not self))  # in whatever order they end


_asked_for: ContextVar[tuple[backend, ...]] = ContextVar("gca.ops.backend", default=())  # the last one holds
_requested: dict[str, ModuleType] = {}  # loaded before a graph is compiled, in which nothing can be imported


def backends(x: Tensor | None = None) -> dict[str, str | None]:
    """Why a backend cannot be used here, or cannot take ``x``, by name; ``None`` where it can."""
    return {name: _unsupported(name, x) for name in BACKENDS}


def selected(x: Tensor) -> str:
    """Name of the backend that pools and gates ``x`` here and now.

    Unless :class:`backend` says otherwise: on CPU, ``"numba"`` for float32 and float64 if it is installed, else
    ``"torch"``; on CUDA, ``"triton"`` above 16 MiB if its kernels run (below, launching them takes longer than they
    save); ``"plain"`` for all else and wherever a graph is traced or compiled (compile, export, trace, FX, torch.func).

    Raises:
        BackendError: If :class:`backend` asks for one that cannot take ``x``.
    """
    module = select(x)
    return next(name for name, path in BACKENDS.items() if path == module.__name__)


def select(x: Tensor) -> ModuleType:
    """The module of that backend."""
    name = _name_asked_for()
    if name is None:
        if traced(x) or not x.dtype.is_floating_point or (x.is_cuda and x.nbytes <= LAUNCH_BOUND):
            return plain
        names = AUTOMATIC.get(x.device.type, ())
        return _module(next((name for name in names if _unsupported(name, x) is None), "plain"))
    module = _requested[name]
    if (reason := _cannot(module, x)) is not None:
        raise BackendError(f"the backend {name!r} cannot take x: {reason}; backend(None) chooses one that can")
    return module


@constant
def _name_asked_for() -> str | None:
    """What :class:`backend` asks for. Constant, since torch up to 2.10 cannot compile a ``ContextVar``."""
    asked_for = _asked_for.get()
    return asked_for[-1].name if asked_for else None


def _unsupported(name: str, x: Tensor | None) -> str | None:
    module, reason = _load(name)
    return reason if module is None or x is None else _cannot(module, x)


def _cannot(module: ModuleType, x: Tensor) -> str | None:
    if module.DIFFERENTIABLE:
        return None
    if traced(x):
        return 'a graph is traced or compiled (compile, export, trace, FX, torch.func), which holds "plain"'
    return module.unsupported(x.device, x.dtype, plane_shape(x))  # type: ignore[no-any-return]


def _module(name: str) -> ModuleType:
    module, reason = _load(name)
    if module is None:
        raise BackendError(f"the backend {name!r} is not available: {reason}")
    return module


@cache
def _load(name: str) -> tuple[ModuleType | None, str | None]:
    try:
        return importlib.import_module(BACKENDS[name]), None
    except ImportError as error:
        return None, f"{error}; {REMEDIES.get(name, 'reinstall gca-attn')}"
