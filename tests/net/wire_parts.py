"""What the tests of the wire share: secrets and nonces, a server that records, raw peers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from streamlearn.errors import StreamlearnError
from streamlearn.net.client import Link
from streamlearn.net.connection import ClientHandshake, Peer, Welcome, frame_sizes
from streamlearn.net.counters import Counters
from streamlearn.net.frame import (
    CHALLENGE,
    HEADER_BYTES,
    HELLO,
    PROOF,
    WELCOME,
    Frame,
    FrameReader,
    pack_header,
)
from streamlearn.net.limits import Limits
from streamlearn.net.network import TcpNetwork
from streamlearn.net.security import Secrets, cluster_id
from streamlearn.net.server import Server, Session
from streamlearn.protocol import Message, State, StateIs

CLUSTER = "demo"
TOKEN = b"0123456789abcdef0123456789abcdef"
SECRETS = Secrets({"": TOKEN})
CLIENT_NONCE = bytes(range(32))
SERVER_NONCE = bytes(range(32, 64))
WORKER = Peer("worker", "w0")
WELCOME_IS = Welcome(0, 2, 0, 128, 7, "lr-01")
STATE_IS = StateIs(1, 2, 3, True, [], {}, {})
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


over_loops = pytest.mark.parametrize("loop", list(LOOPS))


def run(loop: str, main: Coroutine[Any, Any, None]) -> None:
    """Run a test on a loop in debug mode; whatever is reported to the loop fails it.

    But for what asyncio reports, in debug mode alone, of a TLS handshake that failed.
    """
    reported: list[dict[str, Any]] = []
    with asyncio.Runner(debug=True, loop_factory=LOOPS[loop]) as runner:
        runner.get_loop().set_exception_handler(lambda _, context: reported.append(context))
        runner.run(asyncio.wait_for(main, 20))
    reported = [one for one in reported if "transport creation" not in one["message"]]
    assert not reported, reported


def nonces() -> Callable[[], bytes]:
    numbers = itertools.count(1)
    return lambda: next(numbers).to_bytes(32, "little")


class Recorder:
    """Keeps what it is asked; answers State at once, everything else when told."""

    def __init__(self) -> None:
        self.opened_sessions: list[Session] = []
        self.closed_sessions: list[Session] = []
        self.asked: list[tuple[Session, int, Message]] = []
        self.fails: BaseException | None = None

    def opened(self, session: Session) -> None:
        self.opened_sessions.append(session)

    def received(self, session: Session, request_id: int, message: Message) -> None:
        if self.fails is not None:
            raise self.fails
        self.asked.append((session, request_id, message))
        if isinstance(message, State):
            session.send(request_id, STATE_IS)

    def closed(self, session: Session) -> None:
        self.closed_sessions.append(session)


def make_server(
    requests: Recorder | None = None,
    *,
    secrets: Secrets = SECRETS,
    limits: Limits | None = None,
    counters: Counters | None = None,
    compression: str = "none",
    cluster: str = CLUSTER,
) -> Server:
    return Server(
        cluster=cluster,
        welcome=lambda: WELCOME_IS,
        secrets=secrets,
        requests=requests or Recorder(),
        network=TcpNetwork(secrets),
        limits=limits or Limits(),
        counters=counters or Counters(),
        nonce=nonces(),
        compression=compression,
    )


async def open_link(
    address: str,
    *,
    secrets: Secrets = SECRETS,
    peer: Peer = WORKER,
    limits: Limits | None = None,
    counters: Counters | None = None,
    compression: str = "none",
    cluster: str = CLUSTER,
) -> Link:
    return await Link.open(
        address,
        cluster=cluster,
        peer=peer,
        secrets=secrets,
        network=TcpNetwork(secrets),
        limits=limits or Limits(),
        nonce=nonces(),
        counters=counters or Counters(),
        compression=compression,
    )


def frame(kind: int, request_id: int, body: bytes, plain: int = -1, flags: int = 0) -> bytes:
    size = len(body) if plain < 0 else plain
    return pack_header(cluster_id(CLUSTER), kind, request_id, body, size, flags) + body


def feed(reader: FrameReader, data: bytes, step: int = 1 << 30) -> list[Frame]:
    """Feed bytes at most ``step`` at once; return the frames that they make."""
    frames: list[Frame] = []
    rest = memoryview(data)
    while rest:
        into = reader.buffer()
        count = min(len(into), len(rest), step)
        into[:count] = rest[:count]
        rest = rest[count:]
        reader.advance(count)
        while (one := reader.next()) is not None:
            frames.append(one)
    return frames


class RawPeer:
    """A peer that says what a test wants, and hears frames."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, address: str) -> RawPeer:
        host, _, port = address.rpartition(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    @classmethod
    async def settled(
        cls, address: str, peer: Peer = WORKER, secrets: Secrets = SECRETS
    ) -> RawPeer:
        """Connect and go through the handshake, as a link does."""
        raw = await cls.connect(address)
        handshake = ClientHandshake(cluster_id(CLUSTER), peer, secrets, CLIENT_NONCE)
        raw.writer.write(frame(HELLO, 0, handshake.hello))
        kind, body = await raw.hear()
        assert kind == CHALLENGE
        reply = handshake.received(kind, body)
        assert reply is not None
        raw.writer.write(frame(PROOF, 0, reply))
        kind, body = await raw.hear()
        assert kind == WELCOME
        return raw

    async def hear(self) -> tuple[int, bytes]:
        """Return the next frame's kind and body."""
        head = await self.reader.readexactly(HEADER_BYTES)
        body = await self.reader.readexactly(int.from_bytes(head[24:28], "little"))
        return head[5], body

    async def ends(self) -> bytes:
        """Return all that comes until the server closes."""
        try:
            return await self.reader.read()
        except ConnectionResetError:
            return b""

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


def open_reader(state: str, frame_bytes_max: int = 1 << 20) -> FrameReader:
    reader = FrameReader(cluster_id(CLUSTER), frame_sizes(state, frame_bytes_max))
    reader.settle()
    return reader


async def until(done: Callable[[], bool]) -> None:
    """Wait for something that happens by itself."""
    while not done():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0.002)


async def asked(requests: Recorder, count: int) -> tuple[Session, int, Message]:
    """Wait for the request of that number, from 1; return it."""
    await until(lambda: len(requests.asked) >= count)
    return requests.asked[count - 1]


async def failure(link: Coroutine[Any, Any, Any]) -> StreamlearnError:
    """Return the error that a coroutine ends with."""
    try:
        await link
    except StreamlearnError as error:
        return error
    raise AssertionError("it did not fail")
