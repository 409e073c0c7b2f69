"""SIGKILL of shards and workers of a topic model: no token's topic is lost, and none counts twice.

``KILLS=30 SEED=7 pytest tests/faults/test_topics_kill.py`` kills so often, at other moments.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import kill_run
from streamlearn.cluster.stored_shards import StoredShards
from tests.conftest import FULL
from tests.runs import run, settings

KILLS = int(os.environ.get("KILLS", "10" if FULL else "4"))
SEED = int(os.environ.get("SEED", "1"))
DOCUMENTS, TOPICS, EPOCHS, MIN_DF = 2_400, 10, 24, 3
FILES = 4
# Of the mean logarithm of a token's probability: undisturbed runs differ by 0.05 among themselves,
# a pass more or less by 0.02; one process is 0.4 behind after as many passes.
TOLERANCE = 0.15
JOB = (
    *("--format", "documents", "--model", "lda", "--topics", str(TOPICS), "--optimize", "none"),
    *("--max-df", "1", "--min-df", str(MIN_DF), "--shards", "2", "--workers", "2"),
    *("--lanes", "1", "--tau", "4"),
    *settings(
        "compute.minibatch=32", "output.snapshot_seconds=1", "cluster.lease_seconds=1",
    ),
)  # fmt: skip


@dataclass
class Corpus:
    """Documents of known topics, and how often each word stands in them that has topics."""

    paths: list[Path]
    counts: list[int]
    held_out: Path


def _words(numbers: np.ndarray) -> str:
    letters = np.array(list("abcdefghij"))
    return " ".join("w" + "".join(letters[[int(c) for c in f"{i:05d}"]]) for i in numbers)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    directory = tmp_path_factory.mktemp("documents")
    rng = np.random.default_rng(3)
    phi = rng.dirichlet(np.full(800, 0.05), TOPICS)
    documents = []
    for _ in range(DOCUMENTS + 200):
        mixture = rng.dirichlet(np.full(TOPICS, 0.1)) @ phi
        documents.append(_words(rng.choice(800, rng.poisson(40), p=mixture)))
    learned = documents[:DOCUMENTS]
    paths = []
    for number in range(FILES):
        paths.append(directory / f"{number}.txt")
        paths[-1].write_text("\n".join(learned[number::FILES]) + "\n")
    held_out = directory / "held_out.txt"
    held_out.write_text("\n".join(documents[DOCUMENTS:]) + "\n")
    tokens = Counter(word for one in learned for word in one.split())
    met = Counter(word for one in learned for word in set(one.split()))
    counts = sorted(count for word, count in tokens.items() if met[word] >= MIN_DF)
    return Corpus(paths, counts, held_out)


def counts_of(out: Path) -> tuple[list[int], list[int]]:
    """Return, of the words that have topics, how often each was counted, and its topics' sums."""
    counted: list[int] = []
    assigned: list[int] = []
    with StoredShards(out, 2) as shards:
        for part in shards.parts():
            has = part.rows[:, 3] >> np.uint64(48) != 0
            counts = part.vectors.view(np.int32).reshape(-1, 16)
            assert (counts >= 0).all()
            counted += (part.rows[has, 1] & np.uint64(0xFFFFFFFF)).astype(int).tolist()
            assigned += counts.sum(axis=1).tolist()
    return counted, assigned


def learned(corpus: Corpus, out: Path, durability: str, kills: int, epochs: int) -> kill_run.Killed:
    more = settings(f"tables.durability={durability}", f"model.epochs={epochs}")
    arguments = [*map(str, corpus.paths), *JOB, *more]
    return kill_run.run_killed(arguments, out, DOCUMENTS * epochs, kills=kills, seed=SEED)


def likelihood(corpus: Corpus, out: Path) -> float:
    """Return the mean logarithm of the probability of held-out documents' tokens."""
    found = kill_run.evaluate(out, corpus.held_out, "--format", "documents")
    return float(found["log_likelihood_per_token"])


@pytest.fixture(scope="module")
def undisturbed(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> float:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    learned(corpus, out, "log", 0, EPOCHS)
    counted, assigned = counts_of(out)
    assert counted == assigned
    assert sorted(counted) == corpus.counts
    return likelihood(corpus, out)


def test_held_out_documents_are_predicted_as_well_as_by_one_process(
    corpus: Corpus, undisturbed: float, tmp_path: Path
) -> None:
    model = ("--format", "documents", "--model", "lda", "--topics", str(TOPICS))
    more = ("--max-df", "1", "--min-df", str(MIN_DF), "--optimize", "none", "--epochs", str(EPOCHS))
    command = ["train", *map(str, corpus.paths), *model, *more, "--quiet", "--out", str(tmp_path)]
    ended = run(*command)
    assert ended.code == 0, ended.stderr
    assert undisturbed > likelihood(corpus, tmp_path) - TOLERANCE


@pytest.mark.parametrize("durability", ["log", "snapshot"])
def test_killed_shards_and_workers_leave_each_token_one_topic(
    corpus: Corpus, undisturbed: float, tmp_path: Path, durability: str
) -> None:
    out = tmp_path / "out"
    ran = learned(corpus, out, durability, KILLS, EPOCHS)
    seed = f"seed {SEED}: {ran.kills}"
    assert len(ran.kills) == KILLS, seed
    counted, assigned = counts_of(out)
    assert counted == assigned, seed
    assert sorted(counted) == corpus.counts, seed
    assert likelihood(corpus, out) == pytest.approx(undisturbed, abs=TOLERANCE), seed
