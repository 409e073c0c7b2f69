"""In-process shards: one table, each part of it changed by a lane of its own, without locks in it.

*Worker lanes* parse, localise and step, each with partitions of its own; *shard lanes* find the
rows of a minibatch's keys, read their weights and apply its gradients, each for its own ranges of
the key space. A lane does what is posted to it in order, which is all the order that there is: a
worker posts the push of a minibatch and the pull of the next one together, so each of its
minibatches sees all its pushes before. While shards work on that, the worker parses and localises
the minibatch after it.

::

    worker  parse 3 | wait for pull 2 | note 1 | step 2 | parse 4 | wait for pull 3 | note 2 ...
    shards            push 1, pull 2                    | push 2, pull 3            | push 3 ...

A minibatch is *noted* (position, validation, bad records) once its push is applied, and between its
push being posted and its being noted the worker holds the ``boundary`` gate together with the
others: whoever holds it alone sees table and positions of one moment. With one worker lane the
model is that of sequential minibatches, whatever the number of shard lanes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from queue import SimpleQueue
from typing import Final, Protocol

import numpy as np

from streamlearn.compute.kernels.steps import left_zero
from streamlearn.compute.pool import Lane
from streamlearn.errors import RunError, TableFullError
from streamlearn.gate import Gate
from streamlearn.messages import F32, I64, U8, U64
from streamlearn.model import Model
from streamlearn.online.localized import Localized, Localizer
from streamlearn.online.minibatch import Minibatch
from streamlearn.online.steps import LogisticStep
from streamlearn.sections import ComputeConfig
from streamlearn.shards.cut import Cut, Keeper, Nothing, Table
from streamlearn.shards.dividing import divide, segments_of
from streamlearn.shards.rules import Updater
from streamlearn.shards.table import ExactTable
from streamlearn.stream import Work

__all__ = ["FLIGHTS", "Shares", "TornError", "Window", "rehearse", "split"]

# Minibatches of a worker: one whose push is being applied, one whose pull is, one being parsed.
FLIGHTS: Final = 3
# A worker lane takes about twice as long for a minibatch as all shard lanes together.
_SHARD_LANES: Final = 1 / 3
# What a full table forgets at once, beyond what must go: every worker waits meanwhile.
_EVICTED_SHARE: Final = 1 / 64


class TornError(RunError):
    """Some lanes applied a minibatch and one could not: the table is of no one moment."""


def split(compute: ComputeConfig) -> tuple[int, int] | None:
    """Return how many lanes are worker lanes and how many shard lanes; None where none is either.

    Parameters
    ----------
    compute : ComputeConfig
        ``lanes`` is decided (not 0).
    """
    if compute.learn_lanes > 1 or (compute.lanes <= 2 and not compute.shard_lanes):
        return None
    shards = compute.shard_lanes or max(1, round(compute.lanes * _SHARD_LANES))
    return compute.lanes - shards, shards


class Flight:
    """A minibatch on its way from a worker lane to the shard lanes and back; used again and again.

    Attributes
    ----------
    weights, after : float32[>= u]
        Of its keys as they were pulled, and after its push where ``wants_after``.
    slots : int64[>= u]
        Their rows when they were pulled, -1: none.
    generations : int64[shares, 256]
        ``ExactTable.generations`` as each share had them then.
    bounds : int64[shares + 1]
        Where the keys of each share begin.
    answers : SimpleQueue
        One None, or the error, from each share that has done what was posted.
    """

    def __init__(self, rows_max: int, nnz_max: int, shares: int) -> None:
        self.work: Work | None = None
        self.localized = Localized(nnz_max)
        self.weights: F32 = np.zeros(nnz_max + 2, np.float32)
        self.after: F32 = np.zeros(nnz_max + 2, np.float32)
        self.slots: I64 = np.zeros(nnz_max + 2, np.int64)
        self.generations: I64 = np.zeros((shares, 256), np.int64)
        self.bounds: I64 = np.zeros(shares + 1, np.int64)
        self.scores: F32 = np.zeros(rows_max, np.float32)
        self.fresh: U8 = np.zeros(rows_max, np.uint8)
        self.marks: U8 = np.zeros(nnz_max + 2, np.uint8)
        self.minute = 0
        self.wants_after = False
        self.answers: SimpleQueue[BaseException | None] = SimpleQueue()
        self.then: list[Callable[[], None]] = []
        self._open = 0  # answers that are still to come

    @property
    def missing(self) -> int:
        """Keys that had no row when they were pulled; the intercept always has one."""
        first = int(self.localized.intercept)
        return int(np.count_nonzero(self.slots[first : self.localized.unique] < 0))

    def expect(self) -> None:
        """Count on one answer from each share."""
        self._open += len(self.bounds) - 1

    def wait(self) -> None:
        """Wait until every share has answered; raise what one of them could not do."""
        failure: BaseException | None = None
        while self._open:
            failure = self.answers.get() or failure
            self._open -= 1
        if failure is not None:
            raise failure


class _Constant:
    """The intercept as a table of one row, for an updater."""

    def __init__(self, table: ExactTable) -> None:
        self.words: U64 = np.zeros(4, np.uint64)
        self._columns: F32 = self.words.view(np.float32)[2:4]
        self._slots: I64 = np.zeros(1, np.int64)
        self._table = table

    def value(self, updater: Updater, out: F32) -> None:
        self._columns[:] = self._table.intercept
        updater.values(self, self._slots, True, out)

    def push(self, updater: Updater, gradient: F32) -> None:
        self._columns[:] = self._table.intercept
        updater.push(self, self._slots, gradient, None, 0, True, Nothing())
        self._table.intercept[:] = self._columns


class Share:
    """What one shard lane owns of the table: the keys from one prefix up to another.

    Attributes
    ----------
    lock : threading.RLock
        Held while the lane is at work on the table; whoever else looks at the share holds it.
    keeper : Keeper
        Keeps old lines while a cut is open.
    """

    def __init__(
        self, number: int, table: ExactTable, updater: Updater, prefixes: tuple[int, int]
    ) -> None:
        self.prefixes = prefixes
        self.lock = threading.RLock()
        self.keeper: Keeper = Nothing()
        self._number = number
        self._table = table
        self._updater = updater
        self._constant = _Constant(table)

    def pull(self, flight: Flight) -> None:
        """Find the rows of a minibatch's keys and read their weights."""
        keys, span = self._keys(flight)
        with self.lock:
            if span.start and not self._number:
                self._constant.value(self._updater, flight.weights[:1])
            flight.generations[self._number] = self._table.generations
            flight.slots[span] = self._table.find(keys)
            self._updater.values(self._table, flight.slots[span], False, flight.weights[span])

    def push(self, flight: Flight) -> None:
        """Insert what a minibatch's keys lack, and apply its gradients.

        Raises
        ------
        TableFullError
            The keys crowd a segment that cannot grow any more: nothing was applied here.
        """
        keys, span = self._keys(flight)
        slots, localized = flight.slots[span], flight.localized
        with self.lock:
            self._table.refresh(keys, slots, flight.generations[self._number])
            self._table.insert(keys, slots, self.keeper)
            if span.start and not self._number:
                self._constant.push(self._updater, localized.gradients[:1])
            self._updater.push(
                self._table,
                slots,
                localized.gradients[span],
                localized.counts[span],
                flight.minute,
                False,
                self.keeper,
            )
            if flight.wants_after:
                self._updater.values(self._table, slots, False, flight.after[span])

    def weights(self, keys: U64, out: F32) -> None:
        """Read the weights of keys of this share (0 where there is no row)."""
        with self.lock:
            self._updater.values(self._table, self._table.find(keys), False, out)

    def _keys(self, flight: Flight) -> tuple[U64, slice]:
        """Return the keys of this share but for the intercept, and where they stand."""
        first, end = flight.bounds[self._number : self._number + 2].tolist()
        if not self._number:
            first = int(flight.localized.intercept)
        return flight.localized.keys[first:end], slice(first, end)


