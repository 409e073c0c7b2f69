"""Progressive validation: figures, windows, lanes, resume."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.online.validation import BINS, BinaryValidation, auc_of
from tests.reference import validation as reference

Stream = tuple[np.ndarray, np.ndarray, np.ndarray]


def stream(seed: int, n: int, *, weighted: bool = True, scale: float = 1.5) -> Stream:
    rng = np.random.default_rng(seed)
    scores = (rng.normal(size=n) * scale - 1).astype(np.float32)
    labels = (rng.random(n) < reference.predictions(scores)).astype(np.float32)
    weights = rng.integers(0, 4, n) if weighted else np.ones(n)
    return scores, labels, weights.astype(np.float32)


def feed(validation: BinaryValidation, data: Stream, step: int = 1024) -> BinaryValidation:
    for start in range(0, data[0].size, step):
        validation.update(*(part[start : start + step] for part in data))
    return validation


def assert_figures(summary: dict[str, float], expected: dict[str, float], suffix: str = "") -> None:
    for name, value in expected.items():
        if name == "auc":
            error = summary["auc_error" + suffix]
            assert abs(summary["auc" + suffix] - value) <= error + 1e-12
            assert error < 0.5
        else:
            assert summary[name + suffix] == pytest.approx(value, rel=1e-9), name


@pytest.mark.parametrize("step", [1, 7, 1000, 10_000])
def test_cumulative_figures_equal_the_twin_however_the_stream_is_cut(step: int) -> None:
    data = stream(1, 3000)
    summary = feed(BinaryValidation(500), data, step).summary()
    assert_figures(summary, reference.figures(*data))
    assert summary["loss"] == summary["logloss"]


@pytest.mark.parametrize(("n", "covered"), [(799, 799), (800, 800), (801, 701), (1234, 734)])
def test_window_figures_are_those_of_the_last_examples(n: int, covered: int) -> None:
    data = stream(2, n)
    validation = feed(BinaryValidation(800), data, 64)
    last = tuple(part[n - covered :] for part in data)
    assert validation.summary()["examples_window"] == covered
    assert_figures(validation.summary(), reference.figures(*last), "_window")


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    n=st.integers(2, 400),
    scale=st.sampled_from([0.001, 0.1, 1.0, 30.0]),
    rounded=st.booleans(),
)
def test_exact_auc_is_within_the_stated_error(
    seed: int, n: int, scale: float, rounded: bool
) -> None:
    scores, labels, weights = stream(seed, n, scale=scale)
    if rounded:
        scores = np.round(scores * 4) / 4
    weights += 1
    summary = feed(BinaryValidation(100), (scores, labels, weights)).summary()
    exact = reference.auc(scores, labels, weights)
    if math.isnan(exact):
        assert math.isnan(summary["auc"])
    else:
        assert abs(summary["auc"] - exact) <= summary["auc_error"] + 1e-12


def test_error_of_the_auc_is_reached_when_a_bin_hides_a_perfect_order() -> None:
    histogram = np.zeros(2 * BINS)
    histogram[100] = histogram[101] = 5
    assert auc_of(histogram) == (0.5, 0.5)


def test_auc_of_a_wrong_ranking_stays_below_a_half() -> None:
    scores, labels, weights = stream(3, 2000)
    summary = feed(BinaryValidation(100), (-scores, labels, weights)).summary()
    assert summary["auc"] < 0.3
    assert_figures(summary, reference.figures(-scores, labels, weights))


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_has_a_loss_and_no_auc(label: float) -> None:
    scores, _, weights = stream(4, 300)
    labels = np.full(300, label, np.float32)
    summary = feed(BinaryValidation(100), (scores, labels, weights)).summary()
    assert math.isnan(summary["auc"])
    assert math.isnan(summary["auc_error"])
    assert summary["baseline_loss"] == 0
    assert math.isnan(summary["normalized_entropy"])
    assert math.isnan(summary["calibration"]) == (label == 0)
    assert summary["logloss"] == pytest.approx(
        weights @ reference.losses(scores, labels) / weights.sum()
    )


@pytest.mark.parametrize("weight", [None, 0.0])
def test_nothing_seen_or_weighed_is_not_a_number(weight: float | None) -> None:
    validation = BinaryValidation(10)
    n = 0 if weight is None else 5
    validation.update(*(np.zeros(n, np.float32) for _ in range(3)))
    summary = validation.summary()
    assert summary["examples"] == n
    assert summary["weight"] == 0
    for name in ("logloss", "auc", "auc_error", "calibration", "normalized_entropy"):
        assert math.isnan(summary[name]), name
        assert math.isnan(summary[name + "_window"]), name


def test_perfect_calibration_of_a_constant_has_normalized_entropy_one() -> None:
    labels = np.array([1, 0, 0, 0] * 100, np.float32)
    scores = np.full(400, math.log(1 / 3), np.float32)
    summary = feed(BinaryValidation(100), (scores, labels, np.ones(400, np.float32))).summary()
    assert summary["calibration"] == pytest.approx(1, rel=1e-6)
    assert summary["normalized_entropy"] == pytest.approx(1, rel=1e-6)
    assert summary["auc"] == 0.5
    assert summary["auc_error"] == 0.5


def test_weight_counts_like_repeated_examples() -> None:
    scores, labels, weights = stream(5, 500)
    times = weights.astype(int)
    repeated = (np.repeat(scores, times), np.repeat(labels, times), np.ones(times.sum(), "f4"))
    weighed = feed(BinaryValidation(1000), (scores, labels, weights)).summary()
    counted = feed(BinaryValidation(100_000), repeated).summary()
    for name in ("logloss", "auc", "auc_error", "calibration", "normalized_entropy", "weight"):
        assert weighed[name] == pytest.approx(counted[name], rel=1e-12), name
