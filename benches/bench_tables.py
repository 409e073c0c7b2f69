"""Pull, push, snapshot and replay on one table of 20 million keys; pulls over loopback.

    python benches/bench_tables.py [--features N] [--rounds R] [--json OUT]
    python benches/bench_tables.py --wire [--rounds R] [--json OUT]

Questions: how many keys a second does one core pull (find, and derive the weight by FTRL) and push
(through the slots that the pull found), snapshot and replay from a log? And how many pulls of
10,000 keys x 64-byte rows a second of CPU does a shard serve, beside pyzmq with ``np.take``,
grpc.aio and Redis?

Method, tables: 20 million mixed keys; minibatches of 25,000 of them, drawn evenly and sorted, each
its own, so that rows come from memory. Contenders take turns, minibatch by minibatch. NumPy does
the same arithmetic on arrays of columns: with ``searchsorted`` as its lookup, and with row numbers
known. A snapshot is a cut, taken part by part, through ``SnapshotWriter`` to ``--directory``
(``.bench``); the disk is not waited for in CPU time. A log of pushes (values of one byte, counts)
is read from disk, decoded, found and applied by ``Shard``.

Method, wire: a server process and a client process, four pulls under way (Redis: one), the same
random keys for each; CPU time is that of both processes, from /proc. This project decodes sorted
keys, looks each up in a table of exact keys, reads its arena row, checks values at the client; the
others are sent row numbers (Redis: keys of 8 bytes) and do nothing else. Contenders take turns.
What is not installed is left out and said so (``pip install .[bench]``, ``redis-server``).

Units: M keys/s of CPU, one core; MB (10^6 bytes) of rows; pulls/s of CPU; medians.

Budget: pull 35 M keys/s, push 40 M keys/s, snapshot 500 MB/s, replay half of the push; more pulls
than pyzmq, 3 x grpc.aio, 20 x Redis MGET.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import pull_peers
from streamlearn import columns
from streamlearn.config import JobConfig
from streamlearn.protocol import Mark, Push, decode, encode
from streamlearn.shards.cut import Cut, Nothing
from streamlearn.shards.disk import RealDisk
from streamlearn.shards.log import Log
from streamlearn.shards.rules import RULES, Updater, rates
from streamlearn.shards.shard import Shard, ShardSpec
from streamlearn.shards.snapshot import SnapshotWriter
from streamlearn.shards.table import ExactTable

BATCH = 25_000
BATCHES = 60
NOTHING = Nothing()
ALPHA, BETA, L1, L2 = 0.1, 1.0, 1.0, 0.0
Batch = tuple[Any, Any, Any, Any, Any]  # keys, row numbers, slots, values, gradients


def main() -> None:
    """Measure what is asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--features", type=int, default=20_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--wire", action="store_true", help="pulls over loopback instead")
    parser.add_argument("--directory", type=Path, default=Path(".bench"), help="of files written")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    asked.directory.mkdir(exist_ok=True)
    if asked.wire:
        figures = pull_peers.compare(asked.rounds, print)
    else:
        figures = tables(asked.features, asked.rounds, asked.directory)
    if asked.json:
        figures = {"machine": platform.processor() or platform.machine(), **figures}
        asked.json.write_text(json.dumps(figures, indent=2) + "\n")


def tables(features: int, rounds: int, directory: Path) -> dict[str, Any]:
    """Measure the table and print each figure once it is known."""
    rng = np.random.default_rng(1)
    keys = rng.integers(0, 1 << 64, features, np.uint64) | np.uint64(1)
    keys = np.unique(keys)
    spec = ShardSpec(0, 1, JobConfig(), "bench", 2 * features)
    table = Shard.new_table(spec, rows=features)
    zn = rng.random((len(keys), 2), np.float32) * np.float32(4)
    fill(table, keys, zn)
    print(f"{table.features:,} keys, {table.nbytes / 1e6:,.0f} MB, {table.segments} segments")
    figures: dict[str, Any] = {"features": table.features, "table_bytes": table.nbytes}
    figures |= kernels(table, keys, zn, rng, rounds)
    del zn
    figures |= snapshot(table, directory, rounds)
    figures |= replay(Shard(spec, table), keys, rng, directory)
    share = figures["replay"] / figures["push ftrl"]
    print(f"{'':38}{share:>9.2f} x push (budget 0.5)")
    return figures


