"""Steps of a worker with matrix factorization: rows are laid out as a table's, and taken back.

A worker learns a minibatch as one process does, a rating after the other, by the very kernel
(``kernels.factors.learn``): on copies of the rows that it pulled, four words each as in a table,
by index, with their factors behind one another in whole lines. A key that no shard has a row of has
no factors that could be pulled, but those that it will have are a function of the key
(``kernels.embeddings.draw``): the worker draws the same.

What goes back is not by how much a row has moved. Several workers that have moved a popular row
from the same place would push it beyond where each of them wants it, and the next ones further
still. A step w = (1 - g c) w + ... with a factor c on the other side forgets a part of what w was,
so a minibatch turns a row w into

    k w + b,    k = exp(-sum of (step (c + l2)))

with c = 1 for a bias and the square of the other row's norm for factors, times the weight of the
rating and, of logistic loss, a quarter. The worker sends k and b = w_new - k w, and the shard does
just that to the row as it is there: w_new if nobody else has changed it; of what others did, the
share k. So rows that are met once in a while add up, those that a minibatch settles are replaced,
and nothing can overshoot. (RMSE of two workers of 4096 ratings, one minibatch late, on half a
million ratings in the order of time: 0.9217, of four 0.9253; adding up all changes 0.986, and not
a number; one worker, nothing late: 0.9176.)
"""

from __future__ import annotations

import numpy as np
from numba import float32, int64, njit, uint8, uint32, uint64

from streamlearn.compute.kernels.embeddings import GRADIENT_MAX, LINE, dim_of, draw
from streamlearn.compute.kernels.factors import ITEM, WHOLE

__all__ = ["keep", "lay_out", "take"]


@njit(nogil=True, cache=True)
def lay_out(
    keys, weights, dims, packed, inverse, bare, dim, layout, scale, used, copies, words, lines,
    before, lengths, item_rows,
):  # fmt: skip
    """Lay rows out that were pulled, as ``kernels.factors.learn`` takes them.

    Parameters
    ----------
    keys, weights, dims : uint64[u], float32[u], int64[u]
        Biases, and how many factors came; 0: none.
    packed : float32[sum of dims]
    inverse : int32[2 * rows]
        Index into ``keys`` of user and item of each rating.
    bare : int64
        1: the first is the constant feature, which has no factors.
    dim, layout, scale
        Factors of a row; ``kernels.embeddings``; new ones are drawn from [-scale, scale).
    used, copies : int64[u] or [0], float32[...]
        Which copy (rows of whole lines) to take where none came; -1, or no entry: none.
    words, lines : uint64[4 * u], float32[...]
        Written: rows, each with a number that says whether it is an item; factors.
    before : float32[u * dim]
        Written: the factors as they are laid out, back to back without what is between rows.
    lengths : int64[u]
        Written: ``dim``, or 0 of rows without: the constant feature, and those that a shard had no
        room for (their bias is not 0, and they have no factors).
    item_rows : uint64[items]
        Written: the items, in the order in which they come.

    Returns
    -------
    int64
        Items.
    """
    columns = words.view(np.float32)
    width = (dim + 15) >> 4 << 4
    o, b = int64(0), int64(0)
    for i in range(keys.shape[0]):
        words[i * 4] = keys[i]
        words[i * 4 + 1] = uint64(0)
        columns[i * 8 + 2] = weights[i]
        words[i * 4 + 2] = uint64(0)
        copied = used[i] if used.shape[0] > 0 else int64(-1)
        new = dims[i] == 0 and copied < 0
        if i < bare or (new and weights[i] != float32(0)):
            words[i * 4 + 3] = uint64(0)
            lengths[i] = 0
            o += dims[i]
            continue
        first = i * width
        row = lines[first : first + width]
        if new:
            row[:] = float32(0)
            draw(lines, first, keys[i], int64(0), dim, layout, scale)
        elif dims[i] == 0:
            row[:] = copies[copied * width : (copied + 1) * width]
        else:
            row[:dim] = packed[o : o + dim]
            row[dim:] = float32(0)
        before[b : b + dim] = row[:dim]
        b += dim
        o += dims[i]
        words[i * 4 + 3] = (uint64(dim) << uint64(48)) | uint64(first >> 4)
        lengths[i] = dim
    items = int64(0)
    for j in range(0, inverse.shape[0], 2):
        user, item = int64(inverse[j]), int64(inverse[j + 1])
        words[user * 4 + 1] |= uint64(1) << uint64(32)
        if words[item * 4 + 1] >> uint64(32) == uint64(0):
            words[item * 4 + 1] |= uint64(ITEM | uint32(1)) << uint64(32)
            item_rows[items] = uint64(item)
            items += 1
    return items


