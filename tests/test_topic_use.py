"""Topics on the command line once they are learned: judged, predicted, looked into, exported."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from streamlearn.model import load
from streamlearn.online.lda import LdaSolver
from streamlearn.online.tokens import word_keys
from streamlearn.topic_inference import Judging, TopicReader
from streamlearn.topic_mixtures import strongest_topics
from streamlearn.topic_model import Topics, TopWords
from tests import click_log, told
from tests.reference.topics import coherence, probability
from tests.runs import run

NEW = told.documents(60, seed=9)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("told")
    source = told.written(directory / "texts.txt", 400)
    ended = run(
        "train", source, "--model", "lda", "--format", "documents", "--topics", 8, "--epochs", 40,
        "--doc-topic-prior", 0.1, "--max-df", 1, "--lanes", 1, "--held-out", 0.1, "--out",
        directory / "out",
    )  # fmt: skip
    assert ended.code == 0, ended.stderr
    return directory / "out"


@pytest.fixture
def new(tmp_path: Path) -> Path:
    path = tmp_path / "new.txt"
    lines = [" ".join([*words, "unheard"]) for words in NEW]
    path.write_text("\n".join([*lines, "..."]) + "\n")
    return path


def solver_of(directory: Path) -> LdaSolver:
    solver = load(directory).solver
    assert isinstance(solver, LdaSolver)
    return solver


# --- judged


def test_documents_are_judged_either_way(out: Path, new: Path) -> None:
    reports = {
        method: run("evaluate", out, new, "--method", method, "--json").report
        for method in ("completion", "left-to-right")
    }
    assert run("evaluate", out, new, "--json").report["tokens"] == reports["completion"]["tokens"]
    tokens = sum(map(len, NEW))
    for report in reports.values():
        assert report["examples"] == 61
        assert report["unknown_tokens"] == 60
        assert report["known_tokens"] == tokens
        figure = report["log_likelihood_per_token"]
        assert report["perplexity"] == pytest.approx(np.exp(-figure))
        assert -np.log(told.TOPICS * told.WORDS) < figure < -2
    assert reports["left-to-right"]["tokens"] == tokens
    assert reports["completion"]["tokens"] == sum(len(words) // 2 for words in NEW)
    both = [report["log_likelihood_per_token"] for report in reports.values()]
    assert both[0] == pytest.approx(both[1], abs=0.15)


def test_lanes_minibatches_and_runs_change_nothing(out: Path, new: Path) -> None:
    found = {
        run("evaluate", out, new, "--method", "left-to-right", "--json", *flags).report[
            "log_likelihood_per_token"
        ]
        for flags in ((), ("--lanes", 1), ("--lanes", 3), ("--set", "compute.minibatch=7"))
    }
    assert max(found) == pytest.approx(min(found), rel=1e-6)
    few = run("evaluate", out, new, "--method", "left-to-right", "--particles", 2, "--json").report
    assert few["log_likelihood_per_token"] not in found


def test_left_to_right_is_exact_where_all_topics_can_be_summed(out: Path) -> None:
    solver = solver_of(out)
    words = [NEW[0][:5], NEW[1][:6], NEW[2][:1]]
    keys = word_keys([word for document in words for word in document])
    bounds = np.array([0, 5, 11, 12])
    reader = TopicReader(solver, 1, Judging("left-to-right", 2000))
    scores, tokens = reader.judge(keys, bounds)
    assert tokens.tolist() == [5, 6, 1]
    alpha = solver.priors.alpha
    for score, first, last in zip(scores, bounds[:-1], bounds[1:], strict=True):
        phi = solver.phi_at(keys[first:last]).astype(np.float64)
        exact = np.log(probability(range(last - first), alpha, phi))
        assert score == pytest.approx(exact, abs=0.05)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--method", "harmonic"), "expected one of completion, left-to-right, got 'harmonic'"),
        (("--particles", 5), "--particles is for --method left-to-right alone"),
        (("--method", "completion", "--particles", 5), "left-to-right alone"),
    ],
)
def test_what_cannot_be_judged_by_is_said(
    out: Path, new: Path, flags: tuple[object, ...], said: str
) -> None:
    ended = run("evaluate", out, new, *flags)
    assert ended.code == 2
    assert said in ended.stderr


def test_a_warning_says_that_most_words_are_unknown(out: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.txt"
    path.write_text("none of these words\nwas ever seen\n")
    ended = run("evaluate", out, path, "--json")
    assert ended.code == 0
    assert ended.report["unknown_tokens"] == 7
    assert ended.report["log_likelihood_per_token"] is None
    assert "of 7 tokens, 7 are of words" in ended.stderr


# --- predicted


def test_topics_of_documents_come_a_line_each(out: Path, new: Path, tmp_path: Path) -> None:
    ended = run("predict", out, new, "--top", 0)
    assert ended.code == 0, ended.stderr
    shares = np.array([line.split("\t") for line in ended.stdout.splitlines()], float)
    assert shares.shape == (61, 8)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-4)
    alpha = solver_of(out).priors.alpha
    np.testing.assert_allclose(shares[-1], alpha / alpha.sum(), rtol=1e-4)
    assert (shares[:-1].max(axis=1) > 0.2).all()
    lines = run("predict", out, new, "--top", 3).stdout.splitlines()
    as_json = [json.loads(one) for one in run("predict", out, new, "--json").stdout.splitlines()]
    for row, line, one, words in zip(shares, lines, as_json, [*NEW, []], strict=True):
        best = np.argsort(-row, kind="stable")[:3].tolist()
        pairs = [pair.split(":") for pair in line.split(" ")]
        assert sorted(int(topic) for topic, _ in pairs) == sorted(best) or len(words) == 0
        assert [float(share) for _, share in pairs] == pytest.approx(row[best], rel=1e-2)
        assert len(one["topics"]) == 8
        assert one["topics"][0][1] == pytest.approx(row.max(), rel=1e-4)
        assert one["tokens"] == len(words)
        assert one["unknown_tokens"] == (len(words) > 0)
    ended = run("evaluate", out, new, "-p", tmp_path / "p.txt", "--json")
    assert ended.report["unknown_tokens"] == 60
    assert len((tmp_path / "p.txt").read_text().splitlines()) == 61
    whole = [json.loads(one) for one in
             run("predict", out, new, "--json", "--top", 0).stdout.splitlines()]  # fmt: skip
    np.testing.assert_allclose([one["shares"] for one in whole], shares, rtol=1e-4)


def test_bad_records_have_a_line_too(tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(b"tea pie\n\xff\xfe\ntea pie\n")
    flags = ("--set", "source.bad_records_max=1")
    fixed = ("--model", "lda", "--topics", 3, "--epochs", 3, "--min-df", 1, "--max-df", 1)
    ended = run(
        "train", path, *fixed, "--format", "documents", "--set", "source.undecodable=bad", *flags,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert ended.code == 0, ended.stderr
    lines = run("predict", tmp_path / "out", path, *flags).stdout.splitlines()
    assert len(lines) == 3
    assert (lines[0], lines[1]) == (lines[2], "nan")
    for top in (0, 3):
        shown = run("predict", tmp_path / "out", path, *flags, "--json", "--top", top).stdout
        assert shown.splitlines()[1] == "null"
    assert (
        run("predict", tmp_path / "out", path, *flags, "--top", 0).stdout.splitlines()[1] == "nan"
    )


def test_a_document_of_many_words_is_one(out: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    words = [word for document in NEW for word in document]
    path.write_text(" ".join(words[i % len(words)] for i in range(70_000)) + "\naaxaa\n")
    lines = run("predict", out, path, "--json").stdout.splitlines()
    assert [json.loads(line)["tokens"] for line in lines] == [70_000, 1]


def test_strongest_topics_come_first() -> None:
    rng = np.random.default_rng(0)
    shares = rng.random((50, 30)).astype(np.float32)
    for top in (1, 7, 30, 99):
        found = strongest_topics(shares, top)
        assert (found == np.argsort(-shares, axis=1, kind="stable")[:, :top]).all()
    assert strongest_topics(shares, 0) is None


def test_other_models_have_no_topics(tmp_path: Path) -> None:
    log = click_log.written(tmp_path / "log.tsv", click_log.text(click_log.clicks(50, 1)))
    out = tmp_path / "out"
    assert run("train", log, "--format", "criteo", "--out", out).code == 0
    for words, said in (
        (("predict", out, log, "--top", 3), "--top is for topics (lda), but the model is lr"),
        (("evaluate", out, log, "--method", "completion"), "--method is for topics (lda)"),
        (("inspect", out, "--topics"), "needs topics, but the model is lr"),
        (("inspect", out, "--words", "a"), "needs topics, but the model is lr"),
    ):
        ended = run(*words)
        assert ended.code == 2
        assert said in ended.stderr


# --- looked into


def test_inspect_says_how_large_a_model_is(out: Path) -> None:
    report = run("inspect", out, "--json").report
    solver = solver_of(out)
    assert report["topics"] == 8
    assert report["vocabulary"] == told.TOPICS * told.WORDS
    assert report["tokens"] == solver.priors.totals.sum()
    assert report["documents"] == solver.documents < 400
    assert report["alpha_sum"] == pytest.approx(solver.priors.alpha.sum())
    assert report["beta"] == solver.priors.beta
    assert "topic_words" not in report


def test_topics_are_listed_by_size(out: Path) -> None:
    report = run("inspect", out, "--topics", "--top", 4, "--json").report
    topics = report["topic_words"]
    assert sorted(one["topic"] for one in topics) == list(range(8))
    shares = [one["share"] for one in topics]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)
    solver, model = solver_of(out), load(out)
    counts, keys = Topics.of(model).counts(), Topics.of(model).keys
    names = model.names.lookup(keys)
    phi = (counts + solver.priors.beta) / Topics.of(model).norms
    for one in topics:
        column = counts[:, one["topic"]]
        best = [place for place in np.argsort(-column, kind="stable") if column[place] > 0]
        assert one["words"] == [names[place] for place in best[:4]]
        assert one["alpha"] == solver.priors.alpha[one["topic"]]
        own = [phi[place, one["topic"]] / phi[place].sum() for place in best[:10]]
        assert one["exclusivity"] == (pytest.approx(np.mean(own)) if own else None)
    shown = run("inspect", out, "--topics").stdout
    assert re.search(r"topic +share +alpha +exclusivity +words", shown)


def test_top_words_are_found_piece_by_piece(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    topics = Topics.of(load(out))
    whole = TopWords.of(topics, 7)
    monkeypatch.setattr("streamlearn.topic_model._PIECE", 50)
    again = TopWords.of(topics, 7)
    assert (again.places == whole.places).all()
    assert (again.counts == whole.counts).all()
    np.testing.assert_allclose(again.exclusivity, whole.exclusivity)


def test_coherence_is_told_by_documents(out: Path, new: Path) -> None:
    report = run("inspect", out, new, "--topics", "--json").report
    assert report["coherence_documents"] == 61
    known = []
    for one in report["topic_words"]:
        assert list(one)[-1] == "words"
        expected = coherence([*NEW, []], one["words"])
        for name, value in zip(("npmi", "umass"), expected, strict=True):
            assert one[name] == (None if np.isnan(value) else pytest.approx(value))
        known += [] if one["npmi"] is None else [one["npmi"]]
    assert report["npmi"] == pytest.approx(np.mean(known))
    # the same without the flag: there is nothing else that documents are for
    assert run("inspect", out, new, "--json").report == report


def test_words_have_topics(out: Path) -> None:
    model, solver = load(out), solver_of(out)
    word = str(model.names.lookup(Topics.of(model).keys[:1])[0])
    report = run("inspect", out, "--words", word.upper(), "--words", "unheard", "--json").report
    rows = report["words"]
    counts = solver.counts_at(word_keys([word]))[0]
    mine = [row for row in rows if row["word"] == word.upper()]
    assert {row["topic"]: row["share"] for row in mine} == pytest.approx(
        {k: counts[k] / counts.sum() for k in np.flatnonzero(counts).tolist()}
    )
    assert mine[0]["tokens"] >= counts.sum()
    assert rows[-1] == {"word": "unheard", "tokens": 0, "documents": 0, "topic": None}
    shown = run("inspect", out, "--words", word, "-n", 1).stdout
    assert len(shown.strip().splitlines()) == 3


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--words", "a", "--topics"), "--words is about words"),
        (("--topics", "--top", 0), "--top: expected at least 1, got 0"),
    ],
)
def test_what_does_not_go_together_is_said(out: Path, flags: tuple[object, ...], said: str) -> None:
    ended = run("inspect", out, *flags)
    assert ended.code == 2
    assert said in ended.stderr


# --- a page


class Page(HTMLParser):
    """What a page shows, and what it would ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.asked: list[tuple[str, str | None]] = []
        self.data: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.asked += [(n, v) for n, v in attrs if n in ("src", "href", "action") or n[:2] == "on"]

    def handle_data(self, data: str) -> None:
        self.data.append(data)


