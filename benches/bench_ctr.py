"""Raw click log to a sparse model: this project beside its peers, in one go.

    python benches/bench_ctr.py [--records N] [--rounds R] [--only NAME]... [--json OUT]
    python benches/bench_ctr.py --fm [--peer xlearn=PATH] [--peer torch] ...
    python benches/bench_ctr.py --formats

Question: how many records a second of CPU does one lane turn from raw text into an updated model,
every one validated and scored before it teaches, and how many does a peer? Logistic regression
beside Vowpal Wabbit, or, with ``--fm``, factorization machines beside xLearn and plain PyTorch.

Method: the log is made by ``criteo_log.py`` (kept in ``.bench/``) and read once, so that it stands
in the page cache. Each contender runs in a process of its own; rounds are interleaved, so that a
noisy neighbour meets all of them; medians are shown. Vowpal Wabbit uses FTRL-proximal with the same
alpha, beta, l1 and l2, on the same features. Kernels are compiled by a first run that is not shown.

Units: CPU seconds are user and system time of all threads, from the first byte read to the model
written, without the start of the interpreter and the loading of compiled kernels (``report.json``
says both apart); "process" is the whole process with them. For VW it is its whole process (0.05 s
to start) and the converter's kernel. Megabytes are 10^6 bytes of the raw log. The logloss and the
AUC are progressive over the whole log.

xLearn (``xlearn.py``) is built elsewhere, and runs at dim 16 on 2^24 hashed rows, one thread, one
pass: its CPU seconds are its whole process, without writing its model, and the converter's kernel.
Drawing the model is seconds of that, whatever the log's length, so they are told apart below the
table. PyTorch (``torch_fm.py``) runs at dim 16 on 2^20 rows over the log's first records only, from
raw text and from arrays that are already parsed; its imports are not in it.

"lanes w + s" are w worker lanes and s shard lanes (in-process shards): there minibatches of 4,096
are localised, pulled and pushed. The one that is pinned has one core to itself.

Budget (one core, machine of docs/performance.md): exact 1.7 M records/s and 7 x VW; hashed 2^24
2.4 M and 10 x VW; hashed 2^28 1.9 M; two lanes at least 1.6 x one lane's wall; in-process shards
1.0 M, and 2 + 2 of them on two cores at least 1.7 x the wall of 1 + 1 on one. Factorization
machines on hashed rows: dim 16 1.2 M and 12 x xLearn, dim 8 1.4 M, order 3 of dim 8 0.8 M; exact
tables with adaptive embeddings 60 % of these; memory of hashed ones their state and 300 MB.
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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import criteo_log
import formats_log
import process

BENCH = Path(".bench")
# One setting of the update rule for both sides; what VW calls them stands in `_vw_flags`.
RULE = {"alpha": 0.1, "beta": 1.0, "l1": 1.0, "l2": 0.0}
# The best of some twenty on 1 M records, held-out logloss 0.4594 where logistic regression has
# 0.4696; at v_lr 0.1 and v_init_scale 0.05 embeddings did harm.
FM_RULE = {**RULE, "v_lr": 0.03, "v_l2": 2e-5, "v_init_scale": 0.01}
RULES = {"lr": RULE, "fm": FM_RULE}
# xLearn's rate, the best of `xlearn.RATES` on 1 M records (its speed does not depend on it).
XLEARN_RATE = 0.03
# Enough for a steady rate of PyTorch's, in some ten seconds.
TORCH_RECORDS = 200_000


@dataclass(frozen=True, slots=True)
class Contender:
    """One of the runs to compare: flags of ours, or a peer."""

    name: str
    flags: tuple[str, ...] = ()
    model: str = "lr"
    peer: str = ""  # "vw", "xlearn", "torch" or "torch arrays"; "": ours
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
    Contender("vw --ftrl -b 24", peer="vw"),
)


def _fm(name: str, dim: int, *flags: str, order: int = 2, lanes: int = 1) -> Contender:
    sizes = ("--set", f"model.dim={dim}", "--set", f"model.order={order}")
    return Contender(name, ("--lanes", str(lanes), *sizes, *flags), model="fm")


_ADMIT = ("--set", "model.threshold=10")
FM_CONTENDERS = (
    _fm("fm16 hashed 2^24", 16, *_hashed(24)),
    _fm("fm8 hashed 2^24", 8, *_hashed(24)),
    _fm("fm8 order 3 hashed 2^24", 8, *_hashed(24), order=3),
    _fm("fm16 exact, threshold 10", 16, *_ADMIT),
    _fm("fm8 exact, threshold 10", 8, *_ADMIT),
    _fm("fm16 exact, two lanes", 16, *_ADMIT, lanes=2),
    Contender("xlearn fm16 2^24", model="fm", peer="xlearn"),
    Contender("torch fm16", model="fm", peer="torch"),
    Contender("torch fm16, from arrays", model="fm", peer="torch arrays"),
)
# What to divide by, and its name, where it ran.
REFERENCES = {"vw --ftrl -b 24": "VW", "xlearn fm16 2^24": "xLearn"}
LANES = {
    "exact": "exact, two lanes",
    "hashed 2^24": "hashed 2^24, two lanes",
    "fm16 exact, threshold 10": "fm16 exact, two lanes",
}


def train(
    source: str | Path,
    flags: tuple[str, ...],
    *,
    model: str = "lr",
    env: dict[str, str] | None = None,
    pinned: bool = False,
) -> dict[str, Any]:
    """Train ours in a process of its own; return its report, with what the process used."""
    settings = RULES[model].items()
    rule = [part for name, value in settings for part in ("--set", f"model.{name}={value}")]
    with tempfile.TemporaryDirectory(dir=BENCH) as out:
        command = [sys.executable, "-m", "streamlearn", "train", str(source), "--model", model]
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
    report = train(
        log,
        ("--format", "criteo", *contender.flags),
        model=contender.model,
        pinned=contender.pinned,
    )
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


def _vw_flags(bits: int = 24) -> list[str]:
    return [
        "--ftrl",
        *("-b", str(bits)),
        *("--ftrl_alpha", str(RULE["alpha"])),
        *("--ftrl_beta", str(RULE["beta"])),
        *("--l1", str(RULE["l1"])),
        *("--l2", str(RULE["l2"])),
    ]


def _converted(used: dict[str, Any], converting: float) -> dict[str, Any]:
    """Charge a peer that reads its own text with the CPU seconds of the converter's kernel."""
    cpu = used["cpu_seconds"] + converting
    wall = used["seconds"] + converting
    return {**used, "cpu_seconds": cpu, "process_cpu_seconds": cpu, "seconds": wall}


