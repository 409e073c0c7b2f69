"""Matrix factorization in Python, as users of scikit-learn, river and recommenders meet it."""

from __future__ import annotations

import copy
import doctest
import inspect
import io
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import river.base
import river.evaluate
import river.metrics
import river.reco
from river import optim
from sklearn.base import clone, is_regressor
from sklearn.exceptions import NotFittedError
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score

import streamlearn.matrix_estimator
from streamlearn import LogisticRegression, MatrixFactorization
from streamlearn.config import JobConfig, MfConfig
from streamlearn.errors import ConfigError, SnapshotError, TableFullError
from streamlearn.learned import SETTINGS, settings_of
from streamlearn.model import load
from tests import rated
from tests.runs import run

RATINGS = rated.ratings()
X = [(user, item) for user, item, _ in RATINGS]
Y = np.array([rating for _, _, rating in RATINGS])
# As ``tests.rated`` has the command line learn.
SETTING: dict[str, Any] = {"dim": 5, "epochs": 8}


def new(**settings: Any) -> MatrixFactorization:
    return MatrixFactorization(**{**SETTING, **settings})


@pytest.fixture(scope="module")
def fitted() -> MatrixFactorization:
    return new().fit(X, Y)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rated.learned(tmp_path_factory.mktemp("rated"))


def digest(model: MatrixFactorization) -> str:
    assert model._learned is not None
    return model._learned.model.digest()


# --- settings


def test_settings_are_those_of_the_command_line_by_the_same_defaults() -> None:
    settings = MatrixFactorization().get_params()
    assert settings.pop("n_jobs") is None
    assert settings.pop("remember_seen") is True
    assert set(settings) == set(SETTINGS["mf"])
    assert settings.pop("epochs") == 20
    expected = settings_of(JobConfig(model=MfConfig()))
    assert settings == {name: expected[name] for name in settings}
    documented = re.findall(r"^    (\w+) : ", MatrixFactorization.__doc__, re.MULTILINE)
    names = list(inspect.signature(MatrixFactorization).parameters)
    assert documented[: len(names)] == names


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dim": 0}, "dim"),
        ({"loss": "hinge"}, "loss"),
        ({"alpha": -1}, "alpha"),
        ({"held_out": 1.0}, "held_out"),
        ({"epochs": 0}, "epochs"),
        ({"n_jobs": 0}, "n_jobs is 0"),
        ({"n_jobs": "two"}, "n_jobs is 'two'"),
    ],
)
def test_what_cannot_be_set_is_said_before_anything_is_learned(
    settings: dict[str, Any], said: str
) -> None:
    model = MatrixFactorization(**settings)
    with pytest.raises(ValueError, match=said):
        model.fit(X, Y)
    assert model.examples_ == 0


# --- scikit-learn


def test_ratings_are_predicted_and_scored(fitted: MatrixFactorization) -> None:
    predicted = fitted.predict(X)
    assert predicted.shape == Y.shape
    assert fitted.score(X, Y) == pytest.approx(r2_score(Y, predicted))
    assert fitted.score(X, Y) > 0.5
    assert fitted.n_features_in_ == 2
    assert is_regressor(fitted)
    users, items = fitted.users_.tolist(), fitted.items_.tolist()
    assert users == list(dict.fromkeys(user for user, _ in X))
    assert items == list(dict.fromkeys(item for _, item in X))
    at = [(users.index(user), items.index(item)) for user, item in X[:50]]
    inner = fitted.user_factors_.astype(np.float64) @ fitted.item_factors_.T
    whole = inner + fitted.user_biases_[:, None] + fitted.item_biases_ + fitted.intercept_
    np.testing.assert_allclose(predicted[:50], [whole[place] for place in at], rtol=1e-5)
    assert [one["pass"] for one in fitted.passes_] == list(range(1, 9))
    assert fitted.passes_[-1]["rmse"] < fitted.passes_[1]["rmse"]
    assert fitted.progressive()["rmse"] == fitted.passes_[-1]["rmse"]


def test_what_is_learned_is_what_the_command_line_learns(
    fitted: MatrixFactorization, out: Path
) -> None:
    assert digest(fitted) == load(out).digest()
    assert fitted.examples_ == load(out).counts.examples


