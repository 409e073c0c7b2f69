"""The solver around its kernels: repeated calls, limits, weights."""

from __future__ import annotations

import numpy as np
import pytest

from streamlearn.config import LrConfig
from streamlearn.errors import TableFullError
from streamlearn.online.logistic import RULES, LogisticSolver, Scratch
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX
from streamlearn.shards.cut import Nothing
from streamlearn.shards.table import ExactTable, HashedTable
from tests.reference.ftrl import LogisticTwin
from tests.reference.tables import Learning, as_dict, image, minibatch, small_tables


def test_a_solver_needs_no_more_scratch_than_its_minibatches() -> None:
    batch = minibatch([[1, 3], [5]], labels=[1, 0])
    solver = LogisticSolver(LrConfig(), HashedTable(8))
    scratch = Scratch(batch.rows_max, batch.nnz_max)
    scores = solver.learn(batch, scratch, Nothing(), 0)
    assert scores.shape == (2,)
    assert np.shares_memory(scores, scratch.scores)
    assert solver.score(batch, scratch).shape == (2,)


@pytest.mark.parametrize("table", [HashedTable(8), ExactTable(1000)], ids=["hashed", "exact"])
def test_an_empty_minibatch_teaches_nothing(table: ExactTable | HashedTable) -> None:
    learning = Learning(table)
    before = image(table)
    assert learning.learn(minibatch([])).shape == (0,)
    assert learning.score(minibatch([])).shape == (0,)
    np.testing.assert_array_equal(image(table), before)
    assert table.intercept.tolist() == [0, 0]


@pytest.mark.parametrize("table", [HashedTable(8), ExactTable(1000)], ids=["hashed", "exact"])
def test_an_example_without_features_teaches_the_intercept_alone(
    table: ExactTable | HashedTable,
) -> None:
    learning = Learning(table, alpha=1.0)
    learning.learn(minibatch([[]] * 50, labels=[1.0] * 50))
    assert table.features == 0
    assert learning.solver.intercept > 1
    assert learning.score(minibatch([[]]))[0] == pytest.approx(learning.solver.intercept, rel=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_the_intercept_is_the_twins_and_0_where_there_is_none(rule: str) -> None:
    batch = minibatch([[1], [3], [1]], labels=[1, 1, 0])
    twin = LogisticTwin(rule, alpha=0.5, beta=0.5)
    twin.learn_all([([1], None), ([3], None), ([1], None)], [1, 1, 0])
    learning = Learning(HashedTable(8), rule=rule, alpha=0.5, beta=0.5)
    learning.learn(batch)
    # rows 1 and 3 share the first hashed row, but no weight leaves zero here
    assert learning.solver.intercept == pytest.approx(twin.intercept_weight(), rel=1e-3)
    bare = Learning(HashedTable(8), rule=rule, intercept=False)
    bare.learn(batch)
    assert bare.solver.intercept == 0
    assert bare.table.intercept.tolist() == [0, 0]


@pytest.mark.parametrize(("rule", "l1"), [("ftrl", 2.0), ("adagrad", 0.9), ("sgd", 0.9)])
def test_l1_leaves_what_is_seen_once_at_zero(rule: str, l1: float) -> None:
    """A first gradient is below 1 in size: it lifts no weight over a penalty of about that."""
    rng = np.random.default_rng(1)
    learning = Learning(ExactTable(10_000), rule=rule, alpha=0.1, l1=l1)
    hot, rare = 1 << 60 | 1, [(i << 40) | 1 for i in range(1, 2001)]
    examples = [[hot, key] for key in rare]
    learning.learn(minibatch(examples, (rng.random(2000) < 0.5).astype(float).tolist()))
    rows = image(learning.table)
    weights = dict(zip(rows[:, 0].tolist(), learning.solver.weights(rows[:, 1]), strict=True))
    del weights[hot]
    assert len(weights) == 2000
    assert not any(weights.values())
    assert learning.scratch.fresh[:2000].max() <= 1


def test_minibatches_that_outgrow_the_table_are_learned_to_where_it_is_full() -> None:
    with small_tables():
        table = ExactTable(200)
        learning = Learning(table)
        rng = np.random.default_rng(2)
        keys = (rng.integers(0, 1 << 63, (60, 8), np.uint64) << np.uint64(1)) | np.uint64(1)
        with pytest.raises(TableFullError):
            learning.learn(minibatch(list(keys), labels=[1.0] * 60), tick=5)
        learned = int(learning.scratch.state[0])
        assert 200 // 8 <= learned <= 200 // 8 + 1
        assert as_dict(image(table)).keys() == set(keys[:learned].ravel().tolist())
        # the scores of those that were learned are there to be counted
        twin = LogisticTwin()
        scores = [twin.learn(example.tolist(), None, 1.0) for example in keys[:learned]]
        np.testing.assert_allclose(learning.scratch.scores[:learned], scores, atol=1e-5)


def test_the_longest_example_a_record_may_make_is_learned() -> None:
    keys = (np.arange(FEATURES_PER_RECORD_MAX, dtype=np.uint64) << np.uint64(48)) | np.uint64(1)
    for table in (ExactTable(200_000), HashedTable(16)):
        learning = Learning(table, l1=0.0)
        learning.learn(minibatch([keys, keys[:10]], labels=[1, 1]))
        assert learning.score(minibatch([keys]))[0] > 0
        assert table.features == FEATURES_PER_RECORD_MAX
