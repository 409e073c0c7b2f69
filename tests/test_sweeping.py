"""Topics as users learn them: passes, held-out documents, breaks, little memory, one pass."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamlearn.model import Model, load
from streamlearn.online.lda import LdaSolver
from streamlearn.shards.table import ExactTable
from streamlearn.topics import documents as kept_documents
from streamlearn.topics import sweeps as module
from streamlearn.topics.sweeps import Sweeps
from tests.runs import Ended, Running, run, settings
from tests.told import written

# Some more than there are: with as many, two may stay one.
LEARNED = 8


def train(*arguments: object) -> Ended:
    fixed = ("--model", "lda", "--format", "documents", "--topics", LEARNED, "--lanes", 1)
    return run("train", *fixed, "--max-df", 1, *arguments, "--json")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("texts") / "texts.txt", 600)


def solver_of(model: Model) -> LdaSolver:
    assert isinstance(model.solver, LdaSolver)
    return model.solver


def purity(model: Model) -> float:
    """Return the share of tokens whose topic is mostly of words of one true topic."""
    solver = solver_of(model)
    keys, _ = solver.vocabulary()
    counts = solver.counts_at(keys)
    names = model.names.lookup(keys)
    truth = [str(name)[:2] for name in names]
    by_truth = np.zeros((len(set(truth)), counts.shape[1]))
    for row, name in zip(counts, truth, strict=True):
        by_truth[sorted(set(truth)).index(name)] += row
    return float(by_truth.max(axis=0).sum() / by_truth.sum())


def stop_after(monkeypatch: pytest.MonkeyPatch, sweeps: int) -> None:
    """Have the run get SIGINT in the middle of so many sweeps of blocks."""
    sweep, done = Sweeps.sweep, [0]

    def counted(self: Sweeps, number: int, epoch: int) -> Any:
        done[0] += epoch > 0  # of pass 0 it is tried out before the first record
        if done[0] == sweeps:
            os.kill(os.getpid(), signal.SIGINT)
        return sweep(self, number, epoch)

    monkeypatch.setattr(Sweeps, "sweep", counted)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have many blocks, of few tokens."""
    made = Sweeps.__init__

    def init(self: Sweeps, *arguments: Any, **more: Any) -> None:
        made(self, *arguments, **more | {"block_tokens": 3000})

    monkeypatch.setattr(Sweeps, "__init__", init)
    monkeypatch.setattr(kept_documents, "_CHUNK", 2048)
    return


def test_topics_are_found(texts: Path, tmp_path: Path) -> None:
    ended = train(texts, "--epochs", 60, "--held-out", 0.1, "--out", tmp_path / "out")
    assert ended.code == 0, ended.stderr
    report = ended.report
    model = load(tmp_path / "out")
    assert purity(model) > 0.95
    passes = report["passes"]
    assert [one["pass"] for one in passes] == list(range(1, 61))
    assert passes[-1]["log_likelihood_per_token"] > passes[1]["log_likelihood_per_token"] + 0.5
    assert report["perplexity"] == pytest.approx(np.exp(-report["log_likelihood_per_token"]))
    held = [one["held_out_perplexity"] for one in passes if "held_out_perplexity" in one]
    assert len(held) == 6
    assert held[-1] < held[0]
    assert report["held_out_perplexity"] == held[-1]
    solver = solver_of(model)
    assert report["tokens"] == solver.priors.totals.sum() == solver.recount().sum()
    assert report["vocabulary"] == len(solver.vocabulary()[0]) == solver.priors.words
    assert solver.priors.alpha.sum() < 2  # it was 5, and documents have few topics
    assert (model.epoch, model.swept) == (59, -1)


def test_the_same_model_with_any_number_of_lanes(texts: Path, tmp_path: Path) -> None:
    digests = set()
    for lanes in (1, 2, 3):
        out = tmp_path / str(lanes)
        assert train(texts, "--epochs", 25, "--out", out, "--lanes", lanes).code == 0
        digests.add(load(out).digest())
    assert len(digests) == 1


@pytest.mark.usefixtures("small_blocks")
def test_little_memory_changes_nothing(texts: Path, tmp_path: Path) -> None:
    arguments = (texts, "--epochs", 25, "--held-out", 0.1, "--out")
    much = train(*arguments, tmp_path / "much")
    little = train(*arguments, tmp_path / "little", "--tokens-bytes-max", 24_000)
    assert much.code == little.code == 0, little.stderr
    assert load(tmp_path / "much").digest() == load(tmp_path / "little").digest()
    assert little.report["held_out_perplexity"] == much.report["held_out_perplexity"]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("sweeps", [1, 4, 26])
