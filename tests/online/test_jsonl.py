"""JSON lines: keys, flattening, grammar, bad records with their bytes, names, schemas."""

import json
import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamlearn.config import SourceConfig
from streamlearn.errors import ConfigError
from streamlearn.messages import BLOCK_TAILROOM_BYTES, RECORD_BYTES_MAX
from streamlearn.online.delimited import DelimitedFormat
from streamlearn.online.features import field_seed
from streamlearn.online.formats import Deep, open_format
from streamlearn.online.jsonl import PATHS_MAX, JsonlFormat
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, REASONS, Minibatch
from tests.reference import jsonl as reference
from tests.reference.minibatches import described, drain_deep
from tests.reference.words import log_bucket, mix, token_key

LABELLED = {"label": "label"}
EVENT = {
    "clicked": "label",
    "cost": "weight",
    "when": "time",
    "user.country": "categorical",
    "user.segments": "categorical",
    "ad.id": "categorical",
    "ad.bid": "number",
    "ad.size": "number:raw",
    "secret": "ignore",
}
EVENT_LOG = b"""\
{"clicked":true,"cost":2,"when":"2026-11-23T18:05","user":{"country":"DE","segments":[3,"x",4]},\
"ad":{"id":"ad-17","bid":0.25,"size":[300,250.5]},"secret":"s","other":{"a":[{"b":null}]}}
 { "clicked" : 0 , "cost" : 0.5, "when" : 1795457133, "user" : { } , "ad" : { "id" : 17 } }\t\r

{"clicked":"1","cost":1e0,"when":null,"user":{"country":"","segments":[]},"ad":null}
"""


def source(**settings):
    return JsonlFormat(SourceConfig(format="jsonl", **settings))


def read(parser, data, *, has_values=False, rows_max=64, before=3):
    """Return (start, label, weight, [(key, value), ...]) and (start, reason, field, arg)."""
    buffer = np.full(before + len(data) + BLOCK_TAILROOM_BYTES, ord("7"), np.uint8)
    end = before + len(data)
    buffer[before:end] = np.frombuffer(data, np.uint8)
    buffer[end::7], buffer[end::5], buffer[end::11] = ord("\n"), ord("}"), ord('"')
    out = Minibatch(rows_max, FEATURES_PER_RECORD_MAX + 64 * 40, has_values=has_values)
    rows, bad = [], []
    at = before
    while at < end:
        out.clear()
        out.values[:] = 7
        after = parser.parse(buffer, at, end, out)
        assert at < after <= end
        assert after == end or out.full
        assert out.records == out.rows + out.bad
        assert out.indptr[out.rows] == out.nnz
        for i in range(out.rows):
            span = slice(out.indptr[i], out.indptr[i + 1])
            keys = out.keys[span].tolist()
            values = out.values[span].tolist() if has_values else [1.0] * len(keys)
            rows.append(
                (
                    int(out.lines[i]) - before,
                    int(out.labels[i]),
                    float(out.weights[i]),
                    list(zip(keys, values, strict=True)),
                )
            )
        columns = (out.bad_reason, out.bad_field, out.bad_arg)
        bad += [
            (int(out.bad_start[i]) - before, *(int(c[i]) for c in columns)) for i in range(out.bad)
        ]
        at = after
    return rows, bad


def check(data, kinds, *, format_=None, others="by_type", crosses=(), **how):
    """Compare parser and twin; return what the parser made."""
    format_ = format_ or source(columns=kinds)
    rows, bad = read(format_.parser(None), data, has_values=format_.has_values, **how)
    twin = reference.parse(data, kinds, others=others, crosses=crosses)
    assert (rows, [one[:2] for one in bad]) == twin
    for start, reason, field, arg in bad:
        record = data[start:].split(b"\n", 1)[0]
        assert format_.complaint(reason, field, arg, record)
    return rows, bad


def keys(text, **settings):
    """Return the keys of one record."""
    rows, bad = read(source(**settings).parser(None), text.encode() + b"\n")
    assert bad == []
    return [key for key, _ in rows[0][3]]


def category(name, token):
    return token_key(token.encode(), int(field_seed(name)))


