"""Kernels of least squares: the row of a user that fits its own ratings best, items given.

    p = argmin over p of sum of a (r - <p, x>)^2 + l2 a |p|^2,  x = (q_m, 1), r without b_m + b_0

The bias is the last number of p. It is what stochastic gradient descent with this l2 comes to
where items stand still, found by conjugate gradients (Hestenes and Stiefel, 1952).
"""

from __future__ import annotations

import numpy as np
from numba import float32, int64, njit, uint64

__all__ = ["by_user", "fit_users"]

# As ``kernels.strata`` has them.
_USER = np.uint64((1 << 13) - 1)
_CODE_BITS = np.uint64(19)
_CODE = np.uint64((1 << 19) - 1)

# What is left of the gradient where it is small enough: float32 keeps seven digits of a row.
_LEFT = 1e-6


@njit(nogil=True, cache=True)
def by_user(words, n, starts, order):
    """Write where the ratings of each user of a bucket stand, user by user.

    Parameters
    ----------
    words : uint64[>= n]
    starts : int64[BUCKET + 1]
        Written: where each user begins in ``order``.
    order : int64[n]
        Written.
    """
    starts[:] = 0
    for i in range(n):
        starts[int64((words[i] >> _CODE_BITS) & _USER) + 1] += 1
    for u in range(1, starts.shape[0]):
        starts[u] += starts[u - 1]
    at = starts.copy()
    for i in range(n):
        user = int64((words[i] >> _CODE_BITS) & _USER)
        order[at[user]] = i
        at[user] += 1


@njit(nogil=True, cache=True)
def _inner(a, b):
    """Return <a, b>; ``np.dot`` would need SciPy."""
    total = 0.0
    for k in range(a.shape[0]):
        total += a[k] * b[k]
    return total


@njit(nogil=True, cache=True)
def _gradient(words, mine, items, values, p, l2, out):
    """Write half the gradient of the quadratic part at ``p``: sum of a (<p, x> x + l2 p)."""
    dim = p.shape[0] - 1
    out[:] = 0.0
    total = 0.0
    for i in mine:
        item, a = int64(words[i] >> uint64(32)), values[int64(words[i] & _CODE), 1]
        inner = p[dim]
        for k in range(dim):
            inner += p[k] * items[item, k]
        inner *= a
        for k in range(dim):
            out[k] += inner * items[item, k]
        out[dim] += inner
        total += a
    for k in range(dim + 1):
        out[k] += l2 * total * p[k]


@njit(nogil=True, cache=True)
def fit_users(
    words, starts, order, first, end, users, items, user_biases, item_biases, values, b0, dim, l2
):
    """Fit users ``[first, end)`` of a bucket, in place; who has no ratings gets zeros.

    Parameters
    ----------
    words : uint64[...]
    starts, order
        Of :func:`by_user`.
    users, items : float32[BUCKET, >= dim], float32[places, >= dim]
    user_biases, item_biases : float32[BUCKET], float32[places]
    values : float32[codes, 2]
        Rating and weight by code.
    b0 : float32
    dim : int64
    l2 : float

    Notes
    -----
    O(ratings * dim) an iteration, of which there are dim + 1 at most.
    """
    p, residual = np.zeros(dim + 1), np.zeros(dim + 1)
    way, image = np.zeros(dim + 1), np.zeros(dim + 1)
    for user in range(first, end):
        mine = order[starts[user] : starts[user + 1]]
        p[:] = 0.0
        residual[:] = 0.0
        for i in mine:
            item, code = int64(words[i] >> uint64(32)), int64(words[i] & _CODE)
            lacks = values[code, 1] * (values[code, 0] - item_biases[item] - b0)
            for k in range(dim):
                residual[k] += lacks * items[item, k]
            residual[dim] += lacks
        way[:] = residual
        square = _inner(residual, residual)
        least = square * _LEFT**2
        for _ in range(dim + 1):
            if square <= least:
                break
            _gradient(words, mine, items, values, way, l2, image)
            bent = _inner(way, image)
            if bent <= 0.0:
                break
            p += square / bent * way
            residual -= square / bent * image
            before, square = square, _inner(residual, residual)
            way *= square / before
            way += residual
        for k in range(dim):
            users[user, k] = float32(p[k])
        user_biases[user] = float32(p[dim])