def _vw(log: Path) -> tuple[Callable[[], dict[str, Any]], Callable[[], float]]:
    """Prepare Vowpal Wabbit; return what runs it, and what tells its AUC."""
    import vw  # wants the extra `bench`, as ours alone does not

    text = log.with_name(log.name + ".vw")
    vw.convert(log, text)

    def run() -> dict[str, Any]:
        # the converter's kernel writes to a file that nobody reads: its time alone counts
        converting = vw.convert(log, Path(os.devnull))
        return {**_converted(vw.run(text, _vw_flags()), converting), "features": None}

    def auc() -> float:
        return float(vw.run(text, _vw_flags(), labels=vw.labels_of(log))["auc"])

    return run, auc


def _xlearn(log: Path, program: Path, records: int) -> Callable[[], dict[str, Any]]:
    """Prepare xLearn; return what runs it."""
    import xlearn  # wants the extra `bench`

    text = log.with_name(log.name + ".xlearn")
    xlearn.convert(log, text)
    os.sync()  # dirty pages would be written back during the run

    def run() -> dict[str, Any]:
        converting = xlearn.convert(log, Path(os.devnull))
        used = _converted(xlearn.run(program, text, rate=XLEARN_RATE), converting)
        # it does not say how many it learned, and tells no AUC of what it learns
        return {**used, "auc": None, "features": None, "examples": records}

    return run


