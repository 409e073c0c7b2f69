"""The texts of some fields of a JSON object, one after another.

All of the object is checked against the grammar (RFC 8259), as ``kernels.jsonl`` does it; a field
is a path of keys with dots between them, and arrays add nothing to it.

Addresses are int64; loads may go 64 bytes past the end of the data.
"""

from __future__ import annotations

from numba import int64, njit, uint64

from streamlearn.compute.kernels.bits import load8, load32, load64, store64
from streamlearn.compute.kernels.json_text import (
    DEPTH_MAX,
    EXPECT_ARRAY_COMMA,
    EXPECT_COLON,
    EXPECT_COMMA,
    EXPECT_END,
    EXPECT_KEY,
    EXPECT_LEVELS,
    EXPECT_NUMBER,
    EXPECT_OBJECT,
    EXPECT_VALUE,
    blank,
    numeral,
    plain_end,
    unescape,
)
from streamlearn.compute.kernels.jsonl import path_hash

__all__ = ["ABSENT", "gather_texts"]

# What is said of an object that has none of the fields.
ABSENT = -1

_QUOTE, _NEWLINE, _SPACE = uint64(34), uint64(10), uint64(32)
_OPEN, _CLOSE, _OPEN_ARRAY, _CLOSE_ARRAY = uint64(123), uint64(125), uint64(91), uint64(93)


@njit(nogil=True, cache=True)
def _copy(at, length, target, to):
    """Copy bytes to ``target[to:]``, eight at a time; may write seven more."""
    address = int64(target.ctypes.data) + to
    for i in range(0, length, 8):
        store64(address + i, load64(at + i))


@njit(nogil=True, cache=True)
def _wanted(path_at, path_length, fields):
    found = path_hash(path_at, path_length)
    here = False
    for i in range(fields.size):
        here |= fields[i] == found
    return here


@njit(nogil=True, cache=True)
def gather_texts(begin, fields, path, levels, text):
    """Copy the texts of an object's fields to ``text``, a newline behind each.

    Parameters
    ----------
    begin : int64
        Address of the record, which ends at the first newline.
    fields : uint64[k]
        ``jsonl.path_hash`` of each wanted field.
    path, levels : uint8[record bytes + 128], int64[64]
        Working space.
    text : uint8[record bytes + 128]
        Written.

    Returns
    -------
    length : int64
        Bytes of text.
    at : int64
        Where the record is no object of JSON; else 0.
    code : int64
        What was expected there (``json_text.CODES``), 0, or :data:`ABSENT`.

    Notes
    -----
    A number is the text that it is written with; null, true, false and an empty array are empty.
    """
    base = int64(path.ctypes.data)
    to = int64(0)
    present = False
    at = blank(begin)
    if load8(at) != _OPEN:
        return to, at, EXPECT_OBJECT
    at += 1
    depth = 0
    objects = uint64(1)  # bit i: whether level i is an object
    wanted_levels = uint64(0)  # bit i: whether the values of the array that level i is are wanted
    levels[0] = 0
    in_object = True
    opened = True  # whether nothing stands in this level yet
    while True:
        at = blank(at)
        byte = load8(at)
        closing = opened and byte == (_CLOSE if in_object else _CLOSE_ARRAY)
        path_at, path_length = base, levels[depth]
        wanted = (wanted_levels >> uint64(depth)) & uint64(1) != uint64(0)
        if in_object and not closing:
            if byte != _QUOTE:
                return to, at, EXPECT_KEY
            at += 1
            prefix = levels[depth]
            stop = plain_end(at)
            if load8(stop) == _QUOTE:
                path_length = stop - at
                if prefix == 0:
                    path_at = at
                else:
                    _copy(at, path_length, path, prefix)
                at = stop + 1
            else:
                at, path_length, code = unescape(at, path, prefix)
                if code != 0:
                    return to, at, code
            path_length += prefix
            at = blank(at)
            if load8(at) != uint64(58):
                return to, at, EXPECT_COLON
            at = blank(at + 1)
            byte = load8(at)
            wanted = _wanted(path_at, path_length, fields)
        if not closing:
            opened = False
            present |= wanted and byte != _OPEN
            if byte == _QUOTE:
                at += 1
                stop = plain_end(at)
                if load8(stop) == _QUOTE:
                    if wanted:
                        _copy(at, stop - at, text, to)
                        to += stop - at
                    at = stop + 1
                else:
                    at, length, code = unescape(at, text, to)
                    if code != 0:
                        return to, at, code
                    to += length if wanted else 0
                if wanted:
                    text[to] = 10
                    to += 1
            elif byte - uint64(48) <= uint64(9) or byte == uint64(45):
                first = at
                at = numeral(at)
                if at < 0:
                    return to, -at, EXPECT_NUMBER
                if wanted:
                    _copy(first, at - first, text, to)
                    to += at - first
                    text[to] = 10
                    to += 1
            elif byte in (_OPEN, _OPEN_ARRAY):
                if depth == DEPTH_MAX - 1:
                    return to, at, EXPECT_LEVELS
                if path_at != base:
                    _copy(path_at, path_length, path, 0)
                depth += 1
                bit = uint64(1) << uint64(depth)
                in_object = byte == _OPEN
                levels[depth] = path_length
                objects &= ~bit
                wanted_levels &= ~bit
                if in_object:
                    path[path_length] = 46
                    levels[depth] = path_length + 1
                    objects |= bit
                elif wanted:
                    wanted_levels |= bit
                opened = True
                at += 1
                continue
            else:
                word = load32(at)
                if word == uint64(0x65757274) or word == uint64(0x6C6C756E):  # true, null
                    at += 4
                elif word == uint64(0x736C6166) and load8(at + 4) == uint64(101):  # false
                    at += 5
                else:
                    return to, at, EXPECT_VALUE
        # behind a value: a comma, or the end of one level or several
        while True:
            if not closing:
                at = blank(at)
                byte = load8(at)
                if byte == uint64(44):
                    at += 1
                    break
                if byte != (_CLOSE if in_object else _CLOSE_ARRAY):
                    return to, at, EXPECT_COMMA if in_object else EXPECT_ARRAY_COMMA
            closing = False
            opened = False
            at += 1
            depth -= 1
            if depth < 0:
                break
            in_object = (objects >> uint64(depth)) & uint64(1) != uint64(0)
        if depth < 0:
            break
    at = blank(at)
    if load8(at) != _NEWLINE:
        return to, at, EXPECT_END
    return to, int64(0), int64(0) if present else int64(ABSENT)
