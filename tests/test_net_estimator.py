"""Nets as users of scikit-learn, of river and of the command line meet them."""

from __future__ import annotations

import copy
import doctest
import gc
import io
import json
import pickle
import re
import subprocess
import sys
import threading
import warnings
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

torch = pytest.importorskip("torch", reason="comes with the extra `deep`")
import river.base  # noqa: E402
import river.checks  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

from streamlearn import DeepClassifier, DeepRegressor, LogisticRegression  # noqa: E402
from streamlearn.config import DeepConfig  # noqa: E402
from streamlearn.errors import ConfigError, TableFullError  # noqa: E402
from streamlearn.learned import SETTINGS  # noqa: E402
from streamlearn.model import load  # noqa: E402
from streamlearn.online.nets import Needs, Sizes, load_net  # noqa: E402
from tests.deep_parts import learned  # noqa: E402
from tests.runs import run, settings  # noqa: E402

WEIGHTED = "an example of weight w counts w times in its step, it is not shown w times"
EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": WEIGHTED,
    "check_sample_weight_equivalence_on_sparse_data": WEIGHTED,
}
SMALL: dict[str, Any] = {"settings": {"hidden": [32, 16]}, "lr": 0.01, "minibatch": 32}
WIDE: dict[str, Any] = {**SMALL, "net": "wide_deep", "dim": 4, "epochs": 5}


@parametrize_with_checks(
    [DeepClassifier(**SMALL), DeepRegressor(**SMALL)],
    expected_failed_checks=lambda _: EXPECTED_FAILURES,
)
def test_keeps_what_scikit_learn_promises(estimator: Any, check: Any) -> None:
    check(estimator)


class RiverClassifier(DeepClassifier, river.base.MiniBatchClassifier):
    """The same with river's own base class, which its checks ask for their parameters."""

    __repr__ = river.base.MiniBatchClassifier.__repr__
    clone = river.base.MiniBatchClassifier.clone


class RiverRegressor(DeepRegressor, river.base.MiniBatchRegressor):
    """The other one with it."""

    __repr__ = river.base.MiniBatchRegressor.__repr__
    clone = river.base.MiniBatchRegressor.clone


# learn_many makes steps of minibatches, and is as learn_one where those are of one example
TINY: dict[str, Any] = {"settings": {"hidden": [4]}, "minibatch": 1}


@pytest.mark.filterwarnings("ignore:fields .* are left out")
@pytest.mark.parametrize(
    ("model", "check"),
    [
        pytest.param(model, check, id=f"{type(model).__name__}-{check.__name__}")
        for model in (RiverClassifier(**TINY), RiverRegressor(**TINY))
        for check in river.checks.yield_checks(model)
    ],
)
def test_keeps_what_river_promises(model: Any, check: Any) -> None:
    check(model.clone())


@pytest.mark.parametrize("estimator", [DeepClassifier, DeepRegressor])
def test_the_settings_of_an_estimator_are_those_of_its_model(estimator: Any) -> None:
    given = estimator().get_params()
    assert set(given) == {*SETTINGS["deep"], "columns", "shuffle"}
    model = estimator()._job().model
    other = {"net": "mlp", "epochs": 20}
    assert model == DeepConfig(**other)
    documented = re.findall(r"^    ([\w, ]+) : ", DeepClassifier.__doc__ or "", re.MULTILINE)
    names = [name for one in documented for name in one.split(", ")]
    assert [name for name in names if name in given] == list(signature(estimator).parameters)


# --- what is learned


def matrix(rows: int = 300, columns: int = 6, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, columns))
    return x, (x @ rng.normal(size=columns) + rng.normal(size=rows) > 0).astype(int)


