"""Where user, item and rating stand: separators, headers, columns, and what looks like ratings."""

from __future__ import annotations

from typing import Any

import pytest

from streamlearn.config import SourceConfig
from streamlearn.errors import ConfigError, DataError
from streamlearn.online.layouts import Layout, RatingsSchema, looks_like_ratings, read_schema


def schema(separator: str = "", labelled: bool = True, **settings: Any) -> RatingsSchema:
    config = SourceConfig(format="ratings", **settings)
    return read_schema(config, separator, config.quote, labelled=labelled)


@pytest.mark.parametrize(
    ("line", "separator"),
    [
        ("1::1193::5::978300760", "::"),
        ("1::1193", "::"),
        ("196\t242\t3\t881250949", "\t"),
        ("1;2;3", ";"),
        ("1;2;3,5", ";"),
        ("1,2,3,2020-01-01 10:00:00", ","),
        ("1 2 3", " "),
        ("1 2 3,5", " "),
        ("a b,c,5", ","),
        ("a::b,c,4", ","),
        ('"a::b",c::d,4', ","),
        ('"a;b;c",d,4', ","),
        ("1,2", ","),
        ("1 2", " "),
        ("1", ","),
        ("", ","),
    ],
)
def test_a_first_line_shows_what_separates(line: str, separator: str) -> None:
    assert schema().bind(line).separator == separator


def test_a_separator_that_is_set_wins() -> None:
    assert schema("|").bind("1::2::3") == Layout("|", 3, 4, {"user": 0, "item": 1, "rating": 2,
                                                           "time": 3})  # fmt: skip


def test_without_a_header_the_order_is_user_item_rating_time() -> None:
    order = {"user": 0, "item": 1, "rating": 2, "time": 3}
    assert schema().bind("1,2,3") == Layout(",", 3, 4, order)
    assert schema().bind("1,2,3,4") == Layout(",", 3, 4, order)


def test_two_fields_are_feedback_without_ratings() -> None:
    assert schema().bind("1,2") == Layout(",", 2, 2, {"user": 0, "item": 1})


def test_columns_by_number_need_no_more_fields_than_they_name() -> None:
    columns = {"4": "user", "0": "item", "2": "rating", "6": "ignore"}
    expected = Layout(",", 5, 0, {"user": 4, "item": 0, "rating": 2})
    assert schema(columns=columns).bind("1,2,3,4,5,6,7") == expected
    assert schema(columns=columns).bind("a;b;c,2,3,4,5,6,7").separator == ","


@pytest.mark.parametrize(
    ("header", "places"),
    [
        ("userId,movieId,rating,timestamp", {"user": 0, "item": 1, "rating": 2, "time": 3}),
        ("user_id\titem_id\trating\tts", {"user": 0, "item": 1, "rating": 2, "time": 3}),
        ('"User-ID";"ISBN";"Book-Rating"', {"user": 0, "item": 1, "rating": 2}),
        ("stars,product,uid,weight", {"user": 2, "item": 1, "rating": 0, "weight": 3}),
        ("title,score,item,user,genre", {"user": 3, "item": 2, "rating": 1}),
        ("user,item", {"user": 0, "item": 1}),
        ("user item time", {"user": 0, "item": 1, "time": 2}),
        ("user,item,rating,date,timestamp", {"user": 0, "item": 1, "rating": 2, "time": 3}),
    ],
)
def test_usual_names_are_known(header: str, places: dict[str, int]) -> None:
    layout = schema(header=True).bind(header)
    assert layout.places == places
    assert layout.least == layout.most


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("who,movie,rating", "none of them is known as the user"),
        ("user,film,rating", "none of them is known as the item"),
        ("user,movie,grade", "none of them is known as the rating"),
        ("user,movie,product,rating", "'movie' and 'product' may both be the item"),
        ("user,item,rating,score", "'rating' and 'score' may both be the rating"),
        ("user,item,item", "'item' and 'item' may both be the item"),
    ],
)
def test_a_header_that_shows_no_order_lists_its_columns(header: str, problem: str) -> None:
    with pytest.raises(DataError) as error:
        schema(header=True).bind(header)
    names = header.replace(",", ", ")
    assert error.value.message == f"the header has the columns {names}: {problem}"
    assert error.value.hint is not None
    assert 'NAME = "user"' in error.value.hint


