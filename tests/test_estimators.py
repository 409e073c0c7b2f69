"""The Python API as users of scikit-learn, of river and of the command line meet it."""

from __future__ import annotations

import copy
import doctest
import io
import json
import pickle
import random
import re
import subprocess
import sys
import warnings
from inspect import signature
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
import river.base
import river.checks
import river.compose
import river.evaluate
import river.metrics
import river.preprocessing
import scipy.sparse as sp
from sklearn.base import clone, is_classifier
from sklearn.datasets import dump_svmlight_file, make_classification
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction import FeatureHasher
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from streamlearn import FactorizationMachine, LogisticRegression, node
from streamlearn.config import JobConfig, OutputConfig, SourceConfig
from streamlearn.errors import ConfigError, SnapshotError, TableFullError
from streamlearn.inspection import inspect
from streamlearn.kinds import MODELS, LrConfig, ModelConfig
from streamlearn.learned import SETTINGS, settings_of
from streamlearn.model import load
from tests.reference.ftrl import LogisticTwin

WEIGHTED = "an example of weight w moves the weights once by w gradients, it is not shown w times"
EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": WEIGHTED,
    "check_sample_weight_equivalence_on_sparse_data": WEIGHTED,
}


@parametrize_with_checks(
    [
        LogisticRegression(),
        LogisticRegression(index="hashed", bits=12),
        LogisticRegression(rule="adagrad", l1=0.001),
        LogisticRegression(rule="sgd", alpha=0.05, l1=0.001),
        FactorizationMachine(),
        FactorizationMachine(dim=4, threshold=2, l1=0.01),
        FactorizationMachine(dim=3, order=3, index="hashed", bits=12, l1=0.01),
    ],
    expected_failed_checks=lambda _: EXPECTED_FAILURES,
)
def test_keeps_what_scikit_learn_promises(estimator: Any, check: Any) -> None:
    check(estimator)


class RiverModel(LogisticRegression, river.base.MiniBatchClassifier):
    """The same with river's own base class, which its checks ask for their parameters."""

    __repr__ = river.base.MiniBatchClassifier.__repr__
    clone = river.base.MiniBatchClassifier.clone


class RiverMachine(FactorizationMachine, river.base.MiniBatchClassifier):
    """The other one with it."""

    __repr__ = river.base.MiniBatchClassifier.__repr__
    clone = river.base.MiniBatchClassifier.clone


@pytest.mark.parametrize("model", [RiverModel(), RiverMachine(threshold=2, l1=0.1)], ids=repr)
@pytest.mark.parametrize(
    "check", list(river.checks.yield_checks(RiverModel())), ids=lambda check: check.__name__
)
def test_keeps_what_river_promises(model: Any, check: Any) -> None:
    check(model.clone())


def machine(**settings: Any) -> FactorizationMachine:
    """Return a factorization machine whose features earn embeddings within a short test."""
    quick = {"dim": 4, "threshold": 2, "l1": 0.1, "v_lr": 0.1, "v_init_scale": 0.2}
    return FactorizationMachine(**{**quick, **settings})


@pytest.fixture(params=[LogisticRegression, machine], ids=["lr", "fm"])
def new(request: pytest.FixtureRequest) -> Any:
    """Makes an estimator of each kind."""
    return request.param


@pytest.mark.parametrize("estimator", [LogisticRegression, FactorizationMachine])
def test_the_settings_of_an_estimator_are_those_of_its_model(estimator: Any) -> None:
    struct = MODELS[estimator._kind]
    settings = estimator().get_params()
    assert set(settings) >= set(struct.__struct_fields__)
    assert set(settings) == set(SETTINGS[estimator._kind])
    assert settings == settings_of(JobConfig(model=struct()))
    job = estimator()._job()
    assert msgspec.to_builtins(job) == msgspec.to_builtins(JobConfig(model=struct()))
    documented = re.findall(r"^    (\w+) : ", estimator.__doc__, re.MULTILINE)
    assert documented[: len(settings)] == list(signature(estimator).parameters)


# --- matrices


def matrix(rows: int = 300, columns: int = 12, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, columns)) * (rng.random((rows, columns)) < 0.4)
    y = (x @ rng.normal(size=columns) + rng.normal(size=rows) > 0).astype(int)
    return x, y


def digest(model: LogisticRegression | FactorizationMachine) -> str:
    return model._ready().model.digest()


