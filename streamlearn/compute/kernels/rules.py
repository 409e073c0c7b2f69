"""Kernels of the update rules: the weight of a row, and what a push of gradients makes of it.

Equations (g a key's gradient, summed over the minibatch; w its weight, 0 at first; FTRL: McMahan et
al., "Ad Click Prediction: a View from the Trenches", KDD 2013, Algorithm 1; Adam: Kingma and Ba,
ICLR 2015, Algorithm 1, per row, penalties apart from the moments as in Loshchilov and Hutter, ICLR
2019):

    FTRL      w = 0 if |z| <= l1 else -(z - sign(z) l1) / ((beta + sqrt(n)) / alpha + l2)
              z += g - (sqrt(n + g^2) - sqrt(n)) / alpha * w;   n += g^2
    AdaGrad   n += g^2;  r = alpha / (beta + sqrt(n))
              v = w - r (g + l2 w);  w = sign(v) max(0, |v| - r l1)
    SGD       m = momentum m + g + l2 w;  v = w - alpha m;  w = sign(v) max(0, |v| - alpha l1)
    Adam      t += 1;  m = b1 m + (1 - b1) g;  s = b2 s + (1 - b2) g^2
              r = alpha / (beta + sqrt(s / (1 - b2^t)))
              v = w - r (m / (1 - b1^t) + l2 w);  w = sign(v) max(0, |v| - r l1)
    add       w += g
    mf        w += g; of the constant feature, with c more occurrences, of n then (at most 2**20):
              w += c / n (128 g - w)

The constant feature is a row like the others, but for l1 = l2 = 0; under ``mf`` it is a mean, and g
that of a minibatch.

Columns: word 1 of a row (``kernels.table``) holds z, n; w, n; w, m; w, m; w; w. What is beside w
under ``add`` and ``mf`` stays as it is. Word 3 holds t (low 32
bits) and s (high) of Adam, whose rows can therefore have none in an arena.

These are the equations of ``kernels.logistic`` without ``fastmath``: every operation is rounded by
itself, in the order that stands here, so that a log replayed on another CPU gives the same bytes
(powers come from a table for the same reason). Roots and divisions are vectors all the same: the
columns of ``BLOCK`` rows are gathered, computed and scattered, while the rows ``AHEAD`` further on
are prefetched.

Numbers stay finite whatever comes: gradients are cut at 2**51 (n then stops at 2**126, where
float32 adds 2**102 no more), weights and momenta at 2**60.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import float32, int64, njit, uint32, uint64

from streamlearn.compute.kernels.bits import prefetch
from streamlearn.compute.kernels.factors import MEAN_OVER
from streamlearn.compute.kernels.table import preserve

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MEAN_SHARE", "push", "rates_of", "v_rates_of", "values"]

# What no number exceeds, see above.
GRADIENT_MAX = np.float32(2.0**51)
WEIGHT_MAX = np.float32(2.0**60)
# The mean of a minibatch is sent divided by this: it stands among changes of biases, and the
# largest of 256 numbers decides how finely they are sent in a byte each.
MEAN_SHARE = np.float32(128)
# Rows computed at a time: their columns (2 to 6 KB) and lines (16 KB) stay in the first cache.
BLOCK = 256
# Rows ahead whose lines are prefetched: some 10 ns each, so two memory latencies.
AHEAD = 32

# Beyond these float32 overflows or divides 0 by 0 (beta = 0 before the first gradient). The least
# beta is far below the root of any sum of squares that float32 holds for gradients that matter.
ALPHA_MIN = 1e-20
BETA_MIN = 1e-12
RATE_MAX = 1e18
PENALTY_MAX = 1e30


def rates_of(
    alpha: float,
    beta: float,
    l1: float,
    l2: float,
    intercept: bool,
    momentum: float = 0.0,
    memory: float = 0.0,
) -> NDArray[np.float32]:
    """Return the numbers of an update rule as kernels take them, float32[8].

    Parameters
    ----------
    alpha, beta, l1, l2 : float
        As in the equations; cut to what float32 can compute with.
    intercept : bool
        Whether there is a constant feature.
    momentum, memory : float
        ``momentum`` of SGD or b1 of Adam, and b2 of Adam.

    Returns
    -------
    float32[8]
        alpha, beta, l1, l2, 1 / alpha, intercept (0 or 1), momentum, memory.
    """
    alpha = min(max(alpha, ALPHA_MIN), RATE_MAX)
    beta = min(max(beta, BETA_MIN), RATE_MAX)
    l1, l2 = min(l1, PENALTY_MAX), min(l2, PENALTY_MAX)
    return np.array([alpha, beta, l1, l2, 1 / alpha, intercept, momentum, memory], np.float32)


def v_rates_of(
    rate: float,
    beta: float,
    l2: float,
    scale: float,
    clip: float = 0.0,
    dropout: float = 0.0,
    normalize: float = 0.0,
) -> NDArray[np.float32]:
    """Return the numbers that embeddings are updated by as kernels take them, float32[8].

    Parameters
    ----------
    rate, beta, l2 : float
        As in ``kernels.vectors``; cut to what float32 can compute with.
    scale : float
        New embeddings are drawn from between minus and plus this.
    clip, dropout : float
        Of gradients; 0: none.
    normalize : float
        Not 0: gradients are divided by their norm.
    """
    beta = min(max(beta, BETA_MIN), RATE_MAX)
    rate, l2 = min(rate, RATE_MAX), min(l2, RATE_MAX)
    scale, clip = min(scale, RATE_MAX), min(clip, RATE_MAX)
    return np.array([rate, beta, l2, scale, clip, dropout, normalize, 0], np.float32)


@njit(nogil=True, cache=True, error_model="numpy")
def values(words, slots, bare, rule, rates, out):
    """Derive the weights of rows.

    Parameters
    ----------
    words : uint64[4 * slots]
        The table, see ``kernels.table``.
    slots : int64[n]
        Rows; -1: none, whose weight is 0. In ascending order memory is walked forward.
    bare : int64
        1: the first is the constant feature.
    rule : int64
        0 FTRL, 1 AdaGrad, 2 SGD, 3 Adam, 4 add, 5 mf.
    rates : float32[8]
        Of :func:`rates_of`.
    out : float32[n]
        Written; a weight that is zero is +0.

    Notes
    -----
    O(n). Changes nothing.
    """
    base = int64(words.ctypes.data)
    n = slots.shape[0]
    zn64 = np.empty(BLOCK, np.uint64)
    zn = zn64.view(np.float32)
    for j in range(min(AHEAD, n)):
        prefetch(base + (slots[j] << 5))
    start = 0
    while start < n:
        count = min(BLOCK, n - start)
        l1, l2 = rates[2], rates[3]
        if start < bare:  # the constant feature, by itself
            count, l1, l2 = 1, float32(0), float32(0)
        base_rate = rates[1] * rates[4] + l2
        for j in range(count):
            prefetch(base + (slots[min(start + j + AHEAD, n - 1)] << 5))
            slot = slots[start + j]
            # a row of slot 0 whose bits are masked out stands in for none
            zn64[j] = words[max(slot, 0) * 4 + 1] & ~uint64(slot >> 63)
        if rule == 0:
            for j in range(count):
                weight = _ftrl_weight(zn[2 * j], np.sqrt(zn[2 * j + 1]), l1, base_rate, rates[4])
                out[start + j] = weight + float32(0)
        else:
            for j in range(count):
                out[start + j] = zn[2 * j] + float32(0)
        start += count


@njit(nogil=True, cache=True, error_model="numpy")
def push(
    words, slots, gradients, counts, minute, bare, rule, rates, powers,
    saving, kept, side_lines, side_words, side_count,
):  # fmt: skip
    """Apply one push of gradients to rows, in place.

    Parameters
    ----------
    words, bare, rule, rates
        As for :func:`values`.
    slots : int64[n]
        Rows, unique but for -1: none, which is passed over.
    gradients : float32[n]
        Of the loss *summed* over the minibatch; finite.
    counts : uint32[n] or [0]
        Added to the rows' counts, which stop at 2**32 - 1; of length 0: none to add.
    minute : uint64
        Below 2**32; what the rows were last seen at from now on.
    powers : float32[m, 2]
        1 - b1^t and 1 - b2^t of Adam by t, the last for all beyond.
    saving, kept, side_lines, side_words, side_count
        Copy-on-write of a snapshot's cut (``kernels.table.preserve``) while ``saving`` is not 0;
        the side arrays have room for n lines.

    Notes
    -----
    O(n).
    """
    base = int64(words.ctypes.data)
    n = slots.shape[0]
    zn64 = np.empty(BLOCK, np.uint64)
    zn = zn64.view(np.float32)
    ts64 = np.empty(BLOCK, np.uint64)
    g = np.empty(BLOCK, np.float32)
    now = uint64(minute) << uint64(32)
    low = uint64(0xFFFFFFFF)
    counted = counts.shape[0] > 0
    for j in range(min(AHEAD, n)):
        prefetch(base + (slots[j] << 5))
    start = 0
    while start < n:
        count = min(BLOCK, n - start)
        l1, l2 = rates[2], rates[3]
        if start < bare:  # the constant feature, by itself
            count, l1, l2 = 1, float32(0), float32(0)
        for j in range(count):
            prefetch(base + (slots[min(start + j + AHEAD, n - 1)] << 5))
            at = max(slots[start + j], 0) * 4
            zn64[j] = words[at + 1]
            if rule == 3:
                ts64[j] = words[at + 3]
        for j in range(count):
            g[j] = max(min(gradients[start + j], GRADIENT_MAX), -GRADIENT_MAX)
        if rule == 5 and start < bare:
            seen = words[max(slots[0], 0) * 4 + 2] & low
            zn[0] = _mean(zn[0], g[0], uint64(counts[0]) if counted else uint64(0), seen)
        else:
            _move(rule, zn, ts64, g, count, rates, l1, l2, powers)
        if saving != 0:
            for j in range(count):
                if slots[start + j] >= 0:
                    line = slots[start + j] >> 1
                    preserve(words, line, kept, side_lines, side_words, side_count)
        for j in range(count):
            if slots[start + j] >= 0:
                at = slots[start + j] * 4
                more = uint64(counts[start + j]) if counted else uint64(0)
                words[at + 1] = zn64[j]
                words[at + 2] = min((words[at + 2] & low) + more, low) | now
                if rule == 3:
                    words[at + 3] = ts64[j]
        start += count


@njit(nogil=True, cache=True, inline="always", error_model="numpy")
def _cut(weight):
    return max(min(weight, WEIGHT_MAX), -WEIGHT_MAX)


@njit(nogil=True, cache=True, inline="always", error_model="numpy")
def _shrunk(v, penalty):
    return np.copysign(max(abs(v) - penalty, float32(0)), v)


@njit(nogil=True, cache=True, inline="always", error_model="numpy")
def _mean(mean, g, more, seen):
    if more == uint64(0):
        return mean
    over = min(float32(seen + more), MEAN_OVER)
    share = min(float32(more) / over, float32(1))
    return _cut(mean + share * (MEAN_SHARE * g - mean))


@njit(nogil=True, cache=True, inline="always", error_model="numpy")
def _ftrl_weight(z, root, l1, base_rate, inverse_alpha):
    size = max(abs(z) - l1, float32(0))
    return _cut(-np.copysign(size, z) / (base_rate + root * inverse_alpha))


@njit(nogil=True, cache=True, inline="always", error_model="numpy")
def _move(rule, zn, ts64, g, count, rates, l1, l2, powers):
    """Apply ``g[:count]`` to the columns ``zn[:2 * count]`` (of Adam also ``ts64``), in place."""
    alpha, beta, inverse_alpha, momentum, memory = rates[0], rates[1], rates[4], rates[6], rates[7]
    one = float32(1)
    if rule == 0:
        base_rate = beta * inverse_alpha + l2
        for j in range(count):
            z, n = zn[2 * j], zn[2 * j + 1]
            root = np.sqrt(n)
            w = _ftrl_weight(z, root, l1, base_rate, inverse_alpha)
            more = n + g[j] * g[j]
            zn[2 * j] = z + g[j] - (np.sqrt(more) - root) * inverse_alpha * w
            zn[2 * j + 1] = more
    elif rule == 1:
        for j in range(count):
            w = zn[2 * j]
            more = zn[2 * j + 1] + g[j] * g[j]
            rate = alpha / (beta + np.sqrt(more))
            zn[2 * j] = _shrunk(_cut(w - rate * (g[j] + l2 * w)), rate * l1)
            zn[2 * j + 1] = more
    elif rule == 2:
        if momentum == float32(0):  # the second column stays as it is, as of the embedded kernels
            for j in range(count):
                w = zn[2 * j]
                zn[2 * j] = _shrunk(_cut(w - alpha * (g[j] + l2 * w)), alpha * l1)
        else:
            for j in range(count):
                w = zn[2 * j]
                m = _cut(momentum * zn[2 * j + 1] + (g[j] + l2 * w))
                zn[2 * j] = _shrunk(_cut(w - alpha * m), alpha * l1)
                zn[2 * j + 1] = m
    elif rule == 3:
        ts = ts64.view(np.float32)
        steps = ts64.view(np.uint32)
        last = uint32(powers.shape[0] - 1)
        for j in range(count):
            t = steps[2 * j]
            t += uint32(t < uint32(0xFFFFFFFF))
            known = int64(min(t, last))
            w = zn[2 * j]
            m = momentum * zn[2 * j + 1] + (one - momentum) * g[j]
            s = memory * ts[2 * j + 1] + (one - memory) * (g[j] * g[j])
            rate = alpha / (beta + np.sqrt(s / powers[known, 1]))
            v = _cut(w - rate * (m / powers[known, 0] + l2 * w))
            zn[2 * j] = _shrunk(v, rate * l1)
            zn[2 * j + 1] = m
            steps[2 * j] = t
            ts[2 * j + 1] = s
    else:
        for j in range(count):
            zn[2 * j] = _cut(zn[2 * j] + g[j])