def test_every_form_of_the_data_makes_the_same_model() -> None:
    rows = [(int(user[1:]), int(item[1:])) for user, item in X]
    expected = digest(new(epochs=3).fit(rows, Y))
    frame = pd.DataFrame(rows, columns=["user", "item"])
    for x, y in (
        (np.array(rows), Y.tolist()),
        (np.array(rows, float), Y[:, None]),
        (frame, pd.Series(Y, index=range(5, len(Y) + 5))),
        (frame.astype("category"), Y),
        (frame.astype(str), Y),
        ([{"user": user, "item": item} for user, item in rows], Y),
    ):
        assert digest(new(epochs=3).fit(x, y)) == expected


def test_clones_copies_and_pickles(fitted: MatrixFactorization) -> None:
    again = clone(fitted)
    assert again.get_params() == fitted.get_params()
    assert again.examples_ == 0
    with pytest.raises(NotFittedError):
        again.predict(X)
    for other in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
        assert digest(other) == digest(fitted)
        assert (other.predict(X[:9]) == fitted.predict(X[:9])).all()
        assert other.passes_ == fitted.passes_
        for some in (other, fitted):
            ids, _ = some.recommend(["u1", "u2"], n=4)
            assert ids.tolist() == fitted.recommend(["u1", "u2"], n=4)[0].tolist()
        other.partial_fit([("u1", "i01")], [5])
        assert digest(other) != digest(fitted)
    assert pickle.loads(pickle.dumps(MatrixFactorization())).examples_ == 0
    assert fitted.clone({"dim": 7}).dim == 7
    assert fitted.set_params(patience=0) is fitted
    with pytest.raises(ValueError, match="gamma"):
        fitted.set_params(gamma=1)


def test_grid_searches_and_cross_validation_find_what_predicts_better() -> None:
    search = GridSearchCV(
        new(epochs=15), {"alpha": [1e-5, 0.05], "dim": [3]}, cv=3,
        scoring="neg_root_mean_squared_error",
    )  # fmt: skip
    frame = pd.DataFrame(X, columns=["user", "item"])
    assert search.fit(frame, Y).best_params_ == {"alpha": 0.05, "dim": 3}
    assert -search.best_score_ < Y.std()
    assert (search.predict(frame) == search.best_estimator_.predict(frame)).all()
    assert cross_val_score(new(epochs=15), np.array(X), Y, cv=3).min() > 0.1


def test_weights_count_and_weight_zero_teaches_nothing() -> None:
    weights = np.where(np.arange(len(Y)) % 3, 1.0, 0.0)
    some = weights > 0
    model = new(epochs=3).fit(X, Y, sample_weight=weights)
    rest = new(epochs=3).fit([pair for pair, one in zip(X, some, strict=True) if one], Y[some])
    assert digest(model) == digest(rest)
    assert digest(new(epochs=3).fit(X, Y, np.full(len(Y), 2.0))) != digest(model)
    for wrong, said in ((np.zeros(len(Y)), "non-zero"), ([1.0], "sample_weight"), (-Y, "negative")):
        with pytest.raises(ValueError, match=said):
            new().fit(X, Y, sample_weight=wrong)


def test_wrong_data_are_refused_and_change_nothing(fitted: MatrixFactorization) -> None:
    before = digest(fitted)
    for x, y, said in (
        (X[:2], [1, np.nan], r"y\[1\] is nan"),
        (X[:2], [1], "inconsistent numbers"),
        ([("u1", None)], [1], "item in row 0 is missing"),
        (np.array([[1, np.nan]]), [1], "NaN or infinity"),
        (np.zeros((2, 3)), [1, 2], "X has 3 columns"),
        (X[:2], None, "y is None"),
    ):
        with pytest.raises(ValueError, match=said):
            fitted.partial_fit(x, y)
        with pytest.raises(ValueError, match=said):
            new().fit(x, y)
    with pytest.raises(ValueError, match="0 sample"):
        new().fit([], [])
    with pytest.raises(TypeError, match="expected pairs"):
        fitted.predict("u1")
    assert fitted.predict([]).shape == (0,)
    assert digest(fitted) == before
    named = new(epochs=1).fit(pd.DataFrame(X, columns=["who", "what"]), Y)
    assert named.feature_names_in_.tolist() == ["who", "what"]
    with pytest.raises(ValueError, match="feature names should match"):
        named.predict(pd.DataFrame(X, columns=["what", "who"]))


