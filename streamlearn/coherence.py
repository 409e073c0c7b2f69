"""Coherence of topics: how often their most frequent words stand in the same documents.

Of the pairs of a topic's words, by how many of D documents have them:

* *NPMI*: the mean of log(p_ij / (p_i p_j)) / -log p_ij, from -1 (never together) to 1 (always);
  Bouma, "Normalized (Pointwise) Mutual Information in Collocation Extraction" (2009), in whole
  documents.
* *UMass*: the mean of log((D_ij + 1) / D_i), where word i is the more frequent one in the topic;
  Mimno, Wallach, Talley, Leenders and McCallum, "Optimizing Semantic Coherence in Topic Models"
  (EMNLP 2011).
"""

from __future__ import annotations

import numpy as np

from streamlearn.compute.kernels.co_occurrence import WORDS_MAX, count_together
from streamlearn.messages import F64, I64, U64

__all__ = ["WORDS", "Coherence"]

# Words of a topic that are looked at, as the papers do.
WORDS = 10


class Coherence:
    """Counts in how many documents the words of topics stand, and stand together.

    Parameters
    ----------
    keys : uint64[words]
    places : int64[topics, n]
        The words of each topic, the most frequent first; -1: none.

    Attributes
    ----------
    documents : int
        That were counted.
    """

    def __init__(self, keys: U64, places: I64) -> None:
        places = places[:, :WORDS_MAX]
        self._topics, self._ranks = np.nonzero(places >= 0)
        words, numbers = np.unique(keys[places[self._topics, self._ranks]], return_inverse=True)
        order = np.argsort(numbers, kind="stable")
        self._keys = words
        self._starts = np.searchsorted(numbers[order], np.arange(len(words) + 1)).astype(np.int64)
        self._of = self._topics[order].astype(np.int64), self._ranks[order].astype(np.int64)
        topics, n = places.shape
        self._last: I64 = np.full(len(words), -1, np.int64)
        self._space = np.zeros(topics, np.uint64), np.zeros(topics, np.int64)
        self._alone: I64 = np.zeros((topics, n), np.int64)
        self._pairs: I64 = np.zeros((topics, n, n), np.int64)
        self.documents = 0

    def add(self, keys: U64, bounds: I64) -> None:
        """Count documents: uint64[tokens], int64[documents + 1]."""
        self.documents += len(bounds) - 1
        if not len(self._keys):
            return
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        places = np.where(self._keys[at] == keys, at, -1).astype(np.int64)
        count_together(
            bounds, places, self._starts, *self._of, self._last, *self._space, self._alone,
            self._pairs,
        )  # fmt: skip

    def npmi(self) -> F64:
        """Return the mean of each topic, float64[topics]; NaN where no pair is known.

        A pair of which a word stands in no document is not.
        """
        count = max(self.documents, 1)
        first, second = self._both()
        with np.errstate(divide="ignore", invalid="ignore"):
            p = self._pairs / count
            values = np.log(p * count * count / (first * second)) / -np.log(p)
        values[self._pairs == 0] = -1.0
        values[self._pairs == count] = 1.0
        return self._mean(values, (first > 0) & (second > 0))

    def umass(self) -> F64:
        """Return the mean of each topic, float64[topics]; NaN where no pair is known."""
        first, _ = self._both()
        with np.errstate(divide="ignore"):
            values = np.log((self._pairs + 1) / first)
        return self._mean(values, first > 0)

    def _both(self) -> tuple[I64, I64]:
        shape = self._pairs.shape
        return (
            np.broadcast_to(self._alone[:, :, None], shape),
            np.broadcast_to(self._alone[:, None, :], shape),
        )

    def _mean(self, values: F64, known: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> F64:
        there = np.zeros(self._alone.shape, np.bool_)
        there[self._topics, self._ranks] = True
        known = known & np.triu(np.ones(self._pairs.shape[1:], np.bool_), 1)
        known &= there[:, :, None] & there[:, None, :]
        with np.errstate(invalid="ignore"):
            means: F64 = np.where(known, values, 0.0).sum(axis=(1, 2)) / known.sum(axis=(1, 2))
        return means
