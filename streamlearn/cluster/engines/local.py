"""Processes of this machine, of this very interpreter, that end when this one does.

What a process logs stands in ``logs/NAME.log`` of the output directory; its warnings are read from
there, so that a process never waits for whoever reads.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from streamlearn.cluster.engine import Ended, Told
from streamlearn.config import ENVIRONMENT_PREFIX, JobConfig
from streamlearn.errors import ResourceError
from streamlearn.net.ports import free_port, is_free

__all__ = ["LOGS", "LocalEngine"]

LOGS: Final = "logs"
HOST: Final = "127.0.0.1"
# A log that is larger when its process starts is put aside; the one put aside before is gone.
_LOG_BYTES_MAX: Final = 16 << 20
# How much of a log is looked at, for an error, or at once for warnings.
_TAIL_BYTES: Final = 1 << 16
_LEVELS_TOLD: Final = frozenset({"warning", "error", "critical"})


class _Line(msgspec.Struct):
    """What matters of a line of a log (``logs.JsonFormatter``)."""

    level: str = ""
    message: str = ""


class LocalEngine:
    """Runs processes of this machine.

    Parameters
    ----------
    directory : Path
        Has ``logs/``.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._watching: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Queue[Ended] = asyncio.Queue()
        self._ports: set[int] = set()
        self._read: dict[str, int] = {}  # bytes of each log that have been looked at
        self._peaks: dict[str, int] = {}

    def place(self, name: str, before: Sequence[str], ports: int) -> list[str]:
        """Return free addresses of the loopback interface, see :class:`..engine.Engine`.

        Raises
        ------
        ResourceError
            No port is free.
        """
        placed = []
        for number in range(ports):
            address = before[number] if number < len(before) else ""
            host, _, digits = address.rpartition(":")
            port = int(digits) if digits.isdecimal() else 0
            if host != HOST or port in self._ports or not is_free(HOST, port):
                port = free_port(HOST, f"{self._directory.resolve()} {name} {number}", self._ports)
            self._ports.add(port)
            placed.append(f"{HOST}:{port}")
        return placed

    async def start(self, name: str, arguments: Sequence[str]) -> None:
        """Start a process; see :class:`~streamlearn.cluster.engine.Engine`."""
        assert name not in self._processes, f"{name} is running"
        try:
            file = self._log(name)
            try:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "streamlearn.cluster.engines.child", str(os.getpid())),
                    *arguments,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    env=_environment(),
                    start_new_session=True,  # Ctrl-C is for the one who drains them in order
                )
            finally:
                os.close(file)
        except OSError as error:
            raise ResourceError(f"{name} cannot be started", cause=error.strerror) from error
        self._processes[name] = process
        task = asyncio.get_running_loop().create_task(self._wait(name, process), name=name)
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)

    async def watch(self) -> Ended:
        """Wait for the next end."""
        return await self._ended.get()

    def stop(self, name: str, *, at_once: bool = False) -> None:
        """Send SIGTERM, or SIGKILL."""
        process = self._processes.get(name)
        if process is not None:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL if at_once else signal.SIGTERM)

    def told(self) -> list[Told]:
        """Return the warnings and errors that stand in logs since the last call."""
        found = []
        for name in list(self._read):
            for line in self._new_lines(name):
                with suppress(msgspec.DecodeError):
                    said = msgspec.json.decode(line, type=_Line)
                    if said.level in _LEVELS_TOLD:
                        found.append(Told(name, said.level, said.message))
        return found

    @property
    def peak_rss_bytes(self) -> int:
        """Sum of the most memory that each took, as it is known now."""
        for name, process in self._processes.items():
            self._peaks[name] = max(self._peaks.get(name, 0), _peak_bytes(process.pid))
        return sum(self._peaks.values())

    def pid(self, name: str) -> int | None:
        """Return the process id; None where it is not running."""
        process = self._processes.get(name)
        return process.pid if process is not None else None

    async def aclose(self) -> None:
        """Kill what is running, and wait until it has ended."""
        for name in list(self._processes):
            self.stop(name, at_once=True)
        while self._watching:
            await asyncio.wait(list(self._watching))

    async def _wait(self, name: str, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        del self._processes[name]
        self._ended.put_nowait(Ended(name, code, self._error(name) if code > 0 else ""))

    def _log(self, name: str) -> int:
        """Open a process's log to append; what it says from here on is looked at."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            if path.stat().st_size > _LOG_BYTES_MAX:
                path.replace(path.with_suffix(".log.1"))
                self._read[name] = 0
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._read.setdefault(name, os.fstat(file).st_size)
        return file

    def _new_lines(self, name: str) -> list[bytes]:
        """Return the whole lines of a log that were not looked at yet, some at a time."""
        at = self._read[name]
        data = _read(self._path(name), at, _TAIL_BYTES)
        end = data.rfind(b"\n") + 1
        if not end and len(data) == _TAIL_BYTES:
            end = len(data)  # a line that long is none of ours
        self._read[name] = at + end
        return data[:end].splitlines()

    def _error(self, name: str) -> str:
        """Return the error that stands at the end of a log: what the command line printed."""
        path = self._path(name)
        size = path.stat().st_size if path.exists() else 0
        text = _read(path, max(0, size - _TAIL_BYTES), _TAIL_BYTES).decode(errors="replace")
        before, mark, said = ("\n" + text).rpartition("\nerror: ")
        return said.strip() if mark else _last_line(before)

    def _path(self, name: str) -> Path:
        return self._directory / LOGS / f"{name}.log"


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:1000] if lines else ""


def _read(path: Path, offset: int, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)
    except OSError:
        return b""


def _peak_bytes(pid: int) -> int:
    """Return the most memory that a process has taken; 0 where it has ended."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _environment() -> dict[str, str]:
    """Return the environment without settings: those are in the job that is handed on."""
    sections = msgspec.structs.fields(JobConfig)
    ours = tuple(f"{ENVIRONMENT_PREFIX}{section.name}_".upper() for section in sections)
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}
