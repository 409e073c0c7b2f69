"""Copies of items' factors that a worker keeps, so that popular ones are not pulled each time.

A copy begins with what a pull brought and moves with what this worker itself learns. It is used as
long as that is within the staleness that reads may have: a shard says with its answer up to which
minibatch nothing is missing in it, so for minibatch ``c`` a copy is good that lacks nothing of
before ``c - tau``. With ``tau = 0`` there are no copies.

Which copies there are is decided here, before a pull; the copies themselves are the step's
(:class:`streamlearn.online.steps.MfStep`). That is sound since steps keep the order of the pulls.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from streamlearn.compute.kernels import copies as kernels
from streamlearn.config import JobConfig, MfConfig
from streamlearn.messages import I64, U64

__all__ = ["NO_PLAN", "Copies", "Plan", "copies_max"]

# Minibatches for which a copy is used at most, whatever tau allows: what others learn must come in.
_AGE_MAX: Final = 16
_COPIES_MAX: Final = 1 << 20


class Plan(NamedTuple):
    """What a minibatch does with copies, by key.

    Attributes
    ----------
    used, kept : int64[u] or [0]
        Copy to step with, and to make after the step; -1: none. Of length 0: no copies at all.
    """

    used: I64
    kept: I64


NO_PLAN: Final = Plan(np.zeros(0, np.int64), np.zeros(0, np.int64))


def copies_max(job: JobConfig) -> int:
    """Return how many copies a worker keeps: a power of two, or 0."""
    model, tables = job.model, job.tables
    if not isinstance(model, MfConfig) or tables.tau == 0:
        return 0
    row_bytes = 4 * model.tiers.floats(model.dim)
    most = min(tables.copies_bytes_max // row_bytes, _COPIES_MAX)
    return 1 << (most.bit_length() - 1) if most >= 2 else 0


class Copies:
    """Says which rows a worker has copies of.

    Parameters
    ----------
    room : int
        Copies at most, a power of two; 0: none.
    tau : int
        ``tables.tau``.
    """

    def __init__(self, room: int, tau: int) -> None:
        self._room = room
        self._age = min(tau, _AGE_MAX) if tau >= 0 else _AGE_MAX
        self._shift = np.uint64(64 - room.bit_length() + 1) if room else np.uint64(0)
        self._held: U64 = np.zeros(room, np.uint64)
        self._asked: I64 = np.zeros(room, np.int64)
        self._fresh: I64 = np.zeros(room, np.int64)
        self.forget()

    def forget(self) -> None:
        """Use no copy that there is: what was planned does not happen."""
        self._held[:] = 0
        self._asked[:] = self._fresh[:] = kernels.NEVER

    def plan(self, keys: U64, items: I64, clock: int) -> Plan:
        """Decide for the minibatch that is pulled for next.

        Parameters
        ----------
        keys, items : uint64[u], int64[u]
            And which are items.
        clock : int
            The minibatch's number.
        """
        if not self._room:
            return NO_PLAN
        plan = Plan(np.empty(len(keys), np.int64), np.empty(len(keys), np.int64))
        oldest = clock - self._age
        kernels.plan(
            keys, items, oldest, clock, self._held, self._asked, self._fresh, self._shift, *plan
        )
        return plan

    def answered(self, plan: Plan, keys: U64, first: int, end: int, clock: int) -> None:
        """Note that a shard has answered for the keys ``[first, end)``.

        Parameters
        ----------
        clock : int
            As the shard said it: nothing of before it is missing.
        """
        if len(plan.kept):
            part = slice(first, end)
            kernels.renew(
                keys[part], plan.used[part], plan.kept[part], clock, self._held, self._fresh
            )
