"""The best items of users, one user and one item after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def best(
    users: np.ndarray,
    factors: np.ndarray,
    biases: np.ndarray,
    n: int,
    seen: Sequence[Sequence[int]] | None = None,
) -> list[list[tuple[float, int]]]:
    """Return (score, item) of the n best items of each user, best first, of equals the lower."""
    found = []
    for u, p in enumerate(users.astype(np.float64)):
        left_out = set(seen[u]) if seen is not None else set()
        scored = [
            (float(p @ q) + float(bias), item)
            for item, (q, bias) in enumerate(zip(factors.astype(np.float64), biases, strict=True))
            if item not in left_out
        ]
        ranked = [one for one in scored if one[0] == one[0] and one[0] != -np.inf]
        found.append(sorted(ranked, key=lambda one: (-one[0], one[1]))[:n])
    return found