class Shares:
    """A model's table, divided between shard lanes.

    Parameters
    ----------
    model : Model
        Its table is one of exact keys; the segments that it has are divided where they must be.
    count : int
        Shard lanes.
    cpu_clock : callable
        Seconds of CPU of the calling thread.
    """

    def __init__(self, model: Model, count: int, cpu_clock: Callable[[], float]) -> None:
        assert isinstance(model.table, ExactTable)
        self._table = model.table
        self._reserved = model.table.features  # rows held, or to be inserted by what is posted
        self._reserving = threading.Lock()
        edges = divide(model.table, count)
        self.prefixes: Sequence[int] = edges
        updater = Updater.of(model.job.model)
        self.shares = [
            Share(i, model.table, updater, (edges[i], edges[i + 1])) for i in range(count)
        ]
        self.lanes = [Lane(f"shard-{i}", cpu_clock) for i in range(count)]
        model.new_cut = self.cut

    def post(self, push: Flight | None, pull: Flight | None) -> None:
        """Have every lane apply one minibatch, then pull for another."""
        for flight in (push, pull):
            if flight is not None:
                flight.expect()
        for share, lane in zip(self.shares, self.lanes, strict=True):
            lane.post(_task(share, push, pull))

    def reserve(self, rows: int) -> bool:
        """Count rows that will be inserted; False, and none counted, where they might not fit."""
        if rows == 0:
            return True
        with self._reserving:
            fits = self._reserved + rows <= self._table.features_max
            self._reserved += rows if fits else 0
        return fits

    def make_room(self, flight: Flight) -> None:
        """Make room for a minibatch, or find that there is some; no push is on its way.

        Raises
        ------
        TableFullError
            The table may not hold its keys and may not forget others. It is as it was.
        """
        table, localized = self._table, flight.localized
        first = int(localized.intercept)
        keys, slots = localized.keys[first:], flight.slots[first : localized.unique]
        with ExitStack() as held:
            for share in self.shares:
                held.enter_context(share.lock)
            slots[:] = table.find(keys)
            missing = flight.missing
            over = table.features + missing - table.features_max
            if over > 0 and missing:
                known = len(keys) - missing
                if not table.would_fit(missing, known):
                    raise table.full_error()
                spare = table.features - max(known, table.features_min)
                table.evict(min(over + int(table.features_max * _EVICTED_SHARE), spare), keys)
                slots[:] = table.find(keys)
            flight.generations[:] = table.generations
            self._reserved = table.features + missing

    def weights_at(self, keys: U64) -> F32:
        """Return the weight of each feature key, 0 where the table does not hold it."""
        order = np.argsort(keys, kind="stable")
        ordered, weights = keys[order], np.zeros(len(keys), np.float32)
        lows = np.array([prefix << 56 for prefix in self.prefixes[:-1]], np.uint64)
        bounds = [*np.searchsorted(ordered, lows).tolist(), len(keys)]
        for share, first, end in zip(self.shares, bounds, bounds[1:], strict=True):
            share.weights(ordered[first:end], weights[first:end])
        out = np.empty_like(weights)
        out[order] = weights
        return out

    def cut(self, table: Table) -> LaneCut:
        """Return a cut of the table as it is now; no push is on its way."""
        assert table is self._table
        return LaneCut(self._table, self.shares)

    def close(self) -> None:
        """End the lanes."""
        for lane in self.lanes:
            lane.close()