def records(rows: int = 300, seed: int = 0) -> tuple[list[dict[str, Any]], list[bool]]:
    """Two categories, several tags and two numbers, some of all missing."""
    rng = np.random.default_rng(seed)
    out = [
        {
            "origin": [None, "LAS", "SFO", "Ü"][rng.integers(4)],
            "carrier": f"c{rng.integers(5)}",
            "tags": [f"t{i}" for i in rng.integers(0, 4, rng.integers(0, 3))],
            "distance": None if rng.random() < 0.1 else float(np.float32(rng.normal(5, 3))),
            "seats": int(rng.integers(3)),
        }
        for _ in range(rows)
    ]
    return out, [one["origin"] == "SFO" or "t1" in one["tags"] for one in out]


def test_a_dense_net_learns_what_torch_learns() -> None:
    x, y = matrix()
    weights = np.random.default_rng(1).choice([0.5, 1.0, 3.0], len(y))
    made: dict[str, Any] = {"settings": {"hidden": [8]}, "standardize": False, "minibatch": 64}
    model = DeepClassifier(**made, optimizer="sgd", momentum=0.9, lr=0.1, seed=3)
    model.partial_fit(x, y, sample_weight=weights)
    net, _ = load_net("mlp", Sizes((6,), 0, 1), seed=3, dim=16, hidden=[8])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for first in range(0, len(x), 64):
        part = slice(first, first + 64)
        inputs, labels, w = (
            torch.tensor(one[part], dtype=torch.float32) for one in (x, y, weights)
        )
        losses = torch.nn.functional.binary_cross_entropy_with_logits(
            net(inputs, None, None)[:, 0], labels, reduction="none"
        )
        optimizer.zero_grad()
        ((losses * w).sum() / w.sum()).backward()
        optimizer.step()
    with torch.no_grad():
        expected = net(torch.tensor(x, dtype=torch.float32), None, None)[:, 0].numpy()
    np.testing.assert_allclose(model.decision_function(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("format_", ["jsonl", "svmlight"])
def test_python_learns_what_the_command_line_learns(tmp_path: Path, format_: str) -> None:
    rows, labels = records()
    log = tmp_path / "log"
    flags = ["--format", format_, "--model", "deep", "--out", tmp_path / "out", "--epochs", "2"]
    more = ["model.lr=0.01", "model.dim=4", "compute.minibatch=32", "model.settings={hidden=[8]}"]
    model = DeepClassifier(
        net="mlp", dim=4, lr=0.01, minibatch=32, settings={"hidden": [8]}, epochs=2, shuffle=False
    )
    if format_ == "jsonl":
        lines = [json.dumps({**row, "y": int(y)}) for row, y in zip(rows, labels, strict=True)]
        kinds = dict.fromkeys(("carrier", "origin", "tags"), "categorical")
        kinds |= {"distance": "number:raw", "seats": "number:raw"}
        for name, kind in (*kinds.items(), ("y", "label")):
            flags += ["--column", f"{name}={kind}"]
        x: Any = rows
    else:
        x = sp.random(300, 40, density=0.1, random_state=2, format="csr", dtype=np.float32)
        lines = [
            f"{int(y)} " + " ".join(f"{j}:{float(v)!r}" for j, v in zip(r.indices, r.data))  # noqa: B905
            for r, y in zip(x, labels, strict=True)
        ]
    log.write_text("".join(line + "\n" for line in lines))
    ended = run("train", log, *flags, "--net", "mlp", *settings(*more))
    assert ended.code == 0, ended.stderr
    model.fit(x, labels)
    theirs, ours = load(tmp_path / "out"), model._ready().model
    try:
        assert theirs.names.fields == ours.names.fields
        assert theirs.counts.examples == ours.counts.examples == model.examples_ == 600
        rows_of = [np.concatenate([part.keys for part in one.parts()]) for one in (theirs, ours)]
        np.testing.assert_array_equal(*rows_of)
        vectors = [np.concatenate([part.vectors for part in one.parts()]) for one in (theirs, ours)]
        # torch may add in another order with another number of threads
        np.testing.assert_allclose(*vectors, rtol=1e-4, atol=1e-5)
        states: Any = theirs.solver.state(), ours.solver.state()  # type: ignore[attr-defined]
        assert set(states[0]) == set(states[1])
        for name, held in states[0].items():
            np.testing.assert_allclose(held, states[1][name], rtol=1e-4, atol=1e-5, err_msg=name)
    finally:
        theirs.close()


class Line(torch.nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
    """A net of one's own: one layer."""

    def __init__(self, sizes: Sizes, scale: float = 1.0) -> None:
        super().__init__()
        self.sizes = sizes
        self.scale = scale
        self.layer = torch.nn.Linear(sizes.dense[0], sizes.outputs)

    def needs(self) -> Needs:
        return Needs(dim=0, wide=False, outputs=self.sizes.outputs)

    def forward(self, dense: Any, embeddings: None, wide: None) -> Any:
        return self.scale * self.layer(dense)


def test_a_net_may_be_ones_own(tmp_path: Path) -> None:
    x, y = matrix()
    model = DeepClassifier(net=Line, settings={"scale": 2.0}, lr=0.05, epochs=10).fit(x, y)
    assert model.score(x, y) > 0.75
    assert isinstance(model.net_, Line)
    model.save(tmp_path)
    opened = DeepClassifier.load(tmp_path)
    assert opened.net == f"{Line.__module__}:Line"
    np.testing.assert_array_equal(opened.predict_proba(x), model.predict_proba(x))
    with pytest.raises(ValueError, match="define it at the top of a module"):
        DeepClassifier(net=lambda sizes: Line(sizes)).fit(x, y)


def test_a_score_is_of_its_row_alone() -> None:
    x, y = matrix(1500)
    model = DeepClassifier(**SMALL, epochs=1).fit(x, y)
    whole = model.decision_function(x)
    for step in (1, 37):
        parts = [model.decision_function(x[i : i + step]) for i in range(0, 370, step)]
        # as exact as scikit-learn's own check wants it
        np.testing.assert_allclose(np.concatenate(parts), whole[:370], atol=1e-7)


def test_shuffling_is_a_function_of_the_seed() -> None:
    x, y = matrix()
    one, same, other, plain = (
        DeepClassifier(**SMALL, epochs=2, seed=seed, shuffle=shuffle).fit(x, y).predict_proba(x)
        for seed, shuffle in ((0, True), (0, True), (1, True), (0, False))
    )
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)
    assert not np.allclose(one, plain)


def test_partial_fit_goes_on_and_fit_begins_anew() -> None:
    rows, y = records()
    once = DeepClassifier(**WIDE).partial_fit(rows, y)
    twice = copy.deepcopy(once).partial_fit(rows, y)
    passes = {**WIDE, "epochs": 2, "shuffle": False}
    fitted = DeepClassifier(**passes).fit(rows, y)
    np.testing.assert_array_equal(twice.predict_proba(rows), fitted.predict_proba(rows))
    again = twice.set_params(epochs=1, shuffle=False).fit(rows, y)
    np.testing.assert_array_equal(again.predict_proba(rows), once.predict_proba(rows))
    assert twice.examples_ == len(rows)
    assert len(fitted.loss_curve_) == 2
    assert fitted.loss_curve_[1] < fitted.loss_curve_[0]


@pytest.mark.parametrize("more", [{"delay": 1}, {"v_rule": "rowwise"}, {"precision": "bf16"}])
def test_ways_to_compute_learn_as_well(more: dict[str, Any]) -> None:
    rows, y = records()
    model = DeepClassifier(**{**WIDE, "epochs": 15}, **more).fit(rows, y)
    assert model.score(rows, y) > 0.95


def test_an_example_of_weight_zero_teaches_nothing() -> None:
    x, y = matrix()
    weights = np.random.default_rng(2).integers(0, 2, len(y)).astype(float)
    some = DeepClassifier(**SMALL).partial_fit(x, y, sample_weight=weights)
    kept = DeepClassifier(**SMALL).partial_fit(x[weights > 0], y[weights > 0])
    np.testing.assert_array_equal(some.predict_proba(x), kept.predict_proba(x))


def test_rates_may_change_and_what_numbers_mean_may_not() -> None:
    x, y = matrix()
    model = DeepClassifier(**SMALL).partial_fit(x, y)
    before = model.predict_proba(x)
    model.set_params(lr=1e-12).partial_fit(x, y)
    np.testing.assert_allclose(model.predict_proba(x), before, atol=0.05)  # it is standardised anew
    model.set_params(lr=0.01, minibatch=8).partial_fit(x, y)
    assert not np.allclose(model.predict_proba(x), before, atol=0.05)
    for change in ({"net": "dlrm"}, {"dim": 3}, {"optimizer": "sgd"}, {"columns": {"a": "number"}}):
        other = copy.deepcopy(model).set_params(**change)
        with pytest.raises(ValueError, match=f"{next(iter(change))} is .*fit begins anew"):
            other.partial_fit(x, y)


def test_settings_are_checked_when_something_is_learned() -> None:
    x, y = matrix(20)
    for wrong, said in (
        ({"lr": -1.0}, r"lr.* > 0"),
        ({"optimizer": "adm"}, "adam, adamw, sgd"),
        ({"net": "mlq"}, "did you mean|there is no net"),
        ({"net": "wide_deep"}, "wide_deep embeds fields"),
        ({"settings": {"hiden": [3]}}, "hiden"),
        ({"device": "gpu"}, "device"),
        ({"columns": {"y": "label"}}, "handed in by themselves"),
        ({"columns": {"y": "nmber"}}, "nmber"),
    ):
        with pytest.raises(ValueError, match=said):
            DeepClassifier(**wrong).fit(x, y)


def test_a_full_table_says_so_and_the_net_stays_whole() -> None:
    x = sp.identity(6_000, format="csr")
    model = DeepClassifier(**SMALL, features_max=5000, epochs=1)
    with pytest.raises(TableFullError, match="features_max"):
        model.fit(x, np.arange(6_000) % 2)
    assert np.isfinite(model.predict_proba(x)).all()


# --- classes and numbers


@pytest.mark.parametrize("labels", [["a", "b", "c"], [0, 1, 2], [3.0, 5.0, 9.0]])
def test_classes_may_be_several(labels: list[Any], tmp_path: Path) -> None:
    x, _ = matrix()
    numbers = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0)
    y = np.array(labels)[numbers]
    model = DeepClassifier(**SMALL).fit(x, y)
    assert model.score(x, y) > 0.9
    shares = model.predict_proba(x)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.log(shares), model.predict_log_proba(x), rtol=1e-4, atol=1e-5)
    assert model.decision_function(x).shape == (len(x), 3)
    assert (model.classes_[shares.argmax(axis=1)] == model.predict(x)).all()
    model.save(tmp_path)
    opened = DeepClassifier.load(tmp_path)
    assert opened.classes_.tolist() == labels
    np.testing.assert_array_equal(opened.predict(x), model.predict(x))


