"""The worker's loop: claim a partition, cut it into minibatches, pull, step and push each of them.

    source -> parse lane: cut, localise -> pulls -> step lane: score, gradients -> pushes -> durable

A few minibatches are under way at once (``tables.window``); each holds a permit from its pulls
until its pushes are durable on every shard, which bounds memory and staleness alike. Steps and
pushes keep the order of the minibatches, so every shard sees each partition's in sequence.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, suppress
from typing import Any, Final, Protocol

import msgspec

from streamlearn.batcher import Batcher, Cut
from streamlearn.config import JobConfig
from streamlearn.errors import (
    DataError,
    ObjectChangedError,
    RefusedError,
    SourceError,
    StreamlearnError,
    TableFullError,
)
from streamlearn.messages import Block, Partition, Position
from streamlearn.online.formats import Format
from streamlearn.online.localized import Localized
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch
from streamlearn.online.names import Names, Sampler
from streamlearn.online.validation import BinaryValidation
from streamlearn.preparing import Buffers, Prepared, Preparer, Stepper, codings, marked
from streamlearn.protocol import (
    NOTHING_LEFT,
    WAIT,
    Claim,
    Claimed,
    Finished,
    Leave,
    Listed,
    Mark,
    Pull,
    Push,
    Register,
    Reopen,
    State,
    StateIs,
)
from streamlearn.quarantine import Quarantine
from streamlearn.remote import Remote, RewindError, Ticket, Who
from streamlearn.shard_host import Worked
from streamlearn.stream import Stream

__all__ = ["Records", "Worker"]

_log = logging.getLogger("streamlearn.worker")

# Minibatches parsed and localised ahead of the window.
_AHEAD: Final = 2
_FEATURES_PER_ROW: Final = 48
# While others hold what is left.
_WAIT_SECONDS: Final = 0.1
_WAIT_SECONDS_MAX: Final = 1.0
_RECORDS_BEFORE_STOP: Final = 1000


class Records(Protocol):
    """What the worker needs of a source."""

    async def partitions(self) -> list[Partition]:
        """List the partitions there are now."""
        ...

    def read(self, partition: Partition, position: Position) -> Any:
        """Return an asynchronous generator of a partition's blocks."""
        ...

    async def header(self, partition: Partition) -> bytes:
        """Return the first line of the partition's object."""
        ...


