"""Idx files and their labels, from files, HTTP and S3: one record an item."""

from __future__ import annotations

import gzip
import itertools
import struct

import numpy as np
import pytest
import zstandard
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.binary import IDX_TYPES, IdxHeader, unstuff
from streamlearn.config import SourceConfig
from streamlearn.errors import DataError, SourceMissingError
from streamlearn.messages import RECORD_BYTES_MAX, Position
from streamlearn.net.sources import idx
from streamlearn.net.sources.idx import Labels, is_labels, labels_uri
from streamlearn.net.sources.source import StoredObject
from streamlearn.net.sources.unpacking import Splits, open_decoder
from streamlearn.net.sources.uri import open_source
from tests.net.sources.s3_servers import BUCKET
from tests.net.sources.test_objects import MemoryStore, contents, source_of

_CODES = {"ubyte": 8, "byte": 9, "short": 11, "int": 12, "float": 13, "double": 14}


def idx_of(array, type_="ubyte") -> bytes:
    """Return an idx file of an array."""
    array = np.asarray(array)
    head = bytes([0, 0, _CODES[type_], array.ndim])
    return head + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(
        IDX_TYPES[type_]
    ).tobytes()  # fmt: skip


PIXELS = np.random.default_rng(3).integers(0, 14, (40, 5, 6), np.uint8)  # many newlines
NUMBERS = np.arange(40, dtype=np.uint8) % 12
IMAGES, LABELS = idx_of(PIXELS), idx_of(NUMBERS)


def unpacked(data: bytes, labels: Labels, step: int = 1 << 20):
    """Return the records of an object that comes in pieces, and what is wrong with it."""
    decoder = open_decoder("none", "idx", "x", Splits(), labels)
    out, into = b"", memoryview(bytearray(100))
    for at in range(0, max(len(data), 1), step):
        decoder.give(memoryview(data)[at : at + step])
        while count := decoder.fill(into):
            out += bytes(into[:count])
    decoder.finish()
    while count := decoder.fill(into):
        out += bytes(into[:count])
    return out.split(b"\n")[:-1], decoder.damage


def items(records, type_="ubyte"):
    """Return labels and items of records without their header."""
    plain = [unstuff(record) for record in records]
    return (
        [struct.unpack("<d", one[:8])[0] for one in plain],
        [np.frombuffer(one[8:], IDX_TYPES[type_]).tolist() for one in plain],
    )


@pytest.mark.parametrize("step", [1, 7, 16, 1000, 1 << 20])
def test_items_are_records_with_their_labels(step):
    (head, *records), damage = unpacked(IMAGES, Labels("y", LABELS), step)
    assert damage is None
    assert IdxHeader.decode(head) == IdxHeader("ubyte", (5, 6), True, "y")
    assert items(records) == (NUMBERS.tolist(), PIXELS.reshape(40, 30).tolist())


@pytest.mark.parametrize("type_", list(IDX_TYPES))
@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 2), (3, 1, 2, 2)])
def test_numbers_of_every_type_and_shape(type_, shape):
    values = np.arange(12).reshape(shape)
    labels = np.array([1, 2, 3]) / (2 if type_ in {"float", "double"} else 1)
    (head, *records), damage = unpacked(idx_of(values, type_), Labels("y", idx_of(labels, type_)))
    assert damage is None
    assert IdxHeader.decode(head).shape == shape[1:]
    assert items(records, type_) == (labels.tolist(), values.reshape(3, 4).tolist())


def test_without_labels_there_are_items_all_the_same():
    (head, *records), damage = unpacked(IMAGES, Labels("where/y"))
    assert damage is None
    assert IdxHeader.decode(head) == IdxHeader("ubyte", (5, 6), False, "where/y")
    labels, found = items(records)
    assert np.isnan(labels).all()
    assert found == PIXELS.reshape(40, 30).tolist()


@pytest.mark.parametrize(
    ("data", "labels", "said"),
    [
        (b"", LABELS, "x ends after 0 bytes, within its header"),
        (IMAGES[:9], LABELS, "x ends after 9 bytes, within its header"),
        (b"\x1f\x8b\x08\x00" * 9, LABELS, "x is no idx file: it begins with 1f 8b 08 00"),
        (b"\0\0\x0a\3" + IMAGES[4:], LABELS, "x is no idx file: it begins with 00 00 0a 03"),
        (b"\0\0\x08\5" + IMAGES[4:], LABELS, "expected 00 00, a type .* and 01 to 04 dimensions"),
        (LABELS, LABELS, "x has numbers without a shape .*as labels are"),
        (idx_of(PIXELS[:39]), LABELS, "x has 39 items, but y has 40 labels"),
        (IMAGES, idx_of(NUMBERS[:39]), "x has 40 items, but y has 39 labels"),
        (IMAGES, LABELS[:-1], "y has 39 labels, but says that it has 40"),
        (IMAGES, LABELS[:5], "y ends after 5 bytes, within its header"),
        (IMAGES, IMAGES, "y has items of 2 dimensions, expected labels"),
        (IMAGES, b"some text", "y is no idx file: it begins with 73 6f 6d 65"),
        (idx_of(np.zeros((2, 0, 3))), None, "x has items of 0 x 3 ubyte, which are 0 bytes"),
        (
            b"\0\0\x08\3" + struct.pack(">3I", 1, 1 << 20, 2),
            None,
            "x has items of 1048576 x 2 ubyte, which are 2,097,152 bytes, expected 1 to about "
            f"{RECORD_BYTES_MAX:,}",
        ),
    ],
)
@pytest.mark.parametrize("step", [3, 1 << 20])
def test_what_cannot_be_read_is_said(data, labels, said, step):
    records, damage = unpacked(data, Labels("y", labels), step)
    assert isinstance(damage, DataError)
    with pytest.raises(DataError, match=said):
        raise damage
    assert not records, "nothing comes before such an error"


