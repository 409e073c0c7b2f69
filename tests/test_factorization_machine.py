"""What a factorization machine has that a logistic regression has not, from Python.

What both have is in ``test_estimators.py``.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from streamlearn import FactorizationMachine, LogisticRegression
from tests.reference.fm import Machine
from tests.reference.tables import minibatch

# Embeddings from the first example on, and steps large enough to see.
EAGER: dict[str, Any] = {
    "dim": 4,
    "threshold": 0,
    "l1": 0.0,
    "v_lr": 0.1,
    "v_init_scale": 0.2,
}


def digest(model: FactorizationMachine) -> str:
    return model._ready().model.digest()


def matrix(rows: int = 400, columns: int = 8, seed: int = 0) -> tuple[Any, Any]:
    """Return features about one in three of which are there, and labels of sums of products."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, columns)) * (rng.random((rows, columns)) < 0.4)
    pairs = np.triu(rng.normal(size=(columns, columns)), 1)
    score = x @ rng.normal(size=columns) + np.einsum("ni,ij,nj->n", x, pairs, x)
    return x, (score > 0).astype(int)


def parities(order: int) -> tuple[Any, Any]:
    """Return records of ``order`` fields whose label is a parity: no fewer fields say anything."""
    bits = np.random.default_rng(order).integers(0, 2, (2000, order))
    records = [{f"f{j}": f"t{bit}" for j, bit in enumerate(row)} for row in bits.tolist()]
    return records, (bits.sum(axis=1) % 2).astype(bool).tolist()


# --- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 0}, r"model\.dim.* >= 1 and <= 512.* 0"),
        ({"dim": 513}, r"model\.dim"),
        ({"dim": "many"}, r"model\.dim"),
        ({"order": 4}, r"model\.order.*2 or 3.*4"),
        ({"threshold": -1}, r"model\.threshold.* >= 0"),
        ({"dim_by_count": {1000: 32, 10: 8}}, r"model\.dim_by_count.*ascending"),
        ({"dim_by_count": {10: 32, 1000: 8}}, r"model\.dim_by_count.*ascending"),
        ({"dim_by_count": {10: 0}}, r"model\.dim_by_count.*from 1 to 512"),
        ({"dim_by_count": {2.5: 8}}, r"model\.dim_by_count"),
        ({"dim_by_count": [(10, 8)]}, r"model\.dim_by_count"),
        ({"dim_by_count": {10: 8}, "index": "hashed", "bits": 10}, "hashed"),
        ({"v_lr": 0.0}, r"model\.v_lr.* > 0"),
        ({"v_dropout": 1.0}, r"model\.v_dropout"),
        ({"v_l2": float("nan")}, r"model\.v_l2"),
        ({"embeddings_bytes_max": -1}, r"tables\.embeddings_bytes_max"),
    ],
    ids=str,
)
def test_a_setting_that_is_not_allowed_is_named(settings: dict[str, Any], message: str) -> None:
    x, y = matrix(10)
    with pytest.raises(ValueError, match=message):
        FactorizationMachine(**settings).fit(x, y)


def test_rates_may_change_and_what_embeddings_are_may_not() -> None:
    x, y = matrix()
    model = FactorizationMachine(**EAGER).partial_fit(x, y)
    before = digest(model)
    model.set_params(alpha=0.02, v_lr=0.02, v_l2=0.1, v_clip=1.0, v_dropout=0.1).partial_fit(x, y)
    assert digest(model) != before
    for changed in (
        {"dim": 8},
        {"order": 3},
        {"threshold": 7},
        {"dim_by_count": {10: 8}},
        {"l1_shrk": False},
        {"intercept": False},
        {"embeddings_bytes_max": 1 << 30},
    ):
        other = copy.deepcopy(model).set_params(**changed)
        with pytest.raises(ValueError, match="fit begins anew"):
            other.partial_fit(x, y)
        assert other.fit(x, y).score(x, y) > 0.5


def test_tiers_are_a_mapping_in_python_that_stays_as_it_was_given() -> None:
    x, y = matrix()
    tiers = {np.int64(3): np.int64(2), 40: 8}
    model = FactorizationMachine(**EAGER, dim_by_count=tiers).fit(x, y)
    assert model.dim_by_count is tiers
    assert model.partial_fit(x, y).examples_ == 2 * len(y)
    assert clone(model).dim_by_count == tiers
    tiers[40] = 16
    with pytest.raises(ValueError, match="dim_by_count"):
        model.partial_fit(x, y)
    assert model.fit(x, y).embeddings_.shape == (8, 16)
    none, empty = (
        FactorizationMachine(**EAGER, dim_by_count=no).partial_fit(x, y) for no in (None, {})
    )
    assert digest(none) == digest(empty)
    empty.set_params(dim_by_count=None).partial_fit(x, y)


