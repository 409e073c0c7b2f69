"""Mean and variance of the columns of a dense part, and columns taken to mean 0 and variance 1.

A minibatch is summed about the mean that its columns have had so far, k (Chan, Golub, LeVeque,
"Algorithms for computing the sample variance", 1983, eq. 1.5b with their shift):

    S1 = sum (x - k),  S2 = sum (x - k)^2     over the numbers that are there

in float64. A column that never varies has sums of exactly zero, and where all that a column has is
near 1e9 nothing cancels.
"""

from __future__ import annotations

from numba import float32, float64, njit

__all__ = ["column_sums", "first_of", "standardize"]


@njit(nogil=True, cache=True, error_model="numpy")
def first_of(dense, known, shifts):
    """Write the first number of each column that is not known yet.

    Parameters
    ----------
    dense : float32[rows, d]
        What is no finite number is missing.
    known : bool[d]
        Columns to leave alone. Not written.
    shifts : float64[d]
        Written; as it was where a column has no number.
    """
    for c in range(dense.shape[1]):
        if not known[c]:
            for r in range(dense.shape[0]):
                if abs(dense[r, c]) < float32(3.5e38):
                    shifts[c] = float64(dense[r, c])
                    break


@njit(nogil=True, cache=True, error_model="numpy")
def column_sums(dense, shifts, counts, firsts, seconds):
    """Sum each column, and its squares, about a shift.

    Parameters
    ----------
    dense : float32[rows, d]
        What is no finite number is missing.
    shifts : float64[d]
    counts, firsts, seconds : float64[d]
        Written: how many numbers there are, S1, S2.

    Notes
    -----
    O(rows * d). The sums are taken in the order of the rows: relative error rows * 2**-53.
    """
    counts[:] = float64(0)
    firsts[:] = float64(0)
    seconds[:] = float64(0)
    for r in range(dense.shape[0]):
        row = dense[r]
        for c in range(row.shape[0]):
            off = float64(row[c]) - shifts[c]
            there = abs(off) < float64(1e300)
            off = off if there else float64(0)
            counts[c] += float64(1) if there else float64(0)
            firsts[c] += off
            seconds[c] += off * off


@njit(nogil=True, cache=True, error_model="numpy")
def standardize(dense, means, scales, limit, out):
    """Write (x - mean) * scale, cut at plus and minus a limit; 0 where a number is missing.

    Parameters
    ----------
    dense : float32[rows, d]
        What is no finite number is missing.
    means, scales : float64[d]
    limit : float64
    out : float32[rows, d]
        Written; may be ``dense``.
    """
    for r in range(dense.shape[0]):
        row, to = dense[r], out[r]
        for c in range(row.shape[0]):
            off = float64(row[c]) - means[c]
            there = abs(off) < float64(1e300)
            scaled = max(min(off * scales[c], limit), -limit)
            to[c] = float32(scaled) if there else float32(0)
