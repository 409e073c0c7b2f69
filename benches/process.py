"""Run a command in a process of its own and say what that process alone used."""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

__all__ = ["Line", "Usage", "between", "peak_rss_bytes", "run", "run_stamped"]

# How the kernel numbers the clock of another process's CPU time: CPUCLOCK_SCHED, with its pid.
_ALL_THREADS = 2


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


@dataclass(frozen=True, slots=True)
class Line:
    """A line that a process said, and when.

    Attributes
    ----------
    text : str
    seconds, cpu_seconds : float
        Wall and CPU time of the process until the line was read.
    """

    text: str
    seconds: float
    cpu_seconds: float


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
        status, used = _ended(process)
        seconds = time.perf_counter() - start
        out.seek(0)
        err.seek(0)
        stdout, stderr = out.read(), err.read()
    return _usage(command, status, seconds, used, stdout, stderr)


def run_stamped(command: Sequence[str], *, stderr: bool = False) -> tuple[Usage, list[Line]]:
    """Run a command to its end; also return each line that it says with the time it came at.

    Linux only. Lines come late if the command does not flush them. The peak of memory is that up to
    the last line, and of the command alone: what `run` says is at least what this process has,
    since the system counts the memory that a process has before it becomes another program.

    Parameters
    ----------
    command : sequence of str
    stderr : bool
        Whether what it says there is meant, and not its output.

    Raises
    ------
    RuntimeError
        It did not exit with 0; the end of what it said.
    """
    lines = []
    peak = 0
    with tempfile.TemporaryFile("w+") as kept:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=kept if stderr else subprocess.PIPE,
            stderr=subprocess.PIPE if stderr else kept,
            text=True,
        )
        clock = ~process.pid << 3 | _ALL_THREADS
        stream = process.stderr if stderr else process.stdout
        assert stream is not None
        with stream:
            for text in stream:
                seconds, cpu_seconds = time.perf_counter() - start, time.clock_gettime(clock)
                lines.append(Line(text, seconds, cpu_seconds))
                peak = peak_rss_bytes(process.pid) or peak
        status, used = _ended(process)
        seconds = time.perf_counter() - start
        kept.seek(0)
        other = kept.read()
    said = "".join(line.text for line in lines)
    texts = (other, said) if stderr else (said, other)
    return replace(_usage(command, status, seconds, used, *texts), peak_rss_bytes=peak), lines


def between(lines: Sequence[Line]) -> dict[str, float]:
    """Return what a process used from one line to the next, where there are two at least.

    Returns
    -------
    dict
        Medians of ``epoch_seconds`` and ``epoch_cpu_seconds``: a line is said after each epoch.
    """
    pairs = list(pairwise(lines))
    if not pairs:
        return {}
    return {
        "epoch_seconds": median(b.seconds - a.seconds for a, b in pairs),
        "epoch_cpu_seconds": median(b.cpu_seconds - a.cpu_seconds for a, b in pairs),
    }


def peak_rss_bytes(pid: int | str = "self") -> int:
    """Return the most memory that a process has held since it began; 0 if it has ended."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _ended(process: subprocess.Popen[Any]) -> tuple[int, resource.struct_rusage]:
    """Wait for the end of a process; return its exit status and what it used."""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, used


def _usage(
    command: Sequence[str],
    status: int,
    seconds: float,
    used: resource.struct_rusage,
    stdout: str,
    stderr: str,
) -> Usage:
    if status != 0:
        said = (stderr or stdout).strip()[-2000:]
        raise RuntimeError(f"{' '.join(command)}: exit status {status}\n{said}")
    return Usage(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, stdout, stderr)
