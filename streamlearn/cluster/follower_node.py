"""The daemon ``streamlearn follower``: a copy of a shard that can be read, as a process."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

from streamlearn import metrics
from streamlearn.cluster.daemon import Daemon, lanes, load_secrets, place_of, show_wire
from streamlearn.cluster.follower_host import FollowerHost
from streamlearn.cluster.roles import FollowerOptions
from streamlearn.cluster.shard_host import Place
from streamlearn.cluster.shard_node import spec_of, warm_up_shard
from streamlearn.compute.leftovers import few_arenas, give_back
from streamlearn.config import JobConfig, job_signature
from streamlearn.errors import ClusterError, SnapshotError, StreamlearnError
from streamlearn.metrics import Metrics
from streamlearn.net.client import Link
from streamlearn.net.connection import Peer
from streamlearn.net.counters import Counters
from streamlearn.net.limits import Limits
from streamlearn.net.security import Secrets
from streamlearn.shards.image import load_image
from streamlearn.shards.recovery import SNAPSHOTS
from streamlearn.shards.shard import Shard, ShardSpec
from streamlearn.shards.snapshot import newest

__all__ = ["FollowerNode"]

_log = logging.getLogger("streamlearn.follower")

_RETRY_SECONDS = 0.5


class FollowerNode:
    """One follower as a process.

    Parameters
    ----------
    job : JobConfig
    options : FollowerOptions
    """

    def __init__(self, job: JobConfig, options: FollowerOptions) -> None:
        self.job = job
        self.options = options
        self.host: FollowerHost | None = None
        self.compile_seconds = 0.0
        self._counters = Counters()
        self._daemon: Daemon | None = None

    async def run(self) -> dict[str, Any]:
        """Follow until a signal; return what it says of itself then.

        Raises
        ------
        StreamlearnError
            The shard refuses it for good, or it cannot listen.
        """
        few_arenas()
        secrets = load_secrets(self.job.cluster)
        daemon = self._daemon = Daemon(self.options.http, self.status, self._read)
        ways = lanes()
        place = place_of(secrets)
        try:
            async with daemon.running(_log):
                spec = await self._spec(secrets, place, daemon)
                if spec is None:
                    return self.status()
                started = time.monotonic()
                await asyncio.to_thread(warm_up_shard, spec)
                give_back()
                self.compile_seconds = time.monotonic() - started
                host = self.host = FollowerHost(
                    spec,
                    lambda: self._connect(secrets, place, spec),
                    place,
                    ways.requests,
                    secrets,
                    Limits(),
                    shard=await asyncio.to_thread(self._stored, spec),
                )
                address = await host.start(self.options.listen)
                _log.info("following shard %d of %d on %s", spec.index, spec.of, address)
                daemon.tell("following", address)
                stopped = asyncio.ensure_future(daemon.stopping.wait())
                ends: set[asyncio.Future[Any]] = {host.failed, stopped}
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                stopped.cancel()
                daemon.tell("draining")
                await host.stop()
                if host.failed.done():
                    host.failed.result()
                daemon.tell("done")
                return self.status()
        finally:
            ways.close()

    async def _spec(self, secrets: Secrets, place: Place, daemon: Daemon) -> ShardSpec | None:
        """Ask the shard which it is; wait for it where it is not there yet."""
        while not daemon.stopping.is_set():
            try:
                link = await self._link(secrets, place)
            except (ClusterError, OSError, StreamlearnError) as error:
                if isinstance(error, ClusterError):
                    raise
                daemon.tell("recovering", f"waiting for {self.options.shard}: {error}")
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            said = link.welcome
            await link.close()
            return spec_of(self.job, said.shard, said.of)
        return None

    async def _link(self, secrets: Secrets, place: Place) -> Link:
        link = await Link.open(
            self.options.shard,
            cluster=self.job.cluster.name,
            peer=Peer("follower", f"follower-{place.number() % 10**6:06d}"),
            secrets=secrets,
            network=place.network,
            limits=Limits(),
            nonce=place.nonce,
            counters=self._counters,
        )
        if link.welcome.job != job_signature(self.job):
            await link.close()
            raise ClusterError(
                f"{self.options.shard} is of job {link.welcome.job}, this job is "
                f"{job_signature(self.job)}",
                hint="start both with the same job file",
            )
        return link

    async def _connect(self, secrets: Secrets, place: Place, spec: ShardSpec) -> Link:
        link = await self._link(secrets, place)
        if (link.welcome.shard, link.welcome.of) != (spec.index, spec.of):
            await link.close()
            raise ClusterError(
                f"{self.options.shard} is now shard {link.welcome.shard} of {link.welcome.of}, "
                f"and was shard {spec.index} of {spec.of}"
            )
        return link

    def _stored(self, spec: ShardSpec) -> Shard | None:
        """Return the newest snapshot in the follower's directory, where there is one."""
        if self.options.directory is None:
            return None
        root = Path(self.options.directory) / SNAPSHOTS
        if not root.is_dir():
            return None
        reader, skipped = newest(root)
        for sentence in skipped:
            _log.warning("passed over a damaged snapshot: %s", sentence)
        if reader is None:
            return None
        try:
            with reader:
                return load_image(reader, spec)
        except SnapshotError as error:
            _log.warning("%s", error)
            return None

    def status(self) -> dict[str, Any]:
        """Return what ``/status`` shows."""
        host, daemon = self.host, self._daemon
        told: dict[str, Any] = {"role": "follower", "detail": daemon.detail if daemon else ""}
        if host is None:
            return told | {"of_shard": self.options.shard}
        return told | {
            "shard": host.spec.index,
            "of": host.spec.of,
            "of_shard": self.options.shard,
            "address": host.address,
            "has_state": host.state == "serving",
            "lsn": host.shard.lsn,
            "lag": host.lag,
            "images": host.images,
            "figures": host.service.figures(),
        }

    def _read(self, m: Metrics) -> None:
        m.set(metrics.COMPILE_SECONDS, self.compile_seconds)
        host = self.host
        if host is None:
            return
        show_wire(m, host.counters)
        m.set(metrics.PULLS, host.service.counts["pulls"])
        m.set(metrics.PULL_KEYS, host.service.counts["keys"])
        m.set(metrics.LSN, host.shard.lsn)
        m.set(metrics.FOLLOWER_LAG, host.lag)
        m.set(metrics.FEATURES, host.shard.table.features)
        m.set(metrics.TABLE_BYTES, host.shard.table.nbytes)
        m.set_embeddings(host.shard.table.arena)
