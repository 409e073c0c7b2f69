"""Bytes of any kind as a line: byte stuffing, with the newline in the place of the zero.

Cheshire & Baker, "Consistent Overhead Byte Stuffing", SIGCOMM 1997: the bytes between two newlines
are a group, and before each group stands a code that says how long it is, so that newlines
themselves need not be written. A code is the group's bytes and one (1 to 255), exclusive-or 10,
which is never a newline; 255 is a group of 254 bytes that no newline follows. At most one byte in
254 is added, and one more. The bytes between stay as they are.
"""

from __future__ import annotations

import numpy as np
from numba import int64, njit

__all__ = ["stuff", "stuff_items", "stuffed_bytes_max", "unstuff", "unstuff_records"]

_NEWLINE = 10
_GROUP = 255  # the code of a group that no newline follows


def stuffed_bytes_max(size: int) -> int:
    """Return how many bytes ``size`` bytes make, at most."""
    return size + size // 254 + 1


@njit(nogil=True, cache=True)
def stuff(data, start, stop, out, to):
    """Stuff ``data[start:stop]``; return where it ends in ``out``.

    Parameters
    ----------
    data : uint8[n]
    out : uint8[m]
        Written from ``to`` on, ``stuffed_bytes_max(stop - start)`` bytes at most.
    """
    code_at = to
    to += 1
    code = 1
    for at in range(start, stop):
        if code == _GROUP:
            out[code_at] = _GROUP ^ _NEWLINE
            code_at = to
            to += 1
            code = 1
        byte = data[at]
        if byte == _NEWLINE:
            out[code_at] = code ^ _NEWLINE
            code_at = to
            to += 1
            code = 1
        else:
            out[to] = byte
            to += 1
            code += 1
    out[code_at] = code ^ _NEWLINE
    return to


@njit(nogil=True, cache=True)
def stuff_items(data, size, heads, out):
    """Make a line of each item of ``size`` bytes, with a head of its own before it.

    Parameters
    ----------
    data : uint8[n * size]
        Items, one behind the other.
    heads : uint8[n, h]
    out : uint8[m]
        Written; ``n * (stuffed_bytes_max(h + size) + 1)`` bytes at most.

    Returns
    -------
    int
        Bytes written.
    """
    to = int64(0)
    before = heads.shape[1]
    whole = np.empty(before + size, np.uint8)
    for i in range(heads.shape[0]):
        whole[:before] = heads[i]
        whole[before:] = data[i * size : (i + 1) * size]
        to = stuff(whole, 0, before + size, out, to)
        out[to] = _NEWLINE
        to += 1
    return to


@njit(nogil=True, cache=True)
def unstuff(data, start, stop, out):
    """Take the stuffing out of ``data[start:stop]``, whatever stands there.

    Parameters
    ----------
    data : uint8[n]
    out : uint8[m]
        Written.

    Returns
    -------
    int
        Bytes written; -1 where it is damaged, -2 where there is more than ``out`` has room for.
    """
    at, to, room = start, int64(0), out.size
    follows = False  # whether a newline stands before the next group
    while at < stop:
        code = int64(data[at]) ^ _NEWLINE
        at += 1
        if code == 0 or code - 1 > stop - at:
            return int64(-1)
        if code - 1 + follows > room - to:
            return int64(-2)
        if follows:
            out[to] = _NEWLINE
            to += 1
        for i in range(code - 1):
            out[to + i] = data[at + i]
        at += code - 1
        to += code - 1
        follows = code != _GROUP
    return to


@njit(nogil=True, cache=True)
def unstuff_records(buffer, start, end, out, starts, sizes):
    """Take the stuffing out of lines, as many as there is room for; blank ones are passed over.

    Parameters
    ----------
    buffer : uint8[b]
        ``buffer[end - 1]`` is a newline.
    out : uint8[n, size]
        Written, a row a line.
    starts, sizes : int64[n]
        Written: where each line begins; its bytes, or what :func:`unstuff` says of it.

    Returns
    -------
    count, at : int
        Lines, and where it stopped.
    """
    count, at = int64(0), start
    while at < end and count < starts.size:
        line = at
        while buffer[at] != _NEWLINE:
            at += 1
        at += 1
        if at - 1 == line:
            continue
        starts[count] = line
        sizes[count] = unstuff(buffer, line, at - 1, out[count])
        count += 1
    return count, at
