"""The kernels of progressive validation against their twin."""

import math

import numpy as np
import pytest

from streamlearn.compute.kernels.validation import logit_loss, score_logits, score_ratings
from tests.reference import validation as reference


def logits(seed: int, n: int, scale: float) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=n) * scale).astype(np.float32)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 10.0, 300.0])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_loss_and_prediction_have_the_stated_relative_error(scale: float, label: float) -> None:
    scores = np.clip(logits(1, 20_000, scale), -690, 690)
    labels = np.full(scores.size, label, np.float32)
    losses, predictions = np.empty(scores.size), np.empty(scores.size)
    logit_loss(scores, labels, losses, predictions)
    np.testing.assert_allclose(losses, reference.losses(scores, labels), rtol=2e-13)
    np.testing.assert_allclose(predictions, reference.predictions(scores), rtol=2e-13)


def test_extreme_logits_give_extreme_losses_and_nan_stays_nan() -> None:
    scores = np.array([np.inf, -np.inf, 3e38, -3e38, np.nan, 0.0], np.float32)
    losses, predictions = np.empty(6), np.empty(6)
    logit_loss(scores, np.ones(6, np.float32), losses, predictions)
    assert losses[0] < 1e-300
    assert losses[1] == math.inf
    assert losses[2] < 1e-300
    assert losses[3] == pytest.approx(3e38)
    assert math.isnan(losses[4])
    assert losses[5] == pytest.approx(math.log(2), rel=1e-13)
    np.testing.assert_allclose(predictions[[0, 1, 2, 3, 5]], [1, 0, 1, 0, 0.5], atol=1e-300)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 7, 8, 31, 1024])
def test_sums_and_histogram_equal_the_twin(n: int) -> None:
    rng = np.random.default_rng(n)
    scores = logits(n, n, 3.0)
    labels = (rng.random(n) < 0.3).astype(np.float32)
    weights = rng.integers(0, 5, n).astype(np.float32)
    sums, histogram = np.ones(5), np.zeros(2 * 64)
    score_logits(
        scores, labels, weights, np.empty(n + 3), np.empty(n + 3), sums, histogram, 64, 4.0
    )
    expected = [
        weights @ reference.losses(scores, labels),
        weights @ labels,
        weights @ reference.predictions(scores),
        weights.sum(),
        n,
    ]
    np.testing.assert_allclose(sums - 1, expected, rtol=1e-12, atol=1e-12)
    bins = np.clip(np.floor((scores.astype(np.float64) + 4) * 8), 0, 63).astype(int)
    counts = np.zeros(128)
    np.add.at(counts, 2 * bins + labels.astype(int), weights)
    np.testing.assert_array_equal(histogram, counts)


def test_logits_outside_the_bins_and_nan_are_counted_in_the_end_bins() -> None:
    scores = np.array([-99, np.nan, -np.inf, -4, 4, 99, np.inf], np.float32)
    histogram = np.zeros(8)
    ones = np.ones(7, np.float32)
    score_logits(scores, ones, ones, np.empty(7), np.empty(7), np.zeros(5), histogram, 4, 4.0)
    np.testing.assert_array_equal(histogram, [0, 4, 0, 0, 0, 0, 0, 3])


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 7, 8, 9, 31, 32, 33, 1024])
def test_sums_of_ratings_equal_the_twin(n: int) -> None:
    rng = np.random.default_rng(n)
    labels = (rng.integers(1, 11, n) / 2).astype(np.float32)
    scores = (labels + rng.normal(size=n)).astype(np.float32)
    weights = rng.integers(0, 5, n).astype(np.float32)
    sums = np.ones(7)
    score_ratings(scores, labels, weights, sums)
    s, y, w = (a.astype(np.float64) for a in (scores, labels, weights))
    expected = [w @ (s - y) ** 2, w @ np.abs(s - y), w @ y, w @ y**2, w @ s, w.sum(), n]
    np.testing.assert_allclose(sums - 1, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("at", [0, 17, 99])
@pytest.mark.parametrize("score", [np.nan, np.inf, -np.inf])
def test_a_prediction_that_is_not_finite_shows_in_the_sums_it_is_in(score: float, at: int) -> None:
    scores, labels, weights = (np.full(100, value, np.float32) for value in (3.0, 4.0, 2.0))
    scores[at] = score
    sums = np.zeros(7)
    score_ratings(scores, labels, weights, sums)
    expected = [score * score, abs(score), 800, 3200, score, 200, 100]
    np.testing.assert_array_equal(sums, expected)
