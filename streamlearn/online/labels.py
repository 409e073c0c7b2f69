"""Labels that users hand in: any two values, as 0 and 1.

The first class in sorted order is 0, as scikit-learn has it.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from streamlearn.messages import F32

__all__ = ["Classes", "read_labels", "read_weights"]


class Classes:
    """Two labels.

    Parameters
    ----------
    values : array of two
        In sorted order.
    """

    def __init__(self, values: np.ndarray[Any, Any]) -> None:
        self.values = values
        self.plain: list[Any] = values.tolist()
        self._numbers = {label: float(i) for i, label in enumerate(self.plain)}

    def number(self, label: Any) -> float:
        """Return 0.0 or 1.0 for a label.

        Raises
        ------
        ValueError
            It is neither.
        """
        try:
            return self._numbers[label]
        except (KeyError, TypeError):
            raise self._unknown([label]) from None

    def numbers(self, labels: np.ndarray[Any, Any]) -> F32:
        """Return 0 or 1 for each label, float32[n].

        Raises
        ------
        ValueError
            One is neither.
        """
        second = np.asarray(labels == self.values[1], bool)
        other = ~(second | np.asarray(labels == self.values[0], bool))
        if other.any():
            raise self._unknown(np.unique(labels[other])[:5].tolist())
        return second.astype(np.float32)

    def _unknown(self, labels: list[Any]) -> ValueError:
        return ValueError(
            f"y has labels {labels} that are not among the classes {self.plain}; say both classes "
            "in the first call of partial_fit"
        )

    @classmethod
    def of(cls, labels: Any, *, given: bool = False) -> Classes:
        """Return the classes of labels, or those given as such.

        Raises
        ------
        ValueError
            They are not two.
        """
        values = np.unique(np.asarray(labels))
        if len(values) == 2:
            return cls(values)
        if given:
            raise ValueError(f"classes has {len(values)} different labels, expected two")
        if len(values) < 2:
            raise ValueError(
                f"y has one class only ({values.tolist()}), expected two classes; where the other "
                "comes later, name both: partial_fit(X, y, classes=[…])"
            )
        raise ValueError(
            "Only binary classification is supported. The type of the target is multiclass: y has "
            f"{len(values)} different labels."
        )


def read_labels(y: Any, rows: int) -> np.ndarray[Any, Any]:
    """Return labels as an array of ``rows``.

    Raises
    ------
    ValueError
        None, NaN, continuous numbers, a wrong shape or number.
    """
    if y is None:
        raise ValueError("LogisticRegression requires y to be passed, but the target y is None")
    labels = np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        warnings.warn(
            "A column-vector y was passed when a 1d array was expected. Please change the shape "
            "of y to (n_samples,), for example using ravel().",
            _conversion_warning(),
            stacklevel=3,
        )
        labels = labels.ravel()
    if labels.ndim != 1:
        raise ValueError(f"y should be a 1d array, got an array of shape {labels.shape} instead.")
    if len(labels) != rows:
        raise ValueError(
            f"Found input variables with inconsistent numbers of samples: {[rows, len(labels)]}"
        )
    if labels.dtype.kind == "c":
        raise ValueError(f"Complex data not supported\n{labels}\n")
    if labels.dtype.kind == "f":
        if np.isnan(labels).any():
            raise ValueError("Input y contains NaN.")
        if not np.isfinite(labels).all():
            raise ValueError("Input y contains infinity.")
        if (labels != np.rint(labels)).any():
            raise ValueError(
                "Unknown label type: continuous. Maybe you are trying to fit a classifier, which "
                "expects discrete classes, on a target with continuous values."
            )
    return labels


def read_weights(sample_weight: Any, rows: int) -> F32:
    """Return weights of examples, float32[rows]; one number is the weight of each, None is 1.

    Raises
    ------
    ValueError
        A wrong shape or number, or weights that are negative or not finite.
    """
    if sample_weight is None:
        return np.ones(rows, np.float32)
    with np.errstate(over="ignore"):
        weights = np.asarray(sample_weight, np.float64).astype(np.float32)
    if weights.ndim == 0:
        weights = np.full(rows, weights, np.float32)
    if weights.ndim != 1:
        raise ValueError("Sample weights must be 1D array or scalar")
    if len(weights) != rows:
        raise ValueError(
            f"sample_weight.shape == {weights.shape}, expected {(rows,)}: one weight an example"
        )
    if not np.isfinite(weights).all() or weights.min(initial=0) < 0:
        raise ValueError("sample_weight has values that are negative, NaN or infinite")
    return weights


def _conversion_warning() -> type[Warning]:
    try:
        from sklearn.exceptions import DataConversionWarning
    except ImportError:
        return UserWarning
    return DataConversionWarning  # type: ignore[no-any-return]