def test_a_page_shows_topics_and_asks_for_nothing(out: Path, new: Path, tmp_path: Path) -> None:
    target = tmp_path / "topics.html"
    report = run("inspect", out, new, "--topics", "--html", target, "--json").report
    assert report["file"] == str(target)
    text = target.read_text(encoding="utf-8")
    page = Page(text)
    assert page.asked == []
    for asking in ("url(", "@import", "<script"):
        assert asking not in text
    assert page.tags.count("tr") == 9
    assert page.tags.count("polyline") == 2  # learned, and held out
    for one in report["topic_words"]:
        assert f"{100 * one['share']:.2f} %" in page.data
        assert set(one["words"]) <= set(page.data)
    for said in ("prefers-color-scheme:dark", 'name="viewport"'):
        assert said in text


def test_a_page_takes_words_for_text(tmp_path: Path) -> None:
    from streamlearn import LDA

    evil = ["<script>alert(1)</script>", '"><img src=x>', "&amp;"]
    model = LDA(topics=2, epochs=3, min_df=1, max_df=1.0).fit([evil, evil])
    model.save(tmp_path / "<b>out")
    target = tmp_path / "topics.html"
    ended = run("inspect", tmp_path / "<b>out", "--html", target)
    assert ended.code == 0, ended.stderr
    page = Page(target.read_text(encoding="utf-8"))
    assert page.asked == []
    assert not {"script", "img", "b"} & set(page.tags)
    assert set(evil) <= set(page.data)
    # no report.json: no curve
    assert "svg" not in page.tags
    bad = run("inspect", tmp_path / "<b>out", "--html", tmp_path / "none" / "page.html")
    assert bad.code == 1
    assert "cannot write" in bad.stderr


