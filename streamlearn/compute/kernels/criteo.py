"""The Criteo log: a label, 13 integers and 26 categories between tabs, to keys, 39 at most.

Two scanners read the records that are as they should be: :func:`parse_portable` goes from tab to
tab, one step of straight-line code a field; :func:`parse_vbmi2` finds all tabs and newlines of some
kilobytes first, 64 bytes a step, and then takes eight fields at a time, since none has to wait for
the one before. What they cannot vouch for goes to ``_record``, which takes any bytes between two
newlines and says what is wrong with them. All make the same keys:

    integer   mix(log_bucket(float32(value)), seed)
    category  token_key(token, seed), which for eight bytes is mix(the bytes as a word, seed)

A blank field makes none. Where integers are to be numbers and no features, :func:`take_numbers`
goes over the rows that a scanner has made.
"""

from __future__ import annotations

import numpy as np
from numba import float32, float64, int64, njit, uint64

from streamlearn.compute.kernels.bits import (
    HAS_VBMI2,
    compress_positions,
    ctz,
    digits_value,
    load8,
    load32,
    load64,
    log_bucket,
    mask_eq2,
    mix,
    popcount,
    store64,
    token_key,
)
from streamlearn.compute.kernels.criteo_lanes import WRONG, keys_of_fields
from streamlearn.compute.kernels.text import line_end, utf8_valid

__all__ = ["describe", "parse", "parse_portable", "parse_vbmi2", "take_numbers"]

# Bytes whose tabs and newlines are found at a time. Their positions (4 bytes each) stay in L1; the
# record at the end that is cut in two is scanned twice, which is 1.5 % of the bytes at this size.
_SCAN_BYTES = 8192
_RECORD_BYTES_MAX = 1 << 20
_FEATURES_MAX = 1 << 16  # a minibatch without room for so many is full

_ONES = np.uint64(0x0101010101010101)
_HIGH = np.uint64(0x8080808080808080)
_TABS = np.uint64(0x0909090909090909)
_BLANKS = np.uint64(0x2020202020202020)
_ZEROS = np.uint64(0x3030303030303030)
_OVER_NINE = np.uint64(0x7676767676767676)  # lifts a byte above 9 to its highest bit


@njit(nogil=True, cache=True)
def _whole(address, length):
    """Return whether ``-?[0-9]{1,18}`` stands there, and its value (int64)."""
    at = int64(address)
    stop = at + length
    negative = load8(at) == uint64(45)
    at += negative
    if at >= stop or stop - at > 18:
        return False, int64(0)
    value = int64(0)
    while at < stop:
        digit = load8(at) - uint64(48)
        if digit > uint64(9):
            return False, int64(0)
        value = value * 10 + int64(digit)
        at += 1
    return True, -value if negative else value


@njit(nogil=True, cache=True)
def _integer(address, length):
    """Return whether ``-?[0-9]{1,18}`` stands there, and its bucket."""
    valid, value = _whole(address, length)
    return valid, log_bucket(float32(value))


@njit(nogil=True, cache=True)
def _record(begin, end, seeds, target):
    """Read whatever stands in ``[begin, end)``, the line's end excluded.

    Returns
    -------
    features : int64
        Keys written at address ``target``; meaningless if ``reason`` is not 0.
    reason, field, arg : int64
        As in ``Minibatch.bad_*``: 0 for a good record; the column from 0; fields found.
    """
    if end - begin > _RECORD_BYTES_MAX:
        return 0, 5, -1, end - begin
    tabs = 0
    for at in range(begin, end):
        tabs += load8(at) == uint64(9)
    if tabs != 39:
        return 0, 1, -1, tabs + 1
    if load8(begin + 1) != uint64(9) or load8(begin) & uint64(0xFE) != uint64(48):
        return 0, 2, 0, 0
    at = begin + 2
    features = 0
    for column in range(1, 40):
        stop = at
        while stop < end and load8(stop) != uint64(9):
            stop += 1
        if stop > at:
            seed = load64(seeds + 8 * (column - 1))
            if column <= 13:
                valid, code = _integer(at, stop - at)
                key = mix(code, seed)
            else:
                valid = utf8_valid(at, stop - at)
                key = token_key(at, stop - at, seed)
            if not valid:
                return 0, 3 if column <= 13 else 4, column, 0
            store64(target + 8 * features, key)
            features += 1
        at = stop + 1
    return features, 0, -1, 0


