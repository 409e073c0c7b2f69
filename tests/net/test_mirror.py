"""Snapshots in S3: whole or not there, whatever breaks off in the middle."""

import random
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from streamlearn.config import SourceConfig
from streamlearn.errors import ConfigError, SnapshotError, SourceError
from streamlearn.net import mirror as mirrors
from streamlearn.net.mirror import Mirror
from streamlearn.net.sources.aws import AwsService
from streamlearn.shards.snapshot import SnapshotWriter, newest, verify
from tests.net.sources.s3_servers import (  # noqa: F401 - fixtures are found by their names
    BUCKET,
    aws_environ,
    bare_environ,
    localbucket,
    moto_endpoint,
)

WHERE = f"s3://{BUCKET}/models/lr/000-of-002"


@pytest.fixture
def root(tmp_path):
    return tmp_path / "snapshots"


@pytest.fixture
def fetched(tmp_path):
    return tmp_path / "fetched"


@pytest.fixture
async def mirror(localbucket):  # noqa: F811
    made = Mirror.open(WHERE, SourceConfig(endpoint_url=localbucket.endpoint))
    yield made
    await made.aclose()


def write(root, sequence, *, rows=1000):
    with SnapshotWriter(root, sequence) as writer:
        for part in range(3):
            with writer.open(f"rows.{part:03d}") as blob:
                blob.write(np.random.default_rng(sequence).integers(0, 9, rows, np.uint64))
        with writer.open("empty"):
            pass
        return writer.commit({"kind": "shard", "lsn": sequence})


