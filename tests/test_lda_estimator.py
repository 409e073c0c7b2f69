"""Topics in Python, as users of scikit-learn meet them."""

from __future__ import annotations

import copy
import doctest
import inspect
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

import streamlearn.lda_estimator
from streamlearn import LDA, LogisticRegression
from streamlearn.config import JobConfig, LdaConfig, SourceConfig
from streamlearn.errors import ConfigError, ResourceError, TableFullError
from streamlearn.learned import SETTINGS, settings_of
from streamlearn.model import load
from streamlearn.online import corpora
from tests import told
from tests.runs import run

DOCUMENTS = told.documents(400)
TEXTS = [" ".join(words) for words in DOCUMENTS]
WORDS = sorted({word for words in DOCUMENTS for word in words})
SETTING: dict[str, Any] = {"topics": 8, "epochs": 40, "doc_topic_prior": 0.1, "max_df": 1.0}


def new(**settings: Any) -> LDA:
    return LDA(**{**SETTING, **settings})


def counted(documents: list[list[str]] = DOCUMENTS) -> np.ndarray[Any, Any]:
    places = {word: i for i, word in enumerate(WORDS)}
    out = np.zeros((len(documents), len(WORDS)), np.int64)
    for row, words in zip(out, documents, strict=True):
        np.add.at(row, [places[word] for word in words], 1)
    return out


@pytest.fixture(scope="module")
def fitted() -> LDA:
    return new().fit(TEXTS)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("told")
    source = told.written(directory / "texts.txt", 400)
    ended = run(
        "train", source, "--model", "lda", "--format", "documents", "--topics", 8, "--epochs", 40,
        "--doc-topic-prior", 0.1, "--max-df", 1, "--lanes", 1, "--out", directory / "out",
    )  # fmt: skip
    assert ended.code == 0, ended.stderr
    return directory / "out"


def digest(model: LDA) -> str:
    assert model._learned is not None
    return model._learned.model.digest()


# --- settings


def test_settings_are_those_of_the_command_line_by_the_same_defaults() -> None:
    settings = LDA().get_params()
    assert settings.pop("n_jobs") is None
    assert settings.pop("vocabulary") is None
    assert set(settings) == set(SETTINGS["lda"])
    job = JobConfig(model=LdaConfig(), source=SourceConfig(format="documents"))
    assert settings == settings_of(job)
    assert LDA()._job() == job
    documented = re.findall(r"^    (\w+(?:, \w+)?) : ", LDA.__doc__, re.MULTILINE)
    names = list(inspect.signature(LDA).parameters)
    assert ", ".join(documented).split(", ")[: len(names)] == names


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"topics": 0}, "topics"),
        ({"topics": 65536}, "topics"),
        ({"epochs": 0}, "epochs"),
        ({"optimize": "gamma"}, "optimize"),
        ({"max_df": 0.0}, "max_df"),
        ({"held_out": 1.0}, "held_out"),
        ({"word_length_min": 9, "word_length_max": 8}, "word_length_min"),
        ({"stop_words": "/none/there"}, "stop_words"),
        ({"n_jobs": 0}, "n_jobs is 0"),
        ({"vocabulary": []}, "vocabulary"),
        ({"vocabulary": ["tea", "pie", "tea"]}, "'tea' twice"),
    ],
)
def test_what_cannot_be_set_is_said_before_anything_is_learned(
    settings: dict[str, Any], said: str
) -> None:
    model = new(**settings)
    with pytest.raises((ValueError, ConfigError), match=said):
        model.fit(TEXTS)
    assert model.documents_ == 0


# --- scikit-learn


