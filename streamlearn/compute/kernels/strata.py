"""Kernels of ratings that are kept: recorded in buckets of users, arranged in tiles, swept.

A kept rating is one word: item (upper 32 bits), user within its bucket (13 bits), and which
rating and weight it has (19 bits), an index into a table of distinct ones. A *bucket* has the
ratings of ``BUCKET`` users; it is swept tile by tile: a tile is some users (a *block*, whose rows
stay in the second cache) and some items (a *tier*, whose rows stay in the third), and within a tile
the ratings of one item follow one another, so its row stays in the first (Liu, Wang and Smola,
"Fast Differentially Private Matrix Factorization", RecSys 2015, do the same by user). Two ratings
of an item in a row are learned together, by the inner products of three rows: what comes out is
what one after the other would give, but for rounding (``kernels.factor_vectors``).
"""

from __future__ import annotations

import numpy as np
from numba import float32, int64, njit, uint64

from streamlearn.compute.kernels.bits import float_bits
from streamlearn.compute.kernels.factor_vectors import dot, dots, move, move_pair
from streamlearn.compute.kernels.linear import clipped_sigmoid

__all__ = [
    "BUCKET_BITS",
    "CHUNK",
    "CODES_MAX",
    "CODE_BITS",
    "arrange",
    "draw_negatives",
    "label_sums",
    "predict",
    "record",
    "sweep",
    "sweep_clicks",
    "sweep_weighted",
]

BUCKET_BITS = 13
CODE_BITS = 19
CODES_MAX = 1 << CODE_BITS
CHUNK = 512  # ratings that a bucket takes room for at a time: a page of memory

_USER = np.uint64((1 << BUCKET_BITS) - 1)
_CODE = np.uint64((1 << CODE_BITS) - 1)
_MIX = np.uint64(0x9E3779B97F4A7C15)
SCORE_MAX = np.float32(2.0**60)
SQUARES_MAX = np.float32(2.0**100)
PIECE = 4096


@njit(nogil=True, cache=True)
def _code_of(rating, weight, slots, values, state):
    """Return the code of a rating and its weight, a new one where it has none; -1 if all are taken.

    Parameters
    ----------
    slots : int32[2 * CODES_MAX]
        Open addressing: codes plus one.
    values : float32[CODES_MAX, 2]
        Rating and weight by code.
    state : int64[4]
        [2] codes so far.
    """
    low, high = uint64(float_bits(rating)), uint64(float_bits(weight))
    h = (low | (high << uint64(32))) * _MIX
    at = int64((h ^ (h >> uint64(32))) & uint64(slots.shape[0] - 1))
    while slots[at] != 0:
        code = int64(slots[at]) - 1
        if float_bits(values[code, 0]) == low and float_bits(values[code, 1]) == high:
            return code
        at = (at + 1) & (slots.shape[0] - 1)
    code = state[2]
    if code == values.shape[0]:
        return int64(-1)
    values[code, 0], values[code, 1] = rating, weight
    slots[at] = code + 1
    state[2] = code + 1
    return code


@njit(nogil=True, cache=True)
def record(
    pairs, ratings, weights, held, words, free, fills, chunks, next_chunk, owners, slots, values,
    item_counts, state,
):  # fmt: skip
    """Keep ratings ``[state[0], n)`` but for those held out; stop where room is wanted.

    Parameters
    ----------
    pairs : uint32[n, 2]
        Numbers of user and item.
    ratings, weights, held : float32[n], float32[n], uint8[n]
    words : uint64[...]
        Memory of chunks of ``CHUNK`` words.
    free : int64[...]
        Chunks that may be taken: ``free[:state[1]]``, from the end.
    fills, chunks : int64[buckets], int64[buckets]
        Ratings in the last chunk of each bucket, and which that is (-1: none).
    next_chunk : int64[chunks]
        Of each chunk the one that its bucket had before (-1: none); written.
    owners : int32[chunks]
        Bucket of each chunk; written.
    slots, values
        As for :func:`_code_of`.
    item_counts : int64[items]
        Ratings of each item; added to.
    state : int64[4]
        [0] first rating, advanced; [1] free chunks; [2] codes; [3] set to why it stopped: 0 done, 1
        no chunk is free, 2 no code is.
    """
    n = ratings.shape[0]
    i = state[0]
    state[3] = 0
    while i < n:
        if held[i]:
            i += 1
            continue
        user, item = int64(pairs[i, 0]), int64(pairs[i, 1])
        bucket = user >> BUCKET_BITS
        code = _code_of(ratings[i], weights[i], slots, values, state)
        if code < 0:
            state[3] = 2
            break
        if chunks[bucket] < 0 or fills[bucket] == CHUNK:
            if state[1] == 0:
                state[3] = 1
                break
            state[1] -= 1
            chunk = free[state[1]]
            next_chunk[chunk] = chunks[bucket]
            owners[chunk] = bucket
            chunks[bucket], fills[bucket] = chunk, 0
        word = (uint64(item) << uint64(32)) | ((uint64(user) & _USER) << uint64(CODE_BITS))
        words[chunks[bucket] * CHUNK + fills[bucket]] = word | uint64(code)
        fills[bucket] += 1
        item_counts[item] += 1
        i += 1
    state[0] = i


