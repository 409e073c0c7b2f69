"""Deep models: a worker's step with the values that it pulled, and scoring on a local table.

A step of minibatch t, with the loss  L = sum_r w_r loss(logits_r, label_r) / sum_r w_r:

    dense       standardised by what the stream has had, this minibatch with it
    embeddings, wide    pooled by field (``online.pooling``)
    logits      the net's, of those three
    gradients   of L: of the net's parameters, which the optimizer steps with (the mean over all
                workers', where there is an exchange); of the leaves, times sum_r w_r, as tables
                take gradients that are summed over a minibatch

Standardising by sums that have this minibatch in them costs nothing in honesty, as they know no
label, and gives the first minibatches a scale: their own.

All that torch does happens in one lane, in order: the step of t+1 may begin before the gradients of
t are taken. What is random in a step is a function of the seed and the step's number alone.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import nn

from streamlearn.compute.kernels import logistic as rows_of
from streamlearn.compute.kernels import standardizing
from streamlearn.compute.kernels.rules import rates_of
from streamlearn.config import DeepConfig
from streamlearn.errors import ConfigError, DivergedError, SnapshotError
from streamlearn.messages import F32, I64, U8, U64
from streamlearn.online.dense_part import NewExchange
from streamlearn.online.dense_state import part
from streamlearn.online.localized import Localized, Localizer
from streamlearn.online.logistic import RULES
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch
from streamlearn.online.nets import Sizes, check_labels, load_net
from streamlearn.online.pooling import DevicePooling, HostPooling, Pooling, Room
from streamlearn.online.replicas import Lane, Replicas
from streamlearn.online.standardizing import Standardizer
from streamlearn.online.steps import Gradients, Values

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DeepSolver", "DeepStep", "Lane", "Pending"]

# Steps of which no more than a share may be skipped.
_RECENT: Final = 100

# As a score that is no number is told: what FM's steps tell (``kernels.steps``).
_SCORE_MAX: Final = float(np.float32(3e38))


class Pending:
    """A step that has begun."""

    def __init__(self, end: Callable[[], Gradients]) -> None:
        self._end: Callable[[], Gradients] | None = end
        self._gradients: Gradients | None = None

    def result(self) -> Gradients:
        """Wait for its end, write its scores, and return the gradients.

        Raises
        ------
        ResourceError
            There is no memory for one row of it.
        ConfigError
            The net could not be compiled.
        """
        if self._gradients is None:
            assert self._end is not None
            self._gradients, self._end = self._end(), None
        return self._gradients


class DeepStep:
    """A net as a worker sees it: it learns the dense part itself, and the table's by gradients.

    Parameters
    ----------
    model : DeepConfig
    sizes : Sizes
        What the stream has.
    lane : Lane
        Where it computes; of this step alone.
    exchange : callable, optional
        Given the net's named parameters, on the device, returns the exchange between workers.

    Attributes
    ----------
    steps : int
        Steps begun.
    skipped : int
        Of those whose result was taken, steps of which nothing was learned since their loss or a
        gradient was no number.
    needs : Needs
        What the net wants pulled.
    standardizer : Standardizer or None
        None: the dense part is taken as it is, or there is none.

    Raises
    ------
    ConfigError
        There is no such net, or it breaks the contract.
    """

    intercept = False

    def __init__(
        self,
        model: DeepConfig,
        sizes: Sizes,
        lane: Lane,
        *,
        exchange: NewExchange | None = None,
    ) -> None:
        if "dim" in model.settings:
            raise ConfigError("model.settings has dim", hint="set model.dim in its place")
        net, self.needs = load_net(
            model.net, sizes, seed=model.seed, dim=model.dim, **model.settings
        )
        if self.needs.dim not in (0, model.dim):
            raise ConfigError(
                f"net {model.net!r} wants embeddings of {self.needs.dim} numbers; "
                f"model.dim is {model.dim}"
            )
        self.steps = 0
        self.skipped = 0
        self._recent: deque[bool] = deque(maxlen=_RECENT)
        self._model = model
        self._sizes = sizes
        self._lane = lane
        self.standardizer = Standardizer(sizes.dense) if model.standardize and sizes.dense else None
        self._standardizing = threading.Lock()
        kind = HostPooling if lane.device.type == "cpu" else DevicePooling
        self._pooling: Pooling = kind(self.needs, sizes.fields, mean=model.pooling == "mean")
        self._rooms: list[Room] = []
        pooling = self._pooling if sizes.fields else None
        self._dense = Replicas(model, net, self.needs.outputs, pooling, lane, exchange)

    @property
    def net(self) -> nn.Module:
        """The net, that of the first device: look at it under ``lane.run`` alone."""
        return self._dense.parts[0].net

    @property
    def rows_at_once(self) -> int:
        """Rows that a device had memory for at a time; more than any minibatch has: for all."""
        return min(one.rows_at_once for one in self._dense.parts)

    def begin(
        self,
        batch: Minibatch,
        localized: Localized,
        values: Values,
        scores: F32,
        seed: int = 0,
        epoch: int = 0,
    ) -> Pending:
        """Begin what :meth:`Step.step` does.

        Parameters
        ----------
        batch, localized, values
            As for :meth:`Step.step`; untouched until the result is taken.
        scores : float32[>= rows], or float32[>= rows, classes]
            Written once the result is taken: logits, before the minibatch taught.
        seed, epoch : int
            Of no meaning here: chance is of ``model.seed`` and the step's number.

        Raises
        ------
        DataError
            A label is not one of the loss's.
        """
        rows = batch.rows
        labels, weights = batch.labels[:rows], batch.weights[:rows]
        check_labels(self._model.loss, torch.from_numpy(labels), self.needs.outputs)
        room = self._room()
        inputs = self._bring(batch, localized, values, room, learn=True)
        inputs |= {"labels": labels, "weights": weights}
        number, total = self.steps, float(weights.sum(dtype=np.float64))
        self.steps += 1
        results = self._dense.learn(inputs, rows, number, total)

        def end() -> Gradients:
            gradients = self._end(results(), batch, localized, values, scores, room)
            for one in (gradients.weights, gradients.vectors):
                one *= np.float32(total)
            if clip := self._model.v_clip:
                np.clip(gradients.vectors, -clip, clip, out=gradients.vectors)
            self._rooms.append(room)
            return gradients

        return Pending(end)

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
        return self.begin(batch, localized, values, scores, seed, epoch).result()

    def score(self, batch: Minibatch, localized: Localized, values: Values) -> F32:
        """Score a minibatch without learning, dropout off.

        Returns
        -------
        float32[rows], or float32[rows, classes]
            Logits; finite.
        """
        rows, room = batch.rows, self._room()
        inputs = self._bring(batch, localized, values, room, learn=False)
        results = self._dense.judge(inputs, rows)
        self._rooms.append(room)
        return _finite(self._scores(results["scores"]))

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of all that is here and not in the tables, by name.

        As it is after all steps that have begun: take it while none is under way. ``net.*``,
        ``optimizer.*``, ``standardizer.*``, ``exchange.*``; ``steps`` and ``skipped``, int64[1].
        """
        arrays = self._dense.state()
        if self.standardizer is not None:
            arrays |= {f"standardizer.{k}": v for k, v in self.standardizer.state().items()}
        counters = {"steps": self.steps, "skipped": self.skipped}
        return arrays | {name: np.array([n], np.int64) for name, n in counters.items()}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take what :meth:`state` returned, of a worker with an exchange or without.

        Raises
        ------
        SnapshotError
            It is of another net, optimizer or dense part; says how either side has it.
        """
        missing = [name for name in ("steps", "skipped") if name not in arrays]
        if missing:
            raise SnapshotError(f"the snapshot's dense part lacks {' and '.join(missing)}")
        kept = part(arrays, "standardizer.")
        if self.standardizer is not None:
            self.standardizer.restore(kept)
        elif kept:
            raise SnapshotError("the snapshot standardises the dense part, this job does not")
        self._dense.restore(arrays)
        self.steps, self.skipped = (int(arrays[name][0]) for name in ("steps", "skipped"))

    def figures(self) -> dict[str, float]:
        """Return ``steps``, ``skipped``, ``busy_seconds``, ``bytes_in`` and ``bytes_out``."""
        lane = self._lane
        return {
            "steps": self.steps, "skipped": self.skipped, "busy_seconds": lane.busy_seconds,
            "bytes_in": lane.bytes_in, "bytes_out": lane.bytes_out,
        }  # fmt: skip

    def close(self) -> None:
        """End the lane, once all that has begun is done."""
        self._lane.close()

    # --- on the caller's thread

    def _room(self) -> Room:
        """Return arrays that nobody has."""
        try:
            return self._rooms.pop()
        except IndexError:  # of more than are under way, nobody asks
            return Room()

    def _bring(
        self, batch: Minibatch, localized: Localized, values: Values, room: Room, *, learn: bool
    ) -> dict[str, NDArray[Any]]:
        """Return what the lane is given of a minibatch's inputs."""
        assert not localized.intercept, "localised for another model"
        unique = localized.unique
        assert len(values.weights) == unique, f"{len(values.weights)} weights, {unique} keys"
        inputs: dict[str, NDArray[Any]] = {}
        if self._sizes.fields:
            inputs |= self._pooling.bring(batch, localized, values, room)
        if self._sizes.dense:
            rows, dense = batch.rows, batch.dense[: batch.rows]
            out = room.take("dense", dense.shape)
            if self.standardizer is None:
                columns = dense.shape[1]
                zeros, ones = np.zeros(columns), np.ones(columns)
                standardizing.standardize(dense, zeros, ones, np.inf, out)
            else:
                with self._standardizing:  # who scores may stand in another lane
                    if learn:
                        self.standardizer.update(dense)
                    self.standardizer.apply(dense, out)
            inputs["dense"] = out.reshape(rows, *self._sizes.dense)
        return inputs

    def _end(
        self,
        results: Mapping[str, NDArray[Any]],
        batch: Minibatch,
        localized: Localized,
        values: Values,
        scores: F32,
        room: Room,
    ) -> Gradients:
        """Write the scores and return the gradients of a step that has ended."""
        fine = bool(results["fine"])
        self._judge(fine=fine)
        out = self._scores(results["scores"])
        scores[: batch.rows] = out if fine else _finite(out)
        found = {name: a for name, a in results.items() if name in ("embeddings", "wide")}
        gradients = self._pooling.gradients(found if fine else {}, batch, localized, values, room)
        if not fine:
            return Gradients(gradients.weights, gradients.vectors, batch.rows)
        return gradients

    def _judge(self, *, fine: bool) -> None:
        """Count a step that has ended; raises DivergedError where too many were skipped."""
        self.skipped += not fine
        self._recent.append(fine)
        bad, most = self._recent.count(False), self._model.skipped_max
        if bad > most * _RECENT:
            raise DivergedError(
                f"{bad} of the last {_RECENT} steps were skipped, as loss or gradients were no "
                f"numbers: more than model.skipped_max = {most:.1%}",
                hint="take a smaller model.lr, or look for what the records have",
            )

    def _scores(self, logits: F32) -> F32:
        return logits if self._model.loss == "classes" else logits[:, 0]