def test_a_broken_run_goes_on_to_the_same_model(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sweeps: int
) -> None:
    arguments = (texts, "--epochs", 24, "--held-out", 0.1, "--out")
    whole = train(*arguments, tmp_path / "whole")
    with monkeypatch.context() as patched:
        stop_after(patched, sweeps)
        broken = train(*arguments, tmp_path / "broken")
    assert broken.code == 130, broken.stderr
    assert load(tmp_path / "broken").swept > 0
    again = train(*arguments, tmp_path / "broken")
    assert again.code == 0, again.stderr
    assert load(tmp_path / "broken").digest() == load(tmp_path / "whole").digest()
    assert again.report["held_out_perplexity"] == whole.report["held_out_perplexity"]
    assert again.report["examples"] == whole.report["examples"]
    finished = train(*arguments, tmp_path / "broken")
    assert finished.code == 0
    assert finished.report["passes"] == []


def test_a_run_that_breaks_in_the_first_pass_reads_again(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (texts, "--epochs", 12, "--minibatch", 64, "--out")
    train(*arguments, tmp_path / "whole")
    learn, done = LdaSolver.learn_resolved, [0]

    def counted(self: LdaSolver, *more: Any) -> Any:
        done[0] += 1
        if done[0] == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return learn(self, *more)

    with monkeypatch.context() as patched:
        patched.setattr(LdaSolver, "learn_resolved", counted)
        broken = train(*arguments, tmp_path / "broken")
    assert broken.code == 130
    assert load(tmp_path / "broken").epoch == 0
    again = train(*arguments, tmp_path / "broken")
    assert again.code == 0, again.stderr
    assert load(tmp_path / "broken").digest() == load(tmp_path / "whole").digest()


def test_snapshots_amid_the_passes_can_be_gone_on_from(texts: Path, tmp_path: Path) -> None:
    ended = train(
        texts, "--epochs", 400, "--out", tmp_path / "out", "--snapshot-seconds", 0.02,
        "--set", "output.snapshots_kept=100",
    )  # fmt: skip
    assert ended.code == 0, ended.stderr
    epochs = set()
    for path in sorted((tmp_path / "out" / "model").iterdir()):
        alone = tmp_path / f"alone-{path.name}"
        (alone / "model").mkdir(parents=True)
        (alone / "model" / path.name).symlink_to(path)
        model = load(alone, topics=True)
        epochs.add(model.epoch)
        if model.epoch:
            solver, held = solver_of(model), model.stored_topics
            assert held is not None
            found = np.bincount(np.concatenate(list(held.values())), minlength=LEARNED)
            np.testing.assert_array_equal(found, solver.priors.totals)
            np.testing.assert_array_equal(found, solver.recount())
    assert len(epochs) > 2


def test_documents_that_changed_are_no_longer_what_was_learned(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(texts.read_bytes())
    arguments = (path, "--epochs", 20, "--out", tmp_path / "out")
    with monkeypatch.context() as patched:
        stop_after(patched, 3)
        assert train(*arguments).code == 130
    path.write_bytes(texts.read_bytes()[:-2000])
    again = train(*arguments)
    assert again.code != 0
    assert "has changed since it was learned" in again.stderr


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        (("--min-df", 30), lambda df: df >= 30),
        (("--max-df", 0.2), lambda df: df <= 0.2 * 600),
        (("--vocabulary-max", 17), lambda df: df >= sorted(df)[-17]),
    ],
)
def test_the_vocabulary_is_bounded(
    texts: Path, tmp_path: Path, settings: tuple[object, ...], kept: Any
) -> None:
    ended = train(texts, "--epochs", 3, "--min-df", 1, *settings, "--out", tmp_path / "out")
    assert ended.code == 0, ended.stderr
    lines = [line.split() for line in texts.read_text().splitlines()]
    df: dict[str, int] = {}
    for line in lines:
        for word in set(line):
            df[word] = df.get(word, 0) + 1
    counts = np.array(list(df.values()))
    flags = kept(counts)
    model = load(tmp_path / "out")
    keys, slots = solver_of(model).vocabulary()
    names = set(model.names.lookup(keys))
    if "--vocabulary-max" in settings:
        assert len(names) == 17
    else:
        assert names == {word for word, flag in zip(df, flags, strict=True) if flag}
    assert {name for name in names if df[str(name)] < counts.min()} == set()
    table = model.table
    assert isinstance(table, ExactTable)
    rows = table.rows_at(slots)
    for name, row in zip(model.names.lookup(keys), rows, strict=True):
        assert int(row[2] & np.uint64(0xFFFFFFFF)) == df[str(name)]
        assert int(row[1] & np.uint64(0xFFFFFFFF)) == sum(line.count(str(name)) for line in lines)
    report = ended.report
    total = sum(len(line) for line in lines)
    assert report["tokens"] + report["tokens_left_out"] == total


