"""Kernels of biased matrix factorization on a local table: one rating after the other.

Per rating r of weight a, with the rows of its user u and its item m (``kernels.factor_vectors``):

    score = <p_u, q_m> + b_u + b_m + b_0
    e = a (r - score), or a (r - sigmoid(score)) of feedback that is 0 or 1
    p_u = k p_u + g q_m;  q_m = k q_m + g p_u (the old one);  b = k b + g for either bias
    g = rate e;  k = 1 - rate l2

(Koren, Bell and Volinsky, "Matrix Factorization Techniques for Recommender Systems", 2009). b_0 is
the mean of the ratings, or the logit of that: while the first minibatch is learned the mean of
those before, from then on what it was when the minibatch began.

A row has its bias in the first of the two columns of word 1 and a number in the second (as bits;
0: none yet): users and items are numbered from 0 on as they come, an item's number has ``ITEM``
above it. Factors stand in the arena (``kernels.embeddings``), or nowhere where that is full: then a
rating teaches biases alone. A rating whose score is not finite teaches nothing, and is counted.
"""

from __future__ import annotations

import numpy as np
from numba import float32, int64, njit, uint32, uint64

from streamlearn.compute.kernels.bits import apart, prefetch
from streamlearn.compute.kernels.embeddings import COUNT, LINE, dim_of, earn, lines_of
from streamlearn.compute.kernels.factor_vectors import dot, move
from streamlearn.compute.kernels.linear import clipped_sigmoid
from streamlearn.compute.kernels.table import FENCE, line_of, preserve, seek

__all__ = [
    "ITEM",
    "MEAN_OVER",
    "NO_NUMBER",
    "WHOLE",
    "baseline_of",
    "held_out",
    "learn",
    "look_up",
    "ready",
    "score",
]

# Of a number: set for items, clear for users. Numbers stand one higher in a row, since 0 is none.
ITEM = np.uint32(1 << 31)
NO_NUMBER = np.uint32(0xFFFFFFFF)
# b_0 is the mean of the first so many ratings, and forgets from then on.
MEAN_OVER = np.float32(1 << 20)
# Beyond it a probability is no longer told apart from 0 or 1 in float32; also keeps b_0 finite.
RATE_MIN = np.float32(1e-6)
SCORE_MAX = np.float32(2.0**60)

# A share of all, in bytes.
WHOLE = np.float32(255)

# Ratings ahead whose rows' lines are prefetched, and whose factors are.
AHEAD = 12
LEAD = 4

_MIX = np.uint64(0x9E3779B97F4A7C15)


@njit(nogil=True, cache=True, inline="always")
def held_out(user, item, below):
    """Say whether the rating of this user and item is held out: a function of the pair alone.

    Parameters
    ----------
    user, item : uint64
        Keys.
    below : uint64
        2**32 times the share that is.
    """
    h = (user ^ (item * _MIX)) * _MIX
    h = (h ^ (h >> uint64(29))) * _MIX
    return (h >> uint64(32)) < below


@njit(nogil=True, cache=True, inline="always", error_model="numpy")
def baseline_of(mean, logistic):
    """Return b_0 of a mean rating."""
    if logistic == 0:
        return mean
    share = max(min(mean, float32(1) - RATE_MIN), RATE_MIN)
    return np.log(share / (float32(1) - share))


@njit(nogil=True, cache=True)
def _number(words, slot, kind, numbers, item_keys):
    """Give a row the next number, with ``kind`` above it.

    Parameters
    ----------
    kind : uint32
        0 or ``ITEM``.
    numbers : int64[2]
        Users and items so far.
    item_keys : uint64[...]
        By number; written. Room for one more.
    """
    apart()
    which = int64(kind >> uint32(31))
    if which == 1:
        item_keys[numbers[1]] = words[slot * 4]
    numbers[which] += 1
    words[slot * 4 + 1] |= uint64(uint32(numbers[which]) | kind) << uint64(32)


