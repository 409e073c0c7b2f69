"""The frames whose bytes stand in ``docs/protocol.md``, made anew; as a program, printed."""

from __future__ import annotations

import re
from pathlib import Path

import lz4.block
import msgspec
import numpy as np

from streamlearn import columns, topic_columns
from streamlearn.net.connection import ClientHandshake, ServerHandshake, encode_error
from streamlearn.net.frame import ALIVE, ANSWER, CHALLENGE, ERROR, HELLO, PROOF, REQUEST, WELCOME
from streamlearn.net.security import cluster_id
from streamlearn.protocol import (
    Done,
    Mark,
    Meet,
    Met,
    Ping,
    Pull,
    Pulled,
    PulledFactors,
    PulledTopics,
    PullFactors,
    PullTopics,
    Push,
    PushFactors,
    PushTopics,
    RatingMark,
    Stay,
    encode,
)
from tests.net.wire_parts import (
    CLIENT_NONCE,
    CLUSTER,
    SECRETS,
    SERVER_NONCE,
    WELCOME_IS,
    WORKER,
    frame,
)

# Lengths that embeddings may have in the page's examples.
TIERS = (4, 8)
TOPICS = 5
PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"


def made() -> dict[str, bytes]:
    """Return each frame of the page by its name, from a whole handshake on."""
    client = ClientHandshake(cluster_id(CLUSTER), WORKER, SECRETS, CLIENT_NONCE)
    server = ServerHandshake(cluster_id(CLUSTER), SECRETS, SERVER_NONCE)
    challenge = server.received(HELLO, client.hello)
    assert challenge is not None
    answer = client.received(CHALLENGE, challenge)
    assert answer is not None
    server.received(PROOF, answer)
    pull = bytes(encode(Pull(0, 7, 3, 2, memoryview(b"\0" * 64), 1)))
    return {
        "hello": frame(HELLO, 0, client.hello),
        "challenge": frame(CHALLENGE, 0, challenge),
        "proof": frame(PROOF, 0, answer),
        "welcome": frame(WELCOME, 0, WELCOME_IS.encode()),
        "ping": frame(REQUEST, 1, bytes(encode(Ping()))),
        "done": frame(ANSWER, 1, bytes(encode(Done()))),
        "pull": frame(REQUEST, 2, pull),
        "pull-lz4": frame(
            REQUEST, 2, lz4.block.compress(pull, store_size=False), len(pull), flags=1
        ),
        "pulled": frame(ANSWER, 2, bytes(encode(_pulled()))),
        "push": frame(REQUEST, 3, bytes(encode(_push()))),
        "pull-factors": frame(REQUEST, 2, bytes(encode(_pull_factors()))),
        "pulled-factors": frame(ANSWER, 2, bytes(encode(_pulled_factors()))),
        "push-factors": frame(REQUEST, 3, bytes(encode(_push_factors()))),
        "pull-topics": frame(REQUEST, 2, bytes(encode(_pull_topics()))),
        "pulled-topics": frame(ANSWER, 2, bytes(encode(_pulled_topics()))),
        "push-topics": frame(REQUEST, 3, bytes(encode(_push_topics()))),
        "meet": frame(REQUEST, 4, bytes(encode(Meet("w0", 7, 250, "10.0.0.3:40001", 4)))),
        "met": frame(ANSWER, 4, bytes(encode(Met(5, 0, 2, "10.0.0.3:40001")))),
        "stay": frame(REQUEST, 5, bytes(encode(Stay("w0", 7, 5)))),
        "alive": frame(ALIVE, 0, b""),
        "error": frame(ERROR, 0, encode_error("size", "too large")),
    }


def _pulled() -> Pulled:
    """Return weights of 0 and 0.5, and four numbers of the second key's embedding."""
    coding = columns.FLOAT16 | columns.SPARSE
    weights = columns.encode_values(np.array([0, 0.5], np.float32), coding)
    lengths = columns.encode_lengths(np.array([0, 4], np.int64), TIERS)
    vectors = np.array([0.25, -0.5, 1, 0], np.float32)
    return Pulled(
        2, coding, weights.data, lengths.data, columns.encode_values(vectors, columns.FLOAT16).data
    )


