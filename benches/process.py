"""Run a command in a process of its own and say what that process alone used."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Usage", "run"]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a finished process used, and what it said.

    Attributes
    ----------
    seconds, cpu_seconds : float
        Wall time; user and system time of all its threads (and of children that it waited for).
    peak_rss_bytes : int
    stdout, stderr : str
    """

    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    stdout: str
    stderr: str


def run(command: Sequence[str], env: Mapping[str, str] | None = None) -> Usage:
    """Run a command to its end.

    Parameters
    ----------
    command : sequence of str
    env : mapping, optional
        Added to this process's environment.

    Raises
    ------
    RuntimeError
        It did not exit with 0; the end of what it said.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env={**os.environ, **(env or {})},
        )
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        stdout, stderr = out.read(), err.read()
    if process.returncode != 0:
        said = (stderr or stdout).strip()[-2000:]
        raise RuntimeError(f"{' '.join(command)}: exit status {process.returncode}\n{said}")
    return Usage(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, stdout, stderr)
