"""Kernels for whoever holds slots: insert what is missing, find again what moved, rank what goes.

Unlike the fused kernels of ``kernels.logistic`` these do not compute anything: a shard finds the
rows of a key list once, and reads and updates them by their slots (``kernels.rules``).
"""

from __future__ import annotations

import numpy as np
from numba import int64, njit, uint32, uint64

from streamlearn.compute.kernels.bits import prefetch
from streamlearn.compute.kernels.table import FENCE, line_of, preserve, seek

__all__ = ["count_missing", "find_moved", "insert", "worth"]

# Keys ahead whose lines are prefetched, of those to be inserted.
AHEAD = 16


@njit(nogil=True, cache=True)
def count_missing(slots):
    """Return how many of ``slots`` (int64[n]) are negative."""
    missing = int64(0)
    for i in range(slots.shape[0]):
        missing -= slots[i] >> 63
    return missing


@njit(nogil=True, cache=True)
def insert(
    words, places, segment_of, loads, loads_max, inserted, keys, slots, begin,
    saving, kept, side_lines, side_words, side_count,
):  # fmt: skip
    """Insert the keys from ``begin`` on whose slot is negative, unless the table has them.

    Parameters
    ----------
    words, places, segment_of
        The table, see ``kernels.table``.
    loads, loads_max : int64[segments]
        Rows held by each segment, added to, and the most that it has slots for.
    inserted : int64[1]
        Rows inserted; added to.
    keys, slots : uint64[n], int64[n]
        Slots are written where they are negative. New rows are zero but for their key.
    begin : int64
    saving, kept, side_lines, side_words, side_count
        Copy-on-write of a snapshot's cut (``kernels.table.preserve``) while ``saving`` is not 0;
        the side arrays have room for a line a negative slot.

    Returns
    -------
    int64
        The first key that found no room: its segment must grow. n once all are done.
    """
    base = int64(words.ctypes.data)
    n = keys.shape[0]
    # One key in four is new: which, a branch would guess wrongly (x1.35).
    missing = np.empty(n - begin + 1, np.int32)
    count = 0
    for i in range(begin, n):
        missing[count] = i
        count += int64(slots[i] < 0)
    for m in range(min(AHEAD, count)):
        prefetch(base + (line_of(keys[missing[m]], places) << 6))
    for m in range(count):
        ahead = missing[min(m + AHEAD, count - 1)]
        prefetch(base + (line_of(keys[ahead], places) << 6))
        i = int64(missing[m])
        key = keys[i]
        slot = seek(words, key, line_of(key, places))
        if slot < 0:
            slot = ~slot
            segment = int64(segment_of[int64(key >> uint64(56))])
            if loads[segment] >= loads_max[segment] or words[slot * 4] == FENCE:
                return i
            if saving != 0:
                preserve(words, slot >> 1, kept, side_lines, side_words, side_count)
            words[slot * 4] = key
            loads[segment] += 1
            inserted[0] += 1
        slots[i] = slot
    return n


@njit(nogil=True, cache=True)
def find_moved(words, places, segment_of, moved, keys, slots):
    """Find the keys of segments that were laid out anew again; -1 where one is not there any more.

    Parameters
    ----------
    words, places, segment_of
        The table, see ``kernels.table``.
    moved : bool[segments]
        Which segments.
    keys, slots : uint64[n], int64[n]
        Slots are written for keys of those segments.
    """
    for i in range(keys.shape[0]):
        if moved[segment_of[int64(keys[i] >> uint64(56))]]:
            slots[i] = max(seek(words, keys[i], line_of(keys[i], places)), int64(-1))


@njit(nogil=True, cache=True)
def worth(rows, spared, out):
    """Say what rows are worth: the power of two of their count, then when they were last seen.

    Parameters
    ----------
    rows : uint64[n, 4]
    spared : uint64[m]
        Keys, ascending, whose rows are worth more than any other.
    out : uint64[n]
        Written: the power (0 for a count of 0 or 1) in the high 32 bits, the tick in the low ones;
        all ones for a row that is spared.

    Returns
    -------
    int64
        How many rows are not spared.
    """
    candidates = int64(0)
    for i in range(rows.shape[0]):
        out[i] = _log2(rows[i, 2]) << uint64(32) | rows[i, 2] >> uint64(32)
        low, high = 0, spared.shape[0]
        while low < high:
            middle = (low + high) >> 1
            if spared[middle] < rows[i, 0]:
                low = middle + 1
            else:
                high = middle
        if low < spared.shape[0] and spared[low] == rows[i, 0]:
            out[i] = ~uint64(0)
        else:
            candidates += 1
    return candidates


@njit(nogil=True, cache=True, inline="always")
def _log2(word):
    count = uint32(word & uint64(0xFFFFFFFF))
    level = uint64(0)
    while count > uint32(1):
        count >>= uint32(1)
        level += uint64(1)
    return level
