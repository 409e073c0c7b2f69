"""Progressive accuracy on real logs: this project, Vowpal Wabbit and scikit-learn.

    python benches/quality.py flights_2500k.csv.gz [--records N]
    python benches/quality.py a9a.libsvm.gz

Question: does per-example FTRL-proximal on exact keys predict at least as well as the peers, each
at the best of its learning rates?

Method: each contender goes over the log once, in order, and scores each record before it learns
from it. Flights are five features (origin, destination, hour, weekday, distance in logarithmic
buckets), and again with five crosses of the first four; svmlight files are taken as they are. Ours
and VW run FTRL-proximal with the same alpha, beta, l1 and l2 (VW at 2^24 rows), in a process each.
scikit-learn is ``SGDClassifier`` at a constant rate on 2^20 hashed features, scored and taught 100
records at a time: one call a record would take hours, and scoring 100 at once costs it at most a
few 1e-4 here.

Unit: mean natural logloss and AUC over all records. Budget: ours at least as good as either peer.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss, roc_auc_score

import process
import vw

FTRL_RATES = (0.1, 0.3, 0.6, 1.0)
SGD_RATES = (0.01, 0.03, 0.1, 0.3)
SGD_BITS = 20
SGD_RECORDS = 100
FIELDS = ("origin", "destination", "when.hour", "when.weekday", "distance")
# Places in FIELDS; VW names its namespaces by one character each.
CROSSES = ((0, 1), (0, 2), (1, 2), (0, 3), (2, 3))
NAMESPACES = "odhwn"


@dataclass(frozen=True, slots=True)
class Log:
    """A log in memory, as the peers want it.

    Attributes
    ----------
    source : Path
        The file that ours reads.
    job : str
        The ``[source]`` of its job, but for ``uri`` and ``cross``.
    labels : int8[n]
    fields : tuple of list
        Of each record, the tokens of each field; one field of index lists for svmlight.
    crossed : bool
        Whether fields may be crossed.
    """

    source: Path
    job: str
    labels: np.ndarray
    fields: tuple[list[Any], ...]
    crossed: bool


def _open(path: Path) -> IO[str]:
    return gzip.open(path, "rt") if path.suffix == ".gz" else path.open()


def _bucket(value: str) -> str:
    """Return the bucket of a number: the exponent and two bits of the fraction of its float32."""
    return str(int(np.float32(value).view(np.uint32)) >> 21)


def read_flights(path: Path, scratch: Path, records: int) -> Log:
    """Read a flights log, its first ``records`` only (0: all)."""
    labels: list[int] = []
    fields: tuple[list[Any], ...] = ([], [], [], [], [])
    source = scratch / "flights.csv"
    hours: dict[str, tuple[str, str]] = {}
    buckets: dict[str, str] = {}
    with _open(path) as file, source.open("w") as copy:
        copy.write(next(file))
        for number, line in enumerate(file):
            if records and number >= records:
                break
            copy.write(line)
            late, when, origin, destination, distance, _ = line.split(",")
            if when[:13] not in hours:
                day = datetime.fromisoformat(when)
                hours[when[:13]] = (str(day.hour), str(day.weekday()))
            if distance not in buckets:
                buckets[distance] = _bucket(distance)
            labels.append(int(late))
            for column, token in zip(
                fields, (origin, destination, *hours[when[:13]], buckets[distance]), strict=True
            ):
                column.append(token)
    job = (
        'format = "delimited"\nheader = true\ncolumns = { late = "label", when = "time", origin = '
        '"categorical", destination = "categorical", distance = "number", delay = "ignore" }\n'
    )
    return Log(source, job, np.array(labels, np.int8), fields, crossed=True)


def read_svmlight(path: Path, scratch: Path, records: int) -> Log:
    """Read an svmlight log of binary features, its first ``records`` only (0: all)."""
    labels: list[int] = []
    features: list[Any] = []
    source = scratch / "log.svmlight"
    with _open(path) as file, source.open("w") as copy:
        for number, line in enumerate(file):
            if records and number >= records:
                break
            copy.write(line)
            label, *pairs = line.split()
            labels.append(int(float(label) > 0))
            features.append([pair.partition(":")[0] for pair in pairs])
    return Log(
        source, 'format = "svmlight"\n', np.array(labels, np.int8), (features,), crossed=False
    )


def ours(log: Log, rate: float, penalties: dict[str, float], *, cross: bool) -> tuple[float, float]:
    """Train ours in a process; return its progressive logloss and AUC."""
    crosses = [f"{FIELDS[a]}*{FIELDS[b]}" for a, b in CROSSES] if cross else []
    with tempfile.TemporaryDirectory(dir=log.source.parent) as out:
        job = Path(out) / "job.toml"
        model = {"alpha": rate, **penalties}
        lines = [f"{name} = {value}" for name, value in model.items()]
        job.write_text(
            f'[source]\nuri = ["{log.source.resolve()}"]\ncross = {json.dumps(crosses)}\n{log.job}'
            '[model]\nkind = "lr"\n' + "\n".join(lines) + "\n"
        )
        command = [sys.executable, "-m", "streamlearn", "train", str(job), "--lanes", "1"]
        process.run([*command, "--out", str(Path(out) / "out")])
        report = json.loads((Path(out) / "out" / "report.json").read_text())
    if report["examples"] != len(log.labels):
        raise RuntimeError(f"learned {report['examples']} of {len(log.labels)} records")
    return report["logloss"], report["auc"]


def _vw_text(log: Log) -> Path:
    text = log.source.with_suffix(".vw")
    with text.open("w") as file:
        if log.crossed:
            for label, *tokens in zip(log.labels, *log.fields, strict=True):
                spaces = " ".join(f"|{n} {n}{t}" for n, t in zip(NAMESPACES, tokens, strict=True))
                file.write(f"{1 if label else -1} {spaces}\n")
        else:
            for label, tokens in zip(log.labels, log.fields[0], strict=True):
                file.write(f"{1 if label else -1} | {' '.join(tokens)}\n")
    return text


def wabbit(
    log: Log, text: Path, rate: float, penalties: dict[str, float], *, cross: bool
) -> tuple[float, float]:
    """Train VW in a process; return its progressive logloss and AUC."""
    flags = ["--ftrl", "-b", "24", "--ftrl_alpha", str(rate)]
    flags += ["--ftrl_beta", str(penalties["beta"])]
    flags += ["--l1", str(penalties["l1"]), "--l2", str(penalties["l2"])]
    if cross:
        flags += [part for a, b in CROSSES for part in ("-q", NAMESPACES[a] + NAMESPACES[b])]
    result = vw.run(text, flags, labels=log.labels)
    return result["logloss"], result["auc"]


def _matrix(log: Log, *, cross: bool) -> csr_matrix:
    """Hash a log's features into 2**SGD_BITS columns."""
    mask = (1 << SGD_BITS) - 1
    if not log.crossed:
        counts = [len(tokens) for tokens in log.fields[0]]
        index = np.array([int(t) & mask for tokens in log.fields[0] for t in tokens], np.int64)
        indptr = np.concatenate([[0], np.cumsum(counts)])
    else:
        mixer = np.uint64(0x9E3779B97F4A7C15)
        columns = []
        for place, tokens in enumerate(log.fields):
            _, codes = np.unique(np.array(tokens), return_inverse=True)
            columns.append((codes.astype(np.uint64) + np.uint64(1 + (place << 20))) * mixer)
        if cross:
            columns += [(columns[a] ^ (columns[b] >> np.uint64(7))) * mixer for a, b in CROSSES]
        index = np.column_stack(columns) >> np.uint64(64 - SGD_BITS)
        indptr = np.arange(len(log.labels) + 1) * index.shape[1]
        index = index.ravel().astype(np.int64)
    shape = (len(log.labels), 1 << SGD_BITS)
    return csr_matrix((np.ones(len(index), np.float64), index, indptr), shape=shape)


