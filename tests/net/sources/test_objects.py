"""Objects above any store: ranges, resume, compression, order, errors, bounds, following."""

from __future__ import annotations

import asyncio
import gzip
import logging
from contextlib import aclosing
from itertools import islice

import lz4.frame
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.errors import (
    DataError,
    ObjectChangedError,
    SourceError,
    SourceMissingError,
    StreamlearnError,
)
from streamlearn.messages import (
    BLOCK_HEADROOM_BYTES,
    BLOCK_TAILROOM_BYTES,
    RECORD_BYTES_MAX,
    Partition,
    Position,
)
from streamlearn.net.sources.blocks import BLOCKS_HELD_MAX, BlockPool
from streamlearn.net.sources.objects import Mount, ObjectSource
from streamlearn.net.sources.reading import READING_BUFFERS_MIN
from streamlearn.net.sources.source import NothingMatchedError, StoredObject

BEGIN = Position()
COMPRESS = {
    "none": bytes,
    "gzip": lambda data: gzip.compress(data, 1, mtime=0),
    "zstd": zstandard.ZstdCompressor().compress,
    "lz4": lz4.frame.compress,
}


class MemoryStore:
    """Objects in memory, with a fault where a test asks for one."""

    def __init__(self, objects, *, ranged=True, sized=True, settled=True):
        self.objects = dict(objects)
        self.ranged = ranged
        self.sized = sized and ranged
        self.settled = settled
        self.faults = {}  # (uri, first start from which) -> error
        self.fetches = []
        self.in_flight = self.in_flight_max = 0
        self.listing = None
        self.modified_seconds = 0.0
        self.closed = False

    async def list(self):
        if self.listing is not None:
            raise self.listing
        if not self.objects:
            raise NothingMatchedError("nothing matches")
        return [
            StoredObject(
                uri,
                len(data) if self.sized else -1,
                f"v{hash(data)}",
                self.modified_seconds,
                self.settled,
            )
            for uri, data in sorted(self.objects.items())
        ]

    async def fetch(self, stored, start, into):
        self.fetches.append((stored.uri, start, len(into)))
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        try:
            # Later pieces come earlier: order must not depend on it.
            for _ in range(5 - len(self.fetches) % 5):
                await asyncio.sleep(0)
            for (uri, since), error in self.faults.items():
                if stored.uri == uri and start + len(into) > since:
                    raise error
            data = self.objects[stored.uri][start : start + len(into)]
            assert data or not self.sized, "fetched past the end"
            into[: len(data)] = data
            return len(data)
        finally:
            self.in_flight -= 1

    async def aclose(self):
        self.closed = True


async def inline(function, /, *args, **kwargs):
    await asyncio.sleep(0)
    return function(*args, **kwargs)


def source_of(*stores, block=16, ranges=1 << 30, buffers=12, ahead=4, **options):
    return ObjectSource(
        [Mount(store, root, ahead) for store, root in zip(stores, ("", "m2/"), strict=False)],
        pool=BlockPool(block, buffers * BlockPool.bytes_of(block)),
        range_bytes=ranges,
        offload=inline,
        **options,
    )


async def contents(source, partition, position=BEGIN):
    """Read a partition, checking what every block promises."""
    plain = bytearray()
    at = None
    last = False
    async for block in source.read(partition, position):
        assert not last
        assert block.start >= BLOCK_HEADROOM_BYTES
        assert len(block.buffer) - block.end >= BLOCK_TAILROOM_BYTES - 1
        assert at is None or block.offset == at, "blocks leave a gap"
        at = block.offset + block.end - block.start
        plain += block.buffer[block.start : block.end].tobytes()
        last = block.last
        block.release()
    assert last
    assert source.pool.buffers_in_use == 0
    return bytes(plain)


async def records(source, partition, position=BEGIN):
    plain = await contents(source, partition, position)
    assert plain.endswith(b"\n") or not plain
    return plain.split(b"\n")[:-1]


def lines_of(data):
    lines = data.split(b"\n")
    return lines if lines[-1] else lines[:-1]