# --- exported


def test_npz_and_parquet_hold_all_counts(out: Path, tmp_path: Path) -> None:
    solver = solver_of(out)
    report = run("export", out, tmp_path / "topics.npz", "--json").report
    with np.load(tmp_path / "topics.npz") as file:
        arrays: dict[str, Any] = dict(file)
    words = arrays["words"].tolist()
    assert report == {
        "file": str(tmp_path / "topics.npz"), "topics": 8, "vocabulary": len(words),
        "tokens": int(arrays["totals"].sum()), "beta": solver.priors.beta,
    }  # fmt: skip
    assert arrays["counts"].dtype == np.int32
    assert (arrays["counts"] == solver.counts_at(word_keys(words))).all()
    assert (arrays["counts"].sum(axis=0) == arrays["totals"]).all()
    assert (arrays["keys"] == word_keys(words)).all()
    assert (arrays["alpha"] == solver.priors.alpha).all()
    assert run("export", out, tmp_path / "topics.parquet").code == 0
    table = pq.read_table(tmp_path / "topics.parquet")
    assert table["word"].to_pylist() == words
    assert (np.array(table["counts"].to_pylist()) == arrays["counts"]).all()
    assert (np.array(table["documents"]) == arrays["documents"]).all()
    said = table.schema.metadata
    assert json.loads(said[b"alpha"]) == arrays["alpha"].tolist()
    assert json.loads(said[b"totals"]) == arrays["totals"].tolist()
    assert float(said[b"beta"]) == float(arrays["beta"])
    bad = run("export", out, tmp_path / "topics.txt")
    assert bad.code == 2
    assert "export of lda writes .npz or .parquet" in bad.stderr


