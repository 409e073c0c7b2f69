"""The svmlight format, and the lines of sparse features that libffm shares with it."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.config import SourceConfig
from streamlearn.messages import RECORD_BYTES_MAX
from streamlearn.online.features import field_seed
from streamlearn.online.formats import Deep
from streamlearn.online.libffm import LibffmFormat
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, REASONS
from streamlearn.online.svmlight import SvmlightFormat
from tests.reference import pairs as reference
from tests.reference.minibatches import described, drain, drain_deep
from tests.reference.words import mix, token_key

REAL = Path(__file__).parents[3] / "shared" / "data" / "a9a.libsvm.gz"
FORMAT = SvmlightFormat(SourceConfig())
PARSER = FORMAT.parser(None)
BOTH = [False, True]
SEED = int(field_seed(""))


def read(data: bytes, *, fields: bool = False, **kwargs):
    chosen = LibffmFormat(SourceConfig()).parser(None) if fields else PARSER
    return drain(chosen, data, has_values=True, **kwargs)


def test_real_data_gives_the_keys_of_the_twin():
    if not REAL.exists():
        pytest.skip("the real a9a sample is not here")
    data = b"".join(gzip.decompress(REAL.read_bytes()).splitlines(keepends=True)[:3000])
    rows, bad = read(data)
    assert len(rows) == 3000
    assert not bad
    assert rows == reference.parse(data, fields=False)[0]


def test_indices_are_numbers_and_names_are_tokens():
    [(_, label, keys, values)], bad = read(
        b"+1 7:0.5 007:-2 f\xc3\xbc:1e-3 123456789012345678901\n"
    )
    assert (label, bad) == (1, [])
    assert keys == [
        mix(7, SEED),
        mix(7, SEED),
        token_key("fü".encode(), SEED),
        token_key(b"123456789012345678901", SEED),
    ]
    assert values == [0.5, -2.0, float(np.float32(1e-3)), 1.0]


def test_labels_are_zero_and_one():
    rows, bad = read(b"-1 1:1\n0 1:1\n1 1:1\n+1 1:1\n1.0 1:1\n-1\n")
    assert [row[1] for row in rows] == [0, 0, 1, 1, 1, 0]
    assert not bad


def test_queries_comments_and_blank_lines_are_passed_over():
    rows, bad = read(b"# a9a\n\n \t\n1 qid:12 3:4 # 5:6\r\n   # more\n0\t1:1\t \r\n1 #\n")
    assert [(row[0], row[1], row[3]) for row in rows] == [
        (10, 1, [4.0]),
        (40, 0, [1.0]),
        (49, 1, []),
    ]
    assert not bad


NUMBERS = st.one_of(
    st.just(b"1"),
    st.integers(-100, 10**20).map(lambda i: b"%d" % i),
    st.floats(allow_nan=False, allow_infinity=False, width=32).map(lambda x: b"%.9g" % x),
    st.from_regex(rb"[+-]?[0-9]{0,17}\.?[0-9]{0,17}", fullmatch=True),
    st.sampled_from([b"", b"nan", b"inf", b"-", b"1:2", b"1e39", b"1e-50", b"0x1", b"1.2.3", b"."]),
)
NAMES = st.one_of(
    st.integers(0, 10**9).map(lambda i: b"%d" % i),
    st.integers(0, 10**21).map(lambda i: b"%d" % i),
    st.sampled_from(
        [b"", b"qid", b"#", b"a", b"f\xc3\xbcnf", b"\xff", b"longer than eight", b"-1"]
    ),
    st.binary(max_size=20).filter(lambda b: not set(b) & set(b"\n")),
)
TOKENS = st.lists(st.one_of(NAMES, NUMBERS), min_size=1, max_size=4).map(b":".join)
GOOD_TOKENS = st.sampled_from([b"1:1", b"12:3:1", b"5:6:0.25", b"123456789:1", b"1:12345678:1"])
LINES = st.tuples(
    st.sampled_from([b"1", b"0", b"-1", b"+1", b"1", b"0", b"x7", b"2", b"", b"#", b" 1"]),
    st.lists(st.one_of(GOOD_TOKENS, GOOD_TOKENS, TOKENS), max_size=5),
    st.sampled_from([b" ", b"\t", b"  ", b" \r"]),
    st.sampled_from([b"\n", b"\r\n", b" \n", b" # end\n"]),
).map(lambda t: t[2].join([t[0], *t[1]]) + t[3])


@pytest.mark.parametrize("fields", BOTH)
def test_odd_lines_match_the_twin(fields):
    @settings(max_examples=250, deadline=None)
    @given(st.lists(LINES, max_size=5))
    def matches(lines):
        data = b"".join(lines)
        assert read(data, fields=fields) == reference.parse(data, fields=fields)

    matches()


@pytest.mark.parametrize("fields", BOTH)
def test_any_bytes_match_the_twin(fields):
    @settings(max_examples=150, deadline=None)
    @given(
        st.lists(
            st.sampled_from([b"1", b" ", b":", b"\n", b"\r", b"#", b".", b"-", b"qid:", b"\xc3"])
        )
    )
    def matches(parts):
        data = b"".join(parts) + b"\n"
        assert read(data, fields=fields) == reference.parse(data, fields=fields)

    matches()


BAD = [
    (b"x7 1:1", "label", "label 'x7' is not -1, 0 or 1"),
    (b"2 1:1", "label", "label '2' is not -1, 0 or 1"),
    (b"nan 1:1", "label", "label 'nan' is not -1, 0 or 1"),
    (
        b"1 1:1 2:abc",
        "number",
        "feature 2, '2:abc', has the value 'abc', which is not a finite number",
    ),
    (b"1 2:inf", "number", "feature 1, '2:inf', has the value 'inf', which is not a finite number"),
    (b"1 2:", "number", "feature 1, '2:', has the value '', which is not a finite number"),
    (
        b"1 2:1e39",
        "number",
        "feature 1, '2:1e39', has the value '1e39', which is not a finite number",
    ),
    (b"1 qid:x 1:1", "number", "'qid:x' is not a query's number"),
    (b"1 :1", "syntax", "feature 1, ':1', is not index:value"),
    (b"1 a\xff:1", "utf8", r"feature 1, 'a\xff:1', is not valid UTF-8"),
]


@pytest.mark.parametrize(("line", "reason", "sentence"), BAD)
def test_each_kind_of_bad_record_has_its_place_and_sentence(line, reason, sentence):
    rows, bad = read(b"1 1:1\n" + line + b"\n0 1:1\n")
    assert [row[0] for row in rows] == [0, 7 + len(line)]
    [(start, code, field, arg)] = bad
    assert start == 6
    assert REASONS[code] == reason
    assert FORMAT.complaint(code, field, arg, line) == sentence


def test_a_record_may_have_so_many_features_and_no_more():
    features = b"".join(b" %d" % i for i in range(FEATURES_PER_RECORD_MAX))
    data = b"1" + features + b"\n0" + features + b" x\n1 1\n"
    rows, bad = read(data)
    assert [len(row[2]) for row in rows] == [FEATURES_PER_RECORD_MAX, 1]
    [(_, code, field, arg)] = bad
    assert REASONS[code] == "feature_count"
    assert FORMAT.complaint(code, field, arg, b"") == "record has more than 65536 features"


def test_a_record_may_be_so_long_and_no_longer():
    fits = b"1 1:1 #".ljust(RECORD_BYTES_MAX, b"x")
    rows, bad = read(fits + b"\n" + fits + b"x\n1 1\n")
    assert [row[0] for row in rows] == [0, 2 * RECORD_BYTES_MAX + 3]
    assert bad == [(RECORD_BYTES_MAX + 1, 5, -1, RECORD_BYTES_MAX + 1)]
    assert "longer than the 1048576 allowed" in FORMAT.complaint(5, -1, RECORD_BYTES_MAX + 1, b"")


@pytest.mark.parametrize("fields", BOTH)
@pytest.mark.parametrize("rows_max", [1, 3, 64])
def test_parsing_goes_on_where_a_full_minibatch_stopped(fields, rows_max):
    data = b"".join(b"%d 1:%d:1 2:3:4 5\n" % (i % 2, i) for i in range(100))
    data += b"".join(b"0 1:%d 2:3\n" % i for i in range(100))
    room = FEATURES_PER_RECORD_MAX + 20
    expected = reference.parse(data, fields=fields)
    assert read(data, fields=fields, rows_max=rows_max) == expected
    assert read(data, fields=fields, nnz_max=room) == expected


def test_describe_names_every_key():
    data = b"1 qid:7 12:0.5 name:1 x # y\n 0\n-1\t5:1 \r\n"
    names = described(PARSER, data)
    assert [(field, text) for _, field, text in names] == [
        (-1, b"12"),
        (-1, b"name"),
        (-1, b"x"),
        (-1, b"5"),
    ]
    assert [key for key, _, _ in names] == [key for row in read(data)[0] for key in row[2]]


# --- deep models


def deep(loss, classes=0, *texts):
    return SvmlightFormat(SourceConfig(classes=texts), deep=Deep(loss, classes))


@pytest.mark.parametrize("rows_max", [1, 3, 64])
def test_a_deep_model_gets_one_field_with_values(rows_max):
    format_ = deep("logistic")
    assert (format_.fields, format_.dense, format_.has_values) == (("features",), (), True)
    data = b"1 7:0.5 name:2\n-1\n+1 1 2:3 # x\nx 1:1\n" * 4
    examples, bad = drain_deep(format_, data, rows_max=rows_max)
    rows, twin_bad = reference.parse(data, fields=False)
    assert bad == twin_bad
    assert [
        (e.start, e.label, [f[0] for f in e.features], [f[1] for f in e.features]) for e in examples
    ] == rows
    assert {f[2] for e in examples for f in e.features} == {"features"}


LABELS = [b"0", b"1", b"2", b"2.0", b"3", b"-1", b"1.5", b"cat", b"dog", b"1e3", b"nan", b"-0"]


@pytest.mark.parametrize(
    ("format_", "labels", "expected"),
    [
        (deep("logistic"), [0, 1, None, None, None, 0] + [None] * 5 + [0], "-1, 0 or 1"),
        (
            deep("classes", 3),
            [0, 1, 2, 2] + [None] * 7 + [0],
            "a whole number from 0 to 2",
        ),
        (
            deep("classes", 3, "dog", "3", "cat"),
            [None] * 4 + [1, None, None, 2, 0] + [None] * 3,
            "one of dog, 3, cat",
        ),
        (
            deep("squared"),
            [0, 1, 2, 2, 3, -1, 1.5, None, None, 1000, None, 0],
            "a finite number",
        ),
    ],
)
def test_labels_are_what_the_loss_asks_for(format_, labels, expected):
    data = b"".join(label + b" 1:1\n" for label in LABELS)
    examples, bad = drain_deep(format_, data, rows_max=5)
    assert [e.label for e in examples] == [label for label in labels if label is not None]
    wrong = [token for token, label in zip(LABELS, labels, strict=True) if label is None]
    assert len(bad) == len(wrong)
    for token, (_, reason, field, arg) in zip(wrong, bad, strict=True):
        assert REASONS[reason] == "label"
        assert format_.complaint(reason, field, arg, token + b" 1:1") == (
            f"label '{token.decode()}' is not {expected}"
        )


def test_negatives_that_are_left_out_take_their_fields_along():
    data = b"".join(b"%d %d:1\n" % (i % 3 == 0, i) for i in range(300))
    format_ = deep("logistic")
    whole, _ = drain_deep(format_, data)
    kept, _ = drain_deep(format_, data, rate=0.3)
    by_start = {e.start: e for e in whole}
    assert 100 < len(kept) < 250
    assert all(by_start[e.start].features == e.features for e in kept)
