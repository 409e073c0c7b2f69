"""The kernel of best items against its slow twin: equal where sums are exact, ties and all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlearn.compute.kernels import top as kernels
from tests.reference import top as reference


def aligned(array: np.ndarray) -> np.ndarray:
    whole = np.zeros(array.size + 16, np.float32)
    first = -whole.ctypes.data // 4 % 16
    view = whole[first : first + array.size].reshape(array.shape)
    view[:] = array
    return view


def best(
    users: np.ndarray,
    factors: np.ndarray,
    biases: np.ndarray,
    n: int,
    seen: list[list[int]],
    room: int,
) -> list[list[tuple[float, int]]]:
    """Call the kernel as its docstring says."""
    count, (items, dim) = len(users), factors.shape
    rows = -(-count // kernels.GROUP) * kernels.GROUP
    padded = np.zeros((rows, dim), np.float32)
    padded[:count] = users
    panels = aligned(np.zeros((-(-items // kernels.LANES), dim, kernels.LANES)))
    kernels.pack_panels(factors, panels)
    lanes = np.full(len(panels) * kernels.LANES, -np.inf)
    lanes[:items] = biases
    starts = np.cumsum([0, *map(len, seen)])
    words, fills = np.zeros((count, room), np.uint64), np.zeros(count, np.int64)
    kernels.best(
        padded, count, panels, aligned(lanes), n, starts,
        np.array([item for one in seen for item in one], np.int32), np.zeros(rows, np.float32),
        words, fills, np.zeros(count, np.int64), aligned(np.zeros(kernels.GROUP * kernels.LANES)),
    )  # fmt: skip
    found = []
    for row, fill in zip(words, fills.tolist(), strict=True):
        ordered = np.sort(row[:fill])[::-1].reshape(1, -1)
        at, scores = np.zeros((1, fill + 1), np.int64), np.zeros((1, fill + 1), np.float32)
        kernels.rank_all(np.pad(ordered, ((0, 0), (0, 1))), np.array([fill]), at, scores)
        assert at[0, fill] == -1
        assert np.isnan(scores[0, fill])
        found.append(list(zip(scores[0, :fill].tolist(), at[0, :fill].tolist(), strict=True)))
    return found


@given(st.data())
def test_the_best_are_those_of_the_slow_twin(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    users, items = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 70))
    dim, n = data.draw(st.integers(1, 19)), data.draw(st.integers(1, 75))
    spread = data.draw(st.sampled_from([1, 2, 50]))  # few values: many ties
    p = rng.integers(-spread, spread + 1, (users, dim)).astype(np.float32)
    q = rng.integers(-spread, spread + 1, (items, dim)).astype(np.float32)
    biases = rng.integers(-spread, spread + 1, items).astype(np.float32)
    share = data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    seen = [np.flatnonzero(rng.random(items) < share).tolist() for _ in range(users)]
    room = n + data.draw(st.integers(1, 40))
    assert best(p, q, biases, n, seen, room) == reference.best(p, q, biases, n, seen)


@pytest.mark.parametrize("room", [4, 40])
def test_what_is_no_number_ranks_nowhere_and_infinity_first(room: int) -> None:
    users = np.array([[1.0]], np.float32)
    scores = [0.0, np.nan, np.inf, -0.0, -1.0, -np.inf, 3e38, 1e-45]
    q = np.array(scores, np.float32)[:, None]
    found = best(users, q, np.zeros(len(q)), 3, [[]], room)[0]
    assert [item for _, item in found] == [2, 6, 7]
    assert best(users, q, np.zeros(len(q)), 8, [[]], 40)[0] == [
        (np.inf, 2), (float(np.float32(3e38)), 6), (float(np.float32(1e-45)), 7), (0.0, 0),
        (0.0, 3), (-1.0, 4),
    ]  # fmt: skip


def test_equal_items_have_equal_scores_wherever_they_stand() -> None:
    rng = np.random.default_rng(3)
    users = rng.normal(size=(7, 33)).astype(np.float32)
    q = np.repeat(rng.normal(size=(1, 33)).astype(np.float32), 50, axis=0)
    for found in best(users, q, np.zeros(50), 50, [[]] * 7, 60):
        assert [item for _, item in found] == list(range(50))
        assert len({score for score, _ in found}) == 1
