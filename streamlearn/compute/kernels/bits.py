"""Words, masks, prefetch and hashing: the small vocabulary that the parse and table kernels share.

Addresses are int64 (``array.ctypes.data`` plus bytes); nothing here checks bounds, its callers do.
All of it is inlined by LLVM.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import config, njit, types, uint64
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = [
    "HAS_VBMI2",
    "apart",
    "clz",
    "compress_positions",
    "cross_key",
    "ctz",
    "dice",
    "digits_value",
    "float_bits",
    "load8",
    "load32",
    "load64",
    "log_bucket",
    "mask_eq2",
    "mask_high",
    "mix",
    "popcount",
    "prefetch",
    "prefetch_read",
    "store32",
    "store64",
    "token_key",
]

# What the two-pass scanner may use; other machines take the portable path, and so does a user who
# has numba compile for another CPU than this one (NUMBA_CPU_NAME).
HAS_VBMI2: bool = getattr(config, "CPU_NAME", None) is None and bool(
    binding.get_host_cpu_features().get("avx512vbmi2", False)
)

_I8, _I16, _I32, _I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)


def _pointer(builder: ir.IRBuilder, address: ir.Value, kind: ir.Type) -> ir.Value:
    return builder.inttoptr(address, kind.as_pointer())


def _load(bits: int) -> Callable[..., Any]:
    kind = ir.IntType(bits)

    @intrinsic
    def load(_context: Any, address: Any) -> Any:
        def generate(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
            value = builder.load(_pointer(builder, args[0], kind), align=1)
            return value if bits == 64 else builder.zext(value, _I64)

        return types.uint64(types.int64), generate

    return load


load8 = _load(8)
load32 = _load(32)
load64 = _load(64)


@intrinsic
def store32(_context: Any, address: Any, value: Any) -> Any:
    """Store a float32 or uint32 at an unaligned address."""

    def generate(ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        builder.store(args[1], _pointer(builder, args[0], args[1].type), align=1)
        return ctx.get_dummy_value()

    return types.void(
        types.int64, types.float32 if value == types.float32 else types.uint32
    ), generate


@intrinsic
def store64(_context: Any, address: Any, value: Any) -> Any:
    """Store a uint64 at an unaligned address."""

    def generate(ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        builder.store(args[1], _pointer(builder, args[0], _I64), align=1)
        return ctx.get_dummy_value()

    return types.void(types.int64, types.uint64), generate


def _prefetch(write: int, says: str) -> Callable[..., Any]:
    @intrinsic
    def prefetch(_context: Any, address: Any) -> Any:
        def generate(ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
            pointer = _I8.as_pointer()
            function = cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32]),
                "llvm.prefetch.p0",
            )
            address = builder.inttoptr(args[0], pointer)
            builder.call(function, [address, _I32(write), _I32(3), _I32(1)])
            return ctx.get_dummy_value()

        return types.void(types.int64), generate

    prefetch.__doc__ = says
    return prefetch


prefetch = _prefetch(1, "Ask for the cache line of an address, to be written soon; never faults.")
# (A line that was asked for to be written is no longer in another core's cache.)
prefetch_read = _prefetch(0, "Ask for the cache line of an address, to be read; never faults.")


def _unary(name: str) -> Callable[..., Any]:
    @intrinsic
    def unary(_context: Any, value: Any) -> Any:
        def generate(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
            flag = [] if name == "ctpop" else [ir.IntType(1)]
            function = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(_I64, [_I64, *flag]), f"llvm.{name}.i64"
            )
            return builder.call(function, [args[0], *(kind(0) for kind in flag)])

        return types.uint64(types.uint64), generate

    return unary


ctz = _unary("cttz")  # zeros below the lowest set bit; 64 for 0
clz = _unary("ctlz")  # zeros above the highest set bit; 64 for 0
popcount = _unary("ctpop")


@intrinsic
def float_bits(_context: Any, value: Any) -> Any:
    """Return the 32 bits of a float32 as uint64."""

    def generate(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.zext(builder.bitcast(args[0], _I32), _I64)

    return types.uint64(types.float32), generate


@intrinsic
def mask_eq2(_context: Any, address: Any, first: Any, second: Any) -> Any:
    """Return a bit for each of 64 bytes from ``address`` that equals either of two bytes.

    Bit 0 is the first byte.
    """

    def generate(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        kind = ir.VectorType(_I8, 64)
        data = builder.load(_pointer(builder, args[0], kind), align=1)
        zeros = ir.Constant(ir.VectorType(_I32, 64), [_I32(0)] * 64)
        undefined = ir.Constant(kind, ir.Undefined)
        masks = []
        for byte in args[1:]:
            one = builder.insert_element(undefined, builder.trunc(byte, _I8), _I32(0))
            masks.append(
                builder.icmp_unsigned("==", data, builder.shuffle_vector(one, undefined, zeros))
            )
        return builder.bitcast(builder.or_(*masks), _I64)

    return types.uint64(types.int64, types.uint64, types.uint64), generate


@intrinsic
def mask_high(_context: Any, address: Any) -> Any:
    """Return a bit for each of 64 bytes from ``address`` that is not ASCII, bit 0 the first."""

    def generate(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        kind = ir.VectorType(_I8, 64)
        data = builder.load(_pointer(builder, args[0], kind), align=1)
        zeros = ir.Constant(kind, [_I8(0)] * 64)
        return builder.bitcast(builder.icmp_signed("<", data, zeros), _I64)

    return types.uint64(types.int64), generate


@intrinsic
def compress_positions(_context: Any, mask: Any, offset: Any, target: Any) -> Any:
    """Write ``offset + i`` as uint32 for the first 32 set bits ``i`` of a mask.

    Needs AVX-512 VBMI2, and room for 32 at the target.
    """

    def generate(ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        mask, offset, target = args
        bytes64, words16 = ir.VectorType(_I8, 64), ir.VectorType(_I32, 16)
        iota = ir.Constant(bytes64, [_I8(i) for i in range(64)])
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(bytes64, [bytes64, bytes64, ir.VectorType(ir.IntType(1), 64)]),
            "llvm.x86.avx512.mask.compress.v64i8",
        )
        packed = builder.call(
            function,
            [
                iota,
                ir.Constant(bytes64, [_I8(0)] * 64),
                builder.bitcast(mask, ir.VectorType(ir.IntType(1), 64)),
            ],
        )
        undefined = ir.Constant(words16, ir.Undefined)
        base = builder.insert_element(undefined, builder.trunc(offset, _I32), _I32(0))
        base = builder.shuffle_vector(
            base, undefined, ir.Constant(ir.VectorType(_I32, 16), [_I32(0)] * 16)
        )
        for half in range(2):
            picked = builder.shuffle_vector(
                packed,
                ir.Constant(bytes64, ir.Undefined),
                ir.Constant(ir.VectorType(_I32, 16), [_I32(16 * half + i) for i in range(16)]),
            )
            words = builder.add(builder.zext(picked, words16), base)
            builder.store(
                words, _pointer(builder, builder.add(target, _I64(64 * half)), words16), align=4
            )
        return ctx.get_dummy_value()

    return types.void(types.uint64, types.int64, types.int64), generate


@intrinsic
def dice(_context: Any, state: Any, index: Any) -> Any:
    """Return 20 random bits as uint32, a function of a state and an index.

    The finaliser of MurmurHash3 over a counter, in 32 bits throughout, which numba's own arithmetic
    would widen to 64: half as many lanes, and no multiplication for them before AVX-512.
    """

    def generate(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        def fold(word: Any, bits: int) -> Any:
            return builder.xor(word, builder.lshr(word, _I32(bits)))

        step = builder.mul(builder.trunc(args[1], _I32), _I32(0x9E3779B9))
        word = builder.add(args[0], step)
        word = builder.mul(fold(word, 16), _I32(0x85EBCA6B))
        word = builder.mul(fold(word, 13), _I32(0xC2B2AE35))
        return builder.lshr(fold(word, 16), _I32(12))

    return types.uint32(types.uint32, types.int64), generate


@intrinsic
def apart(_context: Any) -> Any:
    """Keep the function that calls this out of those that call it.

    LLVM inlines a function that has one caller, however rarely it is called, and what that needs of
    registers is missing in the loops around it.
    """

    def generate(ctx: Any, builder: Any, _sig: Any, _args: Any) -> Any:
        builder.function.attributes.add("noinline")
        return ctx.get_dummy_value()

    return types.void(), generate


_M1 = np.uint64(0x9E3779B97F4A7C15)
_M2 = np.uint64(0xBF58476D1CE4E5B9)


@njit(nogil=True, cache=True, inline="always")
def mix(word, seed):
    """Mix a word with a field's seed into a key.

    Bijective in ``word`` up to the lowest bit of the key, which is set.

    A key is never 0 (0 marks an empty slot); its top bits, which place it in a table, are well
    mixed (two odd multiplications around a folding shift, after Stafford's variants of the
    MurmurHash3 finaliser).
    """
    h = (word ^ seed) * _M1
    h ^= h >> uint64(32)
    return (h * _M2) | uint64(1)


@njit(nogil=True, cache=True, inline="always")
def token_key(address, length, seed):
    """Return the key of the token of ``length`` bytes at ``address`` in the field with this seed.

    Tokens of at most eight bytes are one zero-padded word; longer ones are folded eight bytes at a
    time, their length mixed in at the end. May read (and ignore) up to seven bytes past the token.
    """
    if length <= 8:
        word = load64(address)
        # keep the lowest 8 * length bits; two shifts, since a shift by 64 is undefined
        gap = uint64(8 * (8 - length)) >> uint64(1)
        word = ((word << gap << gap) >> gap) >> gap
        if length <= 0:
            word = uint64(0)
        return mix(word, seed)
    state = seed
    at = address
    left = length
    while left > 8:
        h = (load64(at) ^ state) * _M1
        state = (h ^ (h >> uint64(32))) * _M2
        at += 8
        left -= 8
    # the last word overlaps the one before, so nothing outside the token counts
    h = (load64(address + length - 8) ^ state) * _M1
    state = (h ^ (h >> uint64(32))) * _M2
    return mix(uint64(length), state)


@njit(nogil=True, cache=True, inline="always")
def cross_key(first, second, seed):
    """Return the key of the cross of two features, given their keys in the order of the cross.

    ``mix(first + second * M2, seed)``: not symmetric, so ``a*b`` and ``b*a`` differ even under one
    seed.
    """
    return mix(first + second * _M2, seed)


@njit(nogil=True, cache=True, inline="always")
def digits_value(digits):
    """Return the number that the eight bytes of a word make, each 0 to 9, the lowest foremost."""
    pairs = ((digits * uint64(2561)) >> uint64(8)) & uint64(0x00FF00FF00FF00FF)
    fours = ((pairs * uint64(6553601)) >> uint64(16)) & uint64(0x0000FFFF0000FFFF)
    return (fours * uint64(42949672960001)) >> uint64(32)


@njit(nogil=True, cache=True, inline="always")
def log_bucket(value):
    """Return the bucket of a float32 on a logarithmic scale, four to an octave: uint64 below 2048.

    The code is the float's sign, exponent and first two bits of its fraction: ``bits >> 21``. So
    for value > 0 with value = m * 2**e and 1 <= m < 2,

        code = 4 * (e + 127) + floor(4 * (m - 1))

    and bucket ``code`` is the range [f(code << 21), f((code + 1) << 21)), f making a float32 of its
    bits. Negative values have the mirrored buckets, 1024 higher. 0, -0 and all below 2**-128 in
    size share bucket 0. Fractions have buckets like any other number; infinities and NaN are the
    caller's to reject.
    """
    code = float_bits(value) >> uint64(21)
    return uint64(0) if code == uint64(1024) else code
