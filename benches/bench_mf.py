"""Ratings to a factorization: this project beside LIBMF and scikit-surprise, in one go.

    python benches/bench_mf.py [--ratings N] [--dims 32,256,2048] [--lanes 1,2] [--epochs N]
        [--movielens PATH]... [--peer libmf=PATH] [--peer surprise] [--rounds R] [--json OUT]

Question: how many ratings a second of CPU does a pass of gradient descent learn, beside a peer's,
and how soon does the error on held-out ratings come down to the best that the peer reaches?

Method: ratings are made by ``netflix_ratings.py`` (kept in ``.bench/``), or are those of files of
MovieLens. A tenth is held out, by the hash that ours goes by, so that all are judged on the same
ratings, which none has learned.

* Quality, for dims up to TUNED_DIM_MAX: each contender runs once at each of its four settings,
  one lane or thread, and is judged after each pass; the setting of the lowest RMSE is its own. The
  target is LIBMF's lowest (ours, without LIBMF), which each may reach at any of its settings.
* Speed: each contender, at its own setting, in a process of its own, with nothing held out; rounds
  are interleaved, so that a noisy neighbour meets all of them, and medians are shown. CPU and wall
  time of a pass are what the process used between two lines that it says, one a pass. The first
  pass is not in it: ours reads and parses the text in it, LIBMF before it. Nor is the second of
  ours, which begins with the arranging of ratings.

scikit-surprise tells of no pass, so its time is that of ``fit`` in the runs for quality, and its
RMSE is what it has after half of the passes, or all. It is asked for MovieLens alone: its lists
take some 400 bytes a rating.

Units: M ratings/s are those that are learned, of one pass, by a second of CPU of all threads or by
a second of wall. "To target" is passes times their CPU seconds. "Process" is the whole process of
a timed run of PASSES passes: start, compiled kernels that are loaded, text, and the model written.
RMSEs are of predictions that are not cut to the scale. Kernels are compiled by a run that is not
shown.

Budget (one lane, machine of docs/performance.md): 2.5 x LIBMF's ratings a second of CPU at dims 32
and 256, 2 x at 2048; at least LIBMF's best RMSE, in half of its CPU seconds.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

import libmf
import netflix_ratings
import process
import surprise_svd
from bench_ctr import BENCH, machine
from streamlearn.compute.kernels.factors import held_out
from streamlearn.online.ratings import rating_keys

RATINGS = 20_000_000
HELD_OUT = 0.1
EPOCHS = 30
TUNED_DIM_MAX = 256
# Of a timed run: enough for a median of three or more.
PASSES = 5
# Ours: alpha, l2, decay. As many as a peer has.
SETTINGS = ((0.02, 0.03, 0.5), (0.03, 0.04, 0.5), (0.03, 0.05, 0.5), (0.03, 0.06, 0.5))
# What our log says after a pass.
_PASS = re.compile(r"\bpass (\d+): step ")


@dataclass(frozen=True, slots=True)
class Prepared:
    """Ratings as each contender reads them.

    Attributes
    ----------
    name : str
    source : Path
        All of them, for ours, which holds out a share itself.
    learned, held_out : Path
        In LIBMF's format: what ours learns, what it holds out.
    ratings, ratings_held_out : int
    users, items : int
    truth_rmse : float or None
        Where the truth is known.
    """

    name: str
    source: Path
    learned: Path
    held_out: Path
    ratings: int
    ratings_held_out: int
    users: int
    items: int
    truth_rmse: float | None = None


@njit(nogil=True)
def _hold_out(users, items, below, held):
    """Say of each pair of keys whether ours holds its rating out, into ``held`` (bool[n]).

    Not cached: its helper stands in another file.
    """
    for i in range(users.size):
        held[i] = held_out(users[i], items[i], below)


def holds_out(users: np.ndarray, items: np.ndarray, share: float) -> np.ndarray:
    """Return which ratings ours holds out, bool[n], given integer ids."""
    held = np.zeros(len(users), np.bool_)
    _hold_out(*rating_keys(users, items), np.uint64(round(share * 2.0**32)), held)
    return held


def generated(ratings: int, seed: int, folder: Path) -> Prepared:
    """Make ratings, or find those that were made, in a folder."""
    source = folder / f"netflix-{ratings}-{seed}.dat"
    learned, held = source.with_suffix(".libmf"), source.with_suffix(".held.libmf")
    known_path = source.with_name(source.name + ".json")
    if not (known_path.exists() and held.exists()):
        drawn = netflix_ratings.draw(ratings, seed)
        whole = drawn.learned
        out = holds_out(whole.users, whole.items, HELD_OUT)
        for path, kept in ((learned, ~out), (held, out)):
            columns = (whole.users, whole.items, whole.stars, whole.timestamps)
            part = netflix_ratings.Ratings(*(column[kept] for column in columns))
            netflix_ratings.write(part, path, "libmf")
        drawn.known["ratings_held_out"] = int(out.sum())
        netflix_ratings.generate(source, "dat", drawn)
    known = json.loads(known_path.read_text())
    return Prepared(
        f"generated, {ratings / 1e6:g} M",
        source,
        learned,
        held,
        ratings=known["ratings"],
        ratings_held_out=known["ratings_held_out"],
        users=known["users_rating"],
        items=known["items_rated"],
        truth_rmse=known["learned"]["truth_rmse"],
    )


def movielens(path: Path, folder: Path) -> Prepared:
    """Read a file of MovieLens, plain or gzip; write what the contenders read into a folder.

    Raises
    ------
    ValueError
        A line does not begin with a user, an item and a rating.
    """
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    lines = text.replace("::", "\t").replace(",", "\t").splitlines()
    try:
        columns = np.loadtxt(
            lines[lines[0].startswith("userId") :], delimiter="\t", usecols=(0, 1, 2), ndmin=2
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}; expected a user, an item and a rating") from None
    name = path.name.removesuffix(".gz")
    source = folder / name
    source.write_text(text)
    learned, held = folder / f"{name}.libmf", folder / f"{name}.held.libmf"
    users, items = columns[:, :2].astype(np.int64).T
    out = holds_out(users, items, HELD_OUT)
    for target, kept in ((learned, ~out), (held, out)):
        np.savetxt(target, columns[kept], fmt="%d %d %g")
    return Prepared(
        name,
        source,
        learned,
        held,
        ratings=len(columns),
        ratings_held_out=int(out.sum()),
        users=len(np.unique(users)),
        items=len(np.unique(items)),
    )


def train(
    source: Path,
    setting: tuple[float, ...],
    *,
    dim: int,
    epochs: int,
    lanes: int = 1,
    share: float = 0.0,
) -> dict[str, Any]:
    """Train ours in a process of its own; return its report, with what the process used.

    Parameters
    ----------
    source : Path
    setting : tuple
        Alpha, l2, decay.
    dim, epochs, lanes : int
    share : float
        Of what is held out.

    Returns
    -------
    dict
        The report; further ``process_seconds``, ``process_cpu_seconds``,
        ``process_peak_rss_bytes``, and of three epochs or more medians of ``epoch_seconds`` and
        ``epoch_cpu_seconds`` over all but the first two.

    Raises
    ------
    RuntimeError
        It failed, or said another number of passes.
    """
    alpha, l2, decay = setting
    with tempfile.TemporaryDirectory(dir=source.parent) as out:
        command = [sys.executable, "-m", "streamlearn", "train", str(source), "--model", "mf"]
        command += ["--dim", str(dim), "--epochs", str(epochs), "--lanes", str(lanes)]
        command += ["--alpha", str(alpha), "--l2", str(l2), "--set", f"model.decay={decay}"]
        command += ["--set", f"model.held_out={share}", "--out", out]
        used, lines = process.run_stamped(command, stderr=True)
        report = json.loads((Path(out) / "report.json").read_text())
    said = [line for line in lines if _PASS.search(line.text)]
    if len(said) != epochs or len(report["passes"]) != epochs:
        raise RuntimeError(f"{source}: {len(said)} of {epochs} passes: {used.stderr[-400:]}")
    return {
        **report,
        **process.between(said[1:]),
        "process_seconds": used.seconds,
        "process_cpu_seconds": used.cpu_seconds,
        "process_peak_rss_bytes": used.peak_rss_bytes,
    }


@dataclass(frozen=True, slots=True)
class Quality:
    """What a contender reached at its settings.

    Attributes
    ----------
    runs : dict
        For each setting, its RMSE on held-out ratings after each pass; after the last one alone
        where no more is known.
    told : dict or None
        What the run with the lowest RMSE tells of speed, of who is timed in no other.
    """

    runs: dict[tuple[float, ...], dict[int, float]]
    told: dict[str, Any] | None = None

    @property
    def best(self) -> tuple[float, int, tuple[float, ...]]:
        """The lowest RMSE, the pass after which it was, and the setting."""
        return min(
            (rmse, epoch, setting)
            for setting, run in self.runs.items()
            for epoch, rmse in run.items()
        )

    def epochs_to(self, target: float) -> int | None:
        """Return the fewest passes to an RMSE of no more than a target; None: it is not reached."""
        reached = (e for run in self.runs.values() for e, rmse in run.items() if rmse <= target)
        return min(reached, default=None)


def tune(
    prepared: Prepared, dim: int, epochs: int, peers: dict[str, Path | None]
) -> dict[str, Quality]:
    """Run each contender at each of its settings; return what they reached, by name."""
    found = {"streamlearn": _tune_ours(prepared, dim, epochs)}
    if program := peers.get("libmf"):
        found["LIBMF"] = _tune_libmf(program, prepared, dim, epochs)
    if "surprise" in peers and prepared.truth_rmse is None:
        found["surprise"] = _tune_surprise(prepared, dim, epochs)
    return found


def _tune_ours(prepared: Prepared, dim: int, epochs: int) -> Quality:
    runs: dict[tuple[float, ...], dict[int, float]] = {}
    for setting in SETTINGS:
        report = train(prepared.source, setting, dim=dim, epochs=epochs, share=HELD_OUT)
        _check(prepared, report)
        runs[setting] = {told["pass"]: told["held_out_rmse"] for told in report["passes"]}
        _tell(prepared, dim, "streamlearn", setting, runs[setting])
    return Quality(runs)


def _tune_libmf(program: Path, prepared: Prepared, dim: int, epochs: int) -> Quality:
    runs: dict[tuple[float, ...], dict[int, float]] = {}
    for rate, l2 in libmf.SETTINGS:
        result = libmf.run(
            program,
            prepared.learned,
            dim=dim,
            rate=rate,
            l2=l2,
            epochs=epochs,
            held_out=prepared.held_out,
        )
        runs[rate, l2] = dict(enumerate(result["held_out_rmse"], 1))
        _tell(prepared, dim, "LIBMF", (rate, l2), runs[rate, l2])
    return Quality(runs)


def _tune_surprise(prepared: Prepared, dim: int, epochs: int) -> Quality:
    runs: dict[tuple[float, ...], dict[int, float]] = {}
    told = []
    for rate, l2 in surprise_svd.SETTINGS:
        runs[rate, l2] = {}
        for count in sorted({max(epochs // 2, 1), epochs}):
            result = surprise_svd.run(
                prepared.learned, prepared.held_out, dim=dim, rate=rate, l2=l2, epochs=count
            )
            told.append(result)
            runs[rate, l2][count] = result["rmse"]
        _tell(prepared, dim, "surprise", (rate, l2), runs[rate, l2])
    return Quality(runs, min(told, key=lambda result: result["rmse"]))


def _check(prepared: Prepared, report: dict[str, Any]) -> None:
    """Complain if ours has not held out what the peers are judged on."""
    last = report["passes"][-1]
    learned = round(last["examples_per_second"] * last["seconds"]) + report["duplicates"]
    expected = prepared.ratings - prepared.ratings_held_out
    if learned != expected:
        raise RuntimeError(f"{prepared.name}: ours learned {learned} ratings, peers {expected}")


def _tell(
    prepared: Prepared, dim: int, name: str, setting: tuple[float, ...], run: dict[int, float]
) -> None:
    best = min(run, key=lambda epoch: run[epoch])
    last = max(run)
    print(
        f"{prepared.name}  dim {dim}  {name:12} {setting}: RMSE {run[best]:.4f} after {best} "
        f"passes, {run[last]:.4f} after {last}",
        file=sys.stderr,
    )


def compare(
    prepared: Prepared,
    dim: int,
    *,
    epochs: int,
    lanes: list[int],
    rounds: int,
    peers: dict[str, Path | None],
) -> list[dict[str, Any]]:
    """Compare the contenders on ratings at one dim; return a row for each."""
    found = tune(prepared, dim, epochs, peers) if dim <= TUNED_DIM_MAX else {}
    ours = found["streamlearn"].best[2] if found else SETTINGS[0]
    theirs = found["LIBMF"].best[2] if "LIBMF" in found else libmf.SETTINGS[0]
    runs: dict[tuple[str, int], Callable[[], dict[str, Any]]] = {}
    for count in lanes:
        runs["streamlearn", count] = partial(_ours, prepared, ours, dim, count)
        if program := peers.get("libmf"):
            runs["LIBMF", count] = partial(_libmf, program, prepared, theirs, dim, count)
    for count in lanes:
        # kernels are compiled, or loaded, in a run of the same kind
        train(prepared.source, ours, dim=dim, epochs=2, lanes=count)
    timed: dict[tuple[str, int], list[dict[str, Any]]] = {key: [] for key in runs}
    for number in range(rounds):
        for (name, count), run in runs.items():
            result = run()
            timed[name, count].append(result)
            speed = (prepared.ratings - result["left_out"]) / result["epoch_cpu_seconds"] / 1e6
            print(
                f"round {number + 1}/{rounds}  {prepared.name}  dim {dim}  {name:12} "
                f"{count} lanes  {speed:.2f} M ratings/s of CPU",
                file=sys.stderr,
            )
    rows = [_row(prepared, dim, *key, results) for key, results in timed.items()]
    if "surprise" in found:
        rows.append(_surprise_row(prepared, dim, found["surprise"]))
    target = found["LIBMF" if "LIBMF" in found else "streamlearn"].best[0] if found else None
    return [_judged(row, found.get(row["name"]), target) for row in rows]


def _ours(prepared: Prepared, setting: tuple[float, ...], dim: int, lanes: int) -> dict[str, Any]:
    report = train(prepared.source, setting, dim=dim, epochs=PASSES, lanes=lanes)
    keys = ("epoch_seconds", "epoch_cpu_seconds")
    return {
        **{key: report[key] for key in keys},
        "cpu_seconds": report["process_cpu_seconds"],
        "seconds": report["process_seconds"],
        "peak_rss_bytes": report["process_peak_rss_bytes"],
        "left_out": report["duplicates"],
    }


def _libmf(
    program: Path, prepared: Prepared, setting: tuple[float, ...], dim: int, threads: int
) -> dict[str, Any]:
    rate, l2 = setting
    result = libmf.run(
        program, prepared.learned, dim=dim, rate=rate, l2=l2, epochs=PASSES, threads=threads
    )
    return {**result, "left_out": prepared.ratings_held_out}


def _row(
    prepared: Prepared, dim: int, name: str, lanes: int, results: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the medians of one contender's timed runs, and its rates."""

    def median(key: str) -> float:
        return float(statistics.median(result[key] for result in results))

    count = prepared.ratings - results[0]["left_out"]
    cpu, wall = median("epoch_cpu_seconds"), median("epoch_seconds")
    return {
        "ratings": prepared.name,
        "dim": dim,
        "name": name,
        "lanes": lanes,
        "ratings_per_cpu_second": count / cpu,
        "ratings_per_second": count / wall,
        "epoch_ratings": count,
        "epoch_cpu_seconds": cpu,
        "epoch_seconds": wall,
        "process_cpu_seconds": median("cpu_seconds"),
        "process_seconds": median("seconds"),
        "peak_rss_bytes": median("peak_rss_bytes"),
        "epoch_cpu_seconds_of_rounds": [result["epoch_cpu_seconds"] for result in results],
    }