def fill(table: ExactTable, keys: Any, zn: Any) -> None:
    """Load rows as a snapshot's would be."""
    for start in range(0, len(keys), 1 << 20):
        part = slice(start, start + (1 << 20))
        rows = np.zeros((len(keys[part]), 4), np.uint64)
        rows[:, 0] = keys[part]
        rows[:, 1] = zn[part].reshape(-1).view(np.uint64)
        rows[:, 2] = 1
        table.insert_rows(rows)


def minibatches(keys: Any, rng: Any) -> list[Batch]:
    """Return minibatches of keys that the table holds."""
    out = []
    for _ in range(BATCHES):
        index = np.unique(rng.integers(0, len(keys), BATCH))
        n = len(index)
        gradients = rng.normal(size=n).astype(np.float32)
        out.append((keys[index], index, np.empty(n, np.int64), np.empty(n, np.float32), gradients))
    return out


def kernels(table: ExactTable, keys: Any, zn: Any, rng: Any, rounds: int) -> dict[str, float]:
    """Measure pull and push, and what NumPy does instead."""
    updaters = {
        rule: Updater(rule, rates(JobConfig().model, 0.9 if rule == "adam" else 0.0))
        for rule in RULES
    }
    ftrl = updaters["ftrl"]
    counts = np.ones(len(keys), np.uint32)
    ones = np.ones(BATCH, np.uint32)

    def pull(batch: Batch) -> None:
        found = table.find(batch[0])
        batch[2][:] = found
        ftrl.values(table, found, False, batch[3])

    def weights(columns: Any, out: Any) -> None:
        z, n = columns[:, 0], columns[:, 1]
        size = np.maximum(np.abs(z) - np.float32(L1), 0)
        np.divide(-np.copysign(size, z), (BETA + np.sqrt(n)) / ALPHA + L2, out=out)

    def numpy_pull(batch: Batch) -> None:
        weights(np.take(zn, np.searchsorted(keys, batch[0]), axis=0), batch[3])

    def numpy_take(batch: Batch) -> None:
        weights(np.take(zn, batch[1], axis=0), batch[3])

    def numpy_push(batch: Batch) -> None:
        index, g = batch[1], batch[4]
        rows = zn[index]
        n = rows[:, 1]
        w = np.empty(len(g), np.float32)
        weights(rows, w)
        more = n + g * g
        rows[:, 0] += g - (np.sqrt(more) - np.sqrt(n)) / np.float32(ALPHA) * w
        rows[:, 1] = more
        zn[index] = rows
        counts[index] += 1

    def push(updater: Updater) -> Callable[[Batch], None]:
        return lambda batch: updater.push(
            table, batch[2], batch[4], ones[: len(batch[2])], 1, False, NOTHING
        )

    pushes = {f"push {rule}": push(updater) for rule, updater in updaters.items()}
    contenders: dict[str, Callable[[Batch], None]] = {
        "find": lambda batch: kernel_find(table, batch),
        "pull": pull,
        **pushes,
        "NumPy: searchsorted, take": numpy_pull,
        "NumPy: take, rows known": numpy_take,
        "NumPy: push, rows known": numpy_push,
    }
    batches = minibatches(keys, rng)
    for batch in batches:
        batch[2][:] = table.find(batch[0])
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run(batches[0])
    for _, (name, run) in itertools.product(range(rounds), contenders.items()):
        if name in pushes:
            for batch in batches:  # no rule is at home in another's columns
                at = batch[2] * 4
                table.words[at + 1] = zn[batch[1]].reshape(-1).view(np.uint64)
                table.words[at + 3] = 0
        for batch in batches:
            start = time.thread_time_ns()
            run(batch)
            speeds[name].append(len(batch[0]) / (time.thread_time_ns() - start) * 1e3)
    figures = {name: statistics.median(found) for name, found in speeds.items()}
    beside = {"pull": "NumPy: searchsorted, take"} | dict.fromkeys(
        pushes, "NumPy: push, rows known"
    )
    budgets = {"pull": 35, "push ftrl": 40}
    for name, speed in figures.items():
        other = beside.get(name)
        ratio = f"{speed / figures[other]:6.1f} x {other}" if other else ""
        budget = f"(budget {budgets[name]})" if name in budgets else ""
        print(f"{name:30}{speed:>9.1f} M keys/s  {ratio} {budget}".rstrip())
    return figures