def test_no_word_may_be_left(texts: Path, tmp_path: Path) -> None:
    ended = train(texts, "--epochs", 3, "--min-df", 10_000, "--out", tmp_path / "out")
    assert ended.code != 0
    assert "none is of a word that may have topics" in ended.stderr
    assert "model.min_df" in ended.stderr


def test_counts_that_do_not_fit_are_refused_with_the_numbers(texts: Path, tmp_path: Path) -> None:
    ended = train(texts, "--epochs", 3, "--out", tmp_path / "out", "--embeddings-bytes-max", 1000)
    assert ended.code != 0
    assert "tables.embeddings_bytes_max = " in ended.stderr
    assert "words in 8 topics take" in ended.stderr


@pytest.mark.parametrize("topics", [0, 65_536, -1])
def test_topics_have_limits(texts: Path, tmp_path: Path, topics: int) -> None:
    ended = train(texts, "--out", tmp_path / "out", "--topics", topics)
    assert ended.code != 0
    assert "model.topics" in ended.stderr


@pytest.mark.parametrize("topics", [1, 2, 3000])
def test_few_and_many_topics(texts: Path, tmp_path: Path, topics: int) -> None:
    ended = train(texts, "--epochs", 12, "--out", tmp_path / "out", "--topics", topics)
    assert ended.code == 0, ended.stderr
    solver = solver_of(load(tmp_path / "out"))
    assert solver.recount().sum() == ended.report["tokens"]
    assert np.isfinite(ended.report["perplexity"])


def test_passes_end_when_nothing_gets_better(texts: Path, tmp_path: Path) -> None:
    ended = train(
        texts, "--epochs", 2000, "--held-out", 0.2, "--patience", 2, "--out", tmp_path / "out"
    )
    assert ended.code == 0, ended.stderr
    assert len(ended.report["passes"]) < 1000


def test_a_defect_in_the_counts_is_told(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweeps.sweep

    def wrong(self: Sweeps, number: int, epoch: int) -> Any:
        told = sweep(self, number, epoch)
        if epoch == 3:
            self._solver.priors.totals[0] += 1
        return told

    monkeypatch.setattr(module.Sweeps, "sweep", wrong)
    ended = train(texts, "--epochs", 8, "--out", tmp_path / "out")
    assert ended.code != 0
    assert "counts of topics are" in ended.stderr


def test_one_pass_learns_as_documents_come(tmp_path: Path) -> None:
    texts = written(tmp_path / "many.txt", 3000)
    ended = train(
        texts, "--epochs", 1, "--minibatch", 100, "--out", tmp_path / "out",
        "--set", "output.window=800",
    )  # fmt: skip
    assert ended.code == 0, ended.stderr
    report = ended.report
    assert "passes" not in report
    model = load(tmp_path / "out")
    assert purity(model) > 0.9
    solver = solver_of(model)
    np.testing.assert_array_equal(solver.priors.totals, solver.recount())
    # documents are predicted before they teach: as by chance at first, well in the end
    window = model.validation.summary()
    tokens = sum(len(line.split()) for line in texts.read_text().splitlines())
    assert window["tokens"] < tokens / 2  # every other one, once words have earned topics
    assert window["perplexity_window"] < 30  # of 100 words
    assert report["examples"] == 3000


@pytest.mark.parametrize("half_life", [0, 150])
def test_one_pass_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half_life: int
) -> None:
    texts = written(tmp_path / "many.txt", 800)
    arguments = (texts, "--epochs", 1, "--minibatch", 64, "--half-life", half_life, "--out")
    assert train(*arguments, tmp_path / "whole").code == 0
    learn, done = LdaSolver.learn_resolved, [0]

    def counted(self: LdaSolver, *more: Any) -> Any:
        done[0] += 1
        if done[0] == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return learn(self, *more)

    with monkeypatch.context() as patched:
        patched.setattr(LdaSolver, "learn_resolved", counted)
        assert train(*arguments, tmp_path / "broken").code == 130
    assert train(*arguments, tmp_path / "broken").code == 0
    broken, whole = load(tmp_path / "broken"), load(tmp_path / "whole")
    assert broken.digest() == whole.digest()
    assert broken.validation.summary()["perplexity"] == whole.validation.summary()["perplexity"]


