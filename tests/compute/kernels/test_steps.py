"""The worker's step: to the bit against the slow twin, against finite differences, and finite."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streamlearn.compute.kernels.steps import left_zero, logistic_step, sigmoid
from streamlearn.online.localized import Localized, Localizer
from streamlearn.online.minibatch import Minibatch
from tests.reference import steps as twins
from tests.reference.tables import minibatch


def step(
    batch: Minibatch, weights: dict[int, float], *, intercept: bool
) -> tuple[np.ndarray, dict[int, float]]:
    """Run the kernel; return scores and gradients by key."""
    room = batch.nnz_max
    out = Localizer(room).localize(batch, Localized(room), intercept=intercept)
    pulled = np.array([weights[key] for key in out.keys.tolist()], np.float32)
    gradients = np.full(out.unique, np.nan, np.float32)
    scores = np.full(batch.rows, np.nan, np.float32)
    logistic_step(
        out.inverse, batch.values, batch.indptr, batch.labels, batch.weights, batch.rows,
        int(intercept), pulled, gradients, scores,
    )  # fmt: skip
    return scores, dict(zip(out.keys.tolist(), gradients.tolist(), strict=True))


def random_minibatch(
    rows: int, seed: int, *, values: bool, shares: bool = True, scale: float = 1.0
) -> tuple[Minibatch, dict[int, float]]:
    """Return examples of 0 to 20 features, many of them the same, and a weight for each key."""
    rng = np.random.default_rng(seed)
    some = rng.integers(0, 1 << 63, 40, np.uint64) << np.uint64(1) | np.uint64(1)
    keys = [rng.choice(some, rng.integers(0, 21)) for _ in range(rows)]
    batch = minibatch(
        keys,
        labels=rng.integers(0, 2, rows).tolist(),
        weights=rng.exponential(1, rows).tolist() if shares else None,
        values=[(rng.normal(0, scale, len(k))).tolist() for k in keys] if values else None,
    )
    weights = {1: 0.3} | {int(key): float(rng.normal(0, scale)) for key in some}
    return batch, weights


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 7, 150])
def test_scores_and_gradients_are_the_twins_to_the_bit(
    rows: int, values: bool, intercept: bool
) -> None:
    batch, weights = random_minibatch(rows, rows, values=values)
    scores, gradients = step(batch, weights, intercept=intercept)
    expected, sums = twins.logistic(batch, weights, intercept=intercept, sigmoid=sigmoid)
    assert scores.tolist() == [float(score) for score in expected]
    assert gradients == {key: float(sums[key]) for key in gradients}
    assert gradients.keys() == sums.keys()


def _loss(batch: Minibatch, weights: dict[int, float]) -> float:
    """Logloss of the minibatch in float64, each example with its weight."""
    total = 0.0
    for r in range(batch.rows):
        span = range(int(batch.indptr[r]), int(batch.indptr[r + 1]))
        score = weights[1]
        for j in span:
            value = float(batch.values[j]) if batch.has_values else 1.0
            score += weights[int(batch.keys[j])] * value
        y = batch.labels[r]
        total += float(batch.weights[r]) * (math.log1p(math.exp(-abs(score))) + max(score, 0))
        total -= float(batch.weights[r]) * float(y) * score
    return total


@pytest.mark.parametrize("values", [False, True])
def test_the_gradient_is_that_of_the_summed_loss(values: bool) -> None:
    batch, weights = random_minibatch(50, 3, values=values, scale=0.3)
    _, gradients = step(batch, weights, intercept=True)
    for key, gradient in gradients.items():
        up, down = (_loss(batch, weights | {key: weights[key] + d}) for d in (1e-5, -1e-5))
        assert gradient == pytest.approx((up - down) / 2e-5, rel=1e-3, abs=1e-4), key


def test_the_twin_in_float64_agrees() -> None:
    batch, weights = random_minibatch(200, 5, values=True)
    scores, gradients = step(batch, weights, intercept=True)

    def exact(score: float) -> float:
        return 1 / (1 + math.exp(-min(max(score, -35), 35)))

    expected, sums = twins.logistic(batch, weights, intercept=True, sigmoid=exact, dtype=np.float64)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
    for key, gradient in gradients.items():
        assert gradient == pytest.approx(float(sums[key]), rel=1e-3, abs=1e-4)


def test_a_key_that_stands_twice_counts_twice() -> None:
    scores, gradients = step(minibatch([[3, 3]], labels=[1.0]), {3: 0.5}, intercept=False)
    assert scores[0] == 1
    assert gradients[3] == pytest.approx(2 * (1 / (1 + math.exp(-1)) - 1))


def test_an_example_of_no_weight_teaches_nothing() -> None:
    batch = minibatch([[3], [3]], labels=[1.0, 0.0], weights=[0.0, 2.0])
    _, gradients = step(batch, {1: 0.0, 3: 0.0}, intercept=True)
    assert gradients == {1: 1.0, 3: 1.0}


@pytest.mark.parametrize("share", [1.0, 3e38])
def test_everything_stays_finite_whatever_comes(share: float) -> None:
    most = float(np.finfo(np.float32).max)
    keys = [3, 5, 7, 9]
    weights = {1: 2.0**60, 3: 2.0**60, 5: -(2.0**60), 7: 2.0**60, 9: 0.0}
    extreme = [most, most, -most, 1e-38]
    batch = minibatch(
        [keys, keys[:1], keys[1:2], [], keys * 5],
        labels=[0, 1, 0, 1, 1],
        weights=[share] * 5,
        values=[extreme, [most], [most], [], extreme * 5],
    )
    scores, gradients = step(batch, weights, intercept=True)
    assert np.isfinite(scores).all()
    assert np.abs(scores).max() == np.float32(3e38)
    assert np.isfinite(list(gradients.values())).all()
    assert max(map(abs, gradients.values())) <= 2.0**51
    expected, sums = twins.logistic(batch, weights, intercept=True, sigmoid=sigmoid)
    assert scores.tolist() == [float(score) for score in expected]
    assert gradients == {key: float(sums[key]) for key in gradients}


def test_infinite_terms_of_both_signs_are_a_score_of_0() -> None:
    batch = minibatch([[3, 5]], values=[[3e38, 3e38]])
    scores, _ = step(batch, {3: 1e10, 5: -1e10}, intercept=False)
    assert scores[0] == 0


def test_the_sigmoid_is_clipped() -> None:
    assert sigmoid(np.float32(0)) == 0.5
    assert 0 < sigmoid(np.float32(-3e38)) == sigmoid(np.float32(-35)) < 1e-15
    assert sigmoid(np.float32(3e38)) == 1


def test_weights_that_leave_zero_are_counted_by_example_but_for_the_intercept() -> None:
    inverse = np.array([0, 1, 2, 1, 3, *[1] * 300], np.int32)
    indptr = np.array([0, 3, 3, 5, 305], np.int64)
    before = np.array([0, 0, 0, 0.5], np.float32)
    after = np.array([1, -1, 0, 0.7], np.float32)
    fresh, marks = np.full(5, 77, np.uint8), np.full(4, 77, np.uint8)
    left_zero(inverse, indptr, 4, 1, before, after, marks, fresh)
    assert fresh.tolist() == [1, 0, 1, 255, 77]
    left_zero(inverse, indptr, 4, 0, before, after, marks, fresh)
    assert fresh.tolist() == [2, 0, 1, 255, 77]
