"""Newlines, and negatives left out by where their records stand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.compute.kernels.records import find_newline, last_newline, subsample_negatives
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch
from tests.reference.tables import minibatch


@given(st.binary(max_size=30), st.data())
@settings(deadline=None)
def test_newlines_are_found_as_bytes_finds_them(text: bytes, data: st.DataObject) -> None:
    text = text.replace(b"a", b"\n")
    end = data.draw(st.integers(0, len(text)))
    start = data.draw(st.integers(0, end))
    buffer = np.frombuffer(text + b"\n", np.uint8)
    found = text.find(b"\n", start, end)
    assert find_newline(buffer, start, end) == (found if found >= 0 else end)
    assert last_newline(buffer, start, end) == text.rfind(b"\n", start, end)


def log(n: int, *, valued: bool, seed: int = 1) -> Minibatch:
    """Return a minibatch of records of some bytes each, one in four positive."""
    rng = np.random.default_rng(seed)
    examples = [
        (rng.integers(0, 1 << 62, w, np.uint64) << np.uint64(1) | np.uint64(1)).tolist()
        for w in rng.integers(0, 4, n)
    ]
    values = [rng.normal(size=len(e)).astype(np.float32).tolist() for e in examples]
    batch = minibatch(
        examples,
        (rng.random(n) < 0.25).astype(float).tolist(),
        rng.choice([1.0, 2.0], n).tolist(),
        values if valued else None,
    )
    batch.lines[:n] = np.cumsum(rng.integers(1, 200, n)) - 1
    return batch


def subsample(batch: Minibatch, offset: int, rate: float) -> None:
    subsample_negatives(
        batch.keys, batch.values, batch.fields, batch.dense, batch.indptr, batch.labels,
        batch.weights, batch.lines, batch.state, offset, rate,
    )  # fmt: skip


def examples(batch: Minibatch, offset: int = 0) -> list[tuple[Any, ...]]:
    """Return (byte offset, label, weight, keys, values) of each example."""
    out = []
    for i in range(batch.rows):
        span = slice(batch.indptr[i], batch.indptr[i + 1])
        out.append(
            (
                int(batch.lines[i]) + offset,
                float(batch.labels[i]),
                float(batch.weights[i]),
                batch.keys[span].tolist(),
                batch.values[span].tolist() if batch.has_values else None,
            )
        )
    return out


@pytest.mark.parametrize("valued", [False, True])
@pytest.mark.parametrize("rate", [1e-9, 0.01, 0.1, 0.5, 0.999])
def test_negatives_stay_at_the_rate_and_weigh_its_inverse(rate: float, valued: bool) -> None:
    n = 20_000
    batch = log(n, valued=valued)
    before = examples(batch)
    subsample(batch, 1 << 40, rate)
    after = examples(batch)
    assert batch.nnz == sum(len(example[3]) for example in after)
    assert batch.state[4] == n - len(after)
    by_line = {example[0]: example for example in before}
    assert [example[0] for example in after] == sorted(example[0] for example in after)
    for line, label, weight, keys, values in after:
        was = by_line[line]
        assert (label, keys, values) == (was[1], was[3], was[4])
        assert weight == (was[2] if label else np.float32(np.float32(was[2]) / rate))
    assert sum(e[1] for e in after) == sum(e[1] for e in before)  # all positives
    negatives = sum(not e[1] for e in before)
    kept = sum(not e[1] for e in after)
    # five standard deviations of a fair coin's count
    assert abs(kept - negatives * rate) <= 5 * (negatives * rate * (1 - rate)) ** 0.5 + 1e-3
    # weights of rows that are free again are ones, as formats without weights leave them
    assert (batch.weights[batch.rows : n] == 1).all()


@given(st.integers(0, 1 << 50), st.integers(1, 400), st.floats(0.05, 0.95))
@settings(deadline=None)
def test_what_stays_depends_on_the_byte_offset_alone(offset: int, size: int, rate: float) -> None:
    n = 400
    whole = log(n, valued=True)
    records = examples(whole)
    subsample(whole, offset, rate)
    parts = []
    for first in range(0, n, size):
        rows = records[first : first + size]
        part = minibatch(
            [row[3] for row in rows],
            [row[1] for row in rows],
            [row[2] for row in rows],
            [row[4] for row in rows],
        )
        moved = rows[0][0]  # this block's buffer begins here
        part.lines[: len(rows)] = [row[0] - moved for row in rows]
        subsample(part, offset + moved, rate)
        parts += examples(part, moved)
    assert examples(whole) == parts


def test_neighbouring_and_regular_offsets_are_kept_evenly() -> None:
    for stride in (1, 64, 100, 4096, 1 << 20):
        batch = minibatch([[1]] * 20_000)
        batch.lines[:20_000] = np.arange(20_000) * stride
        subsample(batch, 0, 0.25)
        assert abs(batch.rows - 5000) < 5 * (20_000 * 0.25 * 0.75) ** 0.5
        firsts = np.count_nonzero(batch.lines[: batch.rows] < 10_000 * stride)
        assert abs(firsts - batch.rows / 2) < 5 * (batch.rows / 4) ** 0.5


def test_an_empty_minibatch_stays_empty() -> None:
    batch = minibatch([])
    subsample(batch, 0, 0.5)
    assert (batch.rows, batch.nnz, batch.state[4]) == (0, 0, 0)


def test_fields_and_dense_parts_go_with_their_examples() -> None:
    rng = np.random.default_rng(5)
    for valued in (False, True):
        n, nnz_max = 500, FEATURES_PER_RECORD_MAX
        batch = Minibatch(n, nnz_max, has_values=valued, has_fields=True, dense=(2, 3))
        widths = rng.integers(0, 4, n)
        batch.indptr[1:] = np.cumsum(widths)
        nnz = int(widths.sum())
        batch.state[:2] = n, nnz
        of = np.repeat(np.arange(n), widths)
        batch.keys[:nnz], batch.fields[:nnz] = 2 * of + 1, of
        batch.dense[:] = np.arange(n)[:, None] + np.array([0, 0.25, 0.5, np.nan, 0.125, 0])
        batch.labels[:] = rng.random(n) < 0.25
        batch.lines[:] = np.arange(n) * 97
        dense = batch.dense.copy()
        subsample(batch, 0, 0.3)
        assert 100 < batch.rows < 400
        kept = batch.lines[: batch.rows] // 97
        np.testing.assert_array_equal(batch.dense[: batch.rows], dense[kept])
        owners = np.repeat(kept, np.diff(batch.indptr[: batch.rows + 1]))
        assert batch.nnz == len(owners)
        assert batch.fields[: batch.nnz].tolist() == owners.tolist()
        assert (batch.keys[: batch.nnz] == 2 * owners + 1).all()
