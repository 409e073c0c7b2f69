"""Iterating over partitions and blocks: shared by several readers, or until something stops it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Protocol

from streamlearn.errors import StreamlearnError
from streamlearn.messages import Block, Partition, Position

__all__ = ["Reading", "SharedTodo", "until"]


class Reading(Protocol):
    """What whoever learns needs of a source."""

    def read_many(
        self, todo: AsyncIterator[tuple[Partition, Position]]
    ) -> AsyncGenerator[tuple[Partition, Block | StreamlearnError], None]:
        """Yield the blocks of partitions in order; an error ends its partition."""
        ...

    async def header(self, partition: Partition) -> bytes:
        """Return the first line of the partition's object."""
        ...


class SharedTodo:
    """One iterator of partitions for several readers."""

    def __init__(self, todo: AsyncIterator[tuple[Partition, Position]]) -> None:
        self._todo = todo
        self._lock = asyncio.Lock()

    async def each(self) -> AsyncIterator[tuple[Partition, Position]]:
        """Yield what no other reader has taken."""
        while True:
            async with self._lock:
                try:
                    entry = await anext(self._todo)
                except StopAsyncIteration:
                    return
            yield entry


async def until(
    blocks: AsyncIterator[tuple[Partition, Block | StreamlearnError]], stopped: asyncio.Event
) -> AsyncIterator[tuple[Partition, Block | StreamlearnError]]:
    """Yield until the event is set; a wait that it interrupts is cancelled."""
    stop = asyncio.ensure_future(stopped.wait())
    try:
        while not stop.done():
            step = asyncio.ensure_future(anext(blocks))
            await asyncio.wait({step, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not step.done():
                step.cancel()
                await asyncio.wait({step})
                if step.cancelled() or step.exception() is not None:
                    return
                _, item = step.result()
                if isinstance(item, Block):
                    item.release()
                return
            try:
                entry = step.result()
            except StopAsyncIteration:
                return
            yield entry
    finally:
        stop.cancel()