@parametrize_with_checks(
    [
        LDA(topics=3, epochs=5, min_df=1, max_df=1.0, n_jobs=2),
        LDA(topics=2, epochs=1, min_df=1, max_df=1.0),
    ]
)
def test_keeps_what_scikit_learn_promises(
    estimator: Any, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # its checks hand in measurements: what is a count of words is told apart below
    whole = corpora._whole
    monkeypatch.setattr(
        corpora, "_whole", lambda x: whole(np.round(x) if x.dtype.kind == "f" else x)
    )
    check(estimator)


def test_topics_are_found_and_documents_told(fitted: LDA) -> None:
    mixtures = fitted.transform(TEXTS)
    assert mixtures.shape == (400, 8)
    np.testing.assert_allclose(mixtures.sum(axis=1), 1, atol=1e-5)
    assert fitted.get_feature_names_out().tolist() == [f"lda{k}" for k in range(8)]
    found = fitted.top_words(5)
    # all words of a topic that is there begin with the same two letters
    assert sum(len({word[:2] for word in words}) == 1 for words in found) >= 5
    assert fitted.components_.shape == (8, len(WORDS))
    tokens = sum(map(len, DOCUMENTS))
    beta = fitted.beta_
    assert fitted.components_.sum() == pytest.approx(tokens + beta * 8 * len(WORDS))
    assert sorted(fitted.words_) == WORDS
    assert fitted.documents_ == 400
    assert [one["pass"] for one in fitted.passes_] == list(range(1, 41))
    assert fitted.passes_[-1]["perplexity"] < fitted.passes_[2]["perplexity"]
    assert fitted.perplexity(TEXTS) == pytest.approx(np.exp(-fitted.score(TEXTS)))
    assert fitted.perplexity(TEXTS) < 45 < len(WORDS)
    both = [fitted.score(TEXTS[:50], method=m) for m in ("completion", "left-to-right")]
    assert both[0] == pytest.approx(both[1], abs=0.2)
    # nothing is known of it: what the prior says
    prior = fitted.alpha_ / fitted.alpha_.sum()
    np.testing.assert_allclose(fitted.transform(["", "qqq"]), [prior, prior], rtol=1e-5)
    assert np.isnan(fitted.score(["qqq zzz"]))


def test_what_is_learned_is_what_the_command_line_learns(fitted: LDA, out: Path) -> None:
    assert digest(fitted) == load(out).digest()
    opened = LDA.load(out)
    assert opened.get_params() == fitted.get_params()
    assert (opened.components_ == fitted.components_).all()
    assert (opened.words_ == fitted.words_).all()
    assert (opened.alpha_ == fitted.alpha_).all()
    assert (opened.transform(TEXTS) == fitted.transform(TEXTS)).all()
    told_ = json.loads((out / "report.json").read_text())["passes"]
    for mine, theirs in zip(fitted.passes_[1:], told_[1:], strict=True):
        assert mine["perplexity"] == pytest.approx(theirs["perplexity"])


def test_threads_change_nothing(fitted: LDA) -> None:
    two = new(n_jobs=2).fit(TEXTS)
    assert digest(two) == digest(fitted)
    assert (two.transform(TEXTS) == fitted.transform(TEXTS)).all()
    for method in ("completion", "left-to-right"):
        assert two.score(TEXTS, method=method) == pytest.approx(fitted.score(TEXTS, method=method))


def test_texts_and_words_make_the_same_model(fitted: LDA) -> None:
    for x in (
        DOCUMENTS,
        [tuple(words) for words in DOCUMENTS],
        iter(TEXTS),
        np.array(TEXTS),
        pd.Series(TEXTS, index=range(7, 407)),
        [f"<b>{text.upper()}</b>\n1984" for text in TEXTS],
    ):
        assert digest(new().fit(x)) == digest(fitted)


def test_every_form_of_a_matrix_makes_the_same_model() -> None:
    x = counted()
    expected = new(vocabulary=WORDS).fit(x)
    assert expected.n_features_in_ == len(WORDS)
    np.testing.assert_array_equal(
        expected.components_.sum(axis=0).round(6),
        (x.sum(axis=0) + 8 * expected.beta_).round(6),
    )
    forms = (sp.csr_matrix(x), sp.csc_array(x), sp.coo_matrix(x.astype(float)), x.tolist())
    for form in forms:
        assert digest(new(vocabulary=WORDS).fit(form)) == digest(expected)
    frame = pd.DataFrame(x, columns=WORDS)
    named = new().fit(frame)
    assert digest(named) == digest(expected)
    assert named.feature_names_in_.tolist() == WORDS
    mixtures = expected.transform(x)
    for form in (*forms, frame, [[w for w, n in zip(WORDS, row, strict=True) for _ in range(n)]
                                 for row in x]):  # fmt: skip
        assert (named.transform(form) == mixtures).all()
    with pytest.raises(ValueError, match="feature names should match"):
        named.transform(frame[WORDS[::-1]])
    with pytest.raises(ValueError, match="X has 3 features, but LDA is expecting 100"):
        named.transform(x[:, :3])


def test_columns_without_words_are_numbers(tmp_path: Path) -> None:
    x = counted()
    model = new().fit(x)
    assert set(model.top_words(1)[0][0]) <= set("0123456789")
    model.save(tmp_path / "out")
    lines = [[f"{w}:{n}" for w, n in enumerate(row) if n] for row in x.tolist()]
    source = tmp_path / "documents.ldac"
    source.write_text("".join(f"{len(line)} {' '.join(line)}\n" for line in lines))
    ended = run("evaluate", tmp_path / "out", source, "--json")
    assert ended.code == 0, ended.stderr
    assert ended.report["log_likelihood_per_token"] == pytest.approx(model.score(x), rel=1e-6)
    assert ended.report["unknown_tokens"] == 0
    again = LDA.load(tmp_path / "out")
    assert (again.components_ == model.components_).all()
    with pytest.raises(ValueError, match="X has 2 features"):
        again.transform(x[:, :2])


def test_zeros_that_are_written_down_are_none() -> None:
    x = sp.csr_matrix(counted())
    again = sp.csr_matrix((np.append(x.data, [0, 0]), np.append(x.indices, [1, 2]),
                           np.append(x.indptr[:-1], len(x.data) + 2)), shape=x.shape)  # fmt: skip
    assert digest(new().fit(again)) == digest(new().fit(x))


def test_counts_of_scikit_learn_are_read_with_their_words(fitted: LDA) -> None:
    vectorizer = CountVectorizer()
    x = vectorizer.fit_transform(TEXTS)
    model = new(vocabulary=vectorizer.get_feature_names_out()).fit(x)
    found = model.top_words(3)
    assert sum(len({word[:2] for word in words}) == 1 for words in found) >= 5
    assert model.transform(TEXTS[:3]).shape == (3, 8)
    pipeline = make_pipeline(CountVectorizer(), new(epochs=3), LogisticRegression())
    assert pipeline.fit(TEXTS, np.arange(400) % 2).predict(TEXTS[:5]).shape == (5,)


def test_vocabulary_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("\n".join(WORDS))
    model = new(vocabulary=str(tmp_path / "words"), epochs=2).fit(counted())
    assert sorted(model.words_) == WORDS


def test_grid_search_finds_the_better_one() -> None:
    search = GridSearchCV(new(epochs=15), {"topics": [1, 6]}, cv=2).fit(TEXTS)
    assert search.best_params_ == {"topics": 6}


def test_clones_copies_and_pickles(fitted: LDA) -> None:
    again = clone(fitted)
    assert again.get_params() == fitted.get_params()
    assert again.documents_ == 0
    with pytest.raises(NotFittedError):
        again.transform(TEXTS)
    for other in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
        assert digest(other) == digest(fitted)
        assert (other.transform(TEXTS[:9]) == fitted.transform(TEXTS[:9])).all()
        assert other.passes_ == fitted.passes_
        before = digest(fitted)
        other.partial_fit(TEXTS[:100])
        assert digest(other) != before == digest(fitted)


def test_held_out_documents_are_looked_at() -> None:
    model = new(held_out=0.2, epochs=200, patience=2).fit(TEXTS)
    looks = [one for one in model.passes_ if "held_out_perplexity" in one]
    assert [one["pass"] % 10 for one in looks] == [0] * len(looks)
    assert len(model.passes_) < 200
    assert model.documents_ < 400


# --- one pass


def test_documents_teach_as_they_come() -> None:
    model = new(draws=20)
    for first in range(0, 400, 50):
        assert model.partial_fit(TEXTS[first : first + 50]) is model
    assert model.documents_ == 400
    assert model.perplexity(TEXTS) < 60
    figures = model.progressive()
    assert figures["perplexity_window"] < len(WORDS)
    same = new(draws=20)
    for first in range(0, 400, 50):
        same.partial_fit(DOCUMENTS[first : first + 50])
        same = pickle.loads(pickle.dumps(same))
    assert digest(same) == digest(model)


def test_partial_fit_goes_on_from_what_fit_has_learned(fitted: LDA) -> None:
    model = copy.deepcopy(fitted)
    more = told.documents(100, seed=5)
    model.partial_fit(more)
    assert model.documents_ == 500
    before, after = fitted.components_.sum(), model.components_.sum()
    assert after - before == pytest.approx(sum(map(len, more)))
    model.set_params(half_life=50.0)
    model.partial_fit(more)
    assert model.components_.sum() < after
    model.set_params(topics=9)
    with pytest.raises(ValueError, match="topics is 9, but the model has learned with 8"):
        model.partial_fit(more)


def test_one_epoch_of_fit_is_one_partial_fit() -> None:
    assert digest(new(epochs=1).fit(TEXTS)) == digest(new().partial_fit(TEXTS))


# --- what is wrong


@pytest.mark.parametrize(
    ("x", "error", "said"),
    [
        ("one text", ValueError, "X is one str"),
        (["one", 2], TypeError, "document 1 is 2"),
        ([["a", "b"], "text"], TypeError, "document 1 is str"),
        ([["a", 3]], TypeError, "document 0 has the word 3"),
        ([["a", ""]], ValueError, "a word that is empty"),
        (7, TypeError, "X is int"),
        ([], ValueError, "2D array"),
        ([[0.5, 1]], ValueError, "X has 0.5, expected whole numbers"),
        ([[-1, 1]], ValueError, "Negative values"),
        ([[np.nan, 1]], ValueError, "NaN"),
        ([[2.0**40, 1]], ValueError, "count of"),
        (np.zeros((2, 2, 2)), ValueError, "3D array"),
        (np.zeros((0, 2)), ValueError, "0 sample"),
        (["the one", "and only"], ValueError, "of 4 tokens none"),
        (["", "."], ValueError, "of 0 tokens none"),
    ],
)
def test_bad_documents_are_refused_and_teach_nothing(x: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        new().fit(x)


def test_a_matrix_is_not_guessed_at(fitted: LDA) -> None:
    with pytest.raises(ValueError, match="say what its columns stand for"):
        fitted.transform(np.ones((2, 3), int))
    with pytest.raises(ValueError, match="X has 3 columns, but the vocabulary has 2 words"):
        new(vocabulary=["a", "b"]).fit(np.ones((2, 3), int))
    with pytest.raises(ValueError, match="method is 'harmonic'"):
        fitted.score(TEXTS, method="harmonic")
    with pytest.raises(ValueError, match="particles is 0"):
        fitted.score(TEXTS, particles=0)
    with pytest.raises(ValueError, match="n is 0"):
        fitted.top_words(0)


def test_what_there_is_no_room_for_is_said() -> None:
    with pytest.raises(TableFullError):
        new(features_max=50).fit([[f"w{i}" for i in range(5000)]])
    with pytest.raises(ResourceError, match="counts of"):
        new(topics=4000, embeddings_bytes_max=1 << 16, min_df=1).fit(TEXTS)


def test_long_documents_are_one_document() -> None:
    long = [WORDS[i % 100] for i in range(150_000)]
    model = new(epochs=3, min_df=1).fit([long, *DOCUMENTS])
    assert model.components_.sum() == pytest.approx(
        150_000 + sum(map(len, DOCUMENTS)) + model.beta_ * 8 * len(WORDS)
    )
    assert model.transform([long]).shape == (1, 8)
    assert np.isfinite(model.score([long]))


# --- kept


def test_saved_models_open_on_the_command_line_and_again(fitted: LDA, tmp_path: Path) -> None:
    fitted.save(tmp_path / "out")
    again = LDA.load(tmp_path / "out")
    assert digest(again) == digest(fitted)
    source = tmp_path / "texts.txt"
    source.write_text("\n".join(TEXTS[:60]) + "\n")
    ended = run("evaluate", tmp_path / "out", source, "--json")
    assert ended.code == 0, ended.stderr
    expected = fitted.score(TEXTS[:60])
    assert ended.report["log_likelihood_per_token"] == pytest.approx(expected, rel=1e-6)
    predicted = run("predict", tmp_path / "out", source, "--top", 0)
    found = np.array([line.split("\t") for line in predicted.stdout.splitlines()], float)
    np.testing.assert_allclose(found, fitted.transform(TEXTS[:60]), rtol=1e-4)
    with pytest.raises(ConfigError, match="LogisticRegression opens lr"):
        LogisticRegression.load(tmp_path / "out")


def test_a_stream_goes_on_after_it_was_saved(tmp_path: Path) -> None:
    model = new().partial_fit(TEXTS[:200])
    model.save(tmp_path / "out")
    again = LDA.load(tmp_path / "out")
    for one in (model, again):
        one.partial_fit(TEXTS[200:])
    assert digest(again) == digest(model)


def test_does_without_scikit_learn() -> None:
    script = (
        "import sys; sys.modules.update({'sklearn': None, 'sklearn.base': None, 'scipy': None})\n"
        "from streamlearn import LDA\n"
        "model = LDA(topics=2, epochs=3, min_df=1, max_df=1.0)\n"
        "print(model.fit_transform(['tea pie', 'bus tram']).shape)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.stdout == "(2, 2)\n", ended.stderr


def test_examples_in_the_docs_are_true() -> None:
    page = Path(__file__).parent.parent / "docs" / "topic-models.md"
    assert doctest.testfile(str(page), module_relative=False) == (0, 6)
    assert doctest.testmod(streamlearn.lda_estimator).failed == 0
