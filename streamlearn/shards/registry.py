"""Which partition is whose: they are handed out, handed back when a worker dies, and handed on.

Kept by the first shard, and not part of its state: that two workers are at one partition costs
time and nothing else, since every minibatch is applied once. So this is gone with the process, and
workers that go on say what they hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from streamlearn.protocol import GIVEN, NOTHING_LEFT, WAIT, Claimed, Listed, Mark

__all__ = ["Registry"]


@dataclass(slots=True)
class _Entry:
    """A partition: who is at it, and the last pass that is finished (-1: none)."""

    holder: tuple[str, int] | None = None
    finished: int = -1


class Registry:
    """Partitions by name, in the order in which they were listed."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._complete = False
        self._epochs = 1

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def epoch(self) -> int:
        """The pass that is being made: the first that some partition has not finished."""
        least = min((entry.finished for entry in self._entries.values()), default=-1)
        return min(least + 1, self._epochs - 1)

    @property
    def finished(self) -> int:
        """How many partitions are finished for good."""
        return sum(entry.finished + 1 >= self._epochs for entry in self._entries.values())

    def holders(self) -> dict[str, tuple[str, int]]:
        """Return who is at what: (worker, incarnation) by partition."""
        return {
            name: entry.holder for name, entry in self._entries.items() if entry.holder is not None
        }

    def register(
        self, partitions: Iterable[Listed], complete: bool, epochs: int, marks: Mapping[str, Mark]
    ) -> None:
        """Add partitions that are not known; what ``marks`` say of them is taken over."""
        self._complete, self._epochs = complete, max(1, epochs)
        for listed in partitions:
            if listed.name not in self._entries:
                mark = marks.get(listed.name)
                finished = -1 if mark is None else mark.epoch - (not mark.done)
                self._entries[listed.name] = _Entry(finished=finished)

    def claim(
        self,
        worker: str,
        incarnation: int,
        held: Iterable[str],
        wanted: bool,
        marks: Mapping[str, Mark],
    ) -> Claimed:
        """Note what a worker holds, and give it another partition where it wants one.

        Partitions that were begun come first.
        """
        who, kept = (worker, incarnation), set(held)
        for name, entry in self._entries.items():
            if name in kept:
                entry.holder = entry.holder or who
            elif entry.holder is not None and entry.holder[0] == worker:
                entry.holder = None
        if not wanted:
            return Claimed(WAIT, "", self.epoch)
        epoch = self.epoch
        chosen = ""
        for name, entry in self._entries.items():
            if entry.holder is not None or entry.finished >= epoch:
                continue
            mark = marks.get(name)
            if mark is not None and mark.epoch == epoch and not mark.done:
                chosen = name
                break
            chosen = chosen or name
        if chosen:
            self._entries[chosen].holder = who
            return Claimed(GIVEN, chosen, epoch)
        if self._complete and self.finished == len(self._entries):
            return Claimed(NOTHING_LEFT, "", epoch)
        return Claimed(WAIT, "", epoch)

    def finish(self, worker: str, partition: str, epoch: int) -> None:
        """Note that a partition is applied to its end on every shard."""
        entry = self._entries.get(partition)
        if entry is not None:
            entry.finished = max(entry.finished, epoch)
            if entry.holder is not None and entry.holder[0] == worker:
                entry.holder = None

    def reopen(self, partitions: Iterable[str], epoch: int) -> None:
        """Hand partitions out again that were thought to have finished pass ``epoch``."""
        for name in partitions:
            entry = self._entries.get(name)
            if entry is not None:
                entry.finished = min(entry.finished, epoch - 1)

    def release(self, worker: str, incarnation: int) -> None:
        """Take back what a worker holds: it is gone."""
        for entry in self._entries.values():
            if entry.holder == (worker, incarnation):
                entry.holder = None