@njit(nogil=True, cache=True)
def _pass(source, n, target, counts, shift, mask):
    """Sort words by some of their bits, stably, into ``target``."""
    counts[:] = 0
    for i in range(n):
        counts[int64((source[i] >> shift) & mask)] += 1
    total = int64(0)
    for c in range(counts.shape[0]):
        more = counts[c]
        counts[c] = total
        total += more
    for i in range(n):
        at = int64((source[i] >> shift) & mask)
        target[counts[at]] = source[i]
        counts[at] += 1


@njit(nogil=True, cache=True)
def _tile(word, blocks_of, classes, stride, tier, tiers, blocks):
    """Return the tile of a word whose item is its place already."""
    place = int64(word >> uint64(32))
    user = int64((word >> uint64(CODE_BITS)) & _USER)
    part, block = blocks_of[user, 0], blocks_of[user, 1]
    kind = place // stride
    within = (place - kind * stride) // tier
    return ((part * classes + kind) * tiers + within) * blocks + block


@njit(nogil=True, cache=True)
def _weave(source, first, end, target):
    """Copy a tile, two ratings of one item and two of the next one by turns."""
    shift = uint64(32)
    at = first
    while at < end:
        one = at
        while at < end and source[at] >> shift == source[one] >> shift:
            at += 1
        middle = at
        while at < end and source[at] >> shift == source[middle] >> shift:
            at += 1
        i, j, o = one, middle, one
        while o < at:
            for _ in range(min(2, middle - i)):
                target[o] = source[i]
                i, o = i + 1, o + 1
            for _ in range(min(2, at - j)):
                target[o] = source[j]
                j, o = j + 1, o + 1


@njit(nogil=True, cache=True)
def arrange(
    words, scratch, n, places, blocks_of, classes, stride, tier, tiers, blocks, weaves, starts
):
    """Arrange a bucket's ratings in tiles; return how many are left, the later of two of a pair.

    Parameters
    ----------
    words, scratch : uint64[>= n], uint64[>= n]
        The ratings, in the order in which they came; arranged in ``words``.
    places : uint32[items]
        Place of each item; of length 0 where words have them already.
    blocks_of : int32[BUCKET, 2]
        Part (of the users, one to a lane) and block of each user.
    classes, stride : int64
        Classes of items (one to a lane at a time), and places of each.
    tier, tiers, blocks : int64
        Places of a tier, tiers of a class, blocks in all.
    weaves : int64
        1: the ratings of two items take turns, two and two. Each step waits for the one before
        where it is of the same item; so two are under way at a time.
    starts : int64[parts * classes + 1]
        Written: where the ratings of each part and class begin.
    """
    for i in range(n):
        word = words[i]
        if places.shape[0] > 0:
            item = places[int64(word >> uint64(32))]
            words[i] = (uint64(item) << uint64(32)) | (word & uint64(0xFFFFFFFF))
    small = np.empty(1 << BUCKET_BITS, np.int64)
    large = np.empty(1 << 16, np.int64)
    _pass(words, n, scratch, small, uint64(CODE_BITS), _USER)
    _pass(scratch, n, words, large, uint64(32), uint64(0xFFFF))
    if classes * stride > 1 << 16:
        _pass(words, n, scratch, large, uint64(48), uint64(0xFFFF))
        words[:n] = scratch[:n]
    # of a pair that stands twice the later one stays: both are neighbours, in the order they came
    left = int64(0)
    pair = uint64(CODE_BITS)
    for i in range(n):
        if i + 1 < n and words[i] >> pair == words[i + 1] >> pair:
            continue
        words[left] = words[i]
        left += 1
    parts = (starts.shape[0] - 1) // classes
    counts = np.zeros(parts * classes * tiers * blocks + 1, np.int64)
    for i in range(left):
        counts[_tile(words[i], blocks_of, classes, stride, tier, tiers, blocks) + 1] += 1
    for c in range(1, counts.shape[0]):
        counts[c] += counts[c - 1]
    for s in range(starts.shape[0]):
        starts[s] = counts[s * tiers * blocks]
    for i in range(left):
        tile = _tile(words[i], blocks_of, classes, stride, tier, tiers, blocks)
        scratch[counts[tile]] = words[i]
        counts[tile] += 1
    if weaves == 0:
        words[:left] = scratch[:left]
        return left
    first = int64(0)
    for tile in range(counts.shape[0] - 1):
        if counts[tile] > first:
            _weave(scratch, first, counts[tile], words)
        first = counts[tile]
    return left


