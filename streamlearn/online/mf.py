"""Matrix factorization over a local table: each rating is predicted before it teaches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np

from streamlearn.compute.kernels import factors as kernels
from streamlearn.config import MfConfig
from streamlearn.messages import F32, I64, U8, U32, U64
from streamlearn.online.fm import Keeper
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch

__all__ = ["Learned", "MfScratch", "MfSolver", "numbers_of", "rates_of", "scored"]

_NUMBERS: Final = np.uint64(32)  # of word 1: its upper half
# Pairs that are scored at a time where there are many.
_PIECE: Final = 4096


class Learned(NamedTuple):
    """Ratings of a minibatch that were learned, or held out; views, valid while they are told of.

    Attributes
    ----------
    keys : uint64[n, 2]
    pairs : uint32[n, 2]
        Numbers of user and item; 2**32 - 1 for those of a rating that is held out.
    ratings, weights : float32[n]
        As they came.
    held : uint8[n]
        Whether each is held out.
    """

    keys: U64
    pairs: U32
    ratings: F32
    weights: F32
    held: U8


class MfScratch:
    """Buffers of one learning lane.

    Parameters
    ----------
    rows_max : int
        Of the minibatches that it will see.

    Attributes
    ----------
    scores : float32[rows_max]
        Scores of the last minibatch's ratings, before each taught.
    fresh : uint8[rows_max]
        How many rows were new at each rating.
    """

    def __init__(self, rows_max: int) -> None:
        self.places: U32 = np.zeros(2 * rows_max, np.uint32)
        self.state: I64 = np.zeros(8, np.int64)
        self.scores: F32 = np.zeros(rows_max, np.float32)
        self.fresh: U8 = np.zeros(rows_max, np.uint8)
        self.pairs: U32 = np.zeros(2 * rows_max, np.uint32)
        self.held: U8 = np.zeros(rows_max, np.uint8)
        self.weights: F32 = np.zeros(rows_max, np.float32)


def scored(solver: MfSolver, keys: U64) -> F32:
    """Return the scores of pairs of users and items, uint64[n, 2]."""
    rows = max(1, min(len(keys), _PIECE))
    batch = Minibatch(rows, FEATURES_PER_RECORD_MAX, has_values=False)
    scratch = solver.scratch(rows, 2 * rows)
    scores = np.empty(len(keys), np.float32)
    for first in range(0, len(keys), rows):
        part = keys[first : first + rows]
        batch.keys[: part.size] = part.reshape(-1)
        batch.state[:2] = len(part), part.size
        scores[first : first + len(part)] = solver.score(batch, scratch)
    return scores


def numbers_of(columns: U64) -> U32:
    """Return the numbers in rows' word 1 (uint64[n]), as ``kernels.factors`` has them; 0: none."""
    return (columns >> _NUMBERS).astype(np.uint32)


def rates_of(model: MfConfig, epoch: int) -> F32:
    """Return what kernels learn a pass by, float32[8]: see ``kernels.factors.learn``."""
    step = model.alpha / (epoch + 1) ** model.decay
    logistic = float(model.loss == "logistic")
    return np.array(
        [step, model.l2, logistic, model.v_init_scale, model.intercept, 0, 0, 0], np.float32
    )