@njit(nogil=True, cache=True)
def _record_sequential(begin, seeds, target):
    """Read a well-formed record field after field, each where the one before ended.

    Returns
    -------
    features : int64
        Keys written at ``target``; -1 if the record is none that this function can vouch for.
    next : int64
        Address of the next record.
    """
    # '0' or '1', then a tab
    if load64(begin) & uint64(0xFFFE) != uint64(0x0930):
        return -1, begin
    at = int64(begin) + 2
    features = 0
    wrong = uint64(0)
    for column in range(13):
        word = load64(at)
        x = word ^ _TABS
        tab = (x - _ONES) & ~x & _HIGH  # its lowest set bit is that of the first tab
        if tab == uint64(0):
            stop = at + 8
            while stop - at < 20 and load8(stop) >= uint64(45):
                stop += 1
            valid, code = _integer(at, stop - at)
            if not valid or load8(stop) != uint64(9):
                return -1, begin
            length = stop - at
        else:
            bits = ctz(tab) & uint64(0x38)
            length = int64(bits >> uint64(3))
            negative = uint64(word & uint64(0xFF) == uint64(45))
            # '-' becomes '0'; the digits move to the high end, zeros in front of them
            x = (word ^ (negative * uint64(0x1D)) ^ _ZEROS) << (uint64(63) - bits) << uint64(1)
            wrong |= (x + _OVER_NINE) | x | ((negative & uint64(length == 1)) << uint64(63))
            value = int64(digits_value(x))
            sign = int64(negative)
            code = log_bucket(float32((value ^ -sign) + sign))
        store64(target + 8 * features, mix(code, load64(seeds + 8 * column)))
        features += length > 0
        at += length + 1
    if wrong & _HIGH != uint64(0):
        return -1, begin
    for column in range(13, 38):
        word = load64(at)
        seed = load64(seeds + 8 * column)
        blank = word & uint64(0xFF) == uint64(9)
        length = 0 if blank else 8
        key = mix(word, seed)
        # eight bytes of 0x20 to 0x7F and a tab behind them
        eight = ~word & ((word | _HIGH) - _BLANKS) & _HIGH == _HIGH
        if not blank and not (eight and load8(at + 8) == uint64(9)):
            length = 0
            while load8(at + length) != uint64(9) and load8(at + length) != uint64(10):
                length += 1
            if load8(at + length) == uint64(10) or not utf8_valid(at, length):
                return -1, begin
            key = token_key(at, length, seed)
        store64(target + 8 * features, key)
        features += not blank
        at += length + 1
    stop = at
    while load8(stop) != uint64(10) and load8(stop) != uint64(9):
        stop += 1
    if load8(stop) == uint64(9):
        return -1, begin
    length = stop - at
    length -= length > 0 and load8(stop - 1) == uint64(13)
    if not utf8_valid(at, length) or stop - begin > _RECORD_BYTES_MAX:
        return -1, begin
    store64(target + 8 * features, token_key(at, length, load64(seeds + 8 * 38)))
    features += length > 0
    return features, stop + 1


