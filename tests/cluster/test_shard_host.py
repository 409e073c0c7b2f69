"""A shard that runs: group commit, snapshots beside requests, and failures that end it at once."""

from __future__ import annotations

import asyncio
import errno
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from streamlearn.errors import LogError, RefusedError, SnapshotError
from streamlearn.net.client import Link
from streamlearn.net.connection import Peer
from streamlearn.net.counters import Counters
from streamlearn.net.network import TcpNetwork
from streamlearn.net.security import Secrets
from streamlearn.protocol import Done, Join, Pushed, State, TakeSnapshot
from streamlearn.shards.disk import REAL_DISK, RealDisk
from streamlearn.shards.recovery import recover
from tests.cluster_parts import LIMITS, Cluster, Logs, check_counted, place
from tests.shard_parts import keys_of, mark, push


async def link(cluster: Cluster, role: str = "worker") -> Link:
    """Connect to the only shard."""
    return await Link.open(
        cluster.addresses[0],
        cluster="test",
        peer=Peer(role, "a"),
        secrets=Secrets(),
        network=TcpNetwork(Secrets()),
        limits=LIMITS,
        nonce=place().nonce,
        counters=Counters(),
    )


async def pushed(cluster: Cluster, one: Link, sequence: int) -> Any:
    """Push a minibatch."""
    of = cluster.specs[0]
    keys = keys_of(of, *range(sequence, sequence + 5))
    return await one.ask(push(of, keys, clock=sequence - 1, at=mark(sequence)))


