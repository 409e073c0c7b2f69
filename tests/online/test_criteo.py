"""The Criteo format: keys, blanks, bad records, full minibatches, both scanners."""

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamlearn.compute.kernels import criteo as kernels
from streamlearn.compute.kernels.bits import HAS_VBMI2
from streamlearn.config import SourceConfig
from streamlearn.messages import RECORD_BYTES_MAX
from streamlearn.online.criteo import FIELDS, CriteoFormat
from streamlearn.online.delimited import DelimitedFormat
from streamlearn.online.features import field_seed
from streamlearn.online.formats import Deep
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, REASONS
from tests.reference import criteo as reference
from tests.reference.minibatches import described, drain, drain_deep
from tests.reference.words import log_bucket, mix, token_key

REAL = Path(__file__).parents[3] / "shared" / "data" / "criteo_first8000.tsv.gz"


@pytest.fixture(
    params=[
        "portable",
        pytest.param("vbmi2", marks=pytest.mark.skipif(not HAS_VBMI2, reason="no AVX-512 VBMI2")),
    ]
)
def parser(request, monkeypatch):
    monkeypatch.setattr(kernels, "parse", getattr(kernels, f"parse_{request.param}"))
    return FORMAT.parser(None)


FORMAT = CriteoFormat(SourceConfig())


def record(label=b"0", ints=(b"1",) * 13, tokens=(b"68fd1e64",) * 26, end=b"\n"):
    return b"\t".join([label, *ints, *tokens]) + end


GOOD = record()


def log(seed: int, n: int) -> bytes:
    """Make a log like the real one, with blanks."""
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(n):
        ints = [
            b"" if rng.random() < 0.2 else b"%d" % int(rng.pareto(0.7) * 3 - 1) for _ in range(13)
        ]
        tokens = [
            b"" if rng.random() < 0.15 else b"%08x" % rng.integers(1 << 32) for _ in range(26)
        ]
        lines.append(record(b"%d" % (rng.random() < 0.3), ints, tokens))
    return b"".join(lines)


def test_real_looking_logs_give_the_keys_of_the_twin(parser):
    data = log(1, 300)
    assert drain(parser, data) == reference.parse(data)


def test_real_log_gives_the_keys_of_the_twin(parser):
    if not REAL.exists():
        pytest.skip("the real Criteo sample is not here")
    data = gzip.decompress(REAL.read_bytes())
    rows, bad = drain(parser, data)
    assert len(rows) == 8000
    assert not bad
    assert rows == reference.parse(data)[0]


INTEGER = st.one_of(
    st.integers(-9, 99).map(lambda i: b"%d" % i),
    st.integers(-(10**18) + 1, 10**18 - 1).map(lambda i: b"%d" % i),
    st.sampled_from([b"", b"-0", b"007", b"9999999", b"99999999", b"-9999999", b"-99999999"]),
    st.sampled_from([b"-", b"+1", b"1.5", b"1e3", b"--1", b"1-", b" 1", b"nan", b"9" * 19, b"/"]),
    st.sampled_from([b":", b"1\r", b"\xb1", b"\x80", b"1\x00", b"123456789x", b"12345678:"]),
)
TOKEN = st.one_of(
    st.integers(0, (1 << 32) - 1).map(lambda i: b"%08x" % i),
    st.just(b""),
    st.binary(max_size=12).filter(lambda b: not set(b) & set(b"\t\n")),
    st.text(max_size=9).map(lambda t: t.encode()).filter(lambda b: not set(b) & set(b"\t\n")),
    st.sampled_from([b"\r", b"a\r", b"1234567\r", b"12345678\r", b"123456789\r", b"\xed\xa0\x80"]),
)
# mostly plain values, so that the odd one stands among good ones
PLAIN_INTEGER = st.sampled_from([b"", b"1", b"12", b"-1", b"12345"])
PLAIN_TOKEN = st.sampled_from([b"", b"68fd1e64", b"80e26c9b"])


@st.composite
def records(draw):
    ints = [draw(PLAIN_INTEGER) for _ in range(13)]
    tokens = [draw(PLAIN_TOKEN) for _ in range(26)]
    for _ in range(draw(st.integers(0, 2))):
        ints[draw(st.integers(0, 12))] = draw(INTEGER)
        tokens[draw(st.integers(0, 25))] = draw(TOKEN)
    label = draw(st.sampled_from([b"0", b"1", b"0", b"1", b"", b"2", b"01", b"-", b"\xff"]))
    line = record(label, ints, tokens, draw(st.sampled_from([b"\n", b"\r\n"])))
    cut = draw(st.sampled_from([None, None, None, 0, 1, 2, 3, 60, -2, -3, -12]))
    return line if cut is None else line[:cut] + b"\n"


