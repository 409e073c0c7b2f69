"""The whole source over S3: records arrive once, whatever happens on the way."""

import asyncio
import gzip
import json
import random

import pytest

from streamlearn.config import SourceConfig
from streamlearn.errors import ObjectChangedError
from streamlearn.messages import Position
from streamlearn.net.sources import aws
from streamlearn.net.sources.source import NothingMatchedError
from streamlearn.net.sources.uri import open_source
from tests.net.sources.s3_servers import BUCKET, Fault

LINES = b"".join(b"%d,%d\n" % (i, i * i) for i in range(60_000))


async def read(source):
    """Return the plain bytes of all partitions, in order, and the errors that ended some."""
    todo = [(partition, Position()) for partition in await source.partitions()]
    parts, errors = [], []
    async for _, item in source.read_many(todo):
        if isinstance(item, Exception):
            errors.append(item)
            continue
        parts.append(item.buffer[item.start : item.end].tobytes())
        item.release()
    return b"".join(parts), errors, len(todo)


@pytest.fixture
async def sources(monkeypatch):
    """Opens sources whose waits between attempts are short, and closes them."""
    monkeypatch.setattr(aws, "BACKOFF_CAP_SECONDS", 0.001)
    opened = []

    def start(*uris, **settings):
        settings = {"block_bytes": 65_536, "read_ahead_bytes": 64 << 20, **settings}
        opened.append(open_source(SourceConfig(uri=uris, **settings)))
        return opened[-1]

    yield start
    for source in opened:
        await source.aclose()


async def test_split_object_arrives_once_in_spite_of_faults(localbucket, fault_front, sources):
    localbucket.put("d/a.csv", LINES)
    chance = random.Random(11)
    kinds = [
        Fault("status"),
        Fault("status", status=500, code="InternalError"),
        Fault("reset", bytes=9_000),
        Fault("truncate", bytes=5_000),
        Fault("short", bytes=3_000),
        Fault("pass"),
    ]
    fault_front.faults.extend(chance.choice(kinds) for _ in range(40))
    source = sources(
        f"s3://{BUCKET}/d/", endpoint_url=fault_front.endpoint, range_bytes=131_072, retries=20
    )
    content, errors, partitions = await read(source)
    assert (content, errors) == (LINES, [])
    assert partitions > 3
    assert not fault_front.faults


async def test_compressed_objects_arrive_in_spite_of_faults(localbucket, fault_front, sources):
    half = LINES.index(b"\n", len(LINES) // 2) + 1
    localbucket.put("d/a.gz", gzip.compress(LINES[:half]))
    localbucket.put("d/b.gz", gzip.compress(LINES[half:]))
    fault_front.faults.extend([Fault("truncate", bytes=1_000), Fault("reset", bytes=500)] * 5)
    source = sources(f"s3://{BUCKET}/d/*.gz", endpoint_url=fault_front.endpoint)
    content, errors, _ = await read(source)
    assert (content, errors) == (LINES, [])


async def test_object_that_changes_ends_alone(localbucket, sources):
    for key in ("a", "b", "c"):
        localbucket.put(f"d/{key}", LINES)
    source = sources(f"s3://{BUCKET}/d/", endpoint_url=localbucket.endpoint)
    todo = [(partition, Position()) for partition in await source.partitions()]
    localbucket.put("d/b", LINES[::-1])
    sizes, errors = dict.fromkeys("abc", 0), []
    async for partition, item in source.read_many(todo):
        if isinstance(item, Exception):
            errors.append(item)
            continue
        sizes[partition.uri[-1]] += item.end - item.start
        item.release()
    assert sizes == {"a": len(LINES), "b": 0, "c": len(LINES)}
    assert [type(error) for error in errors] == [ObjectChangedError]
    assert f"s3://{BUCKET}/d/b" in str(errors[0])


async def test_objects_of_several_uris_come_in_the_order_of_the_uris(localbucket, sources):
    for key in ("a/1", "a/2", "b/1"):
        localbucket.put(key, f"{key}\n".encode())
    uris = [f"s3://{BUCKET}/b/", f"s3://{BUCKET}/a/*"]
    content, _, _ = await read(sources(*uris, endpoint_url=localbucket.endpoint))
    assert content == b"b/1\na/1\na/2\n"


async def test_new_objects_are_followed_by_listing(localbucket, sources):
    settings = {"endpoint_url": localbucket.endpoint, "follow": True, "follow_seconds": 0.01}
    source = sources(f"s3://{BUCKET}/d/*", **settings)
    assert await source.partitions() == []
    localbucket.put("d/new", b"1,2\n")
    async with asyncio.timeout(20):
        partition = await anext(source.follow())
    assert partition.uri == f"s3://{BUCKET}/d/new"


async def test_nothing_there_is_an_error_where_it_is_not_followed(localbucket, sources):
    with pytest.raises(NothingMatchedError):
        await sources(f"s3://{BUCKET}/d/*", endpoint_url=localbucket.endpoint).partitions()


async def test_new_objects_are_followed_by_the_queue(
    localbucket, moto_endpoint, sources, monkeypatch
):
    boto3 = pytest.importorskip("boto3")
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", moto_endpoint)
    client = boto3.client("sqs", endpoint_url=moto_endpoint, region_name="us-east-1")
    url = client.create_queue(QueueName="followed")["QueueUrl"]
    settings = {"endpoint_url": localbucket.endpoint, "follow": True, "queue": url}
    source = sources(f"s3://{BUCKET}/d/*", **settings)
    assert await source.partitions() == []
    localbucket.put("d/new log.csv", b"1,2\n")
    stored = {"key": "d/new+log.csv", "size": 4, "eTag": "24eb6ae0e8cb2aff2c2ff3a0c5a5ff50"}
    record = {
        "eventName": "ObjectCreated:Put",
        "eventTime": "2026-11-23T01:02:03.000Z",
        "s3": {"bucket": {"name": BUCKET}, "object": stored},
    }
    client.send_message(QueueUrl=url, MessageBody=json.dumps({"Records": [record]}))
    client.close()
    async with asyncio.timeout(20):
        partition = await anext(source.follow())
    assert (partition.uri, partition.size) == (f"s3://{BUCKET}/d/new log.csv", 4)
