"""Memory for reading ahead: one bounded pool of reusable buffers that cannot deadlock.

A *pool* hands out buffers of one size. Whoever reads takes *shares* of it: a share is granted at
once as long as it holds fewer than its reserved minimum. Above that it is granted only while it
holds fewer buffers than are free (the dynamic threshold of Choudhury and Hahne, "Dynamic queue
length thresholds for shared-memory packet switches", 1998), so that n readers get about 1/(n + 1)
each, and while all that is held above minimums is less than half of the pool: the other half lets
the next readers start.

Why this cannot deadlock: a share is acquired from in the order in which its buffers are delivered,
and its minimum is one more than a consumer may hold on to (:data:`BLOCKS_HELD_MAX`); hence whoever
waits for the next block of a reader waits for a buffer that its share may always have. A reader
that cannot be promised its minimum waits for another to end. So any number may be read at once by
tasks of their own; one consumer that takes from several in turn may have as many open as half of
the pool holds minimums.
"""

from __future__ import annotations

import asyncio
import mmap
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import ParamSpec, Protocol, TypeAlias, TypeVar

import numpy as np

from streamlearn.messages import BLOCK_HEADROOM_BYTES, BLOCK_TAILROOM_BYTES, U8

__all__ = ["BLOCKS_HELD_MAX", "BlockPool", "Lease", "Offload", "Share", "settle"]

P = ParamSpec("P")
T = TypeVar("T")

_Opening: TypeAlias = "tuple[tuple[int, ...], asyncio.Future[tuple[Share, ...]]]"

# A consumer needs the block it parses and, for the record that runs over its end, the one before.
BLOCKS_HELD_MAX = 2


