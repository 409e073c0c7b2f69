"""A worker of a deep net among the others: it meets them, steps with them, and leaves them.

All members of a group step together. So one that has no minibatch, since its source or a shard lets
it wait, takes part in the steps of the others with nothing; where nobody has one, all sleep.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from streamlearn.cluster.meeting import DissolvedError
from streamlearn.cluster.shard_host import Worked
from streamlearn.errors import PeerLostError
from streamlearn.protocol import Meet, Met, Pulled, Stay

if TYPE_CHECKING:
    from streamlearn.cluster.deep_stepper import DeepStepper
    from streamlearn.cluster.preparing import Prepared, Pushed
    from streamlearn.cluster.remote import Remote, Who
    from streamlearn.online.totals import AnyTotals

__all__ = ["DenseMember"]

_log = logging.getLogger("streamlearn.cluster.worker")

# Without a minibatch for so long, a worker takes part with nothing: at first for twice the time
# between its steps lately, since a step with half the examples costs as much as a whole one; then,
# so as not to hold up the others, for a moment each time.
_IDLE_SECONDS: Final = 0.004
_FIRST_IDLE_SECONDS_MAX: Final = 0.02
# Share of the last one in the mean time between steps.
_LATELY: Final = 0.1
# Where nobody has a minibatch, twice as long each time.
_IDLE_SECONDS_MAX: Final = 0.1
# Between attempts to form a group that fail.
_AGAIN_SECONDS: Final = 0.2


class DenseMember:
    """A worker's part in groups; see the module.

    Parameters
    ----------
    who : Who
    first : callable
        Returns the remote of the first shard.
    lane : Worked
        That steps.
    stepper : DeepStepper
    takes_part : callable
        Whether the worker takes part now.

    Attributes
    ----------
    formed : bool
        Whether it is in a group, be it alone.
    groups : int
        That it has been in.
    lost : int
        Of those, which ended since another worker was lost.
    """

    def __init__(
        self,
        who: Who,
        first: Callable[[], Remote],
        lane: Worked,
        stepper: DeepStepper,
        takes_part: Callable[[], bool],
    ) -> None:
        self.formed = False
        self.groups = 0
        self.lost = 0
        self._who = who
        self._first = first
        self._lane = lane
        self._stepper = stepper
        self._takes_part = takes_part
        self._forming: asyncio.Task[None] | None = None
        self._staying: asyncio.Task[None] | None = None
        self._stepping = 0
        self._stepped = 0
        self._gap = _IDLE_SECONDS / 2  # between steps, lately
        self._ended = 0.0
        self._free = asyncio.Event()
        self._free.set()

    async def step(
        self, prepared: Prepared, pulled: Sequence[Pulled], seed: int, epoch: int
    ) -> tuple[list[Pushed], AnyTotals]:
        """Step a minibatch with whoever is there, however often groups are lost meanwhile."""
        loop = asyncio.get_running_loop()
        if self._ended:
            gap = min(loop.time() - self._ended, _FIRST_IDLE_SECONDS_MAX)
            self._gap += _LATELY * (gap - self._gap)
        self._stepping += 1
        self._free.clear()
        try:
            while True:
                await self._form()
                with self._ends():
                    return await self._lane.run(self._stepper.step, prepared, pulled, seed, epoch)
        finally:
            self._ended = loop.time()
            self._stepped += 1
            self._stepping -= 1
            if not self._stepping:
                self._free.set()

    async def run(self) -> None:
        """Take part in steps of others while there is nothing to step here, until cancelled."""
        pause, seen = _IDLE_SECONDS, -1
        while True:
            await self._free.wait()
            await asyncio.sleep(pause)
            if self._stepping or self._stepped != seen:
                pause = min(max(2 * self._gap, _IDLE_SECONDS), _FIRST_IDLE_SECONDS_MAX)
                seen = self._stepped
                continue
            pause = min(2 * pause, _IDLE_SECONDS_MAX)
            if not self._takes_part() or not self.groups:
                continue
            await self._form()
            group = self._stepper.group
            if group.size > 1 or group.wanted:
                with self._ends():
                    if not await self._lane.run(self._stepper.idle):
                        pause = _IDLE_SECONDS

    async def leave(self) -> None:
        """Be in no group any more, nor on the way to one; the shard is told otherwise."""
        if self._forming is not None:
            self._forming.cancel()
            await asyncio.gather(self._forming, return_exceptions=True)
        await self._lane.run(self._stepper.leave)
        self._left()

    def figures(self) -> dict[str, float]:
        """Return what whoever watches wants to know."""
        net, group = self._stepper.net, self._stepper.group
        counts = group.counts
        return {
            "steps": net.steps,
            "skipped": net.skipped,
            "idle": self._stepper.idle_steps,
            "bytes_plain": counts.bytes_before,
            "bytes_sent": counts.bytes_after,
            "workers": group.size,
            "generation": group.generation,
            "lost": self.lost,
        }

    async def close(self) -> None:
        """End what goes on beside, and let go of the group; the net can still be looked at."""
        for task in (self._forming, self._staying):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self._lane.run(self._stepper.group.close)

    async def _form(self) -> None:
        """Be in a group."""
        while not self.formed:
            if self._forming is None or self._forming.done():
                self._forming = asyncio.create_task(self._meet(), name="meet")
            # who waits may be cancelled: the shard's answer is to be heard all the same
            await asyncio.shield(self._forming)

    async def _meet(self) -> None:
        who, stepper = self._who, self._stepper
        address = await self._lane.run(stepper.address)
        while True:
            meet = Meet(
                who.name, who.incarnation, stepper.net.steps, address, stepper.group.generation
            )
            met = await self._first().insist(meet)
            assert isinstance(met, Met)
            try:
                await self._lane.run(stepper.form, met)
            except PeerLostError as error:
                _log.info("group %d did not come together: %s", met.generation, error)
                await asyncio.sleep(_AGAIN_SECONDS)
            else:
                break
        self.formed = True
        self.groups += 1
        self._staying = asyncio.create_task(self._stay(met.generation), name="stay")
        if met.size > 1:
            _log.info("worker %d of %d in group %d", met.rank, met.size, met.generation)

    async def _stay(self, generation: int) -> None:
        """Wait until there shall be another group, and have the next step say so."""
        who = self._who
        await self._first().insist(Stay(who.name, who.incarnation, generation))
        self._stepper.group.wanted = True

    @contextmanager
    def _ends(self) -> Iterator[None]:
        """Note where a step was not made since the group is no more."""
        try:
            yield
        except DissolvedError:
            self._left()
        except PeerLostError as error:
            _log.info("group %d has lost a worker: %s", self._stepper.group.generation, error)
            self.lost += 1
            self._left()

    def _left(self) -> None:
        self.formed = False
        staying, self._staying = self._staying, None
        if staying is not None:
            staying.cancel()
