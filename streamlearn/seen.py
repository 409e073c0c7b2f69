"""Which items users have rated, as a model in memory remembers it: four bytes a rating."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from streamlearn.errors import SnapshotError
from streamlearn.factorized import Places
from streamlearn.messages import I64, U32, U64

__all__ = ["SeenRatings"]

# Ratings that wait, 16 bytes each, are sorted in once they are so many, or an eighth of the others.
_WAITING_MAX: Final = 4096


class SeenRatings:
    """Pairs of a user and an item, by user.

    Attributes
    ----------
    count : int
        Ratings in it, those of the same pair counted once for each.
    """

    def __init__(self) -> None:
        self._users: U64 = np.zeros(0, np.uint64)  # ascending
        self._starts: I64 = np.zeros(1, np.int64)
        self._codes: U32 = np.zeros(0, np.uint32)  # of the items of each user, in turn
        self._items: U64 = np.zeros(0, np.uint64)  # by code
        self._waiting = array("Q")  # user, item, user, item, …

    @property
    def count(self) -> int:
        """Ratings in it."""
        return len(self._codes) + len(self._waiting) // 2

    def add(self, keys: U64) -> None:
        """Add pairs, uint64[n, 2]."""
        self._waiting.frombytes(np.ascontiguousarray(keys).tobytes())
        self._settle()

    def add_one(self, user: int, item: int) -> None:
        """Add one pair."""
        self._waiting.append(user)
        self._waiting.append(item)
        self._settle()

    def pairs(self, users: U64, items: Places) -> U64:
        """Return what users have rated of some items: as ``ranking.seen_by`` takes it.

        Parameters
        ----------
        users : uint64[n]
            Keys, all different.
        """
        places = np.flatnonzero(np.isin(users, self._users))
        at = np.searchsorted(self._users, users[places])
        first, sizes = self._starts[at], self._starts[at + 1] - self._starts[at]
        whose = np.repeat(places, sizes)
        before = np.cumsum(sizes) - sizes
        which = np.arange(len(whose)) - np.repeat(before - first, sizes)
        found = items.find(self._items)[self._codes[which]]
        waiting = self._waiting_pairs()
        late = Places(users).find(waiting[:, 0])
        whose = np.concatenate([whose, late])
        found = np.concatenate([found, items.find(waiting[:, 1])])
        there = (whose >= 0) & (found >= 0)
        low = np.uint64(32)
        return (whose[there].astype(np.uint64) << low) | found[there].astype(np.uint64)

    def state(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return all of it as arrays, for :meth:`restore`."""
        self._sort_in()
        return {
            "users": self._users,
            "starts": self._starts,
            "codes": self._codes,
            "items": self._items,
        }

    def restore(self, state: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Have what :meth:`state` returned.

        Raises
        ------
        SnapshotError
            The arrays are not what they should be.
        """
        wanted = {"users": "u8", "starts": "i8", "codes": "u4", "items": "u8"}
        for name, kind in wanted.items():
            if name not in state or state[name].dtype != np.dtype(kind) or state[name].ndim != 1:
                raise SnapshotError(f"ratings that were seen have no {name} of {np.dtype(kind)}")
        users, starts, codes, items = (state[name] for name in wanted)
        whole = len(starts) == len(users) + 1 and starts[0] == 0 and starts[-1] == len(codes)
        if not whole or (np.diff(starts) < 0).any() or (codes >= len(items)).any():
            raise SnapshotError("ratings that were seen contradict one another")
        self._users, self._starts, self._codes, self._items = users, starts, codes, items
        self._waiting = array("Q")

    def _waiting_pairs(self) -> U64:
        return np.array(self._waiting, np.uint64).reshape(-1, 2)

    def _settle(self) -> None:
        if len(self._waiting) // 2 > max(_WAITING_MAX, len(self._codes) // 8):
            self._sort_in()

    def _sort_in(self) -> None:
        waiting = self._waiting_pairs()
        if not len(waiting):
            return
        self._waiting = array("Q")
        codes = Places(self._items).find(waiting[:, 1])
        new, number = np.unique(waiting[codes < 0, 1], return_inverse=True)
        codes[codes < 0] = len(self._items) + number
        self._items = np.concatenate([self._items, new])
        users = np.concatenate([np.repeat(self._users, np.diff(self._starts)), waiting[:, 0]])
        order = np.argsort(users, kind="stable")
        self._codes = np.concatenate([self._codes, codes.astype(np.uint32)])[order]
        users = users[order]
        first = np.flatnonzero(np.diff(users, prepend=~users[:1]))
        self._users, self._starts = users[first], np.append(first, len(users))