@njit(nogil=True, cache=True)
def _record_indexed(origin, begin, stops, seeds, target):
    """Read a record whose 40 field ends are known: 39 tabs, then the end of the line.

    Parameters
    ----------
    origin : int64
        Address that ``begin`` and the stops count from.
    stops : int64
        Address of 40 uint32.

    Returns
    -------
    features : int64
        Keys written at ``target``; -1 if the record is none that this function can vouch for.
    """
    first = int64(load32(stops))
    wrong = uint64(load8(origin + begin) & uint64(0xFE) != uint64(48)) << uint64(63)
    wrong |= uint64(first - begin != 1) << uint64(63)
    start = first + 1
    features = 0
    for column in range(13):
        stop = int64(load32(stops + 4 * column + 4))
        length = stop - start
        if length > 8:
            valid, code = _integer(origin + start, length)
            if not valid:
                return -1
        else:
            word = load64(origin + start)
            negative = uint64(word & uint64(0xFF) == uint64(45))
            # half the distance twice, since 64 bits of distance (a blank) are one too many for once
            half = uint64(32) - (uint64(length) << uint64(2))
            x = (word ^ (negative * uint64(0x1D)) ^ _ZEROS) << half << half
            wrong |= (x + _OVER_NINE) | x | ((negative & uint64(length == 1)) << uint64(63))
            value = int64(digits_value(x))
            sign = int64(negative)
            code = log_bucket(float32((value ^ -sign) + sign))
        store64(target + 8 * features, mix(code, load64(seeds + 8 * column)))
        features += length > 0
        start = stop + 1
    for column in range(13, 39):
        stop = int64(load32(stops + 4 * column + 4))
        length = stop - start
        word = load64(origin + start)
        seed = load64(seeds + 8 * column)
        key = mix(word, seed)
        if length & ~8 != 0:
            if not utf8_valid(origin + start, length):
                return -1
            key = token_key(origin + start, length, seed)
        else:
            wrong |= word
        store64(target + 8 * features, key)
        features += length > 0
        start = stop + 1
    return -1 if wrong & _HIGH != uint64(0) else features


@njit(nogil=True, cache=True)
def _record_lanes(origin, begin, stops, seeds, target):
    """Read a record as :func:`_record_indexed` does, eight fields at a time; needs AVX-512."""
    at = origin + begin
    if load64(at) & uint64(0xFFFE) == uint64(0x0930):
        features = int64(keys_of_fields(origin, stops, seeds, target))
        if features < WRONG:
            return features
    return _record_indexed(origin, begin, stops, seeds, target)


@njit(nogil=True, cache=True)
def _full(state, rows_max, nnz_max):
    return state[0] >= rows_max or state[2] >= rows_max or state[1] + _FEATURES_MAX > nnz_max


@njit(nogil=True, cache=True)
def _keep(position, first, features, sink):
    """Add the record at ``position``, whose first byte is ``first``, as a row."""
    _, indptr, labels, weights, lines = sink[:5]
    state = sink[9]
    row = state[0]
    state[1] += features
    indptr[row + 1] = state[1]
    labels[row] = float32(first & uint64(1))
    weights[row] = float32(1)
    lines[row] = position
    state[0] = row + 1
    state[3] += 1


@njit(nogil=True, cache=True)
def _take_any(base, position, stop, seeds, sink):
    """Take the line at ``[position, stop)``: a row, a bad record, or nothing if it is blank."""
    keys = sink[0]
    bad_start, bad_reason, bad_field, bad_arg, state = sink[5:]
    end = stop - (stop > position and load8(base + stop - 1) == uint64(13))
    if end == position:
        return
    target = int64(keys.ctypes.data) + 8 * state[1]
    features, reason, field, arg = _record(base + position, base + end, seeds, target)
    if reason == 0:
        _keep(position, load8(base + position), features, sink)
        return
    bad = state[2]
    bad_start[bad] = position
    bad_reason[bad] = reason
    bad_field[bad] = field
    bad_arg[bad] = arg
    state[2] = bad + 1
    state[3] += 1


