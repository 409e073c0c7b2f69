"""Counts of words by topic, and topics of tokens, between arrays and bytes (``topic_columns``).

Bytes of a peer are looked at once (:func:`row_bounds`), before anything is taken from them.
"""

from __future__ import annotations

import numpy as np
from numba import int32, int64, njit, uint8, uint16, uint64

__all__ = ["fill_rows", "pack_rows", "pack_topics", "row_bounds", "rows_size", "unpack_topics"]

_MORE = np.uint8(0x80)
_INT32_MAX = 2**31 - 1
# Of an int32: bytes of seven bits.
_VARINT_MAX = 5


@njit(nogil=True, cache=True, inline="always")
def _size(value):
    """Return how many bytes a number takes."""
    size = 1
    while value > 127:
        value >>= 7
        size += 1
    return size


@njit(nogil=True, cache=True, inline="always")
def _put(out, at, value):
    while value > 127:
        out[at] = uint8(value & 127) | _MORE
        value >>= 7
        at += 1
    out[at] = uint8(value)
    return at + 1


@njit(nogil=True, cache=True, inline="always")
def _nonzeros(row, topics):
    there = int64(0)
    for k in range(topics):
        there += int64(row[k] != 0)
    return there


@njit(nogil=True, cache=True)
def rows_size(counts, places, topics):
    """Return the bytes of rows as :func:`pack_rows` writes them.

    Parameters
    ----------
    counts : int32[...]
        Memory of all rows; none negative.
    places : int64[n]
        Where each begins.
    topics : int64
    """
    size = int64(0)
    for i in range(places.shape[0]):
        row = counts[places[i] : places[i] + topics]
        there = _nonzeros(row, topics)
        size += _size(there)
        if 2 * there >= topics:
            for k in range(topics):
                size += _size(int64(row[k]))
            continue
        last = int64(-1)
        for k in range(topics):
            if row[k] != 0:
                size += _size(k - last - 1) + _size(int64(row[k]))
                last = int64(k)
    return size


@njit(nogil=True, cache=True)
def pack_rows(counts, places, topics, out):
    """Write rows: of each how many counts are not 0, and those; see :func:`rows_size`.

    Where they are half of all or more, all follow; else each that is not 0, led by the number of
    zeros between it and the one before.

    Parameters
    ----------
    out : uint8[rows_size]
    """
    at = int64(0)
    for i in range(places.shape[0]):
        row = counts[places[i] : places[i] + topics]
        there = _nonzeros(row, topics)
        at = _put(out, at, there)
        if 2 * there >= topics:
            for k in range(topics):
                at = _put(out, at, int64(row[k]))
            continue
        last = int64(-1)
        for k in range(topics):
            if row[k] != 0:
                at = _put(out, at, k - last - 1)
                at = _put(out, at, int64(row[k]))
                last = int64(k)


@njit(nogil=True, cache=True, inline="always")
def _get(data, at):
    """Return a number and where the next begins; -1: there is none of 31 bits."""
    value, shift = int64(0), int64(0)
    while True:
        if at >= data.shape[0] or shift >= 7 * _VARINT_MAX:
            return int64(-1), at
        byte = int64(data[at])
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
        shift += 7
    if value > _INT32_MAX or (byte == 0 and shift > 0):
        return int64(-1), at
    return value, at


@njit(nogil=True, cache=True)
def row_bounds(data, topics, bounds):
    """Find where each row begins in bytes; return False where they are not as ``pack_rows`` writes.

    Parameters
    ----------
    data : uint8[size]
    topics : int64
    bounds : int64[n + 1]
        Written.
    """
    at = int64(0)
    for i in range(bounds.shape[0] - 1):
        bounds[i] = at
        there, at = _get(data, at)
        if there < 0 or there > topics:
            return False
        if 2 * there >= topics:
            met = int64(0)
            for _ in range(topics):
                value, at = _get(data, at)
                if value < 0:
                    return False
                met += int64(value != 0)
            if met != there:
                return False
            continue
        last = int64(-1)
        for _ in range(there):
            gap, at = _get(data, at)
            if gap < 0 or last + gap + 1 >= topics:
                return False
            last += gap + 1
            value, at = _get(data, at)
            if value <= 0:
                return False
    bounds[bounds.shape[0] - 1] = at
    return at == data.shape[0]


@njit(nogil=True, cache=True)
def fill_rows(data, bounds, rows, topics, stride, out):
    """Read rows of bytes that ``row_bounds`` has found right.

    Parameters
    ----------
    bounds : int64[n + 1]
    rows : int64[m]
        Which, each below n.
    stride : int64
        From one row to the next in ``out``, at least ``topics``.
    out : int32[>= m * stride]
        Written; nothing of it between the rows.
    """
    for i in range(rows.shape[0]):
        base = i * stride
        there, at = _get(data, bounds[rows[i]])
        if 2 * there >= topics:
            for k in range(topics):
                value, at = _get(data, at)
                out[base + k] = int32(value)
            continue
        out[base : base + topics] = int32(0)
        topic = int64(-1)
        for _ in range(there):
            gap, at = _get(data, at)
            topic += gap + 1
            value, at = _get(data, at)
            out[base + topic] = int32(value)


@njit(nogil=True, cache=True)
def pack_topics(values, width, out):
    """Write ``width`` bits of each of uint16[n], one behind the other, then zeros.

    Parameters
    ----------
    out : uint8[ceil(n * width / 8)]
    """
    held, bits, at = uint64(0), int64(0), int64(0)
    for i in range(values.shape[0]):
        held |= uint64(values[i]) << uint64(bits)
        bits += width
        while bits >= 8:
            out[at] = uint8(held & uint64(0xFF))
            held >>= uint64(8)
            bits -= 8
            at += 1
    if bits > 0:
        out[at] = uint8(held)


@njit(nogil=True, cache=True)
def unpack_topics(data, width, most, out):
    """Read what :func:`pack_topics` wrote; return False where a number is above ``most``.

    Or where bits behind the last are not 0.

    Parameters
    ----------
    data : uint8[ceil(n * width / 8)]
    out : uint16[n]
        Written.
    """
    held, bits, at = uint64(0), int64(0), int64(0)
    mask = (uint64(1) << uint64(width)) - uint64(1)
    for i in range(out.shape[0]):
        while bits < width:
            held |= uint64(data[at]) << uint64(bits)
            at += 1
            bits += 8
        value = held & mask
        if value > uint64(most):
            return False
        out[i] = uint16(value)
        held >>= uint64(width)
        bits -= width
    return held == uint64(0)
