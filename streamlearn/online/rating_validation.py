"""Progressive validation of ratings: predictions against any numbers, by squared error."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from streamlearn.compute.kernels.validation import score_ratings
from streamlearn.messages import F32, F64
from streamlearn.online.progressive import Validation
from streamlearn.online.totals import RatingTotals

__all__ = ["RatingValidation"]


class RatingValidation(Validation):
    """Weighted validation of predicted ratings; a score is the prediction.

    Notes
    -----
    About 1 ns an example in minibatches of 1,024.
    """

    measure: ClassVar = "rmse"
    totals_type: ClassVar = RatingTotals
    headline: ClassVar = ("rmse", "mae")
    reported: ClassVar = {"rmse": "rmse", "mae": "mae", "baseline_rmse": "baseline_rmse"}
    shown: ClassVar = ("mae", "mae_window")

    def __init__(self, window: int) -> None:
        super().__init__(window)

    @staticmethod
    def predictions(scores: F32) -> F64:
        """Return the scores themselves, float64[n]."""
        return scores.astype(np.float64)

    def _add(self, scores: F32, labels: F32, weights: F32, row: int) -> None:
        score_ratings(scores, labels, weights, self._sums[row])
