"""Messages: every one there and back, and nothing but ProtocolError for what is none."""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlearn import protocol
from streamlearn.errors import ProtocolError
from streamlearn.protocol import (
    Choose,
    Claim,
    Claimed,
    ClassMark,
    Done,
    Fault,
    Finished,
    Follow,
    FollowCut,
    FollowPart,
    FollowRecord,
    FollowTopics,
    Join,
    Joined,
    KeyMiss,
    Leave,
    Listed,
    Mark,
    Meet,
    Message,
    Met,
    Ping,
    Pull,
    Pulled,
    PulledFactors,
    PulledTopics,
    PullFactors,
    PullTopics,
    Push,
    Pushed,
    PushFactors,
    PushTopics,
    RatingMark,
    Register,
    Reopen,
    State,
    StateIs,
    Stay,
    TakeSnapshot,
    Tick,
    decode,
    encode,
)

COLUMN = memoryview(bytes(range(200)))
MARK = Mark("s3://b/kéy", "etag", 1, 2, 3, 4, True, 5, 6, 7, 8, 9, 0.5, 1.5, 2.5, -3.5)
MESSAGES: list[Message] = [
    Join("worker", (1 << 63) - 1, -1, "job"),
    Joined(3, 4, [MARK, Mark("", "", 0, 0, 0, 0)]),
    Leave("worker", 1),
    Done(),
    Pull(0, 1, 2, 3, COLUMN, 17),
    Pulled(3, 0, COLUMN, COLUMN[:9], COLUMN),
    Push(
        0,
        "worker",
        1,
        2,
        3,
        (1 << 64) - 1,
        5,
        COLUMN[:0],
        2,
        COLUMN,
        COLUMN[:7],
        MARK,
        COLUMN[:9],
        COLUMN,
    ),
    PullFactors(0, 1, 2, 3, COLUMN, 17, COLUMN[:8]),
    PulledFactors(3, 0, COLUMN, COLUMN[:9], COLUMN, 7),
    PushFactors(
        *(0, "worker", 1, 2, 3, 4, 5, COLUMN[:0], 2, COLUMN, COLUMN[:7], MARK, COLUMN[:9], COLUMN),
        items=COLUMN[:8],
        shares=COLUMN[:10],
    ),
    PullTopics(0, 1, 2, 3, COLUMN, 0, "s3://b/k", 4, 5),
    PulledTopics(3, 0, COLUMN[:0], COLUMN[:9], COLUMN, 7, COLUMN[:80], COLUMN[:5]),
    PushTopics(
        *(0, "worker", 1, 2, 3, 4, 5, COLUMN[:0], 0, COLUMN[:0], COLUMN[:7], MARK, COLUMN[:9]),
        documents=COLUMN[:8],
        topics=COLUMN[:10],
    ),
    Choose(),
    FollowTopics("s3://b/k", 2, COLUMN[:64], COLUMN),
    Pushed(5, duplicate=True),
    KeyMiss(9),
    Tick(29_000_000),
    Register([Listed("a", "v", -1), Listed("b", "", 1 << 50)], complete=True, epochs=3),
    Claim("worker", 1, ["a", "b"], wanted=False),
    Claimed(protocol.GIVEN, "a", 2),
    Finished("worker", 1, "a", 0),
    Reopen(["a"], 1),
    Follow(-1),
    FollowPart(COLUMN, COLUMN[:64]),
    FollowCut(7, COLUMN),
    FollowRecord(8, COLUMN),
    Meet("worker", 1, 2, "127.0.0.1:7800", 3),
    Met(4, 0, 2, "[::1]:7800"),
    Stay("worker", 1, 4),
    State(marks=False, partition="a"),
    StateIs(1, 2, 2, True, [MARK], {"a": 5}, {"features": 1.0}),
    TakeSnapshot(),
    Ping(),
    Fault("gap", "it does not follow", again=True),
]
IDS = [type(message).__name__ for message in MESSAGES]


def test_every_message_is_tried():
    assert {type(message) for message in MESSAGES} == set(typing.get_args(Message))
    assert set(typing.get_args(protocol.Answer)) < set(typing.get_args(Message))


def test_tags_are_their_own():
    tags = [kind.__struct_config__.tag for kind in typing.get_args(Message)]
    assert len(set(tags)) == len(tags)
    assert all(isinstance(tag, int) for tag in tags)


@pytest.mark.parametrize("message", MESSAGES, ids=IDS)
def test_message_there_and_back(message):
    body = encode(message)
    assert decode(body) == message
    assert decode(bytes(body)) == message
    assert decode(memoryview(body)) == message
    assert encode(decode(body)) == body


def test_marks_of_ratings_travel_with_their_own_sums_and_others_as_before():
    told = {name: getattr(MARK, name) for name in MARK.__struct_fields__}
    rated = RatingMark(**told, absolute_error=7.5, label_square=-0.25)
    messages = (
        Joined(3, 4, [MARK, rated]),
        StateIs(1, 2, 2, True, [rated], {}, {}),
        msgspec.structs.replace(MESSAGES[6], mark=rated),
    )
    for message in messages:
        assert decode(encode(message)) == message
    assert [*_plain(MESSAGES[1])[3][0]] == [1, *told.values()]
    assert [*_plain(messages[0])[3][1]] == [2, *told.values(), 7.5, -0.25]
    classes = Joined(3, 4, [ClassMark(**told, correct=7.5), MARK])
    assert decode(encode(classes)) == classes
    assert [*_plain(classes)[3][0]] == [3, *told.values(), 7.5]
    wrong = [
        [1, *told.values(), 7.5, -0.25],
        [3, *told.values(), 7.5, -0.25],
        [2, *told.values(), 7.5, -0.25, 0],
        [2, *told.values(), "x"],
    ]
    for mark in wrong:
        plain = _plain(messages[0])
        plain[3] = [mark]
        with pytest.raises(ProtocolError):
            decode(msgspec.msgpack.encode(plain))