@njit(nogil=True, cache=True)
def _insert(words, key, line, segment_of, inserted, loads, limits, saving, kept, side_lines,
            side_words, side_count, state):  # fmt: skip
    """Insert a key that is missing; return its slot, or -1 where its segment must grow first.

    ``state[2:4]`` says whether, and which segment, wants to grow.
    """
    apart()
    slot = ~seek(words, key, line)
    segment = int64(segment_of[int64(key >> uint64(56))])
    if words[slot * 4] == FENCE:
        state[2], state[3] = 1, segment
        return int64(-1)
    if saving != 0:
        preserve(words, slot >> 1, kept, side_lines, side_words, side_count)
    words[slot * 4] = key
    inserted[0] += 1
    loads[segment] += 1
    if loads[segment] > limits[segment]:
        state[2], state[3] = 1, segment
    return slot


@njit(nogil=True, cache=True)
def _keep(words, slot, lines, vectors_lines, saving, kept, side_lines, side_words, side_count,
          v_saving, v_kept, v_side_lines, v_side_words, v_side_count):  # fmt: skip
    """Keep a row's line and those of its factors for an open cut."""
    apart()
    if saving != 0:
        preserve(words, slot >> 1, kept, side_lines, side_words, side_count)
    if v_saving != 0:
        word = words[slot * 4 + 3]
        if dim_of(word) > 0:
            first = int64(word & LINE)
            for b in range(lines):
                preserve(vectors_lines, first + b, v_kept, v_side_lines, v_side_words, v_side_count)


@njit(nogil=True, cache=True, inline="always", error_model="numpy")
def _score(columns, words, memory, user, item, lines):
    """Return <p, q> + b_u + b_m of two rows, and the addresses of their factors (0: one has none).

    A row may be -1: none.
    """
    total = float32(0)
    p, q = int64(0), int64(0)
    if user >= 0:
        total += columns[user * 8 + 2]
        word = words[user * 4 + 3]
        p = memory + (int64(word & LINE) << 6) if dim_of(word) > 0 else int64(0)
    if item >= 0:
        total += columns[item * 8 + 2]
        word = words[item * 4 + 3]
        q = memory + (int64(word & LINE) << 6) if dim_of(word) > 0 else int64(0)
    if p == 0 or q == 0:
        return total, int64(0), int64(0)
    return total + dot(p, q, lines), p, q


@njit(nogil=True, cache=True, inline="always", error_model="numpy")
def _teach(columns, user, item, p, q, lines, gain, kept):
    """Take one step with two rows."""
    columns[user * 8 + 2] = kept * columns[user * 8 + 2] + gain
    columns[item * 8 + 2] = kept * columns[item * 8 + 2] + gain
    if p != 0:
        move(p, q, lines, kept, gain)


@njit(nogil=True, cache=True, inline="always", error_model="numpy")
def _error(rating, score, logistic):
    return rating - (clipped_sigmoid(score) if logistic != 0 else score)


@njit(nogil=True, cache=True, inline="always", error_model="numpy")
def _finite(score):
    """Return a score that large factors have not made infinite, nor NaN."""
    if not abs(score) <= SCORE_MAX:
        return float32(0) if np.isnan(score) else np.copysign(SCORE_MAX, score)
    return score


