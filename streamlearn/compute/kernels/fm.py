"""Fused kernels of factorization machines on a local table: find, score, learn, insert, admit.

Per example, over its features (x values, V embeddings; ``kernels.linear`` has the weights' part,
``kernels.vectors`` that of the embeddings, and their equations):

    score = w_0 + sum w_i x_i + 1/2 sum_f [(sum V_if x_i)^2 - sum (V_if x_i)^2] [+ third order]

Three stages follow one another through a minibatch: the rows of the example ``AHEAD`` further on
are prefetched; those of the one ``LEAD`` further on are found (inserted where they are missing) and
their embeddings prefetched; and the example itself is scored and learned. So an example waits for
memory hardly ever, though each of its features has lines in two places.

A feature earns its embedding, or a longer one, once an example has raised its count above a tier's
and left its weight other than zero. On a hashed table every row has one, which is drawn when its
weight leaves zero (or when the row is met, where embeddings count without a weight, too).

A key that stands twice in an example counts twice in the score; its later occurrence's update of
the weight wins, and its embedding takes two steps. An example whose score is not finite teaches
nothing, and is counted.

Lock-free lanes: as in ``kernels.logistic``; embeddings are given by compare-and-swap.
"""

from __future__ import annotations

import numpy as np
from numba import float32, int64, njit, uint8, uint32, uint64

from streamlearn.compute.kernels.bits import apart, prefetch
from streamlearn.compute.kernels.blocks import sum_blocks, teach_blocks
from streamlearn.compute.kernels.embeddings import COUNT, LINE, dim_of, draw, earn, lines_of
from streamlearn.compute.kernels.linear import (
    AHEAD,
    FAST,
    GRADIENT_MAX,
    LANES,
    SCORE_MAX,
    buffer_values,
    clipped_sigmoid,
    finite,
    intercept_weight,
    restore_ones,
    teach,
    teach_intercept,
    weigh,
)
from streamlearn.compute.kernels.steps import cut
from streamlearn.compute.kernels.table import (
    FENCE,
    atomic_add,
    compare_and_swap,
    line_of,
    preserve,
    seek,
)

__all__ = ["EXACT", "HASHED", "LEAD", "RESOLVED", "learn", "score"]

# How the rows of keys are known: looked up and inserted, given, or the keys' top bits.
EXACT = 0
RESOLVED = 1
HASHED = 2
# Examples ahead whose embeddings are prefetched. (3 made no difference but for what it drove out of
# the first cache: 39 features of two lines each are 5 KB.)
LEAD = 1

