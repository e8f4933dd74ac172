"""Compiled loops that the threads of torch run together, without the interpreter.

torch's OpenMP threads keep a core busy for some milliseconds after their last work, waiting for more. Threads of
another pool would have to share the cores with them, and two would be no faster than one. So loops are handed to those
very threads, through ``GOMP_parallel`` of the runtime that torch is linked to. Where that is not found (macOS,
Windows), Python threads do it. What they call is machine code: a thread that waits for the interpreter's lock, and has
to be woken up for it, comes too late for loops of a tenth of a millisecond.

A loop function takes a job and nothing else, asks for its sizes and arrays by number, and goes over its :func:`tasks`.
"""

import ctypes
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba import carray, config, njit, types  # type: ignore[attr-defined]
from numba.core import caching, cgutils
from numba.core.ccallback import CFunc
from numba.extending import intrinsic
from torch import Tensor

GRAIN = 32768  # elements that are worth a thread, as in torch's own kernels
AS_PYTHON: bool = config.DISABLE_JIT  # type: ignore[attr-defined]
_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
# A job: first the piece that is next, then how many pieces and tasks there are and where arrays begin, then the sizes,
# then address and length of every array.
_PIECES, _TASKS, _ARRAYS, _SIZES = 1, 2, 3, 4


def compiled(loops: Callable[[Any], None]) -> Any:
    """A loop function as machine code, from disk if it was compiled before and there is a place to keep it."""
    if AS_PYTHON:
        return loops
    pointer = types.CPointer(types.int64)  # type: ignore[no-untyped-call]
    function = CFunc(loops, ((pointer,), types.void), {}, {"error_model": "numpy"})
    with suppress(RuntimeError):  # no place to write to: compiled anew in every process
        function._cache = _Cache(loops)  # type: ignore[attr-defined, no-untyped-call]
    try:
        function.compile()
    except OSError:  # the place is full, or gone
        function._cache = caching.NullCache()  # type: ignore[attr-defined]
        function.compile()
    return function


_SOURCES = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))).digest()


class _Implementation(caching.CompileResultCacheImpl):
    """Where numba keeps what it compiled, valid until any file of this package changes, not only that of the loops."""

    _locator_classes = [  # noqa: RUF012  # as numba has it
        type(found.__name__, (found,), {"get_source_stamp": lambda self: _SOURCES})  # type: ignore[misc]
        for found in caching.CompileResultCacheImpl._locator_classes
    ]


class _Cache(caching.FunctionCache):
    _impl_class = _Implementation


def run(loops: Any, count: int, elements: int, sizes: Sequence[int], arrays: Sequence[Tensor]) -> None:
    """Do so many tasks, on several threads if ``elements`` are many; ``arrays`` are contiguous."""
    if AS_PYTHON:
        loops(_Job(count, sizes, [array.detach().view(-1).numpy() for array in arrays]))
        return
    threads = min(torch.get_num_threads(), count, max(1, elements // GRAIN))
    # More pieces than threads: one that is held up leaves its share to the others.
    pieces = 1 if threads == 1 else min(2 * threads, count)
    places = [place for array in arrays for place in (array.data_ptr(), array.numel())]
    job = np.array([0, pieces, count, _SIZES + len(sizes), *sizes, *places], np.int64)
    where = job.ctypes.data
    parallel = None if _forked else _openmp()
    if threads > 1 and parallel is not None:
        parallel(loops.address, where, threads, 0)
        return
    function = _FUNCTION(loops.address)
    others = [_pool().submit(function, where) for _ in range(threads - 1)]
    function(where)
    for other in others:
        other.result()


class _Job(NamedTuple):
    """What a loop function is given where it is not compiled."""

    tasks: int
    sizes: Sequence[int]
    arrays: Sequence[Any]


def _in_python(meaning: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    return lambda function: meaning if AS_PYTHON else njit(function)


def called(function: Callable[..., Any]) -> Any:
    """A function that loop functions call, and that says the same in Python."""
    return _in_python(function)(function)


@_in_python(lambda job, number: job.sizes[number])
def size(job: Any, number: int) -> Any:
    """A size that the job was given."""
    return job[_SIZES + number]


@_in_python(lambda job, number, dtype: job.arrays[number])
def array(job: Any, number: int, dtype: Any) -> Any:
    """An array that the job was given."""
    place = job[_ARRAYS] + 2 * number
    return carray(_pointer(job[place]), job[place + 1], dtype)  # type: ignore[call-arg]  # numba passes the first


@_in_python(lambda job: range(job.tasks))
def tasks(job: Any) -> Iterator[int]:
    """The tasks that a thread is to do, one after the other: more of them as long as there are any."""
    pieces, count = job[_PIECES], job[_TASKS]
    piece: int = _add_one(job)  # type: ignore[call-arg]
    while piece < pieces:
        for task in range(count * piece // pieces, count * (piece + 1) // pieces):  # noqa: UP028  # unknown to numba
            yield task
        piece = _add_one(job)


@intrinsic
def _add_one(_: Any, job: Any) -> Any:
    """Count up the first number of a job, for all threads at once, and return what it was."""

    def build(_: Any, builder: Any, __: Any, values: Any) -> Any:
        return builder.atomic_rmw("add", values[0], ir.IntType(64)(1), "monotonic")

    return types.int64(job), build


@intrinsic
def _pointer(_: Any, address: Any) -> Any:
    return types.voidptr(address), lambda _, builder, __, values: builder.inttoptr(values[0], cgutils.voidptr_t)


@cache
def _openmp() -> Any:
    """``GOMP_parallel(function, data, threads, flags)`` of the OpenMP runtime that torch uses, or None."""
    try:
        # A symbol that a library lacks is looked up in the libraries it is linked to.
        parallel = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="gca.ops.threads")


_forked = False


def _after_fork() -> None:
    # No thread survives a fork, and GNU OpenMP waits for those it had.
    global _forked
    _forked = True
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
