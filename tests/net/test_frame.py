from __future__ import annotations

import struct

import pytest
from isal.isal_zlib import crc32

from streamlearn.net.connection import AWAIT_HELLO, CLIENT_OPEN, SERVER_OPEN, frame_sizes
from streamlearn.net.frame import (
    ALIVE,
    ANSWER,
    HEADER_BYTES,
    HELLO,
    REASONS,
    REQUEST,
    UNSETTLED_BYTES_MAX,
    FrameError,
    FrameReader,
    pack_header,
)
from streamlearn.net.security import cluster_id
from tests.net.wire_parts import CLUSTER, feed, frame, open_reader

BODY = b"sixteen bytes it"
SIZES = (0, 1, 100, 4096, 4097, 16344, 16345, 70_000, 1 << 20)


def header(**changes: int | bytes) -> bytes:
    """Make a request's header with some fields changed and right checksums."""
    fields: dict[str, int | bytes] = {
        "magic": b"SLRN",
        "version": 1,
        "kind": REQUEST,
        "flags": 0,
        "zero": 0,
        "cluster": cluster_id(CLUSTER),
        "request": 1,
        "size": len(BODY),
        "plain": len(BODY),
        "crc": crc32(BODY),
    }
    assert not changes.keys() - fields.keys()
    part = struct.pack("<4sBBBBQQIII", *(fields | changes).values())
    return part + struct.pack("<I", crc32(part))


def reason(data: bytes, reader: FrameReader | None = None) -> str:
    with pytest.raises(FrameError) as caught:
        feed(reader or open_reader(SERVER_OPEN), data)
    assert caught.value.reason in REASONS
    return caught.value.reason


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", [1000, 1 << 30])
def test_frames_come_out_as_they_went_in(size: int, step: int) -> None:
    bodies = [bytes([n]) * size for n in range(5)]
    data = b"".join(frame(REQUEST, n + 1, body) for n, body in enumerate(bodies))
    frames = feed(open_reader(SERVER_OPEN), data, step)
    assert [(one[0], one[1], one[2], one[3]) for one in frames] == [
        (REQUEST, 0, n + 1, size) for n in range(5)
    ]
    assert [bytes(one[4]) for one in frames] == bodies


def test_frames_come_out_byte_by_byte() -> None:
    data = frame(REQUEST, 1, BODY) + frame(ALIVE, 0, b"") + frame(REQUEST, 2, BODY * 400)
    frames = feed(open_reader(SERVER_OPEN), data, 1)
    assert [bytes(one[4]) for one in frames] == [BODY, b"", BODY * 400]


def test_many_small_frames_come_out_of_one_read() -> None:
    reader = open_reader(SERVER_OPEN)
    data = b"".join(frame(REQUEST, n + 1, BODY) for n in range(200))
    into = reader.buffer()
    into[: len(data)] = data
    reader.advance(len(data))
    taken = [reader.next() for _ in range(200)]
    assert all(taken)
    assert reader.next() is None
    assert not reader.partial


def test_a_body_outlives_the_memory_it_was_read_into() -> None:
    reader = open_reader(SERVER_OPEN)
    (first,) = feed(reader, frame(REQUEST, 1, b"a" * 50))
    (second,) = feed(reader, frame(REQUEST, 2, b"b" * 8000))
    feed(reader, frame(REQUEST, 3, b"c" * 12_000))
    assert bytes(first[4]) == b"a" * 50
    assert bytes(second[4]) == b"b" * 8000


def test_a_large_body_is_received_in_place() -> None:
    reader = open_reader(SERVER_OPEN)
    data = frame(REQUEST, 1, bytes(500_000))
    reader.buffer()[:100] = data[:100]
    reader.advance(100)
    assert reader.next() is None
    assert len(reader.buffer()) == 500_000 - (100 - HEADER_BYTES)


@pytest.mark.parametrize("at", range(HEADER_BYTES))
@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_each_flipped_byte_of_a_header_is_noticed(at: int, flip: int) -> None:
    data = bytearray(frame(REQUEST, 1, BODY))
    data[at] ^= flip
    assert reason(bytes(data)) == "checksum"


@pytest.mark.parametrize("at", range(len(BODY)))
def test_each_flipped_byte_of_a_body_is_noticed(at: int) -> None:
    data = bytearray(frame(REQUEST, 1, BODY))
    data[HEADER_BYTES + at] ^= 0x10
    assert reason(bytes(data)) == "checksum"