def _task(share: Share, push: Flight | None, pull: Flight | None) -> Callable[[], None]:
    def run(work: Callable[[Flight], None], flight: Flight) -> None:
        try:
            work(flight)
        except BaseException as error:  # noqa: BLE001 - raised by Flight.wait()
            flight.answers.put(error)
        else:
            flight.answers.put(None)

    def task() -> None:
        if push is not None:
            run(share.push, push)
        if pull is not None:
            run(share.pull, pull)

    return task


class LaneCut:
    """The image of a table whose parts belong to lanes; each keeps its own old lines.

    Made while no push is on its way; parts may be taken from any thread.

    Attributes
    ----------
    intercept : float32[2]
        As it was.
    """

    def __init__(self, table: ExactTable, shares: Sequence[Share]) -> None:
        self._table = table
        self._shares = shares
        self.intercept: F32 = table.intercept.copy()
        edges = [0, *(share.prefixes[1] for share in shares)]
        self._cuts = [Cut(table, parts=parts) for parts in segments_of(table, edges)]
        for share, cut in zip(shares, self._cuts, strict=True):
            share.keeper = cut
        table.before_change = self._before_change

    def take(self) -> tuple[int, U64] | None:
        """Take the next part: (segment, its rows at the cut by key), or None: all are taken."""
        for share, cut in zip(self._shares, self._cuts, strict=True):
            with share.lock:
                part = cut.take()
            if part is not None:
                return part
        return None

    def close(self) -> None:
        """End the cut: changes need not be kept any more, and what was not taken is gone."""
        for share, cut in zip(self._shares, self._cuts, strict=True):
            with share.lock:
                cut.close()
                share.keeper = Nothing()
        if self._table.before_change == self._before_change:
            self._table.before_change = None

    def _before_change(self, segment: int) -> None:
        # in the lane that owns the segment; or with all locks held, where a full table forgets
        for cut in self._cuts:
            cut.before_change(segment)


