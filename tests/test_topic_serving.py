"""Topics of documents that are asked for while they are learned."""

from __future__ import annotations

import json
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamlearn import LDA, topic_serving
from streamlearn.config import JobConfig, LdaConfig
from streamlearn.net.http import AskedError
from streamlearn.serving import Serving
from tests import told
from tests.runs import PATIENCE_SECONDS, Running, run

TEXTS = [" ".join(words) for words in told.documents(300)]


@pytest.fixture(scope="module")
def model() -> LDA:
    return LDA(topics=8, epochs=30, max_df=1.0).fit(TEXTS)


@pytest.fixture
def asked(model: LDA) -> Serving:
    async def at_once(function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    served = Serving(lambda: 2.5)
    assert model._learned is not None
    served.attach(model._learned.model, at_once)
    return served


async def test_documents_are_told_their_topics(model: LDA, asked: Serving) -> None:
    questions = [{"text": f"{TEXTS[0]} Unheard!"}, {"words": TEXTS[1].split(), "n": "3"}]
    answers = await asked.topics([*questions, {"text": ""}])
    for answer, text, n in zip(answers.each, [*TEXTS[:2], ""], (8, 3, 8), strict=True):
        shares = model.transform([text])[0]
        best = sorted(range(8), key=lambda k: -shares[k])[:n]
        assert answer["topics"] == [{"topic": k, "share": pytest.approx(shares[k])} for k in best]
        assert answer["tokens"] == len(text.split())
    assert [answer["unknown_tokens"] for answer in answers.each] == [1, 0, 0]
    about = answers.about["model"]
    assert (about["kind"], about["pass"], about["age_seconds"]) == ("lda", 30, 2.5)
    assert (await asked.topics([])).each == []


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ({}, "expected either text or words"),
        ({"text": "a", "words": ["a"]}, "expected either text or words"),
        ({"text": 7}, "text is 7"),
        ({"words": [7]}, "expected a list of words"),
        ({"words": [""]}, "expected a list of words"),
        ({"text": "a", "n": 0}, "n is 0, expected a whole number from 1 to 1,000"),
        ({"text": "a", "top": 3}, "'top' means nothing here"),
    ],
)
async def test_wrong_questions_are_answered_with_what_is_wrong(
    asked: Serving, question: dict[str, Any], said: str
) -> None:
    with pytest.raises(AskedError, match=said) as error:
        await asked.topics([question])
    assert error.value.status == 400


async def test_learning_waits_for_so_much_only(
    asked: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topic_serving, "PRODUCTS_MAX", 100)
    assert len((await asked.topics([{"text": TEXTS[0]}])).each) == 1
    with pytest.raises(AskedError, match="ask for fewer documents at once"):
        await asked.topics([{"text": TEXTS[0]}, {"text": TEXTS[1]}])


async def test_nobody_answers_without_topics() -> None:
    served = Serving(lambda: 0.0)
    with pytest.raises(AskedError, match="there is no model") as error:
        await served.topics([{"text": "a"}])
    assert error.value.status == 503
    assert set(served.paths(JobConfig(model=LdaConfig()))) == {"/predict"}


async def test_the_first_pass_has_no_topics_yet(asked: Serving, model: LDA) -> None:
    empty = LDA(topics=2)._ready().model

    async def at_once(function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    asked.attach(empty, at_once)
    with pytest.raises(AskedError, match="no topics yet") as error:
        await asked.topics([{"text": "a"}])
    assert error.value.status == 503


def test_a_training_node_answers(tmp_path: Path) -> None:
    source = told.written(tmp_path / "texts.txt", 300)
    flags = (
        "train", source, "--model", "lda", "--format", "documents", "--topics", 8, "--max-df", 1,
        "--epochs", 100_000, "--http", "127.0.0.1:0", "--out", tmp_path / "out",
    )  # fmt: skip
    with Running(*flags) as node:
        said = node.wait_for_text("listening on http://")
        assert said is not None
        address = said["message"].rpartition(" ")[2]
        answer: dict[str, Any] = {}
        until = time.monotonic() + PATIENCE_SECONDS
        while not answer and time.monotonic() < until:
            try:
                body = json.dumps([{"text": TEXTS[0], "n": 2}]).encode()
                with urllib.request.urlopen(f"{address}/predict", body) as response:
                    answer = json.load(response)
            except urllib.error.HTTPError as early:  # before there is a model, or topics
                early.close()
                time.sleep(0.05)
        assert len(answer["answers"][0]["topics"]) == 2
        assert answer["model"]["kind"] == "lda"
        node.signal(signal.SIGINT)
        node.process.wait(PATIENCE_SECONDS)
    listed = run("snapshot", "ls", tmp_path / "out", "--json")
    assert json.loads(listed.stdout)[0]["perplexity"] > 1
