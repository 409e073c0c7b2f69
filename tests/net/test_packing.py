from __future__ import annotations

import os
import struct

import lz4.block
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from streamlearn.net.frame import FrameError
from streamlearn.net.packing import COMPRESSIONS, LZ4, PLAIN, ZSTD, Packer, unpack

TEXT = b"the same words again and again, " * 500
NOISE = os.urandom(16_000)
# a byte that says little: letters drawn from a few, in no order
LETTERS = bytes(b"abcdefgh"[byte & 7] for byte in os.urandom(16_000))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("body", [b"", b"short", TEXT, NOISE, LETTERS], ids=len)
def test_a_body_comes_back_as_it_was(compression: str, body: bytes) -> None:
    flags, packed = Packer(compression).pack("Pull", body)
    assert len(packed) < len(body) if flags else packed is body
    assert unpack(flags, packed, len(body)) == body


@given(st.binary(max_size=4000), st.integers(1, 5), st.sampled_from(COMPRESSIONS))
def test_any_body_comes_back_as_it_was(body: bytes, times: int, compression: str) -> None:
    body *= times
    flags, packed = Packer(compression).pack("Pull", body)
    assert unpack(flags, packed, len(body)) == body


@pytest.mark.parametrize(("compression", "flags"), [("lz4", LZ4), ("zstd", ZSTD), ("none", PLAIN)])
def test_a_named_compression_is_used_where_it_saves(compression: str, flags: int) -> None:
    packer = Packer(compression)
    assert packer.pack("Pull", TEXT)[0] == flags
    assert packer.pack("Pull", NOISE)[0] == PLAIN


def test_auto_chooses_by_kind_of_message() -> None:
    packer = Packer("auto")
    assert [packer.pack("Pull", TEXT)[0] for _ in range(3)] == [LZ4] * 3
    assert [packer.pack("Push", NOISE)[0] for _ in range(3)] == [PLAIN] * 3


def test_auto_tries_again_now_and_then() -> None:
    packer = Packer("auto")
    flags = [packer.pack("Pull", NOISE)[0] for _ in range(5)]
    flags += [packer.pack("Pull", TEXT)[0] for _ in range(70)]
    assert flags[:64] == [PLAIN] * 64
    assert set(flags[64:]) == {LZ4}


def bombs() -> dict[str, tuple[int, bytes, int]]:
    """Flags, body, and the size that the header says."""
    zeros = bytes(1 << 20)
    stream = zstandard.ZstdCompressor(write_content_size=False).compress(zeros)
    honest = zstandard.ZstdCompressor().compress(zeros)
    # a frame header that promises 2**60 bytes
    giant = struct.pack("<IBQ", 0xFD2FB528, 0xE0, 1 << 60) + b"\x01\x00\x00"
    small = lz4.block.compress(zeros, store_size=False)
    return {
        "lz4 says less": (LZ4, small, 1000),
        "lz4 says more": (LZ4, small, (1 << 20) + 1),
        "lz4 damaged": (LZ4, small[:-3], 1 << 20),
        "lz4 empty": (LZ4, b"", 10),
        "zstd says less": (ZSTD, honest, 1000),
        "zstd says more": (ZSTD, honest, (1 << 20) + 1),
        "zstd names no size": (ZSTD, stream, 1 << 20),
        "zstd promises much": (ZSTD, giant, 5000),
        "zstd trailing": (ZSTD, honest + b"x", 1 << 20),
        "zstd two frames": (ZSTD, honest + honest, 1 << 20),
        "zstd truncated": (ZSTD, honest[:-1], 1 << 20),
        "zstd garbage": (ZSTD, b"garbage", 100),
        "zstd empty": (ZSTD, b"", 10),
        "unknown": (3, b"x", 10),
    }


@pytest.mark.parametrize("name", bombs())
def test_a_body_that_lies_about_its_size_is_refused(name: str) -> None:
    with pytest.raises(FrameError) as caught:
        unpack(*bombs()[name])
    assert caught.value.reason == "compression"
