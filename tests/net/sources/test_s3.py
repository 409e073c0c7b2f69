"""S3 over real servers: what is listed, and how bytes come."""

import hashlib
import random

import pytest

from streamlearn.config import SourceConfig
from streamlearn.errors import ObjectChangedError, SourceMissingError
from streamlearn.net.sources import s3
from streamlearn.net.sources.aws import AwsService
from streamlearn.net.sources.s3 import S3Store
from streamlearn.net.sources.source import StoredObject
from tests.net.sources.s3_servers import BUCKET, read_all


def noise(size, seed=0):
    return random.Random(seed).randbytes(size)


async def keys_of(store):
    return [stored.uri for stored in await store.list()]


@pytest.fixture
def open_local(localbucket, stores):
    def open_store(pattern, **settings):
        return stores.open(
            f"s3://{BUCKET}/{pattern}", endpoint_url=localbucket.endpoint, **settings
        )

    return open_store


async def test_prefix_lists_everything_below_it_by_uri(localbucket, open_local):
    for key in ("d/b.txt", "d/a.txt", "d/x/c.txt", "e/z.txt"):
        localbucket.put(key, key.encode())
    store = open_local("d/")
    assert await keys_of(store) == [f"s3://{BUCKET}/d/{k}" for k in ("a.txt", "b.txt", "x/c.txt")]


async def test_listing_goes_over_all_pages_in_order(localbucket, fault_front, stores):
    keys = [f"d/{i % 7}/part-{i:05d}" for i in range(2500)]
    for key in keys:
        localbucket.put(key, b"x")
    store = stores.open(f"s3://{BUCKET}/d/**", endpoint_url=fault_front.endpoint)
    assert await keys_of(store) == sorted(f"s3://{BUCKET}/{key}" for key in keys)
    assert len(fault_front.requests) == 3


async def test_listing_says_size_etag_and_time(localbucket, open_local):
    localbucket.put("d/a.txt", b"hello")
    (stored,) = await open_local("d/").list()
    assert stored.size == 5
    assert stored.version == f'"{hashlib.md5(b"hello").hexdigest()}"'
    modified = (localbucket.folder / "d/a.txt").stat().st_mtime
    assert abs(stored.modified_seconds - modified) <= 1.0


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("day_*", ["day_0.gz", "day_1.gz", "day_10.gz"]),
        ("day_?.gz", ["day_0.gz", "day_1.gz"]),
        ("day_[1-9]*", ["day_1.gz", "day_10.gz"]),
        ("**/*.json", ["top.json", "x/y/deep.json"]),
        ("x/**", ["x/y/deep.json"]),
    ],
)
async def test_glob_lists_the_keys_that_match(localbucket, open_local, pattern, expected):
    for key in ("day_0.gz", "day_1.gz", "day_10.gz", "top.json", "x/y/deep.json"):
        localbucket.put(key, b"content")
    assert await keys_of(open_local(pattern)) == [f"s3://{BUCKET}/{key}" for key in expected]


async def test_empty_objects_are_left_out(localbucket, open_local):
    localbucket.put("d/empty", b"")
    localbucket.put("d/full", b"x")
    assert await keys_of(open_local("d/")) == [f"s3://{BUCKET}/d/full"]


ODD_KEYS = [
    "a b.txt",
    "a+b.txt",
    "a%20b.txt",
    "größe-日本.txt",
    "a&b=c;d.txt",
    "it's (1)!#~@,$.txt",
]


async def test_odd_keys_are_listed_and_read(localbucket, open_local):
    for key in ODD_KEYS:
        localbucket.put(f"odd/{key}", key.encode())
    store = open_local("odd/")
    listed = await store.list()
    assert [stored.uri for stored in listed] == sorted(f"s3://{BUCKET}/odd/{k}" for k in ODD_KEYS)
    for stored in listed:
        buffer = bytearray(64)
        got = await store.fetch(stored, 0, memoryview(buffer))
        assert buffer[:got].decode() == stored.uri.rpartition("/")[2]


@pytest.mark.parametrize("key", ODD_KEYS)
async def test_odd_key_can_be_named_literally(localbucket, open_local, key):
    localbucket.put(key, b"content")
    (stored,) = await open_local(key).list()
    assert (stored.uri, stored.size) == (f"s3://{BUCKET}/{key}", 7)


async def test_literal_key_is_the_same_object_as_listed(localbucket, open_local):
    localbucket.put("d/a.txt", b"hello")
    assert await open_local("d/a.txt").list() == await open_local("d/").list()


async def test_literal_key_needs_no_listing(localbucket, fault_front, stores):
    localbucket.put("d/a.txt", b"hello")
    await stores.open(f"s3://{BUCKET}/d/a.txt", endpoint_url=fault_front.endpoint).list()
    assert [path for _, path, _ in fault_front.requests] == [f"/{BUCKET}/d/a.txt"]


async def test_name_of_a_folder_lists_the_folder(localbucket, open_local):
    localbucket.put("d/a.txt", b"hello")
    localbucket.put("de.txt", b"hello")
    assert await keys_of(open_local("d")) == [f"s3://{BUCKET}/d/a.txt"]


