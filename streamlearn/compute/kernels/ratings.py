"""Ratings straight to two keys a record: user, item and rating, perhaps a time and a weight.

Records are lines, found with their fields by 64-byte masks of separator and newline:

    key(user) = token_key(user, user's seed)        keys[2 r], as any category has it
    key(item) = token_key(item, item's seed)        keys[2 r + 1]

A separator is one byte, ``::``, or a run of blanks (then those around a record count for nothing).
Between single bytes fields may be quoted: such a record is first unquoted into a scratch buffer.

Addresses are int64; loads may go 65 bytes past the end of the data.
"""

from __future__ import annotations

import numpy as np
from numba import float32, float64, int64, njit, uint64

from streamlearn.compute.kernels.bits import (
    ctz,
    load8,
    load64,
    mask_eq2,
    mask_high,
    mix,
    token_key,
)
from streamlearn.compute.kernels.delimited import unquote
from streamlearn.compute.kernels.text import decimal, number, utf8_valid
from streamlearn.compute.kernels.times import parse_time

__all__ = [
    "ITEM",
    "N_SETTINGS",
    "RATING",
    "TIME",
    "USER",
    "WEIGHT",
    "describe_records",
    "integer_keys",
    "parse_records",
]

# What a field is; ``settings[S_PLACES + kind]`` is its place, -1 where there is none.
USER, ITEM, RATING, TIME, WEIGHT = 0, 1, 2, 3, 4

# Indices into ``settings`` (int64[N_SETTINGS]); the first four as ``delimited.unquote`` has them.
S_SEPARATOR, S_QUOTE, S_TRIM, S_COLUMNS, S_WIDTH, S_BLANKS = 0, 1, 2, 3, 4, 5
S_LEAST, S_MOST, S_LAYOUT, S_LABEL, S_RECORD_MAX, S_CLICKS, S_PLACES = 6, 7, 8, 9, 10, 11, 12
N_SETTINGS = 17

# Reason codes of the minibatch.
_COUNT, _LABEL, _UTF8, _TOO_LONG, _QUOTE, _SYNTAX, _TIME, _WEIGHT = 1, 2, 4, 5, 6, 7, 9, 10

_TAB, _NEWLINE, _RETURN, _SPACE = uint64(9), uint64(10), uint64(13), uint64(32)
_POINT, _ZERO, _NINE, _MINUS = uint64(46), uint64(48), uint64(9), uint64(45)
_ZEROS = np.uint64(0x3030303030303030)
_OVER_NINE = np.uint64(0x7676767676767676)  # lifts a byte above 9 to its highest bit
_HIGH = np.uint64(0x8080808080808080)
_TEN_TO_8, _TEN = uint64(100_000_000), uint64(10)
_FLOAT32_MAX = float(np.finfo(np.float32).max)


@njit(nogil=True, cache=True, inline="always")
def _marks(at, separator, other, quote, wide):
    """Return a bit for each of 64 bytes where a separator begins, a quote stands or a line ends."""
    if wide:
        pairs = mask_eq2(at, separator, separator) & mask_eq2(at + 1, separator, separator)
        return pairs | mask_eq2(at, _NEWLINE, _NEWLINE)
    return mask_eq2(at, separator, _NEWLINE) | mask_eq2(at, other, quote)


@njit(nogil=True, cache=True)
def _trimmed(at, end, blanks):
    """Return where a field begins and ends without the spaces (and tabs, if asked) around it."""
    other = _TAB if blanks else _SPACE
    while at < end and (load8(at) == _SPACE or load8(at) == other):
        at += 1
    while at < end and load8(end - 1) == _SPACE:
        end -= 1
    return at, end


@njit(nogil=True, cache=True)
def _time_valid(at, length):
    """Say whether a time is seconds since 1970 (up to 18 digits and a fraction), or as logs say."""
    digits = 0
    while digits < length and load8(at + digits) - _ZERO <= _NINE:
        digits += 1
    if digits == 0 or digits > 18 or (digits < length and load8(at + digits) != _POINT):
        return parse_time(at, length) >= 0
    digits += 1
    while digits < length and load8(at + digits) - _ZERO <= _NINE:
        digits += 1
    return digits >= length


