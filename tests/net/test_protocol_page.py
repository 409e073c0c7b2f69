from __future__ import annotations

import numpy as np
import pytest

from streamlearn import columns, topic_columns
from streamlearn.net.connection import (
    AWAIT_CHALLENGE,
    AWAIT_HELLO,
    AWAIT_PROOF,
    AWAIT_WELCOME,
    CLIENT_OPEN,
    SERVER_OPEN,
    TRANSITIONS,
)
from streamlearn.net.frame import HEADER_BYTES, KINDS, REASONS
from streamlearn.net.security import MAY_ASK
from streamlearn.protocol import (
    Pulled,
    PulledFactors,
    PulledTopics,
    PullFactors,
    PullTopics,
    Push,
    PushFactors,
    PushTopics,
    decode,
)
from tests.net.wire_parts import feed, open_reader
from tests.net.wire_vectors import PAGE, TIERS, TOPICS, made, written

STATES = {
    "hello": AWAIT_HELLO,
    "challenge": AWAIT_CHALLENGE,
    "proof": AWAIT_PROOF,
    "welcome": AWAIT_WELCOME,
    "done": CLIENT_OPEN,
    "pulled": CLIENT_OPEN,
    "pulled-factors": CLIENT_OPEN,
    "pulled-topics": CLIENT_OPEN,
    "met": CLIENT_OPEN,
}
KIND_OF = {
    "ping": "request", "pull": "request", "pull-lz4": "request", "push": "request",
    "done": "answer", "pulled": "answer",
    "pull-factors": "request", "pulled-factors": "answer", "push-factors": "request",
    "pull-topics": "request", "pulled-topics": "answer", "push-topics": "request",
    "meet": "request", "met": "answer", "stay": "request",
}  # fmt: skip
REQUEST_ID_OF = {
    "ping": 1, "done": 1, "pull": 2, "pull-lz4": 2, "pulled": 2, "push": 3,
    "pull-factors": 2, "pulled-factors": 2, "push-factors": 3,
    "pull-topics": 2, "pulled-topics": 2, "push-topics": 3,
    "meet": 4, "met": 4, "stay": 5,
}  # fmt: skip


def test_bytes_on_the_page_are_those_that_are_sent() -> None:
    assert written() == made()


@pytest.mark.parametrize("name", made())
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_bytes_on_the_page_are_read_in_any_pieces(name: str, step: int) -> None:
    data = written()[name]
    ((kind, flags, request_id, plain_size, body),) = feed(
        open_reader(STATES.get(name, SERVER_OPEN)), data, step
    )
    assert (KINDS[kind], flags, request_id) == (
        KIND_OF.get(name, name),
        int(name == "pull-lz4"),
        REQUEST_ID_OF.get(name, 0),
    )
    assert bytes(body) == data[HEADER_BYTES:]
    assert plain_size == (len(made()["pull"]) - HEADER_BYTES if flags else len(body))


def test_columns_on_the_page_are_what_it_says_of_them() -> None:
    answer, told = (decode(written()[name][HEADER_BYTES:]) for name in ("pulled", "push"))
    assert isinstance(answer, Pulled)
    assert isinstance(told, Push)
    weights = columns.decode_values(answer.values, answer.count, answer.coding)
    assert weights.tolist() == [0, 0.5]
    assert columns.decode_lengths(answer.lengths, answer.count, TIERS).tolist() == [0, 4]
    coding = answer.coding & ~columns.SPARSE
    assert columns.decode_values(answer.vectors, 4, coding).tolist() == [0.25, -0.5, 1, 0]
    assert (told.pull, len(told.keys), len(told.lengths)) == (2, 0, 0)
    assert columns.decode_values(told.values, told.count, told.coding).tolist() == [1, -2]
    assert columns.decode_counts(told.counts, told.count).tolist() == [1, 3]
    assert columns.decode_values(told.vectors, 4, told.coding).tolist() == [0.5, 0, 0, -1]


def test_factors_on_the_page_are_what_it_says_of_them() -> None:
    names = ("pull-factors", "pulled-factors", "push-factors")
    asked, answer, told = (decode(written()[name][HEADER_BYTES:]) for name in names)
    assert isinstance(asked, PullFactors)
    assert isinstance(answer, PulledFactors)
    assert isinstance(told, PushFactors)
    assert columns.decode_lengths(asked.copied, asked.count, (1,)).tolist() == [1, 0]
    assert columns.decode_lengths(answer.lengths, answer.count, (4,)).tolist() == [0, 4]
    assert answer.clock == 2
    assert columns.decode_lengths(told.lengths, told.count, (4,)).tolist() == [4, 4]
    vectors = columns.decode_values(told.vectors, 8, told.coding)
    assert vectors.tolist() == [1, 0, 0, 0, 0.5, 0, 0, -1]
    assert columns.decode_lengths(told.items, told.count, (1,)).tolist() == [1, 0]
    assert list(told.shares) == [255, 254, 128, 64]


def test_topics_on_the_page_are_what_it_says_of_them() -> None:
    names = ("pull-topics", "pulled-topics", "push-topics")
    asked, answer, told = (decode(written()[name][HEADER_BYTES:]) for name in names)
    assert isinstance(asked, PullTopics)
    assert isinstance(answer, PulledTopics)
    assert isinstance(told, PushTopics)
    assert (asked.partition, asked.epoch, asked.sequence) == ("a", 2, 4)
    assert columns.decode_lengths(answer.lengths, 2, (TOPICS,)).tolist() == [0, TOPICS]
    assert bytes(answer.vectors) == bytes([2, 1, 0xC8, 1, 2, 2])
    out = np.zeros(TOPICS, np.int32)
    rows = topic_columns.WordRows([answer.vectors], [1], TOPICS)
    rows.fill(np.zeros(1, np.int64), TOPICS, out)
    assert out.tolist() == [0, 200, 0, 0, 2]
    assert topic_columns.decode_totals(answer.totals, TOPICS).tolist() == [10, 300, 0, 4, 5]
    topics = topic_columns.decode_topics(answer.topics, 3, TOPICS, whole=False)
    assert topics.tolist() == [1, 4, 1]
    assert columns.decode_counts(told.counts, 2).tolist() == [1, 3]
    assert topic_columns.decode_topics(told.topics, 3, TOPICS, whole=True).tolist() == [4, 4, 1]


def test_page_names_every_kind_reason_and_right() -> None:
    page = PAGE.read_text()
    for number, name in enumerate(KINDS[1:], 1):
        assert f"| {name} | {number} |" in page
    for number, name in enumerate(REASONS[1:], 1):
        assert f"| {number} | {name} |" in page
    for role, kinds in MAY_ASK.items():
        (line,) = (one for one in page.splitlines() if one.startswith(f"| {role} | "))
        assert set(line.split("|")[2].split()) == {kind.__name__ for kind in kinds}


def test_page_has_every_transition() -> None:
    page = PAGE.read_text().split("## States")[1].split("## Who")[0]
    for state, kinds in TRANSITIONS.items():
        name = state.replace("server ", "").replace("client ", "")
        comes = ", ".join(KINDS[kind] for kind in kinds if KINDS[kind] != "error")
        assert f"| {name} | {comes} |" in page
