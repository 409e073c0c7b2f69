"""Vector loops over a document's list of topics: products and their running sums, and a search.

LLVM vectors written out, as in ``kernels.vectors``. A list is whole vectors of eight entries, each
a topic (upper 16 bits) and how many of the document's tokens have it (lower 16 bits); what fills
the last vector up is ``FILLER``, whose count is 0. Nothing is reassociated beyond what is written
here, so sums are the same on every machine.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["FILLER", "LANES", "below", "float_of", "walk"]

LANES = 8
FILLER = 0xFFFF0000

_SHIFT = 3  # log2 of LANES
_F32, _I1, _I16, _I32, _I64 = (
    ir.FloatType(), ir.IntType(1), ir.IntType(16), ir.IntType(32), ir.IntType(64)
)  # fmt: skip
_FLOATS, _INTS = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)
_MASK = ir.IntType(LANES)
_ZEROS = ir.Constant(_FLOATS, [_F32(0.0)] * LANES)


def _spread(builder: ir.IRBuilder, value: ir.Value, kind: ir.VectorType) -> ir.Value:
    none = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(none, value, _I32(0))
    return builder.shuffle_vector(one, none, ir.Constant(_INTS, [_I32(0)] * LANES))


def _all(value: int) -> ir.Constant:
    return ir.Constant(_INTS, [_I32(value)] * LANES)


def _up(builder: ir.IRBuilder, value: ir.Value, by: int) -> ir.Value:
    """Return a vector moved up by so many places, zeros below."""
    places = [_I32(LANES + i - by if i >= by else 0) for i in range(LANES)]
    return builder.shuffle_vector(_ZEROS, value, ir.Constant(_INTS, places))


def _at(builder: ir.IRBuilder, base: ir.Value, index: ir.Value, kind: ir.Type) -> ir.Value:
    """Return the address of a four-byte element as a pointer to ``kind``."""
    return builder.inttoptr(builder.add(base, builder.shl(index, _I64(2))), kind.as_pointer())


@intrinsic
def walk(_context: Any, entries: Any, size: Any, phi: Any, sums: Any, topic: Any) -> Any:
    """Multiply each entry's count by its topic's ``phi``, and keep the running sums.

    Parameters
    ----------
    entries, phi, sums : int64
        Addresses: of the list (32-byte aligned), of float32[65536], of float32[size] to be written
        (32-byte aligned).
    size : int64
        Entries, a multiple of ``LANES``.
    topic : int64

    Returns
    -------
    int64
        Upper half: where in the list ``topic`` stands (0 if nowhere). Lower half: the sum as bits.
    """

    def generate(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        entries, size, phi, sums, topic = args
        total = cgutils.alloca_once_value(builder, _F32(0.0))
        place = cgutils.alloca_once_value(builder, _I64(0))
        wanted = _spread(builder, builder.trunc(topic, _I32), _INTS)
        zeros_below = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_I64, [_I64, _I1]), "llvm.cttz.i64"
        )
        with cgutils.for_range(builder, builder.lshr(size, _I64(_SHIFT))) as loop:
            j = builder.shl(loop.index, _I64(_SHIFT))
            entry = builder.load(_at(builder, entries, j, _INTS), align=32)
            counts = builder.sitofp(builder.and_(entry, _all(0xFFFF)), _FLOATS)
            hit = builder.icmp_unsigned("==", builder.lshr(entry, _all(16)), wanted)
            bits = builder.zext(builder.bitcast(hit, _MASK), _I64)
            found = builder.add(j, builder.call(zeros_below, [bits, _I1(0)]))
            here = builder.icmp_unsigned("!=", bits, _I64(0))
            builder.store(builder.select(here, found, builder.load(place)), place)
            values = ir.Constant(_FLOATS, ir.Undefined)
            first = builder.add(entries, builder.shl(j, _I64(2)))
            for i in range(LANES):  # a topic is half an entry; loaded apart, no lane is taken out
                half = builder.inttoptr(builder.add(first, _I64(4 * i + 2)), _I16.as_pointer())
                index = builder.zext(builder.load(half, align=2), _I64)
                value = builder.load(_at(builder, phi, index, _F32), align=4)
                values = builder.insert_element(values, value, _I32(i))
            products = builder.fmul(counts, values)
            for by in (1, 2, 4):
                products = builder.fadd(products, _up(builder, products, by))
            before = builder.load(total)
            running = builder.fadd(products, _spread(builder, before, _FLOATS))
            builder.store(running, _at(builder, sums, j, _FLOATS), align=32)
            last = builder.extract_element(products, _I32(LANES - 1))
            builder.store(builder.fadd(before, last), total)
        bits = builder.zext(builder.bitcast(builder.load(total), _I32), _I64)
        return builder.or_(builder.shl(builder.load(place), _I64(32)), bits)

    kinds = (types.int64,) * 5
    return types.int64(*kinds), generate


@intrinsic
def below(_context: Any, sums: Any, size: Any, value: Any) -> Any:
    """Return how many of float32[size] at an address are not above ``value``."""

    def generate(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        sums, size, value = args
        total = cgutils.alloca_once_value(builder, _I64(0))
        limit = _spread(builder, value, _FLOATS)
        ones = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_I64, [_I64]), "llvm.ctpop.i64"
        )
        with cgutils.for_range(builder, builder.lshr(size, _I64(_SHIFT))) as loop:
            j = builder.shl(loop.index, _I64(_SHIFT))
            some = builder.load(_at(builder, sums, j, _FLOATS), align=32)
            bits = builder.zext(
                builder.bitcast(builder.fcmp_ordered("<=", some, limit), _MASK), _I64
            )
            builder.store(builder.add(builder.load(total), builder.call(ones, [bits])), total)
        return builder.load(total)

    return types.int64(types.int64, types.int64, types.float32), generate


@intrinsic
def float_of(_context: Any, bits: Any) -> Any:
    """Return the float32 whose bits are the lower half of an int64."""

    def generate(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.bitcast(builder.trunc(args[0], _I32), _F32)

    return types.float32(types.int64), generate
