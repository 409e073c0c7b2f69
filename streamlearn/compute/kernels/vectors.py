"""Vector loops over embedding rows: the sums that score an example, and the steps that teach it.

LLVM vectors written out, since a row is as long as one or two registers: the compiler's own
vectoriser makes of the same loops in Numba something 2.6 times slower. Rows are given by address;
``streamlearn.embeddings`` says how they lie. One call is for one block of ``lanes`` coordinates of
all features of an example.

Equations, per coordinate f, with a_i = V_if x_i over the example's features (Rendle, "Factorization
Machines with libFM", 2012; third order: the power sums of an ANOVA kernel):

    order 2   s1 = sum a_i;  s2 = sum a_i^2;  score += (s1^2 - s2) / 2
              dscore / dV_if = x_i (s1 - a_i)
    order 3   s3 = sum a_i^3;  score += (s1^3 - 3 s1 s2 + 2 s3) / 6
              dscore / dV_if = x_i ((s1^2 - s2) / 2 - a_i s1 + a_i^2)
    AdaGrad   g += l2 V;  n += g^2;  V -= rate g / (beta + sqrt(n))

A gradient is cut at 2**51, then n stays finite (``kernels.linear``).
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = [
    "GRADIENT_MAX",
    "second_8",
    "second_16",
    "slopes_8",
    "slopes_16",
    "teach_8",
    "teach_16",
    "third_8",
    "third_16",
]

GRADIENT_MAX = 2.0**51

# Numba compiles for this machine, or for the one that its user names.
_HAS_AVX: bool = getattr(config, "CPU_NAME", None) is None and bool(
    binding.get_host_cpu_features().get("avx", False)
)
# So that the reciprocal root of 0 is finite.
_TINY = 1e-35

_F32, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
# Sums may be reassociated and contracted; NaN and infinity keep their meaning.
_FLAGS = ("nsz", "arcp", "contract", "afn", "reassoc")


class _Lanes:
    """What is said of vectors of one length, on one builder."""

    def __init__(self, builder: ir.IRBuilder, lanes: int) -> None:
        self.builder = builder
        self.lanes = lanes
        self.kind = ir.VectorType(_F32, lanes)

    def constant(self, value: float) -> ir.Value:
        return ir.Constant(self.kind, [_F32(value)] * self.lanes)

    def spread(self, value: ir.Value) -> ir.Value:
        none = ir.Constant(self.kind, ir.Undefined)
        one = self.builder.insert_element(none, value, _I32(0))
        mask = ir.Constant(ir.VectorType(_I32, self.lanes), [_I32(0)] * self.lanes)
        return self.builder.shuffle_vector(one, none, mask)

    def _at(self, address: ir.Value, offset: int) -> ir.Value:
        if offset:
            address = self.builder.add(address, _I64(offset))
        return self.builder.inttoptr(address, self.kind.as_pointer())

    def load(self, address: ir.Value, offset: int = 0) -> ir.Value:
        return self.builder.load(self._at(address, offset), align=4)

    def store(self, value: ir.Value, address: ir.Value, offset: int = 0) -> None:
        self.builder.store(value, self._at(address, offset), align=4)

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.fadd(a, b, flags=_FLAGS)

    def sub(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.fsub(a, b, flags=_FLAGS)

    def mul(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.fmul(a, b, flags=_FLAGS)

    def div(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.fdiv(a, b, flags=_FLAGS)

    def _call(self, name: str, result: ir.Type, *args: ir.Value) -> ir.Value:
        kind = ir.FunctionType(result, [arg.type for arg in args])
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, args, fastmath=_FLAGS)

    def sqrt(self, value: ir.Value) -> ir.Value:
        return self._call(f"llvm.sqrt.v{self.lanes}f32", self.kind, value)

    def _estimate(self, name: str, value: ir.Value) -> ir.Value:
        """Return AVX's estimate (12 bits) of a reciprocal or reciprocal root."""
        eight = ir.VectorType(_F32, 8)
        if self.lanes == 8:
            return self._call(name, eight, value)
        none = ir.Constant(self.kind, ir.Undefined)
        halves = []
        for first in (0, 8):
            mask = ir.Constant(ir.VectorType(_I32, 8), [_I32(first + i) for i in range(8)])
            half = self.builder.shuffle_vector(value, none, mask)
            halves.append(self._call(name, eight, half))
        mask = ir.Constant(ir.VectorType(_I32, 16), [_I32(i) for i in range(16)])
        return self.builder.shuffle_vector(*halves, mask)

    def over_root(self, top: ir.Value, beta: ir.Value, n: ir.Value) -> ir.Value:
        """Return ``top / (beta + sqrt(n))``, n >= 0, beta > 0.

        With AVX by estimates (relative error of the two together below 2**-10), since a root and a
        division of eight numbers hold the divider for a dozen cycles: a step with 39 embeddings of
        16 coordinates takes 150 ns instead of 210. (With a step of Newton's each: 240.)
        """
        if not _HAS_AVX:
            return self.div(top, self.add(beta, self.sqrt(n)))
        root = self.mul(
            n, self._estimate("llvm.x86.avx.rsqrt.ps.256", self.add(n, self.constant(_TINY)))
        )
        r = self._estimate("llvm.x86.avx.rcp.ps.256", self.add(beta, root))
        return self.mul(top, r)

    def total(self, value: ir.Value) -> ir.Value:
        return self._call(f"llvm.vector.reduce.fadd.v{self.lanes}f32", _F32, _F32(0.0), value)

    def cut(self, value: ir.Value, most: float) -> ir.Value:
        """Return ``value`` between minus and plus ``most``; NaN becomes ``-most``."""
        builder, high, low = self.builder, self.constant(most), self.constant(-most)
        value = builder.select(builder.fcmp_ordered("<", value, high), value, high)
        return builder.select(builder.fcmp_ordered(">", value, low), value, low)

    def element(self, address: ir.Value, index: ir.Value, kind: ir.Type) -> ir.Value:
        pointer = self.builder.inttoptr(address, kind.as_pointer())
        return self.builder.load(self.builder.gep(pointer, [index]))


