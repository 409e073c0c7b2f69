"""Kernels of an arena: rows of many floats, apart from the table, for the features that earn one.

An arena is float32[rows, stride], each row whole 64-byte lines; a table row's word 3 (low half)
holds the number of its arena row. Row 0 is zero for ever: it stands for none.
"""

from __future__ import annotations

from numba import float32, int64, njit, uint8, uint32, uint64

from streamlearn.compute.kernels.bits import prefetch
from streamlearn.compute.kernels.table import preserve

__all__ = ["allocate", "earned", "numbers", "pull", "relocate", "write"]

# Table rows ahead that are prefetched, and arena rows: at 6 ns each some four memory latencies, and
# all lines of 64 short rows fit the first cache. (With 16: 10 ns.)
AHEAD = 16
ROWS_AHEAD = 64


@njit(nogil=True, cache=True)
def numbers(words, slots, out):
    """Write the arena row of each slot (int64[n]) to ``out`` (int64[n]); 0 for none."""
    base = int64(words.ctypes.data)
    n = slots.shape[0]
    for i in range(n):
        prefetch(base + (slots[min(i + AHEAD, n - 1)] << 5))
        number = int64(words[max(slots[i], 0) * 4 + 3] & uint64(0xFFFFFFFF))
        out[i] = number & ~(slots[i] >> 63)


@njit(nogil=True, cache=True)
def pull(values, rows, out):
    """Copy arena rows.

    Parameters
    ----------
    values : float32[rows, stride]
        The arena.
    rows : int64[n]
        Of :func:`numbers`.
    out : float32[n, width]
        Written; width at most stride.
    """
    base = int64(values.ctypes.data)
    stride_bytes = values.shape[1] * 4
    n, width = out.shape
    lines = width >> 4
    for i in range(n):
        ahead = base + rows[min(i + ROWS_AHEAD, n - 1)] * stride_bytes
        for line in range((width + 15) >> 4):
            prefetch(ahead + (line << 6))
        row = values[rows[i]]
        for line in range(lines):  # of a length that the compiler knows
            for c in range(16):
                out[i, line * 16 + c] = row[line * 16 + c]
        for c in range(lines * 16, width):
            out[i, c] = row[c]


@njit(nogil=True, cache=True)
def write(values, rows, data, lines, saving, kept, side_lines, side_words, side_count):
    """Write ``data`` (float32[n, width]) to arena rows (int64[n], none 0), in place.

    Parameters
    ----------
    lines : uint64[...]
        The same memory as ``values``.
    saving, kept, side_lines, side_words, side_count
        Copy-on-write of a cut (``kernels.table.preserve``) while ``saving`` is not 0; the side
        arrays have room for n rows.
    """
    per_row = values.shape[1] >> 4
    for i in range(rows.shape[0]):
        if saving != 0:
            for line in range(rows[i] * per_row, (rows[i] + 1) * per_row):
                preserve(lines, line, kept, side_lines, side_words, side_count)
        for c in range(data.shape[1]):
            values[rows[i], c] = data[i, c]


@njit(nogil=True, cache=True)
def earned(words, slots, weights, threshold, out):
    """Say which rows earn an arena row now: seen often enough, of a weight, and without one.

    Parameters
    ----------
    words : uint64[4 * slots]
        The table.
    slots, weights : int64[n], float32[n]
    threshold : int64
        A count above it is often enough.
    out : uint8[n]
        Written: 1 where a row is earned.
    """
    for i in range(slots.shape[0]):
        at = max(slots[i], 0) * 4
        often = int64(uint32(words[at + 2])) > threshold
        none = uint32(words[at + 3]) == uint32(0)
        out[i] = uint8(often & none & (weights[i] != float32(0)) & (slots[i] >= 0))


@njit(nogil=True, cache=True)
def allocate(words, slots, wanted, region, used, saving, kept, side_lines, side_words, side_count):
    """Give rows of the table a row of the arena each.

    Parameters
    ----------
    words : uint64[4 * slots]
        The table; word 3 is written.
    slots, wanted : int64[n], uint8[n]
        Rows, unique where ``wanted``, with none in the arena yet.
    region : int64
        Slots of a segment's region; it has as many rows of the arena.
    used : int64[segments]
        Rows that each segment uses, added to.
    saving, kept, side_lines, side_words, side_count
        Copy-on-write of a cut of the table.
    """
    for i in range(slots.shape[0]):
        if wanted[i]:
            segment = slots[i] // region
            if saving != 0:
                preserve(words, slots[i] >> 1, kept, side_lines, side_words, side_count)
            used[segment] += 1
            words[slots[i] * 4 + 3] |= uint64(segment * region + used[segment])


@njit(nogil=True, cache=True)
def relocate(words, first, end, old, old_first, values, new_first):
    """Move the arena rows of a segment that was laid out anew, close up, in the order of its slots.

    Parameters
    ----------
    words : uint64[4 * slots]
        The table; word 3 of the slots ``[first, end)`` is written.
    old : float32[m, stride]
        Copies of the rows from ``old_first`` on, in which words 3 have their numbers.
    values : float32[rows, stride]
        The arena, written behind ``new_first``.

    Returns
    -------
    int64
        How many there are.
    """
    used = int64(0)
    for slot in range(first, end):
        number = int64(words[slot * 4 + 3] & uint64(0xFFFFFFFF))
        if number != 0:
            used += 1
            for c in range(values.shape[1]):
                values[new_first + used, c] = old[number - old_first, c]
            words[slot * 4 + 3] += uint64(new_first + used - number)
    return used
