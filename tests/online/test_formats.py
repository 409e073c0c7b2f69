"""Choosing a format by its name or by the first lines."""

import pytest

from streamlearn.config import SourceConfig
from streamlearn.errors import ConfigError
from streamlearn.online.formats import ALIASES, FORMATS, open_format


@pytest.mark.parametrize(
    ("settings", "sample", "name"),
    [
        ({}, b"0" + b"\t1" * 39 + b"\n", "criteo"),
        ({}, b"\n# comment\n-1 3:1 7:0.5\n", "svmlight"),
        ({}, b"1 0:3:1 2:7:1\n", "libffm"),
        ({"header": True, "label": "y"}, b"y,a\n", "delimited"),
        ({"format": "csv", "header": True, "label": "y"}, None, "delimited"),
        ({"format": "libsvm"}, None, "svmlight"),
    ],
)
def test_a_format_is_opened_by_name_or_by_what_the_sample_looks_like(settings, sample, name):
    assert open_format(SourceConfig(**settings), sample).name == name


def test_a_format_that_cannot_be_told_says_what_was_seen():
    with pytest.raises(ConfigError) as error:
        open_format(SourceConfig(), b"late,when\n1,2\n")
    assert error.value.message == (
        "source.format: auto cannot tell the format: the first line is 'late,when'"
    )
    with pytest.raises(ConfigError, match="there is no line"):
        open_format(SourceConfig(), None)


def test_an_unknown_format_names_the_nearest():
    with pytest.raises(ConfigError) as error:
        open_format(SourceConfig(format="delimted"))
    assert error.value.message == (
        "source.format: expected one of auto, criteo, delimited, jsonl, libffm, svmlight, "
        "got 'delimted'"
    )
    assert error.value.hint == "did you mean 'delimited'?"


def test_every_alias_names_a_format():
    assert set(ALIASES.values()) <= set(FORMATS)
    assert not set(ALIASES) & set(FORMATS)


@pytest.mark.parametrize("name", ["criteo", "jsonl", "libffm", "svmlight"])
def test_other_formats_read_the_same_whether_labels_are_wanted_or_not(name):
    assert open_format(SourceConfig(format=name), labelled=False).name == name
