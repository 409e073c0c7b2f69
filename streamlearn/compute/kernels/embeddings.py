"""Kernels of embeddings: they are earned, drawn, moved, read and updated by the table's rows.

An embedding is a row of whole 64-byte lines in a memory of its own (``streamlearn.embeddings`` says
how it lies); a table row's word 3 says which: how many coordinates it has (its top 16 bits; 0:
none) and its first line (the other 48). Each segment of the table has a region of lines, used from
its beginning on; line 0 of a region is never given.

``layout`` is int64[8]: lanes, order, bytes of a block (sums of squares included, if there are),
slots of a segment's region, lines of a segment's region, whether embeddings are left out while the
weight is zero, whether one sum of squares for the whole row lies behind its last coordinate, 0.
"""

from __future__ import annotations

import numpy as np
from numba import float32, int64, njit, uint32, uint64

from streamlearn.compute.kernels.bits import apart, dice, prefetch
from streamlearn.compute.kernels.table import atomic_add, compare_and_swap, preserve

__all__ = [
    "COUNT",
    "LINE",
    "add",
    "admit",
    "dim_of",
    "draw",
    "earn",
    "lengths",
    "lines_of",
    "occupied",
    "pack",
    "pull",
    "push",
    "push_by_row",
    "relocate",
    "unpack",
    "write",
]

COUNT = np.uint64(0xFFFFFFFF)  # of word 2
LINE = np.uint64((1 << 48) - 1)
# Coordinates of one order are numbered apart from those of the next.
PART_STRIDE = 1024
STEP = np.float32(2.0**-19)  # of 20 random bits over [0, 2)
GRADIENT_MAX = np.float32(2.0**51)
VALUE_MAX = np.float32(2.0**60)
# Table rows ahead that are prefetched, and embeddings.
AHEAD = 16
ROWS_AHEAD = 8


@njit(nogil=True, cache=True, inline="always")
def _state_of(key):
    """Return the 32 bits of a key that its numbers are drawn from (splitmix64's finaliser)."""
    h = (key ^ (key >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> uint64(27))) * uint64(0x94D049BB133111EB)
    return uint32(h >> uint64(32))


@njit(nogil=True, cache=True, inline="always")
def lines_of(dim, layout):
    """Return the 64-byte lines of an embedding of ``dim`` coordinates."""
    numbers = dim + (layout[6] & int64(dim > 0))
    return (numbers + layout[0] - 1) // layout[0] * (layout[2] >> 6)


@njit(nogil=True, cache=True, inline="always")
def dim_of(word):
    """Return the coordinates that a row's embedding has, by its word 3; 0 for none."""
    return int64(word >> uint64(48))


@njit(nogil=True, cache=True)
def draw(values, first, key, begin, dim, layout, scale):
    """Draw the coordinates ``[begin, dim)`` of an embedding: uniform in [-scale, scale).

    A function of key, order and coordinate alone (``bits.dice``), so an embedding that grows, or
    that a log replays, gets what it would have got. Sums are left as they are, zero.

    Parameters
    ----------
    values : float32[...]
        The embeddings' memory.
    first : int64
        Where the embedding begins in it.
    key : uint64
        Of the row.
    """
    apart()
    lanes, parts = layout[0], layout[1] - 1
    state = _state_of(key)
    while begin < dim:
        block = begin // lanes
        skip = begin - block * lanes
        m = min(lanes - skip, dim - begin)
        for part in range(parts):
            at = first + block * (layout[2] >> 2) + part * 2 * lanes + skip
            target = values[at : at + m]
            counter = part * PART_STRIDE + begin + 1
            for c in range(m):
                target[c] = dice(state, counter + c)
                target[c] = (target[c] * STEP - float32(1)) * scale
        begin += m


