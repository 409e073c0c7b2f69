"""Ratings, as lists and as minibatches, and the slow twin that learns them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tests.reference.tables import minibatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from streamlearn.online.minibatch import Minibatch
    from tests.reference.mf import MfTwin

Rating = tuple[int, int, float, float]


def some_ratings(
    count: int, users: int, items: int, seed: int, *, loss: str = "squared"
) -> list[Rating]:
    """Return (user, item, rating, weight) of a low rank and some noise; some stand out by far."""
    rng = np.random.default_rng(seed)
    keys = rng.integers(1 << 8, 1 << 63, users + items, np.uint64)
    names = (keys << np.uint64(1) | np.uint64(1)).tolist()
    tastes = rng.normal(0, 0.6, (users + items, 3))
    out = []
    for _ in range(count):
        u = int(users * rng.random() ** 1.5)
        m = users + int(items * rng.random() ** 2)
        value = float(tastes[u] @ tastes[m]) + rng.normal(0, 0.3)
        rating = 3.5 + value if loss == "squared" else float(value > 0)
        out.append((names[u], names[m], round(rating, 1), float(rng.choice([1.0, 0.5]))))
    return out


def batch_of(ratings: Sequence[Rating]) -> Minibatch:
    """Return ratings as a minibatch."""
    pairs = [(user, item) for user, item, _, _ in ratings]
    return minibatch(pairs, [one[2] for one in ratings], [one[3] for one in ratings])


def some_batches(
    seed: int, size: int, count: int, *, users: int = 12, items: int = 15, loss: str = "squared"
) -> list[Minibatch]:
    """Return minibatches of so many ratings each."""
    ratings = some_ratings(size * count, users, items, seed, loss=loss)
    return [batch_of(ratings[i * size : (i + 1) * size]) for i in range(count)]


def ratings_of(batch: Minibatch) -> list[Rating]:
    """Return the ratings of a minibatch."""
    pairs = batch.keys[: 2 * batch.rows].reshape(-1, 2).tolist()
    labels, weights = batch.labels[: batch.rows].tolist(), batch.weights[: batch.rows].tolist()
    return [
        (user, item, label, weight)
        for (user, item), label, weight in zip(pairs, labels, weights, strict=True)
    ]


def taught(
    twin: MfTwin, batch: Minibatch, epoch: int = 0, negatives: Sequence[Sequence[int]] | None = None
) -> NDArray[np.float64]:
    """Have a twin learn a minibatch; return the scores before."""
    drawn = negatives or [()] * batch.rows
    scores = [
        twin.learn_one(*rating, epoch, more)
        for rating, more in zip(ratings_of(batch), drawn, strict=True)
    ]
    twin.end_minibatch()
    return np.array(scores, np.float64)