@pytest.mark.parametrize("rule", ["ftrl", "adagrad", "sgd"])
@pytest.mark.parametrize("penalty", [(0.0, 0.0), (0.5, 0.0), (0.1, 0.3)])
def test_learns_what_the_equations_say(rule: str, penalty: tuple[float, float]) -> None:
    l1, l2 = penalty if rule == "ftrl" else (penalty[0] / 50, penalty[1] / 50)
    settings: dict[str, Any] = {"rule": rule, "alpha": 0.2, "beta": 0.7, "l1": l1, "l2": l2}
    x, y = matrix()
    weights = np.random.default_rng(1).choice([0.5, 1.0, 3.0], len(y))
    model = LogisticRegression(**settings).partial_fit(x, y, sample_weight=weights)
    twin = LogisticTwin(**settings)
    examples = [(np.flatnonzero(row).tolist(), row[row != 0].tolist()) for row in x]
    twin.learn_all(examples, y.tolist(), weights.tolist())
    expected = [twin.weight(column) for column in range(x.shape[1])]
    # float32 columns: a relative 2**-24 a step, over some hundred steps
    np.testing.assert_allclose(model.coef_[0], expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(model.intercept_, twin.intercept_weight(), rtol=1e-3, atol=1e-4)
    probabilities = [twin.probability(*example) for example in examples]
    np.testing.assert_allclose(model.predict_proba(x)[:, 1], probabilities, atol=1e-3)


@pytest.mark.parametrize(
    "form",
    [
        np.float32,
        np.asfortranarray,
        sp.csr_matrix,
        sp.csr_array,
        sp.csc_matrix,
        sp.coo_matrix,
        lambda x: x.tolist(),
        lambda x: sp.csr_matrix(x.astype(np.float32)),
        pd.DataFrame,
    ],
)
def test_the_form_of_a_matrix_is_of_no_matter(new: Any, form: Any) -> None:
    x, y = matrix()
    x = x.astype(np.float32).astype(np.float64)
    expected = new().partial_fit(x, y)
    model = new().partial_fit(form(x), y)
    assert digest(model) == digest(expected)
    assert (model.predict_proba(form(x)) == expected.predict_proba(x)).all()


def test_duplicate_entries_of_a_sparse_matrix_are_summed() -> None:
    twice = sp.csr_matrix(([1.0, 2.0, 5.0], [3, 3, 0], [0, 2, 3]), shape=(2, 4))
    model = LogisticRegression(l1=0.0).fit(twice, [0, 1])
    assert twice.nnz == 3
    assert digest(model) == digest(LogisticRegression(l1=0.0).fit(twice.toarray(), [0, 1]))


def test_wide_and_long_matrices_are_cut_without_a_seam(new: Any) -> None:
    rng = np.random.default_rng(5)
    tall = sp.random(5000, 300, density=0.2, random_state=3, format="csr")
    wide = sp.random(30, 200_000, density=0.002, random_state=4, format="csr")
    for x in (tall, wide):
        y = rng.integers(0, 2, x.shape[0])
        whole = new(l1=0.1).partial_fit(x, y, classes=[0, 1])
        rows = new(l1=0.1)
        for i in range(0, x.shape[0], 7):
            rows.partial_fit(x[i : i + 7], y[i : i + 7], classes=[0, 1])
        assert digest(whole) == digest(rows)
        dense = new(l1=0.1).partial_fit(x.toarray(), y, classes=[0, 1])
        assert digest(dense) == digest(whole)
        assert np.array_equal(whole.predict_proba(x), dense.predict_proba(x.toarray()))


def test_partial_fit_goes_on_and_fit_begins_anew(new: Any) -> None:
    x, y = matrix()
    once = new().partial_fit(x, y)
    twice = new().partial_fit(x, y).partial_fit(x, y)
    assert digest(twice) == digest(new(epochs=2).fit(x, y))
    assert digest(twice.fit(x, y)) == digest(once)


def test_labels_may_be_any_two() -> None:
    x, y = matrix()
    plain = LogisticRegression().fit(x, y)
    for pair in (["ham", "spam"], [-1, 1], [False, True], [3.0, 7.0], [1, 2]):
        labels = np.array(pair)[y]
        model = LogisticRegression().fit(x, labels)
        assert model.classes_.tolist() == pair
        assert model.predict(x).tolist() == [pair[i] for i in plain.predict(x)]
        assert model.score(x, labels) == plain.score(x, y)
        assert set(model.predict_proba_one({0: 1.0})) == set(pair)


def test_classes_that_come_later_are_named_first() -> None:
    x, _ = matrix()
    with pytest.raises(ValueError, match="one class"):
        LogisticRegression().partial_fit(x, np.ones(len(x)))
    model = LogisticRegression().partial_fit(x, ["b"] * len(x), classes=["a", "b"])
    assert model.predict(x).tolist() == ["b"] * len(x)
    with pytest.raises(ValueError, match="'c'"):
        model.partial_fit(x[:1], ["c"])
    with pytest.raises(ValueError, match="calls before"):
        model.partial_fit(x[:1], ["a"], classes=["a", "c"])
    with pytest.raises(ValueError, match="Only binary"):
        LogisticRegression().fit(x[:3], [0, 1, 2])


def test_what_is_wrong_with_a_matrix_teaches_nothing() -> None:
    x, y = matrix()
    model = LogisticRegression().partial_fit(x, y)
    before = digest(model)
    for bad, message in [
        (np.nan, "NaN"),
        (np.inf, "infinity"),
        (1e39, "too large"),
    ]:
        spoilt = x.copy()
        spoilt[-1, -1] = bad
        for form in (spoilt, sp.csr_matrix(spoilt), pd.DataFrame(spoilt)):
            with pytest.raises(ValueError, match=message):
                model.partial_fit(form, y)
            with pytest.raises(ValueError, match=message):
                model.predict(form)
    with pytest.raises(ValueError, match="X has 11 features"):
        model.partial_fit(x[:, :11], y)
    with pytest.raises(ValueError, match="inconsistent"):
        model.partial_fit(x, y[:-1])
    with pytest.raises(ValueError, match="Expected 2D"):
        model.partial_fit(x[0], y[:1])
    with pytest.raises(ValueError, match="0 sample"):
        model.partial_fit(x[:0], y[:0])
    with pytest.raises(ValueError, match="negative"):
        model.partial_fit(x, y, sample_weight=-np.ones(len(y)))
    with pytest.raises(ValueError, match="65,537 features"):
        LogisticRegression().fit(np.ones((2, 65_537)), [0, 1])
    assert digest(model) == before


def test_an_example_of_weight_zero_teaches_nothing() -> None:
    x, y = matrix()
    weights = np.random.default_rng(2).integers(0, 2, len(y)).astype(float)
    for rule in ("ftrl", "adagrad", "sgd"):
        some = LogisticRegression(rule=rule, l1=0.01).partial_fit(x, y, sample_weight=weights)
        kept = LogisticRegression(rule=rule, l1=0.01).partial_fit(x[weights > 0], y[weights > 0])
        assert digest(some) == digest(kept)


def test_settings_are_checked_when_something_is_learned() -> None:
    x, y = matrix(10)
    with pytest.raises(ValueError, match=r"alpha.* > 0"):
        LogisticRegression(alpha=-1.0).fit(x, y)
    with pytest.raises(ValueError, match="ftrl, adagrad, sgd"):
        LogisticRegression(rule="adam").fit(x, y)
    model = LogisticRegression().partial_fit(x, y)
    model.set_params(alpha=0.01, l1=0.5).partial_fit(x, y)
    with pytest.raises(ValueError, match="fit begins anew"):
        model.set_params(rule="sgd").partial_fit(x, y)
    assert model.fit(x, y).score(x, y) > 0


def test_a_full_table_says_so(new: Any) -> None:
    x = sp.identity(20_000, format="csr")
    with pytest.raises(TableFullError, match="features_max"):
        new(features_max=5000).fit(x, np.arange(20_000) % 2)


def test_nothing_is_predicted_before_something_is_learned(new: Any) -> None:
    with pytest.raises(NotFittedError):
        new().predict([[1.0]])
    for name in ("coef_", "intercept_", "classes_", "n_features_in_"):
        assert not hasattr(new(), name)


# --- frames


def test_a_frame_teaches_what_its_rows_as_mappings_teach(new: Any) -> None:
    rng = random.Random(3)
    rows = [
        {
            "origin": rng.choice(["LAS", "SFO", "JFK", None]),
            "carrier": rng.choice(["AA", "Ü", "a longer name than eight bytes"]),
            "distance": rng.choice([0.0, 1.5, -2.0, 1e-3]),
            "weekend": rng.random() < 0.3,
            "seats": rng.randrange(3),
        }
        for _ in range(400)
    ]
    late = [row["origin"] == "SFO" or row["distance"] > 1 for row in rows]
    frame = pd.DataFrame(rows)
    one, many, matrix_ = (new(l1=0.1) for _ in range(3))
    for row, label in zip(rows, late, strict=True):
        assert one.learn_one(row, label) is None
    assert many.learn_many(frame, pd.Series(late)) is None
    matrix_.partial_fit(frame, late)
    categories = new(l1=0.1)
    categories.learn_many(frame.astype({"origin": "category", "carrier": object}), late)
    assert digest(one) == digest(many) == digest(matrix_) == digest(categories)
    expected = [one.predict_proba_one(row)[True] for row in rows]
    assert many.predict_proba_many(frame)[True].tolist() == expected
    assert matrix_.predict_proba(frame)[:, 1].tolist() == expected
    assert many.predict_many(frame).tolist() == [one.predict_one(row) for row in rows]
    assert not hasattr(matrix_, "coef_")


def test_columns_of_a_frame_keep_their_names(new: Any) -> None:
    x, y = matrix(columns=3)
    frame = pd.DataFrame(x, columns=["a", "b", "c"])
    model = new().fit(frame, y)
    assert model.feature_names_in_.tolist() == ["a", "b", "c"]
    assert {entry["feature"] for entry in model.weights()} == {"a=", "b=", "c="}
    row = dict(frame.iloc[0])
    assert model.predict_proba_one(row)[1] == model.predict_proba(frame)[0, 1]
    with pytest.warns(UserWarning, match="valid feature names"):
        assert np.allclose(model.predict_proba(x), model.predict_proba(frame))
    with pytest.raises(ValueError, match="same order"):
        model.predict(frame[["b", "a", "c"]])
    with pytest.raises(ValueError, match="unseen at fit time"):
        model.predict(frame.rename(columns={"a": "z"}))
    with pytest.raises(TypeError, match="string names"):
        new().fit(pd.DataFrame(x, columns=["a", 1, "c"]), y)
    assert np.shape(model.coef_) == (1, 3)


def test_nullable_numbers_are_numbers_and_missing_ones_missing_to_river() -> None:
    frame = pd.DataFrame({"a": pd.array([1, None, 2], "Int64"), "b": [0.5, 1.0, np.nan]})
    with pytest.raises(ValueError, match="NaN"):
        LogisticRegression().fit(frame, [0, 1, 1])
    many, one = LogisticRegression(), LogisticRegression()
    many.learn_many(frame, [0, 1, 1])
    for row, label in (({"a": 1, "b": 0.5}, 0), ({"b": 1.0}, 1), ({"a": 2, "b": np.nan}, 1)):
        one.learn_one(row, label)
    assert digest(many) == digest(one)


class Column:
    """A column as polars has them: a type of its own, no codes of categories."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values
        self.dtype = self

    def is_numeric(self) -> bool:
        return not any(isinstance(value, str | bool) for value in self.values)

    def __str__(self) -> str:
        return "Boolean" if isinstance(self.values[0], bool) else "String"

    def __iter__(self) -> Any:
        return iter(self.values)

    def __len__(self) -> int:
        return len(self.values)

    def to_numpy(self) -> Any:
        return np.array([np.nan if value is None else value for value in self.values])


class Frame(dict[str, Column]):
    @property
    def columns(self) -> list[str]:
        return list(self)

    def __len__(self) -> int:
        return len(next(iter(self.values())))


def test_frames_of_other_libraries_are_read_by_their_columns() -> None:
    data = {"a": [1, None, 2], "b": ["x", None, "y"], "c": [True, False, True]}
    many, one = LogisticRegression(), LogisticRegression()
    many.learn_many(Frame({name: Column(values) for name, values in data.items()}), [0, 1, 1])
    for values, label in zip(zip(*data.values(), strict=True), [0, 1, 1], strict=True):
        one.learn_one(dict(zip(data, values, strict=True)), label)
    assert digest(many) == digest(one)


def test_a_frame_may_have_new_columns_and_lack_old_ones(new: Any) -> None:
    many, one = new(l1=0.0), new(l1=0.0)
    for names in ("ab", "b", "bcd", "a"):
        rows = [{name: float(i + 1) for name in names} for i in range(3)]
        many.learn_many(pd.DataFrame(rows), [0, 1, 1])
        for row, label in zip(rows, [0, 1, 1], strict=True):
            one.learn_one(row, label)
    assert digest(many) == digest(one)
    unseen = pd.DataFrame({"z": [1.0], "a": [2.0]})
    expected = many.predict_proba_one({"a": 2.0})
    assert many.predict_proba_many(unseen).to_dict("records") == [expected]


# --- one record at a time


def test_the_order_of_fields_changes_nothing(new: Any) -> None:
    rng = random.Random(0)
    straight, shuffled = new(l1=0.0), new(l1=0.0)
    for i in range(200):
        record = {f"f{j}": rng.gauss(0, 1) for j in range(20)} | {"kind": f"k{i % 5}"}
        items = list(record.items())
        rng.shuffle(items)
        straight.learn_one(record, i % 3 == 0)
        shuffled.learn_one(dict(items), i % 3 == 0)
    assert digest(straight) == digest(shuffled)


def test_a_record_is_predicted_before_anything_is_learned(new: Any) -> None:
    model = new()
    assert model.predict_proba_one({"a": 1.0}) == {False: 0.5, True: 0.5}
    assert model.predict_one({}) is False
    model.learn_one({}, True)
    assert model.predict_one({"unseen": "value"}) is True


def test_lists_and_mappings_within_a_record_are_flattened() -> None:
    deep, flat = LogisticRegression(), LogisticRegression()
    deep.learn_one({"user": {"id": "u7", "age": 31}, "tags": ["a", "b", None]}, 1)
    flat.learn_one({"user.id": "u7", "user.age": 31.0, "tags": ("b", "a", "")}, 1)
    assert digest(deep) == digest(flat)


def test_what_no_feature_can_be_made_of_is_refused() -> None:
    model = LogisticRegression()
    for record, error in [
        ({"a": float("inf")}, ValueError),
        ({"a": 10**60}, ValueError),
        ({"a": object()}, TypeError),
        ({"a": b"bytes"}, TypeError),
        ({(1, 2): 1.0}, TypeError),
        ({-1: 1.0}, ValueError),
    ]:
        with pytest.raises(error):
            model.learn_one(record, True)
    with pytest.raises(ValueError, match="'maybe'"):
        model.learn_one({"a": 1.0}, "maybe")
    with pytest.raises(ValueError, match="weight"):
        model.learn_one({"a": 1.0}, True, w=-1.0)
    assert model.examples_ == 0


def test_whole_numbers_are_columns_of_matrices(new: Any) -> None:
    x, y = matrix(50)
    model, one = new(l1=0.1).fit(x, y), new(l1=0.1)
    for row, label in zip(x, y, strict=True):
        one.learn_one(dict(enumerate(row.tolist())), bool(label))
    expected = [one.predict_proba_one(dict(enumerate(row)))[True] for row in x]
    np.testing.assert_allclose(model.predict_proba(x)[:, 1], expected, atol=1e-5)
    np.testing.assert_allclose(one.predict_proba(x)[:, 1], expected, atol=1e-5)


def test_works_in_rivers_pipelines_and_evaluation(new: Any) -> None:
    model = river.preprocessing.StandardScaler() | new(l1=0.01, alpha=0.5)
    assert isinstance(new(), river.base.Classifier)
    rng = random.Random(1)
    stream = []
    for _ in range(500):
        record = {"a": rng.gauss(5, 3), "b": rng.gauss(-1, 0.1)}
        stream.append((record, record["a"] > 5))
    metric = river.evaluate.progressive_val_score(stream, model, river.metrics.ROCAUC())
    assert metric.get() > 0.95


def test_progressive_validation_is_that_of_the_scores_before_learning(new: Any) -> None:
    x, y = matrix(200)
    model, losses = new(alpha=0.5, l1=0.1), []
    for row, label in zip(x, y, strict=True):
        record = dict(enumerate(row.tolist()))
        losses.append(-np.log(model.predict_proba_one(record)[bool(label)]))
        model.learn_one(record, label)
    # where a feature earns its embedding, its example is scored with it, a prediction before is not
    rel = 1e-5 if new is LogisticRegression else 1e-3
    assert model.progressive()["logloss"] == pytest.approx(np.mean(losses), rel=rel)
    whole = new(alpha=0.5, l1=0.1).partial_fit(x, y)
    assert whole.progressive()["logloss"] == pytest.approx(np.mean(losses), rel=max(rel, 1e-4))
    assert whole.examples_ == model.examples_ == 200


# --- copies


@pytest.mark.parametrize("index", ["exact", "hashed"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_in_mid_stream_goes_on_as_the_original(new: Any, index: str, copied: Any) -> None:
    x, y = matrix()
    model = new(index=index, bits=12, l1=0.1).partial_fit(x[:150], y[:150])
    model.learn_one({"origin": "LAS", "distance": 2.0}, 1)
    other = copied(model)
    assert digest(other) == digest(model)
    assert np.array_equal(other.predict_proba(x), model.predict_proba(x))
    assert other.weights() == model.weights()
    before = digest(model)
    other.partial_fit(x[150:], y[150:])
    other.learn_one({"origin": "SFO"}, 0)
    assert digest(model) == before
    model.partial_fit(x[150:], y[150:])
    model.learn_one({"origin": "SFO"}, 0)
    assert digest(other) == digest(model)
    assert other.progressive() == model.progressive()


def test_a_clone_has_the_settings_and_nothing_learned() -> None:
    x, y = matrix()
    model = LogisticRegression(alpha=0.7, rule="sgd").fit(x, y)
    for copy_ in (clone(model), model.clone()):
        assert copy_.get_params() == model.get_params()
        assert not hasattr(copy_, "coef_")
    assert model.clone({"alpha": 0.2}).alpha == 0.2


def test_works_in_pipelines_and_grid_search() -> None:
    x, y = make_classification(400, 10, random_state=0)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    search = GridSearchCV(
        pipeline,
        {"logisticregression__alpha": np.logspace(-2, 0, 3), "logisticregression__l1": [0, 0.5]},
        cv=3,
    ).fit(x, y)
    assert search.best_score_ > 0.8
    hashed = FeatureHasher(2**18).transform([{"a": i % 3, f"b{i % 7}": 1} for i in range(300)])
    model = LogisticRegression(l1=0.0).fit(hashed, [i % 3 == 2 for i in range(300)])
    assert model.score(hashed, [i % 3 == 2 for i in range(300)]) > 0.9
    assert is_classifier(model)
    assert "LogisticRegression" in model._repr_html_()


def test_sparse_coefficients_are_the_dense_ones() -> None:
    x, y = matrix()
    model = LogisticRegression(l1=15.0).fit(x, y)
    dense = model.coef_
    assert 0 < np.count_nonzero(dense) < dense.size
    assert sp.issparse(model.sparsify().coef_)
    assert np.array_equal(model.coef_.toarray(), dense)
    assert np.array_equal(model.densify().coef_, dense)


# --- the command line's models


def train(tmp_path: Path, text: str, settings: ModelConfig | None = None, **source: Any) -> Path:
    log = tmp_path / "log.txt"
    log.write_text(text)
    job = JobConfig(
        source=SourceConfig(uri=(str(log),), **source),
        model=settings or LrConfig(),
        output=OutputConfig(dir=str(tmp_path / "out")),
    )
    node.train(job, lambda _: None)
    return tmp_path / "out"


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_matrix_teaches_the_bytes_of_the_same_svmlight_file(
    new: Any, tmp_path: Path, epochs: int
) -> None:
    x, y = matrix(2000)
    x = np.round(x, 3)
    lines = io.BytesIO()
    dump_svmlight_file(x, y, lines, zero_based=True)
    model = new(alpha=0.3, l1=0.2, epochs=epochs).fit(x, y)
    settings = model._job().model
    out = train(tmp_path, lines.getvalue().decode(), settings, format="svmlight")
    assert digest(model) == load(out).digest()
    loaded = type(model).load(out)
    assert loaded.classes_.tolist() == [0, 1]
    assert np.array_equal(loaded.predict_proba(x), model.predict_proba(x))
    assert loaded.get_params() == model.get_params()
    assert digest(loaded.partial_fit(x, y)) == digest(model.partial_fit(x, y))


CSV = "late,when,origin,distance,delay\n" + "".join(
    f"{i % 2},2026-11-{1 + i % 28:02}T{i % 24:02}:05,{'LAS' if i % 2 else 'SFO'},{i * 7 % 900},9\n"
    for i in range(500)
)


def test_mappings_are_read_by_the_schema_of_a_log(new: Any, tmp_path: Path) -> None:
    columns = {"late": "label", "when": "time", "origin": "categorical", "distance": "number"}
    settings = new()._job().model
    out = train(
        tmp_path,
        CSV,
        settings,
        format="delimited",
        header=True,
        columns=columns,
        cross=("origin*when.hour",),
    )
    model = type(new()).load(out)
    log = tmp_path / "log.txt"
    source = SourceConfig(
        uri=(str(log),),
        format="delimited",
        header=True,
        columns=columns,
        cross=("origin*when.hour",),
    )
    told: list[float] = []
    node.predict(out, JobConfig(source=source, model=settings), told.extend)
    frame = pd.read_csv(log)
    assert model.predict_proba(frame)[:, 1].tolist() == pytest.approx(told, abs=1e-6)
    first = {"when": "2026-11-01T00:05", "origin": "SFO", "distance": 0}
    assert model.predict_proba_one(first)[1] == pytest.approx(told[0], abs=1e-6)
    assert model.predict_many(frame).tolist() == (np.array(told) > 0.5).astype(int).tolist()
    with pytest.raises(ValueError, match="fields"):
        model.predict(np.ones((2, 3)))
    with pytest.raises(ValueError, match="not a finite number"):
        model.predict_one(first | {"distance": "far"})
    before = model.examples_
    model.learn_one(first, 1)
    model.learn_many(frame.drop(columns="late").head(3), frame["late"].head(3))
    model.partial_fit(frame.head(2), frame["late"].head(2))
    assert model.examples_ == before + 6
    again = pickle.loads(pickle.dumps(model))
    assert again.predict_proba_one(first) == model.predict_proba_one(first)
    model.save(out)
    assert digest(type(model).load(out)) == digest(model)


def test_mappings_are_read_as_untyped_json_was(tmp_path: Path) -> None:
    records = [
        {"label": i % 2, "user": {"id": f"u{i % 5}"}, "n": i % 9, "tags": ["a", f"t{i % 3}"]}
        for i in range(300)
    ]
    out = train(tmp_path, "".join(f"{json.dumps(r)}\n" for r in records), format="jsonl")
    model = LogisticRegression.load(out)
    told: list[float] = []
    job = JobConfig(source=SourceConfig(uri=(str(tmp_path / "log.txt"),), format="jsonl"))
    node.predict(out, job, told.extend)
    found = [model.predict_proba_one(record)[1] for record in records]
    assert found == pytest.approx(told, abs=1e-6)


def test_what_python_saves_the_command_line_opens(new: Any, tmp_path: Path) -> None:
    model = new(l1=0.0, alpha=0.5)
    for i in range(50):
        model.learn_one({"origin": "LAS" if i % 2 else "SFO", "distance": i / 50}, bool(i % 2))
    model.save(tmp_path / "out")
    report = inspect(tmp_path / "out", 5)
    assert report["examples"] == 50
    assert report["weights"] == model.weights(5)
    assert report["logloss"] == model.progressive()["logloss"]
    log = tmp_path / "today.jsonl"
    log.write_text('{"label": 1, "origin": "LAS", "distance": 0.5}\n')
    job = JobConfig(
        source=SourceConfig(
            uri=(str(log),),
            format="jsonl",
            columns={"origin": "categorical", "distance": "number:raw", "label": "label"},
        ),
        model=model._job().model,
    )
    told: list[float] = []
    node.predict(tmp_path / "out", job, told.extend)
    record = {"origin": "LAS", "distance": 0.5}
    assert told == [pytest.approx(model.predict_proba_one(record)[True], abs=1e-6)]
    output = OutputConfig(dir=str(tmp_path / "out"))
    assert node.train(msgspec.structs.replace(job, output=output), lambda _: None)["examples"] == 51
    model.learn_one(record, True)
    loaded = type(model).load(tmp_path / "out")
    assert loaded.examples_ == 51
    assert loaded.predict_proba_one(record)[True] == pytest.approx(
        model.predict_proba_one(record)[True], abs=1e-6
    )


@pytest.mark.parametrize("index", ["exact", "hashed"])
def test_a_saved_model_goes_on_as_the_original(new: Any, tmp_path: Path, index: str) -> None:
    x, y = matrix()
    frame = pd.DataFrame(x, columns=[f"c{j}" for j in range(x.shape[1])])
    labels = np.array(["no", "yes"])[y]
    model = new(index=index, bits=12, epochs=2).fit(frame, labels)
    model.save(tmp_path / "out")
    model.save(str(tmp_path / "out"))
    loaded = type(model).load(tmp_path / "out")
    assert loaded.get_params() == model.get_params()
    assert loaded.classes_.tolist() == ["no", "yes"]
    assert loaded.feature_names_in_.tolist() == model.feature_names_in_.tolist()
    assert np.array_equal(loaded.predict_proba(frame), model.predict_proba(frame))
    assert loaded.weights() == model.weights()
    for one in (model, loaded):
        one.partial_fit(frame, labels)
    assert digest(loaded) == digest(model)


def test_a_model_of_another_kind_is_opened_by_another_class(tmp_path: Path) -> None:
    for model, other in ((LogisticRegression(), machine()), (machine(), LogisticRegression())):
        model.learn_one({"a": 1}, True)
        model.save(tmp_path / "out")
        own = type(model)
        with pytest.raises(ConfigError, match=rf"streamlearn\.{own.__name__}\.load"):
            type(other).load(tmp_path / "out")
        assert own.load(tmp_path / "out").examples_ == 1


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model"):
        LogisticRegression.load(tmp_path)
    model = LogisticRegression()
    model.learn_one({"a": 1}, True)
    model.save(tmp_path)
    (tmp_path / "estimator.json").write_text("{")
    with pytest.raises(SnapshotError, match=r"estimator\.json"):
        LogisticRegression.load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SnapshotError):
        model.save(tmp_path / "file")


# --- imports

ALONE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"sklearn", "scipy", "river", "pandas"}:
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
import numpy as np
from streamlearn import FactorizationMachine, LogisticRegression
rng = np.random.default_rng(0)
X = rng.normal(size=(500, 4)); y = X[:, 0] > 0
model = LogisticRegression(alpha=0.5)
assert repr(model) == "LogisticRegression(alpha=0.5)", repr(model)
assert model.get_params()["alpha"] == 0.5 and model.set_params(l1=0.1) is model
try:
    model.set_params(gamma=1)
except ValueError as error:
    assert "gamma" in str(error)
else:
    raise AssertionError
try:
    model.predict(X)
except ValueError as error:
    assert "not fitted" in str(error)
assert model.fit(X, y).score(X, y) > 0.9
assert model.score(X, y, sample_weight=np.ones(500)) > 0.9
model.learn_one({"a": 1.0}, True)
import pickle
assert pickle.loads(pickle.dumps(model)).weights() == model.weights()
machine = FactorizationMachine(dim=4, threshold=2, l1=0.1)
assert repr(machine) == "FactorizationMachine(dim=4, l1=0.1, threshold=2)", repr(machine)
assert machine.fit(X, y).score(X, y) > 0.9
"""


def test_works_where_scikit_learn_is_not_installed() -> None:
    subprocess.run([sys.executable, "-c", ALONE], check=True, timeout=120)


def test_importing_the_package_stays_light() -> None:
    code = "import sys, streamlearn; print(*sorted(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    ).stdout.split()
    assert not {"numba", "sklearn", "numpy", "river", "streamlearn.estimators"} & set(found)


def test_the_package_names_what_it_has() -> None:
    import streamlearn

    assert {"FactorizationMachine", "LogisticRegression"} <= set(dir(streamlearn))
    with pytest.raises(AttributeError, match="LinearRegression"):
        _ = streamlearn.LinearRegression


def test_a_column_of_labels_is_warned_about() -> None:
    x, y = matrix()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        LogisticRegression().fit(x, y[:, np.newaxis])
    assert "column-vector" in str(told[0].message)


# --- documentation


def blocks(page: str) -> list[str]:
    text = (Path(__file__).parent.parent / page).read_text()
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_the_page_about_python_says_what_happens() -> None:
    text = "\n".join(blocks("docs/python.md"))
    page = doctest.DocTestParser().get_doctest(text, {}, "docs/python.md", "docs/python.md", 0)
    told = io.StringIO()
    failed = doctest.DocTestRunner().run(page, out=told.write).failed
    assert not failed, told.getvalue()


def test_the_example_of_the_readme_runs() -> None:
    x, y = matrix()
    for block in blocks("README.md"):
        exec(block, {"X": x, "y": y})


def test_the_example_of_the_docstring_runs() -> None:
    import streamlearn.estimators

    assert doctest.testmod(streamlearn.estimators).failed == 0