@njit(nogil=True, cache=True)
def earn(
    words, slot, count, tier_counts, tier_dims, layout, values, used, live, room, scale, shared,
    saving, kept, side_lines, side_words, side_count,
):  # fmt: skip
    """Give a row of the table the embedding that its count has earned, if that is a longer one.

    Parameters
    ----------
    words, slot
        The table and the row; its weight is not zero.
    count : int64
        What it goes by.
    tier_counts, tier_dims : int64[tiers]
        Ascending.
    values : float32[...]
        The embeddings' memory, zero where it was not used.
    used, live : int64[segments]
        Lines that each segment has used, and those of them that rows have; added to.
    room : int64[2]
        [0] lines that rows may have in all; [1] how often one was refused for that, added to.
    scale : float32
        New numbers are drawn from [-scale, scale).
    shared : int64
        Not 0: other lanes may do the same at the same time.
    saving, kept, side_lines, side_words, side_count
        Copy-on-write of a cut of the table.

    Returns
    -------
    uint64
        The row's word 3 from now on.
    """
    apart()
    at = slot * 4
    word = words[at + 3]
    dim, wanted = dim_of(word), int64(0)
    for t in range(tier_counts.shape[0]):
        if count > tier_counts[t]:
            wanted = tier_dims[t]
    if wanted <= dim:
        return word
    lines, before = lines_of(wanted, layout), lines_of(dim, layout)
    segment = slot // layout[3]
    total = lines - before
    for s in range(live.shape[0]):
        total += live[s]
    if total > room[0] or used[segment] + lines > layout[4]:
        room[1] += 1
        return word
    if saving != 0:
        preserve(words, slot >> 1, kept, side_lines, side_words, side_count)
    if shared != 0:
        start = int64(atomic_add(int64(used.ctypes.data) + segment * 8, lines))
        if start + lines > layout[4]:
            room[1] += 1
            return word
    else:
        start = used[segment]
        used[segment] = start + lines
    first = segment * layout[4] + start
    if dim > 0:
        old = int64(word & LINE) << 4
        for c in range(before << 4):
            values[(first << 4) + c] = values[old + c]
        if layout[6] != 0:  # what stands where it did is drawn anew
            values[(first << 4) + wanted] = values[old + dim]
    draw(values, first << 4, words[at], dim, wanted, layout, scale)
    new = (uint64(wanted) << uint64(48)) | uint64(first)
    if shared != 0:
        held = compare_and_swap(int64(words.ctypes.data) + (at + 3) * 8, word, new)
        if held != word:  # another lane was quicker; these lines are nobody's
            return held
        atomic_add(int64(live.ctypes.data) + segment * 8, lines - before)
    else:
        words[at + 3] = new
        live[segment] += lines - before
    return new


@njit(nogil=True, cache=True)
def admit(
    words, slots, counts, l1, bare, tier_counts, tier_dims, layout, values, used, live, room, scale,
    saving, kept, side_lines, side_words, side_count,
):  # fmt: skip
    """Give those rows the embedding that they have earned; return how many got one or a longer one.

    Parameters
    ----------
    slots : int64[n]
        None negative.
    counts : uint32[n] or [0]
        How often each stood in the minibatch whose gradients were applied; none: once. A row's
        count goes for so much less: it is minibatches that a threshold waits for then.
    l1 : float32
        Of FTRL: the weight of a row with |z| <= l1 is zero, which earns nothing.
    bare : int64
        1: the first row is the constant feature, which has no embedding.
    tier_counts, ...
        As for :func:`earn`.
    """
    base = int64(words.ctypes.data)
    columns = words.view(np.float32)
    n = slots.shape[0]
    longest = tier_dims[tier_dims.shape[0] - 1]
    least = tier_counts[0]
    admitted = int64(0)
    for i in range(bare, n):
        prefetch(base + (slots[min(i + AHEAD, n - 1)] << 5))
        at = slots[i] * 4
        count = int64(words[at + 2] & COUNT)
        if counts.shape[0] > 0:
            count //= max(int64(counts[i]), int64(1))
        if (
            count > least
            and dim_of(words[at + 3]) < longest
            and abs(columns[slots[i] * 8 + 2]) > l1
        ):
            before = words[at + 3]
            after = earn(
                words, slots[i], count, tier_counts, tier_dims, layout, values, used, live, room,
                scale, 0, saving, kept, side_lines, side_words, side_count,
            )  # fmt: skip
            admitted += int64(after != before)
    return admitted


