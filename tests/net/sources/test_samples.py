"""Samples of tar archives: members that belong together are one record."""

from __future__ import annotations

import gzip
import itertools

import pytest
import zstandard

from streamlearn.binary import Sample
from streamlearn.config import SourceConfig
from streamlearn.errors import DataError
from streamlearn.messages import RECORD_BYTES_MAX, Position
from streamlearn.net.sources.unpacking import Splits, open_decoder
from streamlearn.net.sources.uri import open_source
from tests.net.sources.s3_servers import BUCKET
from tests.net.sources.test_objects import MemoryStore, contents, source_of
from tests.net.sources.test_unpacking import tar_of

MEMBERS = {
    "a/1.png": b"\x89PNG\r\n\x1a\n" * 5,
    "a/1.cls": b"7\n",
    "a/._1.png": b"hidden",
    "README": b"no dot",
    "a/2.cls": b"",
    "a/2.Left.PNG": b"\n" * 600,
    "a/2.mp4": b"x" * 3000,
    "b.x/2.cls": b"3",
    "b.x/3.json": b"{}",
}
SAMPLES = [
    Sample("a/1", (("png", b"\x89PNG\r\n\x1a\n" * 5), ("cls", b"7\n"))),
    Sample("a/2", (("cls", b""), ("left.png", b"\n" * 600), ("mp4", None))),
    Sample("b.x/2", (("cls", b"3"),)),
    Sample("b.x/3", (("json", b"{}"),)),
]


def unpacked(data: bytes, step: int = 1 << 20):
    """Return the samples of an object that comes in pieces, and what is wrong with it."""
    decoder = open_decoder("none", "samples", "x", Splits())
    out, into = b"", memoryview(bytearray(1 << 16))
    for at in range(0, max(len(data), 1), step):
        decoder.give(memoryview(data)[at : at + step])
        while count := decoder.fill(into):
            out += bytes(into[:count])
    decoder.finish()
    while count := decoder.fill(into):
        out += bytes(into[:count])
    return [Sample.decode(record) for record in out.split(b"\n")[:-1]], decoder.damage


@pytest.mark.parametrize("step", [1, 100, 512, 1 << 20])
def test_members_that_belong_together_are_a_record(step):
    assert unpacked(tar_of(MEMBERS), step) == (SAMPLES, None)


def test_members_that_do_not_stand_together_are_several_records():
    found, _ = unpacked(tar_of({"1.cls": b"1", "2.cls": b"2", "1.png": b"3"}))
    assert [one.key for one in found] == ["1", "2", "1"]


def test_an_extension_may_come_twice():
    data = tar_of({"1.cls": b"1", "1.CLS": b"2"})
    assert unpacked(data)[0] == [Sample("1", (("cls", b"1"), ("cls", b"2")))]


def test_a_sample_that_is_too_long_is_named_in_its_place():
    half = RECORD_BYTES_MAX // 2
    members = {
        "1.cls": b"1",
        "long.png": b"\n" * (half + 1000),
        "long.npy": b"x" * (half + 1000),
        "long.cls": b"2",
        "rest.png": b"x" * (RECORD_BYTES_MAX - 100),  # stuffing makes it longer
        "film.mp4": b"x" * (2 * RECORD_BYTES_MAX),  # which is not kept
        "film.cls": b"3",
    }
    (first, long, rest, film), damage = unpacked(tar_of(members), 1 << 16)
    assert damage is None
    assert first == Sample("1", (("cls", b"1"),))
    assert (long.key, long.members) == ("long", ())
    assert long.too_long > RECORD_BYTES_MAX
    assert (rest.key, rest.members) == ("rest", ())
    assert 0 < rest.too_long <= RECORD_BYTES_MAX
    assert film == Sample("film", (("mp4", None), ("cls", b"3")))


def test_a_sample_of_many_members_is_too_long():
    name = "1." + "a" * 90
    members = {f"{name}{i}": b"" for i in range(RECORD_BYTES_MAX // 90)}
    (found,), damage = unpacked(tar_of(members), 1 << 16)
    assert damage is None
    assert found.too_long > RECORD_BYTES_MAX


@pytest.mark.parametrize(
    ("data", "whole", "said"),
    [
        (b"", 0, "x is no tar archive, expected one of samples"),
        (b"\x89PNG" * 200, 0, "x is no tar archive, expected one of samples"),
        (tar_of(MEMBERS)[:1200], 0, "x: the tar archive ends too early at plain byte 1200"),
        # the first sample was whole, the second may have had more members
        (tar_of(MEMBERS)[: 512 * 11], 1, "x: the tar archive ends too early at plain byte 5632"),
    ],
)
@pytest.mark.parametrize("step", [100, 1 << 20])
def test_damage_is_said_behind_what_is_whole(data, whole, said, step):
    found, damage = unpacked(data, step)
    assert found == SAMPLES[:whole]
    assert isinstance(damage, DataError)
    assert damage.message.startswith(said)


async def read_all(source):
    """Return the samples of all partitions, each read whole, then resumed at each."""
    found = []
    for partition in await source.partitions():
        whole = await contents(source, partition)
        records = whole.split(b"\n")[:-1]
        for at in itertools.accumulate(len(one) + 1 for one in records):
            assert await contents(source, partition, Position(offset=at)) == whole[at:]
        assert await source.header(partition) == records[0]
        found += [Sample.decode(record) for record in records]
    return found


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstandard.compress])
@pytest.mark.parametrize("ranged", [True, False])
async def test_samples_come_from_any_store(compress, ranged):
    store = MemoryStore({"x": compress(tar_of(MEMBERS))}, ranged=ranged)
    source = source_of(store, block=512, ranges=600, unpacking="samples")
    assert await read_all(source) == SAMPLES
    await source.aclose()


@pytest.mark.parametrize("format_", ["samples", "webdataset"])
async def test_samples_come_from_files(tmp_path, format_):
    (tmp_path / "0.tar").write_bytes(tar_of(MEMBERS))
    (tmp_path / "1.tar.gz").write_bytes(gzip.compress(tar_of(MEMBERS)))
    source = open_source(SourceConfig(uri=(str(tmp_path),), format=format_))
    assert await read_all(source) == SAMPLES * 2
    await source.aclose()


@pytest.mark.usefixtures("aws_environ")
async def test_samples_come_from_s3(localbucket):
    localbucket.put("s/0.tar", tar_of(MEMBERS))
    localbucket.put("s/1.tar.zst", zstandard.compress(tar_of(MEMBERS)))
    uri = (f"s3://{BUCKET}/s/",)
    source = open_source(SourceConfig(uri=uri, format="samples", endpoint_url=localbucket.endpoint))
    assert await read_all(source) == SAMPLES * 2
    await source.aclose()


async def test_long_first_records_are_not_kept_as_headers():
    data = {f"{i}": tar_of({"1.png": b"x" * 100_000, "1.cls": b"1"}) for i in range(3)}
    store = MemoryStore(data)
    source = source_of(store, block=4096, buffers=60, unpacking="samples")
    first, *_ = await source.partitions()
    header = await source.header(first)
    fetches = len(store.fetches)
    assert await source.header(first) == header
    assert len(store.fetches) > fetches
    await source.aclose()
