"""One partition on its way through a worker: cut, pulled for, stepped, pushed, durable everywhere.

A few minibatches are under way at once. Each holds a permit of the window from its pulls until its
pushes are sent: what is pulled next is read behind them, so the window is how much a read may miss.
What waits to become durable is bounded apart from that. Steps and pushes keep the order of the
minibatches, so every shard sees the partition's in sequence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from streamlearn import columns
from streamlearn.cluster.batcher import Batcher, Cut
from streamlearn.cluster.preparing import Buffers, Part, Prepared, Pushed, codings, marked
from streamlearn.cluster.remote import RewindError, Ticket
from streamlearn.config import LdaConfig
from streamlearn.errors import RefusedError, StreamlearnError, TableFullError
from streamlearn.messages import U8, Block, Partition, Position
from streamlearn.online.formats import Described
from streamlearn.online.localized import Localized
from streamlearn.online.minibatch import Minibatch
from streamlearn.protocol import (
    Mark,
    Pull,
    Pulled,
    PulledFactors,
    PullFactors,
    PullTopics,
    Push,
    PushFactors,
    PushTopics,
)
from streamlearn.quarantine import check_share
from streamlearn.stream import Stream

if TYPE_CHECKING:
    from streamlearn.cluster.worker import Worker
    from streamlearn.messages import I64

__all__ = ["Flight", "as_local"]

# Minibatches parsed and localised ahead of the window.
_AHEAD: Final = 2
# Minibatches whose pushes are sent and not yet known to be durable: they hide the shards' syncs of
# their logs, and are kept (some 200 kB each) to be sent again.
_OPEN_MAX: Final = 8
_RECORDS_BEFORE_STOP: Final = 1000


class Flight:
    """A partition, from a mark to its end.

    Parameters
    ----------
    worker : Worker
        Whose lanes, remotes and clock it uses.
    partition : Partition
    mark : Mark
        Where it begins.
    """

    def __init__(self, worker: Worker, partition: Partition, mark: Mark) -> None:
        self._worker = worker
        self._partition = partition
        self._begun = mark
        self._mark = mark  # behind the last minibatch that was stepped
        self._stored_bytes = 0  # read, and not yet in a mark
        self._topical = isinstance(worker.job.model, LdaConfig)
        self._asked = mark.sequence  # of the last minibatch that was pulled for
        self._pull_coding, self._push_coding = codings(worker.job)
        self._free: asyncio.Queue[Buffers] = asyncio.Queue()
        self._ahead: asyncio.Queue[Prepared | None] = asyncio.Queue(_AHEAD)
        self._permits = asyncio.Semaphore(worker.window)
        self._open = asyncio.Semaphore(_OPEN_MAX + worker.window)

    async def run(self) -> None:
        """Learn it; end once everything is durable on every shard, or after a stop.

        Raises
        ------
        RewindError
            A shard has less than it had: begin again from the least mark.
        StreamlearnError
            A shard refuses for good, or the partition cannot be read.
        """
        for number in range(self._worker.window + _AHEAD + 1):
            self._free.put_nowait(self._buffers(number))
        users = self._worker.stepper.users = self._worker.users
        if users is not None:
            users.drop()
        try:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(self._watch(), name="watch")
                hold = group.create_task(self._worker.hold(self._partition.name), name="hold")
                group.create_task(self._parse(), name="parse")
                await self._send(group)
                watch.cancel()
                hold.cancel()
        except BaseExceptionGroup as errors:
            raise _leaf(errors) from None

    def _buffers(self, number: int) -> Buffers:
        """Return buffers of a minibatch, those of an earlier partition where there are some."""
        worker = self._worker
        while len(worker.pool) <= number:
            batch = Minibatch.of(worker.format, worker.rows, worker.nnz)
            worker.pool.append(Buffers(batch, Localized(worker.nnz)))
        return worker.pool[number]

    async def _watch(self) -> None:
        """Fail as soon as a remote does."""
        changed = self._worker.changed
        while True:
            for remote in self._worker.remotes:
                if remote.failed is not None:
                    raise as_local(remote.failed)
                if remote.rewinds:
                    raise RewindError
            changed.clear()
            await changed.wait()

    # ---------------------------------------------------------------- to the pulls

    async def _parse(self) -> None:
        """Cut the partition into minibatches and prepare them, a few ahead of their pulls."""
        worker, mark = self._worker, self._begun
        first_line = worker.format.first_line
        header = await worker.source.header(self._partition) if first_line else None
        reserve: list[Buffers] = []
        lent: dict[int, Buffers] = {}

        def stock() -> Minibatch:
            buffers = reserve.pop()
            lent[id(buffers.batch)] = buffers
            return buffers.batch

        batcher: Batcher | None = None
        position = Position(mark.offset, mark.records)
        async with aclosing(worker.source.read(self._partition, position)) as blocks:
            async for block in blocks:
                try:
                    if batcher is None:
                        if (
                            not mark.sequence
                        ):  # the record across a range's start is the one's before
                            offset = max(mark.offset, block.offset)
                            self._mark = msgspec.structs.replace(self._mark, offset=offset)
                        stream = self._stream(header, block)
                        rate = worker.job.source.negative_rate
                        batcher = Batcher(
                            stream, worker.format, stock, rate, mark.offset, worker.names,
                            worker.sampler,
                        )  # fmt: skip
                    self._stored_bytes += block.stored_bytes
                    worker.stored_bytes += block.stored_bytes
                    cuts = batcher.feed(block)
                    while True:
                        if not reserve:  # as many as cutting one minibatch may take
                            reserve.append(await self._free.get())
                        prepared = await worker.parse_lane.run(self._prepare, cuts, lent)
                        if prepared is None:
                            break
                        await self._ahead.put(prepared)
                finally:
                    block.release()
                if worker.stopped.is_set():
                    break
        await self._ahead.put(None)

    def _stream(self, header: bytes | None, block: Block) -> Stream:
        worker, mark = self._worker, self._begun
        empty = header == b"" and block.last and block.start == block.end
        if not empty:
            worker.names.use_fields(worker.format.fields)
        return Stream(
            self._partition,
            _Nothing() if empty else worker.format.parser(header),
            header_due=worker.format.has_header and mark.offset == 0,
            records=mark.records,
            counted=mark.offset,
        )

    def _prepare(self, cuts: Iterator[Cut], lent: dict[int, Buffers]) -> Prepared | None:
        """Cut and localise the next minibatch; in the parse lane."""
        cut = next(cuts, None)
        if cut is None:
            return None
        return self._worker.preparer.prepare(cut, lent.pop(id(cut.batch)))

    # ---------------------------------------------------------------- from the pulls on

    async def _send(self, group: asyncio.TaskGroup) -> None:
        """Send each minibatch on its way as soon as the window lets it."""
        worker, loop = self._worker, asyncio.get_running_loop()
        before: asyncio.Future[None] = loop.create_future()
        before.set_result(None)
        while (prepared := await self._ahead.get()) is not None:
            await self._permits.acquire()
            await self._open.acquire()
            while not worker.member or any(r.noted > worker.clock for r in worker.remotes):
                # shards went on without it: it begins where they are, with nothing under way
                await self._landed()
                await worker.take_part()
            clock = worker.start_minibatch()
            self._asked += 1
            prepared.place = (self._partition.name, self._begun.epoch, self._asked)
            prepared.plan = worker.copies.plan(
                prepared.buffers.localized.keys, prepared.items, clock
            )
            tickets = [
                remote.pull(self._pull(prepared, part, clock))
                for remote, part in zip(worker.remotes, prepared.parts, strict=True)
            ]
            sent: asyncio.Future[None] = loop.create_future()
            group.create_task(
                self._fly(prepared, tickets, clock, before, sent), name=f"minibatch-{clock}"
            )
            before = sent
        await self._landed()

    def _pull(self, prepared: Prepared, part: Part, clock: int) -> Pull:
        incarnation, coding = self._worker.who.incarnation, self._pull_coding
        told = (0, incarnation, clock, part.count, part.keys, coding)
        if self._topical:
            return PullTopics(*told, *prepared.place)
        if part.items is None:
            return Pull(*told)
        used = (prepared.plan.used[part.first : part.end] >= 0).astype(np.int64)
        copied = columns.encode_lengths(used, (1,)).data
        return PullFactors(*told, copied)

    def _answered(self, prepared: Prepared, pulled: Sequence[Pulled]) -> None:
        """Note how fresh the copies are that are made of what came."""
        copies, keys = self._worker.copies, prepared.buffers.localized.keys
        for part, answer in zip(prepared.parts, pulled, strict=True):
            if isinstance(answer, PulledFactors):
                copies.answered(prepared.plan, keys, part.first, part.end, answer.clock)

    async def _landed(self) -> None:
        """Wait until nothing is under way."""
        held = 0
        while self._worker.in_flight:
            await self._open.acquire()
            held += 1
        for _ in range(held):
            self._open.release()

    async def _fly(
        self,
        prepared: Prepared,
        tickets: Sequence[Ticket],
        clock: int,
        before: asyncio.Future[None],
        sent: asyncio.Future[None],
    ) -> None:
        """Take one minibatch from its pulls to its durable pushes."""
        worker, cut, parts = self._worker, prepared.cut, prepared.parts
        pulled = [await ticket.answer for ticket in tickets]
        self._answered(prepared, pulled)
        await before
        epoch = self._mark.epoch
        pushed, totals = await worker.step(prepared, pulled, clock, epoch)
        self._note_dropped(cut)
        stored, self._stored_bytes = self._stored_bytes, 0
        size, records = max(0, cut.offset - self._mark.offset), cut.batch.records
        mark = self._mark = marked(self._mark, cut, totals, stored)
        if worker.users is not None:
            await worker.step_lane.run(worker.users.apply, mark)
        self._free.put_nowait(prepared.buffers)
        worker.stepped += records
        if cut.bad:
            self._note_bad(cut, first_pass=epoch == 0)
        answers = [
            remote.push(self._push(part, one, clock, mark), ticket)
            for remote, part, one, ticket in zip(
                worker.remotes, parts, pushed, tickets, strict=True
            )
        ]
        sent.set_result(None)
        self._permits.release()
        for answer in answers:
            await answer
        worker.end_minibatch(clock, totals.examples, records, size)
        self._open.release()

    def _push(self, part: Part, pushed: Pushed, clock: int, mark: Mark) -> Push:
        who = self._worker.who
        told = (
            0, who.name, who.incarnation, clock, 0, part.signature, part.count, part.keys,
            self._push_coding, pushed.values, pushed.counts, mark, pushed.lengths, pushed.vectors,
        )  # fmt: skip
        if self._topical:
            return PushTopics(*told, pushed.documents, pushed.topics, pushed.fit)
        return Push(*told) if part.items is None else PushFactors(*told, part.items, pushed.shares)

    def _note_dropped(self, cut: Cut) -> None:
        """Say where the minibatch stands that had examples of which nothing is learned."""
        worker, batch = self._worker, cut.batch
        first = int(batch.lines[0]) if batch.rows else cut.offset
        dropped = worker.stepper.dropped - worker.notices.dropped
        worker.notices.note_dropped(dropped, self._partition.uri, first, cut.offset)
        worker.notices.note_documents(batch, self._partition.uri)

    def _note_bad(self, cut: Cut, *, first_pass: bool) -> None:
        """Keep bad records aside before the shards are told that they are dealt with."""
        worker = self._worker
        worker.bad += len(cut.bad)
        worker.reasons.update(bad.reason for bad in cut.bad)
        if worker.quarantine is not None and first_pass:
            for bad in cut.bad:
                worker.quarantine.add(bad)
            worker.quarantine.flush()
        # not those that are durable: others are under way, and their bad ones are counted, too
        records = worker.stepped
        if records >= _RECORDS_BEFORE_STOP:
            check_share(worker.bad, records, worker.job.source.bad_records_max)


class _Nothing:
    """The parser of an object without even a header: it has nothing to parse."""

    def parse(self, buffer: U8, start: int, end: int, out: Minibatch) -> int:
        """Never called."""
        raise AssertionError((start, end))

    def describe(self, buffer: U8, starts: I64, ends: I64) -> Described:
        """Never called."""
        raise AssertionError


def as_local(error: StreamlearnError) -> StreamlearnError:
    """Return what a shard refuses as the error that it is here."""
    if isinstance(error, RefusedError) and error.code == "full":
        return TableFullError(error.message, cause=error.cause, hint=error.hint)
    return error


def _leaf(group: BaseExceptionGroup[Any]) -> BaseException:
    """Return what a group is about: that a shard makes it begin again, or the first failure."""
    leaves = [
        leaf
        for error in group.exceptions
        for leaf in ([_leaf(error)] if isinstance(error, BaseExceptionGroup) else [error])
    ]
    known = [leaf for leaf in leaves if isinstance(leaf, RewindError | StreamlearnError)]
    return next(iter(sorted(known, key=lambda leaf: not isinstance(leaf, RewindError))), leaves[0])
