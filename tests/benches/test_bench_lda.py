from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

import bench_lda
import process
import topic_corpora
import topic_ours
import topic_peers
from bench_lda import FITTED, OURS, Result
from topic_corpora import Corpus
from topic_peers import Setting

SETTING = Setting(2, 0.5, 0.5, sweeps=(1, 2))


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    texts = ["bee ant bee", "ant cow ant", "cow bee"]
    topic_corpora.prepare(texts, texts, path=tmp_path / "some.npz", share_max=2.0)
    return topic_corpora.read(tmp_path / "some.npz")


def _export(path: Path, **changes: np.ndarray) -> None:
    """Write what ours exports of the corpus: eight tokens, three words in another order."""
    counts = np.array([[1, 1], [0, 3], [2, 1]], np.int32)
    known = {
        "words": np.array(["cow", "bee", "ant"]),
        "counts": counts,
        "alpha": np.array([0.5, 0.25]),
        "beta": np.float64(0.5),
        "totals": counts.sum(0, dtype=np.int64),
    }
    np.savez(path, **{**known, **changes})  # type: ignore[arg-type]


# ------------------------------------------------------------------------- ours


def test_an_export_is_read_in_the_order_of_the_corpus(corpus: Corpus, tmp_path: Path) -> None:
    _export(tmp_path / "model.npz")
    model = topic_ours.read(tmp_path / "model.npz", corpus)
    expected = np.array([[2.5, 0.5, 1.5], [1.5, 3.5, 1.5]])
    assert model.phi == pytest.approx(expected / expected.sum(1, keepdims=True))
    assert model.phi.dtype == np.float32
    assert model.alpha.tolist() == [0.5, 0.25]
    assert model.sizes.tolist() == [3, 5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"words": np.array(["cow", "bee", "cat"])}, "3 words that are not the 3 given"),
        ({"counts": np.ones((3, 2), np.int32)}, "counts add up to 6, totals to 8; expected 8"),
        ({"totals": np.array([4, 4])}, "counts add up to 8, totals to 8; expected 8"),
    ],
)
def test_an_export_of_other_tokens_is_refused(
    corpus: Corpus, tmp_path: Path, changes: dict[str, np.ndarray], message: str
) -> None:
    _export(tmp_path / "model.npz", **changes)
    with pytest.raises(RuntimeError, match=message):
        topic_ours.read(tmp_path / "model.npz", corpus)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Have a command that says three passes; return what was run."""
    ran: list[list[str]] = []

    def stamped(command: list[str], *, stderr: bool) -> tuple[process.Usage, list[process.Line]]:
        ran.append(command)
        assert stderr
        lines = [process.Line("reading\n", 0.5, 0.25)]
        lines += [
            process.Line(f"pass {i}: step 1, x, 1.0 s\n", 4.0 * i, 2.0 * i) for i in (1, 2, 3)
        ]
        return process.Usage(20.0, 10.0, 1, "", "it failed"), lines

    def run(command: list[str]) -> None:
        ran.append(command)
        _export(Path(command[-1]))

    monkeypatch.setattr(process, "run_stamped", stamped)
    monkeypatch.setattr(process, "run", run)
    return ran


def test_ours_is_told_the_setting_and_to_leave_nothing_out(
    corpus: Corpus, tmp_path: Path, commands: list[list[str]]
) -> None:
    told = topic_ours.train(corpus, SETTING, tmp_path, lanes=2, optimize="both")
    train, export = commands
    assert train[:5] == [sys.executable, "-m", "streamlearn", "train", str(corpus.text)]
    said = " ".join(train[5:])
    for flag in ("--model lda", "--format documents", "--lanes 2", f"--out {tmp_path}"):
        assert flag in said
    for setting in (
        "topics=2", "epochs=3", "doc_topic_prior=0.5", "topic_word_prior=0.5", "optimize=both",
        "min_df=1", "max_df=1.0",
    ):  # fmt: skip
        assert f"--set model.{setting}" in said
    assert export[3:] == ["export", str(tmp_path), str(tmp_path / "model.npz")]
    assert told["prepare_seconds"] == 4.0
    assert told["prepare_cpu_seconds"] == 2.0
    assert told["sweep_seconds"] == [4.0, 4.0]
    assert told["sweep_cpu_seconds"] == [2.0, 2.0]


def test_passes_that_are_missing_are_complained_of(
    corpus: Corpus, tmp_path: Path, commands: list[list[str]]
) -> None:
    with pytest.raises(RuntimeError, match="3 of 6 passes: it failed"):
        topic_ours.train(corpus, replace(SETTING, sweeps=(5,)), tmp_path)


def test_ours_is_judged_by_its_own_priors_and_shows_large_topics_first(
    corpus: Corpus, tmp_path: Path, commands: list[list[str]]
) -> None:
    result = bench_lda.ours(corpus, replace(SETTING, sweeps=(2,)), tmp_path)
    model_path = tmp_path / "m.npz"
    _export(model_path)
    model = topic_ours.read(model_path, corpus)
    (at,) = result.curve
    assert at["sweep"] == 2
    assert at["cpu_seconds"] == 4.0
    assert at["seconds"] == 8.0
    assert at["log_likelihood"] == bench_lda._judge(corpus, model.phi, model.alpha)
    assert result.words == ["bee ant cow", "ant cow bee"]


# ------------------------------------------------------------------- comparison


def _result(speed: float, judged: dict[int, float], sweeps: int = 2, words: str = "w") -> Result:
    """Return a run whose sweeps take so many seconds of CPU, twice that of wall."""
    curve = [
        {
            "sweep": n,
            "seconds": 2 * speed * n,
            "cpu_seconds": speed * n,
            "log_likelihood": found,
        }
        for n, found in judged.items()
    ]
    return Result([2 * speed] * sweeps, [speed] * sweeps, 2.0, 1.0, 10**8, curve, [words])


Who = dict[tuple[str, int], Callable[[Setting], Result]]


@pytest.fixture
def order() -> list[str]:
    return []


@pytest.fixture
def who(order: list[str]) -> Who:
    """Have contenders that do nothing, and say that they ran."""

    def contender(name: str, lanes: int, speed: float, judged: dict[int, float]) -> Any:
        def run(setting: Setting) -> Result:
            order.append(f"{name} {lanes} {setting.sweeps}")
            return _result(speed, judged, setting.sweeps[-1])

        return run

    ours = {10: -9.0, 30: -8.0}
    return {
        (OURS, 1): contender(OURS, 1, 1.0, ours),
        (OURS, 2): contender(OURS, 2, 1.5, ours),
        (FITTED, 1): contender(FITTED, 1, 1.0, {10: -8.9, 30: -7.5}),
        ("tomotopy", 1): contender("tomotopy", 1, 3.0, {10: -8.8, 30: -8.5}),
        ("gensim", 1): contender("gensim", 1, 100.0, {1: -10.0}),
    }


LONG = Setting(100, 0.02, sweeps=(10, 30))


def test_rounds_are_interleaved_after_quality_is_known(
    corpus: Corpus, who: Who, order: list[str]
) -> None:
    rows = bench_lda.compare(corpus, LONG, who, rounds=2)
    judged = [f"{name} {lanes} (10, 30)" for name, lanes in who]
    round_ = [f"{OURS} 1 (30,)", f"{OURS} 2 (30,)", "tomotopy 1 (30,)"]
    warm = [f"{OURS} 1 (1,)", f"{OURS} 2 (1,)", f"{FITTED} 1 (1,)"]
    assert order == [*warm, *judged, *round_, *round_]
    assert [(row["name"], row["lanes"]) for row in rows] == list(who)
    json.dumps(rows)


def test_rates_and_ratios(corpus: Corpus, who: Who) -> None:
    rows = bench_lda.compare(corpus, LONG, who, rounds=1)
    one, two, fitted, peer, gensim = rows
    assert one["tokens_per_cpu_second"] == 8
    assert one["tokens_per_second"] == 4
    assert one["tokens_per_cpu_second_at"] == {10: 8, 30: 8}
    assert one["first_cpu_seconds"] == 30
    assert one["times_tomotopy"] == pytest.approx(3)
    assert two["times_tomotopy"] == pytest.approx(2)
    # tomotopy has -8.5 after 30: a half of the way from -9 to -8, a third of that to -7.5 and so on
    assert one["target_log_likelihood"] == -8.5
    assert one["cpu_seconds_to_target"] == 20
    assert fitted["cpu_seconds_to_target"] == pytest.approx(10 + 20 * 0.4 / 1.4)
    assert peer["cpu_seconds_to_target"] == 90
    assert gensim["cpu_seconds_to_target"] is None


def test_what_ended_early_is_compared_over_its_own_sweeps(corpus: Corpus) -> None:
    short = {("tomotopy", 1): lambda setting: _result(2.0, {5: -9.0}, 5)}
    (row,) = bench_lda.compare(corpus, LONG, short, rounds=0)
    assert row["first_sweeps"] == 5
    assert row["tokens_per_cpu_second_at"] == {}
    assert row["tokens_per_cpu_second"] == 4
    assert row["target_log_likelihood"] == -9.0


def test_lanes_must_learn_the_same(corpus: Corpus, who: Who) -> None:
    who[OURS, 2] = lambda setting: _result(1.0, {10: -9.0, 30: -8.1}, 30)
    with pytest.raises(RuntimeError, match="2 lanes do not learn what one does"):
        bench_lda.compare(corpus, LONG, who, rounds=0)


def test_a_likelihood_is_reached_between_judged_sweeps() -> None:
    curve = _result(1.0, {1: -9.0, 10: -8.0}).curve
    assert bench_lda.seconds_to(curve, -8.5) == 5.5
    assert bench_lda.seconds_to(curve, -8.0) == 10
    assert bench_lda.seconds_to(curve, -9.5) == 1
    assert bench_lda.seconds_to(curve, -7.9) is None


def test_tables_have_a_line_for_each_row(
    corpus: Corpus, who: Who, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = bench_lda.compare(corpus, LONG, who, rounds=0)
    capsys.readouterr()
    bench_lda.show(corpus, LONG, rows, truth=-7.0)
    said = capsys.readouterr().out
    tables = [line for line in said.splitlines() if line.startswith("|")]
    height = 2 + len(rows)
    assert len(tables) == 3 * height
    for start in (0, height, 2 * height):
        assert len({line.count("|") for line in tables[start : start + height]}) == 1
    assert "the truth has -7.0000" in said
    assert "| streamlearn (2) |  | -9.0000 (15.0 s) | -8.0000 (45.0 s) |" in said
    assert "| gensim | 1 | 30 " in said
    assert "| CPU s | 10 | 20 | 50 | 100 |" in said
    assert "| streamlearn (1) | -9.0000 | -8.5000 |  |  |" in said
    assert "| not |" in said


@pytest.mark.parametrize(("clock", "last"), [("cpu", "CPU seconds"), ("wall", "seconds")])
def test_the_plot_has_a_line_for_each_row(corpus: Corpus, who: Who, clock: str, last: str) -> None:
    rows = bench_lda.compare(corpus, LONG, who, rounds=0)
    root = ET.fromstring(bench_lda.chart(rows, -7.0, clock))
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{space}polyline")) == len(rows)
    texts = [text.text for text in root.iter(f"{space}text")]
    assert {"some, 100 topics", f"{last} of sweeps", "streamlearn, 2 lanes"} <= set(texts)


def test_a_peer_learns_what_it_is_told_and_is_judged(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phi = np.array([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]], np.float32)
    asked = []

    def run(name: str, path: Path, setting: Setting, out: Path) -> dict[str, Any]:
        asked.append((name, path, setting))
        np.save(out / "2.npy", phi)
        return {
            "sweep_seconds": [2.0, 2.0],
            "sweep_cpu_seconds": [1.0, 1.0],
            "prepare_seconds": 1.0,
            "prepare_cpu_seconds": 1.0,
            "peak_rss_bytes": 1,
            "topics": {2: str(out / "2.npy")},
        }

    monkeypatch.setattr(topic_peers, "run", run)
    who = bench_lda.contenders(corpus, tmp_path, [], {"gensim": None})
    assert list(who) == [("gensim", 1)]
    result = who["gensim", 1](SETTING)
    assert asked == [("gensim", corpus.path, SETTING)]
    assert [at["log_likelihood"] for at in result.curve] == [bench_lda._judge(corpus, phi, 0.5)]
    assert result.words == ["ant bee cow", "cow ant bee"]
    assert list(tmp_path.glob("*.npy")) == []


def test_contenders_are_ours_and_the_peers(corpus: Corpus, tmp_path: Path) -> None:
    peers: dict[str, Path | None] = {"tomotopy": None, "WarpLDA": Path("warplda")}
    who = bench_lda.contenders(corpus, tmp_path, [1, 2], peers)
    assert list(who) == [(OURS, 1), (OURS, 2), (FITTED, 1), ("tomotopy", 1), ("WarpLDA", 1)]


def test_priors_are_of_the_corpus(corpus: Corpus) -> None:
    assert bench_lda._alpha(replace(corpus, name="imdb"), 1000) == 0.002
    assert bench_lda._alpha(replace(corpus, name="news"), 100) == 0.1
    known = replace(corpus, alpha=np.full(30, 0.1))
    assert bench_lda._alpha(known, 60) == pytest.approx(0.05)


def test_peers_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="no such program"):
        bench_lda.peer(f"warplda={tmp_path}")
    for name in ("warplda", "format"):
        (tmp_path / name).touch()
    assert bench_lda.peer(f"warplda={tmp_path}") == ("WarpLDA", tmp_path / "warplda")
    with pytest.raises(argparse.ArgumentTypeError, match="'warplda' is no peer; expected tomotopy"):
        bench_lda.peer("warplda")
    monkeypatch.setattr(topic_peers, "installed", lambda name: False)
    with pytest.raises(argparse.ArgumentTypeError, match="gensim is not installed"):
        bench_lda.peer("gensim")
    monkeypatch.setattr(topic_peers, "installed", lambda name: True)
    assert bench_lda.peer("scikit-learn") == ("scikit-learn", None)


def test_lists_of_numbers_of_the_command_line() -> None:
    assert bench_lda._numbers("100,1000") == [100, 1000]
    assert bench_lda._numbers("") == []
    for wrong in ("0", "1,x", "1,,2"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected numbers from 1 on"):
            bench_lda._numbers(wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--generated", "10", "--lanes", ""], "nobody learns"),
        ([], "nothing to learn"),
    ],
)
def test_nothing_to_do_is_said(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_lda.py", *arguments])
    with pytest.raises(SystemExit):
        bench_lda.main()
    assert message in capsys.readouterr().err


def test_a_whole_run_leaves_tables_plots_and_figures(
    tmp_path: Path,
    who: Who,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bench_lda, "BENCH", tmp_path)
    monkeypatch.setattr(topic_corpora, "HELD_OUT", 20)
    monkeypatch.setattr(bench_lda, "contenders", lambda *_: who)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "bench_lda.py", "--generated", "50", "--words", "60", "--truth-topics", "3",
            "--topics", "3", "--sweeps", "10,30", "--rounds", "0", "--plots", str(tmp_path / "p"),
            "--json", str(tmp_path / "told.json"),
        ],
    )  # fmt: skip
    bench_lda.main()
    told = json.loads((tmp_path / "told.json").read_text())
    assert len(told["rows"]) == len(who)
    assert told["rows"][0]["truth_log_likelihood"] < 0
    assert told["rows"][0]["alpha"] == pytest.approx(0.1)
    (plot,) = (tmp_path / "p").iterdir()
    assert plot.name == "lda-drawn-50-60-3-0.1-100-1-3.svg"
    ET.parse(plot)
    assert "50 documents" in capsys.readouterr().out
