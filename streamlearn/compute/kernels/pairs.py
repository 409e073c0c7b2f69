"""Sparse lines: ``label index:value ...`` (svmlight) and ``label field:index:value ...`` (libffm).

Blanks (spaces, tabs, carriage returns) separate, ``#`` at the start of a token begins a comment,
``qid:n`` straight after the label is passed over, and a feature without a value has the value 1.
Indices and fields are whole numbers as a rule; whatever else stands there is taken as a name:

    word(text)           the number, for 1 to 18 digits; else none
    key(text, seed)      mix(word(text), seed), or token_key(text, seed) where there is no word
    svmlight             key(index, seed)
    libffm               key(index, key(field, seed))

Where a minibatch has fields, a feature's is that of ``key(field, seed)`` in a table; a field that
is not there makes a bad record. In svmlight all features are of field 0.

A line is read once from left to right; its newline stops every loop, so nothing need be known about
where it ends.
"""

from __future__ import annotations

import numpy as np
from numba import float32, float64, int64, njit, uint32, uint64

from streamlearn.compute.kernels.bits import (
    ctz,
    digits_value,
    load8,
    load32,
    load64,
    mix,
    store32,
    token_key,
)
from streamlearn.compute.kernels.delimited import label_of_token
from streamlearn.compute.kernels.text import line_end, number, utf8_valid

__all__ = ["BINARY", "CLASS", "TOKEN", "VALUE", "describe", "named_key", "parse"]

# What labels are: -1, 0 or 1; whole numbers from 0 below a bound; any number; tokens of a table.
BINARY, CLASS, VALUE, TOKEN = 0, 1, 2, 3

_RECORD_BYTES_MAX = 1 << 20
_FEATURES_MAX = 1 << 16  # of a record; a minibatch without room for so many is full
_MANY = 16  # what _digits counts where there are more than it reads

_HIGH = np.uint64(0x8080808080808080)
_ZEROS = np.uint64(0x3030303030303030)
_OVER_NINE = np.uint64(0x7676767676767676)  # lifts a byte above 9 to its highest bit
_LOW_FOUR = np.uint64(0xFFFFFFFF)
_QID = np.uint64(int.from_bytes(b"qid:", "little"))
_TENS = np.array([10**i for i in range(16)], np.uint64)
_POWERS = _TENS.astype(np.float64)  # exact


@njit(nogil=True, cache=True, inline="always")
def _digits(at):
    """Return the number that the digits at ``at`` make, and how many: up to 15, else 16."""
    x = load64(at) ^ _ZEROS
    # the lowest set bit is that of the first byte that is no digit; higher ones may be carries
    other = ((x + _OVER_NINE) | x) & _HIGH
    if other != uint64(0):
        bits = ctz(other) & uint64(0x38)
        return digits_value(x << (uint64(63) - bits) << uint64(1)), int64(bits >> uint64(3))
    high = digits_value(x)
    x = load64(at + 8) ^ _ZEROS
    other = ((x + _OVER_NINE) | x) & _HIGH
    if other == uint64(0):
        return uint64(0), _MANY
    bits = ctz(other) & uint64(0x38)
    count = int64(bits >> uint64(3))
    low = digits_value(x << (uint64(63) - bits) << uint64(1))
    return high * _TENS[count] + low, 8 + count


@njit(nogil=True, cache=True, inline="always")
def _ends(byte):
    """Say whether a byte ends a token: a blank or the newline."""
    return byte == uint64(32) or byte == uint64(10) or byte == uint64(9) or byte == uint64(13)


@njit(nogil=True, cache=True, inline="always")
def _blanks_end(at):
    """Return the address of the first byte from ``at`` on that is no blank; a newline is none."""
    while load8(at) == uint64(32) or load8(at) == uint64(9) or load8(at) == uint64(13):
        at += 1
    return at


@njit(nogil=True, cache=True)
def _token_end(at):
    stop = int64(at)
    while not _ends(load8(stop)):
        stop += 1
    return stop


@njit(nogil=True, cache=True)
def _named(at, seed):
    """Read an index or a field of any form.

    Returns
    -------
    key : uint64
    stop : int64
        Address of the colon, blank or newline behind it.
    valid : bool
        Whether it is UTF-8.
    """
    stop = int64(at)
    word = uint64(0)
    whole = True
    while True:
        byte = load8(stop)
        if byte == uint64(58) or _ends(byte):
            break
        digit = byte - uint64(48)
        whole &= digit <= uint64(9)
        word = word * uint64(10) + digit
        stop += 1
    length = stop - at
    if whole and 0 < length <= 18:
        return mix(word, seed), stop, True
    return token_key(at, length, seed), stop, utf8_valid(at, length)


@njit(nogil=True, cache=True)
def _odd_number(at):
    """Read the number of a whole token; return whether it is one, its value and its end."""
    stop = _token_end(at)
    valid, value = number(at, stop - at)
    return valid, value, stop


