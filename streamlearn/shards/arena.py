"""Arenas: the embeddings of a table's features, in a memory beside the table's.

A segment of the table has a region of the arena, used from its beginning on; the two are laid out
anew together: a segment that grows, splits or forgets takes its embeddings along, close up and in
the order of its slots. So an embedding is freed with its feature, or when it grows, and the lines
that are free then are given back at the next growth.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np

from streamlearn.compute.kernels import embeddings as kernels
from streamlearn.compute.kernels import factors
from streamlearn.config import DeepConfig, FmConfig, LdaConfig, MfConfig
from streamlearn.embeddings import Tiers
from streamlearn.errors import TableFullError
from streamlearn.messages import F32, I64, U8, U32, U64
from streamlearn.shards.memory import HUGE_BYTES, Reservation

if TYPE_CHECKING:
    from streamlearn.shards.cut import Keeper, Lines
    from streamlearn.shards.table import ExactTable

__all__ = ["LINE_FLOATS", "Arena", "Geometry", "Part", "dims_of", "sliced", "split_slots"]

# Models whose rows have something in an arena.
_Long: TypeAlias = FmConfig | MfConfig | LdaConfig | DeepConfig

LINE_FLOATS: Final = 16
_NO_COUNTS: Final[U32] = np.zeros(0, np.uint32)
LINE_BYTES: Final = 64
# Embeddings of a segment, about: what is copied at a time when it grows, or for a snapshot. Of long
# ones a segment has few, and a copy is most of what a process needs beside them.
_SEGMENT_BYTES: Final = 64 << 20
_SEGMENT_BYTES_LONG: Final = 8 << 20
_LONG_LINES: Final = 8
_SLOTS_MIN: Final = 1 << 11
# Lines that a segment leaves behind are given back from so many bytes on.
_DISCARD_BYTES: Final = 1 << 20


class Part(NamedTuple):
    """A part of a table as it was.

    Attributes
    ----------
    number : int
        A segment; of a hashed table, how many parts come before.
    rows : uint64[n, 4] or uint64[n]
        By key, for an exact table; those of a hashed one.
    vectors : float32[m]
        The embeddings of those rows, back to back as they lie in memory. Of an exact table the
        rows' words 3 say how long each is, and no longer where it is.
    """

    number: int
    rows: U64
    vectors: F32


class Geometry:
    """Tiers of embeddings as kernels take them.

    Parameters
    ----------
    tiers : Tiers
    l1_shrk : bool
        Whether embeddings are left out while the weight of their feature is zero.
    region_slots, region_lines : int
        Of a segment; 0 for a hashed table.

    Attributes
    ----------
    counts, dims : int64[tiers]
    layout : int64[8]
        See ``compute.kernels.embeddings``.
    """

    def __init__(
        self, tiers: Tiers, *, l1_shrk: bool, region_slots: int = 0, region_lines: int = 0
    ) -> None:
        self.tiers = tiers
        self.counts: I64 = np.array(tiers.counts, np.int64)
        self.dims: I64 = np.array(tiers.dims, np.int64)
        self.layout: I64 = np.array(
            [
                tiers.lanes, tiers.order, 4 * tiers.block_floats, max(1, region_slots),
                region_lines, l1_shrk, tiers.row_sum, 0,
            ],
            np.int64,
        )  # fmt: skip

    def occupied(self, rows: U64) -> int:
        """Return the floats that the embeddings of rows (uint64[n, 4]) take."""
        return LINE_FLOATS * int(kernels.occupied(rows, self.layout))

    def coordinates(self, rows: U64, vectors: F32) -> F32:
        """Return the embeddings of rows without what lies between their coordinates.

        Parameters
        ----------
        rows : uint64[n, 4]
        vectors : float32[occupied(rows)]
            As a cut gives them.

        Returns
        -------
        float32[n, dim * (order - 1)]
            Zeros where a row has none.
        """
        return self._coordinates(dims_of(rows[:, 3]), vectors)

    def all_coordinates(self, vectors: F32) -> F32:
        """Return the same of rows that all have the longest one: float32[n, floats of a row]."""
        dims = np.full(len(vectors), self.tiers.dim, np.int64)
        return self._coordinates(dims, vectors.reshape(-1))

    def _coordinates(self, dims: I64, vectors: F32) -> F32:
        out = np.zeros((len(dims), self.tiers.dim * self.tiers.parts), np.float32)
        kernels.unpack(np.ascontiguousarray(vectors), dims, self.layout, self.tiers.dim, out)
        return out


def dims_of(words: U64) -> I64:
    """Return how many coordinates rows' embeddings have, by their words 3; 0: there is none."""
    return (words >> np.uint64(48)).astype(np.int64)


