"""The libffm format: fields, names, bad records; the rest is in test_svmlight."""

import pytest

from streamlearn.config import SourceConfig
from streamlearn.online.features import field_seed
from streamlearn.online.libffm import LibffmFormat
from streamlearn.online.minibatch import REASONS
from tests.reference.minibatches import described, drain
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
