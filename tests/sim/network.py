"""A network in memory: connections between hosts, and all that can go wrong with them.

A connection carries bytes in order, in pieces cut at random, each under way for its own time; two
connections overtake one another freely. What a sender has written and a reader has not taken is
bounded as the buffers of two kernels are, so back-pressure is real. Faults are those that a program
sees through sockets: bytes late, cut off, changed or repeated, connections reset, half of them
unaware of it, hosts that cannot reach one another, in both directions or in one.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import zlib
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from tests.sim.frames import Splitter
from tests.sim.loop import OWNER, Owner, SimLoop
from tests.sim.trace import Trace

__all__ = ["Fabric", "HostNetwork", "Tap", "Weather"]

# What the kernels of both ends hold of one direction, sent and not read.
WINDOW_BYTES: Final = 1 << 16
HIGH_WATER_BYTES: Final = 1 << 16
CONNECT_SECONDS_MAX: Final = 20.0
# Unacknowledged for so long, a connection is given up by the side that sends.
RETRANSMIT_SECONDS_MAX: Final = 30.0

Tap = Callable[["Pipe", bytes], None]
Factory = Callable[[], Any]


@dataclass
class Weather:
    """How the network is now; shares are of pieces (or frames, or attempts to connect).

    Attributes
    ----------
    seconds, jitter_seconds : float
        Time under way: at least, and an exponential spread above it.
    spike_share, spike_seconds : float
        Some pieces are late by much more.
    piece_bytes_max : int
    reset_share, half_reset_share, corrupt_share, refuse_share : float
    duplicate_share : float
        Of frames sent twice.
    bytes_per_second : float
        Of one direction of a connection; 0: no limit.
    """

    seconds: float = 0.0005
    jitter_seconds: float = 0.0
    spike_share: float = 0.0
    spike_seconds: float = 0.0
    piece_bytes_max: int = 1 << 16
    reset_share: float = 0.0
    half_reset_share: float = 0.0
    corrupt_share: float = 0.0
    duplicate_share: float = 0.0
    refuse_share: float = 0.0
    bytes_per_second: float = 0.0


class Fabric:
    """All hosts and what lies between them.

    Parameters
    ----------
    loop : SimLoop
    random : Random
    trace : Trace
    frame_bytes : callable, optional
        Size of the frame whose first bytes are given, None where it cannot be told yet, -1 where
        these are no frames; for faults that concern whole frames, and the tap.
    tap : callable, optional
        Is given each whole frame as it is sent, before any fault.

    Attributes
    ----------
    fired : Counter
        Faults that took effect, by name.
    bytes : int
        Delivered.
    write_bytes_max : int
        The most that any program left unsent in a transport.
    """

    def __init__(
        self,
        loop: SimLoop,
        random: Random,
        trace: Trace,
        frame_bytes: Callable[[bytes], int | None] | None = None,
        tap: Tap | None = None,
    ) -> None:
        self.loop = loop
        self.random = random
        self.trace = trace
        self.weather = Weather()
        self.frame_bytes = frame_bytes
        self.tap = tap
        self.fired: Counter[str] = Counter()
        self.bytes = 0
        self.write_bytes_max = 0
        self.slow: dict[str, float] = {}  # host -> further seconds that each piece takes to it
        self._cuts: set[tuple[str, str]] = set()
        self._listeners: dict[str, SimListener] = {}
        self._numbers = itertools.count(1)
        self._ports = itertools.count(40_000)
        self._transports: dict[SimTransport, None] = {}

    def host(self, name: str) -> HostNetwork:
        """Return the network as programs on a host use it."""
        return HostNetwork(self, name)

    # --- faults

    def cut(self, source: str, target: str) -> None:
        """Let nothing through from one host to another (the other way is not touched)."""
        self._cuts.add((source, target))

    def heal(self, source: str, target: str) -> None:
        """Let bytes through again; what waited goes on."""
        self._cuts.discard((source, target))
        for transport in list(self._transports):
            pipe = transport.outgoing
            if pipe.route == (source, target):
                pipe.resume()

    def heal_all(self) -> None:
        """Let all bytes through again."""
        for source, target in sorted(self._cuts):
            self.heal(source, target)

    def is_cut(self, source: str, target: str) -> bool:
        """Say whether nothing gets through from one host to another."""
        return (source, target) in self._cuts

    def reset(self, host: str) -> int:
        """Reset all connections of a host; return how many."""
        hit = [t for t in self._transports if t.host == host and not t.is_lost]
        for transport in hit:
            transport.break_off(ConnectionResetError(104, "reset"), both=True)
        return len(hit)

    def kill(self, owner: Owner, *, silently: bool) -> None:
        """End what a dead process had open; silently: its peers are told nothing (no power)."""
        for address, listener in list(self._listeners.items()):
            if listener.owner is owner:
                del self._listeners[address]
        for transport in [t for t in self._transports if t.owner is owner]:
            if silently:
                transport.vanish()
            else:
                transport.break_off(ConnectionResetError(104, "reset"), both=True)

    @property
    def connections(self) -> int:
        """Ends of connections that are open."""
        return len(self._transports)

    def note(self, fault: str) -> None:
        """Count a fault that took effect."""
        self.fired[fault] += 1

    # --- for connections

    def seconds_to(self, target: str) -> float:
        """Draw how long a piece is under way to a host."""
        weather, random = self.weather, self.random
        seconds = weather.seconds
        if weather.jitter_seconds:
            seconds += random.expovariate(1.0 / weather.jitter_seconds)
        if weather.spike_share and random.random() < weather.spike_share:
            seconds += random.random() * weather.spike_seconds
            self.note("spike")
        if target in self.slow:
            seconds += self.slow[target]
            self.note("slow_host")
        return seconds

    async def connect(self, host: str, address: str, factory: Factory) -> Any:
        """Connect a program on ``host``; see :class:`HostNetwork`."""
        loop, weather = self.loop, self.weather
        number = next(self._numbers)
        context = contextvars.copy_context()
        done: asyncio.Future[Any] = loop.create_future()
        target = address.rpartition(":")[0]

        def arrive() -> None:
            if done.done():
                return
            if self.is_cut(host, target) or self.is_cut(target, host):
                self.note("connect_cut")
                loop.call_later(CONNECT_SECONDS_MAX, fail, TimeoutError(110, "timed out"))
                return
            listener = self._listeners.get(address)
            if listener is None:
                back(fail, ConnectionRefusedError(111, f"nobody listens at {address}"))
                return
            if weather.refuse_share and self.random.random() < weather.refuse_share:
                self.note("refuse")
                back(fail, ConnectionRefusedError(111, "refused"))
                return
            near = SimTransport(self, number, "client", host, target, context)
            far = SimTransport(self, number, "server", target, host, listener.context)
            near.join(far)
            far.begin(listener.factory)
            back(succeed, near)

        def back(then: Callable[[Any], None], what: Any) -> None:
            loop.call_later(self.seconds_to(host), then, what, context=context)

        def fail(error: OSError) -> None:
            if not done.done():
                done.set_exception(error)

        def succeed(near: SimTransport) -> None:
            if done.done():
                near.break_off(None, both=True)
                return
            self.trace("connected", number, host, target)
            near.begin(
                factory, then=lambda: None if done.done() else done.set_result(near.protocol)
            )

        loop.call_later(self.seconds_to(target), arrive, context=_NOBODYS)
        return await done

    def listen(self, host: str, address: str, factory: Factory) -> SimListener:
        """Listen at an address of a host; see :class:`HostNetwork`."""
        _, _, port = address.rpartition(":")
        address = f"{host}:{int(port) or next(self._ports)}"
        if address in self._listeners:
            raise OSError(98, f"{address} is in use")
        listener = SimListener(self, address, factory)
        self._listeners[address] = listener
        return listener

    def unlisten(self, listener: SimListener) -> None:
        """Accept no more."""
        if self._listeners.get(listener.address) is listener:
            del self._listeners[listener.address]

    def opened(self, transport: SimTransport) -> None:
        """Keep an end of a connection."""
        self._transports[transport] = None

    def ended(self, transport: SimTransport) -> None:
        """Forget an end of a connection."""
        self._transports.pop(transport, None)


_NOBODYS: Final = contextvars.Context()


class HostNetwork:
    """What ``net.network.Network`` is, for the programs of one host."""

    def __init__(self, fabric: Fabric, host: str) -> None:
        self._fabric = fabric
        self.host = host

    async def connect(self, address: str, factory: Factory) -> Any:
        """Connect to ``host:port``; return the protocol. Raises OSError."""
        return await self._fabric.connect(self.host, address, factory)

    async def listen(self, address: str, factory: Factory) -> SimListener:
        """Listen at ``host:port`` (the host is always this one; port 0: any)."""
        return self._fabric.listen(self.host, address, factory)


class SimListener:
    """Somebody who listens; closed when its owner dies."""

    def __init__(self, fabric: Fabric, address: str, factory: Factory) -> None:
        self.address = address
        self.factory = factory
        self.context = contextvars.copy_context()
        self.owner = OWNER.get()
        self._fabric = fabric

    async def close(self) -> None:
        """Accept no more; connections that are open stay."""
        self._fabric.unlisten(self)


class Pipe:
    """One direction of a connection: bytes written, under way, and arrived.

    Attributes
    ----------
    number : int
        Of the connection.
    route : tuple of str
        (from, to), as hosts.
    by_client : bool
        Whether the client sends here.
    """

    def __init__(self, fabric: Fabric, source: SimTransport, target: SimTransport) -> None:
        self.fabric = fabric
        self.number = source.number
        self.route = (source.host, source.peer_host)
        self.by_client = source.side == "client"
        self.source = source
        self.target = target
        self.unsent = bytearray()
        self.arrived: deque[memoryview] = deque()
        self.arrived_bytes = 0
        self.has_ended = False  # the end arrived
        self._under_way: deque[tuple[float, bytes | None]] = deque()
        self._under_way_bytes = 0
        self._free_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._given_up: asyncio.TimerHandle | None = None
        self._ending = False
        self._end_sent = False
        self._dead = False
        self._splitter = Splitter(fabric.frame_bytes) if fabric.frame_bytes is not None else None

    # --- the sender's side

    def write(self, data: bytes) -> None:
        """Take what the sender writes."""
        fabric = self.fabric
        if self._splitter is None:
            self.unsent += data
        else:
            for frame in self._splitter.feed(data):
                self.unsent += frame
                if self._splitter.lost:
                    continue
                if fabric.tap is not None:
                    fabric.tap(self, frame)
                share = fabric.weather.duplicate_share
                if share and fabric.random.random() < share:
                    fabric.note("duplicate")
                    self.unsent += frame
        self.pump()

    def end(self) -> None:
        """Let the end follow what has been written."""
        self._ending = True
        self.pump()

    @property
    def waiting(self) -> int:
        """Bytes written that are not on their way yet."""
        return len(self.unsent) + (0 if self._splitter is None else self._splitter.waiting)

    @property
    def is_done(self) -> bool:
        """Whether all that was written is on its way."""
        return not self.unsent

    def pump(self) -> None:
        """Put on its way what the window has room for."""
        fabric = self.fabric
        if self._dead:
            return
        if fabric.is_cut(*self.route):
            self._wait_for_ack()
            return
        weather, random, unsent = fabric.weather, fabric.random, self.unsent
        room = WINDOW_BYTES - self._under_way_bytes - self.arrived_bytes
        while unsent and room > 0:
            limit = min(weather.piece_bytes_max, room, len(unsent))
            size = limit if random.random() < 0.7 else random.randint(1, limit)
            piece = bytes(unsent[:size])
            del unsent[:size]
            if weather.corrupt_share and random.random() < weather.corrupt_share:
                fabric.note("corrupt")
                at = random.randrange(len(piece))
                piece = (
                    piece[:at] + bytes([piece[at] ^ (1 << random.randrange(8))]) + piece[at + 1 :]
                )
            if weather.reset_share and random.random() < weather.reset_share:
                fabric.note("reset")
                self._send(piece[: random.randrange(len(piece))])
                self.source.break_off(ConnectionResetError(104, "reset"), both=True)
                return
            if weather.half_reset_share and random.random() < weather.half_reset_share:
                fabric.note("half_reset")
                self._send(piece[: random.randrange(len(piece))])
                end = self.source if random.random() < 0.5 else self.target
                end.break_off(ConnectionResetError(104, "reset"), both=False)
                return
            self._send(piece)
            room -= size
        if self._ending and not unsent and not self._end_sent:
            self._end_sent = True
            self._send(None)
        self.source.drained()

    def _send(self, piece: bytes | None) -> None:
        if piece is not None and not piece:
            return
        fabric = self.fabric
        when = fabric.loop.time() + fabric.seconds_to(self.route[1])
        rate = fabric.weather.bytes_per_second
        if rate and piece is not None:
            self._free_at = max(self._free_at, fabric.loop.time()) + len(piece) / rate
            when = max(when, self._free_at)
        if self._under_way:
            when = max(when, self._under_way[-1][0])
        self._under_way.append((when, piece))
        self._under_way_bytes += 0 if piece is None else len(piece)
        self._schedule()

    def _wait_for_ack(self) -> None:
        """Give the connection up where a cut lasts too long; the other end is not told."""
        waits = self.unsent or self._under_way or self._ending
        if waits and self._given_up is None:
            self._given_up = self.fabric.loop.call_later(
                RETRANSMIT_SECONDS_MAX, self._give_up, context=_NOBODYS
            )

    def _give_up(self) -> None:
        self._given_up = None
        if not self._dead and self.fabric.is_cut(*self.route):
            self.source.break_off(TimeoutError(110, "timed out"), both=False)

    def resume(self) -> None:
        """Go on after a cut."""
        if self._given_up is not None:
            self._given_up.cancel()
            self._given_up = None
        self._schedule()
        self.pump()

    def break_off(self) -> None:
        """Send no more; of what is under way the first pieces still arrive, or none."""
        self._dead = True
        self.unsent.clear()
        if self._under_way:
            stay = self.fabric.random.randint(0, len(self._under_way))
            while len(self._under_way) > stay:
                self._under_way.pop()
        if self._given_up is not None:
            self._given_up.cancel()

    @property
    def empty_at(self) -> float:
        """When the last piece that is under way arrives."""
        return self._under_way[-1][0] if self._under_way else 0.0

    # --- the reader's side

    def _schedule(self) -> None:
        if self._timer is None and self._under_way:
            when = max(self._under_way[0][0], self.fabric.loop.time())
            self._timer = self.fabric.loop.call_at(when, self._arrive, context=_NOBODYS)

    def _arrive(self) -> None:
        self._timer = None
        fabric = self.fabric
        if not self._under_way:
            return
        if fabric.is_cut(*self.route):
            fabric.note("cut")
            self._wait_for_ack()
            return
        _, piece = self._under_way.popleft()
        self._schedule()
        if self.target.is_gone:
            # nobody is there any more: the sender learns of it now
            self.source.break_off(ConnectionResetError(104, "reset"), both=False)
            return
        if piece is None:
            self.has_ended = True
        else:
            fabric.trace("arrives", self.number, self.by_client, len(piece), zlib.crc32(piece))
            self._under_way_bytes -= len(piece)
            self.arrived.append(memoryview(piece))
            self.arrived_bytes += len(piece)
            fabric.bytes += len(piece)
        self.target.readable()

    def take(self, into: memoryview) -> int:
        """Fill memory with what arrived; return how many bytes."""
        done = 0
        while self.arrived and done < len(into):
            piece = self.arrived[0]
            part = piece[: len(into) - done]
            into[done : done + len(part)] = part
            done += len(part)
            if len(part) < len(piece):
                self.arrived[0] = piece[len(part) :]
            else:
                self.arrived.popleft()
        self.arrived_bytes -= done
        return done


class SimTransport(asyncio.Transport):
    """One end of a connection, as asyncio shows it to a ``BufferedProtocol``."""

    outgoing: Pipe
    incoming: Pipe

    def __init__(
        self,
        fabric: Fabric,
        number: int,
        side: str,
        host: str,
        peer_host: str,
        context: contextvars.Context,
    ) -> None:
        super().__init__()
        self.number = number
        self.side = side
        self.host = host
        self.peer_host = peer_host
        self.owner = context.get(OWNER)
        self.protocol: Any = None
        self.is_lost = False  # connection_lost is told, or will be in a moment
        self.is_gone = False  # nothing of this end is left, and the other does not know
        self._fabric = fabric
        self._context = context
        self._closing = False
        self._reading = True
        self._read_due = False
        self._writing_paused = False
        self._high, self._low = HIGH_WATER_BYTES, HIGH_WATER_BYTES // 4

    def __hash__(self) -> int:
        return self.number * 2 + (self.side == "server")

    def __repr__(self) -> str:
        return f"<{self.side} {self.number} of {self.host}>"

    def join(self, other: SimTransport) -> None:
        """Make two ends one connection."""
        self.outgoing = other.incoming = Pipe(self._fabric, self, other)
        other.outgoing = self.incoming = Pipe(self._fabric, other, self)
        self._fabric.opened(self)
        self._fabric.opened(other)

    def begin(self, factory: Factory, then: Callable[[], None] | None = None) -> None:
        """Make the protocol, as whoever listens or connects."""

        def made() -> None:
            if self.is_lost:
                return
            self.protocol = factory()
            self._guard(self.protocol.connection_made, self)
            if then is not None:
                then()
            self.readable()

        self._soon(made)

    def _soon(self, callback: Callable[..., object], *args: Any) -> None:
        self._fabric.loop.call_soon(callback, *args, context=self._context)

    def _guard(self, callback: Callable[..., object], *args: Any) -> object:
        """Call the protocol; an error ends the connection, as asyncio has it."""
        try:
            return callback(*args)
        except Exception as error:  # noqa: BLE001 - told to the loop, as asyncio does
            self._fabric.loop.call_exception_handler(
                {"message": f"{self!r}: the protocol failed", "exception": error}
            )
            self.break_off(error, both=True)
        return None

    # --- reading

    def readable(self) -> None:
        """Give the protocol what arrived, soon."""
        if not self._read_due and self._reading and not self.is_lost:
            self._read_due = True
            self._soon(self._read)

    def _read(self) -> None:
        self._read_due = False
        pipe, protocol = self.incoming, self.protocol
        if protocol is None:
            return
        while pipe.arrived and self._reading and not (self.is_lost or self._closing):
            into = memoryview(protocol.get_buffer(-1)).cast("B")
            assert len(into), "get_buffer() returned no room"
            count = pipe.take(into)
            del into
            self._guard(protocol.buffer_updated, count)
        if self.is_lost or self._closing:
            return
        pipe.pump()
        if pipe.has_ended and not pipe.arrived and self._reading:
            pipe.has_ended = False
            if not self._guard(protocol.eof_received):
                self.close()

    def pause_reading(self) -> None:
        """Leave what arrives where it is."""
        self._reading = False

    def resume_reading(self) -> None:
        """Read again."""
        if not self._reading:
            self._reading = True
            self.readable()

    def is_reading(self) -> bool:
        """Say whether it reads."""
        return self._reading and not self._closing

    # --- writing

    def write(self, data: Any) -> None:
        """Send bytes, never waiting."""
        if self._closing or self.is_lost:
            return
        self.outgoing.write(bytes(data))
        self._wrote()

    def writelines(self, list_of_data: Any) -> None:
        """Send several buffers."""
        self.write(b"".join(list_of_data))

    def _wrote(self) -> None:
        waiting = self.outgoing.waiting
        self._fabric.write_bytes_max = max(self._fabric.write_bytes_max, waiting)
        if waiting > self._high and not self._writing_paused:
            self._writing_paused = True
            self._guard(self.protocol.pause_writing)

    def drained(self) -> None:
        """Note that some of what was written is on its way."""
        if self._writing_paused and self.outgoing.waiting <= self._low:
            self._writing_paused = False
            if not self.is_lost:
                self._soon(self._resume_writing)
        if self._closing and self.outgoing.is_done:
            self._lose(None)

    def _resume_writing(self) -> None:
        if not self.is_lost and not self._writing_paused:
            self._guard(self.protocol.resume_writing)

    def write_eof(self) -> None:
        """Send the end behind what was written."""
        self.outgoing.end()

    def can_write_eof(self) -> bool:
        """Say that it can."""
        return True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set when writing is paused and resumed."""
        if high is None:
            high = HIGH_WATER_BYTES if low is None else 4 * low
        self._high, self._low = high, high // 4 if low is None else low

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return (low, high)."""
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        """Return the bytes that are not on their way yet."""
        return self.outgoing.waiting

    # --- ends

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return ``peername`` or ``sockname``; there is nothing else."""
        named = {"peername": (self.peer_host, 1), "sockname": (self.host, 1)}
        return named.get(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Hand the connection to another protocol."""
        self.protocol = protocol

    def get_protocol(self) -> Any:
        """Return the protocol."""
        return self.protocol

    def is_closing(self) -> bool:
        """Say whether it is closed, or will be."""
        return self._closing or self.is_lost

    def close(self) -> None:
        """Send what was written, then end."""
        if not self.is_closing():
            self._closing = True
            self.outgoing.end()

    def abort(self) -> None:
        """End at once; what was not sent is lost."""
        if not self.is_lost:
            self.break_off(None, both=True)

    def break_off(self, error: BaseException | None, *, both: bool) -> None:
        """End without sending what is left; ``both``: the other end learns of it, too, later."""
        if self.is_lost:
            return
        other, loop = self.incoming.source, self._fabric.loop
        self.outgoing.break_off()
        self._lose(error)
        if both and not other.is_lost:
            when = max(self.outgoing.empty_at, loop.time() + self._fabric.seconds_to(other.host))
            loop.call_at(when, other.hear_reset, self, context=_NOBODYS)

    def hear_reset(self, other: SimTransport) -> None:
        """Learn that the other end broke off, where that can get through."""
        if not self._fabric.is_cut(other.host, self.host):
            self.break_off(ConnectionResetError(104, "reset by peer"), both=False)

    def vanish(self) -> None:
        """Be gone without a word, as a machine without power."""
        self.is_gone = self.is_lost = True
        self.outgoing.break_off()
        self._fabric.ended(self)

    def _lose(self, error: BaseException | None) -> None:
        if self.is_lost:
            return
        self.is_lost = self.is_gone = self._closing = True
        self._fabric.ended(self)
        if self.protocol is not None:
            self._soon(self._lost, error)

    def _lost(self, error: BaseException | None) -> None:
        self._fabric.trace("lost", self.side, self.number, type(error).__name__)
        try:
            self.protocol.connection_lost(error)
        except Exception as failure:  # noqa: BLE001 - told to the loop, as asyncio does
            self._fabric.loop.call_exception_handler(
                {"message": f"{self!r}: connection_lost failed", "exception": failure}
            )
