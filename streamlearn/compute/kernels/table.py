"""Kernels of the parameter table: find, insert, grow, and copy-on-write for a snapshot's cut.

The table's memory is one array of 64-bit words, four to a slot of 32 bytes:

    word 0  key, odd; 0 marks an empty slot, ``FENCE`` (even, not 0) the end of a segment's region
    word 1  two float32 columns of the update rule (z, n of FTRL; w, n of AdaGrad; w of SGD)
    word 2  count (low 32 bits) and tick last seen (high 32 bits)
    word 3  arena index (low 32 bits; 0: none), rest spare

A key's *line* (64 bytes, two slots) is ``(key32 * scale + offset) >> 32`` with ``key32`` its top 32
bits and (scale, offset) those of the 256 equal ranges of the key space that its top 8 bits name.
That is ``first + ((key32 - low32) * lines >> width)`` for the segment that owns the range: monotone
in the key for any number of lines. A key stands in its line; where that is full, in its *other
line*, which its lowest bits choose within the same page of 64 lines; where both are full, in the
next free slot behind its line, as in plain linear probing. The slots behind a segment's lines
(slack) take what runs over its end, and the fence behind them ends every probe. Rows never move
until their segment is laid out anew, so a free slot in either line says that a key is not there.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import int64, njit, types, uint64
from numba.extending import intrinsic

from streamlearn.compute.kernels.bits import prefetch

__all__ = [
    "FENCE",
    "atomic_add",
    "compare_and_swap",
    "find",
    "gather_rows",
    "lay_out",
    "line_of",
    "other_line",
    "pack",
    "preserve",
    "seek",
]

FENCE = np.uint64(2)


@intrinsic
def compare_and_swap(_context, address, expected, desired):
    """Store ``desired`` at ``address`` if it holds ``expected``; return what it held.

    Sequentially consistent.
    """

    def generate(_ctx, builder, _sig, args):
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        pair = builder.cmpxchg(pointer, args[1], args[2], "seq_cst", "seq_cst")
        return builder.extract_value(pair, 0)

    return types.uint64(types.int64, types.uint64, types.uint64), generate


@intrinsic
def atomic_add(_context, address, amount):
    """Add to the int64 at ``address`` atomically; return what it held before."""

    def generate(_ctx, builder, _sig, args):
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "monotonic")

    return types.int64(types.int64, types.int64), generate


@njit(nogil=True, cache=True, inline="always")
def preserve(words, line, kept, side_lines, side_words, side_count):
    """Keep the 64-byte line ``line`` as it was at the cut, unless it is kept or written out.

    Parameters
    ----------
    words : uint64[...]
        The table's memory; line ``i`` is ``words[8 * i:8 * i + 8]``.
    line : int64
    kept : uint64[...]
        A bit a line: set once the line needs no keeping any more.
    side_lines, side_words : int64[m], uint64[m, 8]
        Where the old lines go; the caller has made room.
    side_count : int64[1]
    """
    word = line >> 6
    bit = uint64(1) << uint64(line & 63)
    if kept[word] & bit == uint64(0):
        kept[word] |= bit
        at = side_count[0]
        side_lines[at] = line
        for i in range(8):
            side_words[at, i] = words[line * 8 + i]
        side_count[0] = at + 1


@njit(nogil=True, cache=True, inline="always")
def line_of(key, places):
    """Return a key's line in the whole table (int64); ``places`` is uint64[256, 2]."""
    prefix = int64(key >> uint64(56))
    return int64(((key >> uint64(32)) * places[prefix, 0] + places[prefix, 1]) >> uint64(32))


@njit(nogil=True, cache=True, inline="always")
def other_line(line, key):
    """Return the line where a key stands if ``line``, its own, is full."""
    return line ^ int64((key & uint64(62)) | uint64(1))


@njit(nogil=True, cache=True)
def seek(words, key, line):
    """Return the slot that holds ``key``, or ``~slot`` of where it belongs, empty or the fence."""
    home = line * 8
    # Each slot is read once: another lane may put this very key there between two reads, and it
    # would go in twice.
    even, odd = words[home], words[home + 4]
    # both slots of a line at once: which of the two it is is a coin toss, a branch on it would miss
    second = int64(odd == key)
    if second | int64(even == key):
        return line * 2 + second
    # a free slot here says that the key is nowhere else either
    if even == uint64(0):
        return ~(line * 2)
    if odd == uint64(0):
        return ~(line * 2 + 1)
    other = other_line(line, key) * 8
    even, odd = words[other], words[other + 4]
    second = int64(odd == key)
    if second | int64(even == key):
        return (other >> 2) + second
    if even == uint64(0):
        return ~(other >> 2)
    if odd == uint64(0):
        return ~((other >> 2) + 1)
    slot = line * 2 + 2
    while True:
        held = words[slot * 4]
        if held == key:
            return slot
        if held & uint64(1) == uint64(0):
            return ~slot
        slot += 1


