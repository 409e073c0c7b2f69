"""The delimited format: keys, quotes, bad records, full minibatches, names, real-looking logs."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamlearn.config import SourceConfig
from streamlearn.errors import ConfigError, DataError
from streamlearn.messages import BLOCK_TAILROOM_BYTES, RECORD_BYTES_MAX
from streamlearn.online.delimited import DelimitedFormat
from streamlearn.online.features import field_seed
from streamlearn.online.formats import Deep, open_format
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch
from tests.reference import delimited as reference
from tests.reference.minibatches import described, drain, drain_deep
from tests.reference.words import log_bucket, mix, token_key


def source(**settings) -> DelimitedFormat:
    return DelimitedFormat(SourceConfig(format="delimited", **settings))


def read(parser, data, *, has_values=False, rows_max=64, before=3):
    """Return (start, label, weight, [(key, value), ...]) and (start, reason, field)."""
    buffer = np.full(before + len(data) + BLOCK_TAILROOM_BYTES, ord("7"), np.uint8)
    end = before + len(data)
    buffer[before:end] = np.frombuffer(data, np.uint8)
    buffer[end::7], buffer[end::5], buffer[end::11] = ord("\n"), ord(","), ord('"')
    out = Minibatch(rows_max, FEATURES_PER_RECORD_MAX + 64 * 40, has_values=has_values)
    rows, bad = [], []
    at = before
    while at < end:
        out.clear()
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
        bad += [
            (int(out.bad_start[i]) - before, int(out.bad_reason[i]), int(out.bad_field[i]))
            for i in range(out.bad)
        ]
        at = after
    return rows, bad


def twin(data, kinds, names, **settings):
    places = {name: i for i, name in enumerate(names)}
    rows, bad = reference.parse(data, kinds, places=places, count=len(names), **settings)
    return [(*row[:3], [(key, value) for key, value, *_ in row[3]]) for row in rows], bad


def texts(source, parser, data):
    """Return {field: text} of the features of a record."""
    return {source.fields[field]: text.decode() for _, field, text in described(parser, data)}


FLIGHTS = {
    "late": "label",
    "when": "time",
    "origin": "categorical",
    "destination": "categorical",
    "distance": "number",
    "delay": "ignore",
}
FLIGHTS_LOG = (
    b"1,2001-01-01T00:01,LAS,PHL,2176,33\n"
    b"1,2001-01-01T00:01,ATL,SAV,215,19\n"
    b"0,2001-01-07T23:59,MCI,MDW,405,14\n"
)


def test_flights_give_hour_weekday_airports_distance_and_crosses():
    flights = source(
        header=True, columns=FLIGHTS, cross=("origin*destination", " when.hour * origin")
    )
    parser = flights.parser(b"late,when,origin,destination,distance,delay\r")
    crosses = (("origin", "destination"), ("when.hour", "origin"))
    assert read(parser, FLIGHTS_LOG) == twin(FLIGHTS_LOG, FLIGHTS, list(FLIGHTS), crosses=crosses)
    rows, _ = read(parser, FLIGHTS_LOG)
    assert [row[1] for row in rows] == [1, 1, 0]
    assert rows[0][3][:3] == [
        (mix(0, int(field_seed("when.hour"))), 1.0),
        (mix(0, int(field_seed("when.weekday"))), 1.0),
        (token_key(b"LAS", int(field_seed("origin"))), 1.0),
    ]
    assert texts(flights, parser, FLIGHTS_LOG[-35:]) == {
        "when.hour": "23",
        "when.weekday": "Sun",
        "origin": "MCI",
        "destination": "MDW",
        "distance": "[384, 448)",
        "origin*destination": "MCI*MDW",
        "when.hour*origin": "23*MCI",
    }


def test_a_rule_makes_the_label_and_gives_the_keys_of_a_label_column():
    rule = source(header=True, columns=FLIGHTS | {"late": "ignore"}, label="delay > 15")
    column = source(header=True, columns=FLIGHTS)
    header = b"late,when,origin,destination,distance,delay"
    assert read(rule.parser(header), FLIGHTS_LOG) == read(column.parser(header), FLIGHTS_LOG)


def test_columns_in_another_order_give_the_same_features():
    flights = source(header=True, columns=FLIGHTS)
    one = flights.parser(b"late,when,origin,destination,distance,delay")
    other = flights.parser(b"delay,distance,destination,x,origin,when,late")
    rows, _ = read(one, b"1,2001-01-01T00:01,LAS,PHL,2176,33\n")
    swapped, _ = read(other, b"33,2176,PHL,?,LAS,2001-01-01T00:01,1\n")
    assert sorted(rows[0][3]) == sorted(swapped[0][3])
    assert rows[0][:3] == swapped[0][:3]


def test_adult_is_read_with_trimmed_tokens_and_either_label():
    kinds = {str(i): "categorical" for i in (1, 3, 5, 6, 7, 8, 9, 13)}
    kinds |= {str(i): "number" for i in (0, 2, 4, 10, 11, 12)}
    adult = source(columns=kinds, label='14 in [">50K", ">50K."]', trim=True)
    parser = adult.parser(None)
    data = (
        b"39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White,"
        b" Male, 2174, 0, 40, United-States, <=50K\n"
        b"44, Private, 160323, Some-college, 10, Married-civ-spouse, ?, Husband, Black,"
        b" Male, 7688, 0, 40, United-States, >50K.\n\n"
    )
    rows, bad = read(parser, data)
    assert not bad
    assert [row[1] for row in rows] == [0, 1]
    assert (token_key(b"State-gov", int(field_seed("1"))), 1.0) in rows[0][3]
    assert all(len(row[3]) == 14 for row in rows)
    untrimmed = source(columns=kinds, label='14 in [">50K", ">50K."]')
    assert [reason for _, reason, _ in read(untrimmed.parser(None), data)[1]] == [3, 3]
    spaced = source(columns={"1": "categorical"}, label='14 == " <=50K"').parser(None)
    assert (token_key(b" State-gov", int(field_seed("1"))), 1.0) in read(spaced, data)[0][0][3]


def test_kddcup_is_read_without_a_header():
    kinds = {str(i): "categorical" if i in {1, 2, 3} else "number" for i in range(41)}
    kdd = source(columns=kinds, label='41 != "normal."', cross=("1*2*3",))
    parser = kdd.parser(None)
    zeros = b",0.00" * 20
    data = b"0,tcp,http,SF,181,5450" + b",0" * 15 + zeros + b",normal.\n"
    data += b"0,icmp,ecr_i,SF,1032,0" + b",0" * 15 + zeros + b",smurf.\n"
    rows, bad = read(parser, data)
    assert not bad
    assert [row[1] for row in rows] == [0, 1]
    assert len(rows[0][3]) == 42
    names = [str(i) for i in range(42)]
    assert (
        rows
        == twin(
            data,
            kinds | {"41": "label"},
            names,
            crosses=(("1", "2", "3"),),
            label=lambda token: None if not token else int(token != "normal."),
        )[0]
    )
    assert texts(kdd, parser, data[: data.index(b"\n") + 1])["1*2*3"] == "tcp*http*SF"


def test_avazu_is_read_whole_from_its_header():
    avazu = source(header=True, label="click", cross=("site_id*C1",))
    header = b"id,click,hour,C1,banner_pos,site_id"
    parser = avazu.parser(header)
    data = b"10000169349117863715,0,14102100,1005,0,1fbe01fe\n1,1,14102100,,0,1fbe01fe\n"
    rows, bad = read(parser, data)
    assert not bad
    assert [(row[1], len(row[3])) for row in rows] == [(0, 6), (1, 4)]
    assert set(avazu.fields) == {"site_id*C1", "id", "hour", "C1", "banner_pos", "site_id"}
    timed = source(header=True, columns={"click": "label", "hour": "time"})
    line = data[: data.index(b"\n") + 1]
    assert texts(timed, timed.parser(header), line) == {"hour.hour": "0", "hour.weekday": "Tue"}


def test_talkingdata_times_with_slashes_and_with_seconds_are_the_same():
    kinds = {"ip": "categorical", "click_time": "time", "is_attributed": "label"}
    td = source(header=True, columns=kinds)
    parser = td.parser(b"ip,app,device,os,channel,click_time,is_attributed")
    rows, bad = read(
        parser,
        b"87540,12,1,13,497,11/7/2017 9:30,0\n87540,12,1,13,497,2017-11-07 09:30:38,1\n",
    )
    assert not bad
    assert rows[0][3] == rows[1][3]


def test_elec2_numbers_have_values_where_asked():
    kinds = {"period": "number:raw", "nswprice": "number", "class": "label"}
    elec = source(header=True, columns=kinds)
    assert elec.has_values
    parser = elec.parser(b"period,nswprice,nswdemand,class")
    data = b"0.021277,0.05644299999999999,0.439155,1\n-1e3,-0.25,x,0\n"
    rows, bad = read(parser, data, has_values=True)
    assert not bad
    assert (rows, bad) == twin(data, kinds, ["period", "nswprice", "nswdemand", "class"])
    period = mix(0, int(field_seed("period")))
    price = mix(log_bucket(-0.25), int(field_seed("nswprice")))
    assert rows[1][3] == [(period, -1000.0), (price, 1.0)]
    assert texts(elec, parser, data[data.index(b"\n") + 1 :]) == {
        "period": "",
        "nswprice": "(-0.3125, -0.25]",
    }


# --- bad records

KINDS = {"y": "label", "w": "weight", "c": "categorical", "n": "number", "t": "time"}
HEADER = b"y,w,c,n,t"
GOOD = b"1,2.5,abc,7,2001-01-01T00:01\n"


@pytest.mark.parametrize(
    ("line", "reason", "field", "complaint"),
    [
        (b"1,1,a,7", 1, -1, "expected 5 fields, found 4"),
        (b"1,1,a,7,,", 1, -1, "expected 5 fields, found 6"),
        (b"2,1,a,7,", 2, 0, "label '2' is not 0 or 1, -1 or 1, true or false, yes or no"),
        (b",1,a,7,", 2, 0, "label '' is not 0 or 1, -1 or 1, true or false, yes or no"),
        (b"1,1,a,seven,", 3, 3, "n 'seven' is not a finite number"),
        (b"1,1,a,nan,", 3, 3, "n 'nan' is not a finite number"),
        (b"1,1,a,inf,", 3, 3, "n 'inf' is not a finite number"),
        (b"1,1,a,1e39,", 3, 3, "n '1e39' is not a finite number"),
        (b"1,1,a\xff,7,", 4, 2, r"c 'a\xff' is not valid UTF-8"),
        (b"1,1,\xed\xa0\x80,7,", 4, 2, r"c '\xed\xa0\x80' is not valid UTF-8"),
        (b'1,1,"a,7,', 6, -1, "a quote \" does not end on its line or stands inside a field "
         "without quotes in '1,1,\"a,7,'"),
        (b'1,1,a"b",7,', 6, -1, "a quote \" does not end on its line or stands inside a field "
         "without quotes in '1,1,a\"b\",7,'"),
        (b"1,1,a,7,noon", 9, 4,
         "t 'noon' is not a time (2026-11-23T18:05, seconds or YYMMDDHH)"),
        (b'1,1,"x,y",7,2001-02-29T00:00', 9, 4,
         "t '2001-02-29T00:00' is not a time (2026-11-23T18:05, seconds or YYMMDDHH)"),
        (b"1,-1,a,7,", 10, 1, "weight '-1' is not a number of at least 0"),
        (b"1,,a,7,", 10, 1, "weight '' is not a number of at least 0"),
        (b"1,1e39,a,7,", 10, 1, "weight '1e39' is not a number of at least 0"),
    ],
)  # fmt: skip
def test_a_bad_record_is_noted_with_its_place_and_a_complaint(line, reason, field, complaint):
    logs = source(header=True, columns=KINDS)
    parser = logs.parser(HEADER)
    data = GOOD + line + b"\r\n" + GOOD
    rows, bad = read(parser, data)
    assert bad == [(len(GOOD), reason, field)]
    assert [row[0] for row in rows] == [0, len(GOOD) + len(line) + 2]
    assert [row[2] for row in rows] == [2.5, 2.5]
    assert (rows, bad) == twin(data, KINDS, list(KINDS))
    out = Minibatch(8, FEATURES_PER_RECORD_MAX * 2, has_values=False)
    buffer = np.zeros(len(data) + BLOCK_TAILROOM_BYTES, np.uint8)
    buffer[: len(data)] = np.frombuffer(data, np.uint8)
    parser.parse(buffer, 0, len(data), out)
    arg = int(out.bad_arg[0])
    assert logs.complaint(reason, field, arg, line) == complaint


def test_a_rule_stands_in_the_complaint():
    rule = source(header=True, columns={"c": "categorical"}, label="delay > 15")
    parser = rule.parser(b"c,delay")
    assert read(parser, b"a,late\na,16\n")[1] == [(0, 2, 1)]
    complaint = rule.complaint(2, 1, rule._columns["delay"], b"a,late")
    assert complaint == "delay 'late' is not a number (the rule is delay > 15)"


def test_a_record_longer_than_the_limit_is_bad():
    logs = source(header=True, columns={"y": "label", "c": "categorical"})
    parser = logs.parser(b"y,c")
    fits = b"1," + b"x" * (RECORD_BYTES_MAX - 2) + b"\n"
    data = fits + b"1,x" + fits[2:] + GOOD[:1] + b",a\n"
    rows, bad = read(parser, data)
    assert [row[0] for row in rows] == [0, 2 * len(fits) + 1]
    assert bad == [(len(fits), 5, -1)]
    assert logs.complaint(5, -1, RECORD_BYTES_MAX + 1, b"") == (
        "record of 1048577 bytes is longer than the 1048576 allowed"
    )
    quoted = b'1,"' + b'""' * ((RECORD_BYTES_MAX - 4) // 2) + b'"\n'
    assert len(read(parser, quoted)[0]) == 1


def test_without_a_header_more_fields_than_named_are_allowed():
    logs = source(columns={"0": "label", "2": "categorical"})
    rows, bad = read(logs.parser(None), b"1,x,a,more\n1,x\n1,x,a\n")
    assert [row[0] for row in rows] == [0, 15]
    assert rows[0][3] == rows[1][3]
    assert bad == [(11, 1, -1)]
    assert logs.complaint(1, -1, 2, b"1,x") == "expected at least 3 fields, found 2"


def test_records_need_no_label_where_none_is_wanted():
    config = SourceConfig(format="delimited", header=True, columns=KINDS | {"late": "ignore"})
    bare = open_format(config, labelled=False)
    whole = source(header=True, columns=KINDS).parser(HEADER)
    line = b"abc,7,2001-01-01T00:01\n"
    rows, bad = read(bare.parser(b"c,n,t"), line)
    assert not bad
    assert rows == [(0, 0, 1.0, read(whole, b"1,2," + line)[0][0][3])]
    assert read(bare.parser(HEADER), b"what,ever," + line)[0] == rows
    with pytest.raises(DataError, match="no column 'n', which"):
        bare.parser(b"y,w,c,t")


def test_records_need_no_label_without_a_header_either():
    config = SourceConfig(columns={"0": "categorical", "1": "number"}, label="2 > 15")
    rows, bad = read(DelimitedFormat(config, labelled=False).parser(None), b"a,1\n")
    assert not bad
    assert rows[0][3] == read(DelimitedFormat(config).parser(None), b"a,1,20\n")[0][0][3]


# --- splitting


def test_quoted_fields_are_the_same_tokens_as_plain_ones():
    logs = source(header=True, columns=KINDS)
    parser = logs.parser(HEADER)
    quoted = b'"1","2.5","abc","7","2001-01-01T00:01"\n'
    rows, _ = read(parser, GOOD + quoted + b'1,1,"a ""b"", c",,\n1,1,"",,\n')
    assert rows[0][1:] == rows[1][1:]
    assert rows[2][3] == [(token_key(b'a "b", c', int(field_seed("c"))), 1.0)]
    assert rows[3][3] == []


def test_without_a_quote_character_quotes_are_plain():
    logs = source(header=True, quote="", columns={"y": "label", "c": "categorical"})
    rows, bad = read(logs.parser(b"y,c"), b'1,"a\n')
    assert not bad
    assert rows[0][3] == [(token_key(b'"a', int(field_seed("c"))), 1.0)]


@pytest.mark.parametrize("delimiter", ["\t", ";", "|", " ", "\\t", "tab"])
def test_any_delimiter_splits(delimiter):
    logs = source(
        header=True, delimiter=delimiter, columns={"y": "label", "c": "categorical", "n": "number"}
    )
    char = logs.delimiter.encode()
    rows, _ = read(logs.parser(b"y,c,n".replace(b",", char)), b"1,a b,4\n".replace(b",", char))
    if delimiter == " ":
        assert not rows  # four fields
    else:
        assert rows[0][3][0][0] == token_key(b"a b", int(field_seed("c")))


def test_blank_lines_and_carriage_returns_are_no_records():
    logs = source(header=True, columns=KINDS)
    parser = logs.parser(HEADER)
    rows, bad = read(parser, b"\n\r\n" + GOOD.replace(b"\n", b"\r\n") + b"\n\n" + GOOD + b"\r\n")
    assert not bad
    assert [row[0] for row in rows] == [3, 5 + len(GOOD) + 1]
    assert rows[0][1:] == rows[1][1:]


def test_a_full_minibatch_stops_between_records_and_goes_on():
    logs = source(header=True, columns=KINDS)
    parser = logs.parser(HEADER)
    data = b"".join(b"%d,1,c%d,%d,\n" % (i % 3, i, i) for i in range(500))
    assert read(parser, data, rows_max=7) == read(parser, data, rows_max=1000)
    assert drain(parser, data, rows_max=5)[0] == drain(parser, data, rows_max=500)[0]


def test_a_minibatch_is_appended_to():
    parser = source(header=True, columns=KINDS).parser(HEADER)
    buffer = np.zeros(2 * len(GOOD) + BLOCK_TAILROOM_BYTES, np.uint8)
    buffer[: 2 * len(GOOD)] = np.frombuffer(GOOD * 2, np.uint8)
    out = Minibatch(8, FEATURES_PER_RECORD_MAX * 2, has_values=False)
    assert parser.parse(buffer, 0, len(GOOD), out) == len(GOOD)
    assert parser.parse(buffer, len(GOOD), 2 * len(GOOD), out) == 2 * len(GOOD)
    assert parser.parse(buffer, 5, 5, out) == 5
    assert out.rows == 2
    assert out.indptr[:3].tolist() == [0, 4, 8]
    assert out.keys[:4].tolist() == out.keys[4:8].tolist()


# --- against the twin

PIECES = st.sampled_from(
    [b"", b"", b"a", b"abcdefgh", b"abcdefghi", b"x" * 30, b"7", b"0", b"1", b"12", b"-3.5",
     b"1e3", b"1e-3", b"99999999", b"123456789", b".5", b"5.", b"+4", b"-", b".", b"1e", b"nan",
     b"-0", b"0.05644299999999999", b"2001-01-01T00:01", b"2004-02-29 23:59:60.5+02:00",
     b"2001-13-01T00:00", b"14102100", b"1700000000", b"1700000000000", b"11/7/2017 9:30",
     b"\xc3\xa9", b"\xff", b"\xe2\x82\xac uro", b'"', b'""', b'"a"', b'"a,b"', b'"a""b"', b'"a"b',
     b'a"', b'"1"', b" ", b" a ", b' "q" ', b"\r", b"a\rb", b"true", b"NO", b"1.0"]
)  # fmt: skip
LINES = st.one_of(
    st.lists(PIECES, min_size=5, max_size=5),
    st.tuples(
        st.sampled_from([b"0", b"1", b"yes", b'"0"', b"2"]),
        st.sampled_from([b"1", b"0.5", b'"2"', b" 3", b"-1"]),
        PIECES,
        st.sampled_from([b"", b"3", b"-17.25", b'"8"', b"x", b"1e9"]),
        st.sampled_from([b"", b"2001-01-01T00:01", b"1700000000", b"x", b"1/2/2003"]),
    ),
    st.lists(PIECES, max_size=7),
).map(lambda pieces: b",".join(pieces))


def has_lone_return(line: bytes) -> bool:
    """The csv module ends a line at a return; the twin cannot say what such a line is."""
    return b"\r" in line.removesuffix(b"\r") and b'"' in line


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("raw", [False, True])
def test_nasty_records_match_the_twin(trim, raw):
    kinds = KINDS | ({"n": "number:raw"} if raw else {})
    cross = ("c*t.hour",) if raw else ("c*n", "t.weekday*c*n", "t.hour*c")
    logs = source(header=True, columns=kinds, cross=cross, trim=trim)
    parser = logs.parser(HEADER)
    crosses = tuple(tuple(text.split("*")) for text in cross)

    @settings(max_examples=200, deadline=None)
    @given(
        st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\r\n"])), max_size=8),
        st.integers(0, 70),
    )
    @example([(b'1,1,"a', b"\n"), (b'b",,', b"\n")], 0)
    @example([(b'1,1,"' + b"x," * 40 + b'",,', b"\n"), (b"1,1,a,,", b"\n")], 0)
    def matches(lines, before):
        data = b"".join(line + end for line, end in lines if not has_lone_return(line))
        got = read(parser, data, has_values=raw, before=before)
        assert got == twin(data, kinds, list(kinds), trim=trim, crosses=crosses)

    matches()


def test_any_bytes_match_the_twin():
    kinds = {"y": "label", "c": "categorical"}
    parser = source(header=True, columns=kinds).parser(b"y,c")

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.sampled_from([b",", b"\n", b"0", b"1", b'"', b"\xc3", b"\xa9", b"ab,1\n"])))
    def matches(parts):
        data = b"".join(parts) + b"\n"
        assert read(parser, data) == twin(data, kinds, ["y", "c"])

    matches()


# --- names


def test_described_keys_are_the_parsed_keys_with_their_texts():
    kinds = KINDS | {"n": "number:raw", "t": "time:weekday"}
    logs = source(header=True, columns=kinds, cross=("t.weekday*c", "c*t.weekday"))
    parser = logs.parser(HEADER)
    data = b'1,1,"a,b",3,2001-01-01T00:01\r\n1,1,,3,1/2/2001\n1,1,\xc3\xa9,,2001-01-06\n1,1,c,4,\n'
    rows, _ = read(parser, data, has_values=True)
    named = described(parser, data)
    assert [key for key, _, _ in named] == [key for row in rows for key, _ in row[3]]
    assert [(logs.fields[field], text.decode()) for _, field, text in named] == [
        ("c", "a,b"),
        ("n", ""),
        ("t.weekday", "Mon"),
        ("t.weekday*c", "Mon*a,b"),
        ("c*t.weekday", "a,b*Mon"),
        ("n", ""),
        ("t.weekday", "Tue"),
        ("c", "é"),
        ("t.weekday", "Sat"),
        ("t.weekday*c", "Sat*é"),
        ("c*t.weekday", "é*Sat"),
        ("c", "c"),
        ("n", ""),
    ]


def test_describing_no_record_gives_nothing():
    parser = source(header=True, columns=KINDS).parser(HEADER)
    assert described(parser, b"") == []


def test_fields_keep_their_numbers_as_headers_differ():
    logs = source(header=True, label="y")
    logs.parser(b"y,a,b")
    before = logs.fields
    parser = logs.parser(b"c,b,y")
    assert logs.fields[: len(before)] == before
    assert texts(logs, parser, b"1,2,0\n") == {"c": "1", "b": "2"}


# --- headers and settings


def test_a_header_is_read_as_records_are():
    logs = source(header=True, columns={"y": "label", "a, b": "categorical"}, trim=True)
    rows, _ = read(logs.parser(b'\xef\xbb\xbfy, "a, b" \r\n'), b"1,x\n")
    assert rows[0][3] == [(token_key(b"x", int(field_seed("a, b"))), 1.0)]


def test_a_header_without_a_named_column_is_an_error():
    logs = source(header=True, columns={"y": "label", "origin": "categorical"})
    with pytest.raises(DataError) as error:
        logs.parser(b"y,orign,x")
    assert error.value.message == (
        "the header has no column 'origin', which source.columns.origin names"
    )
    assert error.value.hint == "did you mean 'orign'?"


def test_a_header_with_a_named_column_twice_is_an_error():
    logs = source(header=True, columns={"y": "label", "a": "categorical"})
    logs.parser(b"y,a,x,x")
    with pytest.raises(DataError, match="the header has the column 'a' twice"):
        logs.parser(b"y,a,a")
    with pytest.raises(DataError, match="not valid UTF-8"):
        logs.parser(b"y,\xff")


def test_more_features_than_a_record_may_have_are_an_error():
    logs = source(header=True, label="y")
    header = b"y," + b",".join(b"%d" % i for i in range(FEATURES_PER_RECORD_MAX))
    with pytest.raises(DataError, match="a record has 65536 features"):
        logs.parser(header)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"delimiter": "ab"}, "source.delimiter: expected one ASCII character"),
        ({"delimiter": "\n"}, "source.delimiter: expected one ASCII character"),
        ({"quote": "é"}, "source.quote: expected one ASCII character"),
        ({"quote": ","}, "source.quote: ',' is the delimiter already"),
    ],
)
def test_a_wrong_character_is_an_error(settings, message):
    with pytest.raises(ConfigError) as error:
        source(header=True, label="y", **settings)
    assert error.value.message.startswith(message)


def test_tsv_is_delimited_by_tabs():
    tsv = open_format(SourceConfig(format="tsv", header=True, label="y"))
    assert isinstance(tsv, DelimitedFormat)
    assert tsv.delimiter == "\t"


# --- all other columns by a wildcard


def test_a_wildcard_gives_the_features_that_named_columns_would():
    header = b"a,y,b,c"
    data = b"1,1,x,2.5\n,0,y,\n"
    wild = source(header=True, columns={"*": "number:raw", "b": "categorical", "y": "label"})
    kinds = {"a": "number:raw", "y": "label", "b": "categorical", "c": "number:raw"}
    named = source(header=True, columns=kinds)
    assert read(wild.parser(header), data, has_values=True) == read(
        named.parser(header), data, has_values=True
    )
    assert wild.has_values
    assert wild.fields == ("b", "a", "c")


# --- deep models

DEEP_KINDS = {
    "y": "label",
    "w": "weight",
    "c": "categorical",
    "r": "number:raw",
    "n": "number",
    "t": "time",
    "s": "number:raw",
}
DEEP_HEADER = b"s,t,y,c,w,n,r"


def deep(loss="logistic", count=0, /, *, labelled=True, **settings):
    config = SourceConfig(format="delimited", header=True, **settings)
    return DelimitedFormat(config, labelled=labelled, deep=Deep(loss, count))


def deep_log(n, seed=1):
    """Return records of DEEP_HEADER, some fields missing, some quoted, some bad."""
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(n):
        cells = {
            "s": rng.choice(["", "0", "-1.5", "1e-3", "12345678901"]),
            "t": rng.choice(["", "2001-01-01", "2001-01-07T23:59"]),
            "y": rng.choice(["0", "1", "yes", "no"]),
            "c": rng.choice(["", "abc", '"a,b"', "größe"]),
            "w": rng.choice(["1", "2.5"]),
            "n": rng.choice(["", "7", "-0.1"]),
            "r": rng.choice(["", "3.25", "7" * 12]),
        }
        if i % 11 == 10:
            cells[rng.choice(["s", "t", "y", "n", "r"])] = "oops"
        lines.append(",".join(cells[name] for name in DEEP_HEADER.decode().split(",")) + "\n")
    return "".join(lines).encode()


@pytest.mark.parametrize("rows_max", [1, 7, 64])
def test_a_deep_model_gets_fields_and_raw_numbers(rows_max):
    format_ = deep(columns=DEEP_KINDS, cross=("c*n", "t.hour*c"))
    assert format_.fields == ("c", "n", "t.hour", "t.weekday", "c*n", "t.hour*c")
    assert (format_.dense_names, format_.dense) == (("r", "s"), (2,))
    assert (format_.has_fields, format_.has_values) == (True, False)
    data = deep_log(150)
    examples, bad = drain_deep(format_, data, header=DEEP_HEADER, rows_max=rows_max)
    names = DEEP_HEADER.decode().split(",")
    rows, twin_bad = reference.parse(
        data,
        DEEP_KINDS,
        places={name: i for i, name in enumerate(names)},
        count=len(names),
        crosses=(("c", "n"), ("t.hour", "c")),
    )
    assert [one[:3] for one in bad] == twin_bad
    expected = []
    for start, label, weight, features in rows:
        raw = {field: value for _, value, field, _ in features if field in {"r", "s"}}
        embedded = [(key, 1.0, field) for key, _, field, _ in features if field not in raw]
        expected.append((start, label, weight, embedded, [raw.get("r"), raw.get("s")]))
    assert [tuple(one) for one in examples] == expected


def test_a_deep_model_names_what_is_embedded():
    format_ = deep(columns=DEEP_KINDS, cross=("c*n",))
    data = b"1,2001-01-01T00:01,1,abc,1,7,2\n,,0,,1,7,2\n"
    examples, bad = drain_deep(format_, data, header=DEEP_HEADER)
    assert not bad
    told = described(format_.parser(DEEP_HEADER), data)
    assert [(key, format_.fields[field]) for key, field, _ in told] == [
        (key, field) for one in examples for key, _, field in one.features
    ]
    assert {format_.fields[field]: text for _, field, text in told[:5]} == {
        "t.hour": b"0",
        "t.weekday": b"Mon",
        "c": b"abc",
        "n": b"[7, 8)",
        "c*n": b"abc*[7, 8)",
    }


@pytest.mark.parametrize("token", [b"seven", b"nan", b"inf", b"1e39", b" 1"])
def test_a_raw_number_that_is_none_makes_a_bad_record(token):
    format_ = deep(columns={"y": "label", "r": "number:raw"})
    line = b"1," + token
    data = b"1,2\n" + line + b"\n0,\n"
    examples, [(start, reason, field, arg)] = drain_deep(format_, data, header=b"y,r")
    assert [one.dense for one in examples] == [[2], [None]]
    assert (start, reason, field) == (4, 3, 1)
    assert format_.complaint(reason, field, arg, line) == (
        f"r '{token.decode()}' is not a finite number"
    )


def test_a_wildcard_of_raw_numbers_makes_all_other_columns_dense():
    format_ = deep("classes", 7, columns={"*": "number:raw", "Cover_Type": "label"})
    assert (format_.has_fields, format_.has_values) == (True, False)
    header = b"Slope,Elevation,Cover_Type,Aspect"
    examples, _ = drain_deep(format_, b"1,2,3,4\n5,,6,8\n", header=header)
    assert (format_.fields, format_.dense) == ((), (3,))
    assert format_.dense_names == ("Aspect", "Elevation", "Slope")
    assert [(one.label, one.dense) for one in examples] == [(3, [4, 2, 1]), (6, [8, None, 5])]
    # another object may have its columns in another order
    [other], _ = drain_deep(format_, b"3,1,2,4\n", header=b"Cover_Type,Slope,Elevation,Aspect")
    assert other == examples[0]


def test_fields_that_a_header_names_do_not_depend_on_the_order_of_its_columns():
    headers = (b"y,b,a,c", b"c,y,a,b")
    made = []
    for header in headers:
        format_ = deep(columns={"*": "categorical", "c": "number:raw"}, label="y", cross=("a*b",))
        format_.parser(header)
        made.append((format_.fields, format_.dense_names))
    assert made == [(("a*b", "a", "b"), ("c",))] * 2


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"y,a,b,d", "the header has another column 'd', unlike the first that was read"),
        (b"y,a", "the header has no column 'b', unlike the first that was read"),
    ],
)
def test_a_deep_model_takes_no_other_columns_later(header, message):
    for kind in ("categorical", "number:raw"):
        format_ = deep(columns={"*": kind}, label="y")
        format_.parser(b"y,a,b")
        with pytest.raises(DataError) as error:
            format_.parser(header)
        assert error.value.message.startswith(message)
    plain = source(header=True, label="y")
    plain.parser(b"y,a,b")
    plain.parser(header)


def test_columns_that_are_named_may_stand_among_others():
    format_ = deep(columns={"y": "label", "a": "number:raw", "b": "categorical"})
    one, _ = drain_deep(format_, b"1,2,x\n", header=b"y,a,b")
    other, _ = drain_deep(format_, b"x,?,2,1\n", header=b"b,new,a,y")
    assert one == other


def test_a_cross_of_a_raw_number_is_refused():
    with pytest.raises(ConfigError, match="'r' is number:raw, which cannot be crossed"):
        deep(columns=DEEP_KINDS, cross=("c*r",))


@pytest.mark.parametrize(
    ("format_", "token", "label"),
    [
        (deep("classes", 7, label="y"), b"6", 6),
        (deep("classes", 7, label="y"), b"2.0", 2),
        (deep("classes", 7, label="y"), b"7", "a whole number from 0 to 6"),
        (deep("classes", 7, label="y"), b"-1", "a whole number from 0 to 6"),
        (deep("classes", 7, label="y"), b"1.5", "a whole number from 0 to 6"),
        (deep("classes", 7, label="y"), b"", "a whole number from 0 to 6"),
        (deep("classes", 65536, label="y"), b"65535", 65535),
        (deep("classes", 3, label="y", classes=("cat", "dog", "a,b")), b'"a,b"', 2),
        (deep("classes", 2, label="y", classes=("cat", "dog")), b"cow", "one of cat, dog"),
        (deep("classes", 2, label="y", classes=("cat", "dog")), b"", "one of cat, dog"),
        (deep("classes", 2, label="y", classes=("1", "2")), b"1", 0),
        (deep("squared", label="y"), b"-12.5", -12.5),
        (deep("squared", label="y"), b"1e39", "a finite number"),
        (deep("squared", label="y"), b"", "a finite number"),
        (deep("squared", label="y"), b"nan", "a finite number"),
        (deep(label="y > 3"), b"4", 1),
        (deep(label="y"), b"2", "0 or 1, -1 or 1, true or false, yes or no"),
    ],
)
def test_labels_are_what_the_loss_asks_for(format_, token, label):
    line = token + b",x"
    examples, bad = drain_deep(format_, line + b"\n", header=b"y,a")
    if not isinstance(label, str):
        assert (examples[0].label, bad) == (label, [])
        return
    [(_, reason, field, arg)] = bad
    assert (reason, field) == (2, 0)
    assert format_.complaint(reason, field, arg, line) == f"label '{token.decode()}' is not {label}"


def test_a_deep_model_predicts_without_labels():
    for loss, classes in (("logistic", 0), ("classes", 3), ("squared", 0)):
        columns = {"*": "number:raw", "y": "label", "w": "weight"}
        format_ = deep(loss, classes, columns=columns, labelled=False)
        examples, bad = drain_deep(format_, b"1,2\n,3\n", header=b"b,a")
        assert not bad
        assert [tuple(one)[1:] for one in examples] == [
            (0, 1, [], [2, 1]),
            (0, 1, [], [3, None]),
        ]
        with_label, bad = drain_deep(format_, b"1,?,2\n", header=b"b,y,a")
        assert (with_label[0].dense, bad) == ([2, 1], [])


def test_negatives_that_are_left_out_take_fields_and_numbers_along():
    format_ = deep(columns=DEEP_KINDS, cross=("c*n",))
    data = deep_log(400)
    whole = {one.start: one for one in drain_deep(format_, data, header=DEEP_HEADER)[0]}
    for rows_max in (7, 64):
        kept, _ = drain_deep(format_, data, header=DEEP_HEADER, rate=0.3, rows_max=rows_max)
        assert 150 < len(kept) < len(whole) - 80
        for one in kept:
            was = whole[one.start]
            assert (one.label, one.features, one.dense) == (was.label, was.features, was.dense)
