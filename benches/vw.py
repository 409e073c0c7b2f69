"""Vowpal Wabbit on a Criteo log: a compiled converter to its text format, and a runner.

    python benches/vw.py FILE [--auc] [--alpha A] [--beta B] [--l1 L] [--bits N]

Vowpal Wabbit reads its own text format, so raw logs must be converted first. The converter is a
compiled kernel, and writes the least text that says the same as our features do: one namespace,
each present field once, a token behind a character that names its field, an integer as the code of
its logarithmic bucket (``streamlearn.compute.kernels.bits.log_bucket``, as our own parser has it).
Nothing is validated.

The converted text stands in the page cache and VW's C++ reads it itself (``-d``, through the PyPI
package, which ships no executable), so its own parser, hashing and learner are what is measured.
The CPU time of converting is that of the kernel over the raw bytes in memory: neither reading the
raw log nor writing and piping the text is charged to VW. Its progressive logloss is its "average
loss"; the AUC needs its predictions in a file, which costs it time, so that is a run of its own.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numba import float32, int64, njit
from sklearn.metrics import roc_auc_score

import process
from streamlearn.compute.kernels.bits import load64, log_bucket, store64

__all__ = ["convert", "labels_of", "run"]

# A tab and an integer become a blank, a field's character and at most four digits; a token keeps
# its length and gains two characters.
GROWTH = 3
BLOCK_BYTES = 16 << 20


@njit(nogil=True, cache=True)
def _convert(buffer, start, end, out):
    """Convert the complete lines of ``buffer[start:end]``; return the bytes written and read.

    ``buffer`` must be readable 8 bytes past ``end``, ``out`` hold ``GROWTH`` times the input.
    """
    base = int64(buffer.ctypes.data)
    target = int64(out.ctypes.data)
    at = start
    wrote = 0
    done = start
    while at < end:
        line_wrote = wrote
        # "1 |a" or "-1 |a"
        if buffer[at] == 49:
            out[wrote] = 49
            wrote += 1
        else:
            out[wrote] = 45
            out[wrote + 1] = 49
            wrote += 2
        out[wrote] = 32
        out[wrote + 1] = 124
        out[wrote + 2] = 97
        wrote += 3
        at += 1
        field = 0
        while at < end and buffer[at] == 9:
            at += 1
            if field < 13:
                negative = at < end and buffer[at] == 45
                if negative:
                    at += 1
                value = int64(0)
                first = at
                while at < end and buffer[at] >= 48:
                    value = value * 10 + int64(buffer[at] - 48)
                    at += 1
                if at > first:
                    code = int64(log_bucket(float32(-value if negative else value)))
                    out[wrote] = 32
                    out[wrote + 1] = 65 + field
                    wrote += 2
                    if code >= 1000:
                        out[wrote] = 48 + code // 1000
                        wrote += 1
                    if code >= 100:
                        out[wrote] = 48 + code // 100 % 10
                        wrote += 1
                    if code >= 10:
                        out[wrote] = 48 + code // 10 % 10
                        wrote += 1
                    out[wrote] = 48 + code % 10
                    wrote += 1
            elif at < end and buffer[at] > 10:
                out[wrote] = 32
                out[wrote + 1] = 65 + field if field < 26 else 71 + field
                store64(target + wrote + 2, load64(base + at))
                wrote += 10
                at += 8
            field += 1
        if at >= end:
            wrote = line_wrote
            break
        out[wrote] = 10
        wrote += 1
        at += 1  # the newline
        done = at
    return wrote, done


def convert(source: Path, target: Path) -> float:
    """Convert a Criteo log to VW's text; return the CPU seconds of the kernel alone.

    Raises
    ------
    ValueError
        A line is not of Criteo's format (its categoricals are not eight characters long).
    """
    room = np.zeros(BLOCK_BYTES + 64, np.uint8)
    out = np.zeros(GROWTH * BLOCK_BYTES, np.uint8)
    _convert(room, 0, 0, out)  # compile
    seconds = 0.0
    with source.open("rb") as raw, target.open("wb") as text:
        kept = 0
        while got := raw.readinto(room[kept:BLOCK_BYTES].data):
            end = kept + got
            before = time.thread_time()
            wrote, done = _convert(room, 0, end, out)
            seconds += time.thread_time() - before
            if done == 0:
                raise ValueError(f"{source}: no line of Criteo's format in {end} bytes")
            text.write(out[:wrote].data)
            kept = end - done
            room[:kept] = room[done:end].copy()
    return seconds


def labels_of(log: Path) -> np.ndarray:
    """Return the labels of a Criteo log, bool[records]: the first character of each line."""
    with log.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        return np.array([line[0] == ord("1") for line in iter(raw.readline, b"")])


def run(text: Path, flags: list[str], *, labels: np.ndarray | None = None) -> dict[str, Any]:
    """Let VW learn from converted text; return its loss, CPU and wall seconds and peak memory.

    Parameters
    ----------
    text : Path
        A log in VW's format.
    flags : list of str
        Further flags of VW: ``--ftrl -b 24 --ftrl_alpha 0.1``.
    labels : bool[records], optional
        Write predictions and judge them against these (slower: do not time such a run).

    Raises
    ------
    RuntimeError
        VW failed; its own words.
    """
    with tempfile.TemporaryDirectory(dir=text.parent) as scratch:
        predictions = Path(scratch) / "predictions"
        command = [sys.executable, "-m", "vowpalwabbit", "-d", str(text), "--no_stdin"]
        command += ["--loss_function", "logistic", "--link", "logistic", *flags]
        if labels is not None:
            command += ["-p", str(predictions)]
        used = process.run(command)
        loss = re.search(r"average loss = ([\d.]+)", used.stderr)
        examples = re.search(r"number of examples = (\d+)", used.stderr)
        if loss is None or examples is None:
            raise RuntimeError(f"vw said no loss: {used.stderr[-400:]}")
        auc = None
        if labels is not None:
            auc = float(roc_auc_score(labels, np.loadtxt(predictions, np.float32)))
        return {
            "logloss": float(loss[1]),
            "auc": auc,
            "seconds": used.seconds,
            "cpu_seconds": used.cpu_seconds,
            "peak_rss_bytes": used.peak_rss_bytes,
            "examples": int(examples[1]),
        }


def main() -> None:
    """Convert a log, run VW on it, print what came of it."""
    parser = argparse.ArgumentParser(description="Run Vowpal Wabbit on a Criteo-format log.")
    parser.add_argument("source", type=Path)
    parser.add_argument("--auc", action="store_true", help="also the AUC (a slower run)")
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--beta", type=float, default=1.0)
    parser.add_argument("--l1", type=float, default=1.0)
    parser.add_argument("--l2", type=float, default=0.0)
    parser.add_argument("--bits", type=int, default=24)
    args = parser.parse_args()
    text = args.source.with_name(args.source.name + ".vw")
    converting = convert(args.source, text)
    os.sync()  # dirty pages would be written back during the run
    flags = ["--ftrl", "-b", str(args.bits), "--ftrl_alpha", str(args.alpha)]
    flags += ["--ftrl_beta", str(args.beta), "--l1", str(args.l1), "--l2", str(args.l2)]
    result = run(text, flags, labels=labels_of(args.source) if args.auc else None)
    print(json.dumps({**result, "convert_cpu_seconds": converting}))


if __name__ == "__main__":
    main()
