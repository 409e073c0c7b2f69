"""Steps of a worker: score a minibatch with the weights it pulled, and sum the loss's gradient.

Compiled without fast-math and with sums in a written order: the same minibatch and weights give the
same bytes wherever ``exp`` does.
"""

from __future__ import annotations

import numpy as np
from numba import float32, int64, njit, uint8, uint32

__all__ = [
    "GRADIENT_MAX",
    "SCORE_MAX",
    "cut",
    "finite",
    "left_zero",
    "logistic_step",
    "sigmoid",
]

# What no number exceeds, as in ``kernels.logistic``.
GRADIENT_MAX = np.float32(2.0**51)
SCORE_MAX = np.float32(3e38)


@njit(nogil=True, cache=True, inline="always", error_model="numpy")
def finite(score):
    """Return a score that sums of large terms have not made infinite, nor NaN."""
    if not abs(score) <= SCORE_MAX:
        return float32(0) if np.isnan(score) else np.copysign(SCORE_MAX, score)
    return score


@njit(nogil=True, cache=True, inline="always", error_model="numpy")
def cut(gradient):
    """Return a gradient (float32) cut at 2**51."""
    return max(min(gradient, GRADIENT_MAX), -GRADIENT_MAX)


@njit(nogil=True, cache=True, error_model="numpy")
def sigmoid(score):
    """Return the probability of a score (float32), which is clipped to +-35 first."""
    clipped = max(min(score, float32(35)), float32(-35))
    return float32(1) / (float32(1) + np.exp(-clipped))


@njit(nogil=True, cache=True, error_model="numpy")
def logistic_step(
    inverse, values, indptr, labels, shares, rows, intercept, weights, gradients, scores
):
    """Score examples and sum the gradient of their logloss by key.

    With y in {0, 1}, x the values and w the weights, all of one moment:

        s = w_0 + sum_j w_j x_j;   p = 1 / (1 + exp(-s))
        gradient_j = sum over examples of (p - y) share x_j

    Parameters
    ----------
    inverse : int32[nnz]
        Index into ``weights`` of each feature.
    values : float32[nnz] or float32[0]
        Finite; none: all ones.
    indptr : int64[rows + 1]
    labels, shares : float32[rows]
        0 or 1; each example's own weight, finite and not negative.
    rows : int64
    intercept : int64
        Not 0: entry 0 is in every example, with the value 1.
    weights : float32[u]
        Finite.
    gradients : float32[u]
        Written; need not be zero.
    scores : float32[rows]
        Written: each example's score (logit).

    Notes
    -----
    The gradient is summed, not averaged. A key that stands twice in an example counts twice, in
    score and gradient. Scores are clipped to +-35 for the gradient; the gradient of an example,
    each term of a sum and each sum are cut at 2**51, scores at 3e38, and a score that is not a
    number (infinities of both signs) is 0: so all that is written is finite.

    A score is four partial sums, of every fourth feature from the first to the fourth on, added as
    ``(s0 + s1) + (s2 + s3)`` before the intercept; a gradient is summed in the order of the
    examples. Relative error at most 2**-24 times the number of terms. O(nnz + u).
    """
    gradients[:] = float32(0)
    plain = values.shape[0] == 0
    bias = weights[0] if intercept != 0 else float32(0)
    bias_gradient = float32(0)
    for r in range(rows):
        first, end = indptr[r], indptr[r + 1]
        whole = end - ((end - first) & int64(3))
        s0, s1, s2, s3 = float32(0), float32(0), float32(0), float32(0)
        if plain:
            for j in range(first, whole, 4):
                s0 += weights[uint32(inverse[j])]
                s1 += weights[uint32(inverse[j + 1])]
                s2 += weights[uint32(inverse[j + 2])]
                s3 += weights[uint32(inverse[j + 3])]
            if whole < end:
                s0 += weights[uint32(inverse[whole])]
            if whole + 1 < end:
                s1 += weights[uint32(inverse[whole + 1])]
            if whole + 2 < end:
                s2 += weights[uint32(inverse[whole + 2])]
        else:
            for j in range(first, whole, 4):
                s0 += weights[uint32(inverse[j])] * values[j]
                s1 += weights[uint32(inverse[j + 1])] * values[j + 1]
                s2 += weights[uint32(inverse[j + 2])] * values[j + 2]
                s3 += weights[uint32(inverse[j + 3])] * values[j + 3]
            if whole < end:
                s0 += weights[uint32(inverse[whole])] * values[whole]
            if whole + 1 < end:
                s1 += weights[uint32(inverse[whole + 1])] * values[whole + 1]
            if whole + 2 < end:
                s2 += weights[uint32(inverse[whole + 2])] * values[whole + 2]
        score = finite(((s0 + s1) + (s2 + s3)) + bias)
        scores[r] = score
        gradient = cut((sigmoid(score) - labels[r]) * shares[r])
        bias_gradient += gradient
        if plain:
            for j in range(first, end):
                gradients[uint32(inverse[j])] += gradient
        else:
            for j in range(first, end):
                gradients[uint32(inverse[j])] += cut(gradient * values[j])
    if intercept != 0:
        gradients[0] += bias_gradient
    for i in range(gradients.shape[0]):
        gradients[i] = cut(gradients[i])


@njit(nogil=True, cache=True)
def left_zero(inverse, indptr, rows, first, before, after, marks, fresh):
    """Count the weights of each example that a push made leave zero.

    Parameters
    ----------
    inverse, indptr, rows
        As for :func:`logistic_step`.
    first : int64
        Keys below this index do not count: 1 where entry 0 is the intercept.
    before, after : float32[u]
        Weights.
    marks : uint8[u]
        Scratch: a byte a key stays in the first cache, over which examples are summed.
    fresh : uint8[rows]
        Written: at most 255.
    """
    for i in range(first):
        marks[i] = uint8(0)
    for i in range(first, marks.shape[0]):
        marks[i] = uint8((before[i] == float32(0)) & (after[i] != float32(0)))
    for r in range(rows):
        count = int64(0)
        for j in range(indptr[r], indptr[r + 1]):
            count += int64(marks[uint32(inverse[j])])
        fresh[r] = uint8(min(count, int64(255)))
