"""Minibatches end where a partition's records say, whatever blocks and resumes it comes in."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.cluster.batcher import Batcher, Cut
from streamlearn.config import SourceConfig
from streamlearn.messages import (
    BLOCK_HEADROOM_BYTES,
    BLOCK_TAILROOM_BYTES,
    RECORD_BYTES_MAX,
    BadRecord,
    Block,
    Partition,
)
from streamlearn.online.formats import open_format
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch, room_of
from streamlearn.online.names import Names, Sampler
from streamlearn.stream import Stream

PARTITION = Partition("/log", version="v")
ROWS = 5

SVMLIGHT = SourceConfig(format="svmlight")
DELIMITED = SourceConfig(format="delimited", header=True, columns={"y": "label"})
RATINGS = SourceConfig(format="ratings")
DOCUMENTS = SourceConfig(format="documents")
COLUMNS = SourceConfig(format="documents", header=True, columns={"text": "text"})
COUNTS = SourceConfig(format="ldac")


def blocks(data: bytes, offset: int, cuts: Sequence[int], start: int = 0) -> Iterable[Block]:
    """Yield a partition's bytes from ``offset`` on, cut anywhere; a newline ends the last."""
    if data and not data.endswith(b"\n"):
        data += b"\n"
    edges = [offset, *sorted({c for c in cuts if offset < c < len(data)}), len(data)]
    for at, (first, end) in enumerate(itertools.pairwise(edges)):
        size = end - first
        buffer = np.empty(BLOCK_HEADROOM_BYTES + size + BLOCK_TAILROOM_BYTES, np.uint8)
        buffer[BLOCK_HEADROOM_BYTES + size :] = ord("7")
        buffer[BLOCK_HEADROOM_BYTES : BLOCK_HEADROOM_BYTES + size] = np.frombuffer(
            data[first:end], np.uint8
        )
        last = at == len(edges) - 2
        yield Block(
            buffer, BLOCK_HEADROOM_BYTES, BLOCK_HEADROOM_BYTES + size, first, last, size,
            lambda: None,
        )  # fmt: skip


def seen(cut: Cut) -> dict[str, Any]:
    """Return all that a minibatch is."""
    batch, rows = cut.batch, cut.batch.rows
    nnz = int(batch.indptr[rows])
    return {
        "end": (cut.offset, cut.records, cut.done),
        "rows": rows,
        "records": batch.records,
        "subsampled": int(batch.state[4]),
        "keys": batch.keys[:nnz].tolist(),
        "values": batch.values[:nnz].tolist() if batch.has_values else None,
        "indptr": batch.indptr[: rows + 1].tolist(),
        "labels": batch.labels[:rows].tolist(),
        "weights": batch.weights[:rows].tolist(),
        "lines": batch.lines[:rows].tolist(),
        "bad": list(cut.bad),
    }


def batched(
    data: bytes,
    source: SourceConfig = SVMLIGHT,
    cuts: Sequence[int] = (),
    *,
    resume: tuple[int, int] = (0, 0),
    nnz_max: int = FEATURES_PER_RECORD_MAX + 40,
    rows: int = ROWS,
) -> list[dict[str, Any]]:
    """Cut a partition into minibatches, from a position on."""
    format = open_format(source)
    header = data.split(b"\n", 1)[0] if format.first_line else None
    offset, records = resume
    stream = Stream(
        PARTITION,
        format.parser(header),
        header_due=format.has_header and offset == 0,
        records=records,
        counted=offset,
    )
    room = room_of(rows, nnz_max - FEATURES_PER_RECORD_MAX, format.record_rows)
    options = {"has_values": format.has_values, "record_rows": format.record_rows}
    stock = [Minibatch(*room, **options) for _ in range(2)]

    def take() -> Minibatch:
        # what another minibatch may have left there
        stock.append(stock.pop(0))
        stock[-1].state[:] = 9
        stock[-1].weights[:] = 7
        return stock[-1]

    batcher = Batcher(stream, format, take, source.negative_rate, offset)
    out = []
    for block in blocks(data, offset, cuts):
        out.extend(seen(cut) for cut in batcher.feed(block))
        block.buffer[block.start :] = ord("9")  # nobody looks at it any more
    assert batcher.drop() is None
    return out


def check(data: bytes, source: SourceConfig, cuts: Sequence[int]) -> list[dict[str, Any]]:
    """Check that minibatches are the same in other blocks and from every position."""
    whole = batched(data, source)
    assert batched(data, source, cuts) == whole
    assert [one["end"][2] for one in whole] == [False] * (len(whole) - 1) + [True]
    for at, one in enumerate(whole[:-1]):
        assert batched(data, source, cuts, resume=one["end"][:2]) == whole[at + 1 :]
    return whole


