"""Where workers that exchange dense gradients find one another: the first shard makes groups.

A group is of all who are there. A worker that wants one asks; those that are in the group of now
are called, and come as soon as they have left it together, behind a step; whoever died is not
waited for. All who came are the next group, the one with most steps first. Nothing of this is
durable: after a restart of the shard, workers say in which group they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from streamlearn.protocol import Done, Meet, Met, Stay

__all__ = ["GRACE_SECONDS", "SETTLE_SECONDS", "DissolvedError", "Meeting", "Said"]

# A worker that was called may be at a step that takes long: for so long the others wait for it.
GRACE_SECONDS: Final = 60.0
# Workers of one cluster start at about the same time: the first group waits a little for more.
SETTLE_SECONDS: Final = 0.5


class DissolvedError(Exception):
    """A worker's group is no more: all have left it together, and none has made the step."""


@dataclass(frozen=True, slots=True)
class Said:
    """An answer: to which request of which session."""

    session: int
    request: int
    message: Met | Done


@dataclass(slots=True)
class _Asking:
    """Who waits for the next group."""

    incarnation: int
    session: int
    request: int
    meet: Meet


@dataclass(slots=True)
class _Member:
    """Who is in a group, as far as is known, and what it asked to be told of by (0: nothing)."""

    incarnation: int
    session: int
    generation: int
    request: int = 0


class Meeting:
    """Puts groups together; time is what it is told.

    Attributes
    ----------
    generation : int
        Of the last group; 0: none yet.
    size : int
        Workers that it had.
    """

    def __init__(self) -> None:
        self.generation = 0
        self.size = 0
        self._asking: dict[str, _Asking] = {}
        self._members: dict[str, _Member] = {}
        self._since = 0.0  # when the first of those asked

    def meet(self, session: int, request: int, meet: Meet, now: float) -> list[Said]:
        """Have a worker wait for a group; all others that are in one are called."""
        said = []
        if not self._asking:
            self._since = now
        before = self._members.pop(meet.worker, None)
        if before is not None and before.request:
            said.append(Said(before.session, before.request, Done()))
        self._asking[meet.worker] = _Asking(meet.incarnation, session, request, meet)
        said += self._called()
        return said + self._formed(now)

    def stay(self, session: int, request: int, stay: Stay) -> list[Said]:
        """Note a worker that is in a group; it is answered once it shall leave that."""
        asking = self._asking.get(stay.worker)
        if asking is not None and asking.incarnation == stay.incarnation:
            return [Said(session, request, Done())]  # it came late, and asks already
        self.generation = max(self.generation, stay.generation)
        self._members[stay.worker] = _Member(stay.incarnation, session, stay.generation, request)
        return self._called()

    def leave(self, worker: str, incarnation: int, now: float) -> list[Said]:
        """Note that a worker is in no group, and wants none."""
        said = []
        member = self._members.get(worker)
        if member is not None and member.incarnation == incarnation:
            del self._members[worker]
            if member.request:
                said.append(Said(member.session, member.request, Done()))
        asking = self._asking.get(worker)
        if asking is not None and asking.incarnation == incarnation:
            del self._asking[worker]
        return said + self._formed(now)

    def closed(self, session: int, now: float) -> list[Said]:
        """Note the end of a connection: whoever spoke over it is not waited for."""
        self._members = {k: v for k, v in self._members.items() if v.session != session}
        self._asking = {k: v for k, v in self._asking.items() if v.session != session}
        return self._formed(now)

    def advance(self, now: float) -> list[Said]:
        """Let time pass."""
        return self._formed(now)

    def _called(self) -> list[Said]:
        """Tell members that there shall be another group; all of them, where somebody asks."""
        return list(self._calls())

    def _calls(self) -> Iterator[Said]:
        for member in self._members.values():
            if member.request and (self._asking or member.generation < self.generation):
                yield Said(member.session, member.request, Done())
                member.request = 0

    def _formed(self, now: float) -> list[Said]:
        """Put those who ask together, once all are there who are expected."""
        if not self._asking:
            return []
        waited = now - self._since
        known = self.generation or any(one.meet.generation for one in self._asking.values())
        if waited < GRACE_SECONDS and (self._members or (not known and waited < SETTLE_SECONDS)):
            return []
        last = max(one.meet.generation for one in self._asking.values())
        self.generation = max(self.generation, last) + 1
        order = sorted(self._asking.items(), key=lambda one: (-one[1].meet.step, one[0]))
        self.size = len(order)
        address = order[0][1].meet.address
        self._members = {
            name: _Member(one.incarnation, one.session, self.generation) for name, one in order
        }
        self._asking = {}
        return [
            Said(one.session, one.request, Met(self.generation, rank, self.size, address))
            for rank, (_, one) in enumerate(order)
        ]
