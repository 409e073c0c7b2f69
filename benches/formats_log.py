"""The same click log in the other formats, behind gzip and in S3, and how fast each is learned.

Question: what does a format, a compression or a store cost beside the plain Criteo file?

Method: ``svmlight``, ``libffm`` and ``jsonl`` files say what the Criteo log says; the flights file
is the shipped sample over and over (so its accuracy means nothing, and none is shown). S3 is a
bucket served on loopback by ``localbucket``. Medians of interleaved rounds, one lane but for gzip,
whose inflating has a lane of its own and which is judged by its wall time.

Budget: flights 3 M records/s of CPU; svmlight and libffm 250 MB/s, jsonl 100 MB/s of CPU; gzip on
two cores 0.9 M records/s of wall; S3 at most 1.0 CPU second a GB above the local file.
"""

from __future__ import annotations

import gzip
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from isal import igzip
from numba import njit

__all__ = ["compare", "show", "write"]

SVMLIGHT, LIBFFM, JSONL = 0, 1, 2
BLOCK_BYTES = 8 << 20
# A field of one byte, a tab and a digit, becomes at most `,"I13":5`, or ` 12:1200000:1`.
GROWTH = 10
INDEXES_PER_FIELD = 100_000
FLIGHTS_TIMES = 12  # 2.16 M records


@njit(nogil=True, cache=True)
def _number(out, at, value):
    """Write a non-negative integer in decimal; return where it ends."""
    digits = 1
    bound = 10
    while value >= bound:
        bound *= 10
        digits += 1
    for k in range(digits):
        out[at + digits - 1 - k] = 48 + value % 10
        value //= 10
    return at + digits


@njit(nogil=True, cache=True)
def _rewrite(buffer, end, out, kind):
    """Rewrite the complete Criteo lines of ``buffer[:end]``; return the bytes written and read."""
    at = 0
    wrote = 0
    done = 0
    line_wrote = 0
    while at < end:
        line_wrote = wrote
        if kind == JSONL:
            for c in b'{"label":':
                out[wrote] = c
                wrote += 1
        out[wrote] = buffer[at]
        wrote += 1
        at += 1
        field = 0
        while at < end and buffer[at] == 9:
            at += 1
            first = at
            hashed = 0
            while at < end and buffer[at] > 10:
                hashed = (hashed * 31 + buffer[at]) % 2147483647
                at += 1
            if at > first and kind == JSONL:
                out[wrote] = 44
                out[wrote + 1] = 34
                out[wrote + 2] = 73 if field < 13 else 67
                wrote = _number(out, wrote + 3, field + 1 if field < 13 else field - 12)
                out[wrote] = 34
                out[wrote + 1] = 58
                wrote += 2
                if field >= 13:
                    out[wrote] = 34
                    wrote += 1
                for k in range(first, at):
                    out[wrote] = buffer[k]
                    wrote += 1
                if field >= 13:
                    out[wrote] = 34
                    wrote += 1
            elif at > first:
                out[wrote] = 32
                wrote += 1
                if kind == LIBFFM:
                    wrote = _number(out, wrote, field)
                    out[wrote] = 58
                    wrote += 1
                if field < 13:
                    wrote = _number(out, wrote, field + 1)
                    out[wrote] = 58
                    wrote += 1
                    for k in range(first, at):
                        out[wrote] = buffer[k]
                        wrote += 1
                else:
                    index = (field + 1) * INDEXES_PER_FIELD + hashed % INDEXES_PER_FIELD
                    wrote = _number(out, wrote, index)
                    out[wrote] = 58
                    out[wrote + 1] = 49
                    wrote += 2
            field += 1
        if at >= end:
            wrote = line_wrote
            break
        if kind == JSONL:
            out[wrote] = 125
            wrote += 1
        out[wrote] = 10
        wrote += 1
        at += 1
        done = at
    return wrote, done


def write(log: Path, target: Path, kind: int) -> None:
    """Write a Criteo log in another format."""
    room = np.zeros(BLOCK_BYTES, np.uint8)
    out = np.zeros(GROWTH * BLOCK_BYTES, np.uint8)
    with log.open("rb") as raw, target.open("wb") as text:
        kept = 0
        while got := raw.readinto(room[kept:].data):
            end = kept + got
            wrote, done = _rewrite(room, end, out, kind)
            text.write(out[:wrote].data)
            kept = end - done
            room[:kept] = room[done:end].copy()


