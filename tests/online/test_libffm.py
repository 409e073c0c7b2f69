"""The libffm format: fields, names, bad records; the rest is in test_svmlight."""

import pytest

from streamlearn.config import SourceConfig
from streamlearn.errors import ConfigError
from streamlearn.online.features import field_seed
from streamlearn.online.formats import Deep
from streamlearn.online.libffm import LibffmFormat
from streamlearn.online.minibatch import REASONS
from tests.reference.minibatches import described, drain, drain_deep
from tests.reference.words import mix, token_key

FORMAT = LibffmFormat(SourceConfig())
PARSER = FORMAT.parser(None)
SEED = int(field_seed(""))


def test_a_key_is_made_of_field_and_index():
    data = b"1 0:7:1 1:7:0.25 site:7:1 1:abc:1 3:123456789\n"
    [(_, label, keys, values)], bad = drain(PARSER, data, has_values=True)
    assert (label, bad) == (1, [])
    assert keys == [
        mix(7, mix(0, SEED)),
        mix(7, mix(1, SEED)),
        mix(7, token_key(b"site", SEED)),
        token_key(b"abc", mix(1, SEED)),
        mix(123456789, mix(3, SEED)),
    ]
    assert values == [1.0, 0.25, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("line", "reason", "sentence"),
    [
        (b"x 0:1:1", "label", "label 'x' is not -1, 0 or 1"),
        (b"1 0:1:1 5", "syntax", "feature 2, '5', is not field:index:value"),
        (b"1 :1:1", "syntax", "feature 1, ':1:1', is not field:index:value"),
        (b"1 0::1", "syntax", "feature 1, '0::1', is not field:index:value"),
        (
            b"1 0:1:x",
            "number",
            "feature 1, '0:1:x', has the value 'x', which is not a finite number",
        ),
        (
            b"1 0:1:1:1",
            "number",
            "feature 1, '0:1:1:1', has the value '1:1', which is not a finite number",
        ),
        (b"1 \xff:1:1", "utf8", r"feature 1, '\xff:1:1', is not valid UTF-8"),
        (b"1 0:\xff:1", "utf8", r"feature 1, '0:\xff:1', is not valid UTF-8"),
    ],
)
def test_each_kind_of_bad_record_has_its_place_and_sentence(line, reason, sentence):
    rows, bad = drain(PARSER, b"1 0:1:1\n" + line + b"\n0 0:1:1\n", has_values=True)
    assert [row[0] for row in rows] == [0, 9 + len(line)]
    [(start, code, field, arg)] = bad
    assert start == 8
    assert REASONS[code] == reason
    assert FORMAT.complaint(code, field, arg, line) == sentence


def test_describe_names_every_key():
    data = b"1 0:12:0.5 site:name:1 2:x # 1:2:3\n"
    names = described(PARSER, data)
    assert [(field, text) for _, field, text in names] == [
        (-1, b"0=12"),
        (-1, b"site=name"),
        (-1, b"2=x"),
    ]
    [(_, _, keys, _)], _ = drain(PARSER, data, has_values=True)
    assert [key for key, _, _ in names] == keys


# --- deep models

DEEP = Deep("logistic", 0)


def deep(*fields):
    return LibffmFormat(SourceConfig(fields=fields), deep=DEEP)


@pytest.mark.parametrize("rows_max", [1, 64])
def test_a_deep_model_gets_the_fields_that_it_was_told(rows_max):
    ffm = deep("0-2", "site", "40")
    assert (ffm.fields, ffm.has_values) == (("0", "1", "2", "site", "40"), True)
    data = b"1 0:7:1 02:7:0.25 40:3\n-1\n0 site:7:2 site:a:3 # 9:9:9\n" * 5
    examples, bad = drain_deep(ffm, data, rows_max=rows_max)
    assert bad == []
    assert [example.label for example in examples] == [1, 0, 0] * 5
    assert examples[0].features == [
        (mix(7, mix(0, SEED)), 1.0, "0"),
        (mix(7, mix(2, SEED)), 0.25, "2"),
        (mix(3, mix(40, SEED)), 1.0, "40"),
    ]
    assert [example[1:] for example in examples] == [example[1:] for example in examples[:3]] * 5
    site = token_key(b"site", SEED)
    assert examples[2].features == [
        (mix(7, site), 2.0, "site"),
        (token_key(b"a", site), 3.0, "site"),
    ]


def test_so_many_fields_are_told_apart():
    names = [f"f{i}" for i in range(700)]
    ffm = deep("0-999", *names)
    tokens = [*map(str, range(1000)), *names]
    [example], _ = drain_deep(ffm, b"1 " + " ".join(f"{t}:5" for t in tokens).encode() + b"\n")
    assert [field for _, _, field in example.features] == tokens


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"1 0:1:1 3:7:1", "feature 2, '3:7:1', is of no field of source.fields (0-2, site)"),
        (b"1 sit:1", "feature 1, 'sit:1', is of no field of source.fields (0-2, site)"),
        (b"1 7", "feature 1, '7', is not field:index:value"),
    ],
)
def test_another_field_makes_a_bad_record(line, sentence):
    ffm = deep("0-2", "site")
    examples, [(start, code, field, arg)] = drain_deep(ffm, b"1 0:1\n" + line + b"\n0 2:1\n")
    assert (len(examples), start, REASONS[code]) == (2, 6, "syntax")
    assert ffm.complaint(code, field, arg, line) == sentence


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            (),
            "source.fields: expected the fields, which a deep model must know beforehand, got none",
        ),
        (("a:b",), "source.fields: expected a field of libffm, or a range 0-38, got 'a:b'"),
        (("",), "source.fields: expected a field of libffm, or a range 0-38, got ''"),
        (("3-1",), "source.fields: the range 3-1 ends before it begins"),
        (("0-3", "02"), "source.fields: '2' and '02' are one"),
        (("a", "a"), "source.fields: 'a' and 'a' are one"),
        (("0-999999999",), "source.fields: expected at most 4096 fields, got 4097 or more"),
    ],
)
def test_fields_that_are_none_are_refused(fields, message):
    with pytest.raises(ConfigError) as error:
        deep(*fields)
    assert error.value.message == message