@njit(nogil=True, cache=True)
def parse_records(
    buffer,
    start,
    end,
    settings,
    user_seed,
    item_seed,
    bounds,
    scratch,
    keys,
    indptr,
    labels,
    weights,
    lines,
    bad_start,
    bad_reason,
    bad_field,
    bad_arg,
    state,
    nnz_last,
):
    """Append the records of ``buffer[start:end]`` to a minibatch; return the first byte not parsed.

    Parameters
    ----------
    buffer : uint8[n]
        ``buffer[end - 1]`` is a newline; at least 65 bytes may be read past ``end``.
    start, end : int
        Stops early once the minibatch is full, so always between two records.
    settings : int64[N_SETTINGS]
        Separator and quote (bytes; quote is a newline where quotes mean nothing), trim (0/1), how
        many fields matter, bytes of a separator (2: it is doubled), whether it is a run of blanks
        (0/1), the least and the most fields of a record (0: any), what goes above 21 bits of
        ``bad_arg``, the label where no field is one, bytes a record may have, whether ratings must
        be 0 or 1 (0/1), and the places of user, item, rating, time and weight.
    user_seed, item_seed : uint64
    bounds, scratch : int64[fields + 1], uint8[record bytes + 64]
        Working space.
    keys, indptr, ..., state
        The minibatch's arrays (see ``Minibatch``), appended to in place.
    nnz_last : int
        Stops once there are more features than this.

    Notes
    -----
    ``bad_arg`` is ``layout << 21`` with the number of fields found, or with which of ``USER`` to
    ``WEIGHT`` is wrong; ``bad_field`` is its place. Of a record that is too long it is the length.
    The first that is wrong of length, quotes, number of fields, user, item, rating, weight and time
    makes it a bad record. O(bytes).
    """
    base = int64(buffer.ctypes.data)
    separator, quote = uint64(settings[S_SEPARATOR]), uint64(settings[S_QUOTE])
    n_columns, width, blanks = settings[S_COLUMNS], settings[S_WIDTH], settings[S_BLANKS]
    other = _TAB if blanks != 0 else separator
    wide, trim = width == 2, settings[S_TRIM] != 0 or blanks != 0
    least, most = settings[S_LEAST], settings[S_MOST]
    user, item, rating = settings[S_PLACES], settings[S_PLACES + 1], settings[S_PLACES + 2]
    time, weighed = settings[S_PLACES + 3], settings[S_PLACES + 4]
    layout = settings[S_LAYOUT] << 21
    otherwise = float32(settings[S_LABEL])
    clicks = settings[S_CLICKS] != 0
    rows_max = labels.size
    rows, nnz, bad, records = state[0], state[1], state[2], state[3]
    begin, last = base + start, base + end
    window = begin
    mask = _marks(window, separator, other, quote, wide)
    high_here = mask_high(window)
    while begin < last and rows < rows_max and bad < rows_max and nnz <= nnz_last:
        line = begin
        high = high_here
        found = 0
        quoted = False
        token = line
        bounds[0] = line - width
        while True:
            while mask == uint64(0):
                window += 64
                mask = _marks(window, separator, other, quote, wide)
                high_here = mask_high(window)
                high |= high_here
            at = window + int64(ctz(mask))
            mask &= mask - uint64(1)
            byte = load8(at)
            if byte == _NEWLINE:
                break
            if byte == quote:
                quoted = True
            elif at < token + blanks:  # the second of two blanks, or in the middle of ":::"
                token = max(token, at + 1)
            else:
                found += 1
                if found <= n_columns:
                    bounds[found] = at
                token = at + width
        begin = at + 1
        if at > line and load8(at - 1) == _RETURN:
            at -= 1
        if at == line or (blanks != 0 and found == 0 and at <= token):
            continue
        records += 1
        reason, field, arg, kind = 0, -1, 0, 0
        if at - line > settings[S_RECORD_MAX]:
            reason, arg = _TOO_LONG, at - line
        elif quoted:
            found = unquote(line, at, settings, bounds, scratch)
            reason = _QUOTE if found < 0 else 0
        elif at >= token + blanks:
            found += 1
            if found <= n_columns:
                bounds[found] = at
        if reason == 0 and (found < least or (most > 0 and found > most)):
            reason, arg = _COUNT, layout | found
        user_key, item_key, label, weight = uint64(0), uint64(0), otherwise, float32(1)
        if reason == 0:
            at, stop = bounds[user] + width, bounds[user + 1]
            if trim:
                at, stop = _trimmed(at, stop, blanks != 0)
            user_key = token_key(at, stop - at, user_seed)
            if stop == at:
                reason, field, kind = _SYNTAX, user, USER
            elif high != uint64(0) and not utf8_valid(at, stop - at):
                reason, field, kind = _UTF8, user, USER
        if reason == 0:
            at, stop = bounds[item] + width, bounds[item + 1]
            if trim:
                at, stop = _trimmed(at, stop, blanks != 0)
            item_key = token_key(at, stop - at, item_seed)
            if stop == at:
                reason, field, kind = _SYNTAX, item, ITEM
            elif high != uint64(0) and not utf8_valid(at, stop - at):
                reason, field, kind = _UTF8, item, ITEM
        if reason == 0 and rating >= 0:
            at, stop = bounds[rating] + width, bounds[rating + 1]
            if trim:
                at, stop = _trimmed(at, stop, blanks != 0)
            # most ratings are one digit, or two with a point between
            first = load8(at) - _ZERO
            second = load8(at + 2) - _ZERO
            if stop - at == 1 and first <= _NINE:
                label = float32(first)
            elif stop - at == 3 and first <= _NINE and load8(at + 1) == _POINT and second <= _NINE:
                label = float32(float64(first * _TEN + second) / 10.0)
            else:
                valid, label = number(at, stop - at)
                if not valid:
                    reason, field, kind = _LABEL, rating, RATING
            if clicks and label != float32(0) and label != float32(1):
                reason, field, kind = _LABEL, rating, RATING
        if reason == 0 and weighed >= 0:
            at, stop = bounds[weighed] + width, bounds[weighed + 1]
            if trim:
                at, stop = _trimmed(at, stop, blanks != 0)
            amount = decimal(at, stop - at)
            weight = float32(amount)
            if not 0 <= amount <= _FLOAT32_MAX:
                reason, field, kind = _WEIGHT, weighed, WEIGHT
        if reason == 0 and 0 <= time < found:
            at, stop = bounds[time] + width, bounds[time + 1]
            if trim:
                at, stop = _trimmed(at, stop, blanks != 0)
            wrong = _HIGH
            if 8 <= stop - at <= 16:
                # all digits, the last eight of them once more
                front, back = load64(at) ^ _ZEROS, load64(stop - 8) ^ _ZEROS
                wrong = ((front + _OVER_NINE) | front | (back + _OVER_NINE) | back) & _HIGH
            if wrong != uint64(0) and stop > at and not _time_valid(at, stop - at):
                reason, field, kind = _TIME, time, TIME
        if reason != 0:
            bad_start[bad] = line - base
            bad_reason[bad] = reason
            bad_field[bad] = field
            bad_arg[bad] = layout | kind if field >= 0 else arg
            bad += 1
            continue
        keys[nnz] = user_key
        keys[nnz + 1] = item_key
        labels[rows] = label
        weights[rows] = weight
        lines[rows] = line - base
        nnz += 2
        rows += 1
        indptr[rows] = nnz
    state[0], state[1], state[2], state[3] = rows, nnz, bad, records
    return begin - base


