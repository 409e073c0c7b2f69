"""xLearn on a Criteo log: a compiled converter to its text format, and runners of its programs.

    python benches/xlearn.py PROGRAM FILE [--held-out FILE] [--rate R]... [--flags F]

xLearn (Apache-2.0) is built by its own CMake outside this repository; PROGRAM is the folder that
has ``xlearn_train`` and ``xlearn_predict``, or either of them.

It reads svmlight text, ``label index:1 ...``, so raw logs must be converted first. The converter
is a compiled kernel: an index is the top bits of a hash of field and token, an integer's token the
code of its logarithmic bucket (``streamlearn.compute.kernels.bits``, as our own parser has it).
Nothing is validated. Its rows of a model are as many as the largest index says, 8 * dim + 8 bytes
each: 2.3 GB at 2**24 and dim 16.

The converted text stands in the page cache and xLearn reads it itself. The CPU time of converting
is that of the kernel over the raw bytes in memory: neither reading the raw log nor writing the text
is charged to xLearn, nor is writing its model (``-m none``). It reads all of a log before it
learns, and learns in an order that it shuffles; with one thread and one pass, the loss that it
prints is progressive, as each record is scored before it teaches.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numba import float32, int64, njit, uint64
from sklearn.metrics import roc_auc_score

import process
from streamlearn.compute.kernels.bits import load64, log_bucket, mix, store64
from vw import labels_of

__all__ = ["BITS", "DIM", "FLAGS", "RATES", "convert", "programs", "run", "score"]

BITS = 24
DIM = 16
# By default it multiplies pairs by the square of an example's norm, some 1/1300 here, which makes
# embeddings learn so slowly that the best of six rates (0.05 to 2) has a held-out logloss of 0.4705
# on 1 M generated records, where our logistic regression has 0.4696. Without it, and with a start
# small enough for that (0.66 is its own), the best of these rates has 0.4618.
FLAGS = ("--no-norm", "-u", "0.05")
RATES = (0.01, 0.02, 0.03, 0.05)
# A tab and a digit become a blank, an index of eight digits, a colon and a one.
GROWTH = 6
BLOCK_BYTES = 1 << 20
# An odd constant that tells the seeds of fields far apart; kernels have it as an argument.
SEED = np.uint64(0x9E3779B97F4A7C15)
# It puts a user's name into the names of its logs, and aborts where there is none.
_ENVIRONMENT = {"USER": "bench"}


@njit(nogil=True, cache=True)
def _digits(number):
    """Return the eight digits of a number below 10**8 as a word, the first in its lowest byte.

    Halves, quarters and digits are told apart in lanes of the word: floor(n / 100) is
    ``n * 5243 >> 19`` for n < 10**4, floor(n / 10) is ``n * 103 >> 10`` for n < 100.
    """
    halves = number // uint64(10000)
    halves |= (number - halves * uint64(10000)) << uint64(32)
    above = (halves * uint64(5243) >> uint64(19)) & uint64(0x0000007F0000007F)
    quarters = above | (halves - above * uint64(100)) << uint64(16)
    above = (quarters * uint64(103) >> uint64(10)) & uint64(0x000F000F000F000F)
    return (above | (quarters - above * uint64(10)) << uint64(8)) + uint64(0x3030303030303030)


@njit(nogil=True, cache=True)
def _digits(number):
    """Return the eight digits of a number below 10**8 as a word, the first in its lowest byte.

    Halves, quarters and digits are told apart in lanes of the word: floor(n / 100) is
    ``n * 5243 >> 19`` for n < 10**4, floor(n / 10) is ``n * 103 >> 10`` for n < 100.
    """
    halves = number // uint64(10000)
    halves |= (number - halves * uint64(10000)) << uint64(32)
    above = (halves * uint64(5243) >> uint64(19)) & uint64(0x0000007F0000007F)
    quarters = above | (halves - above * uint64(100)) << uint64(16)
    above = (quarters * uint64(103) >> uint64(10)) & uint64(0x000F000F000F000F)
    return (above | (quarters - above * uint64(10)) << uint64(8)) + uint64(0x3030303030303030)


@njit(nogil=True, cache=True)
def _digits(number):
    """Return the eight digits of a number below 10**8 as a word, the first in its lowest byte.

    Halves, quarters and digits are told apart in lanes of the word: floor(n / 100) is
    ``n * 5243 >> 19`` for n < 10**4, floor(n / 10) is ``n * 103 >> 10`` for n < 100.
    """
    halves = number // uint64(10000)
    halves |= (number - halves * uint64(10000)) << uint64(32)
    above = (halves * uint64(5243) >> uint64(19)) & uint64(0x0000007F0000007F)
    quarters = above | (halves - above * uint64(100)) << uint64(16)
    above = (quarters * uint64(103) >> uint64(10)) & uint64(0x000F000F000F000F)
    return (above | (quarters - above * uint64(10)) << uint64(8)) + uint64(0x3030303030303030)


@njit(nogil=True, cache=True)
def _digits(number):
    """Return the eight digits of a number below 10**8 as a word, the first in its lowest byte.

    Halves, quarters and digits are told apart in lanes of the word: floor(n / 100) is
    ``n * 5243 >> 19`` for n < 10**4, floor(n / 10) is ``n * 103 >> 10`` for n < 100.
    """
    halves = number // uint64(10000)
    halves |= (number - halves * uint64(10000)) << uint64(32)
    above = (halves * uint64(5243) >> uint64(19)) & uint64(0x0000007F0000007F)
    quarters = above | (halves - above * uint64(100)) << uint64(16)
    above = (quarters * uint64(103) >> uint64(10)) & uint64(0x000F000F000F000F)
    return (above | (quarters - above * uint64(10)) << uint64(8)) + uint64(0x3030303030303030)


@njit(nogil=True, cache=True)
def _pair(out, address, at, index):
    """Write a blank, the eight digits of an index, and ``:1``; return where it ends."""
    out[at] = 32
    store64(address + at + 1, _digits(index))
    out[at + 9] = 58
    out[at + 10] = 49
    return at + 11


@njit(nogil=True, cache=True)
def _convert(buffer, end, out, bits, seed):
    """Convert the complete lines of ``buffer[:end]``; return the bytes written and read.

    ``buffer`` must be readable 8 bytes past ``end``, ``out`` hold ``GROWTH`` times the input.
    """
    base = int64(buffer.ctypes.data)
    target = int64(out.ctypes.data)
    shift = uint64(64 - bits)
    at = 0
    wrote = 0
    done = 0
    while at < end:
        line_wrote = wrote
        out[wrote] = buffer[at]
        wrote += 1
        at += 1
        field = 0
        while at < end and buffer[at] == 9:
            at += 1
            field += 1
            if field <= 13:
                negative = at < end and buffer[at] == 45
                if negative:
                    at += 1
                value = int64(0)
                first = at
                while at < end and buffer[at] >= 48:
                    value = value * 10 + int64(buffer[at] - 48)
                    at += 1
                if at > first:
                    code = log_bucket(float32(-value if negative else value))
                    wrote = _pair(out, target, wrote, mix(code, uint64(field) * seed) >> shift)
            elif at < end and buffer[at] > 10:
                word = load64(base + at)
                wrote = _pair(out, target, wrote, mix(word, uint64(field) * seed) >> shift)
                at += 8
        if at >= end:
            wrote = line_wrote
            break
        out[wrote] = 10
        wrote += 1
        at += 1  # the newline
        done = at
    return wrote, done


def convert(source: Path, target: Path, bits: int = BITS) -> float:
    """Convert a Criteo log to xLearn's text; return the CPU seconds of the kernel alone.

    Parameters
    ----------
    source, target : Path
    bits : int
        Indexes are below ``2**bits``, at most 26: eight digits.

    Raises
    ------
    ValueError
        A line is not of Criteo's format (its categoricals are not eight characters long), or
        ``bits`` is not from 1 to 26.
    """
    if not 1 <= bits <= 26:
        raise ValueError(f"bits is {bits}; expected 1 to 26")
    room = np.zeros(BLOCK_BYTES + 64, np.uint8)
    # written once, so that the system's zeroing of its pages is not charged to the kernel
    out = np.ones(GROWTH * BLOCK_BYTES, np.uint8)
    _convert(room, 0, out, bits, SEED)  # compile
    seconds = 0.0
    with source.open("rb") as raw, target.open("wb") as text:
        kept = 0
        while got := raw.readinto(room[kept:BLOCK_BYTES].data):
            end = kept + got
            before = time.thread_time()
            wrote, done = _convert(room, end, out, bits, SEED)
            seconds += time.thread_time() - before
            if done == 0:
                raise ValueError(f"{source}: no line of Criteo's format in {end} bytes")
            text.write(out[:wrote].data)
            kept = end - done
            room[:kept] = room[done:end].copy()
    return seconds


def programs(path: Path) -> tuple[Path, Path]:
    """Return the programs that train and predict, given their folder or one of them.

    Raises
    ------
    FileNotFoundError
        A program is missing there.
    """
    folder = path if path.is_dir() else path.parent
    found = folder / "xlearn_train", folder / "xlearn_predict"
    for program in found:
        if not program.is_file():
            raise FileNotFoundError(f"{program}: no such program; expected a folder of xLearn's")
    return found


def run(
    path: Path,
    text: Path,
    *,
    rate: float,
    dim: int = DIM,
    flags: tuple[str, ...] = FLAGS,
    model: Path | None = None,
) -> dict[str, Any]:
    """Let xLearn learn a factorization machine from converted text, in one pass of one thread.

    Parameters
    ----------
    path : Path
        See `programs`.
    text : Path
        A log in xLearn's format.
    rate : float
        AdaGrad's, of weights and embeddings.
    dim : int
    flags : tuple of str
        Further flags of xLearn.
    model : Path, optional
        Write the model there (slower: do not time such a run).

    Returns
    -------
    dict
        ``logloss`` (progressive, in shuffled order), ``seconds`` and ``cpu_seconds`` of the
        process, ``peak_rss_bytes``, and ``read_seconds``, ``start_seconds`` and ``learn_seconds``
        of wall, as it says them: reading the text, drawing a model, learning.

    Raises
    ------
    RuntimeError
        xLearn failed, which it also does with exit status 0; its own words.
    """
    train, _ = programs(path)
    with tempfile.TemporaryDirectory(dir=text.parent) as scratch:
        command = [str(train), str(text), "-s", "1", "-p", "adagrad", "-k", str(dim)]
        command += ["-r", str(rate), "-e", "1", "-nthread", "1", "--dis-es", "--no-bin"]
        command += ["-l", f"{scratch}/log", "-m", "none" if model is None else str(model), *flags]
        used = process.run(command, _ENVIRONMENT)
    said = _plain(used.stdout)
    learned = re.search(r"\[\s*100%\s*\]\s+1\s+([\d.]+)\s+([\d.]+)", said)
    read = re.search(r"reading problem: ([\d.]+)", said)
    start = re.search(r"model initial: ([\d.]+)", said)
    if learned is None or read is None or start is None:
        raise RuntimeError(f"xlearn_train said no loss: {said[-400:]}")
    return {
        "logloss": float(learned[1]),
        "seconds": used.seconds,
        "cpu_seconds": used.cpu_seconds,
        "peak_rss_bytes": used.peak_rss_bytes,
        "read_seconds": float(read[1]),
        "start_seconds": float(start[1]),
        "learn_seconds": float(learned[2]),
    }


def score(
    path: Path, model: Path, text: Path, labels: np.ndarray, *, flags: tuple[str, ...] = FLAGS
) -> tuple[float, float]:
    """Let a model of xLearn's predict converted text; return its logloss and AUC.

    Parameters
    ----------
    path : Path
        See `programs`.
    model, text : Path
    labels : bool[records]
    flags : tuple of str
        Those that the model was learned with.

    Raises
    ------
    RuntimeError
        xLearn failed, which it also does with exit status 0; its own words.
    """
    _, predict = programs(path)
    with tempfile.TemporaryDirectory(dir=text.parent) as scratch:
        # it writes a binary twin beside what it reads
        link = Path(scratch) / "text"
        link.symlink_to(text.resolve())
        out = Path(scratch) / "scores"
        command = [str(predict), str(link), str(model), "-o", str(out), "-nthread", "1"]
        command += ["-l", f"{scratch}/log", *(flag for flag in flags if flag == "--no-norm")]
        used = process.run(command, _ENVIRONMENT)
        logits = np.loadtxt(out, np.float64) if out.exists() else np.empty(0)
    if len(logits) != len(labels):
        raise RuntimeError(
            f"xlearn_predict scored {len(logits)} of {len(labels)} records: "
            f"{_plain(used.stdout)[-400:]}"
        )
    losses = np.logaddexp(0.0, np.where(labels, -logits, logits))
    return float(losses.mean()), float(roc_auc_score(labels, logits))


def _plain(said: str) -> str:
    """Return text without the escapes that colour it."""
    return re.sub(r"\x1b\[[\d;]*m", "", said)


def main() -> None:
    """Convert a log, run xLearn on it at each rate, print what came of it."""
    parser = argparse.ArgumentParser(description="Run xLearn's FM on a Criteo-format log.")
    parser.add_argument("program", type=Path, help="the folder of xlearn_train and xlearn_predict")
    parser.add_argument("source", type=Path)
    parser.add_argument("--held-out", type=Path, help="also the logloss and AUC of this log")
    parser.add_argument("--rate", type=float, action="append")
    parser.add_argument("--bits", type=int, default=BITS)
    parser.add_argument("--dim", type=int, default=DIM)
    parser.add_argument("--flags", default=" ".join(FLAGS), help="further ones of xLearn")
    args = parser.parse_args()
    flags = tuple(args.flags.split())
    with tempfile.TemporaryDirectory(dir=args.source.parent) as scratch:
        text, held, model = (Path(scratch) / name for name in ("text", "held", "model"))
        converting = convert(args.source, text, args.bits)
        if args.held_out:
            convert(args.held_out, held, args.bits)
            labels = labels_of(args.held_out)
        os.sync()  # dirty pages would be written back during the run
        for rate in args.rate or RATES:
            kept = model if args.held_out else None
            result = run(args.program, text, rate=rate, dim=args.dim, flags=flags, model=kept)
            if args.held_out:
                loss, auc = score(args.program, model, held, labels, flags=flags)
                result |= {"held_out_logloss": loss, "held_out_auc": auc}
            print(json.dumps({"rate": rate, **result, "convert_cpu_seconds": converting}))


if __name__ == "__main__":
    main()
