"""Several devices of one machine as one lane.

Each device has a lane of its own. What is submitted has a part for each; where the parts are joined
(gradients summed, parameters given out) the lanes meet: the first one's thread waits until the
others' have posted all that comes before, then posts the join with the compute streams of all
devices as the current ones, so that torch itself orders its copies between them; the others' go on
once it is posted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from streamlearn.compute.cuda import DEPTH, Arrays, Joined, StreamLane, Work, answer
from streamlearn.errors import ConfigError

__all__ = ["Lanes", "open_lane"]

T = TypeVar("T")


def open_lane(text: str, *, depth: int = DEPTH, threads: int = 0) -> StreamLane | Lanes:
    """Return the lane of a device, or of several.

    Parameters
    ----------
    text : str
        As ``compute.device`` has it: one name for :func:`device_of`, or several with commas.
    depth, threads : int
        As for :class:`StreamLane`.

    Raises
    ------
    ConfigError
        There is no such device, or one is named twice.
    """
    names = [one.strip() for one in text.split(",")]
    if len(names) == 1:
        return StreamLane(names[0], depth=depth, threads=threads)
    lanes: list[StreamLane] = []
    try:
        for name in names:
            lanes.append(StreamLane(name, depth=depth, threads=threads))
            if lanes[-1].device in [one.device for one in lanes[:-1]]:
                raise ConfigError(
                    f"compute.device {text!r} names {lanes[-1].device} twice",
                    hint="name each device once",
                )
    except BaseException:
        for lane in lanes:
            lane.close()
        raise
    return Lanes(lanes)


class Lanes:
    """Lanes of several devices that work together.

    Parameters
    ----------
    lanes : sequence of StreamLane
        Of nobody else; at least one.

    Attributes
    ----------
    devices : tuple of torch.device
    """

    def __init__(self, lanes: Sequence[StreamLane]) -> None:
        self._lanes = list(lanes)
        self.devices = tuple(lane.device for lane in lanes)
        self.device = self.devices[0]
        # who submits posts to all lanes before another does: they meet in one order
        self._submitting = threading.Lock()

    def submit_all(
        self, parts: Sequence[tuple[Arrays, Work]], join: Callable[[], None] | None = None
    ) -> Joined:
        """Have each device do its part, after all that was submitted before.

        Parameters
        ----------
        parts : sequence of (mapping of str to array, callable)
            Inputs and work, by device, as for :meth:`StreamLane.submit`.
        join : callable, optional
            Called in the first lane once all have done their part, unless one failed. What is
            submitted later begins after it, on every device.
        """
        with self._submitting:
            tickets = [
                lane.submit(inputs, work)
                for lane, (inputs, work) in zip(self._lanes, parts, strict=True)
            ]
            if join is None:
                return Joined(tickets)
            together = join

            def unless_failed() -> None:
                if not any(one.failed for one in tickets):
                    together()

            return Joined(tickets, self._meet(unless_failed))

    def run(self, function: Callable[[], T]) -> T:
        """Call ``function`` in the first lane, the others waiting; see :meth:`StreamLane.run`."""
        with self._submitting:
            done = self._meet(function)
        return done.result()

    def close(self) -> None:
        """Do what was submitted, then end all lanes."""
        for lane in self._lanes:
            lane.close()

    @property
    def busy_seconds(self) -> float:
        """Seconds spent in works, of all devices together."""
        return sum(lane.busy_seconds for lane in self._lanes)

    @property
    def bytes_in(self) -> int:
        """Bytes of inputs so far."""
        return sum(lane.bytes_in for lane in self._lanes)

    @property
    def bytes_out(self) -> int:
        """Bytes of results so far."""
        return sum(lane.bytes_out for lane in self._lanes)

    def _meet(self, function: Callable[[], T]) -> Future[T]:
        """Have the first lane call a function once the others have come to here; they wait."""
        first, *others = self._lanes
        done: Future[T] = Future()
        come = [threading.Event() for _ in others]
        over = threading.Event()

        def wait(event: threading.Event) -> None:
            event.set()
            over.wait()

        def call() -> None:
            for event in come:
                event.wait()
            answer(done, function, self._lanes[::-1])  # the first device is the current one
            over.set()

        for lane, event in zip(others, come, strict=True):
            lane.post(partial(wait, event))
        first.post(call)
        return done
