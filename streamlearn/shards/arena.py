"""Arenas: rows of a fixed number of floats for the features of a table that earn one.

Memory is a region a segment, as the table's is, so the two are laid out anew together: a segment
that grows, splits or forgets takes its arena rows along, close up and in the order of its slots.
So rows are freed with their features, and nothing else frees them.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from streamlearn.compute.kernels import arena as kernels
from streamlearn.messages import F32, I64, U8, U64
from streamlearn.shards.cut import Keeper, Nothing
from streamlearn.shards.memory import HUGE_BYTES, Reservation
from streamlearn.shards.table import ExactTable

__all__ = ["Arena"]

_LINE_FLOATS: Final = 16


class Arena:
    """Rows of ``width`` floats, each on 64-byte lines of its own.

    Parameters
    ----------
    table : ExactTable
        Whose rows' word 3 (low half) numbers them; no rule of its may use that, and no other arena.
    width : int
        Floats of a row.

    Attributes
    ----------
    stride : int
        ``width``, rounded up to whole lines.
    words : uint64[...]
        The memory.
    values : float32[rows, stride]
        The same. Row 0 is zero for ever and stands for none, as the first of every region does.
    used : int64[256]
        Rows that each segment uses.

    Raises
    ------
    ResourceError
        The system refuses so many addresses.
    """

    def __init__(self, table: ExactTable, width: int) -> None:
        if width < 1:
            raise ValueError(f"width = {width} is not positive")
        self.width = width
        self.stride = -(-width // _LINE_FLOATS) * _LINE_FLOATS
        self._table = table
        self._region = table.region_slots
        rows = len(table.words) // 4
        self._memory = Reservation(rows * self.stride * 4)
        self.words: U64 = self._memory.words[: rows * self.stride // 2]
        self.values: F32 = self.words.view(np.float32).reshape(rows, self.stride)
        self.used: I64 = np.zeros_like(table.loads)
        self._advised = [0] * len(self.used)  # bytes of each region
        table.after_change = self._relocate

    @property
    def rows(self) -> int:
        """Rows in use."""
        return int(self.used.sum())

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return self.rows * self.stride * 4

    # --- reading and writing

    def numbers(self, slots: I64) -> I64:
        """Return the arena row of each of the table's rows at ``slots``; 0 for none."""
        out = np.empty(len(slots), np.int64)
        kernels.numbers(self._table.words, slots, out)
        return out

    def pull(self, slots: I64, out: F32) -> F32:
        """Copy the arena rows of the table's rows at ``slots`` to ``out``; zero for none.

        Parameters
        ----------
        slots : int64[n]
            -1: none.
        out : float32[n, width]
            Written and returned.
        """
        if out.shape != (len(slots), self.width):
            raise ValueError(f"out is {out.shape}, expected {(len(slots), self.width)}")
        kernels.pull(self.values, self.numbers(slots), out)
        return out

    def write(self, numbers: I64, rows: F32, keeper: Keeper) -> None:
        """Write arena rows.

        Parameters
        ----------
        numbers : int64[n]
            None of them 0.
        rows : float32[n, width]
        keeper : KeptLines or Nothing
            ``arena_lines`` of the cut that is open.
        """
        if rows.shape != (len(numbers), self.width):
            raise ValueError(f"rows are {rows.shape}, expected {(len(numbers), self.width)}")
        lines = len(numbers) * (self.stride // _LINE_FLOATS)
        kernels.write(self.values, numbers, rows, self.words, *keeper.arguments(lines))

    # --- earning

    def earned(self, slots: I64, weights: F32, threshold: int) -> U8:
        """Say which rows earn an arena row now, uint8[n].

        Those whose count is above ``threshold`` and whose weight is not 0, and that have none.
        """
        out = np.empty(len(slots), np.uint8)
        kernels.earned(self._table.words, slots, weights, threshold, out)
        return out

    def allocate(self, slots: I64, wanted: U8, keeper: Keeper) -> I64:
        """Give those of the table's rows that are ``wanted`` an arena row each, of zeros.

        Parameters
        ----------
        slots : int64[n]
        wanted : uint8[n]
            As :meth:`earned` says: 0 where there is no row, or one that has an arena row.
        keeper : Cut or Nothing
            Of the table.

        Returns
        -------
        int64[m]
            The arena rows, in the order of ``slots``.
        """
        kernels.allocate(
            self._table.words, slots, wanted, self._region, self.used,
            *keeper.arguments(len(slots)),
        )  # fmt: skip
        self._advise()
        return self.numbers(slots[wanted != 0])

    def load(self, rows: U64, values: F32) -> None:
        """Insert rows into the table, as ``ExactTable.insert_rows`` does, with their arena rows.

        Parameters
        ----------
        rows : uint64[n, 4]
            As a cut gives them: word 3 (low half) numbers those that have an arena row from 1.
        values : float32[m, width]
        """
        low = np.uint64(0xFFFFFFFF)
        numbers = (rows[:, 3] & low).astype(np.int64)
        plain = rows.copy()
        plain[:, 3] &= ~low
        self._table.insert_rows(plain)
        has = numbers > 0
        slots = self._table.find(rows[has, 0])
        placed = self.allocate(slots, np.ones(len(slots), np.uint8), Nothing())
        self.write(placed, np.ascontiguousarray(values[numbers[has] - 1]), Nothing())

    # --- for a cut

    def first_row(self, segment: int) -> int:
        """Return the row that stands for none in a segment's region; its rows come behind it."""
        return segment * self._region

    def lines(self, segment: int, used: int) -> tuple[int, int]:
        """Return the lines ``[first, end)`` of a segment's rows, the one for none included."""
        first = self.first_row(segment)
        per_row = self.stride // _LINE_FLOATS
        return first * per_row, (first + used + 1) * per_row

    # --- memory

    def _relocate(self, segment: int, heirs: tuple[int, ...]) -> None:
        """Take the arena rows of a segment along to those that its rows have been laid out in."""
        used = int(self.used[segment])
        if not used:
            return
        first = self.first_row(segment)
        old = self.values[first : first + used + 1].copy()
        self.values[first : first + used + 1] = 0
        for heir in heirs:
            self.used[heir] = kernels.relocate(
                self._table.words, *self._table.region(heir), old, first, self.values,
                self.first_row(heir),
            )  # fmt: skip
        self._advise()

    def _advise(self) -> None:
        """Advise huge pages for regions that have come to fill some."""
        region_bytes = self._region * self.stride * 4
        for segment in np.flatnonzero(self.used).tolist():
            size = (int(self.used[segment]) + 1) * self.stride * 4
            if size > self._advised[segment] + HUGE_BYTES:
                first = segment * region_bytes
                self._memory.advise_huge(first, first + size)
                self._advised[segment] = size