def _torch(log: Path, records: int, *, arrays: bool) -> Callable[[], dict[str, Any]]:
    """Return what runs PyTorch on the first records, from raw text or from arrays."""
    import torch_fm  # wants the extra `bench`

    def run() -> dict[str, Any]:
        used = torch_fm.run(log, records=min(records, TORCH_RECORDS))
        if arrays:
            used["cpu_seconds"], used["seconds"] = used["learn_cpu_seconds"], used["learn_seconds"]
        return {**used, "features": None}

    return run


def compare(
    log: Path, rounds: int, contenders: list[Contender], peers: dict[str, Path | None]
) -> list[dict[str, Any]]:
    """Run the contenders round by round; return one row of medians each.

    Parameters
    ----------
    log : Path
    rounds : int
    contenders : list of Contender
    peers : dict
        The place of xLearn's programs, where it is among the contenders.
    """
    known = json.loads(log.with_name(log.name + ".json").read_text())
    records = known["records"]
    runs: dict[str, Callable[[], dict[str, Any]]] = {}
    aucs: dict[str, Callable[[], float]] = {}
    for contender in contenders:
        name = contender.name
        match contender.peer:
            case "vw":
                runs[name], aucs[name] = _vw(log)
            case "xlearn":
                program = peers["xlearn"]
                assert program is not None
                runs[name] = _xlearn(log, program, records)
            case "torch" | "torch arrays":
                runs[name] = _torch(log, records, arrays=contender.peer == "torch arrays")
            case _:
                _warm(contender)
                runs[name] = lambda contender=contender: _ours(log, contender)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
    for number in range(rounds):
        for contender in contenders:
            name = contender.name
            result = runs[name]()
            expected = min(records, TORCH_RECORDS) if "torch" in contender.peer else records
            if result["examples"] != expected:
                raise RuntimeError(f"{name}: learned {result['examples']} of {expected} records")
            results[name].append(result)
            speed = expected / result["cpu_seconds"] / 1e6
            print(
                f"round {number + 1}/{rounds}  {name:24} {speed:.3f} M records/s", file=sys.stderr
            )
    judged = {name: auc() for name, auc in aucs.items()}
    return [_row(name, runs, known, judged.get(name)) for name, runs in results.items()]


def _warm(contender: Contender) -> None:
    """Have the kernels compiled that a contender of ours wants."""
    warm = BENCH / "warm.tsv"
    if not warm.exists():
        criteo_log.generate(warm, 20_000, 7)
    train(warm, ("--format", "criteo", *contender.flags), model=contender.model)


def _row(
    name: str, runs: list[dict[str, Any]], known: dict[str, Any], auc: float | None
) -> dict[str, Any]:
    """Return the medians of one contender's runs, and its rates."""

    def median(key: str) -> float:
        return statistics.median(run[key] for run in runs)

    cpu, wall = median("cpu_seconds"), median("seconds")
    records = runs[0]["examples"]
    row = {
        "name": name,
        "records_per_cpu_second": records / cpu,
        "megabytes_per_cpu_second": records / cpu * known["bytes"] / known["records"] / 1e6,
        "records_per_second": records / wall,
        "cpu_seconds": cpu,
        "seconds": wall,
        "process_cpu_seconds": median("process_cpu_seconds"),
        "peak_rss_bytes": median("peak_rss_bytes"),
        "logloss": runs[0]["logloss"],
        "auc": runs[0]["auc"] if auc is None else auc,
        "features": runs[0]["features"],
        "cpu_seconds_of_rounds": [run["cpu_seconds"] for run in runs],
    }
    if "start_seconds" in runs[0]:
        row["start_seconds"] = median("start_seconds")
    return row


