"""Click log to model over shards: what the wire, the log on disk and staleness cost.

    python benches/bench_cluster.py [--records N] [--rounds R] [--only NAME]... [--json OUT]

Question: how many records a second of CPU do a worker and a shard turn from raw text into an
updated model, over sockets and with every push on disk before it is acknowledged; what does that
cost beside one process, and beside shards in one process; and what do several workers, each reading
weights that lag, cost in accuracy?

Method: the log is made by ``criteo_log.py`` (kept in ``.bench/``) and read once, so that it stands
in the page cache. Shards and workers are processes of their own on the loopback interface. Rounds
are interleaved, so that a noisy neighbour meets all cases; medians are shown. Kernels are compiled
by a first run on a small log that is not shown. All run FTRL-proximal with the settings of
``bench_ctr.py``; a case's name is `workers + shards, minibatch, durability`. For accuracy, `up`
learns the log with every pair of staleness and window, gathers the model, and `evaluate` scores a
log of another seed and the same truth; progressive logloss is of the log itself, as the shards'
marks count it.

Units: CPU seconds are user and system time of all threads, of workers from the first byte read to
the last push acknowledged, of shards from ready to then; interpreters, loading of compiled kernels
and the last snapshot (column "drain") are apart. Of one process (`train`) it is the same, with the
model written. Wire is all bytes over the worker's connections, both ways, over those of the raw
log. Megabytes are 10^6 bytes of the raw log. Loglosses are natural.

Budget (machine of docs/performance.md): one worker and one shard at least 700 k records a CPU
second over both at minibatch 4096 and 8192; wire at most 25 % of raw; durability log at most 25 %
dearer than snapshot. In one process, worker and shard lanes: at least 1.0 M records a CPU second,
and 2 + 2 lanes on two cores at least 1.7 x the speed of 1 + 1 on one core. Logloss at tau 4 with
two workers and two shards within 0.001 of one worker at tau 0.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_ctr
import criteo_log
import daemons
import process
from bench_ctr import BENCH, FM_RULE, RULE

HELD_OUT_RECORDS = 500_000
HELD_OUT_SEED = 2
# So that two workers have something each for most of a log: ranges of at least this many bytes, an
# eighth of the log each.
RANGE_BYTES_MIN = 1 << 20
RANGES = 8

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One of the runs to compare.

    Attributes
    ----------
    name : str
    run : callable
        Learns a log; returns figures.
    """

    name: str
    run: Callable[[Path], Result]


def _rule(model: str = "lr") -> list[str]:
    rule = FM_RULE if model == "fm" else RULE
    sets = [part for name, value in rule.items() for part in ("--set", f"model.{name}={value}")]
    return ["--model", model, *sets]


def cluster(log: Path, *flags: str, model: str = "lr") -> Result:
    """Learn with one worker and one shard; return what they used."""
    with tempfile.TemporaryDirectory(dir=BENCH) as out:
        common = [str(log), "--format", "criteo", *_rule(model), "--lanes", "1"]
        ran = daemons.learn([*common, *flags], Path(out))
    return {
        "examples": ran.examples,
        "cpu_seconds": ran.worker_seconds + ran.shard_seconds,
        "worker_seconds": ran.worker_seconds,
        "shard_seconds": ran.shard_seconds,
        "drain_seconds": ran.drain_seconds,
        "seconds": ran.seconds,
        "wire_share": ran.wire_bytes / log.stat().st_size,
        "logloss": ran.logloss,
    }


def embedded(log: Path, *flags: str, cores: int = 0) -> Result:
    """Learn in one process, on so many cores; 0: all."""
    with _on_cores(cores):
        report = bench_ctr.train(log, ("--format", "criteo", *flags))
    return {name: report[name] for name in ("examples", "cpu_seconds", "seconds", "logloss")}


@contextmanager
def _on_cores(count: int) -> Iterator[None]:
    """Have processes that are started run on the first cores of those that this one may use."""
    before = os.sched_getaffinity(0)
    if count:
        os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _cluster_case(minibatch: int, durability: str, model: str = "lr") -> Case:
    flags = (
        *("--set", f"compute.minibatch={minibatch}"),
        *("--set", f"tables.durability={durability}"),
    )
    name = f"1 + 1, {minibatch}, {durability}" + ("" if model == "lr" else ", fm16")
    return Case(name, lambda log: cluster(log, *flags, model=model))


