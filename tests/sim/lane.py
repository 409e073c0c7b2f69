"""A lane without a thread: what is posted runs in order, each piece after a virtual delay."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from tests.sim.loop import OWNER, SimLoop

__all__ = ["SimLane"]

P = ParamSpec("P")
T = TypeVar("T")


class SimLane:
    """What ``compute.pool.Lane`` is, on virtual time; it dies with the owner that made it.

    A piece of work takes effect all at once when its delay is over, so what the event loop does
    meanwhile comes before it, as it may where the lane is a thread.

    Parameters
    ----------
    name : str
    loop : SimLoop
    delay : callable
        Virtual seconds that the next piece of work takes.
    """

    def __init__(self, name: str, loop: SimLoop, delay: Callable[[], float]) -> None:
        self.name = name
        self.busy_seconds = 0.0
        self._loop = loop
        self._delay = delay
        owner = OWNER.get()
        self._context = None if owner is None else owner.context()
        self._work: deque[Callable[[], None]] = deque()
        self._closed = False

    def post(self, work: Callable[[], None]) -> None:
        """Run ``work`` after all that was posted before; it must not raise."""
        assert not self._closed, f"lane {self.name} is closed"
        self._work.append(work)
        if len(self._work) == 1:
            self._begin()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``function`` in the lane after all that was posted; return or raise what it does."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def finish(result: T | None, error: BaseException | None) -> None:
            if done.cancelled():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)  # type: ignore[arg-type]

        def work() -> None:
            result, failure = None, None
            try:
                result = function(*args, **kwargs)
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - for who awaits
                failure = error
            self._loop.call_soon_threadsafe(finish, result, failure)

        self.post(work)
        return await done

    def close(self) -> None:
        """Finish what was posted, at once; take no more."""
        self._closed = True
        while self._work:
            self._work.popleft()()

    def _begin(self) -> None:
        seconds = self._delay()
        self.busy_seconds += seconds
        self._loop.call_later(seconds, self._run, context=self._context)

    def _run(self) -> None:
        if not self._work:
            return  # closed meanwhile
        work = self._work[0]
        try:
            work()
        finally:
            if self._work and self._work[0] is work:
                self._work.popleft()
            if self._work:
                self._begin()