class Offload(Protocol):
    """Runs a blocking function in a lane; :func:`asyncio.to_thread` is one."""

    def __call__(
        self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Awaitable[T]:
        """Call ``function(*args, **kwargs)`` away from the event loop."""
        ...


async def settle(work: Awaitable[T]) -> T:
    """Await work to its very end, also when cancelled meanwhile; only then raise that.

    For work in a lane that writes into a buffer: the buffer may not be given back before the lane
    has let go of it.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as caught:
            cancelled = caught
    if cancelled is not None:
        task.cancelled() or task.exception()  # seen: nobody else will ask
        raise cancelled
    return task.result()


class Lease:
    """A buffer on loan from a pool.

    Attributes
    ----------
    array : uint8[pool.buffer_bytes]
        Page-aligned; the first :data:`~streamlearn.messages.BLOCK_HEADROOM_BYTES` are the headroom.
    view : memoryview
        The same bytes.
    """

    __slots__ = ("_share", "array", "view")

    def __init__(self, share: Share, array: U8) -> None:
        self._share: Share | None = share
        self.array = array
        self.view = array.data

    def release(self) -> None:
        """Give the buffer back, once; may be called from any thread."""
        share, self._share = self._share, None
        assert share is not None, "a block was released twice"
        share.pool._give_back(share, self.array)


class Share:
    """One reader's part of a pool: at least ``minimum`` buffers, more while there are enough."""

    __slots__ = ("held", "minimum", "pool")

    def __init__(self, pool: BlockPool, minimum: int) -> None:
        self.pool = pool
        self.minimum = minimum
        self.held = 0

    async def acquire(self) -> Lease:
        """Wait for a buffer; call in the order in which the buffers will be delivered."""
        return await self.pool._acquire(self)

    def close(self) -> None:
        """Return what is reserved; buffers still on loan come back on their own."""
        self.minimum = 0
        self.pool._shares_closed()


class BlockPool:
    """Reusable block buffers within a bound, for use by one event loop.

    A buffer's memory is mapped, not touched: small objects in large blocks cost what they fill. The
    most recently returned buffer is handed out first, as its pages are there and may still be in
    cache.

    Parameters
    ----------
    block_bytes : int
        Data bytes of a block.
    limit_bytes : int
        Bound on all buffers together, headroom and tailroom counted; the setting
        ``source.read_ahead_bytes``.

    Attributes
    ----------
    buffer_bytes, capacity : int
        Size of a buffer, whole pages; how many there may be.
    buffers_in_use, buffers_in_use_max : int
        On loan now; the most there ever were.
    waits : int
        How often somebody had to wait for a buffer.
    """

    name = "source.read_ahead_bytes"

    def __init__(self, block_bytes: int, limit_bytes: int) -> None:
        self.block_bytes = block_bytes
        self.buffer_bytes = self.bytes_of(block_bytes)
        self.capacity = limit_bytes // self.buffer_bytes
        assert self.capacity > 0, "the bound does not hold one buffer"
        self.buffers_in_use = 0
        self.buffers_in_use_max = 0
        self.waits = 0
        self._idle: list[U8] = []
        self._shares: list[Share] = []
        self._waiting: deque[tuple[Share, asyncio.Future[Lease]]] = deque()
        self._opening: deque[_Opening] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0

    @staticmethod
    def bytes_of(block_bytes: int) -> int:
        """Size of a buffer for blocks of this many data bytes, in whole pages."""
        room = BLOCK_HEADROOM_BYTES + block_bytes + BLOCK_TAILROOM_BYTES
        return -(-room // mmap.PAGESIZE) * mmap.PAGESIZE

    @property
    def bytes_in_use(self) -> int:
        """Bytes on loan now."""
        return self.buffers_in_use * self.buffer_bytes

    async def reserve(self, *minimums: int) -> tuple[Share, ...]:
        """Open shares together, waiting until their minimums can be promised.

        Parameters
        ----------
        *minimums : int
            Buffers that each share can always have; their sum is at most ``capacity``.
        """
        assert sum(minimums) <= self.capacity, "the pool can never promise that much"
        self._enter()
        if not self._opening and sum(minimums) <= self._free():
            return self._open(minimums)
        self.waits += 1
        future: asyncio.Future[tuple[Share, ...]] = asyncio.get_running_loop().create_future()
        entry = (minimums, future)
        self._opening.append(entry)
        try:
            return await future
        except asyncio.CancelledError:
            if entry in self._opening:
                self._opening.remove(entry)
            elif not future.cancelled():
                for share in future.result():
                    share.close()
            self._wake()
            raise

    def clear(self) -> None:
        """Let go of all idle buffers."""
        self._idle.clear()

    def _free(self) -> int:
        return self.capacity - sum(max(share.held, share.minimum) for share in self._shares)

    def _open(self, minimums: tuple[int, ...]) -> tuple[Share, ...]:
        shares = tuple(Share(self, minimum) for minimum in minimums)
        self._shares.extend(shares)
        return shares

    def _grantable(self, share: Share) -> bool:
        if share.held < share.minimum:
            return True
        above = sum(max(other.held - other.minimum, 0) for other in self._shares)
        # Who waits to open goes first: else it might starve.
        return not self._opening and above < self.capacity // 2 and share.held < self._free()

    def _enter(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def _grant(self, share: Share) -> Lease:
        share.held += 1
        self.buffers_in_use += 1
        self.buffers_in_use_max = max(self.buffers_in_use_max, self.buffers_in_use)
        if self._idle:
            return Lease(share, self._idle.pop())
        return Lease(share, np.frombuffer(mmap.mmap(-1, self.buffer_bytes), dtype=np.uint8))

    async def _acquire(self, share: Share) -> Lease:
        self._enter()
        if self._grantable(share):
            return self._grant(share)
        self.waits += 1
        future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        entry = (share, future)
        self._waiting.append(entry)
        try:
            return await future
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
            elif not future.cancelled():
                future.result().release()
            raise

    def _give_back(self, share: Share, array: U8) -> None:
        if threading.get_ident() == self._thread or self._loop is None:
            self._take_back(share, array)
            return
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._take_back, share, array)

    def _take_back(self, share: Share, array: U8) -> None:
        share.held -= 1
        self.buffers_in_use -= 1
        self._idle.append(array)
        self._shares_closed()

    def _shares_closed(self) -> None:
        self._shares = [share for share in self._shares if share.held or share.minimum]
        self._wake()

    def _wake(self) -> None:
        for entry in tuple(self._waiting):
            share, future = entry
            if self._grantable(share):
                self._waiting.remove(entry)
                if not future.done():
                    future.set_result(self._grant(share))
        while self._opening and sum(self._opening[0][0]) <= self._free():
            minimums, opening = self._opening.popleft()
            if not opening.done():
                opening.set_result(self._open(minimums))
