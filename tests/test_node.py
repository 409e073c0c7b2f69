"""What the command line calls beside training: sources and snapshots."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from streamlearn import node
from streamlearn.config import JobConfig, MfConfig, SourceConfig, load_job
from streamlearn.errors import SourceMissingError
from tests.click_log import clicks, text, written


def job(*uris: object, **more: str) -> JobConfig:
    pairs = [f"source.uri={json.dumps([str(uri) for uri in uris])}"]
    return load_job(None, [*pairs, *(f"source.{k}={v}" for k, v in more.items())]).job


async def test_the_first_records_come_decompressed_and_whole_over_objects(tmp_path: Path) -> None:
    first, second = clicks(3, 1), clicks(1_000, 2)
    written(tmp_path / "a.tsv.gz", text(first))
    written(tmp_path / "b.tsv", text(second)[:-1])
    small = job(tmp_path, block_bytes="65536")
    assert await node.source_head(small, 2) == first[:2]
    assert await node.source_head(small, 3) == first
    assert await node.source_head(small, 903) == first + second[:900]
    assert await node.source_head(small, 5_000) == first + second


async def test_a_source_is_listed_with_size_and_version(tmp_path: Path) -> None:
    log = written(tmp_path / "a.tsv", text(clicks(3, 1)))
    rows: list[dict[str, Any]] = [row async for row in node.source_list(job(tmp_path))]
    assert [row["uri"] for row in rows] == [str(log)]
    assert rows[0]["size"] == log.stat().st_size
    assert rows[0]["version"]
    with pytest.raises(SourceMissingError):
        [row async for row in node.source_list(job(tmp_path / "none"))]


async def test_a_source_of_ratings_is_checked_as_it_would_be_learned(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text("u1,i1,4\nu2,i1,3\n")
    source = SourceConfig(uri=(str(path),))
    told = await node.source_check(JobConfig(source=source, model=MfConfig()))
    assert told["ok"]
    assert told["format"] == "ratings"
    other = await node.source_check(JobConfig(source=source))
    assert "auto cannot tell" in other["error"]


async def test_a_source_is_checked_without_learning(tmp_path: Path) -> None:
    log = written(tmp_path / "a.tsv", text(clicks(3, 1)))
    told = await node.source_check(job(log))
    assert told["ok"] is True
    assert (told["partitions"], told["stored_bytes"]) == (1, log.stat().st_size)
    assert told["format"] == "criteo"
    assert told["first_line"].encode() == clicks(3, 1)[0][:200]
    missing = await node.source_check(job(tmp_path / "none"))
    assert missing["ok"] is False
    assert "none" in missing["error"]


def test_snapshots_are_listed_with_what_was_learned(tmp_path: Path) -> None:
    logs = [written(tmp_path / f"{n}.tsv", text(clicks(100, n))) for n in range(2)]
    out = tmp_path / "out"
    for number in (1, 2):
        uris = json.dumps([str(log) for log in logs[:number]])
        pairs = [f"source.uri={uris}", "source.format=criteo"]
        node.train(load_job(None, [*pairs, f"output.dir={out}"]).job, lambda _: None)
    rows = node.snapshots(out)
    assert [(row["sequence"], row["examples"], row["problem"]) for row in rows] == [
        (1, 100, ""),
        (2, 200, ""),
    ]
    assert all(0 < row["logloss"] < 1 and row["bytes"] > 0 for row in rows)
    (out / "model" / "000000000002" / "intercept").unlink()
    assert "intercept" in node.snapshots(out)[1]["problem"]
    assert node.snapshots(tmp_path / "none") == []


def test_snapshots_of_ratings_are_listed_with_their_rmse(monkeypatch: pytest.MonkeyPatch) -> None:
    def listed(root: Path) -> list[dict[str, Any]]:
        metas: list[dict[str, Any]] = [{}, {"summary": {"loss": 0.9, "rmse": 0.9, "mae": 0.7}}]
        return [
            {"sequence": n, "bytes": 5, "meta": meta, "problem": "", "path": root}
            for n, meta in enumerate(metas)
        ]

    monkeypatch.setattr(node, "listing", listed)
    rows = node.snapshots(Path("out"))
    assert [row["rmse"] for row in rows] == [None, 0.9]
    assert not [row for row in rows if "logloss" in row]


def test_training_runs_in_a_thread_without_signals(tmp_path: Path) -> None:
    log = written(tmp_path / "a.tsv", text(clicks(100, 3)))
    pairs = [f"source.uri={log}", "source.format=criteo", f"output.dir={tmp_path / 'out'}"]
    ready = load_job(None, pairs).job

    async def beside() -> dict[str, Any]:
        return await asyncio.to_thread(node.train, ready, lambda _: None)

    assert asyncio.run(beside())["examples"] == 100
