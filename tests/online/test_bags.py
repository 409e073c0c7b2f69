"""Documents as counts of words: ldac, and docword as the source puts it together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.config import SourceConfig
from streamlearn.errors import ConfigError, DataError
from streamlearn.messages import RECORD_BYTES_MAX
from streamlearn.online.bags import DOCUMENT_WORDS_MAX
from streamlearn.online.formats import open_format
from streamlearn.online.minibatch import ROW_WORDS_MAX
from tests.online.test_documents import batch_of, keys_of, parsed
from tests.reference.minibatches import described

WORDS = ["apple", "banana", "chérry"]


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "vocabulary.txt"
    path.write_text("apple\r\n banana \nchérry\n\n")
    return str(path)


def test_counts_are_so_many_words(vocabulary):
    rows, bad = parsed(
        b"2 0:2 2:1\n0\n\n1  1:3 \r\n", format="ldac", vocabulary=vocabulary, out=batch_of(1)
    )
    assert rows == [
        (0, keys_of("apple", "apple", "chérry")),
        (10, []),
        (13, keys_of("banana", "banana", "banana")),
    ]
    assert not bad


def test_words_are_those_of_text(vocabulary):
    text, _ = parsed("Apple CHÉRRY\n".encode())
    counts, _ = parsed(b"2 0:1 2:1\n", format="ldac", vocabulary=vocabulary)
    assert text == counts


def test_without_a_vocabulary_a_word_is_its_number():
    rows, _ = parsed(b"3 7:1 007:1 123456789012345678:1\n", format="ldac")
    assert rows == [(0, keys_of("7", "7", "123456789012345678"))]


@pytest.mark.parametrize(
    ("record", "reason", "said"),
    [
        (b"2 0:1", "field_count", "expected 2 pairs of word:count, found 1"),
        (b"99999999999 0:1", "field_count", "expected 2097151 pairs of word:count, found 1"),
        (b"1 3:1", "word", "word 3 at byte 2 is not one of 0 to 2 (source.vocabulary has 3)"),
        (b"1 0:0", "number", "count '0' at byte 4 is not a whole number above 0"),
        (b"1 0:-2", "number", "count '-2' at byte 4 is not a whole number above 0"),
        (b"1 0:1.5", "number", "count '1.5' at byte 4 is not a whole number above 0"),
        (b"1 0:", "number", "count the record's end at byte 4 is not a whole number above 0"),
        (b"1 0:1234567890123456789", "number",
         "count '1234567890123456789' at byte 4 is not a whole number above 0"),
        (b"1 x:1", "syntax", "expected word:count at byte 2, found 'x:1'"),
        (b"1 -1:1", "syntax", "expected word:count at byte 2, found '-1:1'"),
        (b"1 0 1", "syntax", "expected word:count at byte 2, found '0'"),
        (b"apple 0:1", "syntax", "expected a whole number first, found 'apple'"),
        (b"0:1 1:1", "syntax", "expected a whole number first, found '0:1'"),
        (b"   ", "syntax", "expected a whole number first, found the record's end"),
        (b"2 0:524288 1:1", "feature_count",
         "document of 524,289 words is longer than the 524,288 allowed"),
        (b"2 0:999999999999 1:1", "feature_count",
         "document of 1,000,000,000,000 words is longer than the 524,288 allowed"),
        (b"1 0:1" + b" " * RECORD_BYTES_MAX, "too_long",
         f"record of {RECORD_BYTES_MAX + 5} bytes is longer than the {RECORD_BYTES_MAX} allowed"),
    ],
)  # fmt: skip
def test_bad_counts(vocabulary, record, reason, said):
    rows, bad = parsed(b"1 0:1\n" + record + b"\n1 1:1\n", format="ldac", vocabulary=vocabulary)
    assert [keys for _, keys in rows] == [keys_of("apple"), keys_of("banana")]
    assert bad == [(6, reason, said)]


def test_a_long_document_has_several_rows(vocabulary):
    rows, bad = parsed(
        b"2 0:70000 1:454288\n1 2:1\n", format="ldac", vocabulary=vocabulary, out=batch_of(1)
    )
    assert not bad
    assert sum(len(keys) for _, keys in rows) == DOCUMENT_WORDS_MAX + 1
    assert {len(keys) for _, keys in rows[:-2]} == {ROW_WORDS_MAX}
    assert rows[0][1] == keys_of("apple") * ROW_WORDS_MAX
    assert {start for start, _ in rows[:-1]} == {0}


def test_documents_of_docword(vocabulary):
    header = b"5 3 5"
    data = b"1 1:2 3:1\n2\n!2 1 3 1\n!2 6 1 1\n!2 3 x 1\n!2 3 1\n3 4:1\n3 0:1\n4 2:0\n5 2:1\n"
    rows, bad = parsed(data, header, format="bow", vocabulary=vocabulary)
    assert [keys for _, keys in rows] == [
        keys_of("apple", "apple", "chérry"),
        [],
        keys_of("banana"),
    ]
    assert [(reason, said) for _, reason, said in bad] == [
        ("syntax", "document 1 comes after 2: documents must be in order"),
        ("syntax", "document 6 is beyond the number of documents in the first line"),
        ("syntax", "expected document, word and count, found '3 x 1'"),
        ("syntax", "expected document, word and count, found '3 1'"),
        ("word", "word 4 at byte 2 is not one of 1 to 3 (source.vocabulary has 3)"),
        ("word", "word 0 at byte 2 is not one of 1 to 3 (source.vocabulary has 3)"),
        ("number", "count '0' at byte 4 is not a whole number above 0"),
    ]


def test_docword_without_a_vocabulary_knows_how_many_words_there_are():
    rows, bad = parsed(b"1 3:1\n2 4:1\n", b"2 3 2", format="bow")
    assert rows == [(0, keys_of("3"))]
    assert bad == [(6, "word", "word 4 at byte 2 is not one of 1 to 3")]


def test_a_vocabulary_of_another_size_is_refused(vocabulary):
    format = open_format(SourceConfig(format="bow", vocabulary=vocabulary))
    with pytest.raises(DataError) as error:
        format.parser(b"5 4 5")
    assert error.value.message == (
        f"source.vocabulary: {vocabulary} has 3 words, but the second line of the source says 4"
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read"),
        (b"", "has no words"),
        (b"a\n\nb\n", "line 2 of .* is empty"),
        (b"a\nb\na\n", "line 3 of .* is 'a', as line 1 is already"),
        (b"a\n\xff\n", "is not UTF-8 at byte 2"),
    ],
)
@pytest.mark.parametrize("name", ["ldac", "bow"])
def test_a_vocabulary_that_cannot_be_used(tmp_path, name, content, problem):
    path = tmp_path / "words.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=problem):
        open_format(SourceConfig(format=name, vocabulary=str(path)))


@pytest.mark.parametrize(
    "options",
    [{"columns": {"0": "text"}}, {"header": True}, {"label": "y"}, {"documents": "files"}],
)
def test_settings_that_make_no_sense(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        open_format(SourceConfig(format="ldac", **options))


@pytest.mark.parametrize("known", [True, False])
def test_words_are_named_once_a_pair(vocabulary, known):
    format = open_format(SourceConfig(format="ldac", vocabulary=vocabulary if known else ""))
    found = described(format.parser(None), b"2 0:9 2:1\n0\n1 02:1\n")
    names = ["apple", "chérry", "chérry"] if known else ["0", "2", "2"]
    assert [(key, field, text.decode()) for key, field, text in found] == [
        (key, -1, name) for key, name in zip(keys_of(*names), names, strict=True)
    ]


_PAIRS = st.dictionaries(st.integers(0, 30), st.integers(1, 9), max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(_PAIRS, max_size=12), st.integers(1, 4))
def test_any_counts_come_back(documents, rows_max):
    lines = [
        " ".join([str(len(one)), *(f"{word}:{count}" for word, count in one.items())])
        for one in documents
    ]
    data = "".join(f"{line}\n" for line in lines).encode()
    rows, bad = parsed(data, format="ldac", out=batch_of(rows_max))
    assert not bad
    assert [keys for _, keys in rows] == [
        keys_of(*(str(word) for word, count in one.items() for _ in range(count)))
        for one in documents
    ]


def test_the_key_of_a_word_is_never_0_and_odd():
    keys = np.array(keys_of(*map(str, range(1000))), np.uint64)
    assert (keys & np.uint64(1)).all()
    assert len(set(keys.tolist())) == 1000


def test_a_changed_vocabulary_has_another_digest(vocabulary, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("banana\napple\nchérry\n")
    digests = {
        open_format(SourceConfig(format="ldac", vocabulary=path)).digest
        for path in ("", vocabulary, str(other))
    }
    assert len(digests) == 3
    assert "" in digests
