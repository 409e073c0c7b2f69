"""SIGKILL at any moment, then the same command again: nothing is lost, repeated or left half."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from streamlearn.model import load
from tests.click_log import clicks, spoiled, text, written
from tests.runs import Running, bad_records, run, settings

KILLS = 10
# Pieces of everything are small, so that a kill finds some of everything on its way.
SMALL = settings(
    "source.block_bytes=65536",
    "source.range_bytes=1048576",
    "source.bad_records_max=1",
)
# Examples taught one by one make a run long enough to be killed in the middle.
SLOW = settings("compute.minibatch=1", "output.snapshot_seconds=0.1")


@dataclass
class Logs:
    sources: list[Path]
    records: int
    bad: int
    bytes: int


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Logs:
    """Three objects: one that is split into ranges, gzip of several members, zstd."""
    directory = tmp_path_factory.mktemp("logs")
    sources, records, bad, size = [], 0, 0, 0
    for name, times in (("a.tsv", 8), ("b.tsv.gz", 6), ("c.tsv.zst", 5)):
        lines, spoilt = spoiled(clicks(5_000, seed=times), every=500, seed=times)
        data = text(lines) * times
        sources.append(written(directory / name, data))
        records += len(lines) * times
        bad += spoilt * times
        size += len(data)
    return Logs(sources, records, bad, size)


@pytest.fixture(scope="module")
def uninterrupted(logs: Logs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    ended = run(*_command(logs, out, "compute.lanes=1"), "--json")
    assert ended.code == 0, ended.stderr
    _assert_counted(ended.report, logs)
    return out


def _command(logs: Logs, out: Path, *pairs: str) -> list[object]:
    sources: list[object] = [*logs.sources]
    return ["train", *sources, "--format", "criteo", "--out", out, *SMALL, *settings(*pairs)]


def _assert_counted(report: dict[str, object], logs: Logs) -> None:
    assert report["examples"] == logs.records - logs.bad
    assert report["bad_records"] == logs.bad
    assert report["bytes"] == logs.bytes


def _assert_exactly_once(out: Path, logs: Logs) -> None:
    model = load(out)
    assert all(known.position.done for known in model.positions.values())
    assert sum(known.position.records for known in model.positions.values()) == logs.records
    kept = Counter((entry["uri"], entry["offset"]) for entry in bad_records(out))
    assert len(kept) == logs.bad
    assert set(kept.values()) == {1}


def _killed_and_resumed(
    command: list[object], kills: int, seed: int, slow: Sequence[str] = SLOW
) -> dict[str, object]:
    """Kill a run at random moments of its work, then let it end; return the last report."""
    moments = random.Random(seed)
    for number in range(kills):
        with Running(*command, *slow) as running:
            # Once as soon as it begins to learn, once while it starts, then anywhere.
            if number != 1:
                running.wait_until_compiled()
            time.sleep(moments.random() * 0.6 if number else 0)
            running.kill()
    ended = run(*command, *slow, "--json")
    assert ended.code == 0, ended.stderr
    return ended.report


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_killed_run_resumed_ends_in_the_same_bytes(
    logs: Logs, uninterrupted: Path, tmp_path: Path, lanes: int
) -> None:
    kills = KILLS if lanes == 1 else 3
    command = _command(logs, tmp_path, f"compute.lanes={lanes}")
    report = _killed_and_resumed(command, kills, seed=lanes)
    _assert_counted(report, logs)
    _assert_exactly_once(tmp_path, logs)
    expected, found = load(uninterrupted), load(tmp_path)
    assert found.digest() == expected.digest()
    assert (tmp_path / "bad_records.jsonl").read_bytes() == (
        uninterrupted / "bad_records.jsonl"
    ).read_bytes()
    summary = expected.validation.summary()
    for name, value in found.validation.summary().items():
        assert value == pytest.approx(summary[name], rel=1e-6), name
    assert len(list((tmp_path / "model").iterdir())) <= 3


def test_a_killed_factorization_machine_resumed_ends_in_the_same_bytes(tmp_path: Path) -> None:
    lines, _ = spoiled(clicks(6_000, seed=6), every=500, seed=6)
    log = written(tmp_path / "log.tsv.gz", text(lines) * 3)
    model = ("model.kind=fm", "model.dim_by_count=5=4,100=16", "source.bad_records_max=1")

    def command(out: Path) -> list[object]:
        return ["train", log, "--format", "criteo", "--out", out, *settings(*model)]

    ended = run(*command(tmp_path / "whole"), *SLOW)
    assert ended.code == 0, ended.stderr
    _killed_and_resumed(command(tmp_path / "killed"), 4, seed=6)
    expected, found = load(tmp_path / "whole"), load(tmp_path / "killed")
    assert found.digest() == expected.digest()
    assert found.table.arena.nbytes == expected.table.arena.nbytes > 0
    assert _counted(tmp_path / "killed") == _counted(tmp_path / "whole")


def test_a_killed_lock_free_run_counts_every_record_once(
    logs: Logs, uninterrupted: Path, tmp_path: Path
) -> None:
    command = _command(logs, tmp_path, "compute.learn_lanes=2")
    report = _killed_and_resumed(command, 3, seed=3)
    _assert_counted(report, logs)
    _assert_exactly_once(tmp_path, logs)
    expected = load(uninterrupted).validation.summary()["loss"]
    assert report["logloss"] == pytest.approx(expected, rel=0.02)


def _counted(out: Path) -> int:
    """Return how often the features of a model were seen, all together."""
    return sum(int((part.rows[:, 2] & np.uint64(0xFFFFFFFF)).sum()) for part in load(out).parts())


def test_a_killed_run_of_shard_lanes_counts_every_record_once(
    logs: Logs, uninterrupted: Path, tmp_path: Path
) -> None:
    command = _command(logs, tmp_path, "compute.lanes=4", "compute.shard_lanes=2")
    slow = settings("compute.minibatch=10", "output.snapshot_seconds=0.1")
    report = _killed_and_resumed(command, 4, seed=4, slow=slow)
    _assert_counted(report, logs)
    _assert_exactly_once(tmp_path, logs)
    assert _counted(tmp_path) == _counted(uninterrupted)
    expected = load(uninterrupted).validation.summary()["loss"]
    assert report["logloss"] == pytest.approx(expected, rel=0.02)


def test_a_killed_worker_lane_resumed_ends_in_the_same_bytes(tmp_path: Path) -> None:
    lines, _ = spoiled(clicks(6_000, seed=5), every=500, seed=5)
    log = written(tmp_path / "log.tsv.gz", text(lines))
    lanes = ("compute.lanes=3", "compute.shard_lanes=2", "source.bad_records_max=1")

    def command(out: Path) -> list[object]:
        return ["train", log, "--format", "criteo", "--out", out, *settings(*lanes)]

    ended = run(*command(tmp_path / "whole"), *SLOW)
    assert ended.code == 0, ended.stderr
    _killed_and_resumed(command(tmp_path / "killed"), 3, seed=5)
    assert load(tmp_path / "killed").digest() == load(tmp_path / "whole").digest()
    assert _counted(tmp_path / "killed") == _counted(tmp_path / "whole")
