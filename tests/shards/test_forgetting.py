"""What a table forgets: the least seen or the oldest, never too many, and the same wherever."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.errors import TableFullError
from streamlearn.shards.cut import Nothing
from streamlearn.shards.forgetting import Tombstones, least_seen, not_seen_since
from streamlearn.shards.table import ExactTable
from tests.reference.tables import as_dict, check_layout, image, small_tables

if TYPE_CHECKING:
    from numpy.typing import NDArray

NOTHING = Nothing()


def random_keys(seed: int, n: int) -> NDArray[np.uint64]:
    keys = np.random.default_rng(seed).integers(0, 1 << 63, n, np.uint64) << np.uint64(1)
    return np.unique(keys | np.uint64(1))


def rows_of(keys: NDArray[np.uint64], counts: list[int], seen: list[int]) -> NDArray[np.uint64]:
    rows = np.zeros((len(keys), 4), np.uint64)
    rows[:, 0] = keys
    rows[:, 2] = np.array(counts, np.uint64) | np.array(seen, np.uint64) << np.uint64(32)
    return rows


def see(table: ExactTable, keys: NDArray[np.uint64], minute: int, times: int = 1) -> None:
    slots = table.find(keys)
    table.insert(keys, slots, NOTHING)
    for slot in slots.tolist():
        word = table.words[slot * 4 + 2]
        table.words[slot * 4 + 2] = (int(word) & 0xFFFFFFFF) + times | minute << 32


# --- which rows


def rank(row: list[int]) -> tuple[int, int, int]:
    """Return what a row is worth: power of two of its count, when it was last seen, its key."""
    return max(row[2] & 0xFFFFFFFF, 1).bit_length(), row[2] >> 32, row[0]


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3), st.booleans()), max_size=60),
    st.floats(0.01, 1.0),
    st.integers(0, 60),
)
@settings(deadline=None)
def test_the_least_seen_are_those_first_in_order(
    drawn: list[tuple[int, int, bool]], share: float, most: int
) -> None:
    keys = random_keys(0, len(drawn))
    rows = rows_of(keys, [d[0] for d in drawn], [d[1] for d in drawn])
    spared = keys[np.array([d[2] for d in drawn], np.bool_)]
    order = np.random.default_rng(1).permutation(len(rows))
    chosen = least_seen(rows[order], share, most, spared)
    candidates = sorted((r for r in rows.tolist() if r[0] not in spared.tolist()), key=rank)
    goal = min(most, int(np.ceil(share * len(candidates))))
    assert set(rows[order][chosen, 0].tolist()) == {r[0] for r in candidates[:goal]}


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(-3, 12), st.integers(0, 60))
@settings(deadline=None)
def test_rows_past_their_time_go_oldest_first(seen: list[int], minute: int, most: int) -> None:
    keys = random_keys(2, len(seen))
    rows = rows_of(keys, [1] * len(seen), seen)
    order = np.random.default_rng(3).permutation(len(rows))
    chosen = not_seen_since(rows[order], minute, most)
    old = sorted((s, k) for s, k in zip(seen, keys.tolist(), strict=True) if s < minute)
    assert set(rows[order][chosen, 0].tolist()) == {k for _, k in old[:most]}


# --- expiry


def test_rows_expire_once_they_have_not_been_seen_for_their_time() -> None:
    with small_tables():
        table = ExactTable(20_000)
        keys = random_keys(4, 900)
        see(table, keys[:300], 10)
        see(table, keys[300:600], 20)
        see(table, keys[600:], 30)
        see(table, keys[:50], 30)  # again
        assert len(table.expire(30, 20, 0, 256)) == 0
        gone = table.expire(31, 20, 0, 256)
        assert gone.tolist() == keys[50:300].tolist()
        assert (table.find(gone) == -1).all()
        assert table.expire(50, 20, 0, 256).tolist() == keys[300:600].tolist()
        assert table.features == 350
        check_layout(table)


@pytest.mark.parametrize("prefixes", [(0, 256), (85, 170)])
def test_expiry_goes_round_the_ranges_a_few_at_a_time(prefixes: tuple[int, int]) -> None:
    with small_tables():
        table = ExactTable(20_000, prefixes=prefixes)
        keys = random_keys(5, 3000)
        ranges = (keys >> np.uint64(56)).astype(int)
        keys = keys[(ranges >= prefixes[0]) & (ranges < prefixes[1])]
        see(table, keys, 1)
        gone: list[int] = []
        low = prefixes[0]
        while len(gone) < len(keys):
            some = table.expire(100, 5, 0, 10)
            high = min(low + 10, prefixes[1])
            expected = keys[(keys >> np.uint64(56) >= low) & (keys >> np.uint64(56) < high)]
            assert set(expected.tolist()) <= set(some.tolist())
            gone += some.tolist()
            check_layout(table)
            low = high
        assert sorted(gone) == keys.tolist()
        assert table.features == 0


def test_expiry_leaves_the_floor() -> None:
    with small_tables():
        table = ExactTable(20_000)
        keys = random_keys(6, 1000)
        for minute, part in enumerate(
            np.array_split(np.random.default_rng(6).permutation(keys), 5)
        ):
            see(table, np.sort(part), minute)
        for minute in range(50, 60):
            table.expire(minute, 1, 700, 100)
            assert table.features >= 700
        assert table.features == 700


# --- eviction


@pytest.mark.parametrize("floor", [0, 600])
def test_a_full_table_makes_room_and_keeps_what_is_seen_often(floor: int) -> None:
    with small_tables():
        table = ExactTable(1000, "evict")
        table.features_min = floor
        table.evicted_keys.keys_max = 100_000
        keys = np.random.default_rng(7).permutation(random_keys(7, 9000))
        hot, cold = np.sort(keys[:300]), keys[300:]
        see(table, hot, 1, times=50)
        held: set[int] = set(hot.tolist())
        for minute in range(80):
            some = np.sort(cold[minute * 100 : minute * 100 + 100])
            see(table, some, minute)
            held |= set(some.tolist())
            assert (table.find(some) >= 0).all()
            assert min(floor, 100 * minute) <= table.features <= 1000
            gone = table.evicted_keys.take()
            assert gone is not None
            held -= set(gone.tolist())
            assert image(table)[:, 0].tolist() == sorted(held)
        check_layout(table)
        assert (table.find(hot) >= 0).all()
        assert table.evicted == table.inserted_count[0] - table.features > 0
        assert table.features > 800


def test_the_keys_of_a_push_are_not_evicted_for_each_other() -> None:
    with small_tables():
        table = ExactTable(400, "evict")
        keys = random_keys(8, 1000)
        known, others, new = keys[:200], keys[200:380], keys[400:500]
        see(table, known, 1)
        see(table, np.sort(others), 1, times=9)
        asked = np.union1d(known, new)
        slots = table.find(asked)
        table.insert(asked, slots, NOTHING)
        assert (slots >= 0).all()
        np.testing.assert_array_equal(table.find(asked), slots)
        counts = as_dict(table.rows_at(table.find(known)))
        assert all(row[1] & 0xFFFFFFFF == 1 for row in counts.values())
        assert table.features <= 400


def test_more_keys_than_may_be_evicted_for_are_refused_whole() -> None:
    with small_tables():
        table = ExactTable(400, "evict")
        table.features_min = 350
        keys = random_keys(9, 500)
        see(table, keys[:400], 1)
        before = image(table)
        assert table.would_fit(50)
        assert table.would_fit(50, known=350)
        assert not table.would_fit(50, known=351)
        assert not table.would_fit(51)
        with pytest.raises(TableFullError):
            see(table, keys[400:460], 2)
        np.testing.assert_array_equal(image(table), before)
        see(table, keys[400:450], 2)
        assert table.features >= 350


def steps_on(table: ExactTable, first: int, end: int) -> list[int]:
    """Push, forget and expire; return all keys forgotten."""
    table.evicted_keys.keys_max = 1 << 20
    keys = random_keys(10, 4000)
    for step in range(first, end):
        rng = np.random.default_rng(step)
        some = np.unique(keys[(rng.pareto(0.7, 60) * 30).astype(np.int64) % len(keys)])
        see(table, some, step)
        if step % 3 == 0:
            table.expire(step, 25, 300, 17)
    gone = table.evicted_keys.take()
    assert gone is not None
    return gone.tolist()


def test_a_table_that_was_loaded_forgets_what_the_one_before_would_have() -> None:
    """Layouts differ after a load, which must not show in what is forgotten, nor when."""
    with small_tables():
        table, same = ExactTable(700, "evict"), ExactTable(700, "evict")
        assert steps_on(table, 0, 150) == steps_on(same, 0, 150)
        np.testing.assert_array_equal(table.words, same.words)  # the same steps, the same bytes
        loaded = ExactTable.sized(5000, 700, "evict")
        loaded.insert_rows(np.random.default_rng(1).permutation(image(table)))
        loaded.cursors[:] = table.cursors
        assert loaded.segments != table.segments
        gone = steps_on(table, 150, 400)
        assert steps_on(loaded, 150, 400) == gone
        assert len(gone) > 300
        np.testing.assert_array_equal(image(loaded), image(table))


def test_pulls_in_between_change_no_byte() -> None:
    with small_tables():
        table, watched = ExactTable(700, "evict"), ExactTable(700, "evict")
        for step in range(0, 120, 10):
            steps_on(table, step, step + 10)
            steps_on(watched, step, step + 10)
            slots = watched.find(random_keys(10, 4000))
            watched.rows_at(slots[slots >= 0])
            watched.refresh(random_keys(10, 4000), slots, np.zeros(256, np.int64))
        np.testing.assert_array_equal(table.words, watched.words)


# --- tombstones


def test_tombstones_are_bounded_and_say_when_some_are_lost() -> None:
    stones = Tombstones(5)
    stones.record(np.array([1, 3], np.uint64))
    stones.record(np.array([9], np.uint64))
    assert len(stones) == 3
    assert stones.take().tolist() == [1, 3, 9]
    assert stones.take().tolist() == []
    stones.record(np.array([1, 3, 5], np.uint64))
    stones.record(np.array([7, 9, 11], np.uint64))
    stones.record(np.array([13], np.uint64))
    assert not stones.complete
    assert len(stones) == 0
    assert stones.take() is None
    assert stones.take().tolist() == []


def test_nothing_is_recorded_where_nobody_asks() -> None:
    stones = Tombstones()
    stones.record(np.array([1, 3], np.uint64))
    assert len(stones) == 0
    assert stones.take() is None
