"""What estimators need of scikit-learn's base classes, for where scikit-learn is not installed."""

from __future__ import annotations

import inspect
from typing import Any, Self

import numpy as np

__all__ = [
    "BaseEstimator",
    "ClassifierMixin",
    "NotFittedError",
    "RegressorMixin",
    "TransformerMixin",
]


class NotFittedError(ValueError, AttributeError):
    """Something is predicted before anything was learned."""


class BaseEstimator:
    """Settings of an estimator: the keyword arguments of its constructor."""

    @classmethod
    def _names(cls) -> list[str]:
        return sorted(set(inspect.signature(cls.__init__).parameters) - {"self"})

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the settings by name."""
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params: Any) -> Self:
        """Change settings.

        Raises
        ------
        ValueError
            There is no such setting.
        """
        names = self._names()
        for name, value in params.items():
            if name not in names:
                raise ValueError(
                    f"Invalid parameter {name!r} for estimator {self!r}. Valid parameters are: "
                    f"{names!r}."
                )
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self).__init__).parameters
        changed = [
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if value != defaults[name].default
        ]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __sklearn_tags__(self) -> Any:
        """Only scikit-learn asks for tags."""
        raise ImportError("scikit-learn is not installed")


class ClassifierMixin:
    """What a classifier can do by predicting."""

    _estimator_type = "classifier"

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:  # noqa: N803
        """Return the accuracy: the share of examples whose label is predicted."""
        right = np.asarray(self.predict(X)) == np.asarray(y)  # type: ignore[attr-defined]
        return float(np.average(right, weights=sample_weight))


class RegressorMixin:
    """What a regressor can do by predicting."""

    _estimator_type = "regressor"

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:  # noqa: N803
        """Return R², the share of the variance of ``y`` that is predicted."""
        labels = np.asarray(y, np.float64)
        errors = (labels - np.asarray(self.predict(X))) ** 2  # type: ignore[attr-defined]
        mean = np.average(labels, weights=sample_weight)
        spread = np.average((labels - mean) ** 2, weights=sample_weight)
        left = np.average(errors, weights=sample_weight)
        return float(1 - left / spread) if spread else float(left == 0)


class TransformerMixin:
    """What a transformer can do by fitting and transforming."""

    def fit_transform(self, X: Any, y: Any = None, **more: Any) -> Any:  # noqa: N803
        """Fit to X and return what it is transformed to."""
        return self.fit(X, y, **more).transform(X)  # type: ignore[attr-defined]
