"""The trace of a simulated run: one line an event, and a digest of them all.

Two runs of one seed are the same run exactly when their digests are equal.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Final

__all__ = ["Trace"]

# The last events of a run that failed are what is looked at first.
TAIL_LINES: Final = 400


class Trace:
    """Events, in the order in which they happened.

    Parameters
    ----------
    now : callable
        Virtual seconds.
    out : callable, optional
        Is given each line as it comes: to replay one seed and read along.

    Attributes
    ----------
    counts : Counter
        Events by kind.
    events : int
    """

    def __init__(
        self, now: Callable[[], float] = lambda: 0.0, out: Callable[[str], None] | None = None
    ) -> None:
        self.now = now
        self.counts: Counter[str] = Counter()
        self.events = 0
        self._out = out
        self._hash = hashlib.blake2b(digest_size=16)
        self._tail: list[str] = []

    def __call__(self, kind: str, *what: object) -> None:
        """Note an event; ``what`` must print the same in every process (no ids, no sets)."""
        line = f"{self.now():.6f} {kind} {' '.join(map(str, what))}"
        self._hash.update(line.encode())
        self._hash.update(b"\n")
        self.counts[kind] += 1
        self.events += 1
        self._tail.append(line)
        if len(self._tail) > 2 * TAIL_LINES:
            del self._tail[:TAIL_LINES]
        if self._out is not None:
            self._out(line)

    @property
    def digest(self) -> str:
        """Hash of all events so far, as hexadecimal text."""
        return self._hash.hexdigest()

    @property
    def tail(self) -> list[str]:
        """The last events."""
        return self._tail[-TAIL_LINES:]
