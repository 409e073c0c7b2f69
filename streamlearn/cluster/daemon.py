"""What every daemon of a cluster has: signals that drain it, its page over HTTP, its metrics."""

from __future__ import annotations

import asyncio
import logging
import secrets as system_secrets
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import CollectorRegistry

from streamlearn import __version__, metrics
from streamlearn.cluster.shard_host import Lanes, Place
from streamlearn.compute.pool import Lane
from streamlearn.config import ClusterConfig
from streamlearn.metrics import Metrics
from streamlearn.net.counters import Counters
from streamlearn.net.http import HttpServer
from streamlearn.net.network import TcpNetwork
from streamlearn.net.security import Secrets
from streamlearn.shards.disk import REAL_DISK
from streamlearn.signals import taken

__all__ = ["Daemon", "lanes", "load_secrets", "place_of", "show_wire"]


def load_secrets(cluster: ClusterConfig) -> Secrets:
    """Return what a process of a cluster proves itself with; raises ConfigError."""
    return Secrets.load(
        token_file=cluster.token_file,
        tls_authority=cluster.authority,
        tls_certificate=cluster.certificate,
        tls_key=cluster.key,
    )


def place_of(secrets: Secrets) -> Place:
    """Return this machine: TCP, its disk, its clocks, its random numbers."""
    return Place(
        network=TcpNetwork(secrets),
        disk=REAL_DISK,
        clock=time.monotonic,
        wall=time.time,
        number=lambda: system_secrets.randbits(63),
    )


def lanes() -> Lanes:
    """Return the lanes of a shard or follower."""
    return Lanes(
        Lane("requests", time.thread_time),
        Lane("log", time.thread_time),
        Lane("snapshot", time.thread_time),
    )


class Daemon:
    """One process of a cluster, while it runs.

    Parameters
    ----------
    http : str
        HOST:PORT of its page; empty: none.
    status : callable
        What ``/status`` shows.
    read : callable
        Sets metrics before each scrape.

    Attributes
    ----------
    state, detail : str
        As ``/readyz`` and the metrics say it.
    stopped_by : str or None
        The signal that ended it.
    """

    def __init__(
        self, http: str, status: Callable[[], dict[str, Any]], read: Callable[[Metrics], None]
    ) -> None:
        self.metrics = Metrics(CollectorRegistry(), __version__)
        self.metrics.on_scrape(lambda: read(self.metrics))
        self.state = "recovering"
        self.detail = ""
        self.stopped_by: str | None = None
        self.stopping = asyncio.Event()
        self.http_address = ""
        self._http = http
        self._status = status
        self.tell("recovering")

    def tell(self, state: str, detail: str = "") -> None:
        """Enter a state."""
        self.state, self.detail = state, detail
        self.metrics.set_state(state)

    @property
    def ready(self) -> tuple[bool, str]:
        """Whether requests would be answered."""
        return self.state in {"serving", "learning", "following"}, self.detail or self.state

    @asynccontextmanager
    async def running(self, log: logging.Logger) -> AsyncIterator[None]:
        """Serve the page and take signals: the first drains, the second ends the process."""
        server: HttpServer | None = None
        if self._http:
            server = HttpServer(
                self._http,
                registry=self.metrics.registry,
                status=lambda: {"version": __version__, "state": self.state} | self._status(),
                ready=lambda: self.ready,
            )
            self.http_address = await server.start()
            log.info("listening on http://%s", self.http_address)
        task = asyncio.current_task()
        assert task is not None

        def drain(number: signal.Signals) -> None:
            log.info("draining on %s", number.name)
            self.stopped_by = number.name
            self.stopping.set()

        try:
            with taken(drain, lambda _: task.cancel()):
                yield
        finally:
            if server is not None:
                await server.stop()


def show_wire(m: Metrics, counters: Counters) -> None:
    """Set the metrics of connections."""
    for kind, count in list(counters.requests.items()):
        m.set(metrics.REQUESTS, count, kind)
    for reason, count in list(counters.faults.items()):
        m.set(metrics.FAULTS, count, reason)
    for direction, form, count in (
        ("in", "sent", counters.bytes_in),
        ("in", "plain", counters.plain_bytes_in),
        ("out", "sent", counters.bytes_out),
        ("out", "plain", counters.plain_bytes_out),
    ):
        m.set(metrics.WIRE_BYTES, count, direction, form)
