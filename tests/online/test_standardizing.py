"""Columns of the dense part at mean 0 and variance 1, as the stream comes by."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="comes with the extra `deep`")

from streamlearn.errors import SnapshotError  # noqa: E402
from streamlearn.online.standardizing import LIMIT, Standardizer  # noqa: E402


def applied(one: Standardizer, dense: np.ndarray) -> np.ndarray:
    out = np.full_like(dense, 7)
    one.apply(dense, out)
    return out


def test_columns_stand_at_mean_zero_and_variance_one() -> None:
    rng = np.random.default_rng(1)
    dense = (rng.normal(size=(1000, 3)) * [1, 1e-3, 50] + [0, 7, -1e4]).astype(np.float32)
    one = Standardizer((3,))
    for first in range(0, 1000, 130):
        one.update(dense[first : first + 130])
    exact = (dense - dense.mean(0, dtype=float)) / dense.std(0, dtype=float)
    np.testing.assert_allclose(applied(one, dense), exact, rtol=1e-6, atol=1e-6)


def test_minibatches_of_any_size_give_the_same_sums() -> None:
    rng = np.random.default_rng(2)
    dense = rng.lognormal(3, 2, (500, 2)).astype(np.float32)
    dense[rng.random(dense.shape) < 0.2] = np.nan
    whole, pieces = Standardizer((2,)), Standardizer((2,))
    whole.update(dense)
    for first in range(0, 500, 7):
        pieces.update(dense[first : first + 7])
    for name, array in whole.state().items():
        np.testing.assert_allclose(pieces.state()[name], array, rtol=1e-12)
    there = np.isfinite(dense)
    assert whole.sums().count.tolist() == there.sum(0).tolist()
    np.testing.assert_allclose(whole.sums().mean, np.nanmean(dense.astype(float), 0), rtol=1e-13)


def test_missing_numbers_count_for_nothing_and_become_the_mean() -> None:
    one = Standardizer((2,))
    one.update(np.array([[np.nan, 1], [np.nan, 3]], np.float32))
    assert one.sums().count.tolist() == [0, 2]
    one.update(np.array([[5, np.nan], [7, np.inf]], np.float32))
    assert one.sums().count.tolist() == [2, 2]
    out = applied(one, np.array([[np.nan, 3], [7, np.nan]], np.float32))
    np.testing.assert_allclose(out, [[0, 1], [1, 0]], atol=1e-7)


def test_a_column_that_never_varies_becomes_zero() -> None:
    value = np.float32(0.1)  # none of its sums is exact
    one, other = Standardizer((2,)), Standardizer((2,))
    for at in (one, other):
        for rows in (1, 17, 1000):
            at.update(np.column_stack([np.full(rows, value), np.arange(rows)]).astype(np.float32))
    one.add(other.sums())
    assert one.sums().squares[0] == 0
    assert one.sums().mean[0] == float(value)
    assert applied(one, np.array([[0.1, 5], [3, 5]], np.float32))[:, 0].tolist() == [0, 0]


@pytest.mark.parametrize("offset", [3_000, 16_000_000])
def test_whole_numbers_far_from_zero_keep_their_spread(offset: int) -> None:
    # as metres above the sea or seconds since the epoch: float32's own sums would cancel
    rng = np.random.default_rng(4)
    whole = rng.integers(-3, 4, (5000, 1))
    dense = (whole + offset).astype(np.float32)
    one = Standardizer((1,))
    for first in range(0, 5000, 100):
        one.update(dense[first : first + 100])
    exact = (whole - whole.mean()) / whole.std()
    np.testing.assert_allclose(applied(one, dense), exact, atol=1e-5)


def test_what_is_far_off_is_cut() -> None:
    one = Standardizer((1,))
    one.update(np.array([[0], [2]], np.float32))
    assert applied(one, np.array([[1e6], [-1e6]], np.float32)).ravel().tolist() == [LIMIT, -LIMIT]


def test_images_are_standardised_by_channel() -> None:
    rng = np.random.default_rng(5)
    images = rng.normal(size=(40, 2, 3, 4)) * [[[[2]], [[30]]]] + [[[[5]], [[-100]]]]
    flat = images.astype(np.float32).reshape(40, -1)
    flat[0, :6] = np.nan
    one = Standardizer((2, 3, 4))
    one.update(flat[:1])
    one.update(flat[1:])
    assert one.sums().count.tolist() == [40 * 12 - 6, 40 * 12]
    out = applied(one, flat).reshape(40, 2, 12)
    np.testing.assert_allclose(out.mean((0, 2)), 0, atol=1e-2)  # 6 in 480 are missing
    np.testing.assert_allclose(out[:, 1].std(), 1, rtol=1e-5)
    mean, scale = one.as_tensors()
    assert mean.shape == scale.shape == (2, 1, 1)


def test_an_exported_model_standardises_alike() -> None:
    rng = np.random.default_rng(6)
    dense = (rng.normal(size=(50, 2)) * [1, 1e5] + [0, 1.6e9]).astype(np.float32)
    one = Standardizer((2,))
    one.update(dense)
    mean, scale = one.as_tensors()
    exported = ((torch.from_numpy(dense).double() - mean) * scale).clamp(-LIMIT, LIMIT).float()
    assert exported.numpy().tobytes() == applied(one, dense).tobytes()
    before = mean.clone()
    one.update(dense + 1)
    assert torch.equal(mean, before)


def test_workers_sums_add_up_to_those_of_one() -> None:
    rng = np.random.default_rng(7)
    dense = rng.normal(40, 3, (300, 3)).astype(np.float32)
    dense[:150, 2] = np.nan  # one worker has none of these
    alone = Standardizer((3,))
    alone.update(dense)
    workers = [Standardizer((3,)) for _ in range(2)]
    for round_ in range(3):
        for i, worker in enumerate(workers):
            first = 150 * i + 50 * round_
            worker.update(dense[first : first + 50])
        owns = [worker.drain() for worker in workers]
        workers[0].add(owns[1])
        workers[1].add(owns[0])
    for worker in workers:
        for name, array in alone.state().items():
            np.testing.assert_allclose(worker.state()[name], array, rtol=1e-12)
        assert worker.drain().count.tolist() == [0, 0, 0]


def test_state_is_a_copy_that_another_goes_on_from() -> None:
    rng = np.random.default_rng(8)
    first, second = rng.normal(size=(2, 20, 2)).astype(np.float32)
    one, other = Standardizer((2,)), Standardizer((2,))
    one.update(first)
    kept = one.state()
    one.update(second)
    other.restore(kept)
    other.update(second)
    assert applied(other, first).tobytes() == applied(one, first).tobytes()
    with pytest.raises(SnapshotError, match=r"\(2,\).*\(3,\)"):
        Standardizer((3,)).restore(kept)
    with pytest.raises(SnapshotError, match="none"):
        one.restore({})
