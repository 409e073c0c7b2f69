"""L1 logistic regression over a local table: each example is scored before it teaches."""

from __future__ import annotations

from typing import Any, Final, Protocol

import numpy as np

from streamlearn.compute.kernels import logistic as kernels
from streamlearn.compute.kernels.rules import rates_of
from streamlearn.config import ModelConfig
from streamlearn.messages import F32, I64, U8, U32, U64
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch

__all__ = ["RULES", "LogisticSolver", "Scratch"]

# Update rules, as kernels number them.
RULES: Final = {"ftrl": 0, "adagrad": 1, "sgd": 2}

CutArguments = tuple[int, U64, I64, U64, I64]


class Keeper(Protocol):
    """What keeps a table's old lines for an open cut."""

    def arguments(self, lines_max: int) -> CutArguments:
        """Return what a learn kernel keeps lines with, room for so many more."""
        ...


class Rows(Protocol):
    """A local table, as this solver sees it."""

    intercept: F32

    @property
    def index(self) -> str:
        """``exact`` or ``hashed``: which kernels are its own."""
        ...

    def arguments(self) -> tuple[Any, ...]:
        """Return what its learn kernel is given of it."""
        ...

    def score_arguments(self) -> tuple[Any, ...]:
        """Return what its score kernel is given of it."""
        ...

    def make_room(self, segment: int) -> None:
        """Make room in a segment that its learn kernel found full."""
        ...


class Scratch:
    """Buffers of one learning lane.

    Parameters
    ----------
    rows_max, nnz_max : int
        Of the minibatches that it will see.
    features_max : int
        Of one example.

    Attributes
    ----------
    scores : float32[rows_max]
        Scores (logits) of the last minibatch's examples, before each taught.
    fresh : uint8[rows_max]
        How many weights left zero at each example.
    """

    def __init__(
        self, rows_max: int, nnz_max: int, features_max: int = FEATURES_PER_RECORD_MAX
    ) -> None:
        width = features_max + kernels.LANES
        self.places = np.zeros(nnz_max, np.uint32)
        self.columns64 = np.zeros(width, np.uint64)
        self.columns: F32 = self.columns64.view(np.float32)
        self.x = np.ones(width, np.float32)
        self.w = np.zeros(width, np.float32)
        self.slots = np.zeros(width, np.int64)
        self.state = np.zeros(8, np.int64)
        self.scores: F32 = np.zeros(rows_max, np.float32)
        self.fresh: U8 = np.zeros(rows_max, np.uint8)
        self.holds_values = False  # in ``x``, from the last minibatch that had some

    def expect(self, *, values: bool) -> None:
        """Make ``x`` ones again for a minibatch without values after one that had some."""
        if self.holds_values and not values:
            self.x.fill(1)
        self.holds_values = values


