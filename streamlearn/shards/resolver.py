"""Finding rows ahead: what the lane that parses does for the lane that learns behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from streamlearn.compute.kernels.resolve import CHUNK, MEMO_BITS, resolve
from streamlearn.messages import U32, U64
from streamlearn.shards.table import ExactTable

__all__ = ["Resolver"]


class Resolver:
    """Finds the slots of minibatches' keys, and inserts those that the table does not hold.

    Used by one lane, while another learns what was resolved before; nobody else inserts.

    Parameters
    ----------
    table : ExactTable
    make_room : callable
        Makes room in a segment once all that was resolved has been learned; False where the table
        may not hold more.

    Attributes
    ----------
    ended : bool
        Whether the table was full: from then on whoever learns finds, and says so, by itself.
    """

    def __init__(self, table: ExactTable, make_room: Callable[[int], bool]) -> None:
        self.ended = False
        self._table = table
        self._make_room = make_room
        self._memo_keys: U64 = np.zeros(1 << MEMO_BITS, np.uint64)
        self._memo_slots: U32 = np.zeros(1 << MEMO_BITS, np.uint32)
        self._missing = np.zeros(CHUNK, np.int32)
        self._state = np.zeros(1, np.int64)

    def resolve(self, keys: U64, count: int, slots: U32) -> bool:
        """Write the slots of ``keys[:count]``; False where they are not known (``ended``).

        The slots are valid until the next one that makes room.
        """
        find: Any = resolve  # numba's stubs count the arguments of another function
        while not self.ended:
            find(
                keys, count, *self._table.arguments()[:-1], self._memo_keys, self._memo_slots,
                self._missing, slots, self._state,
            )  # fmt: skip
            segment = int(self._state[0])
            if segment < 0:
                return True
            self._memo_keys.fill(0)
            self.ended = not self._make_room(segment)
        return False
