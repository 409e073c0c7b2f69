"""Ranged GETs whose bodies go from the socket straight into the caller's memory.

A general HTTP client hands a body over in chunks, each copied three times on its way; on loopback
that is two thirds of what reading from S3 costs. So the one request that carries the data, a GET
answered with 206 and a Content-Length, has a client of its own, of the smallest kind: a
``BufferedProtocol`` whose buffer *is* the target. Any other answer is either small, and kept whole
for whoever reads errors, or not for us, and the caller asks again by its general client.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

from streamlearn.net.sources.aws_errors import Failure

__all__ = ["RECEIVING", "Answer", "RangedGets", "Target"]

# Headers, or a whole answer that is an error: S3's are below a KB, a proxy's page below ten.
_HEAD_BYTES_MAX = 64 << 10
# A connection that rested longer may have been closed by the other side at this very moment.
_IDLE_SECONDS_MAX = 10.0
_PARTIAL_STATUS = 206


@dataclass(slots=True)
class Target:
    """Where a body is to go, and how far it came.

    Attributes
    ----------
    into : memoryview
        Writable bytes, as many as the range has.
    filled : int
        Bytes that arrived.
    used : bool
        Whether the body went here at all.
    failure : Failure or None
        What broke the body off.
    """

    into: memoryview
    filled: int = 0
    used: bool = False
    failure: Failure | None = None


# Set around the one request that is to be made by us; botocore's hook looks here.
RECEIVING: ContextVar[Target | None] = ContextVar("RECEIVING", default=None)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer without its body, or with a small one.

    Attributes
    ----------
    status : int
    headers : dict of str to str
        Names in lower case.
    body : bytes
        Empty where the body went to the target.
    """

    status: int
    headers: dict[str, str]
    body: bytes


class RangedGets:
    """Connections for ranged GETs, kept open between requests.

    Parameters
    ----------
    context : ssl.SSLContext
        For https.
    connections_max : int
        Requests under way at a time; further ones wait.
    connect_seconds, read_seconds : float
        Longest time to connect, and longest silence.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        connections_max: int,
        connect_seconds: float,
        read_seconds: float,
    ) -> None:
        self._context = context
        self._connect_seconds = connect_seconds
        self._read_seconds = read_seconds
        self._permits = asyncio.Semaphore(connections_max)
        self._idle: dict[tuple[str, str, int], list[_Connection]] = {}

    async def get(self, url: str, headers: Mapping[str, str], target: Target) -> Answer | None:
        """Make a request; a body of 206 goes to the target, as far as it comes.

        Returns
        -------
        Answer or None
            None where the answer is none that can be read here; nothing has been taken from it.

        Raises
        ------
        TimeoutError, OSError
            There was no answer.
        """
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        host, port = parts.hostname or "", parts.port or (443 if secure else 80)
        # As it is signed: without the port where that goes without saying.
        netloc = parts.netloc.removesuffix(":443" if secure else ":80")
        request = _request(netloc, parts.path, parts.query, headers)
        if request is None:
            return None
        place = (parts.scheme, host, port)
        async with self._permits:
            while True:
                connection = self._rested(place)
                fresh = connection is None
                if connection is None:
                    connection = await self._connect(host, port, secure)
                try:
                    answer = await connection.exchange(request, target, self._read_seconds)
                except _StaleError:
                    if fresh:
                        raise
                    continue  # it was closed while it rested: that says nothing of the request
                finally:
                    if connection.reusable:
                        self._idle.setdefault(place, []).append(connection)
                    else:
                        connection.abort()
                return answer

    def close(self) -> None:
        """Close what rests."""
        for connections in self._idle.values():
            for connection in connections:
                connection.abort()
        self._idle.clear()

    async def _connect(self, host: str, port: int, secure: bool) -> _Connection:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._connect_seconds):
            _, connection = await loop.create_connection(
                lambda: _Connection(loop), host, port, ssl=self._context if secure else None
            )
        return connection

    def _rested(self, place: tuple[str, str, int]) -> _Connection | None:
        connections = self._idle.get(place, [])
        while connections:
            connection = connections.pop()
            if connection.reusable and connection.silent_seconds() < _IDLE_SECONDS_MAX:
                return connection
            connection.abort()
        return None


class _StaleError(ConnectionResetError):
    """The connection was closed before the first byte of an answer."""


@dataclass(slots=True)
class _Head:
    """What stands before a body."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    keep_alive: bool = True

    @classmethod
    def parse(cls, text: bytes) -> _Head:
        status_line, *lines = text.decode("latin-1").split("\r\n")
        version, _, rest = status_line.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise ValueError(f"{status_line[:80]!r} is no HTTP/1.1 status line")
        head = cls(int(rest[:3]))
        for line in lines:
            name, _, value = line.partition(":")
            head.headers[name.strip().lower()] = value.strip()
        close = "close" in head.headers.get("connection", "").lower()
        head.keep_alive = version == "HTTP/1.1" and not close
        return head

    @property
    def length(self) -> int:
        """Bytes of the body; -1 where the headers do not say."""
        text = self.headers.get("content-length", "")
        if "transfer-encoding" in self.headers or not text.isdigit():
            return -1
        return int(text)

    @property
    def chunked(self) -> bool:
        return self.headers.get("transfer-encoding", "").lower() == "chunked"