@njit(nogil=True, cache=True)
def lengths(words, slots, weights, bare, layout, dims):
    """Write how many coordinates of each row's embedding are used now; return their sum.

    Parameters
    ----------
    slots, weights : int64[n], float32[n]
        Rows, -1 for none; their weights.
    bare : int64
        As for :func:`admit`.
    dims : int64[n]
        Written; 0 where there is no embedding, or it is left out as the weight is zero.
    """
    base = int64(words.ctypes.data)
    n = slots.shape[0]
    total = int64(0)
    for i in range(n):
        prefetch(base + (slots[min(i + AHEAD, n - 1)] << 5))
        dim = dim_of(words[max(slots[i], 0) * 4 + 3]) & ~(slots[i] >> 63)
        left_out = (weights[i] == float32(0)) & (layout[5] != 0)
        dim = int64(0) if left_out or i < bare else dim
        dims[i] = dim
        total += dim
    return total


@njit(nogil=True, cache=True)
def pull(words, slots, dims, layout, values, out):
    """Copy embeddings, back to back: for each row its coordinates of order 2, then of order 3.

    Parameters
    ----------
    slots, dims : int64[n], int64[n]
        Rows, and how many coordinates of each are wanted, at most as many as it has; 0: none.
    values : float32[...]
        The embeddings' memory.
    out : float32[sum of dims * (order - 1)]
        Written.
    """
    base, table = int64(values.ctypes.data), int64(words.ctypes.data)
    lanes, parts = layout[0], layout[1] - 1
    step = layout[2] >> 2
    n = slots.shape[0]
    o = int64(0)
    for i in range(n):
        prefetch(table + (slots[min(i + AHEAD, n - 1)] << 5))
        ahead = min(i + ROWS_AHEAD, n - 1)
        if dims[ahead] > 0:
            line = int64(words[slots[ahead] * 4 + 3] & LINE)
            for b in range(lines_of(dims[ahead], layout)):
                prefetch(base + ((line + b) << 6))
        dim = dims[i]
        if dim == 0:
            continue
        first = int64(words[slots[i] * 4 + 3] & LINE) << 4
        for part in range(parts):
            at = first + part * 2 * lanes
            left = dim
            while left > 0:
                m = min(left, lanes)
                source, target = values[at : at + m], out[o : o + m]
                for c in range(m):
                    target[c] = source[c]
                o += m
                at += step
                left -= m


@njit(nogil=True, cache=True, error_model="numpy")
def push(
    words, slots, dims, gradients, layout, values, lines, rate, beta, l2,
    saving, kept, side_lines, side_words, side_count,
):  # fmt: skip
    """Take one AdaGrad step with each embedding, in place.

    Per coordinate, with its gradient g summed over the minibatch (``kernels.vectors``):

        g += l2 V;  n += g^2;  V -= rate g / (beta + sqrt(n))

    Parameters
    ----------
    slots, dims : int64[n], int64[n]
        Rows, each once, none negative; the coordinates of each that the gradient is of (0: none). A
        row whose embedding is longer by now is updated as far as the gradient goes, one whose
        embedding is shorter, or gone, as far as that goes.
    gradients : float32[sum of dims * (order - 1)]
        As :func:`pull` lays them out; finite, cut at 2**51.
    values, lines : float32[...], uint64[...]
        The embeddings' memory, twice.
    rate, beta, l2 : float32
        beta > 0.
    saving, ...
        Copy-on-write of the embeddings' memory.

    Notes
    -----
    Without fast-math: each operation is rounded by itself, in the order that stands here, so that a
    log that is replayed gives the same bytes on any CPU. O(sum of dims).
    """
    base, table = int64(values.ctypes.data), int64(words.ctypes.data)
    lanes, parts = layout[0], layout[1] - 1
    step = layout[2] >> 2
    n = slots.shape[0]
    o = int64(0)
    for i in range(n):
        prefetch(table + (slots[min(i + AHEAD, n - 1)] << 5))
        ahead = min(i + ROWS_AHEAD, n - 1)
        if dims[ahead] > 0:
            line = int64(words[slots[ahead] * 4 + 3] & LINE)
            for b in range(lines_of(dims[ahead], layout)):
                prefetch(base + ((line + b) << 6))
        sent = dims[i]
        if sent == 0:
            continue
        word = words[slots[i] * 4 + 3]
        dim = min(sent, dim_of(word))
        first = int64(word & LINE)
        if saving != 0:
            for b in range(lines_of(dim, layout)):
                preserve(lines, first + b, kept, side_lines, side_words, side_count)
        for part in range(parts):
            at = (first << 4) + part * 2 * lanes
            done = int64(0)
            while done < dim:
                m = min(dim - done, lanes)
                v, s = values[at : at + m], values[at + lanes : at + lanes + m]
                g = gradients[o + done : o + done + m]
                for c in range(m):
                    slope = max(min(g[c], GRADIENT_MAX), -GRADIENT_MAX) + l2 * v[c]
                    total = s[c] + slope * slope
                    s[c] = total
                    v[c] = v[c] - rate * slope / (beta + np.sqrt(total))
                at += step
                done += m
            o += sent


