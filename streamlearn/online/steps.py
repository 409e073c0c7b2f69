"""What a worker does with the values that it pulled for a minibatch, by kind of model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from streamlearn.compute.kernels import fm_steps
from streamlearn.compute.kernels import steps as kernels
from streamlearn.compute.kernels.rules import v_rates_of
from streamlearn.config import FmConfig, LrConfig, ModelConfig
from streamlearn.messages import F32, I64
from streamlearn.online.localized import Localized
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch

__all__ = ["FmStep", "Gradients", "LogisticStep", "Step", "Values", "new_step"]

_NO_VECTORS: Final[F32] = np.zeros(0, np.float32)
_NO_DIMS: Final[I64] = np.zeros(0, np.int64)


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
    """

    weights: F32
    dims: I64 = field(default_factory=lambda: _NO_DIMS)
    vectors: Sequence[F32] = ()


@dataclass(frozen=True, slots=True)
class Gradients:
    """Gradients of the loss summed over a minibatch, by key.

    Attributes
    ----------
    weights : float32[u]
    vectors : float32[...]
        As ``Values.vectors`` has them, all in one.
    dropped : int
        Examples whose score was not finite: nothing is learned of them.
    """

    weights: F32
    vectors: F32 = field(default_factory=lambda: _NO_VECTORS)
    dropped: int = 0


class Step(Protocol):
    """Scores a minibatch and computes its gradients.

    Attributes
    ----------
    intercept : bool
        Whether minibatches are to be localised with the constant feature.
    """

    intercept: bool

    def step(
        self, batch: Minibatch, localized: Localized, values: Values, scores: F32, seed: int
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
        """
        ...


def new_step(model: ModelConfig) -> Step:
    """Return the step of a kind of model."""
    return FmStep(model) if isinstance(model, FmConfig) else LogisticStep(model)


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
        self, batch: Minibatch, localized: Localized, values: Values, scores: F32, seed: int = 0
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
        self, batch: Minibatch, localized: Localized, values: Values, scores: F32, seed: int = 0
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


def _lines(size: int) -> F32:
    """Return so many floats that begin a 64-byte line."""
    room = np.zeros(size + 16, np.float32)
    skip = -room.ctypes.data % 64 // 4
    return room[skip : skip + size]


def _check(step: Step, localized: Localized, weights: F32) -> None:
    assert localized.intercept == step.intercept, "localised for another model"
    assert len(weights) == localized.unique, f"{len(weights)} weights, {localized.unique} keys"
