"""The plain way to learn a net: a ``DataLoader``, tables of embeddings beside the net, Adam.

    python benches/deep_plain.py images DIR TEST_DIR --epochs N ...
    python benches/deep_plain.py table TRAIN TEST --task covtype|adult --epochs N ...
    python benches/deep_plain.py clicks LOG --records N ...

What somebody writes from PyTorch's tutorials: tables and images are read into memory with Python
and NumPy, standardised by their own mean and deviation, shuffled anew each epoch; clicks are
split in Python by an ``IterableDataset`` in one worker process, hashed into ``2**20`` rows and
taught in their order. Embeddings are an ``nn.Embedding`` with sparse gradients and
``optim.Adagrad``; the rest is ``optim.Adam``. The nets are this project's, so that both sides
compute the same; nothing else of it is used.

Prints one line of JSON: seconds (of learning, reading included; imports are not), loss and accuracy
on the test records or, of clicks, progressive loss.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import struct
import time
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from streamlearn.online.nets import Sizes, load_net, losses_of

BITS = 20
INTEGERS, CATEGORIES = 13, 26
ADULT_NUMBERS = (0, 2, 4, 10, 11, 12)
ADULT_TOKENS = (1, 3, 5, 6, 7, 8, 9, 13)


def idx(path: Path) -> np.ndarray[Any, Any]:
    """Read a file of bytes in the idx format."""
    data = gzip.decompress(path.read_bytes())
    axes = data[3]
    shape = struct.unpack(f">{axes}I", data[4 : 4 + 4 * axes])
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


def images(directory: Path, which: str) -> tuple[Tensor, None, Tensor]:
    """Return images in [0, 1] and labels."""
    x = idx(directory / f"{which}-images-idx3-ubyte.gz")
    y = idx(directory / f"{which}-labels-idx1-ubyte.gz")
    return torch.from_numpy(x.astype(np.float32) / 255)[:, None], None, torch.from_numpy(y).float()


def covtype(path: Path) -> tuple[Tensor, None, Tensor]:
    """Return 54 numbers and classes from 0."""
    with path.open() as file:
        rows = np.array(list(islice(csv.reader(file), 1, None)), np.float32)
    return torch.from_numpy(rows[:, :54].copy()), None, torch.from_numpy(rows[:, 54] - 1)


def adult(path: Path, known: dict[tuple[int, str], int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return numbers, indexes of tokens and labels; tokens that were never met have index 0."""
    learning = not known
    dense, indexes, labels = [], [], []
    with path.open() as file:
        for row in csv.reader(file, skipinitialspace=True):
            if len(row) != 15:
                continue
            dense.append([float(row[i]) for i in ADULT_NUMBERS])
            keys = [(i, row[i]) for i in ADULT_TOKENS]
            if learning:
                for key in keys:
                    known.setdefault(key, len(known) + 1)
            indexes.append([known.get(key, 0) for key in keys])
            labels.append(float(row[14].startswith(">")))
    return torch.tensor(dense), torch.tensor(indexes), torch.tensor(labels)


class Clicks(IterableDataset[Any]):
    """Records of a Criteo log, split and hashed in Python."""

    def __init__(self, log: Path, records: int) -> None:
        self.log, self.records = log, records

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        mask = (1 << BITS) - 1
        with self.log.open() as file:
            for line in islice(file, self.records):
                fields = line.rstrip("\n").split("\t")
                dense = np.zeros(INTEGERS, np.float32)
                for i, text in enumerate(fields[1 : 1 + INTEGERS]):
                    dense[i] = math.log1p(max(int(text), 0)) if text else 0.0
                indexes = np.zeros(CATEGORIES, np.int64)
                for i, text in enumerate(fields[1 + INTEGERS :]):
                    if text:
                        indexes[i] = 1 + (zlib.crc32(text.encode(), i) & mask)
                yield dense, indexes, np.float32(fields[0])


