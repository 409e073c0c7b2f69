"""Progressive validation of ratings: figures, and what their sums can bear."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.online.rating_validation import RatingValidation
from streamlearn.online.totals import RatingTotals
from tests.reference import validation as reference

Stream = tuple[np.ndarray, np.ndarray, np.ndarray]
NUMBERS = st.floats(-1e6, 1e6, width=32)
MEASURES = ("loss", "rmse", "mae", "baseline_rmse", "baseline_loss")


def stream(seed: int, n: int) -> Stream:
    """Return ratings in halves from 0.5 to 5, and predictions that know a little of them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, 11, n) / 2
    scores = 0.6 * labels + rng.normal(1.2, 0.7, n)
    return tuple(a.astype(np.float32) for a in (scores, labels, rng.integers(0, 4, n)))  # type: ignore[return-value]


def feed(validation: RatingValidation, data: Stream, step: int = 1024) -> RatingValidation:
    for start in range(0, data[0].size, step):
        validation.update(*(part[start : start + step] for part in data))
    return validation


@pytest.mark.parametrize("step", [1, 7, 1000, 10_000])
def test_figures_equal_the_twin_however_the_stream_is_cut(step: int) -> None:
    data = stream(1, 3000)
    summary = feed(RatingValidation(500), data, step).summary()
    figures = {name: value for name, value in summary.items() if not name.endswith("_window")}
    assert figures == pytest.approx(reference.rating_figures(*data), rel=1e-12)


@pytest.mark.parametrize(("n", "covered"), [(799, 799), (800, 800), (801, 701), (1234, 734)])
def test_window_figures_are_those_of_the_last_examples(n: int, covered: int) -> None:
    data = stream(2, n)
    summary = feed(RatingValidation(800), data, 64).summary()
    last = reference.rating_figures(*(part[n - covered :] for part in data))
    assert {name: summary[f"{name}_window"] for name in last} == pytest.approx(last, rel=1e-12)


def test_weight_counts_like_repeated_examples() -> None:
    scores, labels, weights = stream(3, 500)
    times = weights.astype(int)
    repeated = (np.repeat(scores, times), np.repeat(labels, times), np.ones(times.sum(), "f4"))
    weighed = feed(RatingValidation(1000), (scores, labels, weights)).summary()
    counted = feed(RatingValidation(100_000), repeated).summary()
    for name in (*MEASURES, "weight"):
        assert weighed[name] == pytest.approx(counted[name], rel=1e-12), name


@settings(max_examples=80, deadline=None)
@given(
    data=st.lists(st.tuples(NUMBERS, NUMBERS, st.floats(0, 8, width=32)), min_size=1, max_size=60),
    window=st.integers(1, 40),
    step=st.integers(1, 20),
)
def test_any_ratings_have_the_twins_errors(
    data: list[tuple[float, float, float]], window: int, step: int
) -> None:
    scores, labels, weights = np.array(data, np.float32).T.copy()
    summary = feed(RatingValidation(window), (scores, labels, weights), step).summary()
    if not weights.any():
        assert math.isnan(summary["rmse"])
        return
    expected = reference.rating_figures(scores, labels, weights)
    assert summary["rmse"] == pytest.approx(expected["rmse"], rel=1e-9, abs=1e-12)
    assert summary["mae"] == pytest.approx(expected["mae"], rel=1e-9, abs=1e-12)
    largest = float(np.abs(labels).max())
    # what cancels is the square, to some 2^-50 of the largest one
    assert summary["baseline_rmse"] ** 2 == pytest.approx(
        expected["baseline_rmse"] ** 2, rel=1e-9, abs=1e-14 * largest**2
    )
    assert summary["mae"] <= summary["rmse"] * (1 + 1e-9)


def test_the_best_constant_has_the_baselines_loss() -> None:
    _, labels, weights = stream(4, 2_000)
    mean = np.full(2_000, weights @ labels / weights.sum(), np.float32)
    summary = feed(RatingValidation(100), (mean, labels, weights)).summary()
    assert summary["rmse"] == pytest.approx(summary["baseline_rmse"], rel=1e-6)


@pytest.mark.parametrize(
    ("mean", "tolerance"), [(0.0, 1e-12), (3.5, 1e-12), (-80.0, 1e-10), (2_000.0, 1e-8)]
)
def test_the_baseline_of_a_billion_ratings_is_known(mean: float, tolerance: float) -> None:
    """Sums of a billion are those of a million, a thousand times, and as wrong as they grew."""
    rng = np.random.default_rng(5)
    validation = RatingValidation(10**9)
    labels = (mean + rng.integers(-4, 5, 1024) / 2).astype(np.float32)
    ones, zeros = np.ones(1024, np.float32), np.zeros(1024, np.float32)
    for _ in range(1_000):
        validation.update(zeros, labels, ones)
    once = validation.totals()
    assert isinstance(once, RatingTotals)
    many = RatingTotals(*(1_000 * value for value in once))
    assert many.baseline_rmse == pytest.approx(float(labels.std(dtype=np.float64)), rel=tolerance)


def test_equal_ratings_have_a_baseline_of_zero_and_not_of_its_rounding() -> None:
    labels = np.full(1000, 3.3, np.float32)
    weights = np.full(1000, 0.7, np.float32)
    summary = feed(RatingValidation(100), (labels, labels, weights), 7).summary()
    assert summary["rmse"] == summary["mae"] == 0
    assert 0 <= summary["baseline_rmse"] < 1e-6


@pytest.mark.parametrize("weight", [None, 0.0])
def test_nothing_seen_or_weighed_is_not_a_number(weight: float | None) -> None:
    validation = RatingValidation(10)
    n = 0 if weight is None else 5
    validation.update(*(np.zeros(n, np.float32) for _ in range(3)))
    summary = validation.summary()
    assert summary["examples"] == n
    assert summary["weight"] == 0
    for name in MEASURES:
        assert math.isnan(summary[name]), name
        assert math.isnan(summary[f"{name}_window"]), name


def test_what_was_not_finite_shows_in_the_errors_and_nowhere_else() -> None:
    for score in (math.nan, math.inf, -math.inf):
        scores, labels, weights = stream(6, 100)
        weights += 1
        scores[17] = score
        summary = feed(RatingValidation(1000), (scores, labels, weights)).summary()
        assert not math.isfinite(summary["rmse"])
        assert not math.isfinite(summary["mae"])
        assert summary["baseline_rmse"] == pytest.approx(
            reference.rating_figures(labels, labels, weights)["baseline_rmse"]
        )


def test_a_score_is_the_prediction() -> None:
    scores = np.array([-2.5, 0, 4.75], np.float32)
    assert RatingValidation.predictions(scores).tolist() == [-2.5, 0, 4.75]
    assert RatingValidation.prediction(4.75) == 4.75
    assert math.isnan(RatingValidation.prediction(math.nan))