def _sums(lanes: int, order: int, offset: int) -> Any:
    """Make the loop that sums one block: order 2 or 3, its values ``offset`` bytes into the block.

    The intrinsic takes (addresses, xs, n, block, sums): addresses of int64[n] rows and float32[n]
    values, the byte offset of the block in a row, and where the sums go: s1, s2, each ``lanes``
    floats. It returns what the block adds to the score.
    """

    @intrinsic
    def sums(_context: Any, rows: Any, xs: Any, n: Any, block: Any, out: Any) -> Any:
        def generate(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
            rows, xs, n, block, out = args
            v = _Lanes(builder, lanes)
            powers = [cgutils.alloca_once(builder, v.kind) for _ in range(order)]
            for power in powers:
                builder.store(v.constant(0.0), power)
            with cgutils.for_range(builder, n) as loop:
                row = builder.add(v.element(rows, loop.index, _I64), block)
                a = v.mul(v.load(row, offset), v.spread(v.element(xs, loop.index, _F32)))
                term = a
                for number, power in enumerate(powers):
                    if number:
                        term = v.mul(term, a)
                    builder.store(v.add(builder.load(power), term), power)
            s1, s2 = builder.load(powers[0]), builder.load(powers[1])
            v.store(s1, out)
            v.store(s2, out, 4 * lanes)
            if order == 2:
                pairs = v.sub(v.mul(s1, s1), s2)
                return builder.fmul(v.total(pairs), _F32(0.5))
            s3 = builder.load(powers[2])
            inner = v.sub(v.mul(s1, s1), v.mul(v.constant(3.0), s2))
            triples = v.add(v.mul(s1, inner), v.mul(v.constant(2.0), s3))
            return builder.fmul(v.total(triples), _F32(1.0 / 6.0))

        return types.float32(*[types.int64] * 5), generate

    return sums


def _teach(lanes: int, *, steps: bool) -> Any:
    """Make the loop that takes one AdaGrad step with one block, or only sums its gradient.

    The intrinsic takes (addresses, xs, gxs, n, block, sums, third, rate, beta, l2): ``gxs`` are the
    gradients of the score times the values, float32[n]; ``third`` is 0, or where the sums of the
    third order stand. Without ``steps`` the gradient is added to what stands where the sums of
    squares would, each term cut at 2**51, so sums of fewer than 2**76 are finite.
    """

    @intrinsic
    def teach(
        _context: Any, rows: Any, xs: Any, gxs: Any, n: Any, block: Any, sums: Any, third: Any,
        rate: Any, beta: Any, l2: Any,
    ) -> Any:  # fmt: skip
        def generate(ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
            rows, xs, gxs, n, block, sums, third, rate, beta, l2 = args
            v = _Lanes(builder, lanes)
            rate, beta, l2 = v.spread(rate), v.spread(beta), v.spread(l2)
            size = 4 * lanes

            def move(row: ir.Value, offset: int, value: ir.Value, gradient: ir.Value) -> None:
                g = v.cut(gradient, GRADIENT_MAX)
                held = v.load(row, offset + size)
                if not steps:
                    v.store(v.add(held, g), row, offset + size)
                    return
                g = v.add(g, v.mul(l2, value))
                n = v.add(held, v.mul(g, g))
                v.store(n, row, offset + size)
                v.store(v.sub(value, v.over_root(v.mul(rate, g), beta, n)), row, offset)

            def pairs(s1: ir.Value, index: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
                row = builder.add(v.element(rows, index, _I64), block)
                x = v.spread(v.element(xs, index, _F32))
                gx = v.spread(v.element(gxs, index, _F32))
                value = v.load(row)
                move(row, 0, value, v.mul(gx, v.sub(s1, v.mul(value, x))))
                return row, x, gx

            s1 = v.load(sums)
            two = builder.icmp_signed("==", third, _I64(0))
            with builder.if_else(two) as (only, both):
                with only, cgutils.for_range(builder, n) as loop:
                    pairs(s1, loop.index)
                with both:
                    t1, t2 = v.load(third), v.load(third, size)
                    inner = v.mul(v.constant(0.5), v.sub(v.mul(t1, t1), t2))
                    with cgutils.for_range(builder, n) as loop:
                        row, x, gx = pairs(s1, loop.index)
                        value = v.load(row, 2 * size)
                        a = v.mul(value, x)
                        slope = v.add(inner, v.mul(a, v.sub(a, t1)))
                        move(row, 2 * size, value, v.mul(gx, slope))
            return ctx.get_dummy_value()

        integers, floats = [types.int64] * 7, [types.float32] * 3
        return types.void(*integers, *floats), generate

    return teach


second_8, second_16 = _sums(8, 2, 0), _sums(16, 2, 0)
third_8, third_16 = _sums(8, 3, 64), _sums(16, 3, 128)
teach_8, teach_16 = _teach(8, steps=True), _teach(16, steps=True)
slopes_8, slopes_16 = _teach(8, steps=False), _teach(16, steps=False)
