"""scikit-surprise's SVD on ratings in LIBMF's text format.

    python benches/surprise_svd.py LEARNED --held-out FILE [--dim K] [--rate R] [--l2 L] ...

Its SVD is the biased factorization that ours is, by plain stochastic gradient descent in float64
with one constant rate, compiled by Cython, over lists of Python's by user. ``fit`` alone is timed:
neither reading the text nor the making of those lists is. Its predictions are not cut to the scale.

It is wanted by ``learn`` alone and imported there.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import process

__all__ = ["EPOCHS", "MISSING", "SETTINGS", "installed", "learn", "run"]

MISSING = "scikit-surprise is not installed: pip install scikit-surprise==1.1.5"
# Rate and l2. Its own defaults are 0.005 and 0.02, which are worse on MovieLens.
SETTINGS = ((0.005, 0.06), (0.01, 0.06), (0.01, 0.08), (0.01, 0.1))
EPOCHS = 40


def installed() -> bool:
    """Whether scikit-surprise can be imported."""
    return importlib.util.find_spec("surprise") is not None


def learn(
    learned: Path, held_out: Path, *, dim: int, rate: float, l2: float, epochs: int = EPOCHS
) -> dict[str, Any]:
    """Learn ratings in this process; return the RMSE on those held out, and seconds an epoch.

    Parameters
    ----------
    learned, held_out : Path
        Ratings as LIBMF has them: user, item, rating.
    dim, rate, l2, epochs
        Its ``n_factors``, ``lr_all``, ``reg_all`` and ``n_epochs``.

    Returns
    -------
    dict
        ``ratings``, ``rmse`` (after the last epoch: it tells of no other), ``epoch_seconds`` and
        ``epoch_cpu_seconds``, ``peak_rss_bytes`` of this process.

    Raises
    ------
    ModuleNotFoundError
        scikit-surprise is not installed; what to install.
    """
    if not installed():
        raise ModuleNotFoundError(MISSING)
    from surprise import SVD, Dataset, Reader  # type: ignore[import-untyped]

    columns = np.loadtxt(learned, np.float64)
    low, high = columns[:, 2].min(), columns[:, 2].max()
    users, items = columns[:, :2].astype(np.int64).T.tolist()
    raw = list(zip(users, items, columns[:, 2].tolist(), [None] * len(users), strict=True))
    known = Dataset(Reader(rating_scale=(low, high))).construct_trainset(raw)
    model = SVD(n_factors=dim, n_epochs=epochs, lr_all=rate, reg_all=l2, random_state=1)
    cpu, wall = time.process_time(), time.perf_counter()
    model.fit(known)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    judged = np.loadtxt(held_out, np.float64, ndmin=2)
    error = judged[:, 2] - _predict(model, known, judged[:, :2].astype(np.int64))
    return {
        "ratings": len(columns),
        "rmse": float(np.sqrt((error**2).mean())),
        "epoch_seconds": wall / epochs,
        "epoch_cpu_seconds": cpu / epochs,
        "peak_rss_bytes": process.peak_rss_bytes(),
    }


def _predict(model: Any, known: Any, pairs: np.ndarray) -> np.ndarray:
    """Return predictions of pairs of ids, as ``SVD.estimate`` has them, float64[n]."""
    last = model.bu.size, model.bi.size  # the place of what it does not know
    users, items = (
        np.array([places.get(one, none) for one in ids.tolist()])
        for ids, places, none in zip(
            pairs.T, (known._raw2inner_id_users, known._raw2inner_id_items), last, strict=True
        )
    )
    biases = [np.append(b, 0.0) for b in (model.bu, model.bi)]
    factors = [np.vstack([v, np.zeros(v.shape[1])]) for v in (model.pu, model.qi)]
    products = np.einsum("ij,ij->i", factors[0][users], factors[1][items])
    out: np.ndarray = known.global_mean + biases[0][users] + biases[1][items] + products
    return out


def run(
    learned: Path, held_out: Path, *, dim: int, rate: float, l2: float, epochs: int = EPOCHS
) -> dict[str, Any]:
    """Learn ratings in a process of its own; see `learn`.

    Further keys: ``cpu_seconds`` and ``seconds`` of the process.
    """
    command = [sys.executable, str(Path(__file__)), str(learned), "--held-out", str(held_out)]
    command += ["--dim", str(dim), "--rate", str(rate), "--l2", str(l2), "--epochs", str(epochs)]
    used = process.run(command, {"OMP_NUM_THREADS": "1"})
    return {
        **json.loads(used.stdout),
        "cpu_seconds": used.cpu_seconds,
        "seconds": used.seconds,
    }


def main() -> None:
    """Learn ratings, print what came of it."""
    parser = argparse.ArgumentParser(description="scikit-surprise's SVD on ratings.")
    parser.add_argument("learned", type=Path)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--rate", type=float, default=SETTINGS[0][0])
    parser.add_argument("--l2", type=float, default=SETTINGS[0][1])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    args = parser.parse_args()
    if not installed():
        parser.error(MISSING)
    result = learn(
        args.learned,
        args.held_out,
        dim=args.dim,
        rate=args.rate,
        l2=args.l2,
        epochs=args.epochs,
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
