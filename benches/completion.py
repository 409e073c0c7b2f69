"""Likelihood of held-out documents by completion: one evaluator for whatever has topics.

A half of each document is observed, that at the even positions of its text (0, 2, ...); by it alone
the document's mixture is estimated, and by the mixture the other half is judged:

    theta_k = (alpha_k + n_k) / sum_j (alpha_j + n_j),
    n_k = sum over observed tokens of theta_k phi_kw / sum_j theta_j phi_jw,

found by repeating it ITERATIONS times from an even mixture. What is said is the
mean of log(sum_k theta_k phi_kw) over the tokens at odd positions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

__all__ = ["ITERATIONS", "log_likelihood"]

ITERATIONS = 50
# How far from one the sum of a topic may be: its words are float32.
SUM_ERROR = 1e-3


def log_likelihood(
    phi: np.ndarray,
    alpha: np.ndarray | float,
    lens: np.ndarray,
    w: np.ndarray,
    iterations: int = ITERATIONS,
) -> float:
    """Return the log-likelihood of a token at an odd position, in nats.

    Parameters
    ----------
    phi : float[K, V]
        Each topic's words; sums of one.
    alpha : float or float[K]
        Prior of a mixture, above zero.
    lens : int32[D]
        Tokens of each document.
    w : int32[N]
        Their words, below V.
    iterations : int

    Raises
    ------
    ValueError
        A topic does not sum to one, a word is not below V, alpha is not above zero, there is
        nothing to judge, or a token is impossible.
    """
    phi = np.asarray(phi)
    topics, words = phi.shape
    prior = np.ascontiguousarray(np.broadcast_to(np.float64(alpha), topics))
    far = np.abs(phi.sum(1, dtype=np.float64) - 1).max()
    if not far <= SUM_ERROR:
        raise ValueError(f"a topic's words sum to {1 + far:g} or {1 - far:g}; expected 1")
    if not prior.min() > 0:
        raise ValueError(f"alpha is {prior.min():g}; expected more than zero")
    if len(w) and not 0 <= w.min() <= w.max() < words:
        raise ValueError(f"words from {w.min()} to {w.max()}; expected them below {words}")
    judged = int((lens // 2).sum())
    if judged == 0:
        raise ValueError("no document has two tokens; expected one at least")
    by_word = np.ascontiguousarray(phi.T, np.float32)
    total = _complete(by_word, prior, lens.astype(np.int64), w.astype(np.int64), iterations)
    if not np.isfinite(total):
        raise ValueError("a held-out token is impossible by all topics; expected smoothed ones")
    return float(total) / judged


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "arcp"})
def _complete(phi: Any, alpha: Any, lens: Any, w: Any, iterations: int) -> float:
    """Return the sum of the log-likelihoods of the tokens at odd positions.

    ``phi`` is float32[V, K]. Mixtures are float32, but for the prior; sums of logarithms float64.
    O(iterations N K).
    """
    topics = phi.shape[1]
    theta = np.empty(topics, np.float32)
    n = np.empty(topics, np.float32)
    prior = alpha.astype(np.float32)
    total = 0.0
    start = 0
    for length in lens:
        end = start + length
        theta[:] = np.float32(1.0 / topics)
        sum_of_theta = np.float32(alpha.sum() + (length + 1) // 2)
        for _ in range(iterations):
            n[:] = 0
            for i in range(start, end, 2):
                row = phi[w[i]]
                p = np.float32(0)
                for k in range(topics):
                    p += theta[k] * row[k]
                if p > 0:
                    share = np.float32(1) / p
                    for k in range(topics):
                        n[k] += theta[k] * row[k] * share
            for k in range(topics):
                theta[k] = (prior[k] + n[k]) / sum_of_theta
        for i in range(start + 1, end, 2):
            row = phi[w[i]]
            p = np.float32(0)
            for k in range(topics):
                p += theta[k] * row[k]
            total += np.log(np.float64(p))
        start = end
    return total
