"""Items of idx files as dense parts of examples."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from streamlearn.binary import IDX_TYPES, IdxHeader, stuff
from streamlearn.config import SourceConfig
from streamlearn.errors import ConfigError, DataError
from streamlearn.messages import BLOCK_TAILROOM_BYTES
from streamlearn.online.formats import Deep, open_format
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, REASONS, Minibatch

PIXELS = np.random.default_rng(5).integers(0, 256, (7, 2, 3), np.uint8)
HEAD = IdxHeader("ubyte", (2, 3), True, "y").encode()
CLASSES = Deep("classes", 10)


def format_of(deep=CLASSES, *, labelled=True, **options):
    return open_format(SourceConfig(format="idx", **options), deep=deep, labelled=labelled)


def records_of(labels, items) -> bytes:
    return b"".join(
        stuff(struct.pack("<d", label) + item.tobytes()) + b"\n"
        for label, item in zip(labels, items, strict=True)
    )


def parsed(format_, head, records, rows=100):
    """Return what is parsed of records, in minibatches of so many rows, and where they stand."""
    parser = format_.parser(head)
    buffer = np.zeros(3 + len(records) + BLOCK_TAILROOM_BYTES, np.uint8)
    buffer[3 : 3 + len(records)] = np.frombuffer(records, np.uint8)
    batch = Minibatch.of(format_, rows, FEATURES_PER_RECORD_MAX)
    at, end, batches = 3, 3 + len(records), []
    while at < end:
        batch.clear()
        batch.weights[:] = batch.lines[:] = batch.indptr[1:] = -1
        at = parser.parse(buffer, at, end, batch)
        n = batch.rows
        assert (batch.weights[:n] == 1).all()
        assert (batch.indptr[: n + 1] == 0).all()
        assert batch.records == n + batch.bad
        lines = buffer.tobytes()[:end]
        assert all(lines[i - 1 : i] in (b"\0", b"\n") for i in batch.lines[:n])
        bad = [
            (
                REASONS[batch.bad_reason[i]],
                format_.complaint(
                    int(batch.bad_reason[i]),
                    int(batch.bad_field[i]),
                    int(batch.bad_arg[i]),
                    lines[batch.bad_start[i] :].split(b"\n")[0],
                ),
            )
            for i in range(batch.bad)
        ]
        batches.append((batch.labels[:n].tolist(), batch.dense[:n].copy(), bad))
    assert at == end
    return batches


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
def test_items_are_dense_parts_between_0_and_1(rows):
    format_ = format_of()
    batches = parsed(format_, HEAD, records_of(range(7), PIXELS), rows)
    assert format_.dense == (1, 2, 3)
    assert [len(labels) for labels, _, _ in batches] == [rows] * (7 // rows) + [7 % rows] * (
        7 % rows > 0
    )
    assert [label for labels, _, _ in batches for label in labels] == list(range(7))
    dense = np.concatenate([dense for _, dense, _ in batches])
    np.testing.assert_array_equal(dense, PIXELS.reshape(7, 6) / np.float32(255))
    assert dense.dtype == np.float32


@pytest.mark.parametrize("type_", list(IDX_TYPES))
@pytest.mark.parametrize(
    ("shape", "dense"), [((6,), (6,)), ((2, 3), (1, 2, 3)), ((3, 2, 1), (3, 2, 1))]
)
def test_types_and_shapes(type_, shape, dense):
    items = np.arange(12, dtype=IDX_TYPES[type_]).reshape(2, *shape)
    format_ = format_of(Deep("squared", 0))
    head = IdxHeader(type_, shape, True, "y").encode()
    ((labels, found, bad),) = parsed(format_, head, records_of([-1.5, 2e10], items))
    assert format_.dense == dense
    assert labels == [-1.5, 2e10]
    expected = np.arange(12, dtype=np.float32).reshape(2, 6)
    np.testing.assert_array_equal(found, expected / np.float32(255 if type_ == "ubyte" else 1))
    assert not bad


def test_large_items_are_parsed_one_by_one():
    items = np.random.default_rng(1).integers(0, 20, (3, 600, 700), np.uint8)
    head = IdxHeader("ubyte", (600, 700), True, "y").encode()
    ((labels, found, _),) = parsed(format_of(), head, records_of([1, 2, 3], items))
    assert labels == [1, 2, 3]
    np.testing.assert_array_equal(found, items.reshape(3, -1) / np.float32(255))


@pytest.mark.parametrize(
    ("deep", "label", "said"),
    [
        (CLASSES, 10, "label 10 is not a whole number from 0 to 9"),
        (CLASSES, -1, "label -1 is not a whole number from 0 to 9"),
        (CLASSES, 0.5, "label 0.5 is not a whole number from 0 to 9"),
        (Deep("logistic", 0), 2, "label 2 is not 0 or 1"),
        (Deep("squared", 0), float("nan"), "label nan is not a finite number"),
    ],
)
@pytest.mark.parametrize("rows", [1, 2, 100])
def test_a_label_that_is_none_is_a_bad_record(deep, label, said, rows):
    batches = parsed(format_of(deep), HEAD, records_of([1, label, 0], PIXELS[:3]), rows)
    assert [bad for _, _, several in batches for bad in several] == [("label", said)]
    assert [one for labels, _, _ in batches for one in labels] == [1, 0]
    dense = np.concatenate([dense for _, dense, _ in batches])
    np.testing.assert_array_equal(dense, PIXELS[[0, 2]].reshape(2, 6) / np.float32(255))


@pytest.mark.parametrize("type_", ["float", "double"])
def test_an_infinite_number_is_a_bad_record_and_nan_is_missing(type_):
    items = np.zeros((3, 4), IDX_TYPES[type_])
    items[0, 1], items[1, 2] = np.nan, -np.inf
    head = IdxHeader(type_, (4,), True, "y").encode()
    ((labels, dense, bad),) = parsed(format_of(), head, records_of([1, 2, 3], items))
    assert labels == [1, 3]
    np.testing.assert_array_equal(dense, [[0, np.nan, 0, 0], [0, 0, 0, 0]])
    assert bad == [("number", "number 2 of the item is infinite")]


def test_a_damaged_record_is_a_bad_one():
    good = records_of([1, 2], PIXELS[:2])
    for damaged in (b"\xf0x", stuff(b"x" * 13), stuff(b"x" * 15), stuff(b""), good[:9]):
        ((labels, _, bad),) = parsed(format_of(), HEAD, damaged + b"\n" + good)
        assert labels == [1, 2]
        assert [reason for reason, _ in bad] == ["syntax"]
        assert bad[0][1].startswith("the record is damaged")


def test_blank_lines_are_no_records():
    ((labels, _, bad),) = parsed(format_of(), HEAD, b"\n" + records_of([1], PIXELS[:1]) + b"\n\n")
    assert (labels, bad) == ([1], [])


def test_labels_that_are_not_there_are_an_error_unless_none_are_wanted():
    without = IdxHeader("ubyte", (2, 3), False, "/d/labels-idx1").encode()
    with pytest.raises(DataError, match="there are no labels: there is no /d/labels-idx1"):
        format_of().parser(without)
    with pytest.raises(DataError, match="its name has no images-idx3"):
        format_of().parser(IdxHeader("ubyte", (2, 3), False, "").encode())
    records = records_of([float("nan")] * 7, PIXELS)
    ((labels, dense, bad),) = parsed(format_of(labelled=False), without, records)
    assert (labels, bad) == ([0] * 7, [])
    assert len(dense) == 7


def test_objects_of_another_shape_are_refused_with_both():
    format_ = format_of()
    format_.parser(HEAD)
    format_.parser(IdxHeader("float", (2, 3), True, "y").encode())
    with pytest.raises(DataError) as caught:
        format_.parser(IdxHeader("ubyte", (3, 3), True, "y").encode())
    assert "its items are 1 x 3 x 3 numbers" in caught.value.message
    assert "those of the first object are 1 x 2 x 3" in caught.value.message


def test_minibatches_that_were_made_before_the_shape_was_known_are_refused():
    format_ = format_of()
    batch = Minibatch.of(format_, 4, FEATURES_PER_RECORD_MAX)
    records = records_of([1], PIXELS[:1])
    buffer = np.frombuffer(records + bytes(BLOCK_TAILROOM_BYTES), np.uint8)
    with pytest.raises(DataError, match="items are 1 x 2 x 3 numbers, which was not known"):
        format_.parser(HEAD).parse(buffer, 0, len(records), batch)


@pytest.mark.parametrize(
    "options",
    [{"columns": {"a": "label"}}, {"label": "a > 1"}, {"cross": ("a*b",)}, {"fields": ("a",)}],
)
def test_settings_of_text_are_refused(options):
    with pytest.raises(ConfigError, match=f"source.{next(iter(options))}: expected nothing"):
        format_of(**options)


def test_other_models_do_not_learn_items():
    with pytest.raises(ConfigError, match=r"source\.format: expected"):
        open_format(SourceConfig(format="idx"))


def test_items_have_nothing_to_describe():
    described = format_of().parser(HEAD).describe(
        np.zeros(10, np.uint8), np.zeros(1, np.int64), np.ones(1, np.int64)
    )  # fmt: skip
    assert [len(part) for part in (described.keys, described.fields, described.text)] == [0] * 3
