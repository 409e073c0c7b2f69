"""Embeddings of one example, block by block: sums, steps and slopes over all that it uses.

An example's embeddings are listed by tier, the longest first: ``ends[t]`` of the list are of tier t
or longer, so those that have block b are a prefix of it. What ``kernels.vectors`` computes is for
whole blocks; an embedding that ends within a block which longer ones fill must stay zero behind its
end, and gets sums that are zero there.
"""

from __future__ import annotations

from numba import float32, int64, njit

from streamlearn.compute.kernels.bits import apart
from streamlearn.compute.kernels.vectors import (
    second_8,
    second_16,
    slopes_8,
    slopes_16,
    teach_8,
    teach_16,
    third_8,
    third_16,
)

__all__ = ["sum_blocks", "teach_blocks"]


@njit(nogil=True, cache=True, inline="always")
def sum_blocks(ends, tier_dims, rows, xs, lanes, order, sums):
    """Sum the embeddings of an example; return what they add to its score.

    Parameters
    ----------
    ends : int64[tiers]
    tier_dims : int64[tiers]
        Ascending.
    rows, xs : int64
        Addresses of int64[n], the embeddings' addresses, and float32[n], the features' values.
    lanes, order : int64
    sums : int64
        Address of 4 * lanes floats for each block of the longest embedding, which are written.
    """
    value = float32(0)
    block_bytes, size = 8 * (order - 1) * lanes, 16 * lanes
    b = int64(0)
    for t in range(tier_dims.shape[0]):
        n = ends[t]
        while b * lanes < tier_dims[t]:
            block, out = b * block_bytes, sums + b * size
            if lanes == 16:
                value += second_16(rows, xs, n, block, out)
                if order == 3:
                    value += third_16(rows, xs, n, block, out + 128)
            else:
                value += second_8(rows, xs, n, block, out)
                if order == 3:
                    value += third_8(rows, xs, n, block, out + 64)
            b += 1
    return value


@njit(nogil=True, cache=True)
def _cut_off(sums, first, dim, lanes):
    """Copy the sums of the block that ends at ``dim`` behind those of all, zero from there on."""
    apart()
    block = (dim - 1) // lanes
    for part in range(4):
        for c in range(lanes):
            at = block * 4 * lanes + part * lanes + c
            inside = block * lanes + c < dim
            sums[first + part * lanes + c] = sums[at] if inside else float32(0)


@njit(nogil=True, cache=True, inline="always")
def teach_blocks(
    steps, ends, tier_dims, rows, xs, gxs, lanes, order, sums, rate, beta, l2
):  # fmt: skip
    """Take one step with the embeddings of an example, in place, or sum their gradient.

    Parameters
    ----------
    steps : bool
        False: the gradient is added to what stands where the sums of squares would.
    ends, tier_dims, rows, xs, lanes, order
        As for :func:`sum_blocks`.
    gxs : int64
        Address of float32[n]: the gradient of the score times each value.
    sums : float32[4 * lanes * (blocks + 1)]
        Of :func:`sum_blocks`; its last block is scratch.
    rate, beta, l2 : float32
        Of AdaGrad, see ``kernels.vectors``.
    """
    block_bytes, size = 8 * (order - 1) * lanes, 16 * lanes
    at = int64(sums.ctypes.data)
    last = sums.shape[0] - 4 * lanes
    first = int64(0)
    tiers = tier_dims.shape[0]
    for t in range(tiers - 1, -1, -1):
        n = ends[t] - first
        partial = t < tiers - 1 and tier_dims[t] % lanes != 0
        if partial:
            _cut_off(sums, last, tier_dims[t], lanes)
        for b in range((tier_dims[t] + lanes - 1) // lanes):
            ends_here = partial and (b + 1) * lanes > tier_dims[t]
            s = at + (last * 4 if ends_here else b * size)
            third = s + 8 * lanes if order == 3 else int64(0)
            block, r, x, g = b * block_bytes, rows + first * 8, xs + first * 4, gxs + first * 4
            if steps:
                if lanes == 16:
                    teach_16(r, x, g, n, block, s, third, rate, beta, l2)
                else:
                    teach_8(r, x, g, n, block, s, third, rate, beta, l2)
                continue
            # Of fewer features than interact nothing is left but what rounding leaves: not to be
            # taken for a gradient by who divides by its norm.
            low = int64(0)
            while tier_dims[low] <= b * lanes:
                low += 1
            if ends[low] < 2:
                continue
            if ends[low] < 3:
                third = int64(0)
            if lanes == 16:
                slopes_16(r, x, g, n, block, s, third, rate, beta, l2)
            else:
                slopes_8(r, x, g, n, block, s, third, rate, beta, l2)
        first = ends[t]