def bucket(name, value):
    return mix(log_bucket(value), int(field_seed(name)))


def complaint(record, **settings):
    """Return reason, byte and complaint of a bad record."""
    format_ = source(**settings)
    rows, bad = read(format_.parser(None), record + b"\n")
    assert rows == []
    ((_, reason, field, arg),) = bad
    return REASONS[reason], arg >> 4, format_.complaint(reason, field, arg, record)


# --- what a record means


def test_all_fields_go_by_their_type():
    record = '{"label":1,"a":"x","b":2,"c":true,"d":null,"e":"","f":{"g":["h",3]},"i":"5"}'
    assert keys(record) == [
        category("a", "x"),
        bucket("b", 2),
        category("c", "true"),
        category("f.g", "h"),
        bucket("f.g", 3),
        category("i", "5"),
    ]


def test_named_fields_go_by_their_kind():
    rows, bad = check(EVENT_LOG, EVENT, format_=source(columns=EVENT), others="ignore")
    assert bad == []
    assert [(row[1], row[2]) for row in rows] == [(1, 2.0), (0, 0.5), (1, 1.0)]
    assert (mix(0, int(field_seed("ad.size"))), 250.5) in rows[0][3]
    assert category("ad.id", "17") == rows[1][3][-1][0]
    assert rows[2][3] == []


def test_keys_are_those_of_delimited_text():
    columns = {"y": "label", "w": "weight", "c": "categorical", "n": "number", "t": "time"}
    cells = {"y": "1", "w": "2.5", "c": "größe \"9\" in a long token", "n": "-12.75e1",
             "t": "2001-01-01T00:01"}  # fmt: skip
    cross = ("c*n", "t.hour*c*n")
    quoted = ",".join('"' + cell.replace('"', '""') + '"' for cell in cells.values())
    delimited = DelimitedFormat(SourceConfig(header=True, columns=columns, cross=cross))
    expected = read(delimited.parser(b"y,w,c,n,t"), quoted.encode() + b"\n")
    for escape in (True, False):
        line = json.dumps(cells, ensure_ascii=escape).encode() + b"\n"
        found = read(source(columns=columns, cross=cross).parser(None), line)
        assert found == expected
    numbers = json.dumps(cells).replace('"-12.75e1"', "-12.75e1").replace('"2.5"', "2.5")
    assert read(source(columns=columns, cross=cross).parser(None), numbers.encode() + b"\n") == (
        expected
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a":{"b":{"c":"x"}},"label":1}', '{"a.b.c":"x","label":1}'),
        ('{"a":[["x",["y"]],{"b":1}],"label":1}', '{"a":"x","a":"y","a.b":1,"label":1}'),
        ('{"a":[{"b":1,"c":[2]},{"b":3}],"label":1}', '{"a.b":1,"a.c":2,"a.b":3,"label":1}'),
        (r'{"\u0061":"\u00e4\ud83d\ude00\/\"\\\b\f\n\r\t","label":1}',
         '{"a":"ä😀/\\"\\\\\\b\\f\\n\\r\\t","label":1}'),
        ('{"a":"x","b":[],"c":{},"d":[{}],"label":1}', '{"a":"x","label":1}'),
        ('{"label":0,"label":1,"a":1}', '{"label":1,"a":1}'),
        ('{"":{"":"x"},"label":1}', '{".":"x","label":1}'),
    ],
)  # fmt: skip
def test_two_ways_to_say_the_same(one, other):
    assert keys(one) == keys(other)
    assert check(one.encode() + b"\n", LABELLED)


def test_escapes_become_the_text_they_stand_for():
    record = r'{"label":1,"\u00e4\n":"\u20ac\ud83d\ude00 \u0041\/\b"}'
    assert keys(record) == [category("ä\n", "€😀 A/\b")]


def test_label_by_rule_by_kind_and_by_default():
    log = b'{"delay":20,"class":"normal.","label":0}\n{"delay":3,"class":"x","label":true}\n'

    def labels(**settings):
        return [row[1] for row in read(source(**settings).parser(None), log)[0]]

    assert labels() == [0, 1]
    assert labels(label="delay > 15") == [1, 0]
    assert labels(label='class != "normal."') == [0, 1]
    assert labels(columns={"label": "label"}) == [0, 1]
    assert labels(label="label", columns={"delay": "number"}) == [0, 1]


