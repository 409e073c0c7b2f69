"""Minibatches in terms of their distinct keys, with buffers used again and again."""

from __future__ import annotations

import numpy as np
import pytest

from streamlearn.online.localized import INTERCEPT_KEY, Localized, Localizer
from streamlearn.online.minibatch import Minibatch
from tests.reference.steps import distinct
from tests.reference.tables import minibatch


def examples(rows: int, features: int, distinct_keys: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    some = rng.integers(0, 1 << 63, distinct_keys, np.uint64) << np.uint64(1) | np.uint64(1)
    return [rng.choice(some, features) for _ in range(rows)]


def check(batch: Minibatch, out: Localized, *, intercept: bool) -> None:
    keys, inverse, counts = distinct(batch, intercept=intercept)
    assert out.keys.tolist() == keys
    assert out.inverse.tolist() == inverse
    assert out.counts.tolist() == counts
    assert (out.unique, out.nnz, out.intercept) == (len(keys), batch.nnz, intercept)
    assert (out.keys.dtype, out.counts.dtype, out.inverse.dtype) == ("u8", "u4", "i4")
    assert len(out.gradients) == out.unique


@pytest.mark.parametrize("intercept", [False, True])
def test_minibatches_of_all_sizes_share_their_buffers(intercept: bool) -> None:
    localizer, out = Localizer(1 << 17), Localized(1 << 17)
    sizes = [(200, 20, 5), (1, 1, 1), (0, 0, 1), (2000, 30, 50_000), (3, 0, 1), (50, 9, 400)]
    for seed, (rows, features, some) in enumerate(sizes * 2):
        batch = minibatch(examples(rows, features, some, seed))
        assert localizer.localize(batch, out, intercept=intercept) is out
        check(batch, out, intercept=intercept)


@pytest.mark.parametrize("intercept", [False, True])
def test_keys_that_are_not_mixed_are_localised_all_the_same(intercept: bool) -> None:
    localizer, out = Localizer(1 << 17), Localized(1 << 17)
    rng = np.random.default_rng(0)
    low = [(rng.integers(0, 20_000, 30) * 2 + 1).astype(np.uint64) for _ in range(1000)]
    high = [np.uint64(0) - keys for keys in low]
    for batch in (minibatch(low), minibatch(high), minibatch(examples(9, 9, 9, 1))):
        localizer.localize(batch, out, intercept=intercept)
        check(batch, out, intercept=intercept)


def test_what_comes_out_does_not_depend_on_what_came_before() -> None:
    fresh, used = Localizer(1 << 17), Localizer(1 << 17)
    first, second = Localized(1 << 17), Localized(1 << 17)
    used.localize(minibatch(examples(3000, 30, 90_000, 1)), second, intercept=True)
    batch = minibatch(examples(40, 10, 100, 2))
    fresh.localize(batch, first, intercept=True)
    used.localize(batch, second, intercept=True)
    for name in ("keys", "inverse", "counts"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_bounds_cut_the_keys_by_prefix() -> None:
    keys = [(prefix << 56) | 1 for prefix in (0, 0x10, 0x7F, 0x80, 0xFF)] + [(1 << 64) - 1]
    out = Localizer(100_000).localize(minibatch([keys]), Localized(100_000), intercept=False)
    assert out.bounds([0, 128, 256]).tolist() == [0, 3, 6]
    assert out.bounds([0, 16, 17, 255, 256]).tolist() == [0, 1, 2, 4, 6]
    assert out.bounds([0, 256]).tolist() == [0, 6]
    empty = Localizer(100_000).localize(minibatch([]), Localized(100_000), intercept=False)
    assert empty.bounds([0, 85, 170, 256]).tolist() == [0, 0, 0, 0]


def test_the_intercept_belongs_to_the_first_range() -> None:
    out = Localizer(100_000).localize(
        minibatch([[1 << 63 | 1]]), Localized(100_000), intercept=True
    )
    assert out.keys[0] == INTERCEPT_KEY
    assert out.bounds([0, 1, 256]).tolist() == [0, 1, 2]


@pytest.mark.parametrize("intercept", [False, True])
def test_keys_that_are_set_aside_stand_behind_those_that_are_shared(intercept: bool) -> None:
    batch = minibatch(examples(60, 7, 90, 4))
    out = Localizer(1 << 12).localize(batch, Localized(1 << 12), intercept=intercept)
    keys, counts = out.keys.copy(), out.counts.copy()
    assert out.shared == out.unique
    aside = keys % np.uint64(3) == 0
    aside[: int(intercept)] = False
    out.set_aside(aside)
    assert out.shared == out.unique - np.count_nonzero(aside)
    assert out.keys.tolist() == [*keys[~aside].tolist(), *keys[aside].tolist()]
    assert out.counts.tolist() == [*counts[~aside].tolist(), *counts[aside].tolist()]
    assert (out.keys[out.inverse] == batch.keys[: batch.nnz]).all()
    bounds = out.bounds((0, 100, 200, 256))
    assert bounds[-1] == out.shared
    for first, end, low in zip(bounds, bounds[1:], (0, 100, 200), strict=False):
        prefixes = (out.keys[first:end] >> np.uint64(56)).tolist()
        assert all(low <= prefix < low + 100 for prefix in prefixes)
    again = Localizer(1 << 12).localize(batch, out, intercept=intercept)
    check(batch, again, intercept=intercept)
    assert again.shared == again.unique


def test_a_minibatch_larger_than_the_buffers_is_refused() -> None:
    batch = minibatch([[1, 3, 5]])
    with pytest.raises(AssertionError, match="3 features, but room for 2"):
        Localizer(2).localize(batch, Localized(100), intercept=False)
    with pytest.raises(AssertionError, match="3 features, but room for 2"):
        Localizer(100).localize(batch, Localized(2), intercept=False)
