"""A source of objects: what every store has in common above listing and fetching.

Splits large plain objects into ranges, recognises compression, reads ahead within one bound,
resumes at a position, reads headers, and follows places where new objects appear.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from streamlearn.errors import SourceError, SourceMissingError, StreamlearnError
from streamlearn.messages import I64, RECORD_BYTES_MAX, Block, Partition, Position
from streamlearn.net.sources.blocks import BlockPool, Offload, settle
from streamlearn.net.sources.compression import MAGIC_BYTES, recognise
from streamlearn.net.sources.idx import Labels, is_labels, read_labels
from streamlearn.net.sources.reading import BOM, Plan, Reading, Todo
from streamlearn.net.sources.source import NothingMatchedError, Store, StoredObject
from streamlearn.net.sources.unpacking import (
    HEAD_BYTES,
    Decoder,
    Splits,
    open_decoder,
    unpacking_of,
)

__all__ = ["Arrivals", "Mount", "ObjectSource"]

_log = logging.getLogger("streamlearn.source")

# Objects whose first bytes are asked for at the same time, to split the plain ones.
_PEEKS_MAX = 32
# First lines kept; a header of a few KB each.
_HEADERS_MAX = 256
_HEADER_STEP_BYTES = 64 << 10
# A longer one is not kept: it is a sample, which is needed once.
_HEADER_KEPT_MAX = 64 << 10


@dataclass(frozen=True, slots=True)
class Mount:
    """A store within a source.

    Attributes
    ----------
    store : Store
    root : str
        What the URIs of its objects begin with.
    ahead : int
        Pieces to fetch before the one that is consumed: a few for a disk, many where a fetch waits
        on a network.
    """

    store: Store
    root: str
    ahead: int


class Arrivals(Protocol):
    """A queue that tells of new objects, each with a function that takes it off the queue."""

    def __aiter__(
        self,
    ) -> AsyncIterator[tuple[StoredObject, Callable[[], Awaitable[None]]]]:
        """Yield objects as they appear, for ever."""
        ...

    async def aclose(self) -> None:
        """Close the connection."""
        ...


@runtime_checkable
class StoreWithSettings(Protocol):
    """A store whose settings come from many places."""

    async def describe(self) -> dict[str, str]:
        """Say what they are, and where they came from."""
        ...


@runtime_checkable
class StoreWithRetries(Protocol):
    """A store over a network."""

    @property
    def retries(self) -> Mapping[str, int]:
        """Requests made again, by reason."""
        ...


class ObjectSource:
    """Partitions and blocks over one or several stores; implements ``Source``.

    Parameters
    ----------
    mounts : sequence of Mount
        In the order in which their objects are read.
    pool : BlockPool
        Memory for all that is read; at least ``READING_BUFFERS_MIN`` buffers.
    range_bytes : int
        Plain objects larger than this are split; rounded up to whole blocks.
    compression : str
        ``auto``, ``none`` or the name of a codec.
    unpacking : str
        How plain bytes become records: ``none``, ``docword``, ``idx``, ``samples``, or what a
        document is: ``auto``, ``lines`` or ``files``; see :mod:`streamlearn.net.sources.unpacking`.
    follow : bool
        Whether an empty place is no error, and objects that may still be written to are left to
        :meth:`follow`.
    follow_seconds : float
        Time between listings.
    arrivals : Arrivals, optional
        Tells :meth:`follow` of new objects, in the place of listing again and again.
    offload : Offload
        Runs blocking and computing work in lanes.
    sleep, clock : callable
        Time, for tests.

    Attributes
    ----------
    splits : Splits
        Documents that were too long for one record.
    """

    def __init__(
        self,
        mounts: Sequence[Mount],
        *,
        pool: BlockPool,
        range_bytes: int,
        compression: str = "auto",
        unpacking: str = "none",
        follow: bool = False,
        follow_seconds: float = 5.0,
        arrivals: Arrivals | None = None,
        offload: Offload = asyncio.to_thread,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        assert mounts, "a source needs a store"
        assert pool.block_bytes >= MAGIC_BYTES, "a block must hold the mark of a compression"
        self.pool = pool
        self._mounts = tuple(mounts)
        self._range_bytes = -(-range_bytes // pool.block_bytes) * pool.block_bytes
        self._compression = "" if compression == "auto" else compression
        self._unpacking = unpacking
        self.splits = Splits()
        self._follows = follow
        self._follow_seconds = follow_seconds
        self._arrivals = arrivals
        self._offload = offload
        self._sleep = sleep
        self._clock = clock
        self._known = _Known()
        self._headers: dict[tuple[str, str], bytes] = {}
        self._readings: set[Reading] = set()
        self._unlistable: set[int] = set()

    async def partitions(self) -> list[Partition]:
        """Return what is there now, in the order of the stores and by URI within each."""
        found: dict[str, StoredObject] = {}
        for mount in self._mounts:
            try:
                listed = await mount.store.list()
            except NothingMatchedError:
                if not self._follows:
                    raise
                continue
            self._known.see(listed)
            for stored in listed:
                found.setdefault(stored.uri, stored)
        young = self._clock() - self._follow_seconds
        entries = [
            stored
            for stored in found.values()
            if not self._follows or stored.settled or stored.modified_seconds < young
        ]
        self._known.take(entries)
        partitions = await self._split(entries)
        if entries and not partitions and not self._follows:
            raise _labels_alone(entries[0].uri)
        return partitions

    async def objects(self) -> AsyncGenerator[StoredObject, None]:
        """Yield what is there now, as the stores list it; an object that two match comes once."""
        found: set[str] = set()
        for mount in self._mounts:
            for stored in await mount.store.list():
                if stored.uri not in found:
                    found.add(stored.uri)
                    yield stored

    async def describe(self) -> dict[str, str]:
        """Say what settings hold and where they came from, for ``source check``.

        Of the first store that has anything to say: only S3 takes its settings from many places.
        """
        for mount in self._mounts:
            if isinstance(mount.store, StoreWithSettings):
                told = await mount.store.describe()
                return {name: value for name, value in told.items() if name != "uri"}
        return {}

    def retries(self) -> dict[str, int]:
        """Return how many requests were made again, by reason."""
        counts: dict[str, int] = {}
        for mount in self._mounts:
            if isinstance(mount.store, StoreWithRetries):
                for reason, count in mount.store.retries.items():
                    counts[reason] = counts.get(reason, 0) + count
        return counts

    async def follow(self) -> AsyncGenerator[Partition, None]:
        """Yield partitions of objects as they appear, for ever, each object once.

        A file is taken once two listings agree on its size and time. An object that changes after
        it was taken is reported once through the log, and not read again. A listing that fails is
        reported once, and tried again.

        Where a queue tells of new objects, they are taken as it does. Each is acknowledged once it
        is known here: after a crash, the listing at the start finds what was not learned yet.
        """
        if self._arrivals is not None:
            async for stored, acknowledge in self._arrivals:
                fresh = self._known.see([stored])
                self._known.take(fresh)
                for partition in await self._split(fresh):
                    yield partition
                await acknowledge()
            return
        while True:
            await self._sleep(self._follow_seconds)
            for number in range(len(self._mounts)):
                for partition in await self._split(await self._appeared(number)):
                    yield partition

    async def read(self, partition: Partition, position: Position) -> AsyncGenerator[Block, None]:
        """Yield the blocks of one partition; see ``Source.read``."""
        async with aclosing(self.read_many([(partition, position)])) as blocks:
            async for _, item in blocks:
                if isinstance(item, StreamlearnError):
                    raise item
                yield item

    async def read_many(
        self, todo: Todo
    ) -> AsyncGenerator[tuple[Partition, Block | StreamlearnError], None]:
        """Yield the blocks of partitions one after another; see ``Source.read_many``."""
        reading = Reading(
            todo,
            self._plan,
            pool=self.pool,
            offload=self._offload,
            ahead=max(mount.ahead for mount in self._mounts),
        )
        self._readings.add(reading)
        try:
            async with aclosing(reading.blocks()) as blocks:
                async for entry in blocks:
                    yield entry
        finally:
            self._readings.discard(reading)

    async def header(self, partition: Partition) -> bytes:
        """Return the first line of the partition's object, without byte order mark and newline.

        Raises
        ------
        DataError
            The compressed object is damaged within its first line.
        SourceError
            As the store says; also where there is no newline within ``RECORD_BYTES_MAX``.
        """
        key = (partition.uri, partition.version)
        if key in self._headers:
            return self._headers[key]
        header = await self._first_line(partition)
        if len(header) <= _HEADER_KEPT_MAX:
            while len(self._headers) >= _HEADERS_MAX:
                self._headers.pop(next(iter(self._headers)))
            self._headers[key] = header
        return header

    async def aclose(self) -> None:
        """Stop all reading, close the stores, give back all memory."""
        for reading in tuple(self._readings):
            await reading.aclose()
        for mount in self._mounts:
            await mount.store.aclose()
        if self._arrivals is not None:
            await self._arrivals.aclose()
        self.pool.clear()

    async def _appeared(self, number: int) -> list[StoredObject]:
        """List a store once more; return what is to be taken now."""
        try:
            listed = await self._mounts[number].store.list()
        except NothingMatchedError:
            listed = []
        except SourceError as error:
            if number not in self._unlistable:
                self._unlistable.add(number)
                _log.warning("cannot list the source, will try again: %s", error)
            return []
        if number in self._unlistable:
            self._unlistable.discard(number)
            _log.info("the source can be listed again")
        seen_before, changed = self._known.compare(listed)
        for stored in changed:
            _log.warning("%s changed after it was taken; the change is not read", stored.uri)
        fresh = [stored for stored in self._known.see(listed) if stored.settled]
        taken = seen_before + fresh
        self._known.take(taken)
        return sorted(taken, key=lambda stored: stored.uri)

    async def _split(self, entries: list[StoredObject]) -> list[Partition]:
        """Make partitions: ranges of large plain objects, all others whole.

        Labels of idx objects are none: they are read with those.
        """
        if self._unpacking == "idx":
            entries = [stored for stored in entries if not is_labels(stored.uri)]
        gate = asyncio.Semaphore(_PEEKS_MAX)

        async def is_plain(stored: StoredObject) -> bool:
            if self._unpacking in {"files", "docword", "idx", "samples"}:
                return False
            if self._compression and self._unpacking == "none":
                return self._compression == "none"
            async with gate:
                try:
                    found = await self._peek(self._store_of(stored.uri), stored)
                    return found == ("none", "none")
                except SourceError:
                    return False  # whoever reads it is told what is wrong

        large = [
            stored
            for stored in entries
            if stored.size > self._range_bytes and self._store_of(stored.uri).ranged
        ]
        plain = await asyncio.gather(*(is_plain(stored) for stored in large))
        splits = {stored.uri for stored, split in zip(large, plain, strict=True) if split}
        partitions = []
        for stored in entries:
            whole = Partition(
                stored.uri, 0, -1, stored.version, stored.size, stored.modified_seconds
            )
            if stored.uri not in splits:
                partitions.append(whole)
                continue
            for at in range(0, stored.size, self._range_bytes):
                end = min(at + self._range_bytes, stored.size)
                partitions.append(replace(whole, start=at, end=end))
        return partitions

    # ---------------------------------------------------------------- reading

    def _store_of(self, uri: str) -> Store:
        owners = [mount for mount in self._mounts if uri.startswith(mount.root)]
        if not owners:
            roots = ", ".join(mount.root for mount in self._mounts)
            raise SourceMissingError(f"{uri} is not of this source, expected one below {roots}")
        return max(owners, key=lambda mount: len(mount.root)).store

    async def _plan(self, partition: Partition, position: Position) -> Plan:
        store = self._store_of(partition.uri)
        stored = _stored(partition)
        compression, unpacking = self._compression, self._unpacking
        known = compression and unpacking == "none"
        if partition.start > 0 or partition.end >= 0:
            compression = unpacking = "none"
        elif not known and position.offset > 0 and store.ranged and stored.size > 0:
            # The bytes that are read first will not be those that tell.
            compression, unpacking = await self._peek(store, stored)
        labels = await self._labels_of(store, stored)
        return Plan(partition, position, stored, store, compression, unpacking, self.splits, labels)

    async def _labels_of(self, store: Store, stored: StoredObject) -> Labels | None:
        if self._unpacking != "idx":
            return None
        return await read_labels(store, stored.uri, self._compression, self._offload)

    async def _peek(self, store: Store, stored: StoredObject) -> tuple[str, str]:
        """Return an object's compression, and how it is unpacked, ``none`` where it is not."""
        want = MAGIC_BYTES if self._unpacking == "none" else HEAD_BYTES
        head = bytearray(min(want, stored.size))
        count = await store.fetch(stored, 0, memoryview(head))
        return self._recognise(bytes(head[:count]))

    def _recognise(self, head: bytes) -> tuple[str, str]:
        compression = self._compression or recognise(head)
        unpacking = self._unpacking
        if compression == "none" and unpacking_of(unpacking, head) == "none":
            unpacking = "none"  # of what is compressed it shows once it is inflated
        return compression, unpacking

    async def _first_line(self, partition: Partition) -> bytes:
        store, stored = self._store_of(partition.uri), _stored(partition)
        line = bytearray()
        raw = memoryview(bytearray(_HEADER_STEP_BYTES))
        decoder: Decoder | None = None
        at, over = 0, False
        while not over:
            want = _HEADER_STEP_BYTES
            if stored.size >= 0:
                want = min(want, stored.size - at)
            count = await store.fetch(stored, at, raw[:want]) if want else 0
            over = count < want or at + count == stored.size
            if at == 0:
                compression, unpacking = self._recognise(bytes(raw[: min(count, HEAD_BYTES)]))
                if unpacking != "none" or (compression != "none" and count):
                    labels = await self._labels_of(store, stored)
                    decoder = open_decoder(compression, unpacking, stored.uri, self.splits, labels)
            at += count
            if decoder is None:
                line += raw[:count]
            else:
                decoder.give(raw[:count])
                await settle(self._offload(_inflate_line, decoder, line))
                if over and b"\n" not in line:
                    decoder.finish()
                    await settle(self._offload(_inflate_line, decoder, line))
            if b"\n" in line:
                break
            if len(line) > RECORD_BYTES_MAX:
                raise SourceError(
                    f"the first line of {stored.uri} is longer than {RECORD_BYTES_MAX} bytes",
                    hint="is this a text file?",
                )
            if decoder is not None and decoder.damage is not None:
                raise decoder.damage
        return bytes(line).partition(b"\n")[0].removeprefix(BOM).removesuffix(b"\r")


