"""``up`` with ratings as users start it: a worker and a shard killed, the model as one process'."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from streamlearn.model import load
from tests.rated import ratings, written
from tests.runs import Running, run, settings
from tests.test_up import pids, until

FILES = 4
# Small minibatches, and many passes: a run long enough to do things to it.
MODEL = ("--model", "mf", "--dim", "5", "--epochs", "12", "--alpha", "0.02")
SLOW = settings("compute.minibatch=16", "tables.tau=1", "output.snapshot_seconds=1")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Objects of ratings, each of users of its own."""
    directory = tmp_path_factory.mktemp("ratings")
    files: dict[int, list[tuple[str, str, float]]] = {}
    for user, item, rating in ratings(4000):
        files.setdefault(int(user[1:]) % FILES, []).append((user, item, rating))
    return [written(directory / f"{number}.dat", rows) for number, rows in sorted(files.items())]


@pytest.fixture(scope="module")
def alone(sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    ended = run("train", *sources, *MODEL, "--out", out, "--quiet")
    assert ended.code == 0, ended.stderr
    return out


@pytest.mark.parametrize("users", ["shards", "worker"])
def test_ratings_are_learned_whoever_is_killed(
    sources: list[Path], alone: Path, tmp_path: Path, users: str
) -> None:
    out = tmp_path / "out"
    command = ["up", *sources, *MODEL, "--users-at", users, "--out", out, "--json", *SLOW]
    with Running(*command, "--shards", "2", "--workers", "2") as running:
        assert running.wait_until_learning()
        until(lambda: len(pids(running.process.pid)) == 4, "four processes")
        for name in ("worker-1", "shard-0", "worker-0"):
            pid = pids(running.process.pid)[name]
            os.kill(pid, signal.SIGKILL)
            until(
                lambda name=name, pid=pid: pids(running.process.pid).get(name, pid) != pid,
                f"{name} again",
            )
        ended = running.end()
    assert ended.code == 0, ended.stderr
    report = ended.report
    assert report["restarts"] >= 3
    theirs = json.loads((alone / "report.json").read_text())
    assert report["examples"] == 12 * 4000
    assert report["features"] == report["names"] == theirs["features"]
    scores = []
    for model in (out, alone):
        evaluated = run("evaluate", model, *sources, "--json", "--quiet")
        assert evaluated.code == 0, evaluated.stderr
        assert (evaluated.report["unknown_users"], evaluated.report["unknown_items"]) == (0, 0)
        scores.append(evaluated.report["rmse"])
    assert scores[0] == pytest.approx(scores[1], rel=0.05)
    best = [run("recommend", model, "--user", "u7", "-n", 12) for model in (out, alone)]
    assert best[0].code == 0, best[0].stderr
    mine, other = ({line.split("\t")[1] for line in one.stdout.splitlines()} for one in best)
    assert len(mine) == 12
    assert len(mine & other) >= 6
    assert run("export", out, tmp_path / "factors.npz").code == 0
    assert run("inspect", out).code == 0
    # nothing is left to learn, with another number of shards and of workers as with the same
    before = load(out).digest()
    again = run(*command, "--shards", "3", "--workers", "1", "--quiet")
    assert again.code == 0, again.stderr
    assert again.report["examples"] == report["examples"]
    assert load(out).digest() == before
