"""Columns of topic models: there and back, and nothing but ColumnError for what is none."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.errors import ColumnError
from streamlearn.topic_columns import (
    NO_TOPIC,
    WordRows,
    decode_topics,
    decode_totals,
    encode_rows,
    encode_topics,
    encode_totals,
)


def rows_of(counts: np.ndarray) -> bytes:
    """Return rows (int32[n, topics]) as bytes."""
    places = np.arange(len(counts)) * counts.shape[1]
    return encode_rows(np.ascontiguousarray(counts).reshape(-1), places, counts.shape[1]).tobytes()


def read(data: bytes, size: int, topics: int) -> np.ndarray:
    """Return the rows that bytes are."""
    out = np.full(max(1, size * topics), -1, np.int32)
    WordRows([data], [size], topics).fill(np.arange(size), topics, out)
    return out[: size * topics].reshape(size, topics)


@pytest.mark.parametrize("topics", [1, 2, 3, 8, 100, 1000])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_rows_there_and_back(topics, share):
    rng = np.random.default_rng(topics)
    counts = np.where(rng.random((20, topics)) < share, rng.geometric(0.02, (20, topics)), 0)
    counts = counts.astype(np.int32)
    counts[3, 0] = 2**31 - 1
    data = rows_of(counts)
    assert np.array_equal(read(data, 20, topics), counts)
    plain = [number for row in counts.tolist() for number in _numbers(row)]
    assert data == b"".join(map(_seven, plain))


def _numbers(row: list[int]) -> list[int]:
    """Return the numbers of a row, as the page of columns says."""
    there = [(k, count) for k, count in enumerate(row) if count]
    if 2 * len(there) >= len(row):
        return [len(there), *row]
    out, last = [len(there)], -1
    for k, count in there:
        out += [k - last - 1, count]
        last = k
    return out


def _seven(number: int) -> bytes:
    out = []
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def test_rows_of_several_shards_are_read_in_any_pieces():
    rng = np.random.default_rng(2)
    counts = (rng.random((30, 7)) < 0.3) * rng.integers(1, 300, (30, 7))
    counts = counts.astype(np.int32)
    cuts = [0, 4, 4, 19, 30]
    parts = [counts[a:b] for a, b in pairwise(cuts)]
    rows = WordRows([rows_of(one) for one in parts], [len(one) for one in parts], 7)
    assert len(rows) == 30
    for words in (np.arange(30), np.arange(3, 25), np.array([0, 4, 18, 19, 29]), np.zeros(0, int)):
        out = np.zeros(len(words) * 16 + 1, np.int32)
        rows.fill(words, 16, out)
        assert np.array_equal(out[:-1].reshape(-1, 16)[:, :7], counts[words])


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (b"", 1),
        (b"\0", 2),
        (b"\0\0", 1),
        (b"\6", 1),
        (bytes([1, 5, 1]), 1),
        (bytes([1, 4, 0]), 1),
        (bytes([1, 4]), 1),
        (bytes([1, 4, 0x80]), 1),
        (bytes([1, 4, 0x81, 0]), 1),
        (bytes([1, 4, 255, 255, 255, 255, 8]), 1),
        (bytes([1, 4, 255, 255, 255, 255, 255, 1]), 1),
        (bytes([2, 3, 1, 1, 1]), 1),
        (bytes([3, 1, 1, 1, 1, 0]), 1),
        (bytes([3, 1, 1, 1, 0]), 1),
    ],
    ids=[
        "nothing", "too few", "too many", "more than topics", "behind the last", "zero", "no count",
        "cut", "longer than needed", "beyond 31 bits", "six bytes", "two in one", "another sum",
        "too short",
    ],
)  # fmt: skip
def test_what_are_no_rows_is_refused(data, size):
    with pytest.raises(ColumnError):
        WordRows([data], [size], 5)


@given(st.binary(max_size=60), st.integers(0, 20), st.integers(1, 200))
@settings(max_examples=400, deadline=None)
def test_whatever_bytes_come_rows_are_read_or_refused(data, size, topics):
    try:
        counts = read(data, size, topics)
    except ColumnError:
        return
    assert (counts >= 0).all()
    assert rows_of(counts) == data


@pytest.mark.parametrize("topics", [1, 2, 3, 4, 255, 256, 1000, 65_535])
def test_topics_there_and_back(topics):
    rng = np.random.default_rng(topics)
    values = rng.integers(0, topics, 77).astype(np.uint16)
    data = encode_topics(values, topics)
    assert len(data) == -(-77 * topics.bit_length() // 8)
    assert np.array_equal(decode_topics(data, 77, topics, whole=True), values)
    some = values.copy()
    some[::5] = NO_TOPIC
    data = encode_topics(some, topics)
    assert np.array_equal(decode_topics(data, 77, topics, whole=False), some)
    with pytest.raises(ColumnError):
        decode_topics(data, 77, topics, whole=True)
    assert decode_topics(encode_topics(values[:0], topics), 0, topics, whole=True).size == 0


@given(st.binary(max_size=40), st.integers(-5, 1 << 70), st.integers(1, 65_535), st.booleans())
@settings(max_examples=400, deadline=None)
def test_whatever_bytes_come_topics_are_read_or_refused(data, count, topics, whole):
    try:
        values = decode_topics(data, count, topics, whole=whole)
    except ColumnError:
        return
    assert encode_topics(values, topics).tobytes() == data
    assert ((values < topics) | (values == NO_TOPIC)).all()


def test_totals_there_and_back():
    totals = np.array([0, 5, (1 << 53) - 1])
    assert decode_totals(encode_totals(totals), 3).tolist() == totals.tolist()
    for wrong, topics in ((totals, 2), (-totals, 3), (totals + 1, 3)):
        with pytest.raises(ColumnError):
            decode_totals(encode_totals(wrong), topics)
