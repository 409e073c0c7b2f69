"""The name store's kernels: picking rows, finding line ends."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.compute.kernels.names import gather_lines, index_names, pick_rows


def pick(fresh: np.ndarray, fresh_max: int, others_max: int, phase: int) -> list[int]:
    picked = np.full(fresh.size, -1, np.int64)
    count = pick_rows(fresh, fresh.size, fresh_max, others_max, phase, picked)
    return picked[:count].tolist()


@settings(deadline=None)  # the first call compiles
@given(
    st.lists(st.integers(0, 3), max_size=60),
    st.integers(0, 70),
    st.integers(0, 70),
    st.integers(0, 1 << 31),
)
def test_picked_rows_differ_and_as_many_fresh_ones_as_wanted_are_among_them(
    fresh: list[int], fresh_max: int, others_max: int, phase: int
) -> None:
    rows = pick(np.array(fresh, np.uint8), fresh_max, others_max, phase)
    assert len(set(rows)) == len(rows)
    assert all(0 <= row < len(fresh) for row in rows)
    picked_fresh = [row for row in rows if fresh[row]]
    assert len(picked_fresh) == min(fresh_max, sum(value > 0 for value in fresh))
    assert len(rows) - len(picked_fresh) <= others_max


def test_every_row_is_picked_where_all_are_wanted() -> None:
    fresh = np.array([0, 1, 0, 0, 2, 0], np.uint8)
    assert sorted(pick(fresh, 6, 6, 12345)) == list(range(6))


def test_picks_of_other_phases_cover_every_row() -> None:
    fresh = np.zeros(100, np.uint8)
    seen = {row for phase in range(100) for row in pick(fresh, 3, 3, phase)}
    assert seen == set(range(100))
    assert pick(fresh, 3, 4, 0) == [0, 25, 50, 75]


@pytest.mark.parametrize("tail", [0, 1, 63, 64, 65, 200])
def test_records_are_copied_up_to_their_newline(tail: int) -> None:
    texts = [b"", b"a", b"x" * 62, b"y" * 63, b"z" * 64, b"w" * 300, b'tab\tquote"']
    lines, data = [], b""
    for text in texts:
        lines.append(len(data))
        data += text + b"\n"
    buffer = np.frombuffer(data + b"\0" * tail, np.uint8)
    kept = np.zeros(2000, np.uint8)
    starts, ends = np.zeros(10, np.int64), np.zeros(10, np.int64)
    picked = np.array([6, 0, 5, 1, 2, 4, 3])
    count, taken = gather_lines(buffer, np.array(lines), picked, kept, starts, ends, 0)
    assert (count, taken) == (7, 7)
    copies = [kept[a:b].tobytes() for a, b in zip(starts[:7], ends[:7], strict=True)]
    assert copies == [texts[row] for row in picked]


def test_record_without_a_newline_ends_with_the_buffer() -> None:
    buffer = np.frombuffer(b"ab\ncdef", np.uint8)
    kept, starts, ends = np.zeros(20, np.uint8), np.zeros(2, np.int64), np.zeros(2, np.int64)
    gather_lines(buffer, np.array([0, 3]), np.array([1]), kept, starts, ends, 0)
    assert kept[starts[0] : ends[0]].tobytes() == b"cdef"


@pytest.mark.parametrize(("bytes_max", "taken"), [(3, 0), (4, 1), (7, 1), (8, 2), (99, 3)])
def test_copying_stops_where_the_next_record_does_not_fit(bytes_max: int, taken: int) -> None:
    buffer = np.frombuffer(b"abc\nabc\nabc\nabc\n", np.uint8)
    lines, picked = np.arange(4) * 4, np.arange(4)
    kept, starts, ends = np.zeros(bytes_max, np.uint8), np.zeros(3, np.int64), np.zeros(3, np.int64)
    assert gather_lines(buffer, lines, picked, kept, starts, ends, 0) == (taken, taken)


@pytest.mark.parametrize(("keys", "duplicate"), [([3, 5, 3], 2), ([1, 0], 1), ([7, 9], -1)])
def test_index_refuses_a_key_that_is_zero_or_there_already(keys: list[int], duplicate: int) -> None:
    index_keys, index_entries = np.zeros(8, np.uint64), np.zeros(8, np.uint32)
    found = index_names(index_keys, index_entries, np.uint64(61), np.array(keys, np.uint64))
    assert found == duplicate
