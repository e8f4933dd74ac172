"""SIMD vectors inside numba functions against numpy, compiled or not."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

numba = pytest.importorskip("numba")

from gca.ops.numba.simd import (  # noqa: E402
    broadcast,
    has_nan,
    horizontal_maxima,
    horizontal_sums,
    load,
    mask_first,
    maximum,
    store,
    where_equal,
)

Array = np.ndarray[Any, Any]


@pytest.fixture(params=[np.float32, np.float64])
def numbers(request: pytest.FixtureRequest) -> Array:
    values = np.random.default_rng(0).standard_normal((3, 80)).round(1).astype(request.param)
    values[1, :5] = values[0, :5]
    values[0, 6], values[1, 7], values[0, 8], values[1, 9] = np.nan, np.nan, np.inf, -np.inf
    return values


@pytest.fixture(params=[1, 4, 8, 64])
def count(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.mark.filterwarnings("ignore:.* encountered in .*divide:RuntimeWarning")
@pytest.mark.parametrize(
    ("ours", "formula"),
    [
        (lambda a, b, c: a + b, lambda a, b, c: a + b),
        (lambda a, b, c: a * b, lambda a, b, c: a * b),
        (lambda a, b, c: a / b, lambda a, b, c: a / b),
        (lambda a, b, c: maximum(a, b), lambda a, b, c: np.where(a > b, a, b)),
        (lambda a, b, c: where_equal(a, b, c), lambda a, b, c: np.where(a == b, c, 0)),
        (lambda a, b, c: mask_first(a, 3), lambda a, b, c: np.where(np.arange(len(a)) < 3, 0, a)),
    ],
    ids=["add", "multiply", "divide", "maximum", "where_equal", "mask_first"],
)
def test_element_by_element(numbers: Array, count: int, ours: Callable[..., Any], formula: Callable[..., Any]) -> None:
    compiled = numba.njit(ours, error_model="numpy")

    @numba.njit
    def run(result: Any, a: Any, b: Any, c: Any) -> None:
        store(result, 3, compiled(load(a, 3, count), load(b, 3, count), load(c, 3, count)))

    result = np.full(80, 7, numbers.dtype)
    run(result, *numbers)
    assert (result[:3] == 7).all()
    assert (result[3 + count :] == 7).all()
    np.testing.assert_array_equal(result[3 : 3 + count], formula(*(a[3 : 3 + count] for a in numbers)))


def test_any_element_that_is_nan(numbers: Array, count: int) -> None:
    @numba.njit
    def run(a: Any) -> Any:
        return has_nan(load(a, 5, count))

    a = numbers[2]
    assert not run(a)
    for place in (5, 4 + count):
        with_one = a.copy()
        with_one[place] = np.nan
        assert run(with_one)
    a[4] = a[5 + count] = np.nan  # beside them
    assert not run(a)


@pytest.mark.parametrize("count", [1, 4, 8])
def test_each_of_several_vectors(numbers: Array, count: int) -> None:
    @numba.njit
    def run(sums: Any, maxima: Any, a: Any) -> None:
        store(sums, 2, horizontal_sums(a, 5, count))
        store(maxima, 2, horizontal_maxima(a, 5, count))

    a = numbers[2]
    sums, maxima = np.full((2, 80), 7, a.dtype)
    run(sums, maxima, a)
    for result, formula in ((sums, np.sum), (maxima, np.max)):
        assert (result[:2] == 7).all()
        assert (result[2 + count :] == 7).all()
        vectors = a[5 : 5 + count * count].reshape(count, count)
        np.testing.assert_allclose(result[2 : 2 + count], formula(vectors, axis=1), rtol=1e-4, atol=1e-6)


def test_one_number_in_all_elements(numbers: Array, count: int) -> None:
    @numba.njit
    def run(a: Any) -> None:
        store(a, 1, broadcast(a[0], count))

    a = numbers[2]
    expected = np.r_[np.full(1 + count, a[0]), a[1 + count :]]
    run(a)
    np.testing.assert_array_equal(a, expected)
