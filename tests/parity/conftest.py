"""Every backend in turn, those that need no reference."""

import importlib.util
import os
from collections.abc import Iterator

import pytest
import torch

from gca import ops

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
FAST = [
    "plain",
    "torch",
    pytest.param("numba", marks=pytest.mark.skipif(not importlib.util.find_spec("numba"), reason="needs numba")),
    pytest.param(
        "triton",
        marks=pytest.mark.skipif(
            not (INTERPRETED or torch.cuda.is_available()), reason="without a GPU it runs in a process of its own"
        ),
    ),
]


@pytest.fixture(params=FAST)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    on_gpu = request.param == "triton" and not INTERPRETED
    with torch.device("cuda" if on_gpu else "cpu"), ops.backend(request.param):
        yield request.param
