"""Tables, minibatches and solvers for tests: small ones, and plain views of what they hold."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from streamlearn.config import FmConfig, LrConfig
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch
from streamlearn.online.solvers import new_solver
from streamlearn.shards import arena, forgetting, memory
from streamlearn.shards import table as tables
from streamlearn.shards.cut import Nothing
from streamlearn.shards.table import ExactTable, HashedTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROW_WORDS = 4
SLACK = 64


@contextmanager
def small_tables() -> Iterator[None]:
    """Make tables grow and split after some dozens of rows, their regions close together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "INITIAL_SLOTS", 64)
        patch.setattr(tables, "SMALL_SLOTS", 512)
        patch.setattr(tables, "SPLIT_SLOTS", 256)
        patch.setattr(tables, "SLACK_SLOTS", SLACK)
        patch.setattr(forgetting, "EVICTION_ROWS", 64)
        for module in (tables, memory, arena):
            patch.setattr(module, "HUGE_BYTES", 4096)
        yield


def minibatch(
    examples: Sequence[Sequence[int] | NDArray[np.uint64]],
    labels: Sequence[float] | None = None,
    weights: Sequence[float] | None = None,
    values: Sequence[Sequence[float]] | None = None,
) -> Minibatch:
    """Return a minibatch of examples, each a list of keys; labels 0, weights 1."""
    nnz = sum(len(keys) for keys in examples)
    out = Minibatch(
        max(1, len(examples)), FEATURES_PER_RECORD_MAX + nnz, has_values=values is not None
    )
    at = 0
    for i, keys in enumerate(examples):
        out.keys[at : at + len(keys)] = np.asarray(keys, np.uint64)
        if values is not None:
            out.values[at : at + len(keys)] = values[i]
        at += len(keys)
        out.indptr[i + 1] = at
    n = len(examples)
    out.labels[:n] = 0 if labels is None else labels
    out.weights[:n] = 1 if weights is None else weights
    out.state[:2] = n, nnz
    return out


class Learning:
    """A solver on a table, with the scratch that it needs.

    Parameters
    ----------
    fm : FmConfig, optional
        The model, where the table has embeddings; by default ``LrConfig(**model)``.
    """

    def __init__(
        self,
        table: ExactTable | HashedTable,
        fm: FmConfig | None = None,
        *,
        shared: bool = False,
        **model: Any,
    ) -> None:
        self.table = table
        self.solver = new_solver(fm or LrConfig(**model), table, shared=shared)
        self.scratch = self.solver.scratch(4096, FEATURES_PER_RECORD_MAX + (1 << 18))

    def learn(self, batch: Minibatch, keeper: Any = None, tick: int = 1) -> NDArray[np.float32]:
        """Learn a minibatch; return a copy of the scores before."""
        return self.solver.learn(batch, self.scratch, keeper or Nothing(), tick).copy()

    def score(self, batch: Minibatch) -> NDArray[np.float32]:
        return self.solver.score(batch, self.scratch).copy()

    def see(self, keys: Sequence[int] | NDArray[np.uint64], tick: int = 1) -> None:
        """Learn one example without weight: its rows are inserted and counted, not changed."""
        self.learn(minibatch([keys], weights=[0.0]), tick=tick)


def image(table: ExactTable | HashedTable) -> NDArray[np.uint64]:
    """Return a copy of all rows, by key (exact) or in their places (hashed)."""
    if isinstance(table, HashedTable):
        return table.words.copy()
    rows = np.concatenate([table.rows(segment) for segment in range(table.segments)])
    return rows[np.argsort(rows[:, 0], kind="stable")]


def as_dict(rows: NDArray[np.uint64]) -> dict[int, tuple[int, int, int]]:
    """Return rows (uint64[n, 4]) as key -> the other three words."""
    out = {row[0]: (row[1], row[2], row[3]) for row in rows.tolist()}
    assert len(out) == len(rows), "a key stands twice"
    return out


def check_layout(table: ExactTable) -> None:
    """Assert what holds between two calls: fences, loads, nothing outside the regions.

    Of a small table: all of its memory is looked at.
    """
    assert table.words.nbytes < 1 << 30
    words = table.words.reshape(-1, ROW_WORDS)
    outside = np.ones(len(words), np.bool_)
    ends = []
    for segment in range(table.segments):
        first, end = table.region(segment)
        assert words[end].tolist() == [2, 0, 0, 0], "a fence is gone"
        outside[first : end + 1] = False
        held = words[first:end, 0]
        assert np.count_nonzero(held) == np.count_nonzero(held & np.uint64(1))
        assert np.count_nonzero(held) == table.loads[segment]
        assert not words[first:end][held == 0].any(), "an empty slot holds something"
        ends.append((first, end))
    assert all(a[1] < b[0] for a, b in itertools.pairwise(ends))
    assert not words[outside].any(), "something stands outside the regions"
    assert table.features == table.loads[: table.segments].sum()
    assert not table.loads[table.segments :].any()
    last = table.prefixes[0] - 1
    for segment in table.key_order():
        keys = table.rows(segment)[:, 0]
        low, high = table.span(segment)
        assert (table.segment_of[low:high] == segment).all()
        assert ((keys >> np.uint64(56) >= low) & (keys >> np.uint64(56) < high)).all()
        assert low == last + 1
        last = high - 1
    assert last == table.prefixes[1] - 1
