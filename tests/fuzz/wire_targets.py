"""What fuzzers feed: every reader of bytes that a peer sent, each with the errors it documents."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from streamlearn import columns, topic_columns
from streamlearn.cluster.batcher import Cut
from streamlearn.cluster.preparing import Buffers, Preparer, Stepper
from streamlearn.cluster.topics import new_stepper
from streamlearn.compute.kernels.topic_priors import BINS
from streamlearn.config import FmConfig, JobConfig, LdaConfig
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
from streamlearn.online.localized import Localized
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX
from streamlearn.online.topic_validation import TopicValidation
from streamlearn.online.validation import BinaryValidation
from streamlearn.protocol import (
    Mark,
    Pull,
    Pulled,
    PulledTopics,
    Push,
    PushTopics,
    decode,
    encode,
)
from streamlearn.shards.shard import Shard, ShardSpec
from tests.reference.tables import minibatch

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


def lengths(data: bytes) -> None:
    """Decode lengths of embeddings."""
    if len(data) < 2:
        return
    several = ((16,), (4, 8, 32))[data[0] & 1]
    found = columns.decode_lengths(data[2:], data[1], several)
    assert len(found) == data[1]
    assert np.all(np.isin(found, (0, *several)))


def push(data: bytes) -> None:
    """Give a shard with embeddings a push: it is applied whole, or refused and nothing is."""
    one = decode(data)
    if not isinstance(one, Push) or one.count > 1 << 12:
        return
    shard = Shard(_SPEC)
    before = shard.digest()
    try:
        located = shard.locate(shard.decode_keys(one))
        gradients = shard.decode_gradients(one)
        assert len(gradients.values) == len(located.keys)
    finally:
        assert shard.digest() == before
    assert gradients.dims is not None
    assert np.all(np.isfinite(gradients.vectors))
    if shard.verdict(one.mark) == "next":
        shard.apply(1, one, located, gradients)
        again = Shard(_SPEC)
        again.apply(1, one)
        assert again.digest() == shard.digest()


def push_topics(data: bytes) -> None:
    """Give a shard of a topic model a push: it is applied whole, or refused and nothing is."""
    one = decode(data)
    if not isinstance(one, Push) or one.count > 1 << 12:
        return
    shard = Shard(_TOPICS_SPEC)
    before = shard.digest()
    try:
        located = shard.locate(shard.decode_keys(one))
        gradients = shard.decode_gradients(one)
        assert len(gradients.values) == len(located.keys)
    finally:
        assert shard.digest() == before
    assert gradients.topics is not None
    if shard.verdict(one.mark) == "next":
        shard.apply(1, one, located, gradients)
        again = Shard(_TOPICS_SPEC)
        again.apply(1, one)
        assert again.digest() == shard.digest()


def pulled_topics(data: bytes) -> None:
    """Give a worker of a topic model what a shard answers to its pull of two words."""
    one = decode(data)
    if not isinstance(one, Pulled):
        return
    _TOPICS_STEPPER.step(_TOPICS_PREPARED, [one], 0, epoch=1)


def pulled(data: bytes) -> None:
    """Give a worker what a shard answers to its pull of three keys."""
    one = decode(data)
    if not isinstance(one, Pulled):
        return
    _STEPPER.step(_PREPARED, [one], 0, epoch=0)


_PEER = Peer("worker", "w0")
_JOB = JobConfig(model=FmConfig(order=3, dim_by_count={"0": 2, "4": 9}, l1=0.0))
_SPEC = ShardSpec(0, 1, _JOB, "job", 1000)
_FEATURES = FEATURES_PER_RECORD_MAX + 16
_BATCH = minibatch([[3, 5]], [1])
_PREPARED = Preparer(_JOB, [0], _FEATURES).prepare(
    Cut(_BATCH, 10, 1), Buffers(_BATCH, Localized(_FEATURES))
)
_STEPPER = Stepper(_JOB, 4, BinaryValidation(10))
_TOPICS_JOB = JobConfig(model=LdaConfig(topics=5, min_df=1, max_df=1.0, epochs=3))
_TOPICS_SPEC = ShardSpec(0, 1, _TOPICS_JOB, "job", 1000)
_TOPICS_BATCH = minibatch([[3, 5, 5], [5]], [0, 0])
_TOPICS_PREPARED = Preparer(_TOPICS_JOB, [0], _FEATURES).prepare(
    Cut(_TOPICS_BATCH, 10, 2), Buffers(_TOPICS_BATCH, Localized(_FEATURES))
)
_TOPICS_STEPPER = new_stepper(_TOPICS_JOB, 4, TopicValidation(10))
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
    "lengths": (lengths, (ColumnError,)),
    "push": (push, (ProtocolError, ColumnError)),
    "pulled": (pulled, (ProtocolError, ColumnError)),
    "push_topics": (push_topics, (ProtocolError, ColumnError)),
    "pulled_topics": (pulled_topics, (ProtocolError, ColumnError)),
}


def _push(count: int) -> Push:
    """Return a push of so many keys, the first half of which have embeddings."""
    keys = np.arange(count, dtype=np.uint64) * np.uint64(1 << 59) + np.uint64(3)
    dims = np.array([9, 2, *[0] * count][:count], np.int64)
    column = columns.encode_keys(keys, 0)
    mark = Mark("p", "v", 0, 1, 10, 1)
    vectors = np.ones(int(dims.sum()) * 2, np.float32)
    return Push(
        0, "w", 1, 0, 0, 0, count, column.data, columns.FLOAT32,
        columns.encode_values(np.ones(count, np.float32), columns.FLOAT32).data,
        columns.encode_counts(np.ones(count, np.uint32)).data, mark,
        columns.encode_lengths(dims, (2, 9)).data,
        columns.encode_values(vectors, columns.FLOAT32).data,
    )  # fmt: skip


def _pulled() -> Pulled:
    """Return an answer to the pull of three keys, of which the two features have embeddings."""
    dims = np.array([0, 2, 9], np.int64)
    coding = columns.FLOAT32 | columns.SPARSE
    return Pulled(
        3, coding, columns.encode_values(np.array([0.5, 0.0, 1.0], np.float32), coding).data,
        columns.encode_lengths(dims, (2, 9)).data,
        columns.encode_values(np.linspace(-1, 1, 22, dtype=np.float32), columns.FLOAT32).data,
    )  # fmt: skip


def _push_topics(epoch: int) -> PushTopics:
    """Return a push of two words: counted in the first pass, later topics of their four tokens."""
    column = columns.encode_keys(np.array([3, 5], np.uint64), 0)
    counts = columns.encode_counts(np.array([1, 3], np.uint32)).data
    nothing = memoryview(b"")
    told = (0, "w", 1, 0, 0, 0, 2, column.data, 0, nothing, counts, Mark("p", "v", 0, 1, 10, 1))
    if not epoch:
        return PushTopics(*told, documents=counts)
    lengths = columns.encode_lengths(np.array([5, 5]), (5,)).data
    topics = topic_columns.encode_topics(np.array([1, 4, 0, 2], np.uint16), 5).data
    fit = np.ones(6).view(np.uint8).data
    return PushTopics(*told, lengths, nothing, nothing, topics, fit)


def _pulled_topics() -> PulledTopics:
    """Return an answer to the pull of two words, which both have topics."""
    counts = np.array([0, 1, 0, 0, 0, 1, 0, 1, 4, 0], np.int32)
    return PulledTopics(
        2, 0, memoryview(b""), columns.encode_lengths(np.array([5, 5]), (5,)).data,
        topic_columns.encode_rows(counts, np.array([0, 5]), 5).data, 2,
        topic_columns.encode_totals(counts[:5] + counts[5:]).data,
        topic_columns.encode_topics(np.array([1, 3, 0, 2], np.uint16), 5).data,
        np.full(5, 0.1).view(np.uint8).data, np.ones(BINS, np.int64).view(np.uint8).data,
    )  # fmt: skip


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
        "lengths": [
            b"\1\5" + bytes(columns.encode_lengths(np.array([0, 4, 0, 32, 8]), (4, 8, 32))),
            b"\0\5" + bytes(columns.encode_lengths(np.array([0, 16, 0, 0, 0]), (16,))),
        ],
        "push": [bytes(encode(_push(4))), bytes(encode(_push(0)))],
        "pulled": [bytes(encode(_pulled()))],
        "push_topics": [bytes(encode(_push_topics(0))), bytes(encode(_push_topics(1)))],
        "pulled_topics": [bytes(encode(_pulled_topics()))],
        "counts": [b"\4" + bytes(columns.encode_counts(np.array([1, 1, 7, 300], np.uint32)))],
    }
