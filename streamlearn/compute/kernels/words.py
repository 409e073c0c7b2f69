"""Kernels of a vocabulary that is learned on the stream: words are counted in rows of a table.

Of a row word 1 has how many tokens were seen (lower half) and the word's number (upper half; 0:
none yet, words are numbered from 1 on as they come), and word 2 in how many documents (lower half),
like the counts of other models' features.
"""

from __future__ import annotations

import numpy as np
from numba import float32, int64, njit, uint32, uint64

from streamlearn.compute.kernels.bits import prefetch
from streamlearn.compute.kernels.esca import draw
from streamlearn.compute.kernels.table import preserve

__all__ = ["count_documents", "give_rows", "look_up", "places_of", "set_aside", "thin"]

AHEAD = 16
_LOW = np.uint64(0xFFFFFFFF)
_LINE = np.uint64((1 << 48) - 1)  # of word 3: where a row of the arena begins
_MIX = np.uint64(0x9E3779B97F4A7C15)


@njit(nogil=True, cache=True)
def set_aside(keys, bounds, documents, below, held):
    """Say which documents are held out: by their words alone, so whenever they are read.

    Parameters
    ----------
    keys, bounds : uint64[n], int64[documents + 1]
    below : uint64
        2**32 times the share that is.
    held : uint8[documents]
        Written.
    """
    for d in range(documents):
        h = uint64(bounds[d + 1] - bounds[d])
        for i in range(bounds[d], bounds[d + 1]):
            h = (h ^ keys[i]) * _MIX
            h ^= h >> uint64(32)
        h = (h ^ (h >> uint64(29))) * _MIX
        held[d] = np.uint8((h >> uint64(32)) < below)


@njit(nogil=True, cache=True, error_model="numpy")
def count_documents(
    bounds, documents, held, slots, words, sums, stamps, tick, scores, tokens, fresh, numbers,
    saving, kept, side_lines, side_words, side_count,
):  # fmt: skip
    """Count the words of documents, in their rows.

    Parameters
    ----------
    bounds : int64[documents + 1]
    documents : int64
    held : uint8[documents]
        Of which the words are not counted.
    slots : uint32[nnz]
        The row of each token.
    words : uint64[...]
        The table.
    sums : int64[4]
        [0] words that have a number; [1] tokens and [2] documents that were counted; [3] documents
        that ever came, by which ``stamps`` knows them. All added to.
    stamps : uint32[sums[0] + nnz + 1]
        By number: the last document that has the word, as of ``sums[3]``.
    tick : uint64
        Minutes; when a word was last seen.
    scores, tokens : float32[documents], float32[documents]
        Written: the logarithm of a document's probability as by how often its words were seen
        before, one more each; its tokens.
    fresh : uint8[documents]
        Written: how many of its words had no number (255: or more).
    numbers : uint32[nnz]
        Written: the words' numbers from 0 on; 2**32 - 1 for one that only documents that are held
        out have so far.
    saving, ..., side_count
        Copy-on-write of a cut of the table.
    """
    base = int64(words.ctypes.data)
    total = bounds[documents]
    for d in range(documents):
        sums[3] += 1
        stamp = uint32(sums[3])
        score = 0.0
        fresh[d] = 0
        inverse = 1.0 / (float(sums[1]) + float(sums[0]) + 1.0)
        for i in range(bounds[d], bounds[d + 1]):
            prefetch(base + (int64(slots[min(i + AHEAD, total - 1)]) << 5))
            slot = int64(slots[i])
            column = words[slot * 4 + 1]
            number = column >> uint64(32)
            score += np.log((float(column & _LOW) + 1.0) * inverse)
            if held[d]:
                numbers[i] = uint32(number) - uint32(1)
                continue
            if saving != 0:
                preserve(words, slot >> 1, kept, side_lines, side_words, side_count)
            if number == uint64(0):
                sums[0] += 1
                number = uint64(sums[0])
                fresh[d] += np.uint8(fresh[d] < 255)
            seen = min((column & _LOW) + uint64(1), _LOW)
            words[slot * 4 + 1] = seen | (number << uint64(32))
            if stamps[number] != stamp:
                stamps[number] = stamp
                count = min((words[slot * 4 + 2] & _LOW) + uint64(1), _LOW)
                words[slot * 4 + 2] = count | (tick << uint64(32))
            numbers[i] = uint32(number) - uint32(1)
        size = bounds[d + 1] - bounds[d]
        scores[d] = float32(score)
        tokens[d] = float32(size)
        if not held[d]:
            sums[1] += size
            sums[2] += 1


@njit(nogil=True, cache=True)
def look_up(slots, n, words, numbers):
    """Return the numbers of words from their rows (int64[n], -1: none), uint32; none: 2**32 - 1."""
    for i in range(n):
        slot = slots[i]
        numbers[i] = uint32(0xFFFFFFFF)
        if slot >= 0:
            numbers[i] = uint32(words[slot * 4 + 1] >> uint64(32)) - uint32(1)


@njit(nogil=True, cache=True)
def places_of(slots, words, out):
    """Find where the counts of rows begin in the arena.

    Parameters
    ----------
    slots : int64[n]
        -1: no row.
    words : uint64[...]
        The table.
    out : int64[n]
        Written: the number of the first, of 32 bits each; -1 where there are none.
    """
    for i in range(slots.shape[0]):
        out[i] = -1
        if slots[i] >= 0:
            word = words[slots[i] * 4 + 3]
            if word >> uint64(48) != uint64(0):
                out[i] = int64(word & _LINE) << 4


@njit(nogil=True, cache=True)
def give_rows(slots, dim, layout, words, used, live, room):
    """Give rows of the table memory in the arena, zeros, where they have none.

    Parameters
    ----------
    slots : int64[n]
        None negative.
    dim : int64
        Numbers of each.
    layout, used, live, room
        The arena, see ``kernels.embeddings``.

    Returns
    -------
    int64
        How many of them have it; fewer than n where there is no more room.
    """
    lines = (dim + 15) >> 4
    total = int64(0)
    for s in range(live.shape[0]):
        total += live[s]
    for i in range(slots.shape[0]):
        at = slots[i] * 4 + 3
        if words[at] >> uint64(48) != uint64(0):
            continue
        segment = slots[i] // layout[3]
        if total + lines > room[0] or used[segment] + lines > layout[4]:
            room[1] += 1
            return i
        first = segment * layout[4] + used[segment]
        words[at] = (uint64(dim) << uint64(48)) | uint64(first)
        used[segment] += lines
        live[segment] += lines
        total += lines
    return slots.shape[0]


@njit(nogil=True, cache=True)
def thin(counts, places, topics, share, key, totals):
    """Keep a share of each count, rounded up or down by chance, so that none is lost.

    Parameters
    ----------
    counts : int32[...]
        Memory of all rows; changed.
    places : int64[n]
        Where each word's begins.
    topics : int64
    share : float32
        0 <= share <= 1.
    key : uint64
        What chance depends on.
    totals : int64[topics]
        Written: sums over the words.
    """
    totals[:] = 0
    for i in range(places.shape[0]):
        row = counts[places[i] : places[i] + topics]
        for k in range(topics):
            count = row[k]
            if count > 0:
                chance = draw(key, uint64(i * topics + k))
                u = float32(int64(chance >> uint64(40))) * float32(2.0**-24)
                row[k] = np.int32(float32(count) * share + u)
                totals[k] += row[k]