def test_who_is_unknown_is_predicted_by_biases_alone(fitted: MatrixFactorization) -> None:
    users, items = fitted.users_.tolist(), fitted.items_.tolist()
    mean = fitted.intercept_
    user, item = fitted.user_biases_[users.index("u4")], fitted.item_biases_[items.index("i07")]
    found = fitted.predict([("u4", "new"), ("new", "i07"), ("new", "new")])
    assert found == pytest.approx([mean + user, mean + item, mean])


def test_partial_fit_goes_on_and_fit_begins_anew() -> None:
    model = new().partial_fit(X[:2000], Y[:2000])
    first = digest(model)
    model.partial_fit(X[2000:], Y[2000:])
    assert model.examples_ == 3000
    assert digest(model) != first
    assert digest(new().fit(X, Y)) == digest(model.fit(X, Y))
    model.set_params(alpha=0.01).partial_fit(X[:5], Y[:5])
    model.set_params(dim=6)
    with pytest.raises(ValueError, match="dim is 6, but the model has learned with 5"):
        model.partial_fit(X[:5], Y[:5])
    assert model.fit(X, Y).item_factors_.shape == (60, 6)


def test_held_out_ratings_end_the_passes_where_they_are_predicted_no_better() -> None:
    settings: dict[str, Any] = {"held_out": 0.2, "alpha": 0.3, "decay": 0.0, "l2": 0.0}
    model = new(epochs=60, patience=3, **settings).fit(X, Y)
    held = [one["held_out_rmse"] for one in model.passes_]
    best = int(np.argmin(held))
    assert len(held) == best + 4 < 60
    assert digest(model) == digest(new(epochs=best + 1, **settings).fit(X, Y))


def test_threads_give_what_they_give() -> None:
    one, *others = (digest(new(n_jobs=jobs).fit(X, Y)) for jobs in (1, 2, 2))
    assert others[0] == others[1] != one
    assert abs(new(n_jobs=-1).fit(X, Y).score(X, Y) - new().fit(X, Y).score(X, Y)) < 0.05


def test_what_diverges_is_warned_of() -> None:
    with pytest.warns(RuntimeWarning, match="the model diverges; lower alpha"):
        new(alpha=1e6).partial_fit(X, Y)


def test_a_full_table_is_said_and_the_model_stays() -> None:
    model = new(features_max=40)
    with pytest.raises(TableFullError):
        model.partial_fit(X, Y)
    assert 0 < model.examples_ < 3000
    assert np.isfinite(model.predict(X[:9])).all()
    few = new(names_max=5).fit(X, Y)
    assert few.score(X, Y) > 0.5
    with pytest.raises(ValueError, match="were not kept, as there are more than names_max = 5"):
        few.recommend("u1")


def test_logistic_loss_predicts_probabilities() -> None:
    liked = (Y > 3.5).astype(int)
    model = new(loss="logistic", epochs=20).fit(X, liked)
    predicted = model.predict(X)
    assert predicted.min() > 0
    assert predicted.max() < 1
    assert predicted[liked == 1].mean() > predicted[liked == 0].mean() + 0.2
    assert model.progressive()["auc"] > 0.7
    _, scores = model.recommend("u1", n=60, filter_seen=False)
    assert 0 < scores.min() < scores.max() < 1
    with pytest.raises(ValueError, match="learns 0 and 1"):
        model.partial_fit(X[:1], [3])
    ones = new(loss="logistic", negatives=3, epochs=20).fit(X, np.ones(len(X)))
    assert ones.predict(X).mean() > ones.predict([(user, "none") for user, _ in X]).mean()


# --- recommendations


