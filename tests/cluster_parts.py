"""A cluster in one event loop over loopback: shards, workers and followers, ended anywhere."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from streamlearn.cluster.follower_host import FollowerHost
from streamlearn.cluster.remote import Who
from streamlearn.cluster.shard_host import Lanes, Place, ShardHost
from streamlearn.cluster.users import Keeping
from streamlearn.cluster.worker import Worker
from streamlearn.cluster.worker_node import connector, remotes_of
from streamlearn.compute.pool import Lane
from streamlearn.config import JobConfig
from streamlearn.net.connection import Peer
from streamlearn.net.counters import Counters
from streamlearn.net.limits import Limits
from streamlearn.net.network import TcpNetwork
from streamlearn.net.ports import free_port
from streamlearn.net.security import Secrets
from streamlearn.net.sources.uri import open_source
from streamlearn.online.losses import new_validation
from streamlearn.online.names import Names
from streamlearn.preparing import format_of
from streamlearn.protocol import Mark
from streamlearn.quarantine import Quarantine
from streamlearn.shards.disk import REAL_DISK
from streamlearn.shards.shard import Shard
from tests.shard_parts import job, spec

PATIENCE_SECONDS = 15.0
LIMITS = Limits(handshake_seconds=5.0, silence_seconds=20.0, linger_seconds=0.2)
_numbers = itertools.count(1)


def place() -> Place:
    """Return this machine, its random numbers counted."""
    return Place(TcpNetwork(Secrets()), REAL_DISK, time.monotonic, time.time, _numbers.__next__)


class Running:
    """A worker that runs.

    Attributes
    ----------
    worker : Worker
    counters : Counters
        Of its connections.
    task : Task
        Ends with it.
    """

    def __init__(self, cluster: Cluster, name: str, of_job: JobConfig) -> None:
        self.name = name
        self.directory = cluster.directory / "workers" / name
        self.directory.mkdir(parents=True, exist_ok=True)
        who = Who(name, next(_numbers), cluster.specs[0].signature)
        self.source = open_source(of_job.source)
        self.lanes = [Lane("parse", time.thread_time), Lane("step", time.thread_time)]
        format = format_of(of_job, None)
        path = self.directory / "bad_records.jsonl"
        self.quarantine = Quarantine(path, path.stat().st_size if path.exists() else 0)
        names = Names(tuple(format.fields), 16)
        self.worker = Worker(
            of_job, who, self.source, format, *self.lanes, names,
            new_validation(of_job.model, 1000), self.quarantine,
            Keeping(self.directory, time.time),
        )  # fmt: skip
        self.counters = Counters()
        self.remotes = remotes_of(
            self.worker, who, of_job, Secrets(), place(), LIMITS, self.counters
        )
        self.task = asyncio.create_task(self.worker.run(), name=f"worker-{name}")

    async def end(self) -> None:
        """Let go of what it has; the process is gone."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        if self.worker.dense is not None:
            self.worker.net.close()
        await self.source.aclose()
        for lane in self.lanes:
            lane.close()
        self.quarantine.close()


