"""Slow twin of the update rules: one row, one operation at a time.

In float64 it is the equations; in float32 it is what the kernels give, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

GRADIENT_MAX = 2.0**51
WEIGHT_MAX = 2.0**60


class RuleTwin:
    """Rows by key, updated by one rule.

    Parameters
    ----------
    rule : {"ftrl", "adagrad", "sgd", "adam", "add", "mf"}
    alpha, beta, l1, l2, momentum, memory : float
        As the kernels have them.
    dtype : type
        Of every intermediate result.

    Attributes
    ----------
    rows : dict of int to list
        Two columns of each key: z, n (FTRL), w, n (AdaGrad), w, m (SGD, Adam), w, 0 (add, mf).
    moments : dict of int to list
        t and s of Adam.
    """

    def __init__(
        self,
        rule: str,
        alpha: float = 0.1,
        beta: float = 1.0,
        l1: float = 1.0,
        l2: float = 0.0,
        momentum: float = 0.0,
        memory: float = 0.999,
        dtype: type[np.floating] = np.float64,
    ) -> None:
        self.rule = rule
        self.dtype = dtype
        self.alpha, self.beta, self.l1, self.l2, self.momentum, self.memory = (
            dtype(np.float32(v)) for v in (alpha, beta, l1, l2, momentum, memory)
        )
        self.inverse_alpha = dtype(np.float32(1 / alpha)) if dtype is np.float32 else 1 / self.alpha
        self.rows: dict[int, list[np.floating]] = {}
        self.moments: dict[int, list] = {}

    def weight(self, key: int, bare: bool = False) -> np.floating:
        first, second = self.rows.get(key, [self.dtype(0), self.dtype(0)])
        if self.rule != "ftrl":
            return first
        l1, l2 = self._penalties(bare)
        if abs(first) <= l1:
            return self.dtype(0)
        scale = (self.beta * self.inverse_alpha + l2) + np.sqrt(second) * self.inverse_alpha
        return self._cut(-np.sign(first) * (abs(first) - l1) / scale)

    def push(
        self, keys: Iterable[int], gradients: Iterable[float], bare: int | None = None
    ) -> None:
        """Apply a gradient to each key; ``bare`` is the key without penalties."""
        for key, gradient in zip(keys, gradients, strict=True):
            self._move(key, self.dtype(gradient), key == bare)

    def _move(self, key: int, g: np.floating, bare: bool) -> None:
        l1, l2 = self._penalties(bare)
        g = max(min(g, self.dtype(GRADIENT_MAX)), -self.dtype(GRADIENT_MAX))
        first, second = self.rows.get(key, [self.dtype(0), self.dtype(0)])
        w = self.weight(key, bare)
        if self.rule == "ftrl":
            more = second + g * g
            sigma = (np.sqrt(more) - np.sqrt(second)) * self.inverse_alpha
            self.rows[key] = [first + g - sigma * w, more]
        elif self.rule == "adagrad":
            more = second + g * g
            rate = self.alpha / (self.beta + np.sqrt(more))
            self.rows[key] = [self._stepped(w, rate, g + l2 * w, l1), more]
        elif self.rule == "sgd":
            m = g + l2 * w
            if self.momentum:
                m = second = self._cut(self.momentum * second + m)
            self.rows[key] = [self._stepped(w, self.alpha, m, l1), second]
        elif self.rule == "adam":
            t, s = self.moments.get(key, [0, self.dtype(0)])
            one = self.dtype(1)
            t += 1
            m = self.momentum * second + (one - self.momentum) * g
            s = self.memory * s + (one - self.memory) * (g * g)
            first_power, second_power = (
                self.dtype(1 - float(base) ** t) for base in (self.momentum, self.memory)
            )
            rate = self.alpha / (self.beta + np.sqrt(s / second_power))
            self.rows[key] = [self._stepped(w, rate, m / first_power + l2 * w, l1), m]
            self.moments[key] = [t, s]
        elif self.rule == "mf" and bare:  # a mean, of which nothing is told here
            self.rows[key] = [w, second]
        else:
            self.rows[key] = [self._cut(w + g), second]

    def _penalties(self, bare: bool) -> tuple[np.floating, np.floating]:
        return (self.dtype(0), self.dtype(0)) if bare else (self.l1, self.l2)

    def _cut(self, weight: np.floating) -> np.floating:
        return max(min(weight, self.dtype(WEIGHT_MAX)), -self.dtype(WEIGHT_MAX))

    def _stepped(
        self, w: np.floating, rate: np.floating, direction: np.floating, l1: np.floating
    ) -> np.floating:
        v = self._cut(w - rate * direction)
        return np.copysign(max(abs(v) - rate * l1, self.dtype(0)), v)
