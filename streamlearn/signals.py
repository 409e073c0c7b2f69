"""SIGINT and SIGTERM in an event loop: the first asks, the second insists."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

__all__ = ["taken"]


@contextmanager
def taken(
    first: Callable[[signal.Signals], object], second: Callable[[signal.Signals], object]
) -> Iterator[None]:
    """Take both signals while this is open.

    Parameters
    ----------
    first, second : callable
        Called on the loop with the signal that came: the first, and any behind it.
    """
    loop = asyncio.get_running_loop()
    seen = False

    def caught(number: signal.Signals) -> None:
        nonlocal seen
        if seen:
            second(number)
            return
        seen = True
        first(number)

    installed = []
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(ValueError, RuntimeError):  # not the main thread: the caller's business
            loop.add_signal_handler(number, caught, number)
            installed.append(number)
    try:
        yield
    finally:
        for number in installed:
            loop.remove_signal_handler(number)
