"""Slow, obvious twin of progressive validation: plain NumPy over all examples at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def losses(scores: Array, labels: Array) -> Array:
    """Return log(1 + exp(s)) - y s of each example."""
    s = np.asarray(scores, np.float64)
    return np.where(np.asarray(labels) > 0.5, np.logaddexp(0.0, -s), np.logaddexp(0.0, s))


def predictions(scores: Array) -> Array:
    """Return the probability of each logit."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(scores, np.float64)))


def entropy(p: float) -> float:
    """Return the logarithmic loss of always saying p where the mean label is p."""
    return float(-sum(q * np.log(q) for q in (p, 1.0 - p) if q > 0.0))


def auc(scores: Array, labels: Array, weights: Array) -> float:
    """Return the weighted share of (positive, negative) pairs in the right order, ties half."""
    scores = np.asarray(scores, np.float64)
    positive = np.asarray(labels) > 0.5
    weights = np.asarray(weights, np.float64)
    if not positive.any() or positive.all():
        return float("nan")
    order = np.argsort(scores[~positive], kind="stable")
    negatives = scores[~positive][order]
    mass = np.concatenate([[0.0], np.cumsum(weights[~positive][order])])
    below = mass[np.searchsorted(negatives, scores[positive], side="left")]
    up_to = mass[np.searchsorted(negatives, scores[positive], side="right")]
    won = weights[positive] @ (0.5 * (below + up_to))
    return float(won / (weights[positive].sum() * mass[-1]))


def figures(scores: Array, labels: Array, weights: Array) -> dict[str, float]:
    """Return the figures of some examples."""
    weights = np.asarray(weights, np.float64)
    labels = np.asarray(labels, np.float64)
    logloss = float(weights @ losses(scores, labels) / weights.sum())
    baseline = entropy(float(weights @ labels / weights.sum()))
    return {
        "logloss": logloss,
        "baseline_loss": baseline,
        "normalized_entropy": logloss / baseline,
        "calibration": float(weights @ predictions(scores) / (weights @ labels)),
        "auc": auc(scores, labels, weights),
        "accuracy": float(weights @ ((np.asarray(scores) >= 0) == (labels > 0.5)) / weights.sum()),
        "examples": float(labels.size),
        "weight": float(weights.sum()),
    }


def rating_figures(predicted: Array, labels: Array, weights: Array) -> dict[str, float]:
    """Return the figures of some ratings."""
    predicted, labels, weights = (np.asarray(a, np.float64) for a in (predicted, labels, weights))
    total = weights.sum()
    errors, around = predicted - labels, labels - weights @ labels / total
    return {
        "loss": float(np.sqrt(weights @ errors**2 / total)),
        "rmse": float(np.sqrt(weights @ errors**2 / total)),
        "mae": float(weights @ np.abs(errors) / total),
        "baseline_loss": float(np.sqrt(weights @ around**2 / total)),
        "baseline_rmse": float(np.sqrt(weights @ around**2 / total)),
        "examples": float(labels.size),
        "weight": float(total),
    }


def class_losses(scores: Array, labels: Array) -> Array:
    """Return log(sum_k exp(s_k)) - s_y of each example."""
    s = np.asarray(scores, np.float64)
    own = s[np.arange(len(s)), np.asarray(labels, int)]
    return np.logaddexp.reduce(s, axis=1) - own


def class_figures(scores: Array, labels: Array, weights: Array) -> dict[str, float]:
    """Return the figures of some examples of classes."""
    weights = np.asarray(weights, np.float64)
    total = weights.sum()
    loss = float(weights @ class_losses(scores, labels) / total)
    shares = [float(weights[np.asarray(labels) == k].sum() / total) for k in set(labels.tolist())]
    return {
        "loss": loss,
        "cross_entropy": loss,
        "accuracy": float(weights @ (np.argmax(scores, axis=1) == labels) / total),
        "baseline_loss": float(-sum(p * np.log(p) for p in shares if p > 0)),
        "examples": float(len(labels)),
        "weight": float(total),
    }