@njit(nogil=True, cache=True, error_model="numpy")
def learn(
    keys, ratings, weights, state, words, places, segment_of, inserted, loads, limits, intercept,
    resolved, row_slots, tier_counts, tier_dims, layout, vectors, lines, used, live, room, rates,
    below, negatives, seed, numbers, item_keys, tick, counting, scores, fresh, pairs, held,
    saving, kept, side_lines, side_words, side_count,
    v_saving, v_kept, v_side_lines, v_side_words, v_side_count,
):  # fmt: skip
    """Score and learn ratings ``state[0]:state[1]`` of a minibatch, in place.

    Parameters
    ----------
    keys : uint64[2 * rows]
        User and item of each rating.
    ratings, weights : float32[rows], float32[rows]
        The weight of a rating that is held out is written 0.
    state : int64[8]
        [0] first rating, advanced to the first not learned; [1] end; [2] set to why it stopped: 0
        all learned, 1 a segment wants to grow; [3] set to that segment; [4] ratings that taught
        nothing as their score was not finite, [5] rows that got factors: both added to.
    words, ..., intercept
        The exact table, see ``kernels.fm``; ``intercept`` is the mean rating and of how many.
    resolved : int64
        1: ``row_slots`` (uint32[2 * rows]) are the rows of the keys. 2: and ``item_keys`` are rows,
        too, all of them numbered.
    tier_counts, ..., room
        The embeddings, see ``kernels.embeddings``.
    rates : float32[8]
        [0] step; [1] l2; [2] whether the loss is logistic; [3] scale of new factors; [4] whether
        there is a b_0.
    below : uint64
        See :func:`held_out`.
    negatives, seed : int64, uint64
        Items drawn for each rating above 0, and what chance depends on beside it.
    numbers, item_keys : int64[2], uint64[items + rows]
        Users and items so far, and the keys of the items; added to.
    tick, counting
        As in ``kernels.fm``.
    scores, fresh : float32[rows], uint8[rows]
        Written: the score before teaching; how many rows are new.
    pairs, held : uint32[2 * rows], uint8[rows]
        Written: the numbers of user and item (``ITEM`` taken off), 2**32 - 1 for none; whether the
        rating is held out, so that it taught nothing.
    saving, ..., v_saving, ...
        Copy-on-write of a cut of the table, and of the embeddings.

    Notes
    -----
    Without fast-math outside the vector loops. O(rows * dim * (1 + negatives)).
    """
    columns = words.view(np.float32)
    base, memory = int64(words.ctypes.data), int64(vectors.ctypes.data)
    rate, l2, logistic = rates[0], rates[1], int64(rates[2])
    keep = float32(1) - rate * l2
    row_lines = lines_of(tier_dims[0], layout)
    first, end = state[0], state[1]
    state[2] = 0
    young = intercept[1] == float32(0)
    mean, count = intercept[0], intercept[1]
    b0 = baseline_of(mean, logistic) if rates[4] > 0 else float32(0)
    total, met = 0.0, 0
    hinted = first
    r = first
    while r < end and state[2] == 0:
        until = min(r + AHEAD, end - 1)
        while hinted <= until:
            for j in range(2 * hinted, 2 * hinted + 2):
                if resolved == 0:
                    line = line_of(keys[j], places)
                    row_slots[j] = uint32(line)
                    prefetch(base + (line << 6))
                else:
                    prefetch(base + (int64(row_slots[j]) << 5))
            hinted += 1
        if r + LEAD < end:
            for j in range(2 * (r + LEAD), 2 * (r + LEAD) + 2):
                slot = int64(row_slots[j])
                if resolved == 0:
                    slot = seek(words, keys[j], slot)
                if slot >= 0:
                    address = memory + (int64(words[slot * 4 + 3] & LINE) << 6)
                    for b in range(min(row_lines, int64(16))):
                        prefetch(address + (b << 6))
        user_key, item_key = keys[2 * r], keys[2 * r + 1]
        user, item = int64(row_slots[2 * r]), int64(row_slots[2 * r + 1])
        if resolved == 0:
            user_line, item_line = user, item
            user = seek(words, user_key, user_line)
            if user < 0:
                user = _insert(
                    words, user_key, user_line, segment_of, inserted, loads, limits, saving, kept,
                    side_lines, side_words, side_count, state,
                )  # fmt: skip
                if user < 0:
                    break
            item = seek(words, item_key, item_line)
            if item < 0:
                item = _insert(
                    words, item_key, item_line, segment_of, inserted, loads, limits, saving, kept,
                    side_lines, side_words, side_count, state,
                )  # fmt: skip
                if item < 0:
                    break
        fresh[r] = 0
        held[r] = held_out(user_key, item_key, below)
        if held[r]:
            weights[r] = float32(0)
            scores[r] = _finite(_score(columns, words, memory, user, item, row_lines)[0] + b0)
            pairs[2 * r], pairs[2 * r + 1] = NO_NUMBER, NO_NUMBER
            r += 1
            continue
        for slot in (user, item):
            if saving != 0:
                _keep(
                    words, slot, row_lines, lines, saving, kept, side_lines, side_words,
                    side_count, v_saving, v_kept, v_side_lines, v_side_words, v_side_count,
                )  # fmt: skip
            word = words[slot * 4 + 2]
            seen = min((word & COUNT) + counting, COUNT)
            words[slot * 4 + 2] = seen | (tick << uint64(32))
            if dim_of(words[slot * 4 + 3]) == 0:
                before = words[slot * 4 + 3]
                after = earn(
                    words, slot, max(int64(seen), int64(1)), tier_counts, tier_dims, layout,
                    vectors, used, live, room, rates[3], 0, saving, kept, side_lines, side_words,
                    side_count,
                )  # fmt: skip
                state[5] += int64(after != before)
        if words[user * 4 + 1] >> uint64(32) == uint64(0):
            _number(words, user, uint32(0), numbers, item_keys)
            fresh[r] += 1
        if words[item * 4 + 1] >> uint64(32) == uint64(0):
            _number(words, item, ITEM, numbers, item_keys)
            fresh[r] += 1
        pairs[2 * r] = (words[user * 4 + 1] >> uint64(32)) - uint64(1)
        pairs[2 * r + 1] = ((words[item * 4 + 1] >> uint64(32)) & uint64(~ITEM)) - uint64(1)
        inner, p, q = _score(columns, words, memory, user, item, row_lines)
        scores[r] = _finite(inner + b0)
        rating, weight = ratings[r], weights[r]
        total += rating
        met += 1
        if young and rates[4] > 0:
            count += float32(1)
            mean += (rating - mean) / count
            b0 = baseline_of(mean, logistic)
        e = weight * _error(rating, inner + b0, logistic)
        if not abs(e) <= SCORE_MAX:
            state[4] += 1
            r += 1
            continue
        _teach(columns, user, item, p, q, row_lines, rate * e, keep)
        if negatives > 0 and rating > float32(0):
            dice = (seed + uint64(r)) * _MIX ^ user_key
            for _ in range(negatives):
                dice = (dice ^ (dice >> uint64(31))) * _MIX + uint64(1)
                other = int64(((dice >> uint64(32)) * uint64(numbers[1])) >> uint64(32))
                key = item_keys[other]
                slot = int64(key)
                if resolved < 2:
                    slot = seek(words, key, line_of(key, places))
                if slot < 0 or slot == item:  # forgotten, or the very item
                    continue
                if saving != 0:
                    _keep(
                        words, slot, row_lines, lines, saving, kept, side_lines, side_words,
                        side_count, v_saving, v_kept, v_side_lines, v_side_words, v_side_count,
                    )  # fmt: skip
                inner, p, q = _score(columns, words, memory, user, slot, row_lines)
                met += 1
                if young and rates[4] > 0:
                    count += float32(1)
                    mean -= mean / count
                    b0 = baseline_of(mean, logistic)
                e = weight * _error(float32(0), inner + b0, logistic)
                if abs(e) <= SCORE_MAX:
                    _teach(columns, user, slot, p, q, row_lines, rate * e, keep)
        r += 1
    if rates[4] > 0 and met > 0:
        if young:
            intercept[0], intercept[1] = mean, count
        else:
            count = min(count + float32(met), MEAN_OVER)
            share = min(float32(met) / count, float32(1))
            intercept[0] = mean + share * (float32(total / met) - mean)
            intercept[1] = count
    state[0] = r