def files(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def objects(bucket):
    below = bucket.folder / "models/lr/000-of-002"
    return sorted(str(path.relative_to(below)) for path in below.rglob("*") if path.is_file())


async def test_nothing_is_there_at_first(mirror, fetched):
    assert await mirror.snapshots() == []
    assert await mirror.fetch_newest(fetched) is None


async def test_what_is_fetched_is_what_was_sent(mirror, root, fetched):
    path = write(root, 7)
    await mirror.upload(path, keep=2)
    assert await mirror.fetch_newest(fetched, check=verify) == fetched / path.name
    assert files(fetched / path.name) == files(path)
    reader, skipped = newest(fetched)
    assert skipped == []
    reader.close()
    assert [one.name for one in fetched.iterdir()] == [path.name]


async def test_large_files_go_in_parts(mirror, root, fetched, monkeypatch):
    monkeypatch.setattr(mirrors, "PART_BYTES", 5 << 20)
    path = write(root, 7, rows=3 * (5 << 17) + 100)
    await mirror.upload(path, keep=2)
    assert await mirror.fetch_newest(fetched, check=verify) == fetched / path.name
    assert files(fetched / path.name) == files(path)


async def test_newest_are_kept_and_older_ones_removed(mirror, root, localbucket):  # noqa: F811
    for sequence in range(1, 6):
        await mirror.upload(write(root, sequence), keep=2)
    assert await mirror.snapshots() == [4, 5]
    assert {name.partition("/")[0] for name in objects(localbucket)} == {
        "000000000004",
        "000000000005",
    }


async def test_snapshot_without_manifest_is_none_and_goes_with_older_ones(
    mirror,
    root,
    fetched,
    localbucket,  # noqa: F811
):
    await mirror.upload(write(root, 1), keep=2)
    localbucket.put("models/lr/000-of-002/000000000002/rows.000", b"half")
    assert await mirror.fetch_newest(fetched) == fetched / "000000000001"
    for sequence in (3, 4):
        await mirror.upload(write(root, sequence), keep=2)
    assert {name.partition("/")[0] for name in objects(localbucket)} == {
        "000000000003",
        "000000000004",
    }


async def test_what_is_no_snapshot_is_left_alone(mirror, root, localbucket):  # noqa: F811
    localbucket.put("models/lr/000-of-002/notes.txt", b"x")
    localbucket.put("models/lr/000-of-002/000000000000/deep/er", b"x")
    for sequence in (1, 2):
        await mirror.upload(write(root, sequence), keep=1)
    assert await mirror.snapshots() == [2]
    assert {"notes.txt", "000000000000/deep/er"} < set(objects(localbucket))


async def test_damaged_snapshot_is_passed_over(mirror, root, fetched, localbucket):  # noqa: F811
    for sequence in (1, 2):
        await mirror.upload(write(root, sequence), keep=2)
    localbucket.put("models/lr/000-of-002/000000000002/rows.001", b"x" * 8000)
    assert await mirror.fetch_newest(fetched, check=verify) == fetched / "000000000001"
    assert [one.name for one in fetched.iterdir()] == ["000000000001"]


async def test_nothing_but_damaged_snapshots_is_an_error(
    mirror,
    root,
    fetched,
    localbucket,  # noqa: F811
):
    await mirror.upload(write(root, 1), keep=2)
    localbucket.put("models/lr/000-of-002/000000000001/rows.001", b"x" * 8000)
    with pytest.raises(SnapshotError, match=r"'rows.001' have checksum"):
        await mirror.fetch_newest(fetched, check=verify)


async def test_number_used_again_replaces_the_snapshot(mirror, root, fetched, tmp_path):
    await mirror.upload(write(root, 1), keep=2)
    other = write(tmp_path / "other", 1, rows=77)
    await mirror.upload(other, keep=2)
    await mirror.fetch_newest(fetched, check=verify)
    assert files(fetched / other.name) == files(other)


@pytest.mark.parametrize("seed", range(8))
async def test_upload_that_breaks_off_leaves_a_whole_snapshot(
    mirror, root, fetched, monkeypatch, seed
):
    await mirror.upload(write(root, 1), keep=1)
    second = write(root, 2)
    left = random.Random(seed).randrange(1, 10)
    real = AwsService.call

    async def call(self, what, operation, **parameters):
        nonlocal left
        left -= 1
        if left < 0:
            raise SourceError(what)
        return await real(self, what, operation, **parameters)

    with monkeypatch.context() as patch:
        patch.setattr(AwsService, "call", call)
        with suppress(SourceError):
            await mirror.upload(second, keep=1)
    path = await mirror.fetch_newest(fetched, check=verify)
    assert path is not None
    assert files(path) == files(root / path.name)
    await mirror.upload(write(root, 3), keep=1)
    assert await mirror.snapshots() == [3]


async def test_missing_bucket_is_told(localbucket, root):  # noqa: F811
    config = SourceConfig(endpoint_url=localbucket.endpoint)
    mirror = Mirror.open("s3://nowhere-at-all/prefix", config)
    with pytest.raises(SourceError, match="s3://nowhere-at-all/prefix"):
        await mirror.upload(write(root, 1), keep=1)
    await mirror.aclose()


async def test_snapshot_that_is_gone_is_told(mirror, root):
    with pytest.raises(SnapshotError, match="cannot read"):
        await mirror.upload(root / "000000000001", keep=1)


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/", "s3://b/p*", "file:///x", "s3://"])
def test_place_that_cannot_be_meant_is_refused(uri):
    with pytest.raises(ConfigError):
        Mirror.open(uri, SourceConfig())


async def test_the_widest_s3_takes_it_too(moto_endpoint, aws_environ, root, fetched, monkeypatch):  # noqa: F811
    monkeypatch.setattr(mirrors, "PART_BYTES", 5 << 20)
    config = SourceConfig(endpoint_url=moto_endpoint)
    service = AwsService("s3", config)
    service.share()
    await service.call("make", "create_bucket", Bucket="mirrored")
    mirror = Mirror.open("s3://mirrored/some/where", config, service=service)
    for sequence, rows in ((1, 10), (2, 6 << 17)):
        await mirror.upload(write(root, sequence, rows=rows), keep=1)
    assert await mirror.snapshots() == [2]
    assert await mirror.fetch_newest(fetched, check=verify) == Path(fetched / "000000000002")
    await mirror.aclose()
    await service.aclose()
