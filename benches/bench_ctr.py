"""Raw click log to sparse logistic regression: this project beside Vowpal Wabbit, in one go.

    python benches/bench_ctr.py [--records N] [--rounds R] [--only NAME]... [--json OUT]
    python benches/bench_ctr.py --formats

Question: how many records a second of CPU does one lane turn from raw text into an updated model,
every one validated and scored before it teaches, and how many does Vowpal Wabbit?

Method: the log is made by ``criteo_log.py`` (kept in ``.bench/``) and read once, so that it stands
in the page cache. Each contender runs in a process of its own; rounds are interleaved, so that a
noisy neighbour meets all of them; medians are shown. Both sides use FTRL-proximal with the same
alpha, beta, l1 and l2, on the same features. Kernels are compiled by a first run that is not shown.

Units: CPU seconds are user and system time of all threads, from the first byte read to the model
written, without the start of the interpreter and the loading of compiled kernels (``report.json``
says both apart); "process" is the whole process with them. For VW it is its whole process (0.05 s
to start) and the converter's kernel. Megabytes are 10^6 bytes of the raw log. The logloss and the
AUC are progressive over the whole log.

"lanes w + s" are w worker lanes and s shard lanes (in-process shards): there minibatches of 4,096
are localised, pulled and pushed. The one that is pinned has one core to itself.

Budget (one core, machine of docs/performance.md): exact 1.7 M records/s and 7 x VW; hashed 2^24
2.4 M and 10 x VW; hashed 2^28 1.9 M; two lanes at least 1.6 x one lane's wall; in-process shards
1.0 M, and 2 + 2 of them on two cores at least 1.7 x the wall of 1 + 1 on one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import criteo_log
import formats_log
import process

BENCH = Path(".bench")
# One setting of the update rule for both sides; what VW calls them stands in `_vw_flags`.
RULE = {"alpha": 0.1, "beta": 1.0, "l1": 1.0, "l2": 0.0}


@dataclass(frozen=True, slots=True)
class Contender:
    """One of the runs to compare: flags of ours, or none for Vowpal Wabbit."""

    name: str
    flags: tuple[str, ...] = ()
    bits: int = 0  # for Vowpal Wabbit; 0: ours
    pinned: bool = False  # to one core


def _hashed(bits: int) -> tuple[str, ...]:
    return ("--set", "tables.index=hashed", "--set", f"tables.bits={bits}")


def _lanes(workers: int, shards: int) -> tuple[str, ...]:
    flags = ("--lanes", str(workers + shards), "--set", f"compute.shard_lanes={shards}")
    # ranges enough for every worker to have its share
    return (*flags, "--set", f"source.range_bytes={32 << 20}")


CONTENDERS = (
    Contender("exact", ("--lanes", "1")),
    Contender("hashed 2^24", ("--lanes", "1", *_hashed(24))),
    Contender("hashed 2^28", ("--lanes", "1", *_hashed(28))),
    Contender("exact, two lanes", ("--lanes", "2")),
    Contender("hashed 2^24, two lanes", ("--lanes", "2", *_hashed(24))),
    Contender("lanes 1 + 1, pinned", _lanes(1, 1), pinned=True),
    Contender("lanes 1 + 1", _lanes(1, 1)),
    Contender("lanes 2 + 1", _lanes(2, 1)),
    Contender("lanes 2 + 2", _lanes(2, 2)),
    Contender("vw --ftrl -b 24", bits=24),
)


def train(
    source: str | Path,
    flags: tuple[str, ...],
    *,
    env: dict[str, str] | None = None,
    pinned: bool = False,
) -> dict[str, Any]:
    """Train ours in a process of its own; return its report, with what the process used."""
    rule = [part for name, value in RULE.items() for part in ("--set", f"model.{name}={value}")]
    with tempfile.TemporaryDirectory(dir=BENCH) as out:
        command = [sys.executable, "-m", "streamlearn", "train", str(source), "--model", "lr"]
        if pinned:
            command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), *command]
        used = process.run([*command, "--out", out, *rule, *flags], env)
        report = json.loads((Path(out) / "report.json").read_text())
    return {
        **report,
        "process_cpu_seconds": used.cpu_seconds,
        "process_peak_rss_bytes": used.peak_rss_bytes,
    }


def _ours(log: Path, contender: Contender) -> dict[str, Any]:
    report = train(log, ("--format", "criteo", *contender.flags), pinned=contender.pinned)
    return {
        "cpu_seconds": report["cpu_seconds"],
        "seconds": report["seconds"],
        "process_cpu_seconds": report["process_cpu_seconds"],
        "peak_rss_bytes": report["process_peak_rss_bytes"],
        "logloss": report["logloss"],
        "auc": report["auc"],
        "features": report["features"],
        "examples": report["examples"],
    }


def _vw_flags(bits: int) -> list[str]:
    return [
        "--ftrl",
        *("-b", str(bits)),
        *("--ftrl_alpha", str(RULE["alpha"])),
        *("--ftrl_beta", str(RULE["beta"])),
        *("--l1", str(RULE["l1"])),
        *("--l2", str(RULE["l2"])),
    ]


def compare(log: Path, rounds: int, names: list[str]) -> list[dict[str, Any]]:
    """Run the contenders round by round; return one row of medians each."""
    chosen = [c for c in CONTENDERS if not names or c.name in names]
    known = json.loads(log.with_name(log.name + ".json").read_text())
    text = log.with_name(log.name + ".vw")
    aucs: dict[str, float] = {}
    if any(c.bits for c in chosen):
        import vw  # wants the extra `bench`, as ours alone does not

        vw.convert(log, text)
    if any(not c.bits for c in chosen):
        warm = BENCH / "warm.tsv"
        if not warm.exists():
            criteo_log.generate(warm, 20_000, 7)
        for contender in chosen:
            if not contender.bits:
                train(warm, ("--format", "criteo", *contender.flags))
    results: dict[str, list[dict[str, Any]]] = {c.name: [] for c in chosen}
    for number in range(rounds):
        for contender in chosen:
            if contender.bits:
                # the converter's kernel writes to a file that nobody reads: its time alone counts
                converting = vw.convert(log, Path(os.devnull))
                used = vw.run(text, _vw_flags(contender.bits))
                used["cpu_seconds"] += converting
                used["seconds"] += converting
                result = {**used, "process_cpu_seconds": used["cpu_seconds"], "features": None}
            else:
                result = _ours(log, contender)
            if result["examples"] != known["records"]:
                raise RuntimeError(
                    f"{contender.name}: learned {result['examples']} of {known['records']} records"
                )
            results[contender.name].append(result)
            speed = known["records"] / result["cpu_seconds"] / 1e6
            print(
                f"round {number + 1}/{rounds}  {contender.name:24} {speed:.2f} M records/s",
                file=sys.stderr,
            )
    for contender in chosen:
        if contender.bits:
            judged = vw.run(text, _vw_flags(contender.bits), labels=vw.labels_of(log))
            aucs[contender.name] = judged["auc"]
    return [_row(name, runs, known, aucs.get(name)) for name, runs in results.items()]


def _row(
    name: str, runs: list[dict[str, Any]], known: dict[str, Any], auc: float | None
) -> dict[str, Any]:
    """Return the medians of one contender's runs, and its rates."""

    def median(key: str) -> float:
        return statistics.median(run[key] for run in runs)

    cpu, wall = median("cpu_seconds"), median("seconds")
    return {
        "name": name,
        "records_per_cpu_second": known["records"] / cpu,
        "megabytes_per_cpu_second": known["bytes"] / cpu / 1e6,
        "records_per_second": known["records"] / wall,
        "cpu_seconds": cpu,
        "seconds": wall,
        "process_cpu_seconds": median("process_cpu_seconds"),
        "peak_rss_bytes": median("peak_rss_bytes"),
        "logloss": runs[0]["logloss"],
        "auc": runs[0]["auc"] if auc is None else auc,
        "features": runs[0]["features"],
        "cpu_seconds_of_rounds": [run["cpu_seconds"] for run in runs],
    }


