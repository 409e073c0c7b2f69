"""Slow, obvious twins of the hashing, the buckets and the numbers of text."""

from __future__ import annotations

import math
import re
import struct
from fractions import Fraction

import numpy as np

_WORD = (1 << 64) - 1
_M1 = 0x9E3779B97F4A7C15
_M2 = 0xBF58476D1CE4E5B9


def mix(word: int, seed: int) -> int:
    """Return the key of a word in a field."""
    h = (word ^ seed) * _M1 & _WORD
    h ^= h >> 32
    return h * _M2 & _WORD | 1


def token_key(token: bytes, seed: int) -> int:
    """Return the key of a token in a field."""
    if len(token) <= 8:
        return mix(int.from_bytes(token, "little"), seed)
    # eight bytes at a time; the last word overlaps the one before
    words = [token[i : i + 8] for i in range(0, len(token) - 8, 8)] + [token[-8:]]
    state = seed
    for word in words:
        h = (int.from_bytes(word, "little") ^ state) * _M1 & _WORD
        state = (h ^ h >> 32) * _M2 & _WORD
    return mix(len(token), state)


def log_bucket(value: float | np.int64) -> int:
    """Return 4 (e + 127) + floor(4 (m - 1)) of the float32 m 2**e, the sign 1024 above."""
    x = float(np.float32(value))
    if abs(x) < 2.0**-126:  # subnormal: the fraction alone
        code = math.floor(abs(x) / 2.0**-128)
    else:
        m, e = math.frexp(abs(x))
        code = 4 * (e - 1 + 127) + math.floor(4 * (2 * m - 1))
    return code + 1024 if x < 0 and code else code


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def number(token: bytes) -> float | None:
    """Return a finite decimal number rounded to float32, or None for anything else."""
    text = token.decode("latin-1")
    if not _NUMBER.fullmatch(text):
        return None
    value = float(text)
    with np.errstate(over="ignore"):
        single = np.float32(value)
    return float(single) if np.isfinite(single) else None


def number_exact(token: bytes) -> Fraction:
    """Return the number that a token of the right form says."""
    return Fraction(token.decode())


def float_spacing(value: float) -> Fraction:
    """Return the distance of a float32 to the next one further from zero."""
    bits = struct.unpack("<I", struct.pack("<f", abs(value)))[0]
    up = struct.unpack("<f", struct.pack("<I", bits + 1))[0]
    return Fraction(up) - Fraction(abs(value))
