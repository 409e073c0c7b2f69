"""A worker: begin again where a shard is, end in order, and say what could not be learned."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import numpy as np
import pytest

from streamlearn.cluster.worker import _first_of, _parts
from streamlearn.errors import SourceError
from streamlearn.messages import Partition, Position
from tests.cluster_parts import Cluster, Logs, check_counted


async def test_shard_that_came_back_with_less_rewinds_the_source(tmp_path):
    logs = Logs(tmp_path / "logs", files=1, count=600)
    more = {"source": {"uri": logs.paths}, "durability": "snapshot", "minibatch": 4}
    async with Cluster(tmp_path, 2, tau=2, **more) as cluster:
        running = cluster.start_worker("a")
        assert await cluster.progress(20)
        await cluster.kill_shard(1)
        await cluster.start_shard(1)
        assert cluster.shard(1).lsn < 20
        await cluster.finish()
        check_counted(cluster, logs)
        assert running.worker.rewinds > 0
        # only that shard applied again
        assert cluster.hosts[0].service.counts["duplicates"] > 0
        assert cluster.shard(0).marks.keys() == cluster.shard(1).marks.keys()


async def test_minibatches_are_numbered_without_a_gap(tmp_path):
    logs = Logs(tmp_path / "logs", files=2)
    async with Cluster(tmp_path, 2, source={"uri": logs.paths}, tau=0) as cluster:
        running = cluster.start_worker("a")
        await cluster.finish()
        worker = running.worker
        assert worker.clock == sum(mark.sequence for mark in cluster.marks(0).values())
        assert (worker.oldest(), worker.in_flight) == (worker.clock, 0)
        assert worker.state == "done"
        assert worker.records == worker.stepped == sum(logs.good.values())
        assert worker.bytes == sum(logs.sizes.values()) == worker.source_bytes


async def test_second_worker_begins_where_the_first_is(tmp_path):
    logs = Logs(tmp_path / "logs", files=3, count=600)
    async with Cluster(tmp_path, 2, source={"uri": logs.paths}, tau=0, minibatch=4) as cluster:
        cluster.start_worker("a")
        assert await cluster.progress(30)
        second = cluster.start_worker("b")
        await cluster.until(lambda: "b" in cluster.shard(0).clocks.members)
        assert cluster.shard(0).clocks.members["b"].clock >= 25
        await cluster.finish()
        check_counted(cluster, logs)
        assert second.worker.examples > 0


async def test_stop_before_anything_is_joined(tmp_path):
    logs = Logs(tmp_path / "logs", files=1)
    async with Cluster(tmp_path, 1, source={"uri": logs.paths}) as cluster:
        running = cluster.start_worker("a")
        running.worker.stop()
        await cluster.finish()
        assert running.worker.examples == 0
        assert cluster.shard(0).marks == {}


async def test_object_that_cannot_be_read_is_named_and_the_others_are_learned(tmp_path):
    logs = Logs(tmp_path / "logs", files=3)
    async with Cluster(tmp_path, 2, source={"uri": logs.paths}, tau=1) as cluster:
        running = cluster.start_worker("a")
        read = running.source.read

        def reads_some(partition: Partition, position: Position) -> Any:
            if partition.name == logs.paths[1]:
                raise SourceError("it is no longer there")
            return read(partition, position)

        running.source.read = reads_some  # type: ignore[method-assign]
        await cluster.finish()
        assert {name: str(error) for name, error in running.worker.failed.items()} == {
            logs.paths[1]: "it is no longer there"
        }
        assert {name for name, mark in cluster.marks(0).items() if mark.done} == {"0.svm", "2.svm"}
        assert not cluster.shard(0).clocks.members


async def test_examples_that_teach_nothing_are_told_with_their_place(tmp_path, caplog):
    good, huge = b"1 1:1 2:1\n0 1:1 3:1\n0 2:1 3:1\n", b"1 1:1e30 2:1e30 3:1e30\n"
    log = tmp_path / "log.svm"
    log.write_bytes(good * 10 + huge * 2 + good * 10)
    model = {"kind": "fm", "threshold": 0, "dim": 8}
    more = {"source": {"uri": (str(log),)}, "tau": 0, "minibatch": 6}
    async with Cluster(tmp_path, 2, model=model, **more) as cluster:
        running = cluster.start_worker("a")
        with caplog.at_level(logging.WARNING):
            await cluster.finish()
        assert running.worker.notices.dropped == running.worker.stepper.dropped == 2
        assert running.worker.examples == 62
        first = 10 * len(good)
        end = first + 2 * len(huge) + len(good) + len(b"1 1:1 2:1\n")
        assert f"2 examples of {log}, bytes {first} to {end}, have a score" in caplog.text
        for index in range(2):
            assert np.isfinite(cluster.shard(index).table.arena.values[:4096]).all()


def test_lists_are_told_in_parts():
    assert list(_parts([])) == [[]]
    entries = list(range(10_000))
    parts = list(_parts(entries))
    assert [one for part in parts for one in part] == entries
    assert max(map(len, parts)) <= 4096


async def test_first_to_end_ends_the_other():
    ended = []

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def fails() -> None:
        raise ValueError("first")

    async def returns() -> None:
        return

    with pytest.raises(ValueError, match="first"):
        await _first_of(waits(), fails())
    await _first_of(returns(), waits())
    with pytest.raises(ValueError, match="first"):
        await _first_of(fails(), fails())
    assert len(ended) == 2
