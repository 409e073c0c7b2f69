"""Byte stuffing: what goes in comes out, without newlines, and nothing damaged is believed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlearn.compute.kernels.stuffing import (
    stuff,
    stuff_items,
    stuffed_bytes_max,
    unstuff,
    unstuff_records,
)

# Bytes that are often newlines, and runs about as long as a group.
PIECES = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([b"\n", b"\n\n", b"\0", b"\r", b"\xf5"]),
    st.integers(250, 260).map(lambda size: b"x" * size),
    st.integers(505, 512).map(lambda size: b"y" * size),
)
BYTES = st.lists(PIECES, max_size=12).map(b"".join)


def stuffed(data: bytes) -> bytes:
    out = np.full(stuffed_bytes_max(len(data)), 10, np.uint8)
    return out[: stuff(np.frombuffer(data, np.uint8), 0, len(data), out, 0)].tobytes()


def unstuffed(record: bytes, room: int | None = None) -> bytes | int:
    """Take the stuffing out between bytes that must neither be read nor written."""
    data = np.frombuffer(b"\x0b" * 3 + record + b"\x0b" * 300, np.uint8)
    room = len(record) if room is None else room
    memory = np.full(room + 300, 99, np.uint8)
    size = unstuff(data, 3, 3 + len(record), memory[:room])
    assert (memory[max(size, 0) if size >= 0 else room :] == 99).all(), "written past its room"
    return memory[:size].tobytes() if size >= 0 else int(size)


@given(BYTES)
def test_bytes_come_back_and_none_is_a_newline(data):
    record = stuffed(data)
    assert b"\n" not in record
    assert len(record) <= stuffed_bytes_max(len(data))
    assert unstuffed(record) == data


@pytest.mark.parametrize("size", [0, 1, 253, 254, 255, 507, 508, 509, 1016, 70_000])
@pytest.mark.parametrize("byte", [b"\n", b"\0", b"x"])
def test_at_most_one_byte_in_254_is_added_and_one_more(size, byte):
    record = stuffed(byte * size)
    assert len(record) <= size + size // 254 + 1
    assert b"\n" not in record
    assert unstuffed(record) == byte * size


def test_bytes_between_newlines_stay_as_they_are():
    assert stuffed(b"ab\n\ncd") == bytes([3 ^ 10]) + b"ab" + bytes([1 ^ 10, 3 ^ 10]) + b"cd"


@given(st.binary(max_size=600).map(lambda data: data.replace(b"\n", b"")))
def test_whatever_stands_there_nothing_is_read_or_written_beyond(record):
    made = unstuffed(record)
    assert made == -1 or stuffed(made) is not None
    for room in (0, 1, 17):
        cut = unstuffed(record, room)
        assert cut in (-1, -2) or (cut == made and len(cut) <= room)


@given(BYTES.filter(bool), st.data())
def test_a_record_that_is_cut_off_is_shorter_or_damaged(data, drawn):
    record = stuffed(data)
    at = drawn.draw(st.integers(0, len(record) - 1))
    made = unstuffed(record[:at])
    assert made == -1 or made != data


@given(st.lists(st.binary(min_size=7, max_size=7), max_size=6), st.integers(1, 6))
def test_items_become_lines_with_heads_and_lines_items(items, room):
    heads = np.frombuffer(bytes(range(8, 8 + 2 * len(items))), np.uint8).reshape(-1, 2)
    data = np.frombuffer(b"".join(items), np.uint8)
    out = np.zeros(len(items) * (stuffed_bytes_max(9) + 1), np.uint8)
    used = stuff_items(data, 7, heads, out)
    lines = out[:used].tobytes()
    whole = [heads[i].tobytes() + item for i, item in enumerate(items)]
    assert lines == b"".join(stuffed(one) + b"\n" for one in whole)

    buffer = np.frombuffer(b"\n" + lines + b"\n", np.uint8)
    rows, at, found = np.zeros((room, 9), np.uint8), 0, []
    starts, sizes = np.zeros(room, np.int64), np.zeros(room, np.int64)
    while at < len(buffer):
        count, at = unstuff_records(buffer, at, len(buffer), rows, starts, sizes)
        assert (sizes[:count] == 9).all()
        assert [buffer[i - 1] for i in starts[:count]] == [10] * count
        found += [row.tobytes() for row in rows[:count]]
    assert found == whole


def test_lines_of_another_size_are_told_apart():
    lines = b"".join(stuffed(one) + b"\n" for one in (b"abc", b"ab", b"abcd", b"\n\n\n"))
    buffer = np.frombuffer(lines + b"\xf0x\n", np.uint8)
    rows, sizes = np.zeros((8, 3), np.uint8), np.zeros(8, np.int64)
    count, at = unstuff_records(buffer, 0, len(buffer), rows, np.zeros(8, np.int64), sizes)
    assert (count, at) == (5, len(buffer))
    assert sizes[:5].tolist() == [3, 2, -2, 3, -1]