def test_field_of_a_rule_is_no_feature():
    assert keys('{"delay":20,"a":"x"}', label="delay > 15") == [category("a", "x")]


def test_columns_without_features_leave_all_other_fields():
    record = '{"y":1,"w":2,"id":"7","a":"x","b":3}'
    columns = {"y": "label", "w": "weight", "id": "ignore"}
    assert keys(record, columns=columns) == [category("a", "x"), bucket("b", 3)]


def test_fields_choose_and_columns_give_kinds():
    record = '{"label":1,"a":"x","b":3,"c":7,"d":"y"}'
    chosen = {"fields": ("a", "b", "c", "label"), "columns": {"c": "categorical"}}
    assert keys(record, **chosen) == [category("a", "x"), bucket("b", 3), category("c", "7")]


def test_crosses_take_the_last_of_several_values():
    record = '{"label":1,"a":["x","y"],"b":{"c":2},"d":null}'
    settings = {"cross": ("a*b.c", "a*d")}
    expected, _ = reference.parse(
        record.encode() + b"\n", LABELLED, crosses=(("a", "b.c"), ("a", "d"))
    )
    assert keys(record, **settings) == [key for key, _ in expected[0][3]]
    assert len(keys(record, **settings)) == 4


def test_open_format_knows_it_by_name_and_by_looks():
    for name in ("jsonl", "json", "ndjson"):
        assert open_format(SourceConfig(format=name)).name == "jsonl"
    assert open_format(SourceConfig(), b'{"label":1}\n').name == "jsonl"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"columns": {"a": "categoric"}}, "source.columns.a: expected one of"),
        ({"columns": {"label": "number"}}, "source.columns.label: expected label or ignore"),
        ({"columns": {"a": "label", "b": "label"}}, "'a' is the label already"),
        ({"label": "delay >"}, "source.label"),
        ({"columns": {"a": "categorical"}, "cross": ("a*b",)}, "source.cross"),
        ({"columns": {"a": "number:raw"}, "fields": ("b",), "cross": ("a*b",)}, "number:raw"),
    ],
)
def test_wrong_schema_is_a_configuration_error(settings, expected):
    with pytest.raises(ConfigError) as refused:
        source(**settings)
    assert expected in refused.value.message


# --- minibatches


@pytest.mark.parametrize("rows_max", [1, 2, 3, 64])
def test_parser_stops_when_full_and_goes_on(rows_max):
    log = (EVENT_LOG + b"{}\n[]\n") * 5
    check(log, EVENT, others="ignore", rows_max=rows_max)


@pytest.mark.parametrize("before", range(8))
def test_place_in_the_buffer_does_not_matter(before):
    check(EVENT_LOG, EVENT, others="ignore", before=before)


def test_more_paths_than_are_remembered_have_the_right_keys():
    rng = random.Random(5)
    names = [f"user.{i:x}" for i in range(PATHS_MAX + 500)]
    log = b""
    for _ in range(3):
        rng.shuffle(names)
        for i in range(0, len(names), 100):
            log += json.dumps({"label": 1} | dict.fromkeys(names[i : i + 100], "x")).encode()
            log += b"\n"
    check(log, LABELLED)


def test_record_as_long_as_allowed_is_read_and_a_longer_one_is_not():
    head, tail = b'{"label":1,"a":"', b'"}'
    fitting = head + b"x" * (RECORD_BYTES_MAX - len(head) - len(tail)) + tail
    longer = fitting.replace(b"xx", b"xxx", 1)
    rows, bad = check(fitting + b"\n" + longer + b"\n" + fitting + b"\n", LABELLED)
    assert len(rows) == 2
    assert bad == [(len(fitting) + 1, 5, -1, RECORD_BYTES_MAX + 1)]