@njit(nogil=True, cache=True, error_model="numpy")
def score(keys, rows, words, places, intercept, row_slots, layout, dim, vectors, rates, scores):
    """Score ``rows`` ratings without learning; unknown users and items have neither bias nor row.

    Parameters are those of :func:`learn`; ``dim`` is the factors of a row.
    """
    columns = words.view(np.float32)
    base, memory = int64(words.ctypes.data), int64(vectors.ctypes.data)
    row_lines = lines_of(dim, layout)
    b0 = baseline_of(intercept[0], int64(rates[2])) if rates[4] > 0 else float32(0)
    hinted, ready = int64(0), int64(0)
    for r in range(rows):
        while hinted <= min(r + AHEAD, rows - 1):
            for j in range(2 * hinted, 2 * hinted + 2):
                line = line_of(keys[j], places)
                row_slots[j] = uint32(line)
                prefetch(base + (line << 6))
            hinted += 1
        while ready <= min(r + LEAD, rows - 1):
            for j in range(2 * ready, 2 * ready + 2):
                slot = seek(words, keys[j], int64(row_slots[j]))
                row_slots[j] = uint32(slot) if slot >= 0 else NO_NUMBER
                if slot >= 0:
                    address = memory + (int64(words[slot * 4 + 3] & LINE) << 6)
                    for b in range(min(row_lines, int64(16))):
                        prefetch(address + (b << 6))
            ready += 1
        user, item = int64(row_slots[2 * r]), int64(row_slots[2 * r + 1])
        user = user if user != int64(NO_NUMBER) else int64(-1)
        item = item if item != int64(NO_NUMBER) else int64(-1)
        scores[r] = _finite(_score(columns, words, memory, user, item, row_lines)[0] + b0)