class _Connection(asyncio.BufferedProtocol):
    """One connection: at rest, in a head, in a body that goes to the target, or in a small one."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.reusable = True
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._heard = loop.time()
        self._scratch = bytearray(_HEAD_BYTES_MAX)
        self._scratch_filled = 0
        self._head: _Head | None = None
        self._into: memoryview | None = None  # the body's part of the target
        self._target: Target | None = None
        self._answer: asyncio.Future[Answer | None] | None = None

    async def exchange(self, request: bytes, target: Target, read_seconds: float) -> Answer | None:
        assert self._answer is None, "one request at a time"
        if self._transport is None or self._transport.is_closing():
            raise _StaleError("the connection was closed")
        answer: asyncio.Future[Answer | None] = self._loop.create_future()
        self._answer = answer
        self._target, self._head, self._into, self._scratch_filled = target, None, None, 0
        self._heard = self._loop.time()
        self.reusable = False  # until the answer is complete
        self._transport.write(request)
        try:
            # One timer a silence, not one a chunk.
            while not answer.done():
                left = read_seconds - self.silent_seconds()
                if left <= 0:
                    return self._silence()
                await asyncio.wait((answer,), timeout=left)
            return answer.result()
        finally:
            self._answer = self._target = self._into = None

    def silent_seconds(self) -> float:
        """Return the time since the other side was heard."""
        return self._loop.time() - self._heard

    def abort(self) -> None:
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    # ---------------------------------------------------------------- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._into is not None and self._target is not None:
            return self._into[self._target.filled :]
        if self._scratch_filled == len(self._scratch):
            self._scratch_filled = 0  # it was too much already, and the connection is closing
        return memoryview(self._scratch)[self._scratch_filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._heard = self._loop.time()
        if self._into is not None and self._target is not None:
            self._target.filled += nbytes
            self._end_of_body()
            return
        self._scratch_filled += nbytes
        if self._answer is None or self._answer.done():
            self.abort()  # bytes that nobody asked for
            return
        try:
            self._look_into_scratch()
        except ValueError as error:
            self._fail(ConnectionError(f"the answer is not HTTP: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.reusable = False
        if self._answer is None or self._answer.done():
            return
        if self._head is not None and self._into is not None:
            retry = "truncated" if exc is None else "connection"
            self._break_off(type(exc).__name__ if exc else "Truncated", retry, str(exc or ""))
        elif self._scratch_filled == 0:
            self._fail(_StaleError(str(exc) if exc else "the server closed the connection"))
        elif self._head is not None and self._head.length < 0 and not self._head.chunked:
            self._finish(bytes(self._scratch[: self._scratch_filled]))  # ends with the connection
        else:
            self._fail(ConnectionResetError("the connection broke within an answer"))

    # ---------------------------------------------------------------- from state to state

    def _look_into_scratch(self) -> None:
        while self._head is None:
            end = self._scratch.find(b"\r\n\r\n", 0, self._scratch_filled)
            if end < 0:
                if self._scratch_filled == len(self._scratch):
                    raise ValueError(f"its headers are longer than {_HEAD_BYTES_MAX} bytes")
                return
            head = _Head.parse(bytes(self._scratch[:end]))
            rest = self._scratch_filled - (end + 4)
            self._scratch[:rest] = self._scratch[end + 4 : self._scratch_filled]
            self._scratch_filled = rest
            if head.status >= 200:  # the others only announce the answer
                self._head = head
                self._begin_body(head)
        if self._into is None and self._answer is not None and not self._answer.done():
            self._look_into_small_body(self._head)

    def _begin_body(self, head: _Head) -> None:
        assert self._target is not None
        into = self._target.into
        if head.status != _PARTIAL_STATUS or not 0 < head.length <= len(into):
            return
        early = self._scratch_filled
        if early > head.length:
            raise ValueError("its body is longer than its Content-Length")
        into[:early] = memoryview(self._scratch)[:early]
        self._target.used, self._target.filled = True, early
        self._into = into[: head.length]
        self._end_of_body()

    def _end_of_body(self) -> None:
        if (
            self._into is not None
            and self._target is not None
            and self._target.filled == len(self._into)
        ):
            self._finish(b"")

    def _look_into_small_body(self, head: _Head) -> None:
        body = bytes(self._scratch[: self._scratch_filled])
        if head.status in (200, _PARTIAL_STATUS) or head.length > _HEAD_BYTES_MAX:
            self._give_up()
        elif head.chunked:
            if body.endswith(b"0\r\n\r\n"):
                self._finish(_join_chunks(body))
            elif len(body) == _HEAD_BYTES_MAX:
                self._give_up()
        elif head.length >= 0:
            if len(body) >= head.length:
                self._finish(body[: head.length])
        elif len(body) == _HEAD_BYTES_MAX:
            self._give_up()

    def _finish(self, body: bytes) -> None:
        assert self._head is not None
        assert self._answer is not None
        exact = self._into is not None or len(body) == self._scratch_filled
        self.reusable = self._head.keep_alive and exact
        self._into = None
        self._answer.set_result(Answer(self._head.status, self._head.headers, body))

    def _give_up(self) -> None:
        assert self._answer is not None
        self._answer.set_result(None)
        self.abort()

    def _fail(self, error: Exception) -> None:
        assert self._answer is not None
        self._answer.set_exception(error)
        self.abort()

    def _break_off(self, code: str, retry: str, words: str) -> None:
        assert self._target is not None
        assert self._head is not None
        assert self._answer is not None
        ended = f"the body ended after {self._target.filled} of {self._head.length} bytes"
        self._target.failure = Failure(0, code, f"{ended} {words}".strip(), retry)
        self._answer.set_result(Answer(self._head.status, self._head.headers, b""))

    def _silence(self) -> Answer | None:
        if self._into is None or self._head is None:
            raise TimeoutError("there was no answer in time")
        self._break_off("TimeoutError", "timeout", "and nothing came any more")
        self.abort()
        assert self._answer is not None
        return self._answer.result()


def _request(netloc: str, path: str, query: str, headers: Mapping[str, str]) -> bytes | None:
    lines = [f"GET {path or '/'}{'?' + query if query else ''} HTTP/1.1"]
    lines += [f"Host: {netloc}", "Accept-Encoding: identity"]
    lines += [f"{name}: {value}" for name, value in headers.items() if name.lower() != "host"]
    if any("\r" in line or "\n" in line for line in lines):
        return None
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _join_chunks(body: bytes) -> bytes:
    parts = []
    while body:
        size_line, _, rest = body.partition(b"\r\n")
        size = int(size_line.partition(b";")[0], 16)
        parts.append(rest[:size])
        body = rest[size + 2 :]
        if not size:
            break
    return b"".join(parts)
