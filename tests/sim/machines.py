"""Machines: a host with a disk and a clock; one process at a time runs on it, dies and returns."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any, Final

from streamlearn.errors import StreamlearnError
from streamlearn.shards.disk import StrPath
from tests.sim.clock import SimClock
from tests.sim.disk import SimDisk
from tests.sim.lane import SimLane
from tests.sim.loop import OWNER, Killed, Owner

if TYPE_CHECKING:
    from tests.sim.world import World

__all__ = ["Machine"]

RESTART_SECONDS: Final = 0.4
_TEARS: Final = ("crash", "full", "write_full", "write_error", "write_torn", "sync_error")
Program = Callable[["Machine"], Awaitable[None]]


class MachineDisk(SimDisk):
    """A disk that reads wrongly at most once in a while, and not where files may be torn.

    The last record of a log that lost power, or that could not note what it had synced, may be torn
    or not, and one bit that reads wrong in it looks just as if it were: nobody can tell.
    """

    def read(self, path: StrPath, offset: int = 0, size: int = -1) -> bytes:
        if any(self.fired[one] for one in _TEARS):
            self.faults = replace(self.faults, read_flip=0.0)
        before = self.fired["read_flip"]
        data = super().read(path, offset, size)
        if self.fired["read_flip"] > before:
            self.faults = replace(self.faults, read_flip=0.0)
        return data


class Machine:
    """One machine; its process is started again whenever it ends, until it says that it is done.

    Parameters
    ----------
    world : World
    name : str
        Of the host.
    program : callable
        What runs on it; returns once it is done for good.

    Attributes
    ----------
    life : Owner or None
        The process that runs now.
    app : object
        What the program keeps here for others to look at.
    done : bool
    lives : int
        Processes so far.
    doom : int
        The process dies at so many changes of its disk from now; 0: not.
    doom_power : bool
        Whether the machine loses power then.
    next_doom : int
        ``doom`` of the next process: it dies while it recovers.
    """

    def __init__(self, world: World, name: str, program: Program) -> None:
        self.world = world
        self.name = name
        self.random = Random(f"{world.seed}/{name}")
        self.network = world.fabric.host(name)
        self.disk = MachineDisk(Random(f"{world.seed}/{name}/disk"))
        self.disk.before_change = self._before_change
        self.clock = SimClock(world.loop, world.rate(self.random))
        self.life: Owner | None = None
        self.app: Any = None
        self.done = False
        self.lives = 0
        self.doom = self.next_doom = 0
        self.doom_power = False
        self.draining = False
        self._program = program

    def __repr__(self) -> str:
        return self.name

    # --- what its process is given

    def lane(self, kind: str) -> SimLane:
        """Return a lane of the process that runs."""
        world = self.world
        return SimLane(f"{self.name}-{kind}", world.loop, lambda: world.lane_seconds(kind))

    def number(self) -> int:
        """Return a random integer of 63 bits."""
        return self.random.getrandbits(63)

    # --- its life

    def start(self) -> None:
        """Start a process, unless one runs or none is needed any more."""
        if self.life is not None or self.done:
            return
        world = self.world
        self.lives += 1
        self.doom, self.next_doom = self.next_doom, 0
        self.draining = False
        life = self.life = Owner(f"{self.name}.{self.lives}")
        world.trace("starts", life.name)
        with world.loop.as_owner(life):
            world.loop.create_task(self._run(life), name=life.name)

    async def _run(self, life: Owner) -> None:
        error: BaseException | None = None
        try:
            await self._program(self)
            self.done = not self.draining
        except StreamlearnError as failure:
            error = failure
        except Exception as failure:  # noqa: BLE001 - a defect: the run has failed
            if self.world.loop.is_closed():
                return
            error = failure
            self.world.problem(f"{life.name} died of {failure!r}", failure)
        self.world.trace("ends", life.name, type(error).__name__)
        if error is not None:
            self.world.exits[f"{self.name}: {error}"] += 1
        self.world.loop.call_soon(self._end, life, False, False, context=world_context())

    def kill(self, *, power: bool) -> None:
        """End the process as ``kill -9`` does, or the whole machine's power."""
        if self.life is not None:
            self._end(self.life, True, power)

    def _end(self, life: Owner, violent: bool, power: bool) -> None:
        if self.life is not life:
            return
        world = self.world
        world.trace("gone", life.name, "power" if power else "killed" if violent else "ended")
        self.life = self.app = None
        life.kill()
        world.fabric.kill(life, silently=power)
        if power:
            self.disk.crash()
        else:
            self.disk.kill()
        world.judge.forget(life)
        if not self.done:
            delay = RESTART_SECONDS * self.random.expovariate(1.0)
            world.loop.call_later(delay, self.start, context=world_context())

    def _before_change(self) -> None:
        """See a change of the disk coming; it may be the process's last."""
        owner = OWNER.get()
        if owner is None:
            return
        if not owner.alive:
            raise Killed
        self.world.trace("disk", self.name, self.disk.calls)
        if self.doom:
            self.doom -= 1
            if not self.doom:
                self.world.fired["in_recovery" if self.app is None else "mid_write"] += 1
                self.kill(power=self.doom_power)
                raise Killed


def world_context() -> Any:
    """Return a context of nobody's."""
    return contextvars.Context()


async def forever() -> None:
    """Wait for ever."""
    await asyncio.Event().wait()