def _surprise_row(prepared: Prepared, dim: int, quality: Quality) -> dict[str, Any]:
    count = prepared.ratings - prepared.ratings_held_out
    told = quality.told
    assert told is not None
    return {
        "ratings": prepared.name,
        "dim": dim,
        "name": "surprise",
        "lanes": 1,
        "ratings_per_cpu_second": count / told["epoch_cpu_seconds"],
        "ratings_per_second": count / told["epoch_seconds"],
        "epoch_ratings": count,
        **{key: told[key] for key in ("epoch_cpu_seconds", "epoch_seconds", "peak_rss_bytes")},
    }


def _judged(row: dict[str, Any], quality: Quality | None, target: float | None) -> dict[str, Any]:
    """Add to a row of speed what is known of quality, which one lane has told."""
    if quality is None or target is None:
        return row
    best, epoch, setting = quality.best
    epochs = quality.epochs_to(target)
    # a pass of the run for quality has the ratings that are not held out
    cpu = row["epoch_cpu_seconds"] * (1 - HELD_OUT if row["name"] == "streamlearn" else 1)
    return {
        **row,
        "best_rmse": best,
        "best_epoch": epoch,
        "best_setting": setting,
        "held_out_rmse": [
            {"setting": run, "of_passes": told} for run, told in quality.runs.items()
        ],
        "target_rmse": target,
        "epochs_to_target": epochs,
        "cpu_seconds_to_target": None if epochs is None else epochs * cpu,
    }


