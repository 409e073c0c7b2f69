"""When a pass looks at held-out documents, and when it fits the priors."""

from __future__ import annotations

from typing import Final

__all__ = ["FIT_EVERY", "FIT_FROM", "LOOK_EVERY", "Looks", "fits"]

# Passes between two looks at held-out documents, and between two fits of the priors, whose first is
# not before topics have taken shape.
LOOK_EVERY: Final = 10
FIT_EVERY: Final = 10
FIT_FROM: Final = 20


def fits(number: int) -> bool:
    """Say whether priors are fitted after a pass; the first is 1."""
    return number >= FIT_FROM and number % FIT_EVERY == 0


class Looks:
    """Looks at held-out documents, which say when it is enough.

    Parameters
    ----------
    patience : int
        Looks in a row without anything better, after which it is; 0: it never is.

    Attributes
    ----------
    worse : int
        Looks in a row without anything better.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._best = float("-inf")
        self.worse = 0

    @staticmethod
    def due(number: int, epochs: int) -> bool:
        """Say whether held-out documents are looked at after a pass; the last of all is."""
        return number % LOOK_EVERY == 0 or number >= epochs

    def note(self, log_likelihood: float) -> None:
        """Take note of what was seen: higher is better."""
        self.worse = 0 if log_likelihood > self._best else self.worse + 1
        self._best = max(self._best, log_likelihood)

    @property
    def enough(self) -> bool:
        """Whether it is."""
        return bool(self._patience) and self.worse >= self._patience
