"""A table divided between lanes that insert and grow at the same time."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from streamlearn.messages import U64
from streamlearn.shards.cut import Cut, Nothing
from streamlearn.shards.dividing import divide, segments_of
from streamlearn.shards.table import ExactTable
from tests.reference.tables import check_layout, image, small_tables


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    with small_tables():
        yield


def some_keys(count: int, seed: int) -> U64:
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 1 << 63, count, np.uint64) << np.uint64(1) | np.uint64(1)
    return np.unique(keys)


def insert(table: ExactTable, keys: U64) -> None:
    slots = table.find(keys)
    table.insert(keys, slots, Nothing())
    assert (slots >= 0).all()


@pytest.mark.parametrize("held", [0, 50, 3_000])
@pytest.mark.parametrize("lanes", [1, 2, 3, 7, 64, 256])
def test_no_segment_lies_across_two_lanes_and_no_row_is_lost(lanes: int, held: int) -> None:
    table = ExactTable(20_000)
    insert(table, some_keys(held, 1))
    before = image(table)
    edges = divide(table, lanes)
    assert (edges[0], edges[-1], len(edges)) == (0, 256, lanes + 1)
    sizes = np.diff(edges)
    assert sizes.min() > 0
    assert sizes.max() <= max(2 * sizes.min(), 256 // lanes + 1)
    check_layout(table)
    np.testing.assert_array_equal(image(table), before)
    owned = segments_of(table, edges)
    assert sorted(itertools.chain(*owned)) == list(range(table.segments))
    for lane, segments in enumerate(owned):
        spans = [table.span(segment) for segment in segments]
        assert [spans[0][0], spans[-1][1]] == edges[lane : lane + 2]
        assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))
    assert divide(table, lanes) == edges


def test_lanes_insert_and_grow_at_the_same_time() -> None:
    table = ExactTable(60_000)
    edges = divide(table, 4)
    keys = some_keys(20_000, 2)
    bounds = [*np.searchsorted(keys, [np.uint64(e << 56) for e in edges[:-1]]), len(keys)]

    def work(lane: int) -> None:
        own = keys[bounds[lane] : bounds[lane + 1]]
        for start in range(0, len(own), 50):
            insert(table, own[start : start + 50])
            insert(table, own[: start + 50 : 7])

    threads = [threading.Thread(target=work, args=(lane,)) for lane in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert table.features == len(keys)
    assert table.inserted_count[0] == len(keys)
    assert table.growths > 10
    check_layout(table)
    assert image(table)[:, 0].tolist() == keys.tolist()
    assert all(segments_of(table, edges))


def test_cuts_of_lanes_hold_what_the_table_held_whatever_is_laid_out_anew() -> None:
    table = ExactTable(60_000)
    edges = divide(table, 3)
    keys = some_keys(6_000, 3)
    insert(table, keys[::2])
    before = image(table)
    cuts = [Cut(table, parts=parts) for parts in segments_of(table, edges)]
    assert table.before_change is None

    def before_change(segment: int) -> None:
        for cut in cuts:
            cut.before_change(segment)

    table.before_change = before_change
    taken = []
    bounds = [*np.searchsorted(keys, [np.uint64(e << 56) for e in edges[:-1]]), len(keys)]
    for first, end, cut in zip(bounds, bounds[1:], cuts, strict=False):
        slots = table.find(keys[first:end])
        table.insert(keys[first:end], slots, cut)
        while (part := cut.take()) is not None:
            taken.append(part[1])
        cut.close()
    assert table.features == len(keys)
    rows = np.concatenate(taken)  # segments that were laid out anew came first
    np.testing.assert_array_equal(rows[np.argsort(rows[:, 0])], before)
