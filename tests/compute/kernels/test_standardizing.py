"""Sums of columns about a shift, and columns standardised, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from streamlearn.compute.kernels import standardizing


@pytest.mark.parametrize("rows", [0, 1, 37])
def test_sums_are_of_the_numbers_that_are_there(rows: int) -> None:
    rng = np.random.default_rng(1)
    dense = rng.normal(1e6, 3, (rows, 4)).astype(np.float32)
    dense[rng.random(dense.shape) < 0.3] = np.nan
    dense[: rows // 2, 3] = np.inf
    shifts = np.array([1e6, 0, -5, 1e6])
    counts, firsts, seconds = np.full((3, 4), 7.0)
    standardizing.column_sums(dense, shifts, counts, firsts, seconds)
    there = np.isfinite(dense)
    off = np.where(there, dense.astype(float) - shifts, 0.0)
    assert counts.tolist() == there.sum(0).tolist()
    np.testing.assert_allclose(firsts, off.sum(0), rtol=1e-13, atol=1e-9)
    np.testing.assert_allclose(seconds, (off * off).sum(0), rtol=1e-13)


def test_the_first_number_of_a_column_is_its_first_shift() -> None:
    dense = np.array([[np.nan, 5, np.nan], [np.inf, 6, np.nan], [3, 7, np.nan]], np.float32)
    shifts = np.array([0.0, 9.0, 4.0])
    standardizing.first_of(dense, np.array([False, True, False]), shifts)
    assert shifts.tolist() == [3.0, 9.0, 4.0]


def test_columns_are_scaled_and_cut_and_what_is_missing_is_zero() -> None:
    dense = np.array([[1, np.nan, 100], [3, np.inf, -100], [2, 5, 0]], np.float32)
    means, scales = np.array([2.0, 0, 0]), np.array([4.0, 1, 1])
    standardizing.standardize(dense, means, scales, 10.0, dense)  # in place
    assert dense.tolist() == [[-4, 0, 10], [4, 0, -10], [0, 5, 0]]
