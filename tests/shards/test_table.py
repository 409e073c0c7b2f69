"""The parameter table against a dictionary, through its growths, splits and limits."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamlearn.errors import TableFullError
from streamlearn.shards.cut import Nothing
from streamlearn.shards.table import INITIAL_SLOTS, ExactTable
from tests.reference.tables import (
    SLACK,
    Learning,
    as_dict,
    check_layout,
    image,
    minibatch,
    small_tables,
)


def random_keys(seed: int, n: int) -> NDArray[np.uint64]:
    keys = np.random.default_rng(seed).integers(0, 1 << 63, n, np.uint64) << np.uint64(1)
    return np.unique(keys | np.uint64(1))


def random_rows(seed: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return rows that learning without weight does not change but for count and tick."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 1 << 64, (len(keys), 4), np.uint64)
    rows[:, 0] = keys
    rows[:, 1] = rng.uniform(0, 0.9, (len(keys), 2)).astype(np.float32).view(np.uint64)[:, 0]
    return rows


# --- against a dictionary


@st.composite
def key_families(draw: st.DrawFn) -> list[int]:
    """Draw keys as a table likes them, and as it does not."""
    family = draw(st.sampled_from(["uniform", "prefix", "same place", "ascending", "ends"]))
    seed = draw(st.integers(0, 1 << 20))
    if family == "uniform":
        return [int(k) for k in random_keys(seed, draw(st.integers(1, 400)))]
    if family == "prefix":  # all in one of the 256 ranges, hence in one segment for ever
        low = np.uint64(draw(st.sampled_from([0x00, 0x7F, 0xFF])) << 56)
        keys = random_keys(seed, draw(st.integers(1, 60))) >> np.uint64(8)
        return [int(k) for k in (keys | low | np.uint64(1))]
    if family == "same place":  # equal top 32 bits
        top = draw(st.sampled_from([0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]))
        low = random_keys(seed, 8) & np.uint64(0xFFFFFFFF)
        return sorted({(top << 32) | int(k) for k in low})
    if family == "ascending":  # the same but for the lowest bits
        start = draw(st.sampled_from([1, (1 << 63) - 5, (1 << 64) - 21]))
        return [start + 2 * i for i in range(10)]
    return [1, (1 << 64) - 1, (1 << 63) - 1, (1 << 63) + 1]


steps = st.lists(
    st.tuples(st.sampled_from(["load", "see", "see", "grow"]), key_families()), max_size=12
)


@given(steps)
@settings(max_examples=50, deadline=None)
def test_a_table_is_a_dictionary_through_all_growths_and_splits(
    steps: list[tuple[str, list[int]]],
) -> None:
    with small_tables():
        table = ExactTable(20_000)
        learning = Learning(table, intercept=False)
        held: dict[int, tuple[int, int, int]] = {}
        for number, (step, drawn) in enumerate(steps, 1):
            known = np.array(sorted(held), np.uint64)
            slots, generations = table.find(known), table.generations.copy()
            new = np.array(sorted(set(drawn) - held.keys()), np.uint64)
            if step == "load":
                rows = random_rows(number, new)
                table.insert_rows(rows)
                held |= as_dict(rows)
            elif step == "see":
                learning.see(drawn, tick=number)
                for key in drawn:
                    first, count, last = held.get(key, (0, 0, 0))
                    held[key] = (first, ((count + 1) & 0xFFFFFFFF) | number << 32, last)
            else:
                table.grow(len(drawn) % table.segments)
            check_layout(table)
            assert as_dict(image(table)) == held
            same = (table.generations == generations)[table.segment_of[known >> np.uint64(56)]]
            np.testing.assert_array_equal(table.find(known)[same], slots[same])
            absent = np.array(
                [k ^ (1 << 40) for k in drawn if k ^ (1 << 40) not in held], np.uint64
            )
            assert (table.find(absent) == -1).all()
        keys = np.array(sorted(held), np.uint64)
        slots = table.find(keys)
        assert (slots >= 0).all()
        assert as_dict(table.rows_at(slots)) == held
        assert table.inserted_count[0] == table.features == len(held)


@pytest.mark.parametrize("n", [0, 1, 51, 52, 53, 1000, 5000])
def test_loading_at_once_equals_loading_by_and_by(n: int) -> None:
    with small_tables():
        rows = random_rows(n, random_keys(n, n))
        tables = [ExactTable(20_000), ExactTable.sized(n, 20_000), ExactTable(20_000)]
        tables[0].insert_rows(rows)
        tables[1].insert_rows(rows)
        for piece in np.array_split(rows[np.random.default_rng(n).permutation(len(rows))], 7):
            tables[2].insert_rows(piece)
        for table in tables:
            check_layout(table)
            np.testing.assert_array_equal(image(table), image(tables[0]))
        assert tables[1].growths == 0


def test_tables_of_the_real_sizes_split_and_hold_all_rows() -> None:
    table = ExactTable(10_000_000)
    assert table.capacity == INITIAL_SLOTS
    keys = random_keys(1, 700_000)
    rows = random_rows(1, keys)
    for piece in np.array_split(rows[np.random.default_rng(1).permutation(len(rows))], 3):
        table.insert_rows(piece)
    assert table.segments > 1
    np.testing.assert_array_equal(image(table), rows)
    assert (table.find(keys ^ np.uint64(2)) == -1).all()


def test_a_feature_costs_at_most_56_bytes_from_a_million_on() -> None:
    table = ExactTable(4_000_000)
    rng = np.random.default_rng(2)
    worst = 0.0
    while table.features < 2_500_000:
        rows = np.zeros((25_000, 4), np.uint64)
        rows[:, 0] = rng.integers(0, 1 << 64, 25_000, np.uint64) | np.uint64(1)
        rows[:, 1:] = 7
        table.insert_rows(rows)
        if table.features >= 1_000_000:
            worst = max(worst, table.nbytes / table.features)
    assert worst <= 56
    resident = resident_bytes(table.words.ctypes.data)
    if resident is not None:
        assert resident <= table.nbytes + table.segments * (2 << 20)
    sized = ExactTable.sized(1_000_000, 4_000_000)
    assert sized.nbytes <= 56_000_000


def resident_bytes(address: int) -> int | None:
    """Return the resident bytes of the mapping that holds an address; None where nobody says."""
    path = Path("/proc/self/smaps")
    if not path.is_file():
        return None
    inside = False
    for line in path.read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif inside and line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    return None


# --- the fence


def test_rows_that_run_into_a_fence_make_the_segment_grow_and_lose_nothing() -> None:
    with small_tables():
        table = ExactTable(20_000)
        learning = Learning(table, l1=0.0)
        keys = random_keys(3, 5000)
        before = minibatch([keys[:5], keys[5:9]], labels=[1, 0])
        learning.learn(before)
        batch = minibatch([keys[:5], keys[:3000], keys[2990:]], labels=[1, 1, 0])
        solver, scratch = learning.solver, learning.scratch
        full = solver.learn_until_full(batch, scratch, Nothing(), 7, 0)
        assert (full, scratch.state[2], scratch.state[0]) == (0, 1, 1)  # before the second taught
        rows = as_dict(image(table))
        assert rows[int(keys[0])][1] & 0xFFFFFFFF == 2
        assert all(row == (0, 0, 0) for key, row in rows.items() if key not in keys[:9].tolist())
        learning = Learning(table, l1=0.0)
        while full >= 0:
            table.make_room(full)
            full = solver.learn_until_full(batch, scratch, Nothing(), 7, int(scratch.state[0]))
        check_layout(table)
        counts = {k: row[1] & 0xFFFFFFFF for k, row in as_dict(image(table)).items()}
        expected = np.ones(5000, int)
        expected[:9] += 1  # the first minibatch
        expected[:5] += 1
        expected[2990:3000] += 1
        assert counts == dict(zip(keys.tolist(), expected.tolist(), strict=True))
        plain = ExactTable.sized(20_000, 20_000)
        other = Learning(plain, l1=0.0)
        other.learn(before)
        other.learn(batch, tick=7)
        np.testing.assert_array_equal(image(table), image(plain))
        np.testing.assert_array_equal(table.intercept, plain.intercept)


@pytest.mark.parametrize("top", [0xFFFFFFFF, 0x7FFFFFFF])
def test_keys_that_crowd_one_place_beyond_the_slack_are_refused_and_spoil_nothing(top: int) -> None:
    with small_tables():
        table = ExactTable(20_000)
        learning = Learning(table)
        others = random_keys(4, 600)
        learning.see(others)
        crowd = [(top << 32) | (2 * i + 1) for i in range(4 * SLACK)]
        with pytest.raises(TableFullError, match=r"a segment of the table is full at [\d,]+ feat"):
            learning.see(crowd)
        check_layout(table)
        rows = as_dict(image(table))
        assert all(rows[key][1] & 0xFFFFFFFF == 1 for key in others.tolist())
        learning.see(others)
        loaded = ExactTable(20_000)
        words = np.zeros((len(crowd), 4), np.uint64)
        words[:, 0] = crowd
        with pytest.raises(TableFullError, match="a segment of the table is full"):
            loaded.insert_rows(words)
        check_layout(loaded)


def test_a_crowd_that_a_growth_disperses_is_loaded() -> None:
    """Rows that run over the end of a segment find room in a larger one."""
    with small_tables():
        keys = np.unique(random_keys(5, SLACK + 60) | np.uint64(0xF8 << 56))
        rows = random_rows(5, keys)
        table = ExactTable(200_000)
        table.insert_rows(rows)
        check_layout(table)
        np.testing.assert_array_equal(image(table), rows)


# --- the limit


def learn_until_error(learning: Learning, keys: NDArray[np.uint64], width: int) -> TableFullError:
    batch = minibatch([keys[i : i + width] for i in range(0, len(keys), width)])
    with pytest.raises(TableFullError) as caught:
        learning.learn(batch)
    return caught.value


@pytest.mark.parametrize("features_max", [1, 30, 100, 1500])
def test_features_max_holds_and_says_what_to_do(features_max: int) -> None:
    with small_tables():
        table = ExactTable(features_max)
        learning = Learning(table)
        keys = random_keys(6, 4000)
        error = learn_until_error(learning, keys, 10)
        learned = int(learning.scratch.state[0])
        assert str(error) == (
            f"the table is full: tables.features_max = {features_max:,} features\n"
            "hint: raise tables.features_max, set tables.when_full = 'evict', or use "
            "tables.index = 'hashed'"
        )
        assert features_max < table.features <= features_max + 10
        rows = as_dict(image(table))
        assert rows.keys() == set(keys[: learned * 10].tolist())  # all learned, nothing else
        assert all(row[1] & 0xFFFFFFFF == 1 for row in rows.values())
        check_layout(table)
        learning.see(keys[:10])  # what it knows it goes on learning
        for again in range(3):
            fresh = keys[2000 + 10 * again :][:10]
            assert str(learn_until_error(learning, fresh, 10)) == str(error)
        check_layout(table)


def test_a_table_reaches_its_limit_before_it_complains() -> None:
    with small_tables():
        table = ExactTable(3000)
        learning = Learning(table)
        keys = random_keys(7, 3000)[np.random.default_rng(7).permutation(3000)]
        assert len(keys) == 3000
        for key in keys:
            learning.see([key])
        assert table.features == 3000
        with pytest.raises(TableFullError):
            learning.see(keys[:1] ^ np.uint64(2))


@pytest.mark.parametrize("features_max", [50, 700])
def test_eviction_bounds_the_rows_and_keeps_what_is_seen_often(features_max: int) -> None:
    with small_tables():
        table = ExactTable(features_max, "evict")
        learning = Learning(table)
        keys = random_keys(8, 9000)[np.random.default_rng(8).permutation(9000)]
        hot, cold = keys[: features_max // 3], keys[features_max // 3 :]
        for _ in range(20):
            for piece in np.array_split(hot, len(hot) // 10):
                learning.see(piece)
        for i in range(0, len(cold) - 10, 10):
            learning.see(cold[i : i + 10])
            assert table.features <= features_max + 10
        check_layout(table)
        assert table.features > 0.6 * features_max
        assert table.evicted == table.inserted_count[0] - table.features > 0
        rows = as_dict(image(table))
        assert all(rows[key][1] & 0xFFFFFFFF == 20 for key in hot.tolist())


@pytest.mark.parametrize("width", [300, 3000])
def test_an_example_larger_than_the_table_may_be_is_learned_once_and_forgotten_later(
    width: int,
) -> None:
    with small_tables():
        table = ExactTable(100, "evict")
        learning = Learning(table)
        keys = random_keys(9, 2 * width)[np.random.default_rng(9).permutation(2 * width)]
        for _ in range(2):
            learning.see(keys[:60])
        learning.see(keys[: width + 60])
        rows = as_dict(image(table))
        counts = [rows[k][1] & 0xFFFFFFFF for k in keys[: width + 60].tolist() if k in rows]
        assert set(counts) <= {1, 3}
        assert counts.count(3) > 30
        for i in range(30):
            learning.see(keys[width + 60 + 4 * i :][:4])
            assert table.features <= 104
        check_layout(table)


def test_keys_of_one_range_fill_its_segment_alone() -> None:
    with small_tables():
        keys = random_keys(10, 2000) >> np.uint64(8) | np.uint64(0x33 << 56 | 1)
        table = ExactTable(20_000)
        learning = Learning(table)
        batch = minibatch([keys[i : i + 10] for i in range(0, 2000, 10)])
        with pytest.raises(TableFullError, match="a segment of the table is full at"):
            learning.learn(batch)
        check_layout(table)
        assert {row[1] & 0xFFFFFFFF for row in as_dict(image(table)).values()} == {1}
        forgetful = ExactTable(20_000, "evict")
        learning = Learning(forgetful)
        for i in range(0, 2000, 10):
            learning.see(keys[i : i + 10])
        check_layout(forgetful)
        assert forgetful.evicted == 2000 - forgetful.features > 0


def test_a_model_larger_than_its_limit_is_loaded_whole_and_then_keeps_to_it() -> None:
    with small_tables():
        keys = random_keys(11, 60_000)
        rows = random_rows(11, keys)
        rows[:, 2] = 1
        table = ExactTable.sized(len(rows), 1000)
        table.insert_rows(rows)
        check_layout(table)
        np.testing.assert_array_equal(image(table), rows)
        with pytest.raises(TableFullError, match="features_max = 1,000 features"):
            Learning(table).see(keys[:4] ^ np.uint64(2))
        table = ExactTable.sized(len(rows), 1000, "evict")
        table.insert_rows(rows)
        learning = Learning(table)
        for key in random_keys(12, 2000)[np.random.default_rng(12).permutation(2000)]:
            learning.see([key])
        check_layout(table)
        assert table.features < 2000


def test_only_the_first_of_two_that_ask_at_once_makes_a_segment_grow() -> None:
    with small_tables():
        table = ExactTable(20_000)
        Learning(table).see(random_keys(13, 51))
        growths = table.growths
        rows = random_rows(13, random_keys(14, 5))
        table.insert_rows(rows)
        table.make_room(0)
        table.make_room(0)
        assert table.growths <= growths + 1
        check_layout(table)


def test_more_features_than_slots_have_numbers_are_refused() -> None:
    with pytest.raises(TableFullError, match=r"10,000,000,000 is more than one table can address"):
        ExactTable(10_000_000_000)


def test_growth_is_timed_by_the_clock_that_is_given() -> None:
    with small_tables():
        ticks = itertools.count(0, 3)
        table = ExactTable(20_000, clock=lambda: float(next(ticks)))
        Learning(table).see(random_keys(15, 1000))
        made = table.growths
        assert made >= 4
        assert table.growth_seconds_max == 3
        assert 3 <= table.growth_seconds <= 3 * made
