"""The daemon ``streamlearn shard``: one shard as a process.

Drain: connections -> log -> last snapshot -> its copy elsewhere -> HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from streamlearn import columns, metrics, topic_columns
from streamlearn.cluster.daemon import Daemon, lanes, load_secrets, place_of, show_wire
from streamlearn.cluster.roles import ShardOptions
from streamlearn.cluster.shard_host import ShardHost
from streamlearn.compute.leftovers import few_arenas, give_back
from streamlearn.config import JobConfig, LdaConfig, MfConfig, job_signature, loss_of
from streamlearn.errors import StreamlearnError
from streamlearn.metrics import Metrics
from streamlearn.net.limits import Limits
from streamlearn.online.losses import validation_of
from streamlearn.protocol import MARKS, Choose, Mark, Push, PushFactors, PushTopics
from streamlearn.shards.cut import Cut
from streamlearn.shards.directory import DirectoryLock
from streamlearn.shards.recovery import SNAPSHOTS
from streamlearn.shards.shard import Shard, ShardSpec
from streamlearn.shards.snapshot import verify
from streamlearn.shards.topics import FIT_FROM
from streamlearn.tables import embeddings_bytes_max, features_max

if TYPE_CHECKING:
    from streamlearn.net.mirror import Mirror

__all__ = ["ShardNode", "spec_of", "warm_up_shard"]

_log = logging.getLogger("streamlearn.shard")


def spec_of(job: JobConfig, index: int, of: int) -> ShardSpec:
    """Return what a shard of a job is."""
    return ShardSpec(
        index,
        of,
        job,
        job_signature(job),
        max(1, features_max(job) // of),
        embeddings_bytes_max(job) // of,
    )


def warm_up_shard(spec: ShardSpec) -> None:
    """Compile what a shard runs, on a small one that is thrown away."""
    columns.warm_up()
    if isinstance(spec.job.model, LdaConfig):
        _warm_up_topics(spec, spec.job.model)
        return
    shard = Shard(replace(spec, features_max=1 << 16))
    keys = np.arange(64, dtype=np.uint64) * np.uint64(4) + np.uint64(spec.low + 1)
    column = columns.encode_keys(keys, spec.low)
    values = columns.encode_values(np.ones(64, np.float32), columns.FLOAT32)
    counts = columns.encode_counts(np.ones(64, np.uint32))
    for sequence in (1, 2):
        push = Push(
            0, "", 0, 0, 0, 0, 64, column.data, columns.FLOAT32, values.data, counts.data,
            MARKS[loss_of(spec.job.model)]("", "", 0, sequence, 0, 0),
        )  # fmt: skip
        if isinstance(spec.job.model, MfConfig):
            shares = memoryview(bytes(128))
            push = PushFactors(**msgspec.structs.asdict(push), shares=shares)
        located = shard.locate(keys)
        shard.vectors(located, shard.values(located), columns.FLOAT32)
        shard.apply(sequence, push, located)
        shard.keeper = Cut(shard.table)
    _lay_out_anew(shard)


def _warm_up_topics(spec: ShardSpec, model: LdaConfig) -> None:
    """Compile what a shard of a topic model runs."""
    once = msgspec.structs.replace(model, min_df=1, max_df=1.0)
    job = msgspec.structs.replace(spec.job, model=once)
    shard = Shard(replace(spec, job=job, features_max=1 << 16))
    topics = shard.topics
    assert topics is not None
    keys = np.arange(64, dtype=np.uint64) * np.uint64(4) + np.uint64(spec.low + 1)
    column = columns.encode_keys(keys, spec.low)
    counts = columns.encode_counts(np.ones(64, np.uint32)).data
    lengths = columns.encode_lengths(np.full(64, model.topics), (model.topics,)).data
    drawn = topic_columns.encode_topics(np.zeros(64, np.uint16), model.topics).data
    nothing = memoryview(b"")
    head = (0, "", 0, 0, 0, 0, 64, column.data, columns.FLOAT32, nothing, counts)
    counted = Mark("", "", 0, 1, 0, 0, done=True, examples=1)
    shard.apply(1, PushTopics(*head, counted, documents=counts))
    if topics.online:
        shard.apply(
            2, PushTopics(*head, Mark("a", "", 0, 1, 0, 0), lengths, nothing, counts, drawn)
        )
    else:
        shard.apply(2, Choose())
    shard.keeper = Cut(shard.table)
    epoch = int(not topics.online)
    for sequence in (1, 2):
        moved = Mark("" if epoch else "b", "", epoch, sequence, 0, 0)
        told = (lengths, nothing, nothing if epoch else counts, drawn)
        shard.apply(2 + sequence, PushTopics(*head, moved, *told))
    topics.read(shard.locate(keys).slots, "", FIT_FROM, 1, 1)
    _lay_out_anew(shard)


def _lay_out_anew(shard: Shard) -> None:
    shard.table.grow(0)
    arena = shard.table.arena
    for segment in shard.table.key_order():
        rows = shard.table.rows(segment)
        vectors = arena.take(rows) if arena is not None else None
        Shard.new_table(shard.spec, rows=64).insert_rows(rows, vectors)
    shard.digest()


class ShardNode:
    """One shard as a process.

    Parameters
    ----------
    job : JobConfig
    options : ShardOptions
    """

    def __init__(self, job: JobConfig, options: ShardOptions) -> None:
        self.job = job
        self.options = options
        self.spec = spec_of(job, options.index, options.of)
        self.host: ShardHost | None = None
        self.compile_seconds = 0.0
        self._sums = validation_of(job.model).totals_type._fields
        self._daemon: Daemon | None = None
        self._uploads: set[asyncio.Task[None]] = set()

    async def run(self) -> dict[str, Any]:
        """Serve until a signal or a failure; return what it says of itself then.

        Raises
        ------
        StreamlearnError
            It cannot recover, listen or go on.
        """
        few_arenas()
        secrets = load_secrets(self.job.cluster)
        daemon = self._daemon = Daemon(self.options.http, self.status, self._read)
        directory = Path(self.options.directory)
        lock = DirectoryLock(directory)
        ways = lanes()
        mirror = self._mirror()
        try:
            async with daemon.running(_log):
                started = time.monotonic()
                await asyncio.to_thread(warm_up_shard, self.spec)
                give_back()
                self.compile_seconds = time.monotonic() - started
                if mirror is not None:
                    await self._fetch(mirror, directory)
                host = self.host = ShardHost(
                    self.spec,
                    str(directory),
                    place_of(secrets),
                    ways,
                    secrets,
                    Limits(),
                    accept_loss=self.options.accept_loss,
                    on_snapshot=lambda path: self._upload(mirror, path),
                )
                address = await host.start(self.options.listen)
                assert host.recovered is not None
                _log.info(
                    "shard %d of %d on %s: %d features, record %d (%d from the log)",
                    self.spec.index, self.spec.of, address, host.recovered.shard.table.features,
                    host.recovered.shard.lsn, host.recovered.replayed,
                )  # fmt: skip
                daemon.tell("serving", address)
                failed = asyncio.ensure_future(host.ended())
                stopped = asyncio.ensure_future(daemon.stopping.wait())
                await asyncio.wait({failed, stopped}, return_when=asyncio.FIRST_COMPLETED)
                stopped.cancel()
                if failed.done() and not daemon.stopping.is_set():
                    daemon.tell("failed")
                    await host.abandon()
                    failed.result()
                failed.cancel()
                daemon.tell("draining")
                await host.drain()
                if self._uploads:
                    await asyncio.gather(*self._uploads)
                daemon.tell("done")
                return self.status()
        finally:
            if mirror is not None:
                await mirror.aclose()
            ways.close()
            lock.release()

    # ---------------------------------------------------------------- snapshots elsewhere

    def _mirror(self) -> Mirror | None:
        uri = self.job.tables.snapshots
        if not uri:
            return None
        from streamlearn.net.mirror import Mirror  # brings the S3 client

        where = f"{uri.rstrip('/')}/{self.spec.index:03d}-of-{self.spec.of:03d}"
        return Mirror.open(where, self.job.source)

    async def _fetch(self, mirror: Mirror, directory: Path) -> None:
        """Begin with the newest snapshot that is kept elsewhere, where there is none here."""
        root = directory / SNAPSHOTS
        if root.is_dir() and any(root.iterdir()):
            return
        fetched = await mirror.fetch_newest(root, check=verify)
        if fetched is not None:
            _log.info("fetched snapshot %s", fetched)

    def _upload(self, mirror: Mirror | None, path: str) -> None:
        if mirror is None:
            return

        async def upload() -> None:
            try:
                await mirror.upload(Path(path), keep=self.job.output.snapshots_kept)
            except StreamlearnError as error:
                _log.error("a snapshot was not copied: %s", error)

        task = asyncio.get_running_loop().create_task(upload(), name="upload")
        self._uploads.add(task)
        task.add_done_callback(self._uploads.discard)

    # ---------------------------------------------------------------- what it says

    def status(self) -> dict[str, Any]:
        """Return what ``/status`` shows."""
        host, daemon = self.host, self._daemon
        told: dict[str, Any] = {
            "role": "shard",
            "shard": self.spec.index,
            "of": self.spec.of,
            "address": host.address if host else "",
            "detail": daemon.detail if daemon else "",
        }
        if host is None or host.service is None:
            return told
        shard = host.service.shard
        marks = list(shard.marks.values())
        sums = ("bad_records", "subsampled", "bytes", "stored_bytes", *self._sums)
        totals = {name: sum(getattr(mark, name) for mark in marks) for name in sums if marks}
        return told | {
            "lsn": shard.lsn,
            "figures": host.service.figures(),
            "totals": totals,
            "clocks": {name: member.clock for name, member in shard.clocks.members.items()},
            "marks": len(shard.marks),
            "snapshot": host.snapshot,
            "recovery": {
                "seconds": host.recovery_seconds,
                "replayed": host.recovered.replayed if host.recovered else 0,
                "notes": host.recovered.notes if host.recovered else [],
            },
        }

    def _read(self, m: Metrics) -> None:
        host = self.host
        m.set(metrics.COMPILE_SECONDS, self.compile_seconds)
        if host is None or host.service is None:
            return
        show_wire(m, host.counters)
        service, shard = host.service, host.service.shard
        roles: dict[str, int] = {}
        for session in list(host.sessions):
            roles[session.peer.role] = roles.get(session.peer.role, 0) + 1
        for role in ("worker", "follower", "reader", "admin"):
            m.set(metrics.SESSIONS, roles.get(role, 0), role)
        counts, table = service.counts, shard.table
        m.set(metrics.PULLS, counts["pulls"])
        m.set(metrics.PULL_KEYS, counts["keys"])
        m.set(metrics.PULL_WAIT_SECONDS, counts["pull_wait_seconds"])
        m.set(metrics.PULLS_PARKED, service.parked)
        m.set(metrics.PUSHES, counts["pushes"])
        m.set(metrics.PUSH_KEYS, counts["pushed_keys"])
        m.set(metrics.DUPLICATES, counts["duplicates"])
        m.set(metrics.KEY_MISSES, counts["misses"])
        slowest = shard.clocks.slowest
        m.set(metrics.CLOCK, slowest if slowest is not None else shard.clocks.highest)
        m.set(metrics.STALENESS, service.figures()["staleness"])
        m.set(metrics.MARKS_DONE, sum(mark.done for mark in list(shard.marks.values())))
        m.set(metrics.LSN, shard.lsn)
        m.set(metrics.DURABLE_LSN, host.durable_lsn)
        log = host.recovered.log if host.recovered else None
        if log is not None:
            m.set(metrics.LOG_BYTES, log.bytes)
        m.set(metrics.LOG_APPENDED_BYTES, counts["log_bytes"])
        m.set(metrics.FSYNCS, host.syncs)
        m.set(metrics.FSYNC_SECONDS, host.sync_seconds)
        m.set(metrics.RECOVERY_SECONDS, host.recovery_seconds)
        m.set(metrics.FEATURES, table.features)
        m.set(metrics.FEATURES_MAX, table.features_max)
        m.set(metrics.CAPACITY, table.capacity)
        m.set(metrics.TABLE_BYTES, table.nbytes)
        m.set(metrics.GROWTHS, table.growths)
        m.set(metrics.EVICTIONS, table.evicted)
        m.set_embeddings(table.arena)
        m.set(metrics.SNAPSHOTS, host.snapshots)
        m.set(metrics.SNAPSHOT_FAILURES, host.snapshot_failures)
        if host.snapshot:
            m.set(metrics.SNAPSHOT_TIME, host.snapshot["created_seconds"])
            m.set(metrics.SNAPSHOT_BYTES, host.snapshot["bytes"])
