"""Private factorization the slow and obvious way: float64, one rating after the other."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DrawnRow", "PrivateTwin", "normals", "philox"]

LOW = 0xFFFFFFFF


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, ...]:
    """Return the four words of Philox4x32-10 (Salmon et al., SC 2011, figure 2)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & LOW, (a >> 32) ^ c3 ^ k1, a & LOW
        k0, k1 = (k0 + 0x9E3779B9) & LOW, (k1 + 0xBB67AE85) & LOW
    return c0, c1, c2, c3


def normals(
    counter: tuple[int, int, int], count: int, seed: NDArray[np.uint64]
) -> NDArray[np.float64]:
    """Return the normal numbers of ``kernels.gaussian``: pairs, eight at a time, cosines first."""
    s0, s1, s2 = (int(word) for word in seed)
    cosines, sines = [], []
    for i in range(-(-count // 16) * 8):
        w = philox((counter[0], counter[1], counter[2] << 12 | i, s2), (s0, s1))
        u = 1 - ((w[0] << 32 | w[1]) >> 12) * 2.0**-52
        v = ((w[2] << 32 | w[3]) >> 12) * 2.0**-52
        radius, angle = math.sqrt(-2 * math.log(u)), 2 * math.pi * v
        cosines.append(radius * math.cos(angle))
        sines.append(radius * math.sin(angle))
    return np.array(cosines + sines)[:count]


@dataclass
class DrawnRow:
    """A row: factors and then bias; how many touches it has had in this pass, and when noise."""

    number: int
    x: NDArray[np.float64]
    ratings: int
    weighed: float
    weight: float
    touched: int = 0
    noised: int = 0


@dataclass
class PrivateTwin:
    """Draws rows by the equations of ``kernels.private``.

    Attributes
    ----------
    hold : float
        T / s^2.
    """

    seed: NDArray[np.uint64]
    temperature: float
    hold: float
    error_max: float
    noises: int
    hold_min: float
    turn: int = 0
    rows: dict[int, DrawnRow] = field(default_factory=dict)
    beyond: int = 0

    def pace(self, row: DrawnRow) -> float:
        """Return h of a row at rate 1."""
        return 1 / max(row.weighed + self.hold, self.hold_min)

    def learn(self, user: int, item: int, r: float, a: float, b0: float, rate: float) -> float:
        """Score a rating, then learn it; return the score before."""
        p, q = self.rows[user], self.rows[item]
        score = float(p.x[:-1] @ q.x[:-1] + p.x[-1] + q.x[-1] + b0)
        e = r - score
        if abs(e) <= self.error_max:
            g = rate * p.weight * a * e
            dp, dq = np.append(q.x[:-1], 1.0), np.append(p.x[:-1], 1.0)
            p.x = p.x + self.pace(p) * g * dp
            q.x = q.x + self.pace(q) * g * dq
        else:
            self.beyond += 1
        for row in (p, q):
            row.touched += 1
            if row.touched % max(1, math.ceil(row.ratings / self.noises)) == 0:
                self.noise(row, rate)
        return score

    def noise(self, row: DrawnRow, rate: float) -> None:
        """Give a row the noise of its touches since the last."""
        time = rate * self.pace(row) * (row.touched - row.noised) / row.ratings
        z = normals((row.number, row.touched, self.turn), len(row.x), self.seed)
        spread = math.sqrt(2 * time * self.temperature)
        row.x = math.exp(-self.hold * time) * row.x + spread * z
        row.noised = row.touched

    def settle(self, rate: float) -> None:
        """End a pass."""
        for row in self.rows.values():
            if row.touched > row.noised:
                self.noise(row, rate)
            row.touched = row.noised = 0
        self.turn += 1
