"""``up`` as users start it: real shards and workers, killed, drained, started again, in N and M."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamlearn.cluster.stored_shards import counts_of_shards
from streamlearn.model import load
from streamlearn.shards.snapshot import listing
from tests.click_log import clicks, spoiled, text, written
from tests.runs import PATIENCE_SECONDS, Running, bad_records, run, settings

COMMAND = ("up", "--format", "criteo", "--json")
# Small minibatches: a run long enough to do things to it.
SLOW = settings("compute.minibatch=16", "tables.tau=1", "output.snapshot_seconds=1")


def pids(parent: int) -> dict[str, int]:
    """Return the processes that ``up`` has started, by what they are."""
    found: dict[str, int] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().decode().split("\0")
            owner = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if owner == parent and "streamlearn.cluster.engines.child" in words:
            role = words[words.index("streamlearn.cluster.engines.child") + 2]
            flag = {"shard": "--index", "worker": "--name"}.get(role)
            name = f"{role}-{words[words.index(flag) + 1]}" if flag in words else role
            found[name.replace("worker-worker", "worker")] = int(path.name)
    return found


def until(is_so: Callable[[], Any], what: str) -> Any:
    """Wait until something is so; return what it is."""
    for _ in range(100 * PATIENCE_SECONDS):
        if found := is_so():
            return found
        time.sleep(0.01)
    pytest.fail(f"never: {what}")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three objects, 60,000 records, 300 or so of them bad."""
    directory = tmp_path_factory.mktemp("logs")
    found = []
    for number in range(3):
        records, _ = spoiled(clicks(5_000, number), 200, number)
        found.append(written(directory / f"log{number}.tsv.gz", text(records) * 4))
    return found


@pytest.fixture(scope="module")
def learned(logs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of one process."""
    out = tmp_path_factory.mktemp("learned")
    assert run("train", *logs, "--format", "criteo", "--out", out, "--quiet").code == 0
    return out


def places(directory: Path) -> list[tuple[str, int]]:
    return sorted((one["uri"], one["offset"]) for one in bad_records(directory))


def test_what_a_cluster_learns_is_what_one_process_does(
    logs: list[Path], learned: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [*COMMAND, *logs, "--out", out, "--shards", "2", "--workers", "2"]
    with Running(*command, "--followers", "1") as running:
        ended = running.end()
    assert ended.code == 0, ended.stderr
    report, alone = ended.report, json.loads((learned / "report.json").read_text())
    assert set(alone) <= set(report)
    for name in ("model", "examples", "bytes", "bad_records", "features", "subsampled"):
        assert report[name] == alone[name], name
    assert (report["shards"], report["workers"], report["followers"]) == (2, 2, 1)
    assert report["logloss"] < report["baseline_logloss"]
    assert report["peak_rss_bytes"] > 0
    assert json.loads((out / "report.json").read_text()) == report
    assert places(out) == places(learned)
    assert sorted(path.name for path in (out / "logs").iterdir()) == [
        *("follower-0-0.log", "follower-1-0.log", "shard-0.log", "shard-1.log"),
        *("worker-0.log", "worker-1.log"),
    ]
    one, two = load(learned), load(out)
    assert one.positions == two.positions
    weights = {int(k) for part in one.parts() for k in part.keys}
    assert {int(k) for part in two.parts() for k in part.keys} == weights
    evaluated = run("evaluate", out, *logs, "--json", "--quiet")
    assert evaluated.code == 0, evaluated.stderr
    assert evaluated.report["logloss"] < alone["baseline_logloss"]
    inspected = run("inspect", out, "--json")
    assert any("=" in one["feature"] for one in inspected.report["weights"])
    assert run("export", out, tmp_path / "weights.npz").code == 0

    # nothing is left to learn, with another number of shards as with the same
    again = run(*COMMAND, *logs, "--out", out, "--shards", "3", "--workers", "1", "--quiet")
    assert again.code == 0, again.stderr
    assert again.report["resumed_from"] == str(out / "shards")
    assert again.report["examples"] == report["examples"]
    assert again.report["logloss"] == pytest.approx(report["logloss"])
    assert counts_of_shards(out) == [3]
    assert load(out).digest() == two.digest()
    assert len(listing(out / "model")) == 2


def test_whoever_is_killed_is_started_again_and_every_record_counts_once(
    logs: list[Path], learned: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [*COMMAND, *logs, "--out", out, "--shards", "2", "--workers", "2", *SLOW]
    with Running(*command) as running:
        assert running.wait_until_learning()
        before = until(lambda: len(f := pids(running.process.pid)) == 4 and f, "four processes")
        for name in ("shard-1", "worker-0", "shard-0"):
            pid = pids(running.process.pid)[name]
            os.kill(pid, signal.SIGKILL)
            until(
                lambda name=name, pid=pid: pids(running.process.pid).get(name, pid) != pid,
                f"{name} again",
            )
        assert set(before) == {"shard-0", "shard-1", "worker-0", "worker-1"}
        ended = running.end()
    assert ended.code == 0, ended.stderr
    alone = json.loads((learned / "report.json").read_text())
    assert ended.report["restarts"] >= 3
    for name in ("examples", "bytes", "bad_records", "features"):
        assert ended.report[name] == alone[name], name
    assert places(out) == places(learned)
    assert "is started again" in ended.stderr


def test_ctrl_c_drains_and_the_same_command_goes_on(
    logs: list[Path], learned: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [*COMMAND, *logs, "--out", out, "--shards", "2", "--workers", "2", *SLOW]
    with Running(*command) as running:
        assert running.wait_until_learning()
        running.signal(signal.SIGINT)
        ended = running.end()
    assert ended.code == 130, ended.stderr
    assert ended.report["stopped"] == "SIGINT"
    stopped = load(out)
    assert 0 < stopped.counts.examples < 60_000
    assert stopped.counts.examples == ended.report["examples"]

    # in other shards, and killed once
    command = [*COMMAND, *logs, "--out", out, "--shards", "1", "--workers", "1", *SLOW]
    with Running(*command) as running:
        assert running.wait_until_learning()
        children = pids(running.process.pid)
        running.kill()
        until(
            lambda: not any(_is_alive(pid) for pid in children.values()), "the end of its children"
        )
    assert counts_of_shards(out) == [1]
    refused = run(*COMMAND, *logs, "--out", out, "--quiet")
    assert refused.code == 1
    assert "cause: compute.minibatch is 4096, was 16" in refused.stderr
    last = run(*COMMAND, *logs, "--out", out, "--quiet", *SLOW)
    assert last.code == 0, last.stderr
    alone = json.loads((learned / "report.json").read_text())
    for name in ("examples", "bytes", "bad_records", "features"):
        assert last.report[name] == alone[name], name
    assert places(out) == places(learned)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_is_wrong_is_told_once_in_the_words_of_whoever_found_it(tmp_path: Path) -> None:
    ended = run(*COMMAND, tmp_path / "none.tsv", "--out", tmp_path / "out", "--quiet")
    assert ended.code == 2
    assert "error: worker-0 cannot go on\ncause: " in ended.stderr
    assert "none.tsv" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_model_of_one_process_is_left_alone(
    learned: Path, logs: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(learned, out)
    ended = run(*COMMAND, *logs, "--out", out, "--quiet")
    assert ended.code == 2
    assert "was learned in one process" in ended.stderr
