"""Labels of examples that are arrays: what a loss asks of them, and texts as numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from streamlearn.online.schema import LABEL_TOKENS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from streamlearn.messages import F64
    from streamlearn.online.formats import Deep

__all__ = ["DenseLabels"]

_SHOWN_MAX: Final = 20


class DenseLabels:
    """What labels may be.

    Parameters
    ----------
    deep : Deep
        The loss, and how many classes there are.
    classes : sequence of str
        Texts of classes, in the order of their numbers; empty: they are numbers.
    """

    def __init__(self, deep: Deep, classes: Sequence[str]) -> None:
        self._loss = deep.loss
        self._count = deep.classes
        self._numbers = {text: float(i) for i, text in enumerate(classes)}

    @property
    def expected(self) -> str:
        """What a label must be, in words: numbers."""
        if self._loss == "classes":
            return f"a whole number from 0 to {self._count - 1}"
        return "0 or 1" if self._loss == "logistic" else "a finite number"

    @property
    def expected_text(self) -> str:
        """What a label must be, in words: texts."""
        if self._loss == "classes" and self._numbers:
            shown = ", ".join(list(self._numbers)[:_SHOWN_MAX])
            return f"one of {shown}{', …' if len(self._numbers) > _SHOWN_MAX else ''}"
        if self._loss == "logistic":
            return "0 or 1, -1 or 1, true or false, yes or no"
        return self.expected

    def fit(self, labels: F64) -> NDArray[np.bool_]:
        """Say of each number whether it may be a label."""
        fit: NDArray[np.bool_]
        if self._loss == "classes":
            fit = (labels >= 0) & (labels < self._count) & (labels == np.floor(labels))
        elif self._loss == "logistic":
            fit = (labels == 0) | (labels == 1)
        else:
            with np.errstate(over="ignore"):
                fit = np.isfinite(labels.astype(np.float32))
        return fit

    def number(self, value: Any) -> float:
        """Return the number of a label that is text, a number or a truth value; NaN: it is none."""
        if isinstance(value, str):
            text = value.strip()
            if self._loss == "classes" and self._numbers:
                return self._numbers.get(text, math.nan)
            if self._loss == "logistic":
                return float(LABEL_TOKENS.get(text.encode(), math.nan))
            try:
                value = float(text)
            except ValueError:
                return math.nan
        if not isinstance(value, bool | int | float):
            return math.nan
        try:
            label = np.array([float(value)])
        except OverflowError:
            return math.nan
        return float(label[0]) if self.fit(label)[0] else math.nan
