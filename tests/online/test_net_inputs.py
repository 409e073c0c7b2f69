"""What users hand to nets as rows, and rows as minibatches."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from streamlearn.config import SourceConfig
from streamlearn.errors import ConfigError
from streamlearn.online.mappings import Fields
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch
from streamlearn.online.net_inputs import Inputs, Rows, columns_of, inputs_of, shape_of, source_of


def opened(x: Any, columns: dict[str, str] | None = None) -> tuple[SourceConfig, Inputs, Any]:
    source = source_of(x, columns)
    fields, dense = shape_of(source, x)
    return source, inputs_of(source, fields, dense), (fields, dense)


def records(rows: int) -> list[dict[str, Any]]:
    return [
        {"n": float(i), "word": f"w{i % 7}", "tags": [f"t{j}" for j in range(i % 3)]}
        for i in range(rows)
    ]


def test_many_records_are_read_without_a_seam() -> None:
    some = records(5_000)
    source, inputs, (fields, dense) = opened(some)
    assert source.columns == {
        "n": "number:raw",
        "tags": "categorical",
        "word": "categorical",
        "label": "label",
    }
    assert (fields, dense) == (("tags", "word"), (1,))
    rows = inputs.read(some, noting=True)
    assert rows.count == 5_000
    assert rows.dense is not None
    np.testing.assert_array_equal(rows.dense[:, 0], np.arange(5_000))
    np.testing.assert_array_equal(np.diff(rows.indptr), [1 + i % 3 for i in range(5_000)])
    # keys are those that all other models have
    keys, _ = Fields().read({name: some[4_000][name] for name in ("word", "tags")})
    own = slice(rows.indptr[4_000], rows.indptr[4_001])
    assert sorted(rows.keys[own].tolist()) == keys
    assert rows.fields[own].tolist() == [1, 0]
    named = {
        bytes(one.text[begin:end]).decode()
        for one in rows.described
        for begin, end in zip([0, *one.ends[:-1]], one.ends, strict=True)
    }
    assert named == {*(f"w{i}" for i in range(7)), "t0", "t1"}
    again = inputs.read(pd.DataFrame(some))
    np.testing.assert_array_equal(again.keys, rows.keys)
    np.testing.assert_array_equal(again.dense, rows.dense)


def test_a_bad_record_is_named_by_its_row() -> None:
    some = records(4_000)
    _, inputs, _ = opened(some)
    some[3_000]["n"] = "far"
    with pytest.raises(ValueError, match=r"row 3000 of X: n .*far"):
        inputs.read(some)
    some[3_000]["n"] = 1.0
    assert inputs.read(some).count == 4_000


def test_minibatches_hold_the_rows_that_are_asked_for() -> None:
    some = records(50)
    _, inputs, (_, dense) = opened(some)
    rows = inputs.read(some)
    batch = Minibatch(8, FEATURES_PER_RECORD_MAX, has_values=False, has_fields=True, dense=dense)
    for at in ([5, 3, 49], [], [2, 2]):
        rows.fill(batch, np.array(at, np.int64), padding=2)
        assert batch.rows == len(at) + 2
        assert batch.nnz == sum(1 + i % 3 for i in at)
        np.testing.assert_array_equal(batch.dense[: len(at), 0], at)
        for k, i in enumerate(at):
            own = slice(batch.indptr[k], batch.indptr[k + 1])
            whole = slice(rows.indptr[i], rows.indptr[i + 1])
            np.testing.assert_array_equal(batch.keys[own], rows.keys[whole])
            np.testing.assert_array_equal(batch.fields[own], rows.fields[whole])
        assert (batch.indptr[len(at) : len(at) + 3] == batch.nnz).all()
        assert (batch.dense[len(at) : len(at) + 2] == 0).all()


def test_bytes_of_images_are_shares_and_those_of_columns_are_numbers() -> None:
    images = np.arange(2 * 4, dtype=np.uint8).reshape(2, 2, 2)
    _, inputs, (fields, dense) = opened(images)
    assert (fields, dense) == ((), (1, 2, 2))
    batch = Minibatch(2, FEATURES_PER_RECORD_MAX, has_values=False, dense=dense)
    inputs.read(images).fill(batch, np.array([1, 0]))
    expected = images.reshape(2, 4)[[1, 0]].astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(batch.dense, expected)
    flat = images.reshape(2, 4)
    _, inputs, (_, dense) = opened(flat)
    batch = Minibatch(2, FEATURES_PER_RECORD_MAX, has_values=False, dense=dense)
    inputs.read(flat).fill(batch, np.array([1, 0]))
    np.testing.assert_array_equal(batch.dense, flat[[1, 0]])


def test_fields_have_an_order_of_their_own() -> None:
    assert list(source_of([{"b": 1, "a": "x", 10: 1.0, 9: 2.0}]).columns) == [
        *("9", "10", "a", "b", "label")
    ]
    assert list(source_of([{"label": 1}]).columns) == ["label", "label_"]
    assert list(source_of(np.ones((1, 11))).columns)[:11] == [str(j) for j in range(11)]
    given = source_of([{"b": 1}], {"b": "number", "a": "time"})
    assert list(given.columns) == ["b", "a", "label"]


def test_sparse_rows_are_lines_of_svmlight() -> None:
    x = sp.csr_matrix(np.array([[0, 1.5, 0], [2.0, 0, -1.0], [0, 0, 0]]))
    source, inputs, (fields, dense) = opened(x)
    assert (source.format, fields, dense) == ("svmlight", ("features",), ())
    rows = inputs.read(x, noting=True)
    assert rows.indptr.tolist() == [0, 1, 3, 3]
    assert rows.values.tolist() == [1.5, 2.0, -1.0]
    keys, values = Fields().read({0: 2.0, 2: -1.0})
    one: Rows = inputs.read([{0: 2.0, 2: -1.0}])
    assert (one.keys.tolist(), one.values.tolist()) == (keys, values)
    assert sorted(rows.keys[1:].tolist()) == keys
    assert bytes(rows.described[0].text) == b"012"


def test_columns_are_those_of_matrices_and_frames() -> None:
    assert columns_of(np.ones((2, 3))) == (3, None)
    assert columns_of(sp.csr_matrix((2, 3))) == (3, None)
    assert columns_of(pd.DataFrame({"a": [1]})) == (1, ("a",))
    assert columns_of([{"a": 1}]) is None
    assert columns_of(np.ones((2, 3, 3))) is None


def test_a_source_whose_columns_only_a_header_named_is_refused() -> None:
    source = SourceConfig(
        format="delimited", header=True, columns={"y": "label", "*": "number:raw"}
    )
    with pytest.raises(ConfigError, match="a header alone"):
        inputs_of(source, (), (3,))
    kept = SourceConfig(format="jsonl", columns={"y": "label", "a": "number:raw"})
    with pytest.raises(ConfigError, match="part of 3 numbers, but its source names 0 and 1"):
        inputs_of(kept, (), (3,))
    with pytest.raises(ConfigError, match="libffm"):
        inputs_of(msgspec.structs.replace(source, format="libffm", columns={}), ("a",), ())
