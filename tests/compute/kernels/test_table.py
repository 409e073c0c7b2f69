"""Kernels of the table, each on its own."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from streamlearn.compute.kernels.table import (
    FENCE,
    atomic_add,
    compare_and_swap,
    find,
    gather_rows,
    lay_out,
    line_of,
    other_line,
    pack,
    preserve,
)

SLOTS, SLACK = 256, 64


def empty_region() -> tuple[np.ndarray, np.ndarray]:
    """Return words and places of one segment of SLOTS slots from slot 0, fence included."""
    words = np.zeros((SLOTS + SLACK + 1) * 4, np.uint64)
    words[(SLOTS + SLACK) * 4] = FENCE
    places = np.zeros((256, 2), np.uint64)
    places[:, 0] = SLOTS // 2
    return words, places


def rows_of(keys: list[int], counts: list[int] | None = None) -> np.ndarray:
    rows = np.zeros((len(keys) + 1, 4), np.uint64)
    rows[: len(keys), 0] = keys
    rows[: len(keys), 1] = np.arange(len(keys)) + 100
    rows[: len(keys), 2] = 1 if counts is None else counts
    return rows


odd_keys = st.lists(
    st.one_of(
        st.integers(0, (1 << 63) - 1),
        st.sampled_from([0, 1 << 31, (1 << 63) - 1, 1 << 62]).flatmap(
            lambda base: st.integers(0, 40).map(lambda i: (base + i) % (1 << 63))
        ),
    ).map(lambda half: 2 * half + 1),
    unique=True,
    max_size=150,
)


@given(odd_keys, st.lists(st.integers(0, 1000), min_size=150, max_size=150))
@settings(deadline=None)
def test_rows_laid_out_are_found_and_packed_again(keys: list[int], counts: list[int]) -> None:
    words, places = empty_region()
    rows = rows_of(keys, counts[: len(keys)])
    end = SLOTS + SLACK
    taken = lay_out(words, rows, len(keys), 0, 256, places[0, 0], places[0, 1], end)
    assert words[end * 4] == FENCE
    if taken < 0:  # crowded at the end, as equal top bits may be
        assert len(keys) > SLACK
        return
    assert taken == len(keys)
    asked = np.array(keys + [key ^ (1 << 33) for key in keys], np.uint64)
    slots = np.empty(len(asked), np.int64)
    find(words, places, asked, slots)
    held = dict(zip(keys, rows.tolist(), strict=False))
    for key, slot in zip(asked.tolist(), slots.tolist(), strict=True):
        assert (slot >= 0) == (key in held)
    found = np.empty((len(keys), 4), np.uint64)
    gather_rows(words, slots[: len(keys)], found)
    assert found.tolist() == rows[: len(keys)].tolist()
    out = np.empty((len(keys) + 1, 4), np.uint64)
    assert pack(words, 0, end, out) == len(keys)
    assert sorted(out[: len(keys)].tolist()) == sorted(rows[: len(keys)].tolist())


def test_rows_of_other_ranges_are_passed_over() -> None:
    words, places = empty_region()
    keys = [(prefix << 56) | 1 for prefix in range(256)]
    scale = np.uint64(SLOTS // 2 << 1)  # the upper half of the keys, from slot 0
    offset = np.uint64((-(128 << 24) * int(scale)) % (1 << 64))
    places[:] = scale, offset
    taken = lay_out(words, rows_of(keys), 256, 128, 256, scale, offset, SLOTS + SLACK)
    assert taken == 128
    slots = np.empty(256, np.int64)
    find(words, places, np.array(keys[128:], np.uint64), slots[:128])
    assert (slots[:128] >= 0).all()
    assert (slots[:128] < SLOTS + SLACK).all()


def test_more_rows_than_slots_are_refused_at_the_fence() -> None:
    words, places = empty_region()
    keys = [2 * i + 1 for i in range(SLOTS + SLACK + 5)]
    keys = [key | (i % 256 << 56) for i, key in enumerate(keys)]
    taken = lay_out(
        words, rows_of(keys), len(keys), 0, 256, places[0, 0], places[0, 1], SLOTS + SLACK
    )
    assert taken == -1
    assert words[(SLOTS + SLACK) * 4] == FENCE


@given(st.integers(0, (1 << 63) - 1), st.integers(0, (1 << 31) - 1))
@settings(deadline=None)
def test_a_keys_other_line_is_another_one_of_its_page(half: int, line: int) -> None:
    other = other_line(line, np.uint64(2 * half + 1))
    assert other != line
    assert other >> 6 == line >> 6
    assert other_line(other, np.uint64(2 * half + 1)) == line


@given(st.lists(st.integers(0, (1 << 63) - 1), min_size=2, max_size=40))
@settings(deadline=None)
def test_lines_ascend_with_keys(halves: list[int]) -> None:
    _, places = empty_region()
    lines = [line_of(np.uint64(2 * half + 1), places) for half in sorted(halves)]
    assert lines == sorted(lines)
    assert all(0 <= line < SLOTS // 2 for line in lines)


def test_a_line_is_preserved_once_as_it_was() -> None:
    words = np.arange(16, dtype=np.uint64)
    kept, lines = np.zeros(1, np.uint64), np.full(4, -1)
    side, count = np.zeros((4, 8), np.uint64), np.zeros(1, np.int64)
    preserve(words, 1, kept, lines, side, count)
    words[8:] = 99
    preserve(words, 1, kept, lines, side, count)
    preserve(words, 0, kept, lines, side, count)
    assert count[0] == 2
    assert lines[:2].tolist() == [1, 0]
    assert side[0].tolist() == list(range(8, 16))
    assert side[1].tolist() == list(range(8))
    assert kept[0] == 3


@njit(nogil=True)
def _swap(address, expected, desired):  # type: ignore[no-untyped-def]
    return compare_and_swap(address, np.uint64(expected), np.uint64(desired))


@njit(nogil=True)
def _add_many(address, times):  # type: ignore[no-untyped-def]
    for _ in range(times):
        atomic_add(address, 1)


def test_compare_and_swap_stores_only_where_it_finds_what_it_expects() -> None:
    cell = np.array([5], np.uint64)
    assert _swap(cell.ctypes.data, 4, 7) == 5
    assert cell[0] == 5
    assert _swap(cell.ctypes.data, 5, 7) == 5
    assert cell[0] == 7


@pytest.mark.parametrize("lanes", [1, 4])
def test_no_atomic_addition_is_lost(lanes: int) -> None:
    cell = np.zeros(1, np.int64)
    _add_many(cell.ctypes.data, 1)
    threads = [
        threading.Thread(target=_add_many, args=(cell.ctypes.data, 200_000)) for _ in range(lanes)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cell[0] == 1 + lanes * 200_000