def test_classes_that_come_later_are_named_first() -> None:
    x, _ = matrix()
    with pytest.raises(ValueError, match="one class"):
        DeepClassifier(**SMALL).partial_fit(x, np.ones(len(x)))
    model = DeepClassifier(**SMALL).partial_fit(x, ["b"] * len(x), classes=["a", "b", "c"])
    assert model.predict_proba(x).shape == (len(x), 3)
    with pytest.raises(ValueError, match="'d'"):
        model.partial_fit(x[:1], ["d"])
    with pytest.raises(ValueError, match="calls before"):
        model.partial_fit(x[:1], ["a"], classes=["a", "c"])
    assert set(model.predict_proba_one({"0": 1.0})) == {"a", "b", "c"}


def test_a_regressor_learns_numbers(tmp_path: Path) -> None:
    rows, _ = records(600)
    y = np.array([(row["distance"] or 0) / 3 + (row["origin"] == "SFO") for row in rows])
    model = DeepRegressor(**{**WIDE, "epochs": 30}).fit(rows, y)
    assert model.score(rows, y) > 0.8
    assert model.predict_one(rows[0]) == pytest.approx(model.predict(rows[:1])[0])
    model.save(tmp_path)
    np.testing.assert_array_equal(DeepRegressor.load(tmp_path).predict(rows), model.predict(rows))
    with pytest.raises(ConfigError, match=r"(?s)squared.*DeepRegressor.load"):
        DeepClassifier.load(tmp_path)
    with pytest.raises(ConfigError, match=r"(?s)deep.*DeepRegressor.load"):
        LogisticRegression.load(tmp_path)
    with pytest.raises(ValueError, match=r"y\[1\] is nan"):
        model.partial_fit(rows[:2], [1.0, float("nan")])


