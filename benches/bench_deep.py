"""Raw bytes to a net: this project beside the plain PyTorch way, in one go.

    python benches/bench_deep.py [--data DIR] [--fashion DIR] [--only PART,...] [--rounds N]
    python benches/bench_deep.py --cuda

Questions, one a part:

* ``speed``: how many records a second from a raw Criteo log to a net (DLRM), beside a
  ``DataLoader`` that splits lines in Python with embeddings beside the net (``deep_plain.py``)?
  Same net, minibatches and records; rounds are interleaved, medians are shown, and with them
  progressive loss.
* ``quality``: how good are nets after as many epochs over Fashion-MNIST, covtype and adult? The
  plain way shuffles anew each epoch and knows mean and deviation before; ours reads the file in its
  order (covtype is shuffled once, for both) and standardises as it goes. Means of ``--seeds``.
* ``links``: what do two workers lose behind links of 200 Mbit/s (``deep_links.py``; wants root)?
* ``overlap``: with pulls made as slow as compute (``deep_overlap.py``), how much of them is hidden?
* ``cuda`` (``--cuda``): DLRM at 16,384 rows on a GPU: a trace of the streams (``deep_trace.py``),
  and how busy compute is.

Units: wall seconds without imports; CPU seconds of the process, its children among them. Ratios are
of wall time.

Budget: speed at least 1.5 times the plain way's at equal loss; accuracy at least the plain way's;
over links at most 27 % of the bytes, 2.5 times the steps and a loss within 1 %; 85 % of slow pulls
hidden; on a GPU compute busy 90 % of the time.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, median
from typing import Any

import deep_links
import process
from bench_ctr import BENCH, machine

HERE = Path(__file__).resolve().parent
PARTS = ("speed", "quality", "links", "overlap")
FASHION = Path("/usr/share/datasets/fashion-mnist")
ADULT_NUMBERS = (0, 2, 4, 10, 11, 12)
COVTYPE_ROWS = 464_809  # of 581,012 for learning


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description="Nets beside the plain PyTorch way.")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--fashion", type=Path, default=FASHION)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--records", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600, help="of links")
    parser.add_argument("--cuda", action="store_true")
    given = parser.parse_args()
    print(machine())
    BENCH.mkdir(exist_ok=True)
    parts = given.only.split(",") if not given.cuda else ["cuda"]
    run = {"speed": speed, "quality": quality, "links": links, "overlap": overlap, "cuda": cuda}
    found = {}
    for part in parts:
        print(f"\n{part}")
        found[part] = run[part](given)
    (BENCH / "bench_deep.json").write_text(json.dumps(found, indent=1) + "\n")


# ---------------------------------------------------------------- ours and theirs


def ours(train: Path, *flags: str, test: Path | None = None) -> dict[str, Any]:
    """Learn with the command line; return its report, judged by ``test`` where there is one."""
    with tempfile.TemporaryDirectory() as scratch:
        out = f"{scratch}/out"
        common = ["--json", "--quiet"]
        command = [sys.executable, "-m", "streamlearn", "train", str(train), "--model", "deep"]
        report = json.loads(process.run([*command, *flags, *common, "--out", out]).stdout)
        if test is None:
            return report
        command = [sys.executable, "-m", "streamlearn", "evaluate", out, str(test), *common]
        judged = json.loads(process.run(command).stdout)
        return {**report, "loss": judged["loss"], "accuracy": judged["accuracy"]}


def plain(*words: str) -> dict[str, Any]:
    """Learn the plain way; return what it says."""
    used = process.run([sys.executable, str(HERE / "deep_plain.py"), *words])
    found: dict[str, Any] = json.loads(used.stdout.splitlines()[-1])
    return found | {"process_cpu_seconds": used.cpu_seconds}


# ---------------------------------------------------------------- parts


def speed(given: argparse.Namespace) -> dict[str, Any]:
    """Compare records a second over a raw log."""
    log = criteo(given.records)
    rounds: list[tuple[dict[str, Any], dict[str, Any]]] = []
    flags = ("--format", "criteo", "--net", "dlrm", "--minibatch", "2048")
    ours(log, *flags)  # compiles the kernels
    for _ in range(given.rounds):
        mine = ours(log, *flags)
        theirs = plain("clicks", str(log), "--net", "dlrm", "--batch", "2048",
                       "--records", str(given.records))  # fmt: skip
        rounds.append((mine, theirs))
    rows = []
    for who, sides in zip(("streamlearn", "plain PyTorch"), zip(*rounds, strict=True), strict=True):
        seconds = median(side["seconds"] for side in sides)
        cpu = median(side.get("process_cpu_seconds", 0.0) for side in sides)
        rows.append({
            "who": who, "records/s": given.records / seconds, "seconds": seconds,
            "process CPU s": cpu, "loss": median(side["loss"] for side in sides),
        })  # fmt: skip
    table(rows)
    ratio = rows[0]["records/s"] / rows[1]["records/s"]
    print(f"{ratio:.2f} x the records/s (at least 1.5)")
    return {"rows": rows, "ratio": ratio}


def quality(given: argparse.Namespace) -> dict[str, Any]:
    """Compare loss and accuracy on test records after equal epochs."""
    rows = []
    for name, tried in tasks(given).items():
        for who in ("streamlearn", "plain PyTorch"):
            found = [tried(who, seed) for seed in range(given.seeds)]
            accuracies = [one["accuracy"] for one in found]
            rows.append({
                "data": name, "who": who, "loss": mean(one["loss"] for one in found),
                "accuracy": mean(accuracies),
                "from": min(accuracies), "to": max(accuracies),
                "seconds": median(one["seconds"] for one in found),
            })  # fmt: skip
            table(rows[-1:], head=len(rows) == 1)
    return {"rows": rows}


def tasks(given: argparse.Namespace) -> dict[str, Any]:
    """Return by name what learns with one side and a seed."""
    train, test = covtype(given.data)
    adult, adult_test = unpacked(given.data, "adult.data"), unpacked(given.data, "adult.test")
    columns = [f"{i}={'number:raw' if i in ADULT_NUMBERS else 'categorical'}" for i in range(14)]

    def forest(who: str, seed: int) -> dict[str, Any]:
        hidden = "[256,128]"
        if who == "streamlearn":
            return ours(
                train, "--header", "--column", "Cover_Type=label", "--column", "*=number:raw",
                "--loss", "classes", *(f"--class={i}" for i in range(1, 8)), "--net", "mlp",
                "--net-setting", f"hidden={hidden}", "--minibatch", "256", "--epochs", "3",
                "--seed", str(seed), test=test,
            )  # fmt: skip
        settings = json.dumps({"hidden": json.loads(hidden)})
        return plain("table", str(train), str(test), "--task", "covtype", "--settings", settings,
                     "--epochs", "3", "--seed", str(seed))  # fmt: skip

    def income(who: str, seed: int) -> dict[str, Any]:
        if who == "streamlearn":
            return ours(
                adult, "--format", "delimited", "--trim",
                *(f"--column={one}" for one in (*columns, "14=label")),
                "--label", '14 in [">50K", ">50K."]', "--net", "wide_deep",
                "--net-setting", "hidden=[64,32]", "--minibatch", "256", "--epochs", "5",
                "--seed", str(seed), test=adult_test,
            )  # fmt: skip
        return plain("table", str(adult), str(adult_test), "--task", "adult", "--epochs", "5",
                     "--net", "wide_deep", "--settings", '{"hidden": [64, 32]}',
                     "--seed", str(seed))  # fmt: skip

    def clothes(who: str, seed: int) -> dict[str, Any]:
        images = given.fashion / "train-images-idx3-ubyte.gz"
        unseen = given.fashion / "t10k-images-idx3-ubyte.gz"
        if who == "streamlearn":
            return ours(
                images, "--format", "idx", "--net", "convnet", "--net-setting", "width=8",
                "--net-setting", "hidden=128", "--net-setting", "dropout=0.25",
                "--loss", "classes", "--classes", "10", "--minibatch", "128", "--epochs", "3",
                "--seed", str(seed), test=unseen,
            )  # fmt: skip
        settings = '{"width": 8, "hidden": 128, "dropout": 0.25}'
        return plain("images", str(given.fashion), str(given.fashion), "--net", "convnet",
                     "--settings", settings, "--batch", "128", "--epochs", "3",
                     "--seed", str(seed))  # fmt: skip

    return {"covtype": forest, "adult": income, "Fashion-MNIST": clothes}


def links(given: argparse.Namespace) -> dict[str, Any]:
    """Compare two workers behind slow links."""
    train, test = covtype(given.data)
    settings = argparse.Namespace(
        mbit=200.0, steps=given.steps, batch=256, hidden=1024, bucket=deep_links.BUCKET,
        contenders=deep_links.CONTENDERS,
    )  # fmt: skip
    found = deep_links.compare(train, test, settings)
    table([{"who": who, **said} for who, said in found.items()])
    theirs, mine = found["ddp"], found["ours"]
    share = mine["bytes"] / theirs["bytes"]
    floats = mine["bytes_a_step"] / (4 * mine["parameters"])
    ratio = mine["steps_per_second"] / theirs["steps_per_second"]
    worse = mine["loss"] / theirs["loss"] - 1
    print(f"{share:.1%} of the bytes ({floats:.1%} of float32's; at most 27 %), {ratio:.2f} x the "
          f"steps (at least 2.5), loss {worse:+.2%} (within 1 %)")  # fmt: skip
    return found


def overlap(given: argparse.Namespace) -> dict[str, Any]:
    """Say how much of slow pulls is hidden."""
    log = criteo(given.records)

    def measure(delay: int, slow: float) -> dict[str, Any]:
        words = [str(HERE / "deep_overlap.py"), str(log), "--delay", str(delay)]
        words += ["--slow", str(slow), "--settings", "{bottom=[256,64],top=[1024,512]}"]
        return json.loads(process.run([sys.executable, *words]).stdout.splitlines()[-1])

    measure(1, 0.0)
    rows = []
    alone = measure(1, 0.0)
    slow = alone["compute_seconds_a_step"]
    for delay in (0, 1):
        hidden: list[float] = []
        said: dict[str, Any] = {}
        for _ in range(given.rounds):
            said = measure(delay, slow)
            compute = said["compute_seconds_a_step"]
            hidden.append(1 - max(0.0, said["seconds_a_step"] - compute) / slow)
        rows.append({
            "delay": delay, "compute ms a step": 1e3 * said["compute_seconds_a_step"],
            "pull ms a step": 1e3 * slow, "ms a step": 1e3 * said["seconds_a_step"],
            "hidden": median(hidden), "loss": said["loss"],
        })  # fmt: skip
    table(rows)
    print(f"{rows[1]['hidden']:.0%} hidden with a delay (at least 85 %)")
    return {"alone": alone, "rows": rows}


def cuda(given: argparse.Namespace) -> dict[str, Any]:
    """Trace a GPU at work."""
    log = criteo(given.records)
    command = [sys.executable, str(HERE / "deep_trace.py"), str(log)]
    said: dict[str, Any] = json.loads(process.run(command).stdout.splitlines()[-1])
    table([said])
    return said


# ---------------------------------------------------------------- data, and how it is shown


def criteo(records: int) -> Path:
    """Return a generated log of so many records."""
    log = BENCH / f"criteo-{records}-1.tsv"
    if not log.exists():
        command = [sys.executable, str(HERE / "criteo_log.py"), "--records", str(records), str(log)]
        subprocess.run(command, check=True)
    return log


def covtype(data: Path) -> tuple[Path, Path]:
    """Return covtype's records to learn and to judge by, shuffled once."""
    train, test = BENCH / "covtype.train.csv", BENCH / "covtype.test.csv"
    if not test.exists():
        head, *lines = unpacked(data, "covtype.csv").read_text().splitlines(keepends=True)
        random.Random(7).shuffle(lines)
        train.write_text(head + "".join(lines[:COVTYPE_ROWS]))
        test.write_text(head + "".join(lines[COVTYPE_ROWS:]))
    return train, test


def unpacked(data: Path, name: str) -> Path:
    """Return a file of the real data without its compression."""
    path = BENCH / name
    if not path.exists():
        path.write_bytes(gzip.decompress((data / f"{name}.gz").read_bytes()))
    return path


def table(rows: list[dict[str, Any]], *, head: bool = True) -> None:
    """Print rows in columns."""
    if head:
        print("  ".join(f"{name:>16}" for name in rows[0]))
    for row in rows:
        print("  ".join(
            f"{value:>16}" if isinstance(value, str) else f"{value:>16,.5g}"
            for value in row.values()
        ))  # fmt: skip


if __name__ == "__main__":
    main()
