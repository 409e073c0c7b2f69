"""One worker of the tests of groups: ``dense_worker.py RANK FOLDER TASK...``.

Each task writes what it saw to ``FOLDER/TASK-RANK.pt``. Workers find one another by files there, in
the place of a shard.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from streamlearn.cluster.dense_group import DenseGroup, SharedStandardizer
from streamlearn.cluster.meeting import DissolvedError
from streamlearn.compute.cuda import StreamLane
from streamlearn.errors import PeerLostError, StreamlearnError
from streamlearn.kinds import DeepConfig
from streamlearn.online.deep import DeepStep
from streamlearn.online.standardizing import Standardizer
from streamlearn.protocol import Met
from tests.deep_steps import COLUMNS, DIM, SIZES, Examples, Tables, examples

WORKERS = 3
STEPS = 6
PATIENCE_SECONDS = 30.0
SETTINGS: dict[str, Any] = {
    "net": "wide_deep", "settings": {"hidden": (4,)}, "dim": DIM, "lr": 0.05,
}  # fmt: skip


def minibatch(rank: int, step: int) -> Examples | None:
    """Each worker's own, of sizes of its own; at some steps one has none."""
    if (rank, step) in ((1, 2), (0, 4), (1, 4)):
        return None
    return examples(100 * step + rank, rows=3 + 2 * rank)


class Member:
    """A net, its group, and how it steps: as ``DeepStepper`` does."""

    def __init__(self, folder: Path, rank: int, **model: Any) -> None:
        self.folder, self.rank = folder, rank
        config = DeepConfig(**(SETTINGS | model))
        self.group = DenseGroup(config, lambda: "127.0.0.1", f"net {config.net}")
        self.lane = StreamLane("cpu")
        self.step = DeepStep(config, SIZES, self.lane, exchange=self.group.between)
        self.step.standardizer = SharedStandardizer((COLUMNS,))
        self.tables = Tables()

    def form(self, generation: int, *ranks: int) -> None:
        """Be one of a group, the first of these ranks first."""
        name = self.folder / f"address-{self.task}-{generation}-{ranks[0]}"
        if self.rank == ranks[0]:
            part = name.with_suffix(".part")
            part.write_text(self.group.address())
            part.rename(name)
        end = time.monotonic() + PATIENCE_SECONDS
        while not name.exists():
            assert time.monotonic() < end, f"{name} did not come"
            time.sleep(0.005)
        place = ranks.index(self.rank)
        met = Met(generation, place, len(ranks), name.read_text())
        self.group.form(met, self.step, self.lane.run)

    def learn(self, one: Examples | None) -> bool:
        """Step together; return whether anybody had examples."""
        sums, weight = None, 0.0
        own = one if one is not None else Examples([], [], dense=np.zeros((0, COLUMNS)))
        if one is not None:
            weight = float(one.batch.weights[: one.batch.rows].sum(dtype=np.float64))
            alone = Standardizer((COLUMNS,))
            alone.update(one.batch.dense[: one.batch.rows])
            sums = alone.sums()
        some = self.group.announce(weight, self.step.standardizer, sums)
        if some:
            values = self.tables.pull(own.keys)
            scores = np.zeros(max(own.batch.rows, 1), np.float32)
            self.step.step(own.batch, own.localized, values, scores)
        return some

    def state(self) -> dict[str, Any]:
        return {k: v.copy() for k, v in self.step.state().items() if "exchange." not in k}

    task = ""


@contextmanager
def member(folder: Path, rank: int, **model: Any) -> Iterator[Member]:
    one = Member(folder, rank, **model)
    try:
        yield one
    finally:
        one.group.close()
        one.step.close()


def together(folder: Path, rank: int, **model: Any) -> dict[str, Any]:
    """Learn some steps with the others."""
    with member(folder, rank, optimizer="sgd", momentum=0.0, **model) as one:
        one.form(1, *range(WORKERS))
        some = [one.learn(minibatch(rank, step)) for step in range(STEPS)]
        counts = one.group.counts
        return {"state": one.state(), "some": some, "steps": counts.steps, "counts": counts}