@njit(nogil=True, cache=True, error_model="numpy")
def push_by_row(
    words, slots, dims, gradients, layout, values, lines, rate, beta, l2,
    saving, kept, side_lines, side_words, side_count,
):  # fmt: skip
    """Take one step of AdaGrad by rows with each embedding, in place; of order 2.

    With the gradient g of an embedding V, summed over the minibatch, and the row's one sum n:

        g += l2 V;  n += mean of g^2;  V -= rate g / (beta + sqrt(n))

    (Row-wise AdaGrad of DLRM and FBGEMM.) The mean is over the coordinates that step: squares are
    summed by lane, coordinate c in lane c mod 16, then halves of lanes are added to one another.
    Parameters and notes are those of :func:`push`.
    """
    base, table = int64(values.ctypes.data), int64(words.ctypes.data)
    squares = np.zeros(16, np.float32)
    n = slots.shape[0]
    o = int64(0)
    for i in range(n):
        prefetch(table + (slots[min(i + AHEAD, n - 1)] << 5))
        ahead = min(i + ROWS_AHEAD, n - 1)
        if dims[ahead] > 0:
            line = int64(words[slots[ahead] * 4 + 3] & LINE)
            for b in range(lines_of(dims[ahead], layout)):
                prefetch(base + ((line + b) << 6))
        word = words[slots[i] * 4 + 3]
        own, sent = dim_of(word), dims[i]
        dim = min(sent, own)
        if dim > 0:
            first = int64(word & LINE)
            if saving != 0:
                for b in range(lines_of(own, layout)):
                    preserve(lines, first + b, kept, side_lines, side_words, side_count)
            v, g = values[first << 4 : (first << 4) + dim], gradients[o : o + dim]
            squares[:] = 0
            for begin in range(0, dim, 16):
                for c in range(min(dim - begin, int64(16))):
                    at = begin + c
                    slope = max(min(g[at], GRADIENT_MAX), -GRADIENT_MAX) + l2 * v[at]
                    squares[c] += slope * slope
            half = 8
            while half > 0:
                for c in range(half):
                    squares[c] += squares[half + c]
                half >>= 1
            total = values[(first << 4) + own] + squares[0] / float32(dim)
            values[(first << 4) + own] = total
            scale = beta + np.sqrt(total)
            for c in range(dim):
                slope = max(min(g[c], GRADIENT_MAX), -GRADIENT_MAX) + l2 * v[c]
                v[c] = v[c] - rate * slope / scale
        o += sent


@njit(nogil=True, cache=True, error_model="numpy")
def add(
    words, slots, dims, changes, layout, values, lines,
    saving, kept, side_lines, side_words, side_count,
):  # fmt: skip
    """Add changes to embeddings that have no sums of squares, in place; of order 2.

    Parameters are those of :func:`push`; ``changes`` are cut at 2**51, and numbers stay within
    2**60 whatever comes.
    """
    base, table = int64(values.ctypes.data), int64(words.ctypes.data)
    n = slots.shape[0]
    o = int64(0)
    for i in range(n):
        prefetch(table + (slots[min(i + AHEAD, n - 1)] << 5))
        ahead = min(i + ROWS_AHEAD, n - 1)
        if dims[ahead] > 0:
            line = int64(words[slots[ahead] * 4 + 3] & LINE)
            for b in range(min(lines_of(dims[ahead], layout), int64(16))):
                prefetch(base + ((line + b) << 6))
        sent = dims[i]
        if sent == 0:
            continue
        word = words[slots[i] * 4 + 3]
        dim = min(sent, dim_of(word))
        first = int64(word & LINE)
        if saving != 0:
            for b in range(lines_of(dim, layout)):
                preserve(lines, first + b, kept, side_lines, side_words, side_count)
        v, g = values[first << 4 : (first << 4) + dim], changes[o : o + dim]
        for c in range(dim):
            change = max(min(g[c], GRADIENT_MAX), -GRADIENT_MAX)
            v[c] = max(min(v[c] + change, VALUE_MAX), -VALUE_MAX)
        o += sent


