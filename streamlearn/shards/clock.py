"""Clocks of the workers that take part: how far the slowest of them is, and who may read.

A worker's clock is the number of its next minibatch whose push has not been applied yet. A read for
minibatch ``c`` waits until every member has reached ``c - tau``: all that any of them did up to
there is in the values (stale synchronous parallel; Ho et al., NIPS 2013; Li et al., OSDI 2014).
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Clocks", "Member"]


@dataclass(frozen=True, slots=True)
class Member:
    """A worker that takes part.

    Attributes
    ----------
    incarnation : int
        Which of the processes of that name.
    clock : int
        Its next minibatch.
    """

    incarnation: int
    clock: int


class Clocks:
    """Who takes part, and each one's clock. A function of joins, pushes and leaves alone."""

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}
        self._highest = 0  # of all clocks ever: a worker that joins alone goes on from there
        self._slowest: int | None = None

    @property
    def members(self) -> dict[str, Member]:
        """Members by name; a view, not to be changed."""
        return self._members

    @property
    def slowest(self) -> int | None:
        """The least clock; None where nobody takes part."""
        return self._slowest

    @property
    def highest(self) -> int:
        """The highest clock that was ever reached."""
        return self._highest

    def proposed(self, worker: str, incarnation: int, clock: int) -> int:
        """Return the clock with which a worker joins that asks for ``clock`` (-1: any).

        One that is a member already keeps the higher of both; one that comes, or comes back after
        the others went on without it, begins no earlier than the slowest.
        """
        known = self._members.get(worker)
        if known is not None and known.incarnation == incarnation:
            return max(clock, known.clock)
        others = [m.clock for name, m in self._members.items() if name != worker]
        return max(clock, min(others) if others else self._highest)

    def join(self, worker: str, incarnation: int, clock: int) -> None:
        """Make a worker a member; an earlier incarnation of it is one no more."""
        self._members[worker] = Member(incarnation, clock)
        self._settle()

    def leave(self, worker: str, incarnation: int) -> None:
        """Wait for a worker no more; nothing happens where it is another incarnation."""
        known = self._members.get(worker)
        if known is not None and known.incarnation == incarnation:
            del self._members[worker]
            self._settle()

    def advance(self, worker: str, incarnation: int, clock: int) -> None:
        """Note that a worker's minibatch ``clock`` is applied; of members only."""
        known = self._members.get(worker)
        if known is None or known.incarnation != incarnation or clock < known.clock:
            return
        self._members[worker] = Member(incarnation, clock + 1)
        self._settle()

    def is_member(self, incarnation: int) -> bool:
        """Say whether a process takes part."""
        return any(member.incarnation == incarnation for member in self._members.values())

    def may_read(self, clock: int, tau: int) -> bool:
        """Say whether a read for minibatch ``clock`` would be stale by at most ``tau``.

        ``tau`` < 0: any staleness will do.
        """
        return tau < 0 or self._slowest is None or self._slowest >= clock - tau

    def _settle(self) -> None:
        clocks = [member.clock for member in self._members.values()]
        self._slowest = min(clocks, default=None)
        self._highest = max(self._highest, *clocks, 0)

    # --- for snapshots

    def state(self) -> dict[str, list[int]]:
        """Return all that is needed to go on, as JSON can say it."""
        told = {name: [m.incarnation, m.clock] for name, m in sorted(self._members.items())}
        return {**told, "": [0, self._highest]}

    def restore(self, state: dict[str, list[int]]) -> None:
        """Go on from what ``state()`` returned."""
        self._members = {name: Member(*two) for name, two in state.items() if name}
        self._highest = state.get("", [0, 0])[1]
        self._settle()
