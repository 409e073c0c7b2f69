"""Kernels that keep what encoding lost of the gradients of embeddings, by key."""

from __future__ import annotations

from numba import int64, njit

from streamlearn.compute.kernels.bits import prefetch

__all__ = ["add", "keep"]

# Keys ahead whose entry is prefetched.
AHEAD = 8


@njit(nogil=True, cache=True)
def add(held, lengths, residuals, shift, keys, dims, parts, gradients):
    """Add to each gradient what is held for its key, in place.

    Parameters
    ----------
    held : uint64[entries]
        Key of each entry, 0 where there is none; a power of two of them.
    lengths : int64[entries]
        Coordinates that were sent then; of another length nothing is added.
    residuals : float32[entries, width]
    shift : uint64
        A key's entry is ``key >> shift``.
    keys, dims : uint64[k], int64[k]
        And how many coordinates of each are sent; 0: none.
    parts : int64
        Vectors of so many coordinates: order - 1.
    gradients : float32[sum of dims * parts]
    """
    base, stride = int64(residuals.ctypes.data), residuals.shape[1] * 4
    n = keys.shape[0]
    o = int64(0)
    for i in range(n):
        ahead = min(i + AHEAD, n - 1)
        if dims[ahead] > 0:
            prefetch(base + int64(keys[ahead] >> shift) * stride)
        m = dims[i] * parts
        if m > 0:
            at = int64(keys[i] >> shift)
            if held[at] == keys[i] and lengths[at] == dims[i]:
                row, target = residuals[at], gradients[o : o + m]
                for c in range(m):
                    target[c] += row[c]
            o += m


@njit(nogil=True, cache=True)
def keep(held, lengths, residuals, shift, keys, dims, parts, wanted, decoded):
    """Hold ``wanted - decoded`` for each key whose embedding is sent; as :func:`add`.

    An entry of another key is taken from it, and what it held is lost. (An embedding that has grown
    begins with nothing held.)
    """
    o = int64(0)
    for i in range(keys.shape[0]):
        m = dims[i] * parts
        if m > 0:
            at = int64(keys[i] >> shift)
            held[at] = keys[i]
            lengths[at] = dims[i]
            row = residuals[at]
            for c in range(m):
                row[c] = wanted[o + c] - decoded[o + c]
            o += m