def _lanes_case(workers: int, shards: int, cores: int) -> Case:
    flags = ("--lanes", str(workers + shards), "--set", f"compute.shard_lanes={shards}")
    return Case(
        f"lanes {workers} + {shards}, {cores} core{'s' if cores > 1 else ''}",
        lambda log: embedded(log, *flags, cores=cores),
    )


ONE_LANES = _lanes_case(1, 1, 1)
TWO_LANES = _lanes_case(2, 2, 2)
CASES = (
    Case("train, one lane", lambda log: embedded(log, "--lanes", "1")),
    _cluster_case(4096, "log"),
    _cluster_case(4096, "snapshot"),
    _cluster_case(8192, "log"),
    _cluster_case(8192, "snapshot"),
    _cluster_case(4096, "log", "fm"),
    _cluster_case(8192, "log", "fm"),
    ONE_LANES,
    TWO_LANES,
)
# Workers, shards, tau, minibatches under way.
ALONE = (1, 1, 0, 1)
ACCURACY = (
    ALONE,
    (2, 2, 0, 1),
    (2, 2, 1, 1),
    (2, 2, 1, 2),
    (2, 2, 4, 1),
    (2, 2, 4, 2),
    (2, 2, 4, 3),
)
TAU = "accuracy"


def compare(log: Path, warm: Path, rounds: int, cases: list[Case]) -> list[Result]:
    """Run the cases round by round; return one row of medians each."""
    known = json.loads(log.with_name(log.name + ".json").read_text())
    for case in cases:
        case.run(warm)
    results: dict[str, list[Result]] = {case.name: [] for case in cases}
    for number in range(rounds):
        for case in cases:
            result = case.run(log)
            if result["examples"] != known["records"]:
                raise RuntimeError(
                    f"{case.name}: learned {result['examples']} of {known['records']} records"
                )
            results[case.name].append(result)
            speed = known["records"] / result["cpu_seconds"] / 1e6
            print(
                f"round {number + 1}/{rounds}  {case.name:24} {speed:.2f} M records/s of CPU",
                file=sys.stderr,
            )
    return [_row(name, runs, known) for name, runs in results.items()]


def _row(name: str, runs: list[Result], known: dict[str, Any]) -> Result:
    """Return the medians of one case's runs, and its rates."""
    medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    return {
        "name": name,
        **medians,
        "records_per_cpu_second": known["records"] / medians["cpu_seconds"],
        "megabytes_per_cpu_second": known["bytes"] / medians["cpu_seconds"] / 1e6,
        "records_per_second": known["records"] / medians["seconds"],
        "cpu_seconds_of_rounds": [run["cpu_seconds"] for run in runs],
    }


def show(rows: list[Result], known: dict[str, Any]) -> None:
    """Print the table of speeds, and the ratios that budgets name."""
    print(
        "\n|  | M records/s of CPU | MB/s of CPU | M records/s of wall | CPU s | worker s "
        "| shard s | drain s | wire / raw | logloss |"
    )
    print("|---|" + "---:|" * 9)
    for row in rows:
        apart = " | ".join(
            f"{row[key]:.2f}" if key in row else ""
            for key in ("worker_seconds", "shard_seconds", "drain_seconds")
        )
        wire = f"{row['wire_share']:.1%}" if "wire_share" in row else ""
        print(
            f"| {row['name']} | {row['records_per_cpu_second'] / 1e6:.2f} "
            f"| {row['megabytes_per_cpu_second']:.0f} | {row['records_per_second'] / 1e6:.2f} "
            f"| {row['cpu_seconds']:.2f} | {apart} | {wire} | {row['logloss']:.4f} |"
        )
    by_name = {row["name"]: row for row in rows}
    for minibatch in (4096, 8192):
        kept, lost = (by_name.get(f"1 + 1, {minibatch}, {how}") for how in ("log", "snapshot"))
        if kept and lost:
            dearer = kept["cpu_seconds"] / lost["cpu_seconds"] - 1
            print(f"minibatch {minibatch}: durability log takes {dearer:+.1%} CPU")
    one, two = by_name.get(ONE_LANES.name), by_name.get(TWO_LANES.name)
    if one and two:
        print(f"lanes: 2 + 2 are {one['seconds'] / two['seconds']:.2f} x as fast as 1 + 1")


# ---------------------------------------------------------------- accuracy