_MIX = np.uint64(0x9E3779B97F4A7C15)


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def _teach_treated(n, addresses, xs, gxs, seeds, dims, layout, sums, values, base, v_rates):
    """Take one step whose gradient is clipped, dropped out and normalised first, in that order.

    Parameters
    ----------
    n : int64
        Embeddings.
    addresses, xs, gxs : int64[>= n], float32[>= n], float32[>= n]
    seeds, dims : uint64[>= n], int64[>= n]
        What chance depends on for each, and its coordinates.
    sums : float32[...]
        4 * lanes for each block.
    values, base : float32[...], int64
        The embeddings' memory, and its address.
    v_rates : float32[8]
        rate, beta, l2, scale, clip (0: none), dropout, whether to normalise.
    """
    apart()
    lanes, parts, step = layout[0], layout[1] - 1, layout[2] >> 2
    clip = v_rates[4] if v_rates[4] > float32(0) else GRADIENT_MAX
    kept = float32(1) - v_rates[5]
    total = int64(0)
    for k in range(n):
        total += dims[k] * parts
    slopes = np.empty(total, np.float32)
    norm = float32(0)
    o = int64(0)
    for k in range(n):
        first = (addresses[k] - base) >> 2
        for part in range(parts):
            for c in range(dims[k]):
                block, lane = c // lanes, c % lanes
                s = block * 4 * lanes + part * 2 * lanes + lane
                a = values[first + block * step + part * 2 * lanes + lane] * xs[k]
                slope = sums[s] - a
                if part == 1:
                    inner = float32(0.5) * (sums[s] * sums[s] - sums[s + lanes])
                    slope = inner + a * (a - sums[s])
                # of fewer features nothing is left but what rounding leaves, which has no direction
                if n < part + 2:
                    slope = float32(0)
                g = max(min(gxs[k] * slope, clip), -clip)
                if kept < float32(1):
                    h = (seeds[k] + uint64(part * 1024 + c)) * _MIX
                    h = (h ^ (h >> uint64(32))) * _MIX
                    if float32(h >> uint64(40)) * float32(2.0**-24) >= kept:
                        g = float32(0)
                slopes[o] = g
                norm += g * g
                o += 1
    scale = float32(1)
    if v_rates[6] > float32(0) and norm > float32(0):
        scale = float32(1) / np.sqrt(norm)
    o = int64(0)
    for k in range(n):
        first = (addresses[k] - base) >> 2
        for part in range(parts):
            for c in range(dims[k]):
                block, lane = c // lanes, c % lanes
                at = first + block * step + part * 2 * lanes + lane
                g = slopes[o] * scale + v_rates[2] * values[at]
                squares = values[at + lanes] + g * g
                values[at + lanes] = squares
                values[at] -= v_rates[0] * g / (v_rates[1] + np.sqrt(squares))
                o += 1


@njit(nogil=True, cache=True, inline="always")
def _collect_exact(m, slots, words, base, x, w, tier_dims, tiers, layout, addresses, xs, ends):
    """List the embeddings that an example uses, the longest first; return how many.

    ``slots`` are rows of the exact table; -1 for none. ``ends[t]`` is set to how many of the list
    are of tier t or longer.
    """
    used = int64(0)
    for t in range(tiers - 1, -1, -1):
        dim = tier_dims[t]
        for j in range(m):
            slot = slots[j]
            word = words[max(slot, int64(0)) * 4 + 3]
            addresses[used] = base + (int64(word & LINE) << 6)
            xs[used] = x[j]
            there = int64(dim_of(word) == dim) & int64(slot >= 0)
            used += there & (int64(w[j] != float32(0)) | int64(layout[5] == 0))
        ends[t] = used
    return used


@njit(nogil=True, cache=True, inline="always")
def _collect_hashed(m, slots, base, x, w, zn64, row_bytes, layout, addresses, xs, ends):
    """List the embeddings that an example uses of a hashed table; return how many.

    Rows that are new (their columns zero) have none yet.
    """
    used = int64(0)
    for j in range(m):
        addresses[used] = base + slots[j] * row_bytes
        xs[used] = x[j]
        used += int64(w[j] != float32(0)) | (int64(layout[5] == 0) & int64(zn64[j] != uint64(0)))
    ends[ends.shape[0] - 1] = used
    return used


