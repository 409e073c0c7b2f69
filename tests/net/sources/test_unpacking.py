"""Records of what is no line as it is stored: files, members of archives, docword."""

from __future__ import annotations

import gzip
import io
import itertools
import logging
import tarfile

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.config import SourceConfig
from streamlearn.errors import DataError
from streamlearn.messages import RECORD_BYTES_MAX, Position
from streamlearn.net.sources.unpacking import Splits, open_decoder, unpacking_of
from streamlearn.net.sources.uri import open_source
from tests.net.sources.s3_servers import BUCKET
from tests.net.sources.test_objects import MemoryStore, contents, source_of

TEXTS = {
    "a/1": b"From: me\r\nSubject: x\n\nHello\n",
    "a/2": b"",
    "a/3": b"no newline at the end",
    "b/4": b"\n\n",
    "b/5": "größe\n".encode() * 300,
}
RECORDS = [
    b"From: me  Subject: x  Hello ",
    b" ",
    b"no newline at the end",
    b"  ",
    "größe ".encode() * 300,
]


def tar_of(texts) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, text in texts.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
    return out.getvalue()


def unpacked(data: bytes, wanted: str, *, step: int = 1 << 30, room: int = 1 << 20, **options):
    """Return what is made of an object that comes in pieces, and what is wrong with it."""
    splits = options.get("splits") or Splits()
    decoder = open_decoder(options.get("compression", "none"), wanted, "x", splits)
    out, into = b"", memoryview(bytearray(room))

    def fill() -> bytes:
        made = b""
        while True:
            count = decoder.fill(into)
            made += bytes(into[:count])
            if count < room:
                return made

    for at in range(0, len(data), step):
        decoder.give(memoryview(data)[at : at + step])
        out += fill()
    decoder.finish()
    return out + fill(), decoder.damage


@pytest.mark.parametrize("step", [1, 100, 512, 1 << 20])
@pytest.mark.parametrize("room", [1, 64, 1 << 20])
@pytest.mark.parametrize("wanted", ["auto", "files"])
def test_members_of_an_archive_are_records(step, room, wanted):
    made, damage = unpacked(tar_of(TEXTS), wanted, step=step, room=room)
    assert damage is None
    assert made == b"".join(record + b"\n" for record in RECORDS)


def test_members_of_an_archive_may_have_a_record_a_line():
    made, damage = unpacked(tar_of(TEXTS), "lines", step=100)
    assert damage is None
    expected = [text + b"\n" * (not text.endswith(b"\n")) for text in TEXTS.values() if text]
    assert made == b"".join(expected)


def test_hidden_members_are_passed_over():
    texts = {"a": b"1", "._a": b"\0\1", "_x/b": b"2", "c": b"3"}
    assert unpacked(tar_of(texts), "auto")[0] == b"1\n3\n"