def _push() -> Push:
    """Return their gradients: the first key came once, the second three times."""
    values = columns.encode_values(np.array([1, -2], np.float32), columns.FLOAT16)
    counts = columns.encode_counts(np.array([1, 3], np.uint32))
    vectors = columns.encode_values(np.array([0.5, 0, 0, -1], np.float32), columns.FLOAT16)
    empty = memoryview(b"")
    return Push(
        0, "w0", 7, 3, 2, columns.signature(b"\0" * 64), 2, empty, columns.FLOAT16, values.data,
        counts.data, Mark("a", "v", 0, 4, 100, 10), empty, vectors.data,
    )  # fmt: skip


def _pull_factors() -> PullFactors:
    """Return a pull of two keys, the first of which there is a copy of."""
    copied = columns.encode_lengths(np.array([1, 0], np.int64), (1,))
    return PullFactors(0, 7, 3, 2, memoryview(b"\0" * 64), 1, copied.data)


def _pulled_factors() -> PulledFactors:
    """Return biases of 0 and 0.5, and four factors of the second key."""
    lengths = columns.encode_lengths(np.array([0, 4], np.int64), (4,))
    return PulledFactors(**msgspec.structs.asdict(_pulled()) | {"lengths": lengths.data}, clock=2)


def _push_factors() -> PushFactors:
    """Return what both become; the first is an item."""
    told = msgspec.structs.asdict(_push()) | {
        "mark": RatingMark("a", "v", 0, 4, 100, 10),
        "lengths": columns.encode_lengths(np.array([4, 4], np.int64), (4,)).data,
        "vectors": columns.encode_values(
            np.array([1, 0, 0, 0, 0.5, 0, 0, -1], np.float32), columns.FLOAT16
        ).data,
    }
    items = columns.encode_lengths(np.array([1, 0], np.int64), (1,))
    return PushFactors(**told, items=items.data, shares=memoryview(bytes([255, 254, 128, 64])))


def _pull_topics() -> PullTopics:
    """Return a pull of two words, for the fourth minibatch of the second further pass."""
    return PullTopics(0, 7, 3, 2, memoryview(b"\0" * 64), 0, "a", 2, 4)


def _pulled_topics() -> PulledTopics:
    """Return what the second word has, and the topics of its three tokens."""
    lengths = columns.encode_lengths(np.array([0, TOPICS], np.int64), (TOPICS,))
    counts = np.array([0, 200, 0, 0, 2], np.int32)
    rows = topic_columns.encode_rows(counts, np.zeros(1, np.int64), TOPICS)
    totals = topic_columns.encode_totals(np.array([10, 300, 0, 4, 5]))
    topics = topic_columns.encode_topics(np.array([1, 4, 1], np.uint16), TOPICS)
    return PulledTopics(2, 0, memoryview(b""), lengths.data, rows.data, 9, totals.data, topics.data)


def _push_topics() -> PushTopics:
    """Return the topics that they get instead."""
    counts = columns.encode_counts(np.array([1, 3], np.uint32))
    topics = topic_columns.encode_topics(np.array([4, 4, 1], np.uint16), TOPICS)
    empty = memoryview(b"")
    return PushTopics(
        0, "w0", 7, 3, 2, columns.signature(b"\0" * 64), 2, empty, 0, empty, counts.data,
        Mark("a", "v", 2, 4, 100, 10), topics=topics.data,
    )  # fmt: skip


def written() -> dict[str, bytes]:
    """Return the same as the page has them."""
    block = re.compile(r"^```hex ([a-z0-9-]+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
    blocks = block.findall(PAGE.read_text())
    return {name: bytes.fromhex(text) for name, text in blocks}


if __name__ == "__main__":
    for name, data in made().items():
        lines = [data[at : at + 32].hex(" ", -4) for at in range(0, len(data), 32)]
        print(f"```hex {name}", *lines, "```", "", sep="\n")  # noqa: T201