class Cluster:
    """Shards on ports of their own, and who talks to them.

    Parameters
    ----------
    directory : Path
    shards : int
    more
        See ``shard_parts.job``.
    """

    def __init__(self, directory: Path, shards: int = 2, **more: Any) -> None:
        self.directory = directory
        taken: set[int] = set()
        for number in range(shards):
            taken.add(free_port("127.0.0.1", f"{directory}{number}", taken))
        self.addresses = tuple(f"127.0.0.1:{port}" for port in taken)
        self.job = job(shards=self.addresses, **more)
        self.specs = [spec(self.job, index, shards) for index in range(shards)]
        self.hosts: dict[int, ShardHost] = {}
        self.workers: list[Running] = []
        self.followers: list[FollowerHost] = []
        self._lanes: dict[int, Lanes] = {}
        self._follower_lanes: list[Lane] = []

    async def start_shard(self, index: int) -> ShardHost:
        """Start a shard, on the directory and port that it had before."""
        ways = Lanes(*(Lane(name, time.thread_time) for name in ("r", "l", "s")))
        path = str(self.directory / f"shard{index}")
        host = ShardHost(self.specs[index], path, place(), ways, Secrets(), LIMITS)
        await host.start(self.addresses[index])
        self.hosts[index], self._lanes[index] = host, ways
        return host

    async def kill_shard(self, index: int) -> None:
        """End a shard as if its process had died."""
        await self.hosts.pop(index).abandon()
        self._lanes.pop(index).close()

    def start_worker(self, name: str, **changes: Any) -> Running:
        """Start a worker."""
        running = Running(self, name, changes.get("job", self.job))
        self.workers.append(running)
        return running

    async def start_follower(self, index: int) -> FollowerHost:
        """Start a follower of a shard."""
        one, where = self.specs[index], place()
        lane = Lane("follower", time.thread_time)
        host = FollowerHost(
            one,
            connector(
                self.addresses[index], index, one.of, self.job, Peer("follower", "f"), Secrets(),
                where, LIMITS, Counters(),
            ),
            where, lane, Secrets(), LIMITS,
        )  # fmt: skip
        await host.start("127.0.0.1:0")
        self.followers.append(host)
        self._follower_lanes.append(lane)
        return host

    def shard(self, index: int) -> Shard:
        """Return a shard's state."""
        service = self.hosts[index].service
        assert service is not None
        return service.shard

    def marks(self, index: int) -> dict[str, Mark]:
        """Return a shard's marks, by the name of the object."""
        return {Path(name).name: mark for name, mark in self.shard(index).marks.items()}

    @property
    def applied(self) -> int:
        """Minibatches applied by the first shard."""
        return self.shard(0).pushes if 0 in self.hosts else 0

    @asynccontextmanager
    async def _patience(self) -> AsyncIterator[None]:
        """Wait no longer than anything takes, and say then how things stand."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                yield
        except TimeoutError:
            raise AssertionError("\n".join(self._standing())) from None

    def _standing(self) -> Iterator[str]:
        for index, host in self.hosts.items():
            service = host.service
            assert service is not None
            figures = {name: int(value) for name, value in service.figures().items() if value}
            clocks = service.shard.clocks.state()
            yield f"shard {index}: {host.state}, {service.shard.lsn}, {clocks}, {figures}"
        for follower in self.followers:
            yield f"follower: {follower.state}, {follower.shard.lsn}, lag {follower.lag}"
        for running in self.workers:
            worker = running.worker
            yield (
                f"worker {running.name}: {worker.state}, {worker.partition}, clock {worker.clock}, "
                f"{worker.in_flight} under way, rewinds {worker.rewinds}, "
                f"joined {[remote.joined.is_set() for remote in running.remotes]}, "
                f"open {[remote.open_pushes for remote in running.remotes]}"
            )

    async def until(self, what: Callable[[], bool]) -> None:
        """Wait until something is so."""
        async with self._patience():
            while not what():
                for running in self.workers:
                    if running.task.done() and not running.task.cancelled():
                        running.task.result()
                await asyncio.sleep(0.002)

    async def progress(self, minibatches: int) -> bool:
        """Wait for so many minibatches; say whether workers still run."""
        before = self.applied

        def ended() -> bool:
            return all(running.task.done() for running in self.workers)

        await self.until(lambda: self.applied >= before + minibatches or ended())
        return not ended()

    async def finish(self) -> None:
        """Wait for all workers that still run."""
        async with self._patience():
            for running in self.workers:
                with suppress(asyncio.CancelledError):
                    await asyncio.shield(running.task)

    async def caught_up(self, follower: FollowerHost) -> None:
        """Wait until a follower has all that its shard has made durable."""
        shard = self.shard(follower.spec.index)
        await self.until(lambda: follower.state == "serving" and follower.shard.lsn == shard.lsn)

    async def __aenter__(self) -> Cluster:
        for index in range(len(self.specs)):
            await self.start_shard(index)
        return self

    async def __aexit__(self, *exc: object) -> None:
        for running in self.workers:
            await running.end()
        for follower in self.followers:
            await follower.stop()
        for lane in self._follower_lanes:
            lane.close()
        for index in list(self.hosts):
            await self.kill_shard(index)


def records(count: int, seed: int, *, bad_every: int = 0) -> tuple[list[bytes], int]:
    """Return svmlight records with a known truth, and how many of them are bad."""
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(7).normal(0, 1.5, 200)
    out, bad = [], 0
    for number in range(count):
        if bad_every and number % bad_every == bad_every // 2:
            out.append(b"x %d:1" % number)
            bad += 1
            continue
        picked = np.unique((200 * rng.random(rng.integers(1, 8)) ** 2).astype(int))
        label = int(rng.random() < 1 / (1 + np.exp(-truth[picked].sum())))
        pairs = b" ".join(b"%d:1" % one for one in picked.tolist())
        out.append(b"%d %s" % (label, pairs))
    return out, bad


def ratings(
    count: int, seed: int, *, bad_every: int = 0, first_user: int = 0
) -> tuple[list[bytes], int]:
    """Return ratings of some rank, in the order of their users, and how many of them are bad."""
    rng = np.random.default_rng(seed)
    tastes = np.random.default_rng(7).normal(0, 0.7, (80, 3))
    users = np.sort(rng.integers(0, 50, count))
    out, bad = [], 0
    for number, user in enumerate(users.tolist()):
        item = 50 + int(30 * rng.random() ** 2)
        rating = 3.5 + float(tastes[user] @ tastes[item]) + rng.normal(0, 0.2)
        broken = bool(bad_every and number % bad_every == bad_every // 2)
        bad += broken
        name = first_user + user
        out.append(b"%d::%d::%s" % (name, item, b"x" if broken else b"%.1f" % rating))
    return out, bad


class Logs:
    """Files of records.

    Parameters
    ----------
    directory : Path
    files, count : int
        And records of the first; the others have a few more.
    bad_every : int
        One in so many is bad; 0: none.
    rated, split : bool
        Whether they are ratings, and not svmlight records; each file of users of its own.

    Attributes
    ----------
    source : dict
        What a job says of its source.
    paths : tuple of str
    good, bad : dict of str to int
        Records by file name.
    """

    def __init__(
        self,
        directory: Path,
        files: int = 4,
        count: int = 300,
        *,
        bad_every: int = 0,
        rated: bool = False,
        split: bool = False,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        suffix = "dat" if rated else "svm"
        self.good: dict[str, int] = {}
        self.bad: dict[str, int] = {}
        self.sizes: dict[str, int] = {}
        paths = []
        for number in range(files):
            size = count + 31 * number
            if rated:
                first = 1000 * number if split else 0
                lines, bad = ratings(size, number, bad_every=bad_every, first_user=first)
            else:
                lines, bad = records(size, number, bad_every=bad_every)
            path = directory / f"{number}.{suffix}"
            path.write_bytes(b"".join(line + b"\n" for line in lines))
            paths.append(str(path))
            self.good[path.name], self.bad[path.name] = len(lines) - bad, bad
            self.sizes[path.name] = path.stat().st_size
        self.paths = tuple(paths)
        self.source = {"uri": self.paths, "format": "ratings" if rated else "svmlight"}


def check_counted(cluster: Cluster, logs: Logs, epochs: int = 1) -> None:
    """Check by the shards' own marks that every record was applied once a pass, and kept once."""
    for index in range(len(cluster.specs)):
        marks = cluster.marks(index)
        assert set(marks) == set(logs.good)
        for name, mark in marks.items():
            assert (mark.done, mark.epoch) == (True, epochs - 1)
            assert mark.examples == epochs * logs.good[name]
            assert mark.bad_records == epochs * logs.bad[name]
            assert mark.records == logs.good[name] + logs.bad[name]
            assert (mark.offset, mark.bytes) == (logs.sizes[name], epochs * logs.sizes[name])
        table = cluster.shard(index).table
        occurrences = sum(
            int((table.rows(segment)[:, 2] & np.uint64(0xFFFFFFFF)).sum())
            for segment in table.key_order()
        )
        expected = expected_occurrences(cluster, logs, index)
        assert occurrences == expected, f"{occurrences} occurrences, expected {expected}"


def expected_occurrences(cluster: Cluster, logs: Logs, index: int) -> int:
    """Return how often keys of a shard occur in all good records of one pass."""
    from streamlearn.messages import BLOCK_TAILROOM_BYTES
    from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch

    low, high = cluster.specs[index].prefixes
    total = 0
    for path in logs.paths:
        text = Path(path).read_bytes()
        buffer = np.frombuffer(text + bytes(BLOCK_TAILROOM_BYTES), np.uint8).copy()
        rows = text.count(b"\n") + 1
        format = format_of(cluster.job, None)
        batch = Minibatch.of(format, rows, FEATURES_PER_RECORD_MAX + 30 * rows)
        batch.clear()
        header = text.partition(b"\n")[0] if format.first_line else None
        parser, at = format.parser(header), 0
        while (end := parser.parse(buffer, at, len(text), batch)) > at:
            at = end
        prefix = batch.keys[: batch.nnz] >> np.uint64(56)
        total += int(((prefix >= low) & (prefix < high)).sum())
        if low == 0 and cluster.job.model.intercept:
            total += batch.rows  # the constant feature
    return total