@pytest.mark.parametrize("size", [0, 1, 511, 512, 70_000])
def test_a_file_is_a_record(size):
    text = (b"some words\n" * (size // 11 + 1))[:size]
    made, damage = unpacked(text, "files", step=300)
    assert (made, damage) == ((text.replace(b"\n", b" ") or b" ") + b"\n", None)


@pytest.mark.parametrize("wanted", ["auto", "lines"])
@pytest.mark.parametrize("size", [0, 1, 511, 512, 70_000])
def test_lines_of_a_file_stay_as_they_are(wanted, size):
    text = (b"some words\n" * (size // 11 + 1))[:size]
    for data, compression in ((text, "none"), (gzip.compress(text), "gzip")):
        assert unpacked(data, wanted, step=300, compression=compression) == (text, None)


def test_a_long_file_is_split_at_blanks(caplog):
    splits = Splits()
    text = b"word " * (RECORD_BYTES_MAX // 2)
    made, _ = unpacked(text, "files", step=1 << 16, splits=splits)
    records = made.split(b"\n")[:-1]
    assert b"".join(records) == text
    assert len(records) == 3
    assert all(len(one) <= RECORD_BYTES_MAX and one.endswith(b"word ") for one in records)
    unpacked(text, "files", splits=splits)
    assert splits.count == 1, "it is counted once, however often it is read"
    assert [record.message for record in caplog.records] == [
        "x is longer than the 1,048,576 bytes of a record: it is several documents"
    ]


def test_a_long_file_without_blanks_is_split_between_characters():
    text = "größe".encode() * (RECORD_BYTES_MAX // 6)
    made, _ = unpacked(text, "files")
    records = made.split(b"\n")[:-1]
    assert b"".join(records) == text
    assert [one.decode() for one in records]
    assert len(records) == 2


def test_a_long_member_is_split_and_named(caplog):
    splits = Splits()
    long = b"x " * RECORD_BYTES_MAX
    made, _ = unpacked(tar_of({"a": b"1", "long": long, "b": b"2"}), "auto", splits=splits)
    records = made.split(b"\n")[:-1]
    assert (records[0], records[-1]) == (b"1", b"2")
    assert b"".join(records[1:-1]) == long
    assert splits.count == 1
    assert caplog.records[0].message.startswith("x: long is longer than")


def test_of_many_long_files_few_are_told(caplog):
    caplog.set_level(logging.WARNING)
    splits = Splits()
    for number in range(25):
        splits.note(str(number))
    assert splits.count == 25
    assert len(caplog.records) == 20
    assert caplog.records[-1].message.endswith("; further ones are counted only")


def test_what_precedes_damage_is_made():
    data = tar_of(TEXTS)
    made, damage = unpacked(data[: 5 * 512 - 500], "auto", step=100)
    assert made == b"".join(record + b"\n" for record in RECORDS[:2])
    assert isinstance(damage, DataError)
    packed = gzip.compress(data)
    made, damage = unpacked(packed[:-9], "auto", compression="gzip")
    assert isinstance(damage, DataError)
    made, damage = unpacked(gzip.compress(b"ab\ncd\n" * 9)[:-9], "auto", compression="gzip")
    assert made == b"ab\ncd\n" * 9
    assert "ends too early" in damage.message


def test_what_is_unpacked_shows_the_beginning():
    head = tar_of(TEXTS)[:512]
    kinds = {"auto": "tar files", "files": "tar files", "lines": "tar lines", "none": "none"}
    assert {one: unpacking_of(one, head) for one in kinds} == kinds
    kinds = {"auto": "none", "files": "file", "lines": "none", "docword": "docword"}
    assert {one: unpacking_of(one, b"text") for one in kinds} == kinds


# ---------------------------------------------------------------- docword


def docword(documents: dict[int, dict[int, int]], total: int | None = None) -> bytes:
    lines = [f"{d} {w} {n}" for d, words in documents.items() for w, n in words.items()]
    total = max(documents, default=0) if total is None else total
    return "\n".join([str(total), "100", str(len(lines)), *lines, ""]).encode()


def test_lines_of_a_document_are_one_record():
    made, damage = unpacked(docword({1: {3: 2, 5: 1}, 4: {1: 7}}, 6), "docword")
    assert damage is None
    assert made == b"6 100 3\n1 3:2 5:1\n2\n3\n4 1:7\n5\n6\n"


_WORDS = st.dictionaries(st.integers(1, 100), st.integers(1, 12), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.integers(1, 30), _WORDS, max_size=12),
    st.integers(1, 40),
    st.integers(0, 9),
)
def test_any_docword_in_any_pieces(documents, step, more):
    documents = dict(sorted(documents.items()))
    total = max(documents, default=0) + more
    made, damage = unpacked(docword(documents, total), "docword", step=step, room=step)
    assert damage is None
    expected = [f"{total} 100 {sum(map(len, documents.values()))}"]
    expected += [
        " ".join([str(d), *(f"{w}:{n}" for w, n in documents.get(d, {}).items())])
        for d in range(1, total + 1)
    ]
    assert made.decode().split("\n") == [*expected, ""]


def test_a_document_that_comes_again_is_a_bad_record_in_its_place():
    data = b"3\n9\n7\r\n1 1 1\n\n  2 2 2\r\n1 5 1\n2 3 3\nx\n4 1 1\n3 1 1\n"
    made, damage = unpacked(data, "docword")
    assert made == b"3 9 7\n1 1:1\n2 2:2\n!2 1 5 1\n2 3:3\n!2 x\n!2 4 1 1\n3 1:1\n"
    assert damage is None


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "x ends after 0 lines, expected the numbers of documents, words and entries"),
        (b"3\n4\n", "x ends after 2 lines"),
        (b"3\nfour\n", "x: line 2 is b'four', expected the number of words"),
        (b"1 2 3\n", "x: line 1 is b'1 2 3', expected the number of documents"),
        (b"1\n9\n3\n1 1 1\n", "x has 1 entries, but its third line says 3"),
        (b"1\n9\n3\n" + b"1" * 5000, "x: the line at plain byte 6 is longer than 4096 bytes"),
    ],
)
@pytest.mark.parametrize("step", [3, 1 << 20])
def test_a_docword_that_is_none(data, problem, step):
    _, damage = unpacked(data, "docword", step=step)
    assert damage is not None
    assert damage.message.startswith(problem)


def test_a_document_of_many_words_is_several_records(caplog):
    splits = Splits()
    half = RECORD_BYTES_MAX // 4
    made, damage = unpacked(
        docword({1: {1: half, 2: half, 3: 1}, 2: {1: 1}}), "docword", splits=splits
    )
    assert damage is None
    assert made == b"2 100 4\n1 1:%d 2:%d\n1 3:1\n2 1:1\n" % (half, half)
    assert splits.count == 1
    assert caplog.records[0].message.startswith("x: document 1 is longer than")


def test_empty_documents_take_no_memory():
    decoder = open_decoder("none", "docword", "x", Splits())
    decoder.give(memoryview(b"100000000\n9\n1\n100000000 1 1\n"))
    decoder.finish()
    into = memoryview(bytearray(1 << 16))
    assert all(decoder.fill(into) == len(into) for _ in range(20))


# ---------------------------------------------------------------- from sources


async def read_all(source, step=None):
    """Return the records of all partitions, each read whole, then resumed at each record."""
    found = []
    for partition in await source.partitions():
        whole = await contents(source, partition)
        ends = itertools.accumulate(len(one) + 1 for one in whole.split(b"\n")[:-1])
        for at in list(ends)[:: step or 1]:
            assert await contents(source, partition, Position(offset=at)) == whole[at:]
        found += whole.split(b"\n")[:-1]
        assert await source.header(partition) == whole.split(b"\n")[0]
    return found


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstandard.compress])
@pytest.mark.parametrize("ranged", [True, False])
@pytest.mark.parametrize("block", [512, 4096])
async def test_archives_come_from_any_store(compress, ranged, block):
    # a block holds what tells an archive
    store = MemoryStore({"x": compress(tar_of(TEXTS))}, ranged=ranged)
    source = source_of(store, block=block, ranges=600, unpacking="auto")
    assert await read_all(source) == RECORDS
    await source.aclose()


