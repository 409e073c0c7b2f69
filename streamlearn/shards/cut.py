"""A cut: a table as it was at one moment, taken piece by piece while it goes on changing.

A table's arena, if it has one, is memory of the same kind and is cut with it.

When a cut begins, nothing is copied. Until a *part* of the table (a segment, or a range of hashed
rows) has been taken, whoever changes one of its 64-byte lines first keeps the old line
(``compute.kernels.table.preserve``); a part is then copied as it stands and its kept lines are put
back. A kernel pays for this only while a cut is open.

Whoever owns the table calls everything here from the one lane that changes it, between two kernel
calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from streamlearn.compute.kernels.table import pack
from streamlearn.messages import F32, I64, U64
from streamlearn.shards.table import ExactTable, HashedTable

if TYPE_CHECKING:
    from streamlearn.shards.arena import Arena

__all__ = ["Cut", "CutArguments", "Keeper", "KeptLines", "Nothing", "Table"]

Table = ExactTable | HashedTable

# A part of a hashed table: 16 MB, the size of a segment.
_PART_WORDS: Final = 1 << 21
_SIDE_LINES_INITIAL: Final = 1 << 14
_LOW: Final = np.uint64(0xFFFFFFFF)

CutArguments = tuple[int, U64, I64, U64, I64]


class Keeper(Protocol):
    """What learn kernels are given to keep old lines with."""

    def arguments(self, lines_max: int) -> CutArguments:
        """Return (saving, kept, side_lines, side_words, side_count), room for more lines made."""
        ...


class Nothing:
    """No cut is open: kernels keep nothing."""

    def __init__(self) -> None:
        self._arguments: CutArguments = (
            0,
            np.zeros(1, np.uint64),
            np.zeros(1, np.int64),
            np.zeros((1, 8), np.uint64),
            np.zeros(1, np.int64),
        )

    def arguments(self, lines_max: int) -> CutArguments:
        """Return arguments that say "not saving"."""
        return self._arguments


class KeptLines:
    """The old lines of a memory since a moment, as far as they may still be asked for.

    Parameters
    ----------
    words : uint64[...]
        The memory, eight to a line.
    starts : int64[parts]
        First line of each part, ascending.

    Attributes
    ----------
    count : int
        Lines kept so far, 64 bytes each.
    """

    def __init__(self, words: U64, starts: I64) -> None:
        self._words = words
        self._starts = starts
        self._kept: U64 = np.zeros(-(-len(words) // 512), np.uint64)
        self._side_lines: I64 = np.empty(_SIDE_LINES_INITIAL, np.int64)
        self._side_words: U64 = np.empty((_SIDE_LINES_INITIAL, 8), np.uint64)
        self._side_count: I64 = np.zeros(1, np.int64)
        self._sorted = 0  # side lines already handed to _by_part
        self._by_part: dict[int, list[I64]] = {}

    @property
    def count(self) -> int:
        """Lines kept so far."""
        return int(self._side_count[0])

    def arguments(self, lines_max: int) -> CutArguments:
        """Return what kernels keep old lines with; room for ``lines_max`` more is made."""
        need = self.count + lines_max
        if need > len(self._side_lines):
            size = max(need, 2 * len(self._side_lines))
            lines, words = np.empty(size, np.int64), np.empty((size, 8), np.uint64)
            n = self.count
            lines[:n], words[:n] = self._side_lines[:n], self._side_words[:n]
            self._side_lines, self._side_words = lines, words
        return 1, self._kept, self._side_lines, self._side_words, self._side_count

    def take(self, part: int, first: int, end: int) -> U64:
        """Return a part's lines ``[first, end)`` as they were; they are not kept from now on.

        Returns
        -------
        uint64[end - first, 8]
        """
        image = self._words[first * 8 : end * 8].copy().reshape(-1, 8)
        self._sort_side()
        for entries in self._by_part.pop(part, []):
            lines = self._side_lines[entries]
            inside = lines < end  # nothing that is asked for lies beyond
            image[lines[inside] - first] = self._side_words[entries[inside]]
        self._mark(first, end)
        return image

    def _sort_side(self) -> None:
        """Hand the side lines that came since the last call to the parts that they belong to."""
        count = self.count
        if count == self._sorted:
            return
        lines = self._side_lines[self._sorted : count]
        parts = np.searchsorted(self._starts, lines, side="right") - 1
        order = np.argsort(parts, kind="stable")
        for piece in np.split(order, np.flatnonzero(np.diff(parts[order])) + 1):
            self._by_part.setdefault(int(parts[piece[0]]), []).append(piece + self._sorted)
        self._sorted = count

    def _mark(self, first: int, end: int) -> None:
        """Set the bits of the lines ``[first, end)``: they need no keeping any more."""
        full = np.uint64(0xFFFFFFFFFFFFFFFF)
        low, high = first >> 6, end >> 6
        head = full << np.uint64(first & 63)
        tail = ~(full << np.uint64(end & 63)) if end & 63 else np.uint64(0)
        if low == high:
            self._kept[low] |= head & tail
            return
        self._kept[low] |= head
        self._kept[low + 1 : high] = full
        if end & 63:
            self._kept[high] |= tail


class Cut:
    """The image of a table at the moment this object was made.

    Parameters
    ----------
    table : ExactTable or HashedTable
    arena : Arena, optional
        Of the table. Whoever changes its rows keeps old lines with ``arena_lines``.
    parts : sequence of int, optional
        Segments that it is of, by key, where the table has several owners; each calls
        ``before_change`` itself. By default all.

    Attributes
    ----------
    pending : list of int
        Parts not taken yet, in the order in which they will be.
    lines_kept : int
        Old lines kept so far, 64 bytes each: the price of learning on.
    arena_lines : KeptLines or Nothing
    """

    def __init__(
        self, table: Table, arena: Arena | None = None, parts: Sequence[int] | None = None
    ) -> None:
        self._table = table
        self._early: list[tuple[int, U64]] = []
        self._packed: U64 = np.empty((0, 4), np.uint64)
        self.intercept = table.intercept.copy()
        if isinstance(table, ExactTable):
            self.pending = list(table.key_order() if parts is None else parts)
            self._regions = {part: table.region(part) for part in self.pending}
            # a segment's region is an even number of slots
            starts = np.array([table.region(part)[0] // 2 for part in range(table.segments)])
            if parts is None:
                table.before_change = self.before_change
        else:
            self.pending = list(range(-(-len(table.words) // _PART_WORDS)))
            starts = np.arange(len(self.pending)) * (_PART_WORDS // 8)
        self._lines = KeptLines(table.words, starts)
        self._arena = arena
        self._arena_rows: dict[int, F32] = {}
        self.arena_lines: KeptLines | Nothing = Nothing()
        if arena is not None:
            assert isinstance(table, ExactTable)
            first_lines = [arena.lines(part, 0)[0] for part in range(table.segments)]
            self.arena_lines = KeptLines(arena.words, np.array(first_lines))
            self._arena_used = arena.used.copy()

    @property
    def lines_kept(self) -> int:
        """Old lines kept so far."""
        return self._lines.count

    def arguments(self, lines_max: int) -> CutArguments:
        """Return what learn kernels keep old lines with; room for ``lines_max`` more is made."""
        return self._lines.arguments(lines_max)

    def take(self) -> tuple[int, U64] | None:
        """Take the next part: (part, its rows at the cut), or None where all are taken.

        Rows are uint64[n, 4] by key for an exact table, uint64[n] for a hashed one. With an arena
        the low half of word 3 numbers the part's arena rows (:meth:`arena_rows`) from 1.
        """
        if self._early:
            return self._early.pop(0)
        if not self.pending:
            return None
        part = self.pending.pop(0)
        return part, self._take(part)

    def arena_rows(self, part: int) -> F32:
        """Return, once, the arena rows of a part that was taken, float32[m, width], by key."""
        return self._arena_rows.pop(part)

    def close(self) -> None:
        """End the cut: changes need not be kept any more, and what was not taken is gone."""
        self.pending.clear()
        self._early.clear()
        if isinstance(self._table, ExactTable) and self._table.before_change == self.before_change:
            self._table.before_change = None

    def before_change(self, segment: int) -> None:
        """Take a segment before it is laid out anew."""
        if segment in self.pending:
            self.pending.remove(segment)
            self._early.append((segment, self._take(segment)))

    def _take(self, part: int) -> U64:
        first, end = self._bounds(part)
        image = self._lines.take(part, first, end)
        if isinstance(self._table, HashedTable):
            return image.reshape(-1)
        slots = len(image) * 2
        if len(self._packed) <= slots:
            self._packed = np.empty((slots + 1, 4), np.uint64)
        rows = self._packed[: pack(image.reshape(-1), 0, slots, self._packed)]
        # nearly in order, which the stable sort makes use of
        ordered: U64 = np.take(rows, np.argsort(rows[:, 0], kind="stable"), axis=0)
        if self._arena is not None:
            self._take_arena(part, ordered)
        return ordered

    def _take_arena(self, part: int, rows: U64) -> None:
        """Take the arena rows of a part's rows, and number them in their order."""
        assert self._arena is not None
        assert isinstance(self.arena_lines, KeptLines)
        arena = self._arena
        first, end = arena.lines(part, int(self._arena_used[part]))
        image = self.arena_lines.take(part, first, end).view(np.float32)
        earned = np.flatnonzero(rows[:, 3] & _LOW)
        numbers = (rows[earned, 3] & _LOW).astype(np.int64) - arena.first_row(part)
        self._arena_rows[part] = image.reshape(-1, arena.stride)[numbers, : arena.width]
        rows[earned, 3] = (rows[earned, 3] & ~_LOW) | np.arange(1, len(earned) + 1, dtype=np.uint64)

    def _bounds(self, part: int) -> tuple[int, int]:
        if isinstance(self._table, ExactTable):
            first, end = self._regions[part]
            return first // 2, (end + 1) // 2
        first = part * _PART_WORDS // 8
        return first, min(first + _PART_WORDS // 8, len(self._table.words) // 8)
