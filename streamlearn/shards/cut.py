"""A cut: a table as it was at one moment, taken piece by piece while it goes on changing.

A table's embeddings, if it has some, are memory of the same kind and are cut with it.

When a cut begins, nothing is copied. Until a *part* of the table (a segment, or a range of hashed
rows) has been taken, whoever changes one of its 64-byte lines first keeps the old line
(``compute.kernels.table.preserve``); a part is then copied as it stands and its kept lines are put
back. A kernel pays for this only while a cut is open.

Whoever owns the table calls everything here from the one lane that changes it, between two kernel
calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np

from streamlearn.compute.kernels.table import pack
from streamlearn.messages import F32, I64, U64
from streamlearn.shards.arena import Part
from streamlearn.shards.table import ExactTable, HashedTable

__all__ = ["Cut", "CutArguments", "Keeper", "KeptLines", "Nothing", "Part", "Table"]

Table = ExactTable | HashedTable

# A part of a hashed table with its embeddings, at most: about the size of a segment.
_PART_BYTES: Final = 16 << 20
_SIDE_LINES_INITIAL: Final = 1 << 14
_NO_VECTORS: Final[F32] = np.zeros(0, np.float32)

CutArguments = tuple[int, U64, I64, U64, I64]


class Keeper(Protocol):
    """What learn kernels are given to keep old lines with."""

    @property
    def vector_lines(self) -> Lines:
        """What keeps the lines of embeddings."""
        ...

    def arguments(self, lines_max: int) -> CutArguments:
        """Return (saving, kept, side_lines, side_words, side_count), room for more lines made."""
        ...


class Lines(Protocol):
    """What keeps the old lines of one memory."""

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

    @property
    def vector_lines(self) -> Nothing:
        """Itself."""
        return self

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
    """The image of a table, and of its embeddings, at the moment this object was made.

    Parameters
    ----------
    table : ExactTable or HashedTable
    parts : sequence of int, optional
        Segments that it is of, by key, where the table has several owners; each calls
        ``before_change`` itself. By default all.

    Attributes
    ----------
    pending : list of int
        Parts not taken yet, in the order in which they will be.
    lines_kept : int
        Old lines kept so far, 64 bytes each: the price of learning on.
    vector_lines : KeptLines or Nothing
        Of the embeddings: whoever changes them keeps old lines with this.
    """

    def __init__(self, table: Table, parts: Sequence[int] | None = None) -> None:
        self._table = table
        self._early: list[Part] = []
        self._packed: U64 = np.empty((0, 4), np.uint64)
        self.intercept = table.intercept.copy()
        self.vector_lines: KeptLines | Nothing = Nothing()
        if isinstance(table, ExactTable):
            self.pending = list(table.key_order() if parts is None else parts)
            self._regions = {part: table.region(part) for part in self.pending}
            # a segment's region is an even number of slots
            starts = np.array([table.region(part)[0] // 2 for part in range(table.segments)])
            if parts is None:
                table.before_change = self.before_change
            if (arena := table.arena) is not None:
                self._used = arena.used.copy()
                firsts = [arena.lines(part, 0)[0] for part in range(table.segments)]
                self.vector_lines = KeptLines(arena.words, np.array(firsts))
        else:
            self._part_rows = _part_rows(table)
            self.pending = list(range(-(-len(table.words) // self._part_rows)))
            starts = np.arange(len(self.pending)) * (self._part_rows // 8)
            if (vectors := table.vectors) is not None:
                self.vector_lines = KeptLines(vectors.words, starts * 8 * vectors.row_lines)
        self._lines = KeptLines(table.words, starts)

    @property
    def lines_kept(self) -> int:
        """Old lines kept so far."""
        kept = self.vector_lines
        return self._lines.count + (kept.count if isinstance(kept, KeptLines) else 0)

    def arguments(self, lines_max: int) -> CutArguments:
        """Return what learn kernels keep old lines with; room for ``lines_max`` more is made."""
        return self._lines.arguments(lines_max)

    def take(self) -> Part | None:
        """Take the next part, or None where all are taken."""
        if self._early:
            return self._early.pop(0)
        if not self.pending:
            return None
        return self._take(self.pending.pop(0))

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
            self._early.append(self._take(segment))

    def _take(self, part: int) -> Part:
        if isinstance(self._table, HashedTable):
            return self._take_hashed(part, self._table)
        first, end = self._regions[part]
        image = self._lines.take(part, first // 2, (end + 1) // 2)
        slots = len(image) * 2
        if len(self._packed) <= slots:
            self._packed = np.empty((slots + 1, 4), np.uint64)
        rows = self._packed[: pack(image.reshape(-1), 0, slots, self._packed)]
        # nearly in order, which the stable sort makes use of
        ordered: U64 = np.take(rows, np.argsort(rows[:, 0], kind="stable"), axis=0)
        arena = self._table.arena
        if arena is None:
            return Part(part, ordered, _NO_VECTORS)
        assert isinstance(self.vector_lines, KeptLines)
        low, high = arena.lines(part, int(self._used[part]))
        vectors = self.vector_lines.take(part, low, high).view(np.float32).reshape(-1)
        return Part(part, ordered, arena.take_from(ordered, vectors, low))

    def _take_hashed(self, part: int, table: HashedTable) -> Part:
        first = part * self._part_rows
        end = min(first + self._part_rows, len(table.words))
        rows = self._lines.take(part, first // 8, end // 8).reshape(-1)
        if table.vectors is None:
            return Part(part, rows, _NO_VECTORS)
        assert isinstance(self.vector_lines, KeptLines)
        lines = table.vectors.row_lines
        vectors = self.vector_lines.take(part, first * lines, end * lines)
        return Part(part, rows, vectors.view(np.float32).reshape(-1))


class WholeCut:
    """The same of a table of exact keys, all parts of which are taken before anything changes.

    No old lines are kept, and of each part there is one copy.

    Attributes
    ----------
    at_once : bool
        True.
    """

    at_once: Final = True

    def __init__(self, table: Table) -> None:
        assert isinstance(table, ExactTable)
        self._table = table
        self.intercept = table.intercept.copy()
        self._pending = list(table.key_order())

    def take(self) -> Part | None:
        """Take the next part, or None where all are taken."""
        if not self._pending:
            return None
        part = self._pending.pop(0)
        rows = self._table.rows(part)
        rows = rows[np.argsort(rows[:, 0], kind="stable")]
        arena = self._table.arena
        return Part(part, rows, _NO_VECTORS if arena is None else arena.take(rows))

    def close(self) -> None:
        """End the cut."""
        self._pending.clear()


def _part_rows(table: HashedTable) -> int:
    """Return the rows of a part of a hashed table: a power of two, whole lines."""
    rows = _PART_BYTES // (8 + table.embeddings_bytes // len(table.words))
    return max(64, 1 << rows.bit_length() - 1)
