"""What an estimator of nets has learned: a model and what reads for it, and how they are kept."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self, cast

import numpy as np

from streamlearn.config import DeepConfig, JobConfig
from streamlearn.errors import ConfigError
from streamlearn.gate import Gate
from streamlearn.lanes import Portions
from streamlearn.learned import (
    job_with,
    open_model,
    opened_by,
    pack,
    read_beside,
    save_model,
    unpack,
)
from streamlearn.messages import F32, I64, U8
from streamlearn.model import Model
from streamlearn.online.losses import new_validation
from streamlearn.online.minibatch import FEATURES_PER_RECORD_MAX, Minibatch
from streamlearn.online.net_inputs import Inputs, Rows, inputs_of
from streamlearn.online.solvers import DeviceSolver
from streamlearn.shards.cut import Cut
from streamlearn.stream import Work
from streamlearn.window import PARCELS, Window

__all__ = ["LearnedNet", "require_torch"]

# Rows are scored in numbers that this divides, so that a row's score does not depend on how many
# are scored with it: torch adds in another order where there are fewer.
_ROWS_TOGETHER: Final = 16
# Rows scored at once where minibatches are smaller, as long as their dense part has few numbers.
_SCORED_ROWS: Final = 1024
_SCORED_FLOATS: Final = 1 << 18


def require_torch(asking: str) -> None:
    """Raise ImportError, with what to install, where torch is not there."""
    try:
        import safetensors  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{asking} computes with torch, which is not there ({error}): "
            "pip install 'streamlearn[deep]'"
        ) from error


class LearnedNet:
    """A net in memory, learned by one thread; scoring alone may be done by several.

    Parameters
    ----------
    model : Model
        Of kind ``deep``; closed when this object goes.

    Attributes
    ----------
    inputs : Inputs
        Reads what is handed in.
    losses : list of float
        Of the last fit: mean loss of each pass, every example scored before it taught.
    """

    def __init__(self, model: Model, inputs: Inputs | None = None) -> None:
        self.model = model
        source, fields = model.job.source, model.names.fields
        self.inputs = inputs or inputs_of(source, fields, model.dense)
        self.losses: list[float] = []
        self._end = weakref.finalize(self, _close, model.solver)

    @property
    def config(self) -> DeepConfig:
        """The settings of the model."""
        model = self.model.job.model
        assert isinstance(model, DeepConfig)
        return model

    def use(self, job: JobConfig) -> None:
        """Go on with other rates: with another optimizer in the state of this one."""
        model, before = self.model, cast("DeviceSolver", self.model.solver)
        changed = job_with(model.job, job)
        from streamlearn.deep_net import new_net  # which brings torch

        config = changed.model
        assert isinstance(config, DeepConfig)
        try:
            solver = new_net(changed, config, model.table, len(model.names.fields), model.dense)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        solver.restore(before.state())
        self._end()
        model.job, model.solver = changed, solver
        self._end = weakref.finalize(self, _close, solver)

    # --- learning

    def fit(self, rows: Rows, labels: F32, weights: F32, epochs: int, *, shuffle: bool) -> None:
        """Learn examples in several passes.

        Parameters
        ----------
        labels, weights : float32[n]
        epochs : int
        shuffle : bool
            Whether each pass has an order of its own; a function of the seed.
        """
        at = np.flatnonzero(weights)
        model = self.model
        self.losses.clear()
        for epoch in range(epochs):
            if epoch:
                model.validation = new_validation(self.config, model.job.output.window)
            order = at
            if shuffle:
                order = np.random.default_rng([self.config.seed, epoch]).permutation(at)
            self.learn(rows, labels, weights, order, epoch)
            self.losses.append(float(model.validation.summary()["loss"]))

    def learn(
        self, rows: Rows, labels: F32, weights: F32, order: I64 | None = None, epoch: int = 0
    ) -> None:
        """Learn examples in one pass, a minibatch after the other.

        Parameters
        ----------
        labels, weights : float32[n]
            Those of weight 0 are left out.
        order : int64[k], optional
            Which, in this order; by default all as they come.
        epoch : int
            Features are counted in pass 0.

        Raises
        ------
        TableFullError
            There is no room for a new feature.
        DivergedError
            Too many steps had a loss that is no number.
        """
        if order is None:
            order = np.flatnonzero(weights)
        if not len(order):
            return
        model = self.model
        for one in rows.described:
            model.names.insert(one)
        step = min(model.job.compute.minibatch, len(order))
        room = max(FEATURES_PER_RECORD_MAX, rows.nnz_max(step))
        stock = [self._batch(step, room) for _ in range(PARCELS)]
        with self._passing(epoch), self._window(step, room, stock) as window:
            for first in range(0, len(order), step):
                at = order[first : first + step]
                batch = stock.pop()
                rows.fill(batch, at)
                batch.labels[: len(at)], batch.weights[: len(at)] = labels[at], weights[at]
                # of memory there are no blocks
                window.add(Work(batch, cast("Any", None), cast("Any", None), 0, 0))

    @contextmanager
    def _passing(self, epoch: int) -> Iterator[None]:
        """Have the model be in a pass."""
        model, was = self.model, self.model.epoch
        model.epoch = epoch
        try:
            yield
        finally:
            model.epoch = was

    @contextmanager
    def _window(self, rows: int, nnz: int, stock: list[Minibatch]) -> Iterator[Window]:
        """Give a window, whose minibatches come back to a stock, and wait for its end."""
        model = self.model

        def learned(work: Work, scores: F32, fresh: U8) -> None:
            n = work.batch.rows
            labels, weights = work.batch.labels[:n], work.batch.weights[:n]
            model.validation.update(scores, labels, weights)
            model.counts.examples += n
            stock.append(work.batch)

        portions = Portions(model, 1, time.thread_time)
        try:
            window = Window(
                model, portions, Gate(), rows, nnz, learned=learned, wants_fresh=lambda rows: False,
                tick=lambda: 0,
            )  # fmt: skip
            try:
                yield window
                window.settle()
            except BaseException:
                window.drop()
                raise
        finally:
            portions.close()
            model.new_cut = Cut

    def _batch(self, rows: int, nnz: int) -> Minibatch:
        model = self.model
        return Minibatch(
            rows, max(nnz, FEATURES_PER_RECORD_MAX), has_values=self.inputs.has_values,
            has_fields=bool(model.names.fields), dense=model.dense,
        )  # fmt: skip

    # --- scoring

    def score(self, rows: Rows) -> F32:
        """Return the scores (logits) of examples, float32[n], or float32[n, classes]."""
        most = min(_SCORED_ROWS, _SCORED_FLOATS // max(1, math.prod(self.model.dense)))
        step = min(max(self.model.job.compute.minibatch, most), rows.count)
        step = -(-step // _ROWS_TOGETHER) * _ROWS_TOGETHER
        room = max(FEATURES_PER_RECORD_MAX, rows.nnz_max(step))
        batch = self._batch(step, room)
        scratch = self.model.solver.scratch(step, room)
        out = []
        for first in range(0, rows.count, step):
            at = np.arange(first, min(first + step, rows.count))
            rows.fill(batch, at, padding=-len(at) % _ROWS_TOGETHER)
            out.append(self.model.solver.score(batch, scratch)[: len(at)])
        return np.concatenate(out)

    # --- keeping it

    def save(self, path: Path, state: dict[str, Any], now: float) -> None:
        """Write a snapshot into ``path/model``, and ``state`` beside it.

        Parameters
        ----------
        now : float
            Seconds since the epoch.
        """
        save_model(self.model, path, state, now)

    @classmethod
    def load(cls, path: Path, asking: str) -> tuple[Self, dict[str, Any] | None]:
        """Open the newest snapshot of ``path/model``; return it with what stood beside it.

        Parameters
        ----------
        asking : str
            Name of the class that is to open it.
        """
        require_torch(asking)
        model = open_model(path, "deep")
        if (other := opened_by(model.job)) != asking:
            model.close()
            raise ConfigError(
                f"the model in {path} has the loss {cast('Any', model.job.model).loss}, which "
                f"{asking} does not learn",
                hint=f"streamlearn.{other}.load({str(path)!r})",
            )
        try:
            return cls(model), read_beside(path)
        except BaseException:
            model.close()
            raise

    def __getstate__(self) -> dict[str, Any]:
        """Return all that is not made again: equal for equal models."""
        model = self.model
        return pack(model) | {
            "fields": model.names.fields,
            "dense": model.dense,
            "net": cast("DeviceSolver", model.solver).state(),
            "losses": list(self.losses),
            "warns": self.inputs.warns,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the net and the table anew."""
        model = unpack(state, state["fields"], state["dense"])
        cast("DeviceSolver", model.solver).restore(state["net"])
        self.__init__(model)  # type: ignore[misc]
        self.losses = list(state["losses"])
        self.inputs.warns = state["warns"]


def _close(solver: Any) -> None:
    """End the lanes of a net that nobody has any more."""
    with suppress(RuntimeError):  # the last one who had it was a lane itself: it ends with it
        solver.close()
