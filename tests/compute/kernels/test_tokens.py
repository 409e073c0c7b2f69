"""Words and their keys, against the slow twin."""

from __future__ import annotations

import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.compute.kernels import tokens as kernels
from streamlearn.online.letters import letter_table
from streamlearn.online.stop_words import ELEMENTS, ENGLISH
from streamlearn.online.tokens import WORD, key_table, word_keys
from tests.reference.tokens import words_of

_PAGES, _CELLS = letter_table()
_TAGS = key_table(word_keys(sorted(ELEMENTS)))
_NONE = key_table(())
_STOPS = key_table(word_keys(sorted(ENGLISH)))


def found(
    data: bytes,
    *,
    encoding: int = kernels.UTF_8,
    strict: bool = False,
    digits: bool = False,
    markup: bool = True,
    shortest: int = 2,
    longest: int = 64,
    stops: np.ndarray = _NONE,
    before: int = 3,
) -> tuple[list[int], int, list[str], list[int]]:
    """Return keys and the first wrong byte; words as they are spelt, and their keys.

    Letters and digits stand around the text.
    """
    buffer = np.full(before + len(data) + 192, ord("x"), np.uint8)
    buffer[before : before + len(data)] = np.frombuffer(data, np.uint8)
    rules = np.array([encoding, strict, digits, markup, shortest, longest], np.int64)
    fixed = (rules, WORD, _PAGES, _CELLS, stops, _TAGS)
    keys = np.zeros(len(data) // 2 + 3, np.uint64)
    scratch, barren = np.zeros(4 * longest + 16, np.uint8), np.zeros(1, np.bool_)
    at = buffer.ctypes.data + before
    count, wrong = kernels.key_words(at, at + len(data), *fixed, scratch, barren, keys, 1)
    spelt, ends = np.zeros(len(data) + 2, np.uint64), np.zeros(len(data) + 2, np.int64)
    text = np.zeros(2 * len(data) + 4 * longest + 16, np.uint8)
    words, used = kernels.spell_words(at, at + len(data), *fixed, barren, spelt, ends, text, 0, 0)
    edges = [0, *ends[:words].tolist()]
    assert edges[-1] == used
    return (
        keys[1:count].tolist(),
        wrong - at if wrong else -1,
        [text[a:b].tobytes().decode() for a, b in pairwise(edges)],
        spelt[:words].tolist(),
    )


def _is_known(character: str) -> bool:
    """Whether this Python's Unicode and the table agree on a character: not what came later."""
    cell = int(_CELLS[256 * int(_PAGES[ord(character) >> 8]) + (ord(character) & 255)])
    category = unicodedata.category(character)
    kind = 3 if category == "Nd" else {"L": 1, "M": 2}.get(category[0], 0)
    return cell & 3 == kind


_PIECES = st.one_of(
    st.text("abcdefghijklmnopqrstuvwxyzABCXYZ", min_size=1, max_size=12),
    st.text(" \t\n.,'-_\r\0", min_size=1, max_size=3),
    st.sampled_from(
        ["<br />", "</P>", "<b", "<a href='x'>", "<john@x.org>", "<!-- a <b> -->", "<!--", "-->"]
    ),
    st.sampled_from(["&nbsp;", "&#39;", "&", "&amp", "AT&T;", "<!DOCTYPE html>", "<", ">", "&;"]),
    st.sampled_from(["ΟΔΟΣ", "Σ", "ΣΑΣ", "Σ\u0301", "İ", "ÉTÉ", "naïve", "Straße", "Ⱥ", "日本語"]),
    st.sampled_from(
        ["don\u2019t", "\u2014", "e\u0301", "\u0301", "𐐀𐐁", "Привет", "שלום", "٣٤", "R2D2"]
    ),
    st.text(st.characters(exclude_categories=["Cs"]).filter(_is_known), min_size=1, max_size=5),
)
_TEXTS = st.lists(_PIECES, max_size=40).map("".join)


@settings(max_examples=300, deadline=None)
@given(_TEXTS, st.booleans(), st.booleans(), st.integers(1, 4), st.integers(4, 20), st.booleans())
def test_words_of_any_text_are_those_of_the_reference(
    text: str, digits: bool, markup: bool, shortest: int, longest: int, sieved: bool
) -> None:
    keys, wrong, spelt, spelt_keys = found(
        text.encode(),
        digits=digits,
        markup=markup,
        shortest=shortest,
        longest=longest,
        stops=_STOPS if sieved else _NONE,
    )
    expected = words_of(
        text,
        digits=digits,
        markup=markup,
        shortest=shortest,
        longest=longest,
        stops=ENGLISH if sieved else frozenset(),
    )
    assert spelt == expected
    assert keys == spelt_keys == word_keys(expected).tolist()
    assert wrong == -1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(_PIECES.map(str.encode), st.binary(min_size=1, max_size=4)), max_size=30))
