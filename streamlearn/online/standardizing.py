"""Columns of the dense part taken to mean 0 and variance 1, by what the stream has had so far.

Sums of workers and of minibatches add up (Chan, Golub, LeVeque, "Updating formulae and a pairwise
algorithm for computing sample variances", 1979, eq. 2.1): of two sets a and b with counts n, means
m and sums of squared deviations M,

    n = n_a + n_b,  d = m_b - m_a,  m = m_a + d n_b / n,  M = M_a + M_b + d^2 n_a n_b / n
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from streamlearn.compute.kernels import standardizing as kernels
from streamlearn.errors import SnapshotError
from streamlearn.messages import F32, F64

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LIMIT", "Standardizer", "Sums"]

# Standard deviations beyond which a number is cut: what a young column, or one with a long tail,
# has beyond them would move a net by more than all else.
LIMIT: Final = 10.0

_NAMES: Final = ("count", "mean", "squares")


@dataclass(frozen=True, slots=True)
class Sums:
    """What columns have had.

    Attributes
    ----------
    count : float64[c]
        Numbers that were there.
    mean : float64[c]
    squares : float64[c]
        Sums of squared deviations from the mean.
    """

    count: F64
    mean: F64
    squares: F64

    @classmethod
    def none(cls, columns: int) -> Sums:
        """Return those of no numbers."""
        return cls(*(np.zeros(columns) for _ in _NAMES))

    def __add__(self, other: Sums) -> Sums:
        """Return those of both; exact where a column never varies."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1.0)
        # a mean of nothing is no mean: what is added first is taken as it is
        apart = np.where(self.count > 0, other.mean - self.mean, 0.0) * (other.count > 0)
        mean = np.where(self.count > 0, self.mean + apart * share, other.mean)
        squares = self.squares + other.squares + apart * apart * self.count * share
        return Sums(count, mean, squares)


class Standardizer:
    """Mean and variance of each column, or channel, of the dense part; of one lane at a time.

    Parameters
    ----------
    shape : tuple of int
        Of an example's dense part: (d,), each column by itself, or (channels, height, width), each
        channel by itself.

    Notes
    -----
    A column that has not varied yet becomes 0: it says nothing.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self._span = math.prod(shape[1:])  # columns of the flat part to one of the sums
        self._sums = self._own = Sums.none(shape[0])
        self._mean, self._scale = self._spread()

    def update(self, dense: F32) -> None:
        """Learn from a minibatch.

        Parameters
        ----------
        dense : float32[rows, prod(shape)]
            NaN (and what else is no finite number): missing, and not counted.
        """
        sums, span = self._sums, self._span
        shifts = np.repeat(sums.mean, span)
        known = np.repeat(sums.count > 0, span)
        if not known.all():
            kernels.first_of(dense, known, shifts)
            # one shift a channel, of its first column that has a number
            shifts = _first_known(dense, shifts, span)
        counts, firsts, seconds = np.empty((3, len(shifts)))
        kernels.column_sums(dense, shifts, counts, firsts, seconds)
        count, first, second = (one.reshape(-1, span).sum(1) for one in (counts, firsts, seconds))
        own = first / np.maximum(count, 1.0)
        squares = np.maximum(second - first * own, 0.0)
        had = Sums(count, np.where(count > 0, shifts[::span] + own, 0.0), squares)
        self._own = self._own + had
        self.add(had)

    def apply(self, dense: F32, out: F32) -> None:
        """Write a minibatch with each column at mean 0 and variance 1, cut at :data:`LIMIT`.

        Parameters
        ----------
        dense : float32[rows, prod(shape)]
            What is missing becomes 0, the mean.
        out : float32[rows, prod(shape)]
            Written; may be ``dense``.
        """
        kernels.standardize(dense, self._mean, self._scale, LIMIT, out)

    def sums(self) -> Sums:
        """Return what the columns have had; it is not changed by what follows."""
        return self._sums

    def add(self, sums: Sums) -> None:
        """Add what another has had, as if this had had it."""
        self._sums = self._sums + sums
        self._mean, self._scale = self._spread()

    def drain(self) -> Sums:
        """Return what ``update`` has had since the last call, for other workers to add."""
        own, self._own = self._own, Sums.none(self.shape[0])
        return own

    def as_tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and scale as they are now, to export: ``clamp((x - mean) * scale)``.

        Returns
        -------
        mean, scale : float64[d], or float64[channels, 1, 1]
            In float64, as here, since a mean near 1e9 leaves float32 nothing to compute with.
        """
        shape = (self.shape[0], *(1 for _ in self.shape[1:]))
        mean, scale = (one[:: self._span].reshape(shape) for one in (self._mean, self._scale))
        return torch.from_numpy(mean.copy()), torch.from_numpy(scale.copy())

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of the sums, by name."""
        return {name: getattr(self._sums, name).copy() for name in _NAMES}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take what :meth:`state` returned.

        Raises
        ------
        SnapshotError
            It is of other columns.
        """
        there = {name: np.shape(arrays[name]) for name in _NAMES if name in arrays}
        here = dict.fromkeys(_NAMES, (self.shape[0],))
        if there != here:
            raise SnapshotError(
                f"the snapshot standardises columns of shapes {there or 'none'}, here {here}"
            )
        self._sums = Sums(*(np.array(arrays[name], np.float64) for name in _NAMES))
        self._mean, self._scale = self._spread()

    def _spread(self) -> tuple[F64, F64]:
        """Return mean and 1 / standard deviation of each column of the flat part."""
        sums = self._sums
        varies = sums.squares > 0
        variance = np.where(varies, sums.squares, 1.0) / np.maximum(sums.count, 1.0)
        scale = np.where(varies, 1.0 / np.sqrt(variance), 0.0)
        return np.repeat(sums.mean, self._span), np.repeat(scale, self._span)


def _first_known(dense: F32, shifts: F64, span: int) -> F64:
    """Return shifts with one for each channel."""
    if span == 1:
        return shifts
    there = np.isfinite(dense).any(0).reshape(-1, span)
    columns = np.arange(0, len(shifts), span) + there.argmax(1)
    return np.repeat(shifts[columns], span)