def _labels_alone(uri: str) -> SourceMissingError:
    return SourceMissingError(
        f"{uri} has labels of an idx file, and nothing else is there",
        hint="name the file that they are the labels of, or the directory that has both",
    )


def _stored(partition: Partition) -> StoredObject:
    return StoredObject(
        partition.uri, partition.size, partition.version, partition.modified_seconds
    )


def _inflate_line(inflater: Decoder, line: bytearray) -> None:
    """Inflate what was given, until it is used up or there is enough to know the first line."""
    scratch = memoryview(bytearray(_HEADER_STEP_BYTES))
    while True:
        filled = inflater.fill(scratch)
        line += scratch[:filled]
        if filled < len(scratch) or b"\n" in scratch[:filled].tobytes():
            return
        if len(line) > RECORD_BYTES_MAX:
            return


_LISTED, _TAKEN, _CHANGED = range(3)


class _Known:
    """Which objects were seen, in 17 bytes each: hashes of name and version, and state.

    Hashes have 64 bits: of a million objects, one is mistaken for another with probability 3e-8.
    """

    def __init__(self) -> None:
        self._keys: I64 = np.empty(0, np.int64)  # sorted
        self._versions: I64 = np.empty(0, np.int64)
        self._states = np.empty(0, np.int8)

    def see(self, listed: list[StoredObject]) -> list[StoredObject]:
        """Note objects as listed; return those that were not known before."""
        keys = _hashes([stored.uri for stored in listed])
        new = np.flatnonzero(self._find(keys) < 0)
        if not len(new):
            return []
        fresh = [listed[at] for at in new]
        versions = _hashes([stored.version for stored in fresh])
        self._keys = np.concatenate((self._keys, keys[new]))
        self._versions = np.concatenate((self._versions, versions))
        self._states = np.append(self._states, np.full(len(new), _LISTED, np.int8))
        order = np.argsort(self._keys, kind="stable")
        self._keys, self._versions = self._keys[order], self._versions[order]
        self._states = self._states[order]
        return fresh

    def take(self, objects: list[StoredObject]) -> None:
        """Note that known objects were taken as they are."""
        at = self._find(_hashes([stored.uri for stored in objects]))
        self._states[at] = _TAKEN
        self._versions[at] = _hashes([stored.version for stored in objects])

    def compare(self, listed: list[StoredObject]) -> tuple[list[StoredObject], list[StoredObject]]:
        """Compare a listing with what is known, and note its versions.

        Returns
        -------
        list of StoredObject
            Listed before but not taken, and the same since.
        list of StoredObject
            Changed since they were taken; each object is returned once in its life.
        """
        at = self._find(_hashes([stored.uri for stored in listed]))
        versions = _hashes([stored.version for stored in listed])
        where, known = np.flatnonzero(at >= 0), at[at >= 0]
        same = self._versions[known] == versions[where]
        states = self._states[known]
        settled = [listed[i] for i in where[same & (states == _LISTED)]]
        changed = [listed[i] for i in where[~same & (states == _TAKEN)]]
        self._states[known[~same & (states == _TAKEN)]] = _CHANGED
        self._versions[known] = versions[where]
        return settled, changed

    def _find(self, keys: I64) -> I64:
        """Return the place of each key, -1 where it is not known."""
        if not len(self._keys):
            return np.full(len(keys), -1, np.int64)
        at = np.searchsorted(self._keys, keys)
        at[at == len(self._keys)] = 0
        return np.where(self._keys[at] == keys, at, -1)


def _hashes(names: list[str]) -> I64:
    return np.fromiter((hash(name) for name in names), np.int64, len(names))
