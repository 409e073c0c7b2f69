"""The schema: kinds, label rules, crosses, and errors that name the setting."""

import pytest

from streamlearn.config import SourceConfig
from streamlearn.errors import ConfigError, DataError
from streamlearn.online.formats import Deep
from streamlearn.online.schema import (
    KINDS,
    LABEL_TOKENS,
    Feature,
    read_label_rule,
    read_schema,
)


def schema(columns=None, *, header=True, label="", cross=()):
    return read_schema(
        SourceConfig(
            format="delimited", columns=columns or {}, header=header, label=label, cross=cross
        )
    )


def test_columns_give_features_in_their_order_in_the_header():
    bound = schema(
        {"n": "number", "t": "time", "y": "label", "c": "categorical", "w": "weight"}
    ).bind(["c", "y", "t", "x", "w", "n"])
    assert bound.features == (
        Feature("c", "c", "category"),
        Feature("t.hour", "t", "hour"),
        Feature("t.weekday", "t", "weekday"),
        Feature("n", "n", "number"),
    )
    assert (bound.count, bound.exact, bound.weight) == (6, True, "w")
    assert [bound.columns[name] for name in ("c", "y", "t", "w", "n")] == [0, 1, 2, 4, 5]


@pytest.mark.parametrize(
    ("kind", "features"),
    [
        ("categorical", [("x", "category")]),
        ("number", [("x", "number")]),
        ("number:log", [("x", "number")]),
        ("number:raw", [("x", "raw")]),
        ("time", [("x.hour", "hour"), ("x.weekday", "weekday")]),
        ("time:hour", [("x.hour", "hour")]),
        ("time:weekday", [("x.weekday", "weekday")]),
        ("weight", []),
        ("ignore", []),
    ],
)
def test_a_kind_gives_its_features(kind, features):
    made = schema({"y": "label", "x": kind})
    assert [(f.field, f.part) for f in made.bind(["y", "x"]).features] == features
    assert made.fields == tuple(field for field, _ in features)
    assert made.has_values == (kind == "number:raw")


def test_without_columns_all_but_the_label_are_categories():
    bound = schema(label="y == 2", cross=("a*b",)).bind(["a", "y", "b"])
    assert [f.field for f in bound.features] == ["a", "b"]
    assert bound.crosses == ((0, 1),)
    assert bound.cross_fields == ("a*b",)


def test_without_a_header_columns_are_numbers():
    bound = schema({"0": "label", "12": "number"}, header=False).bind(None)
    assert bound.columns == {"0": 0, "12": 12}
    assert (bound.count, bound.exact) == (13, False)
    ruled = schema({"1": "number"}, header=False, label='4 != "normal."').bind(None)
    assert ruled.count == 5


def test_crosses_take_two_or_more_fields_also_derived_ones():
    made = schema(
        {"y": "label", "when": "time", "a": "categorical", "n": "number"},
        cross=("when.hour * a", "n*when.weekday*a"),
    )
    assert made.fields[-2:] == ("when.hour*a", "n*when.weekday*a")
    assert made.bind(["y", "when", "a", "n"]).crosses == ((0, 2), (3, 1, 2))


def test_label_tokens_are_the_documented_ones():
    assert len(LABEL_TOKENS) == 8 + 4 * 6 - 4  # n, y, f and t have only two forms
    assert {token for token, label in LABEL_TOKENS.items() if label == 1} == {
        *(b"1", b"+1", b"1.0", b"+1.0"),
        *(b"true", b"True", b"TRUE", b"yes", b"Yes", b"YES", b"y", b"Y", b"t", b"T"),
    }