def test_columns_by_name_are_found_in_any_header() -> None:
    columns = {"who": "user", "film": "item", "grade": "rating", "when": "time", "x": "ignore"}
    named = schema(header=True, columns=columns)
    assert named.bind("x,grade,film,y,when,who").places == {
        "user": 5, "item": 2, "rating": 1, "time": 4,
    }  # fmt: skip
    with pytest.raises(DataError) as error:
        named.bind("x,grades,film,when,who")
    assert error.value.message == (
        "the header has no column 'grade', which source.columns.grade names"
    )
    assert error.value.hint == "did you mean 'grades'?"
    with pytest.raises(DataError, match="the header has the column 'film' twice"):
        named.bind("x,grade,film,film,when,who")


def test_without_labels_ratings_and_weights_need_not_be_there() -> None:
    columns = {"who": "user", "film": "item", "grade": "rating", "w": "weight", "x": "ignore"}
    named = schema(header=True, columns=columns, labelled=False)
    assert named.bind("film,who").places == {"user": 1, "item": 0}
    assert schema(header=True, labelled=False).bind("user,item,x").places == {"user": 0, "item": 1}
    assert schema(header=True, labelled=False).bind("user,item,rating").places == {
        "user": 0, "item": 1,
    }  # fmt: skip
    assert schema(labelled=False).bind("1::2") == Layout(
        "::", 2, 4, {"user": 0, "item": 1, "time": 3}
    )
    numbers = {"0": "user", "1": "item", "2": "rating"}
    assert schema(columns=numbers, labelled=False).bind("1,2").least == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"columns": {"0": "usr"}},
            "source.columns.0: expected one of user, item, rating, time, weight, ignore, got 'usr'",
        ),
        (
            {"columns": {"who": "user", "what": "item"}},
            "source.columns.who: expected a column's number from 0, since source.header is false, "
            "got 'who'",
        ),
        (
            {"columns": {"0": "user", "1": "item", "2": "user"}},
            "source.columns.2: '0' is the user already",
        ),
        ({"columns": {"0": "user"}}, "source.columns: expected one column of kind item, got none"),
        (
            {"label": "2 > 3"},
            "source.label: expected nothing, since ratings have users, items and ratings alone, "
            "got '2 > 3'",
        ),
    ],
)
def test_a_wrong_setting_is_an_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        schema(**settings)
    assert error.value.message == message


@pytest.mark.parametrize("separator", ["::", "\t", ",", " ", "|", ":", "\x7f", "\x01"])
@pytest.mark.parametrize("fields", [(2, 2), (3, 4), (2, 4), (4, 4), (7, 0), (1 << 20, 1 << 20)])
def test_a_word_says_separator_and_number_of_fields(separator: str, fields: Any) -> None:
    layout = Layout(separator, *fields, {})
    assert 0 <= layout.word < 1 << 30
    assert Layout.of_word(layout.word) == layout


@pytest.mark.parametrize(
    ("line", "separator", "fields"),
    [
        ('"a, ""b""",c,"5"', ",", ['a, "b"', "c", "5"]),
        ('"",,""', ",", ["", "", ""]),
        ('"a', ",", None),
        ('a"b",c', ",", None),
        ('"a"::b', "::", ['"a"', "b"]),
        ("a:::b::::c", "::", ["a", ":b", "", "c"]),
        ("  a \t b ", " ", ["a", "b"]),
        ('"a b" c', " ", ['"a', 'b"', "c"]),
    ],
)
def test_fields_are_split_as_the_kernel_does(line: str, separator: str, fields: Any) -> None:
    assert schema().split(line, separator) == fields


def test_trimmed_fields_have_no_spaces_around_them_or_their_quotes() -> None:
    assert schema(trim=True).split(' "a ""b"" " , c ,5 ', ",") == ['a "b"', "c", "5"]
    assert schema(trim=True).split("1 :: 2", "::") == ["1", "2"]


@pytest.mark.parametrize(
    ("line", "anyway", "wanted"),
    [
        ("1::1193::5::978300760", True, True),
        ("alice::x y::4.5", True, True),
        ("196\t242\t3\t881250949", True, True),
        ("196\t242\t3.5", True, True),
        ("196\t242", False, True),
        ("196\tx\t3", False, True),
        ("1::2", False, True),
        ("::2::3", False, True),
        ("1,2,3", False, True),
        ("a b 3", False, True),
        ("1::Toy Story (1995)::Comedy", False, False),
        ("userId,movieId,rating", False, False),
        ("1,2,3,4,5", False, False),
        ("1", False, False),
        ("", False, False),
    ],
)
def test_what_looks_like_ratings(line: str, anyway: bool, wanted: bool) -> None:
    assert looks_like_ratings(line, SourceConfig(), wanted=False) == anyway
    assert looks_like_ratings(line, SourceConfig(), wanted=True) == wanted