def stale(log: Path, held_out: Path, way: tuple[int, int, int, int]) -> Result:
    """Learn with `up`; return its loglosses on the log and on one that it has not seen."""
    workers, shards, tau, window = way
    size = max(RANGE_BYTES_MIN, log.stat().st_size // RANGES)
    ours = [sys.executable, "-m", "streamlearn"]
    with tempfile.TemporaryDirectory(dir=BENCH) as out:
        learn = [
            *(*ours, "up", str(log), "--format", "criteo", *_rule()),
            *("--workers", str(workers), "--shards", str(shards), "--lanes", "1"),
            *("--tau", str(tau), "--in-flight", str(window), "--out", out, "--json"),
            *("--set", f"source.range_bytes={size}", "--set", "http.listen=", "--quiet"),
        ]
        report = json.loads(process.run(learn).stdout)
        score = [*ours, "evaluate", out, str(held_out), "--format", "criteo", "--json", "--quiet"]
        judged = json.loads(process.run(score).stdout)
    return {
        "workers": workers,
        "shards": shards,
        "tau": tau,
        "window": window,
        "examples": report["examples"],
        "logloss": report["logloss"],
        "held_out": judged["logloss"],
        "held_out_auc": judged["auc"],
        "seconds": report["seconds"],
    }


def compare_accuracy(log: Path, held_out: Path, rounds: int) -> list[Result]:
    """Run every pair of staleness and window; return one row each, medians over the rounds."""
    known = json.loads(log.with_name(log.name + ".json").read_text())
    rows = []
    for way in ACCURACY:
        runs = [stale(log, held_out, way) for _ in range(rounds)]
        if any(run["examples"] != known["records"] for run in runs):
            raise RuntimeError(f"{way}: learned {runs[0]['examples']} of {known['records']}")
        row = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        rows.append(row)
        print(
            f"tau {way[2]} window {way[3]}: {row['logloss']:.4f} {row['held_out']:.4f}",
            file=sys.stderr,
        )
    return rows


def show_accuracy(rows: list[Result]) -> None:
    """Print the table of loglosses, each beside one worker at tau 0."""
    alone = rows[0]
    print(
        "\n| workers + shards | tau | under way each | progressive logloss | more "
        "| held-out logloss | more | held-out AUC | wall s |"
    )
    print("|---|" + "---:|" * 8)
    for row in rows:
        print(
            f"| {row['workers']:.0f} + {row['shards']:.0f} | {row['tau']:.0f} "
            f"| {row['window']:.0f} | {row['logloss']:.4f} "
            f"| {row['logloss'] - alone['logloss']:+.4f} | {row['held_out']:.4f} "
            f"| {row['held_out'] - alone['held_out']:+.4f} | {row['held_out_auc']:.4f} "
            f"| {row['seconds']:.1f} |"
        )


def _made(records: int, seed: int) -> Path:
    """Return a log, made where it is not there."""
    log = BENCH / f"criteo-{records}-{seed}.tsv"
    if not log.with_name(log.name + ".json").exists():
        criteo_log.generate(log, records, seed)
    return log


def main() -> None:
    """Make the logs where they are not there, compare, print."""
    parser = argparse.ArgumentParser(description="Click log to model over shards.")
    parser.add_argument("--records", type=int, default=4_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--accuracy-rounds", type=int, default=1)
    parser.add_argument(
        "--only", action="append", default=[], choices=[*(case.name for case in CASES), TAU]
    )
    parser.add_argument("--json", type=Path, default=BENCH / "bench_cluster.json")
    args = parser.parse_args()
    BENCH.mkdir(exist_ok=True)
    log, warm = _made(args.records, args.seed), BENCH / "warm.tsv"
    if not warm.exists():
        criteo_log.generate(warm, 20_000, 7)
    known = json.loads(log.with_name(log.name + ".json").read_text())
    with log.open("rb") as file, Path(os.devnull).open("wb") as nowhere:
        shutil.copyfileobj(file, nowhere, 1 << 22)
    rows = compare(
        log, warm, args.rounds, [c for c in CASES if not args.only or c.name in args.only]
    )
    print(f"\n{known['records']:,} records, {known['bytes'] / 1e6:,.0f} MB; {bench_ctr.machine()}")
    if rows:
        show(rows, known)
    accuracy: list[Result] = []
    if not args.only or TAU in args.only:
        held_out = _made(HELD_OUT_RECORDS, HELD_OUT_SEED)
        accuracy = compare_accuracy(log, held_out, args.accuracy_rounds)
        show_accuracy(accuracy)
    found = {"machine": bench_ctr.machine(), "rows": rows, "accuracy": accuracy}
    args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