def test_paths_and_strings_as_long_as_a_record_are_taken():
    deep = b"".join(b'{"%s":' % (b"k" * 16000) for _ in range(60)) + b'"x"' + b"}" * 60
    escaped = b'{"label":1,"%s":"%s"}' % (b"\\u0041" * 80000, b"\\u0042" * 80000)
    check(b'{"label":1,"a":%s}\n%s\n' % (deep, escaped), LABELLED)


@pytest.mark.parametrize("columns", [{}, {"t": "time", "label": "label"}])
def test_record_with_too_many_features_is_bad(columns):
    def record(count):
        one = '"2026-11-23"' if columns else "1"
        return '{"label":1,"t":[' + ",".join([one] * count) + "]}\n"

    log = "".join(record(FEATURES_PER_RECORD_MAX + more) for more in (0, 1, -1)).encode()
    rows, bad = read(source(columns=columns).parser(None), log)
    assert len(rows) == 2 - bool(columns)
    assert [REASONS[reason] for _, reason, _, _ in bad] == ["feature_count"] * (1 + bool(columns))
    assert complaint(record(FEATURES_PER_RECORD_MAX + 1).encode().rstrip())[2] == (
        "record has more than the 65536 features allowed"
    )


# --- bad records


@pytest.mark.parametrize(
    ("record", "byte", "expected"),
    [
        ("[1]", 0, "an object"),
        ("  7", 2, "an object"),
        ("\x00", 0, "an object"),
        ("{", 1, "a key in quotes"),
        ('{"a":1,}', 7, "a key in quotes"),
        ("{,}", 1, "a key in quotes"),
        ("{a:1}", 1, "a key in quotes"),
        ("{'a':1}", 1, "a key in quotes"),
        ('{"a" 1}', 5, "a colon"),
        ('{"a"}', 4, "a colon"),
        ('{"a":}', 5, "a value"),
        ('{"a":tru}', 5, "a value"),
        ('{"a":NaN}', 5, "a value"),
        ('{"a":Infinity}', 5, "a value"),
        ('{"a":+1}', 5, "a value"),
        ('{"a":.5}', 5, "a value"),
        ('{"a":nul', 5, "a value"),
        ('{"a":[1,]}', 8, "a value"),
        ('{"a":[,1]}', 6, "a value"),
        ('{"a":1 "b":2}', 7, "a comma or }"),
        ('{"a":1]', 6, "a comma or }"),
        ('{"a":truex}', 9, "a comma or }"),
        ('{"a":{"b":1}', 12, "a comma or }"),
        ('{"a":[1 2]}', 8, "a comma or ]"),
        ('{"a":[1}', 7, "a comma or ]"),
        ('{"a":"b', 7, "the string's end"),
        ('{"a', 3, "the string's end"),
        ('{"a":"b\tc"}', 7, "the string's end"),
        ('{"a":"\\n\x1f"}', 8, "the string's end"),
        ('{"a":"b\\"}', 10, "the string's end"),
        ('{"a":"\\x41"}', 6, "an escape of JSON"),
        ('{"a":"\\u00g1"}', 6, "an escape of JSON"),
        ('{"a":"\\u00', 6, "an escape of JSON"),
        ('{"\\', 2, "an escape of JSON"),
        ('{"a":01}', 6, "a comma or }"),
        ('{"a":-}', 6, "a number of JSON"),
        ('{"a":1.}', 7, "a number of JSON"),
        ('{"a":1e}', 7, "a number of JSON"),
        ('{"a":1e+}', 8, "a number of JSON"),
        ('{"a":1.e3}', 7, "a number of JSON"),
        ('{"a":0x1}', 6, "a comma or }"),
        ('{"a":1}}', 7, "the record's end"),
        ('{"a":1} {"b":2}', 8, "the record's end"),
        ('{"a":' + "[" * 64, 68, "at most 64 levels"),
        ('{"a":1', 6, "a comma or }"),
    ],
)
def test_broken_grammar_is_named_with_its_byte(record, byte, expected):
    reason, at, text = complaint(record.encode())
    assert (reason, at) == ("syntax", byte)
    rest = record[byte:]
    found = f"'{rest[:60]}{'…' * (len(rest) > 60)}'" if rest else "the record's end"
    assert text == f"expected {expected} at byte {byte}, found {found}"
    check(record.encode() + b"\n" + b'{"label":1}\n', LABELLED)


