"""A shard that runs: requests come in batches, a lane answers them, a second syncs the log.

    server -> inbox -> lane: log, table -> answers, once their log record is durable

One batch is one turn of the lane; while it runs and while the log is synced, requests gather, so
many pushes share one sync (group commit) and nothing waits for a timer. Snapshots are taken part by
part between batches.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from streamlearn.cluster.image_files import ImageFiles
from streamlearn.cluster.intake import Intake
from streamlearn.cluster.service import Out, Service
from streamlearn.errors import LogError, SnapshotError, StreamlearnError
from streamlearn.net.connection import Welcome
from streamlearn.net.counters import Counters
from streamlearn.net.limits import Limits
from streamlearn.net.network import Network
from streamlearn.net.security import Secrets
from streamlearn.net.server import Server, Session
from streamlearn.notices import Notices
from streamlearn.protocol import Done, Fault
from streamlearn.shards.disk import Disk
from streamlearn.shards.recovery import SNAPSHOTS, Recovered, recover
from streamlearn.shards.shard import ShardSpec

__all__ = ["Lanes", "Place", "ShardHost", "Worked"]

_log = logging.getLogger("streamlearn.shard")

# Leases, minutes and slow followers are looked at this often.
_TICK_SECONDS: Final = 0.25
# While parts of an image wait for someone to take them.
_IMAGE_SECONDS: Final = 0.02
T = TypeVar("T")


class Worked(Protocol):
    """A lane (``compute.pool.Lane``)."""

    def post(self, work: Callable[[], None]) -> None:
        """Run work after all that was posted before."""
        ...

    def run(self, function: Callable[..., T], *args: Any) -> Coroutine[Any, Any, T]:
        """Run a function in the lane; return what it does."""
        ...

    def close(self) -> None:
        """End the lane."""
        ...


@dataclass(frozen=True, slots=True)
class Lanes:
    """Where a shard's work runs: requests, the log's syncs, and the writing of snapshots."""

    requests: Worked
    log: Worked
    snapshots: Worked

    def close(self) -> None:
        """End them."""
        for lane in (self.requests, self.log, self.snapshots):
            lane.close()


@dataclass(frozen=True, slots=True)
class Place:
    """What a daemon runs on.

    Attributes
    ----------
    network, disk
        Connections and files.
    clock, wall : callable
        Seconds: monotonic, and since the epoch.
    number : callable
        Random integers of 63 bits.
    """

    network: Network
    disk: Disk
    clock: Callable[[], float]
    wall: Callable[[], float]
    number: Callable[[], int]

    def nonce(self) -> bytes:
        """Return 32 random bytes."""
        return b"".join((self.number() & (1 << 62) - 1).to_bytes(8, "little") for _ in range(4))


class ShardHost:
    """One shard, from recovery to drain.

    Parameters
    ----------
    spec : ShardSpec
    directory : str
        Its log and snapshots.
    place : Place
    lanes : Lanes
    secrets : Secrets
    limits : Limits
    accept_loss : bool
        See ``shards.recovery.recover``.

    Attributes
    ----------
    state : str
        ``recovering``, ``serving``, ``draining``, ``ended``.
    snapshot : dict
        Of the last snapshot: ``lsn``, ``sequence``, ``path``, ``bytes``, ``created_seconds``.
    on_snapshot : callable, optional
        Called with the path of each snapshot once it is committed.
    """

    def __init__(
        self,
        spec: ShardSpec,
        directory: str,
        place: Place,
        lanes: Lanes,
        secrets: Secrets,
        limits: Limits,
        *,
        accept_loss: bool = False,
        on_snapshot: Callable[[str], None] | None = None,
    ) -> None:
        self.spec = spec
        self.directory = directory
        self.state = "recovering"
        self.counters = Counters()
        self.incarnation = place.number()
        self.snapshot: dict[str, Any] = {}
        self.snapshots = 0
        self.snapshot_failures = 0
        self.sync_seconds = 0.0
        self.syncs = 0
        self.recovery_seconds = 0.0
        self.recovered: Recovered | None = None
        self.service: Service | None = None
        self.address = ""
        self._place = place
        self._lanes = lanes
        self._secrets = secrets
        self._limits = limits
        self._accept_loss = accept_loss
        self._on_snapshot = on_snapshot
        self._server: Server | None = None
        self._intake = Intake()
        self._notices = Notices()
        self._waiting: deque[Out] = deque()  # for their log record to be durable
        self._durable = 0
        self._unsynced = asyncio.Event()
        self._synced = asyncio.Event()
        self._imaging = False
        self._snapshot_lsn = 0  # of the snapshot before the last: the log is kept from there
        self._saved_lsn = -1  # of the last snapshot
        self._snapshotting: asyncio.Future[None] | None = None
        self._begun = self._taken = 0  # numbers of the last snapshots begun, and taken
        self._tasks: list[asyncio.Task[None]] = []
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # ---------------------------------------------------------------- life

    async def start(self, listen: str) -> str:
        """Recover, then listen; return the address.

        Raises
        ------
        LogError, SnapshotError
            See ``shards.recovery.recover``.
        """
        started = self._place.clock()
        found = await self._lanes.requests.run(self._recover)
        self.recovered = found
        self.recovery_seconds = self._place.clock() - started
        for note in found.notes:
            _log.warning("%s", note)
        shard = found.shard
        self._durable = shard.lsn
        self._saved_lsn = self._snapshot_lsn = found.snapshot_lsn
        self.service = Service(
            shard, found.log, incarnation=self.incarnation, now=self._place.clock()
        )
        self.service.feeds.backlog = self._backlog
        self._server = Server(
            cluster=self.spec.job.cluster.name,
            welcome=self._welcome,
            secrets=self._secrets,
            requests=self._intake,
            network=self._place.network,
            limits=self._limits,
            counters=self.counters,
            nonce=self._place.nonce,
            compression=self.spec.job.tables.compression,
        )
        self.address = await self._server.start(listen)
        self.state = "serving"
        loop = asyncio.get_running_loop()
        for name, work in (
            ("answers", self._answer()),
            ("log", self._sync()),
            ("time", self._time()),
            ("snapshots", self._snapshots()),
        ):
            task = loop.create_task(self._guard(work), name=f"shard-{self.spec.index}-{name}")
            self._tasks.append(task)
        return self.address

    async def ended(self) -> None:
        """Wait until it cannot go on; raise why."""
        await asyncio.shield(self._ended)

    async def drain(self) -> None:
        """End in order: no more requests, the log, a last snapshot, the connections.

        Raises
        ------
        StreamlearnError
            The last snapshot was not written.
        """
        assert self.service is not None
        assert self._server is not None
        self.state = "draining"
        self.service.draining = True
        failure: StreamlearnError | None = None
        try:
            await self._server.stop()
            await self.take_snapshot()
        except (LogError, SnapshotError) as error:
            failure = error
        await self._stop()
        self.state = "ended"
        if failure is not None:
            raise failure

    async def abandon(self) -> None:
        """End at once, as if the process had died: nothing is written any more."""
        self.state = "ended"
        if self._server is not None:
            await self._server.stop()
        await self._stop()

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if self.service is not None and self.service.log is not None:
            assert self.recovered is not None
            assert self.recovered.log is not None
            await self._lanes.requests.run(self.recovered.log.close)

    def _recover(self) -> Recovered:
        return recover(self._place.disk, self.directory, self.spec, accept_loss=self._accept_loss)

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a part; where it fails the shard has failed."""
        try:
            await work
        except Exception as error:  # noqa: BLE001 - raised by ended()
            if not self._ended.done():
                self._ended.set_exception(error)
                with suppress(BaseException):  # it may be that nobody asks
                    self._ended.exception()

    def _welcome(self) -> Welcome:
        spec = self.spec
        return Welcome(
            spec.index, spec.of, *spec.prefixes, incarnation=self.incarnation, job=spec.signature
        )

    def _backlog(self, session: int) -> int:
        known = self._intake.sessions.get(session)
        return known.channel.backlog if known is not None else 0

    @property
    def sessions(self) -> list[Session]:
        """Open connections."""
        return list(self._intake.sessions.values())

    @property
    def durable_lsn(self) -> int:
        """Last log record that is durable; the last applied where no log is kept."""
        service = self.service
        if service is not None and service.log is None:
            return service.shard.lsn
        return self._durable

    # ---------------------------------------------------------------- answers

    async def _answer(self) -> None:
        run = self._lanes.requests.run
        while True:
            await self._intake.wake.wait()
            self._intake.wake.clear()
            events = self._intake.take()
            now, minute = self._place.clock(), int(self._place.wall() // 60)
            out, moved = await run(self._turn, events, now, minute, self._durable)
            self._deliver(out)
            if moved:
                self._intake.wake.set()

    def _turn(
        self, events: list[tuple[Any, ...]], now: float, minute: int, durable: int
    ) -> tuple[list[Out], bool]:
        """Answer a batch; in the requests' lane."""
        service = self.service
        assert service is not None
        if service.log is not None:
            service.durable_lsn = durable
        for event in events:
            if event[0] == "request":
                service.request(event[1], event[2], event[3], now)
            elif event[0] == "opened":
                service.opened(event[1])
            elif event[0] == "closed":
                service.closed(event[1], now)
            else:
                event[1]()
        service.advance(now, minute)
        self._notices.look_at(service.shard.table.arena)
        moved = service.feeds.imaging.step()
        self._imaging = service.feeds.imaging.busy
        return service.take_out(), moved

    def _deliver(self, out: list[Out]) -> None:
        """Send what may be sent; the rest once its log record is durable."""
        service = self.service
        assert service is not None
        keeps_log = service.log is not None
        for one in out:
            if keeps_log and one.lsn > self._durable:
                self._waiting.append(one)
            else:
                self._send(one)
        if keeps_log and service.shard.lsn > self._durable:
            self._unsynced.set()
        if service.snapshots_wanted:
            wanted, service.snapshots_wanted = service.snapshots_wanted, []
            task = asyncio.get_running_loop().create_task(self._taken_for(wanted))
            self._tasks.append(task)
            task.add_done_callback(self._tasks.remove)

    def _send(self, out: Out) -> None:
        session = self._intake.sessions.get(out.session)
        if session is None:
            return
        try:
            session.send(out.request, out.message)
        except ValueError as error:  # larger than a frame: so many marks, or so many values
            session.send(out.request, Fault("invalid", str(error), again=False))

    # ---------------------------------------------------------------- the log

    async def _sync(self) -> None:
        service = self.service
        assert service is not None
        if service.log is None:
            return
        assert self.recovered is not None
        log = self.recovered.log
        assert log is not None
        while True:
            await self._unsynced.wait()
            self._unsynced.clear()
            started = self._place.clock()
            lsn = await self._lanes.log.run(log.sync)
            self.sync_seconds += self._place.clock() - started
            self.syncs += 1
            self._durable = max(self._durable, lsn)
            while self._waiting and self._waiting[0].lsn <= self._durable:
                self._send(self._waiting.popleft())
            self._synced.set()
            if len(service.feeds):
                self._intake.wake.set()

    async def _until_durable(self, lsn: int) -> None:
        service = self.service
        assert service is not None
        while service.log is not None and self._durable < lsn:
            self._synced.clear()
            self._unsynced.set()
            synced = asyncio.ensure_future(self._synced.wait())
            try:
                await self._unless_failed(synced)
            finally:
                synced.cancel()

    async def _unless_failed(self, wait: asyncio.Future[Any]) -> None:
        """Wait for what a part of the shard does, but not for one that has failed."""
        await asyncio.wait((wait, self._ended), return_when=asyncio.FIRST_COMPLETED)
        if not wait.done():
            raise SnapshotError("the shard has failed", cause=str(self._ended.exception()))
        wait.result()

    # ---------------------------------------------------------------- time

    async def _time(self) -> None:
        while True:
            await asyncio.sleep(_IMAGE_SECONDS if self._imaging else _TICK_SECONDS)
            self._intake.wake.set()

    # ---------------------------------------------------------------- snapshots

    async def _snapshots(self) -> None:
        while True:
            await asyncio.sleep(self.spec.job.output.snapshot_seconds)
            with suppress(SnapshotError):  # logged and counted
                await self.take_snapshot()

    async def take_snapshot(self) -> None:
        """Take a snapshot, unless nothing has happened since the last one.

        Raises
        ------
        SnapshotError
            It cannot be written.
        """
        number = self._begun + 1
        while self._snapshotting is not None:
            await asyncio.shield(self._snapshotting)
            if self._taken >= number:  # it began after this was asked for
                return
        number = self._begun = self._begun + 1
        self._snapshotting = asyncio.get_running_loop().create_future()
        try:
            await self._take_snapshot()
            self._taken = number
        except SnapshotError as error:
            self.snapshot_failures += 1
            _log.error("no snapshot was written: %s", error)
            raise
        finally:
            done, self._snapshotting = self._snapshotting, None
            done.set_result(None)

    async def _take_snapshot(self) -> None:
        service = self.service
        assert service is not None
        if service.shard.lsn == self._saved_lsn:
            return
        sink = ImageFiles(
            Path(self.directory) / SNAPSHOTS,
            self._place.disk,
            self.spec.job,
            self._lanes.snapshots,
            asyncio.get_running_loop(),
        )
        self._intake.post(("call", lambda: service.feeds.imaging.want(sink)))
        await self._unless_failed(sink.taken)
        assert sink.meta is not None
        await self._until_durable(sink.meta.lsn)
        told = await self._lanes.snapshots.run(sink.commit, self._place.wall())
        kept, self._snapshot_lsn = self._snapshot_lsn, sink.meta.lsn
        self._saved_lsn = sink.meta.lsn
        self.snapshot = told
        self.snapshots += 1
        _log.info("snapshot %s at record %d", told["path"], sink.meta.lsn)
        log = self.recovered.log if self.recovered is not None else None
        if log is not None:
            # the log is kept from the snapshot before, so that a damaged one does not lose anything
            with suppress(LogError):
                await self._lanes.requests.run(log.drop_before, kept)
        if self._on_snapshot is not None:
            self._on_snapshot(told["path"])

    async def _taken_for(self, wanted: list[tuple[int, int]]) -> None:
        """Take a snapshot because administrators asked for one."""
        try:
            await self.take_snapshot()
            answer: Done | Fault = Done()
        except SnapshotError as error:
            answer = Fault("storage", str(error)[:1000], again=True)
        for session, request in wanted:
            self._send(Out(session, request, answer))
