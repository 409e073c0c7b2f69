"""How probable documents are, by particles that read them from left to right.

Wallach, Murray, Salakhutdinov and Mimno, "Evaluation Methods for Topic Models" (ICML 2009),
Algorithm 3, in the unbiased form: each particle holds topics of the tokens read so far, and

1. draws earlier ones anew, each from its distribution given all others up to here (which leaves the
   posterior of those tokens as it is);
2. says how probable the next token is: p_n = sum_k (D_k + alpha_k) / (n + sum alpha) phi_wk;
3. draws that token's topic.

Moves are made *before* p_n is asked for, as Buntine has it ("Estimating Likelihoods for Topic
Models", ACML 2009): a particle's product of p_n is then an unbiased estimate of the document's
probability (annealed importance sampling). Particles are weighted by their products, and drawn anew
by them (systematically) where few have all the weight, which leaves the estimate unbiased and makes
it far steadier; the document's is the product of the weighted means.
"""

from __future__ import annotations

import numpy as np
from numba import float32, float64, int64, njit, uint16, uint64

from streamlearn.compute.kernels.bits import apart
from streamlearn.compute.kernels.esca import draw

__all__ = ["GROUP", "read_documents"]

# Topics that are searched as one first.
GROUP = 16
NOTHING = float32(1e-30)

_MIX = np.uint64(0x9E3779B97F4A7C15)
_UNIT = np.float64(2.0**-53)


@njit(nogil=True, cache=True, fastmath=True)
def _weigh(row, scaled, width, beta, out):
    apart()
    total = float32(0)
    for k in range(width):
        out[k] = (float32(row[k]) + beta) * scaled[k]
        total += out[k]
    return total


@njit(nogil=True, cache=True, fastmath=True)
def _sum(values, first, end):
    total = float32(0)
    for k in range(first, end):
        total += values[k]
    return total


@njit(nogil=True, cache=True)
def _pick(weights, topics, total, chance):
    """Return a topic by weights, float32[topics], whose sum is ``total``."""
    apart()
    left = float32(chance * float64(total))
    k = int64(0)
    while k + GROUP < topics:
        some = _sum(weights, k, k + GROUP)
        if left < some:
            break
        left -= some
        k += GROUP
    last = k
    while k < topics:
        if weights[k] > 0:
            last = k
            left -= weights[k]
            if left < 0:
                break
        k += 1
    return last


@njit(nogil=True, cache=True)
def _resample(weights, chance, parents):
    """Choose whose copy each particle becomes, systematically; who stays in place does."""
    count = weights.shape[0]
    taken = np.zeros(count, np.int64)
    total, r = weights[0], 0
    for i in range(count):
        mark = (i + chance) / count
        while mark >= total and r + 1 < count:
            r += 1
            total += weights[r]
        taken[r] += 1
    spare = 0
    for i in range(count):
        parents[i] = i
        if taken[i] == 0:
            while taken[spare] < 2:
                spare += 1
            taken[spare] -= 1
            parents[i] = spare


@njit(nogil=True, cache=True, error_model="numpy")
def read_documents(
    bounds, first, end, keys, places, counts, topics, alpha, beta, inverse, redrawn, known, drawn,
    held, scaled, weights, mass, scores, tokens,
):  # fmt: skip
    """Estimate how probable documents are.

    Parameters
    ----------
    bounds : int64[documents + 1]
    first, end : int64
        Documents.
    keys : uint64[nnz]
        Of the tokens' words; chance depends on a document's, and on nothing else.
    places : int64[nnz]
        Where each token's word has its counts; -1: it has none, and the token is left out.
    counts : int32[...]
    topics : int64
    alpha, inverse : float32[>= topics]
        The prior, and 1 / (T + V beta).
    beta : float32
    redrawn : int64
        Earlier tokens that a particle draws anew before each token, in turn; as many as there are
        tokens: all of them, as published.
    known : int64[>= tokens of a document]
    drawn : uint16[particles, >= tokens of a document]
    held : int32[particles, >= topics]
    scaled : float32[particles, >= topics]
    weights : float64[particles]
    mass : float32[>= topics]
        All working space.
    scores, tokens : float32[documents], float32[documents]
        Written: the logarithm of the probability, and of how many tokens.

    Notes
    -----
    O(tokens * min(tokens, redrawn) * particles * topics).
    """
    particles = drawn.shape[0]
    chances = np.empty(particles)
    parents = np.empty(particles, np.int64)
    for d in range(first, end):
        key, size = uint64(bounds[d + 1] - bounds[d]), int64(0)
        for i in range(bounds[d], bounds[d + 1]):
            if places[i] >= 0:
                key = (key ^ keys[i]) * _MIX
                key ^= key >> uint64(32)
                known[size] = places[i]
                size += 1
        norm = 0.0
        for k in range(topics):
            norm += alpha[k]
        for r in range(particles):
            weights[r] = 1.0 / particles
            for k in range(topics):
                held[r, k] = 0
                scaled[r, k] = alpha[k] * inverse[k]
        score, cursor, drawing = 0.0, int64(0), uint64(0)
        for n in range(size):
            row = counts[known[n] : known[n] + topics]
            moves = min(n, redrawn)
            for r in range(particles):
                mine, lot = scaled[r], held[r]
                for m in range(moves):
                    at = (cursor + m) % n
                    old = int64(drawn[r, at])
                    lot[old] -= 1
                    mine[old] = (alpha[old] + float32(lot[old])) * inverse[old]
                    other = counts[known[at] : known[at] + topics]
                    total = _weigh(other, mine, topics, beta, mass)
                    drawing += uint64(1)
                    chance = float64(draw(key, drawing) >> uint64(11)) * _UNIT
                    new = _pick(mass, topics, total, chance)
                    lot[new] += 1
                    mine[new] = (alpha[new] + float32(lot[new])) * inverse[new]
                    drawn[r, at] = uint16(new)
                total = _weigh(row, mine, topics, beta, mass)
                chances[r] = float64(max(total, NOTHING)) / (norm + n)
                drawing += uint64(1)
                chance = float64(draw(key, drawing) >> uint64(11)) * _UNIT
                new = _pick(mass, topics, total, chance)
                lot[new] += 1
                mine[new] = (alpha[new] + float32(lot[new])) * inverse[new]
                drawn[r, n] = uint16(new)
            cursor += moves
            mean = 0.0
            for r in range(particles):
                mean += weights[r] * chances[r]
            score += np.log(mean)
            squares = 0.0
            for r in range(particles):
                weights[r] *= chances[r] / mean
                squares += weights[r] * weights[r]
            if squares * particles > 2.0:  # those that count are fewer than half
                drawing += uint64(1)
                chance = float64(draw(key, drawing) >> uint64(11)) * _UNIT
                _resample(weights, chance, parents)
                for r in range(particles):
                    weights[r] = 1.0 / particles
                    if parents[r] != r:
                        held[r, :topics] = held[parents[r], :topics]
                        scaled[r, :topics] = scaled[parents[r], :topics]
                        drawn[r, : n + 1] = drawn[parents[r], : n + 1]
        scores[d] = float32(score)
        tokens[d] = float32(size)
