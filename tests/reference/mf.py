"""Slow twin of matrix factorization: float64, one rating at a time, rows in a dictionary.

    score = <p_u, q_m> + b_u + b_m + b_0
    e = weight (rating - score), or weight (rating - sigmoid(score)) of feedback that is 0 or 1
    p_u, q_m = k p_u + g q_m, k q_m + g p_u;  b = k b + g        (all at once)
    g = step e;  k = 1 - step l2;  step = alpha / t ** decay in pass t

(Koren, Bell and Volinsky, "Matrix Factorization Techniques for Recommender Systems", 2009). b_0 is
the mean of the ratings, or the logit of that: in the first minibatch that of those before (and this
one, where its error is taken), from then on what it was when the minibatch began.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamlearn.config import MfConfig
from streamlearn.online.minibatch import Minibatch
from tests.reference.fm import WORD, sigmoid, v_init

Array = NDArray[np.float64]

MIX = 0x9E3779B97F4A7C15
MEAN_OVER = 1 << 20
RATE_MIN = 1e-6
ERROR_MAX = 2.0**60


def held_out(user: int, item: int, share: float) -> bool:
    """Return whether a rating is never learned, where that share of all is held out."""
    h = (user ^ item * MIX & WORD) * MIX & WORD
    h = (h ^ h >> 29) * MIX & WORD
    return h >> 32 < round(share * 2.0**32)


@dataclass
class Row:
    """A user or an item: factors float64[dim], bias, and how often it was met."""

    factors: Array
    bias: float = 0.0
    count: int = 0


class Factorization:
    """Biased matrix factorization by stochastic gradient descent.

    Parameters
    ----------
    config : MfConfig
        ``negatives`` are not drawn here: they are handed in.

    Attributes
    ----------
    users, items : dict of int to Row
        By key, in the order in which they were met.
    mean, seen : float, int
        Of the ratings that were met, and how many those were, at most 2**20.
    epoch : int
        Passes that are done.
    dropped : int
        Ratings whose score was not finite, which taught nothing.
    """

    def __init__(self, config: MfConfig) -> None:
        self.config = config
        self.users: dict[int, Row] = {}
        self.items: dict[int, Row] = {}
        self.mean, self.seen = 0.0, 0
        self.epoch = 0
        self.dropped = 0
        self._met: list[float] = []  # ratings of the minibatch that is being learned

    @property
    def baseline(self) -> float:
        """b_0."""
        if not self.config.intercept:
            return 0.0
        mean = self.mean
        if not self.seen and self._met:
            mean = float(np.mean(self._met))
        if self.config.loss == "squared":
            return mean
        share = max(min(mean, 1 - RATE_MIN), RATE_MIN)
        return float(np.log(share / (1 - share)))

    def score(self, user: int, item: int) -> float:
        """Return a score; a user or an item that was never met says nothing."""
        u, m = self.users.get(user), self.items.get(item)
        total = self.baseline + (u.bias if u else 0.0) + (m.bias if m else 0.0)
        return total + float(u.factors @ m.factors) if u and m else total

    def learn(
        self,
        ratings: Sequence[tuple[int, int, float, float]],
        negatives: Sequence[Sequence[int]] | None = None,
    ) -> Array:
        """Learn a minibatch of (user, item, rating, weight), in order; return the scores before.

        Parameters
        ----------
        negatives : sequence of sequences of int, optional
            Of each rating, the items that were drawn for it, all of them met before.
        """
        drawn = negatives or [()] * len(ratings)
        scores = [self.learn_one(*one, more) for one, more in zip(ratings, drawn, strict=True)]
        self.end_minibatch()
        return np.array(scores, np.float64)

    def learn_one(
        self,
        user: int,
        item: int,
        rating: float,
        weight: float = 1.0,
        negatives: Sequence[int] = (),
    ) -> float:
        """Learn a rating of the minibatch; return its score before."""
        if held_out(user, item, self.config.held_out):
            return self.score(user, item)
        for key, rows in ((user, self.users), (item, self.items)):
            row = rows.setdefault(key, self._new(key))
            row.count += self.epoch == 0
        score = self.score(user, item)
        self._met.append(rating)
        if not self._teach(user, item, rating, weight):
            self.dropped += 1
            return score
        for other in negatives:
            if other != item:
                self._met.append(0.0)
                self._teach(user, other, 0.0, weight)
        return score

    def end_minibatch(self) -> None:
        """Have the ratings of the minibatch count for the mean."""
        met, self._met = self._met, []
        if met:
            self.seen = min(self.seen + len(met), MEAN_OVER)
            self.mean += min(len(met) / self.seen, 1.0) * (float(np.mean(met)) - self.mean)

    def _teach(self, user: int, item: int, rating: float, weight: float) -> bool:
        """Take one step; False where the score is not finite, and none is taken."""
        u, m = self.users[user], self.items[item]
        score = self.score(user, item)
        expected = score if self.config.loss == "squared" else sigmoid(score)
        e = weight * (rating - expected)
        if not abs(e) <= ERROR_MAX:
            return False
        step = self.config.alpha / (self.epoch + 1) ** self.config.decay
        g, k = step * e, 1 - step * self.config.l2
        u.factors, m.factors = k * u.factors + g * m.factors, k * m.factors + g * u.factors
        u.bias, m.bias = k * u.bias + g, k * m.bias + g
        return True

    def _new(self, key: int) -> Row:
        scale = self.config.v_init_scale
        return Row(np.array([v_init(key, 0, f, scale) for f in range(self.config.dim)]))


def ratings_of(batch: Minibatch) -> list[tuple[int, int, float, float]]:
    """Return the ratings of a minibatch, as :meth:`Factorization.learn` takes them."""
    pairs = batch.keys[: 2 * batch.rows].reshape(-1, 2).tolist()
    labels, weights = batch.labels[: batch.rows].tolist(), batch.weights[: batch.rows].tolist()
    return [(*pair, *more) for pair, *more in zip(pairs, labels, weights, strict=True)]


def some_ratings(
    count: int, users: int, items: int, seed: int, *, loss: str = "squared"
) -> list[tuple[int, int, float, float]]:
    """Return ratings that have a low rank and some noise, of users and items of any popularity."""
    rng = np.random.default_rng(seed)
    keys = rng.integers(1 << 8, 1 << 63, users + items, np.uint64)
    keys = (keys << np.uint64(1) | np.uint64(1)).tolist()
    tastes = rng.normal(0, 0.6, (users + items, 3))
    out = []
    for _ in range(count):
        u = int(users * rng.random() ** 1.5)
        m = int(items * rng.random() ** 2)
        value = float(tastes[u] @ tastes[users + m]) + rng.normal(0, 0.3)
        rating = 3.5 + value if loss == "squared" else float(value > 0)
        out.append((keys[u], keys[users + m], round(rating, 1), float(rng.choice([1.0, 0.5]))))
    return out
