"""One object behind an ``http(s)://`` URL, by ranges where the server offers them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import aiohttp

from streamlearn.errors import ObjectChangedError, SourceError, SourceMissingError
from streamlearn.net.sources.source import StoredObject

__all__ = ["HttpStore"]

# A server that is silent for this long will not answer any more.
_CONNECT_SECONDS_MAX = 30.0
_READ_SECONDS_MAX = 60.0
# Waits between attempts: full jitter below 0.1 s, 0.2 s, ... at most this.
_BACKOFF_SECONDS = 0.1
_BACKOFF_SECONDS_MAX = 20.0
# Statuses that pass: time-out, too many requests, and the server's own failures.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
# Why a request is made again; metric labels, the same as for S3.
_REASONS = ("slow_down", "server_error", "timeout", "connection", "truncated")
# What of an error's body is quoted.
_QUOTED_BYTES = 200

_Broken = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError, OSError)


class HttpStore:
    """The object that a URL names, pinned by its ETag or time of modification.

    With ``Accept-Ranges: bytes`` and a known size, pieces are fetched by range, in parallel;
    otherwise the object is read as one stream. Whatever can be retried is, at the byte where it
    stopped.

    Parameters
    ----------
    url : str
    retries : int
        Attempts after the first that may fail in a row, without a byte between them.
    jitter : callable
        Returns a number in [0, 1) that scales each wait.
    sleep : callable
        Waits.
    read_seconds_max : float
        Silence after which an answer is given up.

    Attributes
    ----------
    ranged : bool
        Known once the object was listed.
    retries : dict of str to int
        Requests made again, by reason.
    """

    def __init__(
        self,
        url: str,
        *,
        retries: int = 8,
        jitter: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        read_seconds_max: float = _READ_SECONDS_MAX,
    ) -> None:
        self.ranged = False
        self._url = url
        self.retries = dict.fromkeys(_REASONS, 0)
        self._retries_max = retries
        self._jitter = jitter
        self._sleep = sleep
        self._read_seconds_max = read_seconds_max
        self._session: aiohttp.ClientSession | None = None
        self._listed: StoredObject | None = None
        self._stream: _Stream | None = None
        self._others: dict[str, HttpStore] = {}  # URLs that were asked for beside ours
        self._turn = asyncio.Lock()

    async def list(self) -> list[StoredObject]:
        """Ask for size, version, and whether ranges are to be had."""
        tries = _Tries(self)
        while True:
            try:
                listed = await self._ask("HEAD", {})
                if listed is None:  # no HEAD here, or a URL signed for GET alone
                    listed = await self._ask("GET", {"Range": "bytes=0-0"})
            except _Broken as error:
                await tries.failed(f"cannot reach {self._url}", error)
                continue
            except _Passing as error:
                await tries.failed(f"{self._url} answered {error}", error)
                continue
            assert listed is not None, "a GET is an answer or an error"
            self._listed = listed
            return [listed]

    async def fetch(self, stored: StoredObject, start: int, into: memoryview) -> int:
        """Fill ``into``, by as many requests as it takes."""
        if stored.uri in self._others:
            return await self._others[stored.uri].fetch(stored, start, into)
        if self._listed is None:
            await self.list()
        if self.ranged:
            return await self._fetch_range(stored, start, into)
        async with self._turn:
            return await self._fetch_stream(stored, start, into)

    async def beside(self, uri: str) -> StoredObject | None:
        """Describe what another URL names; None where there is nothing, or it may not be read."""
        other = self._others.get(uri)
        if other is None:
            other = self._others[uri] = HttpStore(
                uri, retries=self._retries_max, jitter=self._jitter, sleep=self._sleep,
                read_seconds_max=self._read_seconds_max,
            )  # fmt: skip
            other.retries = self.retries
        try:
            (listed,) = await other.list()
        except SourceMissingError:
            return None
        return listed

    async def aclose(self) -> None:
        """Close connections."""
        for other in self._others.values():
            await other.aclose()
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _ask(self, method: str, headers: dict[str, str]) -> StoredObject | None:
        async with self._request(method, headers) as answer:
            if method == "HEAD" and answer.status >= HTTPStatus.BAD_REQUEST:
                if answer.status in _PASSING:
                    raise _Passing(answer)
                return None
            if answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                size = 0
            elif answer.status == HTTPStatus.PARTIAL_CONTENT:
                size = _range_of(answer)[1]
                self.ranged = size >= 0
            else:
                await self._check(answer)
                size = -1 if answer.content_length is None else answer.content_length
                offers = answer.headers.get("Accept-Ranges", "").strip().lower() == "bytes"
                self.ranged = method == "HEAD" and offers and size >= 0
                if method == "HEAD" and "Content-Length" not in answer.headers:
                    size = -1
            return StoredObject(self._url, size, _version(answer), _modified(answer))

    async def _fetch_range(self, stored: StoredObject, start: int, into: memoryview) -> int:
        count = 0
        tries = _Tries(self)
        want = min(len(into), max(stored.size - start, 0)) if stored.size >= 0 else len(into)
        while count < want:
            at = start + count
            headers = {"Range": f"bytes={at}-{start + want - 1}", **_condition(stored.version)}
            before = count
            try:
                async with self._request("GET", headers) as answer:
                    await self._check(answer, stored)
                    partial = answer.status == HTTPStatus.PARTIAL_CONTENT
                    begin = _range_of(answer)[0] if partial else 0
                    async for data in _from(answer, begin, at):
                        step = min(len(data), want - count)
                        into[count : count + step] = data[:step]
                        count += step
                        if count == want:
                            break
                if count < want:
                    raise aiohttp.ClientPayloadError("the answer ended early")
            except _Broken as error:
                await tries.failed(
                    f"reading {self._url} stopped at byte {start + count}",
                    error,
                    progress=count > before,
                )
            except _Passing as error:
                await tries.failed(f"{self._url} answered {error} at byte {at}", error)
        return count

    async def _fetch_stream(self, stored: StoredObject, start: int, into: memoryview) -> int:
        count = 0
        tries = _Tries(self)
        while count < len(into):
            at = start + count
            before = count
            try:
                stream = self._stream
                if stream is None or stream.at > at:
                    stream = await self._reopen(stored)
                while stream.at < at:
                    if not await stream.read(at - stream.at):
                        return count
                while count < len(into):
                    data = await stream.read(len(into) - count)
                    if not data:
                        return count
                    into[count : count + len(data)] = data
                    count += len(data)
            except _Broken as error:
                self._drop_stream()
                if not stored.version and start + count > 0:
                    raise SourceError(
                        f"reading {self._url} stopped at byte {start + count}, and the server "
                        "offers neither ranges nor a version to go on from",
                        cause=_words(error),
                        hint="download it and read the file",
                    ) from error
                await tries.failed(
                    f"reading {self._url} stopped at byte {start + count}",
                    error,
                    progress=count > before,
                )
            except _Passing as error:
                await tries.failed(f"{self._url} answered {error} at byte {at}", error)
        return count

    async def _reopen(self, stored: StoredObject) -> _Stream:
        self._drop_stream()
        answer = await self._get(_condition(stored.version))
        stream = _Stream(answer)
        try:
            await self._check(answer, stored)
        except BaseException:
            stream.close()
            raise
        self._stream = stream
        return stream

    def _drop_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    @asynccontextmanager
    async def _request(
        self, method: str, headers: dict[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        answer = await self._get(headers, method)
        try:
            yield answer
        finally:
            # Back to the pool where it was read to its end; else the connection is of no use.
            answer.release() if answer.content.at_eof() else answer.close()

    async def _get(self, headers: dict[str, str], method: str = "GET") -> aiohttp.ClientResponse:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                auto_decompress=False,
                headers={"Accept-Encoding": "identity"},
                timeout=aiohttp.ClientTimeout(
                    total=None,
                    sock_connect=_CONNECT_SECONDS_MAX,
                    sock_read=self._read_seconds_max,
                ),
            )
        try:
            return await self._session.request(method, self._url, headers=headers)
        except aiohttp.InvalidURL as error:
            raise SourceMissingError(f"{self._url} is not a URL", cause=_words(error)) from error
        except aiohttp.TooManyRedirects as error:
            raise SourceError(f"{self._url} redirects in circles") from error

    async def _check(
        self, answer: aiohttp.ClientResponse, stored: StoredObject | None = None
    ) -> None:
        """Raise what an answer means that does not bring the pinned object."""
        status = answer.status
        if status in _PASSING:
            raise _Passing(answer)
        if status in {HTTPStatus.PRECONDITION_FAILED, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE}:
            raise self._changed(f"status {status}")
        if status >= HTTPStatus.BAD_REQUEST:
            raise await self._refused(answer)
        if status not in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}:
            raise SourceError(f"{self._url} answered {status} {answer.reason}, expected 200 or 206")
        if stored is None:
            return
        version = _version(answer)
        if stored.version and version and version != stored.version:
            raise self._changed(f"version {version}, expected {stored.version}")
        size = _range_of(answer)[1] if status == HTTPStatus.PARTIAL_CONTENT else -1
        if 0 <= stored.size != size >= 0:
            raise self._changed(f"{size} bytes, expected {stored.size}")

    def _changed(self, how: str) -> ObjectChangedError:
        return ObjectChangedError(
            f"{self._url} changed while it was read: {how}", hint="start again to read it anew"
        )

    async def _refused(self, answer: aiohttp.ClientResponse) -> SourceError:
        status = answer.status
        said = (await answer.content.read(_QUOTED_BYTES)).decode(errors="replace").strip()
        message = f"{self._url} answered {status} {answer.reason}"
        hints = {
            HTTPStatus.UNAUTHORIZED: "it wants credentials: use a signed URL",
            HTTPStatus.FORBIDDEN: "it may not be read: has a signed URL expired?",
            HTTPStatus.NOT_FOUND: "there is no such object: check the path",
            HTTPStatus.GONE: "the object was removed",
        }
        hint = hints.get(HTTPStatus(status)) if status in hints else None
        kind = SourceError if hint is None else SourceMissingError
        return kind(message, cause=said.splitlines()[0] if said else None, hint=hint)


class _Passing(Exception):  # noqa: N818 -- not an error yet: it is tried again
    """An answer that may be another one in a moment."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        super().__init__(f"{answer.status} {answer.reason}")
        self.status = answer.status


