"""LIBMF on ratings in its text format: a runner of its program ``mf-train``.

    python benches/libmf.py PROGRAM LEARNED [--held-out FILE] [--dim K] [--rate R] [--l2 L]

LIBMF is built elsewhere, with AVX and ``-march=native``; the program is named by its path. It
learns r = b + <p, q>, b the mean rating, without biases, by its own AdaGrad with one step a row,
in the order of blocks of the matrix.

It tells no times. Its lines, one an iteration and flushed, are stamped as they come (see
``process.run_stamped``): the CPU time between two of them is one iteration's, with the sum of
squares that it prints as ``obj``, and, where there is a held-out file, with predicting that. So a
run for times has none. The first iteration, which stands after the reading of the text, is in no
rate.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import process

__all__ = ["EPOCHS", "SETTINGS", "program", "run"]

# Rate and l2. Few ratings want a large penalty, many a small one; its own defaults are 0.1 and 0.1.
SETTINGS = ((0.05, 0.03), (0.05, 0.05), (0.05, 0.08), (0.1, 0.08))
EPOCHS = 40


def program(path: Path) -> Path:
    """Return ``mf-train``, given it or its folder.

    Raises
    ------
    FileNotFoundError
        It is not there.
    """
    found = path / "mf-train" if path.is_dir() else path
    if not found.is_file():
        raise FileNotFoundError(f"{found}: no such program; expected LIBMF's mf-train")
    return found


def run(
    train: Path,
    learned: Path,
    *,
    dim: int,
    rate: float,
    l2: float,
    epochs: int = EPOCHS,
    threads: int = 1,
    held_out: Path | None = None,
) -> dict[str, Any]:
    """Let LIBMF learn.

    Parameters
    ----------
    train : Path
        See `program`.
    learned, held_out : Path
        Ratings in its format.
    dim, rate, l2, epochs, threads
        Its ``-k``, ``-r``, ``-l2``, ``-t`` and ``-s``.

    Returns
    -------
    dict
        ``rmse`` and ``held_out_rmse`` (None without a held-out file) after each epoch; medians of
        ``epoch_seconds`` and ``epoch_cpu_seconds`` over all but the first; ``seconds``,
        ``cpu_seconds`` and ``peak_rss_bytes`` of the process, which reads the text and writes the
        model.

    Raises
    ------
    RuntimeError
        LIBMF failed, which it also does with exit status 0; its own words.
    """
    command = [str(train), "-k", str(dim), "-r", str(rate), "-l2", str(l2), "-t", str(epochs)]
    command += ["-s", str(threads)]
    if held_out is not None:
        command += ["-p", str(held_out)]
    used, lines = process.run_stamped([*command, str(learned), "/dev/null"])
    said = [line for line in lines if line.text.split()[:1] and line.text.split()[0].isdigit()]
    if len(said) != epochs:
        raise RuntimeError(f"mf-train said {len(said)} of {epochs} epochs: {used.stdout[-400:]}")
    fields = [line.text.split() for line in said]
    return {
        "rmse": [float(words[1]) for words in fields],
        "held_out_rmse": None if held_out is None else [float(words[2]) for words in fields],
        "seconds": used.seconds,
        "cpu_seconds": used.cpu_seconds,
        "peak_rss_bytes": used.peak_rss_bytes,
        **process.between(said),
    }


def main() -> None:
    """Run LIBMF at one setting, or at each of SETTINGS; print what came of it."""
    parser = argparse.ArgumentParser(description="Run LIBMF on ratings.")
    parser.add_argument("program", type=Path, help="mf-train, or its folder")
    parser.add_argument("learned", type=Path)
    parser.add_argument("--held-out", type=Path)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--l2", type=float)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    args = parser.parse_args()
    for rate, l2 in SETTINGS if args.rate is None else ((args.rate, args.l2),):
        result = run(
            program(args.program),
            args.learned,
            dim=args.dim,
            rate=rate,
            l2=l2,
            epochs=args.epochs,
            held_out=args.held_out,
        )
        print(json.dumps({"rate": rate, "l2": l2, **result}), flush=True)


if __name__ == "__main__":
    main()