def test_best_items_are_those_of_the_highest_predictions(fitted: MatrixFactorization) -> None:
    users, items = ["u9", "u30", "u9", "unknown"], fitted.items_.tolist()
    rated_by = {user: {item for one, item in X if one == user} for user in users}
    for filter_seen in (False, True):
        ids, scores = fitted.recommend(users, n=60, filter_seen=filter_seen)
        assert ids.shape == scores.shape == (4, 60)
        for user, row, values in zip(users, ids, scores, strict=True):
            left = [item for item in items if not (filter_seen and item in rated_by[user])]
            predicted = fitted.predict([(user, item) for item in left])
            order = np.argsort(-predicted, kind="stable")
            missing = 60 - len(left)
            assert row.tolist() == [left[at] for at in order] + [None] * missing
            np.testing.assert_allclose(values[: len(left)], predicted[order], rtol=1e-5)
            assert np.isnan(values[len(left) :]).all()
            assert np.isnan(values).sum() == missing
    one, values = fitted.recommend("u9", n=3)
    assert one.dtype.kind == "U"
    assert (one == fitted.recommend(["u9"], n=3)[0][0]).all()
    assert values.shape == (3,)
    nobody, _ = fitted.recommend([], n=3)
    assert nobody.shape == (0, 3)
    for wrong in (0, -1, 2.5, True, "3"):
        with pytest.raises(ValueError, match="n is"):
            fitted.recommend("u9", n=wrong)
    with pytest.raises(ValueError, match="user in row 0 is missing"):
        fitted.recommend([None])
    with pytest.raises(NotFittedError):
        MatrixFactorization().recommend("u9")


def test_ids_come_back_as_they_were() -> None:
    rows = np.array([(int(user[1:]), int(item[1:])) for user, item in X])
    model = new(epochs=2).fit(rows, Y)
    ids, _ = model.recommend(np.array([1, 2]), n=3)
    assert ids.dtype == np.int64
    assert model.recommend(7)[0].dtype == np.int64
    assert model.users_.dtype == np.int64
    tuples = [(user, ("film", item)) for user, item in X]
    assert new(epochs=2).fit(tuples, Y).recommend("u1", n=1)[0].tolist()[0][0] == "film"


def test_what_is_learned_later_is_seen_and_recommended_too(fitted: MatrixFactorization) -> None:
    model = copy.deepcopy(fitted)
    best = model.recommend("u9", n=1)[0][0]
    model.learn_one("u9", best, 1.0)
    assert best not in model.recommend("u9", n=60)[0].tolist()
    assert "fresh" not in model.recommend("new", n=100)[0].tolist()
    for user in [f"u{number}" for number in range(40)]:
        model.learn_one(user, "fresh", 5.0)
    model.learn_one("new", "i00", 5.0)
    assert "fresh" in model.recommend("new", n=100)[0].tolist()
    assert "i00" not in model.recommend("new", n=100)[0].tolist()
    forgetful = new(epochs=1, remember_seen=False).fit(X, Y)
    assert len(forgetful.recommend("u9", n=100)[0]) == 60
    assert None not in forgetful.recommend("u9", n=100)[0].tolist()


# --- river


def progressive(model: Any, rows: list[tuple[str, str, float]]) -> float:
    """Return the error of predictions that were made before each rating was learned."""
    metric = river.metrics.RMSE()
    for user, item, rating in rows:
        metric.update(rating, model.predict_one(user=user, item=item))
        model.learn_one(user=user, item=item, y=rating)
    return float(metric.get())


def test_predicts_as_well_as_rivers_model_of_the_same_equation() -> None:
    rows = RATINGS * 3
    # the gradient of river's squared loss is twice the error
    ours = MatrixFactorization(dim=10, alpha=0.06, l2=0.01, init_scale=0.1)
    rate = optim.SGD(0.03)
    theirs = river.reco.BiasedMF(
        n_factors=10, bias_optimizer=rate, latent_optimizer=rate, l2_bias=0.02, l2_latent=0.02,
        latent_initializer=optim.initializers.Normal(sigma=0.1, seed=1),
    )  # fmt: skip
    ours_rmse, theirs_rmse = progressive(ours, rows), progressive(theirs, rows)
    assert abs(ours_rmse / theirs_rmse - 1) < 0.02
    # of new users and items the factors that they have just been given are in it
    assert ours.progressive()["rmse"] == pytest.approx(ours_rmse, rel=1e-3)
    assert ours.examples_ == len(rows)


