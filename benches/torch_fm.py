"""A plain PyTorch factorization machine on the CPU, fed from a raw Criteo log.

    python benches/torch_fm.py FILE [--records N] [--dim K] [--bits N] [--rate R]

As one writes it without further ado: lines are split in Python, numbers and hex tokens become NumPy
arrays and are hashed into 2**20 rows there, integers by their logarithmic buckets; the model is an
``nn.EmbeddingBag`` of weights and an ``nn.Embedding`` with sparse gradients, taught by
``torch.optim.Adagrad`` a minibatch of 4,096 at a time, each scored before it teaches. One thread.

Parsing and learning are timed apart: together they are raw text to model, learning alone is what
PyTorch does from arrays. Imports, and drawing the model, are in neither.

PyTorch is wanted by ``learn`` alone and imported there.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

import process

__all__ = ["MISSING", "installed", "learn", "minibatches", "run"]

MISSING = "PyTorch is not installed: pip install torch==2.13.0"
BITS = 20
DIM = 16
RATE = 0.02
START = 0.01  # standard deviation of embeddings that are drawn
MINIBATCH = 4096
INTEGERS, FIELDS = 13, 39
BLANK = -(1 << 40)  # below all tokens and integers
MIXER = np.uint64(0x9E3779B97F4A7C15)


def installed() -> bool:
    """Whether PyTorch can be imported."""
    return importlib.util.find_spec("torch") is not None


def minibatches(
    log: Path, bits: int = BITS, records: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield labels, float32[n], and indexes, int64[n, FIELDS], of at most MINIBATCH records.

    An index is 0 where a field is blank, and else from 1 to ``2**bits``. The first ``records`` of
    the log are read, or all.
    """
    seeds = np.arange(1, FIELDS + 1, dtype=np.uint64) * MIXER
    with log.open() as file:
        lines = islice(file, records)
        while block := list(islice(lines, MINIBATCH)):
            rows = [line.rstrip("\n").split("\t") for line in block]
            labels = np.array([row[0] == "1" for row in rows], np.float32)
            words = np.array(
                [
                    [int(text) if text else BLANK for text in row[1 : INTEGERS + 1]]
                    + [int(text, 16) if text else BLANK for text in row[INTEGERS + 1 :]]
                    for row in rows
                ],
                np.int64,
            )
            blank = words == BLANK
            numbers = words[:, :INTEGERS].astype(np.float32)
            words[:, :INTEGERS] = numbers.view(np.uint32) >> 21
            hashed = (words.astype(np.uint64) ^ seeds) * MIXER
            hashed = (hashed ^ hashed >> np.uint64(32)) * MIXER
            indexes = (hashed >> np.uint64(64 - bits)).astype(np.int64) + 1
            indexes[blank] = 0
            yield labels, indexes


def learn(
    log: Path,
    *,
    records: int | None = None,
    dim: int = DIM,
    bits: int = BITS,
    rate: float = RATE,
) -> dict[str, Any]:
    """Learn a log in this process; return its progressive logloss and AUC, and CPU seconds.

    Parameters
    ----------
    log : Path
    records : int, optional
        Only the first of the log.
    dim, bits : int
        Numbers in an embedding; ``2**bits`` rows, and one for blanks, which stays zero.
    rate : float
        AdaGrad's.

    Returns
    -------
    dict
        ``examples``, ``logloss``, ``auc``; ``cpu_seconds`` of parsing and learning,
        ``learn_cpu_seconds`` of learning alone, ``seconds`` and ``learn_seconds`` of wall.

    Raises
    ------
    ModuleNotFoundError
        PyTorch is not installed; what to install.
    """
    if not installed():
        raise ModuleNotFoundError(MISSING)
    import torch
    from torch import nn

    class FactorizationMachine(nn.Module):
        """w0 + sum_i w_i + (|sum_i v_i|**2 - sum_i |v_i|**2) / 2 over the fields of an example."""

        def __init__(self) -> None:
            super().__init__()
            rows = (1 << bits) + 1
            self.bias = nn.Parameter(torch.zeros(1))
            self.weights = nn.EmbeddingBag(rows, 1, mode="sum", sparse=True, padding_idx=0)
            self.embeddings = nn.Embedding(rows, dim, sparse=True, padding_idx=0)
            nn.init.zeros_(self.weights.weight)
            nn.init.normal_(self.embeddings.weight, std=START)
            with torch.no_grad():
                self.embeddings.weight[0] = 0.0

        def forward(self, indexes: torch.Tensor) -> torch.Tensor:
            v = self.embeddings(indexes)
            pairs = 0.5 * (v.sum(1).square() - v.square().sum(1)).sum(1)
            return self.bias + self.weights(indexes).squeeze(1) + pairs

    torch.set_num_threads(1)
    # saying so is all that keeps AdaGrad's sparse step from warning that they are off
    torch.sparse.check_sparse_tensor_invariants.disable()
    torch.manual_seed(0)
    model = FactorizationMachine()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=rate)
    loss_of = nn.BCEWithLogitsLoss()
    losses: list[float] = []
    scores: list[np.ndarray] = []
    truths: list[np.ndarray] = []
    learn_cpu = learn_wall = 0.0
    cpu, wall = time.process_time(), time.perf_counter()
    for labels, indexes in minibatches(log, bits, records):
        step_cpu, step_wall = time.process_time(), time.perf_counter()
        optimizer.zero_grad()
        logits = model(torch.from_numpy(indexes))
        loss = loss_of(logits, torch.from_numpy(labels))
        loss.backward()
        optimizer.step()
        losses.append(loss.item() * len(labels))
        scores.append(logits.detach().numpy())
        truths.append(labels)
        learn_cpu += time.process_time() - step_cpu
        learn_wall += time.perf_counter() - step_wall
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    examples = sum(map(len, truths))
    return {
        "examples": examples,
        "logloss": sum(losses) / examples,
        "auc": float(roc_auc_score(np.concatenate(truths), np.concatenate(scores))),
        "cpu_seconds": cpu,
        "learn_cpu_seconds": learn_cpu,
        "seconds": wall,
        "learn_seconds": learn_wall,
    }


def run(log: Path, *, records: int | None = None, dim: int = DIM) -> dict[str, Any]:
    """Learn a log in a process of its own; see `learn`.

    Further keys: ``process_cpu_seconds`` and ``peak_rss_bytes``, with imports.
    """
    command = [sys.executable, str(Path(__file__)), str(log), "--dim", str(dim)]
    if records is not None:
        command += ["--records", str(records)]
    used = process.run(command, {"OMP_NUM_THREADS": "1"})
    return {
        **json.loads(used.stdout),
        "process_cpu_seconds": used.cpu_seconds,
        "peak_rss_bytes": used.peak_rss_bytes,
    }


def main() -> None:
    """Learn a log, print what came of it."""
    parser = argparse.ArgumentParser(description="A plain PyTorch FM on a Criteo-format log.")
    parser.add_argument("source", type=Path)
    parser.add_argument("--records", type=int)
    parser.add_argument("--dim", type=int, default=DIM)
    parser.add_argument("--bits", type=int, default=BITS)
    parser.add_argument("--rate", type=float, default=RATE)
    args = parser.parse_args()
    if not installed():
        parser.error(MISSING)
    result = learn(args.source, records=args.records, dim=args.dim, bits=args.bits, rate=args.rate)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