@pytest.mark.parametrize(
    ("data", "whole", "said"),
    [
        (IMAGES[:-31], 38, "x ends after 38 items, but says that it has 40"),
        (IMAGES + b"\0", 40, "x has bytes behind the 40 items that it says it has"),
    ],
)
@pytest.mark.parametrize("step", [3, 1 << 20])
def test_what_precedes_a_wrong_end_is_read(data, whole, said, step):
    records, damage = unpacked(data, Labels("y", LABELS), step)
    assert len(records) == 1 + whole
    assert damage.message == said


def test_a_header_that_promises_much_takes_no_memory():
    data = b"\0\0\x08\2" + struct.pack(">2I", (1 << 32) - 1, 4) + b"abcd"
    records, damage = unpacked(data, Labels())
    assert len(records) == 2
    assert damage.message == "x ends after 1 items, but says that it has 4,294,967,295"


@settings(max_examples=50)
@given(st.binary(max_size=40), st.integers(1, 50))
def test_any_bytes_are_read_or_refused(tail, step):
    records, damage = unpacked(b"\0\0\x08\2\0\0\0\3\0\0\0\2" + tail, Labels(), step)
    assert len(records) == 1 + min(len(tail) // 2, 3)
    assert (damage is None) == (len(tail) == 6)


@pytest.mark.parametrize(
    ("uri", "labels"),
    [
        ("s3://b/mnist/train-images-idx3-ubyte.gz", "s3://b/mnist/train-labels-idx1-ubyte.gz"),
        ("/d/t10k-images.idx3-ubyte", "/d/t10k-labels.idx1-ubyte"),
        ("/images-idx3/images_idx2-double.zst", "/images-idx3/labels_idx1-double.zst"),
        ("https://h/a/images-idx3-ubyte?x=1", "https://h/a/labels-idx1-ubyte?x=1"),
        ("/d/train-images-idx3/data", ""),
        ("/d/pixels", ""),
    ],
)
def test_where_labels_are_says_the_name(uri, labels):
    assert labels_uri(uri) == labels
    assert is_labels(labels) == bool(labels)
    assert not is_labels(uri)


# ---------------------------------------------------------------- from sources


class NeighbourStore(MemoryStore):
    """Objects in memory that can be asked for by their URIs."""

    async def beside(self, uri):
        data = self.objects.get(uri)
        return data and StoredObject(uri, len(data) if self.sized else -1, "", 0.0)


async def read_all(source, step=1):
    """Return the items of all partitions, each read whole, then resumed at every so many."""
    found = []
    for partition in await source.partitions():
        whole = await contents(source, partition)
        ends = itertools.accumulate(len(one) + 1 for one in whole.split(b"\n")[:-1])
        for at in list(ends)[::step]:
            assert await contents(source, partition, Position(offset=at)) == whole[at:]
        head, *records = whole.split(b"\n")[:-1]
        assert await source.header(partition) == head
        found.append((partition.uri, items(records)))
    return found


EXPECTED = (NUMBERS.tolist(), PIXELS.reshape(40, 30).tolist())


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstandard.compress])
@pytest.mark.parametrize("ranged", [True, False])
async def test_items_come_from_any_store(compress, ranged):
    objects = {"images-idx3": compress(IMAGES), "labels-idx1": compress(LABELS)}
    store = NeighbourStore(objects, ranged=ranged)
    source = source_of(store, block=512, ranges=600, unpacking="idx")
    assert await read_all(source) == [("images-idx3", EXPECTED)]
    await source.aclose()


async def test_a_store_that_cannot_look_beside_has_items_without_labels():
    source = source_of(MemoryStore({"images-idx3": IMAGES}), block=512, unpacking="idx")
    (partition,) = await source.partitions()
    assert not IdxHeader.decode(await source.header(partition)).labelled
    await source.aclose()