@njit(nogil=True, cache=True)
def parse_portable(buffer, start, end, seeds, sink):
    """Append the records of ``buffer[start:end]`` to a minibatch, until it is full.

    Parameters
    ----------
    buffer : uint8[n]
        ``buffer[end - 1]`` is a newline; 128 bytes after ``end`` may be read.
    seeds : uint64[40]
        Of the fields in the order of the columns; the last is padding.
    sink : tuple of arrays
        ``keys, indptr, labels, weights, lines, bad_start, bad_reason, bad_field, bad_arg, state``
        of a ``Minibatch``; written from where ``state`` says.

    Returns
    -------
    int64
        Index of the first byte not parsed: the start of a record, or ``end``.
    """
    keys, _, labels = sink[:3]
    state = sink[9]
    base = int64(buffer.ctypes.data)
    seeds_at = int64(seeds.ctypes.data)
    keys_at = int64(keys.ctypes.data)
    position = int64(start)
    while position < end and not _full(state, labels.size, keys.size):
        target = keys_at + 8 * state[1]
        features, after = _record_sequential(base + position, seeds_at, target)
        if features >= 0:
            first = load8(base + position)
            _keep(position, first, features, sink)
            position = after - base
        else:
            stop = line_end(base + position) - base
            _take_any(base, position, stop, seeds_at, sink)
            position = stop + 1
    return position


@njit(nogil=True, cache=True)
def _scan(address, size, stops, newlines):
    """Find the tabs and newlines of ``size`` bytes.

    Parameters
    ----------
    stops : uint32[size + 128]
        Receives their positions, and those of up to 63 bytes more.
    newlines : uint16[size + 128]
        Receives which of the stops are newlines.

    Returns
    -------
    int64
        Newlines within the bytes.
    """
    stops_at = int64(stops.ctypes.data)
    found = 0
    lines = 0
    for at in range(0, size, 64):
        mask = mask_eq2(address + at, uint64(9), uint64(10))
        breaks = mask_eq2(address + at, uint64(10), uint64(10))
        compress_positions(mask, at, stops_at + 4 * found)
        count = int64(popcount(mask))
        if count > 32:
            rest = mask
            for i in range(count):
                stops[found + i] = at + int64(ctz(rest))
                rest &= rest - uint64(1)
        # a line is seldom shorter than 64 bytes: one newline or none, without a branch
        newlines[lines] = found + int64(popcount(mask & ~breaks & (breaks - uint64(1))))
        lines += breaks != uint64(0)
        breaks &= breaks - uint64(1)
        while breaks != uint64(0):
            newlines[lines] = found + int64(popcount(mask & ~breaks & (breaks - uint64(1))))
            lines += 1
            breaks &= breaks - uint64(1)
        found += count
    while lines > 0 and stops[newlines[lines - 1]] >= size:
        lines -= 1
    return lines


@njit(nogil=True, cache=True)
def _parse_vbmi2(buffer, start, end, seeds, sink):
    """Do what :func:`parse_portable` does; needs AVX-512 VBMI2."""
    keys, _, labels = sink[:3]
    state = sink[9]
    base = int64(buffer.ctypes.data)
    seeds_at = int64(seeds.ctypes.data)
    keys_at = int64(keys.ctypes.data)
    stops = np.empty(_SCAN_BYTES + 128, np.uint32)
    stops_at = int64(stops.ctypes.data)
    newlines = np.empty(_SCAN_BYTES + 128, np.uint16)
    origin = int64(start)
    while origin < end:
        count = _scan(base + origin, min(_SCAN_BYTES, end - origin), stops, newlines)
        if count == 0:  # a line longer than what is scanned at a time
            if _full(state, labels.size, keys.size):
                return origin
            stop = line_end(base + origin) - base
            _take_any(base, origin, stop, seeds_at, sink)
            origin = stop + 1
            continue
        begin = int64(0)
        first = int64(0)
        for i in range(count):
            if _full(state, labels.size, keys.size):
                return origin + begin
            last = int64(newlines[i])
            stop = int64(stops[last])
            features = -1
            if last - first == 39:
                stops[last] -= load8(base + origin + stop - 1) == uint64(13)
                features = _record_lanes(
                    base + origin, begin, stops_at + 4 * first, seeds_at, keys_at + 8 * state[1]
                )
            if features >= 0:
                byte = load8(base + origin + begin)
                _keep(origin + begin, byte, features, sink)
            else:
                _take_any(base, origin + begin, origin + stop, seeds_at, sink)
            begin = stop + 1
            first = last + 1
        origin += begin
    return origin


