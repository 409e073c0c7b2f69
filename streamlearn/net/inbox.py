"""The bound on what a server holds of requests: bodies being received, and those not answered."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

__all__ = ["Inbox"]


class Inbox:
    """Counts bytes taken and given back; whoever finds no room waits in line.

    A body's bytes are taken before its memory is, so the sum never passes the bound. Bodies that
    have been begun are always received to their end, else all could wait for one another.

    Parameters
    ----------
    bytes_max : int

    Attributes
    ----------
    bytes : int
        Taken now.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes = 0
        self._line: deque[tuple[int, Callable[[int], None]]] = deque()

    def take(self, count: int) -> bool:
        """Take bytes; False: there is no room, or others have waited longer."""
        if self._line or self.bytes + count > self.bytes_max:
            return False
        self.bytes += count
        return True

    def wait(self, count: int, admitted: Callable[[int], None]) -> None:
        """Take bytes as soon as there is room, then call ``admitted`` with their number."""
        self._line.append((count, admitted))

    def leave(self, admitted: Callable[[int], None]) -> None:
        """Wait no longer."""
        self._line = deque(one for one in self._line if one[1] != admitted)
        self._admit()

    def give(self, count: int) -> None:
        """Give bytes back."""
        self.bytes -= count
        assert self.bytes >= 0
        if self._line:
            self._admit()

    def _admit(self) -> None:
        while self._line and self.bytes + self._line[0][0] <= self.bytes_max:
            count, admitted = self._line.popleft()
            self.bytes += count
            admitted(count)
