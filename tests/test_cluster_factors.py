"""Ratings learned by shards and workers together: every one once, whatever dies."""

from __future__ import annotations

import asyncio
import shutil
from typing import Any

import numpy as np
import pytest

from streamlearn.cluster.users import USERS, StoredUsers
from streamlearn.compute.kernels.factors import ITEM
from streamlearn.errors import ClusterError
from streamlearn.model import load
from streamlearn.online.mf import numbers_of
from streamlearn.shards.arena import dims_of
from streamlearn.shards.shard import INTERCEPT_KEY
from tests.cluster_parts import Cluster, Logs, check_counted
from tests.runs import run
from tests.shard_parts import MINIBATCH

MODEL: dict[str, Any] = {"kind": "mf", "dim": 20, "alpha": 0.1, "l2": 0.02}
BYTES = {"push_values": "byte", "pull_values": "float16"}


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Logs:
    """Four files, some of their records bad."""
    return Logs(tmp_path_factory.mktemp("ratings"), bad_every=40, rated=True)


def cluster_of(directory, logs: Logs, **more) -> Cluster:
    """Return a cluster for some ratings."""
    return Cluster(directory, source=logs.source, model=MODEL | more.pop("model", {}), **more)


def check_rows(cluster: Cluster) -> None:
    """Check that users and items, and none else, have factors and say which of both they are."""
    kinds = {0: 0, 1: 0}
    for index in range(len(cluster.specs)):
        table = cluster.shard(index).table
        rows = np.concatenate([table.rows(segment) for segment in table.key_order()])
        constant = rows[:, 0] == INTERCEPT_KEY
        dims, numbers = dims_of(rows[:, 3]), numbers_of(rows[:, 1])
        assert set(dims[~constant].tolist()) == {20}
        assert dims[constant].tolist() == ([0] if index == 0 else [])
        assert np.isfinite(table.arena.values[:4096]).all()
        for kind, number in ((0, 1), (1, int(ITEM) + 1)):
            kinds[kind] += int(np.count_nonzero(numbers == number))
    assert kinds == {0: 50, 1: 30}


@pytest.mark.parametrize(("tau", "more"), [(0, {}), (0, BYTES), (4, BYTES), (-1, {})])
async def test_every_rating_is_learned_once(tmp_path, logs, tau, more):
    async with cluster_of(tmp_path, logs, tau=tau, **more) as cluster:
        follower = await cluster.start_follower(0)
        for name in ("a", "b"):
            cluster.start_worker(name)
        await cluster.finish()
        check_counted(cluster, logs)
        check_rows(cluster)
        await cluster.caught_up(follower)
        assert follower.shard.digest() == cluster.shard(0).digest()
        for index in (0, 1):
            counts = cluster.hosts[index].service.counts
            assert (counts["misses"], counts["duplicates"]) == (0, 0)
        whole = sum(running.worker.validation.totals().loss for running in cluster.workers)
        assert whole / sum(logs.good.values()) < 0.9 * 0.78  # the variance of all ratings


def test_one_worker_in_step_learns_what_one_process_does(tmp_path, logs):
    flags = [
        *(word for name, value in MODEL.items() for word in ("--set", f"model.{name}={value}")),
        *("--set", f"compute.minibatch={MINIBATCH}", "--set", "source.bad_records_max=1"),
    ]
    ended = run("train", *logs.paths, "--lanes", 1, "--out", tmp_path / "alone", "--json", *flags)
    assert ended.code == 0, ended.stderr
    alone = load(tmp_path / "alone")

    async def together() -> None:
        async with cluster_of(tmp_path, logs, tau=0) as cluster:
            running = cluster.start_worker("a")
            await cluster.finish()
            figures = running.worker.validation.summary()
            assert figures["rmse"] == pytest.approx(ended.report["rmse"], abs=1e-5)
            for index in (0, 1):
                shard = cluster.shard(index)
                segments = shard.table.key_order()
                keys = np.sort(np.concatenate([shard.table.rows(one)[:, 0] for one in segments]))
                mine = shard.values(shard.locate(keys))
                if index == 0:
                    assert mine[0] == pytest.approx(float(alone.table.intercept[0]), abs=1e-4)
                theirs = alone.weights_at(keys)
                np.testing.assert_allclose(mine[index == 0 :], theirs[index == 0 :], atol=1e-4)
                arena = shard.table.arena
                assert arena is not None
                factors = arena.coordinates_at(shard.table.find(keys))
                np.testing.assert_allclose(factors, alone.embeddings_at(keys), atol=1e-4)

    asyncio.run(together())


