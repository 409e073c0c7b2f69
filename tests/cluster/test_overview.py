"""The figures of a cluster from those of its processes."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from streamlearn.cluster.overview import Overview
from streamlearn.config import DeepConfig, LrConfig, MfConfig, ModelConfig
from streamlearn.online.class_validation import ClassValidation
from streamlearn.online.progressive import Validation
from streamlearn.online.rating_validation import RatingValidation
from streamlearn.online.validation import BinaryValidation


def totals(examples: int, loss: float) -> dict[str, Any]:
    return {
        "examples": examples,
        "bad_records": 1,
        "subsampled": 0,
        "bytes": 100 * examples,
        "stored_bytes": 50 * examples,
        "weight": float(examples),
        "loss": loss,
        "label": examples / 4,
        "prediction": examples / 2,
    }


def shard(examples: int, loss: float = 0.0) -> dict[str, Any]:
    figures = {"features": 7, "table_bytes": 100, "embeddings_bytes": 64, "embeddings_refused": 2}
    return {"totals": totals(examples, loss), "figures": figures}


def worker(validation: Validation, **more: Any) -> dict[str, Any]:
    """Return a worker's status as it comes over HTTP."""
    said = {"validation": validation.summary(), **more}
    if isinstance(validation, BinaryValidation):
        said["histogram"] = validation.histogram().tolist()
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(said))
    return found


def scored(count: int, seed: int) -> tuple[BinaryValidation, tuple[Any, Any, Any]]:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=count).astype(np.float32)
    labels = (rng.random(count) < 1 / (1 + np.exp(-scores))).astype(np.float32)
    weights = np.ones(count, np.float32)
    validation = BinaryValidation(100)
    validation.update(scores, labels, weights)
    return validation, (scores, labels, weights)


def test_nothing_is_known_at_first() -> None:
    progress = Overview(LrConfig()).progress("compiling", "starting shards", 1.0)
    assert (progress.state, progress.detail, progress.seconds) == (
        "compiling",
        "starting shards",
        1.0,
    )
    assert progress.examples == 0
    assert progress.bytes_total == -1
    assert math.isnan(progress.loss)
    assert math.isnan(progress.figures["auc"])


def test_the_shard_that_is_least_far_speaks_for_all() -> None:
    overview = Overview(LrConfig())
    overview.hear_shard("shard-0", shard(100, loss=60.0))
    overview.hear_shard("shard-1", shard(90, loss=45.0))
    progress = overview.progress("learning", "", 1.0)
    assert progress.examples == 90
    assert progress.bytes == 9_000
    assert progress.loss == 0.5
    assert progress.figures["calibration"] == 2.0
    assert progress.bad_records == 1
    assert progress.features == 14
    assert overview.table_bytes == 200
    assert (overview.embeddings_bytes, overview.embeddings_refused) == (128, 4)


def test_the_area_under_the_curve_is_that_of_the_pooled_histogram() -> None:
    overview = Overview(LrConfig())
    one, first = scored(500, 1)
    two, second = scored(300, 2)
    overview.hear_worker("worker-0", worker(one))
    overview.hear_worker("worker-1", worker(two))
    pooled = BinaryValidation(100)
    pooled.update(*first)
    pooled.update(*second)
    progress = overview.progress("learning", "", 1.0)
    assert progress.figures["auc"] == pytest.approx(pooled.summary()["auc"])
    means = one.summary()["loss_window"] + two.summary()["loss_window"]
    assert progress.loss_window == pytest.approx(means / 2)


def test_rates_are_over_the_last_seconds() -> None:
    overview = Overview(LrConfig())
    for second in range(20):
        overview.hear_shard("shard-0", shard(1000 * second * second))
        progress = overview.progress("learning", "", float(second))
    assert progress.examples_per_second == pytest.approx((19**2 - 14**2) * 1000 / 5)
    assert progress.bytes_per_second == pytest.approx(100 * progress.examples_per_second)


