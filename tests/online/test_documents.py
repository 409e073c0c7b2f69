"""Documents: lines, columns of delimited text, fields of JSON; what is wrong with them."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.config import SourceConfig
from streamlearn.errors import ConfigError, DataError
from streamlearn.messages import BLOCK_TAILROOM_BYTES, RECORD_BYTES_MAX
from streamlearn.online.formats import open_format
from streamlearn.online.minibatch import (
    DOCUMENT_ROWS_MAX,
    FEATURES_PER_RECORD_MAX,
    REASONS,
    ROW_WORDS_MAX,
    S_REPLACED,
    S_SPLIT,
    Minibatch,
    room_of,
)
from streamlearn.online.tokens import word_keys
from tests.reference.minibatches import described
from tests.reference.tokens import words_of


def batch_of(rows: int = 64) -> Minibatch:
    return Minibatch(
        *room_of(rows, 4096, DOCUMENT_ROWS_MAX), has_values=False, record_rows=DOCUMENT_ROWS_MAX
    )


def parsed(data: bytes, first: bytes | None = None, out: Minibatch | None = None, **options):
    """Parse records; return rows as (start, keys), bad ones as (start, reason, complaint)."""
    options.setdefault("format", "documents")
    format = open_format(SourceConfig(**options))
    parser = format.parser(first)
    out = batch_of() if out is None else out
    buffer = np.full(3 + len(data) + BLOCK_TAILROOM_BYTES, ord("x"), np.uint8)
    buffer[3 : 3 + len(data)] = np.frombuffer(data, np.uint8)
    buffer[3 + len(data) :: 7] = ord("\n")
    rows, bad = [], []
    at, end = 3, 3 + len(data)
    while at < end:
        out.clear()
        out.weights[:] = 7
        after = parser.parse(buffer, at, end, out)
        assert at < after <= end
        assert after == end or out.full
        assert (out.weights[: out.rows] == 1).all()
        assert (out.labels[: out.rows] == 0).all()
        assert out.records == out.rows - out.state[S_SPLIT] + out.bad
        assert out.indptr[out.rows] == out.nnz
        spans = pairwise(out.indptr[: out.rows + 1].tolist())
        rows += [
            (int(line) - 3, out.keys[first:last].tolist())
            for line, (first, last) in zip(out.lines[: out.rows], spans, strict=True)
        ]
        for i in range(out.bad):
            start = int(out.bad_start[i]) - 3
            reason = int(out.bad_reason[i])
            record = data[start : data.index(b"\n", start)]
            said = format.complaint(reason, int(out.bad_field[i]), int(out.bad_arg[i]), record)
            bad.append((start, REASONS[reason], said))
        at = after
    return rows, bad


def keys_of(*words: str) -> list[int]:
    return word_keys(words).tolist()


def test_a_line_is_a_document():
    rows, bad = parsed(b"A cat and a dog\nthe cat\r\n\n\r\n  \nend\n")
    assert rows == [
        (0, keys_of("cat", "and", "dog")),
        (16, keys_of("the", "cat")),
        (28, []),
        (31, keys_of("end")),
    ]
    assert not bad


def test_settings_of_words_are_kept():
    data = b"The R2D2 unit of <br> films\n"
    assert parsed(data)[0] == [(0, keys_of("the", "unit", "of", "films"))]
    rows, _ = parsed(data, digits=True, markup="none", word_length_min=3, stop_words="english")
    assert rows == [(0, keys_of("r2d2", "unit", "films"))]
    assert parsed(data, word_length_max=3)[0] == [(0, keys_of("the", "of"))]


def test_stop_words_come_from_a_file(tmp_path):
    path = tmp_path / "stops.txt"
    path.write_text("The\ndon't\n\nÉté\n")
    rows, _ = parsed("the don t été word\n".encode(), stop_words=str(path), word_length_min=1)
    assert rows == [(0, keys_of("word"))]


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "cannot be read"), (b"caf\xe9\n", "is not UTF-8 at byte 3")],
)
def test_a_file_of_stop_words_that_cannot_be_used(tmp_path, content, problem):
    path = tmp_path / "stops.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=problem):
        open_format(SourceConfig(format="documents", stop_words=str(path)))


def test_bytes_that_are_no_text_are_counted():
    out = batch_of()
    rows, bad = parsed(b"caf\xe9 noir\nplain\n\xff\n", out=out)
    assert rows == [(0, keys_of("caf", "noir")), (10, keys_of("plain")), (16, [])]
    assert not bad
    assert out.state[S_REPLACED] == 2


def test_bytes_that_are_no_text_may_be_bad_records():
    out = batch_of()
    rows, bad = parsed(b"ok\ncaf\xe9 noir\nok\n", out=out, undecodable="bad")
    assert rows == [(0, keys_of("ok")), (13, keys_of("ok"))]
    assert bad == [(3, "utf8", "byte 3 (0xe9) is not valid UTF-8")]
    assert out.state[S_REPLACED] == 0


def test_latin_1_is_text_of_its_own():
    rows, bad = parsed("CAFÉ naïve\n".encode("latin-1"), encoding="latin-1", undecodable="bad")
    assert (rows, bad) == ([(0, keys_of("café", "naïve"))], [])


def test_columns_by_name_of_a_header():
    rows, bad = parsed(
        b'1,"He said ""no"", twice",x\n2,plain\n3,a "b,c\n4,"open,c\n5,,\n',
        b"id,text,rest",
        header=True,
        columns={"text": "text", "id": "ignore"},
    )
    assert rows == [(0, keys_of("he", "said", "no", "twice")), (55, [])]
    assert [(start, reason) for start, reason, _ in bad] == [
        (28, "field_count"),
        (36, "quote"),
        (45, "quote"),
    ]
    assert bad[0][2] == "expected 3 fields, found 2"


def test_columns_by_number_between_tabs():
    rows, bad = parsed(
        b'pos\t7\tIt "is" good\tand more\textra\nneg\t"a\tbad\t"film\nshort\tone\n',
        b"pos\t7\tIt is good\tand more",
        columns={"2": "text", "3": "text"},
    )
    assert rows == [
        (0, keys_of("it", "is", "good", "and", "more")),
        (34, keys_of("bad", "film")),
    ]
    assert bad == [(51, "field_count", "expected at least 4 fields, found 2")]


@pytest.mark.parametrize(
    ("first", "options", "expected"),
    [
        (b"a,b\tc", {}, ["c"]),
        (b"a,b c", {}, ["b", "c"]),
        (b"a;b,c", {"delimiter": ";"}, ["b", "c"]),
        (b"a|b\tc", {"delimiter": "|"}, ["b", "c"]),
    ],
)
def test_what_separates_columns_shows_the_first_line(first, options, expected):
    rows, _ = parsed(first + b"\n", first, columns={"1": "text"}, word_length_min=1, **options)
    assert rows == [(0, keys_of(*expected))]


def test_fields_of_json():
    records = [
        {
            "text": "Caf\u00e9 \u2014 \ud83d\ude00",
            "meta": {"title": ["A Tale", 7, None]},
            "x": "no",
        },
        {"text": None},
        {"x": {"text": "no"}, "y": [["text"]]},
    ]
    lines = [json.dumps(record).encode() for record in records]
    lines += [b'{"text": "a b",}', b"[1]", b'{"text": "bad \\x"}']
    rows, bad = parsed(
        b"\n".join(lines) + b"\n", lines[0], columns={"text": "text", "meta.title": "text"}
    )
    assert [keys for _, keys in rows] == [keys_of("café", "tale"), []]
    assert [(reason, said) for _, reason, said in bad] == [
        ("field_count", "the object has no field 'text' or 'meta.title'"),
        ("syntax", "expected a key in quotes at byte 15, found '}'"),
        ("syntax", "expected an object at byte 0, found '[1]'"),
        ("syntax", "expected an escape of JSON at byte 14, found '\\\\x\"}'"),
    ]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["text", "a", "b.c", "é"]), inner, max_size=3)
    ),
    max_leaves=12,
)


def _texts(value, path, wanted):
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _texts(one, f"{path}.{key}" if path else key, wanted)
    elif isinstance(value, list):
        if path in wanted:
            yield None
        for one in value:
            yield from _texts(one, path, wanted)
    elif path in wanted:
        yield value


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["text", "a", "x"]), _JSON, max_size=3), st.booleans())
def test_any_json_gives_the_texts_of_its_fields(record, ascii):
    line = json.dumps(record, ensure_ascii=ascii).encode("utf-8", "replace")
    wanted = {"text", "a.text", "a.b.c"}
    rows, bad = parsed(line + b"\n", b"{}", columns=dict.fromkeys(wanted, "text"), markup="none")
    texts = list(_texts(json.loads(line), "", wanted))
    if not texts:
        assert [reason for _, reason, _ in bad] == ["field_count"]
        return
    words = words_of(" \n ".join(one for one in texts if isinstance(one, str)), markup=False)
    assert rows == [(0, keys_of(*words))]


def test_a_long_document_has_several_rows():
    words = ["ab", "cd", "ef"]
    count = 2 * ROW_WORDS_MAX + 5
    data = b" ".join(words[i % 3].encode() for i in range(count))
    out = batch_of(1)
    rows, bad = parsed(b"first\n" + data + b"\nlast\n", out=out)
    assert not bad
    assert [len(keys) for _, keys in rows] == [1, ROW_WORDS_MAX, ROW_WORDS_MAX, 5, 1]
    assert [start for start, _ in rows] == [0, 6, 6, 6, 7 + len(data)]
    expected = keys_of(*words) * (count // 3) + keys_of(*words[: count % 3])
    assert [key for _, keys in rows[1:4] for key in keys] == expected


def test_the_longest_record_of_the_shortest_words_fits():
    data = b"a " * (RECORD_BYTES_MAX // 2)
    out = batch_of(1)
    rows, bad = parsed(data + b"\n" + data + b"x\n", out=out, word_length_min=1)
    assert len(rows) == DOCUMENT_ROWS_MAX == out.rows_max
    assert sum(len(keys) for _, keys in rows) == RECORD_BYTES_MAX // 2
    assert [(reason, said) for _, reason, said in bad] == [
        ("too_long", f"record of {RECORD_BYTES_MAX + 1} bytes is longer than the "
         f"{RECORD_BYTES_MAX} allowed")
    ]  # fmt: skip


def test_words_are_named_as_they_are_keyed():
    format = open_format(SourceConfig(format="documents"))
    found = described(format.parser(None), "Un Été\r\n\n<br>à l'ÉTÉ\n".encode())
    assert [(field, text.decode()) for _, field, text in found] == [
        (-1, "un"), (-1, "été"), (-1, "été"),
    ]  # fmt: skip
    assert [key for key, _, _ in found] == keys_of("un", "été", "été")
    assert format.fields == ()


def test_words_of_columns_are_named():
    for first, data, columns in (
        (b"a,b", b'x,"one ""two"""\n', {"1": "text"}),
        (b"{}", b'{"t": "one \\u0054wo"}\n', {"t": "text"}),
    ):
        format = open_format(SourceConfig(format="documents", columns=columns))
        found = described(format.parser(first), data)
        assert [(key, text) for key, _, text in found] == [
            (keys_of("one")[0], b"one"),
            (keys_of("two")[0], b"two"),
        ]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"columns": {"1": "label"}}, "source.columns.1: expected one of text, ignore, got"),
        ({"columns": {"1": "ignore"}}, "source.columns: expected one column of kind text"),
        ({"header": True}, "source.columns: expected one column of kind text"),
        ({"columns": {"01": "text"}}, "source.columns.01: expected a column's number from 0"),
        ({"columns": {"1": "text"}, "documents": "files"}, 'source.documents is "files"'),
        ({"label": "y"}, "source.label: expected nothing"),
        ({"cross": ("a*b",)}, "source.cross: expected nothing"),
        ({"word_length_min": 9, "word_length_max": 8}, "source.word_length_min: expected at most"),
        ({"quote": ","}, "is the delimiter already"),
    ],
)
def test_settings_that_make_no_sense(options, problem):
    with pytest.raises(ConfigError, match=problem.replace(".", r"\.")):
        open_format(SourceConfig(format="documents", **options))


