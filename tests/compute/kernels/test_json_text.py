"""The grammar of JSON, value by value, against Python's json."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.compute.kernels.json_text import (
    EXPECT_ESCAPE,
    EXPECT_STRING,
    EXPECT_SURROGATE,
    blank,
    numeral,
    plain_end,
    unescape,
)

NUMBER = re.compile(rb"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


def line(text):
    """Return an array with ``text`` and a newline, hostile bytes behind it, and its address."""
    data = np.frombuffer(text + b"\n" + b'7"}\\' * 32, np.uint8)
    return data, data.ctypes.data


@settings(deadline=None)
@given(
    st.text("-+0123456789.eE", max_size=12).map(str.encode) | st.floats().map(repr).map(str.encode)
)
def test_number_ends_where_the_grammar_says(text):
    data, at = line(text)
    found = numeral(at) - at
    match = NUMBER.match(text)
    if match is None:
        assert numeral(at) < 0
    elif numeral(at) < 0:
        # a point or an exponent without digits: no number at all, though a shorter one stands there
        assert text[match.end() : match.end() + 1] in (b".", b"e", b"E")
        assert match.end() < -numeral(at) - at <= len(text)
    else:
        assert found == match.end()
    assert data[0] == (text + b"\n")[0]


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=80), st.booleans())
def test_string_is_what_python_reads(text, escape):
    quoted = json.dumps(text, ensure_ascii=escape).encode() + b',"x"'
    _, at = line(quoted)
    target = np.zeros(len(quoted) + 8, np.uint8)
    after, length, code = unescape(at + 1, target, 3)
    assert code == 0
    assert after - at == len(quoted) - 4
    assert bytes(target[3 : 3 + length]) == text.encode()
    assert not target[:3].any()
    assert not target[3 + length :].any()


@pytest.mark.parametrize("length", [0, 1, 7, 8, 63, 64, 65, 127, 128, 1000])
@pytest.mark.parametrize("stop", [b'"', b"\\", b"\n", b"\x1f", b"\x00"])
def test_plain_text_ends_at_quote_backslash_or_control(length, stop):
    _, at = line((b" !#[]~\x7f\x80\xff" * 112)[:length] + stop)
    assert plain_end(at) - at == length


@pytest.mark.parametrize(
    ("text", "byte", "expected"),
    [
        (b"abc", 3, EXPECT_STRING),
        (b"ab\x01", 2, EXPECT_STRING),
        (b"ab\\", 2, EXPECT_ESCAPE),
        (b'\\U0041"', 0, EXPECT_ESCAPE),
        (b'\\u004"', 0, EXPECT_ESCAPE),
        (b'x\\ud83d"', 1, EXPECT_SURROGATE),
        (b'\\ud83d\\ud83d"', 0, EXPECT_SURROGATE),
        (b'\\ud83d\\n"', 0, EXPECT_SURROGATE),
        (b'\\udfff"', 0, EXPECT_SURROGATE),
        (b'\\udbff\\ue000"', 0, EXPECT_SURROGATE),
    ],
)
def test_wrong_string_is_told_by_its_byte(text, byte, expected):
    _, at = line(text)
    after, _, code = unescape(at, np.zeros(64, np.uint8), 0)
    assert (after - at, code) == (byte, expected)


def test_edges_of_every_length_of_utf8_come_out():
    for point in (0, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF):
        _, at = line(json.dumps(chr(point))[1:].encode())
        target = np.zeros(32, np.uint8)
        _, length, code = unescape(at, target, 0)
        assert (bytes(target[:length]).decode(), code) == (chr(point), 0)


def test_blanks_are_those_of_json():
    _, at = line(b" \t\r \x0b")
    assert blank(at) - at == 4
    _, at = line(b"")
    assert blank(at) == at