# --- what X may be


@pytest.mark.parametrize(
    "form",
    [np.float32, np.asfortranarray, lambda x: x.tolist(), lambda x: pd.DataFrame(x)],
)
def test_the_form_of_an_array_is_of_no_matter(form: Any) -> None:
    x, y = matrix()
    x = x.astype(np.float32).astype(np.float64)
    expected = DeepClassifier(**SMALL, epochs=2).fit(x, y)
    model = DeepClassifier(**SMALL, epochs=2).fit(form(x), y)
    np.testing.assert_array_equal(model.predict_proba(form(x)), expected.predict_proba(x))
    one = dict(enumerate(x[0].tolist()))
    assert model.predict_proba_one(one)[1] == pytest.approx(expected.predict_proba(x[:1])[0, 1])


def test_a_missing_number_is_the_mean() -> None:
    x, y = matrix()
    model = DeepClassifier(**SMALL, epochs=2, shuffle=False).fit(x, y)
    mean = np.repeat(x.mean(axis=0)[np.newaxis], 2, axis=0)
    gone = np.full((2, x.shape[1]), np.nan)
    # the mean of all passes is that of one
    np.testing.assert_allclose(model.predict_proba(gone), model.predict_proba(mean), atol=1e-5)
    assert np.isfinite(model.fit(np.where(x > 1.5, np.nan, x), y).predict_proba(x)).all()


