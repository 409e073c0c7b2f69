"""What a push of topics does to a shard: words are counted, and tokens go from topic to topic.

Rows of the table are as ``kernels.words`` has them, but for the number of a word, which only
whoever gathers the shards can give; counts stand in the arena, int32. Old lines are kept for a cut.
"""

from __future__ import annotations

import numpy as np
from numba import int32, int64, njit, uint32, uint64

from streamlearn.compute.kernels.table import preserve

__all__ = ["NO_TOPIC", "count_words", "document_counts", "keep_lines", "move_topics", "regroup"]

# Of a token that has none.
NO_TOPIC = 0xFFFF

_LOW = np.uint64(0xFFFFFFFF)
_HIGH = np.uint64(0xFFFFFFFF00000000)
_LINE = np.uint64((1 << 48) - 1)


@njit(nogil=True, cache=True)
def document_counts(inverse, bounds, documents, out):
    """Count in how many documents each word stands.

    Parameters
    ----------
    inverse : int32[nnz]
        Word of each token.
    bounds : int64[documents + 1]
    out : uint32[words]
        Written.
    """
    last = np.full(out.shape[0], -1, np.int64)
    out[:] = 0
    for d in range(documents):
        for i in range(bounds[d], bounds[d + 1]):
            word = inverse[i]
            if last[word] != d:
                last[word] = d
                out[word] += uint32(1)


@njit(nogil=True, cache=True)
def count_words(
    words, slots, tokens, documents, tick, saving, kept, side_lines, side_words, side_count
):  # fmt: skip
    """Count tokens and documents in rows, in place.

    Parameters
    ----------
    words : uint64[...]
        The table.
    slots : int64[n]
        Rows, each once; -1: none, which is passed over.
    tokens, documents : uint32[n]
    tick : uint64
        Minutes; when a word was last seen.
    saving, ..., side_count
        Copy-on-write of a cut of the table.
    """
    for i in range(slots.shape[0]):
        slot = slots[i]
        if slot < 0:
            continue
        if saving != 0:
            preserve(words, slot >> 1, kept, side_lines, side_words, side_count)
        column = words[slot * 4 + 1]
        seen = min((column & _LOW) + uint64(tokens[i]), _LOW)
        words[slot * 4 + 1] = (column & _HIGH) | seen
        met = min((words[slot * 4 + 2] & _LOW) + uint64(documents[i]), _LOW)
        words[slot * 4 + 2] = met | (tick << uint64(32))


@njit(nogil=True, cache=True)
def keep_lines(words, slots, kept, side_lines, side_words, side_count):
    """Keep the lines of rows for a cut that is open."""
    for i in range(slots.shape[0]):
        preserve(words, slots[i] >> 1, kept, side_lines, side_words, side_count)


@njit(nogil=True, cache=True)
def move_topics(
    words, slots, there, counts, old, new, arena, lines, totals, saving, kept, side_lines,
    side_words, side_count,
):  # fmt: skip
    """Take tokens off the counts of their old topics, and add them to those of their new ones.

    Parameters
    ----------
    words : uint64[...]
        The table.
    slots : int64[n]
        Rows; -1: none.
    there : int64[n]
        Not 0: the next ``counts[i]`` topics are of tokens of this word.
    counts : uint32[n]
    old : uint16[m] or [0]
        ``NO_TOPIC``: the token has none yet; of length 0: none has.
    new : uint16[m]
        Where a word has no counts its tokens become ``NO_TOPIC``.
    arena : int32[...]
        Memory of the counts.
    lines : uint64[...]
        The same memory.
    totals : int64[topics]
        Changed, too.
    saving, ..., side_count
        Copy-on-write of a cut of the arena.

    Returns
    -------
    int64
        By how much the sum of all counts has grown.
    """
    at, grown = int64(0), int64(0)
    for i in range(slots.shape[0]):
        if there[i] == 0:
            continue
        end = at + int64(counts[i])
        place = uint64(0)
        if slots[i] >= 0:
            place = words[slots[i] * 4 + 3]
        if place >> uint64(48) == uint64(0):
            for j in range(at, end):
                new[j] = NO_TOPIC
            at = end
            continue
        line = int64(place & _LINE)
        base = line * 16
        for j in range(at, end):
            if old.shape[0] > 0 and old[j] != NO_TOPIC:
                topic = int64(old[j])
                if saving != 0:
                    preserve(lines, line + (topic >> 4), kept, side_lines, side_words, side_count)
                arena[base + topic] -= int32(1)
                totals[topic] -= 1
                grown -= 1
            topic = int64(new[j])
            if saving != 0:
                preserve(lines, line + (topic >> 4), kept, side_lines, side_words, side_count)
            arena[base + topic] += int32(1)
            totals[topic] += 1
            grown += 1
        at = end
    return grown


@njit(nogil=True, cache=True)
def regroup(tokens, old, starts, counts, stride):
    """Make counts that have old topics of tokens those that have their present ones.

    Parameters
    ----------
    tokens : uint32[n]
        See ``kernels.esca``; word by word.
    old : uint16[n]
        ``NO_TOPIC``: the token is not counted.
    starts : int32[words + 1]
        Where the tokens of each word begin, from ``starts[0]`` on.
    counts : int32[words * stride]
        Changed.
    stride : int64
    """
    for x in range(starts.shape[0] - 1):
        base = x * stride
        for i in range(starts[x] - starts[0], starts[x + 1] - starts[0]):
            topic = int64(tokens[i] & uint32(0xFFFF))
            before = int64(old[i])
            if before != topic:
                if before != NO_TOPIC:
                    counts[base + before] -= int32(1)
                counts[base + topic] += int32(1)