async def test_files_come_from_any_store():
    store = MemoryStore(TEXTS)
    source = source_of(store, block=512, ranges=600, unpacking="files")
    assert await read_all(source) == RECORDS
    await source.aclose()


async def test_an_archive_is_not_split_into_ranges_but_lines_are():
    data = {"t.tar": tar_of(TEXTS), "x.txt": b"some line\n" * 400}
    source = source_of(MemoryStore(data), block=512, ranges=1024, unpacking="auto")
    names = [partition.name for partition in await source.partitions()]
    assert names[:3] == ["t.tar", "x.txt#0-1024", "x.txt#1024-2048"]
    found = [
        line
        for partition in await source.partitions()
        for line in (await contents(source, partition)).split(b"\n")[:-1]
    ]
    assert found == RECORDS + [b"some line"] * 400
    await source.aclose()


async def test_damage_ends_a_partition_behind_what_is_whole():
    data = tar_of(TEXTS)[: 5 * 512 - 500]
    source = source_of(MemoryStore({"x": data, "y": tar_of(TEXTS)}), block=512, unpacking="auto")
    plain, errors = {"x": b"", "y": b""}, []
    todo = [(partition, Position()) for partition in await source.partitions()]
    async for partition, item in source.read_many(todo):
        if isinstance(item, Exception):
            errors.append((partition.uri, item.message))
            continue
        plain[partition.uri] += item.buffer[item.start : item.end].tobytes()
        item.release()
    assert plain["x"].split(b"\n")[:-1] == RECORDS[:2]
    assert plain["y"].split(b"\n")[:-1] == RECORDS
    assert errors == [
        ("x", "x: the tar archive ends too early at plain byte 2060, within 'a/3', 9 bytes before "
         "its end")
    ]  # fmt: skip
    await source.aclose()


async def test_files_of_a_directory_and_its_archive_are_the_same(tmp_path):
    for name, text in TEXTS.items():
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    packed = tmp_path / "all.tar.gz"
    packed.write_bytes(gzip.compress(tar_of(TEXTS)))
    for uri, documents in ((tmp_path / "files", "files"), (packed, "auto"), (packed, "files")):
        source = open_source(SourceConfig(uri=(str(uri),), documents=documents))
        assert await read_all(source) == RECORDS
        await source.aclose()


async def test_archives_are_unpacked_for_documents_alone(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(tar_of(TEXTS))
    source = open_source(SourceConfig(uri=(str(path),), format="svmlight"))
    (partition,) = await source.partitions()
    assert (await contents(source, partition)).rstrip(b"\n") == path.read_bytes()
    await source.aclose()


async def test_docword_comes_from_a_file(tmp_path):
    path = tmp_path / "docword.txt.gz"
    path.write_bytes(gzip.compress(docword({n: {n: 1, n + 1: 2} for n in range(1, 50)})))
    source = open_source(SourceConfig(uri=(str(path),), format="bow"))
    assert await read_all(source, 7) == [
        b"49 100 98",
        *(b"%d %d:1 %d:2" % (n, n, n + 1) for n in range(1, 50)),
    ]
    await source.aclose()


@pytest.mark.usefixtures("aws_environ")
async def test_archives_and_files_come_from_s3(localbucket):
    localbucket.put("docs/all.tar", tar_of(TEXTS))
    for name, text in TEXTS.items():
        if text:
            localbucket.put(f"files/{name}", text)
    for pattern, documents, expected in (
        ("docs/", "auto", RECORDS),
        ("files/", "files", [one for one in RECORDS if one != b" "]),
    ):
        uri = (f"s3://{BUCKET}/{pattern}",)
        source = open_source(
            SourceConfig(uri=uri, documents=documents, endpoint_url=localbucket.endpoint)
        )
        assert await read_all(source) == expected
        await source.aclose()
