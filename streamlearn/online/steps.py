"""What a worker does with the values that it pulled for a minibatch, by kind of model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np

from streamlearn.compute.kernels import factors, fm_steps, mf_steps
from streamlearn.compute.kernels import steps as kernels
from streamlearn.compute.kernels.rules import MEAN_SHARE, v_rates_of
from streamlearn.config import DeepConfig, FmConfig, LdaConfig, LrConfig, MfConfig, ModelConfig
from streamlearn.messages import F32, I64, U8, U32, U64
from streamlearn.online.localized import Localized
from streamlearn.online.mf import rates_of
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch

__all__ = [
    "Begun",
    "FmStep",
    "Gradients",
    "LogisticStep",
    "MfStep",
    "Pending",
    "Step",
    "Values",
    "new_step",
]

_NO_VECTORS: Final[F32] = np.zeros(0, np.float32)
_NO_DIMS: Final[I64] = np.zeros(0, np.int64)
_NO_SHARES: Final[U8] = np.zeros(0, np.uint8)
_NO_COUNTS: Final[I64] = np.zeros(1, np.int64)
# As if the mean rating were of so few: that of the minibatch takes its place.
_HARDLY_ANY: Final = 1e-30


@dataclass(frozen=True, slots=True)
class Values:
    """What was pulled for the distinct keys of a minibatch.

    Attributes
    ----------
    weights : float32[u]
    dims : int64[u] or [0]
        How many coordinates of each key's embedding came; 0: none. Of length 0 where the model has
        no embeddings.
    vectors : sequence of float32[...]
        Embeddings of runs of the keys, in their order, back to back: of each its coordinates of
        order 2, then of order 3.
    used, kept : int64[u] or [0]
        By key, the copy of its factors to step with as none came, and the copy to make of them
        after the step, by number; -1: none. Of length 0 where there are no copies.
    """

    weights: F32
    dims: I64 = field(default_factory=lambda: _NO_DIMS)
    vectors: Sequence[F32] = ()
    used: I64 = field(default_factory=lambda: _NO_DIMS)
    kept: I64 = field(default_factory=lambda: _NO_DIMS)


@dataclass(frozen=True, slots=True)
class Gradients:
    """Gradients of the loss summed over a minibatch, by key; of ``MfStep``, what rows are to be.

    Attributes
    ----------
    weights : float32[u]
    vectors : float32[...]
        As ``Values.vectors`` has them, all in one.
    dropped : int
        Examples whose score was not finite: nothing is learned of them.
    dims : int64[u] or None
        How many coordinates of each key ``vectors`` has, where those are others than were pulled.
    shares : uint8[2 * u] or [0]
        How much is kept of each row, of its weight and of its vector (255: all), before what is
        here is added.
    """

    weights: F32
    vectors: F32 = field(default_factory=lambda: _NO_VECTORS)
    dropped: int = 0
    dims: I64 | None = None
    shares: U8 = field(default_factory=lambda: _NO_SHARES)


class Step(Protocol):
    """Scores a minibatch and computes its gradients.

    Attributes
    ----------
    intercept : bool
        Whether minibatches are to be localised with the constant feature.
    """

    intercept: bool

    def step(
        self,
        batch: Minibatch,
        localized: Localized,
        values: Values,
        scores: F32,
        seed: int,
        epoch: int = 0,
    ) -> Gradients:
        """Score each example with the values as they were pulled; return the gradients.

        Parameters
        ----------
        batch : Minibatch
        localized : Localized
            Of ``batch``, with ``intercept`` as here.
        values : Values
            Of ``localized.keys``.
        scores : float32[>= rows]
            Written: the score (logit) of each example.
        seed : int
            What chance there is depends on it alone.
        epoch : int
            Pass over the source, from 0.
        """
        ...


class Pending(Protocol):
    """A step that has begun."""

    def result(self) -> Gradients:
        """Wait for its end and return the gradients; the scores are written by then."""
        ...


class Begun(Protocol):
    """Begins steps: one may begin before the result of the one before was taken, in that order.

    Attributes
    ----------
    intercept : bool
        As of :class:`Step`.
    """

    intercept: bool

    def begin(
        self,
        batch: Minibatch,
        localized: Localized,
        values: Values,
        scores: F32,
        seed: int,
        epoch: int = 0,
    ) -> Pending:
        """Begin what :meth:`Step.step` does; what is given stays untouched until the result."""
        ...


def new_step(model: ModelConfig, copies: int = 0) -> Step:
    """Return the step of a kind of model; ``copies`` are those of :class:`MfStep`."""
    if isinstance(model, FmConfig):
        return FmStep(model)
    if isinstance(model, LdaConfig | DeepConfig):
        raise AssertionError(f"steps of {model.kind} are made elsewhere")
    return MfStep(model, copies) if isinstance(model, MfConfig) else LogisticStep(model)


class LogisticStep:
    """L1 logistic regression as a worker sees it; penalties and rates are the shards' business.

    Parameters
    ----------
    model : LrConfig
        ``intercept``.
    """

    def __init__(self, model: LrConfig) -> None:
        self.intercept = bool(model.intercept)

    def step(
        self,
        batch: Minibatch,
        localized: Localized,
        values: Values,
        scores: F32,
        seed: int = 0,
        epoch: int = 0,
    ) -> Gradients:
        """See :meth:`Step.step`; the gradients are ``localized.gradients``."""
        weights = values.weights
        _check(self, localized, weights)
        gradients = localized.gradients
        kernels.logistic_step(
            localized.inverse, batch.values, batch.indptr, batch.labels, batch.weights, batch.rows,
            int(self.intercept), weights, gradients, scores,
        )  # fmt: skip
        return Gradients(gradients)


class FmStep:
    """Factorization machines as a worker sees them.

    Parameters
    ----------
    model : FmConfig
        ``intercept``, the tiers, and how the embeddings' gradient is treated before it is sent.
    """

    def __init__(self, model: FmConfig) -> None:
        self.intercept = bool(model.intercept)
        tiers = self._tiers = model.tiers
        self._dims: I64 = np.array(tiers.dims, np.int64)
        self._rates = v_rates_of(*model.v_rates)
        blocks = -(-tiers.dim // tiers.lanes)
        width = FEATURES_PER_RECORD_MAX + 8
        self._addresses: I64 = np.zeros(width, np.int64)
        self._xs: F32 = np.zeros(width, np.float32)
        self._gxs: F32 = np.zeros(width, np.float32)
        self._ends: I64 = np.zeros(len(tiers.dims), np.int64)
        self._sums: F32 = np.zeros(4 * tiers.lanes * (blocks + 1), np.float32)
        self._places: I64 = np.zeros(1, np.int64)
        self._embeddings: F32 = _lines(1)

    def step(
        self,
        batch: Minibatch,
        localized: Localized,
        values: Values,
        scores: F32,
        seed: int = 0,
        epoch: int = 0,
    ) -> Gradients:
        """See :meth:`Step.step`."""
        weights, dims, tiers = values.weights, values.dims, self._tiers
        _check(self, localized, weights)
        assert len(dims) == localized.unique, f"{len(dims)} lengths, {localized.unique} keys"
        places = self._lay_out(dims, values.vectors)
        gradients = localized.gradients
        dropped = fm_steps.fm_step(
            localized.inverse, batch.values, batch.indptr, batch.labels, batch.weights, batch.rows,
            int(self.intercept), weights, places, dims, self._dims, tiers.lanes, tiers.order,
            self._embeddings, self._addresses, self._xs, self._gxs, self._ends, self._sums,
            gradients, scores,
        )  # fmt: skip
        vectors = np.empty(int(dims.sum()) * tiers.parts, np.float32)
        fm_steps.gather(self._embeddings, places, dims, tiers.lanes, tiers.parts, vectors)
        clip, dropout, normalize = self._rates[4:7]
        if clip or dropout or normalize:
            fm_steps.treat(vectors, clip, dropout, int(normalize), np.uint64(seed))
        return Gradients(gradients, vectors, int(dropped))

    def _lay_out(self, dims: I64, vectors: Sequence[F32]) -> I64:
        """Lay the embeddings out for the step; return where each begins."""
        tiers = self._tiers
        size = 16 + int((-(-dims // tiers.lanes)).sum()) * tiers.block_floats
        if len(self._embeddings) < size:
            self._embeddings = _lines(size + size // 4)
        if len(self._places) < len(dims):
            self._places = np.zeros(len(dims) + len(dims) // 4, np.int64)
        places, begin, first = self._places[: len(dims)], 16, 0
        ends = np.cumsum(dims) * tiers.parts if len(vectors) > 1 else _NO_DIMS
        done = 0
        for number, packed in enumerate(vectors):
            end = len(dims)
            if number < len(vectors) - 1:
                done += len(packed)
                end = int(np.searchsorted(ends, done, side="right"))
            part = slice(first, end)
            begin = fm_steps.lay_out(
                packed, dims[part], tiers.lanes, tiers.parts, begin, self._embeddings, places[part]
            )
            first = end
        return places


class MfStep:
    """Matrix factorization as a worker sees it: it learns a minibatch itself, on copies of rows.

    A rating after the other, as one process does. What goes back says what becomes of each row
    (``kernels.mf_steps``); of the constant feature, in the first pass, the mean of the minibatch's
    ratings (``kernels.rules``), and how many there were, in ``localized.counts``.

    Parameters
    ----------
    model : MfConfig
    copies : int
        Copies of rows' factors that are kept from one minibatch to another (``Values.used``).

    Notes
    -----
    ``negatives`` are drawn from among the items of the minibatch, each as often as any other.
    """

    def __init__(self, model: MfConfig, copies: int = 0) -> None:
        self.intercept = bool(model.intercept)
        tiers = self._tiers = model.tiers
        self._model = model
        self._rates = rates_of(model, 0)
        self._epoch = 0
        self._negatives = model.negatives if model.loss == "logistic" else 0
        self._dims: I64 = np.array(tiers.dims, np.int64)
        self._layout: I64 = np.array(
            [tiers.lanes, tiers.order, 4 * tiers.block_floats, 1 << 40, 0, 0, 0, 0], np.int64
        )
        self._copies: F32 = _lines(copies * tiers.floats(tiers.dim))
        self._no_table = _no_table()
        self._words: U64 = np.zeros(0, np.uint64)
        self._lines: F32 = _lines(0)
        self._items: U64 = np.zeros(0, np.uint64)
        self._state: I64 = np.zeros(8, np.int64)
        self._fresh: U8 = np.zeros(0, np.uint8)
        self._held: U8 = np.zeros(0, np.uint8)
        self._pairs: U32 = np.zeros(0, np.uint32)

    def step(
        self,
        batch: Minibatch,
        localized: Localized,
        values: Values,
        scores: F32,
        seed: int = 0,
        epoch: int = 0,
    ) -> Gradients:
        """See :meth:`Step.step`."""
        weights, tiers, bare = values.weights, self._tiers, int(self.intercept)
        _check(self, localized, weights)
        unique, rows = localized.unique, batch.rows
        assert batch.nnz == 2 * rows, f"{batch.nnz} keys in {rows} ratings, expected two each"
        assert len(values.dims) == unique, f"{len(values.dims)} lengths, {unique} keys"
        if epoch != self._epoch:
            self._rates, self._epoch = rates_of(self._model, epoch), epoch
        self._make_room(rows, unique)
        packed = values.vectors[0] if len(values.vectors) == 1 else _NO_VECTORS
        if len(values.vectors) > 1:
            packed = np.concatenate(values.vectors)
        dims: I64 = np.empty(unique, np.int64)
        before: F32 = np.empty(unique * tiers.dim, np.float32)
        items = mf_steps.lay_out(
            localized.keys, weights, values.dims, packed, localized.inverse, bare, tiers.dim,
            self._layout, self._rates[3], values.used, self._copies, self._words, self._lines,
            before, dims, self._items,
        )  # fmt: skip
        mean: F32 = np.zeros(2, np.float32)
        if bare and weights[0] != 0:
            mean[:] = weights[0], _HARDLY_ANY
        dropped = self._learn(batch, localized, mean, items, scores, seed)
        changes = localized.gradients
        before = before[: int(dims.sum())]
        shares: U8 = np.empty(2 * unique, np.uint8)
        mf_steps.keep(
            self._words, self._lines, localized.inverse, batch.labels[:rows], batch.weights[:rows],
            self._rates, self._negatives, items, np.empty((unique, 3), np.float32), shares,
        )  # fmt: skip
        mf_steps.take(
            self._words, self._lines, weights, bare, shares, before, changes, values.kept,
            self._copies,
        )  # fmt: skip
        if bare:
            changes[0] = mean[0] / MEAN_SHARE if epoch == 0 else 0.0
            localized.counts[0] = int(mean[1])
        return Gradients(changes, before, dropped, dims, shares)

    def _learn(
        self,
        batch: Minibatch,
        localized: Localized,
        mean: F32,
        items: int,
        scores: F32,
        seed: int,
    ) -> int:
        """Learn a minibatch on the rows that are laid out; return how many ratings were dropped.

        ``mean`` is the mean rating and of how many, and becomes those of the minibatch.
        """
        state, rows = self._state, batch.rows
        state[:] = 0
        state[1] = rows
        places, segment_of, one, loads, cut = self._no_table
        learn: Any = factors.learn  # numba's stubs count the arguments of another function
        learn(
            batch.keys, batch.labels, batch.weights, state, self._words, places, segment_of, one,
            loads, loads, mean, 2, localized.inverse.view(np.uint32), _NO_COUNTS, self._dims,
            self._layout, self._lines, self._lines.view(np.uint64), one, one, loads, self._rates,
            np.uint64(0), self._negatives, np.uint64(seed), np.array([1, items], np.int64),
            self._items, np.uint64(0), np.uint64(0), scores, self._fresh, self._pairs, self._held,
            *cut, *cut,
        )  # fmt: skip
        return int(state[4])

    def _make_room(self, rows: int, unique: int) -> None:
        """Have room for so many ratings and keys."""
        if len(self._items) < unique:
            room = unique + unique // 4
            self._words = np.zeros(4 * room, np.uint64)
            self._lines = _lines(room * self._tiers.floats(self._tiers.dim))
            self._items = np.zeros(room, np.uint64)
        if len(self._held) < rows:
            self._fresh, self._held = np.zeros((2, rows), np.uint8)
            self._pairs = np.zeros(2 * rows, np.uint32)


def _no_table() -> tuple[Any, ...]:
    """Return what ``kernels.factors.learn`` is given of a table where rows are known."""
    cut = (
        0, np.zeros(1, np.uint64), np.zeros(1, np.int64), np.zeros((1, 8), np.uint64),
        np.zeros(1, np.int64),
    )  # fmt: skip
    return (
        np.zeros((256, 2), np.uint64), np.zeros(256, np.int32), np.zeros(1, np.int64),
        np.zeros(2, np.int64), cut,
    )  # fmt: skip


def _lines(size: int) -> F32:
    """Return so many floats that begin a 64-byte line."""
    room = np.zeros(size + 16, np.float32)
    skip = -room.ctypes.data % 64 // 4
    return room[skip : skip + size]


def _check(step: Step, localized: Localized, weights: F32) -> None:
    assert localized.intercept == step.intercept, "localised for another model"
    assert len(weights) == localized.unique, f"{len(weights)} weights, {localized.unique} keys"
