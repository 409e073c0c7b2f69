"""Steps of a worker with factorization machines: score a minibatch, sum gradients by key.

Embeddings travel back to back, without what lies between their coordinates; a worker lays them out
as a table's memory has them (``streamlearn.embeddings``), with the sums of gradients where the sums
of squares would be. So one line has both, and the vector loops are those of the fused kernels
(``kernels.vectors``, where the equations stand).
"""

from __future__ import annotations

import numpy as np
from numba import float32, int64, njit, uint32, uint64

from streamlearn.compute.kernels.bits import prefetch
from streamlearn.compute.kernels.blocks import sum_blocks, teach_blocks
from streamlearn.compute.kernels.steps import GRADIENT_MAX, SCORE_MAX, cut, finite, sigmoid

__all__ = ["fm_step", "gather", "lay_out", "treat"]

# Examples ahead whose embeddings are prefetched: those of a minibatch are a few megabytes.
AHEAD = 2
_MIX = np.uint64(0x9E3779B97F4A7C15)


@njit(nogil=True, cache=True)
def lay_out(packed, dims, lanes, parts, begin, values, places):
    """Lay embeddings out that travelled back to back, their gradients' sums zero.

    Parameters
    ----------
    packed : float32[sum of dims * parts]
        Of each its coordinates of order 2, then of order 3.
    dims : int64[n]
        0: none.
    lanes, parts : int64
        Coordinates of a block; order - 1.
    begin : int64
        Where in ``values`` the first one goes; not 0.
    values : float32[...]
        Written.
    places : int64[n]
        Written: where in ``values`` each begins; 0 for none.

    Returns
    -------
    int64
        Where the next one would begin.
    """
    step = 2 * parts * lanes
    at = begin
    o = int64(0)
    for i in range(dims.shape[0]):
        dim = dims[i]
        places[i] = at if dim > 0 else int64(0)
        if dim > 0:
            size = (dim + lanes - 1) // lanes * step
            values[at : at + size] = float32(0)
            for part in range(parts):
                done = int64(0)
                target = at + part * 2 * lanes
                while done < dim:
                    m = min(dim - done, lanes)
                    to, source = values[target : target + m], packed[o : o + m]
                    for c in range(m):
                        to[c] = source[c]
                    o += m
                    done += m
                    target += step
            at += size
    return at


@njit(nogil=True, cache=True)
def gather(values, places, dims, lanes, parts, out):
    """Copy the gradients' sums back to back, as :func:`lay_out` takes embeddings; all finite.

    ``out`` is float32[sum of dims * parts]; sums are cut at 2**51.
    """
    step = 2 * parts * lanes
    o = int64(0)
    for i in range(dims.shape[0]):
        dim = dims[i]
        for part in range(parts):
            done = int64(0)
            source = places[i] + part * 2 * lanes + lanes
            while done < dim:
                m = min(dim - done, lanes)
                origin, to = values[source : source + m], out[o : o + m]
                for c in range(m):
                    to[c] = max(min(origin[c], GRADIENT_MAX), -GRADIENT_MAX)
                o += m
                done += m
                source += step


@njit(nogil=True, cache=True)
def treat(gradients, clip, dropout, normalize, seed):
    """Clip a minibatch's gradient of embeddings, drop some of it out, normalise it, in that order.

    Parameters
    ----------
    gradients : float32[n]
        In place.
    clip, dropout : float32
        0: do not.
    normalize : int64
        Not 0: divide by the L2 norm of what is left.
    seed : uint64
        What is dropped out depends on it alone.
    """
    kept = float32(1) - dropout
    total = float32(0)
    for i in range(gradients.shape[0]):
        g = gradients[i]
        if clip > float32(0):
            g = max(min(g, clip), -clip)
        if dropout > float32(0):
            h = (seed + uint64(i)) * _MIX
            h = (h ^ (h >> uint64(32))) * _MIX
            if float32(h >> uint64(40)) * float32(2.0**-24) >= kept:
                g = float32(0)
        gradients[i] = g
        total += g * g
    if normalize != 0 and total > float32(0):
        scale = float32(1) / np.sqrt(total)
        for i in range(gradients.shape[0]):
            gradients[i] *= scale


