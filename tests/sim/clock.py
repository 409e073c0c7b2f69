"""Clocks of simulated machines: their wall time jumps, drifts and runs backwards."""

from __future__ import annotations

from typing import Final

from tests.sim.loop import SimLoop

__all__ = ["EPOCH_SECONDS", "SimClock"]

# Where all wall clocks stand when a run begins: a moment of 2026, far from any border.
EPOCH_SECONDS: Final = 1_790_000_000.0


class SimClock:
    """The clocks of one machine.

    Parameters
    ----------
    loop : SimLoop
    rate : float
        Wall seconds a second: 1.001 gains 3.6 seconds an hour.
    """

    def __init__(self, loop: SimLoop, rate: float = 1.0) -> None:
        self._loop = loop
        self._rate = rate
        self._offset = 0.0

    def wall(self) -> float:
        """Return seconds since the epoch, as this machine believes."""
        return EPOCH_SECONDS + self._offset + self._loop.time() * self._rate

    def monotonic(self) -> float:
        """Return seconds that never run backwards."""
        return self._loop.time()

    def step(self, seconds: float) -> None:
        """Move the wall clock, forward or back, as an operator or a time server does."""
        self._offset += seconds