def test_what_is_old_is_forgotten(tmp_path: Path) -> None:
    texts = written(tmp_path / "many.txt", 2000)
    arguments = (texts, "--epochs", 1, "--minibatch", 50)
    report = train(*arguments, "--half-life", 200, "--out", tmp_path / "out").report
    solver = solver_of(load(tmp_path / "out"))
    np.testing.assert_array_equal(solver.priors.totals, solver.recount())
    tokens = sum(len(line.split()) for line in texts.read_text().splitlines())
    # the last quarter of a half-life whole, and of those before a geometric series
    expected = tokens / 2000 * (200 / 4 + 200 / np.log(2))
    assert solver.priors.totals.sum() == pytest.approx(expected, rel=0.1)
    assert report["examples"] == 2000


@pytest.mark.parametrize("setting", ["vocabulary", "stop-words"])
def test_a_file_of_words_that_changed_is_refused(tmp_path: Path, setting: str) -> None:
    file = tmp_path / "words.txt"
    file.write_text("".join(f"w{chr(97 + n)}\n" for n in range(20)))
    rng = np.random.default_rng(1)
    source = tmp_path / "texts"
    if setting == "vocabulary":
        lines = ["2 " + " ".join(f"{w}:3" for w in rng.choice(20, 2, False)) for _ in range(200)]
        format_ = "ldac"
    else:
        lines = [" ".join(f"w{chr(97 + w)}" for w in rng.choice(26, 9)) for _ in range(200)]
        format_ = "documents"
    source.write_text("\n".join(lines) + "\n")
    arguments = (
        "train", source, "--model", "lda", "--topics", 3, "--max-df", 1, "--format", format_,
        f"--{setting}", file, "--out", tmp_path / "out", "--json", "--epochs",
    )  # fmt: skip
    assert run(*arguments, 1).code == 0
    again = run(*arguments, 1)
    assert again.code == 0, again.stderr
    file.write_text("".join(f"w{chr(98 + n)}\n" for n in range(20)))
    other = run(*arguments, 1)
    assert other.code != 0
    assert "has other words than when" in other.stderr


def test_words_of_held_out_documents_alone_have_no_topics(tmp_path: Path) -> None:
    """Half of the documents are held out, each with a word of its own."""
    path = tmp_path / "texts.txt"
    letters = [chr(97 + n) for n in range(26)]
    own = [f"q{a}{b}" for a in letters for b in letters][:400]
    path.write_text("".join(f"one two {word} three\n" for word in own))
    ended = train(
        path, "--epochs", 4, "--held-out", 0.5, "--min-df", 1, "--out", tmp_path / "out",
        "--minibatch", 16,
    )  # fmt: skip
    assert ended.code == 0, ended.stderr
    model = load(tmp_path / "out")
    names = {str(name) for name in model.names.lookup(solver_of(model).vocabulary()[0])}
    assert {"one", "two", "three"} < names
    learned = len(names) - 3
    assert 100 < learned < 300
    assert ended.report["tokens"] == 4 * learned


def test_what_many_passes_learned_goes_on_with_what_comes(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    written(tmp_path / "texts" / "a.txt", 600)
    out = tmp_path / "out"
    assert train(tmp_path / "texts", "--epochs", 30, "--out", out).code == 0
    before = solver_of(load(out)).priors.totals.sum()
    more = written(tmp_path / "texts" / "b.txt", 200, seed=5)
    with Running(
        "train", tmp_path / "texts", "--model", "lda", "--format", "documents", "--topics",
        LEARNED, "--lanes", 1, "--max-df", 1, "--epochs", 30, "--out", out, "--follow",
        *settings("source.follow_seconds=0.1"),
    ) as running:  # fmt: skip
        running.wait_for(lambda said: said.get("examples") == 600 * 30 + 200)
        running.signal(signal.SIGINT)
        assert running.end().code == 130
    model = load(out)
    solver = solver_of(model)
    tokens = sum(len(line.split()) for line in more.read_text().splitlines())
    assert solver.priors.totals.sum() == before + tokens == solver.recount().sum()
    assert model.validation.summary()["examples"] == 200