@njit(nogil=True, cache=True)
def occupied(rows, layout):
    """Return the lines that the embeddings of rows (uint64[n, 4]) have in all."""
    total = int64(0)
    for i in range(rows.shape[0]):
        total += lines_of(dim_of(rows[i, 3]), layout)
    return total


@njit(nogil=True, cache=True)
def pack(rows, layout, image, first_line, out):
    """Copy the embeddings of rows to ``out``, back to back in the order of the rows.

    Parameters
    ----------
    rows : uint64[n, 4]
        Their words 3 name lines; the names are taken out (dims stay).
    image : float32[...]
        The memory from line ``first_line`` on.
    out : float32[16 * occupied(rows)]
        Written.
    """
    o = int64(0)
    for i in range(rows.shape[0]):
        word = rows[i, 3]
        dim = dim_of(word)
        if dim > 0:
            at = (int64(word & LINE) - first_line) << 4
            for c in range(lines_of(dim, layout) << 4):
                out[o] = image[at + c]
                o += 1
            rows[i, 3] = word & ~LINE
    return o


@njit(nogil=True, cache=True)
def write(words, slots, rows, layout, values, used, live, data):
    """Give rows that were inserted without them their embeddings, as :func:`pack` laid them out.

    Parameters
    ----------
    slots : int64[n]
        Of the rows, in the order of ``rows``.
    rows : uint64[n, 4]
        Their words 3 say how many coordinates each has.
    data : float32[16 * occupied(rows)]

    Returns
    -------
    bool
        False where a region has no room for them all.
    """
    o = int64(0)
    for i in range(rows.shape[0]):
        dim = dim_of(rows[i, 3])
        if dim > 0:
            lines = lines_of(dim, layout)
            segment = slots[i] // layout[3]
            if used[segment] + lines > layout[4]:
                return False
            first = segment * layout[4] + used[segment]
            for c in range(lines << 4):
                values[(first << 4) + c] = data[o]
                o += 1
            words[slots[i] * 4 + 3] = (uint64(dim) << uint64(48)) | uint64(first)
            used[segment] += lines
            live[segment] += lines
    return True


@njit(nogil=True, cache=True)
def relocate(words, first, end, layout, old, old_first, values, new_first):
    """Move the embeddings of a segment that was laid out anew, close up, in the order of its slots.

    Parameters
    ----------
    words : uint64[4 * slots]
        The table; words 3 of the slots ``[first, end)`` are written.
    old : float32[...]
        A copy of the memory from line ``old_first`` on, where words 3 say that they are.
    values : float32[...]
        The memory, written from line ``new_first`` on.

    Returns
    -------
    int64
        Lines written.
    """
    used = int64(0)
    for slot in range(first, end):
        word = words[slot * 4 + 3]
        dim = dim_of(word)
        if dim > 0 and words[slot * 4] & uint64(1):
            lines = lines_of(dim, layout)
            source = (int64(word & LINE) - old_first) << 4
            target = (new_first + used) << 4
            for c in range(lines << 4):
                values[target + c] = old[source + c]
            words[slot * 4 + 3] = (word & ~LINE) | uint64(new_first + used)
            used += lines
    return used


@njit(nogil=True, cache=True)
def unpack(data, dims, layout, dim_max, out):
    """Copy embeddings as :func:`pack` lays them out to rows of coordinates alone.

    Parameters
    ----------
    data : float32[...]
    dims : int64[n]
    dim_max : int64
        The longest there may be.
    out : float32[n, dim_max * (order - 1)]
        Written where there are coordinates: order 2, then, from ``dim_max`` on, order 3.
    """
    lanes, parts = layout[0], layout[1] - 1
    step = layout[2] >> 2
    o = int64(0)
    for i in range(dims.shape[0]):
        for part in range(parts):
            for c in range(dims[i]):
                block = c // lanes
                at = o + block * step + part * 2 * lanes + (c - block * lanes)
                out[i, part * dim_max + c] = data[at]
        o += lines_of(dims[i], layout) << 4
