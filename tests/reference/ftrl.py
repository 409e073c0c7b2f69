"""Slow twin of the logistic kernels: one example, one coordinate at a time, rows in a dictionary.

In float64 it is the equations; in float32 it is what the kernels may differ from by reassociated
sums and the compiler's ``exp`` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

RULES = ("ftrl", "adagrad", "sgd")
SCORE_MAX = 35


class LogisticTwin:
    """L1 logistic regression by FTRL-proximal, AdaGrad or SGD.

    Parameters
    ----------
    rule : {"ftrl", "adagrad", "sgd"}
    alpha, beta, l1, l2 : float
        As the kernels have them.
    intercept : bool
        Whether there is a coordinate of value 1 with neither penalty.
    dtype : type
        Of every intermediate result.

    Attributes
    ----------
    rows : dict of int to [first, second]
        Columns of each key: z and n (FTRL), w and n (AdaGrad), w and 0 (SGD).
    counts : dict of int to int
        Examples in which each key stood.
    fresh : int
        Weights that left zero at the last example, the intercept aside.
    """

    def __init__(
        self,
        rule: str = "ftrl",
        alpha: float = 0.1,
        beta: float = 1.0,
        l1: float = 1.0,
        l2: float = 0.0,
        intercept: bool = True,
        dtype: type[np.floating] = np.float64,
    ) -> None:
        if rule not in RULES:
            raise ValueError(f"rule {rule!r} is none of {RULES}")
        self.rule = rule
        self.dtype = dtype
        self.alpha, self.beta, self.l1, self.l2 = (dtype(v) for v in (alpha, beta, l1, l2))
        self.intercept = intercept
        self.rows: dict[int, list[np.floating]] = {}
        self.counts: dict[int, int] = {}
        self.bias = [dtype(0), dtype(0)]
        self.fresh = 0

    def weight(self, key: int) -> float:
        """Return the weight of a key, 0 where it was never learned."""
        return float(self._weight(self.rows.get(key, self._new()), self.l1, self.l2))

    def intercept_weight(self) -> float:
        return float(self._weight(self.bias, self.dtype(0), self.dtype(0)))

    def score(self, keys: Sequence[int], values: Sequence[float] | None = None) -> float:
        """Return the score (logit) of an example; a key that stands twice counts twice."""
        x = self._values(keys, values)
        total = self.dtype(self.intercept_weight()) if self.intercept else self.dtype(0)
        for key, value in zip(keys, x, strict=True):
            total = total + self.dtype(self.weight(key)) * value
        return float(total)

    def probability(self, keys: Sequence[int], values: Sequence[float] | None = None) -> float:
        return float(self._sigmoid(self.dtype(self.score(keys, values))))

    def learn(
        self,
        keys: Sequence[int],
        values: Sequence[float] | None = None,
        label: float = 1.0,
        weight: float = 1.0,
    ) -> float:
        """Score an example, then learn it; return the score before.

        All coordinates move from the columns as they were before the example: of a key that stands
        twice, the later occurrence's update wins.
        """
        x = self._values(keys, values)
        score = self.score(keys, values)
        gradient = (self._sigmoid(self.dtype(score)) - self.dtype(label)) * self.dtype(weight)
        before = [list(self.rows.get(key, self._new())) for key in keys]
        self.fresh = 0
        for key, row, value in zip(keys, before, x, strict=True):
            moved = self._moved(row, gradient * value, self.l1, self.l2)
            was, now = (self._weight(r, self.l1, self.l2) for r in (row, moved))
            self.fresh += int(was == 0 and now != 0)
            self.rows[key] = moved
            self.counts[key] = self.counts.get(key, 0) + 1
        if self.intercept:
            self.bias = self._moved(self.bias, gradient, self.dtype(0), self.dtype(0))
        return score

    def learn_all(
        self,
        examples: Iterable[tuple[Sequence[int], Sequence[float] | None]],
        labels: Sequence[float],
        weights: Sequence[float] | None = None,
    ) -> list[float]:
        """Learn examples in order; return each one's score before it taught."""
        shares = [1.0] * len(labels) if weights is None else weights
        return [
            self.learn(keys, values, label, weight)
            for (keys, values), label, weight in zip(examples, labels, shares, strict=True)
        ]

    def _new(self) -> list[np.floating]:
        return [self.dtype(0), self.dtype(0)]

    def _values(self, keys: Sequence[int], values: Sequence[float] | None) -> list[np.floating]:
        return [self.dtype(v) for v in ([1.0] * len(keys) if values is None else values)]

    def _sigmoid(self, score: np.floating) -> np.floating:
        clipped = self.dtype(min(max(score, -SCORE_MAX), SCORE_MAX))
        return self.dtype(1) / (self.dtype(1) + np.exp(-clipped))

    def _weight(self, row: list[np.floating], l1: np.floating, l2: np.floating) -> np.floating:
        if self.rule != "ftrl":
            return row[0]
        z, n = row
        if abs(z) <= l1:
            return self.dtype(0)
        return -(z - np.sign(z) * l1) / ((self.beta + np.sqrt(n)) / self.alpha + l2)

    def _moved(
        self, row: list[np.floating], g: np.floating, l1: np.floating, l2: np.floating
    ) -> list[np.floating]:
        first, n = row
        w = self._weight(row, l1, l2)
        more = n + g * g
        if self.rule == "ftrl":
            return [first + g - (np.sqrt(more) - np.sqrt(n)) / self.alpha * w, more]
        rate = self.alpha / (self.beta + np.sqrt(more)) if self.rule == "adagrad" else self.alpha
        v = w - rate * (g + l2 * w)
        shrunk = np.sign(v) * max(self.dtype(0), abs(v) - rate * l1)
        return [self.dtype(shrunk), more if self.rule == "adagrad" else n]
