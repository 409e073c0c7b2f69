"""Progressive validation of classes: loss, accuracy, and the loss of the classes' shares."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.errors import SnapshotError
from streamlearn.online.class_validation import (
    SHARES_MAX,
    ClassValidation,
    LogitValidation,
    NumberValidation,
    probabilities,
)
from streamlearn.online.rating_validation import RatingValidation
from streamlearn.online.validation import BinaryValidation
from tests.reference import validation as reference

Stream = tuple[np.ndarray, np.ndarray, np.ndarray]
CLASSES = 5
MEASURES = ("loss", "cross_entropy", "accuracy", "baseline_loss")


def stream(seed: int, n: int, classes: int = CLASSES) -> Stream:
    """Return logits that know a little of labels, which are not all as frequent."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes * classes, n) // classes
    labels[rng.random(n) < 0.3] = 0
    scores = rng.normal(size=(n, classes))
    scores[np.arange(n), labels] += rng.normal(1, 1, n)
    return (
        scores.astype(np.float32),
        labels.astype(np.float32),
        rng.integers(0, 4, n).astype(np.float32),
    )


def feed(validation: ClassValidation, data: Stream, step: int = 1024) -> ClassValidation:
    for start in range(0, len(data[0]), step):
        validation.update(*(part[start : start + step] for part in data))
    return validation


@pytest.mark.parametrize("step", [1, 7, 1000, 10_000])
def test_figures_equal_the_twin_however_the_stream_is_cut(step: int) -> None:
    data = stream(1, 3000)
    summary = feed(ClassValidation(500), data, step).summary()
    figures = {name: value for name, value in summary.items() if not name.endswith("_window")}
    assert figures == pytest.approx(reference.class_figures(*data), rel=1e-6)


@pytest.mark.parametrize(("n", "covered"), [(799, 799), (800, 800), (801, 701), (1234, 734)])
def test_window_figures_are_those_of_the_last_examples(n: int, covered: int) -> None:
    data = stream(2, n)
    summary = feed(ClassValidation(800), data, 64).summary()
    last = reference.class_figures(*(part[n - covered :] for part in data))
    assert {name: summary[f"{name}_window"] for name in last} == pytest.approx(last, rel=1e-6)


def test_weight_counts_like_repeated_examples() -> None:
    scores, labels, weights = stream(3, 500)
    times = weights.astype(int)
    repeated = (
        np.repeat(scores, times, axis=0), np.repeat(labels, times),
        np.ones(times.sum(), np.float32),
    )  # fmt: skip
    weighed = feed(ClassValidation(1000), (scores, labels, weights)).summary()
    counted = feed(ClassValidation(100_000), repeated).summary()
    for name in (*MEASURES, "weight"):
        assert weighed[name] == pytest.approx(counted[name], rel=1e-12), name


@settings(max_examples=60)
@given(
    seed=st.integers(0, 1 << 30),
    n=st.integers(1, 60),
    classes=st.integers(1, 7),
    scale=st.sampled_from([0.0, 1.0, 40.0, 3000.0, 1e30]),
    step=st.integers(1, 20),
)
def test_any_logits_have_the_twins_loss(
    seed: int, n: int, classes: int, scale: float, step: int
) -> None:
    scores, labels, weights = stream(seed, n, classes)
    scores *= np.float32(scale)
    weights += 1
    summary = feed(ClassValidation(10), (scores, labels, weights), step).summary()
    expected = reference.class_figures(scores, labels, weights)
    assert summary["loss"] >= 0
    for name in MEASURES:
        assert summary[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6), name


def test_the_share_of_each_class_has_the_baselines_loss() -> None:
    _, labels, weights = stream(4, 2_000)
    shares = np.bincount(labels.astype(int), weights) / weights.sum()
    scores = np.tile(np.log(shares).astype(np.float32), (2_000, 1))
    summary = feed(ClassValidation(100), (scores, labels, weights)).summary()
    assert summary["loss"] == pytest.approx(summary["baseline_loss"], rel=1e-6)


def test_beyond_many_classes_the_baseline_is_not_known_and_all_else_is() -> None:
    scores = np.zeros((2, SHARES_MAX + 1), np.float32)
    ones = np.ones(2, np.float32)
    validation = feed(ClassValidation(10), (scores, np.array([0, SHARES_MAX - 1], "f4"), ones))
    assert validation.summary()["baseline_loss"] == pytest.approx(math.log(2))
    feed(validation, (scores, np.array([0, SHARES_MAX], "f4"), ones))
    summary = validation.summary()
    assert math.isnan(summary["baseline_loss"])
    assert summary["loss"] == pytest.approx(math.log(SHARES_MAX + 1), rel=1e-6)
    assert summary["accuracy"] == 0.5