def show(rows: list[dict[str, Any]], known: dict[str, Any]) -> None:
    """Print the table, and the ratios to Vowpal Wabbit and to one lane."""
    by_name = {row["name"]: row for row in rows}
    peer = by_name.get("vw --ftrl -b 24")
    print(
        f"\n{known['records']:,} records, {known['bytes'] / 1e6:,.0f} MB, Bayes logloss "
        f"{known['bayes_logloss']:.4f}; {machine()}\n"
    )
    print(
        "|  | M records/s of CPU | MB/s of CPU | M records/s of wall | CPU s | process CPU s "
        "| peak MB | logloss | AUC | x VW |"
    )
    print("|---|" + "---:|" * 9)
    for row in rows:
        ratio = (
            f"{row['records_per_cpu_second'] / peak:.1f}"
            if peer and (peak := peer["records_per_cpu_second"])
            else ""
        )
        auc = "" if row["auc"] is None else f"{row['auc']:.4f}"
        print(
            f"| {row['name']} | {row['records_per_cpu_second'] / 1e6:.2f} "
            f"| {row['megabytes_per_cpu_second']:.0f} | {row['records_per_second'] / 1e6:.2f} "
            f"| {row['cpu_seconds']:.2f} | {row['process_cpu_seconds']:.2f} "
            f"| {row['peak_rss_bytes'] / 1e6:.0f} | {row['logloss']:.4f} | {auc} | {ratio} |"
        )
    for name in ("exact", "hashed 2^24"):
        one, two = by_name.get(name), by_name.get(f"{name}, two lanes")
        if one and two:
            print(f"{name}: two lanes take {one['seconds'] / two['seconds']:.2f} x less wall")
    one, two = by_name.get("lanes 1 + 1, pinned"), by_name.get("lanes 2 + 2")
    if one and two:
        ratio = one["seconds"] / two["seconds"]
        print(f"lanes: 2 + 2 take {ratio:.2f} x less wall than 1 + 1 on one core")


def machine() -> str:
    """Name the processor, as far as the system says."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    return f"{platform.machine()}, {os.cpu_count()} cores"


def main() -> None:
    """Make the log where it is not there, compare, print."""
    parser = argparse.ArgumentParser(description="Click log to model, beside Vowpal Wabbit.")
    parser.add_argument("--records", type=int, default=2_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", default=[], choices=[c.name for c in CONTENDERS])
    parser.add_argument("--formats", action="store_true", help="the other formats and sources")
    parser.add_argument("--json", type=Path, default=BENCH / "bench_ctr.json")
    args = parser.parse_args()
    BENCH.mkdir(exist_ok=True)
    log = BENCH / f"criteo-{args.records}-{args.seed}.tsv"
    if not log.with_name(log.name + ".json").exists():
        criteo_log.generate(log, args.records, args.seed)
    if args.formats:
        rows = formats_log.compare(log, args.rounds, train)
        formats_log.show(rows)
    else:
        known = json.loads(log.with_name(log.name + ".json").read_text())
        with log.open("rb") as file, Path(os.devnull).open("wb") as nowhere:
            shutil.copyfileobj(file, nowhere, 1 << 22)
        rows = compare(log, args.rounds, args.only)
        show(rows, known)
    args.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
