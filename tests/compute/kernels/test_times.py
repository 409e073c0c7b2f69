"""Times of all forms against datetime."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.compute.kernels.times import parse_time
from tests.reference import delimited as reference


def place(token: bytes) -> np.ndarray:
    """Put a token where digits follow that are not its own."""
    buffer = np.full(len(token) + 64, ord("7"), np.uint8)
    buffer[: len(token)] = np.frombuffer(token, np.uint8)
    return buffer


def time_of(token: str):
    buffer = place(token.encode())
    code = parse_time(buffer.ctypes.data, len(token.encode()))
    if code < 0:
        return None
    hour, weekday = code & 31, code >> 5
    return None if hour == 31 else hour, weekday


@pytest.mark.parametrize(
    "token",
    [
        "2001-01-01T00:01",
        "2001-01-01 23:59",
        "2001-01-01T23:59:60",
        "2001-01-01T23:59:59.123456789",
        "2001-01-01T23:59:59,5Z",
        "2001-01-01T23:59Z",
        "2001-01-01T23:59+02",
        "2001-01-01T23:59-0230",
        "2001-01-01T23:59:07+02:30",
        "2001-01-01",
        "2000-02-29",
        "0001-01-01T00:00",
        "9999-12-31T23:59",
        "14102100",
        "24022923",
        "999999999",
        "1700000000",
        "1700000000.",
        "1700000000.25",
        "170000000000",
        "1700000000000",
        "11/7/2017 9:30",
        "11/07/2017 09:30:59",
        "2/29/2004",
    ],
)
def test_a_time_has_its_hour_and_weekday(token):
    assert time_of(token) is not None
    assert time_of(token) == reference.time(token)


@pytest.mark.parametrize(
    "token",
    [
        "2001-01-01T24:00",
        "2001-01-01T23:60",
        "2001-01-01T23:59:61",
        "2001-01-01T23:59:5",
        "2001-01-01T23:59:59.",
        "2001-01-01T23:59:59.5.5",
        "2001-01-01T23:59z",
        "2001-01-01T23:59Z0",
        "2001-01-01T23:59+24",
        "2001-01-01T23:59+2",
        "2001-01-01T23:59+02:60",
        "2001-01-01T23:59+02:5",
        "2001-01-01T23:5",
        "2001-01-01T23",
        "2001-01-01t23:59",
        "2001-01-01x23:59",
        "2001-01-01T2a:59",
        "2001-01-0:T20:59",
        "20o1-01-01T20:59",
        "2001-00-01T20:59",
        "2001-13-01",
        "2001-02-29",
        "1900-02-29T00:00",
        "2001-04-31T00:00",
        "2001-01-00T00:00",
        "0000-01-01T00:00",
        "2001/01/01",
        "2001-1-1",
        "14102124",
        "14130100",
        "1",
        "12345678901",
        "12345678901234",
        "170000000000.5",
        "1700000000.5x",
        "-1700000000",
        "13/1/2017",
        "1/32/2017",
        "1/1/17",
        "1/1/2017 ",
        "1/1/2017 9",
        "1/1/2017 9:3",
        "1/1/2017 24:00",
        "1/1/20170",
        "001/1/2017",
        "/1/2017",
        "1//2017",
        "noon",
        "é",
        " ",
    ],
)
def test_what_is_no_time_is_refused(token):
    assert reference.time(token) is None
    assert time_of(token) is None


def test_every_day_of_the_calendar_has_its_weekday():
    day = datetime(1999, 1, 1, tzinfo=UTC)
    for i in range(2000):
        when = day + timedelta(days=i, hours=i % 24)
        expected = (when.hour, when.weekday())
        assert time_of(when.strftime("%Y-%m-%dT%H:%M")) == expected
        assert time_of(when.strftime("%m/%d/%Y %H:%M")) == expected
        assert time_of(str(int(when.timestamp()))) == expected
        if when.year >= 2000:
            assert time_of(when.strftime("%y%m%d%H")) == expected


@settings(max_examples=500, deadline=None)
@given(
    st.one_of(
        st.text(alphabet="0123456789-:/T Z.+", max_size=30),
        st.datetimes().map(lambda when: when.isoformat(timespec="minutes")),
        st.datetimes().map(str),
        st.from_regex(r"\A\d{1,2}/\d{1,2}/\d{3,4}( \d{1,2}:\d\d(:\d\d)?)?\Z").filter(str.isascii),
    )
)
def test_any_time_is_that_of_the_twin(token):
    assert time_of(token) == (reference.time(token) if token else None)