# --- what it learns


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"order": 3, "dim": 3},
        {"threshold": 20},
        {"threshold": 20, "l1": 0.5, "l2": 0.1},
        {"l1": 2.0, "l1_shrk": False},
        {"dim_by_count": {5: 8, 50: 24}},
        {"dim_by_count": {5: 2, 50: 7}, "order": 3},
        {"dim_by_count": {5: 12, 20: 13, 50: 16}},
        {"v_clip": 0.02, "v_l2": 0.3},
        {"v_normalize": True},
        {"intercept": False, "beta": 0.3, "v_lr_beta": 0.5},
    ],
    ids=str,
)
def test_learns_what_the_equations_say(settings: dict[str, Any]) -> None:
    x, y = matrix()
    weights = np.random.default_rng(1).choice([0.5, 1.0, 3.0], len(y))
    model = FactorizationMachine(**{**EAGER, **settings})
    model.partial_fit(x, y, sample_weight=weights)
    twin = Machine(model._job().model)
    keys = model._columns.keys
    # features in the order of their keys, as a mapping has them, or of the columns: no matter
    twin.learn_each(
        minibatch(
            [keys[row != 0] for row in x],
            y.tolist(),
            weights.tolist(),
            [row[row != 0].tolist() for row in x],
        )
    )
    expected = [twin.weight(key) for key in keys.tolist()]
    # steps of embeddings to a relative 2**-10, over lengths of about one
    close = {"rtol": 2e-3, "atol": 2e-3}
    np.testing.assert_allclose(model.coef_[0], expected, **close)
    np.testing.assert_allclose(model.intercept_, twin.intercept_weight() * model.intercept, **close)
    dim = twin.tiers.dim
    embeddings = np.zeros((len(keys), twin.tiers.parts, dim))
    for i, key in enumerate(keys.tolist()):
        row = twin.rows[key]
        embeddings[i, :, : row.dim] = row.V
    np.testing.assert_allclose(model.embeddings_, embeddings.reshape(len(keys), -1), **close)


@pytest.mark.parametrize("order", [2, 3])
def test_scores_are_what_the_attributes_say(order: int) -> None:
    x, y = matrix()
    model = FactorizationMachine(**{**EAGER, "order": order, "threshold": 160}).fit(x, y)
    embeddings = model.embeddings_
    assert embeddings.dtype == np.float32
    assert embeddings.shape == (8, 4 * (order - 1))
    some = np.any(embeddings, axis=1)
    assert some.any()
    assert not some.all()
    assert (some == ((x != 0).sum(axis=0) > 160)).all()
    scores = model.intercept_ + x @ model.coef_[0]
    a = x[:, :, np.newaxis] * embeddings[:, :4]
    scores += ((a.sum(axis=1) ** 2 - (a**2).sum(axis=1)) / 2).sum(axis=1)
    if order == 3:
        a = x[:, :, np.newaxis] * embeddings[:, 4:]
        s1, s2, s3 = ((a**power).sum(axis=1) for power in (1, 2, 3))
        scores += ((s1**3 - 3 * s1 * s2 + 2 * s3) / 6).sum(axis=1)
    np.testing.assert_allclose(model.decision_function(x), scores, atol=1e-4)


@pytest.mark.parametrize("order", [2, 3])
def test_learns_what_no_feature_says_alone(order: int) -> None:
    records, labels = parities(order)
    model = FactorizationMachine(
        dim=4, order=order, threshold=0, l1=0.0, v_lr=0.5, v_init_scale=0.5, v_l2=0.0
    )
    plain = LogisticRegression(l1=0.0)
    for record, label in zip(records, labels, strict=True):
        model.learn_one(record, label)
        plain.learn_one(record, label)
    right = [model.predict_one(r) == label for r, label in zip(records, labels, strict=True)]
    assert np.mean(right) == 1.0
    assert model.progressive()["logloss"] < 0.3 < 0.6 < plain.progressive()["logloss"]


