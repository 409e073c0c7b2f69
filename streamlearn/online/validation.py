"""Progressive validation of clicks: logits against labels of 0 and 1.

The AUC comes from a histogram of logits by class, with an exact bound on what the bins can hide
(see :func:`auc_of`).
"""

from __future__ import annotations

import math
from typing import ClassVar, Final

import numpy as np

from streamlearn.compute.kernels.validation import score_logits
from streamlearn.messages import F32, F64
from streamlearn.online.progressive import Validation
from streamlearn.online.totals import Totals

__all__ = ["BINS", "LOGIT_LIMIT", "BinaryValidation", "accuracy_of", "auc_of"]

# Bins of 1/256 over logits -16 to 16 (probabilities down to one in nine million). A model of clicks
# fills about 2,000 of them (32 kB), its AUC is then known to +-0.0004; twice as many bins halve
# that and take twice the cache.
BINS: Final = 8192
LOGIT_LIMIT: Final = 16.0
# exp(-700) is still a normal number.
_LOGIT_MAX: Final = 700.0


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


def accuracy_of(histogram: F64) -> float:
    """Compute the share of labels on their logit's side of 0, a logit of 0 saying 1.

    Parameters
    ----------
    histogram : float64[2 * bins]
        As for :func:`auc_of`, of an even number of bins; the upper half are those from 0 on, so
        that this is exact but for logits of some -1e-16, which are counted as 0. NaN says 0.

    Returns
    -------
    float
        NaN of nothing.
    """
    total, half = float(histogram.sum()), len(histogram) // 2
    right = float(histogram[:half:2].sum()) + float(histogram[half + 1 :: 2].sum())
    return right / total if total > 0.0 else math.nan


class BinaryValidation(Validation):
    """Weighted validation of logits, whose labels are 0 or 1.

    Notes
    -----
    About 6 ns an example in minibatches of 1,024; a window below some 10,000 examples costs more,
    since each eighth that closes adds up a histogram of :data:`BINS`. Its state takes 1.2 MB.
    """

    measure: ClassVar = "logloss"
    totals_type: ClassVar = Totals
    headline: ClassVar[tuple[str, ...]] = ("logloss", "auc", "calibration", "normalized_entropy")
    reported: ClassVar = {
        "logloss": "logloss",
        "baseline_logloss": "baseline_loss",
        "auc": "auc",
        "auc_error": "auc_error",
        "calibration": "calibration",
        "normalized_entropy": "normalized_entropy",
    }
    shown: ClassVar = ("auc", "auc_window", "calibration", "normalized_entropy")

    def __init__(self, window: int) -> None:
        super().__init__(window, histograms=2 * BINS)
        self._losses: F64 = np.zeros(0)
        self._predictions: F64 = np.zeros(0)

    @staticmethod
    def predictions(scores: F32) -> F64:
        """Return the probability of each logit, float64[n]."""
        logits = np.clip(scores.astype(np.float64), -_LOGIT_MAX, _LOGIT_MAX)
        probabilities: F64 = 1 / (1 + np.exp(-logits))
        return probabilities

    def histogram(self) -> F64:
        """Return weights by bin and class over all examples, float64[2 * BINS], see auc_of."""
        pooled: F64 = self._rows["histograms"].sum(axis=0)
        return pooled

    def _add(self, scores: F32, labels: F32, weights: F32, row: int) -> None:
        if self._losses.size < scores.size:
            self._losses = np.zeros(scores.size)
            self._predictions = np.zeros(scores.size)
        score_logits(
            scores,
            labels,
            weights,
            self._losses,
            self._predictions,
            self._sums[row],
            self._rows["histograms"][row],
            BINS,
            LOGIT_LIMIT,
        )

    def _figures(self, first: int) -> dict[str, float]:
        histogram: F64 = self._rows["histograms"][first:].sum(axis=0)
        auc, error = auc_of(histogram)
        told = {"auc": auc, "auc_error": error, "accuracy": accuracy_of(histogram)}
        return super()._figures(first) | told
