"""Times as logs write them, to hour and weekday: ISO 8601, month/day/year, epochs, YYMMDDHH.

Addresses are int64; up to eight bytes past a time may be read (and ignored).
"""

from __future__ import annotations

import numpy as np
from numba import int64, njit, uint64

from streamlearn.compute.kernels.bits import load8, load64

__all__ = ["NO_HOUR", "parse_time"]

# The hour of a date without a time.
NO_HOUR = 31

# sets the high bit of a byte that is 10 or more
_SIXES = uint64(0x7676767676767676)
_HIGHS = uint64(0x8080808080808080)


@njit(nogil=True, cache=True)
def _two(at):
    """Return the number of two digits at ``at``; 100 or more where they are not digits."""
    high, low = load8(at) - uint64(48), load8(at + 1) - uint64(48)
    if high > uint64(9) or low > uint64(9):
        return 100
    return int64(high) * 10 + int64(low)


@njit(nogil=True, cache=True)
def _date(year, month, day):
    """Return the weekday of a date of the Gregorian calendar, Monday 0; -1 where there is none.

    Days before each month (March first, so that a leap day comes last) are ``(153 m + 2) // 5``.
    """
    if year < 1 or month < 1 or month > 12 or day < 1:
        return -1
    days = 30 + ((month + (month >> 3)) & 1)
    if month == 2:
        leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
        days = 29 if leap else 28
    if day > days:
        return -1
    shifted = month + 9 if month < 3 else month - 3
    year -= 1 if month < 3 else 0
    count = 365 * year + year // 4 - year // 100 + year // 400 + (153 * shifted + 2) // 5 + day
    return (count + 1) % 7


@njit(nogil=True, cache=True)
def _clock_tail(at, end):
    """Whether ``at`` to ``end`` may follow ``HH:MM``: ``[:SS[.fraction]][Z | +HH[[:]MM]]``."""
    if at < end and load8(at) == uint64(58):
        if end - at < 3 or _two(at + 1) > 60:
            return False
        at += 3
        if at < end and (load8(at) == uint64(46) or load8(at) == uint64(44)):
            at += 1
            begin = at
            while at < end and load8(at) - uint64(48) <= uint64(9):
                at += 1
            if at == begin:
                return False
    if at == end:
        return True
    byte = load8(at)
    if byte == uint64(90):
        return at + 1 == end
    if byte != uint64(43) and byte != uint64(45):
        return False
    left = end - at - 1
    if left < 2 or _two(at + 1) > 23:
        return False
    if left == 2:
        return True
    if left == 4:
        return _two(at + 3) < 60
    return left == 5 and load8(at + 3) == uint64(58) and _two(at + 4) < 60


@njit(nogil=True, cache=True)
def _parse_slashed(at, end):
    """Parse ``M/D/YYYY`` with an optional `` H:MM[:SS]``; see :func:`parse_time`."""
    parts = np.zeros(4, np.int64)
    for part in range(4):
        if part == 3 and at == end:
            return 32 * _date(parts[2], parts[0], parts[1]) + NO_HOUR
        if part == 3:
            if load8(at) != uint64(32):
                return -1
            at += 1
        begin = at
        while at < end and at < begin + 4 and load8(at) - uint64(48) <= uint64(9):
            parts[part] = parts[part] * 10 + int64(load8(at) - uint64(48))
            at += 1
        wide = at - begin
        if wide == 0 or (part == 2 and wide != 4) or (part != 2 and wide > 2):
            return -1
        if part < 2:
            if at >= end or load8(at) != uint64(47):
                return -1
            at += 1
        if part == 2 and _date(parts[2], parts[0], parts[1]) < 0:
            return -1
    if end - at < 3 or load8(at) != uint64(58) or _two(at + 1) > 59 or parts[3] > 23:
        return -1
    if not _clock_tail(at + 3, end):
        return -1
    return 32 * _date(parts[2], parts[0], parts[1]) + parts[3]


@njit(nogil=True, cache=True)
def parse_time(at, length):
    """Return ``32 * weekday + hour`` of a time (Monday 0; hour 31 where it has none), -1 if bad.

    Takes ``YYYY-MM-DD``, with ``T`` or a space ``HH:MM[:SS[.fraction]]`` and a zone; ``M/D/YYYY``
    with an optional `` H:MM[:SS]``; and by the number of digits: 8 ``YYMMDDHH`` of this century, 9
    or 10 (with an optional fraction) seconds and 12 or 13 milliseconds since 1970 UTC. Hour and
    weekday are those written: a zone is checked, not applied.
    """
    end = at + length
    if length >= 16:
        # "0000-00-" and "00T00:00" turned into digits 0..9, and zeros where the separators stand
        first = load64(at) ^ uint64(0x2D30302D30303030)
        second = load64(at + 8) ^ uint64(0x30303A3030543030)
        between = (second >> uint64(16)) & uint64(0xFF)
        second &= uint64(0xFFFFFFFFFF00FFFF)
        wrong = (first + _SIXES) | first | (second + _SIXES) | second
        wrong = (wrong & _HIGHS) | (first & uint64(0xFF0000FF00000000))
        wrong |= second & uint64(0x0000FF0000000000)
        if wrong == uint64(0) and (between == uint64(0) or between == uint64(0x54 ^ 0x20)):
            # each pair of digits in one multiplication: byte 2i + 1 holds ten times one plus other
            pairs = (first * uint64(2561)) >> uint64(8)
            year = int64(pairs & uint64(0xFF)) * 100 + int64((pairs >> uint64(16)) & uint64(0xFF))
            month = int64((pairs >> uint64(40)) & uint64(0xFF))
            pairs = (second * uint64(2561)) >> uint64(8)
            day = int64(pairs & uint64(0xFF))
            hour = int64((pairs >> uint64(24)) & uint64(0xFF))
            minute = int64((pairs >> uint64(48)) & uint64(0xFF))
            weekday = _date(year, month, day)
            if weekday < 0 or hour > 23 or minute > 59:
                return -1
            if length > 16 and not _clock_tail(at + 16, end):
                return -1
            return 32 * weekday + hour
    digits = 0
    value = 0
    while digits < length and digits < 14:
        digit = load8(at + digits) - uint64(48)
        if digit > uint64(9):
            break
        value = value * 10 + int64(digit)
        digits += 1
    if digits == length or (9 <= digits <= 10 and load8(at + digits) == uint64(46)):
        if digits == 8:
            date = _date(2000 + value // 1_000_000, value // 10_000 % 100, value // 100 % 100)
            hour = value % 100
            return -1 if date < 0 or hour > 23 else 32 * date + hour
        for i in range(digits + 1, length):
            if load8(at + i) - uint64(48) > uint64(9):
                return -1
        if 12 <= digits <= 13:
            value //= 1000
        elif digits < 9 or digits > 10:
            return -1
        return 32 * ((value // 86_400 + 3) % 7) + value // 3600 % 24
    if digits == 4 and length == 10 and load8(at + 4) == uint64(45) and load8(at + 7) == uint64(45):
        if _two(at + 5) > 12:
            return -1
        date = _date(value, _two(at + 5), _two(at + 8))
        return -1 if date < 0 else 32 * date + NO_HOUR
    if 1 <= digits <= 2:
        return _parse_slashed(at, end)
    return -1