def test_levels_up_to_the_limit_are_read():
    check(b'{"label":1,"a":' + b"[" * 63 + b"7" + b"]" * 63 + b"}\n", LABELLED)
    check(b'{"label":1,"a":' + b'{"b":' * 63 + b"7" + b"}" * 63 + b"}\n", LABELLED)
    check(b'{"label":1,"a":' + b'[{"b":' * 32 + b"7" + b"}]" * 32 + b"}\n", LABELLED)


@pytest.mark.parametrize(
    ("record", "settings", "expected"),
    [
        (b'{"a":1}', {}, ("label", -1, "there is no label: expected a field 'label'")),
        (b'{"label":null}', {}, ("label", -1, "there is no label: expected a field 'label'")),
        (
            b'{"a":1,"label":"x,7"}',
            {},
            ("label", 15, "label '\"x,7\"' is not 0 or 1, -1 or 1, true or false, yes or no"),
        ),
        (
            b'{"delay":"soon"}',
            {"label": "delay > 15"},
            ("label", 9, "delay '\"soon\"' is not a number (the rule is delay > 15)"),
        ),
        (b'{"label":1,"a":1e39}', {}, ("number", 15, "number '1e39' at byte 15 is not finite")),
        (
            b'{"label":1,"a":"ten"}',
            {"columns": {"a": "number"}},
            ("number", 15, "a '\"ten\"' is not a finite number"),
        ),
        (
            b'{"label":1,"b":"t","a":[1,true]}',
            {"columns": {"b": "categorical", "a": "number:raw"}},
            ("number", 26, "a 'true' is not a finite number"),
        ),
        (
            b'{"label":1,"t":"noon"}',
            {"columns": {"t": "time"}},
            ("time", 15, "t '\"noon\"' is not a time (2026-11-23T18:05, seconds or YYMMDDHH)"),
        ),
        (
            b'{"label":1,"w":-1}',
            {"columns": {"w": "weight"}},
            ("weight", 15, "weight '-1' is not a number of at least 0"),
        ),
        (
            b'{"label":1}',
            {"columns": {"w": "weight"}},
            ("weight", -1, "there is no weight: expected a field 'w'"),
        ),
        (b'{"label":1,"a":"\xff"}', {}, ("utf8", 0, "byte 16 (0xff) is not valid UTF-8")),
        (b'{"label":1,"\xc3":1}', {}, ("utf8", 0, "byte 12 (0xc3) is not valid UTF-8")),
        (
            b'{"label":1,"a":"\\ud83d!"}',
            {},
            (
                "utf8",
                16,
                "expected the other half of a surrogate pair at byte 16, found '\\ud83d!\"}'",
            ),
        ),
        (
            b'{"label":1,"\\ude00":1}',
            {},
            (
                "utf8",
                12,
                "expected the other half of a surrogate pair at byte 12, found '\\ude00\":1}'",
            ),
        ),
    ],
)
def test_bad_value_is_named_with_its_byte(record, settings, expected):
    assert complaint(record, **settings) == expected


def test_grammar_comes_before_values():
    assert complaint(b'{"a":1e999,"label":7,"b":}')[0] == "syntax"
    assert complaint(b'{"a":1e999,"label":7}')[0] == "label"


# --- against Python's json

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
NAMES = st.sampled_from(["label", "a", "b", "a.b", "w", "t", "n", "", "größe"]) | TEXT
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**25), 10**25)
    | st.floats(allow_nan=False, allow_infinity=False, width=32)
    | st.sampled_from(["", "0", "1", "12.5", "2026-11-23", "2001-01-01T07:00"])
    | TEXT
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4)
)
RECORDS = st.builds(
    lambda record, label: record | label,
    st.dictionaries(NAMES, VALUES, max_size=8),
    st.sampled_from([{"label": 0}, {"label": True}, {"label": "1"}, {}, {"label": []}]),
)
KINDS = {
    "label": "label",
    "w": "weight",
    "n": "number:raw",
    "a": "number",
    "b": "categorical",
    "a.b": "by_type",
    "t": "time",
    "größe": "time:weekday",
}


