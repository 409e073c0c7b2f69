"""One ordered stream of blocks over a list of partitions, read ahead within the pool's bound.

Three steps, each a task's worth of straight-line code, joined by bounded queues::

    schedule    for each partition, in order: take a buffer, start fetching a piece into it
    deliver     for each piece, in order: wait for it, find where records begin and end, inflate
    blocks()    hands over, in order

Several fetches are in flight at once where the store takes ranges, across partition boundaries too;
inflating runs in a lane, up to two blocks ahead of the consumer. Buffers are taken in the order of
delivery, from two shares of the pool (one for what is fetched, one for what is made from it), so
that no step can starve the next.

Blocks are cut at multiples of the block size from the partition's start, also after a resume.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import NoReturn, TypeAlias

from streamlearn.errors import ObjectChangedError, StreamlearnError
from streamlearn.messages import BLOCK_HEADROOM_BYTES, Block, Partition, Position
from streamlearn.net.sources.blocks import (
    BLOCKS_HELD_MAX,
    BlockPool,
    Lease,
    Offload,
    Share,
    settle,
)
from streamlearn.net.sources.compression import MAGIC_BYTES, recognise
from streamlearn.net.sources.idx import Labels
from streamlearn.net.sources.source import Store, StoredObject
from streamlearn.net.sources.unpacking import (
    HEAD_BYTES,
    Decoder,
    Splits,
    open_decoder,
    unpacking_of,
)

__all__ = ["BOM", "READING_BUFFERS_MIN", "Plan", "Reading", "Todo", "find_newline"]

Todo: TypeAlias = Iterable[tuple[Partition, Position]] | AsyncIterable[tuple[Partition, Position]]

BOM = b"\xef\xbb\xbf"

_SHARE_MIN = BLOCKS_HELD_MAX + 1
# What one stream can always have: pieces as fetched, and blocks inflated from them.
READING_BUFFERS_MIN = 2 * _SHARE_MIN

# Blocks made and waiting for the consumer; one more waits to be put here. Enough for inflating to
# overlap.
_MADE_AHEAD = 1
# How much is fetched past the end of a range at first, for the record that runs over it.
_TAIL_BYTES = 64 << 10
# Less than this is unpacked where it is delivered: some 20 us, a fifth of the way to a lane and
# back.
_SMALL_BYTES = 16 << 10
_NEWLINE = 10


@dataclass(slots=True)
class Plan:
    """How one partition is read.

    Attributes
    ----------
    stored : StoredObject
    store : Store
    compression : str
        ``none``, the name of a codec, or empty: by the first bytes of the object, which are then
        the first that are read.
    unpacking : str
        ``none``, or how what is inflated becomes records (``unpacking.unpacking_of``).
    splits : Splits
        Told of documents that are too long for one record.
    labels : Labels or None
        Those of an idx object.
    """

    partition: Partition
    position: Position
    stored: StoredObject
    store: Store
    compression: str
    unpacking: str
    splits: Splits
    labels: Labels | None = None
    abandoned: bool = False
    last_byte: int = _NEWLINE  # of what was delivered so far

    @property
    def sequential(self) -> bool:
        """Whether the object can only be read from its beginning to an end not known before."""
        return not self.store.ranged or self.stored.size < 0

    @property
    def end(self) -> int:
        """Stored offset where the range or object ends."""
        end = self.partition.end
        return self.stored.size if end < 0 else min(end, self.stored.size)

    @property
    def remade(self) -> bool:
        """Whether plain bytes are made from stored ones, from the first on."""
        return self.compression not in ("", "none") or self.unpacking != "none"

    @property
    def seeks_record(self) -> bool:
        """Whether reading starts in the middle of whatever record is there."""
        return 0 < self.partition.start >= self.position.offset


@dataclass(slots=True)
class _Piece:
    """A run of stored bytes on its way into a buffer."""

    plan: Plan
    at: int  # stored offset of the first byte
    want: int
    lead: int  # bytes fetched before the block grid's place, into the headroom: 0 or 1
    final: (
        bool  # no further piece comes for this plan (a sequential plan learns that by a short one)
    )
    lease: Lease
    task: asyncio.Task[int] | None

    @property
    def lo(self) -> int:
        return BLOCK_HEADROOM_BYTES - self.lead

    @property
    def stop(self) -> int:
        return self.at + self.want

    def over(self, count: int) -> bool:
        """Whether the object or range ends with this piece, of which ``count`` bytes came."""
        return self.final or (self.plan.sequential and count < self.want)


@dataclass(slots=True)
class _Making:
    """A block that is being inflated."""

    lease: Lease
    base: int = 0  # plain offset of its first byte
    filled: int = 0
    told: int = 0  # stored bytes that earlier blocks have accounted for


@dataclass(slots=True)
class _Failed:
    partition: Partition
    error: StreamlearnError


@dataclass(slots=True)
class _Made:
    partition: Partition
    item: Block | StreamlearnError
    lease: Lease | None = field(default=None)


class Reading:
    """A stream of blocks over partitions; see the module.

    Parameters
    ----------
    todo : iterable or async iterable of (Partition, Position)
        Consumed as reading proceeds.
    plan : callable
        Says how a partition is read; may raise StreamlearnError.
    pool : BlockPool
    offload : Offload
        Runs the inflating.
    ahead : int
        Pieces fetched or in flight before the one that is delivered.
    """

    def __init__(
        self,
        todo: Todo,
        plan: Callable[[Partition, Position], Awaitable[Plan]],
        *,
        pool: BlockPool,
        offload: Offload,
        ahead: int,
    ) -> None:
        self._todo = todo
        self._plan = plan
        self._pool = pool
        self._offload = offload
        self._pieces: asyncio.Queue[_Piece | _Failed | None] = asyncio.Queue(ahead)
        self._made: asyncio.Queue[_Made | None] = asyncio.Queue(_MADE_AHEAD)
        self._shares: tuple[Share, ...] = ()
        self._leases: set[Lease] = set()  # ours until handed to the consumer
        self._fetches: set[asyncio.Task[int]] = set()
        self._steps: list[asyncio.Task[None]] = []

    async def blocks(self) -> AsyncGenerator[tuple[Partition, Block | StreamlearnError], None]:
        """Yield blocks in order; an error ends its partition, and the next partition follows."""
        try:
            self._shares = await self._pool.reserve(_SHARE_MIN, _SHARE_MIN)
            self._steps = [
                asyncio.create_task(self._schedule(), name="source schedule"),
                asyncio.create_task(self._deliver(), name="source deliver"),
            ]
            while (made := await self._made.get()) is not None:
                if made.lease is not None:
                    self._leases.discard(made.lease)
                yield made.partition, made.item
            # Delivering first: had it failed, scheduling might wait for it for ever.
            for step in reversed(self._steps):
                await step
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Stop, and give back every buffer that was not handed over."""
        running = [*self._steps, *self._fetches]
        for task in running:
            task.cancel()
        if running:
            await settle(asyncio.wait(running))
        for task in running:
            task.cancelled() or task.exception()  # seen: an error that nobody waits for any more
        self._steps.clear()
        self._fetches.clear()
        for lease in self._leases:
            lease.release()
        self._leases.clear()
        for share in self._shares:
            share.close()
        self._shares = ()

    # ---------------------------------------------------------------- schedule

    async def _schedule(self) -> None:
        try:
            if isinstance(self._todo, AsyncIterable):
                async for partition, position in self._todo:
                    await self._schedule_one(partition, position)
            else:
                for partition, position in self._todo:
                    await self._schedule_one(partition, position)
        except Exception:
            await self._pieces.put(None)
            raise
        await self._pieces.put(None)

    async def _schedule_one(self, partition: Partition, position: Position) -> None:
        try:
            plan = await self._plan(partition, position)
        except StreamlearnError as error:
            await self._pieces.put(_Failed(partition, error))
            return
        if plan.sequential:
            await self._schedule_sequential(plan)
        else:
            await self._schedule_ranges(plan)

    async def _schedule_sequential(self, plan: Plan) -> None:
        at, size = 0, self._pool.block_bytes
        while not plan.abandoned:
            task = await self._start(plan, at, size)
            assert task is not None
            await asyncio.wait({task})
            if task.cancelled() or task.exception() is not None or task.result() < size:
                break
            at += size

    async def _schedule_ranges(self, plan: Plan) -> None:
        size, end = self._pool.block_bytes, plan.end
        origin = 0 if plan.remade else plan.partition.start
        at = 0 if plan.remade else max(origin, plan.position.offset)
        lead = 1 if plan.seeks_record and at < end else 0
        if at >= end:
            await self._start(plan, end, 0, final=True)
            return
        has_tail = end < plan.stored.size
        while at < end and not plan.abandoned:
            stop = min(end, origin + ((at - origin) // size + 1) * size)
            await self._start(
                plan, at - lead, stop - at + lead, lead=lead, final=stop == end and not has_tail
            )
            at, lead = stop, 0
        if has_tail and not plan.abandoned:
            await self._start(plan, end, min(_TAIL_BYTES, size, plan.stored.size - end), final=True)

    async def _start(
        self, plan: Plan, at: int, want: int, *, lead: int = 0, final: bool = False
    ) -> asyncio.Task[int] | None:
        lease = await self._lease(self._shares[0])
        piece = _Piece(plan, at, want, lead, final, lease, None)
        if want:
            into = lease.view[piece.lo : piece.lo + want]
            piece.task = asyncio.create_task(plan.store.fetch(plan.stored, at, into))
            self._fetches.add(piece.task)
            piece.task.add_done_callback(self._fetched)
        await self._pieces.put(piece)
        return piece.task

    def _fetched(self, task: asyncio.Task[int]) -> None:
        self._fetches.discard(task)
        # Seen: it is raised where its piece is delivered, and nowhere if that never comes.
        task.cancelled() or task.exception()

    # ---------------------------------------------------------------- deliver

    async def _deliver(self) -> None:
        try:
            while (piece := await self._pieces.get()) is not None:
                if isinstance(piece, _Failed):
                    await self._made.put(_Made(piece.partition, piece.error))
                elif piece.plan.abandoned:
                    await self._drop(piece)
                else:
                    await self._deliver_plan(piece)
        except Exception:
            await self._made.put(None)
            raise
        await self._made.put(None)

    async def _deliver_plan(self, piece: _Piece) -> None:
        plan = piece.plan
        try:
            count = await self._arrived(piece)
            if not plan.compression:
                head = piece.lease.view[piece.lo : piece.lo + min(count, MAGIC_BYTES)]
                plan.compression = recognise(bytes(head))
            if plan.compression == "none" and plan.unpacking != "none":
                head = piece.lease.view[piece.lo : piece.lo + min(count, HEAD_BYTES)]
                if unpacking_of(plan.unpacking, bytes(head)) == "none":
                    plan.unpacking = "none"
            if (plan.compression != "none" and count) or plan.unpacking != "none":
                await self._inflate(piece, count)
            else:
                await self._pass_on(piece, count)
        except StreamlearnError as error:
            plan.abandoned = True
            await self._made.put(_Made(plan.partition, error))

    async def _pass_on(self, piece: _Piece, count: int) -> None:
        """Deliver plain pieces, cut to whole records at the ends of the range."""
        plan = piece.plan
        seeking = plan.seeks_record
        barren = True  # no record begins in the range, so far
        while True:
            lo, hi, at = piece.lo, piece.lo + count, piece.at
            over = piece.over(count)
            at_end = over or (not plan.sequential and piece.stop == plan.end)
            if plan.sequential:
                # What cannot be sought is read and left behind.
                lo, at = _skip(lo, hi, at, plan.position.offset)
            lo, at = _after_bom(piece.lease, lo, hi, at)
            if seeking:
                newline = find_newline(piece.lease.view, lo, hi)
                seeking = newline < 0
                step = hi - lo if seeking else newline + 1 - lo
                lo, at = lo + step, at + step
            barren = barren and lo == hi
            if not at_end:
                await self._emit(plan, piece.lease, lo, hi, at, stored=count)
            elif over or barren or piece.lease.view[hi - 1] == _NEWLINE:
                await self._emit(plan, piece.lease, lo, hi, at, last=True, stored=count)
                if not over:
                    await self._drop(await self._next(plan))  # the tail: not needed
                return
            else:
                await self._emit(plan, piece.lease, lo, hi, at, stored=count)
                await self._tail(await self._next(plan))
                return
            piece = await self._next(plan)
            count = await self._arrived(piece)

    async def _tail(self, piece: _Piece) -> None:
        """Deliver the rest of the record that runs over the end of the range."""
        plan, lease, at, lo = piece.plan, piece.lease, piece.at, piece.lo
        size = self._pool.block_bytes
        seen, count = 0, await self._arrived(piece)
        while True:
            newline = find_newline(lease.view, lo + seen, lo + count)
            if newline >= 0 or at + count == plan.stored.size:
                hi = newline + 1 if newline >= 0 else lo + count
                await self._emit(plan, lease, lo, hi, at, last=True, stored=hi - lo)
                return
            if count == size:
                await self._emit(plan, lease, lo, lo + count, at, stored=count)
                lease, at, count = await self._lease(self._shares[1]), at + count, 0
            seen = count
            want = min(size - count, plan.stored.size - at - count)
            into = lease.view[lo + count : lo + count + want]
            try:
                got = await plan.store.fetch(plan.stored, at + count, into)
            except StreamlearnError:
                self._release(lease)
                raise
            if got < want:
                self._release(lease)
                _changed(plan)
            count += got

    async def _inflate(self, piece: _Piece, count: int) -> None:
        """Deliver the plain blocks of what is inflated or unpacked; what precedes an error too."""
        plan = piece.plan
        inflater = open_decoder(
            plan.compression, plan.unpacking, plan.stored.uri, plan.splits, plan.labels
        )
        making = _Making(await self._lease(self._shares[1]))
        error: StreamlearnError | None = None
        while True:
            inflater.give(piece.lease.view[piece.lo : piece.lo + count])
            # of a small file the way to a lane and back would cost more than the work
            small = plan.compression == "none" and count < _SMALL_BYTES
            await self._fill(plan, making, inflater, small=small)
            over = piece.over(count)
            self._release(piece.lease)
            if over or inflater.damage is not None:
                inflater.finish()
                if plan.unpacking != "none":
                    await self._fill(plan, making, inflater, small=small)
                error = inflater.damage
                break
            try:
                piece = await self._next(plan)
                count = await self._arrived(piece)
            except StreamlearnError as caught:
                error = caught
                break
        await self._emit_made(plan, making, inflater, final=True, last=error is None)
        if error is not None:
            raise error

    async def _fill(self, plan: Plan, making: _Making, inflater: Decoder, *, small: bool) -> None:
        """Make all that can be made of what was given; hand on the blocks that are full."""
        size, head = self._pool.block_bytes, BLOCK_HEADROOM_BYTES
        while True:
            into = making.lease.view[head + making.filled : head + size]
            if small:
                making.filled += inflater.fill(into)
            else:
                making.filled += await settle(self._offload(inflater.fill, into))
            if making.filled < size:
                return
            await self._emit_made(plan, making, inflater)

    async def _emit_made(
        self,
        plan: Plan,
        making: _Making,
        inflater: Decoder,
        *,
        final: bool = False,
        last: bool = False,
    ) -> None:
        """Hand on a block that was inflated, unless it lies before the position; begin the next."""
        lo, hi = BLOCK_HEADROOM_BYTES, BLOCK_HEADROOM_BYTES + making.filled
        lo, at = _skip(lo, hi, making.base, plan.position.offset)
        lo, at = _after_bom(making.lease, lo, hi, at)
        making.base += making.filled
        making.filled = 0
        if lo < hi or final:
            stored, making.told = inflater.stored - making.told, inflater.stored
            await self._emit(plan, making.lease, lo, hi, at, last=last, stored=stored)
            if not final:
                making.lease = await self._lease(self._shares[1])

    async def _emit(
        self,
        plan: Plan,
        lease: Lease,
        lo: int,
        hi: int,
        at: int,
        *,
        last: bool = False,
        stored: int,
    ) -> None:
        """Hand a block on; an empty one only where it says that the partition ends."""
        if hi > lo:
            plan.last_byte = int(lease.array[hi - 1])
        if last and plan.last_byte != _NEWLINE:
            lease.array[hi] = _NEWLINE
            hi += 1
        if lo == hi and not last:
            self._release(lease)
            return
        block = Block(lease.array, lo, hi, at, last, stored, lease.release)
        await self._made.put(_Made(plan.partition, block, lease))

    async def _next(self, plan: Plan) -> _Piece:
        piece = await self._pieces.get()
        assert isinstance(piece, _Piece), "a partition ended without its last piece"
        assert piece.plan is plan, "pieces of two partitions are mixed"
        return piece

    async def _arrived(self, piece: _Piece) -> int:
        if piece.task is None:
            return 0
        try:
            await asyncio.wait({piece.task})
            count = piece.task.result()
        except StreamlearnError:
            self._release(piece.lease)
            raise
        if count < piece.want and not piece.plan.sequential:
            self._release(piece.lease)
            _changed(piece.plan)
        return count

    async def _drop(self, piece: _Piece) -> None:
        if piece.task is not None:
            piece.task.cancel()
            await settle(asyncio.wait({piece.task}))
        self._release(piece.lease)

    async def _lease(self, share: Share) -> Lease:
        lease = await share.acquire()
        self._leases.add(lease)
        return lease

    def _release(self, lease: Lease) -> None:
        self._leases.discard(lease)
        lease.release()


def find_newline(view: memoryview, lo: int, hi: int) -> int:
    """Return the index of the first newline in ``view[lo:hi]``, -1 where there is none."""
    for at in range(lo, hi, _TAIL_BYTES):
        found = bytes(view[at : min(at + _TAIL_BYTES, hi)]).find(b"\n")
        if found >= 0:
            return at + found
    return -1


def _skip(lo: int, hi: int, at: int, offset: int) -> tuple[int, int]:
    """Move the start of ``[lo, hi)``, whose first byte has offset ``at``, on to ``offset``."""
    step = min(max(offset - at, 0), hi - lo)
    return lo + step, at + step


def _after_bom(lease: Lease, lo: int, hi: int, at: int) -> tuple[int, int]:
    """Move past a byte order mark at the beginning of an object."""
    if at == 0 and lease.view[lo:hi][: len(BOM)] == BOM:
        return lo + len(BOM), len(BOM)
    return lo, at


def _changed(plan: Plan) -> NoReturn:
    raise ObjectChangedError(
        f"{plan.stored.uri} is shorter than the {plan.stored.size} bytes that were listed",
        hint="start again once nobody writes to it",
    )
