"""Fused kernels of L1 logistic regression on a local table: find, score, learn, insert.

Equations and limits of numbers stand in ``kernels.linear``.

Memory: an example's rows are gathered into small buffers, computed in vector loops over them, and
scattered back, while the rows of the examples ``AHEAD`` further on are prefetched. A key that
stands twice in an example counts twice in the score, and its later occurrence's update wins.

What the three learn kernels do with an example once its rows are found stands in each of them: as
one inlined function it made the hashed kernel 15 % slower.

Lock-free lanes: rows are inserted by compare-and-swap and counted atomically, so several lanes may
run these kernels on one table at once; updates of one row by two lanes at the same moment may then
be lost (Hogwild), rows never are.
"""

from __future__ import annotations

import numpy as np
from numba import float32, int64, njit, uint8, uint32, uint64

from streamlearn.compute.kernels.bits import prefetch
from streamlearn.compute.kernels.linear import (
    AHEAD,
    FAST,
    GRADIENT_MAX,
    LANES,
    buffer_values,
    clipped_sigmoid,
    finite,
    intercept_weight,
    restore_ones,
    teach,
    teach_intercept,
    weigh,
)
from streamlearn.compute.kernels.table import (
    FENCE,
    atomic_add,
    compare_and_swap,
    line_of,
    preserve,
    seek,
)

