"""A stream that can be read once: standard input, a named pipe, a process substitution."""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import stat
from contextlib import suppress

from streamlearn.errors import SourceError, SourceMissingError
from streamlearn.net.sources.blocks import Offload, settle
from streamlearn.net.sources.source import StoredObject

__all__ = ["PipeStore"]

# The beginning is kept, so that it can be looked at (format, header) before it is read.
_HEAD_BYTES = 1 << 20
# What the kernel lets an ordinary user have: fewer, larger reads than with its default of 64 KiB.
_PIPE_BYTES = 1 << 20
# Reads in a row before others get their turn.
_READS_IN_A_ROW = 4


class PipeStore:
    """One object of unknown size, read from a file descriptor in order.

    A start before what was read already works within the first MiB, which is kept; a start after
    it (a resume, where the same bytes are piped in again) reads and drops what lies between.

    Parameters
    ----------
    uri : str
        ``-``, or the path of a pipe or terminal.
    fd : int, optional
        Descriptor to read instead of opening ``uri``; not closed. ``-`` means 0.
    offload : Offload
        Runs reads of what cannot be waited for (standard input from a file).
    """

    ranged = False

    def __init__(
        self, uri: str = "-", *, fd: int | None = None, offload: Offload = asyncio.to_thread
    ) -> None:
        self._uri = uri
        self._offload = offload
        self._fd = 0 if fd is None and uri == "-" else fd
        self._owned = self._fd is None
        self._waitable: bool | None = None
        self._at = 0
        self._head = bytearray()
        self._turn = asyncio.Lock()

    async def list(self) -> list[StoredObject]:
        """Return the one object; its size is not known."""
        self._open()
        return [StoredObject(self._uri, -1, "", 0.0)]

    async def fetch(self, stored: StoredObject, start: int, into: memoryview) -> int:
        """Read on until ``into`` is full or the stream ends."""
        async with self._turn:
            self._open()
            count = 0
            if start < self._at:
                if start > len(self._head):
                    raise SourceError(
                        f"{self._uri} is at byte {self._at} and cannot go back to byte {start}",
                        hint="a pipe can be read once; give a file to read more than once",
                    )
                kept = memoryview(self._head)[start : start + len(into)]
                count = len(kept)
                into[:count] = kept
                kept.release()
                if count < len(into) and self._at > len(self._head):
                    raise SourceError(
                        f"{self._uri} is at byte {self._at} and cannot go back to byte {start}",
                        hint="a pipe can be read once; give a file to read more than once",
                    )
            while self._at < start:
                scratch = memoryview(bytearray(min(_HEAD_BYTES, start - self._at)))
                if not await self._read(scratch):
                    return 0
            while count < len(into):
                got = await self._read(into[count:])
                if not got:
                    break
                count += got
            return count

    async def aclose(self) -> None:
        """Close the descriptor, if it was opened here."""
        if self._owned and self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> None:
        if self._waitable is not None:
            return
        try:
            if self._fd is None:
                # Without O_NONBLOCK, opening a named pipe waits for its writer.
                self._fd = os.open(self._uri, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            mode = os.fstat(self._fd).st_mode
        except OSError as error:
            raise SourceMissingError(f"cannot open {self._uri}", cause=error.strerror) from error
        # epoll refuses regular files, which are always ready.
        self._waitable = not (stat.S_ISREG(mode) or stat.S_ISBLK(mode))
        if stat.S_ISFIFO(mode):
            with suppress(OSError):
                fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    async def _read(self, into: memoryview) -> int:
        fd = self._fd
        assert fd is not None, "read after close"
        try:
            if self._waitable:
                count = await _read_ready(fd, into)
            else:
                count = await settle(self._offload(os.readv, fd, [into]))
        except OSError as error:
            raise SourceError(
                f"cannot read {self._uri} at byte {self._at}", cause=error.strerror
            ) from error
        if self._at == len(self._head) < _HEAD_BYTES:
            self._head += into[: min(count, _HEAD_BYTES - self._at)]
        self._at += count
        return count


async def _read_ready(fd: int, into: memoryview) -> int:
    """Read what is there, waiting on the loop where nothing is; a thread could not be cancelled."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    count = 0
    for _ in range(_READS_IN_A_ROW):
        if not poll.poll(0):
            if count:
                break
            await _readable(fd)
        try:
            got = os.readv(fd, [into[count:]])
        except BlockingIOError:
            continue
        count += got
        if not got or count == len(into):
            break
    await asyncio.sleep(0)
    return count


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(fd, wake)
    try:
        await ready
    finally:
        loop.remove_reader(fd)
