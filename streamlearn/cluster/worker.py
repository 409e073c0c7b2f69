"""The worker: takes part, claims partitions one after the other, and learns each to its end.

    source -> parse lane: cut, localise -> pulls -> step lane: score, gradients -> pushes -> durable

What happens to one partition stands in :mod:`streamlearn.cluster.flight`, what happens to
connections in :mod:`streamlearn.cluster.remote`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast

import msgspec

from streamlearn.cluster.copies import Copies, copies_max
from streamlearn.cluster.dense_member import DenseMember
from streamlearn.cluster.flight import Flight, as_local
from streamlearn.cluster.preparing import Buffers, Prepared, Preparer, Pushed
from streamlearn.cluster.remote import Remote, RewindError, Who
from streamlearn.cluster.shard_host import Worked
from streamlearn.cluster.topics import new_stepper
from streamlearn.cluster.users import Keeping, Users, users_spec
from streamlearn.config import DeepConfig, JobConfig, LdaConfig, MfConfig, loss_of
from streamlearn.errors import (
    DataError,
    ObjectChangedError,
    SourceError,
    StreamlearnError,
)
from streamlearn.messages import Partition, Position
from streamlearn.notices import Notices
from streamlearn.online.formats import Format
from streamlearn.online.minibatch import room_of
from streamlearn.online.names import Names, Sampler
from streamlearn.online.progressive import Validation
from streamlearn.online.totals import AnyTotals
from streamlearn.protocol import (
    MARKS,
    NOTHING_LEFT,
    WAIT,
    Claim,
    Claimed,
    Finished,
    Leave,
    Listed,
    Mark,
    Pulled,
    Register,
    Reopen,
    State,
    StateIs,
)
from streamlearn.quarantine import Quarantine, TooManyBadError

if TYPE_CHECKING:
    from streamlearn.cluster.deep_stepper import DeepStepper

__all__ = ["Records", "Worker"]

_log = logging.getLogger("streamlearn.cluster.worker")

_FEATURES_PER_ROW: Final = 48
# While others hold what is left.
_WAIT_SECONDS: Final = 0.1
_WAIT_SECONDS_MAX: Final = 1.0
# Names of partitions may be long (4 kB each); most are not.
_ENTRIES_A_MESSAGE: Final = 4096

T = TypeVar("T")


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
    source : Records
    format : Format
    parse_lane, step_lane : Worked
        May be one.
    names : Names
    validation : Validation
    quarantine : Quarantine or None
    keeping : Keeping, optional
        Where it keeps users, with ``model.users = "worker"``.

    Attributes
    ----------
    remotes : sequence of Remote
        By shard; made with this worker's ``oldest`` and ``wake``, see :meth:`attach`.
    clock : int
        Number of the next minibatch.
    member : bool
        Whether it takes part.
    window, rows, nnz : int
        Minibatches under way; examples and features of each at most.
    pool : list of Buffers
        Of minibatches, to be used again.
    copies : Copies
        Of rows, that are not pulled each time.
    users : Users or None
        Those of the partition that is learned, where they stand here.
    dense : DenseMember or None
        Of a net: who steps together with the other workers.
    changed, stopped : asyncio.Event
        A remote wants to be looked at; the worker shall end after what is under way.
    examples, records, bad, bytes, stored_bytes : int
        Of this process.
    stepped : int
        Records of the minibatches that were stepped; some are not durable yet, or were lost.
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
        validation: Validation,
        quarantine: Quarantine | None,
        keeping: Keeping | None = None,
    ) -> None:
        self.job = job
        self.names = names
        self.validation = validation
        self.examples = self.records = self.bad = self.bytes = self.stored_bytes = 0
        self.stepped = 0
        self.reasons: Counter[str] = Counter()
        self.failed: dict[str, StreamlearnError] = {}
        self.state = "joining"
        self.partition = ""
        self.rewinds = 0
        self.who = who
        self.remotes: Sequence[Remote] = ()
        self.source = source
        self.format = format
        self.parse_lane, self.step_lane = parse_lane, step_lane
        self.quarantine = quarantine
        self.window = job.tables.minibatches_in_flight
        rows = job.compute.minibatch
        nnz = max(rows * _FEATURES_PER_ROW, 4096)
        self.rows, self.nnz = room_of(rows, nnz, format.record_rows)
        self.stepper = new_stepper(job, self.rows, validation, format)
        self.dense: DenseMember | None = None
        if isinstance(job.model, DeepConfig):
            self.dense = DenseMember(
                who, lambda: self.remotes[0], step_lane, self.net, lambda: self.member
            )
        self.copies = Copies(copies_max(job), job.tables.tau)
        self.users: Users | None = None
        self._keeping = keeping
        self._keeping_users = asyncio.Lock()
        self.notices = Notices()
        self.preparer: Preparer
        self.sampler = Sampler(every=job.model.kind in ("mf", "lda"))
        self._listed: dict[str, Partition] = {}
        self.clock = 0
        self._flying: set[int] = set()
        self.changed = asyncio.Event()
        self.stopped = asyncio.Event()
        self.member = False
        self.pool: list[Buffers] = []
        self._seen: dict[int, int] = {}  # connections of each remote whose marks were looked at
        self._registered = -1  # connections of the first shard when it was told the partitions

    def attach(self, remotes: Sequence[Remote], lows: Sequence[int]) -> None:
        """Say which shards there are: their remotes, and the first prefix of each."""
        self.remotes = remotes
        self.preparer = Preparer(self.job, lows, self.nnz)

    @property
    def net(self) -> DeepStepper:
        """The stepper, of a net."""
        return cast("DeepStepper", self.stepper)

    async def step(
        self, prepared: Prepared, pulled: Sequence[Pulled], seed: int, epoch: int
    ) -> tuple[list[Pushed], AnyTotals]:
        """Step a minibatch; see :meth:`Stepper.step`."""
        if self.dense is not None:
            return await self.dense.step(prepared, pulled, seed, epoch)
        return await self.step_lane.run(self.stepper.step, prepared, pulled, seed, epoch)

    def oldest(self) -> int:
        """Return the clock of the oldest minibatch that is not durable everywhere, or the next."""
        return min(self._flying, default=self.clock)

    def wake(self) -> None:
        """Have the worker look at its remotes."""
        self.changed.set()

    def stop(self) -> None:
        """End after what is under way."""
        self.stopped.set()

    @property
    def source_bytes(self) -> int:
        """Stored bytes of the whole source; -1 where that is unknown, or where it goes on."""
        sizes = [p.end - p.start if p.end >= 0 else p.size for p in self._listed.values()]
        ends = bool(sizes) and min(sizes) >= 0 and not self.job.source.follow
        return sum(sizes) if ends else -1

    def start_minibatch(self) -> int:
        """Return the clock of a minibatch that begins."""
        clock, self.clock = self.clock, self.clock + 1
        self._flying.add(clock)
        return clock

    def end_minibatch(self, clock: int, examples: int, records: int, size: int) -> None:
        """Note that a minibatch is durable everywhere."""
        self._flying.discard(clock)
        self.examples += examples
        self.records += records
        self.bytes += size

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
        for partition in await self.source.partitions():
            self._listed[partition.name] = partition
        tasks = [
            asyncio.create_task(remote.run(), name=f"remote-{remote.index}")
            for remote in self.remotes
        ]
        try:
            await self._unless_failed(self._learn())
            self.state = "done"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self.dense is not None:
                await self.dense.close()

    async def _learn(self) -> None:
        wait = _WAIT_SECONDS
        while not self.stopped.is_set():
            await self._meet()
            claimed = await self.remotes[0].insist(
                Claim(self.who.name, self.who.incarnation, [], wanted=True)
            )
            assert isinstance(claimed, Claimed)
            if claimed.state == NOTHING_LEFT and not self.job.source.follow:
                if await self._all_done(claimed.epoch):
                    break
            elif claimed.state == WAIT or claimed.state == NOTHING_LEFT:
                self.state = "waiting"
                await self._leave()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.stopped.wait(), wait)
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
        for remote in self.remotes:
            await remote.joined.wait()
        if self._registered != self.remotes[0].connections:
            await self._register()
        for remote in self.remotes:
            if self._seen.get(remote.index) != remote.connections:
                self._seen[remote.index] = remote.connections
                await self._reopen(remote)

    async def _register(self) -> None:
        """Tell the first shard the partitions: what it was told before goes with its process."""
        first = self.remotes[0]
        connections = first.connections
        listed = [Listed(p.name, p.version, p.size) for p in self._listed.values()]
        epochs, complete = self.job.model.epochs, not self.job.source.follow
        for part in _parts(listed):
            await first.insist(Register(part, complete, epochs))
        self._registered = connections
        self._seen.clear()

    async def hold(self, name: str) -> None:
        """Tell the first shard, whenever it is reached anew, that this worker is at a partition."""
        first = self.remotes[0]
        told = first.connections
        while True:
            if told == first.connections:
                self.changed.clear()
                await self.changed.wait()
                continue
            told = first.connections
            await self._register()
            await first.insist(Claim(self.who.name, self.who.incarnation, [name], wanted=False))

    async def _reopen(self, remote: Remote) -> None:
        """Have partitions handed out again that a shard lacks the end of."""
        lacking: dict[int, list[str]] = {}
        marks = await _marks(remote)  # those it told when it was joined may be old
        for name in self._listed:
            mark = marks.get(name)
            lacks = 0 if mark is None else mark.epoch + mark.done
            if lacks < self.job.model.epochs:
                lacking.setdefault(lacks, []).append(name)
        for epoch, names in sorted(lacking.items()):
            for part in _parts(names):
                await self.remotes[0].insist(Reopen(part, epoch))

    async def _list_again(self) -> None:
        fresh = [p for p in await self.source.partitions() if p.name not in self._listed]
        for partition in fresh:
            self._listed[partition.name] = partition
        if fresh:
            self._registered = -1

    async def _all_done(self, epoch: int) -> bool:
        """Say whether every shard has every partition to its end; hand out what is not."""
        done = True
        for remote in self.remotes:
            marks = await _marks(remote)
            lacking = [
                name
                for name in self._listed
                if name not in self.failed
                and not ((mark := marks.get(name)) and mark.epoch >= epoch and mark.done)
            ]
            if lacking:
                done = False
                for part in _parts(lacking):
                    await self.remotes[0].insist(Reopen(part, epoch))
        return done

    async def _unless_failed(self, work: Any) -> None:
        """Do something, but not when a shard refuses for good."""

        async def watch() -> None:
            while True:
                await self.changed.wait()
                self.changed.clear()
                for remote in self.remotes:
                    if remote.failed is not None:
                        raise as_local(remote.failed)

        beside = [watch()]
        if self.dense is not None:
            beside.append(self.dense.run())
        await _first_of(work, *beside)

    # ---------------------------------------------------------------- taking part

    async def take_part(self) -> None:
        """Join every shard with one clock, the highest that any of them names."""
        while True:
            clocks = await asyncio.gather(*(remote.join_surely() for remote in self.remotes))
            highest = max(self.clock, *clocks)
            if all(clock == highest for clock in clocks):
                break
            self.clock = highest
        self.clock = highest
        self.member = True

    async def _leave(self) -> None:
        if not self.member:
            return
        self.member = False
        if self.dense is not None:
            await self.dense.leave()
        for remote in self.remotes:
            remote.taking_part = False
        for remote in self.remotes:
            await remote.insist(Leave(self.who.name, self.who.incarnation))

    # ---------------------------------------------------------------- one partition

    async def _learn_partition(self, name: str, epoch: int) -> None:
        """Learn a partition to its end, however often shards make it begin again.

        Of a topic model it is handed out anew where a shard is a pass behind: which words have
        topics is settled once all partitions are counted, so no pass may begin before.
        """
        topical = isinstance(self.job.model, LdaConfig)
        if name not in self._listed:  # another worker has listed the source since
            await self._list_again()
        partition = self._listed.get(name)
        while not self.stopped.is_set():
            try:
                if partition is None:
                    raise SourceError(f"{name} is not in this worker's listing of the source")
                await self._open_users(name)
                mark = await self._begun(partition, epoch)
                if not mark.done:
                    await Flight(self, partition, mark).run()
                if mark.epoch >= epoch:  # else some shard was a pass behind
                    break
                if topical:
                    return
            except RewindError:
                self.rewinds += 1
                await self._begin_again()
                if topical:
                    return
            except TooManyBadError:
                raise
            except (DataError, SourceError) as error:
                self.failed[name] = error
                _log.error("%s", error)
                await self._begin_again()
                break
        await self.keep_users()
        self.users = None
        if not self.stopped.is_set():
            await self.remotes[0].insist(Finished(self.who.name, self.who.incarnation, name, epoch))

    async def _open_users(self, partition: str) -> None:
        """Have the users of a partition here, where they stand with workers."""
        model = self.job.model
        if self.users is None and isinstance(model, MfConfig) and model.users == "worker":
            assert self._keeping is not None, "nowhere to keep users"
            spec = users_spec(self.job, self.who.job)
            self.users = await asyncio.to_thread(Users.open, spec, partition, self._keeping)

    async def keep_users(self) -> None:
        """Keep the users of this moment, if there are some here; raises SnapshotError."""
        async with self._keeping_users:
            users = self.users
            if users is not None and users.mark is not None:
                image = await self.step_lane.run(users.image)
                await asyncio.to_thread(users.save, image)

    async def _begun(self, partition: Partition, epoch: int) -> Mark:
        """Return from where on some shard lacks a partition."""
        marks = []
        for remote in self.remotes:
            answer = await remote.insist(State(marks=False, partition=partition.name))
            assert isinstance(answer, StateIs)
            marks.append(answer.marks[0] if answer.marks else None)
        if self.users is not None:
            marks.append(self.users.mark)
        fresh = MARKS[loss_of(self.job.model)](
            partition.name, partition.version, 0, 0, max(partition.start, 0), 0
        )
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
            if isinstance(self.job.model, LdaConfig):  # judged anew in each pass
                least = msgspec.structs.replace(least, loss=0.0, weight=0.0)
        return least

    async def _begin_again(self) -> None:
        """Forget what is under way, and take part anew."""
        for lane in (self.parse_lane, self.step_lane):
            await lane.run(_nothing)
        self._flying.clear()
        self.copies.forget()
        for remote in self.remotes:
            remote.forget()
        await self.take_part()


def _nothing() -> None:
    """Do nothing: whoever waits for it waits for all that was posted before."""


def _parts(entries: list[T]) -> Iterator[list[T]]:
    """Yield a list in parts that a message holds; one that is empty where it is."""
    for first in range(0, max(1, len(entries)), _ENTRIES_A_MESSAGE):
        yield entries[first : first + _ENTRIES_A_MESSAGE]


async def _marks(remote: Remote) -> dict[str, Mark]:
    """Ask a shard what it has applied, by partition."""
    answer = await remote.insist(State())
    assert isinstance(answer, StateIs)
    return {mark.partition: mark for mark in answer.marks}


async def _first_of(*work: Any) -> None:
    """Run all; end with the first of them to end, and raise what it raised."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:  # in this order, whatever that of a set is
        if task in done:
            task.result()
