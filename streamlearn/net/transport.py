"""Bytes to frames and back: what both ends of a connection share.

A :class:`Channel` receives straight into the reader's memory, gathers what is written during one
turn of the loop into one write, counts silence, and ends the connection at the first error. What a
frame means is its user's: a session of a server, or a link.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, Final, Protocol

from streamlearn.errors import (
    AccessError,
    ClusterError,
    PeerLostError,
    ProtocolError,
    StreamlearnError,
)
from streamlearn.net.address import join_address
from streamlearn.net.connection import EndedError, decode_error, encode_error, frame_sizes
from streamlearn.net.counters import Counters
from streamlearn.net.frame import (
    ALIVE,
    ANSWER,
    ERROR,
    HEADER_BYTES,
    REQUEST,
    Buffer,
    FrameError,
    FrameReader,
    pack_header,
)
from streamlearn.net.limits import Limits
from streamlearn.net.packing import unpack

__all__ = ["INBOX", "REQUESTS", "USER", "WRITES", "Channel", "ChannelUser"]

# Why nothing is read at the moment.
REQUESTS: Final = 1  # too many unanswered
INBOX: Final = 2  # no room for the next body
WRITES: Final = 4  # the peer does not read what it is sent
USER: Final = 8  # whoever takes the answers asked for it
_ENDED: Final = 16

# Each side says something that often within `silence_seconds`.
_TICKS: Final = 4
# Up to here what is sent in one turn of the loop is joined: one write, one record of TLS. Larger
# bodies are handed to the kernel where they lie.
_JOIN_BYTES_MAX: Final = 16 << 10
# So much is written at once, without waiting for the turn to end.
_FLUSH_BYTES: Final = 256 << 10
# What a peer still says after its connection has been ended goes here.
_SCRATCH_BYTES: Final = 4 << 10
# Reasons for which another connection may do better: the peer is gone or busy, or frames were
# damaged, lost or repeated under way.
_LOST: Final = frozenset(
    {"lost", "busy", "silent", "slow", "draining", "internal", "checksum", "order"}
)


class ChannelUser(Protocol):
    """Whom a channel serves."""

    def connected(self) -> None:
        """Take note that there is a connection: the handshake may begin."""
        ...

    def greeted(self, kind: int, body: Buffer) -> None:
        """Take a frame of the handshake."""
        ...

    def received(self, request_id: int, body: Buffer, cost: int) -> None:
        """Take the body of a request or an answer; ``cost`` bytes were admitted for it."""
        ...

    def wants_room(self, cost: int) -> None:
        """Take note that a frame waits for room."""
        ...

    def flowing(self, writable: bool) -> None:
        """Take note that what is written piles up, or that it flows again."""
        ...

    def ended(self, error: StreamlearnError | None) -> None:
        """Take note that the connection serves no more, once; None: this side wanted it."""
        ...

    def gone(self) -> None:
        """Take note that the socket is closed, once, after :meth:`ended`."""
        ...


class Channel(asyncio.BufferedProtocol):
    """One connection.

    Parameters
    ----------
    user : ChannelUser
    cluster_id : int
    state : str
        Of the connection, at its beginning.
    limits : Limits
    counters : Counters
    admit : callable, optional
        As for ``FrameReader``.

    Attributes
    ----------
    peer_address : str
        For messages to operators.
    certificate : mapping or None
        The peer's, None without TLS.
    flow : asyncio.Event
        Set while less than ``write_bytes_high`` waits to be sent, and from the end on.
    closed : asyncio.Event
        Set once the socket is closed.
    """

    def __init__(
        self,
        user: ChannelUser,
        *,
        cluster_id: int,
        state: str,
        limits: Limits,
        counters: Counters,
        admit: Callable[[int], bool] | None = None,
    ) -> None:
        self.user = user
        self.peer_address = ""
        self.certificate: dict[str, Any] | None = None
        self.flow = asyncio.Event()
        self.flow.set()
        self.closed = asyncio.Event()
        self._cluster_id = cluster_id
        self._limits = limits
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        sizes = frame_sizes(state, limits.frame_bytes_max)
        arguments = () if admit is None else (admit,)
        self._reader = FrameReader(cluster_id, sizes, *arguments)
        self._transport: Any = None
        self._joins = True
        self._paused = False  # the transport reads nothing
        self._held = 0  # why it should not
        self._resuming = False
        self._out: list[Buffer] = []
        self._out_bytes = 0
        self._scratch: bytearray | None = None
        self._heard = False
        self._spoke = False
        self._silent_ticks = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing is taken or sent any more."""
        return bool(self._held & _ENDED)

    @property
    def backlog(self) -> int:
        """Bytes that wait to be sent."""
        size: int = self._out_bytes + self._transport.get_write_buffer_size()
        return size

    # Called by the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin: the handshake has so long."""
        self._transport = transport
        # asyncio's own, up to Python 3.11, make one buffer of all that is to be written
        self._joins = type(transport).writelines is asyncio.WriteTransport.writelines  # type: ignore[attr-defined]
        high = self._limits.write_bytes_high
        self._transport.set_write_buffer_limits(high=high, low=high // 4)
        self.peer_address = _shown(transport.get_extra_info("peername"))
        self.certificate = transport.get_extra_info("peercert")
        self._timer = self._loop.call_later(self._limits.handshake_seconds, self._too_late)
        self._guard(self.user.connected)

    def get_buffer(self, sizehint: int) -> memoryview | bytearray:
        """Lend memory to receive into."""
        if self._scratch is None:
            try:
                return self._reader.buffer()
            except FrameError as error:
                self.refuse(error)
                assert self._scratch is not None
        return self._scratch

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was received."""
        self._counters.bytes_in += nbytes
        if self._scratch is None:
            self._heard = True
            self._reader.advance(nbytes)
            self._guard(self._take)

    def eof_received(self) -> bool:
        """Take note that the peer says nothing more: close."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """End; the socket is closed."""
        if not self.ended:
            broken = exc is not None or self._reader.partial
            # with TLS 1.3 a certificate is refused only after this side has finished
            refused = self.certificate is not None and not self._reader.received
            self._end(_lost_error(self.peer_address, exc, refused), "lost" if broken else "")
        self._stop_timer()
        self.closed.set()
        self._loop.call_soon(self.user.gone)

    def pause_writing(self) -> None:
        """Take note that the peer does not read as fast as this side writes."""
        if not self.ended:
            self.flow.clear()
            self.user.flowing(False)

    def resume_writing(self) -> None:
        """Take note that it does again."""
        self.flow.set()
        if not self.ended:
            self.user.flowing(True)

    # Called by the user.

    def enter(self, state: str) -> None:
        """Take the frames of another state of the connection."""
        self._reader.expect(frame_sizes(state, self._limits.frame_bytes_max))

    def settle(self) -> None:
        """Take more than an unknown peer may send."""
        self._reader.settle()

    def start_ticking(self) -> None:
        """Watch for silence instead of for the end of the handshake, and break this side's own."""
        self._stop_timer()
        self._timer = self._loop.call_later(self._limits.silence_seconds / _TICKS, self._tick)

    def send(
        self, kind: int, request_id: int, body: Buffer, plain_size: int = -1, flags: int = 0
    ) -> None:
        """Send a frame before this turn of the loop ends; nothing once the connection has ended.

        Parameters
        ----------
        plain_size : int
            Bytes of the body once opened; -1: it is not compressed.
        """
        if self._held & _ENDED:
            return
        size = len(body)
        if plain_size < 0:
            plain_size = size
        head = pack_header(self._cluster_id, kind, request_id, body, plain_size, flags)
        out = self._out
        if not out:
            self._loop.call_soon(self._flush)
        out += (head, body)
        self._out_bytes += HEADER_BYTES + size
        self._counters.plain_bytes_out += HEADER_BYTES + plain_size
        self._spoke = True
        if self._out_bytes >= _FLUSH_BYTES:
            self._flush()

    def hold(self, reason: int) -> None:
        """Read nothing while there is a reason not to."""
        self._held |= reason
        if not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def release(self, reason: int) -> None:
        """Go on reading, soon, if this was the last reason."""
        self._held &= ~reason
        # never from here: whoever answers a request must not be given the next one meanwhile
        if self._paused and not self._held and not self._resuming:
            self._resuming = True
            self._loop.call_soon(self._resume)

    def admitted(self) -> None:
        """Go on with the frame that waited for room."""
        self._reader.admitted()
        self.release(INBOX)

    def refuse(self, error: StreamlearnError, reason: str = "") -> None:
        """Say why, and end the connection: the peer has done wrong, or ``reason`` says what else.

        The socket stays open until the peer closes it or ``linger_seconds`` have passed, and what
        comes meanwhile is thrown away: closing at once would discard what it has not read yet.
        """
        if self.ended:
            return
        reason = reason or _reason(error)
        self.send(ERROR, 0, encode_error(reason, error.message))
        self._flush()
        self._end(_typed(error, reason), reason)
        self._stop_timer()
        if self._transport.is_closing():
            return
        self._scratch = bytearray(_SCRATCH_BYTES)
        self._timer = self._loop.call_later(self._limits.linger_seconds, self.abort)
        if self._paused:
            self._paused = False
            self._transport.resume_reading()

    def close(self) -> None:
        """Send what is left, then close; ``linger_seconds`` later at the latest."""
        if self.ended:
            return
        self._flush()
        self._end(None, "")
        self._stop_timer()
        self._timer = self._loop.call_later(self._limits.linger_seconds, self.abort)
        self._transport.close()

    def abort(self) -> None:
        """Close now, whatever is left to send."""
        self._end(None, "")
        self._stop_timer()
        if self._transport is not None:
            self._transport.abort()

    def _guard(self, function: Callable[[], None]) -> None:
        """Run a part of this side: a peer's fault costs the connection, ours raises, too."""
        try:
            function()
        except EndedError as error:
            self._end(_typed(error, error.reason), error.reason)
            self._stop_timer()
            self._timer = self._loop.call_later(self._limits.linger_seconds, self.abort)
            self._transport.close()
        except (ProtocolError, AccessError, ClusterError) as error:
            self.refuse(error)
        except BaseException:
            self._end(PeerLostError("this side failed"), "internal")
            self.abort()
            raise

    def _take(self) -> None:
        """Take frames while there are whole ones and no reason not to."""
        following = self._reader.next
        while not self._held:
            frame = following()
            if frame is None:
                if self._reader.waiting:
                    self.hold(INBOX)
                    self.user.wants_room(self._reader.waiting)
                return
            kind, flags, request_id, plain_size, body = frame
            self._counters.plain_bytes_in += HEADER_BYTES + plain_size
            if kind in (REQUEST, ANSWER):
                cost = len(body)
                if flags:
                    body = unpack(flags, body, plain_size)
                    cost += plain_size
                self.user.received(request_id, body, cost)
            elif kind == ERROR:
                raise decode_error(body)
            elif kind != ALIVE:
                self.user.greeted(kind, body)

    def _resume(self) -> None:
        self._resuming = False
        if self._held:
            return
        self._guard(self._take)
        if not self._held:
            self._paused = False
            self._transport.resume_reading()

    def _flush(self) -> None:
        out, size = self._out, self._out_bytes
        if not out or self._held & _ENDED:
            return
        self._out, self._out_bytes = [], 0
        self._counters.bytes_out += size
        try:
            if size <= _JOIN_BYTES_MAX:
                self._transport.write(b"".join(out))
            elif not self._joins:
                self._transport.writelines(out)
            else:
                for buffer in out:
                    self._transport.write(buffer)
        except BaseException:
            # half a frame may be out: nothing that follows could be understood
            self._end(PeerLostError("this side failed while it sent"), "internal")
            self.abort()
            raise

    def _tick(self) -> None:
        """Count silence in ticks, not in seconds: a process that was stopped starts anew."""
        if self._heard:
            self._silent_ticks = 0
        elif not self._held & (REQUESTS | INBOX | USER):
            self._silent_ticks += 1
        self._heard = False
        if self._silent_ticks >= _TICKS:
            slow = bool(self._held & WRITES)
            seconds = self._limits.silence_seconds
            said = "read nothing" if slow else "said nothing"
            error = PeerLostError(f"the peer at {self.peer_address} {said} for {seconds:g} s")
            self.refuse(error, "slow" if slow else "silent")
            return
        if not self._spoke and self.flow.is_set():
            self.send(ALIVE, 0, b"")
        self._spoke = False
        self._timer = self._loop.call_later(self._limits.silence_seconds / _TICKS, self._tick)

    def _too_late(self) -> None:
        seconds = self._limits.handshake_seconds
        error = PeerLostError(
            f"the handshake with {self.peer_address} was not finished within {seconds:g} s"
        )
        self.refuse(error, "silent")

    def _end(self, error: StreamlearnError | None, reason: str) -> None:
        """Serve no more, from here on; the user hears of it soon, never within its own call."""
        if self._held & _ENDED:
            return
        self._held |= _ENDED
        self._out, self._out_bytes = [], 0
        self.flow.set()
        if reason and reason != "draining":
            self._counters.faults[reason] += 1
        self._loop.call_soon(self.user.ended, error)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _reason(error: StreamlearnError) -> str:
    """Return the one of ``frame.REASONS`` that an error stands for."""
    if isinstance(error, FrameError):
        return error.reason
    if isinstance(error, AccessError):
        return "access"
    if isinstance(error, ClusterError):
        return "cluster"
    return "message" if isinstance(error, ProtocolError) else "internal"


def _typed(error: StreamlearnError, reason: str) -> StreamlearnError:
    """Return an error of the class that its reason asks for."""
    kind: type[StreamlearnError] = ProtocolError
    if reason == "access":
        kind = AccessError
    elif reason == "cluster":
        kind = ClusterError
    elif reason in _LOST:
        kind = PeerLostError
    return error if isinstance(error, kind) else kind(error.message, cause=error.cause)


def _lost_error(address: str, error: Exception | None, refused: bool) -> StreamlearnError:
    if isinstance(error, ssl.SSLError):
        return AccessError(f"TLS with {address} failed", cause=str(error))
    return PeerLostError(
        f"the connection to {address} was lost",
        cause=str(error) if error else None,
        hint="it may have refused this side's certificate" if refused else None,
    )


def _shown(address: Any) -> str:
    if isinstance(address, tuple):
        return join_address(str(address[0]), address[1])
    return str(address or "a peer")