class DeepScratch:
    """Buffers of one lane that scores.

    Attributes
    ----------
    state, fresh, scores
        As ``logistic.Scratch`` has them; ``scores`` are what ``score`` returned last.
    """

    def __init__(self, rows_max: int, nnz_max: int) -> None:
        self.state: I64 = np.zeros(8, np.int64)
        self.fresh: U8 = np.zeros(rows_max, np.uint8)
        self.scores: F32 = np.zeros(0, np.float32)
        self.localizer = Localizer(nnz_max)
        self.localized = Localized(nnz_max)


class DeepSolver:
    """Scores minibatches by a net and the table that it was learned with.

    Parameters
    ----------
    model : DeepConfig
    table : ExactTable
        With embeddings of the model's tiers.
    step : DeepStep
        Whose net it is.

    Attributes
    ----------
    counting : bool
        Whether examples raise the counts of their features.
    intercept : float
        0: the net has its own.
    """

    intercept = 0.0

    def __init__(self, model: DeepConfig, table: Any, step: DeepStep) -> None:
        self.table = table
        self.step = step
        self.counting = True
        self._rates = rates_of(model.alpha, model.beta, model.l1, model.l2, False)

    def scratch(
        self, rows_max: int, nnz_max: int, features_max: int = FEATURES_PER_RECORD_MAX
    ) -> DeepScratch:
        """Return buffers for a lane that scores."""
        return DeepScratch(rows_max, nnz_max)

    def score(self, batch: Minibatch, scratch: DeepScratch) -> F32:
        """Score each example without learning; float32[rows], or float32[rows, classes]."""
        localized = scratch.localizer.localize(batch, scratch.localized, intercept=False)
        scratch.scores = self.step.score(batch, localized, self.pull(localized.keys))
        return scratch.scores

    def pull(self, keys: U64) -> Values:
        """Return what the table has of keys (uint64[u]): zeros, and no embedding, of unknown ones.

        As a shard's lane pulls them.
        """
        slots: I64 = self.table.find(keys)
        known = slots >= 0
        columns: U64 = np.zeros(len(keys), np.uint64)
        columns[known] = self.table.rows_at(slots[known])[:, 1]
        weights = self.weights(columns)
        weights[~known] = 0
        dims: I64 = self.table.arena.lengths(slots, weights, False)
        return Values(weights, dims, (self.table.arena.pull(slots, dims),))

    def weights(self, columns: U64) -> F32:
        """Derive the weights of rows from their columns (word 1 of a row, uint64[n])."""
        out = np.empty(len(columns), np.float32)
        rows_of.weights_of(np.ascontiguousarray(columns), RULES["ftrl"], self._rates, out)
        return out

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what it has beside the table; see :meth:`DeepStep.state`."""
        return self.step.state()

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take what :meth:`state` returned; see :meth:`DeepStep.restore`."""
        self.step.restore(arrays)

    def figures(self) -> dict[str, float]:
        """Return what it tells of its steps and devices; see :meth:`DeepStep.figures`."""
        return self.step.figures()

    def close(self) -> None:
        """End the step's lane."""
        self.step.close()


def _finite(scores: F32) -> F32:
    """Return scores with 0 in the place of NaN, and what is infinite cut."""
    sound: F32 = np.nan_to_num(scores, nan=0.0, posinf=_SCORE_MAX, neginf=-_SCORE_MAX)
    return sound
