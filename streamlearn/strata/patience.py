"""Which pass predicted held-out ratings best, and when to wait for no better one."""

from __future__ import annotations

from typing import Any

from streamlearn.strata.rows import FactorRows

__all__ = ["Patience"]


class Patience:
    """Remembers the best rows.

    Parameters
    ----------
    passes : int
        How many in a row may predict no better; 0: any number, and nothing is remembered.

    Attributes
    ----------
    epoch : int
        The best pass, from 0; -1: none yet.
    """

    def __init__(self, passes: int) -> None:
        self._passes = passes
        self._best: Any = None
        self._loss = self._last = float("inf")
        self.epoch = -1

    def ended(self, epoch: int, loss: float | None, rows: FactorRows) -> bool:
        """Note how a pass predicted what is held out (None: nothing is); say whether to stop."""
        if not self._passes or loss is None:
            return False
        self._last = loss
        if self.epoch < 0 or loss < self._loss:
            self._loss, self.epoch, self._best = loss, epoch, rows.copy()
            return False
        return epoch - self.epoch >= self._passes

    def restore(self, rows: FactorRows) -> bool:
        """Have the rows be those of the best pass; say whether the last one was worse."""
        worse = self._best is not None and self._last > self._loss
        if worse:
            rows.restore(self._best)
        self._best = None
        return worse