def test_what_is_left_is_told_where_workers_know_the_source() -> None:
    overview = Overview(LrConfig(epochs=2))
    overview.hear_shard("shard-0", shard(100))
    overview.hear_worker("worker-0", {"source_bytes": 4_000, "examples": 3, "last": [1, 0.0, 39]})
    more = {"source_bytes": -1, "examples": 2, "last": [0, 9.0, 1], "examples_dropped": 5}
    overview.hear_worker("worker-1", more)
    progress = overview.progress("learning", "", 1.0)
    assert (progress.bytes_done, progress.bytes_total) == (5_000, 8_000)
    assert (progress.last_label, progress.last_prediction, progress.last_features) == (1, 0.5, 39)
    assert overview.examples_dropped == 5


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"totals": None, "figures": 3, "histogram": "x", "validation": None, "last": None},
        {"totals": {"examples": None}, "histogram": [1, 2], "last": [None, None, 0]},
    ],
)
def test_what_a_process_does_not_say_is_not_known(said: dict[str, Any]) -> None:
    overview = Overview(LrConfig())
    overview.hear_shard("shard-0", said)
    overview.hear_worker("worker-0", said)
    progress = overview.progress("learning", "", 1.0)
    assert progress.examples == 0
    assert math.isnan(progress.figures["auc"])


def test_classes_have_loss_and_accuracy_pooled() -> None:
    overview = Overview(DeepConfig(loss="classes", classes=3))
    assert list(overview.last.figures) == ["accuracy", "accuracy_window"]
    rng = np.random.default_rng(5)
    validations = [ClassValidation(80), ClassValidation(80)]
    for number, validation in enumerate(validations):
        scores = rng.normal(size=(300, 3)).astype(np.float32)
        labels = rng.permutation(np.arange(300) % 3).astype(np.float32)
        validation.update(scores, labels, np.ones(300, np.float32))
        overview.hear_worker(f"worker-{number}", worker(validation, last=[2.0, 1.0, 2]))
    both = ClassValidation(80)
    for validation in validations:
        both.merge(validation)
    overview.hear_shard("shard-0", {"totals": both.totals()._asdict() | {"bytes": 6_000}})
    progress = overview.progress("learning", "", 1.0)
    summary = both.summary()
    told = {"loss": progress.loss, "loss_window": progress.loss_window, **progress.figures}
    for name, value in (told | {"baseline_loss": progress.baseline_loss}).items():
        assert value == pytest.approx(summary[name]), name
    assert progress.last_prediction == 1.0  # a class, and no logit
    assert "auc" not in overview.summary


def test_the_accuracy_of_clicks_is_that_of_the_pooled_histogram() -> None:
    overview, right = Overview(DeepConfig()), 0
    for number in range(2):
        validation, (scores, labels, _) = scored(200 * (number + 1), number)
        right += int(((scores >= 0) == (labels > 0.5)).sum())
        overview.hear_worker(f"worker-{number}", worker(validation))
    overview.progress("learning", "", 1.0)
    assert overview.summary["accuracy"] == pytest.approx(right / 600)


@pytest.mark.parametrize("model", [MfConfig(), DeepConfig(loss="squared")], ids=["mf", "deep"])
def test_ratings_have_rmse_and_mae_pooled(model: ModelConfig) -> None:
    overview = Overview(model)
    first = overview.last
    assert (first.measure, list(first.figures)) == ("rmse", ["mae", "mae_window"])
    assert math.isnan(first.loss)
    rng = np.random.default_rng(5)
    validations = [RatingValidation(80), RatingValidation(80)]
    for number, validation in enumerate(validations):
        scores, labels = rng.normal(3, 1, (2, 300)).astype(np.float32)
        validation.update(scores, labels, np.ones(300, np.float32))
        overview.hear_worker(f"worker-{number}", worker(validation, last=[4.0, 3.5, 2]))
    both = RatingValidation(80)
    for validation in validations:
        both.merge(validation)
    sums = both.totals()._asdict()
    overview.hear_shard("shard-0", {"totals": sums | {"bytes": 6_000}})
    progress = overview.progress("learning", "", 1.0)
    summary = both.summary()
    assert progress.examples == 600
    for name, value in (
        ("loss", progress.loss),
        ("loss_window", progress.loss_window),
        ("baseline_rmse", progress.baseline_loss),
        ("mae", progress.figures["mae"]),
        ("mae_window", progress.figures["mae_window"]),
    ):
        assert value == pytest.approx(summary[name]), name
    assert progress.last_prediction == 3.5  # a rating, and no logit
    assert "auc" not in overview.summary
