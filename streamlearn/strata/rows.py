"""Rows of factors as further passes have them: users by number, items by place, both dense.

While passes go on they stand here and not in the table's arena, whose order is that of keys: a
block of users, or a tier of items, would be spread over thousands of pages there. The table keeps
everything else; what it has of biases and factors is of before, until they are given back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from streamlearn.compute.kernels.factors import ITEM
from streamlearn.messages import F32, I64, U32, U64
from streamlearn.online.mf import numbers_of
from streamlearn.shards.arena import LINE_FLOATS, Part, dims_of
from streamlearn.shards.memory import Reservation
from streamlearn.shards.table import ExactTable

__all__ = ["FactorRows", "RowsCut"]

_LOW: Final = np.uint64(0xFFFFFFFF)
_DIM: Final = np.uint64(48)
_PIECE_BYTES: Final = 4 << 20
_NOBODY: Final = np.uint32(0xFFFFFFFF)


class FactorRows:
    """Factors and biases of users and items, taken out of a table.

    Parameters
    ----------
    table : ExactTable
        With an arena, which is empty afterwards.
    users : int
        How many are numbered.
    places : uint32[items]
        Place of each item by number.
    places_max : int
        Places in all.

    Attributes
    ----------
    lines : int
        64-byte lines of a row.
    users, items : float32[users, 16 * lines], float32[places_max, 16 * lines]
        Rows begin with the factors; what is behind them is zero.
    user_biases, item_biases : float32[users], float32[places_max]
    """

    def __init__(self, table: ExactTable, users: int, places: U32, places_max: int) -> None:
        assert table.arena is not None
        self._table, self._arena = table, table.arena
        tiers = table.arena.geometry.tiers
        self.dim = tiers.dim
        self.lines = tiers.lines(tiers.dim)
        self._places = places
        self.users = self._rows(users)
        self.items = self._rows(places_max)
        self.user_biases: F32 = np.zeros(users, np.float32)
        self.item_biases: F32 = np.zeros(places_max, np.float32)
        for segment in range(table.segments):
            self._take(segment)

    def _rows(self, count: int) -> F32:
        width = self.lines * LINE_FLOATS
        memory = Reservation(max(1, count) * width * 4)
        memory.advise_huge(0, memory.size_bytes)
        whole: F32 = memory.words.view(np.float32)[: count * width].reshape(count, width)
        return whole

    def _pieces(self, rows: U64) -> Iterator[U64]:
        """Yield rows some at a time, since their factors are copied meanwhile."""
        step = max(1, _PIECE_BYTES // (self.lines * LINE_FLOATS * 4))
        for first in range(0, len(rows), step):
            yield rows[first : first + step]

    def _take(self, segment: int) -> None:
        for rows in self._pieces(self._table.rows(segment)):
            self._take_rows(rows)
        self._arena.release(segment)

    def _take_rows(self, rows: U64) -> None:
        vectors = self._arena.take(rows.copy()).reshape(-1, self.lines * LINE_FLOATS)
        has = dims_of(rows[:, 3]) > 0
        item, at, numbered = self._split(rows)
        biases = (rows[:, 1] & _LOW).astype(np.uint32).view(np.float32)
        for kind, factors, held in (
            (item, self.items, self.item_biases),
            (~item, self.users, self.user_biases),
        ):
            mine = kind & numbered
            held[at[mine]] = biases[mine]
            factors[at[mine & has]] = vectors[(kind & numbered)[has]]

    def _split(self, rows: U64) -> tuple[np.ndarray, I64, np.ndarray]:
        """Return which rows are items, where each stands here, and which stand here at all."""
        numbers = numbers_of(rows[:, 1])
        item = numbers & ITEM != 0
        number = (numbers & ~ITEM).astype(np.int64) - 1
        limits = np.where(item, len(self._places), len(self.users))
        numbered = (number >= 0) & (number < limits)
        at = np.where(numbered, number, 0)
        if len(self._places):
            at = np.where(item, self._places[np.where(item, at, 0)].astype(np.int64), at)
        return item, at, numbered & (at != int(_NOBODY))

    def rows(self, segment: int) -> tuple[U64, F32]:
        """Return a segment's rows as they are now, by key, with their factors as an arena has them.

        Returns
        -------
        uint64[n, 4]
            Their words 3 say how long the factors are, not where.
        float32[m]
        """
        rows = self._table.rows(segment)
        return self._now(rows[np.argsort(rows[:, 0], kind="stable")])

    def _now(self, rows: U64) -> tuple[U64, F32]:
        item, at, numbered = self._split(rows)
        biases: F32 = np.zeros(len(rows), np.float32)
        vectors: F32 = np.zeros((len(rows), self.lines * LINE_FLOATS), np.float32)
        for kind, factors, held in (
            (item, self.items, self.item_biases),
            (~item, self.users, self.user_biases),
        ):
            mine = kind & numbered
            biases[mine] = held[at[mine]]
            vectors[mine] = factors[at[mine]]
        rows[:, 1] = (rows[:, 1] & ~_LOW) | biases.view(np.uint32)
        rows[:, 3] = np.where(numbered, np.uint64(self.dim) << _DIM, np.uint64(0))
        return rows, vectors[numbered].reshape(-1)

    def copy(self) -> tuple[F32, F32, F32, F32]:
        """Return a copy of all rows and biases, for :meth:`restore`."""
        held = (self.users, self.items, self.user_biases, self.item_biases)
        users, items, user_biases, item_biases = (array.copy() for array in held)
        return users, items, user_biases, item_biases

    def restore(self, copy: tuple[F32, F32, F32, F32]) -> None:
        """Have all rows and biases be what :meth:`copy` returned."""
        held = (self.users, self.items, self.user_biases, self.item_biases)
        for array, before in zip(held, copy, strict=True):
            array[:] = before

    def give_back(self) -> None:
        """Put everything back into the table and its arena; this object is empty then."""
        for segment in range(self._table.segments):
            rows = self._table.rows(segment)
            for piece in self._pieces(rows[np.argsort(rows[:, 0], kind="stable")]):
                now, vectors = self._now(piece)
                slots = self._table.find(now[:, 0])
                self._table.words[slots * 4 + 1] = now[:, 1]
                self._arena.put(now, vectors)
        self.users = self.items = np.zeros((0, self.lines * LINE_FLOATS), np.float32)


class RowsCut:
    """The image of a table whose factors stand in :class:`FactorRows`, while nothing changes.

    Parameters
    ----------
    table : ExactTable
    rows : FactorRows

    Attributes
    ----------
    at_once : bool
        True: all parts must be taken before anything changes.
    """

    at_once: Final = True

    def __init__(self, table: ExactTable, rows: FactorRows) -> None:
        self.intercept = table.intercept.copy()
        self._rows = rows
        self._pending = list(table.key_order())

    def take(self) -> Part | None:
        """Take the next part, None where all are taken."""
        if not self._pending:
            return None
        segment = self._pending.pop(0)
        return Part(segment, *self._rows.rows(segment))

    def close(self) -> None:
        """End the cut."""
        self._pending.clear()