def lines(draw_escape, separators, records):
    return b"".join(
        json.dumps(record, ensure_ascii=draw_escape, separators=separators).encode() + b"\n"
        for record in records
    )


LOGS = st.builds(
    lines,
    st.booleans(),
    st.sampled_from([(",", ":"), (", ", ": "), (" \t,\r", "  :\t")]),
    st.lists(RECORDS, max_size=4),
)
ALL = source()
TYPED = source(
    columns={name: kind for name, kind in KINDS.items() if kind != "by_type"},
    fields=("a.b",),
    cross=("a.b*b", "b*t.hour*a"),
    label="",
)


@settings(deadline=None, max_examples=80)
@given(LOGS)
def test_objects_read_as_python_reads_them(log):
    check(log, LABELLED, format_=ALL)


@settings(deadline=None, max_examples=80)
@given(LOGS)
def test_schemas_read_as_the_twin_reads_them(log):
    check(
        log,
        KINDS,
        format_=TYPED,
        others="ignore",
        crosses=(("a.b", "b"), ("b", "t.hour", "a")),
    )


@settings(deadline=None, max_examples=120)
@given(LOGS, st.data())
@example(b'{"label":1,"a":"\\ud83d\\u"}\n', None)
def test_any_bytes_are_good_or_bad_as_python_says(log, data):
    broken = bytearray(log)
    for _ in range(data.draw(st.integers(1, 3)) if data and log else 0):
        at = data.draw(st.integers(0, len(broken)))
        size = data.draw(st.sampled_from([0, 1, 1, 5]))
        alphabet = b'{}[]",:\\u0123456789eE+-.tfnrlasd \t\r\xc3\xa4\xff\x00'
        new = data.draw(st.lists(st.sampled_from(alphabet), max_size=3))
        broken[at : at + size] = bytes(new)
    log = bytes(broken.rstrip(b"\n") + b"\n")
    rows, bad = read(ALL.parser(None), log)
    twin_rows, twin_bad = reference.parse(log, LABELLED)
    assert rows == twin_rows
    assert [one[0] for one in bad] == [one[0] for one in twin_bad]
    for (start, reason, field, arg), (_, expected) in zip(bad, twin_bad, strict=True):
        record = log[start:].split(b"\n", 1)[0]
        assert ALL.complaint(reason, field, arg, record)
        # of a broken escape and a broken grammar the first is named
        assert reason == expected or ({reason, expected} == {4, 7} and b"\\u" in record)


# --- names


def named(format_, log):
    return [
        (key, text.decode() if field < 0 else f"{format_.fields[field]}={text.decode()}")
        for key, field, text in described(format_.parser(None), log)
    ]


def test_names_say_field_and_token():
    columns = {**EVENT, "ad.id": "categorical"}
    format_ = source(columns=columns, cross=("user.country*ad.id", "when.weekday*ad.bid"))
    assert [name for _, name in named(format_, EVENT_LOG.replace(b"\n\n", b"\n"))] == [
        "when.hour=18",
        "when.weekday=Mon",
        "user.country=DE",
        "user.segments=3",
        "user.segments=x",
        "user.segments=4",
        "ad.id=ad-17",
        "ad.bid=[0.25, 0.3125)",
        "ad.size=",
        "ad.size=",
        "user.country*ad.id=DE*ad-17",
        "when.weekday*ad.bid=Mon*[0.25, 0.3125)",
        "when.hour=18",
        "when.weekday=Mon",
        "ad.id=17",
    ]


def test_fields_without_a_number_bring_their_names():
    log = b'{"label":1,"a":{"\\u00e4":["x=y",3]},"b":false}\n'
    assert named(source(), log) == [
        (category("a.ä", "x=y"), "a.ä=x=y"),
        (bucket("a.ä", 3), "a.ä=[3, 3.5)"),
        (category("b", "false"), "b=false"),
    ]


def test_long_names_are_cut_between_characters():
    log = json.dumps({"label": 1, "k" * 300: "ä" * 300}, ensure_ascii=False).encode() + b"\n"
    ((_, name),) = named(source(), log)
    assert name == "k" * 256 + "=" + "ä" * 128