def split_slots(tiers: Tiers | None) -> int:
    """Return beyond how many slots a segment with such embeddings splits; 0: as without."""
    if tiers is None:
        return 0
    lines = tiers.lines(tiers.dim)
    most = _SEGMENT_BYTES if lines < _LONG_LINES else _SEGMENT_BYTES_LONG
    return max(most // (LINE_BYTES * lines), _SLOTS_MIN)


def sliced(part: Part, first: int, end: int, tiers: Tiers | None) -> Part:
    """Return the rows ``[first, end)`` of a part of an exact table, with their embeddings.

    Parameters
    ----------
    tiers : Tiers or None
        Of the model; None: it has no embeddings.
    """
    rows = part.rows[first:end]
    if tiers is None or not len(part.vectors):
        return Part(part.number, rows, part.vectors)
    dims = dims_of(part.rows[:, 3])
    blocks = -(-(dims + tiers.row_sum * (dims > 0)) // tiers.lanes)
    ends = np.concatenate([[0], np.cumsum(blocks * tiers.block_floats)])
    return Part(part.number, rows, part.vectors[ends[first] : ends[end]])


class Arena:
    """The embeddings of an exact table.

    Parameters
    ----------
    table : ExactTable
        Whose rows' words 3 say which embedding they have; no rule of its may use that, and no other
        arena. The table knows the arena from then on.
    tiers : Tiers
    l1_shrk : bool
    bytes_max : int
        Named limit (``tables.embeddings_bytes_max``): beyond it no row earns one.
    scale : float
        New embeddings are drawn from between minus and plus this.

    Attributes
    ----------
    geometry : Geometry
    words : uint64[...]
        The memory, eight words to a line.
    values : float32[...]
        The same.
    used, live : int64[256]
        Lines that each segment has used (its first, which is never given, too), and lines that
        rows of its have.
    room : int64[2]
        Lines that rows may have in all; how often a row was refused one for that.
    weightless : bool
        Whether a row whose weight is zero earns an embedding all the same: nets may have no
        weights.

    Raises
    ------
    ResourceError
        The system refuses so many addresses.
    """

    def __init__(
        self, table: ExactTable, tiers: Tiers, *, l1_shrk: bool, bytes_max: int, scale: float
    ) -> None:
        region_slots = table.region_slots
        # a feature that climbs leaves the lines of lower tiers behind until the next growth
        self._region_lines = region_slots * sum(tiers.lines(dim) for dim in tiers.dims)
        self.geometry = Geometry(
            tiers, l1_shrk=l1_shrk, region_slots=region_slots, region_lines=self._region_lines
        )
        self.scale = np.float32(scale)
        self.weightless = False
        # weakly, since the table holds this: both are gigabytes that must go once nobody uses them
        self._table: ExactTable = weakref.proxy(table)
        regions = len(table.words) // 4 // region_slots
        self._memory = Reservation(regions * self._region_lines * LINE_BYTES)
        self.words: U64 = self._memory.words
        self.values: F32 = self.words.view(np.float32)
        self.used: I64 = np.ones_like(table.loads)
        self.live: I64 = np.zeros_like(table.loads)
        self.room: I64 = np.array([bytes_max // LINE_BYTES, 0], np.int64)
        self._advised = [0] * len(self.used)  # bytes of each region
        table.arena = self
        table.split_slots = min(table.split_slots, split_slots(tiers))
        table.after_change = self._relocate

    @classmethod
    def of(cls, table: ExactTable, model: _Long, bytes_max: int) -> Arena:
        """Return the arena of a model's table."""
        arena = cls(
            table, model.tiers, l1_shrk=model.l1_shrk, bytes_max=bytes_max, scale=model.v_init_scale
        )
        arena.weightless = isinstance(model, DeepConfig)
        return arena

    @property
    def bytes_max(self) -> int:
        """Bytes that embeddings may have."""
        return int(self.room[0]) * LINE_BYTES

    @property
    def nbytes(self) -> int:
        """Bytes of the embeddings that rows have."""
        return int(self.live.sum()) * LINE_BYTES

    @property
    def refused(self) -> int:
        """How often a row was refused an embedding since there was no room."""
        return int(self.room[1])

    def arguments(self) -> tuple[Any, ...]:
        """Return what learn kernels are given of it."""
        geometry = self.geometry
        return (
            geometry.counts, geometry.dims, geometry.layout, self.values, self.words, self.used,
            self.live, self.room,
        )  # fmt: skip

    # --- for whoever holds slots

    def lengths(self, slots: I64, weights: F32, bare: bool) -> I64:
        """Return how many coordinates of each row's embedding are used now, int64[n].

        Parameters
        ----------
        slots : int64[n]
            -1: none.
        weights : float32[n]
            Of the rows.
        bare : bool
            Whether the first is the constant feature, which has no embedding.
        """
        dims = np.empty(len(slots), np.int64)
        kernels.lengths(self._table.words, slots, weights, int(bare), self.geometry.layout, dims)
        return dims

    def pull(self, slots: I64, dims: I64) -> F32:
        """Return embeddings back to back: of each its coordinates of order 2, then of order 3.

        Parameters
        ----------
        slots, dims : int64[n], int64[n]
            Of :meth:`lengths`, or less.
        """
        out = np.empty(int(dims.sum()) * self.geometry.tiers.parts, np.float32)
        kernels.pull(self._table.words, slots, dims, self.geometry.layout, self.values, out)
        return out

    def push(self, slots: I64, dims: I64, gradients: F32, rates: F32, keeper: Lines) -> None:
        """Take one step with each embedding, in place; without sums of squares, add the gradients.

        Parameters
        ----------
        slots, dims : int64[n], int64[n]
            Rows, each once; coordinates that the gradient has of each.
        gradients : float32[sum of dims * (order - 1)]
            As :meth:`pull` lays them out; finite.
        rates : float32[8]
            See ``compute.kernels.fm.learn``.
        keeper : Lines
            Of the arena's memory.

        Raises
        ------
        ValueError
            There are more or fewer gradients.
        """
        expected = int(dims.sum()) * self.geometry.tiers.parts
        if len(gradients) != expected:
            raise ValueError(f"{len(gradients)} gradients of embeddings, expected {expected}")
        tiers = self.geometry.tiers
        lines = int(np.count_nonzero(dims)) * tiers.lines(tiers.dim)
        if not (tiers.sums or tiers.row_sum):
            kernels.add(
                self._table.words, slots, dims, gradients, self.geometry.layout, self.values,
                self.words, *keeper.arguments(lines),
            )  # fmt: skip
            return
        step: Any = kernels.push if tiers.sums else kernels.push_by_row
        step(
            self._table.words, slots, dims, gradients, self.geometry.layout, self.values,
            self.words, rates[0], rates[1], rates[2], *keeper.arguments(lines),
        )  # fmt: skip

    def admit(
        self, slots: I64, l1: float, bare: bool, keeper: Keeper, counts: U32 | None = None
    ) -> int:
        """Give rows the embedding that they have earned; return how many got a longer one.

        Parameters
        ----------
        slots : int64[n]
            Rows, none negative.
        l1 : float
            Rows whose z is not beyond it have a weight of zero, and earn nothing (unless the arena
            is ``weightless``).
        bare : bool
            Whether the first is the constant feature.
        keeper : Keeper
            Of the table.
        counts : uint32[n], optional
            How often each stood in the minibatch that was applied, which its count is divided by: a
            threshold waits for so many minibatches, in which a young model comes to its senses.
            (Embeddings that begin with the first minibatch all move the same way: logloss of a
            million clicks 0.482 instead of 0.478, two workers 0.505 instead of 0.487.)
        """
        times = _NO_COUNTS if counts is None else counts
        admit: Any = kernels.admit  # numba's stubs count the arguments of another function
        admitted = admit(
            self._table.words, slots, times, np.float32(-1 if self.weightless else l1), int(bare),
            *self._earning(), self.scale, *keeper.arguments(len(slots)),
        )  # fmt: skip
        self.advise()
        return int(admitted)

    def ready(self, slots: I64, items: I64, shares: U8, bare: bool, keeper: Keeper) -> int:
        """Ready rows of a factorized matrix for a push; return how many got factors.

        Parameters
        ----------
        slots : int64[n]
            Rows, none negative.
        items : int64[n]
            1 for items, 0 for users.
        shares : uint8[2 * n]
            How much is kept of each row's bias and factors, 255: all.
        bare : bool
            Whether the first is the constant feature.
        keeper : Keeper
            Of the table.
        """
        lines = len(slots) * self.geometry.tiers.lines(self.geometry.tiers.dim)
        ready: Any = factors.ready  # numba's stubs count the arguments of another function
        begun = ready(
            self._table.words, slots, items, shares, int(bare), *self.arguments(), self.scale,
            *keeper.arguments(len(slots)), *keeper.vector_lines.arguments(lines),
        )  # fmt: skip
        self.advise()
        return int(begun)

    def _earning(self) -> tuple[Any, ...]:
        geometry = self.geometry
        return (
            geometry.counts, geometry.dims, geometry.layout, self.values, self.used, self.live,
            self.room,
        )  # fmt: skip

    def coordinates_at(self, slots: I64) -> F32:
        """Return rows' embeddings, float32[n, dim * (order - 1)]; zeros for none, or slot -1."""
        rows: U64 = np.zeros((len(slots), 4), np.uint64)
        rows[slots >= 0] = self._table.rows_at(slots[slots >= 0])
        return self.geometry.coordinates(rows, self.take(rows.copy()))

    # --- rows as they stand outside a table

    def take(self, rows: U64) -> F32:
        """Return the embeddings of copies of rows, and take the places out of the rows.

        Parameters
        ----------
        rows : uint64[n, 4]
            As they stand in the table; of their words 3 the places go, the lengths stay.

        Returns
        -------
        float32[m]
            Back to back, in the order of the rows, as they lie in memory.
        """
        return self.take_from(rows, self.values, 0)

    def take_from(self, rows: U64, image: F32, first_line: int) -> F32:
        """Do the same with an image of the memory from ``first_line`` on."""
        out = np.empty(self.geometry.occupied(rows), np.float32)
        kernels.pack(rows, self.geometry.layout, image, first_line, out)
        return out

    def put(self, rows: U64, vectors: F32) -> None:
        """Give rows that were inserted their embeddings, as :meth:`take` returned them.

        Parameters
        ----------
        rows : uint64[n, 4]
            Their words 3 say how long each is.
        vectors : float32[m]

        Raises
        ------
        ValueError
            There are more or fewer numbers than the rows say.
        TableFullError
            A segment has no room for so many embeddings.
        """
        if len(vectors) != self.geometry.occupied(rows):
            raise ValueError(
                f"{len(vectors)} numbers of embeddings, expected {self.geometry.occupied(rows)}"
            )
        if not len(vectors):
            return
        slots = self._table.find(rows[:, 0])
        fits = kernels.write(
            self._table.words, slots, rows, self.geometry.layout, self.values, self.used,
            self.live, np.ascontiguousarray(vectors),
        )  # fmt: skip
        if not fits:
            raise TableFullError("a segment of the table has no room for so many embeddings")
        self.advise()

    def release(self, segment: int) -> None:
        """Let the embeddings of a segment go, and give their pages back: its rows have none now."""
        first, end = self._table.region(segment)
        self._table.words[first * 4 + 3 : end * 4 : 4] = 0
        line, last = self.lines(segment, int(self.used[segment]))
        self._memory.discard(line * LINE_BYTES, last * LINE_BYTES)
        self.used[segment], self.live[segment] = 1, 0

    # --- for a cut

    def lines(self, segment: int, used: int) -> tuple[int, int]:
        """Return the lines ``[first, end)`` of a segment, the one that is never given included."""
        first = segment * self._region_lines
        return first, first + used

    # --- memory

    def _relocate(self, segment: int, heirs: tuple[int, ...]) -> None:
        """Take the embeddings of a segment along to those that its rows have been laid out in."""
        used = int(self.used[segment])
        if used == 1:
            return
        first, end = self.lines(segment, used)
        span = slice(first * LINE_FLOATS, end * LINE_FLOATS)
        old = self.values[span].copy()
        self.values[span] = 0
        for heir in heirs:
            target = heir * self._region_lines + 1
            lines = kernels.relocate(
                self._table.words, *self._table.region(heir), self.geometry.layout, old, first,
                self.values, target,
            )  # fmt: skip
            self.used[heir], self.live[heir] = lines + 1, lines
        stay = first + (int(self.used[segment]) if segment in heirs else 1)
        if (end - stay) * LINE_BYTES >= _DISCARD_BYTES:
            self._memory.discard(stay * LINE_BYTES, end * LINE_BYTES)
        self.advise()

    def advise(self) -> None:
        """Advise huge pages for regions that have come to fill some, one page ahead.

        (Of a region that has not filled one, none: 256 of them would waste half a gigabyte.)
        """
        region_bytes = self._region_lines * LINE_BYTES
        sizes = self.used * LINE_BYTES
        for segment in np.flatnonzero(sizes > HUGE_BYTES).tolist():
            size = min(-(-int(sizes[segment]) // HUGE_BYTES + 1) * HUGE_BYTES, region_bytes)
            if size > self._advised[segment]:
                first = segment * region_bytes
                self._memory.advise_huge(first + self._advised[segment], first + size)
                self._advised[segment] = size