@pytest.mark.parametrize(
    ("options", "first", "problem"),
    [
        ({"columns": {"t": "text"}}, b"t\tx", "names 't', but the first line is no object"),
        ({"columns": {"t": "text"}, "header": True}, b"a,b", "has no column 't'"),
        ({"columns": {"t": "text"}, "header": True}, b"t,t", "has the column 't' twice"),
        ({"columns": {"t": "text"}, "encoding": "latin-1"}, b'{"t":1}', "JSON, which is UTF-8"),
    ],
)
def test_first_lines_that_do_not_fit(options, first, problem):
    with pytest.raises(DataError, match=problem):
        open_format(SourceConfig(format="documents", **options)).parser(first)


def test_it_needs_the_first_line_only_for_columns():
    plain = open_format(SourceConfig(format="documents"))
    assert (plain.first_line, plain.has_header) == (False, False)
    columns = open_format(SourceConfig(format="documents", columns={"1": "text"}))
    assert (columns.first_line, columns.has_header) == (True, False)
    assert plain.record_rows * FEATURES_PER_RECORD_MAX >= RECORD_BYTES_MAX // 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ab é\t\"'<br>&;\r", max_size=20), max_size=20), st.integers(1, 5))
def test_minibatches_of_any_size_hold_the_same_documents(lines, rows):
    data = "".join(f"{line}\n" for line in lines).encode()
    assert parsed(data, out=batch_of(rows)) == parsed(data)
