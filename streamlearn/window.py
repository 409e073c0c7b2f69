"""A worker lane's window: the minibatches that it has on their way to shard lanes and back.

See :mod:`streamlearn.lanes` for the order of things. With a delay (of deep nets) a minibatch is
pulled for, and its step begun, before the step of the one before has ended:

::

    worker  pull 3 | begin 3 | wait for 2 | push 2, note 1 | pull 4 | begin 4 | wait for 3 ...
    device  ... 2 .............|  3 .....................................|  4 ...
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Final, Protocol, cast

import numpy as np

from streamlearn.compute.kernels.steps import left_zero
from streamlearn.config import DeepConfig, classes_of
from streamlearn.errors import RunError, StreamlearnError, TableFullError
from streamlearn.gate import Gate
from streamlearn.lanes import Parcel, Portion, Portions
from streamlearn.messages import F32, U8
from streamlearn.model import Model
from streamlearn.online.localized import Localized, Localizer
from streamlearn.online.minibatch import Minibatch
from streamlearn.online.solvers import DeviceSolver
from streamlearn.online.steps import Begun, Gradients, Pending, Step, Values, new_step
from streamlearn.shards.table import ExactTable
from streamlearn.stream import Work

__all__ = ["PARCELS", "TornError", "Window", "rehearse"]

# Minibatches of a worker: one whose push is being applied, one whose pull is, one being parsed.
PARCELS: Final = 3


class TornError(RunError):
    """Some lanes applied a minibatch and one could not: the table is of no one moment."""


def rehearse(model: Model, batch: Minibatch) -> None:
    """Call each kernel of these lanes once, on a small model."""
    assert isinstance(model.table, ExactTable)
    parcel = Parcel(batch.rows_max, batch.nnz_max, 1, classes_of(model.job))
    step = _step_of(model)
    portion = Portion(0, model.table, model.job.model, (0, 256))
    localized = Localizer(batch.nnz_max).localize(batch, parcel.localized, intercept=step.intercept)
    parcel.bounds[:] = localized.bounds((0, 256))
    parcel.wants_after = True
    portion.pull(parcel)
    parcel.gradients = step.begin(batch, localized, parcel.values, parcel.scores, 0).result()
    parcel.generations -= 1  # as if all segments were laid out anew
    portion.push(parcel)
    _count_fresh(parcel, batch)


class _AtOnce:
    """A step that is over as soon as it has begun."""

    def __init__(self, step: Step) -> None:
        self.intercept = step.intercept
        self._step = step

    def begin(
        self,
        batch: Minibatch,
        localized: Localized,
        values: Values,
        scores: F32,
        seed: int,
        epoch: int = 0,
    ) -> Pending:
        """Make the step."""
        return _Over(self._step.step(batch, localized, values, scores, seed, epoch))


class _Over:
    """Gradients that are there."""

    def __init__(self, gradients: Gradients) -> None:
        self._gradients = gradients

    def result(self) -> Gradients:
        """Return them."""
        return self._gradients


def _step_of(model: Model) -> Begun:
    """Return what steps a model's minibatches."""
    if isinstance(model.job.model, DeepConfig):
        return cast("DeviceSolver", model.solver).step
    return _AtOnce(new_step(model.job.model))


def _count_fresh(parcel: Parcel, batch: Minibatch) -> None:
    localized = parcel.localized
    left_zero(
        localized.inverse, batch.indptr, batch.rows, int(localized.intercept), parcel.weights,
        parcel.after, parcel.marks[: localized.unique], parcel.fresh,
    )  # fmt: skip


class Noting(Protocol):
    """What is told of a minibatch once it is applied, while the boundary is held."""

    def __call__(self, work: Work, scores: F32, fresh: U8) -> None:
        """Note a minibatch.

        Parameters
        ----------
        scores : float32[rows]
            Of its examples, before it taught.
        fresh : uint8[>= rows]
            How many weights left zero at each example, where that was asked for.
        """
        ...