@njit(nogil=True, cache=True)
def _change(now, then):
    change = now - then
    if not abs(change) <= GRADIENT_MAX:
        return float32(0) if np.isnan(change) else np.copysign(GRADIENT_MAX, change)
    return change


@njit(nogil=True, cache=True, error_model="numpy")
def keep(words, lines, inverse, ratings, weights, rates, negatives, items, sums, kept):
    """Write which share k of each row is kept where others have changed it.

    Parameters
    ----------
    words, lines, inverse
        As :func:`lay_out` has them, after the minibatch.
    ratings, weights : float32[rows], float32[rows]
    rates : float32[8]
        Of ``kernels.factors.learn``.
    negatives, items : int64, int64
        Items drawn for each rating above 0, from among so many: the steps with those are taken to
        be spread evenly over them.
    sums : float32[u, 3]
        Scratch.
    kept : uint8[2 * u]
        Written: of the bias and of the factors, 0 (nothing) to 255 (all).
    """
    rate, decay = rates[0], rates[0] * rates[1]
    slope = float32(0.25) if rates[2] > 0 else float32(1)
    u = sums.shape[0]
    squares = float32(0)  # of all items
    for i in range(u):
        word = words[i * 4 + 3]
        first = int64(word & LINE) << 4
        row = lines[first : first + dim_of(word)]
        square = float32(0)
        for c in range(row.shape[0]):
            square += row[c] * row[c]
        sums[i, 0], sums[i, 1], sums[i, 2] = square, float32(0), float32(0)
        if words[i * 4 + 1] >> uint64(63) != uint64(0):
            squares += square
    spread, drawn, drawn_square = float32(negatives) / max(items, 1), float32(0), float32(0)
    for r in range(weights.shape[0]):
        user, item = int64(inverse[2 * r]), int64(inverse[2 * r + 1])
        step = rate * weights[r] * slope
        sums[user, 1] += step + decay
        sums[item, 1] += step + decay
        sums[user, 2] += step * sums[item, 0] + decay
        sums[item, 2] += step * sums[user, 0] + decay
        if negatives > 0 and ratings[r] > float32(0):
            sums[user, 1] += float32(negatives) * (step + decay)
            sums[user, 2] += spread * step * squares + float32(negatives) * decay
            drawn += spread * (step + decay)
            drawn_square += spread * (step * sums[user, 0] + decay)
    for i in range(u):
        if words[i * 4 + 1] >> uint64(63) != uint64(0):
            sums[i, 1] += drawn
            sums[i, 2] += drawn_square
        for j in range(2):
            kept[2 * i + j] = uint8(np.exp(-sums[i, 1 + j]) * WHOLE + float32(0.5))


@njit(nogil=True, cache=True)
def _finite(number):
    if not abs(number) <= GRADIENT_MAX:
        return float32(0) if np.isnan(number) else np.copysign(GRADIENT_MAX, number)
    return number


@njit(nogil=True, cache=True)
def take(words, lines, weights, bare, shares, before, changes, kept, copies):
    """Take what rows have become less what is kept of them; all finite, cut at 2**51.

    Parameters
    ----------
    words, lines, weights, bare
        As :func:`lay_out` has them, after the minibatch.
    shares : uint8[2 * u]
        Of :func:`keep`.
    before : float32[m]
        As :func:`lay_out` wrote it; written: b of the factors.
    changes : float32[u]
        Written, but for the constant feature's: b of the biases.
    kept, copies : int64[u] or [0], float32[...]
        Where to keep a copy of a row's factors; -1, or no entry: nowhere.
    """
    columns = words.view(np.float32)
    o = int64(0)
    for i in range(bare, weights.shape[0]):
        share = float32(shares[2 * i]) / WHOLE
        changes[i] = _finite(columns[i * 8 + 2] - share * weights[i])
        word = words[i * 4 + 3]
        dim = dim_of(word)
        if dim == 0:
            continue
        share = float32(shares[2 * i + 1]) / WHOLE
        width = (dim + 15) >> 4 << 4
        first = int64(word & LINE) << 4
        row, held = lines[first : first + dim], before[o : o + dim]
        for c in range(dim):
            held[c] = _finite(row[c] - share * held[c])
        o += dim
        if kept.shape[0] > 0 and kept[i] >= 0:
            copies[kept[i] * width : (kept[i] + 1) * width] = lines[first : first + width]