def test_the_second_pass_of_a_fit_counts_nothing() -> None:
    x, y = matrix()
    counts = (x != 0).sum(axis=0)
    settings = {**EAGER, "threshold": int(counts.max()) + 1}
    model = FactorizationMachine(**settings, epochs=3).fit(x, y)
    assert sorted(entry["count"] for entry in model.weights()) == sorted(counts)
    assert not model.embeddings_.any()
    assert model.partial_fit(x, y).embeddings_.any()


def test_an_example_of_weight_zero_teaches_nothing() -> None:
    x, y = matrix()
    weights = np.random.default_rng(2).integers(0, 2, len(y)).astype(float)
    some = FactorizationMachine(**EAGER).partial_fit(x, y, sample_weight=weights)
    kept = FactorizationMachine(**EAGER).partial_fit(x[weights > 0], y[weights > 0])
    assert digest(some) == digest(kept)


def test_the_same_examples_make_the_same_model_also_with_dropout() -> None:
    x, y = matrix()
    settings = {**EAGER, "v_dropout": 0.4}
    whole = FactorizationMachine(**settings).partial_fit(x, y)
    parts = FactorizationMachine(**settings).partial_fit(x[:150], y[:150])
    parts = pickle.loads(pickle.dumps(parts)).partial_fit(sp.csr_matrix(x[150:]), y[150:])
    assert digest(parts) == digest(whole)
    assert digest(whole) != digest(FactorizationMachine(**EAGER).partial_fit(x, y))


def test_numbers_that_overflow_spoil_nothing() -> None:
    x, y = matrix()
    model = FactorizationMachine(**EAGER).partial_fit(x, y)
    huge = np.full((2, x.shape[1]), 3e38)
    model.partial_fit(huge, [0, 1])
    assert np.isfinite(model.coef_).all()
    assert np.isfinite(model.embeddings_).all()
    assert np.isfinite(model.predict_proba(x)).all()
    assert np.isfinite(model.predict_proba(huge)).all()


def test_embeddings_have_a_limit_that_stops_no_one() -> None:
    rng = np.random.default_rng(0)
    x = sp.random(3000, 20_000, density=0.002, format="csr", random_state=0)
    y = rng.integers(0, 2, 3000)
    limited = FactorizationMachine(**EAGER, embeddings_bytes_max=1 << 18).fit(x, y)
    free = FactorizationMachine(**EAGER).fit(x, y)
    some, all_ = (np.any(model.embeddings_, axis=1).sum() for model in (limited, free))
    assert 0 < some < all_
    assert np.isfinite(limited.predict_proba(x)).all()


# --- embeddings by name


def test_embeddings_are_those_of_columns_or_of_names() -> None:
    x, y = matrix()
    frame = pd.DataFrame(x, columns=list("abcdefgh"))
    model, numbered = FactorizationMachine(**EAGER), FactorizationMachine(**EAGER)
    assert not hasattr(model, "embeddings_")
    model.fit(frame, y)
    numbered.fit(x, y)
    assert np.array_equal(model.embedding("c="), model.embeddings_[2])
    assert np.array_equal(numbered.embedding("2"), numbered.embeddings_[2])
    assert {entry["feature"] for entry in model.weights(3)} < {f"{name}=" for name in frame}
    with pytest.raises(KeyError, match="z="):
        model.embedding("z=")


def test_embeddings_of_categories_are_those_of_names() -> None:
    model = FactorizationMachine(**{**EAGER, "threshold": 2, "order": 3})
    frame = pd.DataFrame({"user": ["ann", "bob"] * 4 + ["cid"], "n": 1.0})
    model.learn_many(frame, [0, 1] * 4 + [0])
    assert model.embedding("user=ann").shape == (8,)
    assert model.embedding("user=ann").any()
    assert not model.embedding("user=cid").any()
    model.partial_fit(frame, [0, 1] * 4 + [0])
    with pytest.raises(AttributeError, match=r"'user'.*embedding"):
        _ = model.embeddings_


# --- where else it stands


def test_works_in_pipelines_and_grid_search() -> None:
    x, y = matrix(600)
    pipeline = make_pipeline(StandardScaler(with_mean=False), FactorizationMachine(**EAGER))
    search = GridSearchCV(
        pipeline,
        {
            "factorizationmachine__dim": [2, 8],
            "factorizationmachine__dim_by_count": [None, {5: 2, 50: 8}],
        },
        cv=3,
    ).fit(x, y)
    assert search.best_score_ > LogisticRegression(l1=0.0).fit(x, y).score(x, y)