@njit(nogil=True, cache=True, error_model="numpy")
def fm_step(
    inverse, values, indptr, labels, shares, rows, intercept, weights, places, dims, tier_dims,
    lanes, order, embeddings, addresses, xs, gxs, ends, sums, gradients, scores,
):  # fmt: skip
    """Score examples and sum the gradient of their logloss by key, of weights and embeddings.

    Parameters
    ----------
    inverse, values, indptr, labels, shares, rows, intercept, weights
        As for ``kernels.steps.logistic_step``.
    places, dims : int64[u], int64[u]
        Of :func:`lay_out`; the constant feature has none.
    tier_dims : int64[tiers]
        Lengths that there may be, ascending.
    lanes, order : int64
    embeddings : float32[...]
        Of :func:`lay_out`; the gradients' sums are added to.
    addresses, xs, gxs : int64[m], float32[m], float32[m]
        Scratch; m beyond the longest example.
    ends, sums : int64[tiers], float32[4 * lanes * (blocks + 1)]
        Scratch, see ``kernels.blocks``.
    gradients : float32[u]
        Written: of weights.
    scores : float32[rows]
        Written.

    Returns
    -------
    int64
        Examples whose score was not finite, which teach nothing.

    Notes
    -----
    The order of operations is the same on every run, but embeddings' sums may be reassociated, as
    LLVM likes for the CPU.
    """
    gradients[:] = float32(0)
    plain = values.shape[0] == 0
    memory = int64(embeddings.ctypes.data)
    rows_at, xs_at = int64(addresses.ctypes.data), int64(xs.ctypes.data)
    gxs_at, sums_at = int64(gxs.ctypes.data), int64(sums.ctypes.data)
    tiers = tier_dims.shape[0]
    bias = weights[0] if intercept != 0 else float32(0)
    bias_gradient = float32(0)
    dropped = int64(0)
    for r in range(rows):
        first, end = indptr[r], indptr[r + 1]
        ahead = min(r + AHEAD, rows - 1)
        for j in range(indptr[ahead], indptr[ahead + 1]):
            i = uint32(inverse[j])
            place = memory + (places[i] << 2)
            prefetch(place)
            prefetch(place + 64)
        linear = float32(0)
        n = int64(0)
        for t in range(tiers - 1, -1, -1):
            dim = tier_dims[t]
            for j in range(first, end):
                i = uint32(inverse[j])
                addresses[n] = memory + (places[i] << 2)
                xs[n] = float32(1) if plain else values[j]
                n += int64(dims[i] == dim)
            ends[t] = n
        if plain:
            for j in range(first, end):
                linear += weights[uint32(inverse[j])]
        else:
            for j in range(first, end):
                linear += weights[uint32(inverse[j])] * values[j]
        score = linear + bias
        score += sum_blocks(ends, tier_dims, rows_at, xs_at, lanes, order, sums_at)
        sound = abs(score) <= SCORE_MAX
        score = finite(score)
        scores[r] = score
        if not sound:
            dropped += 1
            continue
        gradient = cut((sigmoid(score) - labels[r]) * shares[r])
        bias_gradient += gradient
        if plain:
            for j in range(first, end):
                gradients[uint32(inverse[j])] += gradient
        else:
            for j in range(first, end):
                gradients[uint32(inverse[j])] += cut(gradient * values[j])
        for k in range(n):
            gxs[k] = cut(gradient * xs[k])
        zero = float32(0)  # rates are the shards' business
        teach_blocks(
            False, ends, tier_dims, rows_at, xs_at, gxs_at, lanes, order, sums, zero, zero, zero
        )
    if intercept != 0:
        gradients[0] += bias_gradient
    for i in range(gradients.shape[0]):
        gradients[i] = cut(gradients[i])
    return dropped