class Window:
    """The minibatches that one worker lane has on their way.

    Parameters
    ----------
    model : Model
    portions : Portions
    boundary : Gate
        Held, with others, while a push is on its way.
    rows_max, nnz_max : int
        Of a minibatch.
    learned : callable
        See :class:`Noting`.
    wants_fresh : callable
        Given the rows of the next minibatch, whether ``learned`` will look at ``fresh``.
    tick : callable
        Minutes since the epoch.

    Attributes
    ----------
    dropped : int
        Examples of the minibatch that is noted of which nothing was learned.
    """

    def __init__(
        self,
        model: Model,
        portions: Portions,
        boundary: Gate,
        rows_max: int,
        nnz_max: int,
        *,
        learned: Noting,
        wants_fresh: Callable[[int], bool],
        tick: Callable[[], int],
    ) -> None:
        self._portions = portions
        self._boundary = boundary
        self._learned = learned
        self._wants_fresh = wants_fresh
        self._tick = tick
        self.dropped = 0
        self._model = model
        self._step = _step_of(model)
        config = model.job.model
        self._delay = isinstance(config, DeepConfig) and config.delay > 0
        # a row is fresh with its key where there may be no weights
        self._by_keys = isinstance(config, DeepConfig)
        self._localizer = Localizer(nnz_max)
        shape = (rows_max, nnz_max, len(portions.portions), classes_of(model.job))
        self._free = [Parcel(*shape) for _ in range(PARCELS)]
        self._pulling: Parcel | None = None
        self._stepping: Parcel | None = None
        self._pushing: Parcel | None = None
        self._under_way = False
        self._held = ExitStack()
        self._orphans: list[Callable[[], None]] = []  # of a minibatch while it is noted

    def add(self, work: Work) -> None:
        """Localise a minibatch and pull for it; step with and push the one before.

        Raises
        ------
        TableFullError
            The table has no room for what the one before would insert; of it nothing is learned.
        TornError
            A lane could not apply a push that others applied.
        """
        parcel = self._free.pop()
        parcel.work = work
        localized = self._localizer.localize(
            work.batch, parcel.localized, intercept=self._step.intercept
        )
        parcel.bounds[:] = localized.bounds(self._portions.prefixes)
        if self._delay:
            self._add_early(parcel)
            return
        before, self._pulling = self._pulling, None
        if before is not None:
            self._push(before, parcel)
        else:
            self._enter()
            self._portions.post(None, parcel)
        self._pulling = parcel

    def _add_early(self, parcel: Parcel) -> None:
        """Pull for a minibatch and begin its step; then end that of the one before, and push it."""
        self._enter()
        self._portions.post(None, parcel)
        self._pulling = parcel
        self._land()  # there is time for it while the pull is on its way
        self._begin(parcel)
        self._pulling = None
        before, self._stepping = self._stepping, parcel
        if before is not None:
            self._push(before, None)

    def then(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once all that was added is noted."""
        last = self._pulling or self._stepping or self._pushing
        if last is not None:
            last.then.append(callback)
        else:
            callback()

    def settle(self) -> None:
        """Wait until all that was added is learned and noted; raises as :meth:`add` does."""
        before, self._pulling = self._pulling or self._stepping, None
        self._stepping = None
        if before is not None:
            self._push(before, None)
        self._land()
        self._leave()

    def _enter(self) -> None:
        if not self._under_way:
            self._portions.youth.enter()
            self._under_way = True

    def _leave(self) -> None:
        if self._under_way:
            self._portions.youth.leave()
            self._under_way = False

    def drop(self) -> None:
        """After an error: note what is applied, and forget the rest.

        Raises
        ------
        TornError
            As :meth:`add`.
        """
        left = [one for one in (self._stepping, self._pulling) if one is not None]
        self._stepping = self._pulling = None
        try:
            self._land()
            for parcel in left:
                parcel.wait()
                if parcel.pending is not None:
                    with suppress(StreamlearnError):  # what failed first is what is told
                        parcel.pending.result()
        finally:
            callbacks, self._orphans = self._orphans, []
            for callback in (*callbacks, *(one for parcel in left for one in parcel.then)):
                callback()
            self._held.close()
            self._leave()

    def _begin(self, parcel: Parcel) -> Pending:
        """Begin the step of a minibatch once it is pulled."""
        work = parcel.work
        assert work is not None
        parcel.wait()
        seed = work.base + work.end  # of chance, if there is any
        parcel.pending = self._step.begin(
            work.batch, parcel.localized, parcel.values, parcel.scores, seed, self._model.epoch
        )
        return parcel.pending

    def _push(self, parcel: Parcel, following: Parcel | None) -> None:
        """End the step of a minibatch, and post its push with the pull of the next."""
        work = parcel.work
        assert work is not None
        try:
            pending = parcel.pending or self._begin(parcel)
            self._land()
            parcel.gradients, parcel.pending = pending.result(), None
            parcel.counting = self._model.counting
            parcel.minute = self._tick()
            parcel.wants_fresh = self._wants_fresh(work.batch.rows)
            parcel.wants_after = parcel.wants_fresh and not self._by_keys
            if self._by_keys and parcel.wants_fresh:
                unique = parcel.localized.unique
                np.not_equal(parcel.slots[:unique], -1, out=parcel.weights[:unique])
                parcel.after[:unique] = 1.0
            self._held.enter_context(self._boundary.shared())
            if not self._portions.reserve(parcel):
                self._held.close()
                self._held.enter_context(self._boundary.alone())
                self._portions.make_room(parcel)
        except BaseException:
            parcel.pending = None
            if self._stepping is None:  # of which nothing is learned: it will be dropped
                self._stepping = parcel
            else:
                self._orphans += parcel.then
            raise
        self._pushing = parcel
        self._portions.post(parcel, following)

    def _land(self) -> None:
        """Note the minibatch whose push is applied by now, and let go of the boundary."""
        parcel, self._pushing = self._pushing, None
        if parcel is not None:
            self._note(parcel)
            self._held.close()

    def _note(self, parcel: Parcel) -> None:
        """Wait for a push, and note its minibatch."""
        work = parcel.work
        assert work is not None
        callbacks, parcel.then = parcel.then, []
        self._orphans += callbacks
        try:
            parcel.wait()
        except TableFullError as error:
            raise TornError(
                "a part of the table could not take a minibatch that the others took",
                cause=error.message,
                hint="the snapshot before it is whole: raise tables.features_max and start again",
            ) from error
        rows = work.batch.rows
        if parcel.wants_fresh:
            _count_fresh(parcel, work.batch)
        self.dropped = parcel.gradients.dropped
        self._learned(work, parcel.scores[:rows], parcel.fresh)
        self._portions.youth.learned()
        self._free.append(parcel)
        self._orphans.clear()
        for callback in callbacks:
            callback()
