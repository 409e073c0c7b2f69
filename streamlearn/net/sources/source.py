"""What a source is, replayable partitions read as blocks, and the store of objects under it.

A *store* (files, HTTP, S3) lists objects and fills a piece of memory with a piece of an object; it
knows nothing of records, compression or read-ahead. Everything above that is written once, over any
store: splitting large plain objects into partitions, recognising compression, reading ahead within
a memory bound, and resuming at a position.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Protocol

from streamlearn.errors import SourceMissingError, StreamlearnError
from streamlearn.messages import Block, Partition, Position

__all__ = ["NothingMatchedError", "Source", "Store", "StoredObject"]


class NothingMatchedError(SourceMissingError):
    """The place is there and may be read, but is empty (yet): no error where it is followed."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as a store lists it.

    Attributes
    ----------
    uri : str
        As a user would write it, unique within the source.
    size : int
        Stored bytes; -1 where unknown (a pipe, a chunked HTTP answer).
    version : str
        What pins the content (ETag; ``size-mtime_ns`` of a file); empty where nothing can.
    modified_seconds : float
        Time of last modification since the epoch; 0 where unknown.
    settled : bool
        False where the store cannot say whether writing has ended (a file, as against an object
        that appears whole): who follows waits until two listings agree.
    """

    uri: str
    size: int
    version: str
    modified_seconds: float
    settled: bool = True


class Store(Protocol):
    """Objects that can be listed and read by byte range."""

    ranged: bool  # whether fetches may go on in parallel and start anywhere (False: a pipe)

    async def list(self) -> list[StoredObject]:
        """List what the URI matches, in a stable order (by URI).

        Raises NothingMatchedError where nothing matches, SourceMissingError where there is no such
        place or it may not be read.
        """
        ...

    async def fetch(self, stored: StoredObject, start: int, into: memoryview) -> int:
        """Fill ``into`` with the stored bytes from ``start`` on; return how many.

        Fewer than asked for only where the object ends.
        Retries by itself what can be retried, at the byte where it stopped. Raises
        ObjectChangedError where the object is no longer ``stored.version``, SourceError otherwise.
        """
        ...

    async def aclose(self) -> None:
        """Close connections."""
        ...


class Source(Protocol):
    """A list of replayable partitions."""

    async def partitions(self) -> list[Partition]:
        """Return what is there now, in a stable order.

        Raises
        ------
        SourceMissingError
            Nothing is there, or it may not be read.
        """
        ...

    def follow(self) -> AsyncIterator[Partition]:
        """Yield partitions as they appear after ``partitions()``, for ever, each once."""
        ...

    def read(self, partition: Partition, position: Position) -> AsyncIterator[Block]:
        """Yield the plain bytes of a partition from ``position.offset`` on, in order.

        The last block says that it is the last.

        Blocks begin and end anywhere in a record, at multiples of the block size from the
        partition's start. A partition that is a range ``[start, end)`` is read on past ``end`` to
        the end of the record that begins before it, and from the first record that begins at or
        after ``start``.

        Raises
        ------
        DataError
            The bytes are damaged (corrupt or truncated compression); everything before the damage
            has been yielded.
        ObjectChangedError, SourceError
            As the store says.
        """
        ...

    def read_many(
        self,
        todo: Iterable[tuple[Partition, Position]] | AsyncIterable[tuple[Partition, Position]],
    ) -> AsyncIterator[tuple[Partition, Block | StreamlearnError]]:
        """Read partitions one after another, reading ahead across their boundaries.

        As :meth:`read`, but the first blocks of the next partitions are under way while one is
        consumed: many small objects do not cost one latency each. An error comes in its place,
        ends its partition, and the next partition follows.
        """
        ...

    async def header(self, partition: Partition) -> bytes:
        """Return the first line of the partition's object, without its newline."""
        ...

    async def aclose(self) -> None:
        """Close the stores and give back all memory."""
        ...