class BrittleDisk(RealDisk):
    """A disk whose calls fail from a moment on.

    Attributes
    ----------
    fails : set of str
        Names of calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fails: set[str] = set()

    def _check(self, call: str) -> None:
        if call in self.fails:
            raise OSError(errno.EIO, "Input/output error")

    def names(self, directory: Any) -> list[str]:
        self._check("names")
        return super().names(directory)

    def create(self, path: Any) -> Any:
        self._check("create")
        return super().create(path)


async def test_answers_wait_for_the_log(tmp_path):
    async with Cluster(tmp_path, 1) as cluster:
        host, one = cluster.hosts[0], await link(cluster)
        await one.ask(Join("a", 1, 0, cluster.specs[0].signature))
        answers = await asyncio.gather(*(pushed(cluster, one, n) for n in range(1, 30)))
        assert answers == [Pushed(n, duplicate=False) for n in range(1, 30)]
        assert host.durable_lsn == host.service.shard.lsn >= 30
        assert host.syncs < 30  # several share one
        await one.close()


async def test_failing_sync_ends_the_shard_and_answers_nobody(tmp_path):
    async with Cluster(tmp_path, 1) as cluster:
        host, one = cluster.hosts[0], await link(cluster)

        def fail() -> int:
            raise LogError("cannot bring the log to disk")

        host.recovered.log.sync = fail
        asking = asyncio.ensure_future(pushed(cluster, one, 1))
        with pytest.raises(LogError):
            await asyncio.wait_for(host.ended(), 10)
        assert not asking.done()
        # nothing waits for what will not come
        with pytest.raises(SnapshotError, match="failed"):
            await asyncio.wait_for(host.take_snapshot(), 10)
        with pytest.raises(SnapshotError):
            await asyncio.wait_for(host.drain(), 10)
        await asyncio.gather(asking, return_exceptions=True)
        await one.close()


async def test_snapshot_that_cannot_be_written_is_refused_and_the_next_is_taken(tmp_path):
    async with Cluster(tmp_path, 1) as cluster:
        host, one, admin = cluster.hosts[0], await link(cluster), await link(cluster, "admin")
        disk = BrittleDisk()
        host._place = type(host._place)(**{
            name: getattr(host._place, name) for name in ("network", "clock", "wall", "number")
        } | {"disk": disk})  # fmt: skip
        for number, call in enumerate(("create", "names"), 1):
            await pushed(cluster, one, number)
            (tmp_path / "shard0" / "snapshots").mkdir(exist_ok=True)
            disk.fails = {call}
            with pytest.raises(RefusedError) as caught:
                await asyncio.wait_for(admin.ask(TakeSnapshot()), 10)
            assert (caught.value.code, caught.value.again) == ("storage", True)
            assert host.snapshot_failures == number
        disk.fails = set()
        assert await admin.ask(TakeSnapshot()) == Done()
        assert await pushed(cluster, one, 3) == Pushed(3, duplicate=False)
        assert host.snapshot["lsn"] >= 2
        await asyncio.gather(one.close(), admin.close())


async def test_snapshots_asked_for_at_once_share_one(tmp_path):
    async with Cluster(tmp_path, 1) as cluster:
        host, one = cluster.hosts[0], await link(cluster)
        await pushed(cluster, one, 1)
        first = asyncio.ensure_future(host.take_snapshot())
        await asyncio.sleep(0)
        await pushed(cluster, one, 2)
        await asyncio.gather(first, *(host.take_snapshot() for _ in range(5)))
        assert host.snapshots <= 2
        assert host.snapshot["lsn"] >= 2
        await one.close()


async def test_shard_that_is_drained_keeps_all_in_its_last_snapshot(tmp_path):
    async with Cluster(tmp_path, 1, durability="snapshot") as cluster:
        host, one = cluster.hosts.pop(0), await link(cluster)
        for number in range(1, 6):
            await pushed(cluster, one, number)
        waiting = asyncio.ensure_future(host.take_snapshot())
        await host.drain()
        await waiting
        cluster._lanes.pop(0).close()
        found = recover(REAL_DISK, str(tmp_path / "shard0"), cluster.specs[0])
        assert found.shard.marks["p"].sequence == 5
        assert found.shard.digest() == host.service.shard.digest()
        await one.close()


async def test_log_is_kept_from_the_snapshot_before_the_last(tmp_path):
    async with Cluster(tmp_path, 1, log_file_bytes=500) as cluster:
        host, one = cluster.hosts[0], await link(cluster)
        for number in range(1, 31):
            await pushed(cluster, one, number)
            if number % 10 == 0:
                await host.take_snapshot()
        first = host.recovered.log.first_lsn
        assert 1 < first <= 22
        # so that a damaged snapshot loses nothing
        newest = _newest_snapshot(tmp_path)
        (rows,) = newest.glob("rows.000")
        digest = host.service.shard.digest()
        await cluster.kill_shard(0)
        await asyncio.to_thread(rows.write_bytes, b"")
        again = await cluster.start_shard(0)
        assert again.service.shard.digest() == digest
        assert 20 <= again.recovered.snapshot_lsn < 30
        await one.close()


async def test_shard_tells_where_it_is(tmp_path):
    async with Cluster(tmp_path, 1) as cluster:
        one = await link(cluster, "reader")
        told = await one.ask(State())
        assert (told.incarnation, told.ready) == (cluster.hosts[0].incarnation, True)
        await one.close()


def _newest_snapshot(directory: Path) -> Path:
    return max((directory / "shard0" / "snapshots").iterdir())


async def test_the_limit_of_embeddings_is_told_once_and_learning_goes_on(tmp_path, caplog):
    logs = Logs(tmp_path / "logs", files=2)
    model = {"kind": "fm", "threshold": 0, "dim": 8}
    async with Cluster(tmp_path, 1, model=model, source={"uri": logs.paths}) as cluster:
        await cluster.kill_shard(0)
        cluster.specs[0] = replace(cluster.specs[0], embeddings_bytes_max=640)
        host = await cluster.start_shard(0)
        cluster.start_worker("a")
        with caplog.at_level(logging.WARNING):
            await cluster.finish()
        figures = host.service.figures()
        assert 0 < figures["embeddings_bytes"] <= 640
        assert figures["embeddings_refused"] > 0
        assert caplog.text.count("embeddings have reached their limit, 640 bytes") == 1
        check_counted(cluster, logs)
