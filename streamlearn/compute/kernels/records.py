"""Small kernels over records and minibatches that every format shares."""

from __future__ import annotations

import numpy as np
from numba import float32, njit, uint64

__all__ = ["find_newline", "last_newline", "subsample_negatives"]


@njit(nogil=True, cache=True)
def last_newline(buffer, start, end):
    """Return the index of the last newline in ``buffer[start:end]`` (uint8), -1 if it has none."""
    at = end - 1
    while at >= start:
        if buffer[at] == 10:
            return at
        at -= 1
    return -1


@njit(nogil=True, cache=True)
def find_newline(buffer, start, end):
    """Return the index of the first newline in ``buffer[start:end]`` (uint8), ``end`` if none."""
    at = start
    while at < end and buffer[at] != 10:
        at += 1
    return at


@njit(nogil=True, cache=True)
def subsample_negatives(
    keys, values, fields, dense, indptr, labels, weights, lines, state, offset, rate
):
    """Keep each negative with probability ``rate`` and weigh it ``1 / rate``; in place, order kept.

    Whether an example stays is a function of its record's byte offset alone, so a run that is
    resumed keeps the same ones.

    Parameters
    ----------
    keys, values, fields, dense, indptr, labels, weights, lines
        A minibatch (``online.minibatch``); compacted. Values, fields and dense may have no length.
    state : int64[8]
        [0] examples, [1] features; updated. [4] examples dropped; added to.
    offset : int64
        Plain byte offset in the object of index 0 of the block's buffer.
    rate : float
        0 < rate < 1.
    """
    bound = uint64(rate * 4294967296.0)
    rows = state[0]
    stay = 0
    at = 0
    for r in range(rows):
        first, end = indptr[r], indptr[r + 1]
        weight = weights[r]
        if labels[r] <= float32(0):
            h = uint64(lines[r] + offset) * uint64(0x9E3779B97F4A7C15)
            h ^= h >> uint64(29)
            h *= uint64(0xBF58476D1CE4E5B9)
            if (h >> uint64(32)) >= bound:
                continue
            weight = np.float32(weight / rate)
        for j in range(first, end):
            keys[at] = keys[j]
            if values.shape[0] > 0:
                values[at] = values[j]
            if fields.shape[0] > 0:
                fields[at] = fields[j]
            at += 1
        if stay < r:
            for i in range(dense.shape[1]):
                dense[stay, i] = dense[r, i]
        labels[stay] = labels[r]
        weights[stay] = weight
        lines[stay] = lines[r]
        stay += 1
        indptr[stay] = at
    # weights of rows that a later minibatch fills anew are ones again where the format has none
    for r in range(stay, rows):
        weights[r] = float32(1)
    state[0] = stay
    state[1] = at
    state[4] += rows - stay
