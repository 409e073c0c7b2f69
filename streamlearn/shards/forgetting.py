"""What a full or an old table forgets: which rows go, and a record of those that went.

What goes depends on the rows alone, not on where they stand: a table that was loaded from a
snapshot forgets what the one that wrote it would have. Forgetting goes round the 256 ranges of the
key space, a little at a time; keys are mixed, so the least seen of one range are as good as those
of the whole table.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from streamlearn.compute.kernels import rows as kernels
from streamlearn.messages import I32, I64, U64

if TYPE_CHECKING:
    from typing import Protocol

    from numpy.typing import NDArray

    class Rows(Protocol):
        """A table, as forgetting sees it (``shards.table``)."""

        prefixes: tuple[int, int]
        features_min: int
        segment_of: I32

        @property
        def features(self) -> int:
            """Rows held."""
            ...

        def span(self, segment: int) -> tuple[int, int]:
            """Return the ranges that a segment has."""
            ...

        def rows(self, segment: int) -> U64:
            """Return a copy of a segment's rows."""
            ...

        def keep(self, segment: int, rows: U64) -> None:
            """Lay out a segment anew with some of its rows."""
            ...


__all__ = ["Forgetting", "Tombstones", "least_seen", "not_seen_since"]

# What a full table forgets of a run of ranges at least, and how many rows such a run has at least:
# less, and segments are laid out anew too often.
EVICTED_SHARE: Final = 0.05
EVICTION_ROWS: Final = 1 << 16
_EMPTY: Final[U64] = np.zeros(0, np.uint64)


class Forgetting:
    """Goes round a table's ranges and forgets rows.

    Parameters
    ----------
    table : ExactTable

    Attributes
    ----------
    cursors : int64[2]
        The ranges at which eviction and expiry go on. State, as the rows are: a table loaded from a
        snapshot goes on as the one before only with its cursors.
    count : int
        Rows forgotten.
    keys : Tombstones
    """

    def __init__(self, table: Rows) -> None:
        self._table: Rows = weakref.proxy(table)  # which holds this
        self.cursors: I64 = np.full(2, table.prefixes[0], np.int64)
        self.count = 0
        self.keys = Tombstones()

    def expire(self, minute: int, floor: int, ranges: int) -> U64:
        """Forget the rows last seen before ``minute`` in the next ``ranges`` ranges.

        Parameters
        ----------
        minute : int
        floor : int
            Rows that stay at least; of a range those longest not seen go first.
        ranges : int
            Of the key space (of 256), from where the last call left off.

        Returns
        -------
        uint64[n]
            The keys forgotten.
        """
        first, end = self._table.prefixes
        gone = [_EMPTY]
        low, left = int(self.cursors[1]), min(ranges, end - first)
        while left > 0:
            segment = int(self._table.segment_of[low])
            high = min(low + left, self._table.span(segment)[1])
            gone.append(self._forget(low, high, 1, floor, partial(not_seen_since, minute=minute)))
            left -= high - low
            low = high if high < end else first
        self.cursors[1] = low
        return np.concatenate(gone)

    def evict(self, over: int, spared: U64 = _EMPTY) -> None:
        """Forget ``over`` rows or more, of one run of ranges after the other the least seen.

        Parameters
        ----------
        over : int
            At most as many as there are beyond ``features_min`` and the rows of ``spared``.
        spared : uint64[m]
            Keys, ascending, that are not forgotten.
        """
        table = self._table
        first, end = table.prefixes
        run = 1
        while run < 256 and run * table.features < EVICTION_ROWS * (end - first):
            run *= 2
        share = max(EVICTED_SHARE, over / table.features)
        while over > 0:
            low = int(self.cursors[0]) // run * run
            high = min(low + run, end)
            over -= self.evict_from(max(low, first), high, share, spared)
            self.cursors[0] = high if high < end else first

    def evict_from(
        self, low: int, high: int, share: float = EVICTED_SHARE, spared: U64 | None = None
    ) -> int:
        """Forget a share of the ranges ``[low, high)``, rounded up; return how many rows went."""
        if spared is None:
            spared = _EMPTY
        bounds = np.searchsorted(spared >> np.uint64(56), np.array([low, high], np.uint64))
        choose = partial(least_seen, share=share, spared=spared[bounds[0] : bounds[1]])
        return len(self._forget(low, high, high - low, self._table.features_min, choose))

    def _forget(
        self,
        low: int,
        high: int,
        step: int,
        floor: int,
        choose: Callable[..., NDArray[np.bool_]],
    ) -> U64:
        """Forget what ``choose`` chooses of each ``step`` ranges within ``[low, high)``.

        It is given the rows of that many ranges, however many their segment has.
        """
        table = self._table
        segments = list(dict.fromkeys(table.segment_of[low:high].tolist()))
        parts = [table.rows(segment) for segment in segments]
        rows = np.concatenate(parts) if len(parts) > 1 else parts[0]
        prefixes = (rows[:, 0] >> np.uint64(56)).astype(np.int64)
        doomed = np.zeros(len(rows), np.bool_)
        left = max(0, table.features - floor)
        for start in range(low, high, step):
            inside = np.flatnonzero((prefixes >= start) & (prefixes < start + step))
            chosen = choose(rows if len(inside) == len(rows) else rows[inside], most=left)
            doomed[inside] = chosen
            left -= int(np.count_nonzero(chosen))
        at = 0
        for segment, part in zip(segments, parts, strict=True):
            going = doomed[at : at + len(part)]
            at += len(part)
            if going.any():
                table.keep(segment, part[~going])
        keys: U64 = np.sort(rows[doomed, 0])
        self.count += len(keys)
        self.keys.record(keys)
        return keys


