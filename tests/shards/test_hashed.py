"""The table of fixed size, and the embeddings that each of its rows has."""

from __future__ import annotations

import numpy as np
import pytest

from streamlearn.embeddings import Tiers
from streamlearn.shards.hashed import HashedTable
from tests.reference.embeddings import Embedding, laid_out

TIERS = [Tiers(2, (0,), (16,)), Tiers(3, (0,), (5,)), Tiers(3, (0, 9), (16, 32))]


def numbers(table: HashedTable, rows: int, seed: int = 1) -> np.ndarray:
    """Return embeddings of so many rows as they lie in memory, float32[rows, row_floats]."""
    tiers = table.vectors.geometry.tiers
    shape = (rows, 2, tiers.parts, tiers.dim)
    drawn = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return np.stack([laid_out(Embedding(V, m), tiers) for V, m in drawn])


def test_a_hashed_row_is_a_keys_top_bits() -> None:
    table = HashedTable(8)
    keys = np.array([1, (1 << 56) - 1, 1 << 56 | 1, (1 << 64) - 1], np.uint64)
    assert table.find(keys).tolist() == [0, 0, 1, 255]


def test_a_table_without_embeddings_has_none() -> None:
    table = HashedTable(8)
    assert (table.vectors, table.embeddings_bytes) == (None, 0)
    rows = np.arange(2)
    assert table.vectors_at(rows).tolist() == []
    table.put_vectors(rows, table.vectors_at(rows))
    table.load(4, np.arange(1, 4, dtype=np.uint64), np.zeros(0, np.float32))
    assert table.words[3:8].tolist() == [0, 1, 2, 3, 0]
    assert table.features == 3


@pytest.mark.parametrize("tiers", TIERS)
def test_every_row_has_the_longest_embedding_on_lines_of_its_own(tiers: Tiers) -> None:
    table = HashedTable(8, tiers)
    vectors = table.vectors
    assert vectors is not None
    assert vectors.values.ctypes.data % 64 == 0
    assert vectors.row_floats == tiers.floats(tiers.dim)
    assert vectors.row_lines * 16 == vectors.row_floats
    assert len(vectors.values) == 256 * vectors.row_floats
    assert table.embeddings_bytes == vectors.values.nbytes
    assert not vectors.values.any()
    assert table.nbytes == 256 * 8


@pytest.mark.parametrize("tiers", TIERS)
def test_embeddings_that_are_read_and_put_elsewhere_are_the_same(tiers: Tiers) -> None:
    table, other = HashedTable(8, tiers), HashedTable(8, tiers)
    rows, drawn = np.array([255, 0, 9]), numbers(table, 3)
    table.put_vectors(rows, drawn)
    assert np.count_nonzero(table.vectors_at(np.arange(256)).any(axis=1)) == 3
    np.testing.assert_array_equal(table.vectors_at(rows), drawn)
    other.put_vectors(rows[::-1], table.vectors_at(rows[::-1]))
    np.testing.assert_array_equal(other.vectors.values, table.vectors.values)
    copy = table.vectors_at(rows)
    copy[:] = 7
    np.testing.assert_array_equal(table.vectors_at(rows), drawn)


@pytest.mark.parametrize("tiers", TIERS)
def test_parts_are_loaded_where_they_were(tiers: Tiers) -> None:
    table, drawn = HashedTable(8, tiers), None
    drawn = numbers(table, 256)
    rows = np.random.default_rng(2).integers(0, 1 << 63, 256, np.uint64)
    for first, end in ((64, 128), (0, 64), (128, 256)):
        table.load(first, rows[first:end], drawn[first:end].reshape(-1))
    np.testing.assert_array_equal(table.words, rows)
    np.testing.assert_array_equal(table.vectors_at(np.arange(256)), drawn)
    coordinates = table.vectors.geometry.all_coordinates(table.vectors_at(np.arange(3)))
    shape = (256, 2, tiers.parts, tiers.dim)
    expected = np.random.default_rng(1).normal(size=shape).astype(np.float32)[:3, 0]
    np.testing.assert_array_equal(coordinates.reshape(expected.shape), expected)


def test_other_embeddings_than_rows_are_refused() -> None:
    rows = np.ones(64, np.uint64)
    table = HashedTable(8, TIERS[0])
    for size in (0, 64 * 32 - 1, 64 * 32 + 32):
        with pytest.raises(ValueError, match=f"{size} numbers of embeddings, expected 2048"):
            table.load(0, rows, np.zeros(size, np.float32))
    with pytest.raises(ValueError, match="32 numbers of embeddings, expected 0"):
        HashedTable(8).load(0, rows, np.zeros(32, np.float32))
    assert not table.words.any()