class _Tries:
    """Counts failures in a row, and waits longer after each."""

    def __init__(self, store: HttpStore) -> None:
        self._store = store
        self._failures = 0

    async def failed(self, what: str, error: Exception, *, progress: bool = False) -> None:
        """Wait before the next attempt, or raise SourceError where there is none left."""
        if progress:
            self._failures = 0
        store = self._store
        if self._failures >= store._retries_max:
            raise SourceError(
                f"{what}, {self._failures + 1} times in a row",
                cause=_words(error),
                hint="is the server up and reachable from here?",
            ) from error
        bound = min(_BACKOFF_SECONDS * 2**self._failures, _BACKOFF_SECONDS_MAX)
        self._failures += 1
        store.retries[_reason(error)] += 1
        await store._sleep(bound * store._jitter())


class _Stream:
    """An answer that is read from its beginning."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.at = 0
        self._answer = answer

    async def read(self, bytes_max: int) -> bytes:
        """Return what has come, at most so much; nothing at the end."""
        data = await self._answer.content.read(bytes_max)
        self.at += len(data)
        return data

    def close(self) -> None:
        self._answer.close()


async def _from(
    answer: aiohttp.ClientResponse, begin: int, wanted: int
) -> AsyncIterator[memoryview]:
    """Yield a body that begins at byte ``begin`` of the object from byte ``wanted`` on."""
    if begin > wanted:
        raise aiohttp.ClientPayloadError(f"the answer begins at byte {begin}, not {wanted}")
    async for data in answer.content.iter_any():
        behind = min(max(wanted - begin, 0), len(data))
        begin += len(data)
        if behind < len(data):
            yield memoryview(data)[behind:]


def _version(answer: aiohttp.ClientResponse) -> str:
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""


def _condition(version: str) -> dict[str, str]:
    """Headers by which the server refuses another version. A weak ETag never matches: compare."""
    if version.startswith('"'):
        return {"If-Match": version}
    if version and not version.startswith("W/"):
        return {"If-Unmodified-Since": version}
    return {}


def _modified(answer: aiohttp.ClientResponse) -> float:
    try:
        return parsedate_to_datetime(answer.headers.get("Last-Modified", "")).timestamp()
    except ValueError:
        return 0.0


def _range_of(answer: aiohttp.ClientResponse) -> tuple[int, int]:
    """Return first byte and whole size of ``Content-Range: bytes 0-9/100``; -1 where unknown."""
    span, _, total = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    first = span.partition("-")[0]
    return int(first) if first.isdigit() else -1, int(total) if total.isdigit() else -1


def _reason(error: Exception) -> str:
    if isinstance(error, _Passing):
        return "slow_down" if error.status in {429, 503} else "server_error"
    if isinstance(error, TimeoutError):
        return "timeout"
    return "truncated" if isinstance(error, aiohttp.ClientPayloadError) else "connection"


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