class Plain:
    """A net, its tables and its optimizers."""

    def __init__(self, given: argparse.Namespace, sizes: Sizes, rows: int, loss: str) -> None:
        self.loss = loss
        torch.manual_seed(given.seed)
        self.net, needs = load_net(given.net, sizes, seed=given.seed, **json.loads(given.settings))
        tables: dict[str, nn.Embedding] = {}
        if needs.dim:
            tables["embeddings"] = nn.Embedding(rows, needs.dim, padding_idx=0, sparse=True)
            nn.init.uniform_(tables["embeddings"].weight, -0.05, 0.05)
        if needs.wide:
            tables["wide"] = nn.Embedding(rows, 1, padding_idx=0, sparse=True)
            nn.init.zeros_(tables["wide"].weight)
        self.tables = nn.ModuleDict(tables)
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Adam(self.net.parameters(), lr=given.lr)
        ]
        if tables:
            self.optimizers.append(torch.optim.Adagrad(self.tables.parameters(), lr=given.v_lr))

    def logits(self, dense: Tensor, indexes: Tensor | None) -> Tensor:
        """Return the logits of a minibatch."""
        embeddings = self.tables["embeddings"](indexes) if "embeddings" in self.tables else None
        wide = self.tables["wide"](indexes)[:, :, 0] if "wide" in self.tables else None
        return self.net(dense, embeddings, wide)

    def step(self, dense: Tensor, indexes: Tensor | None, labels: Tensor) -> Tensor:
        """Learn a minibatch; return the losses of its examples before."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        losses = losses_of(self.loss, self.logits(dense, indexes), labels)
        losses.mean().backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return losses.detach()

    @torch.no_grad()
    def judge(self, dense: Tensor, indexes: Tensor | None, labels: Tensor) -> dict[str, float]:
        """Return loss and accuracy."""
        self.net.eval()
        losses, right = 0.0, 0
        for first in range(0, len(labels), 4096):
            part = slice(first, first + 4096)
            logits = self.logits(dense[part], None if indexes is None else indexes[part])
            losses += float(losses_of(self.loss, logits, labels[part]).sum())
            said = logits[:, 0] > 0 if self.loss == "logistic" else logits.argmax(1)
            right += int((said == labels[part]).sum())
        self.net.train()
        return {"loss": losses / len(labels), "accuracy": right / len(labels)}


def in_memory(given: argparse.Namespace) -> dict[str, float]:
    """Learn tables or images."""
    known: dict[tuple[int, str], int] = {}
    start = time.perf_counter()
    if given.data == "images":
        train, test = images(given.train, "train"), images(given.test, "t10k")
        loss, outputs = "classes", 10
    elif given.task == "covtype":
        train, test, loss, outputs = covtype(given.train), covtype(given.test), "classes", 7
    else:
        train, loss, outputs = adult(given.train, known), "logistic", 1
        test = adult(given.test, known)
    axes = (0,) if train[0].ndim == 2 else (0, 2, 3)
    mean = train[0].mean(axes, keepdim=True)
    deviation = train[0].std(axes, keepdim=True).clamp(min=1e-6)
    dense, unseen = (train[0] - mean) / deviation, (test[0] - mean) / deviation
    indexes = train[1] if train[1] is not None else torch.zeros(len(dense), 0)
    fields = 0 if train[1] is None else train[1].shape[1]
    plain = Plain(given, Sizes(tuple(dense.shape[1:]), fields, outputs), len(known) + 1, loss)
    loader = DataLoader(
        TensorDataset(dense, indexes, train[2]), given.batch, shuffle=True, drop_last=False
    )
    for _ in range(given.epochs):
        for x, keys, y in loader:
            plain.step(x, keys if fields else None, y)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, **plain.judge(unseen, test[1], test[2])}


def stream(given: argparse.Namespace) -> dict[str, float]:
    """Learn clicks as they come."""
    plain = Plain(given, Sizes((INTEGERS,), CATEGORIES, 1), (1 << BITS) + 1, "logistic")
    loader = DataLoader(Clicks(given.train, given.records), given.batch, num_workers=1)
    losses, count, half, half_count = 0.0, 0, 0.0, 0
    start = time.perf_counter()
    for dense, indexes, labels in loader:
        own = float(plain.step(dense, indexes, labels).sum())
        losses += own
        count += len(labels)
        if 2 * count > given.records:
            half += own
            half_count += len(labels)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "loss": losses / count, "second_half_loss": half / half_count}


def main() -> None:
    """Learn what the command line says."""
    parser = argparse.ArgumentParser(description="Learn a net the plain way.")
    parser.add_argument("data", choices=("images", "table", "clicks"))
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path, nargs="?")
    parser.add_argument("--task", choices=("covtype", "adult"), default="covtype")
    parser.add_argument("--net", default="mlp")
    parser.add_argument("--settings", default="{}", help="JSON")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=0.001)
    parser.add_argument("--v-lr", type=float, default=0.05)
    parser.add_argument("--records", type=int, default=1 << 60)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    cpu = time.process_time()
    found = stream(given) if given.data == "clicks" else in_memory(given)
    print(json.dumps(found | {"cpu_seconds": time.process_time() - cpu}))


if __name__ == "__main__":
    main()
