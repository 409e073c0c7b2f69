"""The learn and score kernels against their twin, one example after the other."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.gate import Gate
from streamlearn.shards.cut import Nothing
from streamlearn.shards.table import ExactTable, HashedTable
from tests.reference.ftrl import RULES, LogisticTwin
from tests.reference.tables import (
    Learning,
    as_dict,
    check_layout,
    image,
    minibatch,
    small_tables,
)

RATES = {"alpha": 0.3, "beta": 0.7, "l1": 0.3, "l2": 0.02}
BITS = 17


def tables() -> dict[str, ExactTable | HashedTable]:
    return {"exact": ExactTable(2_000_000), "hashed": HashedTable(BITS)}


def keys_of(rng: np.random.Generator, n: int) -> list[int]:
    """Return distinct keys whose hashed rows are distinct too."""
    rows = rng.choice(1 << BITS, n, replace=False).astype(np.uint64)
    low = rng.integers(0, 1 << (63 - BITS), n, np.uint64)
    return (rows << np.uint64(64 - BITS) | low << np.uint64(1) | np.uint64(1)).tolist()


class Stream:
    """Examples over a vocabulary, with labels, weights and values."""

    def __init__(
        self, seed: int, n: int, *, valued: bool, vocabulary: int = 60, widths: Any = None
    ) -> None:
        rng = np.random.default_rng(seed)
        self.vocabulary = keys_of(rng, vocabulary)
        widths = rng.integers(0, 25, n) if widths is None else widths
        self.examples = [
            rng.choice(np.array(self.vocabulary, np.uint64), w, replace=False).tolist()
            for w in widths
        ]
        self.labels = (rng.random(n) < 0.4).astype(float).tolist()
        self.weights = rng.choice([0.0, 0.5, 1.0, 3.0], n).tolist()
        self.values = (
            [rng.normal(size=len(e)).astype(np.float32).tolist() for e in self.examples]
            if valued
            else None
        )

    def batch(self, first: int = 0, end: int | None = None) -> Any:
        part = slice(first, end)
        values = None if self.values is None else self.values[part]
        return minibatch(self.examples[part], self.labels[part], self.weights[part], values=values)

    def twin_learns(self, twin: LogisticTwin) -> tuple[list[float], list[int]]:
        scores, fresh = [], []
        for i, keys in enumerate(self.examples):
            values = None if self.values is None else self.values[i]
            scores.append(twin.learn(keys, values, self.labels[i], self.weights[i]))
            fresh.append(twin.fresh)
        return scores, fresh


def columns_of(table: ExactTable | HashedTable, keys: list[int]) -> np.ndarray:
    slots = table.find(np.array(keys, np.uint64))
    assert (slots >= 0).all()
    words = table.rows_at(slots)[:, 1] if isinstance(table, ExactTable) else table.words[slots]
    return np.ascontiguousarray(words)


def weights_at(learning: Learning, keys: list[int]) -> np.ndarray:
    return learning.solver.weights(columns_of(learning.table, keys))


# A score of m terms of size s carries m roundings of s 2**-24; rows carry those of all examples
# that taught them, and FTRL's division by a rate and difference of roots make some dozens of it:
# 2e-5 of numbers near 1 after 200 examples.
CLOSE = {"rtol": 2e-4, "atol": 2e-5}


@pytest.mark.parametrize("index", ["exact", "hashed"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("valued", [False, True])
@pytest.mark.parametrize("intercept", [False, True])
def test_learning_equals_the_twin(index: str, rule: str, valued: bool, intercept: bool) -> None:
    table = tables()[index]
    learning = Learning(table, rule=rule, intercept=intercept, **RATES)
    stream = Stream(1, 200, valued=valued)
    twin = LogisticTwin(rule, intercept=intercept, dtype=np.float64, **RATES)
    single = LogisticTwin(rule, intercept=intercept, dtype=np.float32, **RATES)
    expected, fresh = stream.twin_learns(twin)
    scores = learning.learn(stream.batch(), tick=77)
    np.testing.assert_allclose(scores, expected, **CLOSE)
    np.testing.assert_allclose(scores, stream.twin_learns(single)[0], **CLOSE)
    # which weights are zero may differ where |z| is within rounding of l1
    assert np.count_nonzero(learning.scratch.fresh[:200] != np.minimum(fresh, 255)) <= 2
    keys = sorted(twin.rows)
    weights = weights_at(learning, keys)
    np.testing.assert_allclose(weights, [twin.weight(k) for k in keys], **CLOSE)
    assert learning.solver.intercept == pytest.approx(
        twin.intercept_weight() if intercept else 0, rel=2e-4, abs=2e-5
    )
    if isinstance(table, ExactTable):
        rows = as_dict(image(table))
        assert rows.keys() == set(keys)
        assert {k: row[1] for k, row in rows.items()} == {
            k: count | 77 << 32 for k, count in twin.counts.items()
        }
        assert all(row[2] == 0 for row in rows.values())
    else:
        assert table.features <= len(keys)


@pytest.mark.parametrize("index", ["exact", "hashed"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 20])
def test_few_examples_are_learned_however_far_the_prefetch_looks(
    index: str, rule: str, n: int
) -> None:
    stream = Stream(n, n, valued=False, widths=[(3 * i) % 19 for i in range(n)])
    twin = LogisticTwin(rule, **RATES)
    learning = Learning(tables()[index], rule=rule, **RATES)
    expected, _ = stream.twin_learns(twin)
    np.testing.assert_allclose(learning.learn(stream.batch()), expected, **CLOSE)
    keys = sorted(twin.rows)
    np.testing.assert_allclose(weights_at(learning, keys), [twin.weight(k) for k in keys], **CLOSE)


@pytest.mark.parametrize("index", ["exact", "hashed"])
@pytest.mark.parametrize("width", [0, 1, 15, 16, 17, 31, 32, 33, 40, 65_536])
@pytest.mark.parametrize("valued", [False, True])
def test_examples_of_any_width_are_learned(index: str, width: int, valued: bool) -> None:
    stream = Stream(
        width, 3, valued=valued, vocabulary=max(1, width), widths=[width, min(width, 3), width]
    )
    twin = LogisticTwin(alpha=0.01, l1=0.0, beta=1.0)
    learning = Learning(tables()[index], alpha=0.01, l1=0.0, beta=1.0)
    stream.weights, stream.labels = [1.0, 1.0, 1.0], [1.0, 0.0, 1.0]
    scores = learning.learn(stream.batch())
    # roundings of a sum grow as the root of its terms, errors of 65,536 weights add up
    expected, fresh = stream.twin_learns(twin)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5 * max(width, 1) ** 0.5)
    assert learning.scratch.fresh[:3].tolist() == np.minimum(fresh, 255).tolist()
    if width:
        keys = sorted(twin.rows)
        np.testing.assert_allclose(
            weights_at(learning, keys), [twin.weight(k) for k in keys], rtol=1e-3, atol=1e-5
        )


@pytest.mark.parametrize("index", ["exact", "hashed"])
@pytest.mark.parametrize("rule", RULES)
def test_a_key_that_stands_twice_counts_twice_and_its_later_update_wins(
    index: str, rule: str
) -> None:
    a, b = keys_of(np.random.default_rng(5), 2)
    examples, values = [[a, b], [a, b, a], [b, b]], [[1.0, 1.0], [1.0, -2.0, 3.0], [0.5, 2.0]]
    twin = LogisticTwin(rule, **RATES)
    expected = twin.learn_all(list(zip(examples, values, strict=True)), [1, 0, 1])
    learning = Learning(tables()[index], rule=rule, **RATES)
    np.testing.assert_allclose(
        learning.learn(minibatch(examples, [1, 0, 1], values=values)), expected, **CLOSE
    )
    np.testing.assert_allclose(
        weights_at(learning, [a, b]), [twin.weight(a), twin.weight(b)], **CLOSE
    )
    if isinstance(learning.table, ExactTable):
        rows = as_dict(image(learning.table))
        assert {k: row[1] & 0xFFFFFFFF for k, row in rows.items()} == twin.counts


def test_features_that_share_a_hashed_row_share_its_weight() -> None:
    learning = Learning(HashedTable(8), **RATES)
    a, b = 7 << 56 | 1, 7 << 56 | 3
    learning.learn(minibatch([[a]], [1]))
    score = learning.score(minibatch([[a], [b]]))
    assert score[0] == score[1] > 0


# --- what must not matter


def learned(stream: Stream, table: Any, size: int, rule: str) -> tuple[np.ndarray, ...]:
    learning = Learning(table, rule=rule, **RATES)
    n = len(stream.examples)
    parts = [
        (learning.learn(stream.batch(i, i + size)), learning.scratch.fresh[: min(size, n - i)])
        for i in range(0, n, size)
    ]
    scores = np.concatenate([part[0] for part in parts])
    return scores, image(table), table.intercept.copy()


@pytest.mark.parametrize("index", ["exact", "hashed"])
@pytest.mark.parametrize("rule", RULES)
def test_the_size_of_minibatches_does_not_matter_to_a_bit(index: str, rule: str) -> None:
    stream = Stream(6, 300, valued=rule == "ftrl", vocabulary=2000)
    first = learned(stream, tables()[index], 1, rule)
    for size in (7, 1024):
        for a, b in zip(first, learned(stream, tables()[index], size, rule), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("rule", RULES)
def test_growth_amid_a_minibatch_does_not_matter_to_a_bit(rule: str) -> None:
    stream = Stream(7, 600, valued=False, vocabulary=5000)
    with small_tables():
        growing, sized = ExactTable(20_000), ExactTable.sized(6000, 20_000)
        first, second = (learned(stream, t, 600, rule) for t in (growing, sized))
        assert growing.growths > 5
        assert sized.growths == 0
        check_layout(growing)
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a, b)


def test_scratch_that_has_seen_values_does_not_remember_them() -> None:
    plain, valued = Stream(8, 40, valued=False), Stream(9, 40, valued=True)
    for table, other in zip(tables().values(), tables().values(), strict=True):
        learning, fresh = Learning(table, **RATES), Learning(other, **RATES)
        learning.learn(valued.batch())
        fresh.learn(valued.batch())
        fresh.scratch.x[:] = 1
        np.testing.assert_array_equal(learning.score(plain.batch()), fresh.score(plain.batch()))
        learning.score(valued.batch())
        np.testing.assert_array_equal(learning.learn(plain.batch()), fresh.learn(plain.batch()))
        np.testing.assert_array_equal(image(table), image(other))


@pytest.mark.parametrize("index", ["exact", "hashed"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("valued", [False, True])
def test_scores_are_those_before_learning_and_learn_nothing(
    index: str, rule: str, valued: bool
) -> None:
    table = tables()[index]
    learning = Learning(table, rule=rule, **RATES)
    learning.learn(Stream(10, 100, valued=valued).batch())
    before = image(table)
    later = Stream(10, 130, valued=valued)
    later.examples[3].append(0x123456 << 40 | 1)  # a key that is not there
    if later.values is not None:
        later.values[3].append(2.0)
    for i in range(later.batch().rows):
        batch = later.batch(i, i + 1)
        scored = learning.score(batch)
        np.testing.assert_array_equal(image(table), before)
        taught = learning.learn(batch)
        np.testing.assert_allclose(scored, taught, rtol=1e-5, atol=1e-5)
        before = image(table)


# --- what must not happen


@pytest.mark.parametrize("index", ["exact", "hashed"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "rates",
    [
        {"beta": 0.0, "l1": 0.0, "l2": 0.0},
        {"beta": 0.0, "l1": 0.0, "l2": 1.0},
        {"alpha": 1e-6},
        {"alpha": 1e3, "l1": 0.0},
        {"l1": 1e30},
        {"beta": 1e30},
        {"alpha": 1e-300, "beta": 1e300},
        {"alpha": 1e300, "l1": 1e300, "l2": 1e300},
        {"alpha": 10.0, "l1": 0.0, "l2": 10.0},
    ],
)
def test_extreme_settings_never_make_nan(index: str, rule: str, rates: dict[str, float]) -> None:
    table = tables()[index]
    learning = Learning(table, rule=rule, **rates)
    for seed, valued in itertools.product(range(3), (False, True)):
        batch = Stream(11 + seed, 60, valued=valued).batch()
        assert np.isfinite(learning.score(batch)).all()
        assert np.isfinite(learning.learn(batch)).all()
    assert np.isfinite(learning.solver.intercept)
    assert np.isfinite(table.intercept).all()
    assert np.isfinite(weights_at(learning, Stream(11, 60, valued=False).vocabulary[:1])).all()


@pytest.mark.parametrize("index", ["exact", "hashed"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [1e-30, 1e10, 1e19, 1e25, 1e30])
def test_extreme_values_and_weights_never_make_nan(index: str, rule: str, size: float) -> None:
    table = tables()[index]
    learning = Learning(table, rule=rule)
    stream = Stream(15, 200, valued=True)
    assert stream.values is not None
    stream.values = [(np.array(v) * size).tolist() for v in stream.values]
    for _ in range(3):
        assert not np.isnan(learning.learn(stream.batch())).any()
        stream.weights = np.minimum(np.array(stream.weights) * size**0.5, 1e30).tolist()
    assert not np.isnan(learning.score(stream.batch())).any()
    keys = sorted({key for example in stream.examples for key in example})
    assert np.isfinite(columns_of(table, keys).view(np.float32)).all()
    assert np.isfinite(table.intercept).all()
    assert np.isfinite(weights_at(learning, keys)).all()


@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20),
    st.lists(st.tuples(st.booleans(), st.floats(0, 2.0**100, width=32)), min_size=1, max_size=12),
    st.sampled_from(RULES),
)
@settings(max_examples=60, deadline=None)
def test_no_values_make_nan(
    values: list[float], lessons: list[tuple[bool, float]], rule: str
) -> None:
    learning = Learning(HashedTable(10), rule=rule)
    keys = [(i << 54) | 1 for i in range(len(values))]
    for label, weight in lessons:
        batch = minibatch([keys], [float(label)], [weight], [values])
        assert not np.isnan(learning.learn(batch)).any()
    assert np.isfinite(learning.table.words.view(np.float32)).all()


@pytest.mark.parametrize("rule", RULES)
def test_weights_equal_the_twins_derivation(rule: str) -> None:
    rng = np.random.default_rng(16)
    pairs = np.stack([rng.normal(size=500), rng.exponential(size=500)], 1).astype(np.float32)
    pairs[:3] = [[0, 0], [0.05, 1], [-0.05, 1]]
    twin = LogisticTwin(rule, dtype=np.float64, **RATES)
    twin.rows = {i: [float(v) for v in pair] for i, pair in enumerate(pairs)}
    weights = Learning(HashedTable(8), rule=rule, **RATES).solver.weights(
        pairs.reshape(-1).view(np.uint64)
    )
    np.testing.assert_allclose(weights, [twin.weight(i) for i in range(500)], rtol=1e-5, atol=1e-7)


# --- several lanes


def test_lanes_on_one_table_lose_no_row_and_learn_much_as_one_does() -> None:
    with small_tables():
        table, alone = ExactTable(40_000), ExactTable(40_000)
        stream = Stream(17, 4000, valued=False, vocabulary=8000)
        gate = Gate()
        errors: list[BaseException] = []

        def lane(number: int) -> None:
            learning = Learning(table, shared=True, **RATES)
            solver, scratch = learning.solver, learning.scratch
            try:
                for first in range(number * 50, 4000, 200):
                    batch = stream.batch(first, first + 50)
                    with gate.shared():
                        full = solver.learn_until_full(batch, scratch, Nothing(), 1, 0)
                    while full >= 0:
                        with gate.alone():
                            table.make_room(full)
                        with gate.shared():
                            full = solver.learn_until_full(
                                batch, scratch, Nothing(), 1, int(scratch.state[0])
                            )
            except BaseException as error:  # noqa: BLE001 - shown by the test
                errors.append(error)

        lanes = [threading.Thread(target=lane, args=(i,)) for i in range(4)]
        for thread in lanes:
            thread.start()
        for thread in lanes:
            thread.join()
        assert errors == []
        check_layout(table)
        rows = as_dict(image(table))
        twin_keys = {key for example in stream.examples for key in example}
        assert rows.keys() == twin_keys
        assert table.inserted_count[0] == table.features == len(twin_keys)
        one = Learning(alone, **RATES)
        one.learn(stream.batch())
        keys = sorted(twin_keys)
        a, b = weights_at(Learning(table, **RATES), keys), weights_at(one, keys)
        assert np.corrcoef(a, b)[0, 1] > 0.9
        assert np.isfinite(a).all()


@pytest.mark.parametrize("seed", range(6))
def test_lanes_that_meet_the_same_new_keys_insert_each_once(seed: int) -> None:
    with small_tables():
        table = ExactTable.sized(20_000, 100_000)
        keys = np.array(keys_of(np.random.default_rng(seed), 12_000), np.uint64)
        batch = minibatch([keys[i : i + 40] for i in range(0, len(keys), 40)], labels=[1.0] * 300)
        meeting = threading.Barrier(4)
        lanes = [Learning(table, shared=True) for _ in range(4)]

        def lane(learning: Learning) -> None:
            meeting.wait(60)
            learning.learn(batch)

        threads = [threading.Thread(target=lane, args=(one,)) for one in lanes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        check_layout(table)
        rows = as_dict(image(table))
        assert rows.keys() == set(keys.tolist())
        assert table.inserted_count[0] == 12_000
        assert all(1 <= row[1] & 0xFFFFFFFF <= 4 for row in rows.values())
