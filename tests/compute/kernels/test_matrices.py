"""Kernels that turn matrices into minibatches, against loops in Python."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from streamlearn.compute.kernels import matrices as kernels
from streamlearn.online.features import field_seed
from tests.reference import words

SEED = field_seed("")
NO_COLUMNS = np.empty(0, np.uint64)


def room(rows: int, nnz: int) -> tuple[Any, Any, Any]:
    return np.empty(nnz, np.uint64), np.empty(nnz, np.float32), np.empty(rows + 1, np.int64)


def examples(keys: Any, values: Any, indptr: Any) -> list[list[tuple[int, float]]]:
    bounds = itertools.pairwise(indptr)
    return [list(zip(keys[a:b].tolist(), values[a:b].tolist(), strict=True)) for a, b in bounds]


def expected(cells: Any, keys: Any) -> list[list[tuple[int, float]]]:
    return [
        [(int(key), float(value)) for key, value in zip(keys, row, strict=True) if value != 0]
        for row in cells
    ]


@pytest.mark.parametrize("rows", [0, 1, 17])
@pytest.mark.parametrize("named", [False, True])
def test_sparse_and_dense_rows_are_what_a_loop_makes_of_them(rows: int, named: bool) -> None:
    rng = np.random.default_rng(rows)
    cells = (rng.normal(size=(rows, 9)) * (rng.random((rows, 9)) < 0.5)).astype(np.float32)
    keys = np.array([words.mix(j, int(SEED)) for j in range(9)], np.uint64)
    if named:
        keys = rng.integers(1, 1 << 63, 9, dtype=np.uint64) | np.uint64(1)
    x = sp.csr_matrix(cells)
    x.data[:2] = 0  # stored, and yet no feature
    cells = x.toarray()
    out = room(rows, x.nnz + 1)
    nnz = kernels.take_csr(
        x.data,
        x.indices.astype(np.int64),
        x.indptr.astype(np.int64),
        keys if named else NO_COLUMNS,
        SEED,
        *out,
    )
    assert nnz == np.count_nonzero(cells)
    assert examples(*out) == expected(cells, keys)
    order = rng.permutation(9)
    out = room(rows, cells.size + 1)
    assert kernels.take_dense(cells, order, keys[order], *out) == nnz
    assert examples(*out) == expected(cells[:, order], keys[order])


def test_cells_come_in_the_order_of_their_keys() -> None:
    rng = np.random.default_rng(3)
    keys = np.array([rng.permutation(8) * 2 + 1 for _ in range(40)], np.uint64)
    cells = (rng.normal(size=(40, 8)) * (rng.random((40, 8)) < 0.6)).astype(np.float32)
    out = room(40, 321)
    kernels.take_cells(keys, cells, *out)
    assert examples(*out) == [
        sorted(expected([row], some)[0]) for row, some in zip(cells, keys, strict=True)
    ]


@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(0, (1 << 64) - 1))
def test_tokens_have_the_keys_of_the_twin(tokens: list[bytes], seed: int) -> None:
    text = np.frombuffer(bytearray(b"".join(tokens) + b"hostile!"), np.uint8)
    keys = np.empty(len(tokens), np.uint64)
    ends = np.cumsum([len(token) for token in tokens], dtype=np.int64)
    kernels.token_keys(text, ends, np.uint64(seed), keys)
    assert keys.tolist() == [words.token_key(token, seed) for token in tokens]


def test_columns_and_numbers_have_the_keys_of_the_twin() -> None:
    keys = np.empty(5, np.uint64)
    kernels.column_keys(SEED, keys)
    assert keys.tolist() == [words.mix(j, int(SEED)) for j in range(5)]
    seeds = np.array([field_seed(name) for name in "abcde"], np.uint64)
    kernels.raw_keys(seeds, keys)
    assert keys.tolist() == [words.mix(0, int(seed)) for seed in seeds]