@pytest.mark.parametrize(
    ("text", "column", "comparison", "threshold"),
    [
        ("delay > 15", "delay", ">", 15),
        ("delay>=-1.5e2", "delay", ">=", -150),
        (" x < .5 ", "x", "<", 0.5),
        ("x <= 0", "x", "<=", 0),
        ("x == 1", "x", "==", 1),
        ('"a b" != 1', "a b", "!=", 1),
        ("14 > 3", "14", ">", 3),
    ],
)
def test_a_rule_compares_with_a_number(text, column, comparison, threshold):
    rule = read_label_rule(text)
    assert (rule.column, rule.comparison, rule.threshold) == (column, comparison, threshold)
    assert text.strip() in rule.expected


@pytest.mark.parametrize(
    ("text", "column", "tokens", "otherwise"),
    [
        ('class != "normal."', "class", {b"normal.": 0}, 1),
        ("class == 'it is'", "class", {b"it is": 1}, 0),
        ("class == normal.", "class", {b"normal.": 1}, 0),
        ('x in ["a", "b"]', "x", {b"a": 1, b"b": 1}, 0),
        ('x not  in ["a", 1]', "x", {b"a": 0, b"1": 0}, 1),
        ('income in [">50K", ">50K."]', "income", {b">50K": 1, b">50K.": 1}, 0),
        ("clicked", "clicked", LABEL_TOKENS, -1),
        ('x != ""', "x", {b"": 0}, 1),
    ],
)
def test_a_rule_compares_with_texts(text, column, tokens, otherwise):
    rule = read_label_rule(text)
    assert (rule.column, rule.comparison) == (column, "")
    assert rule.tokens == tokens
    assert rule.otherwise == otherwise


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "source.label: expected a rule like delay > 15 or class != \"normal.\", got ''"),
        ("a = 1", 'source.label: expected a rule like delay > 15 or class != "normal.", got '),
        ("a b", 'source.label: expected a rule like delay > 15 or class != "normal.", got '),
        ("> 15", 'source.label: expected a rule like delay > 15 or class != "normal.", got '),
        ("a > fast", "source.label: expected a number after >, got 'fast'"),
        ('a > "x"', "source.label: expected a number after >, got '\"x\"'"),
        ('a == "x', 'source.label: expected a quoted text, got "x'),
        ("a in x", 'source.label: expected a list like ["a", "b"], got x'),
        ("a in []", 'source.label: expected a list like ["a", "b"], got []'),
        ("a in [None]", 'source.label: expected a list like ["a", "b"], got [None]'),
        ("a > 1e999", "source.label: 1e999 is too large a number in 'a > 1e999'"),
    ],
)
def test_a_wrong_rule_is_an_error(text, message):
    with pytest.raises(ConfigError) as error:
        read_label_rule(text)
    assert error.value.message.startswith(message)


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        (
            {"columns": {"late": "lable"}},
            f"source.columns.late: expected one of {', '.join(KINDS)}, got 'lable'",
            "did you mean 'label'?",
        ),
        (
            {"columns": {"late": "label"}, "header": False},
            "source.columns.late: expected a column's number from 0, since source.header is "
            "false, got 'late'",
            "set source.header = true where the first line names the columns",
        ),
        (
            {"columns": {"a": "label", "b": "label"}},
            "source.columns.b: 'a' is the label already",
            None,
        ),
        (
            {"columns": {"a": "weight", "b": "weight", "y": "label"}},
            "source.columns.b: 'a' is the weight already",
            None,
        ),
        (
            {"columns": {"a": "number"}},
            "source.columns: expected one column of kind label, got none",
            "or give the label's column or rule as source.label (delay > 15)",
        ),
        (
            {"header": False, "label": "3 > 2"},
            "source.columns: expected a column's number and kind for each column, got none",
            "or set source.header = true where the first line names the columns",
        ),
        (
            {"columns": {"0": "number"}, "header": False, "label": "late > 2"},
            "source.label: expected a column's number from 0, since source.header is false, "
            "got 'late'",
            "set source.header = true where the first line names the columns",
        ),
        (
            {"columns": {"a": "label"}, "label": "b > 2"},
            "source.label: the rule is about 'b', but source.columns.a is the label",
            None,
        ),
        (
            {"columns": {"a": "number"}, "label": "a > 2"},
            "source.columns.a: expected label or ignore, since the label's rule 'a > 2' uses it, "
            "got 'number'",
            None,
        ),
        (
            {"columns": {"y": "label", "origin": "categorical"}, "cross": ("origin",)},
            "source.cross[0]: expected fields with * between them (origin*destination), "
            "got 'origin'",
            None,
        ),
        (
            {"columns": {"y": "label", "a": "categorical"}, "cross": ("a*a",)},
            "source.cross[0]: 'a*a' names a field twice",
            None,
        ),
        (
            {
                "columns": {"y": "label", "a": "categorical", "b": "number"},
                "cross": ("a*b", " a * b"),
            },
            "source.cross: two fields have the name 'a*b'",
            None,
        ),
        (
            {"columns": {"y": "label", "origin": "categorical"}, "cross": ("origin*orign",)},
            "source.cross[0]: expected fields, got 'orign', which is none",
            "did you mean 'origin'?",
        ),
        (
            {
                "columns": {"y": "label", "a": "categorical", "when": "time:weekday"},
                "cross": ("a*when",),
            },
            "source.cross[0]: expected fields, got 'when', which is none",
            "did you mean 'when.weekday'?",
        ),
        (
            {"columns": {"y": "label", "a": "categorical", "n": "number:raw"}, "cross": ("a*n",)},
            "source.cross[0]: 'n' is number:raw, which cannot be crossed",
            'make it number: source.columns.n = "number"',
        ),
    ],
)
def test_wrong_settings_are_errors_that_name_them(settings, message, hint):
    with pytest.raises(ConfigError) as error:
        schema(**settings)
    assert error.value.message == message
    assert error.value.hint == hint


