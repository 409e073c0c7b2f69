"""One step of the fixed point that fits alpha, as sums that add up over minibatches.

Minka ("Estimating a Dirichlet distribution", 2000): alpha_k becomes alpha_k times a_k / b, with

    a_k = sum over documents of digamma(D_dk + alpha_k) - digamma(alpha_k)
    b   = sum over documents of digamma(D_d + A) - digamma(A),   A the sum of all alpha

``kernels.topic_priors`` fits it to tallies of all documents at once.
"""

from __future__ import annotations

import numpy as np
from numba import float64, int64, njit, uint32, uint64

from streamlearn.compute.kernels.topic_priors import digamma

__all__ = ["step_alpha"]


@njit(nogil=True, cache=True)
def step_alpha(lists, heads, lengths, alpha, out):
    """Add the sums of documents.

    Parameters
    ----------
    lists, heads
        See ``kernels.esca.list_topics``.
    lengths : int32[documents]
    alpha : float64[topics]
    out : float64[topics + 1]
        Added to: a by topic, then b.
    """
    topics = alpha.shape[0]
    none = np.empty(topics, np.float64)
    total = 0.0
    for k in range(topics):
        none[k] = digamma(alpha[k])
        total += alpha[k]
    base = digamma(total)
    for d in range(lengths.shape[0]):
        if lengths[d] == 0:
            continue
        out[topics] += digamma(float64(lengths[d]) + total) - base
        first = int64(heads[d] & uint64(0xFFFFFFFF))
        for j in range(first, first + int64(heads[d] >> uint64(32))):
            count = lists[j] & uint32(0xFFFF)
            if count > 0:
                k = int64(lists[j] >> uint32(16))
                out[k] += digamma(float64(count) + alpha[k]) - none[k]