def show(prepared: Prepared, rows: list[dict[str, Any]]) -> None:
    """Print the table of one set of ratings, and the ratios to LIBMF."""
    floor = "" if prepared.truth_rmse is None else f", RMSE of the truth {prepared.truth_rmse:.4f}"
    print(
        f"\n{prepared.name}: {prepared.ratings:,} ratings ({prepared.ratings_held_out:,} held out "
        f"for quality), {prepared.users:,} users, {prepared.items:,} items{floor}; {machine()}\n"
    )
    print(
        "| dim | | lanes | M ratings/s of CPU | of wall | x LIBMF | CPU s a pass | process CPU s "
        "| peak MB | best RMSE | after | to LIBMF's best: passes | CPU s |"
    )
    print("|---:|---|" + "---:|" * 11)
    peers = {(r["dim"], r["lanes"]): r for r in rows if r["name"] == "LIBMF"}
    for row in rows:
        peer = peers.get((row["dim"], row["lanes"]))
        ratio = _ratio(row, peer, "ratings_per_cpu_second")
        process_cpu = row.get("process_cpu_seconds")
        line = (
            f"| {row['dim']} | {row['name']} | {row['lanes']} "
            f"| {row['ratings_per_cpu_second'] / 1e6:.2f} | {row['ratings_per_second'] / 1e6:.2f} "
            f"| {ratio} | {row['epoch_cpu_seconds']:.4g} "
            f"| {'' if process_cpu is None else f'{process_cpu:.1f}'} "
            f"| {row['peak_rss_bytes'] / 1e6:.0f} "
        )
        if "best_rmse" in row:
            epochs, seconds = row["epochs_to_target"], row["cpu_seconds_to_target"]
            line += f"| {row['best_rmse']:.4f} | {row['best_epoch']} "
            line += "| not | |" if epochs is None else f"| {epochs} | {seconds:.3g} |"
        else:
            line += "| | | | |"
        print(line)
    for row in rows:
        peer = peers.get((row["dim"], 1))
        if row["name"] != "streamlearn" or row["lanes"] != 1 or peer is None:
            continue
        if row.get("cpu_seconds_to_target") and peer.get("cpu_seconds_to_target"):
            faster = peer["cpu_seconds_to_target"] / row["cpu_seconds_to_target"]
            print(f"dim {row['dim']}: LIBMF's best RMSE in {faster:.1f} x less CPU than LIBMF")