def test_a_cross_of_an_unknown_column_is_an_error_once_the_header_is_known():
    made = schema(label="y", cross=("a*bb",))
    with pytest.raises(ConfigError, match=r"source.cross\[0\]: expected fields, got 'bb'"):
        made.bind(["y", "a", "b"])


def test_a_header_must_have_each_column_once():
    made = schema({"y": "label", "a": "categorical"})
    assert made.bind(["a", "x", "x", "y"]).columns["y"] == 3
    with pytest.raises(DataError, match="no column 'a', which"):
        made.bind(["y", "x"])
    with pytest.raises(DataError, match="has the column 'a' twice"):
        made.bind(["y", "a", "a"])
    with pytest.raises(DataError, match="has the column 'x' twice"):
        schema(label="y").bind(["y", "x", "x"])
    with pytest.raises(DataError, match="no column 'late', which"):
        schema({"a": "number"}, label="late > 15").bind(["a"])


# --- all other columns


def test_a_wildcard_gives_the_kind_of_all_columns_without_one():
    made = schema({"*": "number", "b": "categorical", "y": "label", "x": "ignore"})
    assert (made.kinds, made.others) == (
        {"b": "categorical", "y": "label", "x": "ignore"},
        "number",
    )
    assert made.fields == ("b",)
    bound = made.bind(["a", "b", "x", "y", "c"])
    assert bound.features == (
        Feature("a", "a", "number"),
        Feature("b", "b", "category"),
        Feature("c", "c", "number"),
    )


def test_a_wildcard_leaves_out_a_label_that_a_rule_names():
    bound = schema({"*": "time:hour"}, label="late > 3", cross=("a.hour*b.hour",)).bind(
        ["a", "late", "b"]
    )
    assert [f.field for f in bound.features] == ["a.hour", "b.hour"]
    assert bound.crosses == ((0, 1),)


def test_a_wildcard_may_ignore():
    made = schema({"*": "ignore", "y": "label", "a": "number"})
    assert [f.field for f in made.bind(["a", "y", "b", "b"]).features] == ["a"]