def test_columns_are_views_of_the_body():
    body = encode(Pulled(3, 0, COLUMN, b"", COLUMN))
    vectors = decode(body).vectors
    body[-1] ^= 0xFF
    assert vectors[-1] == COLUMN[-1] ^ 0xFF


@pytest.mark.parametrize("message", MESSAGES, ids=IDS)
def test_every_beginning_of_a_message_is_refused(message):
    body = bytes(encode(message))
    for end in range(len(body)):
        with pytest.raises(ProtocolError):
            decode(body[:end])


@pytest.mark.parametrize("message", MESSAGES, ids=IDS)
def test_bytes_behind_a_message_are_refused(message):
    with pytest.raises(ProtocolError) as caught:
        decode(encode(message) + b"\xc0")
    assert caught.value.cause


def _plain(message: Message) -> list[object]:
    plain: list[object] = msgspec.msgpack.decode(encode(message))
    return plain


def _wrong(message: Message) -> Iterator[object]:
    """Yield what a message is not: a field of another type, one more field, another tag."""
    plain = _plain(message)
    for at, value in enumerate(plain):
        others: list[object] = [None, {"a": 1}, b"x", "text", 1.5, [[1]], -(1 << 40), True]
        for other in others:
            if type(other) is type(value):
                continue
            if isinstance(value, float) and isinstance(other, int):
                continue
            yield [*plain[:at], other, *plain[at + 1 :]]
    yield [*plain, 1]
    yield [99, *plain[1:]]
    yield {"tag": plain[0]}
    yield plain[0]


@pytest.mark.parametrize("message", MESSAGES, ids=IDS)
def test_fields_of_a_wrong_type_are_refused(message):
    for wrong in _wrong(message):
        body = msgspec.msgpack.encode(wrong)
        with pytest.raises(ProtocolError):
            decode(body)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x90", id="no tag"),
        pytest.param(b"\xc1", id="never used"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="long array"),
        pytest.param(b"\x94\x1e\xdd\xff\xff\xff\xff\xc3\x01", id="long list"),
        pytest.param(b"\x94\x1e\xdd\x00\x0f\xff\xff\xc3\x01", id="list of what is not there"),
        pytest.param(b"\x98\x33\x01\x01\x01\xc3\x90\xdf\xff\xff\xff\xff\x80", id="long map"),
        pytest.param(b"\x92\x29\xc6\xff\xff\xff\xff", id="long column"),
        pytest.param(b"\x94\x0c\xdb\xff\xff\xff\xff\x01", id="long name"),
        pytest.param(b"\x94\x3d\xa2\xff\xfe\xa1x\xc2", id="no utf-8"),
        pytest.param(b"\x92\x19\xd6\xff\x00\x00\x00\x00", id="extension"),
        pytest.param(b"\x92\xcf" + b"\xff" * 8 + b"\x01", id="large tag"),
        pytest.param(b"\x92\xff\x01", id="negative tag"),
        pytest.param(b"\x92\x19\xff", id="negative count"),
        pytest.param(b"\x92\x19\xcf" + b"\xff" * 8, id="large count"),
        pytest.param(b"\x91" * 200_000, id="deep"),
        pytest.param(b"\x92\x19" + b"\x91" * 200_000, id="deep field"),
        pytest.param(b"\x92\x19" + b"\x81\x01" * 100_000, id="deep map"),
    ],
)
def test_what_is_no_message_is_refused(body):
    with pytest.raises(ProtocolError):
        decode(body)


@pytest.mark.parametrize(
    "message",
    [
        Leave("x" * (protocol.NAME_BYTES_MAX + 1), 1),
        Fault("c" * 33, "why", again=False),
        Leave("x", 1 << 63),
        Leave("x", -1),
        StateIs(1, 2, 2, True, [], {}, {str(i): 0.0 for i in range(4097)}),
    ],
)
def test_fields_beyond_their_bounds_are_refused(message):
    with pytest.raises(ProtocolError):
        decode(encode(message))


def test_sums_may_be_anything():
    mark = Mark("p", "v", 0, 1, 2, 3, loss=math.inf, weight=1e300)
    told = decode(encode(Joined(1, 1, [mark])))
    assert told.marks[0].loss == math.inf


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_refused(body):
    try:
        message = decode(body)
    except ProtocolError:
        return
    assert decode(encode(message)) == message


@given(st.sampled_from(MESSAGES), st.data())
def test_a_message_with_another_byte_is_a_message_or_refused(message, data):
    body = encode(message)
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] = data.draw(st.integers(0, 255))
    try:
        again = decode(body)
    except ProtocolError:
        return
    assert isinstance(again, typing.get_args(Message))
