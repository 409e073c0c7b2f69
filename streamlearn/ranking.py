"""The best items for users: blocks of users against all items, exactly.

What a model is asked for its best items with; whose factors they are, and where they stand, is for
whoever asks.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from streamlearn.compute.kernels import top as kernels
from streamlearn.messages import F32, I32, I64, U64

__all__ = ["Ranking", "Seen", "seen_by"]

# Users of a block: what is read of the items is shared by so many, and what is kept for each stays
# in the second cache.
_BLOCK: Final = 256
# Words that a user's buffer has room for, by those that are wanted: more are sorted out less often.
_ROOM: Final = 4
_ROOM_MIN: Final = 64


class Seen(NamedTuple):
    """Which items each of some users has seen.

    Attributes
    ----------
    starts : int64[users + 1]
    items : int32[...]
        ``items[starts[u]:starts[u + 1]]`` are those of user u, ascending.
    """

    starts: I64
    items: I32

    def of(self, first: int, end: int) -> Seen:
        """Return the same for the users ``[first, end)``."""
        starts = self.starts[first : end + 1]
        return Seen(starts - starts[0], self.items[starts[0] : starts[-1]])


def seen_by(pairs: U64, users: int) -> Seen:
    """Return what pairs of a user (upper half) and an item (lower half) say, in any order.

    Parameters
    ----------
    pairs : uint64[n]
        Sorted in place.
    users : int
        How many there are; all numbers are below.
    """
    pairs.sort()
    first = np.arange(users + 1, dtype=np.uint64) << np.uint64(32)
    items = (pairs & np.uint64(0xFFFFFFFF)).astype(np.int32)
    return Seen(np.searchsorted(pairs, first), items)


class Ranking:
    """Items, laid out to be ranked.

    Parameters
    ----------
    factors : float32[items, dim]
    biases : float32[items]
    """

    def __init__(self, factors: F32, biases: F32) -> None:
        self.items, self.dim = factors.shape
        panels = -(-self.items // kernels.LANES)
        self._panels = _aligned(panels * self.dim * kernels.LANES).reshape(
            panels, self.dim, kernels.LANES
        )
        kernels.pack_panels(np.ascontiguousarray(factors, np.float32), self._panels)
        self._biases = _aligned(panels * kernels.LANES)
        self._biases[: self.items] = biases
        self._biases[self.items :] = -np.inf

    def best(self, users: F32, n: int, seen: Seen | None = None) -> tuple[I64, F32]:
        """Return the best items of users, the best first; of equals the one of the lower number.

        Parameters
        ----------
        users : float32[users, dim]
            Factors.
        n : int
            How many items each gets, as far as there are.
        seen : Seen, optional
            What each does not get.

        Returns
        -------
        int64[users, min(n, items)]
            -1 where a user has seen all others.
        float32[users, min(n, items)]
            Inner products with the items' biases added, NaN where there is no item.
        """
        n = min(n, self.items)
        if seen is None:
            seen = Seen(np.zeros(len(users) + 1, np.int64), np.zeros(0, np.int32))
        items: I64 = np.full((len(users), n), -1, np.int64)
        scores: F32 = np.full((len(users), n), np.nan, np.float32)
        if n:
            for first in range(0, len(users), _BLOCK):
                end = min(first + _BLOCK, len(users))
                self._best(
                    users[first:end], seen.of(first, end), items[first:end], scores[first:end]
                )
        return items, scores

    def _best(self, users: F32, seen: Seen, items: I64, scores: F32) -> None:
        """Write the best items of a block of users."""
        count, n = items.shape
        rows = -(-count // kernels.GROUP) * kernels.GROUP
        block: F32 = np.zeros((rows, self.dim), np.float32)
        block[:count] = users
        words: U64 = np.zeros((count, max(_ROOM * n, _ROOM_MIN)), np.uint64)
        fills: I64 = np.zeros(count, np.int64)
        kernels.best(
            block, count, self._panels, self._biases, n, *seen, np.empty(rows, np.float32), words,
            fills, np.empty(count, np.int64), _aligned(kernels.GROUP * kernels.LANES),
        )  # fmt: skip
        found = words[:, :n]
        found[np.arange(n) >= fills[:, None]] = 0
        found.sort(axis=1)
        kernels.rank_all(found[:, ::-1], fills, items, scores)


def _aligned(size: int) -> F32:
    """Return zeros, float32[size], that begin on a multiple of 64 bytes."""
    whole: F32 = np.zeros(size + 16, np.float32)
    first = -whole.ctypes.data // 4 % 16
    return whole[first : first + size]