class LogisticSolver:
    """Scores and learns minibatches on a table, by the model's update rule.

    Parameters
    ----------
    model : LrConfig or FmConfig
        ``rule``, ``alpha``, ``beta``, ``l1``, ``l2``, ``intercept``.
    table : ExactTable or HashedTable
        Changed in place; several lanes may learn on one table (see ``compute.kernels.logistic``),
        except while it grows: ``learn`` calls ``table.make_room`` where a segment is full.
    shared : bool
        Whether several lanes do.
    """

    def __init__(self, model: ModelConfig, table: Rows, *, shared: bool = False) -> None:
        self.table = table
        self.counting = True  # in every pass: counts decide only what a full table forgets
        self._shared = int(shared)
        self._rule = RULES.get(model.rule, RULES["ftrl"])  # that of fm's weights, too
        self._rates = rates_of(model.alpha, model.beta, model.l1, model.l2, model.intercept)

    def scratch(
        self, rows_max: int, nnz_max: int, features_max: int = FEATURES_PER_RECORD_MAX
    ) -> Scratch:
        """Return buffers for a lane that learns or scores."""
        return Scratch(rows_max, nnz_max, features_max)

    def learn(self, batch: Minibatch, scratch: Scratch, keeper: Keeper, tick: int) -> F32:
        """Score each example, then learn it; return the scores (a view of ``scratch.scores``).

        Parameters
        ----------
        tick : int
            Written beside the count of each feature seen: minutes since the epoch, or any clock
            that the caller likes, 0 <= tick < 2**32.

        Raises
        ------
        TableFullError
                The table may not grow; the examples before have been learned, ``scratch.state[0]``
            says how many.
        """
        done = self.learn_until_full(batch, scratch, keeper, tick, 0)
        while done >= 0:
            self.table.make_room(done)
            done = self.learn_until_full(batch, scratch, keeper, tick, int(scratch.state[0]))
        return scratch.scores[: batch.rows]

    def learn_until_full(
        self, batch: Minibatch, scratch: Scratch, keeper: Keeper, tick: int, first: int
    ) -> int:
        """Score and learn the examples from ``first`` on.

        Returns
        -------
        int
            -1 where all are learned; else a segment of the table that must be made room in
            (``table.make_room``) before the call is repeated from ``scratch.state[0]`` on.
        """
        table, state = self.table, scratch.state
        state[0], state[1], state[2] = first, batch.rows, 0
        scratch.expect(values=batch.has_values)
        learn: Any = kernels.learn_hashed if table.index == "hashed" else kernels.learn_exact
        learn(
            batch.keys, batch.values, batch.indptr, batch.labels, batch.weights, state,
            *table.arguments(), self._shared, self._rule, self._rates, np.uint64(tick),
            scratch.places, scratch.columns64, scratch.columns, scratch.x, scratch.w,
            scratch.slots, scratch.scores, scratch.fresh,
            *keeper.arguments(2 * batch.nnz),
        )  # fmt: skip
        return int(state[3]) if state[2] else -1

    def learn_resolved(
        self, batch: Minibatch, slots: U32, scratch: Scratch, keeper: Keeper, tick: int
    ) -> F32:
        """Score and learn a minibatch whose rows are known; return the scores, as :meth:`learn`.

        Parameters
        ----------
        slots : uint32[nnz]
            Of the minibatch's keys in the (exact) table.
        """
        state = scratch.state
        state[0], state[1], state[2] = 0, batch.rows, 0
        scratch.expect(values=batch.has_values)
        kernels.learn_resolved(
            slots, batch.values, batch.indptr, batch.labels, batch.weights, state,
            self.table.arguments()[0], self.table.intercept, self._rule, self._rates,
            np.uint64(tick), scratch.columns64, scratch.columns, scratch.x, scratch.w,
            scratch.scores, scratch.fresh, *keeper.arguments(2 * batch.nnz),
        )  # fmt: skip
        return scratch.scores[: batch.rows]

    def score(self, batch: Minibatch, scratch: Scratch) -> F32:
        """Score each example without learning; return the scores (a view of ``scratch.scores``)."""
        table, rows = self.table, batch.rows
        scratch.expect(values=batch.has_values)
        score: Any = kernels.score_hashed if table.index == "hashed" else kernels.score_exact
        score(
            batch.keys, batch.values, batch.indptr, rows, *table.score_arguments(),
            self._rule, self._rates, scratch.places, scratch.columns64, scratch.columns,
            scratch.x, scratch.w, scratch.scores,
        )  # fmt: skip
        return scratch.scores[:rows]

    def weights(self, columns: U64) -> F32:
        """Derive the weights of rows from their columns (word 1 of a row, uint64[n])."""
        out = np.empty(len(columns), np.float32)
        kernels.weights_of(np.ascontiguousarray(columns), self._rule, self._rates, out)
        return out

    @property
    def intercept(self) -> float:
        """The intercept's weight; 0 where the model has none."""
        if self._rates[5] == 0:
            return 0.0
        z, n = (float(v) for v in self.table.intercept)
        alpha, beta = float(self._rates[0]), float(self._rates[1])
        return -z / ((beta + np.sqrt(n)) / alpha) if self._rule == RULES["ftrl"] else z
