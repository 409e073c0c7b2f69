"""Text as it stands in a block: UTF-8, ends of lines, numbers.

Addresses are int64, lengths count bytes. Nothing here reads before the text it is given; all of it
may read (and ignore) up to 64 bytes past it.
"""

from __future__ import annotations

import numpy as np
from numba import float32, float64, int64, njit, uint64

from streamlearn.compute.kernels.bits import ctz, load8, load64, mask_eq2

__all__ = ["decimal", "line_end", "number", "utf8_valid"]

_HIGH = np.uint64(0x8080808080808080)
_ZEROS = np.uint64(0x3030303030303030)
# sets the high bit of a byte that is 10 or more
_TO_HIGH = np.uint64(0x7676767676767676)

# 10**k to the nearest float64, exact up to k = 22. With at most 19 digits before the power, 10**-64
# is the smallest that can still reach float32's least positive value and 10**38 the largest.
_POWERS = np.array([float(f"1e{k}") for k in range(81)])


@njit(nogil=True, cache=True)
def line_end(address):
    """Return the address of the first newline at or after ``address``; there must be one."""
    at = int64(address)
    while True:
        mask = mask_eq2(at, uint64(10), uint64(10))
        if mask != uint64(0):
            return at + int64(ctz(mask))
        at += 64


@njit(nogil=True, cache=True)
def utf8_valid(address, length):
    """Say whether ``length`` bytes are well-formed UTF-8 (Unicode 15, table 3-7)."""
    at = int64(address)
    stop = at + length
    while at < stop:
        if stop - at >= 8 and load64(at) & _HIGH == uint64(0):
            at += 8
            continue
        lead = load8(at)
        if lead < uint64(0x80):
            at += 1
            continue
        # the first continuation byte is bounded more tightly after four of the leads: these shut
        # out overlong forms (E0, F0), surrogates (ED) and what lies above U+10FFFF (F4)
        low, high = uint64(0x80), uint64(0xBF)
        if lead < uint64(0xC2):
            return False
        if lead < uint64(0xE0):
            more = 1
        elif lead < uint64(0xF0):
            more = 2
            if lead == uint64(0xE0):
                low = uint64(0xA0)
            elif lead == uint64(0xED):
                high = uint64(0x9F)
        elif lead < uint64(0xF5):
            more = 3
            if lead == uint64(0xF0):
                low = uint64(0x90)
            elif lead == uint64(0xF4):
                high = uint64(0x8F)
        else:
            return False
        if at + more >= stop:
            return False
        second = load8(at + 1)
        if second < low or second > high:
            return False
        for i in range(2, more + 1):
            if load8(at + i) & uint64(0xC0) != uint64(0x80):
                return False
        at += more + 1
    return True


@njit(nogil=True, cache=True)
def decimal(address, length):
    """Read a decimal number as float64; NaN where it is not one.

    Grammar: ``[+-]? (digits [. digits?] | . digits) ([eE] [+-]? digits)?``, all of the text; so no
    blanks, ``nan``, ``inf`` or hexadecimal. Magnitudes of 10**60 and above are no numbers here
    either, and those below 10**-61 may become 0: the range of float32 and some more.

    Notes
    -----
    Digits from the twentieth significant one on are dropped, the rest is m * 10**e or m / 10**-e in
    float64. Conversion of m, the power and the operation each err by at most 2**-53 of the value
    and the dropped digits by 10**-18, together less than 2**-50. Numbers of up to 15 digits with up
    to 22 of them behind the point are correctly rounded.
    """
    at = int64(address)
    if 0 < length <= 8:
        # Up to eight digits at once, padded with zeros in front: pairs, then fours, then eights.
        shift = uint64(8 * (8 - length))
        word = (load64(at) << shift) ^ (_ZEROS << shift)
        if ((word + _TO_HIGH) | word) & _HIGH == uint64(0):
            word = (word * uint64(2561)) >> uint64(8) & uint64(0x00FF00FF00FF00FF)
            word = (word * uint64(6553601)) >> uint64(16) & uint64(0x0000FFFF0000FFFF)
            return float64((word * uint64(42949672960001)) >> uint64(32))
    stop = at + length
    negative = False
    if at < stop:
        sign = load8(at)
        negative = sign == uint64(45)
        if negative or sign == uint64(43):
            at += 1
    mantissa = uint64(0)
    exponent = 0
    digits = 0  # all of them
    kept = 0  # from the first that is not zero, up to 19
    point = False
    while at < stop:
        byte = load8(at)
        digit = byte - uint64(48)
        if digit <= uint64(9):
            digits += 1
            if kept < 19:
                mantissa = mantissa * uint64(10) + digit
                kept += mantissa != uint64(0)
                exponent -= point
            else:
                exponent += not point
        elif byte == uint64(46) and not point:
            point = True
        else:
            break
        at += 1
    if digits == 0:
        return np.nan
    if at < stop:
        if load8(at) | uint64(32) != uint64(101):
            return np.nan
        at += 1
        downward = False
        if at < stop:
            sign = load8(at)
            downward = sign == uint64(45)
            if downward or sign == uint64(43):
                at += 1
        if at >= stop:
            return np.nan
        power = 0
        while at < stop:
            digit = load8(at) - uint64(48)
            if digit > uint64(9):
                return np.nan
            power = min(power * 10 + int64(digit), 1 << 30)
            at += 1
        exponent += -power if downward else power
    value = float64(mantissa)
    if mantissa == uint64(0) or exponent < -80:
        value = float64(0)
    elif exponent < 0:
        value /= _POWERS[-exponent]
    elif exponent > 40:
        return np.nan
    else:
        value *= _POWERS[exponent]
    return -value if negative else value


@njit(nogil=True, cache=True)
def number(address, length):
    """Read a decimal number (see :func:`decimal`); return whether it is one and its float32.

    What rounds to infinity is not finite, hence not valid. The float32 is within 0.5 + 2**-25 of a
    unit in its last place: correctly rounded but for numbers that lie that close to the middle of
    two floats.

    Returns
    -------
    valid : bool
    value : float32
        0 where not valid.
    """
    single = float32(decimal(address, length))
    if not np.isfinite(single):
        return False, float32(0)
    return True, single