def test_tables_of_odd_records_match_the_twin(parser):
    @settings(max_examples=150, deadline=None)
    @given(st.lists(records(), max_size=6), st.integers(0, 70))
    @example([GOOD[:120] + b"\n", GOOD[120:]], 0)
    @example([b"\t" * 39 + b"\n", b"\n", b"\r\n", b"0" + b"\t" * 39 + b"\n"], 0)
    @example([b"\t" * 19 + b"\n" + b"\t" * 19 + b"\n"], 0)
    def matches(lines, before):
        data = b"".join(lines)
        assert drain(parser, data, before=before) == reference.parse(data)

    matches()


def test_any_bytes_match_the_twin(parser):
    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.sampled_from([b"\t", b"\n", b"0", b"1", b"-", b"\r", b"\xc3", b"abcdefgh"])))
    def matches(parts):
        data = b"".join(parts) + b"\n"
        assert drain(parser, data) == reference.parse(data)

    matches()


@pytest.mark.parametrize("at", [0, 1, 5, 33, 34, 40])
def test_a_bad_record_does_not_cost_its_neighbours(parser, at):
    lines = [log(i, 1) for i in range(41)]
    good = [keys for _, _, keys in reference.parse(b"".join(lines))[0]]
    lines[at] = b"0\tgarbage\n"
    rows, bad = drain(parser, b"".join(lines))
    assert [keys for _, _, keys in rows] == good[:at] + good[at + 1 :]
    assert bad == [(sum(map(len, lines[:at])), 1, -1, 2)]


BAD = [
    (GOOD.replace(b"\t", b" ", 2), "field_count", "expected 40 fields, found 38"),
    (GOOD[:-1] + b"\tx\n", "field_count", "expected 40 fields, found 41"),
    (record(b"x7"), "label", "label 'x7' is not 0 or 1"),
    (record(b""), "label", "label '' is not 0 or 1"),
    (record(b"2"), "label", "label '2' is not 0 or 1"),
    (
        record(ints=(b"1",) * 4 + (b"1.5",) + (b"1",) * 8),
        "number",
        "I5 '1.5' is not an integer of at most 18 digits",
    ),
    (
        record(ints=(b"1",) * 12 + (b"9" * 19,)),
        "number",
        f"I13 '{'9' * 19}' is not an integer of at most 18 digits",
    ),
    (
        record(tokens=(b"68fd1e64",) * 25 + (b"68fd1e6\xff",)),
        "utf8",
        r"C26 '68fd1e6\xff' is not valid UTF-8",
    ),
    (
        record(tokens=(b"x" * RECORD_BYTES_MAX,) + (b"",) * 25),
        "too_long",
        f"record of {RECORD_BYTES_MAX + 53} bytes is longer than the 1048576 allowed",
    ),
]


@pytest.mark.parametrize(("line", "reason", "sentence"), BAD, ids=[b[2][:30] for b in BAD])
def test_each_kind_of_bad_record_has_its_place_and_sentence(parser, line, reason, sentence):
    data = GOOD + line + GOOD
    rows, bad = drain(parser, data)
    assert [row[0] for row in rows] == [0, len(GOOD) + len(line)]
    [(start, code, field, arg)] = bad
    assert start == len(GOOD)
    assert REASONS[code] == reason
    assert FORMAT.complaint(code, field, arg, line.rstrip(b"\n")) == sentence


def test_the_longest_record_allowed_is_taken(parser):
    room = RECORD_BYTES_MAX - len(record(tokens=(b"",) * 26)) + 1
    line = record(tokens=(b"x" * room,) + (b"",) * 25, end=b"\r\n")
    data = GOOD + line + GOOD
    assert drain(parser, data) == reference.parse(data)
    assert len(drain(parser, data)[0]) == 3


@pytest.mark.parametrize("rows_max", [1, 7, 39, 299, 300])
def test_parsing_goes_on_where_a_full_minibatch_stopped(parser, rows_max):
    data = log(2, 150) + b"bad\n" + log(3, 150)
    assert drain(parser, data, rows_max=rows_max) == reference.parse(data)


def test_a_minibatch_without_room_for_features_is_full(parser):
    data = log(4, 100)
    nnz_max = FEATURES_PER_RECORD_MAX + 100
    assert drain(parser, data, nnz_max=nnz_max) == reference.parse(data)


def test_bad_records_fill_a_minibatch_too(parser):
    data = b"bad\n" * 100
    assert drain(parser, data, rows_max=8) == reference.parse(data)


