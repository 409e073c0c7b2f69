"""What runs the processes of a cluster: places, starts, watches and stops them; decides nothing.

:mod:`streamlearn.cluster.supervisor` decides what runs and what is started again; an engine knows
how. The one that is there runs processes of this machine
(:mod:`streamlearn.cluster.engines.local`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Ended", "Engine", "Told"]


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that has ended.

    Attributes
    ----------
    name : str
    code : int
        Its exit code; negative: the signal that ended it.
    said : str
        The error that it ended with, in its own words; may be empty.
    """

    name: str
    code: int
    said: str


@dataclass(frozen=True, slots=True)
class Told:
    """A warning or an error that a process has logged.

    Attributes
    ----------
    name : str
    level, text : str
    """

    name: str
    level: str
    text: str


class Engine(Protocol):
    """Runs processes by name."""

    def place(self, name: str, before: Sequence[str], ports: int) -> list[str]:
        """Return the addresses that a process shall listen at, as many as ``ports``.

        Parameters
        ----------
        name : str
        before : sequence of str
            Where it listened the last time: there again, if that can be.
        ports : int
        """
        ...

    async def start(self, name: str, arguments: Sequence[str]) -> None:
        """Start ``streamlearn ARGUMENTS...`` as ``name``, which is not running.

        Raises
        ------
        ResourceError
            It cannot be started.
        """
        ...

    async def watch(self) -> Ended:
        """Wait until one that was started has ended; each end is told once."""
        ...

    def stop(self, name: str, *, at_once: bool = False) -> None:
        """Ask a process to drain, or end it at once; nothing happens where it is not running."""
        ...

    def told(self) -> list[Told]:
        """Return what was logged since the last call."""
        ...

    @property
    def peak_rss_bytes(self) -> int:
        """Sum over all processes of the most memory that each took."""
        ...

    async def aclose(self) -> None:
        """End what is still running, at once."""
        ...
