"""Lanes: threads that run kernels in order, and how long compiling them took.

Kernels release the GIL, so a lane computes while the event loop waits. A lane takes work in the
order in which it is posted; whoever posts keeps the amount of it bounded (the learner: by its stock
of minibatches).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import ParamSpec, TypeVar

__all__ = ["Lane"]

P = ParamSpec("P")
T = TypeVar("T")


class Lane:
    """One named thread that runs what is posted to it, in order.

    Parameters
    ----------
    name : str
        Of the thread, and the metric label.
    cpu_clock : callable
        Seconds of CPU used by the calling thread.

    Attributes
    ----------
    busy_seconds : float
        CPU seconds spent in posted work.
    """

    def __init__(self, name: str, cpu_clock: Callable[[], float]) -> None:
        self.name = name
        self.busy_seconds = 0.0
        self._cpu_clock = cpu_clock
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"lane-{name}", daemon=True)
        self._thread.start()

    def post(self, work: Callable[[], None]) -> None:
        """Run ``work`` after all that was posted before; it must not raise."""
        self._work.put(work)

    @property
    def idle(self) -> bool:
        """Whether everything posted has begun."""
        return self._work.empty()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``function`` in the lane after all that was posted; return or raise what it does."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

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
            except BaseException as error:  # noqa: BLE001 - handed to whoever awaits
                failure = error
            with suppress(RuntimeError):  # the loop is closed: nobody awaits any more
                loop.call_soon_threadsafe(finish, result, failure)

        self._work.put(work)
        return await done

    def close(self) -> None:
        """Finish what was posted, then end the thread."""
        self._work.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            self.busy_seconds = self._cpu_clock()