def test_crlf_and_blank_lines_change_nothing(parser):
    plain = log(5, 50)
    rows, bad = drain(parser, b"\r\n\n" + plain.replace(b"\n", b"\r\n\n"))
    assert not bad
    assert [row[1:] for row in rows] == [row[1:] for row in drain(parser, plain)[0]]


def test_keys_are_those_of_token_key_and_log_bucket(parser):
    line = record(ints=(b"-12",) + (b"",) * 12, tokens=(b"68fd1e64", b"longer token") + (b"",) * 24)
    [(_, _, keys)], _ = drain(parser, line)
    assert keys == [
        mix(log_bucket(-12), int(field_seed("I1"))),
        token_key(b"68fd1e64", int(field_seed("C1"))),
        token_key(b"longer token", int(field_seed("C2"))),
    ]


def test_keys_are_those_of_the_delimited_format(parser):
    """A model learned from this format predicts from a TSV whose columns have these names."""
    kinds = dict.fromkeys(FIELDS[:13], "number") | dict.fromkeys(FIELDS[13:], "categorical")
    columns = {"clicked": "label", **kinds}
    config = SourceConfig(format="delimited", delimiter="\t", header=True, columns=columns)
    other = DelimitedFormat(config).parser("\t".join(columns).encode())
    data = log(7, 50)
    theirs, _ = drain(other, data)
    ours, _ = drain(parser, data)
    assert [(label, sorted(keys)) for _, label, keys in theirs] == [
        (label, sorted(keys)) for _, label, keys in ours
    ]


def test_describe_names_every_key(parser):
    data = record(
        ints=(b"13", b"-13", b"0", b"5", b"", b"999999999") + (b"",) * 7,
        tokens=(b"68fd1e64", b"", "größe".encode()) + (b"",) * 22 + (b"end",),
        end=b"\r\n",
    )
    names = described(parser, data)
    assert [(FIELDS[field], text.decode()) for _, field, text in names] == [
        ("I1", "[12, 14)"),
        ("I2", "(-14, -12]"),
        ("I3", "0"),
        ("I4", "5"),
        ("I6", "[939524096, 1073741824)"),
        ("C1", "68fd1e64"),
        ("C3", "größe"),
        ("C26", "end"),
    ]
    [(_, _, keys)], _ = drain(parser, data)
    assert [key for key, _, _ in names] == keys


def test_describe_takes_many_records_and_none(parser):
    data = log(6, 20)
    keys = [key for _, _, row in reference.parse(data)[0] for key in row]
    assert [key for key, _, _ in described(parser, data)] == keys
    assert described(parser, b"") == []


# --- deep models

DEEP = Deep("logistic", 0)


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize("rows_max", [1, 7, 64])
def test_a_deep_model_gets_logarithms_and_categories_by_their_field(rows_max):
    deep = CriteoFormat(SourceConfig(), deep=DEEP)
    assert (deep.dense, deep.dense_names, deep.fields) == ((13,), FIELDS[:13], FIELDS[13:])
    data = log(9, 60) + b"bad\n" + log(10, 60).replace(b"\n", b"\r\n")
    examples, bad = drain_deep(deep, data, rows_max=rows_max)
    rows, twin_bad = reference.parse(data)
    assert bad == twin_bad
    assert [(e.start, e.label) for e in examples] == [(row[0], row[1]) for row in rows]
    for example_, row in zip(examples, rows, strict=True):
        _, *cells = data[row[0] :].split(b"\n", 1)[0].removesuffix(b"\r").split(b"\t")
        numbers = [None if not cell else math.log(1 + max(int(cell), 0)) for cell in cells[:13]]
        assert example_.dense == [None if x is None else float(np.float32(x)) for x in numbers]
        assert example_.features == [
            (token_key(cell, int(field_seed(name))), 1.0, name)
            for cell, name in zip(cells[13:], FIELDS[13:], strict=True)
            if cell
        ]


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize(
    ("text", "value"), [(b"9" * 18, 999999999999999999), (b"-7", 0), (b"0", 0), (b"007", 7)]
)
def test_integers_of_any_size_and_sign_have_a_logarithm(text, value):
    deep = CriteoFormat(SourceConfig(), deep=DEEP)
    [example_], _ = drain_deep(deep, record(ints=(text,) * 13))
    assert example_.dense == [float(np.float32(math.log1p(value)))] * 13


def test_a_deep_model_names_categories_alone():
    deep = CriteoFormat(SourceConfig(), deep=DEEP)
    data = log(11, 20)
    examples, _ = drain_deep(deep, data)
    assert [(key, deep.fields[field]) for key, field, _ in described(deep.parser(None), data)] == [
        (key, field) for e in examples for key, _, field in e.features
    ]
