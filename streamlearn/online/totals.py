"""The sums behind progressive validation, and the figures that they make up, by loss.

Weighted sums over examples, in the order in which kernels keep them. They add up: over minibatches,
lanes, workers and marks; the difference of two moments is what came between.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple, TypeAlias

__all__ = ["AnyTotals", "ClassTotals", "RatingTotals", "TopicTotals", "Totals"]


class Totals(NamedTuple):
    """Weighted sums over examples whose labels are 0 or 1 (and their number)."""

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

    def figures(self) -> dict[str, float]:
        """Return all that these sums tell, by name, NaN where it is not defined."""
        return {
            "loss": self.logloss,
            "logloss": self.logloss,
            "baseline_loss": self.baseline_loss,
            "normalized_entropy": self.normalized_entropy,
            "calibration": self.calibration,
            "examples": float(self.examples),
            "weight": self.weight,
        }


class RatingTotals(NamedTuple):
    """Weighted sums over ratings (and their number): ``loss`` of squared errors."""

    loss: float
    absolute_error: float
    label: float
    label_square: float
    prediction: float
    weight: float
    examples: int

    @property
    def rmse(self) -> float:
        """Root of the mean squared error; NaN of nothing."""
        return math.sqrt(_ratio(self.loss, self.weight))

    @property
    def mae(self) -> float:
        """Mean absolute error; NaN of nothing."""
        return _ratio(self.absolute_error, self.weight)

    @property
    def baseline_rmse(self) -> float:
        """Root of the mean squared error of the best constant, the mean rating; NaN of nothing.

        Squares of floats are exact in the sums, so its square is wrong by a share of about
        (mean / deviation)^2 2^-53 sqrt(minibatches): 1e-12 of a billion ratings from 1 to 5. A
        pivot nearer to the mean would do better where that is a thousand deviations away, but sums
        with different pivots do not add up.
        """
        mean = _ratio(self.label, self.weight)
        return math.sqrt(max(_ratio(self.label_square - mean * self.label, self.weight), 0.0))

    def figures(self) -> dict[str, float]:
        """Return all that these sums tell, by name, NaN where it is not defined."""
        return {
            "loss": self.rmse,
            "rmse": self.rmse,
            "mae": self.mae,
            "baseline_loss": self.baseline_rmse,
            "baseline_rmse": self.baseline_rmse,
            "examples": float(self.examples),
            "weight": self.weight,
        }


class TopicTotals(NamedTuple):
    """Sums over documents: ``loss`` of minus the logarithms of their tokens' probabilities."""

    loss: float
    weight: float
    examples: int

    @property
    def nll(self) -> float:
        """Mean of minus the logarithm of a token's probability; NaN of nothing."""
        return _ratio(self.loss, self.weight)

    @property
    def perplexity(self) -> float:
        """One over the geometric mean of the tokens' probabilities; NaN of nothing."""
        nll = self.nll
        return math.exp(nll) if nll < _NLL_MAX else nll

    def figures(self) -> dict[str, float]:
        """Return all that these sums tell, by name, NaN where it is not defined."""
        return {
            "loss": self.nll,
            "nll": self.nll,
            "log_likelihood_per_token": -self.nll,
            "perplexity": self.perplexity,
            "baseline_loss": math.nan,
            "tokens": self.weight,
            "examples": float(self.examples),
            "weight": self.weight,
        }


class ClassTotals(NamedTuple):
    """Weighted sums over examples of classes (and their number): ``loss`` in nats."""

    loss: float
    correct: float
    weight: float
    examples: int

    @property
    def cross_entropy(self) -> float:
        """Mean of minus the logarithm of the probability of the right class; NaN of nothing."""
        return _ratio(self.loss, self.weight)

    @property
    def accuracy(self) -> float:
        """Share of the examples whose class was predicted; NaN of nothing."""
        return _ratio(self.correct, self.weight)

    def figures(self) -> dict[str, float]:
        """Return all that these sums tell, by name, NaN where it is not defined."""
        return {
            "loss": self.cross_entropy,
            "cross_entropy": self.cross_entropy,
            "accuracy": self.accuracy,
            "baseline_loss": math.nan,
            "examples": float(self.examples),
            "weight": self.weight,
        }


AnyTotals: TypeAlias = Totals | RatingTotals | TopicTotals | ClassTotals

# Beyond it there is no power of e that is a float.
_NLL_MAX: Final = 700.0


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0.0 else math.nan