@njit(nogil=True, cache=True)
def draw_negatives(words, n, values, zero, negatives, places, seed, out):
    """Copy a bucket's ratings to ``out``, each above 0 with items drawn by chance; return how many.

    Parameters
    ----------
    words : uint64[>= n]
    values : float32[codes, 2]
    zero : int64[codes]
        By code, the code of a rating of 0 of the same weight.
    negatives : int64
    places : uint32[items]
        Places to draw from.
    seed : uint64
    out : uint64[>= n * (1 + negatives)]
    """
    count = int64(0)
    items = uint64(places.shape[0])
    dice = seed * _MIX + uint64(1)
    for i in range(n):
        word = words[i]
        out[count] = word
        count += 1
        code = int64(word & _CODE)
        if values[code, 0] > float32(0):
            user = word & (_USER << uint64(CODE_BITS))
            for _ in range(negatives):
                dice = (dice ^ (dice >> uint64(31))) * _MIX + uint64(1)
                other = uint64(places[int64(((dice >> uint64(32)) * items) >> uint64(32))])
                if other != word >> uint64(32):
                    out[count] = (other << uint64(32)) | user | uint64(zero[code])
                    count += 1
    return count


@njit(nogil=True, cache=True)
def label_sums(words, first, end, values, sums):
    """Add to ``sums`` what ratings ``[first, end)`` say by themselves.

    Parameters
    ----------
    sums : float64[4]
        Ratings, squared ratings and weights, all weighted but the last; how many.
    """
    counts = np.zeros(values.shape[0], np.int64)
    for i in range(first, end):
        counts[words[i] & _CODE] += 1
    for code in range(values.shape[0]):
        rating, weight = np.float64(values[code, 0]), np.float64(values[code, 1])
        sums[0] += counts[code] * weight * rating
        sums[1] += counts[code] * weight * rating * rating
        sums[2] += counts[code] * weight
    sums[3] += end - first


@njit(nogil=True, cache=True, inline="always", error_model="numpy")
def _sweep(
    weighted, words, first, end, users, items, lines, user_biases, item_biases, values, b0, rates,
    sums,
):  # fmt: skip
    """Learn ratings, as :func:`sweep` says; where ``weighted`` is false all weights are 1."""
    rate = rates[0]
    k = float32(1) - rate * rates[1]
    size = lines << 6
    user_bits, item_bits = uint64(CODE_BITS), uint64(32)
    t = first
    while t < end:
        squares, absolutes, errors = float32(0), float32(0), float32(0)
        stop = min(t + PIECE, end)
        while t < stop:
            word = words[t]
            item = word >> item_bits
            u1 = (word >> user_bits) & _USER
            code = word & _CODE
            r1 = values[code, 0]
            a1 = values[code, 1] if weighted else float32(1)
            q = items + int64(item) * size
            p1 = users + int64(u1) * size
            word = words[min(t + 1, stop - 1)]
            u2 = (word >> user_bits) & _USER
            if t + 1 < stop and word >> item_bits == item and u1 != u2:
                code = word & _CODE
                r2 = values[code, 0]
                a2 = values[code, 1] if weighted else float32(1)
                p2 = users + int64(u2) * size
                s1, s2, s12 = dots(q, p1, p2, lines)
                bias = item_biases[item]
                e1 = r1 - (s1 + bias + user_biases[u1] + b0)
                w1 = a1 * e1
                g1 = rate * w1
                bias = k * bias + g1
                e2 = r2 - (k * s2 + g1 * s12 + bias + user_biases[u2] + b0)
                w2 = a2 * e2
                g2 = rate * w2
                user_biases[u1] = k * user_biases[u1] + g1
                user_biases[u2] = k * user_biases[u2] + g2
                item_biases[item] = k * bias + g2
                move_pair(q, p1, p2, lines, k, g1, g2)
                squares += w1 * e1 + w2 * e2
                absolutes += abs(w1) + abs(w2)
                errors += w1 + w2
                t += 2
                continue
            e1 = r1 - (dot(q, p1, lines) + item_biases[item] + user_biases[u1] + b0)
            w1 = a1 * e1
            g1 = rate * w1
            user_biases[u1] = k * user_biases[u1] + g1
            item_biases[item] = k * item_biases[item] + g1
            move(q, p1, lines, k, g1)
            squares += w1 * e1
            absolutes += abs(w1)
            errors += w1
            t += 1
        if not squares <= SQUARES_MAX:
            return -stop
        sums[0] += squares
        sums[1] += absolutes
        sums[2] += errors
    return end