@njit(nogil=True, cache=True, inline="always")
def _value(at):
    """Read the number up to the token's end; return whether it is one, its value and its end.

    Digits with at most one point, 15 in all, are read by words: whole number and power of ten are
    exact in float64, so the quotient is correctly rounded, as ``number`` has it too.
    """
    first = load8(at)
    # most values of sparse data are a plain 1
    if first == uint64(49) and _ends(load8(at + 1)):
        return True, float32(1), at + 1
    negative = first == uint64(45)
    start = at + int64(negative | (first == uint64(43)))
    whole, count = _digits(start)
    stop = start + count
    value = float64(whole)
    if count < _MANY and load8(stop) == uint64(46):
        part, more = _digits(stop + 1)
        stop += 1 + more
        count += more
        if count < _MANY:
            value = float64(whole * _TENS[more] + part) / _POWERS[more]
    if 0 < count < _MANY and _ends(load8(stop)):
        return True, float32(-value if negative else value), stop
    return _odd_number(at)


@njit(nogil=True, cache=True)
def _label(at, label_of):
    """Read a label; return it, NaN for none, and its end.

    ``label_of`` is that of :func:`parse`, with addresses for arrays, and the number of tokens.
    """
    make, bound, tokens, ends, numbers, count = label_of
    if make == TOKEN:
        stop = _token_end(at)
        return label_of_token(at, stop - at, tokens, ends, numbers, count, -1), stop
    valid, value, stop = _value(at)
    if not valid:
        return np.nan, stop
    if make == BINARY:
        binary = value == float32(1) or value == float32(0) or value == float32(-1)
        return (float64(value == float32(1)) if binary else np.nan), stop
    whole = float32(0) <= value < bound and value == np.floor(value)
    return (float64(value) if make == VALUE or whole else np.nan), stop


@njit(nogil=True, cache=True)
def _number_of(wanted, table):
    """Return a field's number, -1 where it is not in the table (addresses, places less one)."""
    field_keys, field_numbers, mask = table
    place = int64(wanted >> uint64(32)) & mask
    while True:
        found = load64(field_keys + 8 * place)
        if found == wanted:
            return int64(load32(field_numbers + 4 * place))
        if found == uint64(0):
            return -1
        place = (place + 1) & mask


@njit(nogil=True, cache=True)
def named_key(text, seed):
    """Return the key of a field or index: ``text`` (uint8[n]) ends with a colon or blank."""
    return _named(int64(text.ctypes.data), seed)[0]


@njit(nogil=True, cache=True)
def _record(begin, fields, seed, label_of, table, keys, values, numbers_at, first):
    """Read the line at ``begin``, which has a label.

    Parameters
    ----------
    fields, seed : bool, uint64
    label_of, table : tuple
        As in :func:`parse`, with addresses for arrays.
    keys, values, numbers_at : uint64[n], float32[n], int64
        Written from index ``first`` on; room for 65536. The last is the address of the int32
        numbers of fields, or 0 where none are wanted.

    Returns
    -------
    features : int64
        Meaningless if ``reason`` is not 0.
    label : float64
    at : int64
        Address within the line up to which it was read; its end for a good record.
    reason, field, arg : int64
        As in ``Minibatch.bad_*``: 0 for a good record; which feature, from 0, or -1 for the label;
        where the token at fault begins in the line.
    """
    label, at = _label(begin, label_of)
    if np.isnan(label):
        return 0, 0.0, at, 2, -1, 0
    features = 0
    target = int64(first)
    number_of = int64(0)
    while True:
        at = _blanks_end(at)
        byte = load8(at)
        if byte == uint64(10):
            break
        if byte == uint64(35):
            at = line_end(at)
            break
        token = at
        if features == 0 and load64(at) & _LOW_FOUR == _QID:
            at = _token_end(at)
            _, count = _digits(token + 4)
            if count == 0 or count == _MANY or token + 4 + count != at:
                return 0, label, at, 3, 0, token - begin
            continue
        if features == _FEATURES_MAX:
            return 0, label, at, 8, features, token - begin
        inner = seed
        if fields:
            word, count = _digits(at)
            stop = at + count
            if 0 < count < _MANY and load8(stop) == uint64(58):
                inner = mix(word, seed)
            else:
                inner, stop, valid = _named(at, seed)
                if not valid:
                    return 0, label, at, 4, features, token - begin
                if stop == at or load8(stop) != uint64(58):
                    return 0, label, at, 7, features, token - begin
            at = stop + 1
            if numbers_at != 0:
                number_of = _number_of(inner, table)
                if number_of < 0:
                    return 0, label, at, 7, features, token - begin
        word, count = _digits(at)
        stop = at + count
        if 0 < count < _MANY and load8(stop) == uint64(58):
            key = mix(word, inner)
        else:
            key, stop, valid = _named(at, inner)
            if not valid:
                return 0, label, at, 4, features, token - begin
            if stop == at:
                return 0, label, at, 7, features, token - begin
        value = float32(1)
        at = stop
        if load8(stop) == uint64(58):
            valid, value, at = _value(stop + 1)
            if not valid:
                return 0, label, at, 3, features, token - begin
        keys[target] = key
        values[target] = value
        if numbers_at != 0:
            store32(numbers_at + 4 * target, uint32(number_of))
        target += 1
        features += 1
    return features, label, at, 0, -1, 0