def kernel_find(table: ExactTable, batch: Batch) -> None:
    """Find the slots alone."""
    batch[2][:] = table.find(batch[0])


def snapshot(table: ExactTable, directory: Path, rounds: int) -> dict[str, float]:
    """Measure a snapshot of the table, the last of a few."""
    cpu, wall, plain = [], [], []
    for _ in range(min(rounds, 2)):
        with tempfile.TemporaryDirectory(dir=directory) as root:
            started, cpu_started = time.perf_counter(), time.process_time()
            cut = Cut(table)
            with SnapshotWriter(Path(root), 1) as writer:
                while (part := cut.take()) is not None:
                    with writer.open(f"rows.{part[0]:03}") as blob:
                        blob.write(part[1])
                path = writer.commit({"kind": "bench"})
            cut.close()
            wall.append(time.perf_counter() - started)
            cpu.append(time.process_time() - cpu_started)
            sizes = [file.stat().st_size for file in path.iterdir()]
            data = np.ones(max(sizes), np.uint8)
            cpu_started = time.process_time()
            for number, size in enumerate(sizes):
                with (Path(root) / f"plain.{number}").open("wb", buffering=0) as file:
                    file.write(data[:size].data)
                    os.fsync(file.fileno())
            plain.append(time.process_time() - cpu_started)
            size = sum(sizes)
    figures = {
        "snapshot": size / 1e6 / statistics.median(cpu),
        "snapshot wall": size / 1e6 / statistics.median(wall),
        "plain write": size / 1e6 / statistics.median(plain),
    }
    print(
        f"{'snapshot':30}{figures['snapshot']:>9.0f} MB/s of CPU, "
        f"{figures['snapshot wall']:.0f} of wall; the same bytes written and synced alone "
        f"{figures['plain write']:.0f} of CPU (budget 500)"
    )
    return figures


def pushes_of(keys: Any, rng: Any, count: int) -> Iterator[Push]:
    """Yield pushes as a worker would send them."""
    for sequence in range(1, count + 1):
        some = keys[np.unique(rng.integers(0, len(keys), BATCH))]
        column = columns.encode_keys(some, 0)
        gradients = rng.normal(size=len(some)).astype(np.float32)
        yield Push(
            table=0,
            worker="w",
            incarnation=1,
            clock=sequence,
            pull=0,
            signature=columns.signature(column),
            count=len(some),
            keys=column.data,
            coding=columns.BYTE,
            values=columns.encode_values(gradients, columns.BYTE, sequence).data,
            counts=columns.encode_counts(np.ones(len(some), np.uint32)).data,
            mark=Mark("p", "1", 0, sequence, 0, 0),
        )


def replay(shard: Shard, keys: Any, rng: Any, directory: Path) -> dict[str, float]:
    """Measure how fast a log of pushes is read and applied."""
    with tempfile.TemporaryDirectory(dir=directory) as root:
        log = Log.open(RealDisk(), root, "bench")
        count = 0
        for push in pushes_of(keys, rng, 200):
            log.append([encode(push)])
            count += push.count
        log.close()
        log = Log.open(RealDisk(), root, "bench")
        started = time.process_time()
        times = [started]
        for lsn, body in log.read(0):
            shard.apply(lsn, decode(body))  # type: ignore[arg-type]
            times.append(time.process_time())
        size = log.bytes
        log.close()
    assert shard.pushes == 200
    each = statistics.median(np.diff(times).tolist())
    figures = {"replay": count / 200 / each / 1e6, "replay seconds a GB": each * 200 / size * 1e9}
    print(
        f"{'replay of a log':30}{figures['replay']:>9.1f} M keys/s, "
        f"{figures['replay seconds a GB']:.1f} s of CPU a GB of log (budget 8)"
    )
    return figures


if __name__ == "__main__":
    main()
