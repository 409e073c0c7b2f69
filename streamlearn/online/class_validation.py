"""Progressive validation of deep models: logits of classes, and what deep nets add to the others.

A deep model's report has ``loss`` and ``accuracy`` whichever its loss is, beside the figures that
other models with that loss have.
"""

from __future__ import annotations

import math
from typing import ClassVar, Final

import numpy as np

from streamlearn.messages import F32, F64
from streamlearn.online.progressive import Validation
from streamlearn.online.rating_validation import RatingValidation
from streamlearn.online.totals import ClassTotals
from streamlearn.online.validation import BinaryValidation

__all__ = ["SHARES_MAX", "ClassValidation", "LogitValidation", "NumberValidation", "probabilities"]

# Classes whose shares are kept for the baseline: with the window's parts they take 74 kB.
SHARES_MAX: Final = 1024


def probabilities(scores: F32) -> F64:
    """Return the softmax of logits.

    Parameters
    ----------
    scores : float32[rows, classes]

    Returns
    -------
    float64[rows, classes]
        Each row sums to 1; NaN where one of its logits is.
    """
    logits = scores.astype(np.float64)
    with np.errstate(invalid="ignore"):  # of infinite ones there is no share
        powers = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
        shares: F64 = powers / powers.sum(axis=1, keepdims=True)
    return shares


class ClassValidation(Validation):
    """Weighted validation of logits of classes, float32[rows, classes], whose labels are numbers.

    A label is the number of a class, from 0; it is predicted where its logit is the largest (of
    equal ones the first). A minibatch is summed in double precision by itself, then added; a loss
    is wrong by some 1e-7 times its largest difference of logits. O(rows classes).
    """

    measure: ClassVar = "cross_entropy"
    totals_type: ClassVar = ClassTotals
    headline: ClassVar = ("loss", "accuracy")
    reported: ClassVar = {
        "loss": "loss",
        "accuracy": "accuracy",
        "baseline_loss": "baseline_loss",
    }
    shown: ClassVar = ("accuracy", "accuracy_window")

    def __init__(self, window: int) -> None:
        # the last: of all classes beyond those
        super().__init__(window, shares=SHARES_MAX + 1)

    @staticmethod
    def predictions(scores: F32) -> F64:
        """Return the class of largest logit, float64[n]; NaN where one of them is not a number."""
        predicted: F64 = scores.argmax(axis=1).astype(np.float64)
        predicted[np.isnan(scores).any(axis=1)] = np.nan
        return predicted

    @classmethod
    def prediction(cls, score: float) -> float:
        """Return a class that was predicted; see :meth:`last_score`."""
        return score

    @classmethod
    def last_score(cls, scores: F32) -> float:
        """Return the class that the last of some examples is predicted to have."""
        return float(cls.predictions(scores[-1:])[0])

    def _add(self, scores: F32, labels: F32, weights: F32, row: int) -> None:
        classes = labels.astype(np.int64)
        rows = np.arange(len(scores))
        highest = scores.max(axis=1)
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite shows in the loss
            powers = np.exp(scores - highest[:, None])
            own = scores[rows, classes].astype(np.float64)
            losses = np.log(powers.sum(axis=1, dtype=np.float64)) + (highest - own)
        right = self.predictions(scores) == classes
        weighed = weights.astype(np.float64)
        self._sums[row] += (weighed @ losses, weighed @ right, weighed.sum(), len(scores))
        self._rows["shares"][row] += np.bincount(
            np.minimum(classes, SHARES_MAX), weighed, SHARES_MAX + 1
        )

    def _figures(self, first: int) -> dict[str, float]:
        shares: F64 = self._rows["shares"][first:].sum(axis=0)
        return super()._figures(first) | {"baseline_loss": _entropy(shares)}


class LogitValidation(BinaryValidation):
    """Validation of a deep model's logits, whose labels are 0 or 1."""

    headline: ClassVar = ("loss", "accuracy", "auc", "calibration", "normalized_entropy")
    reported: ClassVar = {"loss": "loss", "accuracy": "accuracy", **BinaryValidation.reported}


class NumberValidation(RatingValidation):
    """Validation of a deep model's predictions of any numbers; its loss is shown as its root."""

    reported: ClassVar = {"loss": "loss", **RatingValidation.reported}


def _entropy(weights: F64) -> float:
    """Return the mean loss of predicting each class by its share.

    Parameters
    ----------
    weights : float64[SHARES_MAX + 1]
        Weight of the examples of each class, those of all further ones last.

    Returns
    -------
    float
        In nats; NaN of nothing, or where there are further ones.
    """
    total = float(weights.sum())
    if not total > 0.0 or weights[-1] > 0.0:
        return math.nan
    shares = weights[weights > 0.0] / total
    return -float(shares @ np.log(shares))
