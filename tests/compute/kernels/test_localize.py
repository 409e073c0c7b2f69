"""Distinct keys, indices and counts against the slow twin, and where the kernel gives up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlearn.compute.kernels import localize as kernels


def run(
    keys: list[int] | np.ndarray,
    *,
    bits: int = 12,
    intercept: int = 0,
    rows: int = 0,
    load_max: int = 1 << 40,
    steps_max: int = 1 << 40,
) -> tuple[list[int], list[int], list[int]] | None:
    """Return keys, indices and counts; None where the kernel gave up."""
    given_keys = np.array(keys, np.uint64)
    n = len(given_keys)
    size = (1 << bits) + kernels.SLACK
    # scratch and results hold what another minibatch left
    unique = np.full(n + 2, 77, np.uint64)
    inverse = np.full(n, 77, np.int32)
    counts = np.full(n + 2, 77, np.uint32)
    count = kernels.localize(
        given_keys, n, intercept, rows, np.uint64(64 - bits), load_max, steps_max,
        np.full(size, 77, np.uint64), np.full(n + 2, 77, np.int32), np.full(size, 77, np.int32),
        unique, inverse, counts,
    )  # fmt: skip
    if count == kernels.CROWDED:
        return None
    return unique[:count].tolist(), inverse.tolist(), counts[:count].tolist()


def expected(keys: list[int] | np.ndarray) -> tuple[list[int], list[int], list[int]]:
    unique, inverse, counts = np.unique(
        np.array(keys, np.uint64), return_inverse=True, return_counts=True
    )
    return unique.tolist(), inverse.tolist(), counts.tolist()


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("n", [0, 1, 2, 100, 250])
def test_keys_come_out_in_order_whatever_the_table(bits: int, n: int) -> None:
    rng = np.random.default_rng(n)
    keys = rng.integers(0, 1 << 63, n, np.uint64) << np.uint64(1) | np.uint64(1)
    assert run(keys, bits=bits) == expected(keys)


@pytest.mark.parametrize("distinct", [1, 3, 60])
def test_keys_that_stand_often_are_counted(distinct: int) -> None:
    rng = np.random.default_rng(distinct)
    some = rng.integers(0, 1 << 63, distinct, np.uint64) << np.uint64(1) | np.uint64(1)
    keys = rng.choice(some, 5000)
    assert run(keys) == expected(keys)


@settings(max_examples=200, deadline=None)
@given(
    keys=st.lists(
        st.one_of(
            st.integers(0, (1 << 63) - 1),
            st.integers(0, 20),  # all in the first slot
            st.integers(0, 20).map(lambda n: (1 << 63) - 1 - n),  # all in the last
            st.integers(0, 20).map(lambda n: (n << 55) | n),
        ).map(lambda n: 2 * n + 1),
        max_size=60,
    )
)
def test_keys_that_crowd_come_out_in_order_too(keys: list[int]) -> None:
    assert run(keys, bits=8) == expected(keys)


def test_the_intercept_is_the_first_key_and_counts_the_examples() -> None:
    assert run([9, 5, 9], intercept=1, rows=2) == ([1, 5, 9], [2, 1, 2], [2, 1, 2])
    assert run([], intercept=1, rows=3) == ([1], [], [3])
    assert run([], intercept=1) == ([1], [], [0])


def test_a_feature_with_the_intercepts_key_is_the_intercept() -> None:
    assert run([1, 5], intercept=1, rows=4) == ([1, 5], [0, 1], [5, 1])


def test_it_gives_up_where_a_probe_leaves_the_table() -> None:
    last = (1 << 64) - 1
    room = kernels.SLACK + 1  # of the last slot and those behind it
    assert run([last - 2 * i for i in range(room)], bits=8) is not None
    assert run([last - 2 * i for i in range(room + 1)], bits=8) is None


def test_it_gives_up_beyond_its_load_and_its_probes() -> None:
    spread = [(i << 56) | 1 for i in range(10)]
    assert run(spread, bits=8, load_max=10) is not None
    assert run(spread, bits=8, load_max=9) is None
    crowd = [2 * i + 1 for i in range(10)]  # 0 + 1 + ... + 9 probes beyond the first
    assert run(crowd, bits=8, steps_max=45) is not None
    assert run(crowd, bits=8, steps_max=44) is None
