"""The step as a worker calls it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from streamlearn.compute.kernels.steps import sigmoid
from streamlearn.config import FmConfig, LrConfig
from streamlearn.online.localized import Localized, Localizer
from streamlearn.online.steps import FmStep, LogisticStep, Values, new_step
from tests.reference.fm import gradients as fm_gradients
from tests.reference.fm import score as fm_score
from tests.reference.steps import logistic
from tests.reference.tables import minibatch


@pytest.mark.parametrize("intercept", [False, True])
def test_a_step_scores_and_sums_the_gradient_by_key(intercept: bool) -> None:
    batch = minibatch([[9, 3], [3], []], labels=[1, 0, 1], weights=[1, 2, 3])
    out = Localizer(batch.nnz_max).localize(batch, Localized(100), intercept=intercept)
    rule = LogisticStep(LrConfig(intercept=intercept))
    assert rule.intercept == intercept
    weights = {1: 0.25, 3: -0.5, 9: 1.0}
    pulled = Values(np.array([weights[key] for key in out.keys.tolist()], np.float32))
    scores = np.full(10, 7, np.float32)
    gradients = rule.step(batch, out, pulled, scores).weights
    expected, sums = logistic(batch, weights, intercept=intercept, sigmoid=sigmoid)
    assert scores[:3].tolist() == expected
    assert (scores[3:] == 7).all()
    assert dict(zip(out.keys.tolist(), gradients.tolist(), strict=True)) == sums
    assert np.shares_memory(gradients, out.gradients)


def test_a_step_refuses_what_was_localised_or_pulled_for_another() -> None:
    batch = minibatch([[9, 3]])
    out = Localizer(batch.nnz_max).localize(batch, Localized(100), intercept=False)
    scores = np.zeros(1, np.float32)
    with pytest.raises(AssertionError, match="another model"):
        LogisticStep(LrConfig()).step(batch, out, Values(np.zeros(2, np.float32)), scores)
    values = Values(np.zeros(3, np.float32))
    with pytest.raises(AssertionError, match="3 weights, 2 keys"):
        LogisticStep(LrConfig(intercept=False)).step(batch, out, values, scores)


# --- factorization machines -----------------------------------------------------------------------

MODELS = {
    "pairs": FmConfig(dim=16),
    "triples": FmConfig(dim=5, order=3),
    "tiers": FmConfig(order=3, dim_by_count={"0": 3, "3": 5, "8": 20}),
    "bare": FmConfig(dim=4, intercept=False),
}


class Pulled:
    """A minibatch and random values for its keys, of all lengths.

    Parameters
    ----------
    runs : int
        How many shards they came from.
    """

    def __init__(self, model: FmConfig, seed: int, *, values: bool, runs: int = 1) -> None:
        rng = np.random.default_rng(seed)
        keys = [2 * i + 3 for i in range(12)]
        rows = [rng.choice(keys, n).tolist() for n in (3, 0, 1, 8, 2, 8)]  # some stand twice
        x = [rng.uniform(-1.5, 1.5, len(row)) for row in rows] if values else None
        labels = [1, 0, 1, 0, 0, 1]
        self.batch = minibatch(rows, labels, [1, 2, 1, 0.5, 1, 0], x)
        self.localized = Localizer(self.batch.nnz_max).localize(
            self.batch, Localized(200), intercept=model.intercept
        )
        self.model = model
        tiers, u = model.tiers, self.localized.unique
        self.weights = rng.uniform(-1, 1, u).astype(np.float32)
        self.dims = rng.choice([0, *tiers.dims], u).astype(np.int64)
        if model.intercept:
            self.dims[0] = 0
        self.held = [rng.uniform(-0.5, 0.5, (tiers.parts, d)).astype("f4") for d in self.dims]
        edges = np.linspace(0, u, runs + 1).astype(int)
        self.values = Values(
            self.weights,
            self.dims,
            [
                np.concatenate([np.zeros(0, np.float32), *(V.reshape(-1) for V in self.held[a:b])])
                for a, b in itertools.pairwise(edges)
            ],
        )

    def exact(self) -> tuple[list[float], np.ndarray, list[np.ndarray]]:
        """Return scores and gradients by key, in float64."""
        model, batch = self.model, self.batch
        tiers, first = model.tiers, int(model.intercept)
        scores, by_w = [], np.zeros(len(self.weights))
        by_V = [np.zeros(V.shape) for V in self.held]
        for r in range(batch.rows):
            span = slice(int(batch.indptr[r]), int(batch.indptr[r + 1]))
            places = np.searchsorted(self.localized.keys, batch.keys[span])
            x = np.ones(len(places))
            if batch.has_values:
                x = batch.values[span].astype(float)
            lengths = self.dims[places]
            V = np.zeros((tiers.parts, len(places), tiers.dim))
            for i, place in enumerate(places.tolist()):
                V[:, i, : lengths[i]] = self.held[place]
            bias = float(self.weights[0]) if first else 0.0
            w = self.weights[places].astype(float)
            scores.append(float(fm_score(bias, w, V, x, lengths)))
            g, g_w, g_V = fm_gradients(
                bias, w, V, x, lengths, float(batch.labels[r]), float(batch.weights[r])
            )
            by_w[0] += g * first
            for i, place in enumerate(places.tolist()):
                by_w[place] += g_w[i]
                by_V[place] += g_V[:, i, : lengths[i]]
        return scores, by_w, by_V


# |a| <= 0.75, eight features, 20 coordinates of two orders: what is summed stays below 20 * (6^3 +
# 6^2) = 5,040 in all, and is rounded some fifty times.
OFF = 50 * 5_040 * 2.0**-24


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_step_with_embeddings_is_the_twins(name: str, values: bool, runs: int) -> None:
    step = new_step(MODELS[name])
    assert isinstance(step, FmStep)
    for seed in range(4):
        pulled = Pulled(MODELS[name], seed, values=values, runs=runs)
        scores = np.full(10, 7, np.float32)
        out = step.step(pulled.batch, pulled.localized, pulled.values, scores)
        expected, by_w, by_V = pulled.exact()
        np.testing.assert_allclose(scores[:6], expected, rtol=0, atol=OFF)
        assert (scores[6:] == 7).all()
        np.testing.assert_allclose(out.weights, by_w, rtol=0, atol=OFF)
        flat = np.concatenate([np.zeros(0), *(V.reshape(-1) for V in by_V)])
        np.testing.assert_allclose(out.vectors, flat, rtol=0, atol=8 * OFF)
        assert out.dropped == 0


def test_a_minibatch_of_nothing_steps_nothing() -> None:
    model = MODELS["pairs"]
    batch = minibatch([])
    out = Localizer(batch.nnz_max).localize(batch, Localized(10), intercept=False)
    step = FmStep(FmConfig(dim=16, intercept=False))
    values = Values(np.zeros(0, np.float32), np.zeros(0, np.int64), [])
    got = step.step(batch, out, values, np.zeros(0, np.float32))
    assert (len(got.weights), len(got.vectors), got.dropped) == (0, 0, 0)
    assert new_step(model).intercept


@pytest.mark.parametrize("huge", [1e30, 3e38])
@pytest.mark.parametrize("name", MODELS)
def test_examples_whose_score_is_not_finite_are_counted_and_have_no_gradient(
    name: str, huge: float
) -> None:
    model = MODELS[name]
    pulled = Pulled(model, 1, values=True)
    pulled.dims[int(model.intercept) :] = model.tiers.dim
    u, dim, parts = pulled.localized.unique, model.tiers.dim, model.tiers.parts
    total = int(pulled.dims.sum()) * parts
    values = Values(pulled.weights, pulled.dims, [np.full(total, 0.5, np.float32)])
    step, scores = FmStep(model), np.zeros(6, np.float32)
    batch = pulled.batch
    span = slice(int(batch.indptr[3]), int(batch.indptr[4]))
    batch.weights[3] = 0.0
    without = step.step(batch, pulled.localized, values, scores)
    clean = without.weights.copy(), without.vectors.copy()
    batch.weights[3] = 1.0
    batch.values[span] = huge
    out = step.step(batch, pulled.localized, values, scores)
    assert out.dropped == 1
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(out.weights, clean[0])
    np.testing.assert_array_equal(out.vectors, clean[1])
    assert len(out.vectors) == (u - int(model.intercept)) * dim * parts


def test_a_step_with_embeddings_refuses_what_was_pulled_for_another() -> None:
    pulled = Pulled(MODELS["pairs"], 1, values=False)
    scores = np.zeros(6, np.float32)
    values = Values(pulled.weights, pulled.dims[1:], pulled.values.vectors)
    with pytest.raises(AssertionError, match="lengths"):
        FmStep(MODELS["pairs"]).step(pulled.batch, pulled.localized, values, scores)
    with pytest.raises(AssertionError, match="another model"):
        FmStep(MODELS["bare"]).step(pulled.batch, pulled.localized, pulled.values, scores)