def rehearse(model: Model, batch: Minibatch) -> None:
    """Call each kernel of these lanes once, on a small model."""
    assert isinstance(model.table, ExactTable)
    flight = Flight(batch.rows_max, batch.nnz_max, 1)
    step = LogisticStep(model.job.model)
    share = Share(0, model.table, Updater.of(model.job.model), (0, 256))
    localized = Localizer(batch.nnz_max).localize(batch, flight.localized, intercept=step.intercept)
    flight.bounds[:] = localized.bounds((0, 256))
    flight.wants_after = True
    share.pull(flight)
    step.step(batch, localized, flight.weights[: localized.unique], flight.scores)
    flight.generations -= 1  # as if all segments were laid out anew
    share.push(flight)
    _count_fresh(flight, batch)


def _count_fresh(flight: Flight, batch: Minibatch) -> None:
    localized = flight.localized
    left_zero(
        localized.inverse, batch.indptr, batch.rows, int(localized.intercept), flight.weights,
        flight.after, flight.marks[: localized.unique], flight.fresh,
    )  # fmt: skip


class Learned(Protocol):
    """What is told of a minibatch once it is applied, while the boundary is held."""

    def __call__(self, work: Work, scores: F32, fresh: U8) -> None:
        """Note a minibatch.

        Parameters
        ----------
        scores : float32[rows]
            Of its examples, before it taught.
        fresh : uint8[>= rows]
            How many weights left zero at each example, where that was asked for.
        """
        ...