TEXTS = st.lists(st.integers(0, 40).map(lambda n: b"%d" % n * (n // 2)), max_size=25).flatmap(
    lambda lines: st.sampled_from([b"\n".join(lines), b"\n".join([*lines, b""])])
)


@given(
    data=TEXTS,
    block=st.integers(4, 90),
    ranges=st.integers(1, 200),
    compression=st.sampled_from(sorted(COMPRESS)),
    ranged=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_every_record_is_read_once_whatever_the_cuts(data, block, ranges, compression, ranged):
    async def run():
        store = MemoryStore({"a": COMPRESS[compression](data)}, ranged=ranged)
        source = source_of(store, block=block, ranges=ranges)
        got = [
            record
            for partition in await source.partitions()
            for record in await records(source, partition)
        ]
        assert got == lines_of(data)

    asyncio.run(run())


@given(
    data=TEXTS,
    block=st.integers(4, 90),
    ranges=st.integers(1, 200),
    compression=st.sampled_from(sorted(COMPRESS)),
    ranged=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_resume_at_any_record_reads_the_rest(data, block, ranges, compression, ranged):
    async def run():
        store = MemoryStore({"a": COMPRESS[compression](data)}, ranged=ranged)
        source = source_of(store, block=block, ranges=ranges)
        for partition in await source.partitions():
            whole = await records(source, partition)
            # Where the first record of the partition lies.
            offset = partition.start
            if offset:
                offset = data.find(b"\n", offset - 1) + 1
            for done, record in enumerate(whole):
                rest = await records(source, partition, Position(offset, done))
                assert rest == whole[done:]
                offset += len(record) + 1

    asyncio.run(run())


async def cuts(source, partition, position=BEGIN):
    ends = []
    async for block in source.read(partition, position):
        if not block.last:
            ends.append(block.offset + block.end - block.start)
        block.release()
    return ends


@pytest.mark.parametrize("compression", COMPRESS)
async def test_blocks_are_cut_at_the_same_places_after_a_resume(compression):
    data = b"".join(b"%d\n" % i for i in range(100))
    source = source_of(MemoryStore({"a": COMPRESS[compression](data)}))
    (partition,) = await source.partitions()
    ends = await cuts(source, partition)
    assert ends == list(range(16, len(data), 16))
    assert await cuts(source, partition, Position(40, 13)) == [end for end in ends if end > 40]


async def test_blocks_of_a_range_are_cut_from_its_start():
    data = b"123456789\n" * 20
    store = MemoryStore({"a": data})
    store.modified_seconds = 7.0
    source = source_of(store, ranges=70)
    first, second, third = await source.partitions()
    assert [(p.start, p.end) for p in (first, second, third)] == [(0, 80), (80, 160), (160, 200)]
    assert second.name == "a#80-160"
    assert {p.modified_seconds for p in (first, second, third)} == {7.0}
    assert await cuts(source, second) == [96, 112, 128, 144]


async def test_a_range_in_which_no_record_begins_is_empty():
    data = b"x" * 100 + b"\n" + b"y\n"
    source = source_of(MemoryStore({"a": data}), ranges=16)
    got = [await records(source, partition) for partition in await source.partitions()]
    assert got == [[b"x" * 100], [], [], [], [], [], [b"y"]]


async def test_a_record_far_longer_than_what_is_fetched_for_it_is_read_on():
    data = b"a\n" + b"x" * 500_000 + b"\nb\n"
    source = source_of(MemoryStore({"a": data}), ranges=100_000, block=100_000)
    got = [await records(source, partition) for partition in await source.partitions()]
    assert got == [[b"a", b"x" * 500_000], [], [], [], [], [b"b"]]


async def test_a_resume_after_the_end_of_a_range_finds_nothing():
    data = b"123456789\n" * 20
    source = source_of(MemoryStore({"a": data}), ranges=64)
    first = (await source.partitions())[0]
    assert await records(source, first, Position(70, 7)) == []


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("data", [b"", b"\n", b"a", b"a" * 16, b"a" * 15 + b"\n", b"a" * 32])
@pytest.mark.parametrize("ranged", [True, False])
async def test_the_last_record_gets_its_newline(compression, data, ranged):
    source = source_of(MemoryStore({"a": COMPRESS[compression](data)}, ranged=ranged))
    (partition,) = await source.partitions()
    expected = data if data.endswith(b"\n") or not data else data + b"\n"
    assert await contents(source, partition) == expected


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("ranged", [True, False])
async def test_a_byte_order_mark_is_no_part_of_the_first_record(compression, ranged):
    stored = COMPRESS[compression](b"\xef\xbb\xbfone\ntwo\n")
    source = source_of(MemoryStore({"a": stored}, ranged=ranged))
    (partition,) = await source.partitions()
    assert await records(source, partition) == [b"one", b"two"]
    assert await source.header(partition) == b"one"
    assert await records(source, partition, Position(7, 1)) == [b"two"]


async def test_large_compressed_objects_are_not_split():
    store = MemoryStore({"a": gzip.compress(bytes(range(256)) * 8), "b": b"1\n" * 500})
    source = source_of(store, ranges=160)
    partitions = await source.partitions()
    assert [p.uri for p in partitions].count("a") == 1
    assert [(p.start, p.end) for p in partitions if p.uri == "b"][-1] == (960, 1000)


@pytest.mark.parametrize("forced", ["none", "gzip"])
async def test_a_forced_compression_is_not_looked_for(forced):
    data = gzip.compress(b"x\n" * 100)
    source = source_of(MemoryStore({"a": data}), ranges=16, compression=forced)
    partitions = await source.partitions()
    assert (len(partitions) == 1) == (forced == "gzip")
    plain = b"".join([await contents(source, partition) for partition in partitions])
    assert plain.rstrip(b"\n") == (data if forced == "none" else b"x\n" * 100).rstrip(b"\n")


async def test_an_object_whose_beginning_cannot_be_read_is_reported_by_its_reader():
    store = MemoryStore({"a": b"1\n" * 500})
    store.faults["a", 0] = SourceError("forbidden")
    source = source_of(store, ranges=160)
    (partition,) = await source.partitions()
    with pytest.raises(SourceError, match="forbidden"):
        await contents(source, partition)


async def test_stored_bytes_are_accounted_for():
    data = b"".join(b"%d\n" % i for i in range(1000))
    for stored in (data, gzip.compress(data)):
        source = source_of(MemoryStore({"a": stored}), block=256)
        (partition,) = await source.partitions()
        total = 0
        async for block in source.read(partition, Position()):
            total += block.stored_bytes
            block.release()
        assert total == len(stored)


# ---------------------------------------------------------------- many partitions


async def test_partitions_are_read_ahead_across_their_boundaries_in_order():
    store = MemoryStore({f"{i:03}": b"%d\n" % i for i in range(40)})
    source = source_of(store, buffers=40, ahead=10)
    todo = [(partition, Position()) for partition in await source.partitions()]
    got = []
    async with aclosing(source.read_many(todo)) as blocks:
        async for partition, block in blocks:
            assert block.last
            got.append((partition.uri, block.buffer[block.start : block.end].tobytes()))
            block.release()
    assert got == [(f"{i:03}", b"%d\n" % i) for i in range(40)]
    assert store.in_flight_max > 5


async def test_partitions_may_come_one_by_one_for_ever():
    store = MemoryStore({f"{i}": b"%d\n" % i for i in range(4)})
    source = source_of(store)
    partitions = await source.partitions()
    more = asyncio.Event()

    async def todo():
        for partition in partitions:
            yield partition, Position()
        await more.wait()

    got = []
    async with aclosing(source.read_many(todo())) as blocks:
        async for partition, block in blocks:
            block.release()
            got.append(partition.uri)
            if len(got) == 4:
                break
    assert got == list("0123")
    assert source.pool.buffers_in_use == 0


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("ranged", [True, False])
async def test_an_error_comes_in_its_place_and_the_next_partition_follows(compression, ranged):
    data = b"".join(b"%d\n" % (i * 7919 % 100_003) for i in range(60_000))
    store = MemoryStore({uri: COMPRESS[compression](data) for uri in "abc"}, ranged=ranged)
    half = len(store.objects["b"]) // 2
    store.faults["b", half] = SourceError("the network is down")
    source = source_of(store, block=8192)
    todo = [(partition, Position()) for partition in await source.partitions()]
    plain = dict.fromkeys("abc", b"")
    errors = []
    async with aclosing(source.read_many(todo)) as blocks:
        async for partition, item in blocks:
            if isinstance(item, StreamlearnError):
                errors.append((partition.uri, str(item)))
            else:
                plain[partition.uri] += item.buffer[item.start : item.end].tobytes()
                item.release()
    assert errors == [("b", "the network is down")]
    assert plain["a"] == plain["c"] == data
    assert data.startswith(plain["b"])
    assert len(plain["b"]) > len(data) // 4
    assert source.pool.buffers_in_use == 0


@pytest.mark.parametrize("compression", ["gzip", "zstd", "lz4"])
@pytest.mark.parametrize("ranged", [True, False])
async def test_what_precedes_damage_is_delivered_and_other_objects_go_on(compression, ranged):
    data = b"".join(b"%d\n" % (i * 7919 % 100_003) for i in range(100_000))
    stored = COMPRESS[compression](data)
    store = MemoryStore({"a": stored[: len(stored) // 2], "b": stored}, ranged=ranged)
    source = source_of(store, block=4096)
    todo = [(partition, Position()) for partition in await source.partitions()]
    plain, error = {"a": b"", "b": b""}, None
    async for partition, item in source.read_many(todo):
        if isinstance(item, DataError):
            error = str(item)
            assert partition.uri == "a"
        else:
            assert partition.uri == "a" or error
            assert not (partition.uri == "a" and item.last)
            plain[partition.uri] += item.buffer[item.start : item.end].tobytes()
            item.release()
    assert data.startswith(plain["a"])
    assert len(plain["a"]) > 0.2 * len(data)
    assert f"a: {compression} ends too early at stored byte {len(stored) // 2} " in error
    assert f"(plain byte {len(plain['a'])})" in error
    assert plain["b"] == data


async def test_an_object_that_became_shorter_is_reported():
    store = MemoryStore({"a": b"1\n" * 100})
    source = source_of(store)
    (partition,) = await source.partitions()
    store.objects["a"] = b"1\n" * 50
    store.sized = False
    with pytest.raises(ObjectChangedError, match="shorter than the 200 bytes"):
        await contents(source, partition)


@pytest.mark.parametrize("fault", [SourceError("lost"), None])
async def test_a_failure_within_the_record_over_the_end_of_a_range_is_reported(fault):
    data = b"a\n" + b"x" * 300_000 + b"\nb\n"
    store = MemoryStore({"a": data})
    source = source_of(store, ranges=100_000, block=100_000)
    first = (await source.partitions())[0]
    if fault:
        store.faults["a", 170_000] = fault
    else:
        store.objects["a"] = data[:180_000]
        store.sized = False
    with pytest.raises(type(fault) if fault else ObjectChangedError):
        await contents(source, first)
    assert source.pool.buffers_in_use == 0


async def test_our_own_mistakes_are_raised_as_they_are():
    store = MemoryStore({"a": b"1\n" * 1000})
    store.faults["a", 0] = ZeroDivisionError()
    source = source_of(store)
    (partition,) = await source.partitions()
    with pytest.raises(ZeroDivisionError):
        await contents(source, partition)
    assert source.pool.buffers_in_use == 0


async def test_a_failure_of_who_names_the_partitions_ends_the_stream():
    source = source_of(MemoryStore({"a": b"1\n"}))
    (partition,) = await source.partitions()

    async def todo():
        yield partition, Position()
        raise SourceError("the queue is gone")

    async with aclosing(source.read_many(todo())) as blocks:
        _, block = await anext(blocks)
        block.release()
        with pytest.raises(SourceError, match="the queue is gone"):
            await anext(blocks)


async def test_a_partition_of_another_source_is_refused():
    source = ObjectSource(
        [
            Mount(MemoryStore({"a/1": b"1\n"}), "a/", 1),
            Mount(MemoryStore({"b/1": b"2\n"}), "b/", 1),
        ],
        pool=BlockPool(16, 12 * BlockPool.bytes_of(16)),
        range_bytes=100,
    )
    assert [await records(source, p) for p in await source.partitions()] == [[b"1"], [b"2"]]
    with pytest.raises(SourceMissingError, match="expected one below a/, b/"):
        await contents(source, Partition("c/1", size=1))


# ---------------------------------------------------------------- bounds


@pytest.mark.parametrize("compression", COMPRESS)
async def test_several_partitions_read_at_once_stay_within_the_bound_and_end(compression):
    data = b"".join(b"%d\n" % i for i in range(3000))
    store = MemoryStore({f"{i}": COMPRESS[compression](data) for i in range(7)})
    source = source_of(store, block=512, buffers=READING_BUFFERS_MIN + 2, ahead=20)
    partitions = await source.partitions()
    got = await asyncio.wait_for(
        asyncio.gather(*(consume(source, partition) for partition in partitions)), 60
    )
    assert got == [len(data)] * 7
    assert source.pool.buffers_in_use_max <= source.pool.capacity
    assert source.pool.waits > 0


async def consume(source, partition):
    """Hold on to as many blocks as a consumer may."""
    held, total = [], 0
    async for block in source.read(partition, Position()):
        held.append(block)
        total += block.end - block.start
        if len(held) > BLOCKS_HELD_MAX:
            held.pop(0).release()
    for block in held:
        block.release()
    return total


@pytest.mark.parametrize("compression", COMPRESS)
async def test_readers_that_are_consumed_in_turn_do_not_starve_one_another(compression):
    data = b"".join(b"%d\n" % i for i in range(3000))
    store = MemoryStore({f"{i}": COMPRESS[compression](data) for i in range(4)})
    source = source_of(store, block=512, buffers=8 * READING_BUFFERS_MIN, ahead=50)
    readers = [source.read(p, Position()) for p in await source.partitions()]
    totals = [0] * 4
    for turn in range(10_000):
        live = [i for i in range(4) if totals[i] < len(data)]
        if not live:
            break
        i = live[turn * 5 % len(live)]
        block = await asyncio.wait_for(anext(readers[i]), 20)
        totals[i] += block.end - block.start
        block.release()
    for reader in readers:
        await reader.aclose()
    assert totals == [len(data)] * 4


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("ranged", [True, False])
async def test_reading_can_be_given_up_at_any_block(compression, ranged):
    data = b"".join(b"%d\n" % i for i in range(1000))
    store = MemoryStore({"a": COMPRESS[compression](data)}, ranged=ranged)
    source = source_of(store, block=256)
    (partition,) = await source.partitions()
    for count in range(6):
        async with aclosing(source.read(partition, Position())) as blocks:
            for _ in range(count):
                (await anext(blocks)).release()
        assert source.pool.buffers_in_use == 0
        assert store.in_flight == 0
    assert await records(source, partition) == lines_of(data)


@pytest.mark.parametrize("compression", COMPRESS)
async def test_reading_can_be_cancelled_at_any_step(compression):
    data = b"".join(b"%d\n" % i for i in range(1000))
    source = source_of(MemoryStore({"a": COMPRESS[compression](data)}), block=256)
    (partition,) = await source.partitions()
    for steps in islice(range(0, 200, 3), 60):
        task = asyncio.create_task(contents(source, partition))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        for _ in range(100):
            await asyncio.sleep(0)
        # One block may have been in the hands of the cancelled consumer.
        assert source.pool.buffers_in_use <= 1
        source.pool = BlockPool(256, 12 * BlockPool.bytes_of(256))


async def test_closing_ends_readers_and_closes_stores():
    store = MemoryStore({"a": b"1\n" * 1000})
    source = source_of(store)
    (partition,) = await source.partitions()
    blocks = source.read(partition, Position())
    (await anext(blocks)).release()
    await source.aclose()
    assert store.closed
    assert source.pool.buffers_in_use == 0
    await blocks.aclose()


# ---------------------------------------------------------------- headers


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("ranged", [True, False])
async def test_a_header_is_the_first_line_and_read_once(compression, ranged):
    data = b"first,line\r\n" + b"x" * 300_000
    store = MemoryStore({"a": COMPRESS[compression](data)}, ranged=ranged)
    source = source_of(store, block=1024, ranges=100_000)
    partition = (await source.partitions())[-1]
    assert await source.header(partition) == b"first,line"
    fetches = len(store.fetches)
    assert await source.header(partition) == b"first,line"
    assert len(store.fetches) == fetches


@pytest.mark.parametrize("compression", COMPRESS)
async def test_a_long_header_is_read_on_and_one_without_newline_ends_with_its_object(compression):
    line = b"".join(b"%d," % i for i in range(30_000))
    store = MemoryStore(
        {uri: COMPRESS[compression](line + end) for uri, end in (("a", b"\nx"), ("b", b""))}
        | {"c": COMPRESS[compression](b"")}
    )
    source = source_of(store)
    a, b, c = await source.partitions()
    assert await source.header(a) == await source.header(b) == line
    assert await source.header(c) == b""


@pytest.mark.parametrize("compression", COMPRESS)
async def test_a_header_without_end_is_refused(compression):
    store = MemoryStore({"a": COMPRESS[compression](b"x" * (3 * RECORD_BYTES_MAX))})
    source = source_of(store)
    (partition,) = await source.partitions()
    with pytest.raises(SourceError, match="longer than"):
        await source.header(partition)


async def test_a_header_before_damage_is_read_and_one_behind_it_is_not():
    stored = gzip.compress(b"a,b\n" + bytes(range(256)) * 100)
    store = MemoryStore({"a": stored[:-30], "b": stored[:11]})
    source = source_of(store)
    a, b = await source.partitions()
    assert await source.header(a) == b"a,b"
    with pytest.raises(DataError, match="ends too early"):
        await source.header(b)


async def test_headers_kept_are_bounded():
    store = MemoryStore({f"{i:03}": b"%d\n" % i for i in range(300)})
    source = source_of(store)
    for i, partition in enumerate(await source.partitions()):
        assert await source.header(partition) == b"%d" % i
    assert len(source._headers) <= 256


# ---------------------------------------------------------------- listing and following


async def test_an_object_that_two_uris_match_is_read_once():
    source = source_of(MemoryStore({"a": b"1\n"}), MemoryStore({"a": b"1\n", "m2/b": b"2\n"}))
    assert [p.uri for p in await source.partitions()] == ["a", "m2/b"]


async def test_partitions_can_be_asked_for_again():
    store = MemoryStore({"a": b"1\n"})
    source = source_of(store)
    first = await source.partitions()
    assert await source.partitions() == first
    store.objects["b"] = b"2\n"
    assert [p.uri for p in await source.partitions()] == ["a", "b"]


async def test_nothing_matched_is_an_error_unless_followed():
    with pytest.raises(SourceMissingError):
        await source_of(MemoryStore({})).partitions()
    assert await source_of(MemoryStore({}), follow=True).partitions() == []


class Turns:
    """A sleep that a test lets go on, one listing at a time."""

    def __init__(self):
        self.slept = asyncio.Semaphore(0)

    async def sleep(self, seconds):
        await self.slept.acquire()


async def listings(source, turns, count):
    """Follow for some listings; yield the URIs that each brought."""
    arrived = []

    async def follow():
        async for partition in source.follow():
            arrived.extend((partition.uri,))

    task = asyncio.create_task(follow())
    try:
        for _ in range(count):
            arrived.clear()
            turns.slept.release()
            for _ in range(20):
                await asyncio.sleep(0)
            yield list(arrived)
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_new_objects_appear_once_and_changed_ones_are_reported_once(caplog):
    caplog.set_level(logging.WARNING, "streamlearn.source")
    store = MemoryStore({"a": b"1\n"})
    turns = Turns()
    source = source_of(store, follow=True, sleep=turns.sleep)
    assert [p.uri for p in await source.partitions()] == ["a"]
    async with aclosing(listings(source, turns, 6)) as seen:
        assert await anext(seen) == []
        store.objects |= {"c": b"3\n", "b": b"2\n"}
        assert await anext(seen) == ["b", "c"]
        store.objects["b"] = b"22\n"
        assert await anext(seen) == []
        assert [r.getMessage() for r in caplog.records] == [
            "b changed after it was taken; the change is not read"
        ]
        store.objects["b"] = b"222\n"
        assert await anext(seen) == []
        del store.objects["b"]
        assert await anext(seen) == []
        store.objects["b"] = b"2\n"
        assert await anext(seen) == []
    assert len(caplog.records) == 1


async def test_an_object_that_may_still_be_written_waits_until_two_listings_agree():
    store = MemoryStore({"a": b"1\n", "old": b"0\n"}, settled=False)
    turns = Turns()
    source = source_of(store, follow=True, sleep=turns.sleep, clock=lambda: 3.0)
    assert await source.partitions() == []  # modified at 0: within the time between two listings
    async with aclosing(listings(source, turns, 4)) as seen:
        store.objects["a"] += b"2\n"
        store.objects["b"] = b"1\n"
        assert await anext(seen) == ["old"]
        assert await anext(seen) == ["a", "b"]
        assert await anext(seen) == []


async def test_objects_written_long_ago_are_taken_at_once():
    store = MemoryStore({"a": b"1\n"}, settled=False)
    source = source_of(store, follow=True, clock=lambda: 60.0)
    assert [p.uri for p in await source.partitions()] == ["a"]


async def test_a_listing_that_fails_is_reported_once_and_tried_again(caplog):
    caplog.set_level(logging.INFO, "streamlearn.source")
    store = MemoryStore({"a": b"1\n"})
    turns = Turns()
    source = source_of(store, follow=True, sleep=turns.sleep)
    await source.partitions()
    store.listing = SourceError("503 SlowDown")
    async with aclosing(listings(source, turns, 3)) as seen:
        assert await anext(seen) == []
        assert await anext(seen) == []
        store.listing = None
        store.objects["b"] = b"2\n"
        assert await anext(seen) == ["b"]
    assert [record.getMessage() for record in caplog.records] == [
        "cannot list the source, will try again: 503 SlowDown",
        "the source can be listed again",
    ]


async def test_a_place_that_became_empty_is_followed():
    store = MemoryStore({"a": b"1\n"})
    turns = Turns()
    source = source_of(store, follow=True, sleep=turns.sleep)
    await source.partitions()
    store.objects.clear()
    async with aclosing(listings(source, turns, 2)) as seen:
        assert await anext(seen) == []
        store.objects["b"] = b"2\n"
        assert await anext(seen) == ["b"]


class Queue:
    """Arrivals as a message queue tells of them."""

    def __init__(self, uris):
        self.uris = uris
        self.acknowledged = []
        self.closed = False

    async def __aiter__(self):
        for uri in self.uris:

            async def acknowledge(uri=uri):
                self.acknowledged.append(uri)

            yield StoredObject(uri, 2, "v", 0.0), acknowledge

    async def aclose(self):
        self.closed = True


async def test_a_queue_tells_of_new_objects_in_the_place_of_listings():
    queue = Queue(["b", "a", "b", "c"])
    source = source_of(MemoryStore({"a": b"1\n"}), follow=True, arrivals=queue)
    await source.partitions()
    assert [partition.uri async for partition in source.follow()] == ["b", "c"]
    assert queue.acknowledged == ["b", "a", "b", "c"]
    await source.aclose()
    assert queue.closed


async def test_known_objects_cost_little_memory():
    store = MemoryStore({f"prefix/{i:06}": b"1\n" for i in range(5000)})
    source = source_of(store)
    assert len(await source.partitions()) == 5000
    known = source._known
    assert sum(array.nbytes for array in (known._keys, known._versions, known._states)) == 85_000