@njit(nogil=True, cache=True, error_model="numpy")
def sweep(
    words, first, end, users, items, lines, user_biases, item_biases, values, b0, rates, sums
):  # fmt: skip
    """Learn ratings ``[first, end)`` of a bucket by squared loss, in their order; weights are 1.

    Parameters
    ----------
    words : uint64[...]
        Arranged.
    users, items : int64, int64
        Addresses of the factors of the bucket's first user, and of the first item: rows of so many
        64-byte lines.
    user_biases, item_biases : float32[BUCKET], float32[places]
    values : float32[codes, 2]
        Rating and weight by code.
    b0 : float32
    rates : float32[8]
        As for ``kernels.factors.learn``.
    sums : float64[3]
        Added to: squared errors, absolute errors, errors; all weighted.

    Returns
    -------
    int64
        ``end``; or minus the first rating beyond those whose errors are no longer finite: rows may
        hold what is no number then, and nothing more is learned.

    Notes
    -----
    O((end - first) * lines). Errors are summed in float32 over ``PIECE`` ratings, in float64 from
    there on. Indices are unsigned, so that none is taken for one from the end. Looking at each
    score costs a tenth of the time at dim 32, so errors are looked at once a piece.
    """
    return _sweep(
        False, words, first, end, users, items, lines, user_biases, item_biases, values, b0, rates,
        sums,
    )  # fmt: skip


@njit(nogil=True, cache=True, error_model="numpy")
def sweep_weighted(
    words, first, end, users, items, lines, user_biases, item_biases, values, b0, rates, sums
):  # fmt: skip
    """Learn as :func:`sweep` does, each rating by its weight."""
    return _sweep(
        True, words, first, end, users, items, lines, user_biases, item_biases, values, b0, rates,
        sums,
    )  # fmt: skip


@njit(nogil=True, cache=True, error_model="numpy")
def sweep_clicks(
    words, first, end, users, items, lines, user_biases, item_biases, values, b0, rates, scores,
    labels, weights,
):  # fmt: skip
    """Learn ratings ``[first, end)`` of 0 or 1 by logistic loss, in their order.

    Parameters are those of :func:`sweep`, but for

    Parameters
    ----------
    scores, labels, weights : float32[end - first]
        Written: of each rating, its score before it taught.

    Returns
    -------
    int64
        Ratings that taught nothing, as their score was not finite.
    """
    rate = rates[0]
    k = float32(1) - rate * rates[1]
    size = lines << 6
    dropped = int64(0)
    for t in range(first, end):
        word = words[t]
        item = word >> uint64(32)
        user = (word >> uint64(CODE_BITS)) & _USER
        code = word & _CODE
        rating, weight = values[code, 0], values[code, 1]
        q, p = items + int64(item) * size, users + int64(user) * size
        score = dot(q, p, lines) + item_biases[item] + user_biases[user] + b0
        known = abs(score) <= SCORE_MAX
        o = t - first
        scores[o], labels[o], weights[o] = score if known else float32(0), rating, weight
        if not known:
            dropped += 1
            continue
        gain = rate * weight * (rating - clipped_sigmoid(score))
        user_biases[user] = k * user_biases[user] + gain
        item_biases[item] = k * item_biases[item] + gain
        move(q, p, lines, k, gain)
    return dropped


@njit(nogil=True, cache=True, error_model="numpy")
def predict(pairs, users, items, lines, user_biases, item_biases, b0, scores):
    """Score pairs of users and places of items; a negative one is unknown.

    Parameters
    ----------
    pairs : int64[n, 2]
    users, items : int64, int64
        Addresses of the factors of the first user and of the first place.
    scores : float32[n]
        Written.
    """
    size = lines << 6
    for i in range(pairs.shape[0]):
        user, item = pairs[i, 0], pairs[i, 1]
        total = b0
        if user >= 0:
            total += user_biases[user]
        if item >= 0:
            total += item_biases[item]
        if user >= 0 and item >= 0:
            total += dot(users + user * size, items + item * size, lines)
        scores[i] = total