@njit(nogil=True, cache=True)
def _full(state, rows_max, nnz_max):
    return state[0] >= rows_max or state[2] >= rows_max or state[1] + _FEATURES_MAX > nnz_max


@njit(nogil=True, cache=True)
def parse(buffer, start, end, fields, seed, label_of, table, sink):
    """Append the records of ``buffer[start:end]`` to a minibatch, until it is full.

    Parameters
    ----------
    buffer : uint8[n]
        ``buffer[end - 1]`` is a newline; 128 bytes after ``end`` may be read.
    fields : bool
        Whether features are ``field:index:value`` (libffm) rather than ``index:value`` (svmlight).
    seed : uint64
        Of the indices, or of the fields.
    label_of : tuple
        What labels are: ``BINARY``, ``CLASS``, ``VALUE`` or ``TOKEN``; the bound of ``CLASS``
        (float64); the table of ``TOKEN`` (uint8[k], int64[m], int64[m]): a token, where each ends,
        the label that it makes.
    table : tuple
        libffm (uint64[t], int32[t]): the number of each field by its key, where the minibatch has
        fields. Open addressing by the key's high half, 0 is empty, t a power of two.
    sink : tuple of arrays
        ``keys, values, fields, indptr, labels, weights, lines, bad_start, bad_reason, bad_field,
        bad_arg, state`` of a ``Minibatch``; written from where ``state`` says, fields only where
        they have length.

    Returns
    -------
    int64
        Index of the first byte not parsed: the start of a line, or ``end``.

    Notes
    -----
    ``bad_arg`` is where in the record the token at fault begins, but the length of a record that is
    too long. Values as :func:`~streamlearn.compute.kernels.text.number` reads them.
    """
    keys, values, numbers = sink[:3]
    indptr, labels, weights, lines = sink[3:7]
    bad_start, bad_reason, bad_field, bad_arg, state = sink[7:]
    base = int64(buffer.ctypes.data)
    # Helpers get addresses: each array given to a function costs two atomic counts of references.
    make, bound, tokens, ends, classes = label_of
    texts = (int64(tokens.ctypes.data), int64(ends.ctypes.data), int64(classes.ctypes.data))
    label_at = (make, bound, texts[0], texts[1], texts[2], ends.size)
    field_keys, field_numbers = table
    mask = field_keys.size - 1
    table_at = (int64(field_keys.ctypes.data), int64(field_numbers.ctypes.data), mask)
    numbers_at = int64(numbers.ctypes.data) if numbers.size > 0 else int64(0)
    position = int64(start)
    while position < end and not _full(state, labels.size, keys.size):
        at = _blanks_end(base + position)
        byte = load8(at)
        if byte == uint64(10) or byte == uint64(35):
            position = line_end(at) - base + 1
            continue
        features, label, stop, reason, field, arg = _record(
            at, fields, seed, label_at, table_at, keys, values, numbers_at, state[1]
        )
        arg += at - base - position
        stop = line_end(stop) - base
        if stop - position > _RECORD_BYTES_MAX:
            reason, field, arg = 5, -1, stop - position
        state[3] += 1
        if reason == 0:
            row = state[0]
            state[1] += features
            indptr[row + 1] = state[1]
            labels[row] = float32(label)
            weights[row] = float32(1)
            lines[row] = position
            state[0] = row + 1
        else:
            bad = state[2]
            bad_start[bad] = position
            bad_reason[bad] = reason
            bad_field[bad] = field
            bad_arg[bad] = arg
            state[2] = bad + 1
        position = stop + 1
    return position


@njit(nogil=True, cache=True)
def describe(buffer, starts, fields, seed, keys, ends, text):
    """Say which text made which key in the good records that begin at ``buffer[starts[i]]``.

    Parameters
    ----------
    starts : int64[r]
    fields, seed
        As in :func:`parse`.
    keys, ends : uint64[m], int64[m]
        Receive the features; room for half the bytes of the records.
    text : uint8[k]
        Receives ``index``, or ``field=index``; room for the bytes of the records.

    Returns
    -------
    features, size : int64
        How much of ``keys`` and of ``text`` was written.
    """
    base = int64(buffer.ctypes.data)
    features = 0
    size = 0
    for i in range(starts.size):
        at = _token_end(_blanks_end(base + starts[i]))  # the label
        before = features
        while True:
            token = _blanks_end(at)
            byte = load8(token)
            if byte == uint64(10) or byte == uint64(35):
                break
            at = _token_end(token)
            if features == before and load64(token) & _LOW_FOUR == _QID:
                continue
            inner = seed
            stop = token
            if fields:
                inner, stop, _ = _named(token, seed)
                stop += 1
            key, stop, _ = _named(stop, inner)
            for j in range(token, stop):
                byte = load8(j)
                text[size] = uint64(61) if fields and byte == uint64(58) else byte
                size += 1
            keys[features] = key
            ends[features] = size
            features += 1
    return features, size