@njit(nogil=True, cache=True)
def find(words, places, keys, slots):
    """Find the slot of each key, -1 where it has none. Sorted keys walk memory forward.

    Parameters
    ----------
    words : uint64[4 * slots]
    places : uint64[256, 2]
        (scale, offset) by a key's top 8 bits.
    keys : uint64[n]
    slots : int64[n]
        Written.

    Notes
    -----
    O(n). A block of keys is looked for in their own lines while those of the next are prefetched;
    the keys that do not stand there are noted without a branch and sought once the others are done,
    their other lines prefetched. (One key after the other, prefetching 16 ahead: 23 ns a key of 20
    million instead of 11.)
    """
    block = 128
    base = int64(words.ctypes.data)
    n = keys.shape[0]
    elsewhere = np.empty(block, np.int64)
    for i in range(min(block, n)):
        slots[i] = line_of(keys[i], places)
        prefetch(base + (slots[i] << 6))
    for start in range(0, n, block):
        end = min(start + block, n)
        misses = 0
        for i in range(start, end):
            if i + block < n:
                line = line_of(keys[i + block], places)
                slots[i + block] = line
                prefetch(base + (line << 6))
            key, line = keys[i], slots[i]
            second = int64(words[line * 8 + 4] == key)
            elsewhere[misses] = i
            misses += 1 - (second | int64(words[line * 8] == key))
            slots[i] = line * 2 + second
        for m in range(misses):
            i = elsewhere[m]
            prefetch(base + (other_line(slots[i] >> 1, keys[i]) << 6))
        for m in range(misses):
            i = elsewhere[m]
            slots[i] = max(seek(words, keys[i], slots[i] >> 1), int64(-1))


@njit(nogil=True, cache=True)
def gather_rows(words, slots, out):
    """Copy the rows at ``slots`` (int64[n], none negative) to ``out`` (uint64[n, 4])."""
    for i in range(slots.shape[0]):
        for c in range(4):
            out[i, c] = words[slots[i] * 4 + c]


@njit(nogil=True, cache=True)
def pack(words, first, end, out):
    """Copy the occupied slots of ``[first, end)`` to ``out``, in order; return how many.

    ``out`` is uint64[m, 4] with m one more than the rows there are: a slot is copied before it is
    known to be occupied, since at a load of two thirds a branch would be mispredicted every other
    slot.
    """
    n = 0
    for slot in range(first, end):
        for c in range(4):
            out[n, c] = words[slot * 4 + c]
        n += int64(words[slot * 4] & uint64(1))
    return n


@njit(nogil=True, cache=True)
def lay_out(words, rows, n, low, high, scale, offset, end):
    """Put those of ``rows[:n]`` (distinct keys) that belong there into an empty region.

    Parameters
    ----------
    rows : uint64[m, 4]
    low, high : int64
        The region takes keys whose top 8 bits are in ``[low, high)``; other rows are passed over.
    scale, offset : uint64
        Of the segment that the region belongs to.
    end : int64
        The region's fence; no row may reach it.

    Returns
    -------
    int64
        How many rows it took; -1 where a probe ran into the fence: the region needs a larger
        capacity. It is then half filled.

    Notes
    -----
    Rows seen often go first, so that they stand in the line where the probe begins: of what a click
    log asks for, nine tenths are the one row in ten that has been seen eight times.
    """
    taken = int64(0)
    for band in range(3):
        least = uint64(64 if band == 0 else 8 if band == 1 else 0)
        below = uint64(64 if band == 1 else 8) if band > 0 else ~uint64(0)
        for i in range(n):
            count = rows[i, 2] & uint64(0xFFFFFFFF)
            if count < least or count >= below:
                continue
            key = rows[i, 0]
            prefix = int64(key >> uint64(56))
            if prefix < low or prefix >= high:
                continue
            line = int64(((key >> uint64(32)) * scale + offset) >> uint64(32))
            slot = ~seek(words, key, line)
            if slot >= end:
                return int64(-1)
            for c in range(4):
                words[slot * 4 + c] = rows[i, c]
            taken += 1
    return taken
