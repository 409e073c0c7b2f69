"""Gates between lanes: before a table that is laid out anew, and before a young model."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["Gate", "Youth"]

# Minibatches learned before a second worker may be under way; n more may after n^2 times as many.
# (Four workers, progressive logloss of a million records: 0.4810, and 0.483 to 0.490 where n more
# may after n times as many; one worker: 0.4807.)
_LEARNED_BEFORE_SECOND: Final = 64


class Gate:
    """Many may pass at once, or one alone; whoever wants to be alone goes first."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._inside = 0
        self._waiting = 0
        self._alone = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold the gate together with others."""
        with self._condition:
            while self._alone or self._waiting:
                self._condition.wait()
            self._inside += 1
        try:
            yield
        finally:
            with self._condition:
                self._inside -= 1
                self._condition.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the gate alone."""
        with self._condition:
            self._waiting += 1
            while self._alone or self._inside:
                self._condition.wait()
            self._waiting -= 1
            self._alone = True
        try:
            yield
        finally:
            with self._condition:
                self._alone = False
                self._condition.notify_all()


class Youth:
    """How many workers may be under way at once: few while the model is young.

    Gradients are sums over a minibatch, so what two workers compute from the same weights moves a
    young model twice as far as it should: on a click log of a million records two from the start
    cost 0.008 of logloss. Once the sums of squares have grown this fades.

    Parameters
    ----------
    learned : int
        Minibatches that the model has learned.
    """

    def __init__(self, learned: int) -> None:
        self._condition = threading.Condition()
        self._learned = learned
        self._under_way = 0
        self._over = False

    def enter(self) -> None:
        """Be under way, once the model is old enough for one more."""
        with self._condition:
            while self._under_way >= self._most() and not self._over:
                self._condition.wait()
            self._under_way += 1

    def _most(self) -> int:
        return 1 + math.isqrt(self._learned // _LEARNED_BEFORE_SECOND)

    def leave(self) -> None:
        """Be under way no more."""
        with self._condition:
            self._under_way -= 1
            self._condition.notify_all()

    def learned(self) -> None:
        """Count a minibatch."""
        with self._condition:
            self._learned += 1
            if self._learned % _LEARNED_BEFORE_SECOND == 0:
                self._condition.notify_all()

    def end(self) -> None:
        """Let nobody wait any more."""
        with self._condition:
            self._over = True
            self._condition.notify_all()
