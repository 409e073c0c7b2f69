"""Kernels that fit the priors of topics to counts: by how often each count stands there.

The fixed points of Minka ("Estimating a Dirichlet distribution", 2000) for an asymmetric alpha and
a symmetric beta (Wallach, Mimno and McCallum, "Rethinking LDA: Why Priors Matter", NIPS 2009), from
tallies: up to ``EXACT`` each count has a place of its own, from there on ``STEPS`` to an octave.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import float64, int64, njit, uint32, uint64

__all__ = ["BINS", "Tallies", "fit_alpha", "fit_beta", "tally_documents", "tally_words"]

EXACT = 64
STEPS = 8
BINS = EXACT + STEPS * 26
ROUNDS = 100
SETTLED = 1e-4
# A topic that no document has keeps so much.
ALPHA_MIN = 1e-5
ALPHA_MAX = 100.0
BETA_MIN, BETA_MAX = 1e-4, 10.0


class Tallies(NamedTuple):
    """How often counts stand in documents.

    Attributes
    ----------
    counts : int64[topics, BINS]
        Documents by how many of their tokens have the topic; 0 is not tallied.
    lengths : int64[BINS]
        Documents by their tokens.
    """

    counts: Any
    lengths: Any

    @classmethod
    def of(cls, topics: int) -> Tallies:
        """Return empty ones."""
        return cls(np.zeros((topics, BINS), np.int64), np.zeros(BINS, np.int64))


@njit(nogil=True, cache=True)
def _bin(count):
    if count < EXACT:
        return count
    octave = 0
    while (count >> octave) >= 2 * EXACT:
        octave += 1
    # the STEPS-th part of the octave [EXACT, 2 EXACT) << octave
    part = ((count >> octave) - EXACT) * STEPS // EXACT
    return min(EXACT + octave * STEPS + part, BINS - 1)


@njit(nogil=True, cache=True)
def _middle(place):
    """Return the count that a place stands for."""
    if place < EXACT:
        return float64(place)
    octave, part = (place - EXACT) // STEPS, (place - EXACT) % STEPS
    width = float64(int64(EXACT // STEPS) << octave)
    return float64(int64(EXACT) << octave) + (part + 0.5) * width - 0.5


@njit(nogil=True, cache=True)
def digamma(x):
    """Return the derivative of log gamma at x > 0: by recurrence, from 6 on by its series."""
    less = 0.0
    while x < 6.0:
        less += 1.0 / x
        x += 1.0
    f = 1.0 / (x * x)
    series = f * (1.0 / 12 - f * (1.0 / 120 - f * (1.0 / 252 - f * (1.0 / 240 - f / 132))))
    return np.log(x) - 0.5 / x - series - less


@njit(nogil=True, cache=True)
def tally_documents(lists, heads, lengths, counts, sizes):
    """Add documents to tallies.

    Parameters
    ----------
    lists, heads
        See ``kernels.esca.list_topics``.
    lengths : int32[documents]
    counts, sizes
        See :class:`Tallies`.
    """
    for d in range(lengths.shape[0]):
        if lengths[d] == 0:
            continue
        sizes[_bin(int64(lengths[d]))] += 1
        first = int64(heads[d] & uint64(0xFFFFFFFF))
        for j in range(first, first + int64(heads[d] >> uint64(32))):
            count = int64(lists[j] & uint32(0xFFFF))
            if count > 0:
                counts[lists[j] >> uint32(16), _bin(count)] += 1


@njit(nogil=True, cache=True)
def tally_words(counts, rows, topics, out):
    """Add the counts of words by topic to int64[BINS]; 0 is not tallied."""
    for w in range(rows.shape[0]):
        row = counts[rows[w] : rows[w] + topics]
        for k in range(topics):
            if row[k] > 0:
                out[_bin(int64(row[k]))] += 1


@njit(nogil=True, cache=True)
def fit_alpha(alpha, counts, sizes):
    """Fit alpha to tallies, in place."""
    topics = alpha.shape[0]
    last = np.zeros(topics, np.int64)
    for k in range(topics):
        for c in range(BINS):
            if counts[k, c] > 0:
                last[k] = c
    for _ in range(ROUNDS):
        total = alpha.sum()
        base = digamma(total)
        below = 0.0
        for c in range(1, BINS):
            if sizes[c] > 0:
                below += sizes[c] * (digamma(_middle(c) + total) - base)
        if below <= 0.0:
            return
        change = 0.0
        for k in range(topics):
            above, start = 0.0, digamma(alpha[k])
            partial = 0.0  # digamma(alpha + c) - digamma(alpha), by recurrence
            for c in range(1, last[k] + 1):
                if c < EXACT:
                    partial += 1.0 / (alpha[k] + c - 1)
                    if counts[k, c] > 0:
                        above += counts[k, c] * partial
                elif counts[k, c] > 0:
                    above += counts[k, c] * (digamma(alpha[k] + _middle(c)) - start)
            new = min(max(alpha[k] * above / below, ALPHA_MIN), ALPHA_MAX)
            change += abs(new - alpha[k])
            alpha[k] = new
        if change < SETTLED * total:
            return


@njit(nogil=True, cache=True)
def fit_beta(beta, tallied, totals, words):
    """Return beta fitted to tallies of words' counts.

    Parameters
    ----------
    beta : float64
    tallied : int64[BINS]
    totals : int64[topics]
    words : int64
    """
    for _ in range(ROUNDS):
        above, start = 0.0, digamma(beta)
        for c in range(1, BINS):
            if tallied[c] > 0:
                above += tallied[c] * (digamma(_middle(c) + beta) - start)
        below, base = 0.0, digamma(words * beta)
        for k in range(totals.shape[0]):
            if totals[k] > 0:
                below += digamma(totals[k] + words * beta) - base
        if below <= 0.0:
            return beta
        new = min(max(beta * above / (words * below), BETA_MIN), BETA_MAX)
        if abs(new - beta) < SETTLED * beta:
            return new
        beta = new
    return beta