def least_seen(rows: U64, share: float, most: int, spared: U64 = _EMPTY) -> NDArray[np.bool_]:
    """Choose the rows seen least: by the power of two of their count, then by age, then by key.

    Parameters
    ----------
    rows : uint64[n, 4]
    share : float
        Of the rows that are not spared to choose, rounded up.
    most : int
        Rows chosen at most.
    spared : uint64[m]
        Keys, ascending, that are not chosen.

    Returns
    -------
    bool[n]

    Notes
    -----
    O(n): a selection, not a sort.
    """
    worth = np.empty(len(rows), np.uint64)
    candidates = int(kernels.worth(rows, spared, worth))
    goal = min(most, candidates, int(np.ceil(share * candidates)))
    return _first(worth, rows[:, 0], goal)


def not_seen_since(rows: U64, minute: int, most: int) -> NDArray[np.bool_]:
    """Choose the rows last seen before ``minute``, at most ``most`` of them: by age, then by key.

    Parameters
    ----------
    rows : uint64[n, 4]

    Returns
    -------
    bool[n]
    """
    seen = rows[:, 2] >> np.uint64(32)
    old = seen < np.uint64(max(minute, 0))
    if np.count_nonzero(old) <= most:
        return np.asarray(old)
    return _first(seen, rows[:, 0], most)


def _first(worth: U64, keys: U64, goal: int) -> NDArray[np.bool_]:
    """Choose the ``goal`` rows of least worth; of those worth the same, those of least key."""
    chosen = np.zeros(len(worth), np.bool_)
    if goal > 0:
        bound = np.partition(worth, goal - 1)[goal - 1]
        np.less(worth, bound, out=chosen)
        tied = np.flatnonzero(worth == bound)
        left = goal - int(np.count_nonzero(chosen))
        chosen[tied[np.argsort(keys[tied], kind="stable")[:left]]] = True
    return chosen


class Tombstones:
    """The keys that a table forgot since somebody asked last: what its followers must forget.

    Parameters
    ----------
    keys_max : int
        Beyond so many nothing is recorded any more (8 bytes each): whoever asks then is told that
        he does not know all. 0: nobody will ask.

    Attributes
    ----------
    complete : bool
        Whether all were recorded.
    """

    def __init__(self, keys_max: int = 0) -> None:
        self.keys_max = keys_max
        self.complete = True
        self._parts: list[U64] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def record(self, keys: U64) -> None:
        """Record keys that were forgotten, or that some are not known any more."""
        if self._count + len(keys) > self.keys_max:
            self._parts, self._count, self.complete = [], 0, False
        elif self.complete:
            self._parts.append(keys)
            self._count += len(keys)

    def take(self) -> U64 | None:
        """Return the keys forgotten since the last call, in that order; None where some are lost.

        A key may have been inserted again since, and may stand twice.
        """
        keys = np.concatenate(self._parts) if self._parts else _EMPTY
        complete, self.complete = self.complete, True
        self._parts, self._count = [], 0
        return keys if complete else None