def test_mappings_and_rivers_evaluation_work_as_well() -> None:
    model = new()
    assert isinstance(model, river.base.Regressor)
    assert isinstance(model, river.reco.base.Ranker)
    assert model.is_contextual is False
    assert model.predict_one("u1", "i1") == 0.0
    dataset = [({"user": user, "item": item}, rating) for user, item, rating in RATINGS]
    metric = river.evaluate.progressive_val_score(dataset, model, river.metrics.RMSE())
    other = new()
    assert metric.get() == pytest.approx(progressive(other, RATINGS))
    assert digest(other) == digest(model)
    assert model.learn_one({"user": "u1", "item": "i05"}, 3.0) is None  # type: ignore[func-returns-value]
    assert model.predict_one({"user": "u1", "item": "i05"}) == model.predict_one("u1", "i05")
    ranked = model.rank("u1", {"i01", "i05", "i59", "nothing"})
    scores = [model.predict_one("u1", item) for item in ranked]
    assert scores == sorted(scores, reverse=True)
    assert model.rank("u1", []) == []
    before = digest(model)
    model.learn_one("u1", "i05", 3.0, w=0.0)
    assert digest(model) == before
    assert model.clone().examples_ == 0


def test_wrong_records_are_refused() -> None:
    model = new()
    for wrong, error, said in (
        (lambda: model.learn_one("u1"), TypeError, "needs y"),
        (lambda: model.learn_one("u1", "i1"), TypeError, "needs y"),
        (lambda: model.learn_one({"user": "u1"}, 3.0), ValueError, "x has no 'item'"),
        (lambda: model.learn_one({"user": 1, "item": 2}, 3.0, 4.0), TypeError, "or both by"),
        (lambda: model.learn_one("u1", None, 3.0), ValueError, "missing"),
        (lambda: model.learn_one("u1", "i1", float("nan")), ValueError, "NaN"),
        (lambda: model.learn_one("u1", "i1", "good"), ValueError, "no numbers"),
        (lambda: model.learn_one("u1", "i1", 3.0, w=-1.0), ValueError, "weight"),
        (lambda: model.predict_one("u1"), TypeError, "a user and an item"),
        (lambda: model.predict_one("u1", ""), ValueError, "empty"),
    ):
        with pytest.raises(error, match=said):
            wrong()
    assert model.examples_ == 0


def test_odd_ids_are_kept_apart() -> None:
    model = new()
    for user, rating in ((1, 5.0), (True, 1.0), (1.5, 2.0), ("1", 5.0)):
        for _ in range(30):
            model.learn_one(user, "i1", rating)
    assert len(model.users_) == 3
    assert (
        model.predict_one(1, "i1") == model.predict_one("1", "i1") == model.predict_one(1.0, "i1")
    )
    assert model.predict_one(True, "i1") < model.predict_one(1.5, "i1") < model.predict_one(1, "i1")


# --- the command line


def test_a_model_of_the_command_line_opens_in_python(
    fitted: MatrixFactorization, out: Path
) -> None:
    model = MatrixFactorization.load(out)
    assert model.get_params() == fitted.get_params()
    assert (model.predict(X) == fitted.predict(X)).all()
    ids, scores = model.recommend(["u1", "u2"], n=5)
    expected = fitted.recommend(["u1", "u2"], n=5, filter_seen=False)
    assert ids.tolist() == expected[0].tolist()
    assert (scores == expected[1]).all()
    model.partial_fit([("new", "i01")], [4])
    assert "new" in model.users_


def test_a_model_of_python_opens_on_the_command_line(
    fitted: MatrixFactorization, out: Path, tmp_path: Path
) -> None:
    fitted.save(tmp_path / "saved")
    source = out.parent / "ratings.dat"
    told = run("predict", tmp_path / "saved", source)
    assert told.code == 0, told.stderr
    assert told.stdout == run("predict", out, source).stdout
    best = run("recommend", tmp_path / "saved", source, "--user", "u9", "-n", 60)
    assert best.stdout == run("recommend", out, source, "--user", "u9", "-n", 60).stdout
    report = run("inspect", tmp_path / "saved", "--json").report
    assert (report["users"], report["items"]) == (120, 60)
    on = run(
        "train", source, "--model", "mf", "--dim", 5, "--epochs", 8, "--out", tmp_path / "saved"
    )
    assert on.code == 0, on.stderr


