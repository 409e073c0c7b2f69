"""The parameter table: a gapped array in key order that grows where it stands.

A table of exact keys, or of those of a shard's range, is up to 256 *segments*, each an equal range
of the key space in a region of its own within reserved address space. A segment grows by ``GROWTH``
when it is ``LOAD_MAX`` full; one that outgrows ``SPLIT_SLOTS`` splits in two until each has one of
256 ranges, so that huge pages fit small tables and no growth takes long in large ones. Slots stay
valid until their segment is laid out anew (``generations`` counts that). What a full table forgets
stands in ``shards.forgetting``.

This table and that of ``shards.hashed`` are memory of 64-byte lines, and a snapshot's
:class:`~streamlearn.shards.cut.Cut` keeps lines, so it knows nothing of rows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from streamlearn.compute.kernels import rows as row_kernels
from streamlearn.compute.kernels import table as kernels
from streamlearn.errors import TableFullError
from streamlearn.messages import F32, I32, I64, U64
from streamlearn.shards.forgetting import Forgetting, Tombstones
from streamlearn.shards.hashed import HashedTable
from streamlearn.shards.loading import load_rows
from streamlearn.shards.memory import HUGE_BYTES, Reservation

if TYPE_CHECKING:
    from streamlearn.shards.arena import Arena
    from streamlearn.shards.cut import Keeper

__all__ = ["INITIAL_SLOTS", "LOAD_MAX", "SLOT_BYTES", "SPLIT_SLOTS", "ExactTable", "HashedTable"]

SLOT_BYTES: Final = 32
# A key's top 8 bits, its prefix, name one of so many ranges of the key space.
PREFIXES: Final = 256
SEGMENTS_MAX: Final = PREFIXES
# A segment wants to grow beyond this share of its slots, and then gets this many times as many: 32
# bytes / 0.85 is 38 bytes a feature just before a growth and 55 just after. A growth moves every
# row of the segment, so a row is moved 1 / (GROWTH - 1) times on average: 2.2 here, 4 with a
# quarter more at a time.
LOAD_MAX: Final = 0.85
GROWTH: Final = 1.46
# Segments that do not split any more (from some 50 million features on) grow by less at a time:
# most of a growth is the time of the system, for pages that it has not given before.
GROWTH_LARGE: Final = 1.2
# While a table is small (32 MB), its segments double: fewer moves where memory does not matter.
SMALL_SLOTS: Final = 1 << 20
INITIAL_SLOTS: Final = 8192
# 8 MB: growing that much takes a few milliseconds, and four huge pages waste little of it.
SPLIT_SLOTS: Final = 1 << 18
# Slots behind a segment's capacity for probes that run over; a run of that length does not happen
# with mixed keys, and if it does the segment grows.
SLACK_SLOTS: Final = 1024
# A key's other line is in the same page of 64 lines.
PAGE_SLOTS: Final = 128
# Lines are numbered in 32 bits.
ADDRESS_SLOTS_MAX: Final = (1 << 32) - 1


def _no_clock() -> float:
    return 0.0


class ExactTable:
    """Rows of 32 bytes by exact 64-bit keys.

    Kernels insert by themselves and ask for room where a segment is full (``make_room``); or who
    holds slots has missing keys inserted (``insert``) and finds again what moved (``refresh``).

    Parameters
    ----------
    features_max : int
        Named limit (``tables.features_max``): rows beyond it raise TableFullError or are made room
        for. The example that goes beyond it is learned, so as many rows as it has may stand above
        the limit.
    when_full : {"error", "evict"}
        ``evict`` forgets the least seen rows: of one run of ranges after the other a twentieth, or
        the share by which the table would be above its limit, until it would not.
    clock : callable
        Seconds, to say how long growth takes; without one it says 0.
    prefixes : (int, int)
        Ranges ``[low, high)`` of the key space, by a key's top 8 bits, whose keys it holds. Memory
        is laid out for them alone, each segment an aligned run of a power of two of them.

    Attributes
    ----------
    words : uint64[4 * slots]
        The memory, see ``compute.kernels.table``.
    places : uint64[256, 2]
        (scale, offset) by a key's top 8 bits.
    segment_of : int32[256]
        Segment by a key's top 8 bits.
    loads, limits, generations : int64[256]
        Of each segment: rows held, rows above which it asks for room, how often it was laid out.
    intercept : float32[2]
        Columns of the one row that every example has.
    inserted_count : int64[1]
        Rows inserted over the table's life.
    features_min : int
        Rows that forgetting leaves at least.
    before_change, after_change : callable or None
        Told of a segment that is about to be laid out anew; and that it has been, its rows now
        standing in the segments given.
    arena : Arena or None
        Where its embeddings are.
    split_slots : int
        Slots beyond which a segment splits; fewer where rows have long embeddings, since those of a
        segment move, and are copied for a snapshot, together.
    growths : int
    growth_seconds, growth_seconds_max : float
        In all, and of the longest growth.
    """

    index: Final = "exact"

    def __init__(
        self,
        features_max: int,
        when_full: Literal["error", "evict"] = "error",
        clock: Callable[[], float] = _no_clock,
        prefixes: tuple[int, int] = (0, PREFIXES),
    ) -> None:
        self.features_max = features_max
        self.features_min = 0
        self.when_full = when_full
        self.prefixes = prefixes
        first, end = prefixes
        if not 0 <= first < end <= PREFIXES:
            raise ValueError(f"prefixes = {prefixes} are no range within 0 to {PREFIXES}")
        ranges = end - first
        per_segment = int(features_max / ranges / LOAD_MAX * GROWTH * GROWTH) + 1
        most = max(per_segment, int(SPLIT_SLOTS * GROWTH), INITIAL_SLOTS) + SLACK_SLOTS + 1
        huge_slots = HUGE_BYTES // SLOT_BYTES
        self._region_slots = -(-most // huge_slots) * huge_slots
        if self._region_slots * ranges > ADDRESS_SLOTS_MAX:
            most = int(ADDRESS_SLOTS_MAX / ranges / GROWTH / GROWTH * LOAD_MAX) * ranges
            raise TableFullError(
                f"tables.features_max = {features_max:,} is more than one table can address "
                f"({most:,})",
                hint="spread the table over more shards",
            )
        self._memory = Reservation(self._region_slots * ranges * SLOT_BYTES)
        self.words: U64 = self._memory.words
        self.places: U64 = np.zeros((256, 2), np.uint64)
        self.segment_of: I32 = np.zeros(256, np.int32)
        self.loads: I64 = np.zeros(SEGMENTS_MAX, np.int64)
        self.limits: I64 = np.zeros(SEGMENTS_MAX, np.int64)
        self.generations: I64 = np.zeros(SEGMENTS_MAX, np.int64)
        self.intercept = np.zeros(2, np.float32)
        self.inserted_count: I64 = np.zeros(1, np.int64)
        self._forgetting = Forgetting(self)
        self.growths = 0
        self.growth_seconds = 0.0
        self.growth_seconds_max = 0.0
        self._clock = clock
        self.before_change: Callable[[int], None] | None = None
        self._laying_out = threading.Lock()  # of lanes that insert keys of ranges of their own
        self.after_change: Callable[[int, tuple[int, ...]], None] | None = None
        self.arena: Arena | None = None
        self.split_slots = SPLIT_SLOTS
        self._capacities = [0] * SEGMENTS_MAX
        self._loads_max: I64 = np.zeros(SEGMENTS_MAX, np.int64)  # rows that a segment has slots for
        self._bits = [0] * SEGMENTS_MAX  # leading key bits that a segment's keys share
        self._lows = [0] * SEGMENTS_MAX  # those bits, as the first of the 256 ranges it owns
        self._scratch: U64 = np.empty((0, 4), np.uint64)
        self.segments = 0
        self._start(INITIAL_SLOTS, PREFIXES)

    @classmethod
    def sized(
        cls,
        features: int,
        features_max: int,
        when_full: Literal["error", "evict"] = "error",
        clock: Callable[[], float] = _no_clock,
        prefixes: tuple[int, int] = (0, PREFIXES),
        split_slots: int = 0,
    ) -> ExactTable:
        """Return an empty table laid out for ``features`` rows: loading them grows nothing.

        There may be more of them than ``features_max``, which a model's job may have lowered.

        Parameters
        ----------
        split_slots : int
            See the attribute; 0: as usual.
        """
        table = cls(max(features, features_max), when_full, clock, prefixes)
        table.features_max = features_max
        table.split_slots = min(table.split_slots, split_slots or table.split_slots)
        slots = int(features / LOAD_MAX * GROWTH) + INITIAL_SLOTS
        # as many ranges to a segment as a table of all of them would have, this full
        whole = slots * PREFIXES // (prefixes[1] - prefixes[0])
        bits = min(8, max(0, (whole // table.split_slots).bit_length()))
        for segment in range(table.segments):
            table._clear(segment)
        table._start(slots, PREFIXES >> bits, SLACK_SLOTS)
        return table

    def _start(self, slots: int, ranges_max: int, spare: int = 0) -> None:
        """Lay out empty segments of so many slots in all, of ``ranges_max`` ranges at most each."""
        first, end = self.prefixes
        low = first
        self.segments = 0
        while low < end:
            ranges = min(ranges_max, low & -low or PREFIXES, 1 << (end - low).bit_length() - 1)
            bits = (PREFIXES // ranges).bit_length() - 1
            capacity = max(1, slots * ranges // (end - first)) + spare
            self._place(self.segments, bits, low, capacity)
            self.segments += 1
            low += ranges
        self._share_limit()

    # --- for kernels

    def arguments(self) -> tuple[Any, ...]:
        """Return what learn kernels are given of the table."""
        return (
            self.words, self.places, self.segment_of, self.inserted_count, self.loads, self.limits,
            self.intercept,
        )  # fmt: skip

    def score_arguments(self) -> tuple[Any, ...]:
        """Return what score kernels are given of the table."""
        return self.words, self.places, self.intercept

    # --- what a segment is

    def region(self, segment: int) -> tuple[int, int]:
        """Return the slots ``[first, end)`` of a segment, slack included, the fence not."""
        first = segment * self._region_slots
        return first, first + self._capacities[segment] + SLACK_SLOTS

    def span(self, segment: int) -> tuple[int, int]:
        """Return the ranges ``[low, high)`` of the key space that a segment has."""
        low = self._lows[segment]
        return low, low + (PREFIXES >> self._bits[segment])

    def keep(self, segment: int, rows: U64) -> None:
        """Lay out a segment anew with ``rows``, some of its own."""
        if self.before_change is not None:
            self.before_change(segment)
        self._clear(segment)
        self._restore(segment, rows, self._capacities[segment])
        if self.after_change is not None:
            self.after_change(segment, (segment,))

    def rows(self, segment: int) -> U64:
        """Return a copy of a segment's rows, uint64[n, 4], in the order of their slots."""
        first, end = self.region(segment)
        load = int(self.loads[segment])
        out = np.empty((load + 1, 4), np.uint64)
        n = kernels.pack(self.words, first, end, out)
        assert n == load, (n, load)
        return out[:n]

    def key_order(self) -> Iterator[int]:
        """Yield the segments in the order of their keys."""
        return iter(sorted(range(self.segments), key=self._lows.__getitem__))

    @property
    def features(self) -> int:
        """Rows held."""
        return int(self.loads.sum())

    @property
    def capacity(self) -> int:
        """Slots laid out now."""
        return sum(self._capacities)

    @property
    def region_slots(self) -> int:
        """Slots from the start of one segment's region to that of the next."""
        return self._region_slots

    @property
    def nbytes(self) -> int:
        """Bytes of memory laid out now."""
        return (self.capacity + self.segments * (SLACK_SLOTS + 1)) * SLOT_BYTES

    # --- finding and inserting

    def find(self, keys: U64) -> I64:
        """Return the slot of each key (uint64[n]), -1 where it has none."""
        slots = np.empty(len(keys), np.int64)
        kernels.find(self.words, self.places, np.ascontiguousarray(keys, np.uint64), slots)
        return slots

    def rows_at(self, slots: I64) -> U64:
        """Return copies of the rows at ``slots`` (none negative), uint64[n, 4]."""
        out = np.empty((len(slots), 4), np.uint64)
        kernels.gather_rows(self.words, slots, out)
        return out

    def refresh(self, keys: U64, slots: I64, generations: I64) -> None:
        """Find the keys again whose segment was laid out anew; -1 where one is forgotten.

        Parameters
        ----------
        keys, slots : uint64[n], int64[n]
            As :meth:`find` had them; slots are written.
        generations : int64[256]
            ``generations`` as they were then.
        """
        moved = self.generations != generations
        if moved.any():
            row_kernels.find_moved(self.words, self.places, self.segment_of, moved, keys, slots)

    def would_fit(self, missing: int, known: int = 0) -> bool:
        """Say whether :meth:`insert` has room for so many keys.

        Parameters
        ----------
        missing : int
            Keys that the table does not hold, of the list to be inserted.
        known : int
            The rest of the list, which is not evicted for them.
        """
        if self.features + missing <= self.features_max:
            return True
        stay = max(known, self.features_min)
        return self.when_full == "evict" and missing + stay <= self.features_max

    def insert(self, keys: U64, slots: I64, keeper: Keeper) -> None:
        """Insert every key whose slot is -1, with columns and a count of zero, and fill in slots.

        Where there is no room and ``when_full`` is ``evict``, rows are forgotten first, none of
        them of these keys.

        Parameters
        ----------
        keys : uint64[n]
            Ascending, of this table's prefixes.
        slots : int64[n]
            Of :meth:`find` or :meth:`refresh`, with nothing laid out since; written.
        keeper : Cut or Nothing

        Raises
        ------
        TableFullError
            There is no room (``would_fit``): the table is as it was. Or the keys crowd a segment
            that cannot grow any more: some are in.
        """
        missing = int(row_kernels.count_missing(slots))
        if not missing:
            return
        if not self.would_fit(missing, len(keys) - missing):
            raise self.full_error()
        over = self.features + missing - self.features_max
        then = self.generations.copy()
        if over > 0:
            self._forgetting.evict(over, keys)
            self.refresh(keys, slots, then)
        done, inserted = 0, np.zeros(1, np.int64)
        while True:
            done = row_kernels.insert(
                self.words, self.places, self.segment_of, self.loads, self._loads_max,
                inserted, keys, slots, done, *keeper.arguments(missing),
            )  # fmt: skip
            if done == len(keys):
                break
            with self._laying_out:
                then = self.generations.copy()
                self._widen(int(self.segment_of[int(keys[done]) >> 56]), keys)
            self.refresh(keys, slots, then)
        with self._laying_out:
            self.inserted_count += inserted
            self._share_limit()

    def evict(self, rows: int, spared: U64) -> None:
        """Forget so many rows, the least seen, none of the ascending keys ``spared``."""
        self._forgetting.evict(rows, spared)

    def insert_rows(self, rows: U64, vectors: F32 | None = None) -> None:
        """Insert rows with distinct keys that the table does not hold, with their embeddings.

        What a snapshot loads by. ``features_max`` is not looked at: a model that is larger can be
        loaded, and scored with.

        Parameters
        ----------
        rows : uint64[n, 4]
        vectors : float32[m], optional
            As a cut gives them, where the table has an arena.

        Raises
        ------
        TableFullError
            The keys crowd a segment that cannot grow any more.
        ValueError
            There are other embeddings than the rows say.
        """
        load_rows(self, rows)
        if self.arena is not None:
            self.arena.put(rows, np.zeros(0, np.float32) if vectors is None else vectors)

    def make_room(self, segment: int) -> None:
        """Do what a kernel asks for when it stops at a full segment: grow it, or evict, or refuse.

        Raises
        ------
        TableFullError
            More than ``features_max`` rows are held and ``when_full`` is ``error``; or keys crowd a
            segment that cannot grow any more. The table is as it was.
        """
        over = self.features - self.features_max
        crowded = self._is_crowded(segment)
        if over > 0 and self.when_full != "evict":
            raise self.full_error()
        # An example whose rows ran into the fence has taught nothing yet: its own rows are the
        # least seen, and evicting them would only have it insert them again.
        if crowded or (over <= 0 and self.loads[segment] > self._loads_max[segment]):
            self._widen(segment)
        elif over > 0:
            self._forgetting.evict(over)
        # else: it only used up its share of what is left below features_max, or another lane was
        # here before
        self._share_limit()

    def full_error(self) -> TableFullError:
        """Return what whoever finds no room raises."""
        return TableFullError(
            f"the table is full: tables.features_max = {self.features_max:,} features",
            hint="raise tables.features_max, set tables.when_full = 'evict', or use "
            "tables.index = 'hashed'",
        )

    def _widen(self, segment: int, spared: U64 | None = None) -> None:
        """Grow a segment, or forget some of its rows if its region is full."""
        crowded = self._is_crowded(segment)
        started = self._clock()
        try:
            self.grow(segment)
        except TableFullError:
            evicts = self.when_full == "evict" and not crowded
            if not evicts or not self._forgetting.evict_from(*self.span(segment), spared=spared):
                raise
        seconds = self._clock() - started
        self.growth_seconds += seconds
        self.growth_seconds_max = max(self.growth_seconds_max, seconds)

    def grow(self, segment: int) -> None:
        """Give a segment more slots (``GROWTH``), or split it in two; slots of its rows change.

        Raises
        ------
        TableFullError
            Its region is full. The segment is as it was.
        """
        # Rows laid out in another order may run over where they did not: what is crowded goes back
        # as it was.
        first, end = self.region(segment)
        image = self.words[first * 4 : end * 4].copy() if self._is_crowded(segment) else None
        rows = self._take(segment)
        bits, low, before = self._bits[segment], self._lows[segment], self._capacities[segment]
        factor = GROWTH if self.capacity > SMALL_SLOTS // 2 else 2.0
        if self._bits[segment] == 8 and self._capacities[segment] > self.split_slots // 2:
            factor = GROWTH_LARGE
        capacity = int(before * factor) + 1
        while True:
            halves = 2 if capacity > self.split_slots and bits < 8 else 1
            if _whole_pages(capacity // halves) + SLACK_SLOTS + 1 > self._region_slots:
                if image is None:
                    self._restore(segment, rows, before)
                else:
                    self._place(segment, bits, low, before)
                    self.words[first * 4 : end * 4] = image
                    self.loads[segment] = len(rows)
                raise TableFullError(
                    f"a segment of the table is full at {len(rows):,} features "
                    f"(tables.features_max = {self.features_max:,})",
                    hint="raise tables.features_max",
                )
            if halves == 2:
                fits = self._split(segment, rows, capacity)
            else:
                self._place(segment, bits, low, capacity)
                fits = self._fill(segment, rows)
            if fits:
                break
            capacity = int(capacity * GROWTH) + 1
        self.growths += 1
        if self.after_change is not None:
            self.after_change(segment, (segment, self.segments - 1) if halves == 2 else (segment,))

    def _split(self, segment: int, rows: U64, capacity: int) -> bool:
        bits, low = self._bits[segment] + 1, self._lows[segment]
        other = self.segments
        self._place(segment, bits, low, capacity // 2)
        self._place(other, bits, low + (256 >> bits), capacity // 2)
        self.segments += 1
        if self._fill(segment, rows) and self._fill(other, rows):
            return True
        self._clear(segment)
        self._clear(other)
        self.segments -= 1
        self.loads[other] = self._loads_max[other] = self._capacities[other] = 0
        self._bits[segment] = bits - 1
        return False

    def _is_crowded(self, segment: int) -> bool:
        """Say whether rows stand up to a segment's fence: so they do where a probe ran into it."""
        _, end = self.region(segment)
        return bool(self.words[(end - 1) * 4] & np.uint64(1))

    def _share_limit(self) -> None:
        """Let segments ask for room once they are full or used up a share of ``features_max``.

        Shares shrink with what is left, so that the limit holds to within the rows of one example,
        and a table below it is asked a few times for each power of two that is left.
        """
        full = self._loads_max[: self.segments]
        if int(full.sum()) > self.features_max:
            left = max(0, self.features_max - self.features)
            full = np.minimum(full, self.loads[: self.segments] + left // self.segments)
        self.limits[: self.segments] = full

    def expire(self, minute: int, ttl_minutes: int, floor: int, segments: int) -> U64:
        """Forget rows last seen before ``minute - ttl_minutes`` in the next ``segments`` ranges.

        See :meth:`streamlearn.shards.forgetting.Forgetting.expire`.
        """
        return self._forgetting.expire(minute - ttl_minutes, floor, segments)

    @property
    def cursors(self) -> I64:
        """Where forgetting goes on, int64[2]. State, as the rows are (``shards.forgetting``)."""
        return self._forgetting.cursors

    @property
    def evicted(self) -> int:
        """Rows forgotten over the table's life."""
        return self._forgetting.count

    @property
    def evicted_keys(self) -> Tombstones:
        """Keys forgotten since somebody asked last; recorded once its ``keys_max`` is set."""
        return self._forgetting.keys

    def _take(self, segment: int) -> U64:
        """Move a segment's rows to scratch memory and clear its region."""
        if self.before_change is not None:
            self.before_change(segment)
        load = int(self.loads[segment])
        if len(self._scratch) <= load:
            reservation = Reservation(int(load * 2 + 1) * SLOT_BYTES)
            reservation.advise_huge(0, reservation.size_bytes)
            self._scratch = reservation.words.reshape(-1, 4)
        first, end = self.region(segment)
        n = kernels.pack(self.words, first, end, self._scratch)
        assert n == load, (n, load)
        self._clear(segment)
        return self._scratch[:n]

    def _clear(self, segment: int) -> None:
        first, end = self.region(segment)
        if self._capacities[segment]:
            self._memory.clear(first * SLOT_BYTES, (end + 1) * SLOT_BYTES)

    def _restore(self, segment: int, rows: U64, capacity: int) -> None:
        self._place(segment, self._bits[segment], self._lows[segment], capacity)
        fits = self._fill(segment, rows)
        assert fits, "rows that stood in a segment no longer fit it"

    def _fill(self, segment: int, rows: U64) -> bool:
        """Lay out those of ``rows`` that belong to an empty segment; False, and empty, if not."""
        low = self._lows[segment]
        high = low + (256 >> self._bits[segment])
        scale, offset = self.places[low]
        _, end = self.region(segment)
        taken = kernels.lay_out(self.words, rows, len(rows), low, high, scale, offset, end)
        self.loads[segment] = max(taken, 0)
        if taken < 0:
            self._clear(segment)
        return bool(taken >= 0)

    def _place(self, segment: int, bits: int, low: int, capacity: int) -> None:
        """Lay out an empty region: fence, places, limit, huge pages."""
        self._bits[segment], self._lows[segment] = bits, low
        capacity = _whole_pages(capacity)
        self._capacities[segment] = capacity
        self.generations[segment] += 1
        first, end = self.region(segment)
        self._memory.advise_huge(first * SLOT_BYTES, (end + 1) * SLOT_BYTES)
        self.words[end * 4] = kernels.FENCE
        scale = capacity // 2 << bits
        offset = ((first // 2 << 32) - (low << 24) * scale) % (1 << 64)
        ranges = slice(low, low + (256 >> bits))
        self.places[ranges, 0] = scale
        self.places[ranges, 1] = np.uint64(offset)
        self.segment_of[ranges] = segment
        self._loads_max[segment] = self.limits[segment] = int(capacity * LOAD_MAX)


def _whole_pages(slots: int) -> int:
    return -(-slots // PAGE_SLOTS) * PAGE_SLOTS