@pytest.mark.parametrize("format_", [ALL, TYPED, source(columns=EVENT)])
def test_names_have_the_keys_that_are_learned(format_):
    rng = random.Random(3)
    log = b"".join(
        json.dumps(
            {
                "label": 1,
                "clicked": True,
                "cost": 1,
                "w": 3,
                "a": [rng.randrange(99), rng.random()],
                "b": {"c": [str(rng.random())] * 2},
                "t": "2001-01-01T07:00",
                "user": {"country": "DE", "segments": [1, 2]},
            }
        ).encode()
        + b"\n"
        for _ in range(200)
    )
    rows, bad = read(format_.parser(None), log, has_values=format_.has_values)
    assert bad == []
    learned = [key for row in rows for key, _ in row[3]]
    assert [key for key, _ in named(format_, log)] == learned


def test_nothing_to_describe_is_nothing():
    assert described(source().parser(None), b"") == []


def test_describing_does_not_disturb_parsing():
    parser = ALL.parser(None)
    log = b'{"label":1,"a":"x","b":{"c":2}}\n'
    before = read(parser, log)
    described(parser, log)
    assert read(parser, log) == before


# --- deep models

DEEP_COLUMNS = {
    "clicked": "label",
    "cost": "weight",
    "when": "time",
    "user.segments": "categorical",
    "ad.size": "number:raw",
    "ad.bid": "number",
    "age": "number:raw",
}


def deep(loss="logistic", count=0, /, **settings):
    return JsonlFormat(SourceConfig(format="jsonl", **settings), deep=Deep(loss, count))


def deep_log(n):
    rng = random.Random(5)
    records = []
    for i in range(n):
        record = {
            "clicked": rng.randrange(2),
            "cost": rng.choice([1, 2.5]),
            "when": f"2001-01-{1 + i % 28:02}T{i % 24:02}:00",
            "user": {"segments": rng.sample(["a", "b", "ü", 4], rng.randrange(4))},
            "ad": {"size": rng.choice([None, "", 300, [300, 250.5], -1e3]), "bid": i / 8},
        }
        if rng.randrange(2):
            record["age"] = rng.random()
        records.append(json.dumps(record).encode() + b"\n")
    return b"".join(records)


@pytest.mark.parametrize("rows_max", [1, 7, 64])
def test_a_deep_model_gets_fields_and_raw_numbers(rows_max):
    format_ = deep(columns=DEEP_COLUMNS, cross=("user.segments*ad.bid",))
    assert format_.fields == (
        *("when.hour", "when.weekday", "user.segments", "ad.bid"),
        "user.segments*ad.bid",
    )
    assert (format_.dense_names, format_.dense) == (("ad.size", "age"), (2,))
    assert (format_.has_fields, format_.has_values) == (True, False)
    data = deep_log(100)
    examples, bad = drain_deep(format_, data, rows_max=rows_max)
    assert bad == []
    plain = source(columns=DEEP_COLUMNS, cross=("user.segments*ad.bid",))
    raw = {mix(0, int(field_seed(name))) for name in format_.dense_names}
    rows, _ = read(plain.parser(None), data, has_values=True)
    assert [(e.start, e.label, e.weight, [f[0] for f in e.features]) for e in examples] == [
        (*row[:3], [key for key, _ in row[3] if key not in raw]) for row in rows
    ]
    for line, one in zip(data.splitlines(), examples, strict=True):
        record = json.loads(line)
        size = record["ad"]["size"]
        size = size[-1] if isinstance(size, list) else None if size == "" else size
        age = record.get("age")
        assert one.dense == [size, None if age is None else float(np.float32(age))]
        fields = [field for _, _, field in one.features]
        assert fields == [
            *("when.hour", "when.weekday"),
            *["user.segments"] * len(record["user"]["segments"]),
            "ad.bid",
            *["user.segments*ad.bid"] * bool(record["user"]["segments"]),
        ]
    told = described(format_.parser(None), data)
    assert [(key, format_.fields[field]) for key, field, _ in told] == [
        (key, field) for e in examples for key, _, field in e.features
    ]