@njit(nogil=True, cache=True)
def _split(line, stop, settings, bounds):
    """Fill ``bounds`` for a good record without quotes, from ``line`` to ``stop``."""
    separator, columns = uint64(settings[S_SEPARATOR]), settings[S_COLUMNS]
    width, blanks = settings[S_WIDTH], settings[S_BLANKS]
    other = _TAB if blanks != 0 else separator
    bounds[0] = line - width
    token, found = line, 0
    for at in range(line, stop):
        if at < token or load8(at) not in (separator, other):
            continue
        if width == 2 and (at + 1 == stop or load8(at + 1) != separator):
            continue
        if at >= token + blanks:
            found += 1
            if found <= columns:
                bounds[found] = at
        token = at + width
    if found < columns:
        bounds[found + 1] = stop


@njit(nogil=True, cache=True)
def describe_records(
    buffer, starts, ends, settings, user_seed, item_seed, bounds, scratch, keys, text_ends, text
):
    """Say which text made which key in good records: the user's, then the item's, of each.

    Parameters
    ----------
    buffer, settings, user_seed, item_seed, bounds, scratch
        As for :func:`parse_records`.
    starts, ends : int64[r]
        The records in ``buffer``, without newline.
    keys, text_ends, text : uint64[2 r], int64[2 r], uint8[t]
        Written; room for the bytes of the records.

    Returns
    -------
    int
        Bytes of text.
    """
    base = int64(buffer.ctypes.data)
    quote = uint64(settings[S_QUOTE])
    width, blanks = settings[S_WIDTH], settings[S_BLANKS]
    to = 0
    for record in range(starts.size):
        line, stop = base + starts[record], base + ends[record]
        if stop > line and load8(stop - 1) == _RETURN:
            stop -= 1
        quoted = False
        for at in range(line, stop):
            quoted |= load8(at) == quote
        if quoted:
            unquote(line, stop, settings, bounds, scratch)
        else:
            _split(line, stop, settings, bounds)
        for kind in range(2):
            place = settings[S_PLACES + kind]
            at, end = bounds[place] + width, bounds[place + 1]
            if settings[S_TRIM] != 0 or blanks != 0:
                at, end = _trimmed(at, end, blanks != 0)
            seed = user_seed if kind == USER else item_seed
            keys[2 * record + kind] = token_key(at, end - at, seed)
            for i in range(at, end):
                text[to] = load8(i)
                to += 1
            text_ends[2 * record + kind] = to
    return to


@njit(nogil=True, cache=True)
def integer_keys(numbers, seed, keys):
    """Compute the keys of whole numbers, each as the token of its decimal digits.

    Parameters
    ----------
    numbers : int64[k] or uint64[k]
    seed : uint64
    keys : uint64[k]
        Written.
    """
    # twenty characters at most, and eight that are read past them
    text = np.zeros(32, np.uint8)
    base = int64(text.ctypes.data)
    for i in range(numbers.size):
        negative = numbers[i] < 0
        left = uint64(0) - uint64(numbers[i]) if negative else uint64(numbers[i])
        if not negative and left < _TEN_TO_8:
            word = uint64(0)
            while True:
                word = (word << uint64(8)) | (_ZERO + left % _TEN)
                left //= _TEN
                if left == uint64(0):
                    break
            keys[i] = mix(word, seed)
            continue
        at = 20
        while True:
            at -= 1
            text[at] = _ZERO + left % _TEN
            left //= _TEN
            if left == uint64(0):
                break
        if negative:
            at -= 1
            text[at] = _MINUS
        keys[i] = token_key(base + at, 20 - at, seed)
