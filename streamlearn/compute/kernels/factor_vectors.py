"""Vector loops over rows of factors: inner products, and the steps that move two or three rows.

LLVM vectors written out, as in ``kernels.vectors``: a row is whole 64-byte lines, given by its
address. Sums may be reassociated and contracted; NaN and infinity keep their meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["dot", "dots", "move", "move_apart", "move_pair"]

_LANES = 16
_F32, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_F32, _LANES)
_ZERO = ir.Constant(_VECTOR, [_F32(0.0)] * _LANES)
_FLAGS = ("nsz", "arcp", "contract", "afn", "reassoc")


def _load(builder: ir.IRBuilder, row: ir.Value, offset: ir.Value) -> ir.Value:
    address = builder.inttoptr(builder.add(row, offset), _VECTOR.as_pointer())
    return builder.load(address, align=64)


def _store(builder: ir.IRBuilder, value: ir.Value, row: ir.Value, offset: ir.Value) -> None:
    address = builder.inttoptr(builder.add(row, offset), _VECTOR.as_pointer())
    builder.store(value, address, align=64)


def _spread(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    none = ir.Constant(_VECTOR, ir.Undefined)
    one = builder.insert_element(none, value, _I32(0))
    mask = ir.Constant(ir.VectorType(_I32, _LANES), [_I32(0)] * _LANES)
    return builder.shuffle_vector(one, none, mask)


def _total(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    kind = ir.FunctionType(_F32, [_F32, _VECTOR])
    name = f"llvm.vector.reduce.fadd.v{_LANES}f32"
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, [_F32(0.0), value], fastmath=_FLAGS)


def _times(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    return builder.fmul(a, b, flags=_FLAGS)


def _plus(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, more: ir.Value) -> ir.Value:
    """Return ``a * b + more``."""
    return builder.fadd(_times(builder, a, b), more, flags=_FLAGS)


def _over(
    builder: ir.IRBuilder,
    lines: ir.Value,
    sums: int,
    body: Callable[[ir.Value, Sequence[ir.Value]], Sequence[ir.Value]],
) -> list[ir.Value]:
    """Run ``body`` over the lines of rows; return the totals of so many vectors of sums."""
    held = [cgutils.alloca_once_value(builder, _ZERO) for _ in range(sums)]
    with cgutils.for_range(builder, lines) as loop:
        offset = builder.shl(loop.index, _I64(6))
        now = body(offset, [builder.load(one) for one in held])
        for one, value in zip(held, now, strict=True):
            builder.store(value, one)
    return [_total(builder, builder.load(one)) for one in held]


@intrinsic
def dot(_context: Any, p: Any, q: Any, lines: Any) -> Any:
    """Return <p, q> of two rows of so many lines."""

    def generate(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        p, q, lines = args

        def body(offset: ir.Value, sums: Sequence[ir.Value]) -> list[ir.Value]:
            return [_plus(builder, _load(builder, p, offset), _load(builder, q, offset), sums[0])]

        return _over(builder, lines, 1, body)[0]

    return types.float32(types.int64, types.int64, types.int64), generate


@intrinsic
def dots(_context: Any, p: Any, q1: Any, q2: Any, lines: Any) -> Any:
    """Return <p, q1>, <p, q2> and <q1, q2> of three rows, each read once."""

    def generate(ctx: Any, builder: Any, sig: Any, args: Any) -> Any:
        p, q1, q2, lines = args

        def body(offset: ir.Value, sums: Sequence[ir.Value]) -> list[ir.Value]:
            x, y, z = (_load(builder, row, offset) for row in (p, q1, q2))
            return [
                _plus(builder, x, y, sums[0]),
                _plus(builder, x, z, sums[1]),
                _plus(builder, y, z, sums[2]),
            ]

        return ctx.make_tuple(builder, sig.return_type, _over(builder, lines, 3, body))

    return types.UniTuple(types.float32, 3)(*[types.int64] * 4), generate


@intrinsic
def move(_context: Any, p: Any, q: Any, lines: Any, kept: Any, gain: Any) -> Any:
    """Move two rows by one step: p = kept p + gain q, q = kept q + gain p, with the old p."""

    def generate(ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        p, q, lines = args[:3]
        kept, gain = (_spread(builder, value) for value in args[3:])

        def body(offset: ir.Value, _sums: Sequence[ir.Value]) -> list[ir.Value]:
            x, y = _load(builder, p, offset), _load(builder, q, offset)
            _store(builder, _plus(builder, gain, y, _times(builder, kept, x)), p, offset)
            _store(builder, _plus(builder, gain, x, _times(builder, kept, y)), q, offset)
            return []

        _over(builder, lines, 0, body)
        return ctx.get_dummy_value()

    return types.void(*[types.int64] * 3, *[types.float32] * 2), generate


@intrinsic
def move_apart(_context: Any, p: Any, q: Any, lines: Any, gain_p: Any, gain_q: Any) -> Any:
    """Move two rows, each by a gain of its own: p += gain_p q, q += gain_q p, with the old p."""

    def generate(ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        p, q, lines = args[:3]
        a, b = (_spread(builder, value) for value in args[3:])

        def body(offset: ir.Value, _sums: Sequence[ir.Value]) -> list[ir.Value]:
            x, y = _load(builder, p, offset), _load(builder, q, offset)
            _store(builder, _plus(builder, a, y, x), p, offset)
            _store(builder, _plus(builder, b, x, y), q, offset)
            return []

        _over(builder, lines, 0, body)
        return ctx.get_dummy_value()

    return types.void(*[types.int64] * 3, *[types.float32] * 2), generate


@intrinsic
def move_pair(
    _context: Any, p: Any, q1: Any, q2: Any, lines: Any, kept: Any, gain1: Any, gain2: Any
) -> Any:
    """Move three rows by two steps, the one of p and q1 and then that of p and q2.

    As ``move(p, q1)`` and ``move(p, q2)``, in one pass over memory: with k = kept, g1, g2,

        p = k^2 p + k g1 q1 + g2 q2
        q1 = k q1 + g1 p
        q2 = k q2 + g2 (k p + g1 q1)
    """

    def generate(ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        p, q1, q2, lines, k, g1, g2 = args
        fresh = [
            builder.fmul(k, k), builder.fmul(k, g1), g2, k, g1, builder.fmul(g2, k),
            builder.fmul(g2, g1),
        ]  # fmt: skip
        pp, p1, p2, kept, a, b, c = (_spread(builder, value) for value in fresh)

        def body(offset: ir.Value, _sums: Sequence[ir.Value]) -> list[ir.Value]:
            x, y, z = (_load(builder, row, offset) for row in (p, q1, q2))
            moved = _plus(builder, p1, y, _times(builder, pp, x))
            _store(builder, _plus(builder, p2, z, moved), p, offset)
            _store(builder, _plus(builder, a, x, _times(builder, kept, y)), q1, offset)
            moved = _plus(builder, b, x, _times(builder, kept, z))
            _store(builder, _plus(builder, c, y, moved), q2, offset)
            return []

        _over(builder, lines, 0, body)
        return ctx.get_dummy_value()

    return types.void(*[types.int64] * 4, *[types.float32] * 3), generate