def test_images_are_learned_and_bytes_are_shares() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    images = rng.integers(0, 60, (300, 8, 8)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        (image if label else image.T)[rng.integers(8)] += 180
    small = {"net": "convnet", "settings": {"width": 4, "hidden": 16, "dropout": 0.0}}
    model = DeepClassifier(**small, lr=0.01, minibatch=32, epochs=15).fit(images, labels)
    assert model.score(images, labels) > 0.95
    expected = model.predict_proba(images)
    for same in (images[:, np.newaxis], images / 255, (images / 255).astype(np.float32)):
        np.testing.assert_allclose(model.predict_proba(same), expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"shape \(8, 7\).*\(1, 8, 8\)"):
        model.predict(images[:, :, :7])
    colours = np.stack([images] * 3, axis=1)
    assert DeepClassifier(**small, epochs=1).fit(colours, labels).predict(colours).shape == (300,)


def test_a_frame_teaches_what_its_rows_as_mappings_teach() -> None:
    rows, y = records()
    frame = pd.DataFrame(rows)
    mappings, framed, many = (DeepClassifier(**WIDE) for _ in range(3))
    mappings.partial_fit(rows, y)
    framed.partial_fit(frame, y)
    many.learn_many(frame, pd.Series(y))
    expected = mappings.predict_proba(rows)
    np.testing.assert_array_equal(framed.predict_proba(frame), expected)
    np.testing.assert_array_equal(many.predict_proba_many(frame)[True], expected[:, 1])
    assert many.predict_many(frame).tolist() == mappings.predict(rows).tolist()
    assert framed.feature_names_in_.tolist() == list(frame.columns)
    np.testing.assert_array_equal(framed.embedding("origin=Ü"), mappings.embedding("origin=Ü"))
    assert mappings.embedding("tags=t1").any()
    assert {one["feature"].partition("=")[0] for one in mappings.weights(99)} == {
        *("origin", "carrier", "tags")
    }
    with pytest.raises(KeyError, match="origin=XYZ"):
        mappings.embedding("origin=XYZ")
    with pytest.raises(ValueError, match="feature names should match"):
        framed.predict(frame.drop(columns="seats"))


def test_the_order_of_fields_and_their_nesting_are_of_no_matter() -> None:
    rows, y = records()
    model = DeepClassifier(**WIDE).fit(rows, y)
    turned = [dict(reversed(row.items())) for row in rows]
    np.testing.assert_array_equal(model.predict_proba(turned), model.predict_proba(rows))
    nested = [{"a": {"b": row["origin"]}, "n": row["seats"]} for row in rows]
    flat = [{"a.b": row["origin"], "n": float(row["seats"])} for row in rows]
    model.fit(nested, y)
    np.testing.assert_array_equal(model.predict_proba(flat), model.predict_proba(nested))


def test_a_sparse_matrix_is_one_field_of_its_columns() -> None:
    x = sp.random(500, 60, density=0.1, random_state=0, format="csr")
    y = (np.asarray(x[:, :20].sum(axis=1)).ravel() > 1).astype(int)
    model = DeepClassifier(**{**SMALL, "net": "wide_deep", "dim": 4}).fit(x, y)
    assert model.score(x, y) > 0.9
    np.testing.assert_array_equal(model.predict_proba(x.toarray()), model.predict_proba(x))
    one = dict(zip(x[0].indices.tolist(), x[0].data.tolist(), strict=True))
    assert model.predict_proba_one(one)[1] == pytest.approx(model.predict_proba(x[:1])[0, 1])
    assert model.embedding("3").any()
    assert model.n_features_in_ == 60


def test_kinds_of_fields_may_be_said() -> None:
    rows, y = records()
    for i, row in enumerate(rows):
        row["when"] = pd.Timestamp(2026, 11, 23, i % 24)
    with pytest.raises(TypeError, match=r"'when' holds Timestamp.*columns"):
        DeepClassifier(**WIDE).fit(rows, y)
    columns = {"when": "time", "origin": "categorical", "distance": "number", "seats": "ignore"}
    model = DeepClassifier(**WIDE, columns=columns).fit([{"when": rows[0]["when"]}, *rows], [0, *y])
    assert model._ready().model.names.fields == ("when.hour", "when.weekday", "origin", "distance")
    assert model.embedding("when.hour=7").any()
    alone = DeepClassifier(**{**SMALL, "columns": {"a": "number:raw", "b": "categorical"}})
    alone.learn_one({"a": 1.0}, True)  # a field that the first record lacks is none the less one
    alone.learn_one({"a": 0.5, "b": "x"}, False)
    assert alone.embedding("b=x").any()


def test_fields_that_the_net_does_not_have_are_left_out_with_one_warning() -> None:
    rows, y = records()
    model = DeepClassifier(**WIDE).fit(rows, y)
    more = [{**row, "new": 1.0} for row in rows]
    with pytest.warns(UserWarning, match=r"\['new'\] are left out"):
        shares = model.predict_proba(more)
    np.testing.assert_array_equal(shares, model.predict_proba(rows))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict_proba(more)
        DeepClassifier(**WIDE, columns={"origin": "categorical"}).fit(rows, y)


def test_what_is_wrong_with_data_teaches_nothing() -> None:
    x, y = matrix()
    model = DeepClassifier(**SMALL, epochs=1).fit(x, y)
    before = model.predict_proba(x)
    spoilt = x.copy()
    spoilt[-1, -1] = np.inf
    large = np.where(np.isinf(spoilt), 1e39, spoilt)
    for bad, message in (
        (spoilt, "infinity"),
        (large, "too large"),
        (x[:, :5], "X has 5 features, but DeepClassifier is expecting 6"),
        (x[:0], "0 sample"),
        (x[0], "Expected 2D"),
        (x[:, :, np.newaxis], "Expected 2D"),
        ([["a"] * 6], "could not convert"),
        (x * 1j, "Complex"),
    ):
        with pytest.raises(ValueError, match=message):
            model.partial_fit(bad, y[: len(bad)])
    rows, labels = records()
    named = DeepClassifier(**WIDE).fit(rows, labels)
    for record, message in (
        ({"distance": "far"}, "row 0 of X: distance .*far.* is not a finite number"),
        ({"distance": float("inf")}, "'distance' is inf"),
        ({"distance": 1e39}, "finite"),
        ({"origin": object()}, "object"),
        ({1.5: 2}, "float"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            named.learn_one(record, True)
    with pytest.raises(ValueError, match="hand in a frame or mappings"):
        named.predict(x)
    with pytest.raises(ValueError, match="no field of X has a value"):
        DeepClassifier().learn_one({"a": None}, True)
    np.testing.assert_array_equal(model.predict_proba(x), before)


def test_nothing_is_predicted_before_something_is_learned() -> None:
    with pytest.raises(NotFittedError):
        DeepClassifier().predict([[1.0]])
    with pytest.raises(NotFittedError):
        DeepRegressor().progressive()
    assert DeepClassifier().predict_proba_one({"a": 1}) == {False: 0.5, True: 0.5}
    assert DeepRegressor().predict_one({"a": 1}) == 0.0
    for name in ("classes_", "n_features_in_", "loss_curve_", "net_"):
        assert not hasattr(DeepClassifier(), name)


def test_a_grid_search_finds_the_better_rate() -> None:
    x, y = matrix()
    search = GridSearchCV(DeepClassifier(**{**SMALL, "epochs": 3}), {"lr": [1e-6, 0.01]}, cv=2)
    assert search.fit(x, y).best_params_["lr"] == 0.01


# --- kept


def test_a_copy_goes_on_as_the_original() -> None:
    rows, y = records()
    model = DeepClassifier(**WIDE).partial_fit(rows, y)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        np.testing.assert_array_equal(other.predict_proba(rows), model.predict_proba(rows))
        here = copy.deepcopy(model).partial_fit(rows, y)
        there = other.partial_fit(rows, y)
        np.testing.assert_array_equal(there.predict_proba(rows), here.predict_proba(rows))


def test_what_is_saved_goes_on_in_python_and_on_the_command_line(tmp_path: Path) -> None:
    rows, y = records()
    model = DeepClassifier(**WIDE).fit(rows, y)
    model.save(tmp_path / "out")
    opened = DeepClassifier.load(tmp_path / "out")
    assert opened.get_params() == model.get_params()
    assert opened.classes_.tolist() == [False, True]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({**row, "label": 0}) + "\n" for row in rows))
    ended = run("predict", tmp_path / "out", log)
    assert ended.code == 0, ended.stderr
    printed = [float(line) for line in ended.stdout.split()]
    np.testing.assert_allclose(printed, model.predict_proba(rows)[:, 1], rtol=1e-5, atol=1e-6)
    opened.partial_fit(rows, y)
    model.partial_fit(rows, y)
    np.testing.assert_array_equal(opened.predict_proba(rows), model.predict_proba(rows))


@pytest.mark.parametrize("kind", ["clicks", "bags", "numbers", "images"])
def test_what_the_command_line_learned_is_opened(tmp_path: Path, kind: str) -> None:
    it = learned(tmp_path, kind, rows=300)
    printed = run("predict", it.out, it.log).stdout.splitlines()
    kind_of = DeepRegressor if kind == "numbers" else DeepClassifier
    model = kind_of.load(it.out)
    label = next(iter(it.rows[0]))
    bare = [{name: value for name, value in row.items() if name != label} for row in it.rows]
    y = [row[label] for row in it.rows]
    x: Any = bare
    if kind == "images":
        x = np.stack([row["image"] for row in it.rows])
    if kind in ("clicks", "numbers"):
        found = model.predict_proba(x)[:, 1] if kind == "clicks" else model.predict(x)
        np.testing.assert_allclose([float(one) for one in printed], found, rtol=1e-4, atol=1e-5)
        framed = pd.DataFrame(bare)
        again = model.predict_proba(framed)[:, 1] if kind == "clicks" else model.predict(framed)
        np.testing.assert_allclose(again, found, rtol=1e-6)
    elif kind == "bags":
        assert model.classes_.tolist() == ["plain", "striped", "dot\tted"]
        assert printed == [one.replace("\t", "\\t") for one in model.predict(x)]
        told = run("predict", it.out, it.log, "--probabilities").stdout.splitlines()
        shares = [[float(share) for share in line.split("\t")] for line in told]
        np.testing.assert_allclose(shares, model.predict_proba(x), rtol=1e-4, atol=1e-5)
    else:
        assert [int(float(one)) for one in printed] == model.predict(x).tolist()
        assert model.decision_function(x).shape == (len(x),)
    before = model.examples_
    model.partial_fit(x, y)
    assert model.examples_ == before + len(y)


def test_a_model_of_criteo_takes_mappings(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines, rows = [], []
    for _ in range(200):
        integers = ["" if rng.random() < 0.2 else str(rng.integers(-2, 50)) for _ in range(13)]
        texts = ["" if rng.random() < 0.1 else f"{rng.integers(5):08x}" for _ in range(26)]
        lines.append("\t".join([str(rng.integers(2)), *integers, *texts]))
        row: dict[str, Any] = {f"I{i}": int(v) for i, v in enumerate(integers, 1) if v}
        rows.append(row | {f"C{i}": text for i, text in enumerate(texts, 1)})
    log, out = tmp_path / "log", tmp_path / "out"
    log.write_text("\n".join(lines) + "\n")
    ended = run(
        "train", log, "--format", "criteo", "--model", "deep", "--net", "dlrm", "--out", out
    )
    assert ended.code == 0, ended.stderr
    printed = [float(one) for one in run("predict", out, log).stdout.split()]
    found = DeepClassifier.load(out).predict_proba(rows)[:, 1]
    np.testing.assert_allclose(printed, found, rtol=1e-4, atol=1e-5)


def test_lanes_end_with_their_model() -> None:
    x, y = matrix(50)
    gc.collect()
    before = threading.active_count()
    for _ in range(5):
        DeepClassifier(**SMALL, epochs=1).fit(x, y)
        with pytest.raises(ValueError, match="convnet wants images"):
            DeepClassifier(net="convnet").fit(x, y)
    gc.collect()
    assert threading.active_count() <= before


# --- torch


def test_without_torch_fit_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"DeepRegressor.*pip install 'streamlearn\[deep\]'"):
        DeepRegressor().fit([[1.0], [2.0]], [1.0, 2.0])


def test_torch_is_imported_by_fit_alone() -> None:
    code = (
        "import sys, streamlearn; streamlearn.DeepClassifier(dim=3).get_params(); "
        "print('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"


def test_the_page_about_python_says_what_happens() -> None:
    page = (Path(__file__).parent.parent / "docs/python.md").read_text()
    section = page[page.index("## Nets") : page.index("## Models of the command line")]
    block = re.findall(r"^```\n(.*?)^```", section, re.DOTALL | re.MULTILINE)[0]
    parsed = doctest.DocTestParser().get_doctest(block, {"np": np, "pd": pd}, "nets", "nets", 0)
    told = io.StringIO()
    found = doctest.DocTestRunner().run(parsed, out=told.write)
    assert found.attempted > 5
    assert not found.failed, told.getvalue()


def test_the_examples_of_the_docstrings_run() -> None:
    import streamlearn.net_estimator

    found = doctest.testmod(streamlearn.net_estimator)
    assert found.attempted > 6
    assert found.failed == 0
