"""Matrix factorization: what a table learns from a stream of ratings is the slow twin's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from streamlearn.compute.kernels.factors import ITEM, NO_NUMBER
from streamlearn.config import MfConfig
from streamlearn.errors import TableFullError
from streamlearn.messages import F32, U64
from streamlearn.online.mf import Learned, MfSolver, numbers_of, scored
from streamlearn.online.minibatch import Minibatch
from streamlearn.shards.arena import Arena
from streamlearn.shards.cut import Cut, Nothing
from streamlearn.shards.table import ExactTable
from tests.reference.embeddings import check_arena
from tests.reference.mf import MfTwin
from tests.reference.tables import minibatch

MODELS: dict[str, MfConfig] = {
    "one line": MfConfig(dim=16),
    "part of a line": MfConfig(dim=5, alpha=0.1, l2=0.1),
    "several lines": MfConfig(dim=40, decay=0.3),
    "no b_0": MfConfig(dim=8, intercept=False),
    "no penalty": MfConfig(dim=8, l2=0.0),
    "large beginnings": MfConfig(dim=8, init_scale=0.5),
    "clicks": MfConfig(dim=8, loss="logistic", alpha=0.2),
}
NOTHING = Nothing()


def table_of(config: MfConfig, features_max: int = 100_000, **options: Any) -> ExactTable:
    table = ExactTable(features_max, **options)
    Arena.of(table, config, 1 << 28)
    return table


def some_keys(count: int, seed: int) -> U64:
    rng = np.random.default_rng(seed)
    return rng.integers(1, 1 << 63, count, dtype=np.uint64) << np.uint64(1) | np.uint64(1)


def some_ratings(
    rows: int, seed: int, users: int = 30, items: int = 12, *, clicks: bool = False
) -> tuple[U64, F32]:
    """Return pairs of keys and ratings that have something to learn in them."""
    rng = np.random.default_rng(seed)
    keys = np.concatenate([some_keys(users, 1), some_keys(items, 2)])
    truth = np.random.default_rng(3).normal(size=(len(keys), 3))
    u, i = rng.integers(0, users, rows), rng.integers(0, items, rows) + users
    ratings = 3.5 + np.einsum("nd,nd->n", truth[u], truth[i]) / 3 + rng.normal(0, 0.2, rows)
    if clicks:
        ratings = (ratings > 3.5).astype(float)
    return np.stack([keys[u], keys[i]], axis=1), ratings.astype(np.float32)


def batch_of(keys: U64, ratings: F32, weights: Any = None) -> Minibatch:
    return minibatch([*keys], ratings.tolist(), weights)


class Ours:
    """A solver on a table of its own."""

    def __init__(self, config: MfConfig, **options: Any) -> None:
        self.table = table_of(config, **options)
        self.solver = MfSolver(config, self.table)

    def learn(self, batch: Minibatch, keeper: Any = NOTHING, tick: int = 1) -> F32:
        scratch = self.solver.scratch(batch.rows_max, batch.nnz)
        return self.solver.learn(batch, scratch, keeper, tick).copy()

    def row(self, key: int) -> tuple[float, F32]:
        keys = np.array([key], np.uint64)
        (slot,) = self.table.find(keys)
        assert slot >= 0
        assert self.table.arena is not None
        bias = self.solver.weights(self.table.rows_at(np.array([slot]))[:, 1])[0]
        return float(bias), self.table.arena.coordinates_at(np.array([slot]))[0]


def assert_same(ours: Ours, twin: MfTwin, within: float) -> None:
    for key, row in twin.rows.items():
        bias, factors = ours.row(key)
        assert bias == pytest.approx(row.bias, abs=within)
        assert factors == pytest.approx(row.factors, abs=within)


@pytest.mark.parametrize("name", MODELS)
def test_ratings_are_learned_as_by_the_twin(name: str) -> None:
    config = MODELS[name]
    clicks = config.loss == "logistic"
    ours, twin = Ours(config), MfTwin(config)
    for size, seed in ((1, 0), (40, 1), (7, 2), (150, 3), (300, 4)):
        keys, ratings = some_ratings(size, seed, clicks=clicks)
        weights = np.random.default_rng(seed).uniform(0.5, 2, size).astype(np.float32)
        scores = ours.learn(batch_of(keys, ratings, weights.tolist()))
        expected = [
            twin.learn_one(int(u), int(i), float(r), float(w))
            for (u, i), r, w in zip(keys, ratings, weights, strict=True)
        ]
        twin.end_minibatch()
        assert scores == pytest.approx(expected, abs=2e-4)
        assert ours.solver.intercept == pytest.approx(twin.baseline, abs=1e-4)
    assert np.std(expected) > 0.1
    assert_same(ours, twin, 2e-4)
    assert ours.table.arena is not None
    check_arena(ours.table)


def test_minibatches_do_not_matter_but_for_the_mean() -> None:
    config = MfConfig(dim=8, intercept=False)
    keys, ratings = some_ratings(200, 5)
    whole, pieces = Ours(config), Ours(config)
    first = whole.learn(batch_of(keys, ratings))
    second = np.concatenate(
        [pieces.learn(batch_of(keys[i : i + 13], ratings[i : i + 13])) for i in range(0, 200, 13)]
    )
    assert first.tobytes() == second.tobytes()


def test_rows_found_ahead_change_nothing() -> None:
    config = MODELS["one line"]
    ours, ahead = Ours(config), Ours(config)
    for seed in range(3):
        keys, ratings = some_ratings(60, seed)
        one, other = batch_of(keys, ratings), batch_of(keys, ratings)
        expected = ours.learn(one)
        order = np.unique(other.keys[: other.nnz])
        slots = ahead.table.find(order)
        ahead.table.insert(order, slots, NOTHING)
        found = ahead.table.find(other.keys[: other.nnz]).astype(np.uint32)
        scratch = ahead.solver.scratch(other.rows_max, other.nnz)
        scores = ahead.solver.learn_resolved(other, found, scratch, NOTHING, 1)
        assert scores.tobytes() == expected.tobytes()
    for key in np.unique(keys):
        bias, factors = ours.row(int(key))
        assert ahead.row(int(key))[0] == bias
        assert ahead.row(int(key))[1].tobytes() == factors.tobytes()


def test_scoring_knows_of_strangers_only_what_there_is() -> None:
    config = MODELS["one line"]
    ours, twin = Ours(config), MfTwin(config)
    keys, ratings = some_ratings(300, 1)
    ours.learn(batch_of(keys, ratings))
    for (u, i), r in zip(keys, ratings, strict=True):
        twin.learn_one(int(u), int(i), float(r))
    twin.end_minibatch()
    user, item = int(keys[0, 0]), int(keys[0, 1])
    stranger = int(some_keys(1, 99)[0])
    pairs = [(user, item), (user, stranger), (stranger, item), (stranger, stranger + 2)]
    expected = [twin.score(*pair) for pair in pairs]
    scores = scored(ours.solver, np.array(pairs, np.uint64))
    assert scores == pytest.approx(expected, abs=2e-4)
    assert scores[3] == pytest.approx(ours.solver.intercept)
    assert ours.table.find(np.array([stranger], np.uint64))[0] == -1


def test_held_out_ratings_teach_nothing() -> None:
    config = MfConfig(dim=8, held_out=0.3)
    ours, told = Ours(config), []
    ours.solver.recorder = lambda learned: told.append(
        Learned(*(np.array(column) for column in learned))
    )
    keys, ratings = some_ratings(400, 1)
    weights = np.full(len(ratings), 2.0)
    batch = batch_of(keys, ratings, weights.tolist())
    scores = ours.learn(batch)
    (learned,) = told
    held = learned.held.astype(bool)
    assert 0.2 < held.mean() < 0.4
    assert (batch.weights[: batch.rows] == np.where(held, 0, 2)).all()
    assert (learned.weights == 2).all()
    assert (learned.pairs[held] == NO_NUMBER).all()
    assert (learned.pairs[~held] < 30).all()
    twin = MfTwin(config)
    expected = []
    for (u, i), r, out in zip(keys, ratings, held, strict=True):
        if out:
            expected.append(twin.score(int(u), int(i)))
        else:
            expected.append(twin.learn_one(int(u), int(i), float(r), 2.0))
    assert scores[~held] == pytest.approx(np.array(expected)[~held], abs=2e-4)
    assert_same(ours, twin, 2e-4)
    again = Ours(config)
    again.learn(batch_of(keys[::-1], ratings[::-1]))
    looked_up, unknown = again.solver.look_up(batch, again.solver.scratch(batch.rows, 0))
    assert (looked_up.held == learned.held).all()  # by the pair alone
    assert unknown == 0


def test_users_and_items_are_numbered_as_they_come() -> None:
    config = MODELS["one line"]
    ours, told = Ours(config), []
    ours.solver.recorder = lambda learned: told.append(learned.pairs.copy())
    keys, ratings = some_ratings(100, 1)
    for part in (slice(0, 40), slice(40, 100)):
        ours.learn(batch_of(keys[part], ratings[part]))
    pairs = np.concatenate(told)
    for column in (0, 1):
        met = list(dict.fromkeys(keys[:, column].tolist()))
        assert pairs[:, column].tolist() == [met.index(key) for key in keys[:, column].tolist()]
        slots = ours.table.find(np.array(met, np.uint64))
        numbers = numbers_of(ours.table.rows_at(slots)[:, 1])
        kind = ITEM if column else np.uint32(0)
        assert (numbers == (np.arange(len(met)) + 1).astype(np.uint32) | kind).all()
    learned, unknown = ours.solver.look_up(
        batch_of(keys, ratings), ours.solver.scratch(len(keys), 0)
    )
    assert (learned.pairs == pairs).all()
    assert unknown == 0
    stranger = keys[:1].copy()
    stranger[0, 1] += np.uint64(2)
    _, unknown = ours.solver.look_up(batch_of(stranger, ratings[:1]), ours.solver.scratch(1, 0))
    assert unknown == 1


def test_numbers_go_on_with_a_table_that_was_loaded() -> None:
    config = MODELS["one line"]
    ours = Ours(config)
    keys, ratings = some_ratings(80, 1)
    ours.learn(batch_of(keys, ratings))
    other = Ours(config)
    for segment in ours.table.key_order():
        rows = ours.table.rows(segment)
        assert ours.table.arena is not None
        vectors = ours.table.arena.take(rows)
        other.table.insert_rows(rows, vectors)
    other.table.intercept[:] = ours.table.intercept
    more, further = some_ratings(80, 2, users=50, items=20)
    assert (
        other.learn(batch_of(more, further)).tobytes()
        == ours.learn(batch_of(more, further)).tobytes()
    )
    for key in np.unique(more):
        slots = [one.table.find(np.array([key], np.uint64)) for one in (ours, other)]
        words = [
            one.table.rows_at(slot)[0, 1] for one, slot in zip((ours, other), slots, strict=True)
        ]
        assert words[0] == words[1]


def test_counts_are_raised_in_the_first_pass_only() -> None:
    ours = Ours(MODELS["one line"])
    keys, ratings = some_ratings(50, 1)
    ours.learn(batch_of(keys, ratings), tick=7)
    ours.solver.counting = False
    ours.learn(batch_of(keys, ratings), tick=9)
    met, counts = np.unique(keys, return_counts=True)
    rows = ours.table.rows_at(ours.table.find(met))
    assert (rows[:, 2] & np.uint64(0xFFFFFFFF)).tolist() == counts.tolist()
    assert (rows[:, 2] >> np.uint64(32) == 9).all()


def test_negatives_push_other_items_down() -> None:
    config = MfConfig(dim=8, loss="logistic", negatives=3, alpha=0.1)
    ours = Ours(config)
    rng = np.random.default_rng(0)
    users, items = some_keys(40, 1), some_keys(20, 2)
    own = rng.integers(0, 2, 40)  # each user likes the items of one half
    for seed in range(60):
        rng = np.random.default_rng(seed)
        u = rng.integers(0, 40, 100)
        i = rng.integers(0, 10, 100) + 10 * own[u]
        keys = np.stack([users[u], items[i]], axis=1)
        ours.learn(batch_of(keys, np.ones(100, np.float32)))
    u, i = np.divmod(np.arange(40 * 20), 20)
    scores = scored(ours.solver, np.stack([users[u], items[i]], axis=1))
    liked = i // 10 == own[u]
    assert scores[liked].mean() > scores[~liked].mean() + 1.5
    # one in four is met for 1, the rest for 0
    assert 0.2 < float(ours.table.intercept[0]) < 0.3


def test_a_cut_keeps_what_was() -> None:
    config = MODELS["several lines"]
    ours, still = Ours(config), Ours(config)
    keys, ratings = some_ratings(120, 1)
    for one in (ours, still):
        one.learn(batch_of(keys, ratings))
    cut = Cut(ours.table)
    more, further = some_ratings(120, 2, users=60, items=30)
    plain = still.learn(batch_of(more, further))
    assert ours.learn(batch_of(more, further), cut).tobytes() == plain.tobytes()
    whole = Ours(config)
    while (part := cut.take()) is not None:
        whole.table.insert_rows(part.rows, part.vectors)
    cut.close()
    before = Ours(config)
    before.learn(batch_of(keys, ratings))
    assert whole.table.features == before.table.features
    for key in np.unique(keys):
        assert whole.row(int(key))[0] == before.row(int(key))[0]
        assert whole.row(int(key))[1].tobytes() == before.row(int(key))[1].tobytes()


def test_a_table_that_grows_learns_the_same() -> None:
    config = MfConfig(dim=16, intercept=False)
    rows = 9000
    rng = np.random.default_rng(0)
    keys = np.stack([some_keys(rows, 1), some_keys(500, 2)[rng.integers(0, 500, rows)]], axis=1)
    ratings = rng.uniform(1, 5, rows).astype(np.float32)
    ours, twin = Ours(config), MfTwin(config)
    scores = ours.learn(batch_of(keys, ratings))
    assert ours.table.growths > 0
    some = slice(0, 300)
    expected = [
        twin.learn_one(int(u), int(i), float(r))
        for (u, i), r in zip(keys[some], ratings[some], strict=True)
    ]
    assert scores[some] == pytest.approx(expected, abs=2e-4)
    check_arena(ours.table)
    u, i = int(keys[-1, 0]), int(keys[-1, 1])
    assert np.isfinite(ours.row(u)[1]).all()
    assert np.isfinite(ours.row(i)[1]).all()


def test_a_full_table_says_how_far_it_came() -> None:
    ours = Ours(MODELS["one line"], features_max=40)
    keys, ratings = some_ratings(500, 1, users=200, items=100)
    batch = batch_of(keys, ratings)
    scratch = ours.solver.scratch(batch.rows_max, batch.nnz)
    with pytest.raises(TableFullError):
        ours.solver.learn(batch, scratch, NOTHING, 1)
    learned = int(scratch.state[0])
    assert len(np.unique(keys[:learned])) in (40, 41, 42)


def test_a_table_that_forgets_goes_on() -> None:
    ours = Ours(MODELS["one line"], features_max=60, when_full="evict")
    for seed in range(6):
        keys, ratings = some_ratings(200, seed, users=100, items=40)
        scores = ours.learn(batch_of(keys, ratings), tick=seed)
        assert np.isfinite(scores).all()
        assert ours.table.features <= 62
    assert ours.table.evicted > 0


def test_without_room_for_factors_biases_are_learned() -> None:
    config = MfConfig(dim=16)
    table = ExactTable(10_000)
    Arena.of(table, config, 64 * 5)  # five rows
    solver = MfSolver(config, table)
    keys, ratings = some_ratings(400, 1)
    batch = batch_of(keys, ratings)
    scores = solver.learn(batch, solver.scratch(batch.rows_max, batch.nnz), NOTHING, 1)
    assert table.arena is not None
    assert table.arena.refused > 0
    assert np.isfinite(scores).all()
    assert np.mean((scores[200:] - ratings[200:]) ** 2) < np.var(ratings) * 1.1


def test_ratings_without_a_finite_score_teach_nothing() -> None:
    ours = Ours(MfConfig(dim=8, alpha=1e30))
    keys, ratings = some_ratings(200, 1)
    batch = batch_of(keys, ratings)
    scratch = ours.solver.scratch(batch.rows_max, batch.nnz)
    scores = ours.solver.learn(batch, scratch, NOTHING, 1)
    assert np.isfinite(scores).all()
    assert scratch.state[4] > 0
