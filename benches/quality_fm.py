"""Accuracy and memory of factorization machines beside logistic regression, and beside xLearn.

    python benches/quality_fm.py [FLIGHTS] [--records N] [--peer xlearn=PATH] [--only PART]...

Question: how much do embeddings gain on a log with known interactions and on real flights, what do
they gain where only features that are seen often have one, and how much memory does that save?

Method: ``generated`` trains on a log of ``criteo_log.py``, one pass, and evaluates each model on a
further log of the same truth and another seed (both kept in ``.bench/``). Embeddings are for
features above a count of 10, or for all. xLearn, where its programs are named, runs the same pass
at each of four rates (``xlearn.py``) and is judged on the same log. ``flights`` goes over a flights
CSV once, in order, and scores each record before it learns from it, as ``quality.py`` does, with
and without its five crosses. Ours has one lane and fixed seeds: a second run prints the same
(xLearn's order comes from its system's ``rand``, also seeded).

Unit: mean natural logloss, AUC; MB of 10^6 bytes: table and embeddings as ``report.json`` has them,
and both as a share of what embedding everything takes. Budget: at 5 M records fm's held-out logloss
at least 0.030 below lr's and no worse than xLearn's best; above a count of 10 at most 40 % of the
memory of embedding everything, at no worse held-out logloss.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import criteo_log
import process
import xlearn
from bench_ctr import BENCH, FM_RULE, RULE
from quality import CROSSES, FIELDS, FTRL_RATES, read_flights
from vw import labels_of

RECORDS = 5_000_000
HELD_OUT_RECORDS = 500_000
SEED, HELD_OUT_SEED = 1, 2
# Contenders of the generated log, and their [model].
GENERATED = {
    "lr": {"kind": "lr", **RULE},
    "fm, threshold 10": {"kind": "fm", "dim": 16, "threshold": 10, **FM_RULE},
    "fm, threshold 0": {"kind": "fm", "dim": 16, "threshold": 0, **FM_RULE},
    # without l1 no weight is zero, so that every feature has one
    "fm, everything": {"kind": "fm", "dim": 16, "threshold": 0, **FM_RULE, "l1": 0.0},
}
# Flights have few features, all of them frequent, and drift: no l1, larger steps, small embeddings.
FM_ALPHAS = (0.3, 0.6, 1.0)
FM_RATES = (0.1, 0.2, 0.4)
FM_DIM = 8


def learn(source: str, model: dict[str, Any], out: Path) -> dict[str, Any]:
    """Train ours on a ``[source]`` in a process of its own; return its report.

    Parameters
    ----------
    source : str
        Lines of TOML.
    model : dict
        Settings, with ``kind``.
    out : Path
        A folder, which gets the job's file and, in ``out``, what it learned.
    """
    job = out / "job.toml"
    settings = "\n".join(f"{name} = {json.dumps(value)}" for name, value in model.items())
    job.write_text(f"[source]\n{source}\n[model]\n{settings}\n")
    command = [sys.executable, "-m", "streamlearn", "train", str(job), "--lanes", "1"]
    process.run([*command, "--out", str(out / "out")])
    return json.loads((out / "out" / "report.json").read_text())


def evaluate(out: Path, log: Path) -> dict[str, Any]:
    """Evaluate on a Criteo log what `learn` learned, in a process of its own."""
    command = [sys.executable, "-m", "streamlearn", "evaluate", str(out / "out"), str(log)]
    return json.loads(process.run([*command, "--format", "criteo", "--json", "--quiet"]).stdout)


def _log(records: int, seed: int) -> Path:
    """Return a generated log, made where it is not there."""
    log = BENCH / f"criteo-{records}-{seed}.tsv"
    if not log.with_name(log.name + ".json").exists():
        criteo_log.generate(log, records, seed)
    return log


def _generated(records: int) -> list[dict[str, Any]]:
    """Train and evaluate ours on generated logs; return a row for each contender."""
    log, held_out = _log(records, SEED), _log(HELD_OUT_RECORDS, HELD_OUT_SEED)
    rows = []
    for name, model in GENERATED.items():
        with tempfile.TemporaryDirectory(dir=BENCH) as folder:
            out = Path(folder)
            source = f'uri = ["{log.resolve()}"]\nformat = "criteo"'
            report = learn(source, model, out)
            judged = evaluate(out, held_out)
        for what, seen, expected in (
            ("learned", report["examples"], records),
            ("evaluated", judged["examples"], HELD_OUT_RECORDS),
        ):
            if seen != expected:
                raise RuntimeError(f"{name}: {what} {seen} of {expected} records")
        rows.append(
            {
                "name": name,
                "progressive": report["logloss"],
                "logloss": judged["logloss"],
                "auc": judged["auc"],
                "features": report["features"],
                "embeddings": report.get("embeddings"),
                "table_bytes": report["table_bytes"],
                "embeddings_bytes": report.get("embeddings_bytes", 0),
            }
        )
    return rows


def _peers(records: int, program: Path) -> list[dict[str, Any]]:
    """Train and evaluate xLearn on generated logs; return a row for each rate."""
    log, held_out = _log(records, SEED), _log(HELD_OUT_RECORDS, HELD_OUT_SEED)
    labels = labels_of(held_out)
    rows = []
    with tempfile.TemporaryDirectory(dir=BENCH) as folder:
        text, held, model = (Path(folder) / name for name in ("text", "held", "model"))
        xlearn.convert(log, text)
        xlearn.convert(held_out, held)
        for rate in xlearn.RATES:
            used = xlearn.run(program, text, rate=rate, model=model)
            loss, auc = xlearn.score(program, model, held, labels)
            row = {"name": f"xlearn, rate {rate}", "progressive": used["logloss"]}
            rows.append({**row, "logloss": loss, "auc": auc})
    return rows


def show_generated(rows: list[dict[str, Any]], records: int) -> None:
    """Print the table of the generated log, and what the budget asks of it."""
    by_name = {row["name"]: row for row in rows}
    known = json.loads(Path(f"{_log(HELD_OUT_RECORDS, HELD_OUT_SEED)}.json").read_text())
    print(
        f"generated log: {records:,} records learned, {HELD_OUT_RECORDS:,} held out, on which the "
        f"truth itself has {known['truth_logloss']:.4f}\n"
    )
    print(
        "| contender | progressive logloss | held-out logloss | AUC | features | embeddings "
        "| table MB | embeddings MB | of embedding all |"
    )
    print("|---|" + "---:|" * 8)
    everything = _bytes(by_name["fm, everything"])
    for row in rows:
        line = f"| {row['name']} | {row['progressive']:.4f} | {row['logloss']:.4f} "
        line += f"| {row['auc']:.4f} "
        if "table_bytes" in row:
            embeddings = "" if row["embeddings"] is None else f"{row['embeddings']:,}"
            line += f"| {row['features']:,} | {embeddings} | {row['table_bytes'] / 1e6:.0f} "
            line += f"| {row['embeddings_bytes'] / 1e6:.0f} | {_bytes(row) / everything:.0%} |"
        else:
            line += "| | | | | |"
        print(line)
    adaptive = by_name["fm, threshold 10"]
    print(f"\nfm, threshold 10: {by_name['lr']['logloss'] - adaptive['logloss']:.4f} below lr")
    peers = [row for row in rows if "table_bytes" not in row]
    if peers:
        best = min(peers, key=lambda row: row["logloss"])
        gain = best["logloss"] - adaptive["logloss"]
        print(f"fm, threshold 10: {gain:.4f} below the best of xLearn ({best['name']})")


def _bytes(row: dict[str, Any]) -> int:
    return row["table_bytes"] + row["embeddings_bytes"]


def flights(path: Path, records: int) -> None:
    """Go over a flights log with lr and fm at each of their rates; print the table of both."""
    with tempfile.TemporaryDirectory(dir=BENCH) as scratch:
        log = read_flights(path, Path(scratch), records)
        print(f"{path.name}: {len(log.labels):,} records\n")
        print(
            "| features | contender | alpha | v_lr | logloss | AUC |\n|---|---|---:|---:|---:|---:|"
        )
        penalties = {"beta": 1.0, "l1": 0.0, "l2": 0.0}
        for cross in (False, True):
            crosses = [f"{FIELDS[a]}*{FIELDS[b]}" for a, b in CROSSES] if cross else []
            source = f'uri = ["{log.source.resolve()}"]\ncross = {json.dumps(crosses)}\n{log.job}'
            models: list[dict[str, Any]] = [{"kind": "lr", "alpha": rate} for rate in FTRL_RATES]
            models += [
                {**FM_RULE, "kind": "fm", "dim": FM_DIM, "alpha": rate, "v_lr": v_rate}
                for rate in FM_ALPHAS
                for v_rate in FM_RATES
            ]
            for model in models:
                with tempfile.TemporaryDirectory(dir=scratch) as out:
                    report = learn(source, {**model, **penalties}, Path(out))
                if report["examples"] != len(log.labels):
                    raise RuntimeError(f"learned {report['examples']} of {len(log.labels)} records")
                print(
                    f"| {'with crosses' if cross else 'linear'} | {model['kind']} "
                    f"| {model['alpha']} | {model.get('v_lr', '')} "
                    f"| {report['logloss']:.4f} | {report['auc']:.4f} |",
                    flush=True,
                )


def _program(text: str) -> Path:
    """Parse ``xlearn=PATH`` of the command line."""
    name, _, place = text.partition("=")
    if name != "xlearn" or not place:
        raise argparse.ArgumentTypeError(f"{text!r} is no peer; expected xlearn=PATH")
    try:
        xlearn.programs(Path(place))
    except FileNotFoundError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Path(place)


def main() -> None:
    """Run what is asked for; print the tables."""
    parser = argparse.ArgumentParser(description="Accuracy and memory of factorization machines.")
    parser.add_argument("flights", type=Path, nargs="?", help="a flights CSV, plain or gzip")
    parser.add_argument("--records", type=int, default=0, help="of either log; 0: 5 M, and all")
    parser.add_argument("--peer", type=_program, metavar="xlearn=PATH", help="its programs' folder")
    parser.add_argument("--only", action="append", choices=["generated", "flights"])
    args = parser.parse_args()
    chosen = args.only or (["generated", "flights"] if args.flights else ["generated"])
    if "flights" in chosen and not args.flights:
        parser.error("flights: name the file")
    BENCH.mkdir(exist_ok=True)
    if "generated" in chosen:
        records = args.records or RECORDS
        rows = _generated(records)
        if args.peer:
            rows += _peers(records, args.peer)
        show_generated(rows, records)
    if "flights" in chosen:
        flights(args.flights, args.records)


if __name__ == "__main__":
    main()