# On other machines the name stands for the portable scanner, which gives the same keys.
parse_vbmi2 = _parse_vbmi2 if HAS_VBMI2 else parse_portable
parse = parse_vbmi2


@njit(nogil=True, cache=True)
def take_numbers(buffer, first, keys, fields, dense, indptr, lines, state):
    """Make numbers of the integers of rows that were parsed: they are no features any more.

    Parameters
    ----------
    buffer : uint8[n]
        The block that was parsed.
    first : int
        The first of the rows; those before are as they should be.
    keys, fields, dense, indptr, lines, state
        Of a ``Minibatch``; keys are compacted in place, and the fields of what is left (0 to 25)
        and ``dense`` (float32[rows, 13]) written: ``log(1 + max(x, 0))``, NaN where it is blank.
    """
    base = int64(buffer.ctypes.data)
    to = indptr[first]
    at = indptr[first]
    for row in range(first, state[0]):
        stop = base + lines[row] + 1
        for column in range(39):
            begin = stop + 1
            stop = begin
            while load8(stop) != uint64(9) and load8(stop) != uint64(10):
                stop += 1
            length = stop - begin
            if column == 38:  # a carriage return may stand before the newline
                length -= length > 0 and load8(stop - 1) == uint64(13)
            if column < 13:
                number = np.nan
                if length > 0:
                    number = np.log(1.0 + float64(max(_whole(begin, length)[1], int64(0))))
                    at += 1
                dense[row, column] = number
            elif length > 0:
                keys[to] = keys[at]
                fields[to] = column - 13
                to += 1
                at += 1
        indptr[row + 1] = to
    state[1] = to


@njit(nogil=True, cache=True)
def describe(
    buffer, starts, ends, seeds, skipped, bucket_text, bucket_ends, keys, fields, text_ends, text
):
    """Say which text made which key in the good records ``buffer[starts[i]:ends[i]]``.

    Parameters
    ----------
    starts, ends : int64[r]
        Line ends excluded, but for a carriage return.
    seeds : uint64[40]
    skipped : int
        So many columns from the left are no features, and field 0 is the one behind them.
    bucket_text, bucket_ends : uint8[k], int64[2048]
        The text of each bucket, one after the other, and where each ends.
    keys, fields, text_ends : uint64[39 * r], int32[39 * r], int64[39 * r]
        Receive the features.
    text : uint8[m]
        Receives their tokens; room for the records and 13 bucket texts each.

    Returns
    -------
    features, size : int64
        How much of ``keys`` and of ``text`` was written.
    """
    base = int64(buffer.ctypes.data)
    features = 0
    size = 0
    for i in range(starts.size):
        end = int64(ends[i])
        end -= end > starts[i] and buffer[end - 1] == 13
        at = int64(starts[i]) + 2
        for field in range(39):
            stop = at
            while stop < end and buffer[stop] != 9:
                stop += 1
            if stop > at and field >= skipped:
                if field < 13:
                    _, code = _integer(base + at, stop - at)
                    keys[features] = mix(code, seeds[field])
                    k = int64(code)
                    for j in range(bucket_ends[k - 1] if k > 0 else 0, bucket_ends[k]):
                        text[size] = bucket_text[j]
                        size += 1
                else:
                    keys[features] = token_key(base + at, stop - at, seeds[field])
                    for j in range(at, stop):
                        text[size] = buffer[j]
                        size += 1
                fields[features] = field - skipped
                text_ends[features] = size
                features += 1
            at = stop + 1
    return features, size
