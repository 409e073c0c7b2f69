"""A follower that runs: a copy of a shard, made of its log's records, that answers reads.

It asks its shard for the records behind what it has, or for the whole state first, and applies them
in order; the shard sends what is durable, so a follower never has what the shard may lose.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol

import msgspec
import numpy as np

from streamlearn.cluster.intake import Intake
from streamlearn.cluster.service import Out, Service
from streamlearn.cluster.shard_host import Place, Worked
from streamlearn.errors import (
    PeerLostError,
    ProtocolError,
)
from streamlearn.messages import U64
from streamlearn.net.connection import Welcome
from streamlearn.net.counters import Counters
from streamlearn.net.limits import Limits
from streamlearn.net.security import Secrets
from streamlearn.net.server import Server
from streamlearn.protocol import (
    Answer,
    Choose,
    Fault,
    Follow,
    FollowCut,
    FollowPart,
    FollowRecord,
    FollowTopics,
    Join,
    Leave,
    Message,
    Push,
    Tick,
    decode,
)
from streamlearn.shards.image import ImageMeta
from streamlearn.shards.shard import Shard, ShardSpec

__all__ = ["FollowerHost", "Leading"]

_log = logging.getLogger("streamlearn.follower")

_BACKOFF_SECONDS: Final = 0.1
_BACKOFF_SECONDS_MAX: Final = 2.0
_TICK_SECONDS: Final = 0.25
# Records received and not yet applied, past which no more are read from the shard.
_PENDING_MAX: Final = 64


class Leading(Protocol):
    """A connection to the shard that is followed (``net.client.Link``)."""

    lost: asyncio.Event
    welcome: Welcome

    def subscribe(self, message: Message, callback: Callable[[Answer], None]) -> int:
        """Send a request that is answered many times."""
        ...

    def pause(self) -> None:
        """Read nothing more for now."""
        ...

    def resume(self) -> None:
        """Read on."""
        ...

    async def close(self) -> None:
        """End the connection."""
        ...


class FollowerHost:
    """A copy of one shard.

    Parameters
    ----------
    spec : ShardSpec
        Of the shard.
    connect : callable
        Opens a connection to it.
    place : Place
    lane : Worked
    secrets : Secrets
    limits : Limits
    shard : Shard, optional
        What it begins with (a snapshot); by default it asks for everything.

    Attributes
    ----------
    state : str
        ``recovering`` until it has the state, ``serving``, ``ended``.
    lag : int
        Records that the shard is known to have and that are not applied here.
    images : int
        How often it had to begin with the whole state.
    """

    def __init__(
        self,
        spec: ShardSpec,
        connect: Callable[[], Awaitable[Leading]],
        place: Place,
        lane: Worked,
        secrets: Secrets,
        limits: Limits,
        *,
        shard: Shard | None = None,
    ) -> None:
        self.spec = spec
        self.state = "recovering" if shard is None else "serving"
        self.counters = Counters()
        self.incarnation = place.number()
        self.address = ""
        self.images = 0
        self.heard_seconds = 0.0
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._connect = connect
        self._place = place
        self._lane = lane
        self._secrets = secrets
        self._limits = limits
        self._fresh: Shard | None = None  # being filled with the parts of an image
        self._last = shard.lsn if shard is not None else 0
        self._of = 0  # incarnation of the shard that the state came from; 0: of a snapshot
        self.service = Service(
            shard or Shard(spec), None, incarnation=self.incarnation, now=0.0, read_only=True
        )
        self._server: Server | None = None
        self._intake = Intake()
        self._leading: Leading | None = None
        self._held = False
        self._again = False
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def shard(self) -> Shard:
        """The copy."""
        return self.service.shard

    @property
    def lag(self) -> int:
        """Records heard of and not yet applied."""
        return max(0, self._last - self.shard.lsn)

    async def start(self, listen: str) -> str:
        """Follow, and answer reads; return the address."""
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
        loop = asyncio.get_running_loop()
        for name, work in (("follow", self._follow()), ("answers", self._answer())):
            task = loop.create_task(self._guard(work), name=f"follower-{self.spec.index}-{name}")
            self._tasks.append(task)
        return self.address

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a part; where it fails the follower has failed."""
        try:
            await work
        except Exception as error:  # noqa: BLE001 - raised by whoever asks ``failed``
            if not self.failed.done():
                self.failed.set_exception(error)

    async def stop(self) -> None:
        """End."""
        self.state = "ended"
        if self._server is not None:
            await self._server.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    # ---------------------------------------------------------------- following

    async def _follow(self) -> None:
        wait = _BACKOFF_SECONDS
        while True:
            try:
                leading = await self._connect()
            except (PeerLostError, OSError) as error:
                _log.debug("shard %d: %s", self.spec.index, error)
            else:
                wait = _BACKOFF_SECONDS
                self._leading, self._again, self._held = leading, False, False
                # what is still to be applied of the connection before comes first
                await self._lane.run(_nothing)
                self._intake.events = [
                    event for event in self._intake.events if event[0] != "heard"
                ]
                self._fresh = None
                after = -1 if self._begins_anew(leading) else self.shard.lsn
                leading.subscribe(Follow(after), functools.partial(self._heard, leading))
                await leading.lost.wait()
                self._leading = None
                await leading.close()
            await asyncio.sleep(wait)
            wait = min(2 * wait, _BACKOFF_SECONDS_MAX)

    def _begins_anew(self, leading: Leading) -> bool:
        """Say whether the whole state is needed.

        A shard that keeps no log comes back with less than it had, and other records take the
        numbers of those that are gone.
        """
        keeps_log = self.spec.job.tables.durability == "log"
        return self.state == "recovering" or not (
            keeps_log or self._of == leading.welcome.incarnation
        )

    def _heard(self, leading: Leading, answer: Answer) -> None:
        if leading is not self._leading:
            return
        self.heard_seconds = self._place.clock()
        if isinstance(answer, FollowRecord | FollowCut):
            self._last = answer.lsn
        self._intake.events.append(("heard", leading, answer))
        if len(self._intake.events) > _PENDING_MAX and not self._held:
            self._held = True
            leading.pause()
        self._intake.wake.set()

    async def _answer(self) -> None:
        while True:
            with_time = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._intake.wake.set)
            await self._intake.wake.wait()
            with_time.cancel()
            self._intake.wake.clear()
            events = self._intake.take()
            if self._held and self._leading is not None:
                self._held = False
                self._leading.resume()
            try:
                out = await self._lane.run(self._turn, events, self._place.clock())
            except (ProtocolError, AssertionError) as error:
                # what the shard sends cannot be applied: the whole state is asked for again
                _log.error("what shard %d sends cannot be applied: %s", self.spec.index, error)
                self.state = "recovering"
                self._again, out = True, []
            if self._again and self._leading is not None:
                await self._leading.close()
            for one in out:
                session = self._intake.sessions.get(one.session)
                if session is not None:
                    session.send(one.request, one.message)

    def _turn(self, events: list[tuple[Any, ...]], now: float) -> list[Out]:
        """Apply what was heard and answer reads, in order; in the lane."""
        service = self.service
        for event in events:
            if event[0] == "heard":
                leading: Leading = event[1]
                if leading is self._leading:
                    self._apply(leading, event[2])
            elif event[0] == "opened":
                service.opened(event[1])
            elif event[0] == "closed":
                service.closed(event[1], now)
            elif self.state == "recovering":
                fault = Fault("busy", "this follower does not have its state yet", again=True)
                service.say(event[1], event[2], fault)
            else:
                service.request(event[1], event[2], event[3], now)
        service.durable_lsn = service.shard.lsn
        return service.take_out()

    def _apply(self, leading: Leading, answer: Answer) -> None:
        if isinstance(answer, FollowRecord):
            record = decode(answer.body)
            assert isinstance(record, Push | Join | Leave | Tick | Choose), record
            self.shard.apply(answer.lsn, record)
        elif isinstance(answer, FollowPart):
            if self._fresh is None:
                self._fresh = Shard(self.spec)
            rows: U64 = np.frombuffer(answer.rows, np.uint64).reshape(-1, 4)
            try:
                self._fresh.table.insert_rows(rows, np.frombuffer(answer.vectors, np.float32))
            except ValueError as error:
                raise ProtocolError(
                    "a part of the state cannot be read", cause=str(error)
                ) from error
        elif isinstance(answer, FollowTopics):
            if self._fresh is None:
                self._fresh = Shard(self.spec)
            if self._fresh.topics is None:
                raise ProtocolError("topics came, but the model has none")
            self._fresh.topics.put(answer)
        elif isinstance(answer, FollowCut):
            shard, self._fresh = self._fresh or Shard(self.spec), None
            try:
                meta = msgspec.msgpack.decode(answer.meta, type=ImageMeta)
            except msgspec.DecodeError as error:
                raise ProtocolError("the state cannot be read", cause=str(error)) from error
            if shard.table.features != meta.features:
                raise ProtocolError(
                    f"the state came with {shard.table.features} rows, but has {meta.features}"
                )
            meta.restore(shard)
            self.service.replace(shard)
            self._of = leading.welcome.incarnation
            self.images += 1
            self.state = "serving"
        else:  # the shard cannot go on from here
            self._fresh = None
            self.state = "recovering"
            self._again = True

    def _welcome(self) -> Welcome:
        spec = self.spec
        return Welcome(
            spec.index, spec.of, *spec.prefixes, incarnation=self.incarnation, job=spec.signature
        )


def _nothing() -> None:
    """Do nothing: whoever waits for it waits for all that was posted before."""