__all__ = [
    "AHEAD",
    "LANES",
    "learn_exact",
    "learn_hashed",
    "learn_resolved",
    "score_exact",
    "score_hashed",
    "weights_of",
]


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def learn_exact(
    keys, values, indptr, labels, weights, state, words, places, segment_of, inserted, loads,
    limits, intercept, shared, rule, rates, tick, places_of, zn64, zn, x, w, slots, scores, fresh,
    saving, kept, side_lines, side_words, side_count,
):  # fmt: skip
    """Score and learn examples ``state[0]:state[1]`` of a minibatch on the exact table, in place.

    Parameters
    ----------
    keys, values, indptr, labels, weights
        A minibatch: uint64[nnz], float32[nnz] or [0] (all ones), int64[rows + 1], float32[rows],
        float32[rows].
    state : int64[4]
        [0] first example, advanced to the first not learned; [1] end; [2] set to why it stopped:
        0 all learned, 1 a segment wants to grow; [3] set to that segment.
    words, places : uint64[4 * slots], uint64[256, 2]
        The table, see ``kernels.table``.
    segment_of : int32[256]
        Segment by a key's top 8 bits.
    inserted : int64[1]
        Rows inserted; added to.
    loads, limits : int64[segments]
        Rows held by each segment, and the number above which it wants to grow.
    intercept : float32[2]
        The intercept's columns; ``rates[5]`` is 1 where there is one.
    shared : int64
        Not 0: other lanes may learn on this table at the same time. (Atomic instructions drain the
        stores on their way to memory: they cost 60 ns an example where nothing needs them.)
    rule : int64
        0 FTRL, 1 AdaGrad, 2 SGD.
    rates : float32[8]
        alpha, beta, l1, l2, 1 / alpha, intercept (0 or 1).
    tick : uint64
        Low half of the word that is written above the count of every row touched.
    places_of : uint32[nnz]
        Scratch: the line (hashed: the row) of each key, computed when it is prefetched.
    zn64, zn : uint64[m], float32[2 * m]
        Scratch, two views of the same memory; m at least the longest example padded to 8.
    x, w, slots : float32[m], float32[m], int64[m]
        Scratch; ``x`` is all ones where there are no values.
    scores : float32[rows]
        Written: the score (logit) of each example before it taught.
    fresh : uint8[rows]
        Written: how many weights left zero at this example (at most 255).
    saving, kept, side_lines, side_words, side_count
        Copy-on-write of a snapshot's cut (``kernels.table.preserve``) while ``saving`` is not 0;
        the side arrays have room for a line a feature.

    Notes
    -----
    Scores are clipped to +-35 for the gradient. O(nnz). Allocates nothing.
    """
    alpha, beta, l1, l2, inverse_alpha = rates[0], rates[1], rates[2], rates[3], rates[4]
    base_rate = beta * inverse_alpha + l2
    base = int64(words.ctypes.data)
    loads_at = int64(loads.ctypes.data)
    inserted_at = int64(inserted.ctypes.data)
    first, end = state[0], state[1]
    hinted = first
    for r in range(first, end):
        until = min(r + AHEAD, end - 1)
        while hinted <= until:
            for j in range(indptr[hinted], indptr[hinted + 1]):
                line = line_of(keys[j], places)
                places_of[j] = uint32(line)
                prefetch(base + (line << 6))
            hinted += 1
        o = indptr[r]
        m = indptr[r + 1] - o
        grow = int64(-1)
        for j in range(m):
            key = keys[o + j]
            line = int64(places_of[o + j])
            # both slots of the line at once: which of the two it is is a coin toss, a branch would
            # miss
            second = int64(words[line * 8 + 4] == key)
            slot = line * 2 + second
            if second | int64(words[line * 8] == key) == 0:
                slot = seek(words, key, line)
            while slot < 0:
                slot = ~slot
                segment = int64(segment_of[int64(key >> uint64(56))])
                if words[slot * 4] == FENCE:  # this example has taught nothing yet
                    state[0] = r
                    state[2] = 1
                    state[3] = segment
                    return
                if saving != 0:
                    preserve(words, slot >> 1, kept, side_lines, side_words, side_count)
                if shared == 0:
                    words[slot * 4] = key
                    inserted[0] += 1
                    loads[segment] += 1
                    if loads[segment] > limits[segment]:
                        grow = segment
                elif compare_and_swap(base + slot * 32, uint64(0), key) == uint64(0):
                    atomic_add(inserted_at, 1)
                    if atomic_add(loads_at + segment * 8, 1) >= limits[segment]:
                        grow = segment
                else:  # another lane was quicker, with this key or another
                    slot = seek(words, key, line)
            slots[j] = slot
            zn64[j] = words[slot * 4 + 1]
        padded = (m + LANES - 1) & ~(LANES - 1)
        buffer_values(values, o, m, padded, zn64, x)
        score = weigh(rule, zn, x, w, padded, inverse_alpha, base_rate, l1)
        bias = float32(0)
        if rates[5] > float32(0):
            bias = intercept_weight(rule, intercept, beta, inverse_alpha)
            score += bias
        score = finite(score)
        scores[r] = score
        gradient = (clipped_sigmoid(score) - labels[r]) * weights[r]
        gradient = max(min(gradient, GRADIENT_MAX), -GRADIENT_MAX)
        left_zero = teach(rule, zn, x, w, padded, gradient, alpha, inverse_alpha, beta, l1, l2)
        fresh[r] = uint8(min(left_zero, 255))
        if rates[5] > float32(0):
            teach_intercept(rule, intercept, bias, gradient, alpha, inverse_alpha, beta)
        if saving != 0:
            for j in range(m):
                preserve(words, slots[j] >> 1, kept, side_lines, side_words, side_count)
        for j in range(m):
            at = slots[j] * 4
            words[at + 1] = zn64[j]
            words[at + 2] = ((words[at + 2] + uint64(1)) & uint64(0xFFFFFFFF)) | (
                tick << uint64(32)
            )
        restore_ones(values, m, padded, x)
        if grow >= 0:
            state[0] = r + 1
            state[2] = 1
            state[3] = grow
            return
    state[0] = end
    state[2] = 0


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def learn_resolved(
    slots, values, indptr, labels, weights, state, words, intercept, rule, rates, tick, zn64, zn,
    x, w, scores, fresh, saving, kept, side_lines, side_words, side_count,
):  # fmt: skip
    """Score and learn examples ``state[0]:state[1]`` whose rows are known, in place.

    ``slots`` is uint32[nnz], as ``kernels.resolve.resolve`` found them. The rest is as for
    :func:`learn_exact`, which this equals bit for bit.
    """
    alpha, beta, l1, l2, inverse_alpha = rates[0], rates[1], rates[2], rates[3], rates[4]
    base_rate = beta * inverse_alpha + l2
    base = int64(words.ctypes.data)
    first, end = state[0], state[1]
    hinted = first
    for r in range(first, end):
        until = min(r + AHEAD, end - 1)
        while hinted <= until:
            for j in range(indptr[hinted], indptr[hinted + 1]):
                prefetch(base + (int64(slots[j]) << 5))
            hinted += 1
        o = indptr[r]
        m = indptr[r + 1] - o
        for j in range(m):
            zn64[j] = words[int64(slots[o + j]) * 4 + 1]
        padded = (m + LANES - 1) & ~(LANES - 1)
        buffer_values(values, o, m, padded, zn64, x)
        score = weigh(rule, zn, x, w, padded, inverse_alpha, base_rate, l1)
        bias = float32(0)
        if rates[5] > float32(0):
            bias = intercept_weight(rule, intercept, beta, inverse_alpha)
            score += bias
        score = finite(score)
        scores[r] = score
        gradient = (clipped_sigmoid(score) - labels[r]) * weights[r]
        gradient = max(min(gradient, GRADIENT_MAX), -GRADIENT_MAX)
        left_zero = teach(rule, zn, x, w, padded, gradient, alpha, inverse_alpha, beta, l1, l2)
        fresh[r] = uint8(min(left_zero, 255))
        if rates[5] > float32(0):
            teach_intercept(rule, intercept, bias, gradient, alpha, inverse_alpha, beta)
        if saving != 0:
            for j in range(m):
                line = int64(slots[o + j]) >> 1
                preserve(words, line, kept, side_lines, side_words, side_count)
        for j in range(m):
            at = int64(slots[o + j]) * 4
            words[at + 1] = zn64[j]
            words[at + 2] = ((words[at + 2] + uint64(1)) & uint64(0xFFFFFFFF)) | (
                tick << uint64(32)
            )
        restore_ones(values, m, padded, x)
    state[0] = end
    state[2] = 0


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def learn_hashed(
    keys, values, indptr, labels, weights, state, words, shift, intercept, shared, rule, rates,
    tick, places_of, zn64, zn, x, w, slots, scores, fresh,
    saving, kept, side_lines, side_words, side_count,
):  # fmt: skip
    """Score and learn examples ``state[0]:state[1]`` of a minibatch on the hashed table, in place.

    ``words`` is uint64[2 ** bits], two float32 columns a row, no keys; a key's row is its top
    ``bits`` bits (``key >> shift``). The rest is as for :func:`learn_exact`; ``shared``, ``tick``
    and ``slots`` are not looked at.
    """
    alpha, beta, l1, l2, inverse_alpha = rates[0], rates[1], rates[2], rates[3], rates[4]
    base_rate = beta * inverse_alpha + l2
    base = int64(words.ctypes.data)
    first, end = state[0], state[1]
    hinted = first
    for r in range(first, end):
        until = min(r + AHEAD, end - 1)
        while hinted <= until:
            for j in range(indptr[hinted], indptr[hinted + 1]):
                row = int64(keys[j] >> shift)
                places_of[j] = uint32(row)
                prefetch(base + (row << 3))
            hinted += 1
        o = indptr[r]
        m = indptr[r + 1] - o
        for j in range(m):
            zn64[j] = words[int64(places_of[o + j])]
        padded = (m + LANES - 1) & ~(LANES - 1)
        buffer_values(values, o, m, padded, zn64, x)
        score = weigh(rule, zn, x, w, padded, inverse_alpha, base_rate, l1)
        bias = float32(0)
        if rates[5] > float32(0):
            bias = intercept_weight(rule, intercept, beta, inverse_alpha)
            score += bias
        score = finite(score)
        scores[r] = score
        gradient = (clipped_sigmoid(score) - labels[r]) * weights[r]
        gradient = max(min(gradient, GRADIENT_MAX), -GRADIENT_MAX)
        left_zero = teach(rule, zn, x, w, padded, gradient, alpha, inverse_alpha, beta, l1, l2)
        fresh[r] = uint8(min(left_zero, 255))
        if rates[5] > float32(0):
            teach_intercept(rule, intercept, bias, gradient, alpha, inverse_alpha, beta)
        if saving != 0:
            for j in range(m):
                line = int64(places_of[o + j]) >> 3
                preserve(words, line, kept, side_lines, side_words, side_count)
        for j in range(m):
            words[int64(places_of[o + j])] = zn64[j]
        restore_ones(values, m, padded, x)
    state[0] = end
    state[2] = 0


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def score_exact(
    keys, values, indptr, rows, words, places, intercept, rule, rates, places_of, zn64, zn, x, w,
    scores,
):  # fmt: skip
    """Score ``rows`` examples on the exact table without learning; unknown keys weigh 0.

    Parameters are those of :func:`learn_exact`; ``scores`` (float32[rows]) is written.
    """
    beta, l1, inverse_alpha = rates[1], rates[2], rates[4]
    base_rate = beta * inverse_alpha + rates[3]
    base = int64(words.ctypes.data)
    hinted = int64(0)
    for r in range(rows):
        until = min(r + AHEAD, rows - 1)
        while hinted <= until:
            for j in range(indptr[hinted], indptr[hinted + 1]):
                line = line_of(keys[j], places)
                places_of[j] = uint32(line)
                prefetch(base + (line << 6))
            hinted += 1
        o = indptr[r]
        m = indptr[r + 1] - o
        for j in range(m):
            slot = seek(words, keys[o + j], int64(places_of[o + j]))
            zn64[j] = words[slot * 4 + 1] if slot >= 0 else uint64(0)
        padded = (m + LANES - 1) & ~(LANES - 1)
        buffer_values(values, o, m, padded, zn64, x)
        score = weigh(rule, zn, x, w, padded, inverse_alpha, base_rate, l1)
        if rates[5] > float32(0):
            score += intercept_weight(rule, intercept, beta, inverse_alpha)
        scores[r] = finite(score)
        restore_ones(values, m, padded, x)


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def score_hashed(
    keys, values, indptr, rows, words, shift, intercept, rule, rates, places_of, zn64, zn, x, w,
    scores,
):  # fmt: skip
    """Score ``rows`` examples on the hashed table without learning (see :func:`learn_hashed`)."""
    beta, l1, inverse_alpha = rates[1], rates[2], rates[4]
    base_rate = beta * inverse_alpha + rates[3]
    base = int64(words.ctypes.data)
    hinted = int64(0)
    for r in range(rows):
        until = min(r + AHEAD, rows - 1)
        while hinted <= until:
            for j in range(indptr[hinted], indptr[hinted + 1]):
                row = int64(keys[j] >> shift)
                places_of[j] = uint32(row)
                prefetch(base + (row << 3))
            hinted += 1
        o = indptr[r]
        m = indptr[r + 1] - o
        for j in range(m):
            zn64[j] = words[int64(places_of[o + j])]
        padded = (m + LANES - 1) & ~(LANES - 1)
        buffer_values(values, o, m, padded, zn64, x)
        score = weigh(rule, zn, x, w, padded, inverse_alpha, base_rate, l1)
        if rates[5] > float32(0):
            score += intercept_weight(rule, intercept, beta, inverse_alpha)
        scores[r] = finite(score)
        restore_ones(values, m, padded, x)


@njit(nogil=True, cache=True, error_model="numpy")
def weights_of(columns, rule, rates, out):
    """Derive the weight of rows from their two columns.

    Parameters
    ----------
    columns : uint64[n]
        Word 1 of each row: two float32.
    rule, rates
        As for :func:`learn_exact`.
    out : float32[n]
        Written.
    """
    inverse_alpha, l1 = rates[4], rates[2]
    base_rate = rates[1] * inverse_alpha + rates[3]
    zn = columns.view(np.float32)
    if rule == 0:
        for i in range(columns.shape[0]):
            size = max(abs(zn[2 * i]) - l1, float32(0))
            out[i] = -np.copysign(size, zn[2 * i]) / (
                base_rate + np.sqrt(zn[2 * i + 1]) * inverse_alpha
            )
    else:
        for i in range(columns.shape[0]):
            out[i] = zn[2 * i]