def test_raw_numbers_by_wildcard_have_values():
    assert schema({"*": "number:raw", "y": "label"}).has_values
    assert not schema({"*": "number", "y": "label"}).has_values


@pytest.mark.parametrize(
    ("columns", "header", "message"),
    [
        (
            {"*": "number", "0": "label"},
            False,
            "source.columns.*: all other columns are those that a header names, but source.header "
            "is false",
        ),
        ({"*": "label"}, True, "source.columns.*: all other columns cannot be the label"),
        (
            {"*": "weight", "y": "label"},
            True,
            "source.columns.*: all other columns cannot be the weight",
        ),
        (
            {"*": "numbr", "y": "label"},
            True,
            f"source.columns.*: expected one of {', '.join(KINDS)}, got 'numbr'",
        ),
        (
            {"*": "number"},
            True,
            "source.columns: expected one column of kind label, got none",
        ),
    ],
)
def test_a_wrong_wildcard_is_named(columns, header, message):
    with pytest.raises(ConfigError) as error:
        schema(columns, header=header)
    assert error.value.message == message


def test_a_wildcard_takes_no_column_twice():
    made = schema({"*": "number", "y": "label"})
    with pytest.raises(DataError, match="has the column 'a' twice"):
        made.bind(["y", "a", "a"])


def test_a_cross_of_a_raw_number_by_wildcard_is_refused_once_the_header_is_there():
    made = schema({"*": "number:raw", "y": "label"}, cross=("a*b",))
    with pytest.raises(ConfigError, match="'a' is number:raw, which cannot be crossed"):
        made.bind(["y", "a", "b"])


# --- deep models


def test_raw_numbers_of_a_deep_model_are_no_fields():
    columns = {"y": "label", "r": "number:raw", "n": "number", "s": "number:raw"}
    made = read_schema(SourceConfig(columns=columns, header=True), Deep("logistic", 0))
    assert (made.fields, made.dense_names, made.has_values) == (("n",), ("r", "s"), False)
    plain = schema(columns)
    assert (plain.fields, plain.dense_names, plain.has_values) == (("r", "n", "s"), (), True)


@pytest.mark.parametrize(
    ("deep", "classes", "comparison", "expected"),
    [
        (Deep("logistic", 0), (), "", "0 or 1, -1 or 1, true or false, yes or no"),
        (Deep("squared", 0), (), "value", "a finite number"),
        (Deep("classes", 7), (), "class", "a whole number from 0 to 6"),
        (Deep("classes", 2), ("cat", "dog"), "", "one of cat, dog"),
    ],
)
def test_a_deep_models_label_is_what_its_loss_asks_for(deep, classes, comparison, expected):
    for how in ({"columns": {"y": "label"}}, {"label": "y"}):
        config = SourceConfig(header=True, classes=classes, **how)
        rule = read_schema(config, deep).label
        assert (rule.column, rule.text, rule.comparison, rule.expected) == (
            "y",
            "",
            comparison,
            expected,
        )


def test_many_classes_are_not_all_told():
    classes = tuple(f"c{i}" for i in range(50))
    rule = read_schema(SourceConfig(header=True, label="y", classes=classes), Deep("classes", 50))
    assert rule.label.expected.endswith(", c18, c19, …")
    assert rule.label.tokens[b"c49"] == 49


@pytest.mark.parametrize("loss", ["classes", "squared"])
def test_a_rule_makes_no_labels_of_a_loss_that_has_others(loss):
    config = SourceConfig(header=True, label="delay > 15")
    with pytest.raises(ConfigError) as error:
        read_schema(config, Deep(loss, 3))
    assert error.value.message == (
        "source.label: expected the name of a column, since a rule makes labels of 0 and 1 and "
        f"model.loss is {loss}, got 'delay > 15'"
    )
    assert read_schema(config, Deep("logistic", 0)).label.comparison == ">"
