"""Matrix factorization the slow and obvious way: float64, one rating after the other."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from streamlearn.config import MfConfig
from tests.reference.embeddings import drawn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Factors", "MfTwin"]

MEAN_OVER = 1 << 20


@dataclass
class Factors:
    """A row: bias and factors."""

    bias: float
    factors: NDArray[np.float64]


@dataclass
class MfTwin:
    """Learns ratings by the equations of ``kernels.factors``.

    Attributes
    ----------
    mean, count : float
        Of the ratings so far; b_0 comes from what they were when the minibatch began, but in the
        first one.
    """

    config: MfConfig
    rows: dict[int, Factors] = field(default_factory=dict)
    mean: float = 0.0
    count: float = 0.0
    met: list[float] = field(default_factory=list)
    young: bool = True

    def row(self, key: int) -> Factors:
        """Return a key's row; that of one never met is as it will be drawn, without bias."""
        if key in self.rows:
            return self.rows[key]
        V = drawn(key, 1, 0, self.config.dim, self.config.v_init_scale)[0]
        return Factors(0.0, V.astype(np.float64))

    @property
    def baseline(self) -> float:
        """b_0."""
        if not self.config.intercept:
            return 0.0
        if self.config.loss == "squared":
            return self.mean
        share = min(max(self.mean, 1e-6), 1 - 1e-6)
        return math.log(share / (1 - share))

    def score(self, user: int, item: int) -> float:
        """Return the score of a pair; whoever was never met has neither bias nor factors."""
        total = self.baseline
        known = [self.rows[key] for key in (user, item) if key in self.rows]
        total += sum(row.bias for row in known)
        if len(known) == 2:
            total += float(known[0].factors @ known[1].factors)
        return total

    def learn_one(
        self,
        user: int,
        item: int,
        rating: float,
        weight: float = 1.0,
        epoch: int = 0,
        negatives: Sequence[int] = (),
    ) -> float:
        """Score a rating, then learn it; return the score before.

        ``negatives`` are the items that were drawn for it, which are learned as 0 then.
        """
        score = self._learn(user, item, rating, weight, epoch)
        for other in negatives:
            if other != item:
                self._learn(user, other, 0.0, weight, epoch)
        return score

    def _learn(self, user: int, item: int, rating: float, weight: float, epoch: int) -> float:
        p, q = (self.rows.setdefault(key, self.row(key)) for key in (user, item))
        score = self.score(user, item)
        self.met.append(rating)
        if self.young and self.config.intercept:
            before = self.baseline
            self.count += 1
            self.mean += (rating - self.mean) / self.count
            error = self._error(rating, score - before + self.baseline)
        else:
            error = self._error(rating, score)
        step = self.config.alpha / (epoch + 1) ** self.config.decay
        gain, kept = step * weight * error, 1 - step * self.config.l2
        p.bias, q.bias = kept * p.bias + gain, kept * q.bias + gain
        p.factors, q.factors = (
            kept * p.factors + gain * q.factors,
            kept * q.factors + gain * p.factors,
        )
        return score

    def _error(self, rating: float, score: float) -> float:
        if self.config.loss == "squared":
            return rating - score
        return rating - 1 / (1 + math.exp(-min(max(score, -35), 35)))

    def end_minibatch(self) -> None:
        """Move b_0 on to what the minibatch's ratings say."""
        if not self.young and self.met:
            self.count = min(self.count + len(self.met), MEAN_OVER)
            share = min(len(self.met) / self.count, 1.0)
            self.mean += share * (sum(self.met) / len(self.met) - self.mean)
        self.young = self.young and not self.met
        self.met.clear()