@njit(nogil=True, cache=True)
def _owners(m, slots, words, hashed, w, tier_dims, layout, owners, dims):
    """List the features of an example whose embeddings were collected, and their coordinates."""
    apart()
    used = int64(0)
    tiers = tier_dims.shape[0]
    for t in range(tiers - 1, -1, -1):
        for j in range(m):
            there = hashed and t == tiers - 1
            if not hashed:
                there = dim_of(words[slots[j] * 4 + 3]) == tier_dims[t]
            if there and (w[j] != float32(0) or layout[5] == 0):
                owners[used] = j
                dims[used] = tier_dims[t]
                used += 1


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def learn(
    keys, values, indptr, labels, weights, state, mode, words, places, segment_of, inserted, loads,
    limits, shift, intercept, shared, row_slots, tier_counts, tier_dims, layout, vectors, lines,
    used, live, room, rates, v_rates, tick, counting, lead, zn64, zn, x, w, slots, addresses, xs,
    gxs, owners, dims, seeds, ends, sums, scores, fresh,
    saving, kept, side_lines, side_words, side_count,
    v_saving, v_kept, v_side_lines, v_side_words, v_side_count,
):  # fmt: skip
    """Score and learn examples ``state[0]:state[1]`` of a minibatch, in place.

    Parameters
    ----------
    keys, values, indptr, labels, weights
        A minibatch: uint64[nnz], float32[nnz] or [0] (all ones), int64[rows + 1], float32[rows],
        float32[rows].
    state : int64[8]
        [0] first example, advanced to the first not learned; [1] end; [2] set to why it stopped:
        0 all learned, 1 a segment wants to grow; [3] set to that segment; [4] examples that taught
        nothing as their score was not finite, [5] embeddings given: both added to.
    mode : int64
        :data:`EXACT`, :data:`RESOLVED` or :data:`HASHED`.
    words, places, segment_of, inserted, loads, limits
        The exact table, as for ``kernels.logistic.learn_exact``; of a hashed one ``words``, two
        float32 columns a row.
    shift : uint64
        Hashed: a key's row is ``key >> shift``.
    intercept : float32[2]
    shared : int64
        Not 0: other lanes may learn on this table at the same time.
    row_slots : uint32[nnz]
        Row of each key: given where ``mode`` says so, else scratch.
    tier_counts, tier_dims : int64[tiers]
        Ascending. Of a hashed table there is one.
    layout, vectors, lines, used, live, room
        The embeddings, see ``kernels.embeddings``; of a hashed table those of all rows one behind
        the other. ``lines`` is the memory of ``vectors`` as uint64.
    rates : float32[8]
        As for ``learn_exact``; the rule is FTRL.
    v_rates : float32[8]
        Of embeddings: rate, beta, l2, scale of new ones, clip, dropout, whether to normalise.
    tick : uint64
        Low half of the word that is written above the count of every row touched.
    counting : uint64
        1: rows' counts are raised; 0: they stay.
    lead : int64
        Examples ahead whose rows are found and inserted: ``LEAD``, or 0 where what a full table
        forgets must not depend on where minibatches end.
    zn64, zn : uint64[p], float32[2 * p]
        Scratch, two views of the same memory; p at least the longest example padded to 8.
    x, w, slots, addresses, xs, gxs, owners, dims, seeds
        Scratch for the features of an example: float32[p], float32[p], int64[p], int64[p],
        float32[p], float32[p], int64[p], int64[p], uint64[p]; ``x`` is all ones where there are no
        values.
    ends, sums : int64[tiers], float32[4 * lanes * (blocks + 1)]
        Scratch, for the blocks of the longest embedding and one more.
    scores : float32[rows]
        Written: the score (logit) of each example before it taught.
    fresh : uint8[rows]
        Written: how many weights left zero at this example (at most 255).
    saving, ..., v_saving, ...
        Copy-on-write of a cut of the table, and of the embeddings (``kernels.table.preserve``).

    Notes
    -----
    O(nnz * dim * order).
    """
    alpha, beta, l1, l2, inverse_alpha = rates[0], rates[1], rates[2], rates[3], rates[4]
    base_rate = beta * inverse_alpha + l2
    hashed = mode == HASHED
    base, memory = int64(words.ctypes.data), int64(vectors.ctypes.data)
    loads_at, inserted_at = int64(loads.ctypes.data), int64(inserted.ctypes.data)
    addresses_at, xs_at = int64(addresses.ctypes.data), int64(xs.ctypes.data)
    gxs_at, sums_at = int64(gxs.ctypes.data), int64(sums.ctypes.data)
    columns = words.view(np.float32)
    tiers = tier_dims.shape[0]
    longest, least = tier_dims[tiers - 1], tier_counts[0]
    always = layout[5] == 0
    row_lines = lines_of(longest, layout)
    treated = (v_rates[4] > 0) | (v_rates[5] > 0) | (v_rates[6] > 0)
    first, end = state[0], state[1]
    hinted, ready = first, first
    grow = int64(-1)
    r = first
    while r < end:
        # --- rows that will be found: ask for their lines
        until = min(r + lead + AHEAD, end - 1)
        while hinted <= until:
            if mode == EXACT:
                for j in range(indptr[hinted], indptr[hinted + 1]):
                    line = line_of(keys[j], places)
                    row_slots[j] = uint32(line)
                    prefetch(base + (line << 6))
            elif mode == RESOLVED:
                for j in range(indptr[hinted], indptr[hinted + 1]):
                    prefetch(base + (int64(row_slots[j]) << 5))
            else:
                for j in range(indptr[hinted], indptr[hinted + 1]):
                    row = int64(keys[j] >> shift)
                    row_slots[j] = uint32(row)
                    prefetch(base + (row << 3))
            hinted += 1
        # --- rows that will be used: find them, and ask for their embeddings
        until = min(r + lead, end - 1)
        while ready <= until and grow < 0:
            if mode == EXACT:
                for j in range(indptr[ready], indptr[ready + 1]):
                    key = keys[j]
                    line = int64(row_slots[j])
                    second = int64(words[line * 8 + 4] == key)
                    slot = line * 2 + second
                    if second | int64(words[line * 8] == key) == 0:
                        slot = seek(words, key, line)
                    while slot < 0:
                        slot = ~slot
                        segment = int64(segment_of[int64(key >> uint64(56))])
                        if words[slot * 4] == FENCE:
                            grow = segment
                            break
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
                    row_slots[j] = uint32(slot)
                    if grow >= 0 and words[slot * 4] == FENCE:
                        break
                if grow >= 0 and words[slot * 4] == FENCE:
                    break  # this example waits until there is room; those before it are learned
            for j in range(indptr[ready], indptr[ready + 1]):
                # Without a branch, which would be guessed wrongly: what is not used is asked for at
                # the first row, which is never given.
                slot = int64(row_slots[j])
                there = row_lines
                if hashed:
                    uses = (abs(columns[slot * 2]) > l1) | always
                    address = memory + slot * (row_lines << 6) * int64(uses)
                else:
                    word = words[slot * 4 + 3]
                    uses = (abs(columns[slot * 8 + 2]) > l1) | always
                    address = memory + (int64(word & LINE) << 6) * int64(uses)
                    if tiers > 1:
                        there = lines_of(dim_of(word), layout)
                # (a loop over all lines took a tenth of all time, at two of them)
                prefetch(address)
                if there > 1:
                    prefetch(address + 64)
                for b in range(2, there):
                    prefetch(address + (b << 6))
            ready += 1
        if r >= ready:
            break
        # --- the example
        o = indptr[r]
        m = indptr[r + 1] - o
        if hashed:
            for j in range(m):
                slot = int64(row_slots[o + j])
                slots[j] = slot
                zn64[j] = words[slot]
        else:
            for j in range(m):
                slot = int64(row_slots[o + j])
                slots[j] = slot
                zn64[j] = words[slot * 4 + 1]
        padded = (m + LANES - 1) & ~(LANES - 1)
        buffer_values(values, o, m, padded, zn64, x)
        linear = weigh(0, zn, x, w, padded, inverse_alpha, base_rate, l1)
        if hashed:
            n_used = _collect_hashed(
                m, slots, memory, x, w, zn64, row_lines << 6, layout, addresses, xs, ends
            )
        else:
            n_used = _collect_exact(
                m, slots, words, memory, x, w, tier_dims, tiers, layout, addresses, xs, ends
            )
        score = linear + sum_blocks(
            ends, tier_dims, addresses_at, xs_at, layout[0], layout[1], sums_at
        )
        bias = float32(0)
        if rates[5] > float32(0):
            bias = intercept_weight(0, intercept, beta, inverse_alpha)
            score += bias
        sound = abs(score) <= SCORE_MAX
        score = finite(score)
        scores[r] = score
        left_zero = 0
        if sound:
            gradient = (clipped_sigmoid(score) - labels[r]) * weights[r]
            gradient = cut(gradient)
            if treated or v_saving != 0:
                _owners(m, slots, words, hashed, w, tier_dims, layout, owners, dims)
            if v_saving != 0:
                for k in range(n_used):
                    line = (addresses[k] - memory) >> 6
                    for b in range(lines_of(dims[k], layout)):
                        preserve(lines, line + b, v_kept, v_side_lines, v_side_words, v_side_count)
            for k in range(n_used):
                gxs[k] = cut(gradient * xs[k])
            if treated:
                # of what the example is, and, where counts are kept, of how often it came
                chance = uint64(0)
                for j in range(m):
                    chance += keys[o + j]
                for k in range(n_used):
                    j = owners[k]
                    seen = uint64(0) if hashed else words[slots[j] * 4 + 2] & COUNT
                    seeds[k] = ((chance ^ keys[o + j]) + seen) * _MIX
                _teach_treated(
                    n_used, addresses, xs, gxs, seeds, dims, layout, sums, vectors, memory, v_rates
                )
            else:
                teach_blocks(
                    True, ends, tier_dims, addresses_at, xs_at, gxs_at, layout[0], layout[1], sums,
                    v_rates[0], v_rates[1], v_rates[2],
                )  # fmt: skip
            left_zero = teach(0, zn, x, w, padded, gradient, alpha, inverse_alpha, beta, l1, l2)
            if rates[5] > float32(0):
                teach_intercept(0, intercept, bias, gradient, alpha, inverse_alpha, beta)
        else:
            state[4] += 1
        fresh[r] = uint8(min(left_zero, 255))
        if hashed:
            if saving != 0:
                for j in range(m):
                    preserve(words, slots[j] >> 3, kept, side_lines, side_words, side_count)
            for j in range(m):
                words[slots[j]] = zn64[j]
            if left_zero > 0 or always:
                for j in range(m):
                    if w[j] == float32(0) and (abs(zn[2 * j]) > l1 or always):
                        line = slots[j] * row_lines
                        at = line << 4
                        # all zero, unless it has been drawn
                        if vectors[at] == float32(0) and vectors[at + layout[0]] == float32(0):
                            if v_saving != 0:
                                for b in range(row_lines):
                                    preserve(
                                        lines, line + b, v_kept, v_side_lines, v_side_words,
                                        v_side_count,
                                    )  # fmt: skip
                            draw(vectors, at, uint64(slots[j]), 0, longest, layout, v_rates[3])
        else:
            if saving != 0:
                for j in range(m):
                    preserve(words, slots[j] >> 1, kept, side_lines, side_words, side_count)
            for j in range(m):
                at = slots[j] * 4
                count = min((words[at + 2] & COUNT) + counting, COUNT)
                words[at + 1] = zn64[j]
                words[at + 2] = count | (tick << uint64(32))
                seeds[j] = count
            # An embedding is earned as a count comes to exceed a tier's, or a weight leaves zero.
            due = int64(0)
            for j in range(m):
                left = (w[j] == float32(0)) & (abs(zn[2 * j]) > l1)
                due += int64(left & (int64(seeds[j]) > least))
            for t in range(tiers):
                passed = uint64(tier_counts[t] + 1)
                for j in range(m):
                    due += int64(seeds[j] == passed)
            if due > 0:
                for j in range(m):
                    at = slots[j] * 4
                    word = words[at + 3]
                    count_now = int64(seeds[j])
                    beyond = count_now > least and dim_of(word) < longest
                    if beyond and abs(zn[2 * j]) > l1:
                        after = earn(
                            words, slots[j], count_now, tier_counts, tier_dims, layout, vectors,
                            used, live, room, v_rates[3], shared, saving, kept, side_lines,
                            side_words, side_count,
                        )  # fmt: skip
                        if after != word:
                            state[5] += 1
        restore_ones(values, m, padded, x)
        r += 1
    state[0] = r
    state[2] = 1 if grow >= 0 else 0
    state[3] = grow


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def score(
    keys, values, indptr, rows, mode, words, places, shift, intercept, row_slots, tier_dims, layout,
    vectors, rates, zn64, zn, x, w, slots, addresses, xs, ends, sums, scores,
):  # fmt: skip
    """Score ``rows`` examples without learning; unknown keys have no weight and no embedding.

    Parameters are those of :func:`learn`; ``mode`` is :data:`EXACT` or :data:`HASHED`.
    """
    beta, l1, inverse_alpha = rates[1], rates[2], rates[4]
    base_rate = beta * inverse_alpha + rates[3]
    hashed = mode == HASHED
    base, memory = int64(words.ctypes.data), int64(vectors.ctypes.data)
    addresses_at, xs_at = int64(addresses.ctypes.data), int64(xs.ctypes.data)
    sums_at = int64(sums.ctypes.data)
    tiers = tier_dims.shape[0]
    longest = tier_dims[tiers - 1]
    row_lines = lines_of(longest, layout)
    hinted, ready = int64(0), int64(0)
    for r in range(rows):
        until = min(r + LEAD + AHEAD, rows - 1)
        while hinted <= until:
            for j in range(indptr[hinted], indptr[hinted + 1]):
                if hashed:
                    row = int64(keys[j] >> shift)
                    row_slots[j] = uint32(row)
                    prefetch(base + (row << 3))
                else:
                    line = line_of(keys[j], places)
                    row_slots[j] = uint32(line)
                    prefetch(base + (line << 6))
            hinted += 1
        until = min(r + LEAD, rows - 1)
        while ready <= until:
            for j in range(indptr[ready], indptr[ready + 1]):
                if hashed:
                    address = memory + int64(row_slots[j]) * (row_lines << 6)
                    for b in range(row_lines):
                        prefetch(address + (b << 6))
                else:
                    slot = seek(words, keys[j], int64(row_slots[j]))
                    # none stands beyond all slots that a table may have
                    row_slots[j] = uint32(slot) if slot >= 0 else uint32(0xFFFFFFFF)
                    if slot >= 0:
                        word = words[slot * 4 + 3]
                        address = memory + (int64(word & LINE) << 6)
                        for b in range(lines_of(dim_of(word), layout)):
                            prefetch(address + (b << 6))
            ready += 1
        o = indptr[r]
        m = indptr[r + 1] - o
        if hashed:
            for j in range(m):
                slots[j] = int64(row_slots[o + j])
                zn64[j] = words[slots[j]]
        else:
            for j in range(m):
                slot = int64(row_slots[o + j])
                slot = slot if slot != int64(0xFFFFFFFF) else int64(-1)
                slots[j] = slot
                zn64[j] = words[slot * 4 + 1] if slot >= 0 else uint64(0)
        padded = (m + LANES - 1) & ~(LANES - 1)
        buffer_values(values, o, m, padded, zn64, x)
        linear = weigh(0, zn, x, w, padded, inverse_alpha, base_rate, l1)
        if hashed:
            _collect_hashed(
                m, slots, memory, x, w, zn64, row_lines << 6, layout, addresses, xs, ends
            )
        else:
            _collect_exact(
                m, slots, words, memory, x, w, tier_dims, tiers, layout, addresses, xs, ends
            )
        total = linear + sum_blocks(
            ends, tier_dims, addresses_at, xs_at, layout[0], layout[1], sums_at
        )
        if rates[5] > float32(0):
            total += intercept_weight(0, intercept, beta, inverse_alpha)
        scores[r] = finite(total)
        restore_ones(values, m, padded, x)