@njit(nogil=True, cache=True)
def look_up(keys, rows, words, places, below, pairs, held):
    """Write the numbers of users and items that a table holds, and what is held out.

    Parameters
    ----------
    keys : uint64[2 * rows]
    words, places
        The table.
    below : uint64
        See :func:`held_out`.
    pairs, held : uint32[2 * rows], uint8[rows]
        Written, as by :func:`learn`; what has no number, too, is ``NO_NUMBER``.

    Returns
    -------
    int64
        How many ratings are not held out, and have a user or an item without a number.
    """
    unknown = int64(0)
    for r in range(rows):
        held[r] = held_out(keys[2 * r], keys[2 * r + 1], below)
        missing = False
        for j in range(2 * r, 2 * r + 2):
            slot = seek(words, keys[j], line_of(keys[j], places))
            number = uint32(0)
            if slot >= 0 and not held[r]:
                number = uint32(words[slot * 4 + 1] >> uint64(32)) & ~ITEM
            pairs[j] = number - uint32(1)  # NO_NUMBER for none
            missing |= number == uint32(0)
        unknown += int64(missing and not held[r])
    return unknown


@njit(nogil=True, cache=True)
def ready(
    words, slots, items, shares, bare, tier_counts, tier_dims, layout, vectors, lines, used, live,
    room, scale, saving, kept, side_lines, side_words, side_count,
    v_saving, v_kept, v_side_lines, v_side_words, v_side_count,
):  # fmt: skip
    """Ready rows of a shard for what a push adds to them, in place; return how many got factors.

    Rows that the push has made are given a number and factors. Of every row so much is kept as the
    push says (``kernels.mf_steps``).

    Parameters
    ----------
    slots : int64[n]
        None negative.
    items : int64[n]
        1 for items, 0 for users: rows of a shard are told apart by their number, and no more.
    shares : uint8[2 * n]
        Of bias and factors, 255: all.
    bare : int64
        1: the first row is the constant feature, which is left as it is.
    tier_counts, ..., scale
        The embeddings, see ``kernels.embeddings``; ``lines`` is ``vectors`` as words. A row that
        was refused factors is given them once there is room.
    saving, ..., v_saving, ...
        Copy-on-write of a cut of the table, and of the embeddings.

    Notes
    -----
    Without fast-math: a log that is replayed gives the same bytes on any CPU. O(n * dim).
    """
    base, columns = int64(words.ctypes.data), words.view(np.float32)
    n = slots.shape[0]
    begun = int64(0)
    for i in range(bare, n):
        prefetch(base + (slots[min(i + AHEAD, n - 1)] << 5))
        at = slots[i] * 4
        if saving != 0:
            preserve(words, slots[i] >> 1, kept, side_lines, side_words, side_count)
        if words[at + 1] >> uint64(32) == uint64(0):
            number = uint32(1) | (ITEM if items[i] != 0 else uint32(0))
            words[at + 1] |= uint64(number) << uint64(32)
        if dim_of(words[at + 3]) == 0:
            after = earn(
                words, slots[i], tier_counts[0] + 1, tier_counts, tier_dims, layout, vectors, used,
                live, room, scale, 0, saving, kept, side_lines, side_words, side_count,
            )  # fmt: skip
            begun += int64(dim_of(after) > 0)
        columns[slots[i] * 8 + 2] *= float32(shares[2 * i]) / WHOLE
        word = words[at + 3]
        first, dim = int64(word & LINE), dim_of(word)
        if dim == 0 or shares[2 * i + 1] == 255:
            continue
        if v_saving != 0:
            for b in range(lines_of(dim, layout)):
                preserve(lines, first + b, v_kept, v_side_lines, v_side_words, v_side_count)
        share = float32(shares[2 * i + 1]) / WHOLE
        row = vectors[first << 4 : (first << 4) + dim]
        for c in range(dim):
            row[c] *= share
    return begun