@pytest.mark.parametrize("weight", [None, 0.0])
def test_nothing_seen_or_weighed_is_not_a_number(weight: float | None) -> None:
    validation = ClassValidation(10)
    n = 0 if weight is None else 5
    validation.update(np.zeros((n, 3), "f4"), np.zeros(n, "f4"), np.zeros(n, "f4"))
    summary = validation.summary()
    assert summary["examples"] == n
    assert summary["weight"] == 0
    for name in MEASURES:
        assert math.isnan(summary[name]), name
        assert math.isnan(summary[f"{name}_window"]), name


def test_a_logit_that_is_no_number_shows_in_the_loss_and_is_not_counted_right() -> None:
    scores, labels, weights = stream(6, 100)
    weights += 1
    expected = weights @ (scores.argmax(axis=1) == labels)
    expected -= weights[17] * (scores[17].argmax() == labels[17])
    scores[17, 2] = math.nan
    for nothing in (math.nan, math.inf):
        scores[17, 2:4] = nothing
        summary = feed(ClassValidation(1000), (scores, labels, weights)).summary()
        assert math.isnan(summary["loss"])
        assert summary["accuracy"] <= float(expected + weights[17]) / weights.sum()
        assert math.isfinite(summary["baseline_loss"])
    scores[17, 2] = math.nan
    summary = feed(ClassValidation(1000), (scores, labels, weights)).summary()
    assert summary["accuracy"] == pytest.approx(expected / weights.sum())


def test_the_class_of_largest_logit_is_predicted_the_first_of_equals() -> None:
    scores = np.array([[1, 3, 2], [5, 5, 0], [0, np.nan, 1]], np.float32)
    assert ClassValidation.predictions(scores)[:2].tolist() == [1, 0]
    assert math.isnan(ClassValidation.predictions(scores)[2])
    assert ClassValidation.predictions(scores[:0]).shape == (0,)
    last = ClassValidation.last_score(scores[:2])
    assert ClassValidation.prediction(last) == 0
    assert math.isnan(ClassValidation.prediction(ClassValidation.last_score(scores)))


def test_probabilities_are_the_softmax_whatever_the_logits() -> None:
    scores = np.array([[0, math.log(3)], [-1e30, 1e30], [np.nan, 0]], np.float32)
    found = probabilities(scores)
    assert found.dtype == np.float64
    assert found[:2] == pytest.approx(np.array([[0.25, 0.75], [0, 1]]), rel=1e-7)
    assert np.isnan(found[2]).all()
    assert probabilities(scores[:0]).shape == (0, 2)


def test_resumed_it_goes_on_as_if_nothing_had_happened() -> None:
    data = stream(7, 2_000)
    first, second = (tuple(part[half] for part in data) for half in (slice(700), slice(700, None)))
    whole = feed(feed(ClassValidation(300), first, 64), second, 64)
    resumed = ClassValidation(1)
    resumed.restore(feed(ClassValidation(300), first, 64).state())
    assert feed(resumed, second, 64).summary() == whole.summary()
    with pytest.raises(SnapshotError, match="cross_entropy"):
        resumed.restore(RatingValidation(300).state())


def test_lanes_are_pooled() -> None:
    data = stream(8, 2_000)
    one, other = (feed(ClassValidation(5_000), tuple(p[i::2].copy() for p in data)) for i in (0, 1))
    one.merge(other)
    expected = reference.class_figures(*data)
    assert {name: one.summary()[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_a_report_of_each_deep_model_has_loss_and_accuracy_where_there_are_classes() -> None:
    scores, labels, weights = stream(9, 500, 2)
    summary = feed(ClassValidation(100), (scores, labels, weights)).summary()
    told = ClassValidation.report(summary)
    assert set(told) == {"loss", "accuracy", "baseline_loss"}
    assert ClassValidation.headlines(summary) == {n: told[n] for n in ("loss", "accuracy")}
    # the same two classes, said by one logit
    logits = LogitValidation(100)
    logits.update(np.ascontiguousarray(scores[:, 1] - scores[:, 0]), labels, weights)
    binary = LogitValidation.report(logits.summary())
    assert set(binary) == {"accuracy", "loss", *BinaryValidation.reported}
    assert binary["loss"] == binary["logloss"]
    for name in ("loss", "accuracy"):
        assert binary[name] == pytest.approx(told[name], rel=1e-6), name
    assert "accuracy" not in BinaryValidation.reported
    numbers = NumberValidation(100)
    numbers.update(logits.predictions(labels).astype(np.float32), labels, weights)
    squared = NumberValidation.report(numbers.summary())
    assert set(squared) == {"loss", *RatingValidation.reported}
    assert squared["loss"] == squared["rmse"]


def test_a_logit_on_its_labels_side_is_right_and_zero_says_one() -> None:
    scores = np.array([0, -0.0, 0.001, -0.001, 20, -20, np.nan, np.nan], np.float32)
    labels = np.array([1, 0, 0, 0, 1, 1, 0, 1], np.float32)
    validation = BinaryValidation(100)
    validation.update(scores, labels, np.arange(1, 9, dtype=np.float32))
    assert validation.summary()["accuracy"] == pytest.approx((1 + 4 + 5 + 7) / 36)
