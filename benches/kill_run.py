"""A pass over a log while shards and workers are killed, one after the other.

    python benches/kill_run.py flights_2500k.csv.gz [--kills 50] [--durability log] [--seed N]

Question: does a job over shards end by itself, with every record counted exactly once and as good a
model, when its processes are killed all the while?

Method: a log in the format of ``streamlearn/data/flights.toml`` is split: its last tenth is held
out. ``train`` learns the rest in one process, for the count; ``up`` with two shards and two workers
learns it undisturbed, as often as ``--rounds`` says, and once more while ``--kills`` times one of
the four, drawn at random, those more likely that were killed less often, gets SIGKILL at a random
moment; ``up`` starts it again within a second.
Most kills wait until some part of the log was learned since the one before, so that they are spread
over the pass; the others come at once, and meet recovery.

Units: loglosses are natural; held-out ones are of the gathered model. Restarts are as `up` counts
them.

Budget: ends by itself; marks and the counts of every key as in the one process; held-out logloss
within what undisturbed runs differ by among themselves, or 0.001.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import process
import recount
from daemons import Daemon, free_address

BENCH = Path(".bench")
JOB = Path(__file__).resolve().parent.parent / "streamlearn" / "data" / "flights.toml"
HELD_OUT_SHARE = 0.1
# Small minibatches: a run long enough to be killed in. Ranges: something to do for two workers.
MINIBATCH = 128
RANGES = 32
# One kill in so many does not wait for anything to be learned since the one before; the others wait
# for so many times their equal part at most, and the last comes before so much is learned.
AT_ONCE = 4
SPREAD = 1.6
LAST_KILL_SHARE = 0.75
LEARNED_SECONDS_MAX = 60.0
# `up` says how much is learned twice a second: moments are drawn between.
PAUSE_SECONDS_MAX = 0.6
END_SECONDS_MAX = 900.0
_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True)
class Kill:
    """A process that was killed.

    Attributes
    ----------
    seconds : float
        Since the workers began to learn.
    name : str
    examples : int
        That were learned, as `up` knew it then.
    """

    seconds: float
    name: str
    examples: int


@dataclass(frozen=True, slots=True)
class Killed:
    """A run and what was done to it."""

    kills: list[Kill]
    seconds: float
    report: dict[str, Any]


def children(parent: int) -> dict[str, int]:
    """Return the processes that an ``up`` has started, by role and number."""
    found: dict[str, int] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().decode().split("\0")
            owner = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if owner == parent and "streamlearn.cluster.engines.child" in words:
            role = words[words.index("streamlearn.cluster.engines.child") + 2]
            number = words[words.index("--index" if role == "shard" else "--name") + 1]
            found[f"{role}-{number.rpartition('-')[2]}"] = int(path.name)
    return found


def run_killed(
    arguments: Sequence[str], out: Path, records: int, *, kills: int, seed: int
) -> Killed:
    """Run ``up`` to its end, and kill what it has started meanwhile.

    Parameters
    ----------
    arguments : sequence of str
        Of `up`, but for ``--out`` and ``--http``.
    out : Path
    records : int
        Of the log, about.
    kills, seed : int

    Raises
    ------
    RuntimeError
        It failed, did not end, or ended before it was killed often enough.
    """
    draw = random.Random(seed)
    page = free_address()
    out.mkdir(parents=True, exist_ok=True)
    done: list[Kill] = []
    log = out.with_name(out.name + ".log")
    with Daemon(["up", *arguments, "--out", str(out), "--http", page, "--quiet"], log) as up:
        up.wait_ready(page)
        begun = time.monotonic()
        while len(done) < kills:
            before = done[-1].examples if done else 0
            if draw.randrange(AT_ONCE):
                left = max(0, round(LAST_KILL_SHARE * records) - before) / (kills - len(done))
                _wait_until_learned(page, before + round(draw.uniform(0, SPREAD) * left), up)
            time.sleep(draw.uniform(0, PAUSE_SECONDS_MAX))
            running = sorted(children(up.process.pid).items())
            if up.process.poll() is not None or not running:
                break
            often = Counter(kill.name for kill in done)
            name, pid = draw.choices(running, [1 / (1 + often[name]) ** 2 for name, _ in running])[
                0
            ]
            os.kill(pid, signal.SIGKILL)
            done.append(Kill(time.monotonic() - begun, name, _examples(page, before)))
        end = time.monotonic() + END_SECONDS_MAX
        while up.process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        seconds = time.monotonic() - begun
        if up.process.poll() != 0:
            said = log.read_text(errors="replace")[-4000:]
            raise RuntimeError(f"seed {seed}: exit status {up.process.poll()}\n{said}")
    if len(done) < kills:
        raise RuntimeError(f"seed {seed}: it ended after {len(done)} of {kills} kills")
    return Killed(done, seconds, json.loads((out / "report.json").read_text()))


def _examples(page: str, otherwise: int) -> int:
    """Return how many examples ``up`` says were learned."""
    try:
        with _LOCAL.open(f"http://{page}/status", timeout=5) as answer:
            return int(json.load(answer)["progress"]["examples"])
    except (urllib.error.URLError, OSError, ValueError, KeyError):
        return otherwise


def _wait_until_learned(page: str, examples: int, up: Daemon) -> None:
    end = time.monotonic() + LEARNED_SECONDS_MAX
    while time.monotonic() < end and up.process.poll() is None:
        if _examples(page, 0) >= examples:
            return
        time.sleep(0.05)


def evaluate(out: Path, held_out: Path, *flags: str) -> dict[str, Any]:
    """Score a log with a model; return what ``evaluate`` says."""
    command = [sys.executable, "-m", "streamlearn", "evaluate", str(out), str(held_out)]
    found: dict[str, Any] = json.loads(process.run([*command, *flags, "--json", "--quiet"]).stdout)
    return found


def _halves(source: Path, into: Path) -> tuple[Path, Path, int]:
    """Write what is learned and what is held out as plain files; return them, and records."""
    data = source.read_bytes()
    text = gzip.decompress(data) if source.suffix == ".gz" else data
    lines = text.splitlines(keepends=True)
    header, records = lines[0], lines[1:]
    kept = int(len(records) * (1 - HELD_OUT_SHARE))
    learned, held_out = into / "learned.csv", into / "held_out.csv"
    learned.write_bytes(b"".join([header, *records[:kept]]))
    held_out.write_bytes(b"".join([header, *records[kept:]]))
    return learned, held_out, kept


def main() -> None:
    """Learn in one process, undisturbed and killed; compare and print."""
    parser = argparse.ArgumentParser(description="A pass over a log under kills.")
    parser.add_argument("log", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--durability", choices=("log", "snapshot"), default="log")
    parser.add_argument("--minibatch", type=int, default=MINIBATCH)
    parser.add_argument("--rounds", type=int, default=2, help="undisturbed runs")
    args = parser.parse_args()
    if not args.log.exists():
        print(f"{args.log} is not there: nothing is run")
        return
    BENCH.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BENCH) as place:
        _compare(args, Path(place).resolve())


def _compare(args: argparse.Namespace, place: Path) -> None:
    learned, held_out, records = _halves(args.log, place)
    shutil.copyfile(JOB, place / "flights.toml")
    job = [str(place / "flights.toml"), "--set", f'source.uri=["{learned}"]']
    alone = place / "alone"
    train = [sys.executable, "-m", "streamlearn", "train", *job, "--out", str(alone), "--quiet"]
    process.run(train)
    cluster = [*job, *("--shards", "2", "--workers", "2", "--lanes", "1", "--tau", "4")]
    for setting in (
        f"compute.minibatch={args.minibatch}",
        f"source.range_bytes={learned.stat().st_size // RANGES}",
        f"tables.durability={args.durability}",
        "output.snapshot_seconds=2",
    ):
        cluster += ["--set", setting]
    print(f"{records:,} records; durability {args.durability}; seed {args.seed}", flush=True)
    print(
        "\n| run | seconds | kills | restarts | progressive logloss | held-out logloss | differs |"
    )
    print("|---|" + "---:|" * 6, flush=True)
    judged = evaluate(alone, held_out, "--header")
    report = json.loads((alone / "report.json").read_text())
    print(f"| one process | {report['seconds']:.1f} |  |  | {report['logloss']:.5f} "
          f"| {judged['logloss']:.5f} |  |")  # fmt: skip
    for number in range(args.rounds + 1):
        kills = 0 if number < args.rounds else args.kills
        out = place / f"cluster-{number}"
        ran = run_killed(cluster, out, records, kills=kills, seed=args.seed)
        judged = evaluate(out, held_out, "--header")
        found = recount.differences(out, 2, alone)
        report = ran.report
        print(
            f"| {'killed' if kills else 'undisturbed'} | {ran.seconds:.1f} | {len(ran.kills)} "
            f"| {report['restarts']} | {report['logloss']:.5f} | {judged['logloss']:.5f} "
            f"| {'; '.join(found) or 'in nothing'} |",
            flush=True,
        )
    print(f"\nkills: {dict(sorted(Counter(kill.name for kill in ran.kills).items()))}")
    shares = [kill.examples / records for kill in ran.kills]
    if shares:
        print(f"when {shares[0]:.0%} to {shares[-1]:.0%} of the log was learned")


if __name__ == "__main__":
    main()
