"""Vectors inside numba functions: several neighbours of an array are loaded, computed with and stored at once.

Whether a loop over single elements is turned into such vectors is up to the compiler, which gives up on reductions,
short rows or several arrays, and differs between versions. A loop over lanes is what it says. LLVM maps a vector to the
registers of the processor, several where it is wider than one.

Every function says in numpy what it computes, which is what runs where numba is told not to compile, and then builds
the instructions. ``a + b``, ``a * b`` and ``a / b`` work lane by lane. There is no bounds check.

Whoever changes this file has to remove the kernels in ``__pycache__``: numba keeps them and does not notice.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, overload, register_model

from gca.ops.threads import AS_PYTHON

_INT = ir.IntType(32)


class Lanes(types.Type):
    """The type of ``count`` numbers."""

    def __init__(self, dtype: types.Type, count: int) -> None:
        self.dtype, self.count = dtype, count
        super().__init__(name=f"Lanes({dtype}, {count})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Lanes) -> None:
        vector = ir.VectorType(manager.lookup(lanes.dtype).get_value_type(), lanes.count)
        super().__init__(manager, lanes, vector)  # type: ignore[no-untyped-call]


def _computes(meaning: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """An intrinsic of numba, or ``meaning`` where numba is told not to compile."""
    return lambda typed: meaning if AS_PYTHON else intrinsic(prefer_literal=True)(typed)


@_computes(lambda array, start, count: array[start : start + count].copy())
def load(_: Any, array: Any, start: Any, count: Any) -> Any:
    """``count`` elements of a one-dimensional array from ``start`` on; ``count`` is a constant."""
    lanes = Lanes(array.dtype, count.literal_value)

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer = _pointer(context, builder, signature, values, context.get_value_type(lanes))
        return builder.load(pointer, align=array.dtype.bitwidth // 8)

    return lanes(array, start, count), build


def _store(array: Any, start: int, lanes: Any) -> None:
    array[start : start + len(lanes)] = lanes


@_computes(_store)
def store(_: Any, array: Any, start: Any, lanes: Any) -> Any:
    """Write lanes to a one-dimensional array from ``start`` on."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer = _pointer(context, builder, signature, values, values[2].type)
        builder.store(values[2], pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.none(array, start, lanes), build


def _pointer(context: Any, builder: Any, signature: Any, values: Any, vector: ir.VectorType) -> Any:
    data = context.make_array(signature.args[0])(context, builder, values[0]).data
    return builder.bitcast(builder.gep(data, [values[1]]), vector.as_pointer())


@_computes(lambda number, count: np.full(count, number))
def spread(_: Any, number: Any, count: Any) -> Any:
    """``count`` lanes of the same number; ``count`` is a constant."""
    lanes = Lanes(number, count.literal_value)
    return lanes(number, count), lambda _, builder, __, values: _spread(builder, values[0], lanes.count)


def _spread(builder: Any, number: Any, count: int) -> Any:
    nothing = ir.Constant(ir.VectorType(number.type, count), ir.Undefined)
    first = builder.insert_element(nothing, number, _INT(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_INT, count), [0] * count))


def _operator(symbol: Callable[..., Any], instruction: str) -> None:
    @_computes(symbol)
    def lanewise(_: Any, a: Any, b: Any) -> Any:
        return a(a, b), lambda _, builder, __, values: getattr(builder, instruction)(*values, flags=("contract",))

    @overload(symbol)
    def typed(a, b):  # type: ignore[no-untyped-def]  # numba compares the signatures
        return (lambda a, b: lanewise(a, b)) if isinstance(a, Lanes) and a == b else None


_operator(operator.add, "fadd")
_operator(operator.mul, "fmul")
_operator(operator.truediv, "fdiv")


@_computes(lambda a, b: np.where(a > b, a, b))
def larger(_: Any, a: Any, b: Any) -> Any:
    """The larger of two lanes; that of ``b`` where one of them is NaN."""
    return a(a, b), lambda _, builder, __, values: _larger(builder, *values)


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@_computes(lambda a, b, lanes: np.where(a == b, lanes, lanes.dtype.type(0)))
def where_equal(_: Any, a: Any, b: Any, lanes: Any) -> Any:
    """``lanes`` where ``a`` equals ``b``, else 0."""

    def build(_: Any, builder: Any, __: Any, values: Any) -> Any:
        return builder.select(builder.fcmp_ordered("==", *values[:2]), values[2], _zeros(values[2]))

    return lanes(a, b, lanes), build


@_computes(lambda lanes, first: np.where(np.arange(len(lanes)) >= first, lanes, lanes.dtype.type(0)))
def without(_: Any, lanes: Any, first: Any) -> Any:
    """``lanes``, of which so many ``first`` ones are set to 0."""

    def build(_: Any, builder: Any, __: Any, values: Any) -> Any:
        places = ir.Constant(ir.VectorType(_INT, lanes.count), list(range(lanes.count)))
        bound = _spread(builder, builder.trunc(values[1], _INT), lanes.count)
        return builder.select(builder.icmp_signed(">=", places, bound), values[0], _zeros(values[0]))

    return lanes(lanes, types.int64), build


def _zeros(lanes: Any) -> ir.Constant:
    return ir.Constant(lanes.type, [0.0] * lanes.type.count)


@_computes(lambda lanes: np.isnan(lanes).any())
def has_nan(_: Any, lanes: Any) -> Any:
    """Whether any lane is NaN."""

    def build(_: Any, builder: Any, __: Any, values: Any) -> Any:
        found = builder.bitcast(builder.fcmp_unordered("uno", values[0], values[0]), ir.IntType(lanes.count))
        return builder.icmp_unsigned("!=", found, found.type(0))

    return types.boolean(lanes), build


@_computes(lambda array, start, count: array[start : start + count * count].reshape(count, count).sum(1))
def totals(_: Any, array: Any, start: Any, count: Any) -> Any:
    """The sums of ``count`` vectors, which lie one after the other from ``start`` on; ``count`` is a constant."""
    return _of_each(array, start, count, lambda builder, a, b: builder.fadd(a, b))


@_computes(lambda array, start, count: array[start : start + count * count].reshape(count, count).max(1))
def maxima(_: Any, array: Any, start: Any, count: Any) -> Any:
    """The maxima of ``count`` vectors, likewise, if no element is NaN."""
    return _of_each(array, start, count, _larger)


def _of_each(array: Any, start: Any, count: Any, combine: Callable[[Any, Any, Any], Any]) -> Any:
    """Vectors are folded in twos: one half of each with its other half, all of which make one vector again."""
    lanes = Lanes(array.dtype, count.literal_value)

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        vector = context.get_value_type(lanes)
        first = _pointer(context, builder, signature, values, vector)
        vectors = [
            builder.load(builder.gep(first, [_INT(row)]), align=array.dtype.bitwidth // 8) for row in range(lanes.count)
        ]
        half = lanes.count
        while half := half // 2:
            places = [place for place in range(2 * lanes.count) if place // half % 2 == 0]
            masks = [ir.Constant(ir.VectorType(_INT, lanes.count), [p + by for p in places]) for by in (0, half)]
            vectors = [
                combine(builder, *(builder.shuffle_vector(a, b, mask) for mask in masks))
                for a, b in zip(vectors[::2], vectors[1::2], strict=True)
            ]
        return vectors[0]

    return lanes(array, start, count), build
