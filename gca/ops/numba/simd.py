"""SIMD vectors inside numba functions: neighbours of an array are loaded, computed with and stored at once.

Whether a loop over single elements is vectorised is up to the compiler, which gives up on reductions, short rows or
several arrays, and differs between versions. A loop over vectors is what it says. LLVM maps a vector to the registers
of the processor, several where it is wider than one.

Every function says in numpy what it computes, which is what runs where numba is told not to compile, and then builds
the instructions. ``a + b``, ``a * b`` and ``a / b`` work element by element. There is no bounds check.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, overload, register_model

from gca.ops.numba.threads import AS_PYTHON

_INT = ir.IntType(32)


class Vector(types.Type):
    """The type of ``size`` numbers."""

    def __init__(self, dtype: types.Type, size: int) -> None:
        self.dtype, self.size = dtype, size
        super().__init__(name=f"Vector({dtype}, {size})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        llvm = ir.VectorType(manager.lookup(vector.dtype).get_value_type(), vector.size)
        super().__init__(manager, vector, llvm)  # type: ignore[no-untyped-call]


def _computes(meaning: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """An intrinsic of numba, or ``meaning`` where numba is told not to compile."""
    return lambda typed: meaning if AS_PYTHON else intrinsic(prefer_literal=True)(typed)


@_computes(lambda array, start, size: array[start : start + size].copy())
def load(_: Any, array: Any, start: Any, size: Any) -> Any:
    """``size`` elements of a one-dimensional array from ``start`` on; ``size`` is a constant."""
    vector = Vector(array.dtype, size.literal_value)

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer = _pointer(context, builder, signature, values, context.get_value_type(vector))
        return builder.load(pointer, align=array.dtype.bitwidth // 8)

    return vector(array, start, size), build


def _store(array: Any, start: int, vector: Any) -> None:
    array[start : start + len(vector)] = vector


@_computes(_store)
def store(_: Any, array: Any, start: Any, vector: Any) -> Any:
    """Write a vector to a one-dimensional array from ``start`` on."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer = _pointer(context, builder, signature, values, values[2].type)
        builder.store(values[2], pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.none(array, start, vector), build


def _pointer(context: Any, builder: Any, signature: Any, values: Any, vector: ir.VectorType) -> Any:
    data = context.make_array(signature.args[0])(context, builder, values[0]).data
    return builder.bitcast(builder.gep(data, [values[1]]), vector.as_pointer())


@_computes(lambda number, size: np.full(size, number))
def broadcast(_: Any, number: Any, size: Any) -> Any:
    """A vector of the same number; ``size`` is a constant."""
    vector = Vector(number, size.literal_value)
    return vector(number, size), lambda _, builder, __, values: _broadcast(builder, values[0], vector.size)


def _broadcast(builder: Any, number: Any, size: int) -> Any:
    nothing = ir.Constant(ir.VectorType(number.type, size), ir.Undefined)
    first = builder.insert_element(nothing, number, _INT(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_INT, size), [0] * size))


def _operator(symbol: Callable[..., Any], instruction: str) -> None:
    @_computes(symbol)
    def elementwise(_: Any, a: Any, b: Any) -> Any:
        return a(a, b), lambda _, builder, __, values: getattr(builder, instruction)(*values, flags=("contract",))

    @overload(symbol)
    def typed(a, b):  # type: ignore[no-untyped-def]  # numba compares the signatures
        return (lambda a, b: elementwise(a, b)) if isinstance(a, Vector) and a == b else None


_operator(operator.add, "fadd")
_operator(operator.mul, "fmul")
_operator(operator.truediv, "fdiv")


@_computes(lambda a, b: np.where(a > b, a, b))
def maximum(_: Any, a: Any, b: Any) -> Any:
    """The larger of two elements; that of ``b`` where one of them is NaN."""
    return a(a, b), lambda _, builder, __, values: _maximum(builder, *values)


def _maximum(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@_computes(lambda a, b, vector: np.where(a == b, vector, vector.dtype.type(0)))
def where_equal(_: Any, a: Any, b: Any, vector: Any) -> Any:
    """``vector`` where ``a`` equals ``b``, else 0."""

    def build(_: Any, builder: Any, __: Any, values: Any) -> Any:
        return builder.select(builder.fcmp_ordered("==", *values[:2]), values[2], _zeros(values[2]))

    return vector(a, b, vector), build


@_computes(lambda vector, first: np.where(np.arange(len(vector)) >= first, vector, vector.dtype.type(0)))
def mask_first(_: Any, vector: Any, first: Any) -> Any:
    """``vector``, of which so many ``first`` elements are set to 0."""

    def build(_: Any, builder: Any, __: Any, values: Any) -> Any:
        places = ir.Constant(ir.VectorType(_INT, vector.size), list(range(vector.size)))
        bound = _broadcast(builder, builder.trunc(values[1], _INT), vector.size)
        return builder.select(builder.icmp_signed(">=", places, bound), values[0], _zeros(values[0]))

    return vector(vector, types.int64), build


def _zeros(vector: Any) -> ir.Constant:
    return ir.Constant(vector.type, [0.0] * vector.type.count)


@_computes(lambda vector: np.isnan(vector).any())
def has_nan(_: Any, vector: Any) -> Any:
    """Whether any element is NaN."""

    def build(_: Any, builder: Any, __: Any, values: Any) -> Any:
        found = builder.bitcast(builder.fcmp_unordered("uno", values[0], values[0]), ir.IntType(vector.size))
        return builder.icmp_unsigned("!=", found, found.type(0))

    return types.boolean(vector), build


@_computes(lambda array, start, size: array[start : start + size * size].reshape(size, size).sum(1))
def horizontal_sums(_: Any, array: Any, start: Any, size: Any) -> Any:
    """The sums of ``size`` vectors, which lie one after the other from ``start`` on; ``size`` is a constant."""
    return _fold(array, start, size, lambda builder, a, b: builder.fadd(a, b))


@_computes(lambda array, start, size: array[start : start + size * size].reshape(size, size).max(1))
def horizontal_maxima(_: Any, array: Any, start: Any, size: Any) -> Any:
    """The maxima of ``size`` vectors, likewise, if no element is NaN."""
    return _fold(array, start, size, _maximum)


def _fold(array: Any, start: Any, size: Any, combine: Callable[[Any, Any, Any], Any]) -> Any:
    """Vectors are folded in twos: one half of each with its other half, all of which make one vector again."""
    vector = Vector(array.dtype, size.literal_value)

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        first = _pointer(context, builder, signature, values, context.get_value_type(vector))
        align = array.dtype.bitwidth // 8
        vectors = [builder.load(builder.gep(first, [_INT(row)]), align=align) for row in range(vector.size)]
        half = vector.size
        while half := half // 2:
            places = [place for place in range(2 * vector.size) if place // half % 2 == 0]
            masks = [ir.Constant(ir.VectorType(_INT, vector.size), [p + by for p in places]) for by in (0, half)]
            vectors = [
                combine(builder, *(builder.shuffle_vector(a, b, mask) for mask in masks))
                for a, b in zip(vectors[::2], vectors[1::2], strict=True)
            ]
        return vectors[0]

    return vector(array, start, size), build
