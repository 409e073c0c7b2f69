"""The table of rules, and what an updater refuses; equations are tested with the kernels."""

from __future__ import annotations

import numpy as np
import pytest

from streamlearn.compute.kernels.logistic import weights_of
from streamlearn.config import LrConfig
from streamlearn.errors import ConfigError
from streamlearn.online.logistic import RULES as EMBEDDED
from streamlearn.shards.cut import Nothing
from streamlearn.shards.rules import RULES, Updater, rates
from streamlearn.shards.table import ExactTable


def test_rules_have_numbers_of_their_own_and_those_of_the_embedded_kernels() -> None:
    own = [rule.number for rule in RULES.values() if rule.name != "difacto"]
    assert own == list(range(len(RULES) - 1))
    assert RULES["difacto"].number == RULES["ftrl"].number
    assert all(RULES[name].number == number for name, number in EMBEDDED.items())
    assert all(rule.name == name for name, rule in RULES.items())
    assert [name for name, rule in RULES.items() if rule.owns_arena_word] == ["adam"]


def test_rates_are_the_models_cut_to_what_float32_computes_with() -> None:
    model = LrConfig(alpha=0.5, beta=2.0, l1=3.0, l2=4.0)
    assert rates(model, 0.5, 0.25).tolist() == [0.5, 2, 3, 4, 2, 1, 0.5, 0.25]
    extreme = rates(LrConfig(alpha=1e-30, beta=0.0, l1=1e40, l2=1e40, intercept=False))
    assert np.isfinite(extreme).all()
    assert extreme[1] > 0
    assert extreme[5] == 0


@pytest.mark.parametrize(
    ("rule", "momentum", "memory", "message"),
    [
        ("ftlr", 0.0, 0.0, "rule 'ftlr' is none of ftrl, adagrad, sgd, adam, add"),
        ("sgd", 1.0, 0.0, r"momentum = 1 is not in \[0, 1\)"),
        ("adam", -0.1, 0.0, r"momentum = -0\.1 is not in \[0, 1\)"),
        ("adam", 0.9, 1.5, r"memory = 1\.5 is not in \[0, 1\)"),
        ("adam", np.nan, 0.0, r"momentum = nan is not in \[0, 1\)"),
    ],
)
def test_what_no_rule_can_compute_with_is_refused(
    rule: str, momentum: float, memory: float, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Updater(rule, rates(LrConfig(), momentum, memory))


def test_columns_of_the_wrong_length_are_refused() -> None:
    table, updater = ExactTable(1000), Updater.of(LrConfig())
    slots = np.full(3, -1)
    with pytest.raises(ValueError, match="out has 2 entries, slots has 3"):
        updater.values(table, slots, False, np.empty(2, np.float32))
    with pytest.raises(ValueError, match="gradients has 4 entries, slots has 3"):
        updater.push(table, slots, np.zeros(4, np.float32), None, 0, False, Nothing())
    with pytest.raises(ValueError, match="counts has 1 entries, slots has 3"):
        updater.push(
            table, slots, np.zeros(3, np.float32), np.zeros(1, np.uint32), 0, False, Nothing()
        )


@pytest.mark.parametrize("rule", ["ftrl", "adagrad", "sgd"])
def test_weights_are_those_that_the_embedded_model_derives(rule: str) -> None:
    model = LrConfig(rule=rule, alpha=0.3, l1=0.2, l2=0.1)
    rng = np.random.default_rng(0)
    rows = np.zeros((300, 4), np.uint64)
    rows[:, 0] = np.unique(rng.integers(0, 1 << 63, 300, np.uint64) << np.uint64(1)) | np.uint64(1)
    columns = np.stack([rng.normal(size=300), rng.exponential(size=300)], 1).astype(np.float32)
    rows[:, 1] = columns.reshape(-1).view(np.uint64)
    table = ExactTable(1000)
    table.insert_rows(rows)
    updater = Updater.of(model)
    found = updater.values(table, table.find(rows[:, 0]), False, np.empty(300, np.float32))
    expected = np.empty(300, np.float32)
    weights_of(np.ascontiguousarray(rows[:, 1]), RULES[rule].number, updater.rates, expected)
    np.testing.assert_array_equal(found, expected)
    first = updater.values(table, table.find(rows[:, 0]), True, np.empty(300, np.float32))
    np.testing.assert_array_equal(first[1:], expected[1:])
    if rule == "ftrl":
        z, n = columns[0].astype(float)
        assert first[0] == pytest.approx(-z / ((1 + n**0.5) / 0.3), rel=1e-5)


@pytest.mark.parametrize("rule", list(RULES))
def test_the_same_steps_give_the_same_bytes_whatever_was_pulled_in_between(rule: str) -> None:
    tables = [ExactTable(2000, "evict", prefixes=(0, 128)) for _ in range(2)]
    updater = Updater(rule, rates(LrConfig(l1=0.05), momentum=0.9))
    rng = np.random.default_rng(1)
    for step in range(60):
        keys = np.unique(rng.integers(0, 1 << 62, 90, np.uint64) << np.uint64(1) | np.uint64(1))
        keys = np.union1d(keys % np.uint64(1 << 20) | np.uint64(1), keys)
        gradients = rng.normal(size=len(keys)).astype(np.float32)
        for table, curious in zip(tables, (False, True), strict=True):
            slots = table.find(keys)
            generations = table.generations.copy()
            if curious:
                updater.values(table, slots, True, np.empty(len(keys), np.float32))
            table.refresh(keys, slots, generations)
            table.insert(keys, slots, Nothing())
            counts = np.ones(len(keys), np.uint32)
            updater.push(table, slots, gradients, counts, step, True, Nothing())
            if step % 5 == 0:
                table.expire(step, 30, 0, 16)
    np.testing.assert_array_equal(tables[0].words, tables[1].words)
