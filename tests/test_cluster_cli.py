"""The verbs of a cluster as a user meets them: flags, what they mean, and wrong usage."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from streamlearn.cluster.roles import FollowerOptions, ShardOptions, UpOptions, WorkerOptions
from streamlearn.config import JobConfig
from tests.runs import run


class Node(ModuleType):
    """The wiring, faked: remembers the last call."""

    def __init__(self) -> None:
        super().__init__("streamlearn.node")
        self.called = ""
        self.job = JobConfig()
        self.options: Any = None
        self.report: dict[str, Any] = {"examples": 3}

    def _call(self, name: str, job: JobConfig, options: Any) -> dict[str, Any]:
        self.called, self.job, self.options = name, job, options
        return self.report

    def shard(self, job: JobConfig, options: ShardOptions) -> dict[str, Any]:
        return self._call("shard", job, options)

    def worker(self, job: JobConfig, options: WorkerOptions, tell: Any) -> dict[str, Any]:
        return self._call("worker", job, options)

    def follower(self, job: JobConfig, options: FollowerOptions) -> dict[str, Any]:
        return self._call("follower", job, options)

    def up(self, job: JobConfig, options: UpOptions, tell: Any) -> dict[str, Any]:
        return self._call("up", job, options)

    def gather(self, directory: Path) -> dict[str, Any]:
        return self._call("gather", self.job, directory)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    fake = Node()
    monkeypatch.setitem(sys.modules, "streamlearn.node", fake)
    return fake


@pytest.fixture
def job(tmp_path: Path) -> str:
    path = tmp_path / "job.toml"
    path.write_text('[source]\nuri = "a.csv"\nformat = "criteo"\n[model]\nalpha = 0.3\n')
    return str(path)


def test_a_shard_is_told_which_it_is_and_where_it_is(node: Node, job: str) -> None:
    result = run(
        *("shard", job, "--index", "1", "--of", "2", "--listen", "127.0.0.1:7700"),
        *("--dir", "data", "--http", "127.0.0.1:9100", "--accept-loss"),
    )
    assert result.code == 0, result.stderr
    assert node.options == ShardOptions(
        index=1,
        of=2,
        listen="127.0.0.1:7700",
        directory=Path("data"),
        accept_loss=True,
        http="127.0.0.1:9100",
    )
    assert node.job.model.alpha == 0.3


def test_a_shard_takes_its_place_from_the_job(node: Node, job: str) -> None:
    run("shard", job, "--index", "1", "--shards", "h:1,h:2,h:3", "--out", "o")
    assert node.options == ShardOptions(
        index=1, of=3, listen="h:2", directory=Path("o/shards/001-of-003")
    )


def test_a_worker_has_a_name_and_shards(node: Node, job: str) -> None:
    result = run("worker", job, "--name", "a", "--shards", "h:1,h:2", "--out", "o", "--quiet")
    assert result.code == 0, result.stderr
    assert node.options == WorkerOptions(name="a", directory=Path("o/workers/a"))
    assert node.job.tables.shards == ("h:1", "h:2")
    run("worker", job, "--shards", "h:1", "--dir", "d", "--quiet")
    assert node.options.name
    assert node.options.directory == Path("d")


def test_a_worker_that_was_interrupted_says_so_with_its_exit_code(node: Node, job: str) -> None:
    node.report = {"stopped": "SIGINT"}
    assert run("worker", job, "--name", "a", "--shards", "h:1", "--out", "o").code == 130


def test_a_follower_may_keep_nothing(node: Node, job: str) -> None:
    result = run("follower", job, "--of-shard", "h:1", "--listen", "127.0.0.1:0")
    assert result.code == 0, result.stderr
    assert node.options == FollowerOptions(shard="h:1", listen="127.0.0.1:0")
    run("follower", job, "--of-shard", "h:1", "--listen", "127.0.0.1:0", "--dir", "d")
    assert node.options.directory == Path("d")


def test_up_says_how_many_of_each(node: Node, job: str) -> None:
    result = run("up", job, "--shards", "2", "--workers", "3", "--followers", "1", "--out", "o")
    assert result.code == 0, result.stderr
    assert node.called == "up"
    assert node.options == UpOptions(shards=2, workers=3, followers=1, directory=Path("o"))
    assert "examples  3" in result.stdout


def test_gather_needs_nothing_but_the_directory(node: Node) -> None:
    result = run("gather", "o")
    assert (result.code, result.stdout) == (0, "examples  3\n")
    assert (node.called, node.options) == ("gather", Path("o"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("shard", "--of", "2"), "error: which shard is it?"),
        (("shard", "--index", "0"), "error: how many shards are there?"),
        (("shard", "--index", "2", "--of", "2"), "error: there is no shard 2 of 2"),
        (("shard", "--index", "0", "--of", "300"), "error: there is no shard 0 of 300"),
        (("shard", "--index", "0", "--of", "2"), "error: where does the shard listen?"),
        (
            ("shard", "--index", "0", "--of", "2", "--shards", "h:1"),
            "error: --of is 2, but tables.shards lists 1",
        ),
        (
            ("shard", "--index", "0", "--of", "1", "--listen", "h:1"),
            "error: there is no directory for it\nhint: --dir DIR, or --out DIR",
        ),
        (
            ("shard", "--index", "0", "--of", "1", "--listen", "h:1", "-b", "20"),
            "error: shards hold tables with `tables.index` exact, but it is hashed",
        ),
        (
            ("up", "a.dat", "--out", "o", "--model", "mf", "--epsilon", "2", "--epochs", "3"),
            "error: a private model (`model.epsilon`) is drawn by one process, not over shards",
        ),
        (("worker", "a.csv"), "error: there are no shards\nhint: --shards"),
        (("worker", "--shards", "h:1"), "error: there is no source"),
        (
            ("worker", "a.csv", "--shards", "h:1", "--name", "../a"),
            "error: a worker cannot be called '../a'",
        ),
        (("worker", "a.csv", "--shards", "h"), "`tables.shards` must be HOST:PORT or a list"),
        (("follower", "--listen", "h:1"), "error: a follower needs --of-shard"),
        (("follower", "--of-shard", "h:1"), "error: a follower needs --listen"),
        (("up", "a.csv"), "error: there is no output directory"),
        (("up", "--out", "o"), "error: there is no source"),
        (("up", "-", "--out", "o"), "error: standard input can be read by one process only"),
        (("up", "a.csv", "--out", "o", "--engine", "ray"), "error: --engine must be local"),
        (("up", "a.csv", "--out", "o", "-b", "20"), "tables with `tables.index` exact"),
        (
            ("up", "a", "--out", "o", "--model", "mf", "--held-out", "0.1"),
            "no ratings are held out",
        ),
        (("up", "a.csv", "--out", "o", "--workers", "1000"), "are too many for one machine"),
        (
            ("up", "a.csv", "--out", "o", "--set", "tables.shards=h:1"),
            "error: up starts the shards itself, but the job names some",
        ),
        (
            ("train", "a.csv", "--out", "o", "--shards", "h:1"),
            "error: train learns in this process, but the job names shards",
        ),
    ],
)
def test_wrong_usage_is_told_in_words(
    node: Node,
    arguments: tuple[str, ...],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.code == 2, result.stderr
    assert sentence in result.stderr
    assert result.stdout == ""
    assert node.called == ""


@pytest.mark.parametrize("word", ["shard", "worker", "follower", "up", "gather"])
def test_every_verb_has_help_with_examples(word: str) -> None:
    result = run(word, "--help")
    assert result.code == 0
    assert "Examples:" in result.stdout
    assert f"streamlearn {word}" in result.stdout
