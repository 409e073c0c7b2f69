"""A table for whoever holds slots: insert, refresh, and a range of the keys alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.errors import TableFullError
from streamlearn.shards.cut import Cut, Nothing
from streamlearn.shards.table import INITIAL_SLOTS, ExactTable
from tests.reference.tables import as_dict, check_layout, image, small_tables

if TYPE_CHECKING:
    from numpy.typing import NDArray

NOTHING = Nothing()
RANGES = [(0, 256), (0, 128), (128, 256), (85, 170), (170, 256), (0, 85), (7, 8), (255, 256)]


def random_keys(seed: int, n: int, prefixes: tuple[int, int] = (0, 256)) -> NDArray[np.uint64]:
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 1 << 56, n, np.uint64) | np.uint64(1)
    return np.unique(keys | rng.integers(*prefixes, n).astype(np.uint64) << np.uint64(56))


def insert(table: ExactTable, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    slots = table.find(keys)
    table.insert(keys, slots, NOTHING)
    return slots


@given(
    st.sampled_from(RANGES),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.sampled_from([0, 1, 5, 60, 300])), max_size=10),
)
@settings(max_examples=60, deadline=None)
def test_inserted_keys_are_there_once_and_their_slots_are_right(
    prefixes: tuple[int, int], steps: list[tuple[int, int]]
) -> None:
    with small_tables():
        table = ExactTable(8000, prefixes=prefixes)
        held: set[int] = set()
        for seed, n in steps:
            keys = random_keys(seed % 7, n, prefixes)  # some of them again
            slots = insert(table, keys)
            held |= set(keys.tolist())
            np.testing.assert_array_equal(slots, table.find(keys))
            np.testing.assert_array_equal(table.rows_at(slots)[:, 0], keys)
            check_layout(table)
        rows = image(table)
        assert rows[:, 0].tolist() == sorted(held)
        assert not rows[:, 1:].any()
        assert table.inserted_count[0] == len(held)


def test_only_missing_keys_are_inserted_and_known_rows_keep_their_columns() -> None:
    with small_tables():
        table = ExactTable(8000)
        rows = np.zeros((200, 4), np.uint64)
        rows[:, 0] = random_keys(1, 400)[::2][:200]
        rows[:, 1:] = 7
        table.insert_rows(rows)
        keys = np.union1d(rows[:, 0], random_keys(2, 500))
        slots = insert(table, keys)
        found = as_dict(table.rows_at(slots))
        known = set(rows[:, 0].tolist())
        assert all(row == ((7, 7, 7) if key in known else (0, 0, 0)) for key, row in found.items())


def test_a_key_that_another_has_inserted_since_is_not_inserted_again() -> None:
    table = ExactTable(8000)
    keys = random_keys(3, 50)
    mine = table.find(keys)
    theirs = insert(table, keys[:30])
    table.insert(keys, mine, NOTHING)
    np.testing.assert_array_equal(mine[:30], theirs)
    assert table.features == len(keys)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=8), st.sampled_from(RANGES))
@settings(max_examples=40, deadline=None)
def test_refreshed_slots_are_those_that_would_be_found(
    sizes: list[int], prefixes: tuple[int, int]
) -> None:
    with small_tables():
        table = ExactTable(20_000, prefixes=prefixes)
        keys = random_keys(4, 300, prefixes)
        slots = insert(table, keys[::2].copy())
        slots = table.find(keys)
        for seed, n in enumerate(sizes):
            then = table.generations.copy()
            insert(table, random_keys(1000 + seed, n, prefixes))
            before = slots.copy()
            table.refresh(keys, slots, then)
            if (then == table.generations).all():
                np.testing.assert_array_equal(slots, before)
            np.testing.assert_array_equal(slots, table.find(keys))


def test_refreshing_says_of_forgotten_keys_that_they_are_gone() -> None:
    with small_tables():
        table = ExactTable(5000)
        keys = random_keys(5, 300)
        slots = insert(table, keys)
        then = table.generations.copy()
        gone = table.expire(1, 0, 250, 256)  # nobody has seen any since minute 0
        assert len(gone) == len(keys) - 250
        table.refresh(keys, slots, then)
        np.testing.assert_array_equal(slots < 0, np.isin(keys, gone))


# --- a range of the keys


@pytest.mark.parametrize("prefixes", RANGES)
def test_a_shards_memory_is_that_of_its_range(prefixes: tuple[int, int]) -> None:
    table = ExactTable(1_000_000, prefixes=prefixes)
    share = (prefixes[1] - prefixes[0]) / 256
    assert len(table.words) <= max(share, 0) * len(ExactTable(int(1_000_000 / share)).words) * 1.01
    assert table.capacity <= INITIAL_SLOTS + 128 * table.segments
    spans = [table.span(segment) for segment in table.key_order()]
    assert (spans[0][0], spans[-1][1]) == prefixes
    for low, high in spans:
        ranges = high - low
        assert ranges & (ranges - 1) == 0
        assert low % ranges == 0


@pytest.mark.parametrize("prefixes", RANGES)
def test_a_shards_table_grows_splits_and_loads_within_its_range(prefixes: tuple[int, int]) -> None:
    with small_tables():
        keys = random_keys(6, 3000, prefixes)
        rows = np.zeros((len(keys), 4), np.uint64)
        rows[:, 0], rows[:, 1:] = keys, 3
        growing = ExactTable(8000, prefixes=prefixes)
        sized = ExactTable.sized(len(keys), 8000, prefixes=prefixes)
        for table in (growing, sized):
            table.insert_rows(rows)
            check_layout(table)
            np.testing.assert_array_equal(image(table), rows)
        assert sized.growths == 0
        assert sized.segments > 1 or prefixes[1] - prefixes[0] == 1
        outside = [low << 56 | 1 for low in range(256) if not prefixes[0] <= low < prefixes[1]]
        assert (sized.find(np.array(outside, np.uint64)) == -1).all()


@pytest.mark.parametrize("prefixes", [(0, 0), (3, 2), (0, 257), (-1, 5)])
def test_what_is_no_range_is_refused(prefixes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="no range within 0 to 256"):
        ExactTable(1000, prefixes=prefixes)


def test_the_tables_of_all_shards_hold_what_one_holds() -> None:
    with small_tables():
        keys = random_keys(7, 4000)
        shards = [ExactTable(3000, prefixes=(256 * i // 3, 256 * (i + 1) // 3)) for i in range(3)]
        for table in shards:
            low, high = (prefix << 56 for prefix in table.prefixes)
            insert(table, keys[(keys >= low) & (keys <= min(high, (1 << 64) - 1))])
        assert np.concatenate([image(table) for table in shards])[:, 0].tolist() == keys.tolist()


# --- the limit


def test_what_does_not_fit_is_refused_before_anything_has_changed() -> None:
    with small_tables():
        table = ExactTable(500)
        insert(table, random_keys(8, 400))
        before = table.words.copy()
        keys = random_keys(9, 150)
        assert table.would_fit(500 - table.features)
        assert not table.would_fit(len(keys))
        slots = table.find(keys)
        with pytest.raises(TableFullError, match=r"tables\.features_max = 500 features"):
            table.insert(keys, slots, NOTHING)
        np.testing.assert_array_equal(table.words, before)
        assert (slots == -1).all()
        insert(table, keys[: 500 - table.features])
        assert table.features == 500


def test_keys_that_crowd_one_place_are_refused_and_what_is_held_stays() -> None:
    with small_tables():
        table = ExactTable(2000)
        others = random_keys(10, 300)
        insert(table, others)
        crowd = np.array([(0xFFFFFFFF << 32) | (2 * i + 1) for i in range(500)], np.uint64)
        with pytest.raises(TableFullError, match="a segment of the table is full"):
            insert(table, crowd)
        check_layout(table)
        assert (table.find(others) >= 0).all()


# --- a cut


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 1 << 20), st.integers(1, 200)), max_size=8))
@settings(max_examples=40, deadline=None)
def test_a_cut_has_none_of_the_keys_inserted_since(steps: list[tuple[bool, int, int]]) -> None:
    with small_tables():
        table = ExactTable(700, "evict", prefixes=(0, 171))
        table.features_min = 50
        insert(table, random_keys(11, 400, (0, 171)))
        before = image(table)
        cut, parts = Cut(table), []
        for take, seed, n in steps:
            keys = random_keys(seed, n, (0, 171))
            table.insert(keys, table.find(keys), cut)
            table.expire(5, 3, 50, 9)
            if take and (part := cut.take()) is not None:
                parts.append(part[1])
            check_layout(table)
        while (part := cut.take()) is not None:
            parts.append(part[1])
        cut.close()
        rows = np.concatenate(parts)
        np.testing.assert_array_equal(rows[np.argsort(rows[:, 0])], before)
