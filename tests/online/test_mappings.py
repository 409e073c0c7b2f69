"""Mappings as features: the keys are those of the same field and token in any format."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from streamlearn.config import SourceConfig
from streamlearn.online import mappings
from streamlearn.online.features import field_seed
from streamlearn.online.mappings import Fields
from streamlearn.online.names import Names
from streamlearn.online.records import SchemaFields, by_index
from streamlearn.online.svmlight import SvmlightFormat
from tests.reference import words
from tests.reference.minibatches import drain

TOKENS = ["LAS", "x", "exactly8", "longer than eight", "Zürich", "0", " ", "a" * 300]


def features(record: dict[Any, Any]) -> dict[int, float]:
    keys, values = Fields().read(record)
    assert keys == sorted(keys)
    return dict(zip(keys, values, strict=True))


@pytest.mark.parametrize("token", TOKENS)
def test_a_string_has_the_key_of_the_token_in_json(token: str) -> None:
    config = SourceConfig(
        format="jsonl", columns={"origin": "categorical", "distance": "number:raw"}
    )
    record = {"origin": token, "distance": 2.5}
    found = features(record)
    assert found == dict(zip(*SchemaFields(config, ()).read(record), strict=True))
    seed = int(field_seed("origin"))
    assert found[words.token_key(token.encode(), seed)] == 1.0


def test_a_whole_number_is_an_index_of_svmlight() -> None:
    parser = SvmlightFormat(SourceConfig()).parser(None)
    rows, bad = drain(parser, b"1 3:0.5 70000:-2\n", has_values=True)
    assert not bad
    assert features({70_000: -2, np.int64(3): 0.5}) == dict(zip(*rows[0][2:], strict=True))


@pytest.mark.parametrize(
    "value", [None, "", 0, 0.0, False, float("nan"), np.float32("nan"), [], {}, np.int8(0)]
)
def test_what_is_missing_or_zero_is_no_feature(value: Any) -> None:
    assert features({"a": value}) == {}


def test_numbers_of_all_kinds_are_raw_values() -> None:
    key = words.mix(0, int(field_seed("a")))
    for value in (2, 2.0, np.float32(2), np.int64(2), np.uint8(2)):
        assert features({"a": value}) == {key: 2.0}
    for value in (True, np.bool_(True)):
        assert features({"a": value}) == {key: 1.0}


def test_names_are_told_once_and_can_be_found() -> None:
    fields, names = Fields(), Names((), 100)
    for _ in range(3):
        fields.read({"origin": "LAS", "distance": 1.0, "user": {"id": "u7"}, 4: 2.0})
        fields.read({"origin": 5.0})
    assert fields.unnamed == 5
    described = fields.names()
    assert described is not None
    names.insert(described)
    assert fields.names() is None
    assert names.find("origin=LAS") == words.token_key(b"LAS", int(field_seed("origin")))
    assert {names.lookup(names.keys)[i] for i in range(5)} == {
        "origin=LAS",
        "distance=",
        "user.id=u7",
        "4",
        "origin=",
    }
    assert fields.kinds == {
        "origin": "categorical",
        "distance": "number:raw",
        "user.id": "categorical",
    }


def test_scoring_takes_no_note_of_names() -> None:
    fields = Fields(noting=False)
    fields.read({"origin": "LAS", "distance": 1.0, 3: 1.0})
    assert fields.unnamed == 0
    assert fields.kinds == {}


def test_more_tokens_and_fields_than_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mappings, "_TOKENS_MAX", 10)
    monkeypatch.setattr(mappings, "FIELDS_MAX", 5)
    fields = Fields()
    for i in range(100):
        record = {f"f{i % 9}": f"t{i}", "g": float(i)}
        assert fields.read(record) == Fields().read(record)
    assert len(fields.kinds) == 5


def test_records_of_too_many_features_are_refused() -> None:
    with pytest.raises(ValueError, match="65,537 features"):
        Fields().read({"a": [str(i) for i in range(65_537)]})


# --- by a schema


def test_numbered_sources_have_no_fields() -> None:
    assert by_index(SourceConfig(format="libsvm"))
    assert not by_index(SourceConfig(format="csv"))


@pytest.mark.parametrize(
    ("config", "fields", "record", "as_json"),
    [
        ({"format": "criteo"}, (), {"I1": 5, "C3": "abc", "other": 1}, {"I1": 5, "C3": "abc"}),
        (
            {"format": "csv", "header": True, "label": "late > 15"},
            ("a", "a*b"),
            {"a": "x", "late": 3, "c": 1},
            {"a": "x"},
        ),
        (
            {"format": "csv", "columns": {"1": "categorical", "0": "label"}},
            (),
            {1: "x", 0: 1},
            {"1": "x"},
        ),
        (
            {"format": "csv", "header": True, "columns": {"*": "number", "y": "label"}},
            ("a", "b"),
            {"a": 7, "y": 1, "c": 1},
            {"a": 7},
        ),
        ({"format": "jsonl", "label": "y == 1"}, (), {"y": 1, "a": True, "b": None}, {"a": True}),
    ],
)
def test_labels_and_fields_that_are_none_are_passed_over(
    config: dict[str, Any], fields: tuple[str, ...], record: Any, as_json: dict[str, Any]
) -> None:
    schema = SchemaFields(SourceConfig(**config), fields)
    keys, values = schema.read(record)
    assert (keys, values) == schema.read(json.loads(json.dumps(as_json)))
    assert len(keys) == len(as_json)


def test_columns_of_a_wildcard_have_its_kind() -> None:
    columns = {"*": "time", "y": "label", "c": "categorical", "when": "time:hour"}
    fields = ("c", "when.hour", "t.hour", "t.weekday", "t.hour*c")
    record = {"c": "x", "when": "2001-01-01T07:00", "t": "2001-01-07T08:00", "z": 1}
    wild = SchemaFields(SourceConfig(format="csv", header=True, columns=columns), fields)
    named = {"c": "categorical", "when": "time:hour", "t": "time"}
    plain = SchemaFields(SourceConfig(format="jsonl", columns=named), ())
    assert wild.read(record) == plain.read(record)
    assert len(wild.read(record)[0]) == 4


def test_a_bad_record_says_why() -> None:
    schema = SchemaFields(SourceConfig(format="jsonl", columns={"when": "time"}), ())
    with pytest.raises(ValueError, match="is not a time"):
        schema.read({"when": "yesterday"})
    with pytest.raises(TypeError, match="no JSON value"):
        schema.read({"when": object()})
