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
model is that of sequential minibatches, whatever the number of shard lanes. Several workers do not
wait for one another, but while a model is young (:class:`~streamlearn.gate.Youth`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from queue import SimpleQueue
from typing import Final

import numpy as np

from streamlearn.compute.kernels.rules import v_rates_of
from streamlearn.compute.pool import Lane
from streamlearn.config import DeepConfig, JobConfig, LdaConfig, MfConfig, ModelConfig
from streamlearn.gate import Youth
from streamlearn.messages import F32, I64, U8, U64
from streamlearn.model import Model
from streamlearn.online.localized import Localized
from streamlearn.online.steps import Gradients, Pending, Values
from streamlearn.shards.cut import Cut, Keeper, Nothing, Part, Table
from streamlearn.shards.dividing import divide, segments_of
from streamlearn.shards.rules import Updater
from streamlearn.shards.table import ExactTable
from streamlearn.stream import Work

__all__ = ["Parcel", "Portion", "Portions", "split"]

_NO_VECTORS: Final[F32] = np.zeros(0, np.float32)
# A worker lane takes about twice as long for a minibatch as all shard lanes together.
_SHARD_LANES: Final = 1 / 3
# What a full table forgets at once, beyond what must go: every worker waits meanwhile.
_EVICTED_SHARE: Final = 1 / 64


def split(job: JobConfig) -> tuple[int, int] | None:
    """Return how many lanes are worker lanes and how many shard lanes; None where none is either.

    Of matrix factorization and of topics none is: their lanes are for further passes. Of a deep net
    one is a worker, whatever the number of lanes.

    Parameters
    ----------
    job : JobConfig
        ``compute.lanes`` is decided (not 0).
    """
    compute = job.compute
    if isinstance(job.model, MfConfig | LdaConfig):
        return None
    if isinstance(job.model, DeepConfig):
        return 1, max(1, compute.shard_lanes)
    if compute.learn_lanes > 1 or (compute.lanes <= 2 and not compute.shard_lanes):
        return None
    shards = compute.shard_lanes or max(1, round(compute.lanes * _SHARD_LANES))
    return compute.lanes - shards, shards


class Parcel:
    """A minibatch on its way from a worker lane to the shard lanes and back; used again and again.

    Attributes
    ----------
    weights, after : float32[>= u]
        Of its keys as they were pulled, and after its push where ``wants_after``.
    wants_fresh : bool
        Whether it is asked which examples had weights that left zero, or new keys.
    slots : int64[>= u]
        Their rows when they were pulled, -1: none.
    generations : int64[portions, 256]
        ``ExactTable.generations`` as each portion had them then.
    evictions : int
        ``Portions.evictions`` before they were pulled.
    dims : int64[>= u]
        How many coordinates of each key's embedding were pulled; 0: none.
    vectors : list of float32[...]
        Those, by portion, as ``Arena.pull`` lays them out.
    pending : Pending or None
        Its step, while that is under way.
    gradients : Gradients
        What the step made of it.
    counting : bool
        Whether its keys' counts are raised.
    scores : float32[rows_max] or float32[rows_max, classes]
        Of its examples.
    bounds : int64[portions + 1]
        Where the keys of each portion begin.
    answers : SimpleQueue
        One None, or the error, from each portion that has done what was posted.
    """

    def __init__(self, rows_max: int, nnz_max: int, portions: int, classes: int = 0) -> None:
        self.work: Work | None = None
        self.localized = Localized(nnz_max)
        self.weights: F32 = np.zeros(nnz_max + 2, np.float32)
        self.after: F32 = np.zeros(nnz_max + 2, np.float32)
        self.slots: I64 = np.zeros(nnz_max + 2, np.int64)
        self.generations: I64 = np.zeros((portions, 256), np.int64)
        self.evictions = 0
        self.dims: I64 = np.zeros(nnz_max + 2, np.int64)
        self.vectors: list[F32] = [_NO_VECTORS] * portions
        self.pending: Pending | None = None
        self.gradients = Gradients(_NO_VECTORS)
        self.counting = True
        self.bounds: I64 = np.zeros(portions + 1, np.int64)
        self.scores: F32 = np.zeros((rows_max, classes) if classes else rows_max, np.float32)
        self.fresh: U8 = np.zeros(rows_max, np.uint8)
        self.marks: U8 = np.zeros(nnz_max + 2, np.uint8)
        self.minute = 0
        self.wants_after = self.wants_fresh = False
        self.answers: SimpleQueue[BaseException | None] = SimpleQueue()
        self.then: list[Callable[[], None]] = []
        self._open = 0  # answers that are still to come

    @property
    def missing(self) -> int:
        """Keys that had no row when they were pulled; the intercept always has one."""
        first = int(self.localized.intercept)
        return int(np.count_nonzero(self.slots[first : self.localized.unique] < 0))

    @property
    def values(self) -> Values:
        """What was pulled."""
        unique = self.localized.unique
        return Values(self.weights[:unique], self.dims[:unique], self.vectors)

    def vectors_of(self, portion: int) -> F32:
        """Return the gradients of a portion's embeddings."""
        first = sum(len(vectors) for vectors in self.vectors[:portion])
        return self.gradients.vectors[first : first + len(self.vectors[portion])]

    def expect(self) -> None:
        """Count on one answer from each portion."""
        self._open += len(self.bounds) - 1

    def wait(self) -> None:
        """Wait until every portion has answered; raise what one of them could not do."""
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


class Portion:
    """What one shard lane owns of the table: the keys from one prefix up to another.

    Attributes
    ----------
    lock : threading.RLock
        Held while the lane is at work on the table; whoever else looks at the portion holds it.
    keeper : Keeper
        Keeps old lines while a cut is open.
    """

    def __init__(
        self, number: int, table: ExactTable, model: ModelConfig, prefixes: tuple[int, int]
    ) -> None:
        self.prefixes = prefixes
        self.lock = threading.RLock()
        self.keeper: Keeper = Nothing()
        self._number = number
        self._table = table
        self._updater = Updater.of(model)
        self._v_rates = v_rates_of(*model.v_rates)
        self._constant = _Constant(table)

    def pull(self, parcel: Parcel) -> None:
        """Find the rows of a minibatch's keys and read their weights."""
        keys, span = self._keys(parcel)
        with self.lock:
            if span.start and not self._number:
                self._constant.value(self._updater, parcel.weights[:1])
                parcel.dims[0] = 0
            parcel.generations[self._number] = self._table.generations
            parcel.slots[span] = self._table.find(keys)
            self._updater.values(self._table, parcel.slots[span], False, parcel.weights[span])
            if (arena := self._table.arena) is not None:
                slots = parcel.slots[span]
                dims = parcel.dims[span] = arena.lengths(slots, parcel.weights[span], False)
                parcel.vectors[self._number] = arena.pull(slots, dims)

    def push(self, parcel: Parcel) -> None:
        """Insert what a minibatch's keys lack, and apply its gradients.

        Raises
        ------
        TableFullError
            The keys crowd a segment that cannot grow any more: nothing was applied here.
        """
        keys, span = self._keys(parcel)
        slots, localized = parcel.slots[span], parcel.localized
        with self.lock:
            self._table.refresh(keys, slots, parcel.generations[self._number])
            self._table.insert(keys, slots, self.keeper)
            if span.start and not self._number:
                self._constant.push(self._updater, localized.gradients[:1])
            counts = localized.counts[span] if parcel.counting else None
            self._updater.push(
                self._table,
                slots,
                localized.gradients[span],
                counts,
                parcel.minute,
                False,
                self.keeper,
            )
            if (arena := self._table.arena) is not None:
                vectors, lines = parcel.vectors_of(self._number), self.keeper.vector_lines
                arena.push(slots, parcel.dims[span], vectors, self._v_rates, lines)
                l1 = float(self._updater.rates[2])
                arena.admit(slots, l1, False, self.keeper, counts)
            if parcel.wants_after:
                self._updater.values(self._table, slots, False, parcel.after[span])

    def weights(self, keys: U64, out: F32) -> None:
        """Read the weights of keys of this portion (0 where there is no row)."""
        with self.lock:
            self._updater.values(self._table, self._table.find(keys), False, out)

    def _keys(self, parcel: Parcel) -> tuple[U64, slice]:
        """Return the keys of this portion but for the intercept, and where they stand."""
        first, end = parcel.bounds[self._number : self._number + 2].tolist()
        if not self._number:
            first = int(parcel.localized.intercept)
        return parcel.localized.keys[first:end], slice(first, end)


class Portions:
    """A model's table, divided between shard lanes.

    Parameters
    ----------
    model : Model
        Its table is one of exact keys; the segments that it has are divided where they must be.
    count : int
        Shard lanes.
    cpu_clock : callable
        Seconds of CPU of the calling thread.

    Attributes
    ----------
    evictions : int
        How often the table has forgotten rows for want of room.
    """

    def __init__(self, model: Model, count: int, cpu_clock: Callable[[], float]) -> None:
        assert isinstance(model.table, ExactTable)
        self._table = model.table
        self._reserved = model.table.features  # rows held, or to be inserted by what is posted
        self._reserving = threading.Lock()
        self.evictions = 0
        edges = divide(model.table, count)
        self.prefixes: Sequence[int] = edges
        self.portions = [
            Portion(i, model.table, model.job.model, (edges[i], edges[i + 1])) for i in range(count)
        ]
        self.lanes = [Lane(f"shard-{i}", cpu_clock) for i in range(count)]
        self.youth = Youth(model.counts.examples // model.job.compute.minibatch)
        model.new_cut = self.cut

    def post(self, push: Parcel | None, pull: Parcel | None) -> None:
        """Have every lane apply one minibatch, then pull for another."""
        for parcel in (push, pull):
            if parcel is not None:
                parcel.expect()
        if pull is not None:
            pull.evictions = self.evictions
        for portion, lane in zip(self.portions, self.lanes, strict=True):
            lane.post(_task(portion, push, pull))

    def reserve(self, parcel: Parcel) -> bool:
        """Count the rows that a minibatch will insert; False, and none, where they might not fit.

        The boundary is held with others until the minibatch is noted: nothing is forgotten
        meanwhile. What was forgotten since the minibatch was pulled may be any of its rows.
        """
        unseen = parcel.evictions != self.evictions
        rows = parcel.localized.unique if unseen else parcel.missing
        if rows == 0:
            return True
        with self._reserving:
            fits = self._reserved + rows <= self._table.features_max
            self._reserved += rows if fits else 0
        return fits

    def make_room(self, parcel: Parcel) -> None:
        """Make room for a minibatch, or find that there is some; no push is on its way.

        Raises
        ------
        TableFullError
            The table may not hold its keys and may not forget others. It is as it was.
        """
        table, localized = self._table, parcel.localized
        first = int(localized.intercept)
        keys, slots = localized.keys[first:], parcel.slots[first : localized.unique]
        with ExitStack() as held:
            for portion in self.portions:
                held.enter_context(portion.lock)
            slots[:] = table.find(keys)
            missing = parcel.missing
            over = table.features + missing - table.features_max
            if over > 0 and missing:
                known = len(keys) - missing
                if not table.would_fit(missing, known):
                    raise table.full_error()
                spare = table.features - max(known, table.features_min)
                self.evictions += 1
                table.evict(min(over + int(table.features_max * _EVICTED_SHARE), spare), keys)
                slots[:] = table.find(keys)
            parcel.generations[:] = table.generations
            self._reserved = table.features + missing

    def weights_at(self, keys: U64) -> F32:
        """Return the weight of each feature key, 0 where the table does not hold it."""
        order = np.argsort(keys, kind="stable")
        ordered, weights = keys[order], np.zeros(len(keys), np.float32)
        lows = np.array([prefix << 56 for prefix in self.prefixes[:-1]], np.uint64)
        bounds = [*np.searchsorted(ordered, lows).tolist(), len(keys)]
        for portion, first, end in zip(self.portions, bounds, bounds[1:], strict=True):
            portion.weights(ordered[first:end], weights[first:end])
        out = np.empty_like(weights)
        out[order] = weights
        return out

    def cut(self, table: Table) -> LaneCut:
        """Return a cut of the table as it is now; no push is on its way."""
        assert table is self._table
        return LaneCut(self._table, self.portions)

    def close(self) -> None:
        """End the lanes."""
        for lane in self.lanes:
            lane.close()


def _task(portion: Portion, push: Parcel | None, pull: Parcel | None) -> Callable[[], None]:
    def run(work: Callable[[Parcel], None], parcel: Parcel) -> None:
        try:
            work(parcel)
        except BaseException as error:  # noqa: BLE001 - raised by Parcel.wait()
            parcel.answers.put(error)
        else:
            parcel.answers.put(None)

    def task() -> None:
        if push is not None:
            run(portion.push, push)
        if pull is not None:
            run(portion.pull, pull)

    return task


class LaneCut:
    """The image of a table whose parts belong to lanes; each keeps its own old lines.

    Made while no push is on its way; parts may be taken from any thread.

    Attributes
    ----------
    intercept : float32[2]
        As it was.
    """

    def __init__(self, table: ExactTable, portions: Sequence[Portion]) -> None:
        self._table = table
        self._portions = portions
        self.intercept: F32 = table.intercept.copy()
        edges = [0, *(portion.prefixes[1] for portion in portions)]
        self._cuts = [Cut(table, parts=parts) for parts in segments_of(table, edges)]
        for portion, cut in zip(portions, self._cuts, strict=True):
            portion.keeper = cut
        table.before_change = self._before_change

    def take(self) -> Part | None:
        """Take the next part, or None: all are taken."""
        for portion, cut in zip(self._portions, self._cuts, strict=True):
            with portion.lock:
                part = cut.take()
            if part is not None:
                return part
        return None

    def close(self) -> None:
        """End the cut: changes need not be kept any more, and what was not taken is gone."""
        for portion, cut in zip(self._portions, self._cuts, strict=True):
            with portion.lock:
                cut.close()
                portion.keeper = Nothing()
        if self._table.before_change == self._before_change:
            self._table.before_change = None

    def _before_change(self, segment: int) -> None:
        # in the lane that owns the segment; or with all locks held, where a full table forgets
        for cut in self._cuts:
            cut.before_change(segment)