def test_bytes_that_are_no_text_end_words(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    keys, wrong, spelt, spelt_keys = found(data, markup=False)
    try:
        data.decode()
    except UnicodeDecodeError as error:
        first = error.start
    else:
        first = -1
    assert wrong == first
    text = data.decode(errors="replace")
    if all(map(_is_known, text)):
        assert spelt == words_of(text, markup=False)
    assert keys == spelt_keys == word_keys(spelt).tolist()
    strict, at, _, _ = found(data, markup=False, strict=True)
    assert at == first
    assert strict == keys[: len(strict)]


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_all_bytes_are_text_in_latin_1(data: bytes) -> None:
    keys, wrong, spelt, _ = found(data, encoding=kernels.LATIN_1)
    assert spelt == words_of(data.decode("latin-1"))
    assert (keys, wrong) == (word_keys(spelt).tolist(), -1)


@pytest.mark.parametrize("before", range(9))
@pytest.mark.parametrize("size", [1, 7, 8, 9, 15, 16, 17, 63, 64])
def test_words_end_at_any_place_of_a_window(before: int, size: int) -> None:
    for gap in range(60, 70):
        text = " " * gap + "Q" * size
        assert found(text.encode(), shortest=1, before=before)[2] == ["q" * size]
        keys, *_ = found(text.encode(), shortest=1, before=before)
        assert keys == word_keys(["q" * size]).tolist()


def test_lengths_count_characters() -> None:
    text = "a éé ééé éééé İi"
    assert found(text.encode(), shortest=2, longest=3)[2] == ["éé", "ééé", "i\u0307i"]


def test_a_sigma_ends_a_word_as_greek_has_it() -> None:
    text = "ΟΔΟΣ Σ ΔΑΣ ΣΣ."
    assert found(text.encode(), shortest=1)[2] == ["οδος", "\u03c3", "δας", "\u03c3ς"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("good.<br /><br />Bad", ["good", "bad"]),
        ("a<B>bold</B>b", ["bold"]),
        ('see <a href="http://x.org/page" title="t">this</a>', ["see", "this"]),
        ("john <john@x.org>", ["john", "john", "org"]),
        ("if x <y and y> z", ["if", "and"]),
        ("a <b and <c", ["and"]),
        ("<!-- left\nout --> kept <!-- unended", ["kept", "unended"]),
        ("&quot;word&quot; R&D &amp; AT&T", ["word", "at"]),
        ("<!DOCTYPE html><p>text", ["text"]),
        ("<script src=x>", []),
        ("<unknown tag>", ["unknown", "tag"]),
    ],
)
def test_markup_is_no_text(text: str, expected: list[str]) -> None:
    assert found(text.encode())[2] == expected
    assert found(text.encode())[0] == word_keys(expected).tolist()


def test_comments_without_an_end_cost_no_more_than_once() -> None:
    # a million bytes: with a search to the end at each it would take minutes
    keys, *_ = found(b"<!-- ab " * (1 << 17))
    assert len(keys) == 1 << 17
