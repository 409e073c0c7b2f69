"""Answers about a factorization: of one moment, while it is learned, wherever its rows stand."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamlearn import serving
from streamlearn.config import JobConfig, MfConfig
from streamlearn.factorized import factorized, ids_of
from streamlearn.model import Model, load
from streamlearn.net.http import AskedError
from streamlearn.online.mf import MfSolver, scored
from streamlearn.online.ratings import rating_keys
from streamlearn.serving import Serving
from streamlearn.strata.passes import Passes
from tests.rated import learned, ratings
from tests.runs import PATIENCE_SECONDS, Running, settings


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(learned(tmp_path_factory.mktemp("rated")))


@pytest.fixture
def asked(model: Model) -> Serving:
    async def at_once(function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    served = Serving(lambda: 2.5)
    served.attach(model, at_once)
    return served


def predictions(model: Model, user: str) -> tuple[list[str], np.ndarray]:
    """Return all items, as they were met, and what each is predicted to be for a user."""
    keys = factorized(model).items.keys
    assert isinstance(model.solver, MfSolver)
    user_key = rating_keys([user], ["any"])[0]
    pairs = np.stack([np.broadcast_to(user_key, keys.shape), keys], axis=1)
    return ids_of(model, keys), scored(model.solver, pairs)


async def test_best_items_are_those_of_the_highest_predictions(
    model: Model, asked: Serving
) -> None:
    answers = await asked.recommend([{"user": "u7", "n": "3"}, {"user": "nobody"}])
    for answer, user, n in zip(answers.each, ("u7", "nobody"), (3, 10), strict=True):
        ids, scores = predictions(model, user)
        order = np.argsort(-scores, kind="stable")[:n]
        assert answer == {
            "user": user,
            "known": user == "u7",
            "items": [{"item": ids[i], "score": pytest.approx(scores[i])} for i in order],
        }
    assert answers.about == {
        "model": {"kind": "mf", "version": model.counts.examples, "pass": 8, "age_seconds": 2.5}
    }


async def test_items_may_be_excluded(model: Model, asked: Serving) -> None:
    ids, scores = predictions(model, "u7")
    order = np.argsort(-scores, kind="stable")
    for excluded in (ids[order[0]], [ids[order[0]]], [ids[order[0]], "no such"]):
        (answer,) = (await asked.recommend([{"user": "u7", "n": 1, "exclude": excluded}])).each
        assert answer["items"][0]["item"] == ids[order[1]]
    (answer,) = (await asked.recommend([{"user": "u7", "exclude": ids}])).each
    assert answer["items"] == []


async def test_pairs_are_predicted_and_said_to_be_known(model: Model, asked: Serving) -> None:
    ids, scores = predictions(model, "u7")
    answers = await asked.predict(
        [{"user": "u7", "item": ids[5]}, {"user": 7, "item": ids[5]}, {"user": "u7", "item": "?"}]
    )
    first, second, third = answers.each
    assert first["prediction"] == pytest.approx(scores[5])
    assert first["known"] == {"user": True, "item": True}
    bias = factorized(model).items.biases[5] + model.solver.intercept
    assert second["prediction"] == pytest.approx(bias)
    assert second["user"] == "7"
    assert second["known"] == {"user": False, "item": True}
    assert third["known"] == {"user": True, "item": False}
    assert (await asked.predict([])).each == []


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ({}, "user is missing"),
        ({"user": ""}, "user is missing"),
        ({"user": ["u1", "u2"]}, "expected a text or a whole number"),
        ({"user": True}, "expected a text or a whole number"),
        ({"user": "u1", "n": 0}, "n is 0, expected a whole number from 1 to 1,000"),
        ({"user": "u1", "n": "x"}, "n is 'x'"),
        ({"user": "u1", "n": True}, "n is True"),
        ({"user": "u1", "exclude": [1.5]}, "exclude is 1.5"),
        ({"user": "u1", "top": 3}, "'top' means nothing here, only user, n, exclude do"),
    ],
)
async def test_wrong_questions_are_answered_with_what_is_wrong(
    asked: Serving, question: dict[str, Any], said: str
) -> None:
    with pytest.raises(AskedError, match=said) as error:
        await asked.recommend([question])
    assert error.value.status == 400


async def test_learning_waits_for_no_more_than_so_many_predictions(
    asked: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "SCORES_MAX", 100)
    assert len((await asked.recommend([{"user": "u1"}])).each) == 1
    with pytest.raises(AskedError, match="2 users and 60 items are more predictions than the 100"):
        await asked.recommend([{"user": "u1"}, {"user": "u2"}])


async def test_nobody_answers_without_a_model(asked: Serving) -> None:
    for served in (Serving(lambda: 0.0), asked):
        served.detach()
        with pytest.raises(AskedError, match="there is no model") as error:
            await served.predict([{"user": "u1", "item": "i01"}])
        assert error.value.status == 503


def test_only_factorizations_that_are_not_private_are_asked() -> None:
    served = Serving(lambda: 0.0)
    assert served.paths(JobConfig()) == {}
    assert served.paths(JobConfig(model=MfConfig(epsilon=1.0, epochs=5))) == {}
    assert set(served.paths(JobConfig(model=MfConfig()))) == {"/recommend", "/predict"}


def test_rows_outside_the_table_are_asked_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = np.stack(rating_keys(["u1", "u2", "x"], ["i03", "?", "i04"]), axis=1)
    said: list[np.ndarray] = []
    sweep = Passes.sweep

    def listened(self: Passes, *arguments: Any) -> tuple[int, int]:
        done = sweep(self, *arguments)
        said.append(self.scored(keys))
        return done

    monkeypatch.setattr(Passes, "sweep", listened)
    model = load(learned(tmp_path))
    assert isinstance(model.solver, MfSolver)
    np.testing.assert_allclose(said[-1], scored(model.solver, keys), rtol=1e-6)
    assert abs(said[-1] - said[-3]).max() > 1e-3


def get(address: str, path: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{address}{path}") as response:
        found: dict[str, Any] = json.load(response)
        return found


def test_a_node_answers_while_it_learns(tmp_path: Path) -> None:
    flags = ["--model", "mf", "--dim", 4, "--format", "ratings", "--http", "127.0.0.1:0"]
    flags += settings("source.block_bytes=65536")
    with Running("train", "-", *flags, "--out", tmp_path, stdin=subprocess.PIPE) as node:
        stdin = node.process.stdin
        assert stdin is not None
        said = node.wait_for_text("listening on http://")
        assert said is not None
        address = said["message"].rpartition(" ")[2]
        try:  # before there is a model, or as soon as there is one
            assert not get(address, "/recommend?user=u1")["known"]
        except urllib.error.HTTPError as early:
            with early as response:
                assert response.status == 503
                assert "error" in json.load(response)
        text = "".join(f"{user}::{item}::{value}\n" for user, item, value in ratings())
        stdin.write(text.encode() * 40)
        stdin.flush()
        until = time.monotonic() + PATIENCE_SECONDS
        answer: dict[str, Any] = {}
        while time.monotonic() < until and not answer.get("known"):
            try:
                answer = get(address, "/recommend?user=u1&n=2&exclude=i00&exclude=i01")
            except urllib.error.HTTPError as error:
                error.close()
            time.sleep(0.1)
        assert answer["known"]
        assert len(answer["items"]) == 2
        assert not {"i00", "i01"} & {one["item"] for one in answer["items"]}
        assert answer["model"]["version"] > 0
        body = json.dumps([{"user": "u1", "item": "i03"}] * 2).encode()
        request = urllib.request.Request(f"{address}/predict", body)
        with urllib.request.urlopen(request) as response:
            answers = json.load(response)["answers"]
        assert answers[0] == answers[1]
        assert 1 < answers[0]["prediction"] < 5
        stdin.close()
        assert node.end().code == 0
