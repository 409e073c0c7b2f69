"""How often a process that ends is started again, and after which pause."""

from __future__ import annotations

from typing import Final

__all__ = ["Patience"]

# A process that has lived so long had nothing wrong with it when it started.
LIVED_SECONDS: Final = 30.0
# Ends in error, one soon after the other, after which it is given up: with the pauses some ten
# seconds, in which a port or a lock that was still held is free again.
FAILURES_MAX: Final = 5
# Kills before it was ever ready: whoever kills is not the program, but where it is always the
# kernel, for memory, that must have an end, too.
KILLS_MAX: Final = 20
PAUSE_SECONDS: Final = 0.2
PAUSE_SECONDS_MAX: Final = 10.0


class Patience:
    """Counts the ends of one process that came too soon."""

    def __init__(self) -> None:
        self._failures = 0
        self._kills = 0

    def ended(self, code: int, lived_seconds: float, *, was_ready: bool) -> float | None:
        """Say how long to wait until it is started again; None: it is given up.

        Parameters
        ----------
        code : int
            Exit code; negative: the signal that ended it.
        lived_seconds : float
        was_ready : bool
            Whether it has been ready since it was started.
        """
        if lived_seconds >= LIVED_SECONDS or (was_ready and code <= 0):
            self._failures = self._kills = 0
        elif code > 0:
            self._failures += 1
        else:
            self._kills += 1
        if self._failures >= FAILURES_MAX or self._kills >= KILLS_MAX:
            return None
        tries = max(self._failures + self._kills, 1) - 1
        return min(PAUSE_SECONDS * 2.0 ** min(tries, 30), PAUSE_SECONDS_MAX)
