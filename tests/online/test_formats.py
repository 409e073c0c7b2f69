"""Choosing a format by its name or by the first lines."""

import pytest

from streamlearn.config import SourceConfig
from streamlearn.errors import ConfigError
from streamlearn.online.formats import ALIASES, FORMATS, Deep, open_format


@pytest.mark.parametrize(
    ("settings", "sample", "name"),
    [
        ({}, b"0" + b"\t1" * 39 + b"\n", "criteo"),
        ({}, b"\n# comment\n-1 3:1 7:0.5\n", "svmlight"),
        ({}, b"1 0:3:1 2:7:1\n", "libffm"),
        ({"header": True, "label": "y"}, b"y,a\n", "delimited"),
        ({"format": "csv", "header": True, "label": "y"}, None, "delimited"),
        ({"format": "libsvm"}, None, "svmlight"),
        ({}, b"1::1193::5::978300760\n", "ratings"),
        ({}, b"196\t242\t3\t881250949\n", "ratings"),
        ({"header": True, "columns": {"u": "user", "i": "item"}}, b"u,i\n", "ratings"),
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
        "source.format: expected one of auto, bow, criteo, delimited, documents, idx, jsonl, "
        "ldac, libffm, ratings, samples, svmlight, got 'delimted'"
    )
    assert error.value.hint == "did you mean 'delimited'?"


def test_every_alias_names_a_format():
    assert set(ALIASES.values()) <= set(FORMATS)
    assert not set(ALIASES) & set(FORMATS)


@pytest.mark.parametrize("name", ["criteo", "jsonl", "libffm", "svmlight"])
def test_other_formats_read_the_same_whether_labels_are_wanted_or_not(name):
    assert open_format(SourceConfig(format=name), labelled=False).name == name


@pytest.mark.parametrize(
    ("settings", "sample"),
    [
        ({}, b"alice bob 5\n"),
        ({}, b"1;2\n"),
        ({"header": True}, b"userId,movieId,rating\n"),
        ({"columns": {"1": "user", "0": "item"}}, b"a,b,c\n"),
        ({"format": "ratings"}, None),
    ],
)
def test_a_model_of_ratings_takes_what_may_be_ratings(settings, sample):
    assert open_format(SourceConfig(**settings), sample, ratings=True).name == "ratings"


@pytest.mark.parametrize(
    ("settings", "sample", "found"),
    [
        ({}, b'{"user":1}\n', "jsonl"),
        ({"columns": {"user": "user"}}, b'{"user":1}\n', "jsonl"),
        ({}, b"1 3:0.5\n", "svmlight"),
        ({"format": "csv"}, None, "delimited"),
    ],
)
def test_a_model_of_ratings_takes_nothing_else(settings, sample, found):
    with pytest.raises(ConfigError) as error:
        open_format(SourceConfig(**settings), sample, ratings=True)
    assert error.value.message == (
        f"source.format: expected ratings, which the model learns, got '{found}'"
    )


def test_a_header_of_ratings_has_to_be_announced():
    with pytest.raises(ConfigError) as error:
        open_format(SourceConfig(), b"userId,movieId,rating\n", ratings=True)
    assert error.value.message == (
        "source.format: auto cannot tell the format: the first line is 'userId,movieId,rating'"
    )
    assert error.value.hint is not None
    assert error.value.hint.startswith("set source.header = true")


@pytest.mark.parametrize("settings", [{}, {"format": "ratings"}])
def test_a_model_of_labels_takes_no_ratings(settings):
    with pytest.raises(ConfigError, match="expected records with labels"):
        open_format(SourceConfig(**settings), b"1::2::3\n", ratings=False)


def test_a_parser_that_needs_the_first_line_says_so():
    assert open_format(SourceConfig(format="ratings")).first_line
    assert open_format(SourceConfig(format="csv", header=True, label="y")).first_line
    others = [SourceConfig(format=name) for name in ("criteo", "jsonl", "libffm", "svmlight")]
    others.append(SourceConfig(format="csv", columns={"0": "label"}))
    assert not any(open_format(config).first_line for config in others)


@pytest.mark.parametrize(
    ("settings", "sample", "name"),
    [
        ({}, b"It was the best of times\n", "documents"),
        ({}, b"\n\n", "documents"),
        ({}, b"3 1:2\n", "documents"),
        ({}, b"2 1:2 17:1\n", "ldac"),
        ({}, b"{braces} of a poem\n", "documents"),
        ({"columns": {"text": "text"}}, b'{"text": ""}\n', "documents"),
        ({"columns": {"t": "text"}, "header": True}, b"t,u\n", "documents"),
        ({"format": "bow"}, None, "bow"),
        ({"format": "ldac"}, None, "ldac"),
    ],
)
def test_a_model_of_documents_takes_lines_for_documents(settings, sample, name):
    source = SourceConfig(**settings)
    assert open_format(source, sample, ratings=False, documents=True).name == name


@pytest.mark.parametrize(
    ("sample", "hint"),
    [
        (b"39861\n", "--format bow if it is that; --format documents if all of each line is text"),
        (b'{"text": "a"}\n', "--column NAME=text, the field that is text, if it is that"),
    ],
)
def test_lines_that_are_hardly_documents_are_asked_about(sample, hint):
    with pytest.raises(ConfigError, match="auto cannot tell the format") as error:
        open_format(SourceConfig(), sample, documents=True)
    assert error.value.hint.startswith(hint)


@pytest.mark.parametrize("name", ["criteo", "ratings", "jsonl"])
def test_a_model_of_documents_takes_nothing_else(name):
    with pytest.raises(ConfigError) as error:
        open_format(SourceConfig(format=name), documents=True)
    assert error.value.message == (
        f"source.format: expected documents, ldac or bow, which the model learns, got '{name}'"
    )


@pytest.mark.parametrize("name", ["documents", "ldac", "bow"])
def test_other_models_take_no_documents(name):
    source = SourceConfig(format=name)
    for options in ({"ratings": False}, {"documents": False}, {"ratings": True}):
        with pytest.raises(ConfigError, match=r"expected .*, which the model learns, got"):
            open_format(source, **options)
    assert open_format(source).name == name


# --- deep models

BINARY = Deep("logistic", 0)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"format": "csv", "header": True, "label": "y"}, "delimited"),
        ({"format": "jsonl", "fields": ("a",)}, "jsonl"),
        ({"format": "criteo"}, "criteo"),
        ({"format": "libffm", "fields": ("0-3",)}, "libffm"),
        ({"format": "svmlight"}, "svmlight"),
    ],
)
def test_a_deep_model_gets_fields_and_others_do_not(settings, name):
    source = SourceConfig(**settings)
    deep = open_format(source, ratings=False, documents=False, deep=BINARY)
    assert (deep.name, deep.has_fields) == (name, True)
    plain = open_format(source)
    assert (plain.has_fields, plain.dense, plain.dense_names) == (False, (), ())


