"""Slow twins of a worker's kernels: distinct keys by a dictionary, steps one feature at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from streamlearn.online.minibatch import Minibatch

SCORE_MAX = 3e38
GRADIENT_MAX = 2.0**51


def distinct(batch: Minibatch, *, intercept: bool) -> tuple[list[int], list[int], list[int]]:
    """Return the distinct keys in order, each feature's index among them, and their counts."""
    keys = batch.keys[: batch.nnz].tolist()
    counts = Counter(keys)
    if intercept:
        counts[1] += batch.rows
    order = sorted({*counts, 1} if intercept else counts)
    place = {key: i for i, key in enumerate(order)}
    return order, [place[key] for key in keys], [counts[key] for key in order]


def logistic(
    batch: Minibatch,
    weights: dict[int, Any],
    *,
    intercept: bool,
    sigmoid: Callable[[Any], Any],
    dtype: type[np.floating] = np.float32,
) -> tuple[list[Any], dict[int, Any]]:
    """Return each example's score and each key's gradient, summed over the minibatch.

    In float32 every sum is made in the order that the kernel's documentation says.
    """
    one, zero = dtype(1), dtype(0)
    scores = []
    gradients = dict.fromkeys(batch.keys[: batch.nnz].tolist(), zero)
    bias_gradient = zero
    with np.errstate(over="ignore", invalid="ignore"):
        for r in range(batch.rows):
            span = range(int(batch.indptr[r]), int(batch.indptr[r + 1]))
            keys = [int(batch.keys[j]) for j in span]
            x = [dtype(batch.values[j]) if batch.has_values else one for j in span]
            sums = [zero] * 4
            for j, (key, value) in enumerate(zip(keys, x, strict=True)):
                sums[j % 4] = sums[j % 4] + dtype(weights[key]) * value
            score = (sums[0] + sums[1]) + (sums[2] + sums[3])
            score = score + (dtype(weights[1]) if intercept else zero)
            score = zero if np.isnan(score) else dtype(min(max(score, -SCORE_MAX), SCORE_MAX))
            scores.append(score)
            gradient = _cut((dtype(sigmoid(score)) - batch.labels[r]) * batch.weights[r], dtype)
            bias_gradient = bias_gradient + gradient
            for key, value in zip(keys, x, strict=True):
                gradients[key] = gradients[key] + _cut(gradient * value, dtype)
    if intercept:
        gradients[1] = gradients.get(1, zero) + bias_gradient
    return scores, {key: _cut(gradient, dtype) for key, gradient in gradients.items()}


def _cut(gradient: Any, dtype: type[np.floating]) -> Any:
    return dtype(min(max(gradient, -GRADIENT_MAX), GRADIENT_MAX))
