"""An arena against a dictionary, through whatever happens to its table."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.compute.kernels.rules import v_rates_of
from streamlearn.compute.kernels.table import preserve
from streamlearn.config import DeepConfig
from streamlearn.embeddings import Tiers
from streamlearn.errors import TableFullError
from streamlearn.shards.arena import Arena, dims_of, sliced
from streamlearn.shards.cut import Cut, Nothing, Part
from streamlearn.shards.dividing import divide
from streamlearn.shards.table import ExactTable
from tests.reference.embeddings import (
    Embedding,
    as_bytes,
    check_arena,
    earned,
    embeddings_in,
    embeddings_of,
    grown,
    stepped,
)
from tests.reference.tables import check_layout, image, small_tables

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Keys = NDArray[np.uint64]

NOTHING = Nothing()
RATES = v_rates_of(0.1, 0.5, 0.01, 0.25)
SCALE = 0.25
L1 = 1.0
TIERS = [
    Tiers(2, (1,), (16,)),
    Tiers(3, (0,), (5,)),
    Tiers(2, (0, 2, 4), (3, 8, 17)),
    Tiers(3, (1, 3), (16, 32)),
    Tiers(2, (0, 1, 2), (2, 5, 7)),
    Tiers(2, (1,), (16,), sums=False, row_sum=True),
    Tiers(2, (0, 1, 3), (3, 15, 40), sums=False, row_sum=True),
]


def random_keys(seed: int, n: int) -> Keys:
    keys = np.random.default_rng(seed).integers(0, 1 << 63, n, np.uint64) << np.uint64(1)
    return np.unique(keys | np.uint64(1))


def new_arena(tiers: Tiers, features_max: int = 300, bytes_max: int = 1 << 30) -> Arena:
    table = ExactTable(features_max, "evict")
    arena = Arena(table, tiers, l1_shrk=True, bytes_max=bytes_max, scale=SCALE)
    arena._table = table  # an arena does not keep its table, and these tests have nobody else
    return arena


def test_a_table_and_its_arena_go_once_nobody_uses_them() -> None:
    table = ExactTable(300)
    gone = (
        weakref.ref(table),
        weakref.ref(
            Arena(table, Tiers(2, (0,), (8,)), l1_shrk=True, bytes_max=1 << 20, scale=SCALE)
        ),
    )
    gc.disable()
    try:
        del table
        assert [one() for one in gone] == [None, None]
    finally:
        gc.enable()


def see(table: ExactTable, keys: Keys, z: NDArray[np.float32], minute: int, keeper: Any) -> None:
    """Insert rows and count them once more, as a push does; give them these z."""
    slots = table.find(keys)
    table.insert(keys, slots, keeper)
    lines = keeper.arguments(len(keys))
    columns = table.words.view(np.float32)
    for slot, number in zip(slots.tolist(), z.tolist(), strict=True):
        if lines[0]:
            preserve(table.words, slot >> 1, *lines[1:])
        word = int(table.words[slot * 4 + 2])
        table.words[slot * 4 + 2] = ((word & 0xFFFFFFFF) + 1) | (minute << 32)
        columns[slot * 8 + 2] = number


@dataclass
class Twin:
    """The same as a table and its arena, in dictionaries."""

    arena: Arena
    table: ExactTable
    held: dict[int, Embedding] = field(default_factory=dict)

    @property
    def tiers(self) -> Tiers:
        return self.arena.geometry.tiers

    def act(self, step: tuple[str, int, int], minute: int, keeper: Any) -> None:
        """Do one thing to the table and its arena, and the same to the dictionary."""
        action, seed, n = step
        table, rng = self.table, np.random.default_rng(seed)
        keys = random_keys(seed % 5, 200)[:n]
        if action == "see":
            z = rng.choice([0.0, L1, -1.5, 2.0], len(keys)).astype(np.float32)
            see(table, keys, z, minute, keeper)
        elif action == "earn":
            self._earn(keys, keeper)
        elif action == "push":
            self._push(keys, rng, keeper)
        elif action == "grow":
            table.grow(seed % table.segments)
        elif action == "divide":
            divide(table, 1 + seed % 3)
        elif action == "expire":
            table.expire(minute, 3, 20, 100)
        present = set(image(table)[:, 0].tolist())
        for key in self.held.keys() - present:
            del self.held[key]

    def _earn(self, keys: Keys, keeper: Any) -> None:
        slots = self.table.find(keys)
        keys, slots = keys[slots >= 0], slots[slots >= 0]
        admitted = 0
        for key, row in zip(keys.tolist(), self.table.rows_at(slots), strict=True):
            z = row.view(np.float32)[2]
            wanted = earned(self.tiers, int(row[2]) & 0xFFFFFFFF)
            if abs(z) > L1 and wanted > int(row[3]) >> 48:
                self.held[key] = grown(self.held.get(key), key, wanted, self.tiers, SCALE)
                admitted += 1
        assert self.arena.admit(slots, L1, False, keeper) == admitted

    def _push(self, keys: Keys, rng: np.random.Generator, keeper: Any) -> None:
        slots = self.table.find(keys)
        keys, slots = keys[slots >= 0], slots[slots >= 0]
        dims = rng.choice([0, *self.tiers.dims], len(keys)).astype(np.int64)
        parts = self.tiers.parts
        vectors = rng.normal(size=int(dims.sum()) * parts).astype(np.float32)
        ends = np.concatenate([[0], np.cumsum(dims * parts)])
        for i, key in enumerate(keys.tolist()):
            if key in self.held:
                g = vectors[ends[i] : ends[i + 1]].reshape(parts, dims[i])
                self.held[key] = stepped(self.held[key], g, RATES, self.tiers)
        self.arena.push(slots, dims, vectors, RATES, keeper.vector_lines)

    def check(self) -> None:
        assert as_bytes(embeddings_of(self.table)) == as_bytes(self.held)
        check_layout(self.table)
        check_arena(self.table)


actions = st.lists(
    st.tuples(
        st.sampled_from(
            ["see", "see", "see", "earn", "earn", "push", "grow", "divide", "expire", "take"]
        ),
        st.integers(0, 1 << 16),
        st.integers(1, 150),
    ),
    max_size=20,
)


@given(actions, st.sampled_from(TIERS))
@settings(max_examples=60)
def test_an_arena_is_a_dictionary_through_all_that_happens_to_its_table(
    steps: list[tuple[str, int, int]], tiers: Tiers
) -> None:
    with small_tables():
        arena = new_arena(tiers)
        twin = Twin(arena, arena._table)
        for minute, step in enumerate(steps):
            twin.act(step, minute, NOTHING)
            twin.check()
        assert arena.refused == 0


@given(actions, actions, st.sampled_from(TIERS))
@settings(max_examples=60)
def test_a_cut_has_the_embeddings_of_its_moment_and_they_load_again(
    before: list[tuple[str, int, int]], during: list[tuple[str, int, int]], tiers: Tiers
) -> None:
    with small_tables():
        arena = new_arena(tiers)
        twin = Twin(arena, arena._table)
        for minute, step in enumerate(before):
            twin.act(step, minute, NOTHING)
        expected, rows_then = as_bytes(twin.held), image(twin.table)
        cut = Cut(twin.table)
        loaded = ExactTable.sized(twin.table.features, 300)
        copy = Arena(loaded, tiers, l1_shrk=True, bytes_max=1 << 30, scale=SCALE)

        def take() -> bool:
            part = cut.take()
            if part is None:
                return False
            rows, half = part.rows.copy(), len(part.rows) // 2
            for piece in (sliced(part, 0, half, tiers), sliced(part, half, len(rows), tiers)):
                loaded.insert_rows(piece.rows, piece.vectors)
            assert (part.rows == rows).all()
            return True

        for minute, step in enumerate(during, len(before)):
            if step[0] == "take":
                take()
            twin.act(step, minute, cut)
            twin.check()
        while take():
            pass
        cut.close()
        assert as_bytes(embeddings_of(loaded)) == expected
        np.testing.assert_array_equal(image(loaded)[:, :3], rows_then[:, :3])
        check_arena(loaded)
        assert copy.nbytes == sum(64 * tiers.lines(int(d)) for d in dims_of(rows_then[:, 3]))


def filled(tiers: Tiers, n: int = 120, **limits: Any) -> Arena:
    """Return the arena of a table of n rows, most of which have earned and used an embedding."""
    arena = new_arena(tiers, **limits)
    twin = Twin(arena, arena._table)
    keys = random_keys(1, n)
    for minute in range(4):
        see(arena._table, keys[minute * n // 8 :], np.full(len(keys), 2, "f4")[minute * n // 8 :],
            minute, NOTHING)  # fmt: skip
        twin._earn(keys, NOTHING)
        twin._push(keys, np.random.default_rng(minute), NOTHING)
    twin.check()
    return arena


@pytest.mark.parametrize("tiers", TIERS)
def test_a_cut_has_embeddings_whose_beginnings_alone_have_stepped_since(tiers: Tiers) -> None:
    with small_tables():
        arena = filled(tiers)
        table, before = arena._table, as_bytes(embeddings_of(arena._table))
        cut = Cut(table)
        slots = table.find(random_keys(1, 120))
        dims = np.full(len(slots), tiers.dims[0])
        gradients = np.ones(int(dims.sum()) * tiers.parts, np.float32)
        arena.push(slots, dims, gradients, RATES, cut.vector_lines)
        found = {}
        while (part := cut.take()) is not None:
            found |= embeddings_in(part, tiers)
        cut.close()
        assert as_bytes(found) == before
        assert all(one != before[key] for key, one in as_bytes(embeddings_of(table)).items())


@pytest.mark.parametrize("tiers", TIERS)
def test_the_longest_embedding_whose_count_is_exceeded_is_earned(tiers: Tiers) -> None:
    with small_tables():
        arena = new_arena(tiers)
        table, keys = arena._table, random_keys(1, 8)
        slots = table.find(keys)
        table.insert(keys, slots, NOTHING)
        columns = table.words.view(np.float32)
        for count, slot in enumerate(slots.tolist()):
            table.words[slot * 4 + 2] = count | 77 << 32
            columns[slot * 8 + 2] = 1.5
        wanted = [earned(tiers, count) for count in range(8)]
        assert arena.admit(slots, L1, False, NOTHING) == np.count_nonzero(wanted)
        weights = np.ones(8, np.float32)
        assert arena.lengths(slots, weights, False).tolist() == wanted
        assert arena.admit(slots, L1, False, NOTHING) == 0
        assert arena.nbytes == 64 * sum(tiers.lines(dim) for dim in wanted)
        check_arena(table)


def test_a_count_goes_for_so_much_less_as_the_row_stood_in_the_minibatch() -> None:
    with small_tables():
        arena = new_arena(Tiers(2, (1, 3), (8, 16)))
        table, keys = arena._table, random_keys(1, 6)
        see(table, keys, np.full(6, 2, np.float32), 1, NOTHING)
        slots = table.find(keys)
        table.words.reshape(-1, 4)[slots, 2] = [12, 12, 12, 12, 12, 2]
        times = np.array([1, 3, 4, 6, 7, 0], np.uint32)  # of none it is the count itself
        assert arena.admit(slots, L1, False, NOTHING, times) == 5
        weights = np.ones(6, np.float32)
        assert arena.lengths(slots, weights, False).tolist() == [16, 16, 8, 8, 0, 8]


def test_rows_without_a_weight_and_the_constant_feature_earn_nothing() -> None:
    with small_tables():
        arena = new_arena(Tiers(2, (0,), (8,)))
        table, keys = arena._table, random_keys(1, 5)
        see(table, keys, np.array([2, 1, -1, -1.01, 0], np.float32), 1, NOTHING)
        slots = table.find(keys)
        assert arena.admit(slots, L1, True, NOTHING) == 1
        weights = np.ones(5, np.float32)
        assert arena.lengths(slots, weights, False).tolist() == [0, 0, 0, 8, 0]
        assert arena.admit(slots, L1, False, NOTHING) == 1
        assert arena.lengths(slots, weights, False).tolist() == [8, 0, 0, 8, 0]
        assert arena.lengths(slots, weights, True).tolist() == [0, 0, 0, 8, 0]


def test_for_nets_rows_without_a_weight_earn_as_others_do() -> None:
    with small_tables():
        table, keys = ExactTable(300), random_keys(1, 5)
        arena = Arena.of(table, DeepConfig(dim=8), 1 << 20)
        see(table, keys, np.array([2, 1, -1, -1.01, 0], np.float32), 1, NOTHING)
        slots = table.find(keys)
        assert arena.admit(slots, L1, False, NOTHING) == 5
        assert arena.lengths(slots, np.zeros(5, np.float32), False).tolist() == [8] * 5


@pytest.mark.parametrize("l1_shrk", [False, True])
def test_an_embedding_is_left_out_while_its_weight_is_zero_where_told(l1_shrk: bool) -> None:
    with small_tables():
        table = ExactTable(300)
        arena = Arena(table, Tiers(2, (0,), (8,)), l1_shrk=l1_shrk, bytes_max=1 << 20, scale=SCALE)
        keys = random_keys(1, 4)
        see(table, keys, np.full(4, 2, np.float32), 1, NOTHING)
        slots = table.find(keys)
        arena.admit(slots, L1, False, NOTHING)
        slots[3] = -1
        weights = np.array([1, 0, -0.0, 1], np.float32)
        expected = [8, 0, 0, 0] if l1_shrk else [8, 8, 8, 0]
        assert arena.lengths(slots, weights, False).tolist() == expected


@pytest.mark.parametrize("tiers", TIERS)
def test_pulled_are_the_first_coordinates_of_each_order(tiers: Tiers) -> None:
    with small_tables():
        arena = filled(tiers)
        table, held = arena._table, embeddings_of(arena._table)
        keys = random_keys(1, 120)
        slots = table.find(keys)
        dims = arena.lengths(slots, np.ones(len(keys), np.float32), False)
        assert [
            held[key].V.shape[1] if key in held else 0 for key in keys.tolist()
        ] == dims.tolist()
        dims[::3] = np.minimum(dims[::3], tiers.dims[0])
        wanted = [(key, dim) for key, dim in zip(keys.tolist(), dims.tolist(), strict=True) if dim]
        expected = [held[key].V[:, :dim].reshape(-1) for key, dim in wanted]
        assert arena.pull(slots, dims).tobytes() == np.concatenate(expected).tobytes()
        assert arena.pull(slots[:0], dims[:0]).tolist() == []
        assert arena.pull(slots, dims * 0).tolist() == []


@pytest.mark.parametrize("tiers", TIERS)
def test_coordinates_are_what_stands_in_embeddings_and_zero_elsewhere(tiers: Tiers) -> None:
    with small_tables():
        arena = filled(tiers)
        held = embeddings_of(arena._table)
        keys = random_keys(1, 121)
        slots = np.append(arena._table.find(keys[:-1]), -1)
        before = image(arena._table)
        out = arena.coordinates_at(slots)
        expected = np.zeros((len(keys), tiers.parts, tiers.dim), np.float32)
        for i, key in enumerate(keys[:-1].tolist()):
            if key in held:
                expected[i, :, : held[key].V.shape[1]] = held[key].V
        np.testing.assert_array_equal(out.reshape(expected.shape), expected)
        np.testing.assert_array_equal(image(arena._table), before)


@pytest.mark.parametrize("tiers", TIERS)
def test_embeddings_that_are_taken_and_put_elsewhere_are_the_same(tiers: Tiers) -> None:
    with small_tables():
        arena = filled(tiers)
        rows = image(arena._table)
        lengths = dims_of(rows[:, 3])
        assert arena.geometry.occupied(rows) == arena.nbytes // 4
        vectors = arena.take(rows)
        assert (rows[:, 3] & np.uint64((1 << 48) - 1) == 0).all()
        assert (dims_of(rows[:, 3]) == lengths).all()
        held = embeddings_of(arena._table)
        assert as_bytes(embeddings_in(Part(0, rows, vectors), tiers)) == as_bytes(held)
        # most of them into a table that has others, in another order
        other = new_arena(tiers)
        order = np.random.default_rng(1).permutation(len(rows))
        part = Part(0, rows[order].copy(), np.zeros(0, np.float32))
        pieces = [sliced(Part(0, rows, vectors), i, i + 1, tiers) for i in order.tolist()]
        part = Part(0, part.rows, np.concatenate([piece.vectors for piece in pieces]))
        for first, end in ((0, 1), (1, 1), (1, 70), (70, len(rows))):
            piece = sliced(part, first, end, tiers)
            other._table.insert_rows(piece.rows, piece.vectors)
            check_arena(other._table)
        assert as_bytes(embeddings_of(other._table)) == as_bytes(held)


def test_beyond_the_limit_no_row_earns_an_embedding_until_others_are_forgotten() -> None:
    with small_tables():
        tiers = Tiers(2, (0, 3), (8, 24))  # one line, and three
        arena = new_arena(tiers, bytes_max=5 * 64 + 63)
        table, keys = arena._table, random_keys(1, 7)
        see(table, keys, np.full(7, 2, np.float32), 1, NOTHING)
        slots = table.find(keys)
        assert arena.admit(slots, L1, False, NOTHING) == 5
        assert (arena.nbytes, arena.refused) == (5 * 64, 2)
        for _ in range(3):  # a longer one takes the room of two more
            see(table, keys[:1], np.full(1, 2, np.float32), 2, NOTHING)
        assert arena.admit(slots[:1], L1, False, NOTHING) == 0
        assert (arena.nbytes, arena.refused) == (5 * 64, 3)
        for key in keys[1:3]:
            segment = int(table.segment_of[int(key) >> 56])
            rows = table.rows(segment)
            table.keep(segment, rows[rows[:, 0] != key])
        assert arena.nbytes == 3 * 64
        slots = table.find(keys[[0, 3, 4, 5, 6]])
        assert arena.admit(slots, L1, False, NOTHING) == 1
        assert (arena.nbytes, arena.refused) == (5 * 64, 5)
        check_arena(table)


def test_lines_that_were_left_behind_are_given_back_when_the_segment_is_laid_out_anew() -> None:
    with small_tables():
        arena = filled(Tiers(2, (0, 1, 2), (2, 9, 17)))
        used, live = arena.used.sum(), arena.live.sum()
        assert used - len(arena.used) > live
        for segment in range(arena._table.segments):
            arena._table.grow(segment)
        assert arena.used.sum() - len(arena.used) == arena.live.sum() == live


def test_a_table_that_is_divided_between_lanes_takes_its_embeddings_along() -> None:
    with small_tables():
        arena = filled(Tiers(3, (0, 2), (5, 16)))
        table, held = arena._table, as_bytes(embeddings_of(arena._table))
        for lanes in (2, 5, 16):
            divide(table, lanes)
            check_layout(table)
            check_arena(table)
            assert as_bytes(embeddings_of(table)) == held
        for segment in range(table.segments):
            table.grow(segment)
        assert as_bytes(embeddings_of(table)) == held


def test_gradients_of_other_lengths_are_refused() -> None:
    with small_tables():
        arena = filled(Tiers(3, (0,), (5,)))
        slots = arena._table.find(random_keys(1, 120))[:3]
        before = as_bytes(embeddings_of(arena._table))
        dims = np.array([5, 0, 5])
        for size in (0, 19, 21):
            with pytest.raises(ValueError, match=f"{size} gradients of embeddings, expected 20"):
                arena.push(slots, dims, np.zeros(size, np.float32), RATES, NOTHING)
        assert as_bytes(embeddings_of(arena._table)) == before


def test_other_embeddings_than_rows_say_are_refused() -> None:
    with small_tables():
        arena = filled(Tiers(2, (0,), (16,)))
        rows = image(arena._table)
        vectors = arena.take(rows)
        other = new_arena(Tiers(2, (0,), (16,)))
        expected = f"expected {len(vectors)}"
        for wrong in (vectors[:-1], np.append(vectors, np.float32(0)), vectors[:0]):
            with pytest.raises(ValueError, match=f"{len(wrong)} numbers of embeddings, {expected}"):
                other.put(rows, wrong)


def test_an_embedding_that_no_segment_has_room_for_is_refused() -> None:
    with small_tables():
        arena = new_arena(Tiers(2, (0,), (8,)))
        rows = np.zeros((1, 4), np.uint64)
        rows[0] = 3, 0, 1, 65535 << 48
        vectors = np.zeros(arena.geometry.occupied(rows), np.float32)
        with pytest.raises(TableFullError, match="no room for so many embeddings"):
            arena._table.insert_rows(rows, vectors)


def test_rows_of_a_model_without_embeddings_are_sliced_alone() -> None:
    part = Part(7, np.arange(20, dtype=np.uint64).reshape(5, 4), np.zeros(0, np.float32))
    for tiers in (None, TIERS[0]):
        piece = sliced(part, 1, 3, tiers)
        assert (piece.number, len(piece.vectors)) == (7, 0)
        np.testing.assert_array_equal(piece.rows, part.rows[1:3])