def sgd(log: Log, matrix: csr_matrix, rate: float) -> tuple[float, float]:
    """Train scikit-learn's SGDClassifier; return its progressive logloss and AUC."""
    model = SGDClassifier(
        loss="log_loss", penalty=None, learning_rate="constant", eta0=rate, shuffle=False
    )
    scores = np.full(len(log.labels), 0.5)
    for start in range(0, len(log.labels), SGD_RECORDS):
        rows = matrix[start : start + SGD_RECORDS]
        if start:
            scores[start : start + SGD_RECORDS] = model.predict_proba(rows)[:, 1]
        model.partial_fit(rows, log.labels[start : start + SGD_RECORDS], classes=[0, 1])
    clipped = np.clip(scores, 1e-7, 1 - 1e-7)
    return float(log_loss(log.labels, clipped)), float(roc_auc_score(log.labels, scores))


def main() -> None:
    """Run every contender at every rate; print a table."""
    parser = argparse.ArgumentParser(description="Progressive accuracy beside the peers.")
    parser.add_argument("log", type=Path, help="a flights CSV or an svmlight file, plain or gzip")
    parser.add_argument("--records", type=int, default=0, help="only the first N; 0: all")
    parser.add_argument("--beta", type=float, default=1.0)
    parser.add_argument("--l1", type=float, default=0.0)
    parser.add_argument("--l2", type=float, default=0.0)
    parser.add_argument("--only", action="append", choices=["ours", "vw", "sklearn"])
    args = parser.parse_args()
    chosen = args.only or ["ours", "vw", "sklearn"]
    penalties = {"beta": args.beta, "l1": args.l1, "l2": args.l2}
    scratch = Path(".bench")
    scratch.mkdir(exist_ok=True)
    with _open(args.log) as file:
        read = read_flights if next(file).startswith("late,") else read_svmlight
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        log = read(args.log, Path(folder), args.records)
        text = _vw_text(log) if "vw" in chosen else Path()
        print(f"{args.log.name}: {len(log.labels):,} records\n")
        print("| features | contender | rate | logloss | AUC |\n|---|---|---:|---:|---:|")
        for cross in (False, True) if log.crossed else (False,):
            contenders = {
                "ours": ("streamlearn", FTRL_RATES),
                "vw": ("vw --ftrl", FTRL_RATES),
                "sklearn": ("SGDClassifier", SGD_RATES),
            }
            matrix = _matrix(log, cross=cross) if "sklearn" in chosen else None
            for key in chosen:
                name, rates = contenders[key]
                for rate in rates:
                    if key == "ours":
                        loss, auc = ours(log, rate, penalties, cross=cross)
                    elif key == "vw":
                        loss, auc = wabbit(log, text, rate, penalties, cross=cross)
                    else:
                        loss, auc = sgd(log, matrix, rate)
                    features = "with crosses" if cross else "linear"
                    print(f"| {features} | {name} | {rate} | {loss:.4f} | {auc:.4f} |", flush=True)


if __name__ == "__main__":
    main()
