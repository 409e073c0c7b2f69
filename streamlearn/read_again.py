"""Reading a source once more: what a run does that goes on with further passes after a restart."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from streamlearn.errors import DataError, ObjectChangedError
from streamlearn.messages import F32, Partition
from streamlearn.model import Model
from streamlearn.online.minibatch import Minibatch

__all__ = ["ReadAgain", "check_unchanged", "gone", "keep_again"]

_log = logging.getLogger("streamlearn.training")

# Reads the whole source without learning: given what is told of each minibatch.
ReadAgain: TypeAlias = Callable[[Callable[[F32, Minibatch], None]], Awaitable[None]]


async def keep_again(read_again: ReadAgain, keep: Callable[[Minibatch], int], unknown: str) -> None:
    """Keep what an earlier run learned, and warn of what the model does not know any more.

    Parameters
    ----------
    keep : callable
        Keeps what is known of a minibatch, and returns how much of it is not.
    unknown : str
        What that is: ``ratings are of users or items``.
    """
    left_out = 0

    def record(_scores: F32, batch: Minibatch) -> None:
        nonlocal left_out
        left_out += keep(batch)

    await read_again(record)
    if left_out:
        _log.warning(
            "%s %s that the model has not met, or has forgotten: further passes leave them out",
            f"{left_out:,}",
            unknown,
        )


def gone(what: str) -> DataError:
    """Return the error of a source that has nothing any more of what was learned from it."""
    return DataError(
        f"the source has no {what} any more, but the model was learned from some",
        hint="further passes read the source once more after a restart: a pipe cannot be",
    )


def check_unchanged(model: Model, partitions: Sequence[Partition]) -> None:
    """Raise ObjectChangedError where what was learned cannot be read again as it was."""
    versions = {partition.name: partition.version for partition in partitions}
    for name, known in model.positions.items():
        now = versions.get(name)
        if now == known.version:
            continue
        what = f"it was {known.version}, it is {now}" if now is not None else "it is gone"
        raise ObjectChangedError(
            f"{name} has changed since it was learned: {what}",
            hint="after a restart further passes read the source once more: put the object back, "
            "or start over in another --out",
        )
