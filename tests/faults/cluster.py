"""Two shards and some workers as processes, to be treated badly; and a log that they learn."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import recount
from daemons import Daemon, free_address
from tests.click_log import clicks, spoiled, text, written
from tests.runs import PATIENCE_SECONDS, run, settings

SHARDS = 2
# Small minibatches: a pass of some seconds, with thousands of messages to be hit.
JOB = (
    *("--format", "criteo", "--lanes", "1", "--tau", "4"),
    *settings(
        "compute.minibatch=64",
        "source.range_bytes=1048576",
        "output.snapshot_seconds=2",
        "cluster.lease_seconds=1",
    ),
)
_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Log:
    """A log, and what one process has learned of it."""

    path: Path
    records: int
    alone: Path

    @classmethod
    def made(cls, directory: Path, repeated: int) -> Log:
        """Write 5,000 records, some of them bad, as often as it is said."""
        records, _ = spoiled(clicks(5_000, 5), 200, 5)
        path = written(directory / "log.tsv", text(records) * repeated)
        alone = directory / "alone"
        ended = run("train", path, "--format", "criteo", "--out", alone, "--quiet")
        assert ended.code == 0, ended.stderr
        return cls(path, len(records) * repeated, alone)


class Cluster:
    """Shards that serve, and workers that are started one by one; killed when left.

    Parameters
    ----------
    log : Log
    out : Path
    host : str
        Where shards listen.
    flags : sequence of str
        Of all processes.
    """

    def __init__(
        self, log: Log, out: Path, host: str = "127.0.0.1", flags: Sequence[str] = ()
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.log = log
        self.out = out
        self.addresses = [f"{host}:{free_address().rpartition(':')[2]}" for _ in range(SHARDS)]
        self.shards: list[Daemon] = []
        self.workers: dict[str, Daemon] = {}
        self._running = ExitStack()
        self._pages = [free_address() for _ in range(SHARDS)]
        self._flags = [str(log.path), *JOB, *flags, "--out", str(out)]
        for index, (address, page) in enumerate(zip(self.addresses, self._pages, strict=True)):
            which = ["--index", str(index), "--of", str(SHARDS), "--listen", address]
            self.shards.append(
                self._start("shard", *self._flags, *which, "--http", page, log=f"shard-{index}")
            )
        for shard, page in zip(self.shards, self._pages, strict=True):
            shard.wait_ready(page)

    def start_worker(
        self, name: str, addresses: Sequence[str] = (), before: Sequence[str] = ()
    ) -> Daemon:
        """Start a worker, which reaches shards at other addresses than their own where some are.

        Parameters
        ----------
        before : sequence of str
            Command that runs its command.
        """
        shards = ["--shards", ",".join(addresses or self.addresses), "--name", name]
        daemon = self._start("worker", *self._flags, *shards, log=name, before=before)
        self.workers[name] = daemon
        return daemon

    def _start(self, *arguments: str, log: str, before: Sequence[str] = ()) -> Daemon:
        daemon = Daemon(arguments, self.out / f"{log}.log", before)
        return self._running.enter_context(daemon)

    def status(self, shard: int = 0) -> dict[str, Any]:
        """Return what a shard says of itself."""
        with _LOCAL.open(f"http://{self._pages[shard]}/status", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def learned(self) -> int:
        """Return how many examples the first shard has applied."""
        return int(self.status()["totals"].get("examples", 0))

    def until(self, is_so: Callable[[], bool], what: str) -> None:
        """Wait until something is so; fail where the workers end before."""
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            over = bool(self.workers) and all(map(_has_ended, self.workers.values()))
            if is_so():
                return
            assert not over, f"the workers ended before: {what}"
            time.sleep(0.05)
        raise AssertionError(f"never: {what}")

    def until_learned(self, share: float) -> None:
        """Wait until so much of the log is applied."""
        self.until(lambda: self.learned() >= share * self.log.records, f"{share:.0%} learned")

    def end(self) -> list[str]:
        """Wait for the workers, drain the shards; say what was not counted exactly once."""
        for worker in self.workers.values():
            worker.wait()
        for shard in self.shards:
            shard.process.send_signal(signal.SIGTERM)
        for shard in self.shards:
            shard.wait()
        return recount.differences(self.out, SHARDS, self.log.alone)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._running.close()


def _has_ended(daemon: Daemon) -> bool:
    """Say whether a process has ended, and leave its end to be waited for."""
    if daemon.process.returncode is not None:
        return True
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, daemon.process.pid, flags) is not None
