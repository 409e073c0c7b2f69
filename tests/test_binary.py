"""Records that are no text: what is written is what is read, and damage is said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlearn.binary import IDX_TYPES, IdxHeader, Sample, stuff, unstuff
from streamlearn.errors import DataError

NAMES = st.text(st.characters(codec="utf-8"), max_size=20)


@given(st.binary(max_size=2000))
def test_bytes_come_back(data):
    assert unstuff(stuff(data)) == data


@given(
    st.sampled_from(list(IDX_TYPES)),
    st.lists(st.integers(1, 1 << 32), min_size=1, max_size=3).map(tuple),
    st.booleans(),
    st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=20),
)
def test_a_header_comes_back(type_, shape, labelled, labels):
    header = IdxHeader(type_, shape, labelled, labels)
    record = header.encode()
    assert b"\n" not in record
    assert IdxHeader.decode(record) == header


@pytest.mark.parametrize(
    "record", [b"", b"idx", b"1,2,3", b"idx ubyte x none ", b"idx ulong 1 none ", b"\xff idx 1 1 1"]
)
def test_what_is_no_header_is_refused(record):
    with pytest.raises(DataError, match="expected the first record of an idx file"):
        IdxHeader.decode(record)


@given(
    NAMES,
    st.lists(
        st.tuples(NAMES, st.none() | st.binary(max_size=300)), max_size=5
    ).map(tuple),
    st.integers(0, 1 << 50),
)  # fmt: skip
def test_a_sample_comes_back_as_a_line_with_ends_of_its_own(key, members, too_long):
    sample = Sample(key, members, too_long)
    record = sample.encode()
    assert b"\n" not in record
    assert record.endswith(b".")
    assert not record.startswith(b"\xef\xbb\xbf")
    assert Sample.decode(record) == sample


@given(st.binary(max_size=100))
def test_damage_to_a_sample_is_said(tail):
    record = Sample("a/1", (("png", b"12345"), ("cls", b"7"))).encode()
    for damaged in (record[:-1], record[:20], tail.replace(b"\n", b""), stuff(b"S" + tail)):
        with pytest.raises(DataError):
            Sample.decode(damaged)
