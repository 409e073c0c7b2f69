"""Normal numbers by counter: of what and when they are decides them, whoever asks, in any order.

Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC
2011), then Box and Muller, with 52 random bits for radius and angle each; none is beyond 8.5. There
are no branches and no calls in the loop, so LLVM makes vectors of it; logarithm, sine and cosine
are series, cut off where float64 ends.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, njit, types, uint64
from numba.extending import intrinsic

__all__ = ["ROOM", "draw_normals", "philox"]

# Pairs are drawn so many at a time: what LLVM makes a step of the loop. With one at a time and the
# C library's functions, 16 numbers took 2.5 times as long, and 64 five times.
_PAIRS = 8
ROOM = 2 * _PAIRS

_LOW = np.uint64(0xFFFFFFFF)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)

_ONE = np.uint64(0x3FF0000000000000)  # the bits of 1.0: exponent of what is in [1, 2)
_MANTISSA = np.uint64((1 << 52) - 1)
_ROOT = np.uint64(0x3FE6A09E667F3BCD)  # of 1 / 2
_LN2 = math.log(2.0)
_ROOT_64TH = _ROOT - np.uint64(64 << 52)  # of it, over 2**64
# The bits of 2**52, whose last ones are those of a whole number added to it; that and 64.
_WHOLE = np.uint64(0x4330000000000000)
_WHOLES = 2.0**52 + 64.0


@intrinsic
def _bits_of(_context: Any, _number: Any) -> Any:
    """Return the 64 bits of a float64."""

    def generate(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(64))

    return types.uint64(types.float64), generate


@intrinsic
def _float_of(_context: Any, _bits: Any) -> Any:
    """Return the float64 of 64 bits."""

    def generate(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.uint64), generate


@njit(nogil=True, cache=True, inline="always")
def philox(c0, c1, c2, c3, k0, k1):
    """Return four random words of 32 bits (as uint64), of a counter and a key of such words."""
    for _ in range(10):
        a, b = c0 * _M0, c2 * _M1
        c0, c1 = (b >> uint64(32)) ^ c1 ^ k0, b & _LOW
        c2, c3 = (a >> uint64(32)) ^ c3 ^ k1, a & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@njit(nogil=True, cache=True, inline="always", error_model="numpy")
def _log(u):
    """Return log u, 0 < u <= 1.

    With u = m 2^e and s = (m - 1) / (m + 1), |s| < 0.172, it is e log 2 + 2 (s + s^3 / 3 + ...).
    """
    bits = _bits_of(u) - _ROOT_64TH  # e is -53 at least: so this is not below 0
    e = _float_of((bits >> uint64(52)) | _WHOLE) - _WHOLES
    m = _float_of((bits & _MANTISSA) + _ROOT)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    t = 1 / 21 * z + 1 / 19
    t = t * z + 1 / 17
    t = t * z + 1 / 15
    t = t * z + 1 / 13
    t = t * z + 1 / 11
    t = t * z + 1 / 9
    t = t * z + 1 / 7
    t = t * z + 1 / 5
    t = t * z + 1 / 3
    return e * _LN2 + 2.0 * s * (t * z + 1.0)


@njit(nogil=True, cache=True, inline="always", error_model="numpy")
def _turned(v):
    """Return cosine and sine of v turns, 0 <= v < 1, by their series within an eighth."""
    shifted = 4.0 * v + 1.5 * 2.0**52  # rounds to whole numbers, which are its last bits
    quarter = _bits_of(shifted)
    x = 2.0 * math.pi * (v - 0.25 * (shifted - 1.5 * 2.0**52))
    z = x * x
    s = -1 / 1307674368000 * z + 1 / 6227020800
    s = s * z - 1 / 39916800
    s = s * z + 1 / 362880
    s = s * z - 1 / 5040
    s = s * z + 1 / 120
    s = s * z - 1 / 6
    s = x * (s * z + 1.0)
    c = -1 / 87178291200 * z + 1 / 479001600
    c = c * z - 1 / 3628800
    c = c * z + 1 / 40320
    c = c * z - 1 / 720
    c = c * z + 1 / 24
    c = (c * z - 0.5) * z + 1.0
    # after a quarter turn they are (-s, c), after two (-c, -s), after three (s, -c)
    swapped = uint64(0) - (quarter & uint64(1))
    apart = (_bits_of(s) ^ _bits_of(c)) & swapped
    half = quarter >> uint64(1)
    cosine = _bits_of(c) ^ apart ^ ((half ^ quarter) << uint64(63))
    sine = _bits_of(s) ^ apart ^ (half << uint64(63))
    return _float_of(cosine), _float_of(sine)


@njit(nogil=True, cache=True, error_model="numpy")
def draw_normals(out, n, c0, c1, c2, seed):
    """Write ``n`` normal numbers, and a few more.

    Parameters
    ----------
    out : float32[>= n + ROOM]
        Cosines first, then as many sines.
    n : int64
        Below 8,192.
    c0, c1, c2 : uint64
        What they are of; below 2**32, 2**32 and 2**20.
    seed : uint64[3]
        32 bits each.
    """
    half = (((n + 1) >> 1) + _PAIRS - 1) & ~(_PAIRS - 1)
    k0, k1, k2 = seed[0], seed[1], seed[2]
    high = c2 << uint64(12)
    cosines, sines = out[:half], out[half : 2 * half]
    for i in range(half):
        w0, w1, w2, w3 = philox(c0, c1, high | uint64(i), k2, k0, k1)
        one = _float_of((((w0 << uint64(32)) | w1) >> uint64(12)) | _ONE)
        other = _float_of((((w2 << uint64(32)) | w3) >> uint64(12)) | _ONE)
        radius = math.sqrt(-2.0 * _log(2.0 - one))
        cosine, sine = _turned(other - 1.0)
        cosines[i] = float32(radius * cosine)
        sines[i] = float32(radius * sine)
