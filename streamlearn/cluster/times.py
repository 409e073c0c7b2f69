"""When a run of a cluster began to learn and ended, and the CPU time of its processes."""

from __future__ import annotations

import resource
import time

from streamlearn.messages import Progress

__all__ = ["Times"]


class Times:
    """When a run began to learn and ended, and what had been learned before."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._children = _children_seconds()
        self._learning = self._ended = 0.0
        self.examples = self.bytes = 0

    @property
    def since_start(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._started

    def begin(self, last: Progress) -> None:
        """Note that workers learn from now on."""
        self._learning = time.monotonic()
        self.examples, self.bytes = last.examples, last.bytes

    def end(self) -> None:
        """Note that they have ended."""
        self._ended = time.monotonic()

    @property
    def starting_seconds(self) -> float:
        """From the run's beginning until workers learned."""
        return self._learning - self._started if self._learning else self.since_start

    @property
    def learning_seconds(self) -> float:
        """For how long workers have learned."""
        return (self._ended or time.monotonic()) - self._learning if self._learning else 0.0

    def children_seconds(self) -> float:
        """Return the CPU time of the processes that have ended."""
        return _children_seconds() - self._children


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
