"""What every learn kernel does with the linear part of an example: weigh, score, teach.

Equations (y in {0, 1}; s the score; g = (p - y) weight; per coordinate g_j = g x_j; McMahan et al.,
"Ad Click Prediction: a View from the Trenches", KDD 2013, Algorithm 1):

    FTRL      w = 0 if |z| <= l1 else -(z - sign(z) l1) / ((beta + sqrt(n)) / alpha + l2)
              z += g_j - (sqrt(n + g_j^2) - sqrt(n)) / alpha * w;   n += g_j^2
    AdaGrad   n += g_j^2;  r = alpha / (beta + sqrt(n))
              v = w - r (g_j + l2 w);  w = sign(v) max(0, |v| - r l1)
    SGD       as AdaGrad, with r = alpha

The intercept is a coordinate like the others, but for l1 = l2 = 0.

Numbers stay finite whatever comes. A coordinate's gradient is cut at 2**51: then n stops at 2**126,
where float32 adds 2**102 no more. Weights that are stored (AdaGrad, SGD) are cut at 2**60, scores
at 3e38, and one that is not a number (infinities of both signs) is 0. Without values as large as
1e15 nothing of this happens.
"""

from __future__ import annotations

import numpy as np
from numba import float32, int64, njit, uint64

__all__ = [
    "AHEAD",
    "FAST",
    "GRADIENT_MAX",
    "LANES",
    "SCORE_MAX",
    "WEIGHT_MAX",
    "buffer_values",
    "clipped_sigmoid",
    "finite",
    "intercept_weight",
    "restore_ones",
    "teach",
    "teach_intercept",
    "weigh",
]

# Reassociation lets LLVM vectorise the sums; NaN and infinity keep their meaning (no nnan, no
# ninf): the parsers refuse both, and a score is clipped before it is used.
FAST = {"nsz", "arcp", "contract", "afn", "reassoc"}

# What no number exceeds, see above.
GRADIENT_MAX = np.float32(2.0**51)
WEIGHT_MAX = np.float32(2.0**60)
SCORE_MAX = np.float32(3e38)
# Examples ahead whose rows are prefetched: at about 300 ns an example, 6 are several memory
# latencies.
AHEAD = 6
# Scratch buffers are padded to whole vectors of 8 floats.
LANES = 8


@njit(nogil=True, cache=True, inline="always", error_model="numpy")
def weigh(rule, zn, x, w, padded, inverse_alpha, base_rate, l1):
    """Fill ``w[:padded]`` from the columns in ``zn``, whose padding is 0; return the score."""
    score = float32(0)
    if rule == 0:
        for j in range(padded):
            z = zn[2 * j]
            size = max(abs(z) - l1, float32(0))
            weight = -np.copysign(size, z) / (base_rate + np.sqrt(zn[2 * j + 1]) * inverse_alpha)
            w[j] = weight
            score += weight * x[j]
    else:
        for j in range(padded):
            weight = zn[2 * j]
            w[j] = weight
            score += weight * x[j]
    return score


@njit(nogil=True, cache=True, inline="always", error_model="numpy")
def teach(rule, zn, x, w, padded, gradient, alpha, inverse_alpha, beta, l1, l2):
    """Apply the gradient to ``zn[:2 * padded]``; return how many weights left zero."""
    left_zero = int64(0)
    if rule == 0:
        for j in range(padded):
            g = max(min(gradient * x[j], GRADIENT_MAX), -GRADIENT_MAX)
            n = zn[2 * j + 1]
            more = n + g * g
            z = zn[2 * j] + g - (np.sqrt(more) - np.sqrt(n)) * inverse_alpha * w[j]
            zn[2 * j] = z
            zn[2 * j + 1] = more
            left_zero += int64((w[j] == float32(0)) & (abs(z) > l1))
    elif rule == 1:
        for j in range(padded):
            g = max(min(gradient * x[j], GRADIENT_MAX), -GRADIENT_MAX)
            more = zn[2 * j + 1] + g * g
            rate = alpha / (beta + np.sqrt(more))
            v = max(min(w[j] - rate * (g + l2 * w[j]), WEIGHT_MAX), -WEIGHT_MAX)
            new = np.copysign(max(abs(v) - rate * l1, float32(0)), v)
            zn[2 * j] = new
            zn[2 * j + 1] = more
            left_zero += int64((w[j] == float32(0)) & (new != float32(0)))
    else:
        for j in range(padded):
            g = max(min(gradient * x[j], GRADIENT_MAX), -GRADIENT_MAX)
            v = max(min(w[j] - alpha * (g + l2 * w[j]), WEIGHT_MAX), -WEIGHT_MAX)
            new = np.copysign(max(abs(v) - alpha * l1, float32(0)), v)
            zn[2 * j] = new
            left_zero += int64((w[j] == float32(0)) & (new != float32(0)))
    return left_zero


@njit(nogil=True, cache=True, inline="always", error_model="numpy")
def intercept_weight(rule, intercept, beta, inverse_alpha):
    """Return the weight of the constant feature, float32, from its columns (float32[2])."""
    if rule == 0:
        return -intercept[0] / (beta * inverse_alpha + np.sqrt(intercept[1]) * inverse_alpha)
    return intercept[0]


@njit(nogil=True, cache=True, inline="always", error_model="numpy")
def teach_intercept(rule, intercept, bias, gradient, alpha, inverse_alpha, beta):
    """Apply the gradient to the constant feature's columns, in place."""
    more = intercept[1] + gradient * gradient
    if rule == 0:
        moved = (np.sqrt(more) - np.sqrt(intercept[1])) * inverse_alpha * bias
        intercept[0] += gradient - moved
    elif rule == 1:
        intercept[0] -= alpha / (beta + np.sqrt(more)) * gradient
    else:
        intercept[0] -= alpha * gradient
    intercept[1] = more


@njit(nogil=True, cache=True, inline="always", error_model="numpy")
def finite(score):
    """Return a score that sums of large terms have not made infinite, nor NaN."""
    if not abs(score) <= SCORE_MAX:
        return float32(0) if np.isnan(score) else np.copysign(SCORE_MAX, score)
    return score


@njit(nogil=True, cache=True, inline="always", error_model="numpy")
def clipped_sigmoid(score):
    """Return the probability of a score (float32), which is clipped to +-35 first."""
    clipped = max(min(score, float32(35)), float32(-35))
    return float32(1) / (float32(1) + np.exp(-clipped))


@njit(nogil=True, cache=True, inline="always", error_model="numpy")
def buffer_values(values, o, m, padded, zn64, x):
    """Make the buffers ready for an example of ``m`` features: values in, padding zero."""
    if values.shape[0] > 0:
        for j in range(m):
            x[j] = values[o + j]
    for j in range(m, padded):
        zn64[j] = uint64(0)
        x[j] = float32(0)


@njit(nogil=True, cache=True, inline="always", error_model="numpy")
def restore_ones(values, m, padded, x):
    """Make the padding of ``x`` ones again where there are no values."""
    if values.shape[0] == 0:
        for j in range(m, padded):
            x[j] = float32(1)