class Worker:
    """Learns what it is handed, until there is nothing left.

    Parameters
    ----------
    job : JobConfig
    who : Who
    remotes : sequence of Remote
        By shard; made with this worker's ``oldest`` and ``wake``: see :meth:`attach`.
    source : Records
    format : Format
    parse_lane, step_lane : Worked
        May be one.
    names : Names
    validation : BinaryValidation
    quarantine : Quarantine or None

    Attributes
    ----------
    examples, records, bad, bytes, stored_bytes : int
        Of this process.
    failed : dict
        By partition, why it could not be learned to its end.
    state : str
        ``joining``, ``learning``, ``waiting``, ``draining``, ``done``.
    """

    def __init__(
        self,
        job: JobConfig,
        who: Who,
        source: Records,
        format: Format,
        parse_lane: Worked,
        step_lane: Worked,
        names: Names,
        validation: BinaryValidation,
        quarantine: Quarantine | None,
    ) -> None:
        self.job = job
        self.names = names
        self.validation = validation
        self.examples = self.records = self.bad = self.bytes = self.stored_bytes = 0
        self.reasons: Counter[str] = Counter()
        self.failed: dict[str, StreamlearnError] = {}
        self.state = "joining"
        self.partition = ""
        self.rewinds = 0
        self._who = who
        self._remotes: Sequence[Remote] = ()
        self._source = source
        self._format = format
        self._parse_lane, self._step_lane = parse_lane, step_lane
        self._quarantine = quarantine
        self._window = job.tables.minibatches_in_flight
        rows = job.compute.minibatch
        self._nnz = max(rows * _FEATURES_PER_ROW, 4096) + FEATURES_PER_RECORD_MAX
        self._rows = rows
        self.stepper = Stepper(job, rows, validation)
        self._preparer: Preparer | None = None
        self._sampler = Sampler()
        self._listed: dict[str, Partition] = {}
        self._next = 0  # clock of the next minibatch
        self._flying: set[int] = set()
        self._changed = asyncio.Event()
        self._stopped = asyncio.Event()
        self._member = False
        self._pool: list[Buffers] = []
        self._seen: dict[int, int] = {}  # connections of each remote whose marks were looked at
        self._registered = -1  # connections of the first shard when it was told the partitions

    def attach(self, remotes: Sequence[Remote], lows: Sequence[int]) -> None:
        """Say which shards there are: their remotes, and the first prefix of each."""
        self._remotes = remotes
        self._preparer = Preparer(self.job, lows, self._nnz)

    def oldest(self) -> int:
        """Return the clock of the oldest minibatch that is not durable everywhere, or the next."""
        return min(self._flying, default=self._next)

    def wake(self) -> None:
        """Have the worker look at its remotes."""
        self._changed.set()

    def stop(self) -> None:
        """End after what is under way."""
        self._stopped.set()

    @property
    def clock(self) -> int:
        """Number of the next minibatch."""
        return self._next

    @property
    def source_bytes(self) -> int:
        """Stored bytes of the whole source; -1 where that is unknown, or where it goes on."""
        sizes = [p.end - p.start if p.end >= 0 else p.size for p in self._listed.values()]
        ends = bool(sizes) and min(sizes) >= 0 and not self.job.source.follow
        return sum(sizes) if ends else -1

    @property
    def in_flight(self) -> int:
        """Minibatches that are not durable everywhere."""
        return len(self._flying)

    # ---------------------------------------------------------------- from claim to claim

    async def run(self) -> None:
        """Learn until nothing is left, or until stopped.

        Raises
        ------
        StreamlearnError
            A shard refuses for good, or too many records are bad.
        """
        for partition in await self._source.partitions():
            self._listed[partition.name] = partition
        tasks = [
            asyncio.create_task(remote.run(), name=f"remote-{remote.index}")
            for remote in self._remotes
        ]
        try:
            await self._unless_failed(self._learn())
            self.state = "done"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _learn(self) -> None:
        wait = _WAIT_SECONDS
        while not self._stopped.is_set():
            await self._meet()
            claimed = await self._remotes[0].insist(
                Claim(self._who.name, self._who.incarnation, [], wanted=True)
            )
            assert isinstance(claimed, Claimed)
            if claimed.state == NOTHING_LEFT and not self.job.source.follow:
                if await self._all_done(claimed.epoch):
                    break
            elif claimed.state == WAIT or claimed.state == NOTHING_LEFT:
                self.state = "waiting"
                await self._leave()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopped.wait(), wait)
                wait = min(2 * wait, _WAIT_SECONDS_MAX)
                if self.job.source.follow:
                    await self._list_again()
            else:
                wait = _WAIT_SECONDS
                self.state, self.partition = "learning", claimed.partition
                await self._learn_partition(claimed.partition, claimed.epoch)
        self.state = "draining"
        await self._leave()

    async def _meet(self) -> None:
        """Wait for all shards; tell the first what there is, and what others lack of it."""
        for remote in self._remotes:
            await remote.joined.wait()
        first = self._remotes[0]
        if self._registered != first.connections:
            connections = first.connections
            listed = [Listed(p.name, p.version, p.size) for p in self._listed.values()]
            epochs = self.job.model.epochs
            await first.insist(Register(listed, not self.job.source.follow, epochs))
            self._registered = connections
            self._seen.clear()
        for remote in self._remotes:
            if self._seen.get(remote.index) != remote.connections:
                self._seen[remote.index] = remote.connections
                await self._reopen(remote)

    async def _reopen(self, remote: Remote) -> None:
        """Have partitions handed out again that a shard lacks the end of."""
        lacking: dict[int, list[str]] = {}
        for name in self._listed:
            mark = remote.marks.get(name)
            lacks = 0 if mark is None else mark.epoch + mark.done
            if lacks < self.job.model.epochs:
                lacking.setdefault(lacks, []).append(name)
        for epoch, names in sorted(lacking.items()):
            await self._remotes[0].insist(Reopen(names, epoch))

    async def _list_again(self) -> None:
        fresh = [p for p in await self._source.partitions() if p.name not in self._listed]
        for partition in fresh:
            self._listed[partition.name] = partition
        if fresh:
            self._registered = -1

    async def _all_done(self, epoch: int) -> bool:
        """Say whether every shard has every partition to its end; hand out what is not."""
        done = True
        for remote in self._remotes:
            answer = await remote.insist(State())
            assert isinstance(answer, StateIs)
            marks = {mark.partition: mark for mark in answer.marks}
            lacking = [
                name
                for name in self._listed
                if name not in self.failed
                and not ((mark := marks.get(name)) and mark.epoch >= epoch and mark.done)
            ]
            if lacking:
                done = False
                await self._remotes[0].insist(Reopen(lacking, epoch))
        return done

    async def _unless_failed(self, work: Any) -> None:
        """Do something, but not when a shard refuses for good."""

        async def watch() -> None:
            while True:
                await self._changed.wait()
                self._changed.clear()
                for remote in self._remotes:
                    if remote.failed is not None:
                        raise _as_local(remote.failed)

        await _first_of(work, watch())

    # ---------------------------------------------------------------- taking part

    async def _take_part(self) -> None:
        """Join every shard with one clock, the highest that any of them names."""
        while True:
            clocks = await asyncio.gather(*(remote.join_surely() for remote in self._remotes))
            highest = max(self._next, *clocks)
            if all(clock == highest for clock in clocks):
                break
            self._next = highest
        self._next = highest
        self._member = True

    async def _leave(self) -> None:
        if not self._member:
            return
        self._member = False
        for remote in self._remotes:
            remote.taking_part = False
        for remote in self._remotes:
            await remote.insist(Leave(self._who.name, self._who.incarnation))

    # ---------------------------------------------------------------- one partition

    async def _learn_partition(self, name: str, epoch: int) -> None:
        """Learn a partition to its end, however often shards make it begin again."""
        partition = self._listed.get(name)
        while not self._stopped.is_set():
            try:
                if partition is None:
                    raise SourceError(f"{name} is not in this worker's listing of the source")
                mark = await self._begun(partition, epoch)
                if not mark.done:
                    await self._fly_all(partition, mark)
                break
            except RewindError:
                self.rewinds += 1
                await self._begin_again()
            except _TooManyBadError:
                raise
            except (DataError, SourceError) as error:
                self.failed[name] = error
                _log.error("%s", error)
                await self._begin_again()
                break
        if not self._stopped.is_set():
            await self._remotes[0].insist(
                Finished(self._who.name, self._who.incarnation, name, epoch)
            )

    async def _begun(self, partition: Partition, epoch: int) -> Mark:
        """Return from where on some shard lacks a partition."""
        marks = []
        for remote in self._remotes:
            answer = await remote.insist(State(marks=False, partition=partition.name))
            assert isinstance(answer, StateIs)
            marks.append(answer.marks[0] if answer.marks else None)
        fresh = Mark(partition.name, partition.version, 0, 0, max(partition.start, 0), 0)
        least = min((mark or fresh for mark in marks), key=lambda mark: (mark.epoch, mark.sequence))
        if least.version != partition.version:
            raise ObjectChangedError(
                f"{partition.uri} has changed since a part of it was learned: it was "
                f"{least.version}, it is {partition.version}",
                hint="put the object back, or start over with another directory",
            )
        if least.done and least.epoch < epoch:
            least = msgspec.structs.replace(
                least, epoch=least.epoch + 1, sequence=0, offset=fresh.offset, records=0, done=False
            )
        return least

    async def _begin_again(self) -> None:
        """Forget what is under way, and take part anew."""
        for lane in (self._parse_lane, self._step_lane):
            await lane.run(_nothing)
        self._flying.clear()
        for remote in self._remotes:
            remote.forget()
        await self._take_part()

    async def _fly_all(self, partition: Partition, mark: Mark) -> None:
        """Learn a partition from a mark on; ends once everything is durable on every shard."""
        flight = _Flight(mark)
        free: asyncio.Queue[Buffers] = asyncio.Queue()
        for number in range(self._window + _AHEAD + 1):
            free.put_nowait(self._buffers(number))
        ahead: asyncio.Queue[Prepared | None] = asyncio.Queue(_AHEAD)
        try:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(self._watch(), name="watch")
                group.create_task(self._parse(partition, flight, free, ahead), name="parse")
                await self._send(flight, free, ahead, group)
                watch.cancel()
        except BaseExceptionGroup as errors:
            raise _leaf(errors) from None

    def _buffers(self, number: int) -> Buffers:
        """Return buffers of a minibatch, those of an earlier partition where there are some."""
        while len(self._pool) <= number:
            batch = Minibatch(self._rows, self._nnz, has_values=self._format.has_values)
            self._pool.append(Buffers(batch, Localized(self._nnz)))
        return self._pool[number]

    async def _watch(self) -> None:
        while True:
            for remote in self._remotes:
                if remote.failed is not None:
                    raise _as_local(remote.failed)
                if remote.rewinds:
                    raise RewindError
            self._changed.clear()
            await self._changed.wait()

    async def _parse(
        self,
        partition: Partition,
        flight: _Flight,
        free: asyncio.Queue[Buffers],
        ahead: asyncio.Queue[Prepared | None],
    ) -> None:
        """Cut the partition into minibatches and prepare them, a few ahead of their pulls."""
        mark = flight.mark
        format_, source = self._format, self._source
        header = await source.header(partition) if format_.has_header else None
        reserve: list[Buffers] = []
        lent: dict[int, Buffers] = {}

        def stock() -> Minibatch:
            buffers = reserve.pop()
            lent[id(buffers.batch)] = buffers
            return buffers.batch

        batcher: Batcher | None = None
        position = Position(mark.offset, mark.records)
        async with aclosing(source.read(partition, position)) as blocks:
            async for block in blocks:
                try:
                    if batcher is None:
                        batcher = self._batcher(partition, mark, header, block, stock)
                    flight.stored_bytes += block.stored_bytes
                    self.stored_bytes += block.stored_bytes
                    cuts = batcher.feed(block)
                    while True:
                        if not reserve:
                            reserve.append(await free.get())
                        prepared = await self._parse_lane.run(self._prepare, cuts, lent)
                        if prepared is None:
                            break
                        await ahead.put(prepared)
                finally:
                    block.release()
                if self._stopped.is_set():
                    break
        await ahead.put(None)

    def _batcher(
        self,
        partition: Partition,
        mark: Mark,
        header: bytes | None,
        block: Block,
        stock: Callable[[], Minibatch],
    ) -> Batcher:
        if header == b"" and block.last and block.start == block.end:
            header = None  # an empty object has no header, and nothing that one would be needed for
            parser = _NoParser()
        else:
            parser = self._format.parser(header)  # type: ignore[assignment]
            self.names.use_fields(self._format.fields)
        stream = Stream(
            partition,
            parser,  # type: ignore[arg-type]
            header_due=self._format.has_header and mark.offset == 0,
            records=mark.records,
            counted=mark.offset,
        )
        rate = self.job.source.negative_rate
        return Batcher(stream, self._format, stock, rate, mark.offset, self.names, self._sampler)

    def _prepare(self, cuts: Iterator[Cut], lent: dict[int, Buffers]) -> Prepared | None:
        """Cut and localise the next minibatch; in the parse lane."""
        cut = next(cuts, None)
        if cut is None:
            return None
        assert self._preparer is not None
        return self._preparer.prepare(cut, lent.pop(id(cut.batch)))

    async def _send(
        self,
        flight: _Flight,
        free: asyncio.Queue[Buffers],
        ahead: asyncio.Queue[Prepared | None],
        group: asyncio.TaskGroup,
    ) -> None:
        """Send each minibatch on its way as soon as the window lets it."""
        permits = asyncio.Semaphore(self._window)
        loop = asyncio.get_running_loop()
        before: asyncio.Future[None] = loop.create_future()
        before.set_result(None)
        coding = codings(self.job)[0]
        while (prepared := await ahead.get()) is not None:
            await permits.acquire()
            while not self._member or any(r.noted > self._next for r in self._remotes):
                # shards went on without it: it begins where they are, with nothing under way
                await self._landed(permits)
                await self._take_part()
            clock, self._next = self._next, self._next + 1
            self._flying.add(clock)
            tickets = [
                remote.pull(Pull(0, self._who.incarnation, clock, part.count, part.keys, coding))
                for remote, part in zip(self._remotes, prepared.parts, strict=True)
            ]
            sent: asyncio.Future[None] = loop.create_future()
            group.create_task(
                self._fly(flight, prepared, tickets, clock, before, sent, free, permits),
                name=f"minibatch-{clock}",
            )
            before = sent
        await self._landed(permits)

    async def _landed(self, permits: asyncio.Semaphore) -> None:
        """Wait until nothing is under way but the minibatch that has a permit now, if any."""
        held = 0
        while self._flying:
            await permits.acquire()
            held += 1
        for _ in range(held):
            permits.release()

    async def _fly(
        self,
        flight: _Flight,
        prepared: Prepared,
        tickets: Sequence[Ticket],
        clock: int,
        before: asyncio.Future[None],
        sent: asyncio.Future[None],
        free: asyncio.Queue[Buffers],
        permits: asyncio.Semaphore,
    ) -> None:
        """Take one minibatch from its pulls to its durable pushes."""
        pulled = [await ticket.answer for ticket in tickets]
        await before
        cut = prepared.cut
        pushed, totals = await self._step_lane.run(
            _call, self.stepper.step, prepared, pulled, clock, flight.mark.epoch == 0
        )
        stored, flight.stored_bytes = flight.stored_bytes, 0
        size = max(0, cut.offset - flight.mark.offset)
        mark = flight.mark = marked(flight.mark, cut, totals, stored)
        rows, records = totals.examples, cut.batch.records
        parts = prepared.parts
        free.put_nowait(prepared.buffers)
        if cut.bad:
            self._note_bad(cut, mark.epoch)
        who = self._who
        answers = [
            remote.push(
                Push(
                    0, who.name, who.incarnation, clock, 0, part.signature, part.count, part.keys,
                    codings(self.job)[1], one.values, one.counts, mark,
                ),
                ticket,
            )
            for remote, part, one, ticket in zip(
                self._remotes, parts, pushed, tickets, strict=True
            )
        ]  # fmt: skip
        sent.set_result(None)
        for answer in answers:
            await answer
        self._flying.discard(clock)
        self.examples += rows
        self.records += records
        self.bytes += size
        permits.release()

    def _note_bad(self, cut: Cut, epoch: int) -> None:
        """Keep bad records aside before the shards are told that they are dealt with."""
        for bad in cut.bad:
            self.bad += 1
            self.reasons[bad.reason] += 1
            if self._quarantine is not None and epoch == 0:
                self._quarantine.add(bad)
        if self._quarantine is not None and epoch == 0:
            self._quarantine.flush()
        records = self.records + cut.batch.records
        share_max = self.job.source.bad_records_max
        if records >= _RECORDS_BEFORE_STOP and self.bad > share_max * records:
            raise _TooManyBadError(
                f"{self.bad:,} of {records:,} records are bad ({self.bad / records:.1%}), more "
                f"than source.bad_records_max = {share_max:.1%}",
                hint="see bad_records.jsonl; mend the schema and run `streamlearn replay`",
            )


