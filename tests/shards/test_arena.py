"""An arena against a dictionary, through whatever happens to its table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.compute.kernels.table import preserve
from streamlearn.shards.arena import Arena
from streamlearn.shards.cut import Cut, Nothing
from streamlearn.shards.table import ExactTable
from tests.reference.tables import check_layout, image, small_tables

if TYPE_CHECKING:
    from numpy.typing import NDArray

NOTHING = Nothing()
LOW = np.uint64(0xFFFFFFFF)


def random_keys(seed: int, n: int) -> NDArray[np.uint64]:
    keys = np.random.default_rng(seed).integers(0, 1 << 63, n, np.uint64) << np.uint64(1)
    return np.unique(keys | np.uint64(1))


def see(table: ExactTable, keys: NDArray[np.uint64], minute: int, keeper: object) -> None:
    slots = table.find(keys)
    table.insert(keys, slots, keeper)
    lines = keeper.arguments(len(keys))
    for slot in slots.tolist():
        if lines[0]:
            keep_line(table, slot, lines)
        word = int(table.words[slot * 4 + 2])
        table.words[slot * 4 + 2] = (word & 0xFFFFFFFF) + 1 | minute << 32


def keep_line(table: ExactTable, slot: int, lines: tuple) -> None:
    preserve(table.words, slot >> 1, *lines[1:])


def rows_by_key(table: ExactTable, arena: Arena) -> dict[int, list[float]]:
    """Return the arena rows that the table's rows have."""
    keys = image(table)[:, 0]
    slots = table.find(keys)
    numbers = arena.numbers(slots)
    assert len(set(numbers[numbers > 0].tolist())) == np.count_nonzero(numbers) == arena.rows
    out = arena.pull(slots, np.empty((len(keys), arena.width), np.float32))
    assert not out[numbers == 0].any()
    return {
        key: row
        for key, row, number in zip(keys.tolist(), out.tolist(), numbers.tolist(), strict=True)
        if number
    }


def check_arena(table: ExactTable, arena: Arena) -> None:
    """Assert that rows stand close up at their segments' starts, on lines of their own."""
    assert arena.values.ctypes.data % 64 == 0
    assert arena.stride % 16 == 0
    unused = np.ones(len(arena.values), np.bool_)
    for segment in range(table.segments):
        first = arena.first_row(segment)
        used = int(arena.used[segment])
        numbers = (table.rows(segment)[:, 3] & LOW).astype(np.int64)
        assert sorted(numbers[numbers > 0].tolist()) == list(range(first + 1, first + used + 1))
        unused[first + 1 : first + used + 1] = False
    assert not arena.values[unused].any()


actions = st.lists(
    st.tuples(
        st.sampled_from(["see", "see", "earn", "earn", "write", "grow", "expire", "take"]),
        st.integers(0, 1 << 16),
        st.integers(1, 150),
    ),
    max_size=16,
)


def act(
    table: ExactTable,
    arena: Arena,
    held: dict[int, list[float]],
    step: tuple[str, int, int],
    minute: int,
    keepers: tuple,
) -> None:
    """Do one thing to the table and its arena, and the same to a dictionary."""
    action, seed, n = step
    keys = random_keys(seed % 5, 200)[:n]
    slots = table.find(keys)
    if action == "see":
        see(table, keys, minute, keepers[0])
    elif action == "earn":
        weights = np.where(keys % np.uint64(3) == 0, 0, 1).astype(np.float32)
        wanted = arena.earned(slots, weights, 1)
        numbers = arena.allocate(slots, wanted, keepers[0])
        rows = np.random.default_rng(seed).normal(size=(len(numbers), arena.width))
        arena.write(numbers, rows.astype(np.float32), keepers[1])
        for key, row in zip(keys[wanted != 0].tolist(), rows, strict=True):
            assert key not in held
            held[key] = row.astype(np.float32).tolist()
    elif action == "write":
        numbers = arena.numbers(slots)
        has = numbers > 0
        rows = np.random.default_rng(seed).normal(size=(has.sum(), arena.width))
        arena.write(numbers[has], rows.astype(np.float32), keepers[1])
        for key, row in zip(keys[has].tolist(), rows, strict=True):
            held[key] = row.astype(np.float32).tolist()
    elif action == "grow":
        table.grow(seed % table.segments)
    elif action == "expire":
        table.expire(minute, 3, 20, 100)
    present = set(image(table)[:, 0].tolist())
    for key in held.keys() - present:
        del held[key]


