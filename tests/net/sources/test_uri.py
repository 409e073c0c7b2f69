"""From the URIs of a job to one source."""

from __future__ import annotations

import gzip

import pytest
import uvloop

from streamlearn.config import SourceConfig
from streamlearn.errors import ConfigError, SourceMissingError
from streamlearn.messages import Position
from streamlearn.net.sources.blocks import BlockPool
from streamlearn.net.sources.file import FileStore
from streamlearn.net.sources.http import HttpStore
from streamlearn.net.sources.pipe import PipeStore
from streamlearn.net.sources.s3 import S3Store
from streamlearn.net.sources.uri import open_source


def stores(*uris, **settings):
    source = open_source(SourceConfig(uri=uris, **settings))
    return [type(mount.store) for mount in source._mounts]


async def test_each_uri_gets_its_store():
    assert stores(
        "-", "a.csv", "/logs/*.gz", "file:///a", "http://h/a", "HTTPS://h/a", "s3://bucket/prefix/"
    ) == [PipeStore, FileStore, FileStore, FileStore, HttpStore, HttpStore, S3Store]


async def test_a_device_is_a_stream():
    assert stores("/dev/null") == [PipeStore]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"uri": ()}, "source.uri names no source"),
        ({"uri": ("s4://b/k",)}, "scheme 's4', expected a path, - or s3://, http://.*mean s3?"),
        ({"uri": ("htp://b/k",)}, "did you mean http?"),
        ({"uri": ("q://b/k",)}, "'q://b/k' has the scheme 'q'"),
        ({"compression": "gz"}, "'gz', expected auto, none, gzip, zstd or lz4\nhint.* gzip?"),
        ({"block_bytes": 100}, "source.block_bytes is 100, expected at least 4096"),
        ({"range_bytes": 0}, "source.range_bytes is 0"),
        ({"read_ahead_bytes": 1 << 20}, "source.read_ahead_bytes is 1048576, expected at least"),
        ({"queue": "q"}, "source.queue tells of S3 objects"),
    ],
)
def test_a_setting_out_of_its_range_is_named(settings, message):
    with pytest.raises(ConfigError, match=f"(?s){message}") as caught:
        open_source(SourceConfig(**{"uri": ("a",)} | settings))
    assert caught.value.exit_code == 2


async def test_a_queue_is_listened_to():
    config = SourceConfig(uri=("s3://b/p/",), queue="https://sqs.us-east-1.amazonaws.com/1/q")
    source = open_source(config)
    assert source._arrivals is not None
    await source.aclose()


async def records(source):
    got = b""
    partitions = await source.partitions()
    async for _, block in source.read_many([(p, Position()) for p in partitions]):
        got += block.buffer[block.start : block.end].tobytes()
        block.release()
    await source.aclose()
    return partitions, got.splitlines()


@pytest.fixture
def logs(tmp_path):
    lines = [b"%d" % i for i in range(10_000)]
    (tmp_path / "a.csv").write_bytes(b"\n".join(lines[:4000]))
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"\n".join(lines[4000:9000])))
    (tmp_path / "c.csv").write_bytes(b"\n".join(lines[9000:]) + b"\n")
    return tmp_path, lines


async def test_several_uris_are_one_source_in_their_order(logs):
    path, lines = logs
    config = SourceConfig(
        uri=(str(path / "a.csv"), str(path), str(path / "?.csv")),
        block_bytes=4096,
        range_bytes=8192,
        read_ahead_bytes=8 * BlockPool.bytes_of(4096),
    )
    partitions, got = await records(open_source(config))
    assert [p.uri.rpartition("/")[2] for p in partitions] == [
        "a.csv",
        "a.csv",
        "a.csv",
        "b.gz",
        "c.csv",
    ]
    assert got == lines


def test_all_works_on_uvloop_as_well(logs):
    path, lines = logs
    with_loop = uvloop.new_event_loop()
    try:
        config = SourceConfig(uri=(str(path),), block_bytes=4096)
        assert with_loop.run_until_complete(records(open_source(config)))[1] == lines
        with_loop.run_until_complete(with_loop.shutdown_default_executor())
    finally:
        with_loop.close()


async def test_the_objects_behind_several_uris_are_listed_once(logs):
    path, _ = logs
    source = open_source(SourceConfig(uri=(str(path / "a.csv"), str(path))))
    names = [stored.uri.rpartition("/")[2] async for stored in source.objects()]
    assert names == ["a.csv", "b.gz", "c.csv"]


async def test_what_stores_have_to_say_is_passed_on():
    source = open_source(SourceConfig(uri=("a", "http://h/a", "http://h/b")))
    assert await source.describe() == {}
    for mount in source._mounts[1:]:
        mount.store.retries["timeout"] = 2
    assert source.retries()["timeout"] == 4


async def test_where_access_to_s3_comes_from_is_told(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    config = SourceConfig(uri=("a", "s3://bucket/"), endpoint_url="http://127.0.0.1:1")
    source = open_source(config)
    told = await source.describe()
    assert told["bucket"] == "bucket"
    assert "secret" not in str(told)
    await source.aclose()


async def test_nothing_there_is_one_sentence(tmp_path):
    source = open_source(SourceConfig(uri=(str(tmp_path / "none"),)))
    with pytest.raises(SourceMissingError, match=r"cannot open .*none"):
        await source.partitions()
