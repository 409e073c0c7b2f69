"""Topics of documents that are only judged: their mixtures, and how probable what they say is.

A mixture theta of a document is the fixed point of

    theta_k = alpha_k + sum over its tokens of theta_k phi_wk / sum_j theta_j phi_wj

(expectation maximization; Wallach, Murray, Salakhutdinov and Mimno, "Evaluation Methods for Topic
Models", ICML 2009, on what may be done with it). *Document completion*: theta of every other token,
from the first on, tells how probable each of the tokens between them is.

phi_wk = (W_wk + beta) / (T_k + V beta) comes from counts, and is never stored: with theta over
(T + V beta) at hand a token costs one pass over its word's counts for the sum and one to share it.
"""

from __future__ import annotations

import numpy as np
from numba import float32, int64, njit

from streamlearn.compute.kernels.bits import apart

__all__ = ["complete", "mix_all"]

# Passes over a document at most, and the change of theta, as a share of its tokens, below which it
# has settled.
PASSES = 50
SETTLED = 1e-3
NOTHING = float32(1e-30)


@njit(nogil=True, cache=True, fastmath=True)
def _inner(row, scaled, topics):
    apart()
    total = float32(0)
    for k in range(topics):
        total += float32(row[k]) * scaled[k]
    return total


@njit(nogil=True, cache=True, fastmath=True)
def _share(row, scaled, topics, beta, factor, out):
    apart()
    for k in range(topics):
        out[k] += (float32(row[k]) + beta) * scaled[k] * factor


@njit(nogil=True, cache=True, fastmath=True)
def _scale(theta, inverse, topics, scaled):
    apart()
    total = float32(0)
    for k in range(topics):
        scaled[k] = theta[k] * inverse[k]
        total += scaled[k]
    return total


@njit(nogil=True, cache=True)
def _mix(first, end, step, places, counts, topics, alpha, beta, inverse, theta, scaled, out):
    """Find the mixture of the tokens ``first, first + step, ...``; return how many are known.

    ``theta`` is written, not normalized: its sum is that of alpha and the tokens.
    """
    apart()
    known = 0
    for i in range(first, end, step):
        known += int64(places[i] >= 0)
    for k in range(topics):
        theta[k] = alpha[k] + float32(known) / float32(topics)
    if known == 0:
        return 0
    for _ in range(PASSES):
        rest = beta * _scale(theta, inverse, topics, scaled)
        for k in range(topics):
            out[k] = alpha[k]
        for i in range(first, end, step):
            if places[i] >= 0:
                row = counts[places[i] : places[i] + topics]
                total = max(_inner(row, scaled, topics) + rest, NOTHING)
                _share(row, scaled, topics, beta, float32(1) / total, out)
        change = 0.0
        for k in range(topics):
            change += abs(out[k] - theta[k])
            theta[k] = out[k]
        if change < SETTLED * known:
            break
    return known


@njit(nogil=True, cache=True)
def complete(
    bounds, first, end, places, counts, topics, alpha, beta, inverse, scratch, scores, tokens
):  # fmt: skip
    """Predict every other token of documents from the rest.

    Parameters
    ----------
    bounds : int64[documents + 1]
    first, end : int64
        Documents.
    places : int64[nnz]
        Where each token's word has its counts; -1: it has none, and the token is left out.
    counts : int32[...]
    topics : int64
    alpha, inverse : float32[>= topics]
        The prior, and 1 / (T + V beta).
    beta : float32
    scratch : float32[3, >= topics]
    scores, tokens : float32[documents], float32[documents]
        Written: the sum of the logarithms of the probabilities, and of how many tokens.
    """
    theta, scaled, out = scratch[0], scratch[1], scratch[2]
    for d in range(first, end):
        a, b = bounds[d], bounds[d + 1]
        _mix(a, b, 2, places, counts, topics, alpha, beta, inverse, theta, scaled, out)
        mass = 0.0
        for k in range(topics):
            mass += theta[k]
        rest = beta * _scale(theta, inverse, topics, scaled)
        total, met = 0.0, 0
        for i in range(a + 1, b, 2):
            if places[i] >= 0:
                row = counts[places[i] : places[i] + topics]
                total += np.log(max(_inner(row, scaled, topics) + rest, NOTHING) / mass)
                met += 1
        scores[d] = float32(total)
        tokens[d] = float32(met)


@njit(nogil=True, cache=True)
def mix_all(
    bounds, first, end, places, counts, topics, alpha, beta, inverse, scratch, mixtures, known
):  # fmt: skip
    """Find the mixtures of documents; see :func:`complete`.

    Parameters
    ----------
    mixtures : float32[documents, topics]
        Written; each sums to 1.
    known : int64[documents]
        Written: tokens that counted.
    """
    theta, scaled, out = scratch[0], scratch[1], scratch[2]
    for d in range(first, end):
        known[d] = _mix(
            bounds[d], bounds[d + 1], 1, places, counts, topics, alpha, beta, inverse, theta,
            scaled, out,
        )  # fmt: skip
        mass = 0.0
        for k in range(topics):
            mass += theta[k]
        for k in range(topics):
            mixtures[d, k] = theta[k] / mass
