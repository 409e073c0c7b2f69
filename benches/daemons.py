"""Shards and workers as processes of this machine, and the CPU time that each used while learning.

What a process uses before it is ready (its interpreter, compiled kernels, recovery) is left out:
a shard's time is read from ``/proc`` when it is ready, when the last worker has ended and when it
has drained; a worker's is what its report says.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Daemon", "Run", "free_address", "learn"]

_READY_SECONDS_MAX = 120.0
_WORK_SECONDS_MAX = 600.0
_TICK = os.sysconf("SC_CLK_TCK")
_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_address() -> str:
    """Return HOST:PORT of the loopback interface that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


class Daemon:
    """``streamlearn ARGUMENTS...`` while it runs; killed when left.

    Parameters
    ----------
    arguments : sequence of str
    log : Path
        Where it says what it says.
    before : sequence of str
        A command that runs its command.
    """

    def __init__(self, arguments: Sequence[str], log: Path, before: Sequence[str] = ()) -> None:
        self.arguments = list(arguments)
        self.log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [*before, sys.executable, "-m", "streamlearn", *arguments, "--json-logs"],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    @property
    def cpu_seconds(self) -> float:
        """User and system time of all its threads until now, to a tick of the system's clock."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / _TICK

    def wait_ready(self, http: str) -> None:
        """Wait until it answers requests.

        Raises
        ------
        RuntimeError
            It ended before, or is not ready in time.
        """
        end = time.monotonic() + _READY_SECONDS_MAX
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                with _LOCAL.open(f"http://{http}/readyz", timeout=1) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                time.sleep(0.02)
        raise RuntimeError(f"{self.arguments[0]} is not ready\n{self._said()}")

    def wait(self) -> float:
        """Wait for its end; return the CPU seconds of its whole life.

        Raises
        ------
        RuntimeError
            It did not end with 0, or not in time.
        """
        end = time.monotonic() + _WORK_SECONDS_MAX
        while True:
            pid, status, used = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > end:
                raise RuntimeError(f"{self.arguments[0]} does not end\n{self._said()}")
            time.sleep(0.01)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        if self.process.returncode:
            raise RuntimeError(
                f"{self.arguments[0]}: exit status {self.process.returncode}\n{self._said()}"
            )
        return used.ru_utime + used.ru_stime

    def drain(self) -> float:
        """Have it drain; return as :meth:`wait`."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def _said(self) -> str:
        return self.log.read_text(errors="replace").strip()[-2000:]

    def __enter__(self) -> Daemon:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.returncode is None:
            self.process.kill()
            self.process.wait()


@dataclass(frozen=True, slots=True)
class Run:
    """What shards and workers used to learn a log.

    Attributes
    ----------
    seconds : float
        From the first worker's first claim to the last worker's end.
    worker_seconds, shard_seconds, drain_seconds : float
        CPU time: of all workers, of all shards until the workers have ended, and of the shards'
        last snapshots.
    reports : list of dict
        Of the workers.
    status : list of dict
        What each shard said when the workers had ended.
    """

    seconds: float
    worker_seconds: float
    shard_seconds: float
    drain_seconds: float
    reports: list[dict[str, Any]]
    status: list[dict[str, Any]]

    @property
    def examples(self) -> int:
        """Examples that the shards count."""
        return int(self.status[0]["totals"]["examples"])

    @property
    def wire_bytes(self) -> int:
        """Bytes that went over the connections of workers, both ways."""
        return sum(int(r["wire_bytes_in"] + r["wire_bytes_out"]) for r in self.reports)

    @property
    def logloss(self) -> float:
        """Progressive, of all examples as the shards count them."""
        totals = self.status[0]["totals"]
        return float(totals["loss"] / totals["weight"])


def learn(arguments: Sequence[str], out: Path, *, shards: int = 1, workers: int = 1) -> Run:
    """Learn with shards and workers on loopback.

    Parameters
    ----------
    arguments : sequence of str
        Source and flags that all of them are given; not ``--out`` and ``--shards``.
    out : Path
        Directory of this run alone.
    """
    listen = [free_address() for _ in range(shards)]
    pages = [free_address() for _ in range(shards)]
    common = [*arguments, "--out", str(out), "--shards", ",".join(listen)]
    with ExitStack() as running:
        held = []
        for index, page in enumerate(pages):
            which = ["--index", str(index), "--of", str(shards), "--http", page]
            daemon = Daemon(["shard", *common, *which], out / f"shard-{index}.log")
            held.append(running.enter_context(daemon))
        for daemon, page in zip(held, pages, strict=True):
            daemon.wait_ready(page)
        before = [daemon.cpu_seconds for daemon in held]
        learning = [
            running.enter_context(Daemon(["worker", *common, "--name", name], out / f"{name}.log"))
            for name in (f"worker-{number}" for number in range(workers))
        ]
        for daemon in learning:
            daemon.wait()
        after = [daemon.cpu_seconds for daemon in held]
        status = [_status(page) for page in pages]
        ends = [daemon.drain() for daemon in held]
    reports = [
        json.loads((out / "workers" / f"worker-{number}" / "report.json").read_text())
        for number in range(workers)
    ]
    return Run(
        seconds=max(report["seconds"] - report["compile_seconds"] for report in reports),
        worker_seconds=sum(report["cpu_seconds"] for report in reports),
        shard_seconds=sum(after) - sum(before),
        drain_seconds=sum(ends) - sum(after),
        reports=reports,
        status=status,
    )


def _status(page: str) -> dict[str, Any]:
    with _LOCAL.open(f"http://{page}/status", timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
    return found
