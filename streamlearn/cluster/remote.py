"""One shard as a worker sees it: whatever happens to connections, every push is applied once.

A remote keeps each push until the shard says that it is durable, in order. When the connection
ends, or the shard does not know what a push names, everything that is still open is sent again from
the first on, the same bytes, with keys; the shard drops what it has. A shard that has less than it
once said (its machine was lost, and it came back from an older snapshot) makes the worker rewind.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

import msgspec

from streamlearn.errors import (
    AccessError,
    ClusterError,
    PeerLostError,
    ProtocolError,
    RefusedError,
    StreamlearnError,
)
from streamlearn.protocol import (
    Answer,
    Join,
    Joined,
    KeyMiss,
    Mark,
    Message,
    Pull,
    Pulled,
    Push,
    Pushed,
    PushFactors,
    State,
    StateIs,
)

__all__ = ["Connection", "Remote", "RewindError", "Who"]

_log = logging.getLogger("streamlearn.cluster.worker")

# Handshakes in a row that fail by what was sent: a few may be damage on the way, more are another
# protocol.
_STRANGE_MAX: Final = 4
# Between two attempts to reach a shard.
_BACKOFF_SECONDS: Final = 0.05
_BACKOFF_SECONDS_MAX: Final = 2.0

T = TypeVar("T")


class Connection(Protocol):
    """A connection to a shard (``net.client.Link``)."""

    lost: asyncio.Event

    def post(self, message: Message) -> tuple[int, asyncio.Future[Answer]]:
        """Send a request; return its id, and what will be its answer."""
        ...

    async def close(self) -> None:
        """End the connection."""
        ...


class RewindError(Exception):
    """A shard has less of a partition than it once had: begin again where it is."""


@dataclass(frozen=True, slots=True)
class Who:
    """The worker, as shards know it."""

    name: str
    incarnation: int
    job: str


@dataclass(slots=True, eq=False)
class _Pulling:
    """A pull that is not answered yet."""

    message: Pull
    answer: asyncio.Future[Pulled]
    connection: Connection | None = None
    request: int = 0


@dataclass(slots=True, eq=False)
class _Pushing:
    """A push that is not known to be durable yet."""

    message: Push
    pulled: _Pulling
    answer: asyncio.Future[None]
    attempt: int = 0


@dataclass(slots=True, eq=False)
class Ticket:
    """A pull, to be named by its push."""

    pulling: _Pulling = field(repr=False)

    @property
    def answer(self) -> asyncio.Future[Pulled]:
        """The values, once the shard lets them be read."""
        return self.pulling.answer


class Remote:
    """One shard.

    Parameters
    ----------
    index : int
        Which.
    who : Who
    connect : callable
        Opens a connection; raises PeerLostError or OSError where there is nobody yet, and
        AccessError, ClusterError or ProtocolError where there is no hope.
    clock : callable
        The worker's oldest minibatch that is not durable everywhere, or its next.
    jitter : callable
        A number between 0 and 1, to spread attempts.

    Attributes
    ----------
    marks : dict
        What the shard has said it has applied.
    noted : int
        The worker's clock as the shard said it when it was joined last.
    connections : int
        How often it was reached.
    joined : asyncio.Event
        Whether requests may be sent now.
    failed : StreamlearnError or None
        Why there is no hope.
    """

    def __init__(
        self,
        index: int,
        who: Who,
        connect: Callable[[], Awaitable[Connection]],
        clock: Callable[[], int],
        jitter: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self.index = index
        self.noted = 0
        self.connections = 0
        self.marks: dict[str, Mark] = {}
        self.joined = asyncio.Event()
        self.failed: StreamlearnError | None = None
        self.rewinds = False
        self.resent = 0
        self.taking_part = False
        self._who = who
        self._connect = connect
        self._jitter = jitter
        self._clock = clock
        self._changed = changed
        self._connection: Connection | None = None
        self._pulls: list[_Pulling] = []
        self._pushes: list[_Pushing] = []
        self._resending = False
        self._settled = -1  # the last minibatch that the shard has acknowledged

    # ---------------------------------------------------------------- the connection

    async def run(self) -> None:
        """Keep a connection to the shard until cancelled."""
        wait = _BACKOFF_SECONDS
        strange = 0
        try:
            while True:
                try:
                    connection = await self._connect()
                except (PeerLostError, OSError) as error:
                    _log.debug("shard %d: %s", self.index, error)
                except (AccessError, ClusterError) as error:
                    self._fail(error)
                    return
                except ProtocolError as error:
                    _log.debug("shard %d: %s", self.index, error)
                    strange += 1
                    if strange == _STRANGE_MAX:
                        self._fail(error)
                        return
                else:
                    wait, strange = _BACKOFF_SECONDS, 0
                    await self._use(connection)
                    if self.failed is not None:
                        return
                await asyncio.sleep(wait * (0.5 + self._jitter()))
                wait = min(wait * 2, _BACKOFF_SECONDS_MAX)
        finally:
            if self._connection is not None:
                connection, self._connection = self._connection, None
                await connection.close()

    async def _use(self, connection: Connection) -> None:
        """Join again over a new connection, send what is open, and wait for its end."""
        self._connection = connection
        try:
            if self.taking_part:
                await self.join()
            else:
                answer = await _asked(connection, State())
                assert isinstance(answer, StateIs)
                self._learn(answer.marks)
            self.connections += 1
            self.joined.set()
            self._send_open()
            self._changed()
            await connection.lost.wait()
        except PeerLostError:
            pass
        except RefusedError as error:
            if not error.again:
                self._fail(error)
        finally:
            self.joined.clear()
            self._connection = None
            with suppress(PeerLostError, OSError):
                await connection.close()

    async def join(self) -> int:
        """Take part, as of the worker's clock; return the clock that the shard has noted.

        What this shard has acknowledged is behind the worker here, though another shard may not
        have it yet: nothing would tell this one later, and it would be waited for.

        Raises
        ------
        PeerLostError
            There is no connection now.
        """
        self.taking_part = True
        who = self._who
        clock = max(self._clock(), self._settled + 1)
        answer = await self.ask(Join(who.name, who.incarnation, clock, who.job))
        assert isinstance(answer, Joined)
        self._learn(answer.marks)
        self.noted = answer.clock
        return answer.clock

    def _learn(self, marks: list[Mark]) -> None:
        self.marks = {mark.partition: mark for mark in marks}

    async def ask(self, message: Message) -> Answer:
        """Send any other request once; raises PeerLostError or RefusedError."""
        if self._connection is None:
            raise PeerLostError(f"there is no connection to shard {self.index}")
        return await _asked(self._connection, message)

    async def insist(self, message: Message) -> Answer:
        """Send a request that may be repeated, until it is answered; raises RefusedError."""
        return await self._insist(lambda: self.ask(message))

    async def join_surely(self) -> int:
        """Join, however often that takes; return the clock that the shard has noted."""
        self.taking_part = True
        return await self._insist(self.join)

    async def _insist(self, asking: Callable[[], Awaitable[T]]) -> T:
        while True:
            await self.joined.wait()
            try:
                return await asking()
            except PeerLostError:
                pass
            except RefusedError as error:
                if not error.again:
                    raise
            await asyncio.sleep(_BACKOFF_SECONDS * (0.5 + self._jitter()))

    def _fail(self, error: StreamlearnError) -> None:
        self.failed = error
        self._changed()

    # ---------------------------------------------------------------- pulls and pushes

    def pull(self, message: Pull) -> Ticket:
        """Ask for values; the ticket's answer has them once the shard lets them be read."""
        pulling = _Pulling(message, asyncio.get_running_loop().create_future())
        self._pulls.append(pulling)
        if self.joined.is_set():
            self._send_pull(pulling)
        return Ticket(pulling)

    def push(self, message: Push, ticket: Ticket) -> asyncio.Future[None]:
        """Send a push, whose keys are those of ``ticket``; the future ends once it is durable.

        Parameters
        ----------
        message : Push
            With its keys; they are sent only where the shard does not know them any more.
        """
        pushing = _Pushing(message, ticket.pulling, asyncio.get_running_loop().create_future())
        self._pushes.append(pushing)
        if self.joined.is_set() and not self._resending:
            self._send_push(pushing)
        return pushing.answer

    @property
    def open_pushes(self) -> int:
        """Pushes that are not known to be durable."""
        return len(self._pushes)

    def forget(self) -> None:
        """Drop everything that is open: the worker begins again elsewhere."""
        for pulling in self._pulls:
            pulling.answer.cancel()
        for pushing in self._pushes:
            pushing.answer.cancel()
        self._pulls.clear()
        self._pushes.clear()
        self.rewinds = False

    def _send_open(self) -> None:
        """Send again what is open, over a new connection."""
        for pulling in self._pulls:
            self._send_pull(pulling)
        self._resend()

    def _resend(self) -> None:
        """Send every open push again, in order.

        Those that the shard has, too: it may have joined this worker with a clock from before them,
        and nothing else would advance it.
        """
        self._resending = False
        for pushing in self._pushes:
            self.resent += 1
            self._send_push(pushing)

    def _send_pull(self, pulling: _Pulling) -> None:
        connection = self._connection
        assert connection is not None
        try:
            pulling.request, answer = connection.post(pulling.message)
        except PeerLostError:
            return
        pulling.connection = connection
        answer.add_done_callback(lambda done: self._pull_answered(pulling, connection, done))

    def _pull_answered(
        self, pulling: _Pulling, connection: Connection, done: asyncio.Future[Answer]
    ) -> None:
        if done.cancelled() or pulling.answer.done():
            if not done.cancelled():
                done.exception()
            return
        error = done.exception()
        if error is None:
            answer = done.result()
            if isinstance(answer, Pulled):
                self._pulls.remove(pulling)
                pulling.answer.set_result(answer)
            else:
                self._fail(ProtocolError(f"shard {self.index} answered a pull otherwise"))
        elif isinstance(error, RefusedError) and not error.again:
            self._fail(error)
        elif isinstance(error, RefusedError):
            self._again(connection)
        # else the connection is lost: it is sent again over the next one

    def _send_push(self, pushing: _Pushing) -> None:
        connection = self._connection
        assert connection is not None
        message = pushing.message
        pulled = pushing.pulled
        first = pushing.attempt == 0
        pushing.attempt += 1
        attempt = pushing.attempt
        if first and pulled.connection is connection:
            nothing = memoryview(b"")
            own = isinstance(message, PushFactors) and message.lengths != _lengths_of(pulled)
            lengths = message.lengths if own else nothing
            message = msgspec.structs.replace(
                message, pull=pulled.request, keys=nothing, lengths=lengths
            )
        try:
            _, answer = connection.post(message)
        except PeerLostError:
            return
        answer.add_done_callback(
            lambda done: self._push_answered(pushing, attempt, connection, done)
        )

    def _push_answered(
        self, pushing: _Pushing, attempt: int, connection: Connection, done: asyncio.Future[Answer]
    ) -> None:
        if done.cancelled():
            return
        error = done.exception()
        if pushing not in self._pushes:
            return
        if error is None and isinstance(done.result(), Pushed):
            self.marks[pushing.message.mark.partition] = pushing.message.mark
            self._settle(pushing)
            return
        if attempt != pushing.attempt or connection is not self._connection:
            return  # it has been sent again since
        if error is None:
            if not isinstance(done.result(), KeyMiss):
                self._fail(ProtocolError(f"shard {self.index} answered a push otherwise"))
            elif not self._resending:
                self._resend()
        elif isinstance(error, RefusedError):
            if not error.again:
                self._fail(error)
            elif error.code == "gap" and pushing is self._pushes[0]:
                self.rewinds = True
                self._changed()
            elif error.code == "stale":
                self._again(connection)
            elif not self._resending:
                self._later()
        # else the connection is lost

    def _later(self) -> None:
        """Send everything open again, after a while."""
        self._resending = True
        delay = _BACKOFF_SECONDS * (1.0 + self._jitter())

        def again() -> None:
            if self._resending and self.joined.is_set():
                self._resend()

        asyncio.get_running_loop().call_later(delay, again)

    def _again(self, connection: Connection) -> None:
        """Give a connection up whose shard does not know this worker any more."""
        if connection is self._connection:
            self.joined.clear()
            connection.lost.set()

    def _settle(self, pushing: _Pushing) -> None:
        self._pushes.remove(pushing)
        self._settled = max(self._settled, pushing.message.clock)
        if not pushing.answer.done():
            pushing.answer.set_result(None)


def _lengths_of(pulled: _Pulling) -> memoryview:
    answer = pulled.answer
    return answer.result().lengths if answer.done() else memoryview(b"")


async def _asked(connection: Connection, message: Message) -> Answer:
    _, answer = connection.post(message)
    return await answer
