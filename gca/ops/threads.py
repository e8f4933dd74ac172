"""Sharing out loops among the threads that torch computes with.

torch's OpenMP threads keep a core busy for some milliseconds after their last work, waiting for more. Threads of
another pool would have to share the cores with them, and two would be no faster than one. So the work is handed to
those very threads, through ``GOMP_parallel`` of the runtime that torch is linked to. Where that is not found (macOS,
Windows), Python threads do it.
"""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

GRAIN = 32768  # elements that are worth a thread, as in torch's own kernels
_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def share_out(work: Callable[[int, int], object], tasks: int, elements: int) -> None:
    """Call ``work(first, last)`` for spans that cover ``range(tasks)``, on several threads if ``elements`` are many.

    ``work`` has to release the interpreter lock to gain from it. What it raises is raised here.
    """
    threads = min(torch.get_num_threads(), tasks, max(1, elements // GRAIN))
    if threads == 1:
        work(0, tasks)
        return
    pieces = min(2 * threads, tasks)  # more than threads: one that is held up leaves its share to the others
    spans = list(pairwise(tasks * k // pieces for k in range(pieces + 1)))
    errors: list[BaseException] = []

    def take(_: object = None) -> None:
        try:
            while not errors and (span := _pop(spans)):
                work(*span)
        except BaseException as error:  # has to leave on the thread that called
            errors.append(error)

    parallel = None if _forked else _openmp()
    if parallel is not None:
        parallel(_CALLBACK(take), None, threads, 0)
    else:
        others = [_pool().submit(take) for _ in range(threads - 1)]
        take()
        for other in others:
            other.result()
    if errors:
        raise errors[0]


def _pop(spans: list[tuple[int, int]]) -> tuple[int, int] | None:
    try:
        return spans.pop()
    except IndexError:
        return None


@cache
def _openmp() -> Any:
    """``GOMP_parallel(function, data, threads, flags)`` of the OpenMP runtime that torch uses, or None."""
    try:
        # A symbol that a library lacks is looked up in the libraries it is linked to.
        parallel = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes = [_CALLBACK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
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