def _ratio(row: dict[str, Any], peer: dict[str, Any] | None, key: str) -> str:
    return f"{row[key] / peer[key]:.2f}" if peer else ""


def _numbers(text: str) -> list[int]:
    """Parse ``32,256`` of the command line."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected numbers from 1 on, as 32,256")
    return numbers


def peer(text: str) -> tuple[str, Path | None]:
    """Parse ``libmf=PATH`` or ``surprise`` of the command line.

    Raises
    ------
    argparse.ArgumentTypeError
        It is neither, or that peer is not there.
    """
    name, _, place = text.partition("=")
    if name == "libmf" and place:
        try:
            return name, libmf.program(Path(place))
        except FileNotFoundError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    if text == "surprise":
        if not surprise_svd.installed():
            raise argparse.ArgumentTypeError(surprise_svd.MISSING)
        return name, None
    raise argparse.ArgumentTypeError(f"{text!r} is no peer; expected libmf=PATH or surprise")


def main() -> None:
    """Make the ratings where they are not there, compare, print."""
    parser = argparse.ArgumentParser(description="Ratings to a factorization, beside the peers.")
    parser.add_argument(
        "--ratings", type=int, default=RATINGS, help="generated ones; 0: none of them"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--movielens", type=Path, nargs="+", default=[], help="files of MovieLens, plain or gzip"
    )
    parser.add_argument("--dims", type=_numbers, default=[32, 256, 2048])
    parser.add_argument("--lanes", type=_numbers, default=[1, 2])
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="passes of a run for quality")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        type=peer,
        help="libmf=PATH (mf-train, or its folder), surprise",
    )
    parser.add_argument("--json", type=Path, default=BENCH / "bench_mf.json")
    args = parser.parse_args()
    BENCH.mkdir(exist_ok=True)
    sets = [movielens(path, BENCH) for path in args.movielens]
    if args.ratings:
        sets.append(generated(args.ratings, args.seed, BENCH))
    kept = []
    for prepared in sets:
        rows = []
        for dim in args.dims:
            rows += compare(
                prepared,
                dim,
                epochs=args.epochs,
                lanes=args.lanes,
                rounds=args.rounds,
                peers=dict(args.peer),
            )
        show(prepared, rows)
        kept += rows
        args.json.write_text(json.dumps({"machine": machine(), "rows": kept}, indent=2) + "\n")


if __name__ == "__main__":
    main()