@given(actions, st.sampled_from([1, 16, 20]))
@settings(max_examples=80, deadline=None)
def test_an_arena_is_a_dictionary_through_all_that_happens_to_its_table(
    steps: list[tuple[str, int, int]], width: int
) -> None:
    with small_tables():
        table = ExactTable(300, "evict", prefixes=(0, 256))
        arena = Arena(table, width)
        held: dict[int, list[float]] = {}
        for minute, step in enumerate(steps):
            act(table, arena, held, step, minute, (NOTHING, NOTHING))
            assert rows_by_key(table, arena) == held
            check_layout(table)
            check_arena(table, arena)


@given(actions, actions)
@settings(max_examples=80, deadline=None)
def test_a_cut_has_the_arena_rows_of_its_moment_and_they_load_again(
    before: list[tuple[str, int, int]], during: list[tuple[str, int, int]]
) -> None:
    with small_tables():
        table = ExactTable(300, "evict")
        arena = Arena(table, 20)
        held: dict[int, list[float]] = {}
        for minute, step in enumerate(before):
            act(table, arena, held, step, minute, (NOTHING, NOTHING))
        expected, rows_then = dict(held), image(table)
        cut = Cut(table, arena)
        loaded = ExactTable.sized(table.features, 300)
        copy = Arena(loaded, 20)

        def take() -> bool:
            part = cut.take()
            if part is None:
                return False
            copy.load(part[1], cut.arena_rows(part[0]))
            return True

        for minute, step in enumerate(during, len(before)):
            if step[0] == "take":
                take()
            act(table, arena, held, step, minute, (cut, cut.arena_lines))
            assert rows_by_key(table, arena) == held
        while take():
            pass
        cut.close()
        assert rows_by_key(loaded, copy) == expected
        np.testing.assert_array_equal(image(loaded)[:, :3], rows_then[:, :3])
        check_arena(loaded, copy)


def test_a_row_is_earned_by_count_and_weight_once() -> None:
    with small_tables():
        table = ExactTable(1000)
        arena = Arena(table, 8)
        keys = random_keys(1, 6)
        slots = table.find(keys)
        table.insert(keys, slots, NOTHING)
        for slot, count in zip(slots.tolist(), [10, 11, 12, 12, 12, 12], strict=True):
            table.words[slot * 4 + 2] = count
        weights = np.array([1, 1, 0, -1, 1, 1], np.float32)
        slots[5] = -1
        wanted = arena.earned(slots, weights, 10)
        assert wanted.tolist() == [0, 1, 0, 1, 1, 0]
        numbers = arena.allocate(slots, wanted, NOTHING)
        assert numbers.tolist() == [1, 2, 3]
        assert not arena.values[numbers].any()
        assert arena.earned(slots, weights, 10).tolist() == [0] * 6
        assert arena.rows == 3
        assert arena.nbytes == 3 * 64


def test_shapes_that_do_not_fit_are_refused() -> None:
    with small_tables():
        arena = Arena(ExactTable(1000), 8)
        with pytest.raises(ValueError, match=r"out is \(2, 9\), expected \(2, 8\)"):
            arena.pull(np.zeros(2, np.int64) - 1, np.empty((2, 9), np.float32))
        with pytest.raises(ValueError, match=r"rows are \(1, 7\), expected \(1, 8\)"):
            arena.write(np.ones(1, np.int64), np.zeros((1, 7), np.float32), NOTHING)
        with pytest.raises(ValueError, match="width = 0 is not positive"):
            Arena(ExactTable(1000), 0)