GOOD = b"1 3:1 5:2"
RECORD = st.sampled_from(
    [
        GOOD,
        b"0 3:1",
        b"0",
        b"1 " + b" ".join(b"%d:1" % i for i in range(30)),
        b"x 1:1",
        b"1 5",
        b"",
        b"# comment",
        b"0 9:1 # why",
        b"\xff\xfe",
    ]
)


@settings(max_examples=60)
@given(
    st.lists(RECORD, max_size=40),
    st.booleans(),
    st.lists(st.integers(1, 4000), max_size=12),
    st.sampled_from([1.0, 0.5]),
)
def test_blocks_and_resumes_make_no_difference(records, ends, cuts, rate):
    data = b"\n".join(records) + (b"\n" if ends and records else b"")
    source = SourceConfig(format="svmlight", negative_rate=rate)
    check(data, source, cuts)


@settings(max_examples=40)
@given(
    st.lists(
        st.sampled_from([b"1,a,b", b"0,c,d", b"2,a,b", b"1,a", b"0,\xff,x"]),
        max_size=30,
    ),
    st.lists(st.integers(1, 600), max_size=10),
)
def test_header_is_passed_over_once(records, cuts):
    data = b"\n".join([b"y,one,two", *records])
    whole = check(data, DELIMITED, cuts)
    assert sum(one["records"] for one in whole) == len(records)


@settings(max_examples=40)
@given(
    st.lists(
        st.sampled_from([b"u::i::4.5::978300760", b"1::2", b"1::2,3,4::x", b"1,2,3", b"::2::3"]),
        max_size=30,
    ),
    st.lists(st.integers(1, 600), max_size=10),
)
def test_layout_is_the_first_lines_wherever_reading_begins(records, cuts):
    data = b"\n".join([b"1::2::3", *records])
    whole = check(data, RATINGS, cuts)
    assert sum(one["records"] for one in whole) == len(records) + 1
    assert sum(one["rows"] for one in whole) == 1 + records.count(b"u::i::4.5::978300760")


@settings(max_examples=60)
@given(
    st.lists(
        st.sampled_from(
            [
                "Ein Text",
                "",
                " ",
                "größe,2",
                'x,"a b"',
                "<br /> &amp; b",
                "2 1:1 7:3",
                "\r",
                "1,2,3",
            ]
        ),
        max_size=30,
    ),
    st.lists(st.integers(1, 600), max_size=10),
    st.sampled_from([DOCUMENTS, COLUMNS, COUNTS]),
)
def test_documents_are_the_same_in_any_blocks(records, cuts, source):
    data = "\n".join(["id,text", *records]).encode()
    check(data, source, cuts)


def test_documents_of_several_rows_are_the_same_in_any_blocks():
    data = b"one\n" + b"ab " * 70_000 + b"\ntwo\n" + b"ab cd " * 40_000 + b"\nthree four"
    whole = check(data, DOCUMENTS, (2, 100, 100_000, 210_003, 210_010, 300_000))
    assert [one["rows"] for one in whole] == [3, 3, 1]
    assert [one["records"] for one in whole] == [2, 2, 1]


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_blocks_of_single_bytes(step):
    data = b"\n".join([GOOD, b"x 1:1", b"0 4:1"] * 4 + [GOOD])
    check(data, SVMLIGHT, range(1, len(data), step))


def test_empty_object_is_one_empty_minibatch():
    assert check(b"", SVMLIGHT, ())[0]["end"] == (0, 0, True)
    assert len(batched(b"", SVMLIGHT)) == 1


def test_object_of_a_header_alone():
    (only,) = check(b"y,one,two\n", DELIMITED, (3,))
    assert only["end"] == (10, 0, True)
    assert only["records"] == 0


def test_partition_that_ends_with_a_full_minibatch_ends_with_an_empty_one():
    whole = check((GOOD + b"\n") * ROWS, SVMLIGHT, ())
    assert [(one["rows"], one["end"][2]) for one in whole] == [(ROWS, False), (0, True)]


def test_minibatch_is_full_of_records_good_or_bad():
    data = b"\n".join([GOOD] * 3 + [b"x 1:1"] * ROWS + [GOOD] * 4)
    whole = check(data, SVMLIGHT, ())
    assert [(one["rows"], len(one["bad"])) for one in whole] == [(3, ROWS), (4, 0)]


def test_minibatch_is_full_of_features():
    data = b"\n".join([b"1 " + b" ".join(b"%d:1" % i for i in range(30))] * 4)
    whole = check(data, SVMLIGHT, ())
    assert [one["rows"] for one in whole] == [2, 2, 0]


