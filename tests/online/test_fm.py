"""Factorization machines: however they are learned, they are the slow twin's."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from streamlearn.compute.kernels.rules import v_rates_of
from streamlearn.config import FmConfig
from streamlearn.online.minibatch import Minibatch
from streamlearn.shards.arena import Arena
from streamlearn.shards.cut import Nothing
from streamlearn.shards.hashed import HashedTable
from streamlearn.shards.table import ExactTable
from tests.reference.embeddings import adagrad, as_bytes, check_arena, drawn
from tests.reference.fm import Row
from tests.reference.fm_runs import (
    Bounded,
    Embedded,
    Laned,
    Sharded,
    some_examples,
    vocabulary,
)
from tests.reference.tables import Learning, image, minibatch

EMBEDDINGS: dict[str, Any] = {"v_lr": 0.05, "v_init_scale": 0.3, "alpha": 0.2, "l1": 0.05}
MODELS = {
    "pairs": FmConfig(dim=5, threshold=2, **EMBEDDINGS),
    "pairs of 16": FmConfig(dim=16, threshold=0, v_l2=0.05, l2=0.1, **EMBEDDINGS),
    "triples": FmConfig(order=3, dim=16, threshold=1, **EMBEDDINGS),
    "triples of 5": FmConfig(order=3, dim=5, threshold=1, intercept=False, **EMBEDDINGS),
    "tiers in one block": FmConfig(
        order=3, dim_by_count={"0": 3, "3": 5, "8": 7}, **EMBEDDINGS
    ),
    "tiers of several blocks": FmConfig(dim_by_count={"0": 3, "3": 11, "8": 20}, **EMBEDDINGS),
    "tiers of whole blocks": FmConfig(dim_by_count={"1": 16, "6": 32}, **EMBEDDINGS),
    "left out": FmConfig(dim=4, threshold=0, **EMBEDDINGS | {"l1": 0.7}),
    "never left out": FmConfig(dim=4, threshold=0, l1_shrk=False, **EMBEDDINGS | {"l1": 0.7}),
    "clipped": FmConfig(order=3, dim=4, threshold=0, v_clip=0.02, **EMBEDDINGS),
    "dropped out": FmConfig(order=3, dim=4, threshold=0, v_dropout=0.4, **EMBEDDINGS),
    "normalised": FmConfig(order=3, dim=4, threshold=0, v_normalize=True, **EMBEDDINGS),
    "treated": FmConfig(
        order=3, dim_by_count={"0": 3, "5": 10}, v_clip=0.05, v_dropout=0.3, v_normalize=True,
        **EMBEDDINGS,
    ),
}  # fmt: skip
WAYS = {"embedded": Embedded, "sharded": Sharded, "lanes": Laned}


@pytest.mark.parametrize("values", [False, True], ids=["ones", "values"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_examples_one_by_one_are_the_twins(name: str, way: str, values: bool) -> None:
    config = MODELS[name]
    ours = WAYS[way](config)
    twin = Bounded(config, ours.step_error)
    sizes = set()
    for i, batch in enumerate(some_examples(90, 1, values=values)):
        counts = i < 70  # then a second pass
        keys = batch.keys[: batch.nnz].tolist()
        if config.v_normalize and sum(twin.used(key) > 0 for key in keys) == 1:
            continue  # a gradient of zero has no direction
        kept = ours.masks(twin, keys) if config.v_dropout else None
        error = twin.score_off_by(
            keys, np.ones(len(keys)) if not values else batch.values[: len(keys)].astype(float)
        )
        score = float(ours.learn(batch, counts=counts)[0])
        expected = twin.learn_one(keys, batch, counts=counts, kept=kept)
        assert score == pytest.approx(expected, rel=0, abs=error)
        sizes.add(round(abs(expected), 1))
    assert len(sizes) > 4
    state, embeddings = ours.state(), ours.embeddings()
    assert state.keys() == twin.rows.keys()
    for key, row in twin.rows.items():
        z, n, count = state[key]
        assert count == row.count
        # z and n move by at most a gradient each time: as far off as all scores before it
        assert (z, n) == pytest.approx(
            (row.z, row.n), rel=90 * 2.0**-22, abs=90 * twin.weight_off_by()
        )
        assert (key in embeddings) == (row.dim > 0)
        if row.dim:
            error = twin.off_by(key)
            np.testing.assert_allclose(embeddings[key].V, row.V, rtol=0, atol=error)
            # m sums g^2, and V moves by at least v_lr g / (beta + sqrt(m))
            np.testing.assert_allclose(embeddings[key].m, row.m, rtol=0.01, atol=1e-5 + 90 * error)
    assert any(row.dim for row in twin.rows.values())
    check_arena(ours.table)


@pytest.mark.parametrize(
    ("way", "order"),
    [("embedded", 2), ("embedded", 3), ("sharded", 2), ("sharded", 3), ("lanes", 3)],
)
def test_a_gradient_of_zero_has_no_direction(way: str, order: int) -> None:
    settings = EMBEDDINGS | {"order": order, "v_l2": 0.0, "v_normalize": True}
    ours = WAYS[way](FmConfig(dim=16, threshold=0, **settings))
    alone = minibatch([[777]], [1.0], values=[[1.3]])
    ours.learn(alone)
    before = as_bytes(ours.embeddings())
    assert before
    ours.learn(alone)
    assert as_bytes(ours.embeddings()) == before


@pytest.mark.parametrize("name", MODELS)
def test_a_model_whose_rows_were_found_before_is_the_same_to_a_bit(name: str) -> None:
    exact, resolved = Embedded(MODELS[name]), Embedded(MODELS[name], resolved=True)
    for seed in range(4):
        examples = some_examples(30, seed, values=bool(seed % 2))
        rows = [batch.keys[: batch.nnz].tolist() for batch in examples]
        labels = [float(batch.labels[0]) for batch in examples]
        x = [batch.values[: batch.nnz] for batch in examples] if seed % 2 else None
        batch = minibatch(rows, labels, values=x)
        assert exact.learn(batch).tolist() == resolved.learn(batch).tolist()
    assert exact.state() == resolved.state()
    assert as_bytes(exact.embeddings()) == as_bytes(resolved.embeddings())
    np.testing.assert_array_equal(exact.table.intercept, resolved.table.intercept)


@pytest.mark.parametrize("name", MODELS)
def test_where_minibatches_end_changes_nothing_on_a_local_table(name: str) -> None:
    examples = some_examples(40, 3, values=False)
    rows = [batch.keys[: batch.nnz].tolist() for batch in examples]
    labels = [float(batch.labels[0]) for batch in examples]
    whole, cut = Embedded(MODELS[name]), Embedded(MODELS[name])
    scores = whole.learn(minibatch(rows, labels)).tolist()
    parts = [cut.learn(minibatch([r], [y])).tolist() for r, y in zip(rows, labels, strict=True)]
    assert scores == [score for part in parts for score in part]
    assert as_bytes(whole.embeddings()) == as_bytes(cut.embeddings())


@pytest.mark.parametrize("name", MODELS)
def test_lanes_and_shards_are_the_same_to_a_bit(name: str) -> None:
    lanes, shards = Laned(MODELS[name]), Sharded(MODELS[name])
    for seed in range(3):
        examples = some_examples(40, seed, values=False)
        rows = [batch.keys[: batch.nnz].tolist() for batch in examples]
        batch = minibatch(rows, [float(one.labels[0]) for one in examples])
        assert lanes.learn(batch).tolist() == shards.learn(batch).tolist()
    assert lanes.state() == shards.state()
    assert as_bytes(lanes.embeddings()) == as_bytes(shards.embeddings())


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("l1", [0.05, 0.7])
def test_every_hashed_row_has_an_embedding_from_the_beginning(order: int, l1: float) -> None:
    config = FmConfig(order=order, dim=5, **EMBEDDINGS | {"l1": l1})
    bits = 16
    table = HashedTable(bits, config.tiers, l1_shrk=config.l1_shrk)
    learning = Learning(table, config)
    twin = Bounded(config, Embedded.step_error)
    keys = vocabulary(20)
    slots = {key: key >> 64 - bits for key in keys}
    assert len(set(slots.values())) == len(keys)
    for key, slot in slots.items():
        V = drawn(slot, order - 1, 0, 5, 0.3).astype(float)
        twin.rows[key] = Row(0.0, 0.0, 0, V, np.zeros(V.shape))
    used = set()
    for batch in some_examples(80, 2, values=False):
        chosen = batch.keys[: batch.nnz].tolist()
        foreseen = float(learning.score(batch)[0])
        error = twin.score_off_by(chosen, np.ones(len(chosen)))
        score = float(learning.learn(batch)[0])
        assert score == foreseen
        assert score == pytest.approx(twin.learn_one(chosen, batch), rel=0, abs=error)
        used |= {key for key in chosen if twin.used(key)}
    found = table.vectors.geometry.all_coordinates(table.vectors_at(np.arange(1 << bits)))
    drawn_at = {slots[key] for key in used}
    assert len(drawn_at) > 5
    for key in used:
        V = found[slots[key]].reshape(order - 1, 5)
        np.testing.assert_allclose(V, twin.rows[key].V, rtol=0, atol=twin.off_by(key))
    # those whose weight has not left zero are not drawn yet
    assert set(np.flatnonzero(found.any(axis=1)).tolist()) == drawn_at


@pytest.mark.parametrize("name", ["pairs", "triples", "tiers in one block"])
def test_scoring_changes_nothing_and_is_what_learning_scores(name: str) -> None:
    ours = Embedded(MODELS[name])
    for batch in some_examples(60, 5, values=True):
        ours.learn(batch)
    before, vectors = image(ours.table), as_bytes(ours.embeddings())
    unknown = minibatch([[0x7777777777777777], []], values=[[1.0], []])
    a, b = ours.learning.score(unknown).tolist()
    assert a == b == pytest.approx(ours.learning.solver.intercept, rel=1e-6)
    for batch in some_examples(10, 6, values=True):
        score = ours.learning.score(batch)
        np.testing.assert_array_equal(image(ours.table), before)
        copy = Embedded(MODELS[name])
        copy.table.insert_rows(*taken(ours))
        copy.table.intercept[:] = ours.table.intercept
        np.testing.assert_allclose(copy.learn(batch), score, rtol=0, atol=1e-5)
    assert as_bytes(ours.embeddings()) == vectors


def taken(ours: Embedded) -> tuple[Any, Any]:
    rows = image(ours.table)
    vectors = ours.table.arena.take(rows)
    return rows, vectors


def trained(way: str, name: str) -> Any:
    ours = WAYS[way](MODELS[name])
    for batch in some_examples(80, 4, values=True):
        ours.learn(batch)
    return ours


def dropped(ours: Any) -> int:
    return int(ours.learning.scratch.state[4]) if isinstance(ours, Embedded) else ours.dropped


@pytest.mark.parametrize("huge", [1e30, 3e38, -3e38])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["pairs", "triples", "tiers of several blocks", "treated"])
def test_an_example_whose_score_is_not_finite_teaches_nothing_and_is_counted(
    name: str, way: str, huge: float
) -> None:
    ours = trained(way, name)
    held = ours.embeddings()
    keys = [key for key in vocabulary(20) if key in held][:3]
    assert len(keys) == 3
    state, vectors = ours.state(), as_bytes(held)
    intercept = ours.table.intercept.copy()
    batch = minibatch([keys], [1.0], values=[[huge, huge, -huge]])
    score = float(ours.learn(batch, counts=False)[0])
    assert np.isfinite(score)
    assert dropped(ours) == 1
    assert ours.state() == state
    if not isinstance(ours, Embedded):  # the shard sees a gradient of zero, and its penalty
        rates = v_rates_of(*MODELS[name].v_rates)
        for key in keys:
            held[key] = adagrad(held[key], np.zeros_like(held[key].V), rates)
        vectors = as_bytes(held)
    assert as_bytes(ours.embeddings()) == vectors
    np.testing.assert_array_equal(ours.table.intercept, intercept)
    ours.learn(minibatch([keys], [1.0], values=[[1.0, 1.0, 1.0]]))
    assert dropped(ours) == 1
    assert as_bytes(ours.embeddings()) != vectors


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["pairs", "triples", "treated"])
def test_huge_values_and_weights_leave_numbers(name: str, way: str) -> None:
    ours = trained(way, name)
    rng = np.random.default_rng(1)
    keys = vocabulary(20)
    for _ in range(60):
        chosen = rng.choice(np.array(keys, np.uint64), 4, replace=False)
        x = [10.0 ** rng.uniform(-30, 38, 4) * rng.choice([-1, 1], 4)]
        weight = [float(10.0 ** rng.uniform(-30, 38))]
        batch = minibatch([chosen], [float(rng.integers(2))], weight, x)
        assert np.isfinite(ours.learn(batch)).all()
    assert np.isfinite(list(ours.state().values())).all()
    for one in ours.embeddings().values():
        assert np.isfinite(one.V).all()
        assert np.isfinite(one.m).all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_a_later_pass_raises_no_counts(name: str, way: str) -> None:
    ours = WAYS[way](MODELS[name])
    examples = some_examples(50, 7, values=False)
    for batch in examples:
        ours.learn(batch)
    counts = {key: numbers[2] for key, numbers in ours.state().items()}
    before = ours.state()
    for batch in examples:
        ours.learn(batch, counts=False)
    assert {key: numbers[2] for key, numbers in ours.state().items()} == counts
    assert ours.state() != before


@pytest.mark.parametrize("name", ["pairs", "tiers of several blocks"])
def test_what_is_shorter_than_a_block_stays_clear_behind_its_end(name: str) -> None:
    ours = Embedded(MODELS[name])
    for batch in some_examples(60, 8, values=False):
        ours.learn(batch)
        check_arena(ours.table)
        ours.embeddings()  # asserts it


def test_an_arena_at_its_limit_admits_no_more_and_learns_on() -> None:
    config = MODELS["pairs"]
    table = ExactTable(100_000)
    arena = Arena.of(table, config, 3 * 64)
    learning = Learning(table, config)
    for batch in some_examples(80, 1, values=False):
        assert np.isfinite(learning.learn(batch)).all()
    assert arena.nbytes == 3 * 64
    assert arena.refused > 10
    check_arena(table)


def interactions(seed: int, count: int) -> tuple[list[Minibatch], np.ndarray]:
    """Return minibatches of 100 examples whose labels follow from pairs alone."""
    rng = np.random.default_rng(seed)
    keys = np.array(vocabulary(40), np.uint64)
    signs = np.random.default_rng(99).choice([-1.0, 1.0], (20, 20))
    batches, labels = [], []
    for _ in range(count):
        a, b = rng.integers(0, 20, (2, 100))
        y = (rng.random(100) < 1 / (1 + np.exp(-3 * signs[a, b]))).astype(float)
        batches.append(minibatch(np.stack([keys[a], keys[b + 20]], axis=1), y.tolist()))
        labels.append(y)
    return batches, np.concatenate(labels)


def test_lanes_without_locks_learn_about_the_same() -> None:
    config = FmConfig(
        dim_by_count={"5": 4, "50": 8}, alpha=0.1, l1=0.0, v_lr=0.2, v_l2=0.0, v_init_scale=0.3
    )
    train, _ = interactions(1, 160)
    test, labels = interactions(2, 20)
    losses = []
    for lanes in (1, 4):
        table = ExactTable(100_000)
        Arena.of(table, config, 1 << 40)
        runs = [Learning(table, config, shared=lanes > 1) for _ in range(lanes)]

        def learn(run: Learning, own: list[Minibatch]) -> None:
            for batch in own:
                run.solver.learn(batch, run.scratch, Nothing(), 1)

        threads = [
            threading.Thread(target=learn, args=(run, train[i::lanes]))
            for i, run in enumerate(runs)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        scores = np.concatenate([runs[0].score(batch) for batch in test])
        losses.append(float(np.logaddexp(0, np.where(labels == 1, -scores, scores)).mean()))
        assert table.features == 40
        assert (table.arena.live > 0).any()
        assert table.arena.refused == 0
    best, constant = 0.191, np.log(2)  # of sigmoid(3) itself; of what weights alone can say
    assert best < losses[0] < (best + constant) / 2
    assert losses[1] == pytest.approx(losses[0], abs=0.05)
