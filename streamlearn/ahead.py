"""Finding a minibatch's rows in the lane that parses it, for the lane that learns behind it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from streamlearn.compute.pool import Lane
from streamlearn.errors import TableFullError
from streamlearn.messages import U32
from streamlearn.shards.resolver import Resolver
from streamlearn.shards.table import ExactTable
from streamlearn.stream import Work

__all__ = ["Ahead"]


class Ahead:
    """Finds rows ahead, and has the table grow once what was found is learned.

    Parameters
    ----------
    table : ExactTable
    lane : Lane
        Where minibatches are learned.
    fail : callable
        Told of an error in that lane.
    """

    def __init__(
        self, table: ExactTable, lane: Lane, fail: Callable[[BaseException], None]
    ) -> None:
        self._table = table
        self._lane = lane
        self._fail = fail
        self._resolver = Resolver(table, self._make_room)
        self._slots: dict[int, U32] = {}  # by minibatch, which are used again and again

    def find(self, work: Work) -> None:
        """Find the rows of a minibatch, unless the table is full."""
        batch = work.batch
        slots = self._slots.get(id(batch))
        if slots is None:
            slots = self._slots[id(batch)] = np.zeros(len(batch.keys), np.uint32)
        if self._resolver.resolve(batch.keys, batch.nnz, slots):
            work.slots = slots

    def _make_room(self, segment: int) -> bool:
        """Have the learn lane make room, once it has learned what was found so far."""
        done = threading.Event()
        made = False

        def work() -> None:
            nonlocal made
            try:
                with suppress(TableFullError):
                    self._table.make_room(segment)
                    made = True
            except BaseException as error:  # noqa: BLE001 - raised by whoever runs the lanes
                self._fail(error)
            finally:
                done.set()

        self._lane.post(work)
        done.wait()
        return made