def test_bad_records_say_where_they_stand():
    data = b"\n".join([GOOD, b"x 1:1", GOOD, b"1 5:x"])
    for cuts in ((), range(1, len(data), 5)):
        bad: list[BadRecord] = [b for one in batched(data, SVMLIGHT, cuts) for b in one["bad"]]
        assert [one.offset for one in bad] == [data.index(b"x 1:1"), data.index(b"1 5:x")]
        assert [one.reason for one in bad] == ["label", "number"]
        assert bad[0].record == b"x 1:1"
        assert bad[0].uri == "/log"


@pytest.mark.parametrize("more", [-1, 0, 1, 1 << 19, 3 << 19])
def test_records_over_the_limit_are_bad_wherever_blocks_end(more):
    long = b"1 3:1 #"
    long += b"7" * (RECORD_BYTES_MAX + more - len(long))
    data = b"\n".join([GOOD, long, GOOD, long, b"0 4:1"])
    first = len(GOOD) + 1
    whole = batched(data, SVMLIGHT)
    assert sum(len(one["bad"]) for one in whole) == (2 if more > 0 else 0)
    for one in whole[0]["bad"]:
        assert one.reason == "too_long"
        assert len(one.record) <= 4096
    for cuts in (
        (first - 1,),
        (first,),
        (first + 1, first + len(long) - 1),
        (first + len(long), first + len(long) + 1),
        range(1 << 20, len(data), 1 << 20),
        range(700_000, len(data), 700_000),
    ):
        assert batched(data, SVMLIGHT, cuts) == whole
    assert batched(data, SVMLIGHT, (first + 5,), rows=1)[-1]["end"] == whole[-1]["end"]


def test_lines_are_offsets_in_the_object():
    data = b"".join(b"1 %d:1\n" % (10**i) for i in range(8))
    for cuts in ((), (9, 20, 21, 40)):
        lines = [line for one in batched(data, SVMLIGHT, cuts) for line in one["lines"]]
        assert lines == [at for at in range(len(data)) if at == 0 or data[at - 1 : at] == b"\n"]


def test_kept_negatives_weigh_more():
    data = b"0 3:1\n" * 200 + b"1 3:1\n" * 20
    source = SourceConfig(format="svmlight", negative_rate=0.25)
    whole = check(data, source, (100, 700))
    labels = [label for one in whole for label in one["labels"]]
    weights = [weight for one in whole for weight in one["weights"]]
    assert labels.count(1.0) == 20
    assert {w for label, w in zip(labels, weights, strict=True) if label == 0} == {4.0}
    assert sum(one["subsampled"] for one in whole) == 200 - labels.count(0.0)


def test_minibatch_that_is_being_filled_can_be_dropped():
    format = open_format(SVMLIGHT)
    stream = Stream(PARTITION, format.parser(None), header_due=False, records=0, counted=0)
    batch = Minibatch(ROWS, FEATURES_PER_RECORD_MAX + 40, has_values=True)
    batcher = Batcher(stream, format, lambda: batch, 1.0, 0)
    first = next(iter(blocks(GOOD * 2, 0, (len(GOOD),))))
    assert list(batcher.feed(first)) == []
    more = next(iter(blocks(b"\n" + GOOD + b"\n" + GOOD, 0, (12,))))
    more.offset = first.offset + first.end - first.start
    list(batcher.feed(more))
    assert batcher.drop() is batch
    assert batcher.drop() is None


def test_every_user_and_item_is_named_where_names_are_wanted_of_all():
    data = b"".join(b"u%d::i%d::3\n" % (n // 7, n % 11) for n in range(200))
    format = open_format(RATINGS)
    names, sampler = Names(tuple(format.fields), 1000), Sampler(every=True)
    picked = 0

    def counted(fresh, rows):
        nonlocal picked
        rows = Sampler.pick(sampler, fresh, rows)
        picked += rows.size
        return rows

    sampler.pick = counted  # type: ignore[method-assign]
    stream = Stream(PARTITION, format.parser(data[:9]), header_due=False, records=0, counted=0)

    def take() -> Minibatch:
        return Minibatch(ROWS, FEATURES_PER_RECORD_MAX + 40, has_values=False)

    batcher = Batcher(stream, format, take, 1.0, 0, names, sampler)
    for block in blocks(data, 0, (100, 101, 640)):
        for _ in batcher.feed(block):
            names.flush()
    named = names.lookup(names.keys)
    assert sorted(named) == sorted(
        [*(f"user=u{n}" for n in range(29)), *(f"item=i{n}" for n in range(11))]
    )
    assert picked < 60  # not all records
