from __future__ import annotations

import asyncio
from typing import Any

import pytest

from streamlearn.errors import AccessError, PeerLostError, ProtocolError, StreamlearnError
from streamlearn.net.connection import AWAIT_HELLO, SERVER_OPEN
from streamlearn.net.counters import Counters
from streamlearn.net.frame import ALIVE, ANSWER, ERROR, HEADER_BYTES, REQUEST, Buffer, FrameError
from streamlearn.net.limits import Limits
from streamlearn.net.security import cluster_id
from streamlearn.net.transport import USER, Channel
from tests.net.wire_parts import CLUSTER, frame


class Wire:
    """A transport in memory: keeps what is written, fails when told."""

    def __init__(self) -> None:
        self.written: list[Buffer] = []
        self.reading = True
        self.closing = False
        self.aborted = False
        self.fails: BaseException | None = None
        self.waiting = 0

    def write(self, data: Buffer) -> None:
        if self.fails is not None:
            raise self.fails
        self.written.append(data)

    def writelines(self, data: list[Buffer]) -> None:
        for one in data:
            self.write(one)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        assert high > low

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def get_extra_info(self, name: str) -> Any:
        return ("192.0.2.1", 5) if name == "peername" else None

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.aborted = self.closing = True


class User:
    """Keeps what a channel tells; may do something at each frame."""

    def __init__(self) -> None:
        self.got: list[tuple[int, bytes, int]] = []
        self.errors: list[StreamlearnError | None] = []
        self.flows: list[bool] = []
        self.was_gone = 0
        self.fails: BaseException | None = None

    def connected(self) -> None:
        if self.fails is not None:
            raise self.fails

    def greeted(self, kind: int, body: Buffer) -> None:
        raise AssertionError

    def received(self, request_id: int, body: Buffer, cost: int) -> None:
        if self.fails is not None:
            raise self.fails
        self.got.append((request_id, bytes(body), cost))

    def wants_room(self, cost: int) -> None:
        raise AssertionError

    def flowing(self, writable: bool) -> None:
        self.flows.append(writable)

    def ended(self, error: StreamlearnError | None) -> None:
        self.errors.append(error)

    def gone(self) -> None:
        self.was_gone += 1


def make(**limits: Any) -> tuple[Channel, User, Wire, Counters]:
    user, wire, counters = User(), Wire(), Counters()
    channel = Channel(
        user,
        cluster_id=cluster_id(CLUSTER),
        state=AWAIT_HELLO,
        limits=Limits(**limits),
        counters=counters,
    )
    channel.connection_made(wire)  # type: ignore[arg-type]
    channel.enter(SERVER_OPEN)
    channel.settle()
    return channel, user, wire, counters


def give(channel: Channel, data: bytes) -> None:
    while data:
        into = memoryview(channel.get_buffer(-1))
        count = min(len(into), len(data))
        into[:count] = data[:count]
        channel.buffer_updated(count)
        data = data[count:]