class _TooManyBadError(DataError):
    """More records are bad than the job allows: it stops, and not this partition alone."""


class _Flight:
    """A partition under way: the mark behind the last minibatch that was stepped."""

    def __init__(self, mark: Mark) -> None:
        self.mark = mark
        self.stored_bytes = 0


class _NoParser:
    """Of an object without even a header: nothing is parsed."""


def _nothing() -> None:
    """Do nothing: whoever waits for it waits for all that was posted before."""


def _call(step: Any, prepared: Prepared, pulled: Any, clock: int, counts: bool) -> Any:
    return step(prepared, pulled, clock, counts=counts)


def _as_local(error: StreamlearnError) -> StreamlearnError:
    """Return what a shard refuses as the error that it is here."""
    if isinstance(error, RefusedError) and error.code == "full":
        return TableFullError(error.message, cause=error.cause, hint=error.hint)
    return error


def _leaf(group: BaseExceptionGroup[Any]) -> BaseException:
    """Return what a group is about: that shards make the worker begin again, or the first."""
    leaves = [
        leaf
        for error in group.exceptions
        for leaf in ([_leaf(error)] if isinstance(error, BaseExceptionGroup) else [error])
    ]
    known = [leaf for leaf in leaves if isinstance(leaf, RewindError | StreamlearnError)]
    return next(iter(sorted(known, key=lambda leaf: not isinstance(leaf, RewindError))), leaves[0])


async def _first_of(work: Any, other: Any) -> None:
    """Run both; end with the first of them to end, and raise what it raised."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(other)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