def _flights(folder: Path) -> Path:
    """Write the shipped sample over and over, and a job without crosses that reads it."""
    data = Path(__file__).parent.parent / "streamlearn" / "data"
    target = folder / "flights.csv"
    header, _, body = gzip.decompress((data / "flights_sample.csv.gz").read_bytes()).partition(
        b"\n"
    )
    with target.open("wb") as file:
        file.write(header + b"\n")
        for _ in range(FLIGHTS_TIMES):
            file.write(body)
    job = folder / "flights.toml"
    job.write_text(
        f'[source]\nuri = ["{target.name}"]\nformat = "delimited"\nheader = true\n'
        '[source.columns]\nlate = "label"\nwhen = "time"\norigin = "categorical"\n'
        'destination = "categorical"\ndistance = "number"\ndelay = "ignore"\n'
    )
    return job


def _bucket(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Serve a folder of buckets on loopback; return the process and its endpoint."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("localbucket")), "--port", str(port), str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return process, f"http://127.0.0.1:{port}"
    process.terminate()
    raise RuntimeError("localbucket did not start")


def compare(log: Path, rounds: int, train: Callable[..., dict[str, Any]]) -> list[dict[str, Any]]:
    """Learn from the log in every dress; return one row of medians each.

    Parameters
    ----------
    log : Path
        A log of :mod:`criteo_log`.
    rounds : int
    train : callable
        ``train(source, flags, env=...)``: a run in a process of its own, its report.
    """
    bucket = log.parent / "s3" / "logs"
    bucket.mkdir(parents=True, exist_ok=True)
    for name, kind in (("svmlight", SVMLIGHT), ("libffm", LIBFFM), ("jsonl", JSONL)):
        write(log, log.with_suffix(f".{name}"), kind)
    packed = log.with_name(log.name + ".gz")
    with log.open("rb") as raw, igzip.open(packed, "wb", compresslevel=2) as file:
        shutil.copyfileobj(raw, file, 1 << 22)
    stored = bucket / log.name
    if not stored.exists():
        stored.hardlink_to(log)
    server, endpoint = _bucket(bucket.parent)
    one = ("--lanes", "1")
    s3 = ("--set", f"source.endpoint_url={endpoint}", "--set", "source.region=us-east-1")
    runs = {
        "criteo": (log, ("--format", "criteo", *one)),
        "delimited (flights)": (_flights(log.parent), one),
        "svmlight": (log.with_suffix(".svmlight"), ("--format", "svmlight", *one)),
        "libffm": (log.with_suffix(".libffm"), ("--format", "libffm", *one)),
        "jsonl": (
            log.with_suffix(".jsonl"),
            ("--format", "jsonl", "--column", "label=label", *one),
        ),
        "criteo, gzip": (packed, ("--format", "criteo", "--lanes", "2")),
        "criteo, S3": (f"s3://logs/{log.name}", ("--format", "criteo", *one, *s3)),
    }
    env = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
    try:
        for number in range(rounds + 1):
            for name, (source, flags) in runs.items():
                report = train(source, flags, env=env)
                print(f"round {number}/{rounds}  {name}", file=sys.stderr)
                if number > 0:  # the first one compiled the kernels
                    results[name].append(report)
    finally:
        server.terminate()
        server.wait()
    return [_row(name, reports) for name, reports in results.items()]


def _row(name: str, reports: list[dict[str, Any]]) -> dict[str, Any]:
    cpu = statistics.median(report["cpu_seconds"] for report in reports)
    wall = statistics.median(report["seconds"] for report in reports)
    examples, size = reports[0]["examples"], reports[0]["bytes"]
    return {
        "name": name,
        "examples": examples,
        "bytes": size,
        "records_per_cpu_second": examples / cpu,
        "megabytes_per_cpu_second": size / cpu / 1e6,
        "records_per_second": examples / wall,
        "cpu_seconds_per_gigabyte": cpu / size * 1e9,
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table, and what S3 costs above the local file."""
    print("\n|  | M records/s of CPU | MB/s of CPU | M records/s of wall | CPU s a GB |")
    print("|---|" + "---:|" * 4)
    for row in rows:
        print(
            f"| {row['name']} | {row['records_per_cpu_second'] / 1e6:.2f} "
            f"| {row['megabytes_per_cpu_second']:.0f} | {row['records_per_second'] / 1e6:.2f} "
            f"| {row['cpu_seconds_per_gigabyte']:.2f} |"
        )
    cost = {row["name"]: row["cpu_seconds_per_gigabyte"] for row in rows}
    print(f"\nS3 costs {cost['criteo, S3'] - cost['criteo']:.2f} CPU s a GB above the local file")