async def turn() -> None:
    """Let the loop come round twice."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_what_is_sent_in_one_turn_is_written_at_once() -> None:
    channel, _, wire, _ = make()
    channel.send(ANSWER, 1, b"one")
    channel.send(ANSWER, 2, b"two")
    assert wire.written == []
    await turn()
    assert wire.written == [frame(ANSWER, 1, b"one") + frame(ANSWER, 2, b"two")]
    channel.abort()


async def test_a_large_body_is_written_where_it_lies() -> None:
    channel, _, wire, _ = make()
    body = bytearray(100_000)
    channel.send(ANSWER, 1, body)
    await turn()
    assert any(one is body for one in wire.written)
    assert b"".join(wire.written) == frame(ANSWER, 1, bytes(body))
    channel.abort()


async def test_much_is_written_before_the_turn_ends() -> None:
    channel, _, wire, _ = make()
    channel.send(ANSWER, 1, bytes(300_000))
    assert wire.written
    channel.abort()


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt(), OSError("gone")])
async def test_a_write_that_fails_half_way_ends_the_connection(error: BaseException) -> None:
    channel, user, wire, counters = make()
    wire.fails = error
    with pytest.raises(type(error)):
        channel.send(ANSWER, 1, bytes(300_000))
    assert wire.aborted
    assert channel.ended
    assert counters.faults == {"internal": 1}
    wire.fails = None
    channel.send(ANSWER, 2, b"later")
    await turn()
    assert wire.written == []
    assert [type(one) for one in user.errors] == [PeerLostError]


async def test_a_failure_of_the_user_ends_the_connection_and_is_raised() -> None:
    channel, user, wire, counters = make()
    user.fails = KeyError("ours")
    with pytest.raises(KeyError):
        give(channel, frame(REQUEST, 1, b"x"))
    assert wire.aborted
    assert counters.faults == {"internal": 1}


async def test_a_peers_fault_is_told_and_what_follows_is_thrown_away() -> None:
    channel, user, wire, counters = make(linger_seconds=0.01)
    user.fails = ProtocolError("no message")
    give(channel, frame(REQUEST, 1, b"x") + frame(REQUEST, 2, b"y"))
    user.fails = None
    give(channel, frame(REQUEST, 3, b"z") * 500)
    assert [bytes(one)[5] for one in wire.written] == [ERROR]
    assert not wire.closing
    await asyncio.sleep(0.05)
    assert wire.aborted
    assert user.got == []
    assert counters.faults == {"message": 1}
    assert [type(one) for one in user.errors] == [ProtocolError]


async def test_refusing_at_the_beginning_is_told_too() -> None:
    user, wire, counters = User(), Wire(), Counters()
    user.fails = AccessError("no")
    channel = Channel(user, cluster_id=1, state=AWAIT_HELLO, limits=Limits(), counters=counters)
    channel.connection_made(wire)  # type: ignore[arg-type]
    assert [bytes(one)[5] for one in wire.written] == [ERROR]
    assert counters.faults == {"access": 1}
    channel.abort()


async def test_more_than_an_unknown_peer_may_send_ends_the_connection() -> None:
    user, wire, counters = User(), Wire(), Counters()
    channel = Channel(
        user, cluster_id=cluster_id(CLUSTER), state=SERVER_OPEN, limits=Limits(), counters=counters
    )
    channel.connection_made(wire)  # type: ignore[arg-type]
    give(channel, frame(ALIVE, 0, b"") * 7)  # 280 bytes
    assert counters.faults == {"size": 1}
    channel.abort()


async def test_frames_that_are_read_already_wait_while_held() -> None:
    channel, user, wire, _ = make()
    channel.hold(USER)
    assert not wire.reading
    give(channel, frame(REQUEST, 1, b"a") + frame(REQUEST, 2, b"b"))
    assert user.got == []
    channel.release(USER)
    assert user.got == []  # never within the call
    await turn()
    assert user.got == [(1, b"a", 1), (2, b"b", 1)]
    assert wire.reading
    channel.abort()


async def test_closing_sends_what_is_left() -> None:
    channel, user, wire, counters = make()
    channel.send(ANSWER, 1, b"last")
    channel.close()
    assert wire.written == [frame(ANSWER, 1, b"last")]
    assert wire.closing
    channel.connection_lost(None)
    await turn()
    assert (user.errors, user.was_gone, +counters.faults) == ([None], 1, {})
    assert channel.closed.is_set()


@pytest.mark.parametrize(
    ("data", "error", "counted"),
    [
        (b"", None, {}),
        (frame(REQUEST, 1, b"abc")[:20], None, {"lost": 1}),
        (frame(REQUEST, 1, b"abc")[: HEADER_BYTES + 1], None, {"lost": 1}),
        (b"", ConnectionResetError(104, "reset"), {"lost": 1}),
    ],
)
async def test_the_end_of_a_connection_is_counted_where_something_was_lost(
    data: bytes, error: Exception | None, counted: dict[str, int]
) -> None:
    channel, user, _, counters = make()
    give(channel, data)
    channel.connection_lost(error)
    await turn()
    assert counters.faults == counted
    assert [type(one) for one in user.errors] == [PeerLostError]


async def test_an_error_from_the_peer_closes_without_another() -> None:
    channel, user, wire, counters = make()
    give(channel, frame(ERROR, 0, b"\x0dgood\nbye"))
    assert (wire.written, wire.closing, +counters.faults) == ([], True, {})
    channel.connection_lost(None)
    await turn()
    assert [str(one) for one in user.errors] == ["the peer ended the connection\ncause: good?bye"]


async def test_flow_follows_the_transport_and_is_free_at_the_end() -> None:
    channel, user, _, _ = make()
    channel.pause_writing()
    assert not channel.flow.is_set()
    channel.resume_writing()
    channel.pause_writing()
    channel.refuse(FrameError("enough"))
    assert channel.flow.is_set()
    assert user.flows == [False, True, False]
    channel.abort()


async def test_silence_is_counted_in_ticks_and_not_while_this_side_reads_nothing() -> None:
    channel, user, wire, counters = make(silence_seconds=0.04)
    channel.start_ticking()
    channel.hold(USER)
    await asyncio.sleep(0.15)
    assert not channel.ended
    assert {bytes(one)[5] for one in wire.written} == {ALIVE}
    channel.release(USER)
    await asyncio.sleep(0.15)
    await turn()
    assert counters.faults == {"silent": 1}
    assert [type(one) for one in user.errors] == [PeerLostError]
    channel.abort()