@pytest.mark.parametrize("piece", [33_333, 1 << 20])
async def test_fetch_reads_the_bytes_of_the_object(localbucket, open_local, piece):
    content = noise(100_000)
    localbucket.put("a.bin", content)
    assert await read_all(open_local("a.bin"), piece) == content


async def test_fetch_splits_what_is_larger_than_a_piece(
    localbucket, fault_front, stores, monkeypatch
):
    monkeypatch.setattr(s3, "PIECE_BYTES", 1000)
    content = noise(2500)
    localbucket.put("a.bin", content)
    store = stores.open(f"s3://{BUCKET}/a.bin", endpoint_url=fault_front.endpoint)
    (stored,) = await store.list()
    buffer = bytearray(4000)
    assert await store.fetch(stored, 0, memoryview(buffer)) == 2500
    assert buffer[:2500] == content
    assert fault_front.ranges()[1:] == ["bytes=0-999", "bytes=1000-1999", "bytes=2000-2499"]


async def test_fetch_past_the_end_gives_nothing(localbucket, open_local):
    localbucket.put("a.bin", b"12345")
    store = open_local("a.bin")
    (stored,) = await store.list()
    assert await store.fetch(stored, 5, memoryview(bytearray(10))) == 0
    assert await store.fetch(stored, 99, memoryview(bytearray(10))) == 0
    unknown = StoredObject(stored.uri, -1, stored.version, 0.0)
    assert await store.fetch(unknown, 99, memoryview(bytearray(10))) == 0
    buffer = bytearray(10)
    assert await store.fetch(unknown, 2, memoryview(buffer)) == 3
    assert buffer[:3] == b"345"


async def test_object_replaced_after_listing_is_named_with_both_etags(localbucket, open_local):
    localbucket.put("a.bin", b"before")
    store = open_local("a.bin")
    (stored,) = await store.list()
    localbucket.put("a.bin", b"after!")
    with pytest.raises(ObjectChangedError) as caught:
        await store.fetch(stored, 0, memoryview(bytearray(6)))
    assert stored.version in caught.value.message
    assert hashlib.md5(b"after!").hexdigest() in caught.value.message
    assert caught.value.exit_code == 1


async def test_object_deleted_after_listing_is_an_object_that_changed(localbucket, open_local):
    localbucket.put("a.bin", b"before")
    store = open_local("a.bin")
    (stored,) = await store.list()
    (localbucket.folder / "a.bin").unlink()
    with pytest.raises(ObjectChangedError, match="it is gone"):
        await store.fetch(stored, 0, memoryview(bytearray(6)))


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("s3://nowhere-at-all/", "there is no such bucket"),
        ("s3://nowhere-at-all/key", "there is no such bucket"),
        (f"s3://{BUCKET}/no/such.key", "there is no such key"),
        (f"s3://{BUCKET}/no/such/", "there are no objects"),
        (f"s3://{BUCKET}/no*", "nothing matches"),
        ("s3://b/", "bucket"),
    ],
)
async def test_what_is_not_there_is_one_sentence_and_exit_2(localbucket, stores, uri, sentence):
    localbucket.put("there.txt", b"x")
    with pytest.raises(SourceMissingError, match=sentence) as caught:
        await stores.open(uri, endpoint_url=localbucket.endpoint).list()
    assert caught.value.exit_code == 2
    assert uri in caught.value.message
    assert "\n" not in caught.value.message


async def test_star_that_stops_at_a_folder_is_hinted_at(localbucket, open_local):
    localbucket.put("2026/a.gz", b"x")
    with pytest.raises(SourceMissingError) as caught:
        await open_local("20*").list()
    assert "**" in caught.value.hint


async def test_error_says_url_region_status_code_and_own_words(localbucket, stores):
    store = stores.open("s3://nowhere-at-all/x/", endpoint_url=localbucket.endpoint, region="eu-x")
    with pytest.raises(SourceMissingError) as caught:
        await store.list()
    for part in ("404", "NoSuchBucket", localbucket.endpoint, "eu-x"):
        assert part in caught.value.message
    assert "bucket does not exist" in caught.value.cause
    assert caught.value.hint


async def test_closing_twice_is_harmless(localbucket, open_local):
    localbucket.put("a.bin", b"x")
    store = open_local("a.bin")
    await store.list()
    await store.aclose()
    await store.aclose()


async def test_stores_that_share_connections_close_them_together(localbucket, fault_front):
    localbucket.put("a.bin", b"a")
    localbucket.put("b.bin", b"b")
    config = SourceConfig(endpoint_url=fault_front.endpoint)
    service = AwsService("s3", config)
    first = S3Store(f"s3://{BUCKET}/a.bin", config, service=service)
    second = S3Store(f"s3://{BUCKET}/b.bin", config, service=service)
    assert await read_all(first) == b"a"
    client = await service.client()
    await first.aclose()
    await first.aclose()
    assert await read_all(second) == b"b"
    assert await service.client() is client
    await second.aclose()
