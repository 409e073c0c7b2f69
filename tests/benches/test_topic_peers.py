from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import completion
import topic_corpora
import topic_peers
import topic_truth
import warplda
from topic_corpora import Corpus
from topic_peers import Setting


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return topic_truth.generated(400, 300, 4, tmp_path_factory.mktemp("topics"), length=40)


def _count(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> Callable[[Corpus, Setting, Callable[[], None], topic_peers.After], None]:
    """Return a peer whose sweeps take so many seconds of CPU, and take topics twice as long."""
    now = [0.0]
    monkeypatch.setattr(topic_peers, "_clocks", lambda: (now[0] * 2, now[0]))

    def peer(
        corpus: Corpus, setting: Setting, begin: Callable[[], None], after: topic_peers.After
    ) -> None:
        def topics() -> np.ndarray:
            now[0] += 2 * seconds
            return np.full((setting.topics, len(corpus.words)), 1 / len(corpus.words))

        now[0] += 5
        begin()
        more = True
        while more:
            now[0] += seconds
            more = after(topics)

    return peer


def test_topics_are_taken_after_sweeps_and_out_of_their_time(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(topic_peers.PEERS, "gensim", _count(monkeypatch, 1.5))
    monkeypatch.setattr(topic_peers, "installed", lambda name: True)
    told = topic_peers.learn("gensim", corpus, Setting(3, 0.1, sweeps=(1, 4)), tmp_path)
    assert told["prepare_cpu_seconds"] == 5
    assert told["prepare_seconds"] == 10
    assert told["sweep_cpu_seconds"] == [1.5] * 4
    assert told["sweep_seconds"] == [3.0] * 4
    assert list(told["topics"]) == [1, 4]
    for path in told["topics"].values():
        assert np.load(path).shape == (3, len(corpus.words))
    assert told["peak_rss_bytes"] > 0


def test_who_is_slow_ends_early_and_is_judged_then(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(topic_peers.PEERS, "gensim", _count(monkeypatch, 1.5))
    monkeypatch.setattr(topic_peers, "installed", lambda name: True)
    setting = Setting(3, 0.1, sweeps=(1, 10), seconds_max=4.0)
    told = topic_peers.learn("gensim", corpus, setting, tmp_path)
    assert told["sweep_cpu_seconds"] == [1.5] * 3
    assert list(told["topics"]) == [1, 3]


def test_missing_package_is_one_clear_sentence(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topic_peers, "installed", lambda name: False)
    with pytest.raises(ModuleNotFoundError, match="tomotopy is not installed: pip install"):
        topic_peers.learn("tomotopy", corpus, Setting(3, 0.1), tmp_path)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(topic_peers.PEERS))
def test_peers_learn_topics_of_the_corpus(name: str, corpus: Corpus, tmp_path: Path) -> None:
    if importlib.util.find_spec(topic_peers.MODULES[name]) is None:
        pytest.skip("comes with the extra `bench`")
    told = topic_peers.learn(name, corpus, Setting(4, 0.1, sweeps=(1, 20)), tmp_path)
    judged = []
    for path in told["topics"].values():
        phi = np.load(path)
        assert phi.shape == (4, len(corpus.words))
        judged.append(completion.log_likelihood(phi, 0.1, corpus.held_lens, corpus.held_w))
    marginal = np.bincount(corpus.w) / len(corpus.w)
    even = completion.log_likelihood(marginal[None], 0.1, corpus.held_lens, corpus.held_w)
    # a topic's words in another order would be worse than no topics at all
    assert judged[-1] > even
    assert judged[-1] >= judged[0]
    assert len(told["sweep_cpu_seconds"]) == 20


def test_sweeps_of_the_command_line() -> None:
    assert topic_peers.sweeps("10,30") == (10, 30)
    for wrong in ("", "0", "3,1", "3,3", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected rising numbers"):
            topic_peers.sweeps(wrong)


SAYS = r"""prefix=$2; sweeps=${10}
echo "$*" > "$(dirname $0)/flags"
for i in $(seq 0 $((sweeps - 1))); do
  echo "Iteration $i, 0.250000 s, 1.00 Mtokens/s, log_likelihood (per token) -9.0"
done
cp "$(dirname $0)/counts" "$prefix.model"
"""
FORMAT = r"""while [ "$1" != -prefix ]; do [ "$1" = -input ] && input=$2; shift; done
tr ' ' '\n' < "$input" | sort -ru > "$2.vocab"
"""


def _program(path: Path, says: str) -> None:
    path.write_text(f"#!/bin/sh\n{says}")
    path.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Have programs that say what WarpLDA's do, of counts that are given."""
    folder = tmp_path / "programs"
    folder.mkdir()
    _program(folder / "warplda", SAYS)
    _program(folder / "format", FORMAT)
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Corpus:
    topic_corpora.prepare(
        ["bee ant bee", "ant cow"], path=tmp_path / "s.npz", share_max=2.0, held_out=0
    )
    return topic_corpora.read(tmp_path / "s.npz")


def test_warplda_is_named_by_itself_or_its_folder(tmp_path: Path, programs: Path) -> None:
    with pytest.raises(FileNotFoundError, match="warplda: no such program"):
        warplda.program(tmp_path)
    assert warplda.program(programs) == warplda.program(programs / "warplda")
    (programs / "format").unlink()
    with pytest.raises(FileNotFoundError, match="format: no such program"):
        warplda.program(programs)


def test_warplda_is_run_for_each_number_of_sweeps(programs: Path, small: Corpus) -> None:
    # words from the last to the first, as they stand in its vocabulary: cow, bee, ant
    (programs / "counts").write_text("3 2 0.5 0.01\n1\t1:1 \n1\t0:2 \n2\t0:1 1:1 \n")
    setting = Setting(2, 0.5, 0.5, sweeps=(1, 3))
    out = programs.parent
    told: dict[str, Any] = warplda.run(warplda.program(programs), small, setting, out)
    assert list(told["topics"]) == [1, 3]
    expected = np.array([[1.5, 2.5, 0.5], [1.5, 0.5, 1.5]])
    expected /= expected.sum(1, keepdims=True)
    assert np.load(told["topics"][3]) == pytest.approx(expected)
    assert len(told["sweep_seconds"]) == len(told["sweep_cpu_seconds"]) == 3
    assert told["sweep_cpu_seconds"][0] == 0.25
    flags = (programs / "flags").read_text()
    assert "--k 2 --alpha 1.0 --beta 0.5 --niter 3" in flags
    told = warplda.run(
        warplda.program(programs), small, Setting(2, 0.5, 0.5, (1, 3), seconds_max=0.1), out
    )
    assert list(told["topics"]) == [1]


def test_warplda_must_have_all_tokens(programs: Path, small: Corpus) -> None:
    (programs / "counts").write_text("3 2 0.5 0.01\n1\t1:1 \n1\t0:2 \n1\t0:1 \n")
    with pytest.raises(RuntimeError, match="4 tokens of 5"):
        warplda.run(warplda.program(programs), small, Setting(2, 0.5), programs.parent)
