"""Progressive validation: sums of losses, and the histogram of logits behind the AUC.

The exponential and the logarithm of logits are polynomials written out here, so that LLVM computes
them for a vector of examples at a time; the sums that follow are in four fixed strands, so that
they are the same bits on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

__all__ = ["logit_loss", "score_logits", "score_ratings"]

_I64 = ir.IntType(64)
_F64 = ir.DoubleType()

# exp(x) = 2**k exp(r), |r| <= ln(2) / 2; the polynomial is minimax there, relative error 1.4e-14.
_LOG2_E = 1.4426950408889634
_LN2_HIGH = 0.6931471803691238  # the first 32 bits of ln 2: k * _LN2_HIGH is exact
_LN2_LOW = 1.9082149292705877e-10
# Added to a small number it leaves the nearest integer in the low bits of the sum.
_ROUND = 6755399441055744.0  # 1.5 * 2**52
_E0, _E1, _E2, _E3, _E4 = (
    1.0000000000000135,
    1.0000000000000013,
    0.4999999999943859,
    0.16666666666615648,
    0.04166666704055191,
)
_E5, _E6, _E7, _E8, _E9 = (
    0.008333333367311603,
    0.0013888801749656543,
    0.0001984119064754424,
    2.4884459751751116e-05,
    2.7632640675430236e-06,
)
# log1p(t) = 2 atanh(u), u = t / (2 + t) in [0, 1/3]; 2 atanh(u) / u by u**2, minimax, relative
# error 7e-14.
_A0, _A1, _A2, _A3 = (
    1.9999999999998737,
    0.6666666668119934,
    0.39999997264242493,
    0.28571624027501186,
)
_A4, _A5, _A6, _A7 = (
    0.22215400180111994,
    0.1831004363876266,
    0.1407075932464363,
    0.20068155694850642,
)
# exp(-700) is still a normal number; a logit beyond it has the loss of 700 added to the rest.
_LOGIT_MAX = 700.0


@intrinsic
def _power_of_two(_context: Any, shifted: Any) -> Any:
    """Return 2**k as float64 for ``shifted = k + _ROUND``, |k| < 1022."""

    def generate(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], _I64)
        biased = builder.shl(builder.add(bits, _I64(1023)), _I64(52))
        return builder.bitcast(biased, _F64)

    return types.float64(types.float64), generate


@njit(nogil=True, cache=True, inline="always")
def _exp_negative(a):
    """Return exp(-a) for 0 <= a <= 700."""
    shifted = _ROUND - a * _LOG2_E
    k = shifted - _ROUND
    r = (-a - k * _LN2_HIGH) - k * _LN2_LOW
    p = _E9
    p = p * r + _E8
    p = p * r + _E7
    p = p * r + _E6
    p = p * r + _E5
    p = p * r + _E4
    p = p * r + _E3
    p = p * r + _E2
    p = p * r + _E1
    p = p * r + _E0
    return p * _power_of_two(shifted)


@njit(nogil=True, cache=True, inline="always", error_model="numpy")
def _log1p(t):
    """Return log(1 + t) for 0 <= t <= 1."""
    u = t / (2.0 + t)
    v = u * u
    p = _A7
    p = p * v + _A6
    p = p * v + _A5
    p = p * v + _A4
    p = p * v + _A3
    p = p * v + _A2
    p = p * v + _A1
    p = p * v + _A0
    return p * u


# error_model: a division that may raise would keep LLVM from computing a vector at a time.
@njit(nogil=True, cache=True, error_model="numpy")
def logit_loss(scores, labels, losses, predictions):
    """Compute logarithmic loss and probability of logits.

    Parameters
    ----------
    scores : float32[n]
        Logits. NaN gives NaN; infinite ones count as +-700 in the exponential and as themselves in
        the loss.
    labels : float32[n]
        0 or 1.
    losses, predictions : float64[n]
        Written.

    Notes
    -----
        loss = log(1 + exp(-|s|)) + max(s, 0) - y s        p = 1 / (1 + exp(-s))

    Neither cancels nor overflows. Relative error of either at most 1e-13 (before y s is
    subtracted). O(n).
    """
    for i in range(scores.size):
        s = float(scores[i])
        t = _exp_negative(min(abs(s), _LOGIT_MAX))  # in this order a NaN passes
        inverse = 1.0 / (1.0 + t)
        predictions[i] = inverse if s >= 0.0 else t * inverse
        # max(s, 0) - y s without 0 * inf: what being on the wrong side of 0 costs
        against = s if labels[i] < 0.5 else -s
        losses[i] = _log1p(t) + max(against, 0.0)


@njit(nogil=True, cache=True)
def score_logits(scores, labels, weights, losses, predictions, sums, histogram, bins, limit):
    """Add a minibatch of scored examples to sums and to the histogram of logits by class, in place.

    Parameters
    ----------
    scores : float32[n]
        Logits before learning.
    labels : float32[n]
        0 or 1.
    weights : float32[n]
        At least 0.
    losses, predictions : float64[>= n]
        Scratch.
    sums : float64[5]
        Weighted sums of loss, label and prediction; sum of weights; number of examples. Updated.
    histogram : float64[2 * bins]
        Weight of the negatives (even) and positives (odd) by bin of the logit. Updated.
    bins : int
        Equal bins over ``[-limit, limit)``; what lies outside is in the first or the last, NaN in
        the first.
    limit : float
        More than 0.

    Notes
    -----
    A minibatch is summed by itself in four strands and then added, so the rounding of a long sum
    grows with the number of minibatches, not of examples. O(n).
    """
    n = scores.size
    logit_loss(scores, labels, losses, predictions)
    scale = bins / (2.0 * limit)
    last = bins - 1.0
    loss0 = loss1 = loss2 = loss3 = 0.0
    label0 = label1 = label2 = label3 = 0.0
    predicted0 = predicted1 = predicted2 = predicted3 = 0.0
    weight0 = weight1 = weight2 = weight3 = 0.0
    whole = n & ~3
    for i in range(0, whole, 4):
        w0 = np.float64(weights[i])
        w1 = np.float64(weights[i + 1])
        w2 = np.float64(weights[i + 2])
        w3 = np.float64(weights[i + 3])
        loss0 += w0 * losses[i]
        loss1 += w1 * losses[i + 1]
        loss2 += w2 * losses[i + 2]
        loss3 += w3 * losses[i + 3]
        label0 += w0 * labels[i]
        label1 += w1 * labels[i + 1]
        label2 += w2 * labels[i + 2]
        label3 += w3 * labels[i + 3]
        predicted0 += w0 * predictions[i]
        predicted1 += w1 * predictions[i + 1]
        predicted2 += w2 * predictions[i + 2]
        predicted3 += w3 * predictions[i + 3]
        weight0 += w0
        weight1 += w1
        weight2 += w2
        weight3 += w3
    for i in range(whole, n):
        w0 = np.float64(weights[i])
        loss0 += w0 * losses[i]
        label0 += w0 * labels[i]
        predicted0 += w0 * predictions[i]
        weight0 += w0
    sums[0] += (loss0 + loss1) + (loss2 + loss3)
    sums[1] += (label0 + label1) + (label2 + label3)
    sums[2] += (predicted0 + predicted1) + (predicted2 + predicted3)
    sums[3] += (weight0 + weight1) + (weight2 + weight3)
    sums[4] += n
    for i in range(n):
        at = (scores[i] + limit) * scale
        # not "at < 0": a NaN must find its way to the first bin, not to an address
        if not at > 0.0:
            at = 0.0
        elif at > last:
            at = last
        side = 1 if labels[i] > 0.5 else 0
        histogram[2 * np.int64(at) + side] += weights[i]


# In strands, as above, the sums would be the same bits everywhere, but LLVM makes no vectors of so
# many: 2.3 ns an example instead of 0.5, where learning a rating takes a dozen.
@njit(nogil=True, cache=True, fastmath={"reassoc"})
def score_ratings(scores, labels, weights, sums):
    """Add a minibatch of predicted ratings to sums, in place.

    Parameters
    ----------
    scores, labels : float32[n]
        Ratings as they were predicted before learning, and as they are.
    weights : float32[n]
        At least 0.
    sums : float64[7]
        Weighted sums of squared errors, absolute errors, ratings, their squares and predictions;
        sum of weights; number of examples. Updated; a NaN or an infinite prediction makes those of
        errors and predictions that, and no others.

    Notes
    -----
        loss = (s - y)^2

    in double precision, where squares of floats are exact. A minibatch is summed by itself, in an
    order that is the compiler's, and then added: the rounding of a long sum grows with the number
    of minibatches, not of examples. O(n).
    """
    loss = absolute = label = squares = prediction = weight = 0.0
    for i in range(scores.size):
        w, s, y = np.float64(weights[i]), np.float64(scores[i]), np.float64(labels[i])
        loss += w * ((s - y) * (s - y))
        absolute += w * abs(s - y)
        label += w * y
        squares += w * (y * y)
        prediction += w * s
        weight += w
    sums[0] += loss
    sums[1] += absolute
    sums[2] += label
    sums[3] += squares
    sums[4] += prediction
    sums[5] += weight
    sums[6] += scores.size
