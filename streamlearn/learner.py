"""The loop: source -> parse -> predict and learn, with few minibatches in flight.

Records are learned in the order of the source's partitions. With two lanes one parses ahead of the
other, which learns in the same order: the result is that of one lane, byte for byte. With several
*learning* lanes each takes partitions of its own, and they learn lock-free on one table; or, with
more than two lanes, as workers of in-process shards (:mod:`streamlearn.lanes`).

What is learned, where the source stands and which records were bad is noted in one place, in the
lane that learns, so it belongs together at every moment between two minibatches: that is where a
snapshot's cut is made.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, nullcontext
from functools import partial
from queue import SimpleQueue
from typing import Final, cast

import numpy as np

from streamlearn.ahead import Ahead
from streamlearn.compute.pool import Lane
from streamlearn.cutting import Cutting, SnapshotDone
from streamlearn.errors import DataError, SourceError, StreamlearnError, TableFullError
from streamlearn.gate import Gate
from streamlearn.lanes import Portions, split
from streamlearn.messages import F32, U8, BadRecord, Block, Partition, Position
from streamlearn.model import Model, Progressed
from streamlearn.model_cut import ModelCut
from streamlearn.notices import Notices
from streamlearn.online.formats import Format
from streamlearn.online.minibatch import Minibatch, room_of
from streamlearn.online.solvers import LocalSolver, Scorer, SharedSolver
from streamlearn.quarantine import Quarantine, check_share
from streamlearn.shards.cut import Cut, Nothing
from streamlearn.shards.table import ExactTable
from streamlearn.stream import Stream, Work
from streamlearn.todo import Reading, SharedTodo, until
from streamlearn.window import PARCELS, TornError, Window
from streamlearn.worker_lane import WorkerLane

__all__ = ["Learner"]

# Minibatches between a parse lane and a learn lane: enough to even out, few enough to stay in the
# caches.
_MINIBATCHES: Final = 6
# Room for features: criteo has 39 a record; longer records make shorter minibatches.
_FEATURES_PER_ROW: Final = 48
# Blocks whose minibatches may be on their way; as many as a source lets its consumer hold.
_BLOCKS_HELD_MAX: Final = 2
# A job stops for its share of bad records only once it has seen this many.
_RECORDS_BEFORE_STOP: Final = 1000


class Learner:
    """Runs records of partitions through a model.

    Parameters
    ----------
    model : Model
        Changed in place where it learns.
    format : Format
    source : Reading
    quarantine : Quarantine or None
        Where bad records are kept; None: they are only counted.
    cpu_clock : callable
        Seconds of CPU of the calling thread.
    tick : callable
        Minutes since the epoch, for rows' last-seen.
    teach : bool
        False: score only.
    scorer : Scorer, optional
        Who scores where nothing is taught; by default the model's solver.
    positions : bool
        Whether to go on from, and note, how far each partition is learned.
    on_scores : callable, optional
        Called in the learn lane with (scores, batch) of each minibatch, in order.

    Attributes
    ----------
    failed : dict
        By partition name, the error that ended it early.
    last : tuple of float, float, int
        Label, score and number of features of the last example.
    control : Lane
        Where what concerns all lanes is done; nothing is learned meanwhile.
    """

    def __init__(
        self,
        model: Model,
        format: Format,
        source: Reading,
        *,
        quarantine: Quarantine | None,
        cpu_clock: Callable[[], float],
        tick: Callable[[], int],
        teach: bool = True,
        scorer: Scorer | None = None,
        positions: bool = True,
        on_scores: Callable[[F32, Minibatch], None] | None = None,
    ) -> None:
        compute = model.job.compute
        self.model = model
        self.failed: dict[str, StreamlearnError] = {}
        self.last: tuple[float, float, int] = (np.nan, np.nan, 0)
        self.records = 0  # of this process, good and bad
        self.stored_bytes = 0  # read by this process, or before by the run that it resumes
        self.reasons: Counter[str] = Counter()  # of bad records of this process
        self.bad = 0
        self.notices = Notices()
        self._arena = model.table.arena if isinstance(model.table, ExactTable) else None
        self.stopped = asyncio.Event()
        model.solver.counting = model.counting
        self._format = format
        self._source = source
        self._quarantine = quarantine
        self._tick = tick
        self._teach = teach
        self._positions = positions and teach
        self._counts_bytes = positions or not teach  # records that come again were counted before
        self._on_scores = on_scores
        self._nothing = Nothing()
        self._failure: BaseException | None = None
        self._torn: TornError | None = None
        self._rate = model.job.source.negative_rate if teach else 1.0
        self._bad_share_max = model.job.source.bad_records_max
        self._loop = asyncio.get_running_loop()
        nnz = max(compute.minibatch * _FEATURES_PER_ROW, 4096)
        rows, nnz = room_of(compute.minibatch, nnz, format.record_rows)
        # The roles of lanes where the table is divided between them: workers and shards.
        roles = split(model.job) if teach and isinstance(model.table, ExactTable) else None
        count = roles[0] if roles else compute.learn_lanes
        # Several learning lanes hold ``_table`` while they change rows, and ``_boundary`` from the
        # first example of a minibatch until it is noted: alone within them, a table can be laid out
        # anew, and a cut be made.
        lock_free = count > 1 and not roles
        self._table: Gate | None = Gate() if lock_free else None
        self._boundary: Gate | None = Gate() if lock_free or roles else None
        self._noting = threading.Lock()
        self._scorer: Scorer = scorer or model.solver
        scratch = [self._scorer.scratch(rows, nnz) for _ in range(count)]
        self._workers = [WorkerLane(model, one, first=i == 0) for i, one in enumerate(scratch)]
        self.learn_lanes = [Lane(f"learn-{i}", cpu_clock) for i in range(count)]
        # A net is stepped in one lane, with all lanes' doings between two of its minibatches.
        deep = model.job.model.kind == "deep"
        two = compute.lanes != 1 and count == 1 and (not roles or deep)
        self.parse_lane = Lane("parse", cpu_clock) if two else None
        self.snapshot_lane = Lane("snapshot", cpu_clock)
        self._cutting = Cutting(
            self.snapshot_lane, self._table.alone if self._table else nullcontext, self._fail
        )
        self._portions = Portions(model, roles[1], cpu_clock) if roles else None
        # where what concerns all lanes is done
        apart = roles and not deep
        self.control = Lane("control", cpu_clock) if apart else self.learn_lanes[0]
        self._windows = [self._window(i, rows, nnz) for i in range(count) if self._portions]
        self._stocks: list[SimpleQueue[Minibatch]] = []
        for _ in range(count):
            stock: SimpleQueue[Minibatch] = SimpleQueue()
            for _ in range(_MINIBATCHES if two else PARCELS if roles else 1):
                stock.put(Minibatch.of(format, rows, nnz))
            self._stocks.append(stock)
        # Which rows a table forgets depends on what has been learned when it does: then nothing is
        # found ahead.
        table = model.table
        self._ahead: Ahead | None = None
        alone = two and teach and not roles
        if alone and isinstance(table, ExactTable) and table.when_full == "error":
            self._ahead = Ahead(table, self.learn_lanes[0], self._fail)

    @property
    def lanes(self) -> list[Lane]:
        """All lanes, for their metrics."""
        parse = [self.parse_lane] if self.parse_lane else []
        shares = [*self._portions.lanes] if self._portions else []
        shares += [] if self.control is self.learn_lanes[0] else [self.control]
        return [*parse, *self.learn_lanes, *shares, self.snapshot_lane]

    def _window(self, number: int, rows: int, nnz: int) -> Window:
        assert self._portions is not None
        assert self._boundary is not None
        worker = self._workers[number]

        def learned(work: Work, scores: F32, fresh: U8) -> None:
            worker.scratch.state[4] = self._windows[number].dropped
            self._learned(work, worker, scores, fresh)
            self._stocks[number].put(work.batch)

        return Window(
            self.model, self._portions, self._boundary, rows, nnz, learned=learned,
            wants_fresh=worker.sampler.due if worker.sampler else lambda rows: False,
            tick=self._tick,
        )  # fmt: skip

    # ---------------------------------------------------------------- in the event loop

    async def run(self, todo: AsyncIterator[tuple[Partition, Position]]) -> None:
        """Learn the partitions to their ends, or until ``stopped`` is set.

        Raises
        ------
        DataError
            Too many records were bad.
        TableFullError
            The table is full.
        """
        if len(self._workers) == 1:
            await self._run_one(todo, 0)
            return
        shared = SharedTodo(todo)
        async with asyncio.TaskGroup() as group:
            for number in range(len(self._workers)):
                group.create_task(self._run_one(shared.each(), number), name=f"learn-{number}")

    async def _run_one(self, todo: AsyncIterator[tuple[Partition, Position]], number: int) -> None:
        first_lane = self.parse_lane or self.learn_lanes[number]
        held = asyncio.Semaphore(_BLOCKS_HELD_MAX)
        stream: Stream | None = None
        begun: dict[str, Position] = {}  # of partitions that are read ahead

        async def noted() -> AsyncIterator[tuple[Partition, Position]]:
            async for partition, position in todo:
                begun[partition.name] = position
                yield partition, position

        async with aclosing(self._source.read_many(noted())) as blocks:
            async for partition, item in until(blocks, self.stopped):
                if isinstance(item, StreamlearnError):
                    self.failed[partition.name] = item
                    begun.pop(partition.name, None)
                    stream = None
                    continue
                if stream is None or stream.partition is not partition:
                    position = begun.pop(partition.name, Position())
                    stream = await self._open(partition, position, item)
                    if stream is None:
                        item.release()
                        continue
                await held.acquire()
                first_lane.post(self._parse_task(stream, item, number, held))
                if item.last:
                    stream = None
                if self._failure is not None:
                    break
        for _ in range(_BLOCKS_HELD_MAX):
            await held.acquire()
        await self.learn_lanes[number].run(lambda: None)
        if self._failure is not None:
            raise self._failure

    async def _open(self, partition: Partition, position: Position, block: Block) -> Stream | None:
        """Make the parser of a partition; None where a bad header (in ``failed``) forbids it."""
        if partition.name in self.failed:
            return None
        try:
            header = await self._source.header(partition) if self._format.first_line else None
            if header == b"" and block.last and block.start == block.end:
                self._note_empty(partition, block.offset)
                return None
            parser = self._format.parser(header)
            self.model.check_inputs(self._format)
        except (DataError, SourceError) as error:
            self.failed[partition.name] = error
            return None
        self.model.names.use_fields(self._format.fields)
        return Stream(
            partition,
            parser,
            header_due=self._format.has_header and position.offset == 0,
            records=position.records if self._positions else 0,
            counted=block.offset,
        )

    def _note_empty(self, partition: Partition, offset: int) -> None:
        """Note that an object in a format with headers has not even that."""
        if self._positions:
            with self._noting:
                self.model.positions[partition.name] = Progressed(
                    partition.version, Position(offset, done=True)
                )

    def stop(self) -> None:
        """Stop after what is in flight."""
        self.stopped.set()

    def abandon(self) -> None:
        """Let go of what is in flight: only ``close`` may follow."""
        self._cutting.abandon()
        self._fail(asyncio.CancelledError())

    async def next_pass(self, *, keep_positions: bool = False) -> None:
        """Begin the next pass over the source, as one step for whatever snapshot is made."""

        def turn() -> None:
            self._come_to_rest()
            with self._noting:
                self.model.epoch += 1
                self.model.swept = 0
                self.model.solver.counting = self.model.counting
                if not keep_positions:
                    self.model.positions.clear()

        await self.control.run(turn)

    async def snapshot(self, begin: Callable[[], ModelCut], done: SnapshotDone) -> None:
        """Begin a snapshot between two minibatches; it is written while learning goes on.

        ``done`` is called in the snapshot lane with what ``ModelCut.commit`` returns, or with
        ``error``.
        """
        await self.control.run(self._begin, begin, done)

    async def advance_snapshot(self) -> bool:
        """Take one part of an open cut, as no block may come; return whether one is open."""
        await self.control.run(self._take_parts, all_parts=False)
        return self._cutting.cut is not None

    async def finish_snapshot(self) -> None:
        """Wait until no snapshot is being made, taking what is left of its cut at once."""
        await self.control.run(self._take_parts, all_parts=True)
        await self.snapshot_lane.run(lambda: None)

    def close(self) -> None:
        """End the lanes."""
        for lane in self.lanes:
            lane.close()

    # ---------------------------------------------------------------- in the first lane

    def _parse_task(
        self, stream: Stream, block: Block, number: int, held: asyncio.Semaphore
    ) -> Callable[[], None]:
        def finished() -> None:
            block.release()
            self._loop.call_soon_threadsafe(held.release)

        def after() -> None:
            try:
                if self._failure is None:
                    self._block_done(stream, block)
            except BaseException as error:  # noqa: BLE001 - raised by run()
                self._fail(error)
            finally:
                finished()

        def task() -> None:
            try:
                if self._failure is None:
                    self._parse(stream, block, number)
            except BaseException as error:  # noqa: BLE001 - raised by run()
                self._fail(error)
            if self.parse_lane is not None:
                self.learn_lanes[number].post(ended)
            else:
                ended()

        def ended() -> None:
            if self._windows:
                self._windows[number].then(after)
                self._settle(number)
            else:
                after()

        return task

    def _settle(self, number: int, *, now: bool = False) -> None:
        """Let no minibatch wait for the next one where none comes soon, or none ever."""
        window = self._windows[number]
        try:
            if self._failure is None and (now or self.learn_lanes[number].idle):
                window.settle()
        except BaseException as error:  # noqa: BLE001 - raised by run()
            self._fail(error)
        if self._failure is not None:
            try:
                window.drop()
            except BaseException as error:  # noqa: BLE001 - raised by run()
                self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, TornError):
            self._torn = error
        if self._failure is None:
            self._failure = error
        if self._portions is not None:
            self._portions.youth.end()
        self._loop.call_soon_threadsafe(self.stopped.set)

    def _parse(self, stream: Stream, block: Block, number: int) -> None:
        """Parse a block's whole records into minibatches and hand them on, in order."""
        lane = self.learn_lanes[number] if self.parse_lane is not None else None
        for work in stream.minibatches(block, self._stocks[number].get, self._rate):
            learn = self._add_or_fail if self._windows else self._learn_or_fail
            if lane is None:
                learn(work, number)
            else:
                if self._ahead is not None:
                    self._ahead.find(work)
                lane.post(partial(learn, work, number))
            if self._failure is not None:
                return

    # ---------------------------------------------------------------- in a learn lane

    def _add_or_fail(self, work: Work, number: int) -> None:
        try:
            if self._failure is None:
                self._windows[number].add(work)
                return
        except BaseException as error:  # noqa: BLE001 - raised by run()
            self._fail(error)
        self._stocks[number].put(work.batch)  # which a parse lane may wait for

    def _learn_or_fail(self, work: Work, number: int) -> None:
        try:
            if self._failure is None:
                with self._boundary.shared() if self._boundary else nullcontext():
                    self._learn(work, number)
        except BaseException as error:  # noqa: BLE001 - raised by run()
            self._fail(error)
        finally:
            self._stocks[number].put(work.batch)

    def _learn(self, work: Work, number: int) -> None:
        worker = self._workers[number]
        try:
            scores = self._step(work, worker)
        except TableFullError:
            learned = int(worker.scratch.state[0])
            self._note_partial(work, worker, learned)
            raise
        self._learned(work, worker, scores, worker.scratch.fresh)

    def _learned(self, work: Work, worker: WorkerLane, scores: F32, fresh: U8) -> None:
        """Note a minibatch that is learned."""
        batch, rows = work.batch, work.batch.rows
        dropped, worker.scratch.state[4] = int(worker.scratch.state[4]), 0
        first = work.base + int(batch.lines[0]) if rows else 0
        self.notices.note_dropped(dropped, work.stream.partition.uri, first, work.base + work.end)
        self.notices.note_documents(batch, work.stream.partition.uri)
        self.notices.look_at(self._arena)
        worker.validation.update(scores, batch.labels[:rows], batch.weights[:rows])
        if self._teach:
            worker.name(work, fresh, (self._portions or self.model).weights_at)
        if self._on_scores is not None:
            self._on_scores(scores, batch)
        if rows:
            features = int(batch.indptr[rows] - batch.indptr[rows - 1])
            score = worker.validation.last_score(scores)
            self.last = (float(batch.labels[rows - 1]), score, features)
        if batch.bad:
            for bad in work.bad_records(self._format):
                self._note_bad(bad)
        self._note(work, batch.records, rows, int(batch.state[4]))
        if self._positions and self.records >= _RECORDS_BEFORE_STOP:
            self.check_bad_share()

    def _step(self, work: Work, worker: WorkerLane) -> F32:
        batch, scratch = work.batch, worker.scratch
        if not self._teach:
            return self._scorer.score(batch, scratch)
        solver, tick = cast("LocalSolver", self.model.solver), self._tick()
        if self._table is None:
            keeper = self._keeper
            if work.slots is not None:
                return solver.learn_resolved(batch, work.slots, scratch, keeper, tick)
            return solver.learn(batch, scratch, keeper, tick)
        return self._step_shared(batch, worker, self._table, tick)

    def _step_shared(self, batch: Minibatch, worker: WorkerLane, gate: Gate, tick: int) -> F32:
        """Learn beside other lanes; alone while a cut is open or a segment is laid out anew."""
        solver, scratch = cast("SharedSolver", self.model.solver), worker.scratch
        with gate.shared():
            if self._cutting.cut is None:
                full = solver.learn_until_full(batch, scratch, self._nothing, tick, 0)
            else:
                full = 0
                scratch.state[0] = 0
        while full >= 0:
            with gate.alone():
                if scratch.state[2] == 1:
                    self.model.table.make_room(full)
                first = int(scratch.state[0])
                full = solver.learn_until_full(batch, scratch, self._keeper, tick, first)
        return cast("F32", scratch.scores[: batch.rows])

    @property
    def _keeper(self) -> Cut | Nothing:
        cut = self._cutting.cut
        return cast("Cut", cut.cut) if cut is not None else self._nothing

    def _note(self, work: Work, records: int, examples: int, subsampled: int) -> None:
        with self._noting:
            stream, counts = work.stream, self.model.counts
            stream.records += records
            position = Position(work.base + work.end, stream.records)
            if self._positions:
                self.model.positions[stream.partition.name] = Progressed(
                    stream.partition.version, position
                )
            self._count_bytes(stream, position.offset)
            counts.examples += examples
            counts.subsampled += subsampled
            self.records += records

    def _count_bytes(self, stream: Stream, offset: int) -> None:
        if self._counts_bytes:
            self.model.counts.bytes += offset - stream.counted
            stream.counted = offset

    def _note_partial(self, work: Work, worker: WorkerLane, learned: int) -> None:
        """Note the examples of a minibatch that were learned before the table was full."""
        batch = work.batch
        worker.validation.update(
            worker.scratch.scores[:learned], batch.labels[:learned], batch.weights[:learned]
        )
        if learned < batch.rows:
            work.end = int(batch.lines[learned])
        before = int(np.count_nonzero(batch.bad_start[: batch.bad] < work.end))
        batch.state[2] = before
        for bad in work.bad_records(self._format):
            self._note_bad(bad)
        self._note(work, learned + before, learned, 0)

    def _note_bad(self, bad: BadRecord) -> None:
        with self._noting:
            self.bad += 1
            self.model.counts.bad_records += 1
            self.reasons[bad.reason] += 1
            if self._quarantine is not None and self.model.epoch == 0:
                self._quarantine.add(bad)

    def check_bad_share(self) -> None:
        """Raise DataError where more records of this run were bad than is allowed."""
        check_share(self.bad, self.records, self._bad_share_max)

    def _block_done(self, stream: Stream, block: Block) -> None:
        with self._noting:
            self.model.counts.stored_bytes += block.stored_bytes
            self.stored_bytes += block.stored_bytes
            offset = block.offset + block.end - block.start
            if block.last:
                self._count_bytes(stream, offset)
            if block.last and self._positions:
                self.model.positions[stream.partition.name] = Progressed(
                    stream.partition.version, Position(offset, stream.records, done=True)
                )
        if self._cutting.cut is not None and not self._windows:
            self._cutting.take_parts(all_parts=False)

    # ---------------------------------------------------------------- snapshots, in the control
    # lane

    def _come_to_rest(self, *, now: bool = True) -> bool:
        """Note what is under way, `now` or if nothing follows, where it is stepped in this lane.

        Returns whether it is: then nothing is noted but in the lane that looks.
        """
        here = bool(self._windows) and self.control is self.learn_lanes[0]
        if here:
            self._settle(0, now=now)
        return here

    def _take_parts(self, *, all_parts: bool) -> None:
        self._come_to_rest(now=False)  # while this waited, the lane was not idle
        self._cutting.take_parts(all_parts=all_parts)

    def _begin(self, begin: Callable[[], ModelCut], done: SnapshotDone) -> None:
        self._come_to_rest()
        self._cutting.take_parts(all_parts=True)
        with self._boundary.alone() if self._boundary else nullcontext(), self._noting:
            if self._torn is not None:
                done({"error": self._torn})
                return
            self._merge()
            self.model.names.flush()
            self._cutting.begin(begin(), done)

    def _merge(self) -> None:
        """Add the validation of the lanes beyond the first to the model's."""
        for worker in self._workers[1:]:
            worker.hand_over(self.model)

    async def summary(self) -> dict[str, float]:
        """Return the validation's figures as they are between two minibatches."""

        def ask() -> dict[str, float]:
            if self._come_to_rest(now=False):
                return self.model.validation.summary()
            with self._boundary.alone() if self._boundary else nullcontext():
                self._merge()
                return self.model.validation.summary()

        return await self.control.run(ask)