async def test_labels_are_no_partitions_also_where_objects_appear():
    store = NeighbourStore({"labels-idx1": LABELS})
    source = source_of(store, unpacking="idx", follow=True, follow_seconds=0.0)
    assert await source.partitions() == []
    store.objects |= {"a/labels-idx1": LABELS, "a/images-idx3": IMAGES}
    followed = source.follow()
    assert (await anext(followed)).uri == "a/images-idx3"
    await followed.aclose()
    await source.aclose()


async def test_more_labels_than_are_held_are_refused(monkeypatch):
    monkeypatch.setattr(idx, "LABELS_BYTES_MAX", 40)
    for compress in (bytes, gzip.compress):
        objects = {"images-idx3": IMAGES, "labels-idx1": compress(LABELS)}
        source = source_of(NeighbourStore(objects), block=512, unpacking="idx")
        (partition,) = await source.partitions()
        with pytest.raises(DataError, match="labels-idx1 has more than the 40 plain bytes"):
            await contents(source, partition)
        await source.aclose()


def write(folder, compress=bytes, suffix=""):
    for name, data in (("images-idx3", IMAGES), ("labels-idx1", LABELS)):
        for part in ("train", "t10k"):
            (folder / f"{part}-{name}-ubyte{suffix}").write_bytes(compress(data))


@pytest.mark.parametrize(("compress", "suffix"), [(bytes, ""), (gzip.compress, ".gz")])
async def test_files_of_a_directory_are_paired_by_name(tmp_path, compress, suffix):
    write(tmp_path, compress, suffix)
    train = str(tmp_path / f"train-images-idx3-ubyte{suffix}")
    for uri, count in ((str(tmp_path), 2), (train, 1), (f"{tmp_path}/train*", 1)):
        source = open_source(SourceConfig(uri=(uri,), format="idx"))
        found = await read_all(source, 7)
        assert [one for _, one in found] == [EXPECTED] * count
        assert found[-1][0] == train
        await source.aclose()


async def test_a_file_of_labels_alone_is_refused(tmp_path):
    write(tmp_path)
    uri = (f"{tmp_path}/train-labels-idx1-ubyte", f"{tmp_path}/t10k-labels*")
    source = open_source(SourceConfig(uri=uri, format="idx"))
    with pytest.raises(SourceMissingError, match="has labels of an idx file, and nothing else"):
        await source.partitions()
    await source.aclose()


async def test_damaged_labels_are_an_error_of_their_items(tmp_path):
    write(tmp_path, gzip.compress, ".gz")
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(labels.read_bytes()[:-9])
    source = open_source(SourceConfig(uri=(str(tmp_path),), format="idx"))
    errors = {}
    todo = [(partition, Position()) for partition in await source.partitions()]
    async for partition, item in source.read_many(todo):
        if isinstance(item, DataError):
            errors[partition.uri.rpartition("/")[2]] = item.message
        else:
            item.release()
    assert list(errors) == ["train-images-idx3-ubyte.gz"]
    assert str(labels) in errors["train-images-idx3-ubyte.gz"]
    await source.aclose()


@pytest.mark.usefixtures("aws_environ")
async def test_items_come_from_s3(localbucket):
    for name, data in (("images-idx3", IMAGES), ("labels-idx1", LABELS)):
        localbucket.put(f"mnist/train-{name}-ubyte.gz", gzip.compress(data))
        localbucket.put(f"plain/{name}", data)
    localbucket.put("alone/images-idx3", IMAGES)
    for pattern in ("mnist/", "mnist/train-images-idx3-ubyte.gz", "plain/*"):
        uri = (f"s3://{BUCKET}/{pattern}",)
        source = open_source(SourceConfig(uri=uri, format="idx", endpoint_url=localbucket.endpoint))
        assert [one for _, one in await read_all(source, 9)] == [EXPECTED]
        await source.aclose()
    uri = (f"s3://{BUCKET}/alone/",)
    source = open_source(SourceConfig(uri=uri, format="idx", endpoint_url=localbucket.endpoint))
    (partition,) = await source.partitions()
    header = IdxHeader.decode(await source.header(partition))
    assert header == IdxHeader("ubyte", (5, 6), False, f"s3://{BUCKET}/alone/labels-idx1")
    await source.aclose()


async def test_items_come_from_http():
    objects = {"/a/images-idx3": IMAGES, "/a/labels-idx1": LABELS, "/b/images-idx3": IMAGES}

    async def handle(request):
        if request.path not in objects:
            return web.Response(status=404)
        return web.Response(body=objects[request.path], headers={"ETag": '"1"'})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    root = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        source = open_source(SourceConfig(uri=(f"{root}/a/images-idx3",), format="idx"))
        assert [one for _, one in await read_all(source, 9)] == [EXPECTED]
        await source.aclose()
        source = open_source(SourceConfig(uri=(f"{root}/b/images-idx3",), format="idx"))
        (partition,) = await source.partitions()
        header = IdxHeader.decode(await source.header(partition))
        assert header == IdxHeader("ubyte", (5, 6), False, f"{root}/b/labels-idx1")
        await source.aclose()
    finally:
        await runner.cleanup()
