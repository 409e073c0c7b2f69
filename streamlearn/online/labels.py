"""Labels that users hand in: any values as numbers from 0, or numbers.

The first class in sorted order is 0, as scikit-learn has it.
"""

from __future__ import annotations

import warnings
from typing import Any, Final

import numpy as np

from streamlearn.messages import F32

__all__ = ["Classes", "SeveralClasses", "read_labels", "read_numbers", "read_weights"]

_FLOAT_MAX: Final = float(np.finfo(np.float32).max)


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


class SeveralClasses(Classes):
    """Two labels or more."""

    def numbers(self, labels: np.ndarray[Any, Any]) -> F32:
        """Return the number of each label, float32[n].

        Raises
        ------
        ValueError
            One is none of them.
        """
        try:
            # the command line's have the order that they were named in
            order = np.argsort(self.values)
            found = np.searchsorted(self.values, labels, sorter=order)
            places = order[np.minimum(found, len(order) - 1)]
            other = np.asarray(self.values[places] != labels, bool)
        except TypeError:  # texts among numbers
            raise self._unknown(labels[:5].tolist()) from None
        if other.any():
            raise self._unknown(np.unique(labels[other])[:5].tolist())
        return places.astype(np.float32)

    def _unknown(self, labels: list[Any]) -> ValueError:
        return ValueError(
            f"y has labels {labels} that are not among the classes {self.plain}; say all classes "
            "in the first call of partial_fit"
        )

    @classmethod
    def of(cls, labels: Any, *, given: bool = False) -> SeveralClasses:
        """Return the classes of labels, or those given as such.

        Raises
        ------
        ValueError
            There are fewer than two.
        """
        values = np.unique(np.asarray(labels))
        if len(values) >= 2:
            return cls(values)
        if given:
            raise ValueError(f"classes has {len(values)} different labels, expected two or more")
        raise ValueError(
            f"y has one class only ({values.tolist()}), expected two classes or more; where others "
            "come later, name all: partial_fit(X, y, classes=[…])"
        )


def read_numbers(y: Any, rows: int) -> F32:
    """Return numbers to be predicted as an array, float32[rows].

    Raises
    ------
    ValueError
        None, NaN, what is no number or too large for float32, a wrong shape or number.
    """
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None")
    given = np.asarray(y)
    if given.dtype.kind == "c":
        raise ValueError(f"Complex data not supported\n{given}\n")
    try:
        numbers = given.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"y has values that are no numbers: {error}") from None
    numbers = _one_column(numbers)
    if numbers.ndim != 1:
        raise ValueError(f"y should be a 1d array, got an array of shape {numbers.shape} instead.")
    if len(numbers) != rows:
        raise ValueError(
            f"Found input variables with inconsistent numbers of samples: {[rows, len(numbers)]}"
        )
    if (bad := ~(np.abs(numbers) <= _FLOAT_MAX)).any():
        row = int(np.argmax(bad))
        raise ValueError(f"Input y contains NaN or infinity: y[{row}] is {numbers[row]}")
    return numbers.astype(np.float32)


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
    labels = _one_column(labels)
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


def _one_column(y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return an array of one column as one of one dimension, with a warning."""
    if y.ndim != 2 or y.shape[1] != 1:
        return y
    warnings.warn(
        "A column-vector y was passed when a 1d array was expected. Please change the shape "
        "of y to (n_samples,), for example using ravel().",
        _conversion_warning(),
        stacklevel=4,
    )
    return y.ravel()


def _conversion_warning() -> type[Warning]:
    try:
        from sklearn.exceptions import DataConversionWarning
    except ImportError:
        return UserWarning
    return DataConversionWarning  # type: ignore[no-any-return]
