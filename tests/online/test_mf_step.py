"""A worker's step with matrix factorization: what one process learns, and what becomes of rows."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from streamlearn.config import MfConfig
from streamlearn.online.localized import INTERCEPT_KEY, Localized, Localizer
from streamlearn.online.steps import Gradients, MfStep, Values, new_step
from tests.reference.fm import WORD, v_init
from tests.reference.mf import MfTwin
from tests.reference.mf_runs import batch_of, ratings_of, some_batches, taught
from tests.reference.tables import minibatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from streamlearn.online.minibatch import Minibatch

DIM = 20  # not whole lines
MIX = 0x9E3779B97F4A7C15


def config(**more: Any) -> MfConfig:
    return MfConfig(**({"dim": DIM, "alpha": 0.05, "l2": 0.03} | more))


class Rows:
    """A shard that is a dictionary, and a worker.

    Attributes
    ----------
    rows : dict of int to list
        Bias and factors of each key.
    """

    def __init__(self, model: MfConfig, *, runs: int = 1, copies: int = 0) -> None:
        self.model = model
        self.step = MfStep(model, copies)
        self.rows: dict[int, list[Any]] = {}
        self.mean = np.float32(0)
        self.seen = 0
        self.runs = runs
        self.last: Gradients
        self.localized: Localized

    def localize(self, batch: Minibatch) -> Localized:
        self.localized = Localizer(batch.nnz_max).localize(
            batch, Localized(batch.nnz_max), intercept=self.step.intercept
        )
        return self.localized

    def values(self, keys: list[int], **more: Any) -> Values:
        weights = [self.mean if key == INTERCEPT_KEY else self._row(key)[0] for key in keys]
        held = [self._row(key)[1] for key in keys]
        edges = np.linspace(0, len(keys), self.runs + 1).astype(int)
        packed = [
            np.concatenate([np.zeros(0, np.float32), *held[a:b]])
            for a, b in itertools.pairwise(edges)
        ]
        dims = np.array([len(factors) for factors in held], np.int64)
        return Values(np.array(weights, np.float32), dims, packed, **more)

    def learn(
        self, batch: Minibatch, *, seed: int = 0, epoch: int = 0, values: Values | None = None
    ) -> NDArray[np.float32]:
        localized = self.localize(batch)
        values = values or self.values(localized.keys.tolist())
        scores = np.zeros(batch.rows, np.float32)
        self.last = self.step.step(batch, localized, values, scores, seed, epoch)
        self.apply(localized, self.last, epoch)
        return scores

    def apply(self, localized: Localized, told: Gradients, epoch: int = 0) -> None:
        """Do what a shard does with a push."""
        keys, bare = localized.keys.tolist(), int(self.step.intercept)
        assert told.dims is not None
        shares = told.shares.reshape(-1, 2).astype(np.float32) / np.float32(255)
        ends = np.cumsum(told.dims)
        if bare and epoch == 0:
            count = int(localized.counts[0])
            self.seen += count
            self.mean += np.float32(count / self.seen) * (128 * told.weights[0] - self.mean)
        for i, key in enumerate(keys[bare:], bare):
            row = self._row(key)
            dim = int(told.dims[i])
            if dim and not len(row[1]):
                scale = self.model.v_init_scale
                row[1] = np.array([v_init(key, 0, f, scale) for f in range(DIM)], np.float32)
            row[0] = shares[i, 0] * row[0] + told.weights[i]
            if dim:
                row[1] = shares[i, 1] * row[1] + told.vectors[ends[i] - dim : ends[i]]
            self.rows[key] = row

    def _row(self, key: int) -> list[Any]:
        return list(self.rows.get(key, [np.float32(0), np.zeros(0, np.float32)]))


def same(rows: Rows, twin: MfTwin, off: float = 2e-5) -> None:
    """Assert that the rows are those of a twin."""
    assert rows.rows.keys() == twin.rows.keys()
    for key, (bias, factors) in rows.rows.items():
        assert bias == pytest.approx(twin.rows[key].bias, abs=off)
        np.testing.assert_allclose(factors, twin.rows[key].factors, atol=off)
    if rows.step.intercept:
        assert (rows.mean, rows.seen) == (pytest.approx(twin.mean, abs=off), twin.count)


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("size", [5, 50])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_minibatches_are_learned_as_one_process_learns_them(
    loss: str, intercept: bool, size: int, runs: int
) -> None:
    model = config(loss=loss, intercept=intercept)
    rows, twin = Rows(model, runs=runs), MfTwin(model)
    assert isinstance(new_step(model), MfStep)
    assert rows.step.intercept == intercept
    for batch in some_batches(1, size, 200 // size, loss=loss):
        np.testing.assert_allclose(rows.learn(batch), taught(twin, batch), atol=2e-5)
    same(rows, twin)
    assert rows.last.dropped == 0


def test_further_passes_take_smaller_steps_and_leave_the_mean() -> None:
    model = config(decay=1.0)
    rows, twin = Rows(model), MfTwin(model)
    for epoch in range(3):
        for batch in some_batches(2, 30, 4):
            count, mean = twin.count, twin.mean
            found = rows.learn(batch, epoch=epoch)
            np.testing.assert_allclose(found, taught(twin, batch, epoch), atol=2e-5)
            if epoch:
                twin.count, twin.mean = count, mean
                assert rows.last.weights[0] == 0
    same(rows, twin)


def test_rows_that_no_shard_has_begin_with_what_they_will_have() -> None:
    model = config()
    rows = Rows(model)
    rows.learn(batch_of([(5, 9, 4.0, 0.0)]))  # without weight nothing moves
    assert rows.last.dims.tolist() == [0, DIM, DIM]
    for key in (5, 9):
        drawn = [v_init(key, 0, f, model.v_init_scale) for f in range(DIM)]
        np.testing.assert_allclose(rows.rows[key][1], np.array(drawn), rtol=0.002)


def test_rows_that_a_shard_had_no_room_for_teach_biases_alone() -> None:
    model = config()
    rows = Rows(model)
    batch = batch_of([(5, 9, 4.0, 1.0), (5, 11, 2.0, 1.0), (7, 9, 5.0, 1.0)])
    rows.localize(batch)
    rows.rows[9] = [np.float32(0.25), np.zeros(0, np.float32)]
    scores = rows.learn(batch)
    assert rows.last.dims.tolist() == [0, DIM, DIM, 0, DIM]
    assert len(rows.last.vectors) == 3 * DIM
    assert scores[0] == 0.25
    assert len(rows.rows[9][1]) == 0
    moved = rows.rows[9][0]
    assert moved != 0.25
    u, m = rows.rows[7][0], moved
    assert u > 0
    assert m > 0.25
    start = [v_init(7, 0, f, model.v_init_scale) for f in range(DIM)]
    np.testing.assert_allclose(rows.rows[7][1], start, rtol=0.01)


def drawn_items(seed: int, row: int, user: int, count: int, items: list[int]) -> list[int]:
    """Return the items that chance gives a rating."""
    dice = (seed + row) * MIX & WORD ^ user
    out = []
    for _ in range(count):
        dice = ((dice ^ dice >> 31) * MIX + 1) & WORD
        out.append(items[(dice >> 32) * len(items) >> 32])
    return out


def test_negatives_are_drawn_from_the_items_of_the_minibatch() -> None:
    model = config(loss="logistic", negatives=3)
    rows, twin = Rows(model), MfTwin(model)
    for seed, batch in enumerate(some_batches(3, 40, 5, loss="logistic"), 100):
        ratings = ratings_of(batch)
        items = list(dict.fromkeys(item for _, item, _, _ in ratings))
        negatives = [
            drawn_items(seed, r, user, 3, items) if rating > 0 else []
            for r, (user, _, rating, _) in enumerate(ratings)
        ]
        before = twin.count
        expected = taught(twin, batch, negatives=negatives)
        np.testing.assert_allclose(rows.learn(batch, seed=seed), expected, atol=2e-5)
        assert rows.localized.counts[0] == twin.count - before > len(ratings)
    same(rows, twin)
    other, again = Rows(model), Rows(model)
    (batch,) = some_batches(3, 40, 1, loss="logistic")
    again.learn(batch, seed=1)
    other.learn(batch, seed=2)
    assert not np.array_equal(other.last.vectors, again.last.vectors)


# ---------------------------------------------------------------- what is kept of rows


def kept(rows: Rows, batch: Minibatch, model: MfConfig, step: float) -> dict[int, tuple[Any, Any]]:
    """Return by key which shares are kept of bias and factors, slowly."""
    slope = 1.0 if model.loss == "squared" else 0.25
    sums: dict[int, list[float]] = {}
    for user, item, _, weight in ratings_of(batch):
        for key, other in ((user, item), (item, user)):
            square = float(np.sum(rows.rows[other][1].astype(float) ** 2))
            one = sums.setdefault(key, [0.0, 0.0])
            one[0] += step * (weight * slope + model.l2)
            one[1] += step * (weight * slope * square + model.l2)
    return {key: tuple(255 * np.exp(-np.array(one))) for key, one in sums.items()}


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_share_that_is_kept_is_that_of_all_its_steps(loss: str) -> None:
    model = config(loss=loss)
    rows = Rows(model)
    *before, batch = some_batches(4, 60, 8, loss=loss)
    for one in before:
        rows.learn(one)
    rows.learn(batch, epoch=2)
    expected = kept(rows, batch, model, 0.05 / 3**model.decay)
    shares = rows.last.shares.reshape(-1, 2)[1:]
    for key, found in zip(rows.localized.keys.tolist()[1:], shares.tolist(), strict=True):
        assert found == pytest.approx(expected[key], abs=0.6)
    assert shares.max() - shares.min() > (60 if loss == "squared" else 15)


def test_what_others_did_meanwhile_stays_as_far_as_it_is_kept() -> None:
    model = config()
    batch = batch_of([(5, 9, 4.0, 1.0)] * 30 + [(7, 9, 5.0, 1.0)])
    alone, beside = Rows(model), Rows(model)
    for rows in (alone, beside):
        rows.learn(batch)
    values = beside.values(beside.localized.keys.tolist())
    for key in (5, 7, 9):
        beside.rows[key][0] += np.float32(1)  # somebody else's, behind its back
    alone.learn(batch)
    beside.learn(batch, values=values)
    for key in (5, 7, 9):
        at = beside.localized.keys.tolist().index(key)
        share = beside.last.shares[2 * at] / 255
        difference = beside.rows[key][0] - alone.rows[key][0]
        assert difference == pytest.approx(share, abs=1e-5)
    shares = beside.last.shares.reshape(-1, 2)[:, 0]
    assert shares[beside.localized.keys.tolist().index(7)] > 235  # one rating
    assert shares[beside.localized.keys.tolist().index(9)] < 60  # thirty-one


def test_many_that_push_the_same_do_not_overshoot() -> None:
    model = config(alpha=0.2)
    batch = batch_of([(5, 9, 4.0, 1.0), (7, 9, 5.0, 1.0)] * 40)
    rows = Rows(model)
    rows.mean, rows.seen = np.float32(3), 100
    rows.learn(batch)
    once = {key: float(row[0]) for key, row in rows.rows.items()}
    assert all(0 < bias < 2 for bias in once.values())
    for _ in range(50):
        rows.apply(rows.localized, rows.last, epoch=1)
    for key, row in rows.rows.items():
        assert abs(row[0]) < 1.5 * abs(once[key])
        assert np.abs(row[1]).max() < 1


# ---------------------------------------------------------------- copies


def test_copies_stand_in_for_what_was_not_pulled() -> None:
    """Where nobody else learns: to rounding, as the shard keeps a row by two operations."""
    model = config()
    whole, sparing = Rows(model), Rows(model, copies=64)
    places: dict[int, int] = {}
    spared = 0
    for batch in some_batches(5, 25, 12):
        whole.learn(batch)
        keys = sparing.localize(batch).keys.tolist()
        items = {item for _, item, _, _ in ratings_of(batch)}
        used = np.array([places.get(key, -1) for key in keys], np.int64)
        for item in items:
            places.setdefault(item, len(places))
        now = [places[key] if key in items else -1 for key in keys]
        values = sparing.values(keys, used=used, kept=np.array(now, np.int64))
        ends = np.cumsum(values.dims)
        left = [
            values.vectors[0][end - dim : end]
            for end, dim, at in zip(ends, values.dims, used, strict=True)
            if at < 0
        ]
        dims = np.where(used < 0, values.dims, 0)
        spared += int((values.dims - dims).sum())
        values = Values(values.weights, dims, [np.concatenate(left)], used, values.kept)
        sparing.learn(batch, values=values)
        assert (sparing.last.dims[1:] == DIM).all()
    assert spared > 50 * DIM
    assert whole.rows.keys() == sparing.rows.keys()
    for key, (bias, factors) in whole.rows.items():
        assert sparing.rows[key][0] == pytest.approx(bias, abs=1e-5)
        np.testing.assert_allclose(sparing.rows[key][1], factors, atol=1e-5)


# ---------------------------------------------------------------- beyond reason


def test_numbers_that_run_away_are_dropped_and_what_is_sent_is_finite() -> None:
    rows = Rows(config(alpha=40.0))
    dropped = 0
    for batch in some_batches(6, 50, 6):
        rows.learn(batch)
        told = rows.last
        dropped += told.dropped
        assert np.isfinite(told.weights).all()
        assert np.isfinite(told.vectors).all()
        assert np.abs(told.vectors).max() <= 2.0**51
    assert dropped > 100


def test_an_example_that_is_no_rating_is_refused() -> None:
    rows = Rows(config())
    with pytest.raises(AssertionError, match="3 keys in 1 ratings"):
        rows.learn(minibatch([[3, 5, 7]]))
