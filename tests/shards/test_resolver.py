"""Rows found ahead: by one lane, for another that learns behind it."""

from __future__ import annotations

from collections.abc import Iterator
from queue import SimpleQueue
from threading import Thread

import numpy as np
import pytest

from streamlearn.errors import TableFullError
from streamlearn.kinds import LrConfig
from streamlearn.messages import U32
from streamlearn.online.logistic import LogisticSolver, Scratch
from streamlearn.online.minibatch import Minibatch
from streamlearn.shards.cut import Nothing
from streamlearn.shards.resolver import Resolver
from streamlearn.shards.table import ExactTable
from tests.reference.tables import image, minibatch, small_tables

MIXER = np.uint64(0x9E3779B97F4A7C15)


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    with small_tables():
        yield


def batches(seed: int, count: int, rows: int = 50) -> list[Minibatch]:
    """Return minibatches of a skewed stream: a few keys in every example, new ones all the time."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        examples = [
            (np.unique(rng.zipf(1.3, rng.integers(0, 30)) % 100_000).astype(np.uint64) * MIXER)
            | np.uint64(1)
            for _ in range(rows)
        ]
        made.append(minibatch(examples, rng.integers(0, 2, rows).tolist()))
    return made


def learned(stream: list[Minibatch]) -> tuple[ExactTable, list[np.ndarray]]:
    """Learn a stream in one lane."""
    table = ExactTable(1 << 20)
    solver = LogisticSolver(LrConfig(), table)
    scratch = Scratch(1024, 1 << 18)
    return table, [solver.learn(batch, scratch, Nothing(), 7).copy() for batch in stream]


def test_what_is_found_ahead_is_learned_to_the_same_bits() -> None:
    stream = batches(1, 60)
    expected, scores = learned(stream)
    table = ExactTable(1 << 20)
    solver = LogisticSolver(LrConfig(), table)
    scratch = Scratch(1024, 1 << 18)

    def make_room(segment: int) -> bool:
        table.make_room(segment)
        return True

    resolver = Resolver(table, make_room)
    slots: U32 = np.zeros(1 << 18, np.uint32)
    for batch, score in zip(stream, scores, strict=True):
        assert resolver.resolve(batch.keys, batch.nnz, slots)
        assert (table.find(batch.keys[: batch.nnz]) == slots[: batch.nnz]).all()
        assert (solver.learn_resolved(batch, slots, scratch, Nothing(), 7) == score).all()
    assert table.growths > 3
    assert (image(table) == image(expected)).all()


def test_two_lanes_learn_what_one_does() -> None:
    stream = batches(2, 80)
    expected, _ = learned(stream)
    table = ExactTable(1 << 20)
    solver = LogisticSolver(LrConfig(), table)
    scratch = Scratch(1024, 1 << 18)
    found: SimpleQueue[tuple[Minibatch, U32] | int | None] = SimpleQueue()
    made: SimpleQueue[bool] = SimpleQueue()

    def learn() -> None:
        while (work := found.get()) is not None:
            if isinstance(work, int):
                table.make_room(work)
                made.put(True)
            else:
                solver.learn_resolved(*work, scratch, Nothing(), 7)

    def make_room(segment: int) -> bool:
        found.put(segment)
        return made.get()

    lane = Thread(target=learn)
    lane.start()
    resolver = Resolver(table, make_room)
    for batch in stream:
        slots: U32 = np.zeros(batch.nnz, np.uint32)
        assert resolver.resolve(batch.keys, batch.nnz, slots)
        found.put((batch, slots))
    found.put(None)
    lane.join()
    assert (image(table) == image(expected)).all()


def test_a_full_table_ends_it_and_whoever_learns_says_so() -> None:
    stream = batches(3, 60)
    table = ExactTable(300)
    solver = LogisticSolver(LrConfig(), table)
    scratch = Scratch(1024, 1 << 18)

    def make_room(segment: int) -> bool:
        try:
            table.make_room(segment)
        except TableFullError:
            return False
        return True

    resolver = Resolver(table, make_room)
    slots: U32 = np.zeros(1 << 18, np.uint32)

    def learn(batch: Minibatch) -> None:
        if resolver.resolve(batch.keys, batch.nnz, slots):
            solver.learn_resolved(batch, slots, scratch, Nothing(), 7)
        else:
            solver.learn(batch, scratch, Nothing(), 7)

    def learn_all() -> None:
        for batch in stream:
            learn(batch)

    with pytest.raises(TableFullError, match="features_max = 300"):
        learn_all()
    assert resolver.ended
