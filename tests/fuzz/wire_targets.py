"""What fuzzers feed: every reader of bytes that a peer sent, each with the errors it documents."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from streamlearn import columns
from streamlearn.errors import AccessError, ColumnError, ProtocolError
from streamlearn.net.connection import (
    AWAIT_CHALLENGE,
    AWAIT_HELLO,
    CLIENT_OPEN,
    SERVER_OPEN,
    ClientHandshake,
    Peer,
    ServerHandshake,
    Welcome,
    decode_error,
    frame_sizes,
)
from streamlearn.net.frame import (
    ANSWER,
    CHALLENGE,
    HEADER_BYTES,
    HELLO,
    PROOF,
    REQUEST,
    UNSETTLED_BYTES_MAX,
    Frame,
    FrameReader,
    pack_header,
)
from streamlearn.net.packing import unpack
from streamlearn.net.security import Secrets
from streamlearn.protocol import Pull, decode, encode

__all__ = ["CLUSTER_ID", "TARGETS", "read_frames"]

CLUSTER_ID = 0x2A97516C354B6884
BODY_BYTES_MAX = 1 << 16
_SECRETS = Secrets({"": b"0123456789abcdef0123456789abcdef"})
_NONCE = bytes(32)


def read_frames(reader: FrameReader, data: bytes, step: int) -> list[Frame]:
    """Feed bytes in pieces, as a channel does; return what comes out before all are taken."""
    frames: list[Frame] = []
    rest = memoryview(data)
    while rest:
        into = reader.buffer()
        assert 0 < len(into) <= BODY_BYTES_MAX
        count = min(len(into), len(rest), step)
        into[:count] = rest[:count]
        rest = rest[count:]
        reader.advance(count)
        while (one := reader.next()) is not None:
            assert len(one[4]) <= BODY_BYTES_MAX
            frames.append(one)
    return frames


def stream(data: bytes) -> None:
    """Read any bytes as what a known or an unknown peer sent."""
    if len(data) < 2:
        return
    state = (AWAIT_HELLO, AWAIT_CHALLENGE, SERVER_OPEN, CLIENT_OPEN)[data[0] & 3]
    reader = FrameReader(CLUSTER_ID, frame_sizes(state, BODY_BYTES_MAX))
    if state in {SERVER_OPEN, CLIENT_OPEN}:
        reader.settle()
    frames = read_frames(reader, data[2:], data[1] + 1)
    if state == AWAIT_HELLO:
        assert sum(HEADER_BYTES + len(one[4]) for one in frames) <= UNSETTLED_BYTES_MAX


def body(data: bytes) -> None:
    """Open and decode a body whose checksums are right."""
    if len(data) < 4:
        return
    flags, plain = data[0] & 3, int.from_bytes(data[1:4], "little") & 0xFFFF
    head = pack_header(CLUSTER_ID, REQUEST, 1, data[4:], plain if flags else len(data) - 4, flags)
    reader = FrameReader(CLUSTER_ID, frame_sizes(SERVER_OPEN, BODY_BYTES_MAX))
    reader.settle()
    for _, flag, _, size, packed in read_frames(reader, head + data[4:], 1 << 20):
        opened = unpack(flag, packed, size)
        assert len(opened) == size
        decode(opened)


def message(data: bytes) -> None:
    """Decode a message; what is one comes back as the same bytes or as the same message."""
    one = decode(data)
    assert decode(encode(one)) == one or "nan" in repr(one)


def greet_server(data: bytes) -> None:
    """Give a server a hello and a proof."""
    handshake = ServerHandshake(CLUSTER_ID, _SECRETS, _NONCE)
    handshake.received(HELLO, data[32:] if data[:1] == b"\0" else _HELLO)
    handshake.received(PROOF, data[:32])
    raise AssertionError("a proof was guessed")


def greet_client(data: bytes) -> None:
    """Give a client a challenge."""
    ClientHandshake(CLUSTER_ID, _PEER, _SECRETS, _NONCE).received(CHALLENGE, data)
    raise AssertionError("a proof was guessed")


def welcome(data: bytes) -> None:
    """Read a welcome and an error."""
    try:
        said = Welcome.decode(data)
        assert said.encode() == data
    except ProtocolError:
        pass
    assert decode_error(data).cause is not None


def keys(data: bytes) -> None:
    """Decode keys."""
    if len(data) < 3:
        return
    low, high = int(data[0]) << 56, (int(data[1]) << 56) + (1 << 56) - 1
    found = columns.decode_keys(data[3:], data[2], low, high)
    assert len(found) == data[2]
    assert np.all(found[1:] > found[:-1])
    assert np.all(found & np.uint64(1))
    assert np.all((found >= np.uint64(low)) & (found <= np.uint64(high)))


def values(data: bytes) -> None:
    """Decode values."""
    if len(data) < 3:
        return
    found = columns.decode_values(data[3:], data[1] | data[2] << 8 & 0x300, data[0] & 31)
    assert np.all(np.isfinite(found))


def counts(data: bytes) -> None:
    """Decode counts."""
    if len(data) < 1:
        return
    assert len(columns.decode_counts(data[1:], data[0])) == data[0]


_PEER = Peer("worker", "w0")
_HELLO = ClientHandshake(CLUSTER_ID, _PEER, _SECRETS, _NONCE).hello
TARGETS: dict[str, tuple[Callable[[bytes], None], tuple[type[Exception], ...]]] = {
    "stream": (stream, (ProtocolError,)),
    "body": (body, (ProtocolError,)),
    "message": (message, (ProtocolError,)),
    "greet_server": (greet_server, (ProtocolError, AccessError)),
    "greet_client": (greet_client, (ProtocolError, AccessError)),
    "welcome": (welcome, (ProtocolError,)),
    "keys": (keys, (ColumnError,)),
    "values": (values, (ColumnError,)),
    "counts": (counts, (ColumnError,)),
}


def seeds() -> dict[str, list[bytes]]:
    """Return inputs that each target takes, to begin from."""
    pull = bytes(encode(Pull(0, 7, 3, 2, memoryview(b"\0" * 64), 1)))
    request = pack_header(CLUSTER_ID, REQUEST, 1, pull, len(pull)) + pull
    answer = pack_header(CLUSTER_ID, ANSWER, 1, pull, len(pull)) + pull
    hello = pack_header(CLUSTER_ID, HELLO, 0, _HELLO, len(_HELLO)) + _HELLO
    some = np.array([3, 5, 1 << 40 | 1, 1 << 60 | 1], np.uint64)
    floats = np.array([0.5, 0.0, -1.25, 3e-5], np.float32)
    coded = [
        bytes([coding, 4, 0]) + bytes(columns.encode_values(floats, coding))
        for kind in (columns.FLOAT32, columns.FLOAT16, columns.BYTE)
        for coding in (kind, kind | columns.SPARSE)
    ]
    return {
        "stream": [b"\0\xff" + hello, b"\2\xff" + request * 2, b"\3\x10" + answer],
        "body": [bytes(4) + pull],
        "message": [pull],
        "greet_server": [bytes(32) + _HELLO],
        "greet_client": [bytes(65)],
        "welcome": [Welcome(0, 2, 0, 128, 7, "job").encode(), b"\5text"],
        "keys": [b"\0\xff\4" + bytes(columns.encode_keys(some, 0))],
        "values": coded,
        "counts": [b"\4" + bytes(columns.encode_counts(np.array([1, 1, 7, 300], np.uint32)))],
    }
