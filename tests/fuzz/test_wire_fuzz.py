from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.errors import ProtocolError
from streamlearn.net.connection import SERVER_OPEN, frame_sizes
from streamlearn.net.frame import REQUEST, FrameReader, pack_header
from tests.fuzz.wire_targets import BODY_BYTES_MAX, CLUSTER_ID, TARGETS, read_frames, seeds

SEEDS = seeds()


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=300)
@given(data=st.data())
def test_any_bytes_raise_only_what_is_documented(name: str, data: st.DataObject) -> None:
    target, errors = TARGETS[name]
    with suppress(*errors):
        target(data.draw(st.binary(max_size=400)))


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=500)
@given(data=st.data())
def test_what_was_right_once_and_is_changed_raises_only_what_is_documented(
    name: str, data: st.DataObject
) -> None:
    target, errors = TARGETS[name]
    changed = bytearray(data.draw(st.sampled_from(SEEDS[name])))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed)))
        kind = data.draw(st.sampled_from(["set", "cut", "insert", "double"]))
        if kind == "cut":
            del changed[at : at + data.draw(st.integers(1, 8))]
        elif kind == "insert":
            changed[at:at] = data.draw(st.binary(max_size=8))
        elif kind == "double":
            changed[at:at] = changed[max(at - 16, 0) : at]
        elif at < len(changed):
            changed[at] = data.draw(st.integers(0, 255))
    with suppress(*errors):
        target(bytes(changed))


@given(
    st.lists(st.tuples(st.integers(1, 2**64 - 1), st.binary(max_size=9000)), max_size=6),
    st.integers(1, 5000),
)
def test_frames_come_out_as_they_went_in_however_they_are_cut(
    frames: list[tuple[int, bytes]], step: int
) -> None:
    reader = FrameReader(CLUSTER_ID, frame_sizes(SERVER_OPEN, BODY_BYTES_MAX))
    reader.settle()
    data = b"".join(
        pack_header(CLUSTER_ID, REQUEST, number, body, len(body)) + body for number, body in frames
    )
    out = read_frames(reader, data, step)
    assert [(one[2], bytes(one[4])) for one in out] == frames
    assert not reader.partial


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=4), st.integers(0, 7), st.data())
def test_no_flipped_bit_passes(bodies: list[bytes], bit: int, data: st.DataObject) -> None:
    whole = bytearray(
        b"".join(
            pack_header(CLUSTER_ID, REQUEST, number, body, len(body)) + body
            for number, body in enumerate(bodies, 1)
        )
    )
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << bit
    reader = FrameReader(CLUSTER_ID, frame_sizes(SERVER_OPEN, BODY_BYTES_MAX))
    reader.settle()
    with pytest.raises(ProtocolError):
        read_frames(reader, bytes(whole), 1 << 20)