async def test_several_passes(tmp_path, logs):
    model = {"epochs": 3, "alpha": 0.05}
    async with cluster_of(tmp_path, logs, tau=1, model=model, **BYTES) as cluster:
        for name in ("a", "b"):
            cluster.start_worker(name)
        await cluster.finish()
        check_counted(cluster, logs, epochs=3)
        check_rows(cluster)


async def test_copies_spare_what_is_pulled(tmp_path, logs):
    sent: dict[int, int] = {}
    losses = []
    for number, bytes_max in enumerate((0, 1 << 20)):
        directory = tmp_path / str(number)
        more = {"tau": 4, "copies_bytes_max": bytes_max, "minibatch": 32}
        async with cluster_of(directory, logs, **more) as cluster:
            running = cluster.start_worker("a")
            await cluster.finish()
            check_counted(cluster, logs)
            check_rows(cluster)
            links = [remote.index for remote in running.remotes]
            assert links == [0, 1]
            sent[bytes_max] = running.counters.bytes_in
            losses.append(running.worker.validation.summary()["rmse"])
    assert sent[1 << 20] < 0.7 * sent[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize("durability", ["log", "snapshot"])
async def test_shards_that_die_lose_nothing_and_repeat_nothing(tmp_path, logs, durability):
    async with cluster_of(
        tmp_path, logs, tau=2, durability=durability, lease_seconds=1.0, minibatch=4, **BYTES
    ) as cluster:
        for name in ("a", "b"):
            cluster.start_worker(name)
        follower = await cluster.start_follower(1)
        for number in range(4):
            await cluster.progress(8)
            if number == 1:
                await cluster.hosts[1].take_snapshot()
            await cluster.kill_shard(number % 2)
            await asyncio.sleep(0.02)
            await cluster.start_shard(number % 2)
        await cluster.finish()
        check_counted(cluster, logs)
        check_rows(cluster)
        await cluster.caught_up(follower)
        assert follower.shard.digest() == cluster.shard(1).digest()


async def test_shard_recovers_what_it_was(tmp_path, logs):
    async with cluster_of(tmp_path, logs, tau=1, **BYTES) as cluster:
        cluster.start_worker("a")
        await cluster.until(lambda: cluster.applied >= 20)
        await cluster.hosts[0].take_snapshot()
        await cluster.finish()
        for index in (0, 1):
            digest = cluster.shard(index).digest()
            await cluster.kill_shard(index)
            await cluster.start_shard(index)
            assert cluster.shard(index).digest() == digest


async def test_workers_that_die_are_taken_over(tmp_path, logs):
    async with cluster_of(tmp_path, logs, tau=4, lease_seconds=0.3, minibatch=8) as cluster:
        for _ in range(2):
            running = cluster.start_worker("a")
            assert await cluster.progress(20)
            await running.end()
        for name in ("b", "c"):
            cluster.start_worker(name)
        await cluster.finish()
        check_counted(cluster, logs)
        check_rows(cluster)


async def test_every_user_and_item_has_a_name(tmp_path, logs):
    async with cluster_of(tmp_path, logs, tau=1) as cluster:
        running = cluster.start_worker("a")
        await cluster.finish()
        names = running.worker.names
        names.flush()
        assert len(names) == 16 == names.names_max
        assert {name.split("=")[0] for name in names.lookup(names.keys)} == {"user", "item"}


# ---------------------------------------------------------------- users with their workers


@pytest.fixture(scope="module")
def by_user(tmp_path_factory: pytest.TempPathFactory) -> Logs:
    """Four files, each of users of its own."""
    return Logs(tmp_path_factory.mktemp("by_user"), bad_every=40, rated=True, split=True)


def apart(directory, logs: Logs, **more) -> Cluster:
    """Return a cluster whose users stand with its workers."""
    return cluster_of(directory, logs, model={"users": "worker"} | more.pop("model", {}), **more)


def check_apart(cluster: Cluster, logs: Logs, epochs: int = 1) -> dict[int, int]:
    """Check marks, that shards have items alone, and users each once; return their counts."""
    items, users = 0, 0
    for index in range(len(cluster.specs)):
        for name, mark in cluster.marks(index).items():
            assert (mark.done, mark.epoch) == (True, epochs - 1)
            assert mark.examples == epochs * logs.good[name]
        table = cluster.shard(index).table
        rows = np.concatenate([table.rows(segment) for segment in table.key_order()])
        rows = rows[rows[:, 0] != INTERCEPT_KEY]
        assert (numbers_of(rows[:, 1]) == int(ITEM) + 1).all()
        items += int((rows[:, 2] & np.uint64(0xFFFFFFFF)).sum())
    assert items == sum(logs.good.values())
    marks = list(cluster.shard(0).marks.values())
    found: dict[int, int] = {}
    workers, signature = cluster.directory / "workers", cluster.specs[0].signature
    with StoredUsers(workers, signature, marks) as stored:
        assert stored.notes == []
        for part in stored.parts():
            assert set(dims_of(part.rows[:, 3]).tolist()) == {20}
            found |= {row[0]: row[2] & 0xFFFFFFFF for row in part.rows.tolist()}
    users = sum(found.values())
    assert users == sum(logs.good.values())
    assert 190 <= len(found) <= 200
    return found


@pytest.mark.parametrize(("tau", "epochs"), [(0, 1), (4, 1), (1, 3)])
async def test_users_stand_with_the_workers_that_read_them(tmp_path, by_user, tau, epochs):
    model = {"epochs": epochs, "alpha": 0.05}
    async with apart(tmp_path, by_user, tau=tau, model=model, **BYTES) as cluster:
        for name in ("a", "b"):
            cluster.start_worker(name)
        await cluster.finish()
        check_apart(cluster, by_user, epochs)


async def test_worker_that_is_killed_goes_on_from_the_users_that_it_kept(tmp_path, by_user):
    async with apart(tmp_path, by_user, tau=1, lease_seconds=0.3, minibatch=4) as cluster:
        first = cluster.start_worker("a")
        assert await cluster.progress(30)
        await first.worker.keep_users()
        assert await cluster.progress(10)
        await first.end()
        before = [cluster.shard(index).lsn for index in (0, 1)]
        cluster.start_worker("a")
        await cluster.finish()
        check_apart(cluster, by_user)
        for index in (0, 1):
            assert cluster.shard(index).lsn > before[index]
            # what the shards had came again, and was dropped
            assert cluster.hosts[index].service.counts["duplicates"] > 0


async def test_users_that_nobody_kept_are_learned_again_from_the_first_record(tmp_path, by_user):
    async with apart(tmp_path, by_user, tau=1, lease_seconds=0.3, minibatch=4) as cluster:
        first = cluster.start_worker("a")
        assert await cluster.progress(40)
        await first.end()
        shutil.rmtree(first.directory / USERS, ignore_errors=True)
        for name in ("b", "c"):
            cluster.start_worker(name)
        await cluster.finish()
        check_apart(cluster, by_user)


async def test_shards_that_die_leave_users_alone(tmp_path, by_user):
    async with apart(
        tmp_path, by_user, tau=2, durability="snapshot", lease_seconds=1.0, minibatch=4
    ) as cluster:
        for name in ("a", "b"):
            cluster.start_worker(name)
        for number in range(3):
            await cluster.progress(8)
            await cluster.kill_shard(number % 2)
            await asyncio.sleep(0.02)
            await cluster.start_shard(number % 2)
        await cluster.finish()
        check_apart(cluster, by_user)


async def test_worker_that_is_stopped_keeps_its_users(tmp_path, by_user):
    async with apart(tmp_path, by_user, tau=1, minibatch=8) as cluster:
        first = cluster.start_worker("a")
        await cluster.until(lambda: cluster.applied >= 10)
        first.worker.stop()
        await asyncio.wait_for(first.task, 30)
        marks = list(cluster.shard(0).marks.values())
        with StoredUsers(cluster.directory / "workers", cluster.specs[0].signature, marks):
            pass  # they are where the shards are
        cluster.start_worker("b")
        await cluster.finish()
        check_apart(cluster, by_user)


async def test_source_that_is_not_split_by_user_is_found_out(tmp_path, logs):
    async with apart(tmp_path, logs, tau=1) as cluster:
        for name in ("a", "b"):
            cluster.start_worker(name)
        await cluster.finish()
        marks = list(cluster.shard(0).marks.values())
        with pytest.raises(ClusterError, match="50 of 50 users are in more than one object"):
            StoredUsers(cluster.directory / "workers", cluster.specs[0].signature, marks)