class Window:
    """The minibatches that one worker lane has on their way.

    Parameters
    ----------
    model : Model
    shares : Shares
    boundary : Gate
        Held, with others, while a push is on its way.
    rows_max, nnz_max : int
        Of a minibatch.
    learned : callable
        See :class:`Learned`.
    wants_fresh : callable
        Given the rows of the next minibatch, whether ``learned`` will look at ``fresh``.
    tick : callable
        Minutes since the epoch.
    """

    def __init__(
        self,
        model: Model,
        shares: Shares,
        boundary: Gate,
        rows_max: int,
        nnz_max: int,
        *,
        learned: Learned,
        wants_fresh: Callable[[int], bool],
        tick: Callable[[], int],
    ) -> None:
        self._shares = shares
        self._boundary = boundary
        self._learned = learned
        self._wants_fresh = wants_fresh
        self._tick = tick
        self._step = LogisticStep(model.job.model)
        self._localizer = Localizer(nnz_max)
        self._free = [Flight(rows_max, nnz_max, len(shares.shares)) for _ in range(FLIGHTS)]
        self._pulling: Flight | None = None
        self._pushing: Flight | None = None
        self._held = ExitStack()
        self._orphans: list[Callable[[], None]] = []  # of a minibatch while it is noted

    def add(self, work: Work) -> None:
        """Localise a minibatch and pull for it; step with and push the one before.

        Raises
        ------
        TableFullError
            The table has no room for what the one before would insert; of it nothing is learned.
        TornError
            A lane could not apply a push that others applied.
        """
        flight = self._free.pop()
        flight.work = work
        localized = self._localizer.localize(
            work.batch, flight.localized, intercept=self._step.intercept
        )
        flight.bounds[:] = localized.bounds(self._shares.prefixes)
        before, self._pulling = self._pulling, None
        if before is not None:
            self._push(before, flight)
        else:
            self._shares.post(None, flight)
        self._pulling = flight

    def then(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once all that was added is noted."""
        last = self._pulling or self._pushing
        if last is not None:
            last.then.append(callback)
        else:
            callback()

    def settle(self) -> None:
        """Wait until all that was added is learned and noted; raises as :meth:`add` does."""
        before, self._pulling = self._pulling, None
        if before is not None:
            self._push(before, None)
        self._land()

    def drop(self) -> None:
        """After an error: note what is applied, and forget the rest.

        Raises
        ------
        TornError
            As :meth:`add`.
        """
        flight, self._pulling = self._pulling, None
        try:
            self._land()
            if flight is not None:
                flight.wait()
        finally:
            callbacks, self._orphans = self._orphans, []
            for callback in (*callbacks, *(flight.then if flight is not None else ())):
                callback()
            self._held.close()

    def _push(self, flight: Flight, following: Flight | None) -> None:
        """Step with a minibatch that is pulled, and post its push with the pull of the next."""
        work = flight.work
        assert work is not None
        try:
            flight.wait()
            self._land()
            localized, rows = flight.localized, work.batch.rows
            weights = flight.weights[: localized.unique]
            self._step.step(work.batch, localized, weights, flight.scores)
            flight.minute = self._tick()
            flight.wants_after = self._wants_fresh(rows)
            if self._shares.reserve(flight.missing):
                self._held.enter_context(self._boundary.shared())
            else:
                self._held.enter_context(self._boundary.alone())
                self._shares.make_room(flight)
        except BaseException:
            self._pulling = flight  # of which nothing is learned: it will be dropped
            raise
        self._pushing = flight
        self._shares.post(flight, following)

    def _land(self) -> None:
        """Note the minibatch whose push is applied by now, and let go of the boundary."""
        flight, self._pushing = self._pushing, None
        if flight is not None:
            self._note(flight)
            self._held.close()

    def _note(self, flight: Flight) -> None:
        """Wait for a push, and note its minibatch."""
        work = flight.work
        assert work is not None
        callbacks, flight.then = flight.then, []
        self._orphans += callbacks
        try:
            flight.wait()
        except TableFullError as error:
            raise TornError(
                "a part of the table could not take a minibatch that the others took",
                cause=error.message,
                hint="the snapshot before it is whole: raise tables.features_max and start again",
            ) from error
        rows = work.batch.rows
        if flight.wants_after:
            _count_fresh(flight, work.batch)
        self._learned(work, flight.scores[:rows], flight.fresh)
        self._free.append(flight)
        self._orphans.clear()
        for callback in callbacks:
            callback()