def test_saved_models_come_back_whole(fitted: MatrixFactorization, tmp_path: Path) -> None:
    frame = pd.DataFrame([(int(u[1:]), i) for u, i in X], columns=["who", "what"])
    for model in (fitted, new(epochs=2).fit(frame, Y), new(remember_seen=False).fit(X, Y)):
        path = tmp_path / str(id(model))
        model.save(path)
        again = MatrixFactorization.load(path)
        assert digest(again) == digest(model)
        assert again.get_params() == model.get_params()
        assert again.users_.dtype == model.users_.dtype
        some = model.users_[:5]
        assert again.recommend(some)[0].tolist() == model.recommend(some)[0].tolist()
        assert getattr(again, "feature_names_in_", []) is not None
        again.partial_fit(
            frame if model.n_features_in_ and again.users_.dtype.kind == "i" else X, Y
        )
    empty = MatrixFactorization()
    empty.save(tmp_path / "empty")
    assert MatrixFactorization.load(tmp_path / "empty").examples_ == 0


def test_what_is_no_factorization_is_opened_by_another_class(out: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"streamlearn\.MatrixFactorization\.load"):
        LogisticRegression.load(out)
    other = LogisticRegression()
    other.learn_one({"a": 1}, True)
    other.save(tmp_path / "lr")
    with pytest.raises(ConfigError, match=r"streamlearn\.LogisticRegression\.load"):
        MatrixFactorization.load(tmp_path / "lr")
    with pytest.raises(ConfigError, match="no model"):
        MatrixFactorization.load(tmp_path)
    model = new(epochs=1).fit(X, Y)
    model.save(tmp_path / "own")
    with pytest.raises(ConfigError, match=r"streamlearn\.MatrixFactorization\.load"):
        LogisticRegression.load(tmp_path / "own")
    (tmp_path / "own" / "seen.npz").write_bytes(b"x")
    with pytest.raises(SnapshotError, match=r"seen\.npz"):
        MatrixFactorization.load(tmp_path / "own")
    (tmp_path / "own" / "estimator.json").write_text("{}")
    with pytest.raises(SnapshotError, match=r"estimator\.json"):
        MatrixFactorization.load(tmp_path / "own")
    (tmp_path / "file").write_text("")
    with pytest.raises(SnapshotError):
        model.save(tmp_path / "file")


def test_a_private_model_predicts_and_learns_nothing_more(tmp_path: Path) -> None:
    out = rated.learned(tmp_path, "--epsilon", 5, "--rating-min", 0.5)
    model = MatrixFactorization.load(out)
    before = digest(model)
    assert len(model.recommend("u1", n=5)[0]) == 5
    for learn in (
        lambda: model.partial_fit(X[:3], Y[:3]),
        lambda: model.set_params(alpha=0.01).partial_fit(X[:3], Y[:3]),
        lambda: model.learn_one("u1", "i01", 3.0),
        lambda: pickle.loads(pickle.dumps(model)).learn_one("u1", "i01", 3.0),
    ):
        with pytest.raises(ConfigError, match="private"):
            learn()
    assert digest(model) == before
    assert digest(model.fit(X, Y)) != before


# --- imports and documentation

ALONE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"sklearn", "scipy", "river", "pandas"}:
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
import numpy as np
from streamlearn import MatrixFactorization
rng = np.random.default_rng(0)
X = rng.integers(0, 20, (500, 2)); y = X[:, 0] / 20 + X[:, 1] / 30
model = MatrixFactorization(dim=4)
assert repr(model) == "MatrixFactorization(dim=4)", repr(model)
try:
    model.predict(X)
except ValueError as error:
    assert "not fitted" in str(error)
else:
    raise AssertionError
assert model.fit(X, y).score(X, y) > 0.7
assert model.score(X, y, sample_weight=np.ones(500)) > 0.7
assert model.recommend(3, n=2)[0].shape == (2,)
"""


def test_works_where_scikit_learn_is_not_installed() -> None:
    subprocess.run([sys.executable, "-c", ALONE], check=True, timeout=300)


def test_the_package_names_it_and_does_not_import_it() -> None:
    code = "import sys, streamlearn; print(*sorted(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    ).stdout.split()
    assert not {"numba", "streamlearn.matrix_estimator"} & set(found)
    assert "MatrixFactorization" in dir(streamlearn)


def test_examples_in_the_documentation_work() -> None:
    page = Path(__file__).parent.parent / "docs" / "matrix-factorization.md"
    blocks = re.findall(r"^```python\n(>>> .*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    told = io.StringIO()
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, page.name, str(page), 0)
    assert doctest.DocTestRunner().run(test, out=told.write).failed == 0, told.getvalue()
    assert doctest.testmod(streamlearn.matrix_estimator).failed == 0
