"""Shards, workers and followers together over loopback: every record once, whatever dies."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest

from streamlearn.errors import ClusterError, DataError, RefusedError, TableFullError
from streamlearn.shards.arena import dims_of
from streamlearn.shards.disk import REAL_DISK
from streamlearn.shards.recovery import recover
from tests.cluster_parts import Cluster, Logs, check_counted
from tests.shard_parts import spec


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Logs:
    """Four files, some of their records bad."""
    return Logs(tmp_path_factory.mktemp("logs"), bad_every=40)


# Embeddings of two lengths, for triples, too; and as bytes, with what that loses sent later.
FM = {"kind": "fm", "order": 3, "dim_by_count": {"3": 4, "20": 9}, "v_lr": 0.05, "v_dropout": 0.1}
FM_BYTES = {"model": FM, "push_values": "byte", "pull_values": "float16"}


def cluster_of(directory: Path, logs: Logs, **more) -> Cluster:
    """Return a cluster for some logs, that reads them in small blocks."""
    source = {"uri": logs.paths} | more.pop("source", {})
    return Cluster(directory, source=source, **more)


def quarantined(cluster: Cluster) -> Counter[tuple[str, int]]:
    """Return how often each bad record was kept."""
    found: Counter[tuple[str, int]] = Counter()
    for path in cluster.directory.glob("workers/*/bad_records.jsonl"):
        for line in path.read_text().splitlines():
            said = json.loads(line)
            found[said["uri"], said["offset"]] += 1
    return found


def check_embeddings(cluster: Cluster) -> None:
    """Check that features have the embeddings that they earned, if the model has some."""
    tiers = cluster.job.model.tiers
    for index in range(len(cluster.specs)):
        table = cluster.shard(index).table
        assert (table.arena is None) == (tiers is None)
        if tiers is None:
            continue
        rows = np.concatenate([table.rows(segment) for segment in table.key_order()])
        rows = rows[rows[:, 0] != np.uint64(1)]
        counts, dims = (rows[:, 2] & np.uint64(0xFFFFFFFF)).astype(np.int64), dims_of(rows[:, 3])
        # of a minibatch in which a feature stood several times its count goes for less
        for least, count in ((False, counts), (True, counts // cluster.job.compute.minibatch)):
            passed = np.searchsorted(np.array(tiers.counts), count.astype(np.int64))
            earned = np.array([0, *tiers.dims])[passed]
            assert np.all(dims >= earned if least else dims <= earned)
        assert set(dims.tolist()) >= set(tiers.dims)


@pytest.mark.parametrize(
    ("tau", "more"), [(0, {}), (4, {}), (-1, {}), (0, FM_BYTES), (4, FM_BYTES)]
)
async def test_every_record_is_learned_once(tmp_path, logs, tau, more):
    async with cluster_of(tmp_path, logs, tau=tau, **more) as cluster:
        follower = await cluster.start_follower(0)
        for name in ("a", "b"):
            cluster.start_worker(name)
        await cluster.finish()
        check_counted(cluster, logs)
        check_embeddings(cluster)
        await cluster.caught_up(follower)
        assert follower.shard.digest() == cluster.shard(0).digest()
        examples = sum(running.worker.examples for running in cluster.workers)
        assert examples == sum(logs.good.values())
        assert not cluster.shard(0).clocks.members
        kept = quarantined(cluster)
        assert (len(kept), kept.total()) == (sum(logs.bad.values()), sum(logs.bad.values()))
        for index in (0, 1):
            service = cluster.hosts[index].service
            assert service.counts["misses"] == 0
            # two may have been at one partition only if one of them was thought dead
            assert service.counts["duplicates"] == 0


@pytest.mark.parametrize("model", [{}, FM])
async def test_several_passes(tmp_path, logs, model):
    async with cluster_of(tmp_path, logs, tau=1, model=model | {"epochs": 3}) as cluster:
        for name in ("a", "b"):
            cluster.start_worker(name)
        await cluster.finish()
        check_counted(cluster, logs, epochs=3)
        assert quarantined(cluster).total() == sum(logs.bad.values())


@pytest.mark.parametrize("values", ["float16", "byte"])
@pytest.mark.parametrize(("compression", "model"), [("lz4", {}), ("auto", {}), ("lz4", FM)])
async def test_short_values(tmp_path, logs, values, compression, model):
    more = {
        "model": model,
        "push_values": values,
        "pull_values": "float16",
        "compression": compression,
    }
    async with cluster_of(tmp_path, logs, tau=1, **more) as cluster:
        cluster.start_worker("a")
        await cluster.finish()
        check_counted(cluster, logs)
        assert cluster.workers[0].worker.validation.summary()["auc"] > 0.6


@pytest.mark.parametrize("durability", ["log", "snapshot"])
@pytest.mark.parametrize("more", [{}, FM_BYTES])
async def test_shards_that_die_lose_nothing_and_repeat_nothing(tmp_path, logs, durability, more):
    async with cluster_of(
        tmp_path, logs, tau=2, durability=durability, lease_seconds=1.0, minibatch=4, **more
    ) as cluster:
        for name in ("a", "b"):
            cluster.start_worker(name)
        follower = await cluster.start_follower(1)
        kills = 0
        for number in range(6):
            await cluster.progress(8)
            seen = sum(mark.examples for mark in cluster.marks(0).values())
            if seen > 0.6 * sum(logs.good.values()):  # the rest goes on undisturbed
                break
            kills += 1
            if number in {1, 3}:
                await cluster.hosts[number % 2].take_snapshot()
            await cluster.kill_shard(number % 2)
            await asyncio.sleep(0.02)
            await cluster.start_shard(number % 2)
        await cluster.finish()
        assert kills >= 2
        check_counted(cluster, logs)
        await cluster.caught_up(follower)
        assert follower.shard.digest() == cluster.shard(1).digest()


async def test_both_shards_die_at_once(tmp_path, logs):
    async with cluster_of(tmp_path, logs, tau=0, lease_seconds=1.0, minibatch=8) as cluster:
        for name in ("a", "b"):
            cluster.start_worker(name)
        for _ in range(2):
            assert await cluster.progress(12)
            for index in (0, 1):
                await cluster.kill_shard(index)
            for index in (1, 0):
                await cluster.start_shard(index)
        await cluster.finish()
        check_counted(cluster, logs)


async def test_first_shard_that_restarted_is_told_who_is_at_what(tmp_path, logs):
    async with cluster_of(tmp_path, logs, tau=-1, lease_seconds=60.0, minibatch=2) as cluster:
        running = [cluster.start_worker(name) for name in ("a", "b")]
        await cluster.until(lambda: cluster.applied >= 20)
        await cluster.kill_shard(0)
        await cluster.start_shard(0)
        held = cluster.hosts[0].service.registry.holders
        await cluster.until(lambda: len(held()) == 2)
        assert set(held().values()) == {(r.name, r.worker.who.incarnation) for r in running}
        await cluster.finish()
        check_counted(cluster, logs)


async def test_partition_that_another_worker_listed_is_learned(tmp_path):
    logs = Logs(tmp_path / "logs", files=3)
    source = {"uri": (str(tmp_path / "logs" / "*.svm"),)}
    hidden = Path(logs.paths[2])
    aside = await asyncio.to_thread(hidden.rename, tmp_path / "aside")
    async with cluster_of(tmp_path, logs, tau=0, minibatch=2, source=source) as cluster:
        cluster.start_worker("a")
        await cluster.until(lambda: cluster.applied >= 10)
        await asyncio.to_thread(aside.rename, hidden)
        second = cluster.start_worker("b")  # it lists all three, and tells the first shard
        await cluster.until(lambda: second.worker.state == "learning")
        second.worker.stop()
        await cluster.finish()
        assert cluster.workers[0].worker.failed == {}
        check_counted(cluster, logs)


@pytest.mark.parametrize("more", [{}, FM_BYTES])
async def test_shard_recovers_what_it_was(tmp_path, logs, more):
    async with cluster_of(tmp_path, logs, tau=1, **more) as cluster:
        cluster.start_worker("a")
        await cluster.until(lambda: cluster.applied >= 20)
        await cluster.hosts[0].take_snapshot()
        await cluster.finish()
        for index in (0, 1):
            digest = cluster.shard(index).digest()
            await cluster.kill_shard(index)
            host = await cluster.start_shard(index)
            assert cluster.shard(index).digest() == digest
            assert host.recovered.snapshot_lsn > 0 or index == 1


@pytest.mark.parametrize("more", [{}, FM_BYTES])
async def test_drained_shard_begins_with_its_last_snapshot(tmp_path, logs, more):
    async with cluster_of(tmp_path, logs, tau=1, **more) as cluster:
        cluster.start_worker("a")
        await cluster.finish()
        digest = cluster.shard(1).digest()
        host = cluster.hosts.pop(1)
        await host.drain()
        cluster._lanes.pop(1).close()
        assert host.state == "ended"
        found = recover(REAL_DISK, str(tmp_path / "shard1"), cluster.specs[1])
        assert (found.shard.digest(), found.replayed) == (digest, 0)
        found.log.close()
        await cluster.start_shard(1)


async def test_worker_that_dies_is_taken_over(tmp_path, logs):
    async with cluster_of(tmp_path, logs, tau=1, lease_seconds=0.3, minibatch=8) as cluster:
        first = cluster.start_worker("a")
        cluster.start_worker("b")
        await cluster.until(lambda: cluster.applied >= 30)
        await first.end()
        await cluster.finish()
        check_counted(cluster, logs)


async def test_only_worker_dies_and_another_goes_on(tmp_path, logs):
    async with cluster_of(tmp_path, logs, tau=0, lease_seconds=0.3, minibatch=8) as cluster:
        for _ in range(3):
            running = cluster.start_worker("a")
            assert await cluster.progress(20)
            await running.end()
        cluster.start_worker("z")
        await cluster.finish()
        check_counted(cluster, logs)


async def test_worker_that_is_stopped_leaves_in_order(tmp_path, logs):
    async with cluster_of(tmp_path, logs, tau=1, minibatch=8) as cluster:
        first = cluster.start_worker("a")
        await cluster.until(lambda: cluster.applied >= 10)
        first.worker.stop()
        await asyncio.wait_for(first.task, 30)
        assert not cluster.shard(0).clocks.members
        assert first.worker.in_flight == 0
        cluster.start_worker("b")
        await cluster.finish()
        check_counted(cluster, logs)


async def test_run_that_is_over_is_not_repeated(tmp_path, logs):
    async with cluster_of(tmp_path, logs, tau=1) as cluster:
        cluster.start_worker("a")
        await cluster.finish()
        pushes = cluster.applied
        again = cluster.start_worker("b")
        await cluster.finish()
        assert cluster.applied == pushes
        assert again.worker.examples == 0


async def test_shard_that_lost_everything_is_taught_alone(tmp_path, logs):
    async with cluster_of(tmp_path, logs, tau=1, model={"epochs": 2}) as cluster:
        cluster.start_worker("a")
        await cluster.finish()
        before = cluster.applied
        await cluster.kill_shard(1)
        (tmp_path / "shard1").rename(tmp_path / "lost")
        await cluster.start_shard(1)
        cluster.start_worker("b")
        await cluster.finish()
        check_counted(cluster, logs, epochs=2)
        assert cluster.applied == before


async def test_shards_in_another_order_are_refused(tmp_path, logs):
    async with cluster_of(tmp_path, logs) as cluster:
        tables = msgspec.structs.replace(cluster.job.tables, shards=cluster.addresses[::-1])
        wrong = msgspec.structs.replace(cluster.job, tables=tables)
        with pytest.raises(ClusterError, match=r"is shard 1 of 2 .* shard 0 of 2") as caught:
            await cluster.start_worker("a", job=wrong).task
        assert caught.value.hint


async def test_shard_that_is_missing_in_the_list_is_refused(tmp_path, logs):
    async with cluster_of(tmp_path, logs) as cluster:
        tables = msgspec.structs.replace(cluster.job.tables, shards=cluster.addresses[:1])
        wrong = msgspec.structs.replace(cluster.job, tables=tables)
        with pytest.raises(ClusterError, match=r"is shard 0 of 2 .* shard 0 of 1"):
            await cluster.start_worker("a", job=wrong).task


async def test_worker_of_another_job_is_refused(tmp_path, logs):
    async with cluster_of(tmp_path, logs) as cluster:
        model = msgspec.structs.replace(cluster.job.model, alpha=0.77)
        wrong = msgspec.structs.replace(cluster.job, model=model)
        with pytest.raises((ClusterError, RefusedError)):
            await cluster.start_worker("a", job=wrong).task


async def test_full_shard_ends_the_run(tmp_path, logs):
    cluster = cluster_of(tmp_path, logs)
    cluster.specs = [spec(cluster.job, index, 2, features_max=20) for index in range(2)]
    async with cluster:
        with pytest.raises(TableFullError, match="is full"):
            await cluster.start_worker("a").task
        lsn = cluster.shard(0).lsn
        await cluster.kill_shard(0)
        await cluster.start_shard(0)
        assert cluster.shard(0).lsn == lsn


async def test_too_many_bad_records_end_the_run(tmp_path):
    logs = Logs(tmp_path / "logs", files=1, count=4000, bad_every=10)
    source = {"bad_records_max": 0.05}
    async with cluster_of(tmp_path, logs, source=source) as cluster:
        with pytest.raises(DataError, match=r"bad_records_max = 5\.0%"):
            await cluster.start_worker("a").task


@pytest.mark.parametrize("tau", [0, 4])
async def test_share_of_bad_records_is_of_what_was_looked_at(tmp_path, tau):
    # every twentieth is bad: just within what is allowed, however many are under way
    logs = Logs(tmp_path / "logs", files=1, count=4000, bad_every=20)
    source = {"bad_records_max": 0.0525}
    async with cluster_of(tmp_path, logs, tau=tau, minibatch=400, source=source) as cluster:
        cluster.start_worker("a")
        await cluster.finish()
        check_counted(cluster, logs)


async def test_object_that_changed_is_left_alone(tmp_path):
    logs = Logs(tmp_path / "logs", files=2, count=400)
    async with cluster_of(tmp_path, logs, tau=0, minibatch=8, lease_seconds=0.2) as cluster:
        first = cluster.start_worker("a")
        await cluster.until(lambda: cluster.applied >= 10)
        await first.end()
        half = dict(cluster.marks(0))
        (name,) = half
        path = next(Path(path) for path in logs.paths if Path(path).name == name)
        path.write_bytes(path.read_bytes() + b"1 5:1\n")
        second = cluster.start_worker("b")
        await cluster.finish()
        (failed,) = second.worker.failed.values()
        assert "has changed" in failed.message
        assert cluster.marks(0)[name] == half[name]
        others = {n for n in logs.good if n != name}
        assert all(cluster.marks(0)[n].done for n in others)


async def test_empty_source_ends(tmp_path):
    directory = tmp_path / "logs"
    directory.mkdir()
    (directory / "empty.svm").write_bytes(b"")
    logs = Logs(directory, files=0)
    logs.paths = (str(directory / "empty.svm"),)
    async with cluster_of(tmp_path, logs) as cluster:
        running = cluster.start_worker("a")
        await cluster.finish()
        assert running.worker.examples == 0


async def test_snapshots_while_learning_are_one_cut(tmp_path, logs):
    async with cluster_of(
        tmp_path, logs, tau=4, durability="snapshot", minibatch=4, lease_seconds=0.5
    ) as cluster:
        for name in ("a", "b"):
            cluster.start_worker(name)
        for _ in range(3):
            await cluster.progress(8)
            await asyncio.gather(*(host.take_snapshot() for host in cluster.hosts.values()))
            # what a snapshot holds adds up by itself
            for index in (0, 1):
                found = recover(REAL_DISK, str(tmp_path / f"shard{index}"), cluster.specs[index])
                marks, table = found.shard.marks.values(), found.shard.table
                examples = sum(mark.examples for mark in marks)
                if index == 0:
                    rows = table.rows_at(table.find(np.array([1], np.uint64)))
                    assert int(rows[0, 2]) & 0xFFFFFFFF == examples
        await cluster.finish()
        check_counted(cluster, logs)