def show(rows: list[dict[str, Any]], known: dict[str, Any]) -> None:
    """Print the table, and the ratios to the peer and to one lane."""
    by_name = {row["name"]: row for row in rows}
    reference = next((name for name in REFERENCES if name in by_name), "")
    peer = by_name.get(reference)
    print(
        f"\n{known['records']:,} records, {known['bytes'] / 1e6:,.0f} MB, Bayes logloss "
        f"{known['bayes_logloss']:.4f}; {machine()}\n"
    )
    print(
        "|  | M records/s of CPU | MB/s of CPU | M records/s of wall | CPU s | process CPU s "
        f"| peak MB | logloss | AUC | x {REFERENCES.get(reference, 'peer')} |"
    )
    print("|---|" + "---:|" * 9)
    digits = 3 if peer and "start_seconds" in peer else 2  # peers of fm are that slow
    for row in rows:
        ratio = (
            f"{row['records_per_cpu_second'] / peak:.1f}"
            if peer and (peak := peer["records_per_cpu_second"])
            else ""
        )
        auc = "" if row["auc"] is None else f"{row['auc']:.4f}"
        print(
            f"| {row['name']} | {row['records_per_cpu_second'] / 1e6:.{digits}f} "
            f"| {row['megabytes_per_cpu_second']:.0f} "
            f"| {row['records_per_second'] / 1e6:.{digits}f} "
            f"| {row['cpu_seconds']:.2f} | {row['process_cpu_seconds']:.2f} "
            f"| {row['peak_rss_bytes'] / 1e6:.0f} | {row['logloss']:.4f} | {auc} | {ratio} |"
        )
    if peer and "start_seconds" in peer:
        # it says wall seconds: on a busy machine more than CPU, so their share is what counts
        share = peer["start_seconds"] / peer["seconds"]
        speed = peer["records_per_cpu_second"] / (1 - share)
        print(
            f"{reference}: {share:.0%} of its time is drawing its model; without it about "
            f"{speed / 1e6:.3f} M records/s of CPU"
        )
    for name, other in LANES.items():
        one, two = by_name.get(name), by_name.get(other)
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


def peer(text: str) -> tuple[str, Path | None]:
    """Parse ``xlearn=PATH`` or ``torch`` of the command line.

    Raises
    ------
    argparse.ArgumentTypeError
        It is neither, or that peer is not there.
    """
    name, _, place = text.partition("=")
    if name == "xlearn" and place:
        import xlearn  # wants the extra `bench`

        try:
            xlearn.programs(Path(place))
        except FileNotFoundError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return name, Path(place)
    if text == "torch":
        import torch_fm  # wants the extra `bench`

        if not torch_fm.installed():
            raise argparse.ArgumentTypeError(torch_fm.MISSING)
        return name, None
    raise argparse.ArgumentTypeError(f"{text!r} is no peer; expected xlearn=PATH or torch")


def main() -> None:
    """Make the log where it is not there, compare, print."""
    names = [c.name for c in CONTENDERS + FM_CONTENDERS]
    parser = argparse.ArgumentParser(description="Click log to model, beside the peers.")
    parser.add_argument("--records", type=int, default=2_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", default=[], choices=names)
    parser.add_argument("--fm", action="store_true", help="factorization machines instead")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        type=peer,
        help="with --fm: xlearn=PATH (the folder of xlearn_train and xlearn_predict), torch",
    )
    parser.add_argument("--formats", action="store_true", help="the other formats and sources")
    parser.add_argument("--json", type=Path, help="default: .bench/bench_ctr.json or ..._fm.json")
    args = parser.parse_args()
    peers = dict(args.peer)
    if peers and not args.fm:
        parser.error("--peer wants --fm")
    family = FM_CONTENDERS if args.fm else CONTENDERS
    contenders = [
        c
        for c in family
        if (not args.only or c.name in args.only)
        and (c.peer in ("", "vw") or c.peer.split()[0] in peers)
    ]
    if missing := set(args.only) - {c.name for c in contenders}:
        parser.error(f"{', '.join(sorted(missing))}: wants --fm, its --peer, or neither")
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
        rows = compare(log, args.rounds, contenders, peers)
        show(rows, known)
    out = args.json or BENCH / ("bench_ctr_fm.json" if args.fm else "bench_ctr.json")
    out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
