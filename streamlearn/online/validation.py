"""Progressive validation: how well each example was predicted before it taught.

Every figure is a function of a few sums and of one histogram of logits by class, so lanes,
snapshots and windows add up: figures are pooled, never averaged over minibatches. The AUC comes
from the histogram with an exact bound on what the bins can hide (see :func:`auc_of`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from streamlearn.compute.kernels.validation import score_logits
from streamlearn.errors import SnapshotError
from streamlearn.messages import F32, F64

__all__ = ["BINS", "LOGIT_LIMIT", "BinaryValidation", "Totals", "auc_of"]

# Bins of 1/256 over logits -16 to 16 (probabilities down to one in nine million). A model of clicks
# fills about 2,000 of them (32 kB), its AUC is then known to +-0.0004; twice as many bins halve
# that and take twice the cache.
BINS: Final = 8192
LOGIT_LIMIT: Final = 16.0
# The window moves on by an eighth of itself.
WINDOW_PARTS: Final = 8

_EXAMPLES: Final = 4  # column of the sums


class Totals(NamedTuple):
    """Weighted sums over examples (and their number); two moments' difference is a window."""

    loss: float
    label: float
    prediction: float
    weight: float
    examples: int

    @property
    def logloss(self) -> float:
        """Mean logarithmic loss; NaN of nothing."""
        return _ratio(self.loss, self.weight)

    @property
    def baseline_loss(self) -> float:
        """Loss of the best constant prediction, the mean label: its entropy; NaN of nothing."""
        mean = _ratio(self.label, self.weight)
        if math.isnan(mean):
            return math.nan
        return -sum(p * math.log(p) for p in (mean, 1.0 - mean) if p > 0.0)

    @property
    def normalized_entropy(self) -> float:
        """Logarithmic loss over that of the best constant; NaN where all labels are the same."""
        return _ratio(self.logloss, self.baseline_loss)

    @property
    def calibration(self) -> float:
        """Mean prediction over mean label; NaN where no label is 1."""
        return _ratio(self.prediction, self.label)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0.0 else math.nan


def auc_of(histogram: F64) -> tuple[float, float]:
    """Compute the area under the ROC curve from weights by bin and class.

    Parameters
    ----------
    histogram : float64[2 * bins]
        Weight of the negatives (even) and of the positives (odd) of each bin, bins in order of
        score.

    Returns
    -------
    auc : float
        Chance that a positive scores above a negative, ties (here: the same bin) counted half;
        below 0.5 where the ranking is wrong way round. NaN where a class is missing.
    error : float
        The exact AUC, by the scores themselves, is within ``auc +- error``: half the share of pairs
        that are in one bin, since each such pair counts 0, 1/2 or 1 exactly and 1/2 here.
    """
    negative, positive = histogram[0::2], histogram[1::2]
    pairs = float(negative.sum()) * float(positive.sum())
    if not pairs > 0.0:
        return math.nan, math.nan
    below = np.cumsum(negative) - negative
    tied = 0.5 * float(np.sum(positive * negative)) / pairs
    return float(np.sum(positive * below)) / pairs + tied, tied


