"""Kernels of embeddings beside their slow twins (for whole tables: ``tests/shards/test_arena``)."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
import pytest

from streamlearn.compute.kernels import embeddings as kernels
from streamlearn.embeddings import Tiers
from streamlearn.shards.arena import Arena, Geometry
from streamlearn.shards.cut import Nothing
from streamlearn.shards.table import ExactTable
from tests.reference.embeddings import (
    LINE,
    Embedding,
    by_row,
    check_arena,
    drawn,
    embeddings_of,
    laid_out,
    taken_apart,
)
from tests.reference.tables import small_tables

TIERS = [
    Tiers(2, (0,), (16,)),
    Tiers(3, (0,), (5,)),
    Tiers(2, (0, 2, 4), (3, 8, 17)),
    Tiers(3, (1, 3), (16, 32)),
    Tiers(3, (0,), (512,)),
    Tiers(2, (0, 2, 4), (1, 16, 33), sums=False, row_sum=True),
]
BY_ROW = Tiers(2, (0,), (8,), sums=False, row_sum=True)
each = pytest.mark.parametrize("tiers", TIERS)


def layout_of(tiers: Tiers, region_slots: int = 1 << 40, region_lines: int = 1 << 40) -> Any:
    return Geometry(
        tiers, l1_shrk=False, region_slots=region_slots, region_lines=region_lines
    ).layout


def random_embedding(tiers: Tiers, dim: int, rng: np.random.Generator) -> Embedding:
    V, m = rng.normal(size=(2, tiers.parts, dim)).astype(np.float32)
    return Embedding(V, m[:1, :1] if tiers.row_sum else m)


class Rows:
    """Rows of a table, with embeddings of these lengths scattered in a memory.

    Attributes
    ----------
    words : uint64[4 * n]
    held : list of Embedding or None
    """

    def __init__(self, tiers: Tiers, dims: list[int], seed: int = 1) -> None:
        rng = np.random.default_rng(seed)
        self.tiers, self.dims, self.layout = tiers, dims, layout_of(tiers)
        lines = 1 + sum(tiers.lines(dim) for dim in dims)
        self.values = np.full(16 * (lines + 5), 7, np.float32)
        self.words = np.zeros(4 * max(1, len(dims)), np.uint64)
        self.words[::4] = 2 * np.arange(len(self.words) // 4) + 1
        self.held: list[Embedding | None] = [None] * len(dims)
        at = 1
        for i in rng.permutation(len(dims)).tolist():
            if dims[i]:
                one = self.held[i] = random_embedding(tiers, dims[i], rng)
                self.values[at * 16 : at * 16 + tiers.floats(dims[i])] = laid_out(one, tiers)
                self.words[i * 4 + 3] = dims[i] << 48 | at
                at += tiers.lines(dims[i])

    @property
    def rows(self) -> np.ndarray:
        return self.words.reshape(-1, 4)[: len(self.dims)].copy()

    def packed(self) -> np.ndarray:
        pieces = [laid_out(one, self.tiers) for one in self.held if one is not None]
        return np.concatenate([np.zeros(0, np.float32), *pieces])


def some_dims(tiers: Tiers) -> list[list[int]]:
    rng = np.random.default_rng(3)
    many = rng.choice([0, *tiers.dims], 60).tolist()
    return [[], [0], [tiers.dim], [0, 0, tiers.dims[0], 0], many]


@each
def test_numbers_are_the_twins_however_the_embedding_grows(tiers: Tiers) -> None:
    layout = layout_of(tiers)
    for key in (1, 3, 0x9E3779B97F4A7C15, (1 << 64) - 1):
        whole = drawn(key, tiers.parts, 0, tiers.dim, 0.25)
        for cuts in ([0, tiers.dim], [0, 1, tiers.dim], sorted({0, *tiers.dims})):
            values = np.zeros(16 + tiers.floats(tiers.dim), np.float32)
            for begin, end in itertools.pairwise(cuts):
                kernels.draw(values, 16, np.uint64(key), begin, end, layout, np.float32(0.25))
            found = taken_apart(values[16:], tiers.dim, tiers)
            assert found.V.tobytes() == whole.tobytes()
            assert not found.m.any()
            assert not values[:16].any()


@each
def test_copied_are_the_first_coordinates_of_each_order(tiers: Tiers) -> None:
    for dims in some_dims(tiers):
        made = Rows(tiers, dims)
        slots = np.arange(len(dims))
        for wanted in (np.array(dims, np.int64), np.minimum(dims, tiers.dims[0]).astype(np.int64)):
            out = np.full(int(wanted.sum()) * tiers.parts, np.nan, np.float32)
            kernels.pull(made.words, slots, wanted, made.layout, made.values, out)
            expected = [
                one.V[:, :dim].reshape(-1)
                for one, dim in zip(made.held, wanted.tolist(), strict=True)
                if one is not None
            ]
            assert out.tobytes() == np.concatenate([out[:0], *expected]).tobytes()


@each
def test_lengths_are_those_that_are_used(tiers: Tiers) -> None:
    for dims in some_dims(tiers):
        made = Rows(tiers, dims)
        n = len(dims)
        slots = np.arange(n)
        slots[1::5] = -1
        weights = np.random.default_rng(1).choice([0, 1, -1], n).astype(np.float32)
        for bare in (0, 1):
            for shrk in (False, True):
                layout = Geometry(tiers, l1_shrk=shrk).layout
                out = np.full(n, -7, np.int64)
                total = kernels.lengths(made.words, slots, weights, bare, layout, out)
                expected = [
                    0 if slots[i] < 0 or i < bare or (shrk and weights[i] == 0) else dims[i]
                    for i in range(n)
                ]
                assert out.tolist() == expected
                assert total == sum(expected)


@each
def test_packed_embeddings_stand_in_the_order_of_rows_and_come_apart_again(tiers: Tiers) -> None:
    for dims in some_dims(tiers):
        made = Rows(tiers, dims)
        rows = made.rows
        occupied = kernels.occupied(rows, made.layout)
        assert occupied == sum(tiers.lines(dim) for dim in dims)
        for first in (0, 1):  # an image that begins later
            rows, out = made.rows, np.full(16 * occupied, np.nan, np.float32)
            image = made.values[16 * first :]
            assert kernels.pack(rows, made.layout, image, first, out) == 16 * occupied
            assert out.tobytes() == made.packed().tobytes()
            assert (rows[:, 3] == np.array(dims, np.uint64) << np.uint64(48)).all()
        coordinates = np.zeros((len(dims), tiers.parts * tiers.dim), np.float32)
        lengths = np.array(dims, np.int64)
        kernels.unpack(out, lengths, made.layout, tiers.dim, coordinates)
        for one, row in zip(made.held, coordinates, strict=True):
            expected = np.zeros((tiers.parts, tiers.dim), np.float32)
            if one is not None:
                expected[:, : one.V.shape[1]] = one.V
            np.testing.assert_array_equal(row, expected.reshape(-1))


@each
def test_written_embeddings_follow_one_another_in_their_segments(tiers: Tiers) -> None:
    dims = some_dims(tiers)[-1]
    made = Rows(tiers, dims)
    rows, packed = made.rows, made.packed()
    kernels.pack(rows, made.layout, made.values, 0, packed.copy())
    region = 1 + sum(tiers.lines(dim) for dim in dims)
    layout = layout_of(tiers, region_slots=40, region_lines=region)
    words, values = np.zeros(4 * 80, np.uint64), np.zeros(2 * 16 * region, np.float32)
    used, live = np.ones(2, np.int64), np.zeros(2, np.int64)
    slots = np.random.default_rng(1).permutation(80)[: len(dims)]
    assert kernels.write(words, slots, rows, layout, values, used, live, packed)
    assert (used == live + 1).all()
    assert live.sum() == kernels.occupied(rows, layout)
    ends = [1, 1]
    for slot, dim, one in zip(slots.tolist(), dims, made.held, strict=True):
        word, segment = int(words[slot * 4 + 3]), slot // 40
        if dim:
            assert word == dim << 48 | (segment * region + ends[segment])
            at = (word & LINE) * 16
            there = taken_apart(values[at : at + tiers.floats(dim)], dim, tiers)
            assert there.V.tobytes() == one.V.tobytes()
            ends[segment] += tiers.lines(dim)
        else:
            assert word == 0


@each
def test_writing_stops_where_a_segment_has_no_room(tiers: Tiers) -> None:
    made = Rows(tiers, [tiers.dim] * 3)
    rows, packed = made.rows, made.packed()
    lines = tiers.lines(tiers.dim)
    for room, fits in ((3, True), (2, False), (0, False)):
        layout = layout_of(tiers, region_slots=8, region_lines=1 + room * lines)
        values = np.zeros(16 * (1 + 3 * lines), np.float32)
        arguments = np.zeros(32, np.uint64), np.arange(3), rows, layout, values
        used, live = np.ones(1, np.int64), np.zeros(1, np.int64)
        assert kernels.write(*arguments, used, live, packed) == fits
        assert live[0] == room * lines
        assert used[0] == 1 + room * lines


@each
def test_moved_embeddings_stand_close_up_in_the_order_of_slots(tiers: Tiers) -> None:
    for dims in some_dims(tiers):
        made = Rows(tiers, dims)
        values = np.zeros_like(made.values)
        old = made.values[16:].copy()
        n = len(dims)
        lines = kernels.relocate(made.words, 0, n, made.layout, old, 1, values, 2)
        assert lines == sum(tiers.lines(dim) for dim in dims)
        assert values[32 : 32 + 16 * lines].tobytes() == made.packed().tobytes()
        assert not values[32 + 16 * lines :].any()
        at = 2
        for word, dim in zip(made.rows[:, 3].tolist(), dims, strict=True):
            assert word == (dim << 48 | at if dim else 0)
            at += tiers.lines(dim)


def test_a_slot_without_a_key_has_no_embedding_to_move() -> None:
    tiers = TIERS[0]
    made = Rows(tiers, [16, 16])
    made.words[0] = 2  # a fence
    word = int(made.words[3])
    assert kernels.relocate(made.words, 0, 2, made.layout, made.values, 0, made.values * 0, 1) == 2
    assert int(made.words[3]) == word


def push(made: Rows, dims: list[int], gradients: np.ndarray, rates: np.ndarray) -> None:
    """Take a step with all rows, by the rule that their tiers are for."""
    step: Any = kernels.push_by_row if made.tiers.row_sum else kernels.push
    step(
        made.words, np.arange(len(dims)), np.array(dims), gradients.astype(np.float32), made.layout,
        made.values, made.values.view(np.uint64), *rates, *Nothing().arguments(0),
    )  # fmt: skip


@pytest.mark.parametrize("tiers", [Tiers(2, (0,), (8,)), BY_ROW])
def test_huge_gradients_are_cut_and_leave_numbers(tiers: Tiers) -> None:
    made = Rows(tiers, [8])
    made.values[16 + 8 : 32] = 0
    gradients = np.array([3e38, -3e38, 2.0**60, 1, 0, -1, 2.0**51, -(2.0**52)])
    for _ in range(50):
        push(made, [8], gradients, np.array([0.5, 1, 0.01], np.float32))
    assert np.isfinite(made.values).all()
    assert 2.0**100 < made.values[24:32].max() < 2.0**108


def test_a_step_by_rows_is_the_one_written_out() -> None:
    tiers = Tiers(2, (0, 1, 2), (5, 16, 512), sums=False, row_sum=True)
    dims = [512, 5, 0, 16, 512, 16]
    sent = [512, 5, 16, 5, 16, 0]  # of some less than there is, of one more than there is
    made, dice = Rows(tiers, dims), np.random.default_rng(2)
    made.held = [one and one._replace(m=abs(one.m)) for one in made.held]
    for word, one in zip(made.rows[:, 3].tolist(), made.held, strict=True):
        if one is not None:
            row, at = laid_out(one, tiers), (word & LINE) * 16
            made.values[at : at + len(row)] = row
    rates = np.array([0.3, 0.5, 0.1], np.float32)
    for _ in range(3):
        gradients = dice.normal(size=sum(sent)).astype(np.float32)
        push(made, sent, gradients, rates)
        parts = np.split(gradients, np.cumsum(sent)[:-1])
        for i, (one, g) in enumerate(zip(made.held, parts, strict=True)):
            if one is None:
                continue
            made.held[i] = by_row(one, g[None], rates)
            at = (int(made.words[i * 4 + 3]) & LINE) * 16
            found = taken_apart(made.values[at : at + tiers.floats(dims[i])], dims[i], tiers)
            assert found.V.tobytes() == made.held[i].V.tobytes()
            assert found.m.tobytes() == made.held[i].m.tobytes()
            # and that is, but for rounding, the equation
            slopes = g.astype(float) + 0.1 * one.V[0, : len(g)]
            if len(g):
                n = one.m.item() + np.mean(slopes**2)
                assert found.m.item() == pytest.approx(n, rel=1e-5)
                expected = one.V[0, : len(g)] - 0.3 * slopes / (0.5 + np.sqrt(n))
                assert found.V[0, : len(g)] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_of_one_number_both_rules_are_the_same() -> None:
    rates = np.array([0.3, 0.5, 0.1], np.float32)
    found = []
    for more in ({}, {"sums": False, "row_sum": True}):
        tiers = Tiers(2, (0,), (1,), **more)
        made = Rows(tiers, [1] * 20)
        made.values[:] = 0
        for gradients in np.random.default_rng(2).normal(size=(5, 20)):
            push(made, [1] * 20, gradients, rates)
        found.append(made.values[[(int(word) & LINE) * 16 for word in made.words[3::4]]])
    assert found[0].all()
    assert found[0].tobytes() == found[1].tobytes()


@pytest.mark.parametrize("lanes", [1, 2, 4])
@pytest.mark.parametrize("tiers", [TIERS[0], TIERS[2], TIERS[5]])
def test_lanes_that_earn_the_same_rows_give_each_one_embedding(tiers: Tiers, lanes: int) -> None:
    rng = np.random.default_rng(1)
    keys = np.unique(rng.integers(0, 1 << 63, 400, np.uint64) << np.uint64(1) | np.uint64(1))
    with small_tables():
        table = ExactTable(2_000)
        arena = Arena(table, tiers, l1_shrk=True, bytes_max=1 << 30, scale=0.25)
        slots = table.find(keys)
        table.insert(keys, slots, Nothing())
        barrier = threading.Barrier(lanes)

        def lane() -> None:
            for count in range(1, 7):
                barrier.wait()
                for slot in slots:
                    kernels.earn(
                        table.words, slot, count, *arena._earning(), arena.scale, 1,
                        *Nothing().arguments(0),
                    )  # fmt: skip

        threads = [threading.Thread(target=lane) for _ in range(lanes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        held = embeddings_of(table)
        assert arena.refused == 0
        assert held.keys() == set(keys.tolist())
        for key, one in held.items():
            np.testing.assert_array_equal(one.V, drawn(key, tiers.parts, 0, tiers.dim, 0.25))
            assert not one.m.any()
        for segment in range(table.segments):
            assert arena.live[segment] == table.loads[segment] * tiers.lines(tiers.dim)
            # what a lane took that was too late is nobody's
            assert arena.used[segment] > arena.live[segment]
        check_arena(table)


@pytest.mark.parametrize("shared", [0, 1])
def test_a_segment_without_room_earns_nothing_and_that_is_counted(shared: int) -> None:
    tiers = Tiers(2, (0, 3), (8, 24))
    layout = layout_of(tiers, region_slots=4, region_lines=1 + 3)
    words = np.zeros(16, np.uint64)
    words[::4] = [1, 3, 5, 7]
    values = np.zeros(16 * 5, np.float32)
    used, live, room = np.ones(1, np.int64), np.zeros(1, np.int64), np.array([100, 0])
    counts, dims = np.array(tiers.counts), np.array(tiers.dims)

    def earn(slot: int, count: int) -> int:
        word = kernels.earn(
            words, slot, count, counts, dims, layout, values, used, live, room, np.float32(1),
            shared, *Nothing().arguments(0),
        )  # fmt: skip
        assert word == words[slot * 4 + 3]
        return int(word)

    assert [earn(slot, 1) for slot in range(3)] == [8 << 48 | 1, 8 << 48 | 2, 8 << 48 | 3]
    before = values.copy()
    assert earn(3, 1) == 0
    assert earn(0, 4) == 8 << 48 | 1
    assert room.tolist() == [100, 2]
    assert live[0] == 3
    np.testing.assert_array_equal(values, before)
