"""Compression recognised by content; damage that takes no good bytes with it."""

from __future__ import annotations

import gzip
import random
import zlib

import lz4.frame
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.net.sources.compression import CODECS, Inflater, recognise

LINES = b"".join(b"%d\t%x\n" % (i, i * 2654435761 % 2**32) for i in range(40_000))


def zstd_frame(data: bytes, *, checksum: bool = True, sized: bool = True, level: int = 3) -> bytes:
    return zstandard.ZstdCompressor(
        level=level, write_checksum=checksum, write_content_size=sized
    ).compress(data)


COMPRESS = {
    "gzip": lambda data: gzip.compress(data, 6, mtime=0),
    "zstd": zstd_frame,
    "lz4": lambda data: lz4.frame.compress(data, content_checksum=True),
}


def inflate(name: str, stored: bytes, *, feed: int = 1 << 20, room: int = 1 << 16):
    """Inflate in pieces of ``feed`` bytes into pieces of ``room``."""
    inflater = Inflater(CODECS[name], "object")
    into = memoryview(bytearray(room))
    plain = bytearray()
    for at in range(0, len(stored), feed):
        inflater.give(memoryview(stored)[at : at + feed])
        while True:
            filled = inflater.fill(into)
            plain += into[:filled]
            if filled < room:
                break
        if inflater.damage:
            break
    inflater.finish()
    return bytes(plain), inflater


@pytest.mark.parametrize("name", COMPRESS)
def test_a_compression_is_recognised_by_its_first_bytes(name):
    assert recognise(COMPRESS[name](b"x")[:4]) == name


@pytest.mark.parametrize("head", [b"", b"1\t2", b"\x1f", b"\x1f\x8b\x07\x00", b'{"a"'])
def test_anything_else_is_plain(head):
    assert recognise(head) == "none"


@pytest.mark.parametrize("name", COMPRESS)
@given(
    parts=st.lists(st.binary(max_size=300), max_size=4),
    feed=st.integers(1, 70),
    room=st.integers(1, 200),
)
@settings(max_examples=40, deadline=None)
def test_members_are_inflated_whole_however_they_are_cut(name, parts, feed, room):
    stored = b"".join(COMPRESS[name](part) for part in parts)
    plain, inflater = inflate(name, stored, feed=feed, room=room)
    assert inflater.damage is None
    assert plain == b"".join(parts)
    assert (inflater.stored, inflater.plain) == (len(stored), len(plain))


@pytest.mark.parametrize("name", COMPRESS)
def test_large_members_are_inflated(name):
    stored = COMPRESS[name](LINES) + COMPRESS[name](LINES[::-1])
    plain, inflater = inflate(name, stored, feed=100_000, room=1 << 20)
    assert inflater.damage is None
    assert plain == LINES + LINES[::-1]


def test_zeros_between_and_after_gzip_members_are_padding():
    stored = gzip.compress(b"a\n") + bytes(5000) + gzip.compress(b"b\n") + bytes(512)
    plain, inflater = inflate("gzip", stored, feed=7)
    assert (plain, inflater.damage) == (b"a\nb\n", None)


def test_all_kinds_of_zstd_frames_and_skippable_ones_are_read():
    content = random.Random(1).randbytes(300_000) + LINES + bytes(400_000)
    skippable = b"\x53\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"index"
    empty = b"\x50\x2a\x4d\x18" + bytes(4)
    stored = skippable + empty
    plain = b""
    for checksum in (False, True):
        for sized in (False, True):
            for part in (b"", content[:100], content[:70_000], content):
                stored += zstd_frame(part, checksum=checksum, sized=sized) + skippable
                plain += part
    for feed in (1013, 1 << 22):
        got, inflater = inflate("zstd", stored, feed=feed)
        assert inflater.damage is None
        assert got == plain


@pytest.mark.parametrize("name", COMPRESS)
def test_a_bomb_is_made_step_by_step(name):
    bomb = COMPRESS[name](bytes(64 << 20))
    inflater = Inflater(CODECS[name], "bomb")
    inflater.give(memoryview(bomb))
    into = memoryview(bytearray(1000))
    most = 0
    for _ in range(500):
        assert inflater.fill(into) == 1000
        most = max(most, len(inflater._made))
    assert most <= 128 << 10


@pytest.mark.parametrize("name", COMPRESS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_what_precedes_a_truncation_is_kept(name, share):
    stored = COMPRESS[name](LINES)
    cut = int(len(stored) * share)
    plain, inflater = inflate(name, stored[:cut])
    assert LINES.startswith(plain)
    assert len(plain) > (share - 0.3) * len(LINES)
    message = str(inflater.damage)
    assert f"ends too early at stored byte {cut} (plain byte {len(plain)})" in message
    assert message.startswith("object: ")


@pytest.mark.parametrize("name", COMPRESS)
def test_what_precedes_a_corruption_is_kept_to_the_last_byte_that_can_be_had(name):
    stored = bytearray(COMPRESS[name](LINES))
    stored[-3] ^= 0xFF  # in the checksum: every byte of the content is good
    plain, inflater = inflate(name, bytes(stored))
    if name == "lz4":  # checks before it hands over the last of its blocks
        assert LINES.startswith(plain)
    else:
        assert plain == LINES
    assert "is corrupt at stored byte" in str(inflater.damage)


def test_as_much_is_rescued_from_gzip_as_zlib_can():
    rng = random.Random(3)
    for _ in range(30):
        stored = bytearray(gzip.compress(LINES, mtime=0))
        at = rng.randrange(12, len(stored) - 8)
        stored[at] ^= 1 << rng.randrange(8)
        plain, inflater = inflate("gzip", bytes(stored))
        assert inflater.damage is not None
        decoder, twin = zlib.decompressobj(31), bytearray()
        try:
            for i in range(len(stored)):
                twin += decoder.decompress(stored[i : i + 1])
        except zlib.error:
            pass
        same = min(len(plain), len(twin))
        assert plain[:same] == twin[:same]
        assert abs(len(plain) - len(twin)) < 1024


def test_far_into_a_member_at_most_one_step_is_lost():
    content = random.Random(2).randbytes(3 << 20)
    stored = bytearray(gzip.compress(content, 1))
    stored[-6] ^= 1
    plain, inflater = inflate("gzip", bytes(stored))
    assert content.startswith(plain)
    assert len(content) - len(plain) <= 64 << 10
    assert inflater.damage is not None


@pytest.mark.parametrize("name", COMPRESS)
def test_what_follows_the_last_member_and_is_none_is_damage(name):
    plain, inflater = inflate(name, COMPRESS[name](b"good\n") + b"rubbish, and not a member")
    assert plain == b"good\n"
    assert "is corrupt" in str(inflater.damage)