def test_fields_by_their_type_are_known_too():
    format_ = deep(fields=("b", "a"))
    assert (format_.fields, format_.dense) == (("b", "a"), ())
    [one], _ = drain_deep(format_, b'{"a":1,"c":2,"b":"x","label":0}\n')
    assert one.features == [(bucket("a", 1), 1.0, "a"), (category("b", "x"), 1.0, "b")]


def test_all_may_be_dense():
    format_ = deep("squared", columns={"x": "number:raw", "label": "label"})
    examples, _ = drain_deep(format_, b'{"x":1.5,"label":-3.25}\n{"label":"1e2"}\n')
    assert [(e.label, e.features, e.dense) for e in examples] == [
        (-3.25, [], [1.5]),
        (100, [], [None]),
    ]
    assert described(format_.parser(None), b'{"x":1.5,"label":-3.25}\n') == []


def test_a_raw_number_that_is_none_makes_a_bad_record():
    format_ = deep(columns={"a": "categorical", "x": "number:raw"})
    record = b'{"label":1,"a":"b","x":"seven"}'
    examples, [(_, reason, field, arg)] = drain_deep(
        format_, b'{"label":1,"x":3}\n' + record + b'\n{"label":0,"a":"c"}\n'
    )
    assert [e.dense for e in examples] == [[3], [None]]
    assert REASONS[reason] == "number"
    assert format_.complaint(reason, field, arg, record) == "x '\"seven\"' is not a finite number"


@pytest.mark.parametrize(
    ("format_", "record", "label"),
    [
        (deep("classes", 3, fields=("a",)), '{"label":2}', 2),
        (deep("classes", 3, fields=("a",)), '{"label":"1.0"}', 1),
        (deep("classes", 3, fields=("a",)), '{"label":3}', "a whole number from 0 to 2"),
        (deep("classes", 3, fields=("a",)), '{"label":1.5}', "a whole number from 0 to 2"),
        (deep("classes", 2, fields=("a",), classes=("x", "ü")), r'{"label":"\u00fc"}', 1),
        (deep("classes", 2, fields=("a",), classes=("x", "ü")), '{"label":1}', "one of x, ü"),
        (deep("classes", 2, fields=("a",), classes=("true", "7")), '{"label":true}', 0),
        (deep("classes", 2, fields=("a",), classes=("true", "7")), '{"label":7}', 1),
        (deep("squared", fields=("a",)), '{"label":-0.5e1}', -5),
        (deep("squared", fields=("a",)), '{"label":"x"}', "a finite number"),
        (deep("squared", fields=("a",)), '{"label":1e39}', "a finite number"),
    ],
)
def test_labels_are_what_the_loss_asks_for(format_, record, label):
    examples, bad = drain_deep(format_, record.encode() + b"\n")
    if not isinstance(label, str):
        assert (examples[0].label, bad) == (label, [])
        return
    [(_, reason, field, arg)] = bad
    assert REASONS[reason] == "label"
    assert format_.complaint(reason, field, arg, record.encode()).endswith(f" is not {label}")


def test_a_deep_model_must_know_the_fields():
    for options in ({}, {"columns": {"y": "label", "x": "ignore"}}, {"cross": ("a*b",)}):
        with pytest.raises(ConfigError) as error:
            deep(**options)
        assert error.value.message == (
            "source.columns: expected the fields and their kinds, which a deep model must know "
            "beforehand, got none"
        )


def test_no_header_names_all_others():
    with pytest.raises(ConfigError, match=r"source.columns.\*: all other columns .* JSON has none"):
        source(columns={"*": "number", "y": "label"})


def test_negatives_that_are_left_out_take_fields_and_numbers_along():
    format_ = deep(columns=DEEP_COLUMNS)
    data = deep_log(300)
    whole = {e.start: e for e in drain_deep(format_, data)[0]}
    kept, _ = drain_deep(format_, data, rate=0.3)
    assert len(kept) < 270
    assert all((whole[e.start].features, whole[e.start].dense) == e[3:] for e in kept)
