"""Metrics: what is declared is what is exposed and documented."""

from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from streamlearn import metrics as declared
from streamlearn.config import FmConfig
from streamlearn.metrics import METRICS, PREFIX, STATES, Metrics, metrics_table
from streamlearn.online.rating_validation import RatingValidation
from streamlearn.online.validation import BinaryValidation
from streamlearn.shards.arena import Arena
from streamlearn.shards.table import ExactTable

DOCS = Path(__file__).parent.parent / "docs" / "metrics.md"


def samples(registry: CollectorRegistry) -> dict[str, float]:
    return {
        sample.name + "".join(f"[{value}]" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def test_documentation_has_the_current_table() -> None:
    assert metrics_table() in DOCS.read_text(), "put metrics_table() into docs/metrics.md"


def test_names_follow_the_conventions() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric
        assert metric.text.endswith("."), metric
        assert ":" not in metric.name


def test_all_metrics_are_exposed_with_what_they_mean() -> None:
    registry = CollectorRegistry()
    Metrics(registry, "1.2.3")
    text = generate_latest(registry).decode()
    for metric in METRICS:
        assert f"# TYPE {PREFIX}{metric.name} {metric.kind}\n" in text
        assert f"# HELP {PREFIX}{metric.name} {metric.text}\n" in text
    assert 'streamlearn_build_info{python="' in text
    assert 'version="1.2.3"' in text


def test_exposition_is_valid_openmetrics() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry, "1")
    metrics.set(declared.REJECTED, 3, 'odd "reason"\n\\')
    metrics.set_state("learning")
    text = generate_openmetrics(registry).decode()
    families = {family.name for family in openmetrics.text_string_to_metric_families(text)}
    assert {f"{PREFIX}{m.name.removesuffix('_total')}" for m in METRICS} <= families


def test_values_are_set_and_added_by_label() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry, "1")
    metrics.set(declared.EXAMPLES, 10)
    metrics.add(declared.RETRIES, 1, "reset")
    metrics.add(declared.RETRIES, 2, "reset")
    metrics.add(declared.RETRIES, 5, "slow_down")
    seen = samples(registry)
    assert seen["streamlearn_examples_total"] == 10
    assert seen["streamlearn_source_retries_total[reset]"] == 3
    assert seen["streamlearn_source_retries_total[slow_down]"] == 5
    assert "streamlearn_table_features" not in seen


def test_figures_are_read_when_scraped() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry, "1")
    features = [0]
    metrics.on_scrape(lambda: metrics.set(declared.FEATURES, features[0]))
    features[0] = 7
    assert samples(registry)["streamlearn_table_features"] == 7
    features[0] = 9
    assert samples(registry)["streamlearn_table_features"] == 9


def test_one_state_is_set() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry, "1")
    metrics.set_state("learning")
    metrics.set_state("draining")
    seen = samples(registry)
    assert {state: seen[f"streamlearn_state[{state}]"] for state in STATES} == {
        state: float(state == "draining") for state in STATES
    }


def test_loss_is_the_ratio_of_two_sums() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry, "1")
    validation = BinaryValidation(100)
    rng = np.random.default_rng(0)
    scores = rng.normal(size=300).astype(np.float32)
    labels = (rng.random(300) < 0.4).astype(np.float32)
    validation.update(scores, labels, np.full(300, 2, np.float32))
    figures = validation.summary()
    metrics.set_validation(validation.totals(), figures)
    seen = samples(registry)
    weight = seen["streamlearn_example_weight_total"]
    assert seen["streamlearn_progressive_loss_sum_total"] / weight == figures["logloss"]
    assert seen["streamlearn_prediction_sum_total"] / seen[
        "streamlearn_label_sum_total"
    ] == pytest.approx(figures["calibration"])
    assert seen["streamlearn_progressive_auc[window]"] == figures["auc_window"]
    others = ("rmse", "mae", "absolute_error")
    assert not [name for name in seen for other in others if other in name]


def test_ratings_have_their_errors_and_nothing_of_clicks() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry, "1")
    validation = RatingValidation(100)
    labels, scores = np.random.default_rng(0).normal(-1, 2, (2, 300)).astype(np.float32)
    validation.update(scores, labels, np.full(300, 2, np.float32))
    metrics.set_validation(validation.totals(), {})  # before anybody has asked for a summary
    seen = samples(registry)
    assert not [name for name in seen if name.startswith("streamlearn_progressive_rmse")]
    figures = validation.summary()
    metrics.set_validation(validation.totals(), figures)
    seen = samples(registry)
    weight = seen["streamlearn_example_weight_total"]
    assert seen["streamlearn_progressive_loss_sum_total"] / weight == pytest.approx(
        figures["rmse"] ** 2
    )
    errors = seen["streamlearn_progressive_absolute_error_sum_total"]
    assert errors / weight == pytest.approx(figures["mae"])
    for name in ("rmse", "mae"):
        assert seen[f"streamlearn_progressive_{name}[run]"] == figures[name]
        assert seen[f"streamlearn_progressive_{name}[window]"] == figures[f"{name}_window"]
    others = ("label_sum", "prediction_sum", "progressive_auc")
    assert not [name for name in seen for other in others if other in name]
    assert not [name for name, value in seen.items() if np.isnan(value)]


def test_embeddings_are_shown_where_there_are_some() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry, "1")
    metrics.set_embeddings(None)
    assert "streamlearn_table_embeddings_bytes" not in samples(registry)
    table = ExactTable(1_000)
    arena = Arena.of(table, FmConfig(dim=8), 6_400)
    arena.live[0], arena.room[1] = 3, 7
    metrics.set_embeddings(arena)
    seen = samples(registry)
    assert seen["streamlearn_table_embeddings_bytes"] == 3 * 64
    assert seen["streamlearn_table_embeddings_bytes_max"] == 6_400
    assert seen["streamlearn_embeddings_refused_total"] == 7


def test_registries_share_nothing() -> None:
    first, second = CollectorRegistry(), CollectorRegistry()
    Metrics(first, "1").set(declared.EXAMPLES, 1)
    Metrics(second, "1")
    assert "streamlearn_examples_total" not in samples(second)


def test_labels_are_bounded_and_as_declared() -> None:
    metrics = Metrics(CollectorRegistry(), "1")
    with pytest.raises(AssertionError, match="has labels"):
        metrics.set(declared.REJECTED, 1)
    for i in range(declared.CHILDREN_MAX):
        metrics.set(declared.REJECTED, 1, f"reason {i}")
    with pytest.raises(AssertionError, match="source_rejected_total"):
        metrics.set(declared.REJECTED, 1, "one more")


def test_process_is_measured_too() -> None:
    registry = CollectorRegistry()
    Metrics(registry, "1")
    assert samples(registry)["process_resident_memory_bytes"] > 0
