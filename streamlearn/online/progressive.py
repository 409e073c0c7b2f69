"""Progressive validation: how well each example was predicted before it taught.

Every figure is a function of a few sums (and, of clicks, of a histogram), so lanes, snapshots and
windows add up: figures are pooled, never averaged over minibatches. What the sums are of goes by
the loss: :mod:`streamlearn.online.validation`, :mod:`streamlearn.online.rating_validation` and
:mod:`streamlearn.online.class_validation`; :mod:`streamlearn.online.losses` says which is for what.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Self

import numpy as np

from streamlearn.errors import SnapshotError
from streamlearn.messages import F32, F64, Judged
from streamlearn.online.totals import AnyTotals

__all__ = ["Validation"]

# The window moves on by an eighth of itself.
WINDOW_PARTS: Final = 8

_EXAMPLES: Final = -1  # column of the sums


class Validation(ABC):
    """Weighted validation of scores against labels, over all examples and over a window.

    Not locked: update and ask from one lane at a time.

    Parameters
    ----------
    window : int
        Examples in the window, at least 1. It moves on by an eighth: it covers between seven
        eighths of this (rounded up to a multiple of eight) and all of it.
    widths : int
        Numbers in each of the arrays, by name, that are kept for what has left the window and for
        each part of it, beside the ``sums``.

    Attributes
    ----------
    measure : str
        What its loss is called.
    totals_type : type
        Of its sums.
    headline : tuple of str
        The figures that a model is known by.
    reported : mapping of str to str
        Keys of a report, and the names in :meth:`summary` that they stand for.
    shown : tuple of str
        The figures that progress has beside the loss.
    labelled : bool
        Whether examples have labels, and a score predicts one.
    """

    measure: ClassVar[str]
    totals_type: ClassVar[type[AnyTotals]]
    headline: ClassVar[tuple[str, ...]]
    reported: ClassVar[Mapping[str, str]]
    shown: ClassVar[tuple[str, ...]]
    labelled: ClassVar[bool] = True

    def __init__(self, window: int, **widths: int) -> None:
        assert window > 0, f"window is {window}, expected at least 1"
        self._part = -(-window // WINDOW_PARTS)
        self._at = 0
        # Row 0 is what has left the window, the others are the window's parts, the current one at 1
        # + _at.
        self._rows: dict[str, F64] = {
            name: np.zeros((1 + WINDOW_PARTS, width))
            for name, width in {"sums": len(self.totals_type._fields), **widths}.items()
        }
        self._sums = self._rows["sums"]

    @staticmethod
    @abstractmethod
    def predictions(scores: F32) -> F64:
        """Return what scores predict, float64[n]."""

    @abstractmethod
    def _add(self, scores: F32, labels: F32, weights: F32, row: int) -> None:
        """Add examples to a row."""

    def update(self, scores: F32, labels: F32, weights: F32) -> None:
        """Add a minibatch.

        Parameters
        ----------
        scores : float32[n], or of classes float32[n, classes]
            Before learning, finite: a NaN shows as a NaN loss.
        labels : float32[n]
        weights : float32[n]
            At least 0.
        """
        for array in (scores, labels, weights):
            assert array.dtype == np.float32, f"dtype is {array.dtype}, expected float32"
            assert array.flags.c_contiguous, "expected a contiguous array"
            assert len(array) == len(scores), f"length is {len(array)}, expected {len(scores)}"
        start = 0
        while start < len(scores):
            row = 1 + self._at
            room = self._part - int(self._sums[row, _EXAMPLES])
            if room <= 0:
                self._move_on()
                continue
            end = min(start + room, len(scores))
            self._add(scores[start:end], labels[start:end], weights[start:end], row)
            start = end

    def _move_on(self) -> None:
        """Let the window's oldest part go and make it the current one."""
        self._at = (self._at + 1) % WINDOW_PARTS
        for rows in self._rows.values():
            rows[0] += rows[1 + self._at]
            rows[1 + self._at] = 0.0

    @property
    def window(self) -> int:
        """Examples that the window covers at most."""
        return self._part * WINDOW_PARTS

    def sums(self) -> F64:
        """Return the sums over all examples as numbers, float64[n], see :meth:`totals_of`."""
        sums: F64 = self._sums.sum(axis=0)
        return sums

    def totals(self) -> AnyTotals:
        """Return the sums over all examples."""
        return self.totals_of(self.sums())

    def totals_window(self) -> AnyTotals:
        """Return the sums over the window."""
        return self.totals_of(self._sums[1:].sum(axis=0))

    @classmethod
    def totals_of(cls, sums: F64) -> AnyTotals:
        """Return numbers as the sums that they are, in their order."""
        *weighted, examples = (float(value) for value in sums)
        return cls.totals_type._make([*weighted, int(examples)])

    def summary(self) -> dict[str, float]:
        """Return every figure by name, NaN where it is not defined.

        Returns
        -------
        dict
            ``loss`` and ``baseline_loss`` (names that all models share), ``examples``, ``weight``,
            the figures of the loss, and each with ``_window`` over the window.
        """
        window = {f"{name}_window": value for name, value in self._figures(1).items()}
        return self._figures(0) | window

    def _figures(self, first: int) -> dict[str, float]:
        """Return the figures over the rows from ``first`` on."""
        return self.totals_of(self._sums[first:].sum(axis=0)).figures()

    @classmethod
    def report(cls, summary: Mapping[str, float]) -> dict[str, float]:
        """Return of a summary what a report has; NaN for what is not known."""
        return {key: summary.get(name, np.nan) for key, name in cls.reported.items()}

    @classmethod
    def headlines(cls, summary: Mapping[str, float]) -> dict[str, float]:
        """Return of a summary the figures that a model is known by."""
        return {name: summary[name] for name in cls.headline}

    @classmethod
    def judged(cls, summary: Mapping[str, float]) -> Judged:
        """Return of a summary what progress says; NaN for what is not known."""
        return {
            "measure": cls.measure,
            "loss": summary.get("loss", np.nan),
            "loss_window": summary.get("loss_window", np.nan),
            "baseline_loss": summary.get("baseline_loss", np.nan),
            "figures": {name: summary.get(name, np.nan) for name in cls.shown},
        }

    @classmethod
    def last_score(cls, scores: F32) -> float:
        """Return the score of the last of at least one example, for :meth:`prediction`."""
        return float(scores[-1])

    @classmethod
    def prediction(cls, score: float) -> float:
        """Return what one score predicts; NaN of NaN."""
        return float(cls.predictions(np.array([score], np.float32))[0])

    def merge(self, other: Self) -> None:
        """Add what another lane has seen; ``other`` stays as it is.

        The sums over all examples are those of one validation fed with both. The windows are put
        side by side, the newest parts together, and the window is as long as both.
        """
        assert type(other) is type(self), f"{type(other)} into {type(self)}"
        for name, rows in self._rows.items():
            theirs = other._rows[name]
            rows[0] += theirs[0]
            for age in range(WINDOW_PARTS):
                rows[1 + (self._at - age) % WINDOW_PARTS] += theirs[
                    1 + (other._at - age) % WINDOW_PARTS
                ]
        self._part += other._part

    def merge_part(self, other: Self) -> None:
        """Add what has been seen since, as one piece of the window."""
        assert type(other) is type(self), f"{type(other)} into {type(self)}"
        if self._sums[1 + self._at, _EXAMPLES] >= self._part:
            self._move_on()
        for name, rows in self._rows.items():
            rows[1 + self._at] += other._rows[name].sum(axis=0)

    def set_totals(self, totals: AnyTotals) -> None:
        """Have the sums over all examples be these; the window stays as it is."""
        self._sums[0] += np.array(totals) - self.sums()

    def state(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return copies of all that is needed to go on as if nothing had happened."""
        rows = {name: rows.ravel().copy() for name, rows in self._rows.items()}
        return {"window": np.array([self._part, self._at], np.int64), **rows}

    def restore(self, state: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Go on from what ``state()`` returned, with its window.

        Raises
        ------
        SnapshotError
            An array is missing, of another loss, or has another size or type.
        """
        sizes = {name: rows.size for name, rows in self._rows.items()}
        if missing := next((name for name in ("window", *sizes) if name not in state), None):
            raise SnapshotError(f"validation by {self.measure} has no array {missing!r}")
        if other := next((name for name in state if name not in ("window", *sizes)), None):
            raise SnapshotError(f"{other!r} is no array of validation by {self.measure}")
        _check(state["window"], "window", np.dtype(np.int64), 2)
        for name, size in sizes.items():
            _check(state[name], name, np.dtype(np.float64), size)
        part, at = (int(value) for value in state["window"])
        if part < 1 or not 0 <= at < WINDOW_PARTS:
            raise SnapshotError(f"validation window is {part} examples, part {at} of it")
        self._part, self._at = part, at
        for name, rows in self._rows.items():
            rows[:] = state[name].reshape(rows.shape)


def _check(array: np.ndarray[Any, Any], name: str, dtype: np.dtype[Any], size: int) -> None:
    if array.dtype != dtype or array.size != size:
        raise SnapshotError(
            f"validation's {name!r} is {array.dtype}[{array.size}], expected {dtype}[{size}]"
        )
