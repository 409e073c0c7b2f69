"""Factorization machines over a local table: each example is scored before it teaches."""

from __future__ import annotations

from typing import Any, Final, Protocol

import numpy as np

from streamlearn.compute.kernels import fm as kernels
from streamlearn.compute.kernels.rules import rates_of, v_rates_of
from streamlearn.config import FmConfig
from streamlearn.embeddings import Tiers
from streamlearn.messages import F32, I64, U32, U64
from streamlearn.online.logistic import CutArguments, LogisticSolver, Scratch
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch

__all__ = ["FmScratch", "FmSolver"]

_NOTHING: Final[I64] = np.zeros(0, np.int64)
_PLACES: Final[U64] = np.zeros((256, 2), np.uint64)


class Keeper(Protocol):
    """What keeps the old lines of a table and its embeddings for an open cut."""

    @property
    def vector_lines(self) -> Any:
        """What keeps those of the embeddings."""
        ...

    def arguments(self, lines_max: int) -> CutArguments:
        """Return what a learn kernel keeps lines with, room for so many more."""
        ...


class FmScratch(Scratch):
    """Buffers of one learning lane: those of the linear part, and those of embeddings.

    Parameters
    ----------
    tiers : Tiers
    rows_max, nnz_max, features_max : int
        As for ``Scratch``.
    """

    def __init__(
        self,
        tiers: Tiers,
        rows_max: int,
        nnz_max: int,
        features_max: int = FEATURES_PER_RECORD_MAX,
    ) -> None:
        super().__init__(rows_max, nnz_max, features_max)
        width = len(self.x)
        blocks = -(-tiers.dim // tiers.lanes)
        self.addresses = np.zeros(width, np.int64)
        self.xs = np.zeros(width, np.float32)
        self.gxs = np.zeros(width, np.float32)
        self.owners = np.zeros(width, np.int64)
        self.dims = np.zeros(width, np.int64)
        self.seeds = np.zeros(width, np.uint64)
        self.ends = np.zeros(len(tiers.dims), np.int64)
        self.sums = np.zeros(4 * tiers.lanes * (blocks + 1), np.float32)


class FmSolver:
    """Scores and learns minibatches on a table: weights by FTRL, embeddings by AdaGrad.

    Parameters
    ----------
    model : FmConfig
    table : ExactTable or HashedTable
        With embeddings of the model's tiers; changed in place, see ``compute.kernels.fm``.
    shared : bool
        Whether several lanes learn on it at the same time.

    Attributes
    ----------
    counting : bool
        Whether examples raise the counts of their features: in the first pass over a source.

    Notes
    -----
    ``scratch.state[4]`` counts the examples whose score was not finite, which taught nothing;
    whoever looks at it sets it back.
    """

    def __init__(self, model: FmConfig, table: Any, *, shared: bool = False) -> None:
        self.table = table
        self.counting = True
        self._tiers = model.tiers
        self._shared = int(shared)
        self._linear = LogisticSolver(model, table)
        self._rates = rates_of(model.alpha, model.beta, model.l1, model.l2, model.intercept)
        self._v_rates = v_rates_of(*model.v_rates)
        self._hashed = table.index == "hashed"

    def scratch(
        self, rows_max: int, nnz_max: int, features_max: int = FEATURES_PER_RECORD_MAX
    ) -> FmScratch:
        """Return buffers for a lane that learns or scores."""
        return FmScratch(self._tiers, rows_max, nnz_max, features_max)

    def learn(self, batch: Minibatch, scratch: FmScratch, keeper: Keeper, tick: int) -> F32:
        """Score each example, then learn it; return the scores (a view of ``scratch.scores``).

        Parameters
        ----------
        tick : int
            As for ``LogisticSolver.learn``.

        Raises
        ------
        TableFullError
            As for ``LogisticSolver.learn``.
        """
        done = self.learn_until_full(batch, scratch, keeper, tick, 0)
        while done >= 0:
            self.table.make_room(done)
            done = self.learn_until_full(batch, scratch, keeper, tick, int(scratch.state[0]))
        return scratch.scores[: batch.rows]

    def learn_until_full(
        self, batch: Minibatch, scratch: FmScratch, keeper: Keeper, tick: int, first: int
    ) -> int:
        """Score and learn the examples from ``first`` on.

        Returns
        -------
        int
            -1 where all are learned; else a segment of the table that must be made room in
            (``table.make_room``) before the call is repeated from ``scratch.state[0]`` on.
        """
        mode = kernels.HASHED if self._hashed else kernels.EXACT
        state = self._learn(batch, scratch.places, mode, scratch, keeper, tick, first)
        return int(state[3]) if state[2] else -1

    def learn_resolved(
        self, batch: Minibatch, slots: U32, scratch: FmScratch, keeper: Keeper, tick: int
    ) -> F32:
        """Score and learn a minibatch whose rows are known; return the scores, as :meth:`learn`.

        Parameters
        ----------
        slots : uint32[nnz]
            Of the minibatch's keys in the (exact) table.
        """
        self._learn(batch, slots, kernels.RESOLVED, scratch, keeper, tick, 0)
        return scratch.scores[: batch.rows]

    def _learn(
        self,
        batch: Minibatch,
        slots: U32,
        mode: int,
        s: FmScratch,
        keeper: Keeper,
        tick: int,
        first: int,
    ) -> I64:
        table, state = self.table, s.state
        state[0], state[1], state[2], state[5] = first, batch.rows, 0, 0
        s.expect(values=batch.has_values)
        kept = 2 * batch.nnz
        longest = self._tiers.lines(self._tiers.dim)
        # What a full table forgets must not depend on where minibatches end.
        lead = kernels.LEAD if self._hashed or table.when_full == "error" else 0
        learn: Any = kernels.learn  # numba's stubs count the arguments of another function
        learn(
            batch.keys, batch.values, batch.indptr, batch.labels, batch.weights, state, mode,
            *self._rows(), self._shared, slots, *self._embeddings(), self._rates, self._v_rates,
            np.uint64(tick), np.uint64(self.counting), lead, s.columns64, s.columns, s.x, s.w,
            s.slots, s.addresses, s.xs, s.gxs, s.owners, s.dims, s.seeds, s.ends, s.sums, s.scores,
            s.fresh, *keeper.arguments(kept), *keeper.vector_lines.arguments(batch.nnz * longest),
        )  # fmt: skip
        if state[5]:
            table.arena.advise()
        return state

    def score(self, batch: Minibatch, scratch: FmScratch) -> F32:
        """Score each example without learning; return the scores (a view of ``scratch.scores``)."""
        s, rows = scratch, batch.rows
        s.expect(values=batch.has_values)
        words, places, *_, shift, intercept = self._rows()
        _, dims, layout, vectors, *_ = self._embeddings()
        kernels.score(
            batch.keys, batch.values, batch.indptr, rows,
            kernels.HASHED if self._hashed else kernels.EXACT, words, places, shift, intercept,
            s.places, dims, layout, vectors, self._rates, s.columns64, s.columns, s.x, s.w, s.slots,
            s.addresses, s.xs, s.ends, s.sums, s.scores,
        )  # fmt: skip
        return s.scores[:rows]

    def _rows(self) -> tuple[Any, ...]:
        """Return the table as kernels take it, the other kind's arguments empty."""
        if self._hashed:
            words, shift, intercept = self.table.arguments()
            nothing = _NOTHING
            return words, _PLACES, _NO_SEGMENTS, nothing, nothing, nothing, shift, intercept
        *table, intercept = self.table.arguments()
        return *table, np.uint64(0), intercept

    def _embeddings(self) -> tuple[Any, ...]:
        if not self._hashed:
            arguments: tuple[Any, ...] = self.table.arena.arguments()
            return arguments
        vectors = self.table.vectors
        geometry, nothing = vectors.geometry, _NOTHING
        return (
            geometry.counts, geometry.dims, geometry.layout, vectors.values, vectors.words, nothing,
            nothing, nothing,
        )  # fmt: skip

    def weights(self, columns: U64) -> F32:
        """Derive the weights of rows from their columns (word 1 of a row, uint64[n])."""
        return self._linear.weights(columns)

    @property
    def intercept(self) -> float:
        """The intercept's weight; 0 where the model has none."""
        return self._linear.intercept


_NO_SEGMENTS: Final = np.zeros(256, np.int32)
