"""In how many documents the words of a topic stand together."""

from __future__ import annotations

import numpy as np
from numba import int64, njit, uint64

__all__ = ["WORDS_MAX", "count_together"]

# Words of a topic: a bit each.
WORDS_MAX = 64
_ONE = np.uint64(1)


@njit(nogil=True, cache=True)
def count_together(bounds, places, starts, topic_of, rank_of, last, masks, touched, alone, pairs):
    """Count documents by which of the topics' words they have; all counts are added to.

    Parameters
    ----------
    bounds, places : int64[documents + 1], int64[nnz]
        Which of the words each token is; -1: none.
    starts : int64[words + 1]
    topic_of, rank_of : int64[n]
        Of word w from ``starts[w]`` on: the topics that it is one of, and its place among theirs.
    last : int64[words]
        The last document that has each word; -1 at first, and so at the end.
    masks : uint64[topics]
        Zeros, at the end as well.
    touched : int64[topics]
        Working space.
    alone : int64[topics, m]
        Documents that have the word.
    pairs : int64[topics, m, m]
        Documents that have both words, the first of them in front.

    Notes
    -----
    O(tokens), and O(m^2) for each topic of which a document has all words.
    """
    for d in range(bounds.shape[0] - 1):
        count = 0
        for i in range(bounds[d], bounds[d + 1]):
            w = places[i]
            if w < 0 or last[w] == d:
                continue
            last[w] = d
            for j in range(starts[w], starts[w + 1]):
                k = topic_of[j]
                if masks[k] == uint64(0):
                    touched[count] = k
                    count += 1
                masks[k] |= _ONE << uint64(rank_of[j])
        for t in range(count):
            k = touched[t]
            mask = masks[k]
            masks[k] = uint64(0)
            for a in range(alone.shape[1]):
                if mask >> uint64(a) & _ONE:
                    alone[k, a] += 1
                    for b in range(a + 1, alone.shape[1]):
                        pairs[k, a, b] += int64(mask >> uint64(b) & _ONE)
    for i in range(places.shape[0]):
        if places[i] >= 0:
            last[places[i]] = -1