@pytest.mark.parametrize("length", range(1, HEADER_BYTES + len(BODY)))
def test_a_truncated_frame_waits_for_more(length: int) -> None:
    reader = open_reader(SERVER_OPEN)
    assert feed(reader, frame(REQUEST, 1, BODY)[:length]) == []
    assert reader.partial


def test_bytes_behind_a_frame_begin_the_next() -> None:
    reader = open_reader(SERVER_OPEN)
    whole = frame(REQUEST, 1, BODY)
    assert len(feed(reader, whole + whole[:10])) == 1
    assert reader.partial
    assert reason(b"garbage!" * 5, reader) in {"checksum", "malformed"}


def test_another_protocol_is_seen_at_its_first_bytes() -> None:
    reader = FrameReader(1, frame_sizes(AWAIT_HELLO, 100))
    assert reason(b"GET ", reader) == "malformed"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"version": 2}, "version"),
        ({"cluster": 5}, "cluster"),
        ({"kind": 0}, "order"),
        ({"kind": 77}, "order"),
        ({"kind": ANSWER}, "order"),
        ({"kind": HELLO}, "order"),
        ({"zero": 1}, "malformed"),
        ({"request": 0}, "malformed"),
        ({"size": 1 << 31, "plain": 1 << 31}, "size"),
        ({"size": (1 << 20) + 1, "plain": (1 << 20) + 1}, "size"),
        ({"plain": 0xFFFFFFFF, "flags": 1}, "size"),
        ({"plain": 17}, "size"),
        ({"plain": 15}, "size"),
        ({"plain": 15, "flags": 1}, "size"),
        ({"plain": 16, "flags": 1}, "size"),
        ({"kind": ALIVE, "request": 0}, "size"),
        ({"kind": ALIVE, "size": 0, "plain": 0, "flags": 1, "request": 0}, "malformed"),
        ({"kind": ALIVE, "size": 0, "plain": 0}, "malformed"),
        ({"crc": 1}, "checksum"),
    ],
)
def test_a_header_that_lies_is_refused(changes: dict[str, int], expected: str) -> None:
    assert reason(header(**changes) + BODY) == expected


def test_no_memory_is_taken_for_a_size_that_is_refused() -> None:
    asked: list[int] = []
    reader = FrameReader(
        cluster_id(CLUSTER),
        frame_sizes(SERVER_OPEN, 1000),
        lambda cost: bool(asked.append(cost)) or True,
    )
    reader.settle()
    assert reason(header(size=1001, plain=1001), reader) == "size"
    assert asked == []


def test_an_unknown_peer_is_given_256_bytes() -> None:
    reader = FrameReader(cluster_id(CLUSTER), frame_sizes(AWAIT_HELLO, 1 << 20))
    assert len(reader.buffer()) == UNSETTLED_BYTES_MAX
    hello = frame(HELLO, 0, bytes(98))
    assert len(feed(reader, hello)) == 1
    assert len(reader.buffer()) == UNSETTLED_BYTES_MAX - len(hello)
    assert reason(hello + hello, reader) == "size"


def test_a_frame_that_is_not_admitted_waits_and_takes_nothing() -> None:
    room = 0
    reader = FrameReader(
        cluster_id(CLUSTER), frame_sizes(SERVER_OPEN, 1 << 20), lambda cost: cost <= room
    )
    reader.settle()
    data = frame(REQUEST, 1, BODY) + frame(REQUEST, 2, BODY)
    assert feed(reader, data) == []
    assert reader.waiting == len(BODY)
    room = 100
    first = reader.next()
    assert first is not None
    assert (first[2], reader.waiting) == (1, 0)
    room = 0
    assert reader.next() is None
    reader.admitted()
    second = reader.next()
    assert second is not None
    assert second[2] == 2


def test_a_compressed_frame_asks_room_for_both_of_its_sizes() -> None:
    asked: list[int] = []
    reader = FrameReader(
        cluster_id(CLUSTER),
        frame_sizes(CLIENT_OPEN, 1 << 20),
        lambda cost: bool(asked.append(cost)) or True,
    )
    reader.settle()
    assert len(feed(reader, frame(ANSWER, 1, BODY, 500, 2))) == 1
    assert asked == [len(BODY) + 500]


def test_a_header_says_what_was_packed() -> None:
    packed = pack_header(cluster_id(CLUSTER), REQUEST, 1, BODY, len(BODY))
    assert packed == header()
    assert len(packed) == HEADER_BYTES