@pytest.mark.parametrize("name", ["ratings", "documents", "ldac", "bow"])
def test_deep_models_take_neither_ratings_nor_documents(name):
    with pytest.raises(ConfigError) as error:
        open_format(SourceConfig(format=name), deep=BINARY)
    assert error.value.message.startswith("source.format: expected one of criteo, delimited, ")
    assert error.value.message.endswith(f", which deep models learn, got '{name}'")
    assert error.value.hint.startswith("--model ")


@pytest.mark.parametrize("name", ["criteo", "libffm"])
@pytest.mark.parametrize("loss", ["classes", "squared"])
def test_formats_whose_labels_are_binary_say_so(name, loss):
    source = SourceConfig(format=name, fields=("0-3",))
    with pytest.raises(ConfigError) as error:
        open_format(source, deep=Deep(loss, 3))
    assert error.value.message == (
        f"model.loss: expected logistic, since the labels of {name} are 0 and 1, got {loss!r}"
    )


@pytest.mark.parametrize(
    ("settings", "deep", "message"),
    [
        (
            {"negative_rate": 0.1},
            Deep("squared", 0),
            "source.negative_rate: expected 1, since with model.loss squared no label is negative, "
            "got 0.1",
        ),
        (
            {"classes": ("a", "b")},
            Deep("classes", 3),
            "source.classes: expected 3 texts, one a class, got 2",
        ),
        ({"classes": ("a", "a")}, Deep("classes", 2), "source.classes: 'a' is there twice"),
        (
            {"classes": ("a", "")},
            Deep("classes", 2),
            "source.classes: expected the texts of labels, got an empty one",
        ),
    ],
)
def test_settings_that_contradict_a_deep_models_labels_are_refused(settings, deep, message):
    with pytest.raises(ConfigError) as error:
        open_format(SourceConfig(format="svmlight", **settings), deep=deep)
    assert error.value.message == message


@pytest.mark.parametrize("name", ["idx", "samples", "webdataset"])
def test_images_and_samples_are_for_deep_models_alone(name):
    with pytest.raises(ConfigError, match="expected text, which the model learns, got") as error:
        open_format(SourceConfig(format=name))
    assert error.value.hint == "--model deep learns images and samples"
