"""UTF-8, ends of lines and numbers against Python's own."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamlearn.compute.kernels import text
from tests.reference.words import float_spacing
from tests.reference.words import number as number_twin


def placed(data: bytes, tail: bytes = b"") -> np.ndarray:
    """Put some bytes into a buffer that goes on with others."""
    return np.frombuffer(data + tail + b"7\x80" * 40, np.uint8)


def number(token: bytes, tail: bytes = b"") -> float | None:
    buffer = placed(token, tail)
    valid, value = text.number(buffer.ctypes.data, len(token))
    assert valid or value == 0
    return float(value) if valid else None


def decimal(token: str) -> float:
    buffer = placed(token.encode())
    return float(text.decimal(buffer.ctypes.data, len(token)))


def utf8_valid(data: bytes) -> bool:
    buffer = placed(data)
    return bool(text.utf8_valid(buffer.ctypes.data, len(data)))


def decodes(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


# bytes at the edges of the table of well-formed sequences
EDGES = bytes.fromhex("007f808f909fa0bfc0c1c2dfe0e1ecedeeeff0f1f3f4f5ff")


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.sampled_from(list(EDGES)), max_size=12))
@example([0xED, 0xA0, 0x80])
@example([0xF4, 0x90, 0x80, 0x80])
@example([0xC0, 0x80])
@example([0xE2, 0x82])
def test_utf8_is_what_python_decodes(values):
    assert utf8_valid(bytes(values)) == decodes(bytes(values))


@settings(deadline=None)  # the first call compiles
@given(st.text(max_size=30))
def test_any_text_is_utf8(string):
    data = string.encode(errors="replace")
    assert utf8_valid(data)


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 200])
def test_a_line_ends_at_its_newline(length):
    buffer = placed(b"x" * length + b"\n")
    assert text.line_end(buffer.ctypes.data) == buffer.ctypes.data + length


DECIMALS = st.one_of(
    st.from_regex(rb"[+-]?[0-9]{0,25}\.?[0-9]{0,25}([eE][+-]?[0-9]{1,3})?", fullmatch=True),
    st.floats(allow_nan=False, allow_infinity=False).map(lambda x: repr(x).encode()),
    st.floats(allow_nan=False, allow_infinity=False, width=32).map(lambda x: b"%.9g" % x),
    st.integers().map(lambda i: b"%d" % i),
)


@settings(deadline=None)  # the first call compiles
@given(DECIMALS, st.sampled_from([b"", b"\t", b"\n", b"5", b"e5", b"."]))
@example(b"3.4028235e38", b"")
@example(b"3.4028236e38", b"")
@example(b"1e-45", b"")
@example(b"1e-46", b"")
@example(b"0.0000000000000000000000000000000000000000000000000000000000000001e64", b"")
@example(b"1" + b"0" * 50 + b"e-50", b"")
@example(b"0e999999999999", b"")
@example(b"1e-999999999999", b"")
def test_numbers_are_within_the_stated_error(token, tail):
    value = number(token, tail)
    nearest = number_twin(token)
    if value is None or nearest is None:
        assert value == nearest
        return
    if value == nearest:
        return
    exact = Fraction(token.decode())
    error = abs(Fraction(value) - exact)
    assert error <= float_spacing(nearest) * (Fraction(1, 2) + Fraction(1, 1 << 25))


@settings(deadline=None)  # the first call compiles
@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_nine_digits_give_the_float_back(value):
    assert number(b"%.9g" % value) == value


@pytest.mark.parametrize(
    "token",
    [
        *(
            b"",
            b"+",
            b"-",
            b".",
            b"-.",
            b"e5",
            b"1e",
            b"1e+",
            b"1e5.",
            b"--1",
            b"+-1",
            b"1-",
            b"1 ",
        ),
        *(b" 1", b"1,5", b"1.2.3", b"nan", b"NaN", b"inf", b"-inf", b"infinity", b"0x10", b"1_000"),
        *(
            b"1f",
            b"\xb1",
            b"1\x00",
            b"1e39",
            b"-1e39",
            b"1e400",
            b"9" * 60,
            b"1:2",
            b"/",
            b"12345678:",
        ),
    ],
)
def test_what_is_not_a_finite_number_is_refused(token):
    assert number(token) is None


@pytest.mark.parametrize(
    "token", [b"0", b"-0", b"0.0", b".0", b"0.", b"0e5", b"-0e-999", b"1e-400"]
)
def test_zero_has_many_forms(token):
    assert number(token) == 0


@settings(deadline=None)  # the first call compiles
@given(st.binary(max_size=12))
def test_any_bytes_are_a_number_or_not(token):
    value = number(token)
    twin = number_twin(token)
    assert (value is None) == (twin is None)
    assert value is None or math.isclose(value, twin, rel_tol=2**-23)


@settings(max_examples=500, deadline=None)
@given(
    st.one_of(
        st.integers(-(10**20), 10**20).map(str),
        st.floats(-(2.0**120), 2.0**120).map(repr),
        st.decimals(-(10**9), 10**9, places=4).map(str),
        st.text(alphabet="0123456789+-.eE", max_size=14),
    )
)
def test_any_decimal_is_within_its_stated_error(token):
    got = decimal(token)
    if number_twin(token.encode()) is None:
        # decimal takes some more than float32 holds
        assert math.isnan(got) or abs(got) > float(np.finfo(np.float32).max)
    else:
        exact = float(token)
        assert abs(got - exact) <= abs(exact) * 2.0**-50 + 1e-61
        if len(token) <= 15 and "e" not in token.lower():
            assert got == exact


@pytest.mark.parametrize(
    ("token", "value"),
    [
        ("0", 0.0),
        ("12345678", 12345678.0),
        ("123456789", 123456789.0),
        ("0.1", 0.1),
        ("00000000000000000000000000001", 1.0),
        ("0.05644299999999999", 0.05644299999999999),
        ("1e-400", 0.0),
    ],
)
def test_a_decimal_has_its_value(token, value):
    assert decimal(token) == value


@pytest.mark.parametrize(
    "token", ["", "nan", "inf", "1e400", "1_0", "0x1", "1e", "1e+", "+", ".", "1.2.3", " 1", "1 "]
)
def test_what_is_no_decimal_is_nan(token):
    assert math.isnan(decimal(token))