def test_gensim_takes_the_counts_over(
    out: Path, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gensim")
    assert run("export", out, tmp_path / "topics.npz").code == 0
    page = Path(__file__).parent.parent / "docs" / "topic-models.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {}
    exec(next(block for block in blocks if "gensim" in block), made)
    lda, words = made["lda"], made["words"]
    solver = solver_of(out)
    np.testing.assert_allclose(
        lda.get_topics().T, solver.phi_at(word_keys(list(words.values()))), rtol=1e-5
    )
    places = {word: i for i, word in words.items()}
    ours = run("predict", out, new, "--top", 1).stdout.splitlines()
    same = 0
    for line, document in zip(ours, NEW, strict=False):
        bag = [(places[word], document.count(word)) for word in set(document)]
        theirs = max(lda.get_document_topics(bag), key=lambda pair: pair[1])[0]
        same += theirs == int(line.split(":")[0])
    assert same >= 50


def test_a_model_without_words_is_told_of_all_the_same(tmp_path: Path) -> None:
    from streamlearn import LDA

    LDA(topics=3, min_df=9).partial_fit(["tea pie"]).save(tmp_path / "out")
    (tmp_path / "new.txt").write_text("tea and pie\n")
    report = run("inspect", tmp_path / "out", tmp_path / "new.txt", "--topics", "--json").report
    assert report["vocabulary"] == report["tokens"] == 0
    assert [one["words"] for one in report["topic_words"]] == [[], [], []]
    assert report["npmi"] is None
    assert report["topic_words"][0]["exclusivity"] is None
    page = tmp_path / "page.html"
    assert run("inspect", tmp_path / "out", "--html", page).code == 0
    assert run("predict", tmp_path / "out", tmp_path / "new.txt").code == 0
    for name in ("topics.npz", "topics.parquet"):
        ended = run("export", tmp_path / "out", tmp_path / name, "--json")
        assert ended.code == 0, ended.stderr
        assert ended.report["vocabulary"] == 0
    for method in ("completion", "left-to-right"):
        ended = run("evaluate", tmp_path / "out", tmp_path / "new.txt", "--method", method)
        assert ended.code == 0, ended.stderr
    assert len(pq.read_table(tmp_path / "topics.parquet")) == 0


def test_documents_may_stand_there_otherwise_than_those_learned(
    out: Path, new: Path, tmp_path: Path
) -> None:
    expected = run("evaluate", out, new, "--json").report
    expected_lines = run("predict", out, new).stdout
    texts = new.read_text().splitlines()
    table, objects = tmp_path / "new.tsv", tmp_path / "new.jsonl"
    table.write_text("id\tbody\n" + "".join(f"{i}\t{text}\n" for i, text in enumerate(texts)))
    objects.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    for path, flags in ((table, ("--column", "body=text", "--header")),
                        (objects, ("--column", "body=text"))):  # fmt: skip
        report = run("evaluate", out, path, *flags, "--json").report
        assert report["log_likelihood_per_token"] == expected["log_likelihood_per_token"]
        assert run("predict", out, path, *flags).stdout == expected_lines
    words = sorted({word for document in NEW for word in document})
    (tmp_path / "words").write_text("\n".join(words))
    counts = tmp_path / "new.ldac"
    rows = [[f"{i}:{document.count(w)}" for i, w in enumerate(words) if w in document]
            for document in NEW]  # fmt: skip
    counts.write_text("".join(f"{len(row)} {' '.join(row)}\n" for row in rows))
    flags = ("--format", "ldac", "--vocabulary", tmp_path / "words")
    report = run("evaluate", out, counts, *flags, "--json").report
    assert report["known_tokens"] == expected["known_tokens"]
    assert run("inspect", out, counts, "--topics", *flags).code == 0
    for verb in ("evaluate", "predict", "inspect"):
        ended = run(verb, out, new, "--stop-words", "english")
        assert ended.code == 2
        assert "was learned with none" in ended.stderr