class BinaryValidation:
    """Weighted validation of logits against labels of 0 and 1, over all and over a window.

    Parameters
    ----------
    window : int
        Examples in the window, at least 1. It moves on by an eighth: it covers between seven
        eighths of this (rounded up to a multiple of eight) and all of it.

    Notes
    -----
    About 6 ns an example in minibatches of 1,024; a window below some 10,000 examples costs more,
    since each eighth that closes adds up a histogram of :data:`BINS`. Not locked: update and ask
    from one lane at a time.
    """

    def __init__(self, window: int) -> None:
        assert window > 0, f"window is {window}, expected at least 1"
        self._part = -(-window // WINDOW_PARTS)
        self._at = 0
        # Row 0 is what has left the window, the others are the window's parts, the current one at 1
        # + _at.
        self._sums: F64 = np.zeros((1 + WINDOW_PARTS, len(Totals._fields)))
        self._histograms: F64 = np.zeros((1 + WINDOW_PARTS, 2 * BINS))
        self._losses: F64 = np.zeros(0)
        self._predictions: F64 = np.zeros(0)

    def update(self, scores: F32, labels: F32, weights: F32) -> None:
        """Add a minibatch.

        Parameters
        ----------
        scores : float32[n]
            Logits before learning, finite: a NaN shows as a NaN loss.
        labels : float32[n]
            0 or 1.
        weights : float32[n]
            At least 0.
        """
        for array in (scores, labels, weights):
            assert array.dtype == np.float32, f"dtype is {array.dtype}, expected float32"
            assert array.flags.c_contiguous, "expected a contiguous array"
            assert array.size == scores.size, f"size is {array.size}, expected {scores.size}"
        if self._losses.size < scores.size:
            self._losses = np.zeros(scores.size)
            self._predictions = np.zeros(scores.size)
        start = 0
        while start < scores.size:
            room = self._part - int(self._sums[1 + self._at, _EXAMPLES])
            if room <= 0:
                self._move_on()
                continue
            end = min(start + room, scores.size)
            score_logits(
                scores[start:end],
                labels[start:end],
                weights[start:end],
                self._losses,
                self._predictions,
                self._sums[1 + self._at],
                self._histograms[1 + self._at],
                BINS,
                LOGIT_LIMIT,
            )
            start = end

    def _move_on(self) -> None:
        """Let the window's oldest part go and make it the current one."""
        self._at = (self._at + 1) % WINDOW_PARTS
        for rows in (self._sums, self._histograms):
            rows[0] += rows[1 + self._at]
            rows[1 + self._at] = 0.0

    @property
    def window(self) -> int:
        """Examples that the window covers at most."""
        return self._part * WINDOW_PARTS

    def totals(self) -> Totals:
        """Return the sums over all examples."""
        return _totals(self._sums.sum(axis=0))

    def totals_window(self) -> Totals:
        """Return the sums over the window."""
        return _totals(self._sums[1:].sum(axis=0))

    def summary(self) -> dict[str, float]:
        """Return every figure by name, NaN where it is not defined.

        Returns
        -------
        dict
            ``logloss`` (also as ``loss``, the name that all models share), ``baseline_loss``,
            ``normalized_entropy``, ``calibration``, ``auc``, ``auc_error``, ``examples``,
            ``weight``, and each with ``_window`` over the window.
        """
        figures = _figures(self.totals(), self._histograms.sum(axis=0), "")
        return figures | _figures(self.totals_window(), self._histograms[1:].sum(axis=0), "_window")

    def histogram(self) -> F64:
        """Return weights by bin and class over all examples, float64[2 * BINS], see auc_of."""
        pooled: F64 = self._histograms.sum(axis=0)
        return pooled

    def merge(self, other: BinaryValidation) -> None:
        """Add what another lane has seen; ``other`` stays as it is.

        The sums over all examples are those of one validation fed with both. The windows are put
        side by side, the newest parts together, and the window is as long as both.
        """
        self._sums[0] += other._sums[0]
        self._histograms[0] += other._histograms[0]
        for age in range(WINDOW_PARTS):
            mine = 1 + (self._at - age) % WINDOW_PARTS
            theirs = 1 + (other._at - age) % WINDOW_PARTS
            self._sums[mine] += other._sums[theirs]
            self._histograms[mine] += other._histograms[theirs]
        self._part += other._part

    def state(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return copies of all that is needed to go on as if nothing had happened, 1.2 MB."""
        return {
            "window": np.array([self._part, self._at], np.int64),
            "sums": self._sums.ravel().copy(),
            "histograms": self._histograms.ravel().copy(),
        }

    def restore(self, state: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Go on from what ``state()`` returned, with its window.

        Raises
        ------
        SnapshotError
            An array is missing or has another size or type.
        """
        window = _array(state, "window", np.dtype(np.int64), 2)
        sums = _array(state, "sums", np.dtype(np.float64), self._sums.size)
        histograms = _array(state, "histograms", np.dtype(np.float64), self._histograms.size)
        part, at = (int(value) for value in window)
        if part < 1 or not 0 <= at < WINDOW_PARTS:
            raise SnapshotError(f"validation window is {part} examples, part {at} of it")
        self._part, self._at = part, at
        self._sums = sums.reshape(self._sums.shape).copy()
        self._histograms = histograms.reshape(self._histograms.shape).copy()


def _totals(sums: F64) -> Totals:
    loss, label, prediction, weight, examples = (float(value) for value in sums)
    return Totals(loss, label, prediction, weight, int(examples))


def _figures(totals: Totals, histogram: F64, suffix: str) -> dict[str, float]:
    auc, auc_error = auc_of(histogram)
    figures = {
        "loss": totals.logloss,
        "logloss": totals.logloss,
        "baseline_loss": totals.baseline_loss,
        "normalized_entropy": totals.normalized_entropy,
        "calibration": totals.calibration,
        "auc": auc,
        "auc_error": auc_error,
        "examples": float(totals.examples),
        "weight": totals.weight,
    }
    return {name + suffix: value for name, value in figures.items()}


def _array(
    state: Mapping[str, np.ndarray[Any, Any]], name: str, dtype: np.dtype[Any], size: int
) -> np.ndarray[Any, Any]:
    array = state.get(name)
    if array is None:
        raise SnapshotError(f"validation has no array {name!r}")
    if array.dtype != dtype or array.size != size:
        raise SnapshotError(
            f"validation's {name!r} is {array.dtype}[{array.size}], expected {dtype}[{size}]"
        )
    return array
