"""Each rule against its slow twin, against the embedded kernels, and with numbers beyond reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.config import LrConfig
from streamlearn.shards.cut import Cut, Nothing
from streamlearn.shards.rules import RULES, Updater, rates
from streamlearn.shards.table import ExactTable
from tests.reference.rules import RuleTwin
from tests.reference.tables import Learning, image, minibatch, small_tables

MOMENTA = {"sgd": 0.9, "adam": 0.9}
SETTINGS: list[tuple[str, dict[str, float]]] = [
    ("ftrl", {"l1": 0.3, "l2": 0.1}),
    ("ftrl", {"l1": 0.0, "beta": 0.0}),
    ("adagrad", {"l1": 0.05, "l2": 0.2}),
    ("sgd", {"l1": 0.05, "l2": 0.2}),
    ("sgd", {"l1": 0.01, "l2": 0.2, "momentum": 0.9}),
    ("adam", {"l1": 0.05, "l2": 0.1, "momentum": 0.9, "beta": 1e-8}),
    ("adam", {"l1": 0.0, "momentum": 0.0, "memory": 0.5, "beta": 1e-8}),
    ("add", {}),
    ("mf", {}),
]


def updater_of(rule: str, momentum: float = 0.0, memory: float = 0.999, **model: Any) -> Updater:
    return Updater(rule, rates(LrConfig(**model), momentum, memory))


def some_keys(n: int, seed: int = 0) -> np.ndarray:
    keys = np.random.default_rng(seed).integers(0, 1 << 63, n, np.uint64) << np.uint64(1)
    return np.unique(keys | np.uint64(1))


def table_of(keys: np.ndarray) -> tuple[ExactTable, np.ndarray]:
    table = ExactTable(50_000)
    slots = table.find(keys)
    table.insert(keys, slots, Nothing())
    return table, slots


def push(
    updater: Updater,
    table: ExactTable,
    slots: np.ndarray,
    gradients: np.ndarray,
    *,
    minute: int = 1,
    intercept: bool = False,
    counts: np.ndarray | None = None,
) -> None:
    updater.push(table, slots, gradients, counts, minute, intercept, Nothing())


def values(updater: Updater, table: ExactTable, slots: np.ndarray, intercept: bool) -> np.ndarray:
    return updater.values(table, slots, intercept, np.empty(len(slots), np.float32))


def columns(table: ExactTable, slots: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(table.rows_at(slots)[:, 1]).view(np.float32).reshape(-1, 2)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("n", [0, 1, 2, 255, 256, 257, 700])
@pytest.mark.parametrize(("rule", "model"), SETTINGS)
def test_a_rule_equals_its_slow_twin_to_the_bit(
    rule: str, model: dict[str, float], n: int, intercept: bool
) -> None:
    rng = np.random.default_rng(n)
    keys = some_keys(n)
    table, slots = table_of(keys)
    updater = updater_of(rule, **model)
    twins = [RuleTwin(rule, **{"beta": 1.0} | model, dtype=t) for t in (np.float32, np.float64)]
    for twin in twins:
        twin.beta = max(twin.beta, twin.dtype(np.float32(1e-12)))
    bare = int(keys[0]) if intercept and n else None
    for step in range(4):
        gradients = (rng.normal(size=n) * rng.choice([0, 0.1, 1, 30], n)).astype(np.float32)
        push(updater, table, slots, gradients, minute=step, intercept=intercept)
        for twin in twins:
            twin.push(keys.tolist(), gradients, bare)
        found = values(updater, table, slots, intercept)
        exact, equations = (
            np.array([twin.weight(key, key == bare) for key in keys.tolist()]) for twin in twins
        )
        np.testing.assert_array_equal(found, exact)
        held = columns(table, slots)
        expected = [twins[0].rows[key] for key in keys.tolist()]
        np.testing.assert_array_equal(held, np.array(expected, np.float32).reshape(-1, 2))
        # some ten roundings a step, of which a difference near zero may keep little
        np.testing.assert_allclose(found, equations, rtol=2e-3, atol=2e-5)
    if rule == "adam":
        spare = np.ascontiguousarray(table.rows_at(slots)[:, 3])
        assert (spare.view(np.uint32)[::2] == 4).all()
        moments = [twins[0].moments[key][1] for key in keys.tolist()]
        np.testing.assert_array_equal(spare.view(np.float32)[1::2], np.array(moments, np.float32))


@pytest.mark.parametrize("rule", ["add", "mf"])
def test_what_stands_beside_a_weight_stays(rule: str) -> None:
    keys = some_keys(300)
    table, slots = table_of(keys)
    beside = np.random.default_rng(4).integers(0, 1 << 32, len(keys), np.uint64)
    table.words[slots * 4 + 1] = beside << np.uint64(32)  # any bits: some are no numbers
    updater = updater_of(rule)
    for _ in range(3):
        push(updater, table, slots, np.full(len(keys), 0.5, np.float32))
    assert (table.words[slots * 4 + 1] >> np.uint64(32) == beside).all()
    assert (values(updater, table, slots, intercept=False) == 1.5).all()


def test_constant_feature_of_mf_is_the_mean_of_all_that_it_was_told() -> None:
    keys = some_keys(3)
    table, slots = table_of(keys)
    updater = updater_of("mf")
    rng = np.random.default_rng(7)
    told: list[float] = []
    for step in range(50):
        ratings = rng.normal(3.5, 1, rng.integers(1, 40)).tolist()
        told += ratings
        counts = np.array([len(ratings), 1, 1], np.uint32)
        gradients = np.array([np.mean(ratings) / 128, 0, 1], np.float32)
        push(updater, table, slots, gradients, intercept=True, counts=counts, minute=step)
        assert columns(table, slots)[0, 0] == pytest.approx(np.mean(told), rel=1e-5)
    before = columns(table, slots)[:, 0].tolist()
    # a later pass counts nothing
    push(updater, table, slots, np.array([9, 0, 0], np.float32), intercept=True)
    assert columns(table, slots)[:, 0].tolist() == before
    assert int(table.rows_at(slots)[0, 2] & np.uint64(0xFFFFFFFF)) == len(told)


def test_mean_of_many_forgets() -> None:
    keys = some_keys(2)
    table, slots = table_of(keys)
    updater = updater_of("mf")
    many = np.array([1 << 30, 0], np.uint32)
    for mean in (1.0, 5.0):  # each of more than it remembers
        push(updater, table, slots, np.array([mean / 128, 0], "f4"), intercept=True, counts=many)
        assert columns(table, slots)[0, 0] == mean
    some = np.array([1 << 18, 0], np.uint32)
    push(updater, table, slots, np.array([1 / 128, 0], "f4"), intercept=True, counts=some)
    assert columns(table, slots)[0, 0] == 4


@pytest.mark.parametrize("rule", ["ftrl", "adagrad", "sgd"])
@pytest.mark.parametrize("intercept", [True, False])
def test_one_example_at_a_time_is_what_the_embedded_kernels_learn(
    rule: str, intercept: bool
) -> None:
    model = {"rule": rule, "alpha": 0.2, "l1": 0.02, "l2": 0.05, "intercept": intercept}
    rng = np.random.default_rng(3)
    vocabulary = some_keys(60)
    embedded = Learning(ExactTable(50_000), **model)
    table = ExactTable(50_000)
    updater = Updater.of(LrConfig(**model))
    for step in range(200):
        keys = np.unique(rng.choice(vocabulary[1:], 7))
        label = int(rng.integers(0, 2))
        score = embedded.learn(minibatch([keys], [label]), tick=step)[0]
        asked = np.concatenate([vocabulary[:1], keys]) if intercept else keys
        slots = table.find(asked)
        weights = values(updater, table, slots, intercept)
        np.testing.assert_allclose(weights.sum(), score, rtol=1e-4, atol=1e-5)
        probability = 1 / (1 + np.exp(-np.clip(weights.sum(), -35, 35)))
        table.insert(asked, slots, Nothing())
        ones = np.ones(len(asked), np.uint32)
        gradients = np.full(len(asked), probability - label, np.float32)
        push(updater, table, slots, gradients, minute=step, intercept=intercept, counts=ones)
    keys = vocabulary[1:]
    rows, expected = (
        table.rows_at(table.find(keys)),
        embedded.table.rows_at(embedded.table.find(keys)),
    )
    np.testing.assert_array_equal(rows[:, 2:], expected[:, 2:])  # counts, ticks, spare
    np.testing.assert_allclose(
        rows[:, 1].copy().view(np.float32), expected[:, 1].copy().view(np.float32), 1e-4, 1e-5
    )
    if intercept:
        first = columns(table, table.find(vocabulary[:1]))[0]
        used = 2 if rule != "sgd" else 1
        np.testing.assert_allclose(first[:used], embedded.table.intercept[:used], 1e-4, 1e-5)


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(
    st.sampled_from(list(RULES)),
    st.lists(st.lists(finite, min_size=3, max_size=3), min_size=1, max_size=30),
    st.sampled_from([1e-30, 1e-6, 1.0, 1e9, 1e30]),
    st.sampled_from([0.0, 1e-6, 1.0, 1e30]),
    st.sampled_from([0.0, 1.0, 1e35]),
    st.sampled_from([0.0, 1.0, 1e35]),
)
@settings(max_examples=300, deadline=None)
def test_finite_gradients_of_any_size_leave_everything_finite(
    rule: str, pushes: list[list[float]], alpha: float, beta: float, l1: float, l2: float
) -> None:
    with small_tables():
        keys = some_keys(3)
        table, slots = table_of(keys)
        updater = updater_of(rule, alpha=alpha, beta=beta, l1=l1, l2=l2, momentum=0.9)
        for gradients in pushes:
            push(updater, table, slots, np.array(gradients, np.float32), intercept=True)
            assert np.isfinite(values(updater, table, slots, True)).all()
            assert np.isfinite(columns(table, slots)).all()


@pytest.mark.parametrize("rule", list(RULES))
def test_gradients_at_the_limit_a_thousand_times_leave_everything_finite(rule: str) -> None:
    keys = some_keys(4)
    table, slots = table_of(keys)
    for alpha in (1e-20, 0.1, 1e18):
        updater = updater_of(rule, alpha=alpha, l1=0.0, momentum=MOMENTA.get(rule, 0.0))
        for step in range(1000):
            sign = np.array([1, -1, (-1) ** step, 1], np.float32)
            push(updater, table, slots, sign * np.float32(3e38))
            assert np.isfinite(columns(table, slots)).all()
        assert np.isfinite(values(updater, table, slots, False)).all()


@pytest.mark.parametrize("rule", list(RULES))
def test_no_row_weighs_zero_and_is_passed_over(rule: str) -> None:
    keys = some_keys(600)
    table, slots = table_of(keys)
    updater = updater_of(rule, l1=0.0, momentum=MOMENTA.get(rule, 0.0))
    gradients = np.random.default_rng(1).normal(size=600).astype(np.float32)
    push(updater, table, slots, gradients)
    other, _ = table_of(keys)
    gone = np.random.default_rng(2).random(600) < 0.4
    some = np.where(gone, -1, slots)
    found = values(updater, table, some, False)
    assert (found[gone] == 0).all()
    assert not np.signbit(found[gone]).any()
    np.testing.assert_array_equal(found[~gone], values(updater, table, slots[~gone], False))
    push(updater, other, some, gradients)
    np.testing.assert_array_equal(other.rows_at(slots[~gone]), table.rows_at(slots[~gone]))
    assert not other.rows_at(slots[gone])[:, 1:].any()


@pytest.mark.parametrize("rule", list(RULES))
def test_rows_are_updated_each_by_itself(rule: str) -> None:
    """Where a row stands in a push, and what stands beside it, does not change its bytes."""
    keys = some_keys(1000)
    rng = np.random.default_rng(5)
    tables = [table_of(keys) for _ in range(3)]
    updater = updater_of(rule, l1=0.1, momentum=MOMENTA.get(rule, 0.0))
    for _ in range(3):
        gradients = rng.normal(size=len(keys)).astype(np.float32)
        (whole, slots), (pieces, _), (mixed, _) = tables
        push(updater, whole, slots, gradients)
        for part in np.array_split(np.arange(len(keys)), 7):
            push(updater, pieces, slots[part], gradients[part])
        order = rng.permutation(len(keys))
        push(updater, mixed, slots[order], gradients[order])
        np.testing.assert_array_equal(image(pieces), image(whole))
        np.testing.assert_array_equal(image(mixed), image(whole))


def test_counts_add_up_and_stop_at_the_top() -> None:
    keys = some_keys(3)
    table, slots = table_of(keys)
    updater = updater_of("ftrl")
    nothing = np.zeros(3, np.float32)
    for _ in range(3):
        push(updater, table, slots, nothing, minute=9, counts=np.array([0, 7, 1 << 31], np.uint32))
    assert table.rows_at(slots)[:, 2].tolist() == [
        9 << 32,
        9 << 32 | 21,
        9 << 32 | 0xFFFFFFFF,
    ]
    push(updater, table, slots, nothing, minute=0xFFFFFFFF)
    assert (table.rows_at(slots)[:, 2] >> np.uint64(32) == 0xFFFFFFFF).all()
    assert (table.rows_at(slots)[:, 2] & np.uint64(0xFFFFFFFF)).tolist() == [0, 21, 0xFFFFFFFF]


# --- what the equations mean


@pytest.mark.parametrize("z", [-3.0, -0.5, 0.2, 2.0])
def test_ftrls_weight_is_the_least_of_its_regularised_objective(z: float) -> None:
    """Minimise z w + l1 |w| + ((beta + sqrt(n)) / alpha + l2) w^2 / 2."""
    alpha, beta, l1, l2, n = 0.3, 0.7, 0.4, 0.2, 2.5
    table, slots = table_of(some_keys(1))
    row = np.array([z, n], np.float32).view(np.uint64)
    table.words[slots[0] * 4 + 1] = row[0]
    updater = updater_of("ftrl", alpha=alpha, beta=beta, l1=l1, l2=l2)
    w = float(values(updater, table, slots, False)[0])

    def objective(at: float) -> float:
        return z * at + l1 * abs(at) + ((beta + n**0.5) / alpha + l2) * at * at / 2

    for step in (1e-3, 0.1, 1.0):
        assert objective(w + step) > objective(w)
        assert objective(w - step) > objective(w)


@pytest.mark.parametrize("rule", ["adagrad", "sgd", "adam"])
def test_a_step_goes_down_the_gradient_of_the_regularised_objective(rule: str) -> None:
    """Without L1: (w - w') / r is the finite difference of g w + l2 w^2 / 2 where r is the rate."""
    w, g, l2, alpha = 0.6, -0.35, 0.5, 0.01
    table, slots = table_of(some_keys(1))
    table.words[slots[0] * 4 + 1] = np.array([w, 0], np.float32).view(np.uint64)[0]
    updater = updater_of(rule, alpha=alpha, beta=1.0, l1=0.0, l2=l2)
    push(updater, table, slots, np.array([g], np.float32))
    moved = w - float(values(updater, table, slots, False)[0])
    step = 1e-5
    difference = (
        (g * (w + step) + l2 * (w + step) ** 2 / 2) - (g * (w - step) + l2 * (w - step) ** 2 / 2)
    ) / (2 * step)
    rate = alpha if rule == "sgd" else alpha / (1 + abs(g))
    assert moved / rate == pytest.approx(difference, rel=1e-4)


@pytest.mark.parametrize("rule", ["adagrad", "sgd"])
def test_l1_is_applied_as_a_proximal_step(rule: str) -> None:
    """The new weight is the least of (w - v)^2 / (2 r) + l1 |w|, v the weight without L1."""
    w, g, l1, alpha = 0.02, 0.5, 0.3, 0.1
    new = {}
    for penalty in (0.0, l1):
        table, slots = table_of(some_keys(1))
        table.words[slots[0] * 4 + 1] = np.array([w, 0], np.float32).view(np.uint64)[0]
        updater = updater_of(rule, alpha=alpha, beta=1.0, l1=penalty)
        push(updater, table, slots, np.array([g], np.float32))
        new[penalty] = float(values(updater, table, slots, False)[0])
    rate = alpha if rule == "sgd" else alpha / (1 + g)

    def objective(at: float) -> float:
        return (at - new[0.0]) ** 2 / (2 * rate) + l1 * abs(at)

    for step in (1e-4, 1e-2, 0.5):
        assert objective(new[l1]) < objective(new[l1] + step)
        assert objective(new[l1]) < objective(new[l1] - step)


# --- determinism


@pytest.mark.parametrize("rule", list(RULES))
def test_a_push_while_a_cut_is_open_gives_the_same_and_the_cut_stays_as_it_was(rule: str) -> None:
    keys = some_keys(900)
    rng = np.random.default_rng(6)
    (table, slots), (other, _) = table_of(keys), table_of(keys)
    updater = updater_of(rule, l1=0.1, momentum=MOMENTA.get(rule, 0.0))
    before = image(table)
    cut = Cut(table)
    for step in range(5):
        gradients = rng.normal(size=len(keys)).astype(np.float32)
        updater.push(table, slots, gradients, None, step, True, cut)
        updater.push(other, slots, gradients, None, step, True, Nothing())
        more = some_keys(50, seed=100 + step)
        for one, keeper in ((table, cut), (other, Nothing())):
            found = one.find(more)
            one.insert(more, found, keeper)
    part = cut.take()
    assert part is not None
    assert cut.take() is None
    np.testing.assert_array_equal(part[1], before)
    np.testing.assert_array_equal(
        table.words[: table.region(0)[1] * 4], other.words[: other.region(0)[1] * 4]
    )