def joined(folder: Path, rank: int) -> dict[str, Any]:
    """The last worker comes in later; then the first leaves."""
    seen: dict[str, Any] = {}
    with member(folder, rank, exchange="int8", delay=1) as one:
        one.step.restore(
            {name: array + rank * ("net." in name) for name, array in one.step.state().items()}
        )
        if rank < WORKERS - 1:
            one.form(1, *range(WORKERS - 1))
            for step in range(3):
                one.learn(minibatch(2, 10 * rank + step))
            seen["before"] = one.state()
            one.group.wanted = rank == 0  # of one is enough
            try:
                one.learn(minibatch(2, 50))
            except DissolvedError:
                seen["dissolved"] = one.group.size
            seen["kept"] = sorted(one.group.state_dict())
        one.form(2, 1, 0, 2)
        seen["after"] = one.state()
        seen["owes"] = one.group.state_dict()["residual.0"]
        for step in range(60, 63):
            one.learn(minibatch(2, step + 10 * rank))
        seen["later"] = one.state()
        if rank == 0:
            one.group.announce(0.0, one.step.standardizer, leaves=True)
            seen["size"] = one.group.size
            return seen
        try:
            one.learn(minibatch(2, 70))
        except DissolvedError:
            one.form(3, 1, 2)
        one.learn(minibatch(2, 70))
        seen["last"] = one.state()
        return seen


def alone(folder: Path, rank: int) -> dict[str, Any]:
    """A group of one: as without an exchange."""
    seen: dict[str, Any] = {}
    with member(folder, rank, exchange="int8") as one:
        one.form(1, rank)
        for step in range(4):
            one.learn(examples(step))
        seen["state"], seen["alive"] = one.state(), torch.distributed.is_initialized()
    with member(folder, rank) as plain:
        plain.step = DeepStep(DeepConfig(**SETTINGS), SIZES, plain.lane)
        for step in range(4):
            plain.learn(examples(step))
        seen["plain"] = plain.state()
    return seen


def refused(folder: Path, rank: int) -> dict[str, Any]:
    """Nets that differ are told apart by all."""
    told = []
    cases: list[dict[str, Any]] = [
        {"settings": {"hidden": (4 + rank,)}},
        {"delay": int(rank == 1)},
        {"exchange": ("int8", "float32", "int8")[rank]},
    ]
    for number, case in enumerate(cases, 1):
        with member(folder, rank, **case) as one:
            try:
                one.form(number, *range(WORKERS))
            except StreamlearnError as error:
                told.append(f"{type(error).__name__}: {error.message}")
            else:
                told.append("taken")
    return {"told": told}


def bad(folder: Path, rank: int) -> dict[str, Any]:
    """A gradient that is no number at one worker is no step at any."""
    with member(folder, rank, exchange="float32", optimizer="sgd") as one:
        one.form(1, *range(WORKERS))
        one.learn(minibatch(2, 1))
        before = one.state()
        spoiled = minibatch(2, 2)
        assert spoiled is not None
        if rank == 1:
            spoiled.batch.values[: spoiled.batch.nnz] = np.inf
        one.learn(spoiled)
        return {"before": before, "after": one.state(), "skipped": one.group.counts.skipped}


def lost(folder: Path, rank: int, delay: int = 0) -> dict[str, Any]:
    """One worker is killed between two steps, of which the others make the second without it."""
    seen: dict[str, Any] = {}
    with member(folder, rank, delay=delay) as one:
        one.form(1, *range(WORKERS))
        for step in range(3):
            one.learn(minibatch(2, 10 * rank + step))
        if rank == WORKERS - 1:
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        steps = one.step.steps
        try:
            while True:
                one.learn(minibatch(2, 50))
                steps = one.step.steps
        except PeerLostError as error:
            seen["told"] = str(error)
        one.step.steps = steps
        one.group.lost()
        one.form(2, 0, 1)
        seen["formed"] = one.state()
        one.learn(minibatch(2, 51))
        seen["state"] = one.state()
    return seen


TASKS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "exact": lambda folder, rank: together(folder, rank, exchange="float32"),
    "late": lambda folder, rank: together(folder, rank, exchange="float32", delay=1),
    "int8": lambda folder, rank: together(folder, rank, exchange="int8"),
    "joined": joined,
    "alone": alone,
    "refused": refused,
    "bad": bad,
    "lost": lost,
    "lost-late": lambda folder, rank: lost(folder, rank, 1),
}


def main(rank: int, folder: str, tasks: list[str]) -> None:
    torch.set_num_threads(1)
    for task in tasks:
        Member.task = task
        torch.save(TASKS[task](Path(folder), rank), Path(folder) / f"{task}-{rank}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