class MfSolver:
    """Scores and learns ratings on a table of exact keys: two rows each, by gradient descent.

    Parameters
    ----------
    model : MfConfig
    table : ExactTable
        With an arena of the model's factors; changed in place, see ``compute.kernels.factors``.

    Attributes
    ----------
    counting : bool
        Whether ratings raise the counts of their user and item: in the first pass over a source.
    recorder : callable or None
        Told of each minibatch once it is learned (:class:`Learned`).
    unknown : int64[2]
        Of how many ratings that were only scored the table did not hold the user, and the item.

    Notes
    -----
    ``scratch.state[4]`` counts the ratings whose score was not finite, which taught nothing;
    whoever looks at it sets it back.
    """

    def __init__(self, model: MfConfig, table: Any) -> None:
        self.table = table
        self.counting = True
        self.recorder: Callable[[Learned], None] | None = None
        self.unknown: I64 = np.zeros(2, np.int64)
        self._model = model
        self._rates = rates_of(model, 0)
        if model.epsilon:  # only who there is, is learned
            self._rates[0] = 0
        self._below = np.uint64(round(model.held_out * 2.0**32))
        self._negatives = model.negatives if model.loss == "logistic" else 0
        self._numbers: I64 = np.zeros(2, np.int64)
        self._item_keys: U64 = np.zeros(1024, np.uint64)
        self._numbered = False

    def scratch(
        self, rows_max: int, nnz_max: int, features_max: int = FEATURES_PER_RECORD_MAX
    ) -> MfScratch:
        """Return buffers for a lane that learns or scores."""
        return MfScratch(rows_max)

    def learn(self, batch: Minibatch, scratch: MfScratch, keeper: Keeper, tick: int) -> F32:
        """Score each rating, then learn it; return the scores (a view of ``scratch.scores``).

        Parameters
        ----------
        batch : Minibatch
            Two keys a row; the weights of ratings that are held out are set to 0.
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
        self, batch: Minibatch, scratch: MfScratch, keeper: Keeper, tick: int, first: int
    ) -> int:
        """Score and learn the ratings from ``first`` on; see ``FmSolver.learn_until_full``."""
        state = self._learn(batch, scratch.places, 0, scratch, keeper, tick, first)
        return int(state[3]) if state[2] else -1

    def learn_resolved(
        self, batch: Minibatch, slots: U32, scratch: MfScratch, keeper: Keeper, tick: int
    ) -> F32:
        """Score and learn a minibatch whose rows are known; return the scores, as :meth:`learn`.

        Parameters
        ----------
        slots : uint32[nnz]
            Of the minibatch's keys in the table.
        """
        self._learn(batch, slots, 1, scratch, keeper, tick, 0)
        return scratch.scores[: batch.rows]

    def _learn(
        self,
        batch: Minibatch,
        slots: U32,
        resolved: int,
        s: MfScratch,
        keeper: Keeper,
        tick: int,
        first: int,
    ) -> I64:
        table, state, rows = self.table, s.state, batch.rows
        assert batch.nnz == 2 * rows, f"{batch.nnz} keys in {rows} ratings, expected two each"
        state[0], state[1], state[2], state[5] = first, rows, 0, 0
        self._number(rows)
        if first == 0:
            s.weights[:rows] = batch.weights[:rows]
        words, places, segment_of, inserted, loads, limits, intercept = table.arguments()
        kept = 2 * rows * (1 + self._negatives)
        lines = table.arena.geometry.tiers.lines(self._model.dim)
        seed = (int(inserted[0]) << 20) + int(self._numbers.sum())
        counting = self.counting and not self._model.epsilon
        learn: Any = kernels.learn  # numba's stubs count the arguments of another function
        learn(
            batch.keys, batch.labels, batch.weights, state, words, places, segment_of, inserted,
            loads, limits, intercept, resolved, slots, *table.arena.arguments(), self._rates,
            self._below, self._negatives, np.uint64(seed), self._numbers, self._item_keys,
            np.uint64(tick), np.uint64(counting), s.scores, s.fresh, s.pairs, s.held,
            *keeper.arguments(2 * kept), *keeper.vector_lines.arguments(kept * lines),
        )  # fmt: skip
        if state[5]:
            table.arena.advise()
        done = int(state[0])
        if self.recorder is not None and done > first:
            part, pairs = slice(first, done), slice(2 * first, 2 * done)
            self.recorder(
                Learned(
                    batch.keys[pairs].reshape(-1, 2), s.pairs[pairs].reshape(-1, 2),
                    batch.labels[part], s.weights[part], s.held[part],
                )
            )  # fmt: skip
        return state

    def _number(self, rows: int) -> None:
        """Make ready to number as many items as a minibatch may bring."""
        if not self._numbered:
            self._numbers, self._item_keys = _known(self.table)
            self._numbered = True
        need = int(self._numbers[1]) + rows
        if need > len(self._item_keys):
            more = np.zeros(2 * need, np.uint64)
            more[: len(self._item_keys)] = self._item_keys
            self._item_keys = more

    def look_up(self, batch: Minibatch, scratch: MfScratch) -> tuple[Learned, int]:
        """Return a minibatch as :attr:`recorder` was told of it when it was learned.

        Returns
        -------
        Learned
        int
            Ratings, none of them held out, whose user or item the table does not hold.
        """
        s, rows = scratch, batch.rows
        words, places, _ = self.table.score_arguments()
        unknown = kernels.look_up(batch.keys, rows, words, places, self._below, s.pairs, s.held)
        learned = Learned(
            batch.keys[: 2 * rows].reshape(-1, 2), s.pairs[: 2 * rows].reshape(-1, 2),
            batch.labels[:rows], batch.weights[:rows], s.held[:rows],
        )  # fmt: skip
        return learned, int(unknown)

    def score(self, batch: Minibatch, scratch: MfScratch) -> F32:
        """Score each rating without learning; return the scores (a view of ``scratch.scores``)."""
        words, places, intercept = self.table.score_arguments()
        arena = self.table.arena
        kernels.score(
            batch.keys, batch.rows, words, places, intercept, scratch.places,
            arena.geometry.layout, self._model.dim, arena.values, self._rates, scratch.scores,
        )  # fmt: skip
        missing = scratch.places[: 2 * batch.rows].reshape(-1, 2) == kernels.NO_NUMBER
        self.unknown += missing.sum(axis=0)
        return scratch.scores[: batch.rows]

    @property
    def item_keys(self) -> U64:
        """Keys of the items by number, as they were met; what a table has forgotten is among them.

        A view, valid until more is learned.
        """
        self._number(0)
        return self._item_keys[: int(self._numbers[1])]

    def weights(self, columns: U64) -> F32:
        """Return the biases of rows from their columns (word 1 of a row, uint64[n])."""
        return columns.astype(np.uint32).view(np.float32)

    @property
    def intercept(self) -> float:
        """b_0: the mean rating, or its logit; 0 where the model has none."""
        if not self._model.intercept:
            return 0.0
        mean = np.float32(self.table.intercept[0])
        return float(kernels.baseline_of(mean, int(self._rates[2])))


def _known(table: Any) -> tuple[I64, U64]:
    """Return how many users and items a table has numbered, and the keys of the items."""
    keys, numbers = [], []
    for segment in table.key_order():
        rows = table.rows(segment)
        keys.append(rows[:, 0])
        numbers.append(numbers_of(rows[:, 1]))
    held = np.concatenate(numbers)
    items = held & kernels.ITEM != 0
    counts = np.zeros(2, np.int64)
    item_keys = np.zeros(1024, np.uint64)
    if (~items).any():
        counts[0] = held[~items].max()
    if items.any():
        places = (held[items] & ~kernels.ITEM).astype(np.int64) - 1
        counts[1] = places.max() + 1
        item_keys = np.zeros(2 * int(counts[1]) + 1024, np.uint64)
        item_keys[places] = np.concatenate(keys)[items]
    return counts, item_keys
